/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* packet.c - builds frames for the tests of the comparison */
#include "packet.h"

#include <string.h>

#include "bytes.h"
#include "frame.h"

static uint32_t
sum_add(uint32_t sum, const uint8_t *p, size_t len)
{
    for (; len > 1; p += 2, len -= 2)
        sum += be16_load(p);
    if (len)
        sum += (uint32_t)*p << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static uint32_t
pseudo_sum(bool ipv6, const uint8_t *addresses, uint8_t protocol, size_t len)
{
    uint32_t sum = protocol + (uint32_t)len;

    return sum_add(sum, addresses, ipv6 ? 32 : 8);
}

static size_t
build_l4(const Packet *p, uint8_t *l4)
{
    uint16_t sport = p->sport ? p->sport : 80;
    uint16_t dport = p->dport ? p->dport : 4000;
    size_t header = 0;

    if (p->protocol == 6) {
        header = 20 + 4u * p->n_tcp_options + (p->has_scale ? 4u : 0);
        memset(l4, 1, header); /* NOP options */
        if (p->has_scale)
            memcpy(l4 + header - 3, (const uint8_t[]){3, 3, p->scale}, 3);
        be16_store(l4, sport);
        be16_store(l4 + 2, dport);
        be32_store(l4 + 4, p->seq);
        be32_store(l4 + 8, p->ack);
        l4[12] = (uint8_t)(header / 4 << 4);
        l4[13] = p->tcp_flags;
        be16_store(l4 + 14, p->has_window ? p->window : 5000);
        be32_store(l4 + 16, 0);
    } else if (p->protocol == 17) {
        header = 8;
        be16_store(l4, sport);
        be16_store(l4 + 2, dport);
        be16_store(l4 + 4, (uint16_t)(8 + p->len));
        be16_store(l4 + 6, 0);
    }
    if (p->len)
        memcpy(l4 + header, p->payload, p->len);
    return header + p->len;
}

static void
set_checksum(const Packet *p, const uint8_t *addresses, uint8_t *l4, size_t l4_len)
{
    size_t at = p->protocol == 6 ? 16 : p->protocol == 17 ? 6 : 0;

    if (!at)
        return;
    uint32_t sum = pseudo_sum(p->ipv6, addresses, p->protocol, l4_len);

    if (!p->csum_partial)
        sum = ~sum_add(sum, l4, l4_len) & 0xffff;
    be16_store(l4 + at, (uint16_t)sum);
}

static uint8_t *
put_ipv4(const Packet *p, uint8_t *at, size_t l4_len, const uint8_t **ret_addresses)
{
    uint16_t flags_off = 0;

    if (p->frag_len) {
        flags_off = (uint16_t)(p->frag_off / 8);
        if (p->frag_off + p->frag_len < l4_len)
            flags_off |= 0x2000;
        l4_len = p->frag_len;
    }
    memset(at, 0, 20);
    at[0] = 0x45;
    be16_store(at + 2, (uint16_t)(20 + l4_len));
    be16_store(at + 4, p->ip_id);
    be16_store(at + 6, flags_off);
    at[8] = p->ttl ? p->ttl : 64;
    at[9] = p->protocol;
    be32_store(at + 12, p->src ? p->src : 0x0a000001);
    be32_store(at + 16, p->dst ? p->dst : 0x0a000002);
    be16_store(at + 10, (uint16_t)~sum_add(0, at, 20));
    *ret_addresses = at + 12;
    return at + 20;
}

static uint8_t *
put_ipv6(const Packet *p, uint8_t *at, size_t l4_len, const uint8_t **ret_addresses)
{
    size_t ext = 8u * p->n_dest_options + (p->frag_len ? 8 : 0);
    uint8_t *next = at + 6;
    uint8_t *h = at + 40;

    memset(at, 0, 40 + ext);
    at[0] = 0x60;
    be16_store(at + 4, (uint16_t)(ext + (p->frag_len ? p->frag_len : l4_len)));
    at[7] = p->ttl ? p->ttl : 64;
    at[8] = at[24] = 0xfd;
    be32_store(at + 20, p->src ? p->src : 1);
    be32_store(at + 36, p->dst ? p->dst : 2);
    for (int i = 0; i < p->n_dest_options; i++, h += 8) {
        *next = 60;
        next = h;
        h[2] = 1; /* PadN */
        h[3] = 4;
    }
    if (p->frag_len) {
        bool more = p->frag_off + p->frag_len < l4_len;

        *next = 44;
        next = h;
        be16_store(h + 2, (uint16_t)(p->frag_off | more));
        be32_store(h + 4, p->ip_id);
        h += 8;
    }
    *next = p->protocol;
    *ret_addresses = at + 8;
    return h;
}

size_t
packet_build(const Packet *p, uint8_t *buf)
{
    static uint8_t l4[PACKET_MAX];
    const uint8_t *addresses;
    size_t l4_len = build_l4(p, l4);
    uint8_t *at = buf + p->vnet_hdr_len;

    memset(buf, 0, p->vnet_hdr_len);
    if (p->csum_partial)
        buf[0] = 1;
    memcpy(at, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01", 12);
    at += 12;
    for (int i = 0; i < p->n_vlans; i++, at += 4) {
        be16_store(at, i + 1 < p->n_vlans ? 0x88a8 : 0x8100);
        be16_store(at + 2, p->vlans[i]);
    }
    be16_store(at, p->ipv6 ? 0x86dd : 0x0800);
    at =
        p->ipv6 ? put_ipv6(p, at + 2, l4_len, &addresses) : put_ipv4(p, at + 2, l4_len, &addresses);
    set_checksum(p, addresses, l4, l4_len);
    size_t n = p->frag_len ? p->frag_len : l4_len;

    memcpy(at, l4 + p->frag_off, n);
    return (size_t)(at + n - buf);
}

bool
packet_tcp_checksum_ok(const uint8_t *frame, size_t len, size_t vnet_hdr_len)
{
    Frame f;

    frame_parse(frame, len, vnet_hdr_len, &f);
    if (f.cls != FRAME_TCP)
        return false;
    size_t l4_len = f.payload_off + f.payload_len - f.l4_off;
    uint8_t addresses[32];

    for (int i = 0; i < (f.ipv6 ? 4 : 1); i++)
        be64_store(addresses + 8 * i, f.key.w[i]);
    uint32_t sum = pseudo_sum(f.ipv6, addresses, 6, l4_len);

    if (f.csum_partial)
        return be16_load(frame + f.l4_off + 16) == sum;
    return sum_add(sum, frame + f.l4_off, l4_len) == 0xffff;
}
