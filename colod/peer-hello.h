/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-hello.h - HELLO, WELCOME and REFUSED: their JSON (internal to colod_peer) */
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
