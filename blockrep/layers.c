/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers.c - one disk as two machines see it: disk, hidden overlay, active overlay
 *
 * Theory of operation
 * ===================
 * What each side sees, while mirroring:
 *
 *     target  reads the disk; writes: old blocks that no overlay has to hidden, then the disk
 *     active  reads active, else hidden, else disk; writes to active
 *
 * So what active reads changes by active's writes alone, however the disk moves below it; and
 * emptying both overlays makes it the disk.
 *
 * Locking. Every request holds its range, widened to blocks: shared to read, exclusive to write or
 * zero. That makes "save, then write" one step for readers of the view and for other writes of the
 * same blocks, and a whole-range hold (layers_switch()) a point where nothing is under way. The
 * mode is read under the hold, so no request sees it change. One hold per thread: no deadlock.
 * Flush holds nothing: it promises only what was answered before it came.
 *
 * Errors. A mirrored write that fails was not (wholly) applied, and later ones must not be either:
 * the disk would be no state that the primary's disk ever had. The first such fault is latched
 * (stale) and every later mirrored request fails by it, with its errno. The view of active is still
 * whole, so a failover is still right; a checkpoint is not.
 */
#include "layers-private.h"

#include <errno.h>

/* The guest's flushes, which may never pause, must not keep the commit's waiting. */
static void
init_flush_lock(Layers *layers)
{
    pthread_rwlockattr_t attr;

    (void)pthread_rwlockattr_init(&attr);
    (void)pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    (void)pthread_rwlock_init(&layers->flush_lock, &attr);
    (void)pthread_rwlockattr_destroy(&attr);
}

Layers *
layers_new(Store *disk, Overlay *hidden, Overlay *active)
{
    Layers *layers = g_new0(Layers, 1);

    layers->disk = disk;
    layers->hidden = hidden;
    layers->active = active;
    layers->lock = range_lock_new();
    init_flush_lock(layers);
    atomic_init(&layers->mode, TARGET_IDLE);
    return layers;
}

void
layers_free(Layers *layers)
{
    if (!layers)
        return;
    range_lock_free(layers->lock);
    (void)pthread_rwlock_destroy(&layers->flush_lock);
    overlay_free(layers->active);
    overlay_free(layers->hidden);
    store_free(layers->disk);
    g_free(layers);
}

void
layers_set_notify(Layers *layers, void (*notify)(void *user_data), void *user_data)
{
    layers->notify = notify;
    layers->user_data = user_data;
}

void
layers_set_map(Layers *layers, DirtyMap *map)
{
    layers->map = map;
}

TargetMode
layers_mode(Layers *layers)
{
    return (TargetMode)atomic_load(&layers->mode);
}

Store *
layers_disk(Layers *layers)
{
    return layers->disk;
}

Overlay *
layers_hidden(Layers *layers)
{
    return layers->hidden;
}

Overlay *
layers_active(Layers *layers)
{
    return layers->active;
}

/* --- Faults --- */

Fault
layers_stale(Layers *layers)
{
    const Stale stale = atomic_load(&layers->stale);

    return (Fault)stale.fault;
}

void
layers_clear_stale(Layers *layers)
{
    atomic_store(&layers->stale, (Stale){0});
}

void
layers_count_fault(Layers *layers, Fault fault)
{
    atomic_fetch_add(&layers->faults[fault], 1);
}

static void
notify(const Layers *layers)
{
    if (layers->notify)
        layers->notify(layers->user_data);
}

/* Once an epoch, by the request that reached the mark. */
static void
tell_high_water(Layers *layers)
{
    if ((overlay_is_high(layers->hidden) || overlay_is_high(layers->active)) &&
        !atomic_exchange(&layers->high_told, true))
        notify(layers);
}

/* After each request: counts, and latches what ends mirroring. @is_change: it would have changed
 * the disk or made a change stable. */
