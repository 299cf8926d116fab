/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-disk.c - the disks of the VM: with which step of the pair's life each of theirs goes
 *
 * Theory of operation
 *
 * docs/block.md says what a disk does, disk.h how one is told; here all disks of the VM are told
 * the same at once (a group), and what has to wait for them waits for the last one:
 *
 *   start of QEMU            both plugins run; the forwarder is alone (primary), the target empty
 *   SYNCING                  connect; all synced: DISKS_SYNCED
 *   gate, STATE              finish (primary), mirror (secondary)
 *   gate, MARK, COMMITTED    barrier beside the proxy's mark, release
 *   gate, COMMIT             checkpoint beside the proxy's
 *   RESUMING                 alone beside QEMU's way out of COLO
 *   TAKING_OVER              failover beside it: VM_RUNNING, and with it the output, waits until it
 *                            is durable, however often it has to be ordered: the guest loses
 *                            nothing, and nobody hears of what it does
 *   ALONE                    a disk whose failover is committed moves to the local image; the next
 *                            protection waits for that
 *
 * Each wait belongs to the state, or the point of the gate, it began in: `serial` counts those up,
 * and the answer to an older one is void.
 */
#include "daemon-disk-private.h"

#include "clock.h"

#include <string.h>

enum {
    FAILOVER_RETRY_MS = 1000,
    FAILOVER_TRIES = 5, /* where waiting does not help */
    MOVE_RETRY_MS = 2000,
};

/* ---- groups ---- */

typedef void (*GroupFunc)(Daemon *d, const char *problem);

typedef struct Group {
    Daemon *daemon;
    unsigned pending;
    guint serial;
    char *problem;
    GroupFunc func;
} Group;

void
daemon_disk_group_free(gpointer data)
{
    Group *group = data;

    g_free(group->problem);
    g_free(group);
}

static void
on_group_done(Disk *disk G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Group *group = user_data;
    Daemon *d = group->daemon;

    if (error != NULL && group->problem == NULL)
        group->problem = g_strdup(error->message);
    if (--group->pending > 0)
        return;
    g_queue_remove(&d->disks->groups, group);
    if ((group->serial == d->disks->serial || group->serial == ANY_SERIAL) && group->func != NULL)
        group->func(d, group->problem);
    else if (group->problem != NULL)
        event_log_add(d->log, EVENT_WARNING, "disk", "%s", group->problem);
    daemon_disk_group_free(group);
    daemon_finish_shut_down(d);
}

/* @func: when all are through, unless the serial has changed; never from within. */
static Group *
group_new(Daemon *d, GroupFunc func)
{
    Group *group = g_new0(Group, 1);

    group->daemon = d;
    group->pending = d->disks->n;
    group->serial = d->disks->serial;
    group->func = func;
    g_queue_push_tail(&d->disks->groups, group);
    return group;
}

static DiskSlot *
slot_of(Daemon *d, const Disk *disk)
{
    for (unsigned i = 0; i < d->disks->n; i++) {
        if (d->disks->slots[i].disk == disk)
            return &d->disks->slots[i];
    }
    g_assert_not_reached();
}

/* The target's mode, or NULL if there is none; static text. */
static const char *
target_mode(const Disk *disk)
{
    static const char *const modes[] = {"idle", "syncing", "mirroring", "committing", "local"};
    json_object *status = disk_status(disk), *target = NULL, *mode = NULL;
    const char *found = NULL;

    if (json_object_object_get_ex(status, "target", &target) && target != NULL &&
        json_object_object_get_ex(target, "mode", &mode)) {
        for (gsize i = 0; i < G_N_ELEMENTS(modes); i++) {
            if (g_strcmp0(json_object_get_string(mode), modes[i]) == 0)
                found = modes[i];
        }
    }
    json_object_put(status);
    return found;
}

static gboolean
has_commit_failed(const Disk *disk)
{
    json_object *status = disk_status(disk), *target = NULL, *commit = NULL, *phase = NULL;
    const gboolean failed = json_object_object_get_ex(status, "target", &target) &&
                            target != NULL &&
                            json_object_object_get_ex(target, "commit", &commit) &&
                            json_object_object_get_ex(commit, "phase", &phase) &&
                            g_strcmp0(json_object_get_string(phase), "failed") == 0;

    json_object_put(status);
    return failed;
}

