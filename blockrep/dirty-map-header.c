/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dirty-map-header.c - the first bytes of a map's file
 *
 * magic 8 | be32 version | be32 chunk bytes | be64 disk bytes | u8 flags | 7 zeros | boot id 40,
 * filled up with zeros | zeros | be64 XXH3-64 of all before. Strict: there is one way to write it.
 */
#include "dirty-map-header.h"

#include "bytes.h"
#include "dirty-map.h"

#include <string.h>
#include <xxhash.h>

#define BOOT_ID_CHARACTERS "0123456789abcdef-"

enum {
    VERSION = 1,
    AT_VERSION = 8,
    AT_CHUNK = 12,
    AT_SIZE = 16,
    AT_FLAGS = 24,
    AT_BOOT_ID = 32,
    AT_SUM = MAP_HEADER_BYTES - 8,
    FLAG_CLEAN = 1,
    FLAG_DISTRUSTED = 2,
};

static const uint8_t magic[8] = {'c', 'o', 'l', 'o', 'd', 'm', 'a', 'p'};

void
map_header_format(const MapHeader *header, uint8_t ret_bytes[MAP_HEADER_BYTES])
{
    memset(ret_bytes, 0, MAP_HEADER_BYTES);
    memcpy(ret_bytes, magic, sizeof(magic));
    be32_store(ret_bytes + AT_VERSION, VERSION);
    be32_store(ret_bytes + AT_CHUNK, DIRTY_CHUNK_BYTES);
    be64_store(ret_bytes + AT_SIZE, header->size_bytes);
    ret_bytes[AT_FLAGS] =
        (uint8_t)((header->clean ? FLAG_CLEAN : 0) | (header->distrusted ? FLAG_DISTRUSTED : 0));
    g_strlcpy((char *)ret_bytes + AT_BOOT_ID, header->boot_id, sizeof(header->boot_id));
    be64_store(ret_bytes + AT_SUM, XXH3_64bits(ret_bytes, AT_SUM));
}

bool
map_header_is_blank(const uint8_t bytes[MAP_HEADER_BYTES])
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, MAP_HEADER_BYTES - 1) == 0;
}

static bool
is_text(const uint8_t bytes[MAP_BOOT_ID_BYTES])
{
    const uint8_t *end = memchr(bytes, '\0', MAP_BOOT_ID_BYTES);

    return end && strspn((const char *)bytes, BOOT_ID_CHARACTERS) == (size_t)(end - bytes);
}

const char *
map_header_parse(const uint8_t bytes[MAP_HEADER_BYTES], MapHeader *ret_header)
{
    uint8_t again[MAP_HEADER_BYTES];
    MapHeader header = {0};

    if (memcmp(bytes, magic, sizeof(magic)) != 0)
        return "is no map of a disk";
    if (be64_load(bytes + AT_SUM) != XXH3_64bits(bytes, AT_SUM))
        return "is damaged (the checksum of its header does not fit)";
    if (be32_load(bytes + AT_VERSION) != VERSION ||
        be32_load(bytes + AT_CHUNK) != DIRTY_CHUNK_BYTES)
        return "is of a version this colod does not know";
    header.size_bytes = be64_load(bytes + AT_SIZE);
    header.clean = bytes[AT_FLAGS] & FLAG_CLEAN;
    header.distrusted = bytes[AT_FLAGS] & FLAG_DISTRUSTED;
    if (!is_text(bytes + AT_BOOT_ID))
        return "is damaged (its boot id)";
    memcpy(header.boot_id, bytes + AT_BOOT_ID, MAP_BOOT_ID_BYTES);
    map_header_format(&header, again);
    if (memcmp(again, bytes, MAP_HEADER_BYTES) != 0)
        return "is damaged (its header is written otherwise)";
    *ret_header = header;
    return NULL;
}
