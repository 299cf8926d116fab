/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter-conn.c - every state of a connection × every kind of segment */
/*
 * States are all phases × flags that can be together; segments are all combinations of direction,
 * SYN, FIN, RST, ACK, payload, timestamp, and numbers that fit what is known or do not. What must
 * hold is stated in check_step().
 */
#include "rewriter-conn.h"

#include "check-main.h"

#include <string.h>

#include "frame.h"

/* Check writes a record for each ck_assert(); millions of them are for failures only. */
#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg("phase %u flags %#x -> %u %#x on %s flags %#x seq %#x ack %#x: %s",       \
                         before->phase, before->flags, after->phase, after->flags,                 \
                         s->egress ? "egress" : "ingress", s->tcp_flags, s->seq, s->ack,           \
                         #condition);                                                              \
    } while (0)

enum {
    ISN = 0x1000,
    PEER = 0x2000,
    PENDING = 0x900000,
    PEND_NUMBER = 0x5555,
    ALL_FLAGS = (REWRITER_CONN_REFUSED << 1) - 1,
    PENDS = REWRITER_PEND_SYN | REWRITER_PEND_SYN_ACK | REWRITER_PEND_ACK,
    CLOSINGS = REWRITER_CONN_FIN_IN | REWRITER_CONN_FIN_OUT | REWRITER_CONN_RESET,
};

static bool
known(const RewriterConn *c)
{
    return c->phase == REWRITER_LEARNED || c->phase == REWRITER_OPEN;
}

/* The contract of rewriter-conn.h about which flags go together. */
static bool
consistent(const RewriterConn *c)
{
    uint16_t f = c->flags;
    bool syn = f & REWRITER_PEND_SYN, syn_ack = f & REWRITER_PEND_SYN_ACK;

    if ((syn && syn_ack) || ((f & REWRITER_PEND_ACK) && !syn))
        return false;
    if (c->phase == REWRITER_SILENT)
        return !(f & ~PENDS);
    if ((f & (CLOSINGS | REWRITER_CONN_TS_OFF)) && !known(c) && c->phase != REWRITER_UNTRACKED)
        return false;
    if ((f & REWRITER_CONN_REFUSED) && (known(c) || !(f & REWRITER_CONN_ACTIVE)))
        return false;
    if ((f & REWRITER_CONN_TS_OFF) && !(f & REWRITER_CONN_TSVAL))
        return false;
    return c->phase != REWRITER_SYN_SENT || (f & REWRITER_CONN_ACTIVE);
}

static void
check_numbers(const RewriterConn *before, const RewriterConn *after, const RewriterSegment *s,
              unsigned did)
{
    bool started = before->phase == REWRITER_SILENT || before->isn != after->isn;

    /* Only SVM's SYNs say SVM's number; only what acknowledges says PVM's. */
    if (before->phase != REWRITER_SILENT && before->isn != after->isn)
        must(s->egress && (s->tcp_flags & FRAME_TCP_SYN) && s->seq == after->isn);
    if (did & REWRITER_DID_LEARN) {
        uint32_t pvm_next = after->isn + after->seq_off + 1;

        must(pvm_next == (s->egress ? before->pend_ack : s->ack));
        must(after->phase == REWRITER_LEARNED);
        must(!(after->flags & PENDS));
    } else if (known(before) && known(after) && !started) {
        must(before->seq_off == after->seq_off);
    }
    if (known(after) && !known(before))
        must(did & REWRITER_DID_LEARN || after->phase == REWRITER_OPEN);
    if (!s->egress)
        must(before->tsval_last == after->tsval_last);
}

