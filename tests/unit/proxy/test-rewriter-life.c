/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter-life.c - how connections end in the rewriter: closing, reuse, commit, takeover */
#include "rewriter-rig.h"

#include "check-main.h"

#include <errno.h>

static void
close_in_order(RwRig *rig, bool guest_first)
{
    rw_open_passive(rig);
    rw_assert_translated(rig);
    Segment ours = svm_says(FIN | ACK, 101, 1, 0), theirs = peer_says(FIN | ACK, 1, 101, 0);

    if (guest_first)
        ck_assert_uint_eq(rw_out(rig, ours).seq, PVM_ISN + 101);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 1);
    ck_assert_uint_eq(rw_in(rig, theirs).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, !guest_first);
    if (!guest_first)
        ck_assert_uint_eq(rw_out(rig, ours).seq, PVM_ISN + 101);
    else
        ck_assert_uint_eq(rw_out(rig, svm_says(FIN | ACK, 101, 2, 0)).seq, PVM_ISN + 101);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 0);
    /* The last words, and their repetition, in TIME-WAIT or after it. */
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 2, 102, 0)).ack, SVM_ISN + 102);
    ck_assert_uint_eq(rw_in(rig, theirs).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 102, 2, 0)).seq, PVM_ISN + 102);
    ck_assert_uint_eq(rw_out(rig, svm_says(RST, 102, 0, 0)).seq, PVM_ISN + 102);
    ck_assert_uint_eq(rw_stats(rig)->connections, 1);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 0);
}

static void
close_guest_first(RwRig *rig)
{
    close_in_order(rig, true);
}

static void
close_peer_first(RwRig *rig)
{
    close_in_order(rig, false);
}

static void
close_with_rst(RwRig *rig)
{
    rw_open_passive(rig);
    rw_assert_translated(rig);
    ck_assert_uint_eq(rw_in(rig, peer_says(RST | ACK, 1, 101, 0)).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 0);
    /* It was not the end: outside the window, say. */
    rw_assert_translated(rig);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 1);
    rw_in(rig, (Segment){.flags = RST, .seq = PEER_ISN + 1});
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 0);
}

START_TEST(unit_r3_fin_with_ack_closes_in_every_order)
{
    rw_each_style(close_guest_first);
    rw_each_style(close_peer_first);
    rw_each_style(close_with_rst);
}
END_TEST

/* The next connection on the same ports: other numbers on all sides. */
static void
reuse(RwRig *rig, bool first_passive, bool next_passive, bool early)
{
    if (first_passive)
        rw_open_passive(rig);
    else
        rw_open_active(rig);
    rw_assert_translated(rig);
    rw_out(rig, svm_says(FIN | ACK, 101, 1, 0));
    rw_in(rig, peer_says(FIN | ACK, 1, 102, 0));
    rw_out(rig, svm_says(ACK, 102, 2, 0));

    const uint32_t svm = 0x33333333, pvm = 0x99999999, peer = PEER_ISN + 200000;
    Segment syn = {.flags = SYN, .seq = next_passive ? peer : svm};
    Segment syn_ack = {.flags = SYN | ACK,
                       .seq = next_passive ? svm : peer,
                       .ack = next_passive ? peer + 1 : pvm + 1};
    Segment ack = {.flags = ACK, .seq = peer + 1, .ack = pvm + 1};

    if (next_passive) {
        rw_in(rig, syn);
        if (early)
            rw_in(rig, ack);
        /* Still of the one before. */
        ck_assert_uint_eq(rw_in(rig, peer_says(FIN | ACK, 1, 102, 0)).ack, SVM_ISN + 102);
        ck_assert_uint_eq(rw_out(rig, syn_ack).seq, early ? pvm : svm);
        ck_assert_uint_eq(rw_in(rig, ack).ack, svm + 1);
    } else {
        if (early)
            rw_in(rig, syn_ack);
        ck_assert_uint_eq(rw_out(rig, syn).seq, early ? pvm : svm);
        ck_assert_uint_eq(rw_in(rig, syn_ack).ack, svm + 1);
    }
    Segment data = {.flags = ACK, .seq = svm + 1, .ack = peer + 1, .len = 10};

    ck_assert_uint_eq(rw_out(rig, data).seq, pvm + 1);
    ck_assert_uint_eq(rw_stats(rig)->connections, 1);
    ck_assert_uint_eq(rw_stats(rig)->connections_open, 1);
}

