/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-exports.c - what a primary reads of a target to know what to copy: `changed`, `digest`
 *
 * A digest is of one moment of its chunk (a shared hold on it), and of the disk: while mirroring
 * that is what the primary has written, not what the secondary's guest sees.
 */
#include "target-exports.h"

#include <errno.h>
#include <string.h>

#define CHUNK ((uint64_t)DIRTY_CHUNK_BYTES)

static int
refuse(int r, Fault *ret_fault)
{
    *ret_fault = FAULT_REFUSED;
    return r;
}

static bool
is_inside(uint64_t size, size_t len, uint64_t offset)
{
    return offset <= size && len <= size - offset;
}

uint64_t
export_changed_size(Target *target)
{
    return target_map(target) ? dirty_map_n_bytes(target_map(target)) : 0;
}

int
export_changed_read(Target *target, void *buf, size_t len, uint64_t offset, Fault *ret_fault)
{
    if (!is_inside(export_changed_size(target), len, offset))
        return refuse(-EINVAL, ret_fault);
    if (len > 0)
        dirty_map_read_bytes(target_map(target), buf, len, offset);
    return 0;
}

static uint64_t
disk_bytes(Target *target)
{
    return layers_disk(target_layers(target))->size_bytes;
}

uint64_t
export_digest_size(Target *target)
{
    return (disk_bytes(target) / CHUNK + (disk_bytes(target) % CHUNK > 0)) * CHUNK_DIGEST_BYTES;
}

static int
digest_of(Target *target, uint64_t chunk, uint8_t ret_digest[CHUNK_DIGEST_BYTES], Fault *ret_fault)
{
    uint8_t data[DIRTY_CHUNK_BYTES];
    size_t len = (size_t)MIN(CHUNK, disk_bytes(target) - chunk * CHUNK);
    int r = layers_read(target_layers(target), SIDE_TARGET, data, len, chunk * CHUNK, ret_fault);

    if (r == 0)
        chunk_digest(data, len, ret_digest);
    return r;
}

int
export_digest_read(Target *target, void *buf, size_t len, uint64_t offset, Fault *ret_fault)
{
    uint8_t *to = buf;

    if (!is_inside(export_digest_size(target), len, offset) ||
        offset % CHUNK_DIGEST_BYTES + len > DIGEST_MAX_CHUNKS * CHUNK_DIGEST_BYTES)
        return refuse(-EINVAL, ret_fault);
    store_prefetch(layers_disk(target_layers(target)), offset / CHUNK_DIGEST_BYTES * CHUNK,
                   (len / CHUNK_DIGEST_BYTES + 1) * CHUNK);
    while (len > 0) {
        uint8_t digest[CHUNK_DIGEST_BYTES];
        size_t skip = offset % CHUNK_DIGEST_BYTES, piece = MIN(len, CHUNK_DIGEST_BYTES - skip);
        int r = digest_of(target, offset / CHUNK_DIGEST_BYTES, digest, ret_fault);

        if (r < 0)
            return r;
        memcpy(to, digest + skip, piece);
        to += piece;
        offset += piece;
        len -= piece;
    }
    return 0;
}
