/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * frame-wire.c - the FRAME message between two proxies
 *
 *   u8 version | u8 type | be16 zero | be32 payload length
 *   be64 epoch | be64 sequence number | u8 NIC | u8 kind | be16 zero
 *   virtio-net header: u8 flags | u8 gso_type | le16 hdr_len | gso_size | csum_start | csum_offset
 *   Ethernet frame
 *
 * The virtio-net header travels as virtio 1.0 has it, little endian, whatever the hosts are. It
 * lies just before the Ethernet frame, so that a received message needs no copy to become a frame.
 */
#include "frame-wire.h"

#include <assert.h>
#include <linux/virtio_net.h>
#include <string.h>

#include "bytes.h"

static_assert(sizeof(struct virtio_net_hdr) == WIRE_VNET_BYTES, "the header without num_buffers");

const char *
wire_result_text(WireResult result)
{
    static const char *const texts[WIRE_N_RESULTS] = {
        [WIRE_BAD_VERSION] = "a message of another version",
        [WIRE_BAD_TYPE] = "a message of a type that is not for the frames channel",
        [WIRE_BAD_RESERVED] = "a message whose reserved bytes are not zero",
        [WIRE_BAD_LENGTH] = "a frame that is too short or too long",
        [WIRE_BAD_KIND] = "a frame of an unknown kind",
    };

    return texts[result] ? texts[result] : "";
}

static void
le16_store(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static uint16_t
le16_load(const uint8_t *p)
{
    return (uint16_t)(p[0] | (p[1] << 8));
}

static void
vnet_encode(uint8_t *out, const uint8_t *frame)
{
    struct virtio_net_hdr header;

    memcpy(&header, frame, sizeof(header));
    out[0] = header.flags;
    out[1] = header.gso_type;
    le16_store(out + 2, header.hdr_len);
    le16_store(out + 4, header.gso_size);
    le16_store(out + 6, header.csum_start);
    le16_store(out + 8, header.csum_offset);
}

static void
vnet_decode(uint8_t *in)
{
    const struct virtio_net_hdr header = {.flags = in[0],
                                          .gso_type = in[1],
                                          .hdr_len = le16_load(in + 2),
                                          .gso_size = le16_load(in + 4),
                                          .csum_start = le16_load(in + 6),
                                          .csum_offset = le16_load(in + 8)};

    memcpy(in, &header, sizeof(header));
}

size_t
wire_encode(uint8_t *out, const WireFrame *in)
{
    out[0] = WIRE_VERSION;
    out[1] = WIRE_TYPE_FRAME;
    be16_store(out + 2, 0);
    be32_store(out + 4, (uint32_t)(WIRE_FIXED_BYTES + in->len));
    be64_store(out + 8, in->epoch);
    be64_store(out + 16, in->sequence);
    out[24] = in->nic;
    out[25] = (uint8_t)in->kind;
    be16_store(out + 26, 0);
    vnet_encode(out + WIRE_OVERHEAD_BYTES, in->frame);
    if (in->frame != out + WIRE_OVERHEAD_BYTES)
        memcpy(out + WIRE_OVERHEAD_BYTES + WIRE_VNET_BYTES, in->frame + WIRE_VNET_BYTES,
               in->len - WIRE_VNET_BYTES);
    return WIRE_OVERHEAD_BYTES + in->len;
}

static WireResult
decode_header(View *v, uint32_t *ret_length)
{
    uint8_t version, type;
    uint16_t reserved;
    uint32_t length;

    if (!view_get_u8(v, &version) || !view_get_u8(v, &type) || !view_get_be16(v, &reserved) ||
        !view_get_be32(v, &length))
        return WIRE_SHORT;
    if (version != WIRE_VERSION)
        return WIRE_BAD_VERSION;
    if (type != WIRE_TYPE_FRAME)
        return WIRE_BAD_TYPE;
    if (reserved != 0)
        return WIRE_BAD_RESERVED;
    if (length < WIRE_FIXED_BYTES + WIRE_FRAME_MIN ||
        length > WIRE_FIXED_BYTES + HOLD_QUEUE_FRAME_MAX)
        return WIRE_BAD_LENGTH;
    *ret_length = length;
    return WIRE_OK;
}

WireResult
wire_decode(uint8_t *bytes, size_t len, WireFrame *ret_frame, size_t *ret_bytes)
{
    View v = view_of(bytes, len);
    uint32_t length;
    WireResult r = decode_header(&v, &length);

    if (r != WIRE_OK)
        return r;
    if (v.len < length)
        return WIRE_SHORT;
    if (bytes[25] < WIRE_INGRESS || bytes[25] > WIRE_DIGEST)
        return WIRE_BAD_KIND;
    if (be16_load(bytes + 26) != 0)
        return WIRE_BAD_RESERVED;
    vnet_decode(bytes + WIRE_OVERHEAD_BYTES);
    wire_again(bytes, ret_frame, ret_bytes);
    return WIRE_OK;
}

void
wire_again(uint8_t *bytes, WireFrame *ret_frame, size_t *ret_bytes)
{
    const uint32_t length = be32_load(bytes + 4);

    *ret_frame = (WireFrame){.epoch = be64_load(bytes + 8),
                             .sequence = be64_load(bytes + 16),
                             .nic = bytes[24],
                             .kind = (WireKind)bytes[25],
                             .frame = bytes + WIRE_OVERHEAD_BYTES,
                             .len = length - WIRE_FIXED_BYTES};
    *ret_bytes = WIRE_HEADER_BYTES + length;
}
