/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy.h - the network data plane of one running VM: guest ports, LAN taps, held output */
#pragma once

#include <glib.h>

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A Proxy lives as long as the QEMU process whose NICs it serves. It has one thread of its own,
 * which alone touches frames. Every function below is called from one other thread (the "control
 * thread"), and every callback runs there, in the main context current in proxy_new(). Commands are
 * carried out in the order in which they were given.
 */
typedef struct Proxy Proxy;

#define PROXY_ERROR (proxy_error_quark())
GQuark proxy_error_quark(void);

typedef enum ProxyError {
    PROXY_ERROR_SETUP, /* tap, namespace, bridge or socket could not be made; the text says which
                        * and what to do */
    PROXY_ERROR_PORT,  /* a port broke while running */
} ProxyError;

typedef enum ProxyPortKind {
    PROXY_PORT_TAP,    /* private tap in a namespace of its own + packet socket with vnet header */
    PROXY_PORT_STREAM, /* QEMU `-netdev stream` on a UNIX socket */
} ProxyPortKind;

typedef struct ProxyNic {
    const char *name; /* "nic0": for logs and statistics */
    uint8_t mac[6];   /* the guest's */
    ProxyPortKind port;
    const char *bridge;      /* LAN bridge of the host; must exist */
    const char *lan_tap;     /* name of the LAN tap to make, < IFNAMSIZ */
    const char *stream_path; /* PROXY_PORT_STREAM: QEMU's listening socket */
} ProxyNic;

enum { PROXY_MAX_NICS = 8, PROXY_MAX_ADDRESSES = 16 };

typedef struct ProxyConfig {
    ProxyNic nics[PROXY_MAX_NICS]; /* copied, the strings too */
    unsigned n_nics;
    gsize hold_max_bytes; /* bound of held egress per NIC, allocated at once; at least 1 MiB */
} ProxyConfig;

/* What becomes of the guest's output. */
typedef enum ProxyEgress {
    PROXY_EGRESS_DROP, /* counted and dropped: a secondary, a fenced host; the start state */
    PROXY_EGRESS_KEEP, /* a standby: queued in case it takes over (OPEN releases it); setting KEEP
                        * again forgets it, because a checkpoint has replaced the state that it came
                        * from */
    PROXY_EGRESS_HOLD, /* queued until proxy_release() covers it */
    PROXY_EGRESS_OPEN, /* to the LAN at once */
} ProxyEgress;

typedef struct ProxyStats {
    guint64 held_frames, held_bytes;       /* now */
    guint64 held_bytes_peak;               /* since start */
    guint64 egress_frames, egress_bytes;   /* released to the LAN */
    guint64 ingress_frames, ingress_bytes; /* given to the guest */
    guint64 dropped_frames;                /* by PROXY_EGRESS_DROP */
    guint64 lost_frames;              /* by a full packet socket, tap or stream: not on purpose */
    guint64 hold_us_p50, hold_us_p99; /* of released frames, over the last 10,000 or so */
} ProxyStats;

typedef struct ProxyHandlers {
    /* Held bytes of a NIC passed 3/4 of the bound: a checkpoint is wanted. Once until the next
     * release. */
    void (*hold_high)(Proxy *proxy, gpointer user_data);
    /* The packet socket's drop counter moved: @frames of the guest's output are lost. At most every
     * 100 ms. */
    void (*lost)(Proxy *proxy, guint64 frames, gpointer user_data);
    /* A port or LAN tap broke (stream closed by QEMU, tap deleted). Once per NIC. */
    void (*broken)(Proxy *proxy, const GError *reason, gpointer user_data);
} ProxyHandlers;

typedef void (*ProxyDoneFunc)(Proxy *proxy, gpointer user_data);

/**
 * Makes LAN taps (on their bridges) and, for tap ports, private taps, and starts the thread: egress
 * is PROXY_EGRESS_DROP, ingress off.
 *
 * @adopt_fds: NULL, or for each NIC a descriptor (borrowed) of the tap that a running QEMU already
 * uses: the private tap's namespace is then found through it instead of being made (SIOCGSKNS).
 * Needs CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_NET_RAW. Errors: PROXY_ERROR_SETUP.
 */
Proxy *proxy_new(const ProxyConfig *config, const int *adopt_fds, const ProxyHandlers *handlers,
                 gpointer user_data, GError **error);

/** Stops the thread (bounded: it never blocks), drops what is held, removes taps. NULL is fine. */
void proxy_free(Proxy *proxy);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Proxy, proxy_free)

/**
 * The private tap's descriptor for QEMU (`-netdev tap,fd=N,vhost=off`; QEMU finds the virtio-net
 * header out by itself and refuses vnet_hdr= with fd=), handed to the caller; the
 * proxy keeps none, so the tap lives exactly as long as QEMU. -1 for a stream port, or if taken
 * before.
 */
int proxy_take_guest_fd(Proxy *proxy, unsigned nic);

/** Stream ports: connect to QEMU's sockets (they exist once QMP answers). Others: nothing to do. */
gboolean proxy_connect_ports(Proxy *proxy, GError **error);

/**
 * Changes what becomes of egress; @done runs when it is in force and all that the guest had sent
 * before has been treated by the old rule.
 *
 * HOLD to OPEN: everything held is released first, in order. HOLD to DROP: it is dropped.
 */
void proxy_set_egress(Proxy *proxy, ProxyEgress egress, ProxyDoneFunc done, gpointer user_data);

/** Feeds LAN frames to the guest, or leaves them in the LAN tap's queue; while egress is
 * PROXY_EGRESS_DROP or KEEP too they are thrown away: a guest must not be fed hours-old frames at a
 * failover. @done: in force. NULL is fine. */
void proxy_set_ingress(Proxy *proxy, bool flowing, ProxyDoneFunc done, gpointer user_data);

/** Drains the guest ports, then marks the queue: all up to here is covered by checkpoint @epoch. */
void proxy_mark(Proxy *proxy, guint64 epoch, ProxyDoneFunc done, gpointer user_data);

/**
 * Releases everything up to the mark of @epoch to the LAN, in order.
 *
 * @lease_ns: CLOCK_MONOTONIC; if the thread gets to it later than this (0: no limit), nothing is
 * released and @refused runs instead: the host may have been frozen and replaced meanwhile.
 */
void proxy_release(Proxy *proxy, guint64 epoch, int64_t lease_ns, ProxyDoneFunc refused,
                   gpointer user_data);

/** Sends RARP, gratuitous ARP and unsolicited neighbour advertisements for the guests' MACs and
 * known addresses, now and three more times within 0.5 s. */
void proxy_announce(Proxy *proxy);

/* Addresses the guest used, learned from its own ARP, ND, IPv4 and IPv6 frames. */
typedef struct ProxyAddress {
    unsigned nic;
    bool ipv6;
    uint8_t bytes[16]; /* network order; the first 4 for IPv4 */
} ProxyAddress;

/** Copies at most PROXY_MAX_ADDRESSES into @ret_addresses; returns how many. */
unsigned proxy_get_addresses(Proxy *proxy, ProxyAddress *ret_addresses);
/** Adds addresses that the peer learned; bounded, duplicates are ignored. */
void proxy_add_address(Proxy *proxy, const ProxyAddress *address);

/** A snapshot over all NICs. */
void proxy_get_stats(Proxy *proxy, ProxyStats *ret_stats);
