/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-conn.c - what each segment teaches about PVM's numbers, and which are translated */
/*
 * Theory of operation
 *
 * The offset is PVM's initial number minus SVM's. SVM's stands in its SYN or SYN-ACK; PVM's is what
 * the peer acknowledges first, minus one: before that acknowledgement PVM can have sent nothing
 * else, so it cannot be more than the SYN (exceptions: UNTRACKED, see rewriter-conn.h). The order
 * in which the two come does not matter.
 *
 * What acknowledges counts only if it can belong to the connection:
 *   SYN_SENT  a SYN-ACK; an RST with ACK and sequence number 0 (connection refused; RFC 9293,
 *             3.5.2). Not a bare ACK or another RST: those are of the connection before on the same
 *             ports. PVM and SVM answer such an ACK with the same RST, and then the SYN is
 *             repeated. After a takeover it may be the answer to SVM's SYN of a peer that has
 *             PVM's: the RST clears that away too, so a SYN-ACK to the same number, which
 *             crossed the RST, is not believed any more.
 *   SYN_RCVD  what begins at or shortly after the peer's SYN; a SYN-ACK with the peer's number
 *             (simultaneous open). Not an RST: its sequence number is all that matters.
 *
 * While SVM has said only its SYN, a SYN-ACK is always believed, also against what was learned
 * before: what was pending may have been of an earlier attempt.
 *
 * A SYN with another number of SVM's own begins the next connection on the same ports. One of the
 * peer's does not (SVM may refuse it, RFC 5961): SVM's answer decides.
 *
 * Timestamps. A TSval of PVM is what the peer echoes. The offset is taken from the first
 * echo and the latest TSval of SVM, so what SVM is told at the end of a handshake is exactly what
 * it sent (Linux checks it, and SYN cookies are kept in it). That may be too small: by as much as
 * SVM was later than PVM in sending it, or if the echo is of an earlier one. So whenever an echo
 * would come out newer than the latest TSval SVM has sent, the offset is raised to fit. Too
 * large costs SVM somewhat longer round-trip times until the next checkpoint; too small would
 * make peers drop segments as old (PAWS, RFC 7323) after a takeover.
 */
#include "rewriter-conn.h"

#include <stdlib.h>

#include "frame.h"
#include "seq.h"

enum {
    /* How far behind the SYN a segment may begin that acknowledges the answer to it: windows in
     * SYNs are not scaled. */
    FIRST_WINDOW_BYTES = 65536,
    /* A timestamp offset is not raised by more at once: SVM is behind by less (about 17 minutes of
     * the usual milliseconds), so it is no echo. */
    TS_RAISE_MAX = 1 << 20,
};

static const uint16_t PENDING_FLAGS = REWRITER_PEND_SYN | REWRITER_PEND_SYN_ACK | REWRITER_PEND_ACK;

static void
set_flag(RewriterConn *c, uint16_t flag)
{
    c->flags |= flag;
}

static void
clear_flag(RewriterConn *c, uint16_t flag)
{
    c->flags &= (uint16_t)~flag;
}

static bool
closed(const RewriterConn *c)
{
    const uint16_t fins = REWRITER_CONN_FIN_OUT | REWRITER_CONN_FIN_IN;

    return (c->flags & REWRITER_CONN_RESET) || (c->flags & fins) == fins;
}

/* True if a segment at @seq can be the first after the SYN at @isn, or one soon after it. */
static bool
follows_syn(uint32_t seq, uint32_t isn)
{
    return seq - (isn + 1) <= FIRST_WINDOW_BYTES;
}

static uint32_t
tsecr_of(const RewriterSegment *s)
{
    return s->has_ts ? s->tsecr : 0;
}

/* --- timestamps --- */

static void
note_tsval(RewriterConn *c, const RewriterSegment *s)
{
    if (!s->has_ts)
        return;
    if (!(c->flags & REWRITER_CONN_TSVAL) || seq_gt(s->tsval, c->tsval_last))
        c->tsval_last = s->tsval;
    set_flag(c, REWRITER_CONN_TSVAL);
}

/* An echo of PVM's, 0 for none. */
static void
learn_ts(RewriterConn *c, uint32_t tsecr)
{
    if (!tsecr || !(c->flags & REWRITER_CONN_TSVAL))
        return;
    uint32_t newer_by = tsecr - c->ts_off - c->tsval_last;

    if (!(c->flags & REWRITER_CONN_TS_OFF))
        c->ts_off = tsecr - c->tsval_last;
    else if (newer_by <= TS_RAISE_MAX)
        c->ts_off += newer_by;
    set_flag(c, REWRITER_CONN_TS_OFF);
}

