/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* framing.h - QEMU's framing of packets on a stream: be32 length, be32 vnet header length, bytes */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FRAMING_HEADER_MAX = 8,
    FRAMING_VNET_HDR_MAX = 12, /* struct virtio_net_hdr_mrg_rxbuf; with hash reports it is 20, which
                                  no filter of QEMU's sends */
};

typedef struct FramingPacket {
    const uint8_t *bytes; /* in the buffer given */
    uint32_t len;         /* with the virtio-net header */
    uint8_t vnet_hdr_len;
} FramingPacket;

/** Takes the first packet of @len bytes at @bytes; @vnet_hdr: the second length is there.
 *
 * Return: the bytes it occupied; 0 if it is not complete; -EPROTO if this is not the framing
 * (too long, or a header longer than the packet): the stream cannot be used any further.
 */
int64_t framing_next(const uint8_t *bytes, size_t len, bool vnet_hdr, FramingPacket *ret_packet);

static inline size_t
framing_header_len(bool vnet_hdr)
{
    return vnet_hdr ? FRAMING_HEADER_MAX : FRAMING_HEADER_MAX / 2;
}

/** Writes the header of a packet. Return: its length. */
size_t framing_put_header(uint8_t header[static FRAMING_HEADER_MAX], bool vnet_hdr, uint32_t len,
                          uint8_t vnet_hdr_len);
