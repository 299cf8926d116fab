/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter.c - what the rewriter learns from each kind of opening, and what it translates */
#include "rewriter-rig.h"

#include "check-main.h"

#include <string.h>

#include "bytes.h"
#include "packet.h"

static void
passive_open(RwRig *rig)
{
    rw_open_passive(rig);
    rw_assert_translated(rig);
    ck_assert_uint_eq(rw_stats(rig)->learned, 1);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 1);
}

START_TEST(unit_passive_open)
{
    rw_each_style(passive_open);
}
END_TEST

static void
active_open(RwRig *rig)
{
    rw_open_active(rig);
    rw_assert_translated(rig);
    ck_assert_uint_eq(rw_stats(rig)->learned, 1);
}

START_TEST(unit_r1_guest_initiated_open)
{
    rw_each_style(active_open);
}
END_TEST

static void
refused(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    Segment rst = peer_says(RST | ACK, 0, 1, 0);

    rst.seq = 0;
    ck_assert_uint_eq(rw_in(rig, rst).ack, SVM_ISN + 1);
}

START_TEST(unit_r1_refused_open_is_told_in_its_own_numbers)
{
    rw_each_style(refused);
}
END_TEST

/* The peer still has a connection on the same ports: both guests reset it with its own number. */
START_TEST(unit_r1_stale_ack_and_rst_teach_nothing)
{
    RwRig rig = rw_new((SegmentStyle){0}, 16);
    Segment stale = peer_says(ACK, 500, 0, 0), rst = svm_says(RST, 0, 0, 0);

    rw_out(&rig, svm_says(SYN, 0, 0, 0));
    stale.ack = 0x42424242;
    ck_assert_uint_eq(rw_in(&rig, stale).ack, 0x42424242);
    stale.flags = RST | ACK; /* would end the new connection if it were made to fit */
    ck_assert_uint_eq(rw_in(&rig, stale).ack, 0x42424242);
    rst.seq = 0x42424242;
    ck_assert_uint_eq(rw_out(&rig, rst).seq, 0x42424242);
    rw_open_active(&rig);
    rw_assert_translated(&rig);
    rw_free(&rig);
}
END_TEST

static void
handshake_spans_passive(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_commit(rig->rewriter);
    /* SVM is PVM now: so are its numbers. */
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, PVM_ISN + 1);
    Segment data = svm_says(ACK, 1, 1, 10);

    data.seq = PVM_ISN + 1;
    ck_assert_uint_eq(rw_out(rig, data).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rw_stats(rig)->learned, 0);
}

static void
handshake_spans_with_repeated_syn_ack(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_commit(rig->rewriter);
    Segment s = svm_says(SYN | ACK, 0, 1, 0);

    s.seq = PVM_ISN;
    s.tsval = SVM_TS + TS_OFF;
    ck_assert_uint_eq(rw_out(rig, s).seq, PVM_ISN);
    s = rw_in(rig, peer_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(s.ack, PVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS + TS_OFF);
    s = svm_says(ACK, 1, 1, 10);
    s.seq = PVM_ISN + 1;
    s.tsval = SVM_TS + TS_OFF + 1;
    s = rw_out(rig, s);
    ck_assert_uint_eq(s.seq, PVM_ISN + 1);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF + 1);
}

static void
handshake_spans_active(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    rewriter_commit(rig->rewriter);
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, PVM_ISN + 1);
    Segment s = svm_says(ACK, 1, 1, 0);

    s.seq = PVM_ISN + 1;
    ck_assert_uint_eq(rw_out(rig, s).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rw_stats(rig)->connections, 0);
}

START_TEST(unit_r2_handshake_that_spans_a_checkpoint)
{
    rw_each_style(handshake_spans_passive);
    rw_each_style(handshake_spans_with_repeated_syn_ack);
    rw_each_style(handshake_spans_active);
}
END_TEST

static void
sack(RwRig *rig)
{
    rw_open_passive(rig);
    Segment s = peer_says(ACK, 1, 1, 0);

    s.n_sacks = 3;
    for (uint32_t i = 0; i < 6; i++)
        s.sacks[i] = PVM_ISN + 1000 * i;
    s = rw_in(rig, s);
    for (uint32_t i = 0; i < 6; i++)
        ck_assert_uint_eq(s.sacks[i], SVM_ISN + 1000 * i);
    ck_assert_uint_eq(s.tsecr, SVM_TS);

    /* SVM's speak of what the peer sent. */
    s = svm_says(ACK, 1, 1, 0);
    s.n_sacks = 3;
    for (uint32_t i = 0; i < 6; i++)
        s.sacks[i] = PEER_ISN + 1000 * i;
    s = rw_out(rig, s);
    for (uint32_t i = 0; i < 6; i++)
        ck_assert_uint_eq(s.sacks[i], PEER_ISN + 1000 * i);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF + 1);

    s = peer_says(ACK, 1, 1, 0);
    s.has_ts = false;
    s.n_sacks = 4;
    for (uint32_t i = 0; i < 8; i++)
        s.sacks[i] = PVM_ISN + 1000 * i;
    s = rw_in(rig, s);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_uint_eq(s.sacks[i], SVM_ISN + 1000 * i);
}

