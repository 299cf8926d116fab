/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-rig.c - a rewriter, and segments through it */
#include "rewriter-rig.h"

#include <check.h>
#include <string.h>

Rig
rig_new(SegmentStyle style, uint32_t connections_max)
{
    const RewriterConfig config = {.connections_max = connections_max, .hash_key = {1, 2}};
    Rig rig = {.style = style, .now_ns = 1};

    ck_assert_int_eq(rewriter_new(&config, &rig.rewriter), 0);
    return rig;
}

void
rig_free(Rig *rig)
{
    rewriter_free(rig->rewriter);
}

const RewriterStats *
rig_stats(const Rig *rig)
{
    return rewriter_stats(rig->rewriter);
}

/* Everything but the number that may change, the checksum and the options. */
static void
assert_rest_same(const uint8_t *before, const uint8_t *after, size_t len, bool egress)
{
    Frame f;

    frame_parse(before, len, SEGMENT_VNET_BYTES, &f);
    size_t number = f.l4_off + (egress ? 4 : 8);

    ck_assert_mem_eq(before, after, number);
    ck_assert_mem_eq(before + number + 4, after + number + 4, f.l4_off + 16 - number - 4);
    ck_assert_mem_eq(before + f.l4_off + 18, after + f.l4_off + 18, 2);
    ck_assert_mem_eq(before + f.payload_off, after + f.payload_off, len - f.payload_off);
    if (f.csum_partial)
        ck_assert_mem_eq(before + f.l4_off + 16, after + f.l4_off + 16, 2);
}

static Segment
send_through(Rig *rig, Segment s, bool egress)
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
    ck_assert(segment_checksum_ok(frame, len));
    assert_rest_same(before, frame, len, egress);
    segment_read(frame, len, &s);
    return s;
}

Segment
rig_out(Rig *rig, Segment segment)
{
    return send_through(rig, segment, true);
}

Segment
rig_in(Rig *rig, Segment segment)
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
rig_open_passive(Rig *rig)
{
    Segment s = rig_in(rig, peer_says(SYN, 0, 0, 0));

    ck_assert_uint_eq(s.ack, 0);
    s = rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(s.seq, SVM_ISN);
    ck_assert_uint_eq(s.tsval, SVM_TS);
    s = rig_in(rig, peer_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(s.ack, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS);
}

void
rig_open_active(Rig *rig)
{
    Segment s = rig_out(rig, svm_says(SYN, 0, 0, 0));

    ck_assert_uint_eq(s.seq, SVM_ISN);
    s = rig_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(s.ack, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS);
    s = rig_out(rig, svm_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(s.seq, PVM_ISN + 1);
}

void
rig_assert_translated(Rig *rig)
{
    Segment s = rig_out(rig, svm_says(ACK, 1, 1, 100));

    ck_assert_uint_eq(s.seq, PVM_ISN + 1);
    ck_assert_uint_eq(s.ack, PEER_ISN + 1);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF + 1);
    ck_assert_uint_eq(s.tsecr, PEER_TS + 1);
    s = rig_in(rig, peer_says(ACK, 1, 101, 0));
    ck_assert_uint_eq(s.seq, PEER_ISN + 1);
    ck_assert_uint_eq(s.ack, SVM_ISN + 101);
}

void
rig_assert_untouched(Rig *rig)
{
    Segment s = rig_out(rig, svm_says(ACK, 1, 1, 100));

    ck_assert_uint_eq(s.seq, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsval, SVM_TS + 1);
    s = rig_in(rig, peer_says(ACK, 1, 101, 0));
    ck_assert_uint_eq(s.ack, PVM_ISN + 101);
    ck_assert_uint_eq(s.tsecr, SVM_TS + TS_OFF + 1);
}

void
rig_each_style(void (*body)(Rig *rig))
{
    for (unsigned i = 0; i < 16; i++) {
        SegmentStyle style = {.ipv6 = i & 1,
                              .csum_partial = i & 2,
                              .n_vlans = (uint8_t)(i & 4 ? 1 + (i & 1) : 0),
                              .n_dest_options = (uint8_t)(i & 4 ? 2 : 0),
                              .n_nops = (uint8_t)(i & 8 ? 3 : 2)};
        Rig rig = rig_new(style, 16);

        body(&rig);
        rig_free(&rig);
    }
}
