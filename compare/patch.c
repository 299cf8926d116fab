/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* patch.c - changes what a TCP segment acknowledges and announces on its way out */
#include "patch.h"

#include <string.h>

#include "bytes.h"

enum {
    TCP_ACK_OFFSET = 8,
    TCP_WINDOW_OFFSET = 14,
    TCP_CHECKSUM_OFFSET = 16,
};

/* RFC 1624, equation 3, over the two halves of a 32-bit field. */
static uint16_t
checksum_patch(uint16_t sum, uint32_t from, uint32_t to)
{
    uint32_t acc = (uint16_t)~sum;

    acc += (uint16_t) ~(from >> 16) + (uint32_t)(uint16_t)~from;
    acc += (to >> 16) + (to & 0xffff);
    acc = (acc & 0xffff) + (acc >> 16);
    acc = (acc & 0xffff) + (acc >> 16);
    return (uint16_t)~acc;
}

uint16_t
patch_window_field(const Held *h)
{
    return be16_load(h->frame + h->l4_off + TCP_WINDOW_OFFSET); /* frame_parse() saw 20 bytes */
}

const uint8_t *
patch_tcp(Held *h, uint8_t *scratch, uint32_t ack, uint16_t window)
{
    uint8_t *bytes = (uint8_t *)(h + 1);

    if (!(h->flags & HELD_STORED)) {
        memcpy(scratch, h->frame, h->frame_len);
        bytes = scratch;
    }
    uint8_t *tcp = bytes + h->l4_off;

    /* With checksum offload the field only has the pseudo header's sum, which has neither in it. */
    if (!(h->flags & HELD_CSUM_PARTIAL)) {
        uint16_t sum = be16_load(tcp + TCP_CHECKSUM_OFFSET);

        sum = checksum_patch(sum, be32_load(tcp + TCP_ACK_OFFSET), ack);
        sum = checksum_patch(sum, be16_load(tcp + TCP_WINDOW_OFFSET), window);
        be16_store(tcp + TCP_CHECKSUM_OFFSET, sum);
    }
    be32_store(tcp + TCP_ACK_OFFSET, ack);
    be16_store(tcp + TCP_WINDOW_OFFSET, window);
    return bytes;
}
