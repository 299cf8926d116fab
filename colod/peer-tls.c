/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-tls.c - sockets and mutual TLS 1.3 of the peer link */
#include "peer-tls.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

enum { DISCARD_MAX_BYTES = 16 * 1024 * 1024 };

GSocket *
peer_stream_get_socket(GIOStream *stream)
{
    g_autoptr(GIOStream) base = NULL;

    if (G_IS_TLS_CONNECTION(stream))
        g_object_get(stream, "base-io-stream", &base, NULL);
    else
        base = g_object_ref(stream);
    return G_IS_SOCKET_CONNECTION(base) ? g_socket_connection_get_socket(G_SOCKET_CONNECTION(base))
                                        : NULL;
}

void
peer_stream_set_nodelay(GIOStream *stream)
{
    if (G_IS_TLS_CONNECTION(stream)) {
        g_autoptr(GIOStream) base = NULL;

        g_object_get(stream, "base-io-stream", &base, NULL);
        peer_stream_set_nodelay(base);
    } else if (G_IS_TCP_CONNECTION(stream)) {
        (void)g_socket_set_option(peer_stream_get_socket(stream), IPPROTO_TCP, TCP_NODELAY, 1,
                                  NULL);
    }
}

void
peer_stream_close(GIOStream *stream)
{
    GSocket *socket = peer_stream_get_socket(stream);

    if (!socket) {
        (void)g_io_stream_close(stream, NULL, NULL);
        return;
    }
    if (g_socket_is_closed(socket))
        return;
    /* Closing over unread input makes Linux send a reset and drop what we had still queued, maybe
     * the message that says why we go. MSG_TRUNC discards without copying (tcp(7)). */
    if (G_IS_TLS_CONNECTION(stream))
        (void)recv(g_socket_get_fd(socket), NULL, DISCARD_MAX_BYTES, MSG_DONTWAIT | MSG_TRUNC);
    (void)g_socket_close(socket, NULL);
}

void
peer_stream_shutdown(GIOStream *stream)
{
    GSocket *socket = peer_stream_get_socket(stream);

    if (socket && !g_socket_is_closed(socket))
        (void)g_socket_shutdown(socket, TRUE, TRUE, NULL);
}
