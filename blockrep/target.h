/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target.h - one replicated disk on the secondary: commands, failover commit, status */
#pragma once

#include "journal.h"
#include "layers.h"

/*
 * All calls: any thread; they block up to their deadline (clock_now_ns()). Requests go to
 * target_layers(), flushes to target_flush().
 */
typedef struct Target Target;

#define TARGET_ERROR (target_error_quark())
GQuark target_error_quark(void);

typedef enum TargetError {
    TARGET_ERROR_REFUSED, /* this mode, generation or epoch does not allow it */
    TARGET_ERROR_FAILED,  /* tried; the text begins with the name of the fault */
    TARGET_ERROR_TIMEOUT, /* the deadline has passed; what was begun may go on */
} TargetError;

/**
 * Takes @layers and @journal. @meta: what the journal holds; if it names a commit, the overlays
 * hold its blocks. The mode follows from it.
 */
Target *target_new(Layers *layers, Journal *journal, const DiskMeta *meta);
/** After target_stop(). Frees what target_new() and target_take_map() were given. */
void target_free(Target *target);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Target, target_free)

/**
 * Takes @map, before target_start(): blocks that a failover or the survivor's guest changes are
 * marked there, and `mirror` clears it. Without one, nothing is.
 */
void target_take_map(Target *target, DirtyMap *map);
/** Borrowed; NULL: none was given. */
DirtyMap *target_map(Target *target);

/** Starts the thread that commits; a commit that was begun in an earlier life goes on. */
void target_start(Target *target);
/** Ends it, between two pieces, and every waiting call. No requests may follow. */
void target_stop(Target *target);

/** Borrowed: where requests go. */
Layers *target_layers(Target *target);

/** As layers_flush(); while a commit is under way it waits until the failover itself is durable. */
int target_flush(Target *target, Side side, Fault *ret_fault);

/*
 * The commands: target-fsm.h says which are allowed when. Errors: TARGET_ERROR.
 */

/** A primary of @generation may begin to copy its disk here. */
gboolean target_sync(Target *target, uint64_t generation, int64_t deadline_ns, GError **error);
/** The copy is complete: the disk is that of @generation, and SVM starts at @epoch. */
gboolean target_mirror(Target *target, uint64_t generation, uint64_t epoch, int64_t deadline_ns,
                       GError **error);
/** Checkpoint @epoch: empties both overlays, so that SVM sees what was mirrored. */
gboolean target_checkpoint(Target *target, uint64_t epoch, int64_t deadline_ns, GError **error);
/** Mirrored writes that had arrived are applied; @durable: and stable on the medium. */
gboolean target_barrier(Target *target, gboolean durable, int64_t deadline_ns, GError **error);
/** Begins (or, after a failure, begins again): target_start()'s thread does the work. */
gboolean target_failover(Target *target, uint64_t generation, int64_t deadline_ns, GError **error);
/** Waits until the failover is durable or wholly committed. */
gboolean target_wait_commit(Target *target, gboolean durable, int64_t deadline_ns, GError **error);

/** The work of a commit, in the calling thread (the module's own, or a test without one). */
gboolean target_commit(Target *target, GError **error);

typedef enum CommitPhase {
    COMMIT_NONE,
    COMMIT_BEGUN,   /* not durable yet */
    COMMIT_DURABLE, /* a crash does not undo it; blocks are being copied */
    COMMIT_FAILED,
    COMMIT_DONE,
    COMMIT_PHASE_COUNT,
} CommitPhase;

const char *commit_phase_name(CommitPhase phase); /* "none", "begun", "durable", ... */

typedef struct TargetStatus {
    TargetMode mode;
    DiskMeta meta;
    CommitPhase phase;
    Fault stale;
    uint64_t change; /* counts modes, phases, faults and high-water marks */
    gboolean high_water;
    gboolean durable_overlays;
    uint64_t used_bytes[2], limit_bytes[2], peak_bytes[2]; /* hidden, active */
    uint64_t commit_done_blocks, commit_all_blocks;
    uint64_t checkpoint_last_us, checkpoint_max_us; /* waiting for requests and emptying */
    char failure[256];                              /* of the last commit, if it failed */
    LayersCounters counters;
} TargetStatus;

/** A snapshot; does not wait for commands under way. */
void target_status(Target *target, TargetStatus *ret_status);
/** Waits until `change` is not @after, or the deadline. */
void target_wait_change(Target *target, uint64_t after, int64_t deadline_ns);
