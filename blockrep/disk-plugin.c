/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-plugin.c - a disk's two nbdkits: starting and ending them, what they say, what their death
 * means
 *
 * Theory of operation
 *
 * A plugin's death is noticed by its pidfd. colod keeps the listening sockets, so QEMU's reconnect
 * succeeds at once and waits in the backlog for the next process, instead of trying again after 1,
 * 2, 4 seconds. The forwarder is always started anew; the target only once it serves the truth
 * (after `failover`): before that SVM is worth nothing without it, and the host that has the truth
 * goes on.
 */
#include "disk-private.h"

#include "clock.h"
#include "fd.h"
#include "source.h"

#include <string.h>

enum {
    RESTART_FIRST_MS = 50,
    RESTART_LAST_MS = 5000,
    LIVED_LONG_S = 60,
};

/* What a plugin's death means to the pair. */
static const char *const death_faults[] = {
    [PLUGIN_FORWARDER] = "forwarding",
    [PLUGIN_TARGET] = "secondary-disk",
};

/* --- What plugins say --- */

const char *
disk_get_string(json_object *object, const char *key)
{
    json_object *value = NULL;

    return json_object_object_get_ex(object, key, &value) &&
                   json_object_is_type(value, json_type_string)
               ? json_object_get_string(value)
               : NULL;
}

static bool
get_bool(json_object *object, const char *key)
{
    json_object *value = NULL;

    return json_object_object_get_ex(object, key, &value) && json_object_get_boolean(value);
}

int64_t
disk_get_number(json_object *object, const char *key)
{
    json_object *value = NULL;

    return json_object_object_get_ex(object, key, &value) ? json_object_get_int64(value) : 0;
}

const char *
disk_commit_phase(json_object *status)
{
    json_object *commit = NULL;
    const char *phase = NULL;

    if (json_object_object_get_ex(status, "commit", &commit))
        phase = disk_get_string(commit, "phase");
    return phase ? phase : "none";
}

/* The fault that a status tells, or NULL. @ret_text: what is known of it, the caller's. */
static const char *
fault_in(const Plugin *plugin, char **ret_text)
{
    json_object *commit = NULL;
    const char *name =
        disk_get_string(plugin->status, plugin->kind == PLUGIN_TARGET ? "stale" : "fault");
    const char *text = disk_get_string(plugin->status, "fault_text");

    if (name && !g_str_equal(name, "none")) {
        *ret_text = g_strdup(text ? text : name);
        return name;
    }
    if (plugin->kind != PLUGIN_TARGET || !g_str_equal(disk_commit_phase(plugin->status), "failed"))
        return NULL;
    (void)json_object_object_get_ex(plugin->status, "commit", &commit);
    *ret_text = g_strdup(disk_get_string(commit, "failure"));
    return "failover-commit";
}

static void
tell_fault(Plugin *plugin)
{
    Disk *disk = plugin->disk;
    g_autofree char *text = NULL;
    const char *name = fault_in(plugin, &text);

    if (g_strcmp0(name, plugin->fault) == 0)
        return;
    g_free(plugin->fault);
    plugin->fault = g_strdup(name);
    if (name && disk->handlers->fault) {
        g_autofree char *message = g_strdup_printf("%s: %s", disk->config.name, text);

        disk->handlers->fault(disk, plugin->fault, message, disk->user_data);
    }
}

void
disk_judge_target(Disk *disk, json_object *status)
{
    const bool high_water = get_bool(status, "high_water");

    if (high_water && !disk->high_water_told && disk->handlers->high_water)
        disk->handlers->high_water(disk, disk->user_data);
    disk->high_water_told = high_water;
    if (disk->failed_over && !disk->committed_told &&
        g_str_equal(disk_commit_phase(status), "done")) {
        disk->committed_told = true;
        if (disk->handlers->committed)
            disk->handlers->committed(disk, disk->user_data);
    }
}

static void
judge_forwarder(Disk *disk, json_object *status)
{
    if (disk->wants_synced && get_bool(status, "synced")) {
        disk->wants_synced = false;
        if (disk->handlers->synced)
            disk->handlers->synced(disk, disk->user_data);
    }
}

static void
on_status(DiskProcess *process G_GNUC_UNUSED, json_object *status, gpointer user_data)
{
    Plugin *plugin = user_data;
    Disk *disk = plugin->disk;

    json_object_put(plugin->status);
    plugin->status = json_object_get(status);
    tell_fault(plugin);
    if (plugin->kind == PLUGIN_TARGET)
        disk_judge_target(disk, status);
    else
        judge_forwarder(disk, status);
    disk_changed(disk);
}

/* --- Processes --- */

