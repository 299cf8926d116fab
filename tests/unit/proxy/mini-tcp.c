/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* mini-tcp.c - just enough TCP for a property test: both opens, go-back-N, FIN, RST, SACK, PAWS */
#include "mini-tcp.h"

#include <glib.h>

#include "seq.h"

uint8_t
mini_content(uint32_t inc, bool guest, uint32_t position)
{
    uint32_t x = (position + 1) * 2654435761u + inc * 97u + guest;

    return (uint8_t)(x >> 24);
}

static void
emit(MiniTcp *t, uint8_t flags, uint32_t from, uint32_t to, int64_t now_ms, const MiniOps *ops)
{
    uint8_t payload[MINI_MSS];
    Segment s = {.flags = flags,
                 .egress = t->guest,
                 .seq = t->isn + from,
                 .ack = flags & ACK ? t->irs + t->rcv : 0,
                 .has_ts = true,
                 .tsval = (uint32_t)now_ms + t->ts_off,
                 .tsecr = flags & ACK ? t->ts_recent : 0,
                 .payload = payload,
                 .len = to - from};

    for (uint32_t i = 0; i < s.len; i++)
        payload[i] = mini_content(t->inc, t->guest, from + i);
    ops->emit(ops->opaque, t, &s);
}

static void
emit_ack(MiniTcp *t, int64_t now_ms, const MiniOps *ops)
{
    emit(t, ACK, t->max, t->max, now_ms, ops);
}

/* What cannot be of a connection here (RFC 9293, 3.5.2). */
static void
emit_rst_for(MiniTcp *t, const Segment *s, const MiniOps *ops)
{
    Segment rst = {.flags = RST, .egress = t->guest, .seq = s->ack};

    if (s->flags & RST)
        return;
    if (!(s->flags & ACK)) {
        rst.flags = RST | ACK;
        rst.seq = 0;
        rst.ack = s->seq + (uint32_t)s->len + ((s->flags & SYN) != 0) + ((s->flags & FIN) != 0);
    }
    ops->emit(ops->opaque, t, &rst);
}

static void
restart_timer(MiniTcp *t, int64_t now_ms)
{
    t->rto_at = now_ms + t->rto_ms;
}

static void
send_some(MiniTcp *t, int64_t now_ms, const MiniOps *ops)
{
    uint32_t data_end = t->app.total + 1;
    bool may_fin = !t->app.fin_after_peer || t->fin_received;

    while (t->nxt < data_end + may_fin && t->nxt - t->una < MINI_WINDOW) {
        uint32_t to = MIN(t->nxt + MINI_MSS, data_end);
        bool fin = may_fin && to == data_end;

        emit(t, fin ? FIN | ACK : ACK, t->nxt, to, now_ms, ops);
        t->nxt = to + fin;
        t->max = MAX(t->max, t->nxt);
    }
}

static void
clear(MiniTcp *t)
{
    *t = (MiniTcp){.guest = t->guest, .inc = t->inc - 1}; /* it may come again */
}

static bool
begin(MiniTcp *t, uint32_t inc, int64_t now_ms, const MiniOps *ops)
{
    MiniTcp next = {.guest = t->guest, .inc = inc, .rto_ms = MINI_RTO_MS, .nxt = 1, .max = 1};

    if (!ops->begin(ops->opaque, &next, inc))
        return false;
    *t = next;
    restart_timer(t, now_ms);
    return true;
}

void
mini_open(MiniTcp *t, uint32_t inc, int64_t now_ms, const MiniOps *ops)
{
    if (!begin(t, inc, now_ms, ops))
        return;
    t->state = MINI_SYN_SENT;
    emit(t, SYN, 0, 0, now_ms, ops);
}

static void
take_syn(MiniTcp *t, const Segment *s)
{
    t->irs = s->seq;
    t->has_irs = true;
    t->rcv = 1;
    t->ts_recent = s->tsval;
}

static void
reset_by_peer(MiniTcp *t)
{
    t->state = MINI_DONE;
    t->reset = true;
}

static void
establish(MiniTcp *t)
{
    t->state = MINI_OPEN;
    t->una = MAX(t->una, 1u);
    t->rto_ms = MINI_RTO_MS;
}

static void
input_syn_sent(MiniTcp *t, const Segment *s, int64_t now_ms, const MiniOps *ops)
{
    bool acks_syn = (s->flags & ACK) && s->ack == t->isn + 1;

    if ((s->flags & ACK) && !acks_syn) {
        emit_rst_for(t, s, ops);
    } else if (s->flags & RST) {
        if (acks_syn)
            reset_by_peer(t);
    } else if (s->flags & SYN) {
        take_syn(t, s);
        if (acks_syn) {
            establish(t);
            emit_ack(t, now_ms, ops);
            send_some(t, now_ms, ops);
        } else {
            t->state = MINI_SYN_RCVD;
            emit(t, SYN | ACK, 0, 0, now_ms, ops);
        }
    }
}

static void
take_data(MiniTcp *t, const Segment *s, uint32_t at)
{
    for (uint32_t i = 0; i < s->len; i++)
        g_assert_cmpuint(s->payload[i], ==, mini_content(t->inc, !t->guest, at + i));
    t->rcv = MAX(t->rcv, at + (uint32_t)s->len);
    if (s->flags & FIN) {
        t->rcv = MAX(t->rcv, at + (uint32_t)s->len + 1);
        t->fin_received = true;
    }
    t->ts_recent = s->tsval;
}

