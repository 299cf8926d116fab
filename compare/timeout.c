/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* timeout.c - frames that have waited too long */
/*
 * Theory of operation
 *
 * All held frames are on one list in arrival order. The timeout is the same for all, so the
 * list is in order of deadlines too: a tick looks at its front only (a timer wheel with one slot).
 * It has two marks, how far it has looked: for the timeout, and for the quarter of it after which
 * an ack waits no longer for the secondary's window (window.c).
 */
#include "clock.h"
#include "engine.h"

/* Deadlines near the end of time do not wrap. NULL: none. */
static int64_t
deadline_of(const Held *h, int64_t wait_ns)
{
    return h && h->arrival_ns < INT64_MAX - wait_ns ? h->arrival_ns + wait_ns : INT64_MAX;
}

static void
report_timeout(Compare *e, const Held *h)
{
    Flow *f = h->flow;
    bool primary = h->side == COMPARE_PRIMARY;
    bool tcp = frame_key_class(&f->key) == FRAME_TCP;
    const Held *p = primary ? h : f->p_chain.head;
    const Held *s = primary ? f->s_chain.head : h;
    DiffSpot spot = tcp ? tcp_stuck_at(f) : dgram_first_difference(p, s);

    engine_diverge(e, f, primary ? COMPARE_RULE_TIMEOUT_PRIMARY : COMPARE_RULE_TIMEOUT_SECONDARY,
                   spot, p, s);
    engine_forget_secondary(e, f);
}

/* True: @h was an announcement, and is no more. */
static bool
ignore_announcement(Compare *e, Held *h)
{
    if (!e->config.ignore_announcements || h->side == COMPARE_PRIMARY || !dgram_is_announcement(h))
        return false;
    e->stats.announcements++;
    dgram_forget_secondary(e, h);
    return true;
}

static bool
is_covered(const Held *h)
{
    return frame_key_class(&h->flow->key) == FRAME_TCP && tcp_is_covered(h->flow, h);
}

/* Of those that have waited long enough each is looked at once; what moves it on later is another
 * frame of its flow, and tcp_process() looks then. */
static void
release_parts(Compare *e)
{
    while (e->part_check && e->now_ns - e->part_check->arrival_ns >= e->config.part_ns) {
        Held *h = e->part_check;

        e->part_check = h->link[LINK_AGE].next;
        if (h->flow && h == h->flow->fifo.head && frame_key_class(&h->flow->key) == FRAME_TCP)
            tcp_release_part(e, h->flow);
    }
}

static void
release_waiting_acks(Compare *e)
{
    while (!e->checkpointing && e->age_ack &&
           e->now_ns - e->age_ack->arrival_ns >= e->window_wait_ns) {
        Held *h = e->age_ack;

        engine_seek_age_ack(e, h->link[LINK_AGE].next);
        if (h->flags & HELD_IN_FIFO)
            tcp_waited_for_window(e, h);
    }
}

void
compare_tick(Compare *e, int64_t now_ns)
{
    engine_advance(e, now_ns);
    if (e->config.part_ns > 0)
        release_parts(e);
    release_waiting_acks(e); /* first: what only waited for this has not timed out */
    while (!e->checkpointing && e->age_check &&
           e->now_ns - e->age_check->arrival_ns >= e->config.timeout_ns) {
        Held *h = e->age_check;

        e->age_check = h->link[LINK_AGE].next;
        if (h->frag_set)
            fragment_timeout(e, h);
        else if (h->flow && !(h->flow->flags & FLOW_DIVERGED) && !is_covered(h) &&
                 !ignore_announcement(e, h))
            report_timeout(e, h);
    }
    flow_table_expire(e->flows, e->now_s, (uint32_t)(e->config.flow_idle_ns / NS_PER_S),
                      (uint32_t)(e->config.flow_closed_ns / NS_PER_S));
}

int64_t
compare_next_deadline_ns(const Compare *e)
{
    int64_t timeout_ns = deadline_of(e->age_check, e->config.timeout_ns);
    int64_t ack_ns = deadline_of(e->age_ack, e->window_wait_ns);
    int64_t part_ns =
        e->config.part_ns > 0 ? deadline_of(e->part_check, e->config.part_ns) : INT64_MAX;

    if (e->checkpointing)
        return part_ns;
    if (ack_ns < timeout_ns)
        timeout_ns = ack_ns;
    return timeout_ns < part_ns ? timeout_ns : part_ns;
}

int64_t
compare_oldest_ns(const Compare *e)
{
    return e->age_check && !e->checkpointing ? e->age_check->arrival_ns : INT64_MAX;
}
