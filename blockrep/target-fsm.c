/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-fsm.c - what the target does with requests, and which command may change that (pure)
 *
 * The rule behind the rules: a disk that is UpToDate, or that holds the truth of a survivor in its
 * overlays, is overwritten only by order of a newer generation, and nothing is forgotten (overlays
 * emptied) unless the disk below holds all of the primary's writes.
 */
#include "target-fsm.h"

#include <assert.h>
#include <glib.h>

static const char *const mode_names[] = {
    [TARGET_IDLE] = "idle",           [TARGET_SYNCING] = "syncing",
    [TARGET_MIRRORING] = "mirroring", [TARGET_COMMITTING] = "committing",
    [TARGET_LOCAL] = "local",
};
static_assert(G_N_ELEMENTS(mode_names) == TARGET_MODE_COUNT, "a name for each mode");

const char *
target_mode_name(TargetMode mode)
{
    g_assert((unsigned)mode < TARGET_MODE_COUNT);
    return mode_names[mode];
}

static const char *
step_sync(TargetMode mode, const TargetFacts *facts, TargetMode *ret_mode)
{
    if (mode == TARGET_COMMITTING)
        return "a failover commit is under way: this host has the truth";
    if (facts->asked_generation < facts->generation)
        return "the generation is older than the disk's";
    if (mode == TARGET_LOCAL && facts->asked_generation == facts->generation)
        return "the disk is UpToDate: only a newer generation may overwrite it";
    *ret_mode = TARGET_SYNCING;
    return NULL;
}

static const char *
step_mirror(TargetMode mode, const TargetFacts *facts, TargetMode *ret_mode)
{
    if (mode != TARGET_SYNCING)
        return "the disk is not being synced";
    if (facts->asked_generation != facts->generation)
        return "the generation is not the one the disk was synced in";
    if (facts->stale)
        return "a mirrored write was lost: the disk must be synced again";
    *ret_mode = TARGET_MIRRORING;
    return NULL;
}

static const char *
step_checkpoint(TargetMode mode, const TargetFacts *facts, TargetMode *ret_mode)
{
    if (mode != TARGET_MIRRORING)
        return "the disk is not being mirrored";
    if (facts->stale)
        return "a mirrored write was lost: a checkpoint would make that the truth";
    if (facts->asked_epoch < facts->epoch)
        return "the epoch is over";
    *ret_mode = TARGET_MIRRORING;
    return NULL;
}

static const char *
step_barrier(TargetMode mode, const TargetFacts *facts, TargetMode *ret_mode)
{
    if (mode != TARGET_SYNCING && mode != TARGET_MIRRORING)
        return "the disk takes no mirrored writes now";
    if (facts->stale)
        return "a mirrored write was lost";
    *ret_mode = mode;
    return NULL;
}

static const char *
step_failover(TargetMode mode, const TargetFacts *facts, TargetMode *ret_mode)
{
    if (mode == TARGET_MIRRORING && facts->asked_generation <= facts->generation)
        return "a failover makes a newer generation than the disk's";
    if (mode == TARGET_MIRRORING) { /* stale or not: what SVM sees is whole */
        *ret_mode = TARGET_COMMITTING;
        return NULL;
    }
    if ((mode == TARGET_COMMITTING || mode == TARGET_LOCAL) &&
        facts->asked_generation == facts->generation) {
        *ret_mode = mode; /* asked again */
        return NULL;
    }
    return "the disk is not being mirrored: there is nothing to fail over to";
}

static const char *
step_committed(TargetMode mode, TargetMode *ret_mode)
{
    if (mode != TARGET_COMMITTING)
        return "no commit is under way";
    *ret_mode = TARGET_LOCAL;
    return NULL;
}

const char *
target_fsm_step(TargetMode mode, TargetEvent event, const TargetFacts *facts, TargetMode *ret_mode)
{
    switch (event) {
    case TARGET_EVENT_SYNC:
        return step_sync(mode, facts, ret_mode);
    case TARGET_EVENT_MIRROR:
        return step_mirror(mode, facts, ret_mode);
    case TARGET_EVENT_CHECKPOINT:
        return step_checkpoint(mode, facts, ret_mode);
    case TARGET_EVENT_BARRIER:
        return step_barrier(mode, facts, ret_mode);
    case TARGET_EVENT_FAILOVER:
        return step_failover(mode, facts, ret_mode);
    case TARGET_EVENT_COMMITTED:
        return step_committed(mode, ret_mode);
    case TARGET_EVENT_COUNT:
        break;
    }
    g_assert_not_reached();
}
