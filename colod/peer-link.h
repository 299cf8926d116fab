/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-link.h - the authenticated link of a pair: three channels, hello, heartbeat */
#pragma once

#include "peer-channel.h"
#include "peer-wire.h"

#include <json-c/json.h>

typedef struct PeerLink PeerLink;

/* Who we are and whom we talk to. Strings are borrowed from the configuration for the link's life.
 */
typedef struct PeerLinkConfig {
    const char *vm_name;
    const char *vm_uuid;
    const char
        *host; /* our name; must be a DNS name in our certificate's subject alternative names */
    const char *peer_host;      /* the name the peer's certificate must carry */
    const char *listen_address; /* numeric IPv4 or IPv6 */
    uint16_t listen_port;
    const char *peer_address;
    uint16_t peer_port;
    const char *ca_file, *cert_file, *key_file; /* PEM */
    unsigned connect_timeout_ms;                /* TCP connect + TLS handshake + hello, each side */
    unsigned heartbeat_ms;                      /* period */
    unsigned heartbeat_limit_ms;                /* silence longer than this is PEER_ERROR_SILENT */
    unsigned retry_ms;                          /* between attempts to connect */
} PeerLinkConfig;

/* What the peer said in its hello; valid while the link is up. */
typedef struct PeerInfo {
    char *host;
    char *software_version;
    char *role; /* "primary", "secondary", "none" */
    guint64 generation;
    guint64 boot_id; /* changes with every start of the peer's colod */
} PeerInfo;

/* Callbacks run in the main context current in peer_link_new(); it must be the thread-default one
 * whenever it runs. The link may be freed from within each. */
typedef struct PeerLinkHandlers {
    /* All three channels are open and agreed. */
    void (*up)(PeerLink *link, const PeerInfo *peer, gpointer user_data);
    /* A control message other than HEARTBEAT. @body: borrowed JSON object. */
    void (*message)(PeerLink *link, PeerMessageType type, json_object *body, gpointer user_data);
    /* The link went down after up(): all channels are closed, the reason says which failed how. It
     * is set up again by itself; up() follows when that succeeded. */
    void (*down)(PeerLink *link, const GError *reason, gpointer user_data);
    /* Somebody was refused, or an attempt of ours failed: for the log and `colo events`.
     * Rate-limited: the same text at most once in 10 s. */
    void (*refused)(PeerLink *link, const char *who, const GError *reason, gpointer user_data);
    /* peer_link_confirmed_ns() moved on. May be NULL. */
    void (*confirmed)(PeerLink *link, int64_t confirmed_ns, gpointer user_data);
    /* Asked when a hello is sent or answered: what to say of ourselves. */
    const char *(*our_role)(gpointer user_data);
    guint64 (*our_generation)(gpointer user_data);
} PeerLinkHandlers;

/**
 * Listens, and, on the host whose name sorts first, connects; keeps trying until freed.
 *
 * Theory of operation is at the top of peer-link.c; the wire in docs/PROTOCOL.md.
 * Errors: certificate files unreadable or not fitting each other, address in use: G_IO_ERROR or
 * G_TLS_ERROR, the text names the file or the address.
 */
PeerLink *peer_link_new(const PeerLinkConfig *config, const PeerLinkHandlers *handlers,
                        gpointer user_data, GError **error);
void peer_link_free(PeerLink *link);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PeerLink, peer_link_free)

gboolean peer_link_is_up(const PeerLink *link);

/** Sends a control message with @body (borrowed; NULL for an empty object). No-op when down.
 */
void peer_link_send(PeerLink *link, PeerMessageType type, json_object *body);

/**
 * Takes the checkpoint or frames channel's stream out of the link for a consumer.
 *
 * The consumer makes its own PeerChannel of it with peer_channel_new() and tells the link with
 * peer_link_fail() when that closes. NULL: the link is down or the channel was taken before.
 * Return: a new reference.
 */
GIOStream *peer_link_take_stream(PeerLink *link, PeerChannelKind kind);

/** Takes the link down with @reason and starts it anew. down() runs before this returns. */
void peer_link_fail(PeerLink *link, const GError *reason);

/**
 * Time (CLOCK_MONOTONIC, ns) at which we sent the newest heartbeat that the peer has confirmed, or
 * 0.
 *
 * The peer does not act on our silence before this plus its limit: a lease for the primary's
 * output.
 */
int64_t peer_link_confirmed_ns(const PeerLink *link);