START_TEST(unit_r4_sack_blocks)
{
    rw_each_style(sack);
}
END_TEST

static void
timestamps(RwRig *rig)
{
    rw_open_passive(rig);
    rw_assert_translated(rig);
    /* An echo of 0 is none. */
    Segment s = peer_says(ACK, 1, 1, 0);

    s.tsecr = 0;
    ck_assert_uint_eq(rw_in(rig, s).tsecr, 0);
    /* An echo of what SVM has not got to yet is told as the latest, and then is the measure. */
    s.tsecr = SVM_TS + TS_OFF + 51;
    ck_assert_uint_eq(rw_in(rig, s).tsecr, SVM_TS + 1);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 1, 1, 0)).tsval, SVM_TS + TS_OFF + 51);
    /* Older ones do not lower it. */
    s.tsecr = SVM_TS + TS_OFF + 40;
    ck_assert_uint_eq(rw_in(rig, s).tsecr, SVM_TS - 10);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 1, 1, 0)).tsval, SVM_TS + TS_OFF + 51);
}

static void
no_timestamps(RwRig *rig)
{
    Segment s = peer_says(SYN, 0, 0, 0);

    s.has_ts = false;
    rw_in(rig, s);
    s = svm_says(SYN | ACK, 0, 1, 0);
    s.has_ts = false;
    rw_out(rig, s);
    s = peer_says(ACK, 1, 1, 0);
    s.has_ts = false;
    ck_assert_uint_eq(rw_in(rig, s).ack, SVM_ISN + 1);
    s = svm_says(ACK, 1, 1, 10);
    s.has_ts = false;
    ck_assert_uint_eq(rw_out(rig, s).seq, PVM_ISN + 1);
}

START_TEST(unit_r4_timestamps)
{
    rw_each_style(timestamps);
    rw_each_style(no_timestamps);
}
END_TEST

static void
rst_and_syn_ack_numbers(RwRig *rig)
{
    rw_open_passive(rig);
    /* Repeated, as SVM has not got the acknowledgement yet: now in PVM's numbers. */
    Segment s = rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));

    ck_assert_uint_eq(s.seq, PVM_ISN);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF);
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rw_out(rig, svm_says(RST | ACK, 1, 1, 0)).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rw_out(rig, svm_says(RST, 1, 0, 0)).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rw_in(rig, peer_says(RST | ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    /* No ACK flag, no number of SVM's. */
    s = (Segment){.flags = RST, .seq = PEER_ISN + 1, .ack = 77};
    ck_assert_uint_eq(rw_in(rig, s).ack, 77);
}

START_TEST(unit_r4_rst_and_repeated_syn_ack)
{
    rw_each_style(rst_and_syn_ack_numbers);
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
icmp_error(RwRig *rig, size_t quoted, bool fragment)
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
    uint64_t before = rw_stats(rig)->icmp_translated;

    rewriter_ingress(rig->rewriter, frame, len, 1);
    ck_assert_uint_eq(rw_stats(rig)->icmp_translated, before + translated);
    if (quoted >= 8)
        ck_assert_uint_eq(be32_load(frame + len - quoted + 4),
                          (translated ? SVM_ISN : PVM_ISN) + 1);
    ck_assert(icmp_checksum_ok(frame, &f));
}

static void
icmp_errors(RwRig *rig)
{
    rw_open_passive(rig);
    icmp_error(rig, 20, false);
    icmp_error(rig, 8, false);
    icmp_error(rig, 7, false);
    if (!rig->style.ipv6)
        icmp_error(rig, 20, true);
}

START_TEST(unit_icmp_error_quotes_svm_numbers)
{
    rw_each_style(icmp_errors);
}
END_TEST

/* The network tags with a priority, the guest does not. */
START_TEST(unit_priority_tags_do_not_count)
{
    for (uint8_t n_vlans = 0; n_vlans < 2; n_vlans++) {
        RwRig rig = rw_new((SegmentStyle){.n_vlans = n_vlans}, 16);

        rig.style.priority_tag = true;
        rw_in(&rig, peer_says(SYN, 0, 0, 0));
        rig.style.priority_tag = false;
        rw_out(&rig, svm_says(SYN | ACK, 0, 1, 0));
        rig.style.priority_tag = true;
        ck_assert_uint_eq(rw_in(&rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
        rig.style.priority_tag = false;
        ck_assert_uint_eq(rw_out(&rig, svm_says(ACK, 1, 1, 0)).seq, PVM_ISN + 1);
        /* Another VLAN is another network. */
        rig.style.n_vlans++;
        ck_assert_uint_eq(rw_out(&rig, svm_says(ACK, 1, 1, 0)).seq, SVM_ISN + 1);
        rw_free(&rig);
    }
}
END_TEST

/* 64 KiB as the guest hands them to the network card, the checksum left to it. */
START_TEST(unit_r4_gso_frame)
{
    static uint8_t payload[65000];
    SegmentStyle style = {.csum_partial = true};
    RwRig rig = rw_new(style, 16);

    for (size_t i = 0; i < sizeof(payload); i++)
        payload[i] = (uint8_t)(i * 31);
    rw_open_passive(&rig);
    Segment s = svm_says(ACK, 1, 1, sizeof(payload));

    s.payload = payload;
    ck_assert_uint_eq(rw_out(&rig, s).seq, PVM_ISN + 1);
    rw_free(&rig);
}
END_TEST

static void
simultaneous_open(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, SVM_ISN);
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
}

/* The peer got to its acknowledgement before SVM said its own. */
static void
simultaneous_open_peer_first(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_in(rig, peer_says(ACK, 1, 1, 0));
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, PVM_ISN);
    rw_assert_translated(rig);
}

START_TEST(unit_simultaneous_open)
{
    rw_each_style(simultaneous_open);
    rw_each_style(simultaneous_open_peer_first);
}
END_TEST

static void
early_ack(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, PVM_ISN + 1);
    rw_in(rig, peer_says(ACK, 1, 1, 50));
    rw_in(rig, peer_says(FIN | ACK, 51, 1, 0));
    ck_assert_uint_eq(rw_stats(rig)->early, 1);
    Segment s = rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));

    ck_assert_uint_eq(s.seq, PVM_ISN);
    ck_assert_uint_eq(s.tsval, SVM_TS + TS_OFF);
    rw_assert_translated(rig);
}

