/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tcp.c - TCP: what the secondary has said too may leave; connections */
/*
 * Theory of operation
 *
 * A flow is what the guest sends on one connection. What both sides have sent alike is a window in
 * sequence space, and what sticks out of it is on a chain per side: see tcp-stream.c. Here is what
 * follows from it: which frames leave, and where connections begin and end.
 *
 * The primary's segments also are on a FIFO in arrival order. Its head leaves when it is off the
 * chain (all its range is in the window, so a retransmission of released bytes is off at once) and
 * the secondary has acknowledged as much as it does. If only the ack is ahead and there is payload,
 * it leaves with the ack lowered. Without payload it waits: a lowered pure ack would be a
 * duplicate ack, which means loss to the peer.
 *
 * What leaves also announces no more of a receive window than the secondary has: see window.c. An
 * ack without data may wait for that, but not if something that does not wait is behind it, or so
 * many acks that it is not worth looking.
 *
 * A SYN starts a new window. Both SYNs must be here before the primary's leaves, so in life
 * whatever else belongs to the connection follows both of them; frames of the new connection that
 * come while the old one still holds frames go to the backlog. What the secondary sends between the
 * primary's SYN and its own is left over from the connection before, or (in recordings) overtook
 * its SYN: it waits for the SYN, and then counts only if its number belongs to the new connection.
 * The numbers in SYNs: see CompareIsn.
 *
 * A primary's segment that the secondary has sent a part of may wait for the rest in vain: see
 * CompareConfig.part_ns. It then leaves in parts, and stays on its lists until the last one.
 *
 * RSTs have no range: one of the primary at the head of the FIFO needs one of the secondary. Where
 * there is no window (a closed port answers each SYN with an RST), and behind the one that ended
 * the connection, they must be equal in seq and ack; those that only repeat that one pass. A SYN
 * ends the wait for the other side's RST: each side says them in the order in which it says them,
 * so when one has said its next SYN (one guest accepts what the other refuses, say) and the other
 * an RST, that RST has no counterpart. Whichever of the two comes first. RSTs about a connection
 * that is over need none: see client.c.
 *
 * After a divergence nothing of the flow is compared until a checkpoint is committed: the primary's
 * frames queue, the secondary's are forgotten.
 */
#include "engine.h"
#include "seq.h"
#include "tcp-stream.h"
#include "window.h"

/* How far into a connection a segment may be that overtook the SYN. Small, so that segments of the
 * connection before on the same ports rarely are taken for it. */
#define EARLY_MAX (UINT32_C(1) << 20)
/* Acks that wait for the secondary's window behind the first that does; bounds what an event costs.
 */
#define WAITING_ACKS_MAX 16

/* --- releasing --- */

static void
forget_rst(Compare *e, Flow *f, Held *h)
{
    HeldList list = {.head = f->s_rst, .tail = NULL};

    held_list_remove(&list, h, LINK_CHAIN);
    f->s_rst = list.head;
    h->flags &= (uint16_t)~HELD_IN_RST;
    engine_forget(e, h);
}

static const Held *
first_in_backlog(const Flow *f, CompareSide side)
{
    const Held *h = f->backlog.head;

    while (h && h->side != side)
        h = h->link[LINK_FIFO].next;
    return h;
}

/* Said again, of a connection that both sides have reset, or that is over (client.c). One that
 * refuses the next connection, or is about an older one, has another number. */
static bool
rst_repeats(const Flow *f, const Held *h)
{
    uint32_t length = f->next - f->base, at = h->seq - f->base;

    if (!(f->flags & FLOW_HAS_WINDOW))
        return false;
    if (f->flags & FLOW_RST_DONE)
        return at <= length || (h->side == COMPARE_SECONDARY && at + f->s_delta <= length);
    return at == length && !(h->tcp_flags & FRAME_TCP_ACK) && client_is_done(f);
}

static bool
same_rst(const Flow *f, const Held *p, const Held *s)
{
    return (s->seq == p->seq || s->seq + f->s_delta == p->seq) && s->ack == p->ack;
}

