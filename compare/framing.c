/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* framing.c - QEMU's framing of packets on a stream */
#include "framing.h"

#include <errno.h>

#include "bytes.h"
#include "frame.h"

int64_t
framing_next(const uint8_t *bytes, size_t len, bool vnet_hdr, FramingPacket *ret_packet)
{
    View v = view_of(bytes, len);
    FramingPacket packet = {0};
    uint32_t vnet_hdr_len = 0;

    if (!view_get_be32(&v, &packet.len) || (vnet_hdr && !view_get_be32(&v, &vnet_hdr_len)))
        return 0;
    if (packet.len > FRAME_MAX_BYTES || vnet_hdr_len > FRAMING_VNET_HDR_MAX ||
        vnet_hdr_len > packet.len)
        return -EPROTO;
    if (!view_take(&v, packet.len, &packet.bytes))
        return 0;
    packet.vnet_hdr_len = (uint8_t)vnet_hdr_len;
    *ret_packet = packet;
    return (int64_t)(len - v.len);
}

size_t
framing_put_header(uint8_t header[static FRAMING_HEADER_MAX], bool vnet_hdr, uint32_t len,
                   uint8_t vnet_hdr_len)
{
    be32_store(header, len);
    if (vnet_hdr)
        be32_store(header + 4, vnet_hdr_len);
    return framing_header_len(vnet_hdr);
}