static void
early_syn_ack(RwRig *rig)
{
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, PVM_ISN + 1);
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN, 0, 0, 0)).seq, PVM_ISN);
    /* It lost that one; the peer repeats it. */
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
}

/* What was early turns out to be of an earlier attempt. */
static void
early_syn_ack_of_another_attempt(RwRig *rig)
{
    Segment stale = peer_says(SYN | ACK, 0, 1, 0);

    stale.seq += 7777;
    stale.ack += 9999;
    stale.tsecr += 77777;
    rw_in(rig, stale);
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    stale = rw_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(stale.ack, SVM_ISN + 1);
    ck_assert_uint_eq(stale.tsecr, SVM_TS);
    rw_assert_translated(rig);
}

/* Simultaneous open whose SYN-ACK came before the SYN; by the next ACK the peer has data of PVM. */
static void
early_syn_ack_before_syn(RwRig *rig)
{
    rw_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_in(rig, peer_says(ACK, 1, 501, 0));
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN, 0, 0, 0)).seq, PVM_ISN);
    rw_assert_translated(rig);
}

static void
early_syn_ack_before_syn_answered(RwRig *rig)
{
    rw_in(rig, peer_says(SYN | ACK, 0, 1, 0));
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_in(rig, peer_says(ACK, 1, 501, 0));
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, PVM_ISN);
    rw_assert_translated(rig);
}

START_TEST(unit_peer_speaks_before_svm)
{
    rw_each_style(early_ack);
    rw_each_style(early_syn_ack);
    rw_each_style(early_syn_ack_of_another_attempt);
    rw_each_style(early_syn_ack_before_syn);
    rw_each_style(early_syn_ack_before_syn_answered);
}
END_TEST

/* A connection from the checkpoint: nothing early is to be kept of it. */
START_TEST(unit_old_connection_is_left_alone)
{
    RwRig rig = rw_new((SegmentStyle){0}, 16);

    rw_assert_untouched(&rig);
    ck_assert_uint_eq(rw_stats(&rig)->connections, 0);
    rw_in(&rig, peer_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(rw_stats(&rig)->connections, 1);
    rw_assert_untouched(&rig);
    ck_assert_uint_eq(rw_stats(&rig)->connections, 0);
    /* A SYN on it is answered by SVM with an ACK (RFC 5961). */
    rw_in(&rig, peer_says(SYN, 30000, 0, 0));
    rw_assert_untouched(&rig);
    ck_assert_uint_eq(rw_stats(&rig)->connections, 0);
    rw_free(&rig);
}
END_TEST

START_TEST(unit_closed_port_leaves_nothing)
{
    RwRig rig = rw_new((SegmentStyle){0}, 16);
    Segment rst = {.flags = RST | ACK, .seq = 0, .ack = PEER_ISN + 1};

    rw_in(&rig, peer_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rw_out(&rig, rst).seq, 0);
    ck_assert_uint_eq(rw_stats(&rig)->connections, 0);
    rw_free(&rig);
}
END_TEST

/* The acknowledgement of the handshake got lost, what comes first has data, or comes later. */
static void
first_ack_with_data(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1461, 1, 1460)).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rw_in(rig, peer_says(FIN | ACK, 1, 1, 1460)).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
}

