/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* frames-stream.h - the frames channel's stream as the proxy wants it */
#pragma once

#include "proxy.h"

#include <gio/gio.h>

/**
 * Fills in what proxy_attach_peer() takes. @stream (referenced) is a stream of the peer link that
 * was taken out of it (peer_link_take_stream()), after its handshake; from here on the proxy's
 * thread alone reads, writes and closes it. The link may still shut its socket down.
 */
void frames_stream_init(GIOStream *stream, ProxyPeer *ret_peer);
