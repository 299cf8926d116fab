/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lockstep.h - what lock-stepping adds to a proxy and to each of its NICs. Proxy thread only, but
 * for what says otherwise. */
#pragma once

#include <pthread.h>

#include "counter.h"
#include "hold-queue.h"
#include "peer-stream.h"
#include "proxy.h"
#include "rewriter-store.h"

typedef struct Nic Nic;

/* The last divergences, for whoever asks why. Both threads. */
typedef struct DivergenceBook {
    pthread_mutex_t lock;
    DivergenceRing *ring;
} DivergenceBook;

enum { KEPT_LAYERS = 2 }; /* @rewriter, @inherited */

/* Of a proxy, shared by its NICs. */
typedef struct Lockstep {
    PeerStream peer;
    uint64_t epoch;      /* committed last */
    uint64_t next_epoch; /* of what the guest says now: @epoch + 1 between mark and commit */
    bool paused;         /* SHADOW: the guest stands */
    _Atomic int64_t lease_until_ns; /* both threads */
    unsigned lose[PROXY_N_LOSSES];
    bool losing;           /* any of them */
    bool mirrored_in_turn; /* a frame went to the peer in this turn of the loop */
    DivergenceBook book;
    CompareConfig compare;
    Rewriter *rewriter; /* one for all NICs: a connection may come in by one and leave by another */
    bool rewriting;     /* this VM took over: the rewriters sit between it and the LAN */
    /* Connections that takeovers before this pair left with other numbers, see inherit.c. */
    Rewriter *inherited;
    RewriterStore *stores[KEPT_LAYERS]; /* what the two know, see keep.c; or NULL */
    ProxyKept kept;                     /* constant once the thread runs */
    bool legacy_due;                    /* primary: some have not been said to the peer */
    bool legacy_told; /* primary: the peer is told what is learned of them later */
    unsigned legacy_layer;
    uint32_t legacy_cursor;
    DigestKey digest_key; /* primary: of this daemon's life */
    bool digest_key_due;  /* primary: it has not been said to the peer */
    DigestKey peer_key;   /* secondary: the primary's */
    bool has_peer_key;    /* since the channel began */
    Counter ignored, test_lost, connections, untracked, unsaved;
} Lockstep;

/* Of a NIC. */
typedef struct NicLockstep {
    Compare *engine;      /* COMPARE only */
    HoldQueue *stage;     /* what the guest sent, not yet taken by the engine; stamp: arrival */
    HoldQueue *inbox;     /* ingress copies that the guest has not taken; stamp: epoch */
    bool mirrored;        /* the ingress frame under way has been copied to the peer */
    bool inbox_rewritten; /* the first of @inbox has been through the rewriter */
    /* SHADOW: so many large frames go whole, as digests were not enough lately; how many the next
     * time; how many digests have gone since. */
    unsigned whole_left, whole_next, digests_since;
    bool held_before;   /* COMPARE came from HOLD: frames before it wait for a commit */
    uint64_t held_last; /* the number of the last of them */
    bool lease_wait;    /* released output waits for the lease */
    bool touched;       /* the engine was called: its figures are to be published */
    int64_t tick_next_ns, tick_ns;

    Counter mirrored_frames, mirrored_bytes, unmirrored, shadow_frames, shadow_unsent;
    Counter forgotten, duplicates, lease_waits;
    /* The engine's figures, for the control thread. */
    Counter compared[2], released[COMPARE_N_WHYS], divergences[COMPARE_N_RULES], stale[2];
    Counter refusals, windows_lowered, digests, wanted, engine_bytes, engine_frames[2], oldest_ns;
} NicLockstep;

enum {
    LOCKSTEP_STAGE_BYTES = 4 << 20, /* a batch of the largest frames fits */
    LOCKSTEP_INBOX_BYTES = 4 << 20,
    LOCKSTEP_RECORDS = 64,
};

/** Allocate and free; control thread, while the proxy thread does not run. 0 or a negative errno.
 */
int lockstep_init(Lockstep *lockstep, const ProxyConfig *config, bool adopted);
void lockstep_clear(Lockstep *lockstep);
int nic_lockstep_init(Nic *nic, Lockstep *lockstep);
void nic_lockstep_clear(Nic *nic);

/** A new engine for a NIC; any thread. Aborts without memory, as GLib does. */
Compare *lockstep_new_engine(const Lockstep *lockstep, const CompareOps *ops, Nic *nic);

static inline bool
lockstep_has_lease(const Lockstep *lockstep, int64_t now_ns)
{
    return now_ns <= atomic_load_explicit(&lockstep->lease_until_ns, memory_order_relaxed);
}

/** Whether a test wants a frame lost here; counts it. */
bool lockstep_loses(Lockstep *lockstep, ProxyLoss which);

/** Takes frames out of the channel and to the NICs, at most a slice. True: there may be more that
 * could be taken now. */
bool lockstep_dispatch(Lockstep *lockstep, Nic *nics, unsigned n_nics, int64_t now_ns);

/** Publishes the rewriter's figures. */
void lockstep_publish(Lockstep *lockstep);

/* redirector.c: the primary. */

/** The engine's callbacks; their opaque is the Nic. */
extern const CompareOps redirector_ops;

/** A guest's frame on its way to the engine. @frame may be a slot of the stage. */
void redirector_take(Nic *nic, const uint8_t *frame, size_t len);
/** Gives the engine what is staged. */
void redirector_feed(Nic *nic);
/** The peer's frames; returns how many of @n were taken, the others are to be offered again. */
size_t redirector_take_peer(Nic *nic, const WireFrame *frames, size_t n, int64_t now_ns);
/** What counts against the bound: held in the engine and queued behind it. */
uint64_t redirector_held_bytes(const Nic *nic);
/** More of @side can be taken in; if not, it is left with its source. */
bool redirector_wants(const Nic *nic, CompareSide side);
void redirector_tick(Nic *nic, int64_t now_ns);
int64_t redirector_deadline_ns(const Nic *nic);
/** Into and out of COMPARE; the engine that is ended is the caller's to free. */
void redirector_begin(Nic *nic, Compare *engine, int64_t now_ns);
Compare *redirector_end(Nic *nic, ProxyEgress next, int64_t now_ns);
void redirector_mark(Nic *nic, uint64_t epoch);
void redirector_release(Nic *nic, uint64_t epoch, int64_t now_ns);
/** Copies the ingress frame under way to the peer. False: it must wait. */
bool redirector_mirror(Nic *nic);
/** What was still staged when comparing ended goes where the guest's output goes now. */
void redirector_unstage(Nic *nic);
/** Publishes the engine's figures. */
void redirector_publish(Nic *nic);

/** The engine needs the whole of a segment of which it has digests; a CompareWantFunc. */
void redirector_want(void *opaque, uint64_t cookie);

/* shadow.c: the secondary. */

/** A guest's frame on its way to the peer; @frame may be a slot of the hold queue. */
void shadow_take(Nic *nic, const uint8_t *frame, size_t len);
/** An ingress copy. False: there is no room, it is to be offered again. */
bool shadow_take_peer(Nic *nic, const WireFrame *frame);
/** Sends a frame that the peer has digests of, if it is still kept. */
void shadow_resend(Nic *nic, uint64_t number);
/** Gives the guest what is due, at most a slice. */
void shadow_pump(Nic *nic, int64_t now_ns);
/** shadow_pump() could do something now. */
bool shadow_has_due(const Nic *nic);
void shadow_commit(Nic *nic);
/** The rewriter knows already that this VM goes on alone. */
void shadow_takeover(Nic *nic, int64_t now_ns);
void shadow_drop(Nic *nic);
