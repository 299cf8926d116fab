/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy.h - the network data plane of one running VM: guest ports, LAN taps, held output, and the
 * two roles of lock-stepping (docs/lockstep.md) */
#pragma once

#include <glib.h>

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "compare.h"
#include "record.h"
#include "rewriter-store.h"

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
    PROXY_ERROR_PEER,  /* the frames channel ended or is malformed; the text says what */
} ProxyError;

typedef enum ProxyPortKind {
    PROXY_PORT_TAP,    /* private tap in a namespace of its own + packet socket with vnet header */
    PROXY_PORT_STREAM, /* QEMU `-netdev stream` on a UNIX socket */
} ProxyPortKind;

typedef struct ProxyNic {
    const char *name; /* "nic0": for logs and statistics */
    uint8_t mac[6];   /* the guest's */
    ProxyPortKind port;
    unsigned queues;         /* of the private tap, 1 … PROXY_MAX_QUEUES; 0 is 1 */
    const char *bridge;      /* LAN bridge of the host; must exist */
    const char *lan_tap;     /* name of the LAN tap to make, < IFNAMSIZ */
    const char *stream_path; /* PROXY_PORT_STREAM: QEMU's listening socket */
} ProxyNic;

enum { PROXY_MAX_NICS = 8, PROXY_MAX_QUEUES = 8, PROXY_MAX_ADDRESSES = 16 };

/* The life of a VM. */
typedef RewriterVm ProxyVm;

typedef struct ProxyConfig {
    ProxyNic nics[PROXY_MAX_NICS]; /* copied, the strings too */
    unsigned n_nics;
    gsize hold_max_bytes; /* bound of held egress per NIC, allocated at once; at least 1 MiB */

    /* Lock-stepping: PROXY_EGRESS_COMPARE and _SHADOW are used, so what they need is allocated. The
     * following count only then. */
    bool lockstep;
    CompareConfig compare; /* from compare_config_init(); memory bound and hash key are ours */
    guint32 rewriter_connections_max; /* 0: REWRITER_CONNECTIONS_DEFAULT */
    /* Files (and names beside them) in which the numbers of connections that are translated wait
     * for a daemon that adopts the VM; in a folder that is ours alone, on a tmpfs. NULL: none. */
    const char *connections_path;
    ProxyVm vm;      /* with adopt_fds: the VM; what the files say of another one is ignored */
    bool test_hooks; /* proxy_test_lose() does something */
} ProxyConfig;

/* What becomes of the guest's output. */
typedef enum ProxyEgress {
    PROXY_EGRESS_DROP, /* counted and dropped: a secondary, a fenced host; the start state */
    PROXY_EGRESS_KEEP, /* a standby: queued in case it takes over (OPEN releases it); setting KEEP
                        * again forgets it, because a checkpoint has replaced the state that it came
                        * from */
    PROXY_EGRESS_HOLD, /* queued until proxy_release() covers it */
    PROXY_EGRESS_OPEN, /* to the LAN at once */
    /* Lock-stepping. */
    PROXY_EGRESS_COMPARE, /* primary: to the LAN as soon as the peer's VM has said the same, or
                           * proxy_release() covers it; ingress is mirrored to the peer */
    PROXY_EGRESS_SHADOW,  /* secondary: to the peer for comparison; the newest is also kept, and
                           * leaves first if this side takes over (OPEN). The guest is fed with what
                           * the peer mirrors */
} ProxyEgress;

/* The way to the other host's proxy, used from the proxy thread only. Errors are negative errno,
 * -EAGAIN: not now. A write that gave -EAGAIN is repeated with the same bytes and count. */
typedef struct ProxyPeer {
    ssize_t (*read)(gpointer opaque, void *bytes, size_t len); /* 0: the end */
    ssize_t (*write)(gpointer opaque, const void *bytes, size_t len);
    /* What the last read() left behind may be more than @fd shows. NULL: it may always. */
    bool (*holds)(gpointer opaque);
    void (*close)(gpointer opaque); /* frees @opaque; the last call */
    int fd; /* readable: read() may give something; writable likewise. Borrowed until close() */
    gpointer opaque;
} ProxyPeer;

/* A divergence as news; proxy_foreach_divergence() has the frames. */
typedef struct ProxyDivergence {
    unsigned nic;
    CompareRule rule;
    FlowKey flow; /* see frame_key_format() */
    bool has_flow;
    guint32 offset;
    int64_t time_ns, waited_ns;
    guint64 epoch;
    guint64 count; /* divergences since the last news of this NIC; this is the first of them */
} ProxyDivergence;

