/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* range-lock.h - shared and exclusive locks on ranges of a disk, first come, first served */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct RangeLock RangeLock;

typedef enum RangeMode { RANGE_SHARED, RANGE_EXCLUSIVE } RangeMode;

/* One held or awaited range; on the caller's stack, untouched between take and release. */
typedef struct RangeHold {
    struct RangeHold *prev, *next; /* order of arrival */
    uint64_t start, end;           /* [start, end) */
    RangeMode mode;
} RangeHold;

RangeLock *range_lock_new(void);
/** Nothing may be held. */
void range_lock_free(RangeLock *lock);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RangeLock, range_lock_free)

/**
 * Waits until no earlier hold conflicts: overlaps and one of the two is exclusive. Any thread. Who
 * holds one range may not take a second: that is what makes a deadlock impossible.
 */
void range_lock_take(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end,
                     RangeMode mode);

/** The same up to @deadline_ns (clock_now_ns()). -ETIMEDOUT: not held, nothing is left behind. */
int range_lock_take_until(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end,
                          RangeMode mode, int64_t deadline_ns);

void range_lock_release(RangeLock *lock, RangeHold *hold);

/** How many holds are held or awaited now. */
unsigned range_lock_count(RangeLock *lock);
