/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-tls.h - sockets and mutual TLS 1.3 of the peer link (internal to colod_peer) */
#pragma once

#include "peer-wire.h"

#include <gio/gio.h>

/** The socket below @stream (TLS or plain), or NULL; borrowed. */
GSocket *peer_stream_get_socket(GIOStream *stream);

/** TCP_NODELAY; without effect on other sockets. */
void peer_stream_set_nodelay(GIOStream *stream);

/**
 * Closes the socket below @stream at once, without close_notify and without blocking. Nobody else
 * may be using the stream. Bytes that the kernel took are still sent.
 */
void peer_stream_close(GIOStream *stream);

/** Ends both directions of the socket: whoever else uses the stream sees its end and closes it. */
void peer_stream_shutdown(GIOStream *stream);

/* Our certificate and key, and the authority that must have signed the peer's. */
typedef struct PeerTls PeerTls;

/**
 * Reads the files and proves that they fit: the certificate is signed by the CA and names @host,
 * and a handshake with ourselves succeeds, which needs the right key. That takes some milliseconds.
 * A certificate that has expired is let through: whoever looks at the link then sees the peer
 * refuse it, while a daemon that did not start would manage no VM at all.
 *
 * Errors: G_IO_ERROR, G_FILE_ERROR, G_TLS_ERROR or PEER_ERROR_IDENTITY; the text names the file.
 */
PeerTls *peer_tls_new(const char *ca_file, const char *cert_file, const char *key_file,
                      const char *host, GError **error);
void peer_tls_free(PeerTls *tls);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PeerTls, peer_tls_free)

/**
 * Puts TLS over @tcp; the caller then does the handshake. It fails unless the peer's certificate is
 * signed by our CA and in its time. @is_server: we accepted the connection.
 */
GTlsConnection *peer_tls_wrap(PeerTls *tls, GIOStream *tcp, gboolean is_server,
                              const char *peer_host, GError **error);

/**
 * What the handshake does not check: TLS 1.3 was agreed, and the peer's certificate has @peer_host
 * among its DNS names and may be used for the peer's role. Errors: PEER_ERROR_IDENTITY.
 */
gboolean peer_tls_check(GTlsConnection *connection, const char *peer_host, GError **error);

/**
 * Turns a handshake's @error (taken) into one that says what is wrong with which certificate:
 * PEER_ERROR_DATES if it is out of its time and nothing else, else PEER_ERROR_IDENTITY; errors that
 * are none of a certificate keep their code.
 */
GError *peer_tls_explain(GTlsConnection *connection, GError *error);

/* Purposes of RFC 5280, 4.2.1.12. */
typedef enum PeerTlsPurpose {
    PEER_TLS_PURPOSE_SERVER = 1,
    PEER_TLS_PURPOSE_CLIENT = 2,
} PeerTlsPurpose;

/**
 * Whether the DER certificate may be used for @purpose: it lists it, or any purpose, or has no
 * extended key usage at all. False also for what is no certificate.
 */
bool peer_tls_certificate_allows(View der, PeerTlsPurpose purpose);

/** Keepalive, and with @user_timeout_ms > 0 also TCP_USER_TIMEOUT. */
void peer_stream_set_timeouts(GIOStream *stream, unsigned user_timeout_ms);
