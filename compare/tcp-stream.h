/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tcp-stream.h - what both sides of a TCP connection have said alike, by sequence number */
#pragma once

#include "engine.h"
#include "seq.h"

/* The window is kept shorter than half the sequence space, or "before base" and "after next" would
 * be the same. 2^30 is also the largest TCP window (RFC 7323). */
#define WINDOW_MAX (UINT32_C(1) << 30)

static inline bool
tcp_is_syn(const Held *h)
{
    return h->tcp_flags & FRAME_TCP_SYN;
}

static inline bool
tcp_is_fin(const Held *h)
{
    return h->tcp_flags & FRAME_TCP_FIN;
}

static inline bool
tcp_is_rst(const Held *h)
{
    return h->tcp_flags & FRAME_TCP_RST;
}

static inline uint32_t
tcp_data_seq(const Held *h)
{
    return h->seq + (tcp_is_syn(h) ? 1 : 0);
}

static inline uint32_t
tcp_data_end(const Held *h)
{
    return tcp_data_seq(h) + h->payload_len;
}

/** True: all of @h lies in the window, so it was compared or committed before. */
static inline bool
stream_has(const Flow *f, const Held *h)
{
    uint32_t length = f->next - f->base;

    return (f->flags & FLOW_HAS_WINDOW) && h->seq - f->base <= length && h->end - f->base <= length;
}

/** What both sides are known to have said alike is [@base, @next). */
void stream_set_window(Flow *f, uint32_t base, uint32_t next);

/** Puts @h, which sticks out of the window, into its side's chain. */
void stream_insert(Compare *e, Flow *f, Held *h);
/** Takes @h out of its chain. */
void stream_remove(Flow *f, Held *h);

/** First segment of @chain that reaches beyond `next`; consumes those wholly in the window on the
 * way. */
Held *stream_first(Compare *e, Flow *f, HeldList *chain);

/** Compares what both chains cover beyond the window, and moves it. */
void stream_match(Compare *e, Flow *f);

/** The common case without detours: @h, the next segment, against the same segment of the other
 * side. False: not that case, or different; stream_match() then finds out. */
bool stream_match_next(Compare *e, Flow *f, const Held *h);

/** Reports that @p and @s (either may be NULL) differ at the number @seq. */
void stream_diverge(Compare *e, Flow *f, CompareRule rule, uint32_t seq, const Held *p,
                    const Held *s);
/** For rules that concern one frame, or no particular place. */
void stream_diverge_here(Compare *e, Flow *f, CompareRule rule, const Held *h);