static void
reuse_all(RwRig *rig)
{
    for (int i = 0; i < 8; i++) {
        reuse(rig, i & 1, i & 2, i & 4);
        rewriter_commit(rig->rewriter);
    }
}

START_TEST(unit_port_reuse)
{
    rw_each_style(reuse_all);
}
END_TEST

/* A SYN that SVM does not take for a new connection changes nothing. */
static void
challenged_syn(RwRig *rig)
{
    rw_open_passive(rig);
    rw_assert_translated(rig);
    rw_in(rig, peer_says(SYN, 5000, 0, 0));
    rw_assert_translated(rig);
    rw_in(rig, peer_says(ACK, 5001, 101, 0));
    rw_assert_translated(rig);
    /* Nor is it remembered when the connection has come as far as the SYN was, and closes. */
    rw_out(rig, svm_says(FIN | ACK, 101, 5001, 0));
    ck_assert_uint_eq(rw_in(rig, peer_says(FIN | ACK, 5001, 101, 0)).ack, SVM_ISN + 101);
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 5002, 102, 0)).ack, SVM_ISN + 102);
}

START_TEST(unit_syn_on_a_live_connection)
{
    rw_each_style(challenged_syn);
}
END_TEST

static void
commit_forgets(RwRig *rig)
{
    rw_open_passive(rig);
    rw_assert_translated(rig);
    rewriter_commit(rig->rewriter);
    ck_assert_uint_eq(rw_stats(rig)->connections, 0);
    ck_assert_uint_eq(rw_stats(rig)->forgotten, 1);
    rw_assert_untouched(rig);
    rw_open_passive(rig);
    rw_assert_translated(rig);
}

START_TEST(unit_commit_forgets)
{
    rw_each_style(commit_forgets);
}
END_TEST

static void
takeover(RwRig *rig)
{
    rw_open_passive(rig);
    rewriter_takeover(rig->rewriter);
    rw_assert_translated(rig);
    /* A new one on other ports passes. */
    Segment syn = peer_says(SYN, 0, 0, 0), syn_ack = svm_says(SYN | ACK, 0, 1, 0),
            ack = peer_says(ACK, 1, 1, 0);

    syn.peer_port = syn_ack.peer_port = ack.peer_port = 4001;
    ack.ack = SVM_ISN + 1;
    rw_in(rig, syn);
    ck_assert_uint_eq(rw_out(rig, syn_ack).seq, SVM_ISN);
    ck_assert_uint_eq(rw_in(rig, ack).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rw_stats(rig)->connections, 1);
    /* The old one until it closes, and its last words. */
    ck_assert_uint_eq(rw_out(rig, svm_says(FIN | ACK, 101, 1, 0)).seq, PVM_ISN + 101);
    ck_assert_uint_eq(rw_in(rig, peer_says(FIN | ACK, 1, 102, 0)).ack, SVM_ISN + 102);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 102, 2, 0)).seq, PVM_ISN + 102);
    /* Its ports again: new. */
    syn = peer_says(SYN, 200000, 0, 0);
    rw_in(rig, syn);
    syn_ack = (Segment){.flags = SYN | ACK, .seq = 4711, .ack = syn.seq + 1};
    ck_assert_uint_eq(rw_out(rig, syn_ack).seq, 4711);
    ack = (Segment){.flags = ACK, .seq = syn.seq + 1, .ack = 4712};
    ck_assert_uint_eq(rw_in(rig, ack).ack, 4712);
    ck_assert_uint_eq(rw_stats(rig)->connections, 0);
}

