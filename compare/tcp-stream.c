/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tcp-stream.c - what both sides of a TCP connection have said alike, by sequence number */
/*
 * Theory of operation
 *
 * Sequence space is compared, not segments: a segment covers [seq, end), SYN and FIN taking one
 * number each. [base, next) is what both sides are known to have sent alike, the window. Each side
 * has a chain of segments that stick out of it, by sequence; whenever both cover `next` the overlap
 * is compared and `next` moves on, and likewise downwards from `base` for flows that were first
 * seen in the middle and out of order.
 *
 * Numbers here are the primary's: those of the secondary were translated before (tcp.c).
 */
#include "tcp-stream.h"

#include <string.h>

static const uint8_t *
data_at(const Held *h, uint32_t seq)
{
    return held_payload(h) + (seq - tcp_data_seq(h));
}

static uint32_t
stream_offset(const Flow *f, uint32_t seq)
{
    return f->flags & FLOW_HAS_P_SYN ? seq - (f->p_isn + 1) : seq - f->base;
}

static uint32_t
payload_pos(const Held *h, uint32_t seq)
{
    return h && seq - tcp_data_seq(h) < h->payload_len ? seq - tcp_data_seq(h) : 0;
}

void
stream_diverge(Compare *e, Flow *f, CompareRule rule, uint32_t seq, const Held *p, const Held *s)
{
    DiffSpot spot = {stream_offset(f, seq), payload_pos(p, seq), payload_pos(s, seq)};

    engine_diverge(e, f, rule, spot, p, s);
}

void
stream_diverge_here(Compare *e, Flow *f, CompareRule rule, const Held *h)
{
    bool primary = h->side == COMPARE_PRIMARY;

    stream_diverge(e, f, rule, h->seq, primary ? h : NULL, primary ? NULL : h);
}

void
stream_set_window(Flow *f, uint32_t base, uint32_t next)
{
    if (next - base > WINDOW_MAX)
        base = next - WINDOW_MAX;
    f->base = base;
    f->next = next;
    f->flags |= FLOW_HAS_WINDOW;
}

void
stream_remove(Flow *f, Held *h)
{
    held_list_remove(h->side == COMPARE_PRIMARY ? &f->p_chain : &f->s_chain, h, LINK_CHAIN);
    h->flags &= (uint16_t)~HELD_IN_CHAIN;
}

/* All of @h is in the window. The primary's still waits in the FIFO. */
static void
consume(Compare *e, Flow *f, Held *h)
{
    stream_remove(f, h);
    if (h->side == COMPARE_SECONDARY)
        engine_forget(e, h);
}

/* Sorted from the tail, where segments normally belong. */
void
stream_insert(Compare *e, Flow *f, Held *h)
{
    HeldList *chain = h->side == COMPARE_PRIMARY ? &f->p_chain : &f->s_chain;
    Held *where = chain->tail;
    int steps = 0;

    while (where && seq_gt(where->seq, h->seq) && steps++ < ENGINE_MAX_WALK)
        where = where->link[LINK_CHAIN].prev;
    held_list_insert_after(chain, where, h, LINK_CHAIN);
    h->flags |= HELD_IN_CHAIN;
    if (steps > ENGINE_MAX_WALK)
        stream_diverge_here(e, f, COMPARE_RULE_REORDER, h);
}

/* --- comparing --- */

static void
payload_differs(Compare *e, Flow *f, const Held *p, const Held *s, uint32_t lo, uint32_t hi)
{
    while (seq_lt(lo, hi) && *data_at(p, lo) == *data_at(s, lo))
        lo++;
    stream_diverge(e, f, COMPARE_RULE_PAYLOAD, lo, p, s);
}

/* Compares [lo, hi), which both cover. False: a divergence was reported. */
static bool
range_equal(Compare *e, Flow *f, const Held *p, const Held *s, uint32_t lo, uint32_t hi)
{
    bool p_syn = tcp_is_syn(p) && p->seq == lo;
    bool s_syn = tcp_is_syn(s) && s->seq == lo;
    bool p_fin = tcp_is_fin(p) && p->end == hi;
    bool s_fin = tcp_is_fin(s) && s->end == hi;

    if (p_syn != s_syn) {
        stream_diverge(e, f, COMPARE_RULE_SYN, lo, p, s);
        return false;
    }
    uint32_t data_lo = seq_max(lo, seq_max(tcp_data_seq(p), tcp_data_seq(s)));
    uint32_t data_hi = seq_min(hi, seq_min(tcp_data_end(p), tcp_data_end(s)));

    if (seq_lt(data_lo, data_hi) &&
        memcmp(data_at(p, data_lo), data_at(s, data_lo), data_hi - data_lo) != 0) {
        payload_differs(e, f, p, s, data_lo, data_hi);
        return false;
    }
    if (p_fin != s_fin) {
        stream_diverge(e, f, COMPARE_RULE_FIN, hi - 1, p, s);
        return false;
    }
    return true;
}

