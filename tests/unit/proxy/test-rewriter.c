/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter.c - what the rewriter learns from each kind of opening, and what it translates */
#include "rewriter-rig.h"

#include "check-main.h"

#include <string.h>

#include "bytes.h"
#include "packet.h"

static void
passive_open(Rig *rig)
{
    rig_open_passive(rig);
    rig_assert_translated(rig);
    ck_assert_uint_eq(rig_stats(rig)->learned, 1);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 1);
}

START_TEST(unit_passive_open)
{
    rig_each_style(passive_open);
}
END_TEST

static void
active_open(Rig *rig)
{
    rig_open_active(rig);
    rig_assert_translated(rig);
    ck_assert_uint_eq(rig_stats(rig)->learned, 1);
}

START_TEST(unit_r1_guest_initiated_open)
{
    rig_each_style(active_open);
}
END_TEST

static void
refused(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    Segment rst = peer_says(RST | ACK, 0, 1, 0);

    rst.seq = 0;
    ck_assert_uint_eq(rig_in(rig, rst).ack, SVM_ISN + 1);
}

START_TEST(unit_r1_refused_open_is_told_in_its_own_numbers)
{
    rig_each_style(refused);
}
END_TEST

/* The peer still has a connection on the same ports: both guests reset it with its own number. */
START_TEST(unit_r1_stale_ack_and_rst_teach_nothing)
{
    Rig rig = rig_new((SegmentStyle){0}, 16);
    Segment stale = peer_says(ACK, 500, 0, 0), rst = svm_says(RST, 0, 0, 0);

    rig_out(&rig, svm_says(SYN, 0, 0, 0));
    stale.ack = 0x42424242;
    ck_assert_uint_eq(rig_in(&rig, stale).ack, 0x42424242);
    stale.flags = RST | ACK; /* would end the new connection if it were made to fit */
    ck_assert_uint_eq(rig_in(&rig, stale).ack, 0x42424242);
    rst.seq = 0x42424242;
    ck_assert_uint_eq(rig_out(&rig, rst).seq, 0x42424242);
    rig_open_active(&rig);
    rig_assert_translated(&rig);
    rig_free(&rig);
}
END_TEST

static void
handshake_spans_passive(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_commit(rig->rewriter);
    /* SVM is PVM now: so are its numbers. */
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1, 1, 0)).ack, PVM_ISN + 1);
    Segment data = svm_says(ACK, 1, 1, 10);

    data.seq = PVM_ISN + 1;
    ck_assert_uint_eq(rig_out(rig, data).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rig_stats(rig)->learned, 0);
}

static void
handshake_spans_with_repeated_syn_ack(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_commit(rig->rewriter);
    Segment s = svm_says(SYN | ACK, 0, 1, 0);

    s.seq = PVM_ISN;
    s.tsval = SVM_TS + TS_OFF;
    ck_assert_uint_eq(rig_out(rig, s).seq, PVM_ISN);
    s = rig_in(rig, peer_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(s.ack, PVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS + TS_OFF);
    s = svm_says(ACK, 1, 1, 10);
    s.seq = PVM_ISN + 1;
    s.tsval = SVM_TS + TS_OFF + 1;
    s = rig_out(rig, s);
    ck_assert_uint_eq(s.seq, PVM_ISN + 1);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF + 1);
}

static void
handshake_spans_active(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    rewriter_commit(rig->rewriter);
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, PVM_ISN + 1);
    Segment s = svm_says(ACK, 1, 1, 0);

    s.seq = PVM_ISN + 1;
    ck_assert_uint_eq(rig_out(rig, s).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rig_stats(rig)->connections, 0);
}

START_TEST(unit_r2_handshake_that_spans_a_checkpoint)
{
    rig_each_style(handshake_spans_passive);
    rig_each_style(handshake_spans_with_repeated_syn_ack);
    rig_each_style(handshake_spans_active);
}
END_TEST

