/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-control.c - the target's commands on its control socket */
#include "target-control.h"

#include "control-json.h"
#include "plugin-quit.h"

#include <assert.h>

typedef enum TargetCommand {
    COMMAND_STATUS = DISK_COMMAND_STATUS,
    COMMAND_QUIT = DISK_COMMAND_QUIT,
    COMMAND_SYNC,
    COMMAND_MIRROR,
    COMMAND_CHECKPOINT,
    COMMAND_BARRIER,
    COMMAND_FAILOVER,
    COMMAND_COUNT,
} TargetCommand;

static const DiskCommand commands[] = {
    [COMMAND_STATUS] = {"status", 0, DISK_ARG_AFTER},
    [COMMAND_QUIT] = {"quit", 0, 0},
    [COMMAND_SYNC] = {"sync", DISK_ARG_GENERATION, 0},
    [COMMAND_MIRROR] = {"mirror", DISK_ARG_GENERATION | DISK_ARG_EPOCH, 0},
    [COMMAND_CHECKPOINT] = {"checkpoint", DISK_ARG_EPOCH, 0},
    [COMMAND_BARRIER] = {"barrier", 0, DISK_ARG_DURABLE},
    [COMMAND_FAILOVER] = {"failover", DISK_ARG_GENERATION, DISK_ARG_UNTIL},
};
static_assert(G_N_ELEMENTS(commands) == COMMAND_COUNT, "a line for each command");

const DiskCommandSet target_commands = {.commands = commands, .n = COMMAND_COUNT};

/* --- Status --- */

static json_object *
overlay_json(const TargetStatus *status, int i)
{
    json_object *object = json_object_new_object();

    add_number(object, "used_bytes", status->used_bytes[i]);
    add_number(object, "limit_bytes", status->limit_bytes[i]);
    add_number(object, "peak_bytes", status->peak_bytes[i]);
    return object;
}

static json_object *
commit_json(const TargetStatus *status)
{
    json_object *object = json_object_new_object();

    add(object, "phase", json_object_new_string(commit_phase_name(status->phase)));
    add_number(object, "done_blocks", status->commit_done_blocks);
    add_number(object, "all_blocks", status->commit_all_blocks);
    if (status->phase == COMMIT_FAILED)
        add(object, "failure", json_object_new_string(status->failure));
    return object;
}

static json_object *
faults_json(const LayersCounters *counters)
{
    json_object *object = json_object_new_object();

    for (int i = 1; i < FAULT_COUNT; i++) {
        if (counters->faults[i] > 0)
            add_number(object, fault_name((Fault)i), counters->faults[i]);
    }
    return object;
}

/* May a VM be started on this disk, and if not, why? */
static void
add_startable(json_object *object, const TargetStatus *status)
{
    bool is_startable = status->mode == TARGET_LOCAL || status->mode == TARGET_COMMITTING;

    add(object, "startable", json_object_new_boolean(is_startable));
    if (is_startable)
        return;
    add(object, "reason",
        json_object_new_string(status->meta.state == DISK_SYNCING
                                   ? "the disk is Syncing: part of it is older than the rest"
                                   : "the disk is Inconsistent: it is a mirror's, behind the "
                                     "primary's, or was never replicated"));
}

static json_object *
status_json(void *user_data)
{
    json_object *object = json_object_new_object();
    TargetStatus status;

    target_status(user_data, &status);
    add(object, "mode", json_object_new_string(target_mode_name(status.mode)));
    add(object, "state", json_object_new_string(disk_state_name(status.meta.state)));
    add_startable(object, &status);
    add_number(object, "size_bytes", status.meta.size_bytes);
    add_number(object, "generation", status.meta.generation);
    add_number(object, "epoch", status.meta.epoch);
    add(object, "stale", json_object_new_string(fault_name(status.stale)));
    add(object, "high_water", json_object_new_boolean(status.high_water));
    add(object, "durable_overlays", json_object_new_boolean(status.durable_overlays));
    add(object, "hidden", overlay_json(&status, 0));
    add(object, "active", overlay_json(&status, 1));
    add(object, "commit", commit_json(&status));
    add_number(object, "checkpoint_last_us", status.checkpoint_last_us);
    add_number(object, "checkpoint_max_us", status.checkpoint_max_us);
    add_number(object, "target_requests", status.counters.requests[SIDE_TARGET]);
    add_number(object, "active_requests", status.counters.requests[SIDE_ACTIVE]);
    add_number(object, "under_way", status.counters.under_way);
    add_number(object, "saved_bytes", status.counters.saved_bytes);
    add_number(object, "skipped_trims", status.counters.skipped_trims);
    add(object, "faults", faults_json(&status.counters));
    add_number(object, "change", status.change);
    return object;
}

static void
wait_change(void *user_data, uint64_t after, int64_t deadline_ns)
{
    target_wait_change(user_data, after, deadline_ns);
}

/* --- Commands --- */

static gboolean
order(void *user_data, const DiskRequest *request, int64_t deadline_ns, GError **error)
{
    Target *target = user_data;

    switch ((TargetCommand)request->command) {
    case COMMAND_SYNC:
        return target_sync(target, request->generation, deadline_ns, error);
    case COMMAND_MIRROR:
        return target_mirror(target, request->generation, request->epoch, deadline_ns, error);
    case COMMAND_CHECKPOINT:
        return target_checkpoint(target, request->epoch, deadline_ns, error);
    case COMMAND_BARRIER:
        return target_barrier(target, request->durable, deadline_ns, error);
    case COMMAND_FAILOVER:
        return target_failover(target, request->generation, deadline_ns, error) &&
               (request->begun || target_wait_commit(target, request->durable, deadline_ns, error));
    case COMMAND_STATUS:
    case COMMAND_QUIT:
    case COMMAND_COUNT:
        break;
    }
    g_assert_not_reached();
}

static const DiskService service = {
    .set = &target_commands,
    .status = status_json,
    .wait_change = wait_change,
    .quit = plugin_quit,
    .order = order,
    .error_domain = target_error_quark,
    .refused = TARGET_ERROR_REFUSED,
    .timeout = TARGET_ERROR_TIMEOUT,
};

DiskControl *
target_control_new(const char *path, Target *target, GError **error)
{
    return disk_control_new(path, &service, target, error);
}
