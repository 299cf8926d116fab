/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-hello.h - HELLO, WELCOME and REFUSED: their JSON and their exchange (internal to colod_peer)
 */
#pragma once

#include "peer-link.h"

/* What a HELLO or WELCOME says. */
typedef struct PeerHello {
    PeerChannelKind channel;
    char *vm, *uuid;
    PeerInfo info;
    guint64 session; /* 0 in the control channel's HELLO */
} PeerHello;

void peer_hello_clear(PeerHello *hello);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(PeerHello, peer_hello_clear)

/** One JSON object of at most PEER_JSON_MAX_BYTES, nothing after it. Error: PEER_ERROR_PROTOCOL. */
json_object *peer_json_parse(View text, GError **error);

/** JSON of a hello, allocated. */
char *peer_hello_format(const PeerHello *hello);

/** @ret_hello is written on success only. Error: PEER_ERROR_PROTOCOL. */
gboolean peer_hello_parse(View text, PeerHello *ret_hello, GError **error);

/**
 * Whether @hello comes from the peer of @config.
 *
 * Return: NULL, or with @error set (PEER_ERROR_IDENTITY) the code of the REFUSED to send; static.
 */
const char *peer_hello_judge(const PeerHello *hello, const PeerLinkConfig *config, GError **error);

/** JSON of a REFUSED, allocated. */
char *peer_refused_format(const char *code, const char *text);

/** The error to report for a REFUSED (PEER_ERROR_REFUSED, or PEER_ERROR_PROTOCOL). Never NULL. */
GError *peer_refused_parse(View text);

/*
 * PeerGreeting: one TCP connection from its birth until both sides have agreed on it, or not.
 *
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
 * @socket: an accepted connection (referenced). The rest is borrowed while the greeting lives.
 * Error: the CA's file, which is read anew for each connection, cannot be read any more.
 */
PeerGreeting *peer_greeting_accept(GSocket *socket, struct PeerTls *tls,
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