/* Data and FIN in order are taken; of others the peer is told. */
static void
input_data(MiniTcp *t, const Segment *s, int64_t now_ms, const MiniOps *ops)
{
    uint32_t at = s->seq - t->irs;
    uint32_t length = (uint32_t)s->len + ((s->flags & FIN) != 0);

    if (!length)
        return;
    if (at <= t->rcv && t->rcv - at <= length)
        take_data(t, s, at);
    if (at > t->rcv && at - t->rcv < MINI_WINDOW * 2) {
        Segment sack = {.flags = ACK,
                        .egress = t->guest,
                        .seq = t->isn + t->max,
                        .ack = t->irs + t->rcv,
                        .has_ts = true,
                        .tsval = (uint32_t)now_ms + t->ts_off,
                        .tsecr = t->ts_recent,
                        .n_sacks = 1,
                        .sacks = {s->seq, s->seq + length}};

        ops->emit(ops->opaque, t, &sack);
    } else {
        emit_ack(t, now_ms, ops);
    }
}

static void
input_open(MiniTcp *t, const Segment *s, int64_t now_ms, const MiniOps *ops)
{
    uint32_t acked = s->ack - t->isn;

    if (s->flags & RST) {
        if (s->seq == t->irs + t->rcv)
            reset_by_peer(t);
        return;
    }
    if ((s->flags & SYN) || !(s->flags & ACK) || acked > t->max ||
        (s->has_ts && seq_lt(s->tsval, t->ts_recent))) {
        emit_ack(t, now_ms, ops);
        return;
    }
    if (acked > t->una) {
        t->una = acked;
        t->nxt = MAX(t->nxt, acked);
        t->rto_ms = MINI_RTO_MS;
        restart_timer(t, now_ms);
    }
    input_data(t, s, now_ms, ops);
    if (t->app.abort_at && t->rcv > t->app.abort_at && t->state == MINI_OPEN) {
        t->state = MINI_DONE;
        t->aborted = true;
        emit(t, RST | ACK, t->max, t->max, now_ms, ops);
        return;
    }
    send_some(t, now_ms, ops);
    if (t->fin_received && t->una == t->app.total + 2)
        t->state = MINI_DONE;
}

static void
input_syn_rcvd(MiniTcp *t, const Segment *s, int64_t now_ms, const MiniOps *ops)
{
    if (s->flags & RST) {
        if (s->seq == t->irs + t->rcv)
            clear(t);
    } else if ((s->flags & ACK) && s->ack != t->isn + 1) {
        emit_rst_for(t, s, ops);
    } else if (s->flags & ACK) {
        establish(t);
        if (s->flags & SYN)
            emit_ack(t, now_ms, ops);
        else
            input_open(t, s, now_ms, ops);
        send_some(t, now_ms, ops);
    } else if (s->seq == t->irs) {
        emit(t, SYN | ACK, 0, 0, now_ms, ops);
    } else {
        emit_ack(t, now_ms, ops);
    }
}

/* Nothing here, or no more: it listens. */
static void
input_closed(MiniTcp *t, const Segment *s, uint32_t inc, int64_t now_ms, const MiniOps *ops)
{
    bool is_new = inc > t->inc && (s->flags & (SYN | ACK | RST)) == SYN;

    if (is_new && begin(t, inc, now_ms, ops)) {
        t->state = MINI_SYN_RCVD;
        take_syn(t, s);
        emit(t, SYN | ACK, 0, 0, now_ms, ops);
    } else if (t->state == MINI_CLOSED || inc != t->inc || t->aborted || t->reset) {
        if (!(s->flags & SYN) || (s->flags & ACK))
            emit_rst_for(t, s, ops);
    } else if (s->len || (s->flags & (SYN | FIN))) {
        emit_ack(t, now_ms, ops);
    }
}

void
mini_input(MiniTcp *t, const Segment *s, uint32_t inc, int64_t now_ms, const MiniOps *ops)
{
    switch (t->state) {
    case MINI_CLOSED:
    case MINI_DONE:
        input_closed(t, s, inc, now_ms, ops);
        break;
    case MINI_SYN_SENT:
        input_syn_sent(t, s, now_ms, ops);
        break;
    case MINI_SYN_RCVD:
        input_syn_rcvd(t, s, now_ms, ops);
        break;
    case MINI_OPEN:
        input_open(t, s, now_ms, ops);
        break;
    }
}

void
mini_timer(MiniTcp *t, int64_t now_ms, const MiniOps *ops)
{
    if (t->state == MINI_CLOSED || t->state == MINI_DONE || now_ms < t->rto_at)
        return;
    t->rto_ms = MIN(t->rto_ms * 2, MINI_RTO_MAX_MS);
    restart_timer(t, now_ms);
    if (t->state == MINI_SYN_SENT)
        emit(t, SYN, 0, 0, now_ms, ops);
    if (t->state == MINI_SYN_RCVD)
        emit(t, SYN | ACK, 0, 0, now_ms, ops);
    if (t->state == MINI_OPEN) {
        t->nxt = MAX(t->una, 1u);
        send_some(t, now_ms, ops);
        if (t->nxt == t->una)
            emit_ack(t, now_ms, ops); /* keep-alive: a peer that is gone says so */
    }
}