/* --- learning --- */

static unsigned
learn(RewriterConn *c, uint32_t ack, uint32_t tsecr)
{
    bool again = rewriter_conn_is_known(c) && c->seq_off == ack - 1 - c->isn;

    c->seq_off = ack - 1 - c->isn;
    if (!again)
        clear_flag(c, REWRITER_CONN_TS_OFF);
    clear_flag(c, PENDING_FLAGS | REWRITER_CONN_REFUSED);
    learn_ts(c, tsecr);
    c->phase = REWRITER_LEARNED;
    return again ? 0 : REWRITER_DID_LEARN;
}

/* True: SVM's SYN or SYN-ACK is of the connection that what is pending is of. */
static bool
pending_fits(const RewriterConn *c)
{
    if (c->phase == REWRITER_SYN_SENT)
        return c->flags & REWRITER_PEND_SYN_ACK;
    /* With fast open the SYN-ACK acknowledges data as well. */
    return (c->flags & PENDING_FLAGS) &&
           (c->peer_isn == c->pend_isn || follows_syn(c->peer_isn, c->pend_isn));
}

/* SVM has just said its SYN or SYN-ACK: is PVM's number known already? */
static unsigned
take_pending(RewriterConn *c)
{
    uint16_t pending = c->flags & PENDING_FLAGS;

    if (!pending_fits(c))
        return 0;
    if (c->phase == REWRITER_SYN_SENT)
        c->peer_isn = c->pend_isn;
    if (pending & (REWRITER_PEND_SYN_ACK | REWRITER_PEND_ACK))
        return learn(c, c->pend_ack, c->pend_tsecr);
    clear_flag(c, PENDING_FLAGS);
    return 0;
}

static unsigned
give_up(RewriterConn *c)
{
    c->phase = REWRITER_UNTRACKED;
    clear_flag(c, PENDING_FLAGS);
    return REWRITER_DID_GIVE_UP;
}

/* The next connection on these ports, begun by SVM's SYN or SYN-ACK. */
static unsigned
start(RewriterConn *c, const RewriterSegment *s)
{
    bool active = !(s->tcp_flags & FRAME_TCP_ACK);

    c->flags &= PENDING_FLAGS;
    c->isn = s->seq;
    c->phase = active ? REWRITER_SYN_SENT : REWRITER_SYN_RCVD;
    if (active)
        set_flag(c, REWRITER_CONN_ACTIVE);
    else
        c->peer_isn = s->ack - 1;
    note_tsval(c, s);
    /* Fast open: what will be acknowledged may be the data as well. */
    return s->has_payload ? give_up(c) : take_pending(c);
}

/* --- egress --- */

static unsigned
egress_syn(RewriterConn *c, const RewriterSegment *s, bool alone)
{
    unsigned did = 0;

    if (c->phase == REWRITER_SILENT || s->seq != c->isn) {
        if (alone && c->phase != REWRITER_SILENT)
            return REWRITER_FORGET; /* a new one, and nobody knows other numbers than SVM's */
        did = start(c, s);
    } else {
        note_tsval(c, s);
        if (c->phase == REWRITER_SYN_SENT && (s->tcp_flags & FRAME_TCP_ACK)) {
            /* Simultaneous open: the SYN again, now with an acknowledgement of the peer's. */
            c->phase = REWRITER_SYN_RCVD;
            c->peer_isn = s->ack - 1;
            did = take_pending(c);
        }
    }
    return did | (rewriter_conn_is_known(c) ? REWRITER_TRANSLATE : 0);
}

static unsigned
egress_rst(RewriterConn *c, const RewriterSegment *s)
{
    /* The answer to what acknowledged nothing (a SYN): 0 is not one of SVM's numbers. */
    if ((s->tcp_flags & FRAME_TCP_ACK) && !s->seq) {
        if ((c->flags & REWRITER_PEND_SYN) && follows_syn(s->ack, c->pend_isn))
            clear_flag(c, PENDING_FLAGS);
        return c->phase == REWRITER_SILENT && !(c->flags & PENDING_FLAGS) ? REWRITER_FORGET : 0;
    }
    if (c->phase == REWRITER_SYN_SENT) {
        set_flag(c, REWRITER_CONN_REFUSED);
        c->refused_ack = s->seq;
    }
    if (!rewriter_conn_is_known(c))
        return 0;
    set_flag(c, REWRITER_CONN_RESET);
    return REWRITER_TRANSLATE;
}