/* Half open at the takeover: whose SYN-ACK the peer has got shows in what it acknowledges. */
static void
takeover_half_open(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_takeover(rig->rewriter);
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
}

static void
takeover_half_open_without_pvm(RwRig *rig)
{
    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_takeover(rig->rewriter);
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    Segment ack = peer_says(ACK, 1, 1, 0);

    ack.ack = SVM_ISN + 1;
    ack.tsecr = SVM_TS;
    ack = rw_in(rig, ack);
    ck_assert_uint_eq(ack.ack, SVM_ISN + 1);
    ck_assert_uint_eq(ack.tsecr, SVM_TS);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 1, 1, 10)).seq, SVM_ISN + 1);
}

static void
takeover_in_syn_sent(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    rewriter_takeover(rig->rewriter);
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN, 0, 0, 0)).seq, SVM_ISN);
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
    /* The same host is secondary again one day. */
    rewriter_commit(rig->rewriter);
    rw_open_active(rig);
    rw_assert_translated(rig);
}

/* The peer has PVM's SYN and answers SVM's with an ACK; SVM's RST to that and the peer's repeated
 * SYN-ACK cross. The connection the RST ended must not be taken up. */
static void
takeover_rst_crosses_syn_ack(RwRig *rig)
{
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    rewriter_takeover(rig->rewriter);
    rw_out(rig, svm_says(SYN, 0, 0, 0));
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, PVM_ISN + 1);
    Segment rst = {.flags = RST, .seq = PVM_ISN + 1};

    ck_assert_uint_eq(rw_out(rig, rst).seq, PVM_ISN + 1);
    ck_assert_uint_eq(rw_in(rig, peer_says(SYN | ACK, 0, 1, 0)).ack, PVM_ISN + 1);
    ck_assert_uint_eq(rw_out(rig, rst).seq, PVM_ISN + 1);
    /* SVM's SYN once more, and now the peer begins with it. */
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN, 0, 0, 0)).seq, SVM_ISN);
    Segment syn_ack = peer_says(SYN | ACK, 7, 1, 0);

    syn_ack.ack = SVM_ISN + 1;
    ck_assert_uint_eq(rw_in(rig, syn_ack).ack, SVM_ISN + 1);
    ck_assert_uint_eq(rw_out(rig, svm_says(ACK, 1, 8, 10)).seq, SVM_ISN + 1);
}

START_TEST(unit_takeover)
{
    rw_each_style(takeover);
    rw_each_style(takeover_half_open);
    rw_each_style(takeover_half_open_without_pvm);
    rw_each_style(takeover_in_syn_sent);
    rw_each_style(takeover_rst_crosses_syn_ack);
}
END_TEST

static void
handed_on(RwRig *rig)
{
    const RewriterConfig config = {.connections_max = 4};
    RewriterRecord record;
    Rewriter *next = NULL;
    uint32_t cursor = 0;
    Segment echo;

    rw_open_passive(rig);
    rewriter_takeover(rig->rewriter);
    ck_assert(rewriter_export(rig->rewriter, &cursor, &record));
    ck_assert(!rewriter_export(rig->rewriter, &cursor, &record));
    ck_assert_int_eq(rewriter_new(&config, &next), 0);
    rewriter_takeover(next);
    ck_assert_int_eq(rewriter_import(next, &record), 0);
    ck_assert_int_eq(rewriter_import(next, &record), 0); /* the same one */
    ck_assert_uint_eq(rewriter_stats(next)->connections, 1);
    rewriter_free(rig->rewriter);
    rig->rewriter = next;
    /* Much later: an echo of what was sent meanwhile must not move the offset. */
    echo = peer_says(ACK, 1, 1, 0);
    if (echo.has_ts)
        echo.tsecr += 100000;
    ck_assert_uint_eq(rw_in(rig, echo).ack, SVM_ISN + 1);
    rw_assert_translated(rig);
}