/* Frames lost on purpose, for tests: where in the path. */
typedef enum ProxyLoss {
    PROXY_LOSE_AT_ENGINE,         /* primary: the peer's frame does not get to the engine */
    PROXY_LOSE_PRIMARY_EGRESS,    /* primary: the guest's frame does not get to the engine */
    PROXY_LOSE_RELEASE,           /* primary: a released frame does not get to the LAN */
    PROXY_LOSE_MIRROR,            /* primary: an ingress copy does not get to the peer */
    PROXY_LOSE_SECONDARY_INGRESS, /* secondary: a copy does not get to the rewriter */
    PROXY_LOSE_REWRITER_INGRESS,  /* secondary: the rewriter loses one to the guest */
    PROXY_LOSE_REWRITER_EGRESS,   /* secondary: the rewriter loses one of the guest's */
    PROXY_LOSE_SECONDARY_EGRESS,  /* secondary: the guest's frame does not get to the peer */
    PROXY_N_LOSSES,
} ProxyLoss;

typedef struct ProxyStats {
    guint64 held_frames, held_bytes;       /* now */
    guint64 held_bytes_peak;               /* since start */
    guint64 egress_frames, egress_bytes;   /* released to the LAN */
    guint64 ingress_frames, ingress_bytes; /* given to the guest */
    guint64 dropped_frames;                /* by PROXY_EGRESS_DROP */
    guint64 lost_frames;              /* by a full packet socket, tap or stream: not on purpose */
    guint64 hold_us_p50, hold_us_p99; /* of released frames, over the last 10,000 or so */

    /* Lock-stepping, primary. Of the engine that compares now: they begin anew at each arming. */
    guint64 mirrored_frames, mirrored_bytes; /* ingress copies given to the channel */
    guint64 unmirrored_frames;               /* fed to the guest while there was no peer */
    guint64 compared_frames[2];              /* taken in, by CompareSide */
    guint64 released[COMPARE_N_WHYS];
    guint64 divergences[COMPARE_N_RULES];
    guint64 stale[2];             /* of an epoch that is committed already, by CompareSide */
    guint64 windows_lowered;      /* of released frames: the secondary had less room */
    guint64 digests;              /* frames of the secondary that came as digests */
    guint64 digests_wanted;       /* of them, those that were asked for whole */
    guint64 engine_refused;       /* offers that met a bound: the frame waited */
    guint64 engine_bytes;         /* held, with bookkeeping */
    guint64 engine_frames[2];     /* held unmatched now, by CompareSide */
    guint64 lag_us;               /* how long the oldest unmatched frame has been waiting */
    guint64 lease_waits;          /* times that output waited for the lease */
    guint64 shadow_frames;        /* secondary: the guest's frames given to the channel */
    guint64 shadow_unsent;        /* the same, kept only: there was no channel */
    guint64 ingress_queued_bytes; /* secondary: copies that the guest has not taken */
    guint64 ingress_forgotten;    /* secondary: copies that a checkpoint has overtaken */
    guint64 ingress_duplicates;   /* frames that a checkpoint may have given to SVM twice */
    guint64 peer_queue_bytes;     /* waiting to be written to the channel */
    guint64 peer_gaps;            /* numbers missing in what the peer sent */
    guint64 peer_ignored;         /* the peer's frames that the present mode has no use for */
    guint64 test_lost;            /* by proxy_test_lose() */
    guint64 rewriter_connections; /* known to the rewriter now */
    guint64 rewriter_untracked;   /* connections that it could not translate */
    guint64 rewriter_unsaved;     /* times that one found no room in its file */
} ProxyStats;

/* What was found in the files of the daemon before. */
typedef struct ProxyKept {
    guint loaded, damaged; /* connections */
    char problem[512];     /* "", or what was ignored, or cannot be kept, and why */
} ProxyKept;

