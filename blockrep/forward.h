/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward.h - one replicated disk on the host whose guest writes: requests, commands, status */
#pragma once

#include "disk-meta.h"
#include "fault.h"
#include "forward-fsm.h"
#include "forward-queue.h"
#include "verify.h"

/* All calls: any thread; commands block up to their deadline (clock_now_ns()). */
typedef struct Forward Forward;

#define FORWARD_ERROR (forward_error_quark())
GQuark forward_error_quark(void);

typedef enum ForwardError {
    FORWARD_ERROR_REFUSED, /* this mode, generation or epoch does not allow it */
    FORWARD_ERROR_FAILED,  /* tried; the text begins with the name of the fault */
    FORWARD_ERROR_TIMEOUT, /* the deadline has passed; what was begun may go on */
} ForwardError;

#define FORWARD_DEFAULT_LIMIT_BYTES (UINT64_C(64) << 20)
enum { FORWARD_DEFAULT_ENTRIES = 4096, FORWARD_DEFAULT_TIMEOUT_MS = 5000 };

/* Strings are copied. */
typedef struct ForwardConfig {
    const char *disk, *metadata, *map;
    const char *run_dir;                     /* for what libnbd wants in a folder */
    const char *tls_ca, *tls_cert, *tls_key; /* NULL: peers are UNIX sockets */
    uint64_t limit_bytes;                    /* of the window */
    unsigned max_entries;
    int64_t request_timeout_ms; /* of a request at the peer */
} ForwardConfig;

/** Opens disk (to read) and map. The mode is idle. Errors: of open(2) and of the map; the text
 * names the file. */
Forward *forward_new(const ForwardConfig *config, GError **error);
/** Ends the connection and every waiting call. No requests may follow. */
void forward_stop(Forward *forward);
/** Stops; the map is closed. */
void forward_free(Forward *forward);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Forward, forward_free)

/** Of the disk. */
uint64_t forward_size_bytes(const Forward *forward);

/** A request of the guest: waits for room in the window, and never for the peer's answer. @data: of
 * FORWARD_WRITE. Inside the disk. */
void forward_change(Forward *forward, ForwardKind kind, uint64_t offset, uint64_t len,
                    const void *data);

/*
 * The commands: docs/block.md, "Control"; forward-fsm.h says which are allowed when. Errors:
 * FORWARD_ERROR.
 */

/** Without a peer, as @generation, from now on what the guest writes is marked in the map. @first:
 * also if the disk was never replicated. Ends a connection.
 */
gboolean forward_alone(Forward *forward, uint64_t generation, gboolean first, int64_t deadline_ns,
                       GError **error);
/** The same, of a process that takes another's place while the guest runs: all that is marked may
 * have been written a moment ago.
 */
gboolean forward_take_place(Forward *forward, uint64_t generation, int64_t deadline_ns,
                            GError **error);

typedef struct ForwardConnect {
    const char *host; /* as NbdPeerConfig */
    uint16_t port;
    uint64_t generation;
    uint64_t rate_limit_bytes_s; /* of the copy; 0: none */
} ForwardConnect;

/** Connects to the peer's target and begins to copy what it lacks; `synced` in the status tells
 * when little is left.
 */
gboolean forward_connect(Forward *forward, const ForwardConnect *order, int64_t deadline_ns,
                         GError **error);
/** The disk has all that the guest was told before the connection began. */
void forward_settled(Forward *forward);
/** The guest stands: copies the rest. Then both disks are equal; what the guest writes afterwards
 * is held until forward_release(). */
gboolean forward_finish(Forward *forward, int64_t deadline_ns, GError **error);
/** The guest stands at checkpoint @epoch: the peer has all that the guest was told is written.
 * What it writes afterwards is held until forward_release(). */
gboolean forward_barrier(Forward *forward, uint64_t epoch, int64_t deadline_ns, GError **error);
/** @epoch is committed (0: the pair is armed): what was held goes out. */
gboolean forward_release(Forward *forward, uint64_t epoch, int64_t deadline_ns, GError **error);
/** Begins to compare both disks, chunk by chunk, while the guest writes; the result is in the
 * status. */
gboolean forward_verify(Forward *forward, int64_t deadline_ns, GError **error);

typedef struct ForwardStatus {
    ForwardMode mode;
    DiskMeta meta;
    Fault fault; /* that ended the last connection */
    char fault_text[256];
    uint64_t change; /* counts modes, faults, synced, begins and ends of verifications */
    gboolean holding, synced;
    uint64_t epoch; /* of the last barrier */
    ForwardQueueStatus queue;
    uint64_t marked_bytes;            /* in the map */
    uint64_t sync_ms;                 /* of the last copy: until `synced`, or so far */
    uint64_t left_bytes;              /* the peer lacks: syncing */
    uint64_t copied_bytes;            /* looked at since `connect` */
    uint64_t sent_bytes;              /* of them */
    uint64_t equal_bytes;             /* the peer had them already */
    uint64_t rate_bytes_s;            /* of the copy */
    uint64_t requests, sent_requests; /* of the guest; to the peer */
    uint64_t flushes;
    gboolean has_verify;
    VerifyStatus verify; /* the last */
} ForwardStatus;

/** A snapshot; does not wait for commands under way. */
void forward_status(Forward *forward, ForwardStatus *ret_status);
/** Waits until `change` is not @after, or the deadline. */
void forward_wait_change(Forward *forward, uint64_t after, int64_t deadline_ns);