static int
finish(Layers *layers, Side side, bool is_change, int r, Fault fault, Fault *ret_fault)
{
    atomic_fetch_add(&layers->requests[side], 1);
    if (is_change)
        tell_high_water(layers);
    if (r == 0)
        return 0;
    layers_count_fault(layers, fault);
    if (side == SIDE_TARGET && is_change && fault != FAULT_REFUSED && fault != FAULT_STALE) {
        const Stale stale = {.fault = (int16_t)fault, .error = (int16_t)r};
        Stale none = {0};

        (void)atomic_compare_exchange_strong(&layers->stale, &none, stale);
    }
    notify(layers);
    *ret_fault = fault;
    return r;
}

/* What an earlier fault makes of everything that follows: the same error. Answers overtake each
 * other, so the peer may learn of it from any of them. */
static int
stale_error(Layers *layers)
{
    const Stale stale = atomic_load(&layers->stale);

    return stale.error;
}

static int
refuse(int r, Fault fault, Fault *ret_fault)
{
    *ret_fault = fault;
    return r;
}

static int
fail_as(int r, Fault fault, Fault *ret_fault)
{
    if (r < 0)
        *ret_fault = fault;
    return r;
}

/* --- Requests --- */

static void
hold_range(Layers *layers, RangeHold *hold, uint64_t len, uint64_t offset, RangeMode mode)
{
    range_lock_take(layers->lock, hold, offset / BLOCK * BLOCK,
                    (offset + len + BLOCK - 1) / BLOCK * BLOCK, mode);
}

int
layers_read(Layers *layers, Side side, void *buf, size_t len, uint64_t offset, Fault *ret_fault)
{
    Fault fault = FAULT_REFUSED;
    RangeHold hold;
    int r = -EINVAL;

    if (store_has(layers->disk, len, offset)) {
        hold_range(layers, &hold, len, offset, RANGE_SHARED);
        if (side == SIDE_ACTIVE)
            r = io_read_view(layers, buf, len, offset, &fault);
        else
            r = fail_as(store_read(layers->disk, buf, len, offset), FAULT_SECONDARY_DISK, &fault);
        range_lock_release(layers->lock, &hold);
    }
    return finish(layers, side, false, r, fault, ret_fault);
}

/* @buf NULL: zeros. With an exclusive hold. */
static int
write_target(Layers *layers, const void *buf, uint64_t len, uint64_t offset, bool unmap,
             Fault *ret_fault)
{
    TargetMode mode = layers_mode(layers);
    int r;

    if (mode != TARGET_SYNCING && mode != TARGET_MIRRORING)
        return refuse(-ESHUTDOWN, FAULT_REFUSED, ret_fault);
    r = stale_error(layers);
    if (r < 0)
        return refuse(r, FAULT_STALE, ret_fault);
    if (mode == TARGET_MIRRORING)
        r = io_save_old(layers, len, offset, ret_fault);
    if (r == 0)
        r = fail_as(io_write_disk(layers, buf, len, offset, unmap), FAULT_SECONDARY_DISK,
                    ret_fault);
    return r;
}

/* Before the disk changes: a mark too many costs a copy, one too few costs the data. */
static void
mark(Layers *layers, uint64_t len, uint64_t offset)
{
    if (layers->map)
        dirty_map_mark(layers->map, offset, len);
}

static int
write_active(Layers *layers, const void *buf, uint64_t len, uint64_t offset, bool unmap,
             Fault *ret_fault)
{
    switch (layers_mode(layers)) {
    case TARGET_MIRRORING:
        return io_write_active(layers, buf, len, offset, ret_fault);
    case TARGET_COMMITTING:
        mark(layers, len, offset);
        return io_write_through(layers, buf, len, offset, unmap, ret_fault);
    case TARGET_LOCAL:
        mark(layers, len, offset);
        return fail_as(io_write_disk(layers, buf, len, offset, unmap), FAULT_ACTIVE_DISK,
                       ret_fault);
    case TARGET_IDLE:
    case TARGET_SYNCING:
        return refuse(-ESHUTDOWN, FAULT_REFUSED, ret_fault);
    case TARGET_MODE_COUNT:
        break;
    }
    g_assert_not_reached();
}