/* ---- what disks report ---- */

static gboolean
replicates(PairState state)
{
    return state == PAIR_SYNCING || state == PAIR_MIGRATING || state == PAIR_PROTECTED;
}

/* What the target could not mirror leaves SVM's view whole: the primary notices, and goes on
 * without us. Without a target SVM has no disk. */
static gboolean
loses_view(const Daemon *d, const Disk *disk, const char *name)
{
    return !g_str_equal(pair_state_role(d->state), "primary") && !g_str_equal(name, "forwarding") &&
           d->state != PAIR_TAKING_OVER && target_mode(disk) == NULL;
}

static gboolean
is_commit(const char *name)
{
    return g_str_equal(name, "failover-commit");
}

static void
on_fault(Disk *disk, const char *name, const char *text, gpointer user_data)
{
    Daemon *d = user_data;
    const gboolean ends_protection = replicates(d->state) || loses_view(d, disk, name);
    /* The text names the disk; and the fault, if it is not the process's end. */
    g_autofree char *problem = strstr(text, name) != NULL
                                   ? g_strdup_printf("disk %s", text)
                                   : g_strdup_printf("disk %s (%s)", text, name);

    event_log_add(d->log, EVENT_WARNING, "disk", "%s: %s", name, text);
    if (ends_protection || is_commit(name))
        daemon_disks_set_problem(d, problem);
    if (ends_protection)
        daemon_event(d, PAIR_EVENT_DISK_FAULT);
    else if (is_commit(name))
        daemon_disks_move(d);
}

/* An operation did. */
static void
fail_with(Daemon *d, const char *problem)
{
    g_autofree char *text = g_strdup_printf("disk %s", problem);

    daemon_disks_set_problem(d, text);
}

static void
on_synced(Disk *disk, gpointer user_data)
{
    Daemon *d = user_data;

    slot_of(d, disk)->synced = TRUE;
    for (unsigned i = 0; i < d->disks->n; i++) {
        if (!d->disks->slots[i].synced)
            return;
    }
    event_log_add(d->log, EVENT_INFO, "disk", "synced");
    daemon_event(d, PAIR_EVENT_DISKS_SYNCED);
}

static void
on_high_water(Disk *disk G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    if (d->state == PAIR_PROTECTED) {
        daemon_checkpoint(d, CAUSE_OVERLAY);
    } else if (d->state == PAIR_STANDBY) {
        d->disks->wants_checkpoint = TRUE;
        daemon_send_state(d);
        d->disks->wants_checkpoint = FALSE;
    }
}

static void
on_committed(Disk *disk, gpointer user_data)
{
    Daemon *d = user_data;
    DiskSlot *slot = slot_of(d, disk);

    slot->away = slot->committed = TRUE;
    daemon_disks_set_problem(d, NULL);
    event_log_add(d->log, EVENT_INFO, "disk", "%s: the failover is committed", disk_name(disk));
    daemon_disks_move(d);
}

const DiskHandlers daemon_disk_handlers = {
    .fault = on_fault,
    .synced = on_synced,
    .high_water = on_high_water,
    .committed = on_committed,
};

/* What SVM sees can become the truth. */
gboolean
daemon_disks_whole(const Daemon *d)
{
    EACH(d, disk, if (g_strcmp0(target_mode(disk), "mirroring") != 0) return FALSE);
    return TRUE;
}

/* ---- start and stop ---- */

void
daemon_disks_new_state(Daemon *d)
{
    d->disks->serial++;
    daemon_clear_source(&d->disks->failover_timer);
}

static void
on_started(Daemon *d, const char *problem)
{
    daemon_disks_started(d, problem);
}

