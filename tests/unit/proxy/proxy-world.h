/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-world.h - a bridge with a client in a network namespace of the test's own, and a fake QEMU
 */
#pragma once

#include "proxy.h"

/*
 * The guest's end is the tap descriptor from the proxy (or an accepted stream socket), used as QEMU
 * would. The client is a tap on the same bridge. Both speak in numbered frames of a private
 * ethertype; everything else is ignored.
 */
typedef struct World {
    Proxy *proxy;
    unsigned index;   /* of its bridge, client and LAN tap */
    ProxyConfig base; /* all but the NIC, of that the queues only */
    int client_fd;
    int guest_fd;                   /* tap, or accepted stream */
    int more_fds[PROXY_MAX_QUEUES]; /* of the tap's other queues, from 1 on; else -1 */
    int listen_fd;                  /* stream */
    char *stream_dir, *stream_path;
    int guest_header; /* bytes of virtio-net header on the guest's tap */
    unsigned n_done, n_refused, n_high, n_broken;
    guint64 n_lost;
    char *broken_text;
    unsigned n_divergences, n_peer_lost;
    ProxyDivergence divergence; /* the last */
    char *peer_text;
} World;

enum { WORLD_DEADLINE_MS = 5000, WORLD_TAP_HEADER = 10 };

/** Moves the calling thread into a new network namespace (exits loudly without the capabilities).
 */
void world_enter(void);

/** In a new namespace: bridge, client, proxy. */
void world_init(World *w, ProxyPortKind port, gsize hold_max_bytes);
/** One more in the same namespace; @base: see World. */
void world_open(World *w, unsigned index, ProxyPortKind port, const ProxyConfig *base);
void world_clear(World *w);
/** A proxy for the world's NIC; @adopt_fd or -1. */
Proxy *world_proxy(World *w, ProxyPortKind port, gsize hold_max_bytes, int adopt_fd);

void guest_send(World *w, guint32 number, size_t len);
/** An Ethernet frame as it is. */
void guest_send_raw(World *w, const guint8 *frame, size_t len);
void client_send(World *w, guint32 number, size_t len);
/** As guest_send(), from a queue of the tap. */
void guest_send_from(World *w, unsigned queue, guint32 number, size_t len);
/** As guest_recv() without waiting, from a queue of the tap. */
gint64 guest_recv_at(World *w, unsigned queue);
/** The next numbered frame, or -1 when none came within @wait_ms. */
gint64 guest_recv(World *w, int wait_ms);
gint64 client_recv(World *w, int wait_ms);
/** Frames of the numbers from @first to @last, of various lengths. */
void guest_send_range(World *w, guint32 first, guint32 last);
/** The client gets just those numbers next, in order. */
void client_expect(World *w, guint32 first, guint32 last);

void world_done(Proxy *proxy, gpointer world);
void world_refused(Proxy *proxy, gpointer world);
/* Each gives the command and runs the main loop until it is done. */
void world_egress(World *w, ProxyEgress egress);
void world_ingress(World *w, bool flowing);
void world_mark(World *w, guint64 epoch);
/** Runs the main loop until the counter is there. */
void world_until(const unsigned *counter, unsigned at_least);
/** Waits until so many frames are held. */
void world_until_held(World *w, guint64 frames);
void world_ioctl_name(unsigned long request, const char *name);
void world_delete_link(const char *name);
ProxyStats world_stats(const World *w);
/** Frames to the guest come whole and in order, and wait while ingress is paused. */
void world_check_ingress(World *w);