static int
change(Layers *layers, Side side, const void *buf, uint64_t len, uint64_t offset, bool unmap,
       Fault *ret_fault)
{
    Fault fault = FAULT_REFUSED;
    RangeHold hold;
    int r = -EINVAL;

    if (store_has(layers->disk, len, offset)) {
        hold_range(layers, &hold, len, offset, RANGE_EXCLUSIVE);
        if (side == SIDE_ACTIVE)
            r = write_active(layers, buf, len, offset, unmap, &fault);
        else
            r = write_target(layers, buf, len, offset, unmap, &fault);
        /* Under the hold: who waits for this range must find the latch set. */
        r = finish(layers, side, true, r, fault, ret_fault);
        range_lock_release(layers->lock, &hold);
        return r;
    }
    return finish(layers, side, true, r, fault, ret_fault);
}

int
layers_write(Layers *layers, Side side, const void *buf, size_t len, uint64_t offset,
             Fault *ret_fault)
{
    return change(layers, side, buf, len, offset, false, ret_fault);
}

int
layers_zero(Layers *layers, Side side, uint64_t len, uint64_t offset, bool unmap, Fault *ret_fault)
{
    return change(layers, side, NULL, len, offset, unmap, ret_fault);
}

/* Saving what a trim throws away must not take the room that writes need. */
static bool
has_room_for_trim(Layers *layers, uint64_t len)
{
    uint64_t limit = overlay_limit_bytes(layers->hidden);

    return layers_mode(layers) != TARGET_MIRRORING ||
           (len < limit / 2 && overlay_used_bytes(layers->hidden) < limit / 2 - len);
}

int
layers_trim(Layers *layers, Side side, uint64_t len, uint64_t offset, Fault *ret_fault)
{
    TargetMode mode = layers_mode(layers);

    /* SVM's disk is thrown away at the next checkpoint; while committing it is a choice not to. */
    if (side == SIDE_ACTIVE && (mode == TARGET_MIRRORING || mode == TARGET_COMMITTING) &&
        store_has(layers->disk, len, offset))
        return finish(layers, side, false, 0, FAULT_NONE, ret_fault);
    if (side == SIDE_TARGET && !has_room_for_trim(layers, len)) {
        atomic_fetch_add(&layers->skipped_trims, 1);
        return finish(layers, side, false, 0, FAULT_NONE, ret_fault);
    }
    return change(layers, side, NULL, len, offset, true, ret_fault);
}

int
layers_flush_disk(Layers *layers)
{
    (void)pthread_rwlock_wrlock(&layers->flush_lock);

    int r = store_flush(layers->disk);

    if (r < 0)
        atomic_store(&layers->unasked_error, r);
    (void)pthread_rwlock_unlock(&layers->flush_lock);
    return r;
}

/* Not beside one of another's: if that fails, this one would succeed and know nothing of it. */
static int
flush_for(Layers *layers, Side side)
{
    if (side != SIDE_ACTIVE)
        return layers_flush_disk(layers);
    (void)pthread_rwlock_rdlock(&layers->flush_lock);

    int r = store_flush(layers->disk);
    int earlier = atomic_exchange(&layers->unasked_error, 0);

    (void)pthread_rwlock_unlock(&layers->flush_lock);
    return r < 0 ? r : earlier;
}

static int
flush_committing(Layers *layers, Side side)
{
    int r = store_flush(overlay_store(layers->hidden));

    if (r == 0)
        r = store_flush(overlay_store(layers->active));
    return r == 0 ? flush_for(layers, side) : r;
}

