/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-private.h - what forward.c, its commands, its connection and its copy share
 *
 * Theory of operation. A guest's request is marked, put into the window and answered by the thread
 * it came in; one thread per connection (forward-link.c) sends what is in the window, and one more
 * (forward-copy.c) reads from the disk what the peer lacks. Both live from `connect` until the
 * connection is lost or given up. Commands run in the control's threads, one at a time (`busy`).
 * The mutex is never held over I/O; the guest's requests wait for it and for room only.
 *
 * What may differ at the peer. `map` has it for whoever comes after us, `lacking` for this
 * connection: the chunks of the map when it began, less those copied. A guest's write is queued,
 * whatever chunk it is in. In a chunk that is lacking its sectors are put down in `mask` too,
 * because the disk may not have them when the copy reads it (QEMU writes there at the same time):
 * the copy leaves them out. What the guest had been told before the connection began is on the disk
 * a while later, at most SETTLED_NS: chunks written so shortly before are copied after that.
 *
 * When may a chunk be unmarked? A write takes it out of `confirmed` and `flushing`; the last
 * confirmation in it puts it into `confirmed`. While syncing any flush of the peer's disk covers
 * those that were in it before; while mirroring only those count that were in it when a barrier was
 * through, and the flush comes after the release. Then the map's bits are cleared.
 */
#pragma once

#include "chunk-set.h"
#include "clock.h"
#include "dirty-map.h"
#include "forward.h"
#include "journal.h"
#include "nbd-peer.h"
#include "sector-mask.h"
#include "store.h"
#include "verify.h"

#include <pthread.h>

#define SETTLED_NS (INT64_C(5) * NS_PER_S)
#define SETTLE_EVERY_NS (INT64_C(1) * NS_PER_S)

/* While mirroring, what the guest writes within so long after something was sent is sent together:
 * each wake-up of the thread that sends takes time from the guest. A barrier does not wait for it.
 */
#define LINGER_NS (INT64_C(2) * NS_PER_MS)
enum { LINGER_ENTRIES = 32, LINGER_BYTES = 256 * 1024 };

enum { COPY_JOBS = 8 };

typedef enum CopyState { COPY_FREE, COPY_READING, COPY_READY, COPY_SENT } CopyState;

/* A chunk under way from the disk to the peer. */
typedef struct CopyJob {
    Forward *forward;
    CopyState state;
    ForwardEntry *reserved; /* keeps the guest's writes behind it */
    uint64_t chunk, len;
    uint64_t n_following; /* chunks behind it that will be copied too */
    uint8_t *buf;         /* CHUNK_BYTES */
    struct {
        uint64_t offset, len;
        bool is_zero;
    } runs[SECTORS_PER_CHUNK / 2 + 1];
    unsigned n_runs, n_sent, n_done;
    int r; /* of the first that failed */
} CopyJob;

typedef enum SettlePhase {
    SETTLE_IDLE,
    SETTLE_BARRIER, /* `flushing` has what a barrier covers: the flush waits for the release */
    SETTLE_WANTED,
    SETTLE_SENT,
} SettlePhase;

typedef struct Done {
    ForwardEntry *entry; /* of the queue, or NULL: a copy's run, or the flush */
    CopyJob *job;
    int r;
} Done;

/* What a request's callback is given. */
typedef struct Ticket {
    Forward *forward;
    Done done;
    bool is_used;
} Ticket;

typedef struct Digests Digests; /* the copy's thread's: the peer's, and the connection for them */

struct Forward {
    uint64_t size_bytes;
    Store *store; /* of the disk, to read */
    char *disk, *meta_path, *run_dir, *tls_ca, *tls_cert, *tls_key;
    int64_t request_timeout_ns;
    Journal *journal;
    DirtyMap *map;
    int wake_fd; /* for the connection's thread */
    int stop_fd; /* readable: whoever waits for the peer gives up */

    pthread_mutex_t mutex; /* all below */
    pthread_cond_t changed;
    pthread_cond_t room; /* in the window */
    bool busy, stopping;
    bool is_connecting; /* a command is: stop_fd interrupts it */
    ForwardMode mode;
    DiskMeta meta;
    Fault fault;
    char fault_text[256];
    uint64_t change, epoch, requests, sent_requests, flushes;
    bool is_barrier; /* holding since `barrier` (else since `finish`) */
    ForwardQueue *queue;
    ChunkSet *confirmed, *flushing;
    SettlePhase settle;
    int64_t settled_ns;  /* when the last flush was done */
    ChunkSet *recent[2]; /* written a while before now; [0] is the newer half */
    int64_t recent_ns;