static void
close_in_order(Rig *rig, bool guest_first)
{
    rig_open_passive(rig);
    rig_assert_translated(rig);
    Segment ours = svm_says(FIN | ACK, 101, 1, 0), theirs = peer_says(FIN | ACK, 1, 101, 0);

    if (guest_first)
        ck_assert_uint_eq(rig_out(rig, ours).seq, PVM_ISN + 101);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 1);
    ck_assert_uint_eq(rig_in(rig, theirs).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, !guest_first);
    if (!guest_first)
        ck_assert_uint_eq(rig_out(rig, ours).seq, PVM_ISN + 101);
    else
        ck_assert_uint_eq(rig_out(rig, svm_says(FIN | ACK, 101, 2, 0)).seq, PVM_ISN + 101);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 0);
    /* The last words, and their repetition, in TIME-WAIT or after it. */
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 2, 102, 0)).ack, SVM_ISN + 102);
    ck_assert_uint_eq(rig_in(rig, theirs).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 102, 2, 0)).seq, PVM_ISN + 102);
    ck_assert_uint_eq(rig_out(rig, svm_says(RST, 102, 0, 0)).seq, PVM_ISN + 102);
    ck_assert_uint_eq(rig_stats(rig)->connections, 1);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 0);
}

static void
close_guest_first(Rig *rig)
{
    close_in_order(rig, true);
}

static void
close_peer_first(Rig *rig)
{
    close_in_order(rig, false);
}

static void
close_with_rst(Rig *rig)
{
    rig_open_passive(rig);
    rig_assert_translated(rig);
    ck_assert_uint_eq(rig_in(rig, peer_says(RST | ACK, 1, 101, 0)).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 0);
    /* It was not the end: outside the window, say. */
    rig_assert_translated(rig);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 1);
    rig_in(rig, (Segment){.flags = RST, .seq = PEER_ISN + 1});
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 0);
}

START_TEST(unit_r3_fin_with_ack_closes_in_every_order)
{
    rig_each_style(close_guest_first);
    rig_each_style(close_peer_first);
    rig_each_style(close_with_rst);
}
END_TEST

static void
sack(Rig *rig)
{
    rig_open_passive(rig);
    Segment s = peer_says(ACK, 1, 1, 0);

    s.n_sacks = 3;
    for (uint32_t i = 0; i < 6; i++)
        s.sacks[i] = PVM_ISN + 1000 * i;
    s = rig_in(rig, s);
    for (uint32_t i = 0; i < 6; i++)
        ck_assert_uint_eq(s.sacks[i], SVM_ISN + 1000 * i);
    ck_assert_uint_eq(s.tsecr, SVM_TS);

    /* SVM's speak of what the peer sent. */
    s = svm_says(ACK, 1, 1, 0);
    s.n_sacks = 3;
    for (uint32_t i = 0; i < 6; i++)
        s.sacks[i] = PEER_ISN + 1000 * i;
    s = rig_out(rig, s);
    for (uint32_t i = 0; i < 6; i++)
        ck_assert_uint_eq(s.sacks[i], PEER_ISN + 1000 * i);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF + 1);

    s = peer_says(ACK, 1, 1, 0);
    s.has_ts = false;
    s.n_sacks = 4;
    for (uint32_t i = 0; i < 8; i++)
        s.sacks[i] = PVM_ISN + 1000 * i;
    s = rig_in(rig, s);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_uint_eq(s.sacks[i], SVM_ISN + 1000 * i);
}

START_TEST(unit_r4_sack_blocks)
{
    rig_each_style(sack);
}
END_TEST