void
daemon_disks_start(Daemon *d, gboolean incoming)
{
    const DiskRole role = incoming ? DISK_SECONDARY : DISK_PRIMARY;
    Group *group;

    if (d->disks->n == 0) {
        daemon_disks_started(d, NULL);
        return;
    }
    d->disks->connected = FALSE;
    daemon_disks_set_problem(d, NULL);
    group = group_new(d, on_started);
    for (unsigned i = 0; i < d->disks->n; i++) {
        DiskSlot *slot = &d->disks->slots[i];

        slot->away = slot->committed = slot->moving = FALSE;
        disk_start(slot->disk, role, d->facts.generation, TRUE, on_group_done, group);
    }
}

GPtrArray *
daemon_disks_arguments(const Daemon *d, gboolean incoming)
{
    GPtrArray *arguments = g_ptr_array_new_with_free_func(g_free);

    EACH(d, disk, disk_add_arguments(disk, incoming ? DISK_SECONDARY : DISK_PRIMARY, arguments));
    return arguments;
}

static void
on_failed_over_adopted(Daemon *d, const char *problem)
{
    daemon_disks_adopted(d, problem);
}

/* colod may have died between winning the claim and the failover: it is ordered now. Nobody has
 * heard of what the guest did since. */
static void
on_adopted(Daemon *d, const char *problem)
{
    Group *group;
    unsigned mirroring = 0;

    for (unsigned i = 0; i < d->disks->n; i++) {
        const char *mode = target_mode(d->disks->slots[i].disk);

        d->disks->slots[i].away = mode != NULL;
        mirroring += g_strcmp0(mode, "mirroring") == 0;
    }
    if (problem != NULL || mirroring == 0 || !d->facts.role_primary) {
        daemon_disks_adopted(d, problem);
        return;
    }
    group = group_new(d, on_failed_over_adopted);
    group->pending = mirroring;
    for (unsigned i = 0; i < d->disks->n; i++) {
        Disk *disk = d->disks->slots[i].disk;

        if (g_strcmp0(target_mode(disk), "mirroring") == 0)
            disk_failover(disk, d->facts.generation, on_group_done, group);
    }
}

void
daemon_disks_adopt(Daemon *d)
{
    Group *group;

    if (d->disks->n == 0) {
        daemon_disks_adopted(d, NULL);
        return;
    }
    group = group_new(d, on_adopted);
    EACH(d, disk, disk_adopt(disk, on_group_done, group));
}

void
daemon_disks_stop(Daemon *d)
{
    Group *group;

    d->disks->connected = FALSE;
    daemon_clear_source(&d->disks->move_timer);
    if (d->disks->n == 0)
        return;
    group = group_new(d, NULL);
    for (unsigned i = 0; i < d->disks->n; i++) {
        DiskSlot *slot = &d->disks->slots[i];

        slot->away = slot->committed = slot->moving = FALSE;
        disk_stop(slot->disk, on_group_done, group);
    }
}

/* ---- copy ---- */

static void
on_connected(Daemon *d, const char *problem)
{
    if (problem == NULL) {
        if (d->state == PAIR_SYNCING && d->vm != NULL)
            EACH(d, disk, disk_settle(disk, vm_qmp(d->vm)));
        return;
    }
    fail_with(d, problem);
    daemon_event(d, PAIR_EVENT_DISK_FAULT);
}

void
daemon_disks_connect(Daemon *d)
{
    Group *group = group_new(d, on_connected);

    /* The peer's VM has the channel's other end already: whoever tries again needs a new one. */
    d->streams_used = TRUE;
    d->disks->connected = TRUE;
    for (unsigned i = 0; i < d->disks->n; i++) {
        d->disks->slots[i].synced = FALSE;
        disk_connect(d->disks->slots[i].disk, d->facts.generation, on_group_done, group);
    }
}

int
daemon_disks_sync_percent(const Daemon *d)
{
    int least = -1;

    EACH(d, disk, {
        const int percent = disk_sync_percent(disk);

        if (percent >= 0 && (least < 0 || percent < least))
            least = percent;
    });
    return least;
}

/* ---- leaving COLO ---- */

static void
try_running(Daemon *d)
{
    if (d->disks->vm_left && d->disks->disks_left)
        daemon_event(d, PAIR_EVENT_VM_RUNNING);
}

static void begin_failover(Daemon *d);

static gboolean
on_failover_retry(gpointer user_data)
{
    Daemon *d = user_data;

    daemon_clear_source(&d->disks->failover_timer);
    begin_failover(d);
    return G_SOURCE_REMOVE;
}

