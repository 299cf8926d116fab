/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-dirty-map.c - the header of a map: bytes as they are, and with a checksum that fits */
#include "dirty-map-header.h"

#include "bytes.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
parse(const uint8_t bytes[MAP_HEADER_BYTES])
{
    uint8_t again[MAP_HEADER_BYTES];
    MapHeader header;

    if (map_header_parse(bytes, &header))
        return;
    g_assert(!map_header_is_blank(bytes));
    map_header_format(&header, again);
    if (memcmp(again, bytes, sizeof(again)) != 0)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t bytes[MAP_HEADER_BYTES] = {0};

    if (size > 0)
        memcpy(bytes, data, MIN(size, sizeof(bytes)));
    parse(bytes);
    be64_store(bytes + sizeof(bytes) - 8, XXH3_64bits(bytes, sizeof(bytes) - 8));
    parse(bytes);
    return 0;
}