static void
timestamps(Rig *rig)
{
    rig_open_passive(rig);
    rig_assert_translated(rig);
    /* An echo of 0 is none. */
    Segment s = peer_says(ACK, 1, 1, 0);

    s.tsecr = 0;
    ck_assert_uint_eq(rig_in(rig, s).tsecr, 0);
    /* An echo of what SVM has not got to yet is told as the latest, and then is the measure. */
    s.tsecr = SVM_TS + TS_OFF + 51;
    ck_assert_uint_eq(rig_in(rig, s).tsecr, SVM_TS + 1);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 1, 1, 0)).tsval, SVM_TS + TS_OFF + 51);
    /* Older ones do not lower it. */
    s.tsecr = SVM_TS + TS_OFF + 40;
    ck_assert_uint_eq(rig_in(rig, s).tsecr, SVM_TS - 10);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 1, 1, 0)).tsval, SVM_TS + TS_OFF + 51);
}

static void
no_timestamps(Rig *rig)
{
    Segment s = peer_says(SYN, 0, 0, 0);

    s.has_ts = false;
    rig_in(rig, s);
    s = svm_says(SYN | ACK, 0, 1, 0);
    s.has_ts = false;
    rig_out(rig, s);
    s = peer_says(ACK, 1, 1, 0);
    s.has_ts = false;
    ck_assert_uint_eq(rig_in(rig, s).ack, SVM_ISN + 1);
    s = svm_says(ACK, 1, 1, 10);
    s.has_ts = false;
    ck_assert_uint_eq(rig_out(rig, s).seq, PVM_ISN + 1);
}

START_TEST(unit_r4_timestamps)
{
    rig_each_style(timestamps);
    rig_each_style(no_timestamps);
}
END_TEST

