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