typedef struct ProxyHandlers {
    /* Held bytes of a NIC passed 3/4 of the bound: a checkpoint is wanted. Once until the next
     * release. */
    void (*hold_high)(Proxy *proxy, gpointer user_data);
    /* The packet socket's drop counter moved: @frames of the guest's output are lost. At most every
     * 100 ms. */
    void (*lost)(Proxy *proxy, guint64 frames, gpointer user_data);
    /* A port or LAN tap broke (stream closed by QEMU, tap deleted). Once per NIC. */
    void (*broken)(Proxy *proxy, const GError *reason, gpointer user_data);
    /* PROXY_EGRESS_COMPARE: the guests differ, or a bound is reached: a checkpoint is wanted. */
    void (*divergence)(Proxy *proxy, const ProxyDivergence *what, gpointer user_data);
    /* The channel given to proxy_attach_peer() ended (PROXY_ERROR_PEER). Once, and only for the one
     * attached last; nothing is compared any more. It stays attached, for what it said last. */
    void (*peer_lost)(Proxy *proxy, const GError *reason, gpointer user_data);
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

/** The VM that the ports are for was started: from now on the files are its own. */
void proxy_set_vm(Proxy *proxy, const ProxyVm *vm);
/** Borrowed; of proxy_new(). */
const ProxyKept *proxy_get_kept(const Proxy *proxy);
/** The VM is gone, and so are its files. No proxy uses them any more. */
void proxy_forget_connections(const char *connections_path);

/**
 * The descriptor of a queue of the private tap, for QEMU (`-netdev tap,fd=N,vhost=off`, or
 * `fds=N:M:…`; QEMU finds the virtio-net header out by itself and refuses vnet_hdr= with fd=),
 * handed to the caller; the proxy keeps none, so the tap lives exactly as long as QEMU. -1 for a
 * stream port, a queue that the NIC does not have, or if taken before.
 */
int proxy_take_guest_fd(Proxy *proxy, unsigned nic, unsigned queue);

/** Stream ports: connect to QEMU's sockets (they exist once QMP answers). Others: nothing to do. */
gboolean proxy_connect_ports(Proxy *proxy, GError **error);

/**
 * Changes what becomes of egress; @done runs when it is in force and all that the guest had sent
 * before has been treated by the old rule.
 *
 * HOLD or COMPARE to OPEN: everything held is released first, in order. To DROP: it is dropped.
 * COMPARE to HOLD and back, within one pair: what is held stays so until the next commit; best
 * between the commit and the guest's going on. COMPARE from any other mode is the arming: epoch 0
 * begins. SHADOW from any other mode likewise; SHADOW to OPEN is the takeover: the rewriter keeps
 * the connections it knows, what is kept leaves, queued ingress copies go to the guest before the
 * LAN's frames. A peer that is still attached then is ignored.
 */
void proxy_set_egress(Proxy *proxy, ProxyEgress egress, ProxyDoneFunc done, gpointer user_data);

/** Feeds LAN frames to the guest, or leaves them in the LAN tap's queue; while egress is
 * PROXY_EGRESS_DROP, KEEP or SHADOW too they are thrown away: a guest must not be fed hours-old
 * frames at a failover. @done: in force; in COMPARE also: what was under way to the guests has got
 * there, as far as that can be seen, or 1 ms has passed. NULL is fine. */
void proxy_set_ingress(Proxy *proxy, bool flowing, ProxyDoneFunc done, gpointer user_data);

/** Drains the guest ports, then marks the queue: all up to here is covered by checkpoint @epoch.
 * COMPARE: what the guest says and what is mirrored from here on is of @epoch. */
void proxy_mark(Proxy *proxy, guint64 epoch, ProxyDoneFunc done, gpointer user_data);

/**
 * Releases everything up to the mark of @epoch to the LAN, in order. COMPARE: the engine begins
 * @epoch; proxy_set_lease() rules when frames leave, @lease_ns and @refused are not used.
 *
 * @lease_ns: CLOCK_MONOTONIC; if the thread gets to it later than this (0: no limit), nothing is
 * released and @refused runs instead: the host may have been frozen and replaced meanwhile.
 */
void proxy_release(Proxy *proxy, guint64 epoch, int64_t lease_ns, ProxyDoneFunc refused,
                   gpointer user_data);

/* Lock-stepping. */

/** Uses @peer (copied) from now on, in place of the one before, which is closed. Frames are read
 * from it in COMPARE, HOLD and SHADOW only. */
void proxy_attach_peer(Proxy *proxy, const ProxyPeer *peer);
/** Closes the peer; nothing is compared any more. @done: it is closed. NULL is fine. */
void proxy_detach_peer(Proxy *proxy, ProxyDoneFunc done, gpointer user_data);

/** COMPARE: frames may leave until @until_ns (CLOCK_MONOTONIC; INT64_MAX: no limit). At first none
 * may. Looked at before each frame; cheap enough for every heartbeat. */
void proxy_set_lease(Proxy *proxy, int64_t until_ns);

/** SHADOW: the guest is about to stand (REQUEST). It is given nothing more; @done when it has taken
 * what it was given, or after a while: what QEMU reads while the guest stands it would give it
 * later, on top of a state that has seen it. Over with proxy_commit() or a takeover. */
void proxy_quiesce(Proxy *proxy, ProxyDoneFunc done, gpointer user_data);
/** SHADOW: the guest stands (REPLY). Drains its port: that was the old epoch; ingress copies wait
 * until proxy_commit(), or for the guest if the takeover comes. */
void proxy_pause(Proxy *proxy, ProxyDoneFunc done, gpointer user_data);
/** SHADOW: the guest is about to load checkpoint @epoch. The rewriter and what is kept begin anew,
 * copies of older epochs are forgotten, the guest's frames are of @epoch from now on. */
void proxy_commit(Proxy *proxy, guint64 epoch, ProxyDoneFunc done, gpointer user_data);

/** Calls @func with each of the last divergences, oldest first; the record is @func's to read. */
void proxy_foreach_divergence(Proxy *proxy,
                              void (*func)(const DivergenceRecord *record, gpointer user_data),
                              gpointer user_data);

/** With ProxyConfig.test_hooks: loses the next @n frames at that place. */
void proxy_test_lose(Proxy *proxy, ProxyLoss which, unsigned n);

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