static void
rst_and_syn_ack_numbers(Rig *rig)
{
    rig_open_passive(rig);
    /* Repeated, as SVM has not got the acknowledgement yet: now in PVM's numbers. */
    Segment s = rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));

    ck_assert_uint_eq(s.seq, PVM_ISN);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF);
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rig_out(rig, svm_says(RST | ACK, 1, 1, 0)).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rig_out(rig, svm_says(RST, 1, 0, 0)).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rig_in(rig, peer_says(RST | ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    /* No ACK flag, no number of SVM's. */
    s = (Segment){.flags = RST, .seq = PEER_ISN + 1, .ack = 77};
    ck_assert_uint_eq(rig_in(rig, s).ack, 77);
}

START_TEST(unit_r4_rst_and_repeated_syn_ack)
{
    rig_each_style(rst_and_syn_ack_numbers);
}
END_TEST

static bool
icmp_checksum_ok(const uint8_t *frame, const Frame *f)
{
    uint32_t sum = 0;

    if (f->ipv6) {
        sum = 58 + f->payload_len;
        for (int i = 0; i < 16; i++)
            sum += (uint16_t)(f->key.w[i / 4] >> (16 * (i % 4)));
    }
    for (uint32_t i = 0; i < f->payload_len; i++)
        sum += (uint32_t)frame[f->payload_off + i] << (i % 2 ? 0 : 8);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum == 0xffff;
}

/* A router's "too big" about what PVM sent, with @quoted of the TCP header. */
static void
icmp_error(Rig *rig, size_t quoted, bool fragment)
{
    static uint8_t inner[SEGMENT_FRAME_MAX], frame[SEGMENT_FRAME_MAX];
    bool ipv6 = rig->style.ipv6;
    Segment s = svm_says(ACK, 1, 1, 100);
    Frame f;

    s.seq = PVM_ISN + 1;
    s.egress = true;
    s.style = rig->style;
    size_t inner_len = segment_build(&s, inner);

    frame_parse(inner, inner_len, SEGMENT_VNET_BYTES, &f);
    size_t ip_at = 10 + 14 + 4u * rig->style.n_vlans;
    size_t icmp_len = 8 + f.l4_off - ip_at + quoted;
    uint8_t message[256] = {ipv6 ? 2 : 3, ipv6 ? 0 : 4};
    Packet p = {.ipv6 = ipv6,
                .vnet_hdr_len = SEGMENT_VNET_BYTES,
                .n_vlans = rig->style.n_vlans,
                .vlans = {7, 8},
                .src = 99,
                .dst = ipv6 ? 1 : 0x0a000001,
                .protocol = ipv6 ? 58 : 1,
                .payload = message,
                .len = icmp_len};

    bool translated = quoted >= 8 && !fragment;

    memcpy(message + 8, inner + ip_at, icmp_len - 8);
    if (fragment)
        message[8 + 7] = 1; /* of IPv4: not the first */
    size_t len = packet_build(&p, frame);

    frame_parse(frame, len, SEGMENT_VNET_BYTES, &f);
    ck_assert_int_eq(f.cls, FRAME_ICMP);
    for (uint32_t i = 0; i < 0x10000 && !icmp_checksum_ok(frame, &f); i++)
        be16_store(frame + f.payload_off + 2, (uint16_t)i);
    ck_assert(icmp_checksum_ok(frame, &f));
    uint64_t before = rig_stats(rig)->icmp_translated;

    rewriter_ingress(rig->rewriter, frame, len, 1);
    ck_assert_uint_eq(rig_stats(rig)->icmp_translated, before + translated);
    if (quoted >= 8)
        ck_assert_uint_eq(be32_load(frame + len - quoted + 4),
                          (translated ? SVM_ISN : PVM_ISN) + 1);
    ck_assert(icmp_checksum_ok(frame, &f));
}

static void
icmp_errors(Rig *rig)
{
    rig_open_passive(rig);
    icmp_error(rig, 20, false);
    icmp_error(rig, 8, false);
    icmp_error(rig, 7, false);
    if (!rig->style.ipv6)
        icmp_error(rig, 20, true);
}

START_TEST(unit_icmp_error_quotes_svm_numbers)
{
    rig_each_style(icmp_errors);
}
END_TEST

/* 64 KiB as the guest hands them to the network card, the checksum left to it. */
START_TEST(unit_r4_gso_frame)
{
    static uint8_t payload[65000];
    SegmentStyle style = {.csum_partial = true};
    Rig rig = rig_new(style, 16);

    for (size_t i = 0; i < sizeof(payload); i++)
        payload[i] = (uint8_t)(i * 31);
    rig_open_passive(&rig);
    Segment s = svm_says(ACK, 1, 1, sizeof(payload));

    s.payload = payload;
    ck_assert_uint_eq(rig_out(&rig, s).seq, PVM_ISN + 1);
    rig_free(&rig);
}
END_TEST

static void
simultaneous_open(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, SVM_ISN);
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, SVM_ISN + 1);
    rig_assert_translated(rig);
}

/* The peer got to its acknowledgement before SVM said its own. */
static void
simultaneous_open_peer_first(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_in(rig, peer_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, PVM_ISN);
    rig_assert_translated(rig);
}

START_TEST(unit_simultaneous_open)
{
    rig_each_style(simultaneous_open);
    rig_each_style(simultaneous_open_peer_first);
}
END_TEST

static void
early_ack(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1, 1, 0)).ack, PVM_ISN + 1);
    rig_in(rig, peer_says(ACK, 1, 1, 50));
    rig_in(rig, peer_says(FIN | ACK, 51, 1, 0));
    ck_assert_uint_eq(rig_stats(rig)->early, 1);
    Segment s = rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));

    ck_assert_uint_eq(s.seq, PVM_ISN);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF);
    rig_assert_translated(rig);
}

static void
early_syn_ack(Rig *rig)
{
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, PVM_ISN + 1);
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN, 0, 0, 0)).seq, PVM_ISN);
    /* It lost that one; the peer repeats it. */
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, SVM_ISN + 1);
    rig_assert_translated(rig);
}