/* Those below the window are passed over: there are few, or it is no real stack. */
Held *
stream_first(Compare *e, Flow *f, HeldList *chain)
{
    Held *following;
    int below = 0;

    for (Held *h = chain->head; h; h = following) {
        following = h->link[LINK_CHAIN].next;
        if (seq_gt(h->end, f->next))
            return h;
        if (seq_geq(h->seq, f->base))
            consume(e, f, h);
        else if (++below > ENGINE_MAX_WALK) {
            stream_diverge_here(e, f, COMPARE_RULE_REORDER, h);
            return NULL;
        }
    }
    return NULL;
}

static void
match_up(Compare *e, Flow *f)
{
    while (!(f->flags & FLOW_DIVERGED)) {
        Held *p = stream_first(e, f, &f->p_chain);
        Held *s = stream_first(e, f, &f->s_chain);

        if (!p || !s || seq_gt(p->seq, f->next) || seq_gt(s->seq, f->next))
            return;
        if (s->flags & HELD_DIGEST) {
            uint32_t equal = digest_match(e, f, p, s);

            if (equal == f->next)
                return;
            stream_set_window(f, f->base, equal);
            continue;
        }
        uint32_t hi = seq_min(p->end, s->end);

        if (!range_equal(e, f, p, s, f->next, hi))
            return;
        stream_set_window(f, f->base, hi);
    }
}

/* A segment that starts below `base` and reaches it. */
static Held *
below_base(Compare *e, Flow *f, const HeldList *chain)
{
    int steps = 0;

    for (Held *h = chain->head; h && seq_lt(h->seq, f->base); h = h->link[LINK_CHAIN].next) {
        if (seq_geq(h->end, f->base))
            return h;
        if (++steps > ENGINE_MAX_WALK) {
            stream_diverge_here(e, f, COMPARE_RULE_REORDER, h);
            return NULL;
        }
    }
    return NULL;
}

static void
match_down(Compare *e, Flow *f)
{
    while (!(f->flags & FLOW_DIVERGED)) {
        Held *p = below_base(e, f, &f->p_chain);
        Held *s = p ? below_base(e, f, &f->s_chain) : NULL;

        if (!s || f->next - f->base >= WINDOW_MAX)
            return;
        if (s->flags & HELD_DIGEST) {
            digest_want(e, s);
            return;
        }
        uint32_t lo = seq_max(p->seq, s->seq);

        if (!range_equal(e, f, p, s, lo, f->base))
            return;
        stream_set_window(f, lo, f->next);
        (void)stream_first(e, f, &f->p_chain);
        (void)stream_first(e, f, &f->s_chain);
    }
}

void
stream_match(Compare *e, Flow *f)
{
    Held *p = f->p_chain.head;
    Held *s = f->s_chain.head;

    if (!p || !s)
        return;
    if (!(f->flags & FLOW_HAS_WINDOW)) {
        /* First seen in the middle: start where both are; what lies below is matched downwards. */
        uint32_t start = seq_max(p->seq, s->seq);

        stream_set_window(f, start, start);
    }
    match_up(e, f);
    if (f->p_chain.head && f->s_chain.head && seq_lt(f->p_chain.head->seq, f->base) &&
        seq_lt(f->s_chain.head->seq, f->base))
        match_down(e, f);
}

static bool
payload_equal(const Compare *e, const Held *h, const Held *other)
{
    if (h->flags & HELD_DIGEST)
        return digest_equal(e, other, h);
    if (other->flags & HELD_DIGEST)
        return digest_equal(e, h, other);
    return memcmp(held_payload(h), held_payload(other), h->payload_len) == 0;
}

/* The common case without detours: @h, the next segment, against the same segment of the other
 * side. False: not that case, or different; stream_match() then finds out. */
bool
stream_match_next(Compare *e, Flow *f, const Held *h)
{
    bool primary = h->side == COMPARE_PRIMARY;
    Held *other = primary ? f->s_chain.head : f->p_chain.head;

    if (!other || (primary ? f->p_chain.head : f->s_chain.head) || h->seq != f->next ||
        other->seq != h->seq || other->end != h->end || !(f->flags & FLOW_HAS_WINDOW) ||
        ((h->tcp_flags | other->tcp_flags) & (FRAME_TCP_SYN | FRAME_TCP_FIN | FRAME_TCP_RST)) ||
        !payload_equal(e, h, other))
        return false;
    stream_set_window(f, f->base, h->end);
    consume(e, f, other);
    (void)stream_first(e, f, primary ? &f->s_chain : &f->p_chain); /* repeated ones behind it */
    return true;
}

/* --- where it is stuck --- */

DiffSpot
tcp_stuck_at(const Flow *f)
{
    uint32_t seq = f->next;

    if (!(f->flags & FLOW_HAS_WINDOW))
        return (DiffSpot){0};
    return (DiffSpot){stream_offset(f, seq), payload_pos(f->p_chain.head, seq),
                      payload_pos(f->s_chain.head, seq)};
}
