/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-heartbeat.c - heartbeats on an open control channel: ours, the peer's, its silence */
/*
 * Theory of operation
 *
 * Each side sends a heartbeat per period, and counts silence from the last arrival of any. A timer
 * that fires late proves nothing (the process may have been stopped), and neither does the clock
 * alone: heartbeats may lie unread in the socket. So when the clock says silent, the verdict waits
 * for SILENCE_ROUNDS further iterations of the main loop. Each polls the socket and dispatches
 * every ready source of default priority, the control channel's among them, and only then, if still
 * nothing came, silent() is called. (A source of low priority would do the same, but a busy loop
 * could put it off for ever.) And what made us stand still may have stopped the peer too, if both
 * are guests of one machine, or wait for one disk: the time we missed is no silence of the peer's.
 *
 * An echo tells that the peer had our heartbeat: it does not act on our silence before the moment
 * that one was sent plus its limit. Echoes of what was never sent are an error, because that lease
 * would be for free.
 */
#include "peer-heartbeat.h"

#include "clock.h"
#include "source.h"

enum { SILENCE_ROUNDS = 2 }; /* see above */

struct PeerHeartbeat {
    PeerChannel *channel;
    unsigned period_ms, limit_ms;
    const PeerHeartbeatHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    GSource *period_source, *silence_source;
    unsigned silence_rounds;
    int64_t last_turn_ns;  /* when on_period() last ran */
    int64_t last_heard_ns; /* our clock */
    int64_t last_sent_ns;  /* our clock */
    int64_t confirmed_ns;  /* our clock */
    int64_t peer_sent_ns;  /* the peer's clock: to be echoed */
};

static void
send_heartbeat(PeerHeartbeat *heartbeat, int64_t now_ns)
{
    uint8_t payload[PEER_HEARTBEAT_BYTES];

    /* A channel that takes nothing is not helped by more. */
    if (peer_channel_is_congested(heartbeat->channel))
        return;
    be64_store(payload, (uint64_t)now_ns);
    be64_store(payload + 8, (uint64_t)heartbeat->peer_sent_ns);
    heartbeat->last_sent_ns = now_ns;
    peer_channel_send(heartbeat->channel, PEER_MESSAGE_HEARTBEAT, payload, sizeof(payload));
}

static bool
is_silent(const PeerHeartbeat *heartbeat)
{
    return clock_now_ns() - heartbeat->last_heard_ns > heartbeat->limit_ms * NS_PER_MS;
}

static gboolean
on_silence_round(gpointer user_data)
{
    PeerHeartbeat *heartbeat = user_data;

    if (is_silent(heartbeat) && ++heartbeat->silence_rounds < SILENCE_ROUNDS)
        return G_SOURCE_CONTINUE;
    source_clear(&heartbeat->silence_source);
    if (is_silent(heartbeat)) {
        g_autoptr(GError) reason =
            g_error_new(PEER_ERROR, PEER_ERROR_SILENT, "no heartbeat of the peer for %u ms",
                        heartbeat->limit_ms);

        source_clear(&heartbeat->period_source);
        heartbeat->handlers->silent(reason, heartbeat->user_data);
    }
    return G_SOURCE_REMOVE;
}

static void
begin_silence_rounds(PeerHeartbeat *heartbeat)
{
    heartbeat->silence_rounds = 0;
    heartbeat->silence_source = g_idle_source_new();
    g_source_set_priority(heartbeat->silence_source, G_PRIORITY_DEFAULT);
    g_source_set_callback(heartbeat->silence_source, on_silence_round, heartbeat, NULL);
    g_source_attach(heartbeat->silence_source, heartbeat->context);
}

static gboolean
on_silence_due(gpointer user_data)
{
    PeerHeartbeat *heartbeat = user_data;

    source_clear(&heartbeat->silence_source);
    if (is_silent(heartbeat))
        begin_silence_rounds(heartbeat);
    return G_SOURCE_REMOVE;
}

/* If nothing comes before the next heartbeat the limit may be over in between: it is looked at
 * then, as every millisecond of a client's wait counts. */
