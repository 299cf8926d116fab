/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-heartbeat.h - heartbeats on an open control channel: ours, the peer's, its silence */
#pragma once

#include "peer-channel.h"

typedef struct PeerHeartbeat PeerHeartbeat;

/* Callbacks run in the main context of peer_heartbeat_new(). The object may be freed from within
 * each. */
typedef struct PeerHeartbeatHandlers {
    /* Nothing came for longer than the limit, not counting the time in which our own main loop
     * stood still: PEER_ERROR_SILENT. At most once. */
    void (*silent)(const GError *reason, gpointer user_data);
    /* peer_heartbeat_confirmed_ns() moved on. */
    void (*confirmed)(int64_t confirmed_ns, gpointer user_data);
} PeerHeartbeatHandlers;

/**
 * Sends the first heartbeat at once, then one each @period_ms, and counts silence from now.
 *
 * @channel: borrowed, must outlive the object; its messages are to be given to
 * peer_heartbeat_take(). Everything runs in the caller's thread-default main context.
 */
PeerHeartbeat *peer_heartbeat_new(PeerChannel *channel, unsigned period_ms, unsigned limit_ms,
                                  const PeerHeartbeatHandlers *handlers, gpointer user_data);
void peer_heartbeat_free(PeerHeartbeat *heartbeat);

/**
 * The payload of a HEARTBEAT has come. May call confirmed().
 *
 * Errors: PEER_ERROR_PROTOCOL: too short, or it echoes what was never sent.
 */
gboolean peer_heartbeat_take(PeerHeartbeat *heartbeat, View payload, GError **error);

/** Time (CLOCK_MONOTONIC, ns) at which we sent the newest heartbeat that was echoed, or 0. */
int64_t peer_heartbeat_confirmed_ns(const PeerHeartbeat *heartbeat);
