/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* window.c - what a client may be told of the receive window: no more than both sides have */
/*
 * Theory of operation
 *
 * Goal: a client that keeps to the window it was told never sends what the secondary has no room
 * for. It would drop it, so it would never acknowledge it, and the primary's ack of it would wait
 * for the secondary's until the timeout asks for a checkpoint: as often as the timeout allows, all
 * through an upload into a program that reads slower than the network brings.
 *
 * The right edge is ack + window, the first number that may not be sent. s_edge is the highest the
 * secondary has announced in this epoch: a receiver does not take back what it offered (RFC 9293,
 * 3.8.6), and if it does nevertheless the older promise was good for what is under way. No
 * segment of the primary that is compared leaves with an edge beyond it; its window field is
 * lowered, or left alone, never raised. p_edge is the highest the primary announced itself. At a
 * commit the secondary has the primary's receive buffer, so s_edge is p_edge, as with acks.
 *
 * Waiting. The primary does not say it again when the secondary has read too. So an ack without
 * data waits for that if what could be told now is less than half of what it wants to tell and too
 * little for the client to go on (an ack that is late for no need slows a sender down), or if it is
 * nothing new at all: a window update that says what was said already is a duplicate ack, which
 * means loss to the peer. It waits for a quarter of the timeout at most, counted from its arrival,
 * and then leaves lowered; it is no reason for a checkpoint. Whatever has data, SYN, FIN or RST
 * never waits for the window, and what waits makes way for it (see release_fifo()).
 *
 * Duplicates. The rule "once, in order" stays; nothing is merged. While acks wait, all of a run
 * wait; each leaves when the secondary's edge has moved past what was told, so that they
 * differ. What is left is a window update that makes way or whose time is over: it then is one
 * duplicate ack. TCP's stop growing the window they offer once it is open, by doubling, so a run
 * is short, and with SACK (all systems of today) a duplicate ack without a block counts for
 * nothing. The guest's own duplicate acks have an edge that was announced before, and do not wait
 * for being one.
 *
 * Scales (RFC 7323) are those of the guest's own SYN; each side's is its own. The window in a SYN
 * is not scaled. 0 is assumed for a connection that was first seen in the middle. Then both edges
 * are too near to their acks by the same kind of error, and the field that leaves is at least the
 * one of the secondary's newest segment, as s_edge - ack >= s_ack + s_window - ack and ack <=
 * s_ack: the client may be told too much, as without the rule, never less than the secondary itself
 * says; and where both acks are the same it is exact. It also is so, with one too high, if the
 * guest opened the connection and its peer does not scale, which only the peer's SYN tells.
 */
#include "window.h"

#include "bytes.h"
#include "patch.h"
#include "seq.h"

enum {
    TCP_HEADER_BYTES = 20,
    TCP_OPTION_END = 0,
    TCP_OPTION_NOP = 1,
    TCP_OPTION_WINDOW_SCALE = 3,
    SCALE_MAX = 14, /* RFC 7323, 2.3 */
    /* With this much room a client goes on, and the answers to what it sends will tell it more. */
    ENOUGH_BYTES = 16384,
};

uint8_t
window_scale_of(const Held *syn)
{
    View v = view_of(syn->frame + syn->l4_off, syn->payload_off - syn->l4_off);
    const uint8_t *h;

    if (!view_skip(&v, TCP_HEADER_BYTES))
        return 0;
    while (view_take(&v, 1, &h) && h[0] != TCP_OPTION_END) {
        uint8_t kind = h[0];

        if (kind == TCP_OPTION_NOP)
            continue;
        if (!view_take(&v, 1, &h) || h[0] < 2)
            return 0;
        size_t len = h[0] - 2u;

        if (!view_take(&v, len, &h))
            return 0;
        if (kind == TCP_OPTION_WINDOW_SCALE && len == 1)
            return h[0] < SCALE_MAX ? h[0] : SCALE_MAX;
    }
    return 0;
}

static unsigned
shift_of(const Held *h, unsigned scale)
{
    return h->tcp_flags & FRAME_TCP_SYN ? 0 : scale;
}

static uint32_t
edge_of(const Held *h, unsigned scale)
{
    return h->ack + ((uint32_t)patch_window_field(h) << shift_of(h, scale));
}

/* --- what is known --- */

static void
set_s_edge(Flow *f, uint32_t edge)
{
    f->s_edge = edge;
    f->flags &= (uint16_t)~FLOW_TOLD_ALL;
}

void
window_note_primary(Flow *f, const Held *h)
{
    uint32_t edge = edge_of(h, f->p_scale);

    if (!(f->flags & FLOW_HAS_P_ACK) || (h->tcp_flags & FRAME_TCP_SYN) || seq_gt(edge, f->p_edge))
        f->p_edge = edge;
}

void
window_note_secondary(Flow *f, const Held *h)
{
    uint32_t edge = edge_of(h, f->s_scale);

    if (!(f->flags & FLOW_HAS_S_ACK) || seq_gt(edge, f->s_edge))
        set_s_edge(f, edge);
}

void
window_note_stale(Flow *f, const Held *h)
{
    uint32_t edge = edge_of(h, f->p_scale);

    if (!(f->flags & FLOW_HAS_S_ACK))
        set_s_edge(f, f->p_edge);
    else if (seq_gt(edge, f->s_edge))
        set_s_edge(f, edge);
}

void
window_note_commit(Flow *f)
{
    set_s_edge(f, f->p_edge);
    f->s_scale = f->p_scale;
}

/* --- what may be said --- */

uint16_t
window_allowed(const Compare *e, const Flow *f, const Held *h, uint32_t ack)
{
    uint16_t wanted = patch_window_field(h);

    /* An RST announces nothing. Of a reassembled datagram the header is in another frame. */
    if (!e->config.window_gating || !(h->tcp_flags & FRAME_TCP_ACK) ||
        (h->tcp_flags & FRAME_TCP_RST) || h->parts.head || !(f->flags & FLOW_HAS_S_ACK))
        return wanted;
    uint32_t room = seq_gt(f->s_edge, ack) ? (f->s_edge - ack) >> shift_of(h, f->p_scale) : 0;

    return room < wanted ? (uint16_t)room : wanted;
}

bool
window_waits(const Compare *e, const Flow *f, const Held *h)
{
    uint16_t wanted = patch_window_field(h);
    uint16_t allowed = window_allowed(e, f, h, h->ack);

    if (allowed == wanted || e->now_ns - h->arrival_ns >= e->window_wait_ns)
        return false;
    bool news = !(f->flags & FLOW_TOLD_ALL) || !(f->flags & FLOW_HAS_P_ACK) ||
                seq_gt(h->ack, f->p_ack) || seq_leq(edge_of(h, f->p_scale), f->p_edge);

    bool little =
        allowed < wanted - allowed && (uint32_t)allowed << shift_of(h, f->p_scale) < ENOUGH_BYTES;

    return little || !news;
}

void
window_note_said(Flow *f, const Held *h, uint32_t ack, uint16_t window)
{
    if (window < patch_window_field(h) && ack == h->ack)
        f->flags |= FLOW_TOLD_ALL;
    else
        f->flags &= (uint16_t)~FLOW_TOLD_ALL;
}