static void
on_failed_over(Daemon *d, const char *problem)
{
    if (problem == NULL) {
        event_log_add(d->log, EVENT_INFO, "disk", "the failover is durable");
        d->disks->disks_left = TRUE;
        try_running(d);
        return;
    }
    fail_with(d, problem);
    event_log_add(d->log, EVENT_WARNING, "disk", "%s", problem);
    /* A full file system may be made room in; the guest's disk is as it was. */
    if (++d->disks->failover_tries >= FAILOVER_TRIES && strstr(problem, "failover-commit") == NULL)
        daemon_event(d, PAIR_EVENT_DISK_FAULT);
    else
        d->disks->failover_timer = daemon_add_timer(d, FAILOVER_RETRY_MS, on_failover_retry);
}

static void
begin_failover(Daemon *d)
{
    Group *group = group_new(d, on_failed_over);

    for (unsigned i = 0; i < d->disks->n; i++) {
        d->disks->slots[i].away = TRUE;
        disk_failover(d->disks->slots[i].disk, d->facts.generation, on_group_done, group);
    }
}

/* The guest is not held up for it: what is not durable here shows only at a second failure. */
static void
on_alone(Daemon *d, const char *problem)
{
    if (problem != NULL)
        event_log_add(d->log, EVENT_WARNING, "disk", "going on alone: %s", problem);
    d->disks->disks_left = TRUE;
    if (d->state == PAIR_RESUMING)
        try_running(d);
}

static void
go_alone(Daemon *d)
{
    Group *group = group_new(d, on_alone);

    d->disks->connected = FALSE;
    EACH(d, disk, disk_alone(disk, d->facts.generation, on_group_done, group));
}

void
daemon_disks_leave(Daemon *d)
{
    d->disks->serial++;
    d->disks->vm_left = FALSE;
    /* PROVING: the claim is not won yet, and SVM goes on with what it sees. */
    d->disks->disks_left = d->disks->n == 0 || d->state == PAIR_PROVING;
    d->disks->failover_tries = 0;
    if (d->disks->disks_left)
        return;
    if (d->state == PAIR_TAKING_OVER)
        begin_failover(d);
    else
        go_alone(d);
}

void
daemon_disks_vm_left(Daemon *d)
{
    d->disks->vm_left = TRUE;
    try_running(d);
}

gboolean
daemon_disks_leaving(const Daemon *d)
{
    return d->state == PAIR_TAKING_OVER && d->disks->vm_left && !d->disks->disks_left;
}

/* ---- alone ---- */

static gboolean
on_move_retry(gpointer user_data)
{
    Daemon *d = user_data;

    daemon_clear_source(&d->disks->move_timer);
    daemon_disks_move(d);
    return G_SOURCE_REMOVE;
}

static void
on_moved(Disk *disk, const GError *error, gpointer user_data)
{
    Daemon *d = user_data;
    DiskSlot *slot = slot_of(d, disk);

    if (!slot->moving)
        return; /* the VM ended meanwhile */
    slot->moving = FALSE;
    if (error != NULL) {
        event_log_add(d->log, EVENT_WARNING, "disk", "moving to the local image: %s",
                      error->message);
        daemon_clear_source(&d->disks->move_timer); /* that of a commit */
        d->disks->move_timer = daemon_add_timer(d, MOVE_RETRY_MS, on_move_retry);
        return;
    }
    slot->away = slot->committed = FALSE;
    event_log_add(d->log, EVENT_INFO, "disk", "%s: the guest is on the local image",
                  disk_name(disk));
    if (daemon_disks_settled(d) && d->state == PAIR_ALONE)
        daemon_event(d, PAIR_EVENT_RETRY);
}

/* What failed in the background, after it was durable: the disk itself may be mended, or have room
 * again. */
static void
commit_again(Daemon *d, DiskSlot *slot)
{
    if (has_commit_failed(slot->disk))
        disk_failover(slot->disk, d->facts.generation, NULL, NULL);
    if (d->disks->move_timer == NULL)
        d->disks->move_timer = daemon_add_timer(d, FAILOVER_RETRY_MS, on_move_retry);
}