/* True if the secondary sent an RST too; consumes it. @p is at the head of the FIFO. */
static bool
rst_matched(Compare *e, Flow *f, const Held *p)
{
    bool any = (f->flags & (FLOW_HAS_WINDOW | FLOW_RST_DONE)) == FLOW_HAS_WINDOW;
    int steps = 0;

    if (rst_repeats(f, p))
        return true;
    for (Held *s = f->s_rst; s && steps++ < ENGINE_MAX_WALK; s = s->link[LINK_CHAIN].next) {
        if (!any && !same_rst(f, p, s))
            continue;
        forget_rst(e, f, s);
        while (any && f->s_rst) /* repeated: the connection is reset on both */
            forget_rst(e, f, f->s_rst);
        f->flags |= FLOW_RST_DONE | FLOW_CLOSED;
        return true;
    }

    const Held *instead = f->s_chain.head;

    if (!instead && (f->flags & FLOW_BACKLOG_S)) /* which begins with a SYN */
        instead = first_in_backlog(f, COMPARE_SECONDARY);
    if (instead)
        stream_diverge(e, f, COMPARE_RULE_RST, p->seq, p, instead);
    return false;
}

/* The secondary's RST waits for one of the primary's, which has gone on to its next SYN. */
static void
check_refused(Compare *e, Flow *f)
{
    if (f->fifo.head || !f->s_rst || !(f->flags & FLOW_BACKLOG_P))
        return;

    const Held *p = first_in_backlog(f, COMPARE_PRIMARY);

    stream_diverge(e, f, COMPARE_RULE_RST, p->seq, p, f->s_rst);
}

/* True if @h, all of whose bytes match, may leave as far as its ack goes. */
static bool
ack_allows(const Flow *f, Held *h)
{
    h->flags &= (uint16_t)~HELD_LOWERED;
    if (!(h->tcp_flags & FRAME_TCP_ACK))
        return true;
    if (!(f->flags & FLOW_HAS_S_ACK))
        return false;
    if (seq_leq(h->ack, f->s_ack))
        return true;
    /* A reassembled datagram has its header in the first of several frames: not worth patching. */
    if (!h->payload_len || tcp_is_syn(h) || h->parts.head)
        return false;
    h->flags |= HELD_LOWERED;
    return true;
}

static void
note_ack(Flow *f, const Held *h)
{
    if (!(h->tcp_flags & FRAME_TCP_ACK))
        return;
    window_note_primary(f, h);
    if (!(f->flags & FLOW_HAS_P_ACK) || tcp_is_syn(h) || seq_gt(h->ack, f->p_ack))
        f->p_ack = h->ack;
    f->flags |= FLOW_HAS_P_ACK;
}

/* True if a frame behind @h could leave that does not wait for the window. */
static bool
is_in_the_way(const Flow *f, const Held *h)
{
    int steps = 0;

    while ((h = h->link[LINK_FIFO].next)) {
        if (++steps > WAITING_ACKS_MAX)
            return true;
        if (!(h->flags & HELD_PURE_ACK))
            return !(h->flags & HELD_IN_CHAIN) || stream_has(f, h);
    }
    return false;
}

/* The ack with which @h leaves, after ack_allows(). */
static uint32_t
ack_of(const Flow *f, const Held *h)
{
    return h->flags & HELD_LOWERED ? f->s_ack : h->ack;
}

static void
let_go(Compare *e, Flow *f, Held *h)
{
    uint32_t ack = ack_of(f, h);
    uint16_t window = window_allowed(e, f, h, ack);

    if (tcp_is_fin(h))
        f->flags |= FLOW_CLOSED;
    window_note_said(f, h, ack, window);
    note_ack(f, h);
    held_list_remove(&f->fifo, h, LINK_FIFO);
    h->flags &= (uint16_t)~HELD_IN_FIFO;
    engine_release_as(e, h, ack, window);
}

static void
release_fifo(Compare *e, Flow *f)
{
    while (f->fifo.head && !(f->flags & FLOW_DIVERGED)) {
        Held *h = f->fifo.head;

        if ((h->flags & HELD_IN_CHAIN) && stream_has(f, h))
            stream_remove(f, h); /* it was behind a longer one, which is not through yet */
        if (h->flags & HELD_IN_CHAIN) {
            if (f->s_rst && !f->s_chain.head)
                stream_diverge(e, f, COMPARE_RULE_RST, h->seq, h, f->s_rst);
            return;
        }
        if (tcp_is_rst(h) ? !rst_matched(e, f, h) : !ack_allows(f, h))
            return;
        if ((h->flags & HELD_PURE_ACK) && window_waits(e, f, h) && !is_in_the_way(f, h))
            return;
        let_go(e, f, h);
    }
}

/* The primary's bytes end within a unit of the secondary's digests, and have waited for more. */
static void
want_if_stuck(Compare *e, Flow *f)
{
    Held *s = stream_first(e, f, &f->s_chain);

    if (s && (s->flags & HELD_DIGEST) && seq_leq(s->seq, f->next))
        digest_want(e, s);
}