/* What was early turns out to be of an earlier attempt. */
static void
early_syn_ack_of_another_attempt(Rig *rig)
{
    Segment stale = peer_says(SYN | ACK, 0, 1, 0);

    stale.seq += 7777;
    stale.ack += 9999;
    stale.tsecr += 77777;
    rig_in(rig, stale);
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    stale = rig_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(stale.ack, SVM_ISN + 1);
    ck_assert_uint_eq(stale.tsecr, SVM_TS);
    rig_assert_translated(rig);
}

/* Simultaneous open whose SYN-ACK came before the SYN; by the next ACK the peer has data of PVM. */
static void
early_syn_ack_before_syn(Rig *rig)
{
    rig_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_in(rig, peer_says(ACK, 1, 501, 0));
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN, 0, 0, 0)).seq, PVM_ISN);
    rig_assert_translated(rig);
}

static void
early_syn_ack_before_syn_answered(Rig *rig)
{
    rig_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_in(rig, peer_says(ACK, 1, 501, 0));
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, PVM_ISN);
    rig_assert_translated(rig);
}

START_TEST(unit_peer_speaks_before_svm)
{
    rig_each_style(early_ack);
    rig_each_style(early_syn_ack);
    rig_each_style(early_syn_ack_of_another_attempt);
    rig_each_style(early_syn_ack_before_syn);
    rig_each_style(early_syn_ack_before_syn_answered);
}
END_TEST

/* A connection from the checkpoint: nothing early is to be kept of it. */
START_TEST(unit_old_connection_is_left_alone)
{
    Rig rig = rig_new((SegmentStyle){0}, 16);

    rig_assert_untouched(&rig);
    ck_assert_uint_eq(rig_stats(&rig)->connections, 0);
    rig_in(&rig, peer_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(rig_stats(&rig)->connections, 1);
    rig_assert_untouched(&rig);
    ck_assert_uint_eq(rig_stats(&rig)->connections, 0);
    /* A SYN on it is answered by SVM with an ACK (RFC 5961). */
    rig_in(&rig, peer_says(SYN, 30000, 0, 0));
    rig_assert_untouched(&rig);
    ck_assert_uint_eq(rig_stats(&rig)->connections, 0);
    rig_free(&rig);
}
END_TEST

START_TEST(unit_closed_port_leaves_nothing)
{
    Rig rig = rig_new((SegmentStyle){0}, 16);
    Segment rst = {.flags = RST | ACK, .seq = 0, .ack = PEER_ISN + 1};

    rig_in(&rig, peer_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rig_out(&rig, rst).seq, 0);
    ck_assert_uint_eq(rig_stats(&rig)->connections, 0);
    rig_free(&rig);
}
END_TEST

/* The acknowledgement of the handshake got lost, what comes first has data, or comes later. */
static void
first_ack_with_data(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1461, 1, 1460)).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rig_in(rig, peer_says(FIN | ACK, 1, 1, 1460)).ack, SVM_ISN + 1);
    rig_assert_translated(rig);
}

/* A stray segment of the connection before, and an RST, teach nothing. */
static void
stray_segments_in_handshake(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    Segment stray = peer_says(ACK, 0, 500, 10);

    stray.seq -= 100000;
    ck_assert_uint_eq(rig_in(rig, stray).ack, PVM_ISN + 500);
    ck_assert_uint_eq(rig_in(rig, peer_says(RST | ACK, 1, 300, 0)).ack, PVM_ISN + 300);
    /* SVM's answer to such is an ACK; the handshake goes on. */
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 1, 1, 0)).seq, SVM_ISN + 1);
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    rig_assert_translated(rig);
}

/* SVM dropped the first request; the number in its second SYN-ACK is another. */
static void
syn_ack_with_another_number(Rig *rig)
{
    Segment first = svm_says(SYN | ACK, 0, 1, 0);

    rig_in(rig, peer_says(SYN, 0, 0, 0));
    first.seq -= 123456;
    ck_assert_uint_eq(rig_out(rig, first).seq, SVM_ISN - 123456);
    rig_open_passive(rig);
    rig_assert_translated(rig);
}

