/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk.c - one disk of this host's VM: operations on its two nbdkits and on QEMU's nodes
 *
 * Theory of operation
 *
 * An operation (Op) is a chain of functions: each asks a plugin or QEMU something and names the one
 * that goes on with the answer (`next`), or waits for a state of the plugins (`poll`, called at
 * each change). It has one deadline. Its end is told from the loop, once. Operations do not wait
 * for each other: `alone` must not stand behind a `barrier` whose peer is gone.
 */
#include "disk-private.h"

#include "source.h"

#include <string.h>

G_DEFINE_QUARK(colod_disk_error_quark, disk_error)

/* --- Processes --- */

/* As a step of @op, which then polls with @poll. */
static void
start_for(Op *op, PluginKind kind, OpFunc poll)
{
    GError *error = NULL;

    disk_op_arm(op, DISK_START_MS + op->disk->config.timeout_ms);
    if (disk_start_plugin(&op->disk->plugins[kind], &error)) {
        op->on = &op->disk->plugins[kind];
        disk_op_poll(op, poll);
    } else {
        disk_op_finish(op, error);
    }
}

/* --- Ending --- */

static bool
has_process(const Disk *disk)
{
    return disk->plugins[PLUGIN_FORWARDER].process || disk->plugins[PLUGIN_TARGET].process;
}

/* Both, also those that an earlier life of colod has left. */
static void
end_all(Disk *disk)
{
    disk->running = disk->failed_over = disk->committed_told = disk->wants_synced = false;
    disk->alone_generation = 0;
    for (int i = 0; i < PLUGIN_COUNT; i++) {
        Plugin *plugin = &disk->plugins[i];

        disk_end_plugin(plugin);
        if (plugin->process)
            continue;
        disk_close_sockets(plugin);
        plugin->ending = true;
        disk_find_plugin(plugin);
    }
}

static void
stop_wait(Op *op)
{
    if (!has_process(op->disk))
        disk_op_finish(op, NULL);
}

void
disk_stop(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    Op *op = disk_op_new(disk, done, user_data);

    disk_op_arm(op, disk->config.timeout_ms + DISK_END_MS);
    end_all(disk);
    disk_op_poll(op, stop_wait);
}

/* --- Starting --- */

static json_object *
with_generation(uint64_t generation)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "generation", json_object_new_int64((int64_t)generation));
    return arguments;
}

static json_object *
with_epoch(uint64_t epoch)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "epoch", json_object_new_int64((int64_t)epoch));
    return arguments;
}

static void
started(Op *op)
{
    op->disk->running = true;
    if (op->role == DISK_PRIMARY)
        op->disk->alone_generation = op->generation;
    disk_op_finish(op, NULL);
}

static void
start_alone(Op *op)
{
    if (!op->disk->plugins[PLUGIN_FORWARDER].ready)
        return;

    json_object *arguments = with_generation(op->generation);

    if (op->first)
        json_object_object_add(arguments, "first", json_object_new_boolean(TRUE));
    disk_op_ask(op, PLUGIN_FORWARDER, "alone", arguments, started);
}

static void
start_idle(Op *op)
{
    if (op->disk->plugins[PLUGIN_FORWARDER].ready)
        started(op);
}

static void
start_forwarder(Op *op)
{
    start_for(op, PLUGIN_FORWARDER, op->role == DISK_PRIMARY ? start_alone : start_idle);
}

static void
start_sync(Op *op)
{
    if (op->disk->plugins[PLUGIN_TARGET].ready)
        disk_op_ask(op, PLUGIN_TARGET, "sync", with_generation(op->generation), start_forwarder);
}

static void
start_committed_wait(Op *op)
{
    if (!op->disk->plugins[PLUGIN_TARGET].process)
        start_forwarder(op);
}

/* A commit that an earlier life has begun is the target's to finish. */
static void
start_commit(Op *op)
{
    Plugin *target = &op->disk->plugins[PLUGIN_TARGET];
    const char *phase = target->ready ? disk_commit_phase(target->status) : "none";

    if (!target->ready)
        return;
    disk_op_arm(op, DISK_START_MS + op->disk->config.timeout_ms); /* as long as it gets on */
    if (g_str_equal(phase, "failed")) {
        disk_op_finish(op, g_error_new(DISK_ERROR, DISK_ERROR_FAILED,
                                       "failover-commit: %s: the commit of an earlier failover "
                                       "cannot be finished",
                                       op->disk->config.name));
    } else if (g_str_equal(phase, "done")) {
        op->on = NULL;
        disk_end_plugin(target);
        disk_op_poll(op, start_committed_wait);
    }
}

