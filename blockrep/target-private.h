/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-private.h - what target.c and target-commit.c share */
#pragma once

#include "target.h"

#include <pthread.h>

struct Target {
    Layers *layers;
    Journal *journal;
    DirtyMap *map; /* or NULL */

    pthread_mutex_t mutex;  /* all below; never held over I/O or a wait for a range */
    pthread_cond_t changed; /* anything below */
    gboolean busy;          /* a command is under way */
    gboolean stopping;
    DiskMeta meta;
    CommitPhase phase;
    uint64_t change;
    uint64_t commit_done_blocks, commit_all_blocks;
    uint64_t checkpoint_last_us, checkpoint_max_us;
    char failure[256];
    pthread_t thread;
    gboolean has_thread;
};

void target_lock(Target *target);
void target_unlock(Target *target);
/** With the lock held. False: the deadline has passed, or the target stops. */
bool target_wait(Target *target, int64_t deadline_ns);
/** Sets what everybody waits for; without the lock held. */
void target_set_phase(Target *target, CommitPhase phase);
void target_notify(void *target);
DiskMeta target_meta(Target *target);
/** Saves and then shows @meta. A failure is counted and reported as @fault. */
gboolean target_save_meta(Target *target, const DiskMeta *meta, Fault fault, GError **error);

/** One command at a time. False: @error is set. */
gboolean target_begin(Target *target, int64_t deadline_ns, GError **error);
void target_end(Target *target);