void
daemon_disks_move(Daemon *d)
{
    if (d->state != PAIR_ALONE || d->vm == NULL)
        return;
    for (unsigned i = 0; i < d->disks->n; i++) {
        DiskSlot *slot = &d->disks->slots[i];

        if (slot->away && !slot->committed)
            commit_again(d, slot);
        if (!slot->committed || slot->moving)
            continue;
        slot->moving = TRUE;
        disk_move_local(slot->disk, vm_qmp(d->vm), d->facts.generation, on_moved, d);
    }
}

void
daemon_disks_alone(Daemon *d)
{
    if (d->disks->connected)
        go_alone(d);
    daemon_disks_move(d);
}

/* ---- the gate's points ---- */

static void
on_disk_point(Daemon *d, const char *problem)
{
    if (problem != NULL) {
        fail_with(d, problem);
        event_log_add(d->log, EVENT_WARNING, "disk", "%s", problem);
        daemon_event(d, PAIR_EVENT_DISK_FAULT);
        return;
    }
    if (d->disks->began_ns > 0)
        daemon_checkpoints_disks_took(d, clock_now_ns() - d->disks->began_ns);
    d->disks->disks_ready = TRUE;
    daemon_disks_pass(d);
}

/* Passes the point if both have done their part. */
void
daemon_disks_pass(Daemon *d)
{
    static const GatePoint points[] = {GATE_POINT_STATE, GATE_POINT_MARK, GATE_POINT_COMMIT};

    if (!d->disks->proxy_ready || !d->disks->disks_ready || d->gate == NULL)
        return;
    for (gsize i = 0; i < G_N_ELEMENTS(points); i++) {
        if (gate_stands_at(d->gate, points[i])) {
            gate_continue(d->gate, points[i]);
            return;
        }
    }
}

void
daemon_disks_proxy_ready(Daemon *d)
{
    d->disks->proxy_ready = TRUE;
    daemon_disks_pass(d);
}

/* Begins what the disks have to do at @point; the proxy's part is begun by the caller. */
void
daemon_disks_at_point(Daemon *d, GatePoint point, guint64 epoch)
{
    Group *group;

    d->disks->serial++;
    d->disks->proxy_ready = point == GATE_POINT_STATE;
    d->disks->disks_ready = d->disks->n == 0;
    d->disks->began_ns = point == GATE_POINT_STATE ? 0 : clock_now_ns();
    if (d->disks->n == 0) {
        daemon_disks_pass(d);
        return;
    }
    group = group_new(d, on_disk_point);
    if (point == GATE_POINT_MARK)
        EACH(d, disk, disk_barrier(disk, epoch, on_group_done, group));
    else if (point == GATE_POINT_COMMIT)
        EACH(d, disk, disk_checkpoint(disk, epoch, on_group_done, group));
    else if (d->state == PAIR_MIGRATING)
        EACH(d, disk, disk_finish(disk, on_group_done, group));
    else
        EACH(d, disk, disk_mirror(disk, d->facts.generation, on_group_done, group));
}

void
daemon_disks_release(Daemon *d, guint64 epoch)
{
    EACH(d, disk, disk_release(disk, epoch));
}

/* ---- verify, status ---- */

static void
on_verify_begun(Daemon *d, const char *problem)
{
    ControlRequest *request;

    while ((request = g_queue_pop_head(&d->disks->verify_requests)) != NULL) {
        if (problem != NULL)
            control_request_fail(request, "failed", "%s", problem);
        else
            control_request_return(request, NULL);
    }
}

void
daemon_disks_verify(Daemon *d, ControlRequest *request)
{
    Group *group;

    if (d->disks->n == 0 || d->state != PAIR_PROTECTED) {
        control_request_fail(request, "refused", "%s",
                             d->disks->n == 0 ? "the VM has no disks"
                                              : "disks are compared by a protected primary");
        return;
    }
    g_queue_push_tail(&d->disks->verify_requests, request);
    group = group_new(d, on_verify_begun);
    group->serial = ANY_SERIAL;
    EACH(d, disk, disk_verify(disk, on_group_done, group));
}
