/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-channel.h - one framed, non-blocking message stream over a GIOStream (TLS or, in tests,
 * plain) */
#pragma once

#include "peer-wire.h"

#include <gio/gio.h>

typedef struct PeerChannel PeerChannel;

/*
 * All callbacks run in the thread-default main context that was current in peer_channel_new().
 * The channel may be freed from within any of them.
 */
typedef struct PeerChannelHandlers {
    /* A whole message. @payload is borrowed until return. */
    void (*message)(PeerChannel *channel, PeerMessageType type, View payload, gpointer user_data);
    /* The output queue fell below half of its bound after peer_channel_is_congested() was true. */
    void (*drained)(PeerChannel *channel, gpointer user_data);
    /* Once; nothing follows. PEER_ERROR_CLOSED, PEER_ERROR_PROTOCOL, PEER_ERROR_VERSION, G_IO_ERROR
     * or G_TLS_ERROR. */
    void (*closed)(PeerChannel *channel, const GError *reason, gpointer user_data);
} PeerChannelHandlers;

enum {
    PEER_CHANNEL_CONGESTED_BYTES = 2 * 1024 * 1024,
    PEER_CHANNEL_QUEUE_MAX_BYTES = 128 * 1024 * 1024,
};

/**
 * Starts reading messages from @stream, whose input and output must be pollable (GTlsConnection
 * after its handshake, GSocketConnection).
 *
 * @stream: referenced. @kind decides which message types and lengths are accepted.
 * @handlers: borrowed, must outlive the channel.
 */
PeerChannel *peer_channel_new(GIOStream *stream, PeerChannelKind kind,
                              const PeerChannelHandlers *handlers, gpointer user_data);

/** Closes without calling `closed`. NULL is fine. */
void peer_channel_free(PeerChannel *channel);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(PeerChannel, peer_channel_free)

/**
 * Queues one message and writes what the stream takes at once.
 *
 * @payload: copied as far as it is not written at once; at most the bound of its type.
 * A caller that sends bulk data stops when peer_channel_is_congested() and goes on at `drained`.
 * One that ignores it past PEER_CHANNEL_QUEUE_MAX_BYTES has its channel closed with
 * PEER_ERROR_OVERFLOW (from the main loop, never from within this call).
 */
void peer_channel_send(PeerChannel *channel, PeerMessageType type, const void *payload, size_t len);

/** More than PEER_CHANNEL_CONGESTED_BYTES wait to be written. */
gboolean peer_channel_is_congested(const PeerChannel *channel);

/** Stops and restarts the delivery of messages (back-pressure towards the peer). */
void peer_channel_set_reading(PeerChannel *channel, gboolean reading);