/* A stray segment of the connection before, and an RST, teach nothing. */
static void
stray_segments_in_handshake(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    Segment stray = peer_says(ACK, 0, 500, 10);

    stray.seq -= 100000;
    ck_assert_uint_eq(rw_in(rig, stray).ack, PVM_ISN + 500);
    ck_assert_uint_eq(rw_in(rig, peer_says(RST | ACK, 1, 300, 0)).ack, PVM_ISN + 300);
    /* SVM's answer to such is an ACK; the handshake goes on. */
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 1, 1, 0)).seq, SVM_ISN + 1);
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
}

/* SVM dropped the first request; the number in its second SYN-ACK is another. */
static void
syn_ack_with_another_number(RwRig *rig)
{
    Segment first = svm_says(SYN | ACK, 0, 1, 0);

    rw_in(rig, peer_says(SYN, 0, 0, 0));
    first.seq -= 123456;
    ck_assert_uint_eq(rw_out(rig, first).seq, SVM_ISN - 123456);
    rw_open_passive(rig);
    rw_assert_translated(rig);
}

START_TEST(unit_lost_and_repeated_handshake_segments)
{
    rw_each_style(first_ack_with_data);
    rw_each_style(stray_segments_in_handshake);
    rw_each_style(syn_ack_with_another_number);
}
END_TEST

/* A SYN cookie is SVM's number, and its options are in the TSval: both must come back as they
 * were, whatever PVM's were, also when SVM repeats the SYN-ACK. */
START_TEST(unit_syn_cookie_comes_back_exactly)
{
    RwRig rig = rw_new((SegmentStyle){0}, 16);
    Segment cookie = svm_says(SYN | ACK, 0, 1, 0);

    for (uint32_t i = 0; i < 3; i++) {
        rw_in(&rig, peer_says(SYN, 0, 0, 0));
        cookie.tsval = SVM_TS + 64 * i;
        rw_out(&rig, cookie);
    }
    Segment s = rw_in(&rig, peer_says(ACK, 1, 1, 0));

    ck_assert_uint_eq(s.ack, SVM_ISN + 1);
    ck_assert_uint_eq(s.tsecr, SVM_TS + 128);
    rw_free(&rig);
}
END_TEST

static void
fast_open_passive(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 100));
    rw_out(rig, svm_says(SYN | ACK, 0, 101, 0));
    rw_out(rig, svm_says(ACK, 1, 101, 200));
    ck_assert_uint_eq(rw_stats(rig)->untracked_ambiguous, 1);
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 101, 201, 0)).ack, PVM_ISN + 201);
    ck_assert_int_eq(rw_stats(rig)->untracked_last_ns, rig->now_ns - 1);
    rewriter_commit(rig->rewriter);
    rw_assert_untouched(rig);
}

/* Data in the SYN alone is no harm: the answer acknowledges one number, as ever. */
static void
fast_open_without_answer_data(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 100));
    rw_out(rig, svm_says(SYN | ACK, 0, 101, 0));
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 101, 1, 0)).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 1, 101, 200)).seq, PVM_ISN + 1);
}

static void
fast_open_active(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 100));
    ck_assert_uint_eq(rw_stats(rig)->untracked_ambiguous, 1);
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 101, 0)).ack, PVM_ISN + 101);
}

START_TEST(unit_fast_open_is_untracked)
{
    rw_each_style(fast_open_passive);
    rw_each_style(fast_open_without_answer_data);
    rw_each_style(fast_open_active);
}
END_TEST

CHECK_MAIN("rewriter", unit_passive_open, unit_r1_guest_initiated_open,
           unit_r1_refused_open_is_told_in_its_own_numbers, unit_r1_stale_ack_and_rst_teach_nothing,
           unit_r2_handshake_that_spans_a_checkpoint, unit_r4_sack_blocks, unit_r4_timestamps,
           unit_r4_rst_and_repeated_syn_ack, unit_r4_gso_frame, unit_priority_tags_do_not_count,
           unit_icmp_error_quotes_svm_numbers, unit_simultaneous_open, unit_peer_speaks_before_svm,
           unit_old_connection_is_left_alone, unit_closed_port_leaves_nothing,
           unit_lost_and_repeated_handshake_segments, unit_syn_cookie_comes_back_exactly,
           unit_fast_open_is_untracked)