static void
check_step(const RewriterConn *before, const RewriterConn *after, const RewriterSegment *s,
           bool alone, unsigned did)
{
    bool starts = s->egress && (s->tcp_flags & FRAME_TCP_SYN);

    must(after->phase < REWRITER_N_PHASES);
    if ((s->tcp_flags & (FRAME_TCP_SYN | FRAME_TCP_RST)) == (FRAME_TCP_SYN | FRAME_TCP_RST)) {
        must(!did && memcmp(before, after, sizeof(*before)) == 0);
        return;
    }
    if (did & REWRITER_FORGET) {
        must(s->egress);
        must(did == REWRITER_FORGET);
        return;
    }
    must(consistent(after));
    if (did & REWRITER_TRANSLATE)
        must(known(after));
    /* Nothing of a known connection goes untranslated but what may not or need not be. */
    if (known(before) && known(after) && !(did & REWRITER_TRANSLATE) && s->egress)
        must((s->tcp_flags & (FRAME_TCP_RST | FRAME_TCP_ACK)) == (FRAME_TCP_RST | FRAME_TCP_ACK) &&
             !s->seq);
    if (rewriter_conn_is_open(before) && !s->egress && (s->tcp_flags & FRAME_TCP_ACK))
        must(did & REWRITER_TRANSLATE);
    must(!(did & REWRITER_DID_GIVE_UP) || after->phase == REWRITER_UNTRACKED);
    must(after->phase != REWRITER_UNTRACKED || before->phase == REWRITER_UNTRACKED ||
         (did & REWRITER_DID_GIVE_UP));
    /* One way: the peer cannot take back what is known, nor make SVM have spoken. */
    if (before->phase == REWRITER_OPEN || before->phase == REWRITER_UNTRACKED)
        must(after->phase == before->phase || starts);
    if (!s->egress)
        must((after->phase == REWRITER_SILENT) == (before->phase == REWRITER_SILENT) &&
             (after->phase != REWRITER_OPEN || before->phase == REWRITER_OPEN));
    if (alone && before->phase != REWRITER_SILENT)
        must(after->isn == before->isn);
    check_numbers(before, after, s, did);
}

static void
step_with_numbers(const RewriterConn *before, RewriterSegment s, unsigned *n)
{
    const uint32_t seqs[] = {0, ISN, ISN + 1, PEER, PEER + 1, PEER + 500, PENDING, PENDING + 1, 1};
    const uint32_t acks[] = {0, PEER + 1, PENDING + 1, 0x777777};

    for (unsigned i = 0; i < sizeof(seqs) / sizeof(seqs[0]); i++) {
        for (unsigned j = 0; j < 2 * sizeof(acks) / sizeof(acks[0]); j++) {
            RewriterConn after = *before;

            s.seq = seqs[i];
            s.ack = acks[j / 2];
            unsigned did = rewriter_conn_step(&after, &s, j & 1);

            check_step(before, &after, &s, j & 1, did);
            (*n)++;
        }
    }
}

START_TEST(unit_all_states_and_segments)
{
    unsigned n = 0, n_states = 0;

    for (unsigned state = 0; state < REWRITER_N_PHASES * (ALL_FLAGS + 1); state++) {
        RewriterConn c = {.phase = (uint8_t)(state / (ALL_FLAGS + 1)),
                          .flags = (uint16_t)(state % (ALL_FLAGS + 1)),
                          .isn = ISN,
                          .peer_isn = PEER,
                          .seq_off = 0x1234567,
                          .ts_off = 9,
                          .tsval_last = 100,
                          .pend_isn = PENDING,
                          .pend_ack = PEND_NUMBER,
                          .pend_tsecr = 200};

        if (!consistent(&c))
            continue;
        n_states++;
        for (unsigned kind = 0; kind < 128; kind++) {
            uint8_t flags = (uint8_t)(kind & (FRAME_TCP_FIN | FRAME_TCP_SYN | FRAME_TCP_RST));

            if (kind & 8)
                flags |= FRAME_TCP_ACK;
            step_with_numbers(&c,
                              (RewriterSegment){.egress = kind & 16,
                                                .tcp_flags = flags,
                                                .has_payload = kind & 32,
                                                .has_ts = kind & 64,
                                                .tsval = 150,
                                                .tsecr = 170},
                              &n);
        }
    }
    ck_assert_uint_gt(n_states, 200);
    ck_assert_uint_gt(n, 1000000);
}
END_TEST

CHECK_MAIN("rewriter-conn", unit_all_states_and_segments)
