/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-rewriter.c - hostile guests and peers: any frames in any order, through commits and
 * takeovers */
/*
 * Input: operations, one after the other. The first byte says which:
 *   bit 7: raw; be16 length and a frame follow. Bit 0: egress.
 *   else: a segment described by five bytes: flags; which number seq and ack are near, and whether
 *   there are timestamp, SACK and payload; how far from it; peer's port. Bit 0: egress, bit 1:
 * IPv6, bit 2: VLAN, bits 3 and 4: a commit before it, a takeover before it. What must hold: only
 * numbers, options and checksum of TCP (or of the TCP segment in an ICMP error) change, and a
 * checksum that was right stays right.
 */
#include <glib.h>

#include <string.h>

#include "bytes.h"
#include "packet.h"
#include "rewriter.h"
#include "segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint32_t bases[4] = {0, 0x10000000, 0x70000000, 0xf0000000};

static bool
checksum_ok(const uint8_t *frame, size_t len)
{
    return packet_tcp_checksum_ok(frame, len, SEGMENT_VNET_BYTES);
}

static void
check_frame(const uint8_t *before, const uint8_t *after, size_t len, bool was_ok)
{
    Frame a, b;

    frame_parse(before, len, SEGMENT_VNET_BYTES, &a);
    frame_parse(after, len, SEGMENT_VNET_BYTES, &b);
    g_assert_cmpint(a.cls, ==, b.cls);
    g_assert_true(memcmp(&a.key, &b.key, sizeof(a.key)) == 0);
    g_assert_true(a.tcp_flags == b.tcp_flags && a.payload_off == b.payload_off);
    if (a.cls == FRAME_TCP) {
        g_assert_true(memcmp(before, after, a.l4_off + 4) == 0);
        g_assert_true(memcmp(before + a.payload_off, after + a.payload_off, len - a.payload_off) ==
                      0);
    } else if (a.cls != FRAME_ICMP) {
        g_assert_true(!len || memcmp(before, after, len) == 0);
    }
    if (was_ok)
        g_assert_true(checksum_ok(after, len));
}

static void
run_frame(Rewriter *rewriter, const uint8_t *bytes, size_t len, bool egress)
{
    /* Exactly as long as it is, so that a sanitizer sees what lies behind. */
    g_autofree uint8_t *frame = g_memdup2(bytes, len);
    bool was_ok = checksum_ok(bytes, len);

    if (egress)
        rewriter_egress(rewriter, frame, len, 1);
    else
        rewriter_ingress(rewriter, frame, len, 1);
    check_frame(bytes, frame, len, was_ok);
}

static bool
run_raw(Rewriter *rewriter, View *v, bool egress)
{
    uint16_t len;
    const uint8_t *frame;

    if (!view_get_be16(v, &len))
        return false;
    size_t taken = MIN(len, v->len);

    (void)view_take(v, taken, &frame);
    run_frame(rewriter, frame, taken, egress);
    return true;
}

static bool
run_segment(Rewriter *rewriter, View *v, uint8_t op)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    const uint8_t *d;

    if (!view_take(v, 5, &d))
        return false;
    Segment s = {.style = {.ipv6 = op & 2, .n_vlans = (op >> 2) & 1, .n_nops = (op >> 5) & 3},
                 .egress = op & 1,
                 .flags = d[0] & 0x3f,
                 .seq = bases[d[1] & 3] + d[2],
                 .ack = bases[(d[1] >> 2) & 3] + d[3],
                 .has_ts = d[1] & 0x10,
                 .tsval = d[2],
                 .tsecr = d[3],
                 .n_sacks = d[1] & 0x20 ? 2 : 0,
                 .sacks = {bases[3], bases[3] + d[2], 1, 2},
                 .len = d[1] & 0x40 ? 10 : 0,
                 .peer_port = (uint16_t)(4000 + d[4])};

    run_frame(rewriter, frame, segment_build(&s, frame), s.egress);
    return true;
}

/* What one rewriter says of its connections another takes, and says the same. */
static void
hand_on(Rewriter *rewriter, const RewriterConfig *config)
{
    RewriterRecord record, again;
    uint32_t cursor = 0;

    while (rewriter_export(rewriter, &cursor, &record)) {
        Rewriter *next;
        uint32_t first = 0;

        g_assert_cmpint(rewriter_new(config, &next), ==, 0);
        g_assert_cmpint(rewriter_import(next, &record), ==, 0);
        g_assert_true(rewriter_export(next, &first, &again));
        g_assert_cmpint(record.conn.phase, ==, again.conn.phase);
        g_assert_cmpint(record.conn.flags, ==, again.conn.flags);
        rewriter_free(next);
    }
    if (rewriter_learned(rewriter, &record))
        g_assert_cmpint(record.conn.phase, ==, REWRITER_OPEN);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const RewriterConfig config = {.connections_max = 3, .hash_key = {1, 2}};
    Rewriter *rewriter;
    View v = view_of(data, size);
    uint8_t op;
    bool more = true;

    g_assert_cmpint(rewriter_new(&config, &rewriter), ==, 0);
    while (more && view_get_u8(&v, &op)) {
        if (op & 0x80) {
            more = run_raw(rewriter, &v, op & 1);
        } else {
            if (op & 8)
                rewriter_commit(rewriter);
            if (op & 16)
                rewriter_takeover(rewriter);
            more = run_segment(rewriter, &v, op);
            if (op & 16)
                hand_on(rewriter, &config);
        }
        const RewriterStats *stats = rewriter_stats(rewriter);

        g_assert_cmpuint(stats->connections, <=, config.connections_max);
        g_assert_cmpuint(stats->connections_open, <=, stats->connections);
    }
    rewriter_free(rewriter);
    return 0;
}