void
tcp_release_part(Compare *e, Flow *f)
{
    Held *h = f->fifo.head;
    uint32_t from, to;

    if (!e->config.part_ns || !h || e->now_ns - h->arrival_ns < e->config.part_ns ||
        !(h->flags & HELD_IN_CHAIN) || (f->flags & FLOW_DIVERGED) ||
        !(f->flags & FLOW_HAS_WINDOW) || h->seq - f->base > f->next - f->base)
        return;
    want_if_stuck(e, f);
    /* Reassembled segments are several frames; what is urgent is so relative to a number. */
    if (h->parts.head || (h->tcp_flags & (FRAME_TCP_SYN | FRAME_TCP_RST | FRAME_TCP_URG)))
        return;
    from = h->flags & HELD_CUT ? h->cut : h->seq;
    to = seq_min(f->next, tcp_data_end(h));
    if (seq_leq(to, from) || !ack_allows(f, h))
        return;

    uint32_t ack = ack_of(f, h);
    uint16_t window = window_allowed(e, f, h, ack);

    window_note_said(f, h, ack, window);
    engine_release_part(e, h, to, ack, window);
    h->flags &= (uint16_t)~HELD_LOWERED; /* that was for this part */
}

/* --- connections --- */

static void
backlog_put(Compare *e, Flow *f, Held *h, uint16_t flag)
{
    unsigned n = 0;

    held_list_append(&f->backlog, h, LINK_FIFO);
    h->flags |= HELD_IN_BACKLOG;
    f->flags |= flag;
    for (const Held *b = f->backlog.head; b && n <= ENGINE_MAX_BACKLOG; b = b->link[LINK_FIFO].next)
        n++;
    if (n > ENGINE_MAX_BACKLOG)
        stream_diverge_here(e, f, COMPARE_RULE_REORDER, h);
}

static void
backlog_add(Compare *e, Flow *f, Held *h)
{
    backlog_put(e, f, h, h->side == COMPARE_PRIMARY ? FLOW_BACKLOG_P : FLOW_BACKLOG_S);
}

/* What came before the secondary's SYN: is it of this connection? */
static bool
belongs(const Flow *f, const Held *h)
{
    return tcp_is_syn(h) || h->seq + f->s_delta - f->p_isn - 1 < EARLY_MAX ||
           h->seq - f->p_isn - 1 < EARLY_MAX;
}

static void
start_connection(Flow *f, const Held *syn)
{
    f->flags &= FLOW_BACKLOG_P | FLOW_BACKLOG_S | FLOW_EARLY_S | FLOW_REFEEDING | FLOW_SHORT_LIST;
    f->flags |= FLOW_HAS_P_SYN;
    f->p_isn = syn->seq;
    f->s_delta = 0;
    f->p_scale = window_scale_of(syn);
    f->s_scale = f->p_scale; /* until its own SYN tells */
    f->has_client_end = false;
    stream_set_window(f, syn->seq, syn->seq);
}

/* Takes the backlog's frames of @side through the rules again. */
static void
refeed_side(Compare *e, Flow *f, HeldList *list, CompareSide side, bool early)
{
    Held *following;

    for (Held *h = list->head; h; h = following) {
        following = h->link[LINK_FIFO].next;
        if (h->side != side)
            continue;
        held_list_remove(list, h, LINK_FIFO);
        if (early && h->side == COMPARE_SECONDARY && !belongs(f, h))
            engine_forget(e, h);
        else
            tcp_process(e, f, h);
    }
}

static void
refeed(Compare *e, Flow *f)
{
    HeldList list = f->backlog;
    bool early = f->flags & FLOW_EARLY_S;

    f->backlog = (HeldList){0};
    f->flags &= (uint16_t) ~(FLOW_BACKLOG_P | FLOW_BACKLOG_S | FLOW_EARLY_S);
    f->flags |= FLOW_REFEEDING;
    for (Held *h = list.head; h; h = h->link[LINK_FIFO].next)
        h->flags &= (uint16_t)~HELD_IN_BACKLOG;
    /* The primary's first: its SYN is what the secondary's frames wait for. */
    refeed_side(e, f, &list, COMPARE_PRIMARY, false);
    refeed_side(e, f, &list, COMPARE_SECONDARY, early);
    f->flags &= (uint16_t)~FLOW_REFEEDING;
}

static bool
connection_drained(const Flow *f)
{
    return !f->fifo.head && !f->s_chain.head && !f->s_rst;
}

/* A SYN of the primary on an idle connection is what the secondary's waits for; and a drained
 * connection makes room for the next one. */