static void
start_anew(Op *op)
{
    DiskStanding standing;

    if (has_process(op->disk))
        return;
    disk_standing(op->disk, &standing);
    if (!standing.exists)
        disk_op_finish(op, g_error_new_literal(DISK_ERROR, DISK_ERROR_REFUSED, standing.reason));
    else if (op->role == DISK_SECONDARY)
        start_for(op, PLUGIN_TARGET, start_sync);
    else if (standing.committing)
        start_for(op, PLUGIN_TARGET, start_commit);
    else
        start_forwarder(op);
    disk_standing_clear(&standing);
}

void
disk_start(Disk *disk, DiskRole role, uint64_t generation, gboolean first, DiskDoneFunc done,
           gpointer user_data)
{
    Op *op = disk_op_new(disk, done, user_data);

    op->role = role;
    op->generation = generation;
    op->first = first;
    disk_op_arm(op, disk->config.timeout_ms + DISK_END_MS);
    end_all(disk);
    disk_op_poll(op, start_anew);
}

/* --- Finding again --- */

static void
take_sockets(Plugin *plugin)
{
    for (unsigned i = 0; i < DISK_PROCESS_MAX_FDS; i++) {
        if (plugin->fds[i] < 0 && (i == 0 || plugin->kind == PLUGIN_TARGET)) {
            const int fd = disk_process_copy_fd(plugin->process, i); /* MAX() would copy it twice */

            plugin->fds[i] = fd < 0 ? -1 : fd;
        }
    }
}

/* Who writes, by what is there: a target that is not committed yet is a secondary's, and so is a
 * disk that is not up to date. */
static void
adopted(Op *op)
{
    Disk *disk = op->disk;
    const Plugin *target = &disk->plugins[PLUGIN_TARGET];
    const char *mode = target->ready ? disk_get_string(target->status, "mode") : NULL;

    disk->running = true;
    disk->failed_over = g_strcmp0(mode, "committing") == 0 || g_strcmp0(mode, "local") == 0;
    disk->alone_generation = op->generation;
    if (target->ready)
        disk_judge_target(disk, target->status);
    else if (op->generation == 0 && disk->handlers->fault)
        disk->handlers->fault(disk, "secondary-disk",
                              "the target has ended while colod did not run", disk->user_data);
    disk_op_finish(op, NULL);
}

static void
adopt_restarted(Op *op)
{
    if (op->disk->plugins[PLUGIN_FORWARDER].ready)
        adopted(op);
}

static void
adopt_wait(Op *op)
{
    Disk *disk = op->disk;
    DiskStanding standing;

    for (int i = 0; i < PLUGIN_COUNT; i++) {
        if (disk->plugins[i].process && !disk->plugins[i].ready)
            return;
    }
    for (int i = 0; i < PLUGIN_COUNT; i++) {
        if (disk->plugins[i].process)
            take_sockets(&disk->plugins[i]);
    }
    disk_standing(disk, &standing);
    op->generation =
        standing.up_to_date && !disk->plugins[PLUGIN_TARGET].ready ? standing.generation : 0;
    disk_standing_clear(&standing);
    if (disk->plugins[PLUGIN_FORWARDER].ready) {
        adopted(op);
        return;
    }
    disk->running = true; /* it takes another's place */
    disk->alone_generation = op->generation;
    start_for(op, PLUGIN_FORWARDER, adopt_restarted);
}

void
disk_adopt(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    Op *op = disk_op_new(disk, done, user_data);

    for (int i = 0; i < PLUGIN_COUNT; i++) {
        Plugin *plugin = &disk->plugins[i];

        if (!plugin->process)
            disk_find_plugin(plugin);
    }
    disk_op_poll(op, adopt_wait);
}

/* --- The primary's --- */