void
disk_end_plugin(Plugin *plugin)
{
    source_clear(&plugin->restart);
    if (!plugin->process || plugin->ending)
        return;
    plugin->ending = true;
    disk_process_end(plugin->process, DISK_END_MS);
}

void
disk_close_sockets(Plugin *plugin)
{
    for (unsigned i = 0; i < DISK_PROCESS_MAX_FDS; i++)
        fd_clear(&plugin->fds[i]);
}

void
disk_clear_process(Plugin *plugin)
{
    g_clear_pointer(&plugin->process, disk_process_free);
    g_clear_pointer(&plugin->status, json_object_put);
    plugin->ready = plugin->ending = false;
}

static gboolean on_restart(gpointer plugin);

static void
restart_soon(Plugin *plugin)
{
    unsigned ms = RESTART_FIRST_MS;

    for (unsigned i = 0; i < plugin->restarts && ms < RESTART_LAST_MS; i++)
        ms *= 2;
    plugin->restarts++;
    source_set_timeout(&plugin->restart, plugin->disk->context, MIN(ms, (unsigned)RESTART_LAST_MS),
                       on_restart, plugin);
}

/* What was in the way may go away, and the guest cannot do without. */
static gboolean
on_restart(gpointer user_data)
{
    Plugin *plugin = user_data;
    g_autoptr(GError) error = NULL;

    source_clear(&plugin->restart);
    if (disk_start_plugin(plugin, &error))
        return G_SOURCE_REMOVE;
    restart_soon(plugin);
    if (plugin->disk->handlers->fault)
        plugin->disk->handlers->fault(plugin->disk, death_faults[plugin->kind], error->message,
                                      plugin->disk->user_data);
    return G_SOURCE_REMOVE;
}

static void
on_dead(DiskProcess *process G_GNUC_UNUSED, const char *how, gpointer user_data)
{
    Plugin *plugin = user_data;
    Disk *disk = plugin->disk;
    const bool unexpected = !plugin->ending;
    g_autofree char *words = unexpected ? disk_last_words(disk, plugin->kind) : g_strdup("");
    g_autofree char *text =
        g_strdup_printf("%s: the %s is gone: %s%s", disk->config.name,
                        plugin->kind == PLUGIN_FORWARDER ? "forwarder" : "target", how, words);

    disk_clear_process(plugin);
    disk_fail_ops_on(plugin, text);
    if (clock_now_ns() - plugin->started_ns > LIVED_LONG_S * NS_PER_S)
        plugin->restarts = 0;
    if (unexpected && disk->running) {
        if (plugin->kind == PLUGIN_FORWARDER || disk->failed_over)
            restart_soon(plugin);
        else
            disk_close_sockets(plugin); /* SVM's requests fail now, not after the reconnect delay */
        if (disk->handlers->fault)
            disk->handlers->fault(disk, death_faults[plugin->kind], text, disk->user_data);
    } else {
        disk_close_sockets(plugin);
    }
    disk_changed(disk);
}

static void
on_ready(DiskProcess *process, json_object *status, gpointer user_data)
{
    Plugin *plugin = user_data;

    plugin->ready = true;
    if (plugin->ending)
        disk_process_end(plugin->process, DISK_END_MS);
    on_status(process, status, plugin);
}

static const DiskProcessHandlers process_handlers = {
    .ready = on_ready, .status = on_status, .dead = on_dead};

bool
disk_start_plugin(Plugin *plugin, GError **error)
{
    const Disk *disk = plugin->disk;
    g_auto(GStrv) argv = disk_plugin_command(disk, plugin->kind);
    g_autofree char *control_path = disk_control_path(disk, plugin->kind);
    g_autofree char *log_path = disk_log_path(disk, plugin->kind);
    g_autofree char *description = g_strdup_printf("colod %s", control_path);

    if (!disk_plugin_prepare(plugin, error))
        return false;

    DiskProcessSpec spec = {
        .argv = (const char *const *)argv,
        .control_path = control_path,
        .log_path = log_path,
        .description = description,
        .fds = {plugin->fds[0], plugin->fds[1]},
        .n_fds = plugin->fds[1] >= 0 ? 2 : 1,
    };

    plugin->started_ns = clock_now_ns();
    plugin->process = disk_process_start(&spec, DISK_START_MS, disk->config.timeout_ms,
                                         &process_handlers, plugin, error);
    if (!plugin->process)
        disk_close_sockets(plugin);
    return plugin->process != NULL;
}

void
disk_find_plugin(Plugin *plugin)
{
    g_autofree char *path = disk_control_path(plugin->disk, plugin->kind);

    plugin->process =
        disk_process_find(path, plugin->disk->config.timeout_ms, &process_handlers, plugin);
}
