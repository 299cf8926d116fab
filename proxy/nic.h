/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nic.h - the data path of one NIC: guest port, hold queue, LAN tap, lock-stepping. Proxy thread
 * only. */
#pragma once

#include <pthread.h>

#include "addresses.h"
#include "counter.h"
#include "histogram.h"
#include "hold-queue.h"
#include "lockstep.h"
#include "port.h"
#include "proxy.h"

/* The addresses of all NICs, shared with the control thread. */
typedef struct AddressBook {
    pthread_mutex_t lock;
    AddressTable table;
} AddressBook;

/* What the control thread is to be told; the proxy thread fetches and clears it. */
typedef struct NicNews {
    bool hold_high;
    guint64 lost;
    bool broken;
    bool broken_lan; /* the LAN tap, not the guest port */
    int broken_errno;
    ProxyDivergence divergence; /* count 0: none */
} NicNews;

struct Nic {
    ProxyNic config; /* strings owned */
    unsigned index;
    gsize hold_max_bytes;
    AddressBook *book;
    Port *port; /* NULL: stream not connected yet */
    int lan_fd, lan_ifindex;
    HoldQueue *queue;

    ProxyEgress egress;
    bool ingress_on;
    bool port_broken, lan_broken, told_broken;

    bool port_readable; /* reading may give something */
    bool lan_readable;
    bool lan_blocked;     /* writing gave EAGAIN */
    bool ingress_stalled; /* the port did not take the frame offered last */
    int64_t ingress_retry_ns;
    int64_t ingress_backoff_ns;
    size_t ingress_len; /* 0: none under way */
    uint8_t *ingress;

    int64_t ingress_given_ns; /* when the guest was given a frame last */
    bool deaf;                /* it did not take what it was given before the last checkpoint */
    int64_t batch_ns;
    AddressSighting last_source[2]; /* by family: most frames come from the same address */
    bool told_high;
    bool lost_due;
    int64_t lost_next_ns;
    NicNews news;

    uint32_t port_events, lan_events; /* registered with epoll */

    Counter egress_frames, egress_bytes, ingress_frames, ingress_bytes, dropped, lost;
    Histogram hold_us;

    Lockstep *lockstep; /* NULL: buffered mode only */
    NicLockstep ls;
};

/** Frames can be sent to the peer, as far as peer_stream_room() allows. */
static inline bool
nic_has_peer(const Nic *nic)
{
    return nic->lockstep && peer_stream_is_usable(&nic->lockstep->peer);
}

/** This VM took over: the rewriter is between it and the LAN. */
static inline bool
nic_is_rewritten(const Nic *nic)
{
    return nic->lockstep && nic->lockstep->rewriting;
}

/** Reads what the guest sent, at most a slice, and treats it by the rule in force. */
void nic_read(Nic *nic);
/** Reads all that the guest has sent up to now (until the hold queue is full). */
void nic_drain(Nic *nic);
/** Writes released frames to the LAN, at most a slice. */
void nic_flush(Nic *nic);
/** Passes LAN frames to the guest, at most a slice, if they flow. */
void nic_pump(Nic *nic, int64_t now_ns);
/** Looks for lost frames, at most every 100 ms. */
void nic_check_lost(Nic *nic, int64_t now_ns);

/** The rule for what the guest sends from now on; the caller has drained. *@engine: for COMPARE, a
 * new engine; on return one to be freed (by another thread), or NULL. */
void nic_set_egress(Nic *nic, ProxyEgress egress, Compare **engine);
void nic_release(Nic *nic, guint64 epoch);

/** Appends to the hold queue what the guest said, as the LAN is to see it. */
void nic_enqueue(Nic *nic, const uint8_t *frame, size_t len, int64_t arrived_ns);
/** Offers the guest a frame. False: not now (or never: the port is broken). True: it is done with.
 */
bool nic_give(Nic *nic, const uint8_t *frame, size_t len, int64_t now_ns);

void nic_fail_port(Nic *nic, int err);
void nic_fail_lan(Nic *nic, int err);

/* What nic wants to be called for. */
bool nic_wants_port_input(const Nic *nic);
bool nic_wants_lan_input(const Nic *nic);
bool nic_has_released(const Nic *nic);
/** Something can be done without waiting for a descriptor. */
bool nic_is_runnable(const Nic *nic);