static void
watch_silence(PeerHeartbeat *heartbeat, int64_t now_ns)
{
    const int64_t left_ns = heartbeat->last_heard_ns + heartbeat->limit_ms * NS_PER_MS - now_ns;

    if (heartbeat->silence_source || left_ns >= heartbeat->period_ms * NS_PER_MS)
        return;
    if (left_ns < 0)
        begin_silence_rounds(heartbeat);
    else
        source_set_timeout(&heartbeat->silence_source, heartbeat->context,
                           (unsigned)(left_ns / NS_PER_MS) + 1, on_silence_due, heartbeat);
}

/* Small delays, which a busy host has all the time, are not made good: that would add up. */
static void
allow_for_standstill(PeerHeartbeat *heartbeat, int64_t now_ns)
{
    const int64_t period_ns = heartbeat->period_ms * NS_PER_MS;
    const int64_t missed_ns = now_ns - heartbeat->last_turn_ns - period_ns;

    heartbeat->last_turn_ns = now_ns;
    if (missed_ns > period_ns)
        heartbeat->last_heard_ns = MIN(heartbeat->last_heard_ns + missed_ns, now_ns);
}

static gboolean
on_period(gpointer user_data)
{
    PeerHeartbeat *heartbeat = user_data;
    const int64_t now_ns = clock_now_ns();

    allow_for_standstill(heartbeat, now_ns);
    watch_silence(heartbeat, now_ns);
    send_heartbeat(heartbeat, now_ns);
    return G_SOURCE_CONTINUE;
}

gboolean
peer_heartbeat_take(PeerHeartbeat *heartbeat, View payload, GError **error)
{
    uint64_t sent_ns, echo_ns;

    if (!view_get_be64(&payload, &sent_ns) || !view_get_be64(&payload, &echo_ns)) {
        g_set_error_literal(error, PEER_ERROR, PEER_ERROR_PROTOCOL, "HEARTBEAT is too short");
        return FALSE;
    }
    if (sent_ns > INT64_MAX || echo_ns > (uint64_t)heartbeat->last_sent_ns) {
        g_set_error_literal(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                            "HEARTBEAT echoes one that was never sent");
        return FALSE;
    }
    heartbeat->last_heard_ns = clock_now_ns();
    heartbeat->peer_sent_ns = MAX(heartbeat->peer_sent_ns, (int64_t)sent_ns);
    if ((int64_t)echo_ns > heartbeat->confirmed_ns) {
        heartbeat->confirmed_ns = (int64_t)echo_ns;
        heartbeat->handlers->confirmed(heartbeat->confirmed_ns, heartbeat->user_data);
    }
    return TRUE;
}

int64_t
peer_heartbeat_confirmed_ns(const PeerHeartbeat *heartbeat)
{
    return heartbeat->confirmed_ns;
}

PeerHeartbeat *
peer_heartbeat_new(PeerChannel *channel, unsigned period_ms, unsigned limit_ms,
                   const PeerHeartbeatHandlers *handlers, gpointer user_data)
{
    PeerHeartbeat *heartbeat = g_new0(PeerHeartbeat, 1);

    heartbeat->channel = channel;
    heartbeat->period_ms = period_ms;
    heartbeat->limit_ms = limit_ms;
    heartbeat->handlers = handlers;
    heartbeat->user_data = user_data;
    heartbeat->context = g_main_context_ref_thread_default();
    heartbeat->last_heard_ns = heartbeat->last_turn_ns = clock_now_ns();
    source_set_timeout(&heartbeat->period_source, heartbeat->context, period_ms, on_period,
                       heartbeat);
    send_heartbeat(heartbeat, heartbeat->last_heard_ns);
    return heartbeat;
}

void
peer_heartbeat_free(PeerHeartbeat *heartbeat)
{
    if (!heartbeat)
        return;
    source_clear(&heartbeat->period_source);
    source_clear(&heartbeat->silence_source);
    g_main_context_unref(heartbeat->context);
    g_free(heartbeat);
}
