/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* frames-stream.h - the frames channel of the peer link as the proxy wants it */
#pragma once

#include "proxy.h"

#include <gio/gio.h>

/**
 * Makes of @stream, taken from the link with peer_link_take_stream(), what proxy_attach_peer()
 * takes.
 *
 * @stream: its reference is taken over. A GTlsConnection after its handshake, or a
 * GSocketConnection. Until close() it is used by the proxy thread alone; the link may shut the
 * socket down meanwhile (peer_link_fail()), which the proxy sees as the stream's end.
 *
 * Errors of read() and write(): -EAGAIN; -ECONNRESET: reset or ended within a record; -EIO:
 * anything else that TLS or the socket reports.
 */
ProxyPeer frames_stream_new(GIOStream *stream);