START_TEST(unit_lost_and_repeated_handshake_segments)
{
    rig_each_style(first_ack_with_data);
    rig_each_style(stray_segments_in_handshake);
    rig_each_style(syn_ack_with_another_number);
}
END_TEST

/* A SYN cookie is SVM's number, and its options are in the TSval: both must come back as they
 * were, whatever PVM's were, also when SVM repeats the SYN-ACK. */
START_TEST(unit_syn_cookie_comes_back_exactly)
{
    Rig rig = rig_new((SegmentStyle){0}, 16);
    Segment cookie = svm_says(SYN | ACK, 0, 1, 0);

    for (uint32_t i = 0; i < 3; i++) {
        rig_in(&rig, peer_says(SYN, 0, 0, 0));
        cookie.tsval = SVM_TS + 64 * i;
        rig_out(&rig, cookie);
    }
    Segment s = rig_in(&rig, peer_says(ACK, 1, 1, 0));

    ck_assert_uint_eq(s.ack, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS + 128);
    rig_free(&rig);
}
END_TEST

/* The next connection on the same ports: other numbers on all sides. */
static void
reuse(Rig *rig, bool first_passive, bool next_passive, bool early)
{
    if (first_passive)
        rig_open_passive(rig);
    else
        rig_open_active(rig);
    rig_assert_translated(rig);
    rig_out(rig, svm_says(FIN | ACK, 101, 1, 0));
    rig_in(rig, peer_says(FIN | ACK, 1, 102, 0));
    rig_out(rig, svm_says(ACK, 102, 2, 0));

    const uint32_t svm = 0x33333333, pvm = 0x99999999, peer = PEER_ISN + 200000;
    Segment syn = {.flags = SYN, .seq = next_passive ? peer : svm};
    Segment syn_ack = {.flags = SYN | ACK,
                       .seq = next_passive ? svm : peer,
                       .ack = next_passive ? peer + 1 : pvm + 1};
    Segment ack = {.flags = ACK, .seq = peer + 1, .ack = pvm + 1};

    if (next_passive) {
        rig_in(rig, syn);
        if (early)
            rig_in(rig, ack);
        /* Still of the one before. */
        ck_assert_uint_eq(rig_in(rig, peer_says(FIN | ACK, 1, 102, 0)).ack, SVM_ISN + 102);
        ck_assert_uint_eq(rig_out(rig, syn_ack).seq, early ? pvm : svm);
        ck_assert_uint_eq(rig_in(rig, ack).ack, svm + 1);
    } else {
        if (early)
            rig_in(rig, syn_ack);
        ck_assert_uint_eq(rig_out(rig, syn).seq, early ? pvm : svm);
        ck_assert_uint_eq(rig_in(rig, syn_ack).ack, svm + 1);
    }
    Segment data = {.flags = ACK, .seq = svm + 1, .ack = peer + 1, .len = 10};

    ck_assert_uint_eq(rig_out(rig, data).seq, pvm + 1);
    ck_assert_uint_eq(rig_stats(rig)->connections, 1);
    ck_assert_uint_eq(rig_stats(rig)->connections_open, 1);
}

static void
reuse_all(Rig *rig)
{
    for (int i = 0; i < 8; i++) {
        reuse(rig, i & 1, i & 2, i & 4);
        rewriter_commit(rig->rewriter);
    }
}

START_TEST(unit_port_reuse)
{
    rig_each_style(reuse_all);
}
END_TEST

