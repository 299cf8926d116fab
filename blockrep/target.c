/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target.c - one replicated disk on the secondary: commands and status
 *
 * Commands come from several control clients, one at a time (`busy`). The mutex guards what status
 * shows and what waiters wait for; it is taken inside a request (notify) and so never held while
 * waiting for a range or a medium. Order: hold on a range, then the mutex.
 */
#include "target-private.h"

#include "clock.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

G_DEFINE_QUARK(colod_target_error_quark, target_error)

static const char *const phase_names[] = {
    [COMMIT_NONE] = "none",     [COMMIT_BEGUN] = "begun", [COMMIT_DURABLE] = "durable",
    [COMMIT_FAILED] = "failed", [COMMIT_DONE] = "done",
};
static_assert(G_N_ELEMENTS(phase_names) == COMMIT_PHASE_COUNT, "a name for each phase");

const char *
commit_phase_name(CommitPhase phase)
{
    g_assert((unsigned)phase < COMMIT_PHASE_COUNT);
    return phase_names[phase];
}

static TargetMode
mode_of(const DiskMeta *meta)
{
    if (meta->commit[0])
        return TARGET_COMMITTING;
    return meta->state == DISK_UPTODATE ? TARGET_LOCAL : TARGET_IDLE;
}

Target *
target_new(Layers *layers, Journal *journal, const DiskMeta *meta)
{
    Target *target = g_new0(Target, 1);
    pthread_condattr_t attr;

    target->layers = layers;
    target->journal = journal;
    target->meta = *meta;
    if (meta->commit[0])
        target->phase = COMMIT_DURABLE;
    else if (meta->state == DISK_UPTODATE)
        target->phase = COMMIT_DONE;
    target->change = 1;
    (void)pthread_mutex_init(&target->mutex, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&target->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    layers_set_notify(layers, target_notify, target);
    if (layers_switch(layers, mode_of(meta), false, INT64_MAX) < 0)
        g_assert_not_reached(); /* nobody else has it yet */
    return target;
}

void
target_take_map(Target *target, DirtyMap *map)
{
    g_assert(!target->map && !target->has_thread);
    target->map = map;
    layers_set_map(target->layers, map);
}

DirtyMap *
target_map(Target *target)
{
    return target->map;
}

/* What the map says clean is clean on the medium. */
static void
close_map(Target *target)
{
    if (target->map && dirty_map_is_armed(target->map) &&
        store_flush(layers_disk(target->layers)) < 0)
        dirty_map_distrust(target->map);
    dirty_map_free(target->map);
}

void
target_free(Target *target)
{
    if (!target)
        return;
    g_assert(!target->has_thread);
    close_map(target);
    (void)pthread_cond_destroy(&target->changed);
    (void)pthread_mutex_destroy(&target->mutex);
    layers_free(target->layers);
    journal_free(target->journal);
    g_free(target);
}

Layers *
target_layers(Target *target)
{
    return target->layers;
}

/* --- Waiting --- */

void
target_lock(Target *target)
{
    (void)pthread_mutex_lock(&target->mutex);
}

void
target_unlock(Target *target)
{
    (void)pthread_mutex_unlock(&target->mutex);
}

bool
target_wait(Target *target, int64_t deadline_ns)
{
    struct timespec until = {.tv_sec = deadline_ns / NS_PER_S, .tv_nsec = deadline_ns % NS_PER_S};

    if (target->stopping)
        return false;
    return pthread_cond_timedwait(&target->changed, &target->mutex, &until) != ETIMEDOUT;
}

void
target_notify(void *user_data)
{
    Target *target = user_data;

    target_lock(target);
    target->change++;
    (void)pthread_cond_broadcast(&target->changed);
    target_unlock(target);
}

void
target_set_phase(Target *target, CommitPhase phase)
{
    target_lock(target);
    target->phase = phase;
    target->change++;
    (void)pthread_cond_broadcast(&target->changed);
    target_unlock(target);
}

DiskMeta
target_meta(Target *target)
{
    target_lock(target);

    DiskMeta meta = target->meta;

    target_unlock(target);
    return meta;
}

gboolean
target_save_meta(Target *target, const DiskMeta *meta, Fault fault, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (!target->journal->ops->save_meta(target->journal, meta, &local)) {
        layers_count_fault(target->layers, fault);
        g_set_error(error, TARGET_ERROR, TARGET_ERROR_FAILED, "%s: %s", fault_name(fault),
                    local->message);
        return FALSE;
    }
    target_lock(target);
    target->meta = *meta;
    target_unlock(target);
    return TRUE;
}

static gboolean
fail_timeout(const Target *target, const char *what, GError **error)
{
    g_set_error(error, TARGET_ERROR, TARGET_ERROR_TIMEOUT, "%s%s", what,
                target->stopping ? ": the target stops" : " in time");
    return FALSE;
}

gboolean
target_begin(Target *target, int64_t deadline_ns, GError **error)
{
    gboolean ok = TRUE;

    target_lock(target);
    while (ok && target->busy)
        ok = target_wait(target, deadline_ns);
    if (ok && !target->stopping)
        target->busy = TRUE;
    else
        ok = fail_timeout(target, "another command did not end", error);
    target_unlock(target);
    return ok;
}

void
target_end(Target *target)
{
    target_lock(target);
    target->busy = FALSE;
    target->change++;
    (void)pthread_cond_broadcast(&target->changed);
    target_unlock(target);
}

/* --- Commands, between target_begin() and target_end() --- */

static gboolean
step(Target *target, TargetEvent event, uint64_t generation, uint64_t epoch, TargetMode *ret_mode,
     GError **error)
{
    DiskMeta meta = target_meta(target);
    TargetFacts facts = {
        .generation = meta.generation,
        .asked_generation = generation,
        .epoch = meta.epoch,
        .asked_epoch = epoch,
        .stale = layers_stale(target->layers) != FAULT_NONE,
    };
    TargetMode mode = layers_mode(target->layers);
    const char *reason = target_fsm_step(mode, event, &facts, ret_mode);

    if (!reason)
        return TRUE;
    g_set_error(error, TARGET_ERROR, TARGET_ERROR_REFUSED,
                "%s (%s, generation %" G_GUINT64_FORMAT ", epoch %" G_GUINT64_FORMAT "%s%s)",
                reason, target_mode_name(mode), facts.generation, facts.epoch,
                facts.stale ? ", " : "",
                facts.stale ? fault_name(layers_stale(target->layers)) : "");
    return FALSE;
}

/* Not one request may meet the new order before the metadata has it, nor the old one after. */
static gboolean
do_sync(Target *target, uint64_t generation, int64_t deadline_ns, GError **error)
{
    TargetMode before = layers_mode(target->layers), mode;
    DiskMeta meta = target_meta(target);

    if (!step(target, TARGET_EVENT_SYNC, generation, 0, &mode, error))
        return FALSE;
    if (layers_switch(target->layers, TARGET_IDLE, false, deadline_ns) < 0)
        return fail_timeout(target, "requests under way did not end", error);
    meta.generation = generation;
    meta.state = DISK_SYNCING;
    if (!target_save_meta(target, &meta, FAULT_METADATA, error)) {
        (void)layers_switch(target->layers, before, false, INT64_MAX);
        return FALSE;
    }
    layers_clear_stale(target->layers);
    if (layers_switch(target->layers, mode, true, deadline_ns) < 0)
        return fail_timeout(target, "reads under way did not end", error);
    target_set_phase(target, COMMIT_NONE);
    return TRUE;
}

gboolean
target_sync(Target *target, uint64_t generation, int64_t deadline_ns, GError **error)
{
    if (!target_begin(target, deadline_ns, error))
        return FALSE;

    gboolean ok = do_sync(target, generation, deadline_ns, error);

    target_end(target);
    return ok;
}

/* The primary has copied all that either host's map had. What cannot be made stable here is copied
 * once more after a crash. */
static void
clear_map(Target *target)
{
    if (!target->map)
        return;
    dirty_map_clear(target->map, 0, dirty_map_size_bytes(target->map));
    if (dirty_map_flush(target->map) == 0)
        (void)dirty_map_trust(target->map);
}

static gboolean
do_mirror(Target *target, uint64_t generation, uint64_t epoch, int64_t deadline_ns, GError **error)
{
    DiskMeta meta = target_meta(target);
    TargetMode mode;

    if (!step(target, TARGET_EVENT_MIRROR, generation, epoch, &mode, error))
        return FALSE;
    meta.state = DISK_INCONSISTENT;
    meta.epoch = epoch;
    if (!target_save_meta(target, &meta, FAULT_METADATA, error))
        return FALSE;
    if (layers_switch(target->layers, mode, true, deadline_ns) < 0)
        return fail_timeout(target, "requests under way did not end", error);
    clear_map(target);
    return TRUE;
}

gboolean
target_mirror(Target *target, uint64_t generation, uint64_t epoch, int64_t deadline_ns,
              GError **error)
{
    if (!target_begin(target, deadline_ns, error))
        return FALSE;

    gboolean ok = do_mirror(target, generation, epoch, deadline_ns, error);

    target_end(target);
    return ok;
}

static gboolean
do_checkpoint(Target *target, uint64_t epoch, int64_t deadline_ns, GError **error)
{
    TargetMode mode;

    if (!step(target, TARGET_EVENT_CHECKPOINT, 0, epoch, &mode, error))
        return FALSE;

    int64_t started_ns = clock_now_ns();
    int r = layers_checkpoint(target->layers, deadline_ns);
    uint64_t took_us = (uint64_t)((clock_now_ns() - started_ns) / NS_PER_US);

    if (r == -ETIMEDOUT) {
        layers_count_fault(target->layers, FAULT_EMPTYING);
        g_set_error(error, TARGET_ERROR, TARGET_ERROR_TIMEOUT,
                    "%s: requests under way did not end in time", fault_name(FAULT_EMPTYING));
        return FALSE;
    }
    if (r < 0) /* the last write before it was the one that was lost */
        return step(target, TARGET_EVENT_CHECKPOINT, 0, epoch, &mode, error);
    target_lock(target);
    target->meta.epoch = epoch;
    target->checkpoint_last_us = took_us;
    target->checkpoint_max_us = MAX(target->checkpoint_max_us, took_us);
    target_unlock(target);
    return TRUE;
}

gboolean
target_checkpoint(Target *target, uint64_t epoch, int64_t deadline_ns, GError **error)
{
    if (!target_begin(target, deadline_ns, error))
        return FALSE;

    gboolean ok = do_checkpoint(target, epoch, deadline_ns, error);

    target_end(target);
    return ok;
}

static gboolean
do_barrier(Target *target, gboolean durable, int64_t deadline_ns, GError **error)
{
    TargetMode mode;
    Fault fault;

    if (!step(target, TARGET_EVENT_BARRIER, 0, 0, &mode, error))
        return FALSE;
    if (layers_drain(target->layers, deadline_ns) < 0)
        return fail_timeout(target, "mirrored writes under way did not end", error);
    if (durable)
        (void)layers_flush(target->layers, SIDE_TARGET, &fault); /* a failure is latched */
    return step(target, TARGET_EVENT_BARRIER, 0, 0, &mode, error);
}

gboolean
target_barrier(Target *target, gboolean durable, int64_t deadline_ns, GError **error)
{
    if (!target_begin(target, deadline_ns, error))
        return FALSE;

    gboolean ok = do_barrier(target, durable, deadline_ns, error);

    target_end(target);
    return ok;
}

static gboolean
do_failover(Target *target, uint64_t generation, int64_t deadline_ns, GError **error)
{
    TargetMode before = layers_mode(target->layers), mode;

    if (!step(target, TARGET_EVENT_FAILOVER, generation, 0, &mode, error))
        return FALSE;
    if (before == TARGET_MIRRORING && layers_switch(target->layers, mode, false, deadline_ns) < 0)
        return fail_timeout(target, "requests under way did not end", error);
    target_lock(target);
    if (before == TARGET_MIRRORING || target->phase == COMMIT_FAILED) {
        /* On the medium when the commit makes it so. */
        target->meta.generation = generation;
        target->phase = target->meta.commit[0] ? COMMIT_DURABLE : COMMIT_BEGUN;
        target->failure[0] = '\0';
    }
    target_unlock(target);
    return TRUE;
}

gboolean
target_failover(Target *target, uint64_t generation, int64_t deadline_ns, GError **error)
{
    if (!target_begin(target, deadline_ns, error))
        return FALSE;

    gboolean ok = do_failover(target, generation, deadline_ns, error);

    target_end(target);
    return ok;
}

/* --- Status --- */

void
target_status(Target *target, TargetStatus *ret_status)
{
    Overlay *overlays[2] = {layers_hidden(target->layers), layers_active(target->layers)};
    TargetStatus status = {
        .mode = layers_mode(target->layers),
        .stale = layers_stale(target->layers),
        .durable_overlays =
            overlay_store(overlays[0])->durable && overlay_store(overlays[1])->durable,
    };

    for (int i = 0; i < 2; i++) {
        status.used_bytes[i] = overlay_used_bytes(overlays[i]);
        status.limit_bytes[i] = overlay_limit_bytes(overlays[i]);
        status.peak_bytes[i] = overlay_peak_bytes(overlays[i]);
        status.high_water |= overlay_is_high(overlays[i]);
    }
    layers_counters(target->layers, &status.counters);
    target_lock(target);
    status.meta = target->meta;
    status.phase = target->phase;
    status.change = target->change;
    status.commit_done_blocks = target->commit_done_blocks;
    status.commit_all_blocks = target->commit_all_blocks;
    status.checkpoint_last_us = target->checkpoint_last_us;
    status.checkpoint_max_us = target->checkpoint_max_us;
    (void)g_strlcpy(status.failure, target->failure, sizeof(status.failure));
    target_unlock(target);
    *ret_status = status;
}

void
target_wait_change(Target *target, uint64_t after, int64_t deadline_ns)
{
    bool in_time = true;

    target_lock(target);
    while (in_time && target->change == after)
        in_time = target_wait(target, deadline_ns);
    target_unlock(target);
}
