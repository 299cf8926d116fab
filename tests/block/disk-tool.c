/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-tool.c - a Disk driven by lines on stdin, for the tests of tests/block
 *
 * usage: disk-tool KEY=VALUE...   (the members of DiskConfig, with '-')
 *
 * A line is a command and its arguments; each prints one line of JSON on stdout when it is over, as
 * do the events of the disk. At the end of stdin the Disk is freed: what it started lives on.
 */
#include "disk.h"

#include <glib-unix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { QMP_TIMEOUT_MS = 10000 };

typedef struct Tool {
    GMainLoop *loop;
    Disk *disk;
    QmpClient *qmp;
    GString *input;
} Tool;

typedef struct Pending {
    char *command;
} Pending;

static void
print(json_object *object)
{
    (void)puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));
    (void)fflush(stdout);
    json_object_put(object);
}

static json_object *
event(const char *key, const char *value)
{
    json_object *object = json_object_new_object();

    json_object_object_add(object, key, json_object_new_string(value));
    return object;
}

static void
on_fault(Disk *disk G_GNUC_UNUSED, const char *name, const char *text, gpointer data G_GNUC_UNUSED)
{
    json_object *object = event("event", "fault");

    json_object_object_add(object, "name", json_object_new_string(name));
    json_object_object_add(object, "text", json_object_new_string(text));
    print(object);
}

static void
on_synced(Disk *disk G_GNUC_UNUSED, gpointer data G_GNUC_UNUSED)
{
    print(event("event", "synced"));
}

static void
on_high_water(Disk *disk G_GNUC_UNUSED, gpointer data G_GNUC_UNUSED)
{
    print(event("event", "high_water"));
}

static void
on_committed(Disk *disk G_GNUC_UNUSED, gpointer data G_GNUC_UNUSED)
{
    print(event("event", "committed"));
}

static const DiskHandlers handlers = {
    .fault = on_fault, .synced = on_synced, .high_water = on_high_water, .committed = on_committed};

static void
on_done(Disk *disk G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Pending *pending = user_data;
    json_object *object = event("done", pending->command);

    if (error) {
        json_object_object_add(object, "code", json_object_new_int(error->code));
        json_object_object_add(object, "error", json_object_new_string(error->message));
    }
    print(object);
    g_free(pending->command);
    g_free(pending);
}

/* --- Commands without an end of their own --- */

static void
print_arguments(const Tool *tool, const char *role)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    json_object *list = json_object_new_array();
    json_object *object = event("done", "arguments");

    disk_add_arguments(tool->disk, strcmp(role, "primary") == 0 ? DISK_PRIMARY : DISK_SECONDARY,
                       argv);
    for (guint i = 0; i < argv->len; i++)
        json_object_array_add(list, json_object_new_string(argv->pdata[i]));
    json_object_object_add(object, "arguments", list);
    print(object);
}

static void
print_standing(const Tool *tool)
{
    json_object *object = event("done", "standing");
    DiskStanding standing;

    disk_standing(tool->disk, &standing);
    json_object_object_add(object, "exists", json_object_new_boolean(standing.exists));
    json_object_object_add(object, "up_to_date", json_object_new_boolean(standing.up_to_date));
    json_object_object_add(object, "never_used", json_object_new_boolean(standing.never_used));
    json_object_object_add(object, "committing", json_object_new_boolean(standing.committing));
    json_object_object_add(object, "generation",
                           json_object_new_int64((int64_t)standing.generation));
    if (standing.reason)
        json_object_object_add(object, "reason", json_object_new_string(standing.reason));
    disk_standing_clear(&standing);
    print(object);
}

static void
print_status(const Tool *tool)
{
    json_object *object = event("done", "status");

    json_object_object_add(object, "status", disk_status(tool->disk));
    json_object_object_add(object, "percent", json_object_new_int(disk_sync_percent(tool->disk)));
    print(object);
}

static void
connect_qmp(Tool *tool, const char *path)
{
    static const QmpClientHandlers none = {.ready = NULL};

    g_clear_pointer(&tool->qmp, qmp_client_unref);
    tool->qmp = qmp_client_new(path, QMP_TIMEOUT_MS, &none, NULL);
    print(event("done", "qmp"));
}

/* TRUE: it was one of these. */
static gboolean
run_now(Tool *tool, char **words)
{
    const char *first = words[1] ? words[1] : "";

    if (strcmp(words[0], "arguments") == 0)
        print_arguments(tool, first);
    else if (strcmp(words[0], "standing") == 0)
        print_standing(tool);
    else if (strcmp(words[0], "status") == 0)
        print_status(tool);
    else if (strcmp(words[0], "qmp") == 0)
        connect_qmp(tool, first);
    else if (strcmp(words[0], "release") == 0)
        disk_release(tool->disk, g_ascii_strtoull(first, NULL, 10));
    else
        return FALSE;
    return TRUE;
}

/* --- Operations --- */

