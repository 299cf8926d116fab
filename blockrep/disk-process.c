/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-process.c - one nbdkit with a plugin of ours: start or find, watch, command, end
 *
 * Theory of operation
 *
 * nbdkit gets its sockets by socket activation (LISTEN_FDS, sd_listen_fds(3)): colod binds them, so
 * a port in use is an error before anything is started, several sockets go to one nbdkit, and a
 * socket can be kept open over the death of the process that serves it. LISTEN_PID has to be the
 * pid after the last exec, which only the process itself knows: hence the shell.
 *
 * The pidfd tells the death, our child's or not. Of a process that was found the control socket
 * tells the pid (SO_PEERCRED). Its start time is read after that, so a pid that changed its owner
 * in between is taken for the new owner; it is only killed when the plugin's connection has
 * just been seen to be open and silent.
 */
#include "disk-process.h"

#include "disk.h"
#include "process.h"
#include "source.h"

#include <errno.h>
#include <glib/gstdio.h>

enum {
    FIRST_LISTEN_FD = 3, /* sd_listen_fds(3) */
    GRACE_MS = 500,      /* between the end of the control connection and the pidfd */
};

struct DiskProcess {
    Process *process; /* NULL: its pid is not known yet */
    DiskClient *client;
    const DiskProcessHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    GSource *kill_timer;
    char *why; /* it will be killed, or was not found */
    gboolean ready;
};

static void
on_dead(const char *how, gpointer user_data)
{
    DiskProcess *process = user_data;
    g_autofree char *text =
        process->why ? g_strdup_printf("%s (%s)", process->why, how) : g_strdup(how);

    source_clear(&process->kill_timer);
    /* One that was killed, or did not wait for its last clients, has left it. */
    (void)g_unlink(disk_client_path(process->client));
    process->handlers->dead(process, text, process->user_data);
}

static gboolean
on_kill_timer(gpointer user_data)
{
    DiskProcess *process = user_data;

    source_clear(&process->kill_timer);
    if (process->process)
        process_kill(process->process);
    else
        on_dead("not found", process);
    return G_SOURCE_REMOVE;
}

static void
kill_in(DiskProcess *process, unsigned ms)
{
    if (!process->kill_timer)
        source_set_timeout(&process->kill_timer, process->context, ms, on_kill_timer, process);
}

static gboolean
adopt(DiskProcess *process, GError **error)
{
    gint64 pid = disk_client_pid(process->client);

    if (!process->process)
        process->process =
            process_adopt(pid, process_read_start_ticks(pid), on_dead, process, error);
    return process->process != NULL;
}

static void
on_status(DiskClient *client G_GNUC_UNUSED, json_object *status, gpointer user_data)
{
    DiskProcess *process = user_data;
    g_autoptr(GError) error = NULL;

    if (process->ready) {
        process->handlers->status(process, status, process->user_data);
        return;
    }
    if (!adopt(process, &error)) {
        if (!process->why)
            process->why = g_strdup(error->message);
        kill_in(process, 0);
        return;
    }
    process->ready = TRUE;
    process->handlers->ready(process, status, process->user_data);
}

static void
on_closed(DiskClient *client, const GError *reason, gpointer user_data)
{
    DiskProcess *process = user_data;
    gboolean hangs = g_error_matches(reason, DISK_ERROR, DISK_ERROR_TIMEOUT);

    if (!process->why)
        process->why = g_strdup(reason->message);
    if (disk_client_pid(client) > 0)
        (void)adopt(process, NULL);
    kill_in(process, hangs || !process->process ? 0 : GRACE_MS);
}

static const DiskClientHandlers client_handlers = {.status = on_status, .closed = on_closed};

static DiskProcess *
process_alloc(const char *control_path, unsigned connect_ms, unsigned silence_ms,
              const DiskProcessHandlers *handlers, gpointer user_data)
{
    DiskProcess *process = g_new0(DiskProcess, 1);

    process->handlers = handlers;
    process->user_data = user_data;
    process->context = g_main_context_ref_thread_default();
    process->client =
        disk_client_new(control_path, connect_ms, silence_ms, &client_handlers, process);
    return process;
}

static char **
with_shell(const DiskProcessSpec *spec)
{
    static const char *const shell[] = {"sh", "-c", "LISTEN_PID=$$ exec \"$@\"", "sh"};
    GPtrArray *argv = g_ptr_array_new();

    for (gsize i = 0; i < G_N_ELEMENTS(shell); i++)
        g_ptr_array_add(argv, g_strdup(shell[i]));
    for (const char *const *arg = spec->argv; *arg; arg++)
        g_ptr_array_add(argv, g_strdup(*arg));
    g_ptr_array_add(argv, NULL);
    return process_in_scope((char **)g_ptr_array_free(argv, FALSE), spec->description);
}

DiskProcess *
disk_process_start(const DiskProcessSpec *spec, unsigned start_ms, unsigned silence_ms,
                   const DiskProcessHandlers *handlers, gpointer user_data, GError **error)
{
    g_autofree char *n = g_strdup_printf("%u", spec->n_fds);
    g_auto(GStrv) envp = g_environ_setenv(g_get_environ(), "LISTEN_FDS", n, TRUE);
    g_auto(GStrv) argv = with_shell(spec);
    int numbers[DISK_PROCESS_MAX_FDS];

    envp = g_environ_unsetenv(g_steal_pointer(&envp), "LISTEN_FDNAMES");
    for (unsigned i = 0; i < spec->n_fds; i++)
        numbers[i] = FIRST_LISTEN_FD + (int)i;
    (void)g_unlink(spec->control_path); /* a stale one would answer ECONNREFUSED */

    g_autoptr(DiskProcess) process =
        process_alloc(spec->control_path, start_ms, silence_ms, handlers, user_data);

    process->process =
        process_spawn((const char *const *)argv, (const char *const *)envp, spec->fds, numbers,
                      spec->n_fds, spec->log_path, on_dead, process, error);
    return process->process ? g_steal_pointer(&process) : NULL;
}

DiskProcess *
disk_process_find(const char *control_path, unsigned silence_ms,
                  const DiskProcessHandlers *handlers, gpointer user_data)
{
    return process_alloc(control_path, 0, silence_ms, handlers, user_data);
}

void
disk_process_free(DiskProcess *process)
{
    if (!process)
        return;
    source_clear(&process->kill_timer);
    g_clear_pointer(&process->client, disk_client_free);
    g_clear_pointer(&process->process, process_free);
    g_main_context_unref(process->context);
    g_free(process->why);
    g_free(process);
}

void
disk_process_send(DiskProcess *process, const char *command, json_object *arguments,
                  DiskUrgency urgency, unsigned timeout_ms, DiskReplyFunc func, gpointer user_data,
                  GDestroyNotify destroy)
{
    disk_client_send(process->client, command, arguments, urgency, timeout_ms, func, user_data,
                     destroy);
}

void
disk_process_end(DiskProcess *process, unsigned limit_ms)
{
    disk_client_send(process->client, "quit", NULL, DISK_AT_ONCE, limit_ms, NULL, NULL, NULL);
    kill_in(process, limit_ms);
}

int
disk_process_copy_fd(DiskProcess *process, unsigned index)
{
    return process->process ? process_copy_fd(process->process, FIRST_LISTEN_FD + (int)index)
                            : -ESRCH;
}