/* A SYN that SVM does not take for a new connection changes nothing. */
static void
challenged_syn(Rig *rig)
{
    rig_open_passive(rig);
    rig_assert_translated(rig);
    rig_in(rig, peer_says(SYN, 5000, 0, 0));
    rig_assert_translated(rig);
    rig_in(rig, peer_says(ACK, 5001, 101, 0));
    rig_assert_translated(rig);
    /* Nor is it remembered when the connection has come as far as the SYN was, and closes. */
    rig_out(rig, svm_says(FIN | ACK, 101, 5001, 0));
    ck_assert_uint_eq(rig_in(rig, peer_says(FIN | ACK, 5001, 101, 0)).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 5002, 102, 0)).ack, SVM_ISN + 102);
}

START_TEST(unit_syn_on_a_live_connection)
{
    rig_each_style(challenged_syn);
}
END_TEST

static void
fast_open_passive(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 100));
    rig_out(rig, svm_says(SYN | ACK, 0, 101, 0));
    rig_out(rig, svm_says(ACK, 1, 101, 200));
    ck_assert_uint_eq(rig_stats(rig)->untracked_ambiguous, 1);
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 101, 201, 0)).ack, PVM_ISN + 201);
    ck_assert_int_eq(rig_stats(rig)->untracked_last_ns, rig->now_ns - 1);
    rewriter_commit(rig->rewriter);
    rig_assert_untouched(rig);
}

/* Data in the SYN alone is no harm: the answer acknowledges one number, as ever. */
static void
fast_open_without_answer_data(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 100));
    rig_out(rig, svm_says(SYN | ACK, 0, 101, 0));
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 101, 1, 0)).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 1, 101, 200)).seq, PVM_ISN + 1);
}

static void
fast_open_active(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 100));
    ck_assert_uint_eq(rig_stats(rig)->untracked_ambiguous, 1);
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 101, 0)).ack, PVM_ISN + 101);
}

START_TEST(unit_fast_open_is_untracked)
{
    rig_each_style(fast_open_passive);
    rig_each_style(fast_open_without_answer_data);
    rig_each_style(fast_open_active);
}
END_TEST

static void
commit_forgets(Rig *rig)
{
    rig_open_passive(rig);
    rig_assert_translated(rig);
    rewriter_commit(rig->rewriter);
    ck_assert_uint_eq(rig_stats(rig)->connections, 0);
    ck_assert_uint_eq(rig_stats(rig)->forgotten, 1);
    rig_assert_untouched(rig);
    rig_open_passive(rig);
    rig_assert_translated(rig);
}

START_TEST(unit_commit_forgets)
{
    rig_each_style(commit_forgets);
}
END_TEST

static void
takeover(Rig *rig)
{
    rig_open_passive(rig);
    rewriter_takeover(rig->rewriter);
    rig_assert_translated(rig);
    /* A new one on other ports passes. */
    Segment syn = peer_says(SYN, 0, 0, 0), syn_ack = svm_says(SYN | ACK, 0, 1, 0),
            ack = peer_says(ACK, 1, 1, 0);

    syn.peer_port = syn_ack.peer_port = ack.peer_port = 4001;
    ack.ack = SVM_ISN + 1;
    rig_in(rig, syn);
    ck_assert_uint_eq(rig_out(rig, syn_ack).seq, SVM_ISN);
    ck_assert_uint_eq(rig_in(rig, ack).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rig_stats(rig)->connections, 1);
    /* The old one until it closes, and its last words. */
    ck_assert_uint_eq(rig_out(rig, svm_says(FIN | ACK, 101, 1, 0)).seq, PVM_ISN + 101);
    ck_assert_uint_eq(rig_in(rig, peer_says(FIN | ACK, 1, 102, 0)).ack, SVM_ISN + 102);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 102, 2, 0)).seq, PVM_ISN + 102);
    /* Its ports again: new. */
    syn = peer_says(SYN, 200000, 0, 0);
    rig_in(rig, syn);
    syn_ack = (Segment){.flags = SYN | ACK, .seq = 4711, .ack = syn.seq + 1};
    ck_assert_uint_eq(rig_out(rig, syn_ack).seq, 4711);
    ack = (Segment){.flags = ACK, .seq = syn.seq + 1, .ack = 4712};
    ck_assert_uint_eq(rig_in(rig, ack).ack, 4712);
    ck_assert_uint_eq(rig_stats(rig)->connections, 0);
}

