/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vm-process.c - a process that outlives us: spawn, find again, watch, end
 *
 * Everything goes through a pidfd: it cannot come to mean another process, and it becomes readable
 * when the process ends, our child or not.
 */
#include "vm-process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <glib-unix.h>

#include "fd.h"
#include "vm.h"

enum { LOG_KEEP_BYTES = 4 * 1024 * 1024 };

struct VmProcess {
    pid_t pid;
    guint64 start_ticks;
    gboolean is_child;
    int pidfd;
    GSource *watch;
    VmProcessDeadFunc dead;
    gpointer user_data;
};

guint64
vm_parse_start_ticks(const char *stat)
{
    /* The command name (field 2) may hold spaces and parentheses: fields count from the last one.
     */
    const char *end_of_name = strrchr(stat, ')');

    if (end_of_name == NULL)
        return 0;

    g_auto(GStrv) fields = g_strsplit(end_of_name + 1, " ", 0);

    /* fields[0] is empty, fields[1] is field 3: the state. A zombie has ended, and only its parent
     * does not know yet. */
    if (g_strv_length(fields) > 1 && strchr("ZXx", fields[1][0]) != NULL)
        return 0;
    return g_strv_length(fields) > 20 ? g_ascii_strtoull(fields[20], NULL, 10) : 0;
}

static guint64
read_start_ticks(gint64 pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/stat", pid);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? vm_parse_start_ticks(text) : 0;
}

gboolean
vm_process_exists(gint64 pid, guint64 start_ticks)
{
    return pid > 0 && start_ticks != 0 && read_start_ticks(pid) == start_ticks;
}

static char *
describe_end(const VmProcess *process)
{
    siginfo_t info = {0};

    if (!process->is_child)
        return g_strdup("ended");
    if (waitid(P_PIDFD, (id_t)process->pidfd, &info, WEXITED | WNOHANG) < 0)
        return g_strdup_printf("ended (%s)", g_strerror(errno));
    if (info.si_code == CLD_EXITED)
        return g_strdup_printf("exited with status %d", info.si_status);
    return g_strdup_printf("killed by signal %d (%s)", info.si_status, g_strsignal(info.si_status));
}

static gboolean
on_pidfd(gint fd G_GNUC_UNUSED, GIOCondition condition G_GNUC_UNUSED, gpointer user_data)
{
    VmProcess *process = user_data;
    g_autofree char *how = describe_end(process);

    g_clear_pointer(&process->watch, g_source_unref);
    process->dead(how, process->user_data);
    return G_SOURCE_REMOVE;
}

static VmProcess *
process_new(pid_t pid, guint64 start_ticks, gboolean is_child, VmProcessDeadFunc dead,
            gpointer user_data, GError **error)
{
    auto_fd int pidfd = pidfd_open(pid, 0);

    if (pidfd < 0) {
        g_set_error(error, VM_ERROR, VM_ERROR_ADOPT, "cannot open process %d: %s", pid,
                    g_strerror(errno));
        return NULL;
    }

    VmProcess *process = g_new0(VmProcess, 1);

    process->pid = pid;
    process->start_ticks = start_ticks;
    process->is_child = is_child;
    process->pidfd = fd_steal(&pidfd);
    process->dead = dead;
    process->user_data = user_data;
    process->watch = g_unix_fd_source_new(process->pidfd, G_IO_IN);
    g_source_set_callback(process->watch, G_SOURCE_FUNC(on_pidfd), process, NULL);
    g_source_attach(process->watch, g_main_context_get_thread_default());
    return process;
}

static void
in_child(gpointer user_data G_GNUC_UNUSED)
{
    /* A terminal's signals, and the end of our session, must not reach the VM. */
    (void)setsid();
}

static int
open_log(const char *path)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > LOG_KEEP_BYTES)
        (void)!ftruncate(fd, 0);
    return fd;
}

VmProcess *
vm_process_spawn(const char *const *argv, const int *fds, const int *numbers, gsize n_fds,
                 const char *log_path, VmProcessDeadFunc dead, gpointer user_data, GError **error)
{
    auto_fd int log = open_log(log_path);
    GPid pid;

    if (log < 0) {
        g_set_error(error, VM_ERROR, VM_ERROR_START, "%s: %s", log_path, g_strerror(errno));
        return NULL;
    }
    if (!g_spawn_async_with_pipes_and_fds(
            NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_SEARCH_PATH, in_child, NULL, -1,
            log, log, fds, numbers, n_fds, &pid, NULL, NULL, NULL, error))
        return NULL;
    return process_new(pid, read_start_ticks(pid), TRUE, dead, user_data, error);
}

VmProcess *
vm_process_adopt(gint64 pid, guint64 start_ticks, VmProcessDeadFunc dead, gpointer user_data,
                 GError **error)
{
    g_autoptr(VmProcess) process =
        process_new((pid_t)pid, start_ticks, FALSE, dead, user_data, error);

    if (process == NULL)
        return NULL;
    /* After pidfd_open(): from here on the pid cannot change its meaning. */
    if (!vm_process_exists(pid, start_ticks)) {
        g_set_error(error, VM_ERROR, VM_ERROR_ADOPT,
                    "process %" G_GINT64_FORMAT " is not the QEMU that was started", pid);
        return NULL;
    }
    return g_steal_pointer(&process);
}

void
vm_process_free(VmProcess *process)
{
    if (process == NULL)
        return;
    if (process->watch != NULL) {
        g_source_destroy(process->watch);
        g_source_unref(process->watch);
    }
    fd_clear(&process->pidfd);
    g_free(process);
}

gint64
vm_process_pid(const VmProcess *process)
{
    return process->pid;
}

guint64
vm_process_start_ticks(const VmProcess *process)
{
    return process->start_ticks;
}

void
vm_process_kill(VmProcess *process)
{
    /* ESRCH: it has just ended, and `dead` is on its way. */
    (void)pidfd_send_signal(process->pidfd, SIGKILL, NULL, 0);
}

int
vm_process_copy_fd(VmProcess *process, int number)
{
    int fd = pidfd_getfd(process->pidfd, number, 0);

    return fd < 0 ? -errno : fd;
}
