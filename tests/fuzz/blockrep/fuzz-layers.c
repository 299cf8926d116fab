/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-layers.c - a stream of requests against the plain model
 *
 * Eight bytes a request: operation (four bits), by how much the length is made smaller (three),
 * side, be24 offset, fill, be24 length.
 */
#include "layers-model.h"

#include "bytes.h"

enum { DISK_BYTES = 90 * 4096 + 77, LIMIT = 64 * 4096, MAX_REQUESTS = 200 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(World) world = world_new(DISK_BYTES, LIMIT);
    View view = view_of(data, size);
    uint32_t where, length;

    for (int i = 0;
         i < MAX_REQUESTS && view_get_be32(&view, &where) && view_get_be32(&view, &length); i++) {
        WorldOp op = (WorldOp)((where >> 28) % OP_COUNT);
        Side side = where >> 24 & 1 ? SIDE_ACTIVE : SIDE_TARGET;

        unsigned smaller = 2 * (where >> 25 & 7);

        (void)world_op(world, op, side, where & 0xffffff, (length & 0xffffff) >> smaller,
                       (uint8_t)(length >> 24));
    }
    world_check(world);
    return 0;
}