static unsigned
egress_known(RewriterConn *c, const RewriterSegment *s)
{
    c->phase = REWRITER_OPEN;
    clear_flag(c, REWRITER_CONN_RESET);
    note_tsval(c, s);
    if (s->tcp_flags & FRAME_TCP_FIN)
        set_flag(c, REWRITER_CONN_FIN_OUT);
    return REWRITER_TRANSLATE;
}

static unsigned
egress_other(RewriterConn *c, const RewriterSegment *s)
{
    switch ((RewriterPhase)c->phase) {
    case REWRITER_SILENT:
        return REWRITER_FORGET; /* SVM has it from the checkpoint */
    case REWRITER_SYN_SENT:
        return give_up(c);
    case REWRITER_SYN_RCVD:
        /* A bare ACK is the answer to something odd; the handshake is still to be finished. */
        return s->has_payload || (s->tcp_flags & FRAME_TCP_FIN) ? give_up(c) : 0;
    case REWRITER_LEARNED:
    case REWRITER_OPEN:
        return egress_known(c, s);
    case REWRITER_UNTRACKED:
        return 0;
    case REWRITER_N_PHASES:
        break;
    }
    abort();
}

/* --- ingress --- */

static unsigned
ingress_syn(RewriterConn *c, const RewriterSegment *s)
{
    bool repeats =
        (c->phase == REWRITER_SYN_RCVD || rewriter_conn_is_known(c)) && s->seq == c->peer_isn;

    if (repeats || (rewriter_conn_is_known(c) && !closed(c)) ||
        ((c->flags & PENDING_FLAGS) && c->pend_isn == s->seq))
        return 0;
    clear_flag(c, PENDING_FLAGS);
    set_flag(c, REWRITER_PEND_SYN);
    c->pend_isn = s->seq;
    return 0;
}

static unsigned
remember_syn_ack(RewriterConn *c, const RewriterSegment *s)
{
    clear_flag(c, PENDING_FLAGS);
    set_flag(c, REWRITER_PEND_SYN_ACK);
    c->pend_isn = s->seq;
    c->pend_ack = s->ack;
    c->pend_tsecr = tsecr_of(s);
    return REWRITER_DID_REMEMBER;
}

static unsigned
ingress_syn_ack(RewriterConn *c, const RewriterSegment *s)
{
    switch ((RewriterPhase)c->phase) {
    case REWRITER_SILENT:
        return remember_syn_ack(c, s);
    case REWRITER_SYN_RCVD:
        if (s->seq != c->peer_isn)
            return 0;
        return learn(c, s->ack, tsecr_of(s)) | REWRITER_TRANSLATE;
    case REWRITER_LEARNED:
        if (!(c->flags & REWRITER_CONN_ACTIVE))
            return REWRITER_TRANSLATE;
        clear_flag(c, REWRITER_CONN_RESET);
        /* fall through */
    case REWRITER_SYN_SENT:
        if ((c->flags & REWRITER_CONN_REFUSED) && c->refused_ack == s->ack)
            return 0;
        c->peer_isn = s->seq;
        return learn(c, s->ack, tsecr_of(s)) | REWRITER_TRANSLATE;
    case REWRITER_OPEN:
        if (closed(c) && s->seq != c->peer_isn)
            return remember_syn_ack(c, s);
        return REWRITER_TRANSLATE;
    case REWRITER_UNTRACKED:
        return 0;
    case REWRITER_N_PHASES:
        break;
    }
    abort();
}

/* True: it belongs to the connection that the pending SYN began, not to one from before. */
static bool
belongs_to_pending(const RewriterConn *c, const RewriterSegment *s)
{
    return (c->flags & REWRITER_PEND_SYN) && !(s->tcp_flags & FRAME_TCP_RST) &&
           follows_syn(s->seq, c->pend_isn);
}

static unsigned
remember_ack(RewriterConn *c, const RewriterSegment *s)
{
    if (!belongs_to_pending(c, s) || (c->flags & REWRITER_PEND_ACK))
        return 0;
    set_flag(c, REWRITER_PEND_ACK);
    c->pend_ack = s->ack;
    c->pend_tsecr = tsecr_of(s);
    return REWRITER_DID_REMEMBER;
}