    /* The connection. */
    bool has_threads; /* to be joined */
    bool is_connected;
    bool link_waits;       /* its thread sleeps: wake it */
    int64_t link_wakes_ns; /* by itself, then */
    int64_t sent_ns;       /* when it sent something last */
    pthread_t link_thread, copy_thread;
    NbdPeer *peer; /* the thread's own */
    Ticket tickets[NBD_PEER_MAX_REQUESTS];
    Done done[NBD_PEER_MAX_REQUESTS];
    unsigned n_done;

    /* The copy. */
    ChunkSet *lacking, *delayed; /* delayed: until `delayed_until_ns` */
    int64_t delayed_until_ns;
    bool delayed_recent; /* it has only what was written before the connection began */
    int64_t connected_ns, synced_ns;
    SectorMask *mask;
    CopyJob jobs[COPY_JOBS];
    char *peer_host; /* of the connection; constant while it lasts */
    uint16_t peer_port;
    bool has_read; /* the page cache has of the disk what the copy or a comparison read */
    bool compare;  /* chunks are marked for want of knowledge: compare before they are sent */
    bool finishing, synced;
    uint64_t cursor, rate_limit, copied_bytes, sent_bytes, equal_bytes, rate_bytes_s;
    int64_t rate_ns, copy_not_before_ns; /* rate: since when; limit: until when it has to wait */
    uint64_t rate_from_bytes;

    Verify *verify;    /* the last, or NULL */
    bool is_verifying; /* it is at work */
};

void forward_lock(Forward *forward);
void forward_unlock(Forward *forward);
/** With the lock held. False: the deadline has passed, or everything stops. */
bool forward_wait(Forward *forward, int64_t deadline_ns);
/** With the lock held: something that status shows has changed. */
void forward_changed(Forward *forward);
/** With the lock held: the connection's thread has something to do. */
void forward_wake(Forward *forward);
/** With the lock held: when it is to send what waits; 0: at once. INT64_MAX: nothing waits. */
int64_t forward_send_ns(const Forward *forward);
ForwardFacts forward_facts(const Forward *forward, uint64_t generation, bool first);

/** With the lock held: puts down that the range was written lately. */
void forward_note_recent(Forward *forward, uint64_t offset, uint64_t len);
/** With the lock held: what was written within SETTLED_NS, into @set. */
void forward_recent_into(Forward *forward, ChunkSet *set);

/** With the lock held: the peer is lost, or given up (FAULT_NONE); the mode is alone. */
void forward_lose(Forward *forward, Fault fault, const char *text);

/** Starts both threads; they own @peer. With the lock held. */
void forward_link_start(Forward *forward, NbdPeer *peer);
/** Ends and joins them; the window is empty then. Without the lock. */
void forward_link_stop(Forward *forward);
/** What is confirmed may be unmarked after the next flush, if no other one is under way. With the
 * lock held. True: forward->flushing has it. */
bool forward_settle(Forward *forward);

/** A connection to one of the peer's exports. Without the lock. */
NbdPeer *forward_open_export(Forward *forward, const char *host, uint16_t port,
                             const char *export_name, int64_t deadline_ns, GError **error);
/** Reads from this host's disk. Negative errno. */
int forward_read_disk(Forward *forward, uint8_t *buf, uint64_t len, uint64_t offset);

Digests *digests_new(void);
void digests_free(Digests *digests);
void digests_close(Digests *digests);
/** What the job has read is what the peer has. Without the lock. */
bool digests_equal(Forward *forward, Digests *digests, const CopyJob *job);
/** One step, if there is one. False: not now; *@ret_when_ns may have been set. With the lock held,
 * which it leaves for a while. */
bool forward_verify_some(Forward *forward, Digests *digests, int64_t *ret_when_ns);

void *forward_copy_run(void *forward);
/** A run of @job is confirmed. With the lock held. */
void forward_copy_done(Forward *forward, CopyJob *job);
/** Something in the range was confirmed: puts its chunks into `confirmed`, if the peer has all of
 * them and nothing more is on its way. With the lock held. */
void forward_confirm(Forward *forward, uint64_t offset, uint64_t len);
/** The next run to be sent, or NULL. With the lock held. */
CopyJob *forward_copy_next(Forward *forward, unsigned *ret_run);
/** Forgets jobs of a connection that is gone. With the lock held. */
void forward_copy_reset(Forward *forward);
