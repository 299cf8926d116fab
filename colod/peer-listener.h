/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-listener.h - the port on which a host waits for its peer (internal to colod_peer) */
#pragma once

#include <gio/gio.h>

#include <stdint.h>

typedef struct PeerListener PeerListener;

/* Run in the main context current in peer_listener_new(); the listener may be freed from each. */
typedef struct PeerListenerHandlers {
    /* @socket: connected; closed when its last reference goes. */
    void (*incoming)(GSocket *socket, gpointer user_data);
    /* accept() failed, for example for want of descriptors. It is tried again after a while. */
    void (*failed)(const GError *reason, gpointer user_data);
} PeerListenerHandlers;

/**
 * @address: numeric IPv4 or IPv6. @handlers: borrowed, must outlive the listener.
 * Errors: G_IO_ERROR; the text names the address.
 */
PeerListener *peer_listener_new(const char *address, uint16_t port,
                                const PeerListenerHandlers *handlers, gpointer user_data,
                                GError **error);

/** Closes the port without callbacks. NULL is fine. */
void peer_listener_free(PeerListener *listener);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PeerListener, peer_listener_free)
