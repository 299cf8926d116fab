/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-commit.c - what SVM sees becomes the disk, whatever crashes meanwhile
 *
 * docs/block.md, "Failover commit", says why this order is right. The numbers are its steps.
 */
#include "commit-record.h"
#include "target-private.h"

#include "clock.h"

#include <errno.h>
#include <string.h>

/* colod gives a failed failover again each second. */
#define GIVEN_AGAIN_NS (5 * NS_PER_S)

static gboolean
fail(Target *target, const char *what, int r, GError **error)
{
    layers_count_fault(target->layers, FAULT_FAILOVER_COMMIT);
    g_set_error(error, TARGET_ERROR, TARGET_ERROR_FAILED, "%s: %s: %s",
                fault_name(FAULT_FAILOVER_COMMIT), what, g_strerror(-r));
    return FALSE;
}

/* Steps 2 and 3. */
static gboolean
make_durable(Target *target, GError **error)
{
    Overlay *hidden = layers_hidden(target->layers), *active = layers_active(target->layers);
    DiskMeta meta = target_meta(target);
    g_autoptr(GError) local = NULL;
    int r = store_flush(overlay_store(hidden));

    if (r == 0)
        r = store_flush(overlay_store(active));
    if (r < 0)
        return fail(target, "overlay", r, error);

    g_autoptr(GBytes) record = commit_record_build(meta.size_bytes, hidden, active, meta.commit);

    if (!target->journal->ops->save_record(target->journal, record, &local)) {
        layers_count_fault(target->layers, FAULT_FAILOVER_COMMIT);
        g_set_error(error, TARGET_ERROR, TARGET_ERROR_FAILED, "%s: %s",
                    fault_name(FAULT_FAILOVER_COMMIT), local->message);
        return FALSE;
    }
    meta.state = DISK_INCONSISTENT;
    if (!target_save_meta(target, &meta, FAULT_FAILOVER_COMMIT, error))
        return FALSE;
    target_set_phase(target, COMMIT_DURABLE);
    return TRUE;
}

/* Before the metadata makes the failover durable: a crash after that must find them marked. */
static gboolean
mark_overlays(Target *target, GError **error)
{
    int r = 0;

    layers_mark_overlays(target->layers);
    if (target->map) {
        r = dirty_map_arm(target->map); /* also with empty overlays: the guest is about to write */
        if (r == 0)
            r = dirty_map_flush(target->map);
    }
    return r < 0 ? fail(target, "the map of changed blocks", r, error) : TRUE;
}

/* Progress for status. False: the target stops. */
static bool
count_done(Target *target, uint64_t blocks)
{
    target_lock(target);
    target->commit_done_blocks += blocks;

    bool go_on = !target->stopping;

    target_unlock(target);
    return go_on;
}

/* Step 4, one overlay. */
static gboolean
copy_overlay(Target *target, Overlay *overlay, GError **error)
{
    uint32_t slot = 0, before = 0;
    int r;

    while ((r = layers_commit_piece(target->layers, overlay, &slot)) > 0) {
        if (!count_done(target, slot - before)) {
            g_set_error(error, TARGET_ERROR, TARGET_ERROR_TIMEOUT,
                        "the target stops; the commit goes on at its next start");
            return FALSE;
        }
        before = slot;
    }
    return r < 0 ? fail(target, "copying an overlay into the disk", r, error) : TRUE;
}

static gboolean
copy_all(Target *target, GError **error)
{
    Overlay *hidden = layers_hidden(target->layers), *active = layers_active(target->layers);

    target_lock(target);
    target->commit_done_blocks = 0;
    target->commit_all_blocks = (uint64_t)overlay_slots(hidden) + overlay_slots(active);
    target_unlock(target);
    return copy_overlay(target, hidden, error) && copy_overlay(target, active, error);
}

/* Step 5. The slots' files are cut while nobody can be at them: a command waits for `busy`. */
static gboolean
finish(Target *target, GError **error)
{
    DiskMeta meta = target_meta(target);
    TargetFacts facts = {.generation = meta.generation};
    TargetMode mode = layers_mode(target->layers);
    int r = layers_flush_disk(target->layers);

    if (r < 0)
        return fail(target, "flushing the disk", r, error);
    meta.state = DISK_UPTODATE;
    meta.commit[0] = '\0';
    if (!target_save_meta(target, &meta, FAULT_FAILOVER_COMMIT, error))
        return FALSE;
    if (target_fsm_step(mode, TARGET_EVENT_COMMITTED, &facts, &mode))
        g_assert_not_reached();         /* no command leaves committing */
    layers_clear_stale(target->layers); /* of a mirror that has ended */
    (void)layers_switch(target->layers, mode, true, INT64_MAX);
    target->journal->ops->drop_record(target->journal);
    /* Space that is not given back is no reason to fail: the next epoch uses it. */
    (void)store_discard_all(overlay_store(layers_hidden(target->layers)));
    (void)store_discard_all(overlay_store(layers_active(target->layers)));
    target_set_phase(target, COMMIT_DONE);
    return TRUE;
}