static bool
backlog_ready(const Flow *f)
{
    bool s_syn_missing = (f->flags & (FLOW_HAS_P_SYN | FLOW_HAS_S_SYN)) == FLOW_HAS_P_SYN;

    return ((f->flags & FLOW_BACKLOG_S) && s_syn_missing) ||
           ((f->flags & FLOW_EARLY_S) && !s_syn_missing) ||
           ((f->flags & FLOW_BACKLOG_P) && connection_drained(f));
}

/* True: @h was put off; false: it starts a connection or repeats the SYN of this one. */
static bool
primary_syn_waits(Compare *e, Flow *f, Held *h)
{
    if ((f->flags & FLOW_HAS_P_SYN) && h->seq == f->p_isn)
        return false;
    if (!connection_drained(f)) {
        backlog_add(e, f, h);
        return true;
    }
    start_connection(f, h);
    return false;
}

static void
process_primary(Compare *e, Flow *f, Held *h)
{
    if (f->flags & FLOW_BACKLOG_P) {
        backlog_add(e, f, h);
        return;
    }
    if (tcp_is_syn(h) && !tcp_is_rst(h) && primary_syn_waits(e, f, h))
        return;
    if (!tcp_is_rst(h) && h->seq != h->end && !stream_has(f, h) && !stream_match_next(e, f, h))
        stream_insert(e, f, h);
    held_list_append(&f->fifo, h, LINK_FIFO);
    h->flags |= HELD_IN_FIFO;
}

/* A rewriter that has learned the offset by now translates a repeated SYN too. */
static bool
repeats_secondary_syn(const Compare *e, const Flow *f, const Held *h)
{
    return h->seq == f->s_isn || (e->config.isn == COMPARE_ISN_REWRITTEN && h->seq == f->p_isn);
}

/* Brings a SYN of the secondary into the primary's numbers. False: it was put off or diverged. */
static bool
secondary_syn(Compare *e, Flow *f, Held *h)
{
    if ((f->flags & (FLOW_HAS_P_SYN | FLOW_HAS_S_SYN)) == FLOW_HAS_P_SYN) {
        if (e->config.isn == COMPARE_ISN_EXACT && h->seq != f->p_isn) {
            stream_diverge(e, f, COMPARE_RULE_SYN, f->p_isn, f->p_chain.head, h);
            return false;
        }
        f->s_isn = h->seq;
        f->s_delta = e->config.isn == COMPARE_ISN_LEARN ? f->p_isn - f->s_isn : 0;
        f->s_scale = window_scale_of(h);
        f->flags |= FLOW_HAS_S_SYN;
    } else if (!(f->flags & FLOW_HAS_S_SYN) || !repeats_secondary_syn(e, f, h)) {
        backlog_add(e, f, h);
        return false;
    }
    h->end += f->p_isn - h->seq;
    h->seq = f->p_isn;
    return true;
}

static void
process_secondary_rst(Compare *e, Flow *f, Held *h)
{
    if (rst_repeats(f, h)) {
        engine_forget(e, h);
        return;
    }
    HeldList list = {.head = f->s_rst};

    held_list_insert_after(&list, NULL, h, LINK_CHAIN);
    f->s_rst = list.head;
    h->flags |= HELD_IN_RST;
}

static uint32_t
distance(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? b - a : a - b;
}

/* Where offsets are learned: a recording from behind a rewriter has them in the SYN only. What the
 * first segment after it is nearer to tells. */
static void
check_delta(Flow *f, const Held *h)
{
    if (!f->s_delta || (f->flags & FLOW_DELTA_SEEN))
        return;
    f->flags |= FLOW_DELTA_SEEN;
    if (distance(h->seq, f->next) < distance(h->seq + f->s_delta, f->next))
        f->s_delta = 0;
}

static void
note_secondary_ack(Flow *f, const Held *h)
{
    if (!(h->tcp_flags & FRAME_TCP_ACK))
        return;
    window_note_secondary(f, h);
    if (!(f->flags & FLOW_HAS_S_ACK) || seq_gt(h->ack, f->s_ack))
        f->s_ack = h->ack;
    f->flags |= FLOW_HAS_S_ACK;
}