START_TEST(unit_handed_on)
{
    rw_each_style(handed_on);
}
END_TEST

/* The handshake is still under way: the next one learns by itself, and says so. */
static void
handed_on_half_open(RwRig *rig)
{
    const RewriterConfig config = {.connections_max = 4};
    RewriterRecord record;
    Rewriter *next = NULL;
    uint32_t cursor = 0;

    rw_in(rig, peer_says(SYN, 0, 0, 0));
    rw_out(rig, svm_says(SYN | ACK, 0, 1, 0));
    rewriter_takeover(rig->rewriter);
    ck_assert(rewriter_export(rig->rewriter, &cursor, &record));
    ck_assert_int_eq(record.conn.phase, REWRITER_SYN_RCVD);
    ck_assert_int_eq(rewriter_new(&config, &next), 0);
    rewriter_takeover(next);
    ck_assert_int_eq(rewriter_import(next, &record), 0);
    ck_assert_uint_eq(rewriter_stats(next)->connections_open, 0);
    rewriter_free(rig->rewriter);
    rig->rewriter = next;
    ck_assert_uint_eq(rw_out(rig, svm_says(SYN | ACK, 0, 1, 0)).seq, SVM_ISN);
    ck_assert(!rewriter_learned(next, &record));
    ck_assert_uint_eq(rw_in(rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    ck_assert(rewriter_learned(next, &record));
    ck_assert_int_eq(record.conn.phase, REWRITER_OPEN);
    ck_assert_uint_eq(record.conn.seq_off, SEQ_OFF);
    rw_assert_translated(rig);
    ck_assert(!rewriter_learned(next, &record));
}

START_TEST(unit_handed_on_half_open)
{
    rw_each_style(handed_on_half_open);
}
END_TEST

START_TEST(unit_handed_on_are_those_with_numbers_of_their_own)
{
    RwRig rig = rw_new((SegmentStyle){0}, 16);
    RewriterRecord record;
    uint32_t cursor = 0;

    /* Nothing of the guest's yet. */
    rw_in(&rig, peer_says(SYN, 0, 0, 0));
    ck_assert(!rewriter_export(rig.rewriter, &cursor, &record));
    rw_open_active(&rig);
    rewriter_commit(rig.rewriter);
    cursor = 0;
    ck_assert(!rewriter_export(rig.rewriter, &cursor, &record));
    rw_free(&rig);
}
END_TEST

START_TEST(sec_what_no_rewriter_says_is_not_taken_over)
{
    RwRig rig = rw_new((SegmentStyle){0}, 16);
    const RewriterConn wrong[] = {
        {.phase = REWRITER_SILENT},
        {.phase = REWRITER_LEARNED},
        {.phase = REWRITER_UNTRACKED},
        {.phase = REWRITER_N_PHASES},
        {.phase = 255},
        {.phase = REWRITER_OPEN, .flags = REWRITER_CONN_RESET},
        {.phase = REWRITER_SYN_RCVD, .flags = REWRITER_PEND_SYN_ACK},
        {.phase = REWRITER_SYN_SENT, .flags = 1 << 15},
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        RewriterRecord record = {.conn = wrong[i]};

        ck_assert_int_eq(rewriter_import(rig.rewriter, &record), -EINVAL);
    }
    ck_assert_uint_eq(rw_stats(&rig)->connections, 0);
    rw_free(&rig);
}
END_TEST

CHECK_MAIN("rewriter-life", unit_r3_fin_with_ack_closes_in_every_order, unit_port_reuse,
           unit_syn_on_a_live_connection, unit_commit_forgets, unit_takeover, unit_handed_on,
           unit_handed_on_half_open, unit_handed_on_are_those_with_numbers_of_their_own,
           sec_what_no_rewriter_says_is_not_taken_over)
