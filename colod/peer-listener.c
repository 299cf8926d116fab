/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-listener.c - the port on which a host waits for its peer: accepts, and pauses when it cannot
 */
#include "peer-listener.h"

#include "source.h"

#include <stdbool.h>

enum {
    ACCEPT_PER_DISPATCH = 32, /* then others run */
    LISTEN_BACKLOG = 64,      /* so that what is too much is refused by us, not left waiting */
    ACCEPT_PAUSE_MS = 1000,   /* after accept() failed */
};

struct PeerListener {
    const PeerListenerHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    bool freed;
    GSocket *socket;
    GSource *source; /* connections, or the end of a pause */
};

static void
listener_clear(gpointer data)
{
    PeerListener *listener = data;

    g_main_context_unref(listener->context);
}

static gboolean on_incoming(GSocket *socket, GIOCondition condition, gpointer user_data);

static void
listen_start(PeerListener *listener)
{
    source_clear(&listener->source);
    listener->source = g_socket_create_source(listener->socket, G_IO_IN, NULL);
    g_source_set_callback(listener->source, G_SOURCE_FUNC(on_incoming), listener, NULL);
    g_source_attach(listener->source, listener->context);
}

static gboolean
on_pause_over(gpointer user_data)
{
    listen_start(user_data);
    return G_SOURCE_REMOVE;
}

/* The socket stays readable: without a pause this would spin. */
static void
listen_pause(PeerListener *listener)
{
    source_set_timeout(&listener->source, listener->context, ACCEPT_PAUSE_MS, on_pause_over,
                       listener);
}

static gboolean
on_incoming(GSocket *listening, G_GNUC_UNUSED GIOCondition condition, gpointer user_data)
{
    PeerListener *listener = g_rc_box_acquire(user_data);

    for (int i = 0; i < ACCEPT_PER_DISPATCH && !listener->freed; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GSocket) socket = g_socket_accept(listening, NULL, &error);

        if (socket) {
            listener->handlers->incoming(socket, listener->user_data);
            continue;
        }
        if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK) &&
            !g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED)) {
            listen_pause(listener);
            listener->handlers->failed(error, listener->user_data);
        }
        break;
    }
    g_rc_box_release_full(listener, listener_clear);
    return G_SOURCE_CONTINUE;
}

static GSocket *
socket_open(const char *address, uint16_t port, GError **error)
{
    g_autoptr(GSocketAddress) bound = g_inet_socket_address_new_from_string(address, port);

    if (!bound) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "listen address '%s' is not a numeric IPv4 or IPv6 address", address);
        return NULL;
    }

    g_autoptr(GSocket) socket = g_socket_new(g_socket_address_get_family(bound),
                                             G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_TCP, error);

    if (!socket)
        return NULL;
    g_socket_set_blocking(socket, FALSE);
    g_socket_set_listen_backlog(socket, LISTEN_BACKLOG);
    if (!g_socket_bind(socket, bound, TRUE, error) || !g_socket_listen(socket, error)) {
        g_prefix_error(error, "cannot listen on %s port %u: ", address, port);
        return NULL;
    }
    return g_steal_pointer(&socket);
}

PeerListener *
peer_listener_new(const char *address, uint16_t port, const PeerListenerHandlers *handlers,
                  gpointer user_data, GError **error)
{
    GSocket *socket = socket_open(address, port, error);

    if (!socket)
        return NULL;

    PeerListener *listener = g_rc_box_new0(PeerListener);

    listener->handlers = handlers;
    listener->user_data = user_data;
    listener->context = g_main_context_ref_thread_default();
    listener->socket = socket;
    listen_start(listener);
    return listener;
}

void
peer_listener_free(PeerListener *listener)
{
    if (!listener)
        return;
    listener->freed = true;
    source_clear(&listener->source);
    (void)g_socket_close(listener->socket, NULL);
    g_clear_object(&listener->socket);
    g_rc_box_release_full(listener, listener_clear);
}