static void
process_secondary(Compare *e, Flow *f, Held *h)
{
    if (f->flags & FLOW_BACKLOG_S) {
        backlog_add(e, f, h);
        return;
    }
    if (tcp_is_rst(h)) {
        process_secondary_rst(e, f, h);
        return;
    }
    if (tcp_is_syn(h)) {
        if (!secondary_syn(e, f, h)) {
            if (!(h->flags & HELD_IN_BACKLOG))
                engine_forget(e, h);
            return;
        }
    } else if ((f->flags & (FLOW_HAS_P_SYN | FLOW_HAS_S_SYN)) == FLOW_HAS_P_SYN) {
        backlog_put(e, f, h, FLOW_EARLY_S); /* see the top of this file */
        return;
    } else {
        check_delta(f, h);
        h->seq += f->s_delta;
        h->end += f->s_delta;
    }
    note_secondary_ack(f, h);
    digest_replace(e, f, h);
    if (h->seq != h->end && !stream_has(f, h) && !stream_match_next(e, f, h))
        stream_insert(e, f, h);
    else
        engine_forget(e, h);
}

/* Those that came before the primary was done with the connection too. */
static void
forget_repeated_rsts(Compare *e, Flow *f)
{
    Held *following;

    for (Held *h = f->s_rst; h; h = following) {
        following = h->link[LINK_CHAIN].next;
        if (rst_repeats(f, h))
            forget_rst(e, f, h);
    }
}

static void
release_and_refeed(Compare *e, Flow *f)
{
    release_fifo(e, f);
    tcp_release_part(e, f);
    if (f->s_rst && client_is_done(f))
        forget_repeated_rsts(e, f);
    if (!(f->flags & FLOW_DIVERGED))
        check_refused(e, f);
    /* Each round takes at least a SYN off the backlog. */
    while (!(f->flags & (FLOW_REFEEDING | FLOW_DIVERGED)) && backlog_ready(f))
        refeed(e, f);
}

void
tcp_process(Compare *e, Flow *f, Held *h)
{
    if (f->flags & FLOW_DIVERGED) {
        if (h->side == COMPARE_SECONDARY) {
            engine_forget(e, h);
        } else {
            held_list_append(&f->fifo, h, LINK_FIFO);
            h->flags |= HELD_IN_FIFO;
        }
        return;
    }
    if (!tcp_is_syn(h))
        f->flags |= FLOW_ESTABLISHED;
    if (h->side == COMPARE_PRIMARY)
        process_primary(e, f, h);
    else
        process_secondary(e, f, h);
    stream_match(e, f);
    release_and_refeed(e, f);
}

void
tcp_note_committed(Flow *f, const Held *h)
{
    if (tcp_is_rst(h)) {
        f->flags |= FLOW_CLOSED;
        return;
    }
    if (tcp_is_syn(h) && !((f->flags & FLOW_HAS_P_SYN) && h->seq == f->p_isn))
        start_connection(f, h);
    note_ack(f, h);
    if (tcp_is_fin(h))
        f->flags |= FLOW_CLOSED;
    /* Far from the window: one of the two is no part of the stream; what comes next will show. */
    if (!(f->flags & FLOW_HAS_WINDOW) || f->next - h->seq + WINDOW_MAX > 2 * WINDOW_MAX) {
        stream_set_window(f, h->seq, h->end);
        return;
    }
    stream_set_window(f, seq_min(f->base, h->seq), seq_max(f->next, h->end));
}

void
tcp_note_stale(Flow *f, const Held *h)
{
    tcp_note_committed(f, h);
    if (!(f->flags & FLOW_HAS_P_ACK))
        return;
    if ((h->tcp_flags & FRAME_TCP_ACK) && !tcp_is_rst(h))
        window_note_stale(f, h);
    else if (!(f->flags & FLOW_HAS_S_ACK))
        window_note_commit(f);
    if (!(f->flags & FLOW_HAS_S_ACK) || seq_gt(f->p_ack, f->s_ack))
        f->s_ack = f->p_ack;
    f->flags |= FLOW_HAS_S_ACK;
}

void
tcp_waited_for_window(Compare *e, Held *h)
{
    Flow *f = h->flow;

    if (f->fifo.head == h && !(f->flags & FLOW_DIVERGED))
        release_and_refeed(e, f);
}

bool
tcp_is_covered(const Flow *f, const Held *h)
{
    return (h->flags & HELD_IN_CHAIN) && h->side == COMPARE_SECONDARY && stream_has(f, h);
}

void
tcp_window_moved(Compare *e, Flow *f)
{
    if ((f->flags & FLOW_DIVERGED) || !(f->flags & FLOW_HAS_WINDOW))
        return;
    (void)stream_first(e, f, &f->p_chain);
    (void)stream_first(e, f, &f->s_chain);
    stream_match(e, f);
    release_fifo(e, f);
}