static const struct {
    const char *name;
    void (*with_number)(Disk *, uint64_t, DiskDoneFunc, gpointer);
    void (*without)(Disk *, DiskDoneFunc, gpointer);
} operations[] = {
    {"adopt", NULL, disk_adopt},           {"stop", NULL, disk_stop},
    {"finish", NULL, disk_finish},         {"verify", NULL, disk_verify},
    {"connect", disk_connect, NULL},       {"barrier", disk_barrier, NULL},
    {"alone", disk_alone, NULL},           {"mirror", disk_mirror, NULL},
    {"checkpoint", disk_checkpoint, NULL}, {"failover", disk_failover, NULL},
};

static void
run_line(Tool *tool, const char *line)
{
    g_auto(GStrv) words = g_strsplit(line, " ", -1);
    guint n = g_strv_length(words);

    if (n == 0 || run_now(tool, words))
        return;

    Pending *pending = g_new0(Pending, 1);
    uint64_t number = n > 1 ? g_ascii_strtoull(words[n > 2 ? 2 : 1], NULL, 10) : 0;

    pending->command = g_strdup(words[0]);
    if (strcmp(words[0], "start") == 0 && n >= 3) {
        disk_start(tool->disk, strcmp(words[1], "primary") == 0 ? DISK_PRIMARY : DISK_SECONDARY,
                   number, n > 3, on_done, pending);
        return;
    }
    if (strcmp(words[0], "move") == 0 && tool->qmp) {
        disk_move_local(tool->disk, tool->qmp, number, on_done, pending);
        return;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(operations); i++) {
        if (strcmp(words[0], operations[i].name) != 0)
            continue;
        if (operations[i].with_number)
            operations[i].with_number(tool->disk, number, on_done, pending);
        else
            operations[i].without(tool->disk, on_done, pending);
        return;
    }
    g_error("unknown command: %s", line);
}

static gboolean
on_stdin(gint fd, GIOCondition condition G_GNUC_UNUSED, gpointer user_data)
{
    Tool *tool = user_data;
    char buffer[1024];
    ssize_t n = read(fd, buffer, sizeof(buffer));
    char *end;

    if (n <= 0) {
        g_main_loop_quit(tool->loop);
        return G_SOURCE_REMOVE;
    }
    g_string_append_len(tool->input, buffer, n);
    while ((end = strchr(tool->input->str, '\n'))) {
        g_autofree char *line = g_strndup(tool->input->str, (gsize)(end - tool->input->str));

        g_string_erase(tool->input, 0, (gssize)strlen(line) + 1);
        run_line(tool, line);
    }
    return G_SOURCE_CONTINUE;
}

/* --- Configuration --- */

static void
set_value(DiskConfig *config, const char *key, const char *value)
{
    const struct {
        const char *key;
        const char **field;
    } texts[] = {
        {"name", &config->name},
        {"image", &config->image},
        {"device", &config->device},
        {"cache", &config->cache},
        {"run-dir", &config->run_dir},
        {"state-dir", &config->state_dir},
        {"nbdkit", &config->nbdkit},
        {"plugin-dir", &config->plugin_dir},
        {"listen", &config->listen_address},
        {"peer", &config->peer_host},
        {"tls-ca", &config->tls_ca},
        {"tls-cert", &config->tls_cert},
        {"tls-key", &config->tls_key},
        {"overlay-dir", &config->overlay_dir},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++) {
        if (strcmp(key, texts[i].key) == 0) {
            *texts[i].field = value;
            return;
        }
    }

    uint64_t number = g_ascii_strtoull(value, NULL, 10);

    if (strcmp(key, "port") == 0)
        config->listen_port = (uint16_t)number;
    else if (strcmp(key, "overlay") == 0)
        config->overlays_in_memory = strcmp(value, "memory") == 0;
    else if (strcmp(key, "overlay-limit") == 0)
        config->overlay_limit_bytes = number;
    else if (strcmp(key, "window-limit") == 0)
        config->window_limit_bytes = number;
    else if (strcmp(key, "sync-rate") == 0)
        config->sync_rate_bytes_s = number;
    else if (strcmp(key, "timeout-ms") == 0)
        config->timeout_ms = (unsigned)number;
    else
        g_error("unknown key: %s", key);
}

int
main(int argc, char **argv)
{
    Tool tool = {.input = g_string_new(NULL)};
    DiskConfig config = {.name = "disk0",
                         .device = "virtio-blk-pci",
                         .cache = "writeback",
                         .nbdkit = "nbdkit",
                         .overlay_limit_bytes = UINT64_C(64) << 20,
                         .window_limit_bytes = UINT64_C(64) << 20,
                         .timeout_ms = 5000};

    for (int i = 1; i < argc; i++) {
        char *equals = strchr(argv[i], '=');

        g_assert(equals);
        *equals = '\0';
        set_value(&config, argv[i], equals + 1);
    }
    tool.loop = g_main_loop_new(NULL, FALSE);
    tool.disk = disk_new(&config, &handlers, &tool);
    g_unix_fd_add(STDIN_FILENO, G_IO_IN | G_IO_HUP, on_stdin, &tool);
    g_main_loop_run(tool.loop);
    disk_free(tool.disk);
    g_clear_pointer(&tool.qmp, qmp_client_unref);
    g_main_loop_unref(tool.loop);
    (void)g_string_free(tool.input, TRUE);
    return 0;
}
