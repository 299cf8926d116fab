/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-greeting.h - one connection from its birth until both sides have agreed on it, or not
 * (internal to colod_peer) */
#pragma once

#include "peer-hello.h"

/*
 * TCP, TLS handshake, checks of the certificate, HELLO, WELCOME or REFUSED, all within
 * connect_timeout_ms. It ends with one call of `agreed` or `failed` and is gone when that returns.
 */
typedef struct PeerGreeting PeerGreeting;

/* Run in the thread-default main context of the constructor; never from within a function below. */
typedef struct PeerGreetingHandlers {
    /* Fills in what to say of ourselves: role, generation, boot id, session. Strings borrowed. */
    void (*describe)(PeerHello *ret_ours, gpointer user_data);
    /* Accepted connections: the right peer said HELLO. Answer with peer_greeting_welcome() or
     * peer_greeting_refuse(), or abandon it. */
    void (*hello)(PeerGreeting *greeting, const PeerHello *theirs, gpointer user_data);
    /* @stream: referenced by the callee. @theirs: HELLO or WELCOME; the callee may take from it. */
    void (*agreed)(PeerGreeting *greeting, GIOStream *stream, PeerHello *theirs,
                   gpointer user_data);
    void (*failed)(PeerGreeting *greeting, const char *who, const GError *reason,
                   gpointer user_data);
} PeerGreetingHandlers;

struct PeerTls;

/**
 * @socket: an accepted connection (referenced). @urgent: its handshake goes before those of others.
 * The rest is borrowed while the greeting lives.
 * Error: the CA's file, which is read anew for each connection, cannot be read any more.
 */
PeerGreeting *peer_greeting_accept(GSocket *socket, bool urgent, struct PeerTls *tls,
                                   const PeerLinkConfig *config,
                                   const PeerGreetingHandlers *handlers, gpointer user_data,
                                   GError **error);

/** Connects for @channel. */
PeerGreeting *peer_greeting_connect(PeerChannelKind channel, struct PeerTls *tls,
                                    const PeerLinkConfig *config,
                                    const PeerGreetingHandlers *handlers, gpointer user_data);

void peer_greeting_welcome(PeerGreeting *greeting);

/** @code: of docs/PROTOCOL.md. @reason: taken; reported through `failed` once the peer was told. */
void peer_greeting_refuse(PeerGreeting *greeting, const char *code, GError *reason);

/** Closes it; no callback follows. What it borrowed may go at once. */
void peer_greeting_abandon(PeerGreeting *greeting);

/** Name of the other end of @socket for reports: its address without the port. */
char *peer_socket_remote_name(GSocket *socket);