int
layers_flush(Layers *layers, Side side, Fault *ret_fault)
{
    Fault fault = side == SIDE_TARGET ? FAULT_SECONDARY_DISK : FAULT_ACTIVE_DISK;
    int r = 0;

    switch (layers_mode(layers)) {
    case TARGET_MIRRORING:
        /* Nothing of SVM's counts before a failover, and that makes all of it stable first. */
        if (side == SIDE_TARGET)
            r = store_flush(layers->disk);
        break;
    case TARGET_COMMITTING:
        r = flush_committing(layers, side);
        break;
    case TARGET_LOCAL:
        r = flush_for(layers, side);
        break;
    case TARGET_IDLE:
    case TARGET_SYNCING:
        r = store_flush(layers->disk);
        break;
    case TARGET_MODE_COUNT:
        g_assert_not_reached();
    }
    if (r == 0 && side == SIDE_TARGET) {
        r = stale_error(layers);
        if (r < 0)
            fault = FAULT_STALE;
    }
    return finish(layers, side, true, r, fault, ret_fault);
}

int
layers_extent(Layers *layers, Side side, uint64_t offset, uint64_t len, uint64_t *ret_len,
              bool *ret_hole, Fault *ret_fault)
{
    Fault fault = side == SIDE_TARGET ? FAULT_SECONDARY_DISK : FAULT_ACTIVE_DISK;
    RangeHold hold;
    int r = -EINVAL;

    if (len > 0 && store_has(layers->disk, len, offset)) {
        hold_range(layers, &hold, len, offset, RANGE_SHARED);
        if (side == SIDE_ACTIVE)
            r = io_extent(layers, offset, len, ret_len, ret_hole);
        else
            r = store_extent(layers->disk, offset, len, ret_len, ret_hole);
        range_lock_release(layers->lock, &hold);
    }
    return finish(layers, side, false, r, fault, ret_fault);
}

/* --- The whole --- */

static void
empty(Layers *layers)
{
    overlay_empty(layers->hidden);
    overlay_empty(layers->active);
    atomic_store(&layers->high_told, false);
}

int
layers_switch(Layers *layers, TargetMode mode, bool forget, int64_t deadline_ns)
{
    RangeHold hold;
    int r = range_lock_take_until(layers->lock, &hold, 0, UINT64_MAX, RANGE_EXCLUSIVE, deadline_ns);

    if (r < 0)
        return r;
    if (forget)
        empty(layers);
    if (mode == TARGET_SYNCING)
        atomic_store(&layers->unasked_error, 0); /* of a guest that is gone */
    atomic_store(&layers->mode, mode);
    range_lock_release(layers->lock, &hold);
    return 0;
}

int
layers_checkpoint(Layers *layers, int64_t deadline_ns)
{
    RangeHold hold;
    int r = range_lock_take_until(layers->lock, &hold, 0, UINT64_MAX, RANGE_EXCLUSIVE, deadline_ns);

    if (r < 0)
        return r;
    r = stale_error(layers);
    if (r == 0)
        empty(layers);
    range_lock_release(layers->lock, &hold);
    return r;
}

int
layers_drain(Layers *layers, int64_t deadline_ns)
{
    RangeHold hold;
    int r = range_lock_take_until(layers->lock, &hold, 0, UINT64_MAX, RANGE_SHARED, deadline_ns);

    if (r == 0)
        range_lock_release(layers->lock, &hold);
    return r;
}

void
layers_counters(Layers *layers, LayersCounters *ret_counters)
{
    for (int i = 0; i < 2; i++)
        ret_counters->requests[i] = atomic_load(&layers->requests[i]);
    ret_counters->under_way = range_lock_count(layers->lock);
    ret_counters->saved_bytes = atomic_load(&layers->saved_bytes);
    ret_counters->skipped_trims = atomic_load(&layers->skipped_trims);
    for (int i = 0; i < FAULT_COUNT; i++)
        ret_counters->faults[i] = atomic_load(&layers->faults[i]);
}