static unsigned
ingress_known(RewriterConn *c, const RewriterSegment *s)
{
    if (closed(c) && belongs_to_pending(c, s))
        return remember_ack(c, s);
    if (s->tcp_flags & FRAME_TCP_FIN)
        set_flag(c, REWRITER_CONN_FIN_IN);
    if (s->tcp_flags & FRAME_TCP_RST)
        set_flag(c, REWRITER_CONN_RESET);
    learn_ts(c, tsecr_of(s));
    return REWRITER_TRANSLATE;
}

/* Neither SYN nor, as any but an RST and broken ones, without ACK. */
static unsigned
ingress_other(RewriterConn *c, const RewriterSegment *s)
{
    bool rst = s->tcp_flags & FRAME_TCP_RST;
    unsigned did;

    switch ((RewriterPhase)c->phase) {
    case REWRITER_SYN_SENT:
        if (!rst || s->seq)
            return remember_ack(c, s);
        did = learn(c, s->ack, tsecr_of(s));
        c->peer_isn = s->seq;
        set_flag(c, REWRITER_CONN_RESET);
        return did | REWRITER_TRANSLATE;
    case REWRITER_SYN_RCVD:
        if (rst || !follows_syn(s->seq, c->peer_isn))
            return remember_ack(c, s);
        did = learn(c, s->ack, tsecr_of(s));
        return did | ingress_known(c, s);
    case REWRITER_LEARNED:
    case REWRITER_OPEN:
        return ingress_known(c, s);
    case REWRITER_SILENT:
    case REWRITER_UNTRACKED:
        return remember_ack(c, s);
    case REWRITER_N_PHASES:
        break;
    }
    abort();
}

static unsigned
ingress_without_ack(RewriterConn *c, const RewriterSegment *s)
{
    if (rewriter_conn_is_known(c) && (s->tcp_flags & FRAME_TCP_RST))
        set_flag(c, REWRITER_CONN_RESET);
    return 0; /* no number of ours in it */
}

/* --- from one rewriter to another --- */

/* In a handshake; of a known one the timestamp offset alone: what the guest sent last goes on
 * unseen, and an echo of it must not look new. */
static const uint16_t HALF_OPEN_FLAGS = REWRITER_CONN_ACTIVE | REWRITER_CONN_TSVAL |
                                        REWRITER_PEND_SYN | REWRITER_PEND_ACK |
                                        REWRITER_CONN_REFUSED;

bool
rewriter_conn_export(const RewriterConn *c, RewriterConn *ret_conn)
{
    switch ((RewriterPhase)c->phase) {
    case REWRITER_SYN_SENT:
    case REWRITER_SYN_RCVD:
        *ret_conn = *c;
        ret_conn->flags &= HALF_OPEN_FLAGS;
        return true;
    case REWRITER_LEARNED:
    case REWRITER_OPEN:
        *ret_conn = (RewriterConn){.phase = REWRITER_OPEN,
                                   .flags = c->flags & REWRITER_CONN_TS_OFF,
                                   .isn = c->isn,
                                   .peer_isn = c->peer_isn,
                                   .seq_off = c->seq_off,
                                   .ts_off = c->ts_off};
        return true;
    case REWRITER_SILENT: /* the guest's answer, in numbers of the new pair, is still to come */
    case REWRITER_UNTRACKED:
        return false;
    case REWRITER_N_PHASES:
        break;
    }
    abort();
}

bool
rewriter_conn_is_exported(const RewriterConn *c)
{
    if (c->phase == REWRITER_OPEN)
        return !(c->flags & (uint16_t)~REWRITER_CONN_TS_OFF);
    return (c->phase == REWRITER_SYN_SENT || c->phase == REWRITER_SYN_RCVD) &&
           !(c->flags & (uint16_t)~HALF_OPEN_FLAGS);
}

unsigned
rewriter_conn_step(RewriterConn *c, const RewriterSegment *s, bool alone)
{
    bool syn = s->tcp_flags & FRAME_TCP_SYN;
    bool rst = s->tcp_flags & FRAME_TCP_RST;
    bool ack = s->tcp_flags & FRAME_TCP_ACK;

    if (syn && rst)
        return 0; /* no stack sends or takes it */
    if (s->egress) {
        if (syn)
            return egress_syn(c, s, alone);
        return rst ? egress_rst(c, s) : egress_other(c, s);
    }
    if (syn)
        return ack ? ingress_syn_ack(c, s) : ingress_syn(c, s);
    return ack ? ingress_other(c, s) : ingress_without_ack(c, s);
}
