/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* patch.c - TCP segments of the primary that do not leave as they came: ack or window lowered, or
 * in parts */
/*
 * Checksums are patched, where the whole payload stays, or computed anew. With checksum offload the
 * field only has the pseudo header's sum, in which no more than the length changes.
 */
#include "patch.h"

#include <assert.h>
#include <string.h>

#include "bytes.h"
#include "engine.h"

enum {
    ETHERNET_TYPE_OFFSET = 12,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_QINQ = 0x88a8,
    VLAN_BYTES = 4,
    IPV4_LENGTH_OFFSET = 2,
    IPV4_CHECKSUM_OFFSET = 10,
    IPV4_ADDRESSES_OFFSET = 12,
    IPV6_LENGTH_OFFSET = 4,
    IPV6_ADDRESSES_OFFSET = 8,
    IPV6_HEADER_BYTES = 40,
    TCP_SEQ_OFFSET = 4,
    TCP_ACK_OFFSET = 8,
    TCP_FLAGS_OFFSET = 13,
    TCP_WINDOW_OFFSET = 14,
    TCP_CHECKSUM_OFFSET = 16,
    PROTOCOL_TCP = 6,
    VNET_GSO_TYPE_OFFSET = 1,
    VNET_HEADER_LEN_OFFSET = 2,
    VNET_GSO_SIZE_OFFSET = 4,
};

static uint16_t
fold(uint64_t acc)
{
    while (acc >> 16)
        acc = (acc & 0xffff) + (acc >> 16);
    return (uint16_t)acc;
}

/* RFC 1624, equation 3, over the two halves of a 32-bit field. */
static uint16_t
checksum_patch(uint16_t sum, uint32_t from, uint32_t to)
{
    uint32_t acc = (uint16_t)~sum;

    acc += (uint16_t) ~(from >> 16) + (uint32_t)(uint16_t)~from;
    acc += (to >> 16) + (to & 0xffff);
    return (uint16_t)~fold(acc);
}

static uint64_t
sum_bytes(const uint8_t *bytes, size_t len)
{
    uint64_t acc = 0;

    for (size_t i = 0; i + 1 < len; i += 2)
        acc += be16_load(bytes + i);
    return len % 2 ? acc + ((uint64_t)bytes[len - 1] << 8) : acc;
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

    if (!(h->flags & HELD_STORED) || h->lent) {
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

/* The frame was parsed, so its headers are there. */
static uint8_t *
ip_header(uint8_t *frame, const Held *h)
{
    uint8_t *type = frame + h->vnet_hdr_len + ETHERNET_TYPE_OFFSET;

    while (be16_load(type) == ETHERTYPE_VLAN || be16_load(type) == ETHERTYPE_QINQ)
        type += VLAN_BYTES;
    assert(type + 2 < frame + h->l4_off);
    return type + 2;
}

/* @len: from @ip to the frame's end. A field of 0 said that it was for the hardware to fill in, and
 * of a part nobody may do so any more. */
static void
set_ip_length(uint8_t *ip, bool ipv6, size_t len)
{
    uint8_t *field = ip + (ipv6 ? IPV6_LENGTH_OFFSET : IPV4_LENGTH_OFFSET);
    uint16_t before = be16_load(field);
    size_t length = ipv6 ? len - IPV6_HEADER_BYTES : len;
    uint16_t after = length > UINT16_MAX ? 0 : (uint16_t)length;

    be16_store(field, after);
    if (!ipv6)
        be16_store(ip + IPV4_CHECKSUM_OFFSET,
                   checksum_patch(be16_load(ip + IPV4_CHECKSUM_OFFSET), before, after));
}

static uint16_t
tcp_checksum(const uint8_t *ip, bool ipv6, const uint8_t *tcp, uint32_t len)
{
    uint64_t acc = (uint64_t)PROTOCOL_TCP + len;

    acc +=
        ipv6 ? sum_bytes(ip + IPV6_ADDRESSES_OFFSET, 32) : sum_bytes(ip + IPV4_ADDRESSES_OFFSET, 8);
    return (uint16_t)~fold(acc + sum_bytes(tcp, len));
}

/* One packet needs no segmentation, and kernels refuse to be told otherwise. They also refuse a
 * frame that is shorter than its header length, which guests only mean as what lies in one piece of
 * their memory: of a segment that is sent again it may be the first two packets. */
static void
fit_vnet_header(uint8_t *vnet, uint32_t header_len, uint32_t payload_len)
{
    uint16_t size;

    memcpy(&size, vnet + VNET_HEADER_LEN_OFFSET, sizeof(size));
    if (size > header_len) {
        size = (uint16_t)header_len;
        memcpy(vnet + VNET_HEADER_LEN_OFFSET, &size, sizeof(size));
    }

    memcpy(&size, vnet + VNET_GSO_SIZE_OFFSET, sizeof(size)); /* in the host's order */
    if (vnet[VNET_GSO_TYPE_OFFSET] == 0 || payload_len > size)
        return;
    vnet[VNET_GSO_TYPE_OFFSET] = 0;
    memset(vnet + VNET_GSO_SIZE_OFFSET, 0, sizeof(size));
}

uint32_t
patch_part(const Held *h, uint8_t *frame, uint32_t from, uint32_t to, uint32_t ack, uint16_t window)
{
    const bool last = to == h->end; /* with the FIN, which has a number of its own */
    const uint32_t len = (last ? h->seq + h->payload_len : to) - from;
    const uint32_t header_len = h->payload_off - h->l4_off;
    const bool ipv6 = frame_key_is_ipv6(&h->flow->key);
    uint8_t *tcp = frame + h->l4_off, *ip;

    assert(len <= h->payload_len && from - h->seq <= h->payload_len - len);
    memcpy(frame, h->frame, h->payload_off);
    memcpy(frame + h->payload_off, held_payload(h) + (from - h->seq), len);
    ip = ip_header(frame, h);
    set_ip_length(ip, ipv6, (size_t)(frame + h->payload_off + len - ip));
    be32_store(tcp + TCP_SEQ_OFFSET, from);
    be32_store(tcp + TCP_ACK_OFFSET, ack);
    be16_store(tcp + TCP_WINDOW_OFFSET, window);
    if (!last)
        tcp[TCP_FLAGS_OFFSET] &= (uint8_t)~FRAME_TCP_FIN;
    if (h->vnet_hdr_len)
        fit_vnet_header(frame, h->payload_off - h->vnet_hdr_len, len);
    if (h->flags & HELD_CSUM_PARTIAL) {
        uint64_t sum = be16_load(tcp + TCP_CHECKSUM_OFFSET);

        sum += (uint16_t) ~(header_len + h->payload_len) + (uint64_t)(header_len + len);
        be16_store(tcp + TCP_CHECKSUM_OFFSET, fold(sum));
    } else {
        be16_store(tcp + TCP_CHECKSUM_OFFSET, 0);
        be16_store(tcp + TCP_CHECKSUM_OFFSET, tcp_checksum(ip, ipv6, tcp, header_len + len));
    }
    return h->payload_off + len;
}
