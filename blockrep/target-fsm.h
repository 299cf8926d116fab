/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-fsm.h - what the target does with requests, and which command may change that (pure) */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/*
 * | mode       | writes on `target` | writes on `active` | state on disk         |
 * | idle       | refused            | refused            | Inconsistent, Syncing |
 * | syncing    | to the disk        | refused            | Syncing               |
 * | mirroring  | save old, disk     | active overlay     | Inconsistent          |
 * | committing | refused            | overlay and disk   | Inconsistent + commit |
 * | local      | refused            | to the disk        | UpToDate              |
 */
typedef enum TargetMode {
    TARGET_IDLE,
    TARGET_SYNCING,
    TARGET_MIRRORING,
    TARGET_COMMITTING,
    TARGET_LOCAL,
    TARGET_MODE_COUNT,
} TargetMode;

typedef enum TargetEvent {
    TARGET_EVENT_SYNC,       /* the disk is about to be overwritten by the primary's */
    TARGET_EVENT_MIRROR,     /* it equals the primary's now, SVM runs: keep its layers apart */
    TARGET_EVENT_CHECKPOINT, /* SVM equals PVM again: forget both overlays */
    TARGET_EVENT_BARRIER,
    TARGET_EVENT_FAILOVER, /* what SVM sees becomes the truth */
    TARGET_EVENT_COMMITTED,
    TARGET_EVENT_COUNT,
} TargetEvent;

typedef struct TargetFacts {
    uint64_t generation;       /* the disk's */
    uint64_t asked_generation; /* sync, mirror, failover */
    uint64_t epoch;            /* of the overlays */
    uint64_t asked_epoch;      /* checkpoint */
    bool stale;                /* a mirrored write was lost */
} TargetFacts;

const char *target_mode_name(TargetMode mode); /* "idle", "syncing", ... */

/**
 * The mode after @event, or why the event is refused. Touches nothing.
 *
 * Return: NULL, @ret_mode is set (it may be the same: an order that was carried out before); or the
 * reason, static text.
 */
const char *target_fsm_step(TargetMode mode, TargetEvent event, const TargetFacts *facts,
                            TargetMode *ret_mode);