static gboolean
commit(Target *target, GError **error)
{
    Overlay *hidden = layers_hidden(target->layers), *active = layers_active(target->layers);
    bool can_be_durable = overlay_store(hidden)->durable && overlay_store(active)->durable;

    if (!mark_overlays(target, error))
        return FALSE;
    /* A commit that is on the medium is not written there again: its slots are frozen. */
    if (can_be_durable && target_meta(target).commit[0] == '\0' && !make_durable(target, error))
        return FALSE;
    if (!copy_all(target, error) || !target_begin(target, INT64_MAX, error))
        return FALSE;

    gboolean ok = finish(target, error);

    target_end(target);
    return ok;
}

gboolean
target_commit(Target *target, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (commit(target, &local))
        return TRUE;
    target_lock(target);
    (void)g_strlcpy(target->failure, local->message, sizeof(target->failure));
    target_unlock(target);
    target_set_phase(target, COMMIT_FAILED);
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
}

/* --- The thread --- */

static void *
run(void *user_data)
{
    Target *target = user_data;

    target_lock(target);
    while (!target->stopping) {
        if (target->phase == COMMIT_BEGUN || target->phase == COMMIT_DURABLE) {
            target_unlock(target);
            (void)target_commit(target, NULL); /* status tells */
            target_lock(target);
        } else {
            (void)target_wait(target, INT64_MAX);
        }
    }
    target_unlock(target);
    return NULL;
}

void
target_start(Target *target)
{
    g_assert(!target->has_thread);
    if (pthread_create(&target->thread, NULL, run, target) != 0)
        g_error("no thread for the commit");
    target->has_thread = TRUE;
}

void
target_stop(Target *target)
{
    target_lock(target);
    target->stopping = TRUE;
    (void)pthread_cond_broadcast(&target->changed);
    target_unlock(target);
    if (target->has_thread)
        (void)pthread_join(target->thread, NULL);
    target->has_thread = FALSE;
}

/* --- Waiting for it --- */

static bool
is_reached(const Target *target, gboolean durable)
{
    /* A commit that failed after it was durable is durable nonetheless. */
    return target->phase == COMMIT_DONE || (durable && target->meta.commit[0] != '\0');
}

gboolean
target_wait_commit(Target *target, gboolean durable, int64_t deadline_ns, GError **error)
{
    bool in_time = true;

    target_lock(target);
    while (in_time && !is_reached(target, durable) && target->phase != COMMIT_FAILED &&
           target->phase != COMMIT_NONE)
        in_time = target_wait(target, deadline_ns);

    gboolean ok = is_reached(target, durable);

    if (ok)
        ;
    else if (target->phase == COMMIT_FAILED)
        g_set_error_literal(error, TARGET_ERROR, TARGET_ERROR_FAILED, target->failure);
    else if (target->phase == COMMIT_NONE)
        g_set_error(error, TARGET_ERROR, TARGET_ERROR_REFUSED, "no commit was begun");
    else
        g_set_error(error, TARGET_ERROR, TARGET_ERROR_TIMEOUT, "the commit is still under way (%s)",
                    commit_phase_name(target->phase));
    target_unlock(target);
    return ok;
}

/* Requests flow again a moment before the failover that changed the mode has said so. */
static void
wait_until_begun(Target *target)
{
    target_lock(target);
    while (target->phase == COMMIT_NONE && layers_mode(target->layers) == TARGET_COMMITTING)
        (void)target_wait(target, INT64_MAX);
    target_unlock(target);
}

/* A commit that failed is given again while it is worth it: an error now would make the guest give
 * its file system up, for a disk that has room again a moment later. */
static bool
is_given_again(Target *target)
{
    const int64_t deadline_ns = clock_now_ns() + GIVEN_AGAIN_NS;
    bool in_time = true;

    target_lock(target);
    while (in_time && target->phase == COMMIT_FAILED && !target->stopping)
        in_time = target_wait(target, deadline_ns);

    bool again = target->phase != COMMIT_FAILED && target->phase != COMMIT_NONE;

    target_unlock(target);
    return again;
}

static bool
wait_durable(Target *target)
{
    while (!target_wait_commit(target, TRUE, INT64_MAX, NULL)) {
        if (!is_given_again(target))
            return false;
    }
    return true;
}

int
target_flush(Target *target, Side side, Fault *ret_fault)
{
    if (side == SIDE_ACTIVE)
        wait_until_begun(target);
    if (side == SIDE_ACTIVE && layers_mode(target->layers) == TARGET_COMMITTING &&
        !wait_durable(target)) {
        layers_count_fault(target->layers, FAULT_FAILOVER_COMMIT);
        *ret_fault = FAULT_FAILOVER_COMMIT;
        return -EIO;
    }
    return layers_flush(target->layers, side, ret_fault);
}