void
disk_connect(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    const DiskConfig *config = &disk->config;
    json_object *arguments = with_generation(generation);

    json_object_object_add(arguments, "host", json_object_new_string(config->peer_host));
    json_object_object_add(arguments, "port", json_object_new_int(config->listen_port));
    json_object_object_add(arguments, "rate_limit",
                           json_object_new_int64((int64_t)config->sync_rate_bytes_s));
    disk->alone_generation = generation; /* what a new forwarder goes on as */
    disk->wants_synced = true;
    disk->connects++;
    disk_op_ask(disk_op_new(disk, done, user_data), PLUGIN_FORWARDER, "connect", arguments, NULL);
}

void
disk_finish(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    disk_op_ask(disk_op_new(disk, done, user_data), PLUGIN_FORWARDER, "finish", NULL, NULL);
}

/* What a checkpoint waits for. Its own deadline is the same timeout, and has no name for what is
 * late: this one comes first. */
static Op *
op_of_checkpoint(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    Op *op = disk_op_new(disk, done, user_data);

    op->ask_ms -= op->ask_ms / 8;
    return op;
}

void
disk_barrier(Disk *disk, uint64_t epoch, DiskDoneFunc done, gpointer user_data)
{
    disk_op_ask(op_of_checkpoint(disk, done, user_data), PLUGIN_FORWARDER, "barrier",
                with_epoch(epoch), NULL);
}

void
disk_release(Disk *disk, uint64_t epoch)
{
    disk_op_ask(disk_op_new(disk, NULL, NULL), PLUGIN_FORWARDER, "release", with_epoch(epoch),
                NULL);
}

/* One that is being started anew is waited for. */
static void
ask_alone(Op *op)
{
    const Plugin *forwarder = &op->disk->plugins[PLUGIN_FORWARDER];

    if (forwarder->ready || (!forwarder->process && !forwarder->restart))
        disk_op_ask(op, PLUGIN_FORWARDER, "alone", with_generation(op->generation),
                    op->after_alone);
}

static void
begin_alone(Op *op, uint64_t generation, OpFunc then)
{
    op->disk->alone_generation = op->generation = generation;
    op->disk->wants_synced = false;
    op->after_alone = then;
    op->urgency = DISK_AT_ONCE; /* a barrier may wait for a peer that is gone */
    disk_op_poll(op, ask_alone);
}

void
disk_alone(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    begin_alone(disk_op_new(disk, done, user_data), generation, NULL);
}

static int64_t
forwarder_change(const Disk *disk)
{
    json_object *status = disk->plugins[PLUGIN_FORWARDER].status;

    return status ? disk_get_number(status, "change") : -1;
}

static void
verify_shown(Op *op)
{
    if (forwarder_change(op->disk) != op->change)
        disk_op_finish(op, NULL);
}

/* Whoever asks for the status next must find this comparison in it, and not the one before. */
static void
verifying(Op *op)
{
    disk_op_poll(op, verify_shown);
}

void
disk_verify(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    Op *op = disk_op_new(disk, done, user_data);

    op->change = forwarder_change(disk);
    disk_op_ask(op, PLUGIN_FORWARDER, "verify", NULL, verifying);
}

/* --- The secondary's --- */

void
disk_mirror(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    json_object *arguments = with_generation(generation);

    json_object_object_add(arguments, "epoch", json_object_new_int64(0));
    disk_op_ask(disk_op_new(disk, done, user_data), PLUGIN_TARGET, "mirror", arguments, NULL);
}

void
disk_checkpoint(Disk *disk, uint64_t epoch, DiskDoneFunc done, gpointer user_data)
{
    disk_op_ask(op_of_checkpoint(disk, done, user_data), PLUGIN_TARGET, "checkpoint",
                with_epoch(epoch), NULL);
}

static void
failover_durable(Op *op)
{
    Disk *disk = op->disk;

    disk_op_finish(op, NULL);
    /* The commit may have been done before the answer came. */
    if (disk->plugins[PLUGIN_TARGET].status)
        disk_judge_target(disk, disk->plugins[PLUGIN_TARGET].status);
}

