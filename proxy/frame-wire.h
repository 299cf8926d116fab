/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* frame-wire.h - the FRAME message between two proxies (docs/PROTOCOL.md, "Frames channel") */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hold-queue.h"

typedef enum WireKind {
    WIRE_INGRESS = 1,    /* primary to secondary: a frame that PVM is given */
    WIRE_EGRESS = 2,     /* secondary to primary: a frame that SVM sent */
    WIRE_CONNECTION = 3, /* primary to secondary: in place of a frame, see inherit.h */
    /* Primary to secondary, in place of a frame: the secret with which SVM's large segments may
     * come as digests, and which of them is needed whole; see digests.h. */
    WIRE_DIGEST_KEY = 4,
    WIRE_WANT = 5,
    WIRE_DIGEST = 6, /* secondary to primary: a frame that SVM sent, see digests.h */
} WireKind;

enum {
    WIRE_VERSION = 1,
    WIRE_TYPE_FRAME = 48,
    WIRE_HEADER_BYTES = 8,
    WIRE_FIXED_BYTES = 20, /* of the payload, before the virtio-net header */
    WIRE_VNET_BYTES = 10,
    WIRE_ETHERNET_BYTES = 14,
    WIRE_FRAME_MIN = WIRE_VNET_BYTES + WIRE_ETHERNET_BYTES,
    WIRE_OVERHEAD_BYTES = WIRE_HEADER_BYTES + WIRE_FIXED_BYTES,
    WIRE_MESSAGE_MAX = WIRE_OVERHEAD_BYTES + HOLD_QUEUE_FRAME_MAX,
};

typedef struct WireFrame {
    uint64_t epoch;
    uint64_t sequence;
    uint8_t nic;
    WireKind kind;
    uint8_t *frame; /* virtio-net header in host order, then the Ethernet frame */
    size_t len;     /* WIRE_FRAME_MIN ... HOLD_QUEUE_FRAME_MAX */
} WireFrame;

typedef enum WireResult {
    WIRE_OK,
    WIRE_SHORT, /* the rest of the message is not there yet */
    WIRE_BAD_VERSION,
    WIRE_BAD_TYPE,
    WIRE_BAD_RESERVED,
    WIRE_BAD_LENGTH,
    WIRE_BAD_KIND,
    WIRE_N_RESULTS,
} WireResult;

/** Static text for all but WIRE_OK and WIRE_SHORT. */
const char *wire_result_text(WireResult result);

/** Writes the message into @out, which has WIRE_OVERHEAD_BYTES + in->len bytes; returns that.
 * The frame may lie in its place already, at @out + WIRE_OVERHEAD_BYTES. */
size_t wire_encode(uint8_t *out, const WireFrame *in);

/** Decodes the message at the beginning of @bytes, which nobody has checked.
 *
 * *@ret_frame (written on WIRE_OK only) points into @bytes, where the virtio-net header has been
 * put into host order: a message is decoded once. *@ret_bytes: its length.
 */
WireResult wire_decode(uint8_t *bytes, size_t len, WireFrame *ret_frame, size_t *ret_bytes);

/** The same for a message that has been decoded before. */
void wire_again(uint8_t *bytes, WireFrame *ret_frame, size_t *ret_bytes);
