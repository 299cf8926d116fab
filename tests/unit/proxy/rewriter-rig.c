/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-rig.c - a rewriter, and segments through it */
#include "rewriter-rig.h"

#include <check.h>
#include <glib.h>
#include <string.h>

RwRig
rw_new(SegmentStyle style, uint32_t connections_max)
{
    const RewriterConfig config = {.connections_max = connections_max, .hash_key = {1, 2}};
    RwRig rig = {.style = style, .now_ns = 1};

    ck_assert_int_eq(rewriter_new(&config, &rig.rewriter), 0);
    return rig;
}

void
rw_free(RwRig *rig)
{
    rewriter_free(rig->rewriter);
}

const RewriterStats *
rw_stats(const RwRig *rig)
{
    return rewriter_stats(rig->rewriter);
}

/* Not ck_assert(): Check writes a record for each. */
static void
must_be_same(const uint8_t *before, const uint8_t *after, size_t len)
{
    g_assert_true(!len || memcmp(before, after, len) == 0);
}

/* Everything but the number that may change, the checksum and the options. */
static void
assert_rest_same(const uint8_t *before, const uint8_t *after, size_t len, bool egress)
{
    Frame f;

    frame_parse(before, len, SEGMENT_VNET_BYTES, &f);
    size_t number = f.l4_off + (egress ? 4 : 8);

    must_be_same(before, after, number);
    must_be_same(before + number + 4, after + number + 4, f.l4_off + 16 - number - 4);
    must_be_same(before + f.l4_off + 18, after + f.l4_off + 18, 2);
    must_be_same(before + f.payload_off, after + f.payload_off, len - f.payload_off);
    if (f.csum_partial)
        must_be_same(before + f.l4_off + 16, after + f.l4_off + 16, 2);
}

static Segment
send_through(RwRig *rig, Segment s, bool egress)
{
    static uint8_t frame[SEGMENT_FRAME_MAX], before[SEGMENT_FRAME_MAX];

    s.style = rig->style;
    if (s.n_sacks && s.style.n_nops > 2)
        s.style.n_nops = 1; /* else there is no room */
    s.egress = egress;
    size_t len = segment_build(&s, frame);

    memcpy(before, frame, len);
    rig->now_ns++;
    if (egress)
        rewriter_egress(rig->rewriter, frame, len, rig->now_ns);
    else
        rewriter_ingress(rig->rewriter, frame, len, rig->now_ns);
    g_assert_true(segment_checksum_ok(frame, len));
    assert_rest_same(before, frame, len, egress);
    segment_read(frame, len, &s);
    return s;
}

Segment
rw_out(RwRig *rig, Segment segment)
{
    return send_through(rig, segment, true);
}

Segment
rw_in(RwRig *rig, Segment segment)
{
    return send_through(rig, segment, false);
}

Segment
svm_says(uint8_t flags, uint32_t at, uint32_t ack, size_t len)
{
    return (Segment){.flags = flags,
                     .seq = SVM_ISN + at,
                     .ack = flags & ACK ? PEER_ISN + ack : 0,
                     .has_ts = true,
                     .tsval = SVM_TS + (at > 0),
                     .tsecr = flags & ACK ? PEER_TS + ack : 0,
                     .len = len};
}

Segment
peer_says(uint8_t flags, uint32_t at, uint32_t ack, size_t len)
{
    return (Segment){.flags = flags,
                     .seq = PEER_ISN + at,
                     .ack = flags & ACK ? PVM_ISN + ack : 0,
                     .has_ts = true,
                     .tsval = PEER_TS + at,
                     .tsecr = flags & ACK ? SVM_TS + TS_OFF + (ack > 1) : 0,
                     .len = len};
}

void
rw_open_passive(RwRig *rig)
{
    Segment s = rw_in(rig, peer_says(SYN, 0, 0, 0));

    ck_assert_uint_eq(s.ack, 0);
    s = rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(s.seq, SVM_ISN);
    ck_assert_uint_eq(s.tsval, SVM_TS);
    s = rw_in(rig, peer_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(s.ack, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS);
}

void
rw_open_active(RwRig *rig)
{
    Segment s = rw_out(rig, svm_says(SYN, 0, 0, 0));

    ck_assert_uint_eq(s.seq, SVM_ISN);
    s = rw_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(s.ack, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS);
    s = rw_out(rig, svm_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(s.seq, PVM_ISN + 1);
}

Segment
rw_of_connection(uint32_t n, Segment s)
{
    s.peer = 0x0b000000 + n / 50000;
    s.peer_port = (uint16_t)(1024 + n % 50000);
    return s;
}

void
rw_open_connection(RwRig *rig, uint32_t n)
{
    rw_in(rig, rw_of_connection(n, peer_says(SYN, 0, 0, 0)));
    rw_out(rig, rw_of_connection(n, svm_says(SYN | ACK, 0, 1, 0)));
    rw_in(rig, rw_of_connection(n, peer_says(ACK, 1, 1, 0)));
    rw_out(rig, rw_of_connection(n, svm_says(ACK, 1, 1, 0)));
}

bool
rw_is_translated(RwRig *rig, uint32_t n)
{
    return rw_out(rig, rw_of_connection(n, svm_says(ACK, 1, 1, 10))).seq == PVM_ISN + 1;
}

void
rw_assert_translated(RwRig *rig)
{
    Segment s = rw_out(rig, svm_says(ACK, 1, 1, 100));

    ck_assert_uint_eq(s.seq, PVM_ISN + 1);
    ck_assert_uint_eq(s.ack, PEER_ISN + 1);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF + 1);
    ck_assert_uint_eq(s.tsecr, PEER_TS + 1);
    s = rw_in(rig, peer_says(ACK, 1, 101, 0));
    ck_assert_uint_eq(s.seq, PEER_ISN + 1);
    ck_assert_uint_eq(s.ack, SVM_ISN + 101);
}

void
rw_assert_untouched(RwRig *rig)
{
    Segment s = rw_out(rig, svm_says(ACK, 1, 1, 100));

    ck_assert_uint_eq(s.seq, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsval, SVM_TS + 1);
    s = rw_in(rig, peer_says(ACK, 1, 101, 0));
    ck_assert_uint_eq(s.ack, PVM_ISN + 101);
    ck_assert_uint_eq(s.tsecr, SVM_TS + TS_OFF + 1);
}

void
rw_each_style(void (*body)(RwRig *rig))
{
    for (unsigned i = 0; i < 16; i++) {
        SegmentStyle style = {.ipv6 = i & 1,
                              .csum_partial = i & 2,
                              .n_vlans = (uint8_t)(i & 4 ? 1 + (i & 1) : 0),
                              .n_dest_options = (uint8_t)(i & 4 ? 2 : 0),
                              .n_nops = (uint8_t)(i & 8 ? 3 : 2)};
        RwRig rig = rw_new(style, 16);

        body(&rig);
        rw_free(&rig);
    }
}
