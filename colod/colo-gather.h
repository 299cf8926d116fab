/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-gather.h - what colo-forward.c and colo-return.c share: items split over reads, messages in
 * turn */
#pragma once

#include "colo-stream.h"

enum {
    COLO_MESSAGE_BYTES = 4,
    /* The longest item taken in one piece: name length 255, and a be64 behind the name. */
    COLO_GATHER_MAX_BYTES = 255 + 8,
};

/* The beginning of an item whose end has not arrived. */
typedef struct ColoGather {
    uint8_t bytes[COLO_GATHER_MAX_BYTES];
    size_t have;
} ColoGather;

/**
 * Takes the next @need bytes (1 .. COLO_GATHER_MAX_BYTES) in one piece, valid until the next call.
 * NULL: all of @in was consumed and kept, and more is needed.
 */
const uint8_t *colo_gather_take(ColoGather *gather, View *in, size_t need);

/** Checks that @bytes are the COLO message that is due. @offset: of its first byte. */
gboolean colo_message_check(const uint8_t bytes[static COLO_MESSAGE_BYTES], ColoMessage due,
                            uint64_t offset, GError **error);