/* Half open at the takeover: whose SYN-ACK the peer has got shows in what it acknowledges. */
static void
takeover_half_open(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_takeover(rig->rewriter);
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    rig_assert_translated(rig);
}

static void
takeover_half_open_without_pvm(Rig *rig)
{
    rig_in(rig, peer_says(SYN, 0, 0, 0));
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_takeover(rig->rewriter);
    rig_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    Segment ack = peer_says(ACK, 1, 1, 0);

    ack.ack = SVM_ISN + 1;
    ack.tsecr = SVM_TS;
    ack = rig_in(rig, ack);
    ck_assert_uint_eq(ack.ack, SVM_ISN + 1);
    ck_assert_uint_eq(ack.tsecr, SVM_TS);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 1, 1, 10)).seq, SVM_ISN + 1);
}

static void
takeover_in_syn_sent(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    rewriter_takeover(rig->rewriter);
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN, 0, 0, 0)).seq, SVM_ISN);
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, SVM_ISN + 1);
    rig_assert_translated(rig);
    /* The same host is secondary again one day. */
    rewriter_commit(rig->rewriter);
    rig_open_active(rig);
    rig_assert_translated(rig);
}

/* The peer has PVM's SYN and answers SVM's with an ACK; SVM's RST to that and the peer's repeated
 * SYN-ACK cross. The connection the RST ended must not be taken up. */
static void
takeover_rst_crosses_syn_ack(Rig *rig)
{
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    rewriter_takeover(rig->rewriter);
    rig_out(rig, svm_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rig_in(rig, peer_says(ACK, 1, 1, 0)).ack, PVM_ISN + 1);
    Segment rst = {.flags = RST, .seq = PVM_ISN + 1};

    ck_assert_uint_eq(rig_out(rig, rst).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rig_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, PVM_ISN + 1);
    ck_assert_uint_eq(rig_out(rig, rst).seq, PVM_ISN + 1);
    /* SVM's SYN once more, and now the peer begins with it. */
    ck_assert_uint_eq(rig_out(rig, svm_says(SYN, 0, 0, 0)).seq, SVM_ISN);
    Segment syn_ack = peer_says(SYN | ACK, 7, 1, 0);

    syn_ack.ack = SVM_ISN + 1;
    ck_assert_uint_eq(rig_in(rig, syn_ack).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rig_out(rig, svm_says(ACK, 1, 8, 10)).seq, SVM_ISN + 1);
}

START_TEST(unit_takeover)
{
    rig_each_style(takeover);
    rig_each_style(takeover_half_open);
    rig_each_style(takeover_half_open_without_pvm);
    rig_each_style(takeover_in_syn_sent);
    rig_each_style(takeover_rst_crosses_syn_ack);
}
END_TEST

CHECK_MAIN("rewriter", unit_passive_open, unit_r1_guest_initiated_open,
           unit_r1_refused_open_is_told_in_its_own_numbers, unit_r1_stale_ack_and_rst_teach_nothing,
           unit_r2_handshake_that_spans_a_checkpoint, unit_r3_fin_with_ack_closes_in_every_order,
           unit_r4_sack_blocks, unit_r4_timestamps, unit_r4_rst_and_repeated_syn_ack,
           unit_r4_gso_frame, unit_icmp_error_quotes_svm_numbers, unit_simultaneous_open,
           unit_peer_speaks_before_svm, unit_old_connection_is_left_alone,
           unit_closed_port_leaves_nothing, unit_lost_and_repeated_handshake_segments,
           unit_syn_cookie_comes_back_exactly, unit_port_reuse, unit_syn_on_a_live_connection,
           unit_fast_open_is_untracked, unit_commit_forgets, unit_takeover)
