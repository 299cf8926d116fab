/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-op.c - an operation on a disk: its deadline, its questions to plugins and QEMU, its end */
#include "disk-private.h"

#include "source.h"

Op *
disk_op_ref(Op *op)
{
    g_ref_count_inc(&op->refs);
    return op;
}

void
disk_op_unref(gpointer data)
{
    Op *op = data;

    if (!g_ref_count_dec(&op->refs))
        return;
    g_clear_error(&op->error);
    g_clear_pointer(&op->qmp, qmp_client_unref);
    g_free(op);
}

static gboolean
on_tell(gpointer user_data)
{
    Op *op = user_data;
    Disk *disk = op->disk;

    source_clear(&op->timer);
    g_queue_remove(&disk->ops, op);
    op->disk = NULL;
    if (op->done)
        op->done(disk, op->error, op->user_data);
    disk_op_unref(op);
    return G_SOURCE_REMOVE;
}

static void
set_timer(Op *op, unsigned ms, GSourceFunc func)
{
    source_set_timeout(&op->timer, op->disk->context, ms, func, op);
}

void
disk_op_finish(Op *op, GError *error)
{
    if (op->finished) {
        g_clear_error(&error);
        return;
    }
    op->finished = true;
    op->error = error;
    op->on = NULL;
    op->next = op->poll = NULL;
    set_timer(op, 0, on_tell);
}

static gboolean
on_deadline(gpointer user_data)
{
    Op *op = user_data;

    disk_op_finish(op, g_error_new(DISK_ERROR, DISK_ERROR_TIMEOUT, "%s: not done in time",
                                   op->disk->config.name));
    return G_SOURCE_REMOVE;
}

void
disk_op_arm(Op *op, unsigned ms)
{
    if (!op->finished)
        set_timer(op, ms, on_deadline);
}

Op *
disk_op_new(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    Op *op = g_new0(Op, 1);

    g_ref_count_init(&op->refs);
    op->disk = disk;
    op->done = done;
    op->user_data = user_data;
    g_queue_push_tail(&disk->ops, op);
    op->ask_ms = disk->config.timeout_ms;
    disk_op_arm(op, disk->config.timeout_ms);
    return op;
}

static void
go_on(Op *op)
{
    OpFunc next = op->next;

    op->next = NULL;
    op->on = NULL;
    if (next)
        next(op);
    else
        disk_op_finish(op, NULL);
}

static void
on_reply(json_object *value G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Op *op = user_data;

    if (!op->disk || op->finished)
        return;
    if (error)
        disk_op_finish(op, g_error_new(DISK_ERROR, error->code, "%s: %s", op->disk->config.name,
                                       error->message));
    else
        go_on(op);
}

static GError *
no_process(const Disk *disk, PluginKind kind)
{
    return g_error_new(DISK_ERROR, DISK_ERROR_PROCESS, "%s: the %s does not run", disk->config.name,
                       kind == PLUGIN_FORWARDER ? "forwarder" : "target");
}

void
disk_op_ask(Op *op, PluginKind kind, const char *command, json_object *arguments, OpFunc next)
{
    Plugin *plugin = &op->disk->plugins[kind];

    if (!plugin->ready || plugin->ending) {
        json_object_put(arguments);
        disk_op_finish(op, no_process(op->disk, kind));
        return;
    }
    op->poll = NULL;
    op->next = next;
    op->on = plugin;
    disk_process_send(plugin->process, command, arguments, op->urgency, op->ask_ms, on_reply,
                      disk_op_ref(op), disk_op_unref);
}

void
disk_op_poll(Op *op, OpFunc poll)
{
    if (op->finished)
        return;
    op->poll = poll;
    poll(op);
}

static void
on_qemu_reply(json_object *value G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Op *op = user_data;

    if (!op->disk || op->finished)
        return;
    if (error && !op->ignore_error)
        disk_op_finish(op, g_error_new(DISK_ERROR, DISK_ERROR_QMP, "%s: QEMU: %s",
                                       op->disk->config.name, error->message));
    else
        go_on(op);
}

void
disk_op_ask_qemu(Op *op, const char *command, json_object *arguments, OpFunc next)
{
    op->next = next;
    qmp_client_send(op->qmp, command, arguments, op->disk->config.timeout_ms, on_qemu_reply,
                    disk_op_ref(op), disk_op_unref);
    json_object_put(arguments);
}

void
disk_changed(Disk *disk)
{
    g_autoptr(GPtrArray) ops = g_ptr_array_new_with_free_func(disk_op_unref);

    for (GList *at = disk->ops.head; at; at = at->next)
        g_ptr_array_add(ops, disk_op_ref(at->data));
    for (guint i = 0; i < ops->len; i++) {
        Op *op = ops->pdata[i];

        if (op->poll)
            op->poll(op); /* never tells: that is the loop's */
    }
}

void
disk_fail_ops_on(const Plugin *plugin, const char *text)
{
    for (GList *at = plugin->disk->ops.head; at; at = at->next) {
        Op *op = at->data;

        if (op->on == plugin)
            disk_op_finish(op, g_error_new_literal(DISK_ERROR, DISK_ERROR_PROCESS, text));
    }
}
