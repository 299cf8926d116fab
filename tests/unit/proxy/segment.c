/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* segment.c - TCP segments as the tests of the rewriter state them, to frames and back */
#include "segment.h"

#include <glib.h>
#include <string.h>

#include "bytes.h"
#include "packet.h"

static size_t
put_options(const Segment *s, uint8_t at[static 40])
{
    size_t n = s->style.n_nops;

    memset(at, 1, 40);
    if (s->has_ts) {
        at[n] = 8;
        at[n + 1] = 10;
        be32_store(at + n + 2, s->tsval);
        be32_store(at + n + 6, s->tsecr);
        n += 10;
    }
    if (s->n_sacks) {
        at[n] = 5;
        at[n + 1] = (uint8_t)(2 + 8 * s->n_sacks);
        for (int i = 0; i < 2 * s->n_sacks; i++)
            be32_store(at + n + 2 + 4 * i, s->sacks[i]);
        n += 2 + 8u * s->n_sacks;
    }
    g_assert_cmpuint(n, <=, 40);
    return (n + 3) / 4;
}

size_t
segment_build(const Segment *s, uint8_t *buf)
{
    static const uint8_t zeroes[65536];
    uint32_t guest = s->style.ipv6 ? 1 : 0x0a000001;
    uint32_t peer = s->peer ? s->peer : s->style.ipv6 ? 2 : 0x0a000002;
    uint16_t guest_port = s->guest_port ? s->guest_port : 80;
    uint16_t peer_port = s->peer_port ? s->peer_port : 4000;
    uint8_t options[40];
    Packet p = {.ipv6 = s->style.ipv6,
                .vnet_hdr_len = SEGMENT_VNET_BYTES,
                .csum_partial = s->style.csum_partial,
                .n_vlans = s->style.n_vlans,
                .vlans = {7, 8},
                .n_dest_options = s->style.ipv6 ? s->style.n_dest_options : 0,
                .src = s->egress ? guest : peer,
                .dst = s->egress ? peer : guest,
                .protocol = 6,
                .sport = s->egress ? guest_port : peer_port,
                .dport = s->egress ? peer_port : guest_port,
                .tcp_flags = s->flags,
                .seq = s->seq,
                .ack = s->ack,
                .n_tcp_options = (uint8_t)put_options(s, options),
                .payload = s->payload ? s->payload : zeroes,
                .len = s->len};

    if (s->style.priority_tag)
        p.vlans[p.n_vlans++] = 0xa000; /* priority 5 */
    size_t len = packet_build(&p, buf);
    size_t l4 = len - s->len - 20 - 4u * p.n_tcp_options;

    /* packet_build() puts NOPs: exchange them, and what they did to the checksum. */
    uint32_t sum = be16_load(buf + l4 + 16);

    for (size_t i = 0; i < 4u * p.n_tcp_options && !s->style.csum_partial; i += 2)
        sum += 0x0101u + (uint16_t)~be16_load(options + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    memcpy(buf + l4 + 20, options, 4u * p.n_tcp_options);
    be16_store(buf + l4 + 16, (uint16_t)sum);
    g_assert_true(segment_checksum_ok(buf, len));
    return len;
}

void
segment_read(const uint8_t *frame, size_t len, Segment *s)
{
    Frame f;

    frame_parse(frame, len, SEGMENT_VNET_BYTES, &f);
    g_assert_cmpint(f.cls, ==, FRAME_TCP);
    const uint8_t *option = frame + f.l4_off + 20 + s->style.n_nops;

    s->flags = f.tcp_flags;
    s->seq = f.seq;
    s->ack = f.ack;
    if (s->has_ts) {
        s->tsval = be32_load(option + 2);
        s->tsecr = be32_load(option + 6);
        option += 10;
    }
    for (int i = 0; i < 2 * s->n_sacks; i++)
        s->sacks[i] = be32_load(option + 2 + 4 * i);
}

bool
segment_checksum_ok(const uint8_t *frame, size_t len)
{
    return packet_tcp_checksum_ok(frame, len, SEGMENT_VNET_BYTES);
}