void
disk_failover(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    json_object *arguments = with_generation(generation);
    Op *op = disk_op_new(disk, done, user_data);

    /* What is in memory is safe only at the end of the commit, which may take long. */
    json_object_object_add(
        arguments, "until",
        json_object_new_string(disk->config.overlays_in_memory ? "begun" : "durable"));
    /* From here on the target is started anew if it dies: if the order has reached the medium it
     * goes on with it, and if not it says so. */
    disk->failed_over = true;
    disk->committed_told = false;
    op->urgency = DISK_AT_ONCE;
    disk_op_ask(op, PLUGIN_TARGET, "failover", arguments, failover_durable);
}

static void
moved_wait(Op *op)
{
    if (!op->disk->plugins[PLUGIN_TARGET].process)
        disk_op_finish(op, NULL);
}

static void
moved(Op *op)
{
    op->disk->failed_over = false;
    disk_op_arm(op, op->disk->config.timeout_ms + DISK_END_MS);
    disk_end_plugin(&op->disk->plugins[PLUGIN_TARGET]);
    disk_op_poll(op, moved_wait);
}

static void
marked(Op *op)
{
    disk_op_arm(op, 3 * op->disk->config.timeout_ms); /* three commands to QEMU */
    disk_graph_move(op, moved);
}

void
disk_move_local(Disk *disk, QmpClient *qmp, uint64_t generation, DiskDoneFunc done,
                gpointer user_data)
{
    Op *op = disk_op_new(disk, done, user_data);

    op->qmp = qmp_client_ref(qmp);
    /* First of all: the target marks what goes through it, and from the move on nobody else does.
     */
    begin_alone(op, generation, marked);
}

/* --- Life --- */

Disk *
disk_new(const DiskConfig *config, const DiskHandlers *handlers, gpointer user_data)
{
    Disk *disk = g_new0(Disk, 1);

    disk->config = *config;
    disk->handlers = handlers;
    disk->user_data = user_data;
    disk->context = g_main_context_ref_thread_default();
    g_queue_init(&disk->ops);
    disk->size_bytes = -1;
    disk->is_nbd = image_is_nbd(config->image) && image_nbd_parse(config->image, &disk->nbd, NULL);
    for (int i = 0; i < PLUGIN_COUNT; i++)
        disk->plugins[i] = (Plugin){.disk = disk, .kind = (PluginKind)i, .fds = {-1, -1}};
    return disk;
}

static void
forget_op(gpointer data)
{
    Op *op = data;

    source_clear(&op->timer);
    op->disk = NULL;
    disk_op_unref(op);
}

void
disk_free(Disk *disk)
{
    if (!disk)
        return;
    for (int i = 0; i < PLUGIN_COUNT; i++) {
        disk_clear_process(&disk->plugins[i]);
        disk_close_sockets(&disk->plugins[i]);
        source_clear(&disk->plugins[i].restart);
        g_free(disk->plugins[i].fault);
    }
    g_queue_clear_full(&disk->ops, forget_op);
    image_nbd_clear(&disk->nbd);
    g_main_context_unref(disk->context);
    g_free(disk);
}

/* --- What is known --- */

json_object *
disk_status(const Disk *disk)
{
    static const char *const keys[] = {
        [PLUGIN_FORWARDER] = "forwarder", [PLUGIN_TARGET] = "target"};
    json_object *status = json_object_new_object();

    json_object_object_add(status, "name", json_object_new_string(disk->config.name));
    json_object_object_add(status, "image", json_object_new_string(disk->config.image));
    for (int i = 0; i < PLUGIN_COUNT; i++)
        json_object_object_add(status, keys[i], json_object_get(disk->plugins[i].status));
    return status;
}

int
disk_sync_percent(const Disk *disk)
{
    json_object *status = disk->plugins[PLUGIN_FORWARDER].status;
    const char *mode = status ? disk_get_string(status, "mode") : NULL;
    int64_t left = status ? disk_get_number(status, "left_bytes") : 0;
    json_object *meta = NULL;

    if (g_strcmp0(mode, "syncing") != 0 || !json_object_object_get_ex(status, "meta", &meta))
        return -1;

    double size = (double)disk_get_number(meta, "size_bytes");

    return size > 0 ? (int)(100 - 100 * CLAMP((double)left / size, 0, 1)) : -1;
}

const char *
disk_name(const Disk *disk)
{
    return disk->config.name;
}
