/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* process.c - a process that outlives us: spawn, find again, watch, end
 *
 * Everything goes through a pidfd: it cannot come to mean another process, and it becomes readable
 * when the process ends, our child or not.
 */
#include "process.h"

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
#include "process-start.h"
#include "source.h"

G_DEFINE_QUARK(colod_process_error_quark, process_error)

enum { LOG_KEEP_BYTES = 4 * 1024 * 1024 };

struct Process {
    pid_t pid;
    guint64 start_ticks;
    gboolean is_child;
    int pidfd;
    GSource *watch;
    ProcessDeadFunc dead;
    gpointer user_data;
};

guint64
process_parse_start_ticks(const char *stat)
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

guint64
process_read_start_ticks(gint64 pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/stat", pid);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? process_parse_start_ticks(text) : 0;
}

gboolean
process_exists(gint64 pid, guint64 start_ticks)
{
    return pid > 0 && start_ticks != 0 && process_read_start_ticks(pid) == start_ticks;
}

static char *
describe_end(const Process *process)
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
    Process *process = user_data;
    g_autofree char *how = describe_end(process);

    g_clear_pointer(&process->watch, g_source_unref);
    process->dead(how, process->user_data);
    return G_SOURCE_REMOVE;
}

static Process *
process_new(pid_t pid, guint64 start_ticks, gboolean is_child, ProcessDeadFunc dead,
            gpointer user_data, GError **error)
{
    auto_fd int pidfd = pidfd_open(pid, 0);

    if (pidfd < 0) {
        g_set_error(error, PROCESS_ERROR, PROCESS_ERROR_ADOPT, "cannot open process %d: %s", pid,
                    g_strerror(errno));
        return NULL;
    }

    Process *process = g_new0(Process, 1);

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

static int
open_log(const char *path)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > LOG_KEEP_BYTES)
        (void)!ftruncate(fd, 0);
    return fd;
}

static Process *
cannot_start(const char *what, int error_number, GError **error)
{
    g_set_error(error, PROCESS_ERROR, PROCESS_ERROR_START, "%s: %s", what,
                g_strerror(error_number));
    return NULL;
}

Process *
process_spawn(const char *const *argv, const char *const *envp, const int *fds, const int *numbers,
              gsize n_fds, const char *log_path, ProcessDeadFunc dead, gpointer user_data,
              GError **error)
{
    auto_fd int log = open_log(log_path);
    g_autofree char *program = g_find_program_in_path(argv[0]);

    if (log < 0)
        return cannot_start(log_path, errno, error);
    if (program == NULL)
        return cannot_start(argv[0], ENOENT, error);

    const pid_t pid = process_start(&(ProcessStart){.program = program,
                                                    .argv = argv,
                                                    .envp = envp,
                                                    .fds = fds,
                                                    .numbers = numbers,
                                                    .n_fds = n_fds,
                                                    .log_fd = log});
    if (pid < 0)
        return cannot_start(program, -pid, error);
    return process_new(pid, process_read_start_ticks(pid), TRUE, dead, user_data, error);
}

Process *
process_adopt(gint64 pid, guint64 start_ticks, ProcessDeadFunc dead, gpointer user_data,
              GError **error)
{
    g_autoptr(Process) process =
        process_new((pid_t)pid, start_ticks, FALSE, dead, user_data, error);

    if (process == NULL)
        return NULL;
    /* After pidfd_open(): from here on the pid cannot change its meaning. */
    if (!process_exists(pid, start_ticks)) {
        g_set_error(error, PROCESS_ERROR, PROCESS_ERROR_ADOPT,
                    "process %" G_GINT64_FORMAT " is not the one that was started", pid);
        return NULL;
    }
    return g_steal_pointer(&process);
}

void
process_free(Process *process)
{
    if (process == NULL)
        return;
    source_clear(&process->watch);
    fd_clear(&process->pidfd);
    g_free(process);
}

gint64
process_pid(const Process *process)
{
    return process->pid;
}

guint64
process_start_ticks(const Process *process)
{
    return process->start_ticks;
}

void
process_kill(Process *process)
{
    /* ESRCH: it has just ended, and `dead` is on its way. */
    (void)pidfd_send_signal(process->pidfd, SIGKILL, NULL, 0);
}

int
process_copy_fd(Process *process, int number)
{
    int fd = pidfd_getfd(process->pidfd, number, 0);

    return fd < 0 ? -errno : fd;
}

char **
process_in_scope(char **argv, const char *description)
{
    /* As sd_booted(3) finds out. systemd-run --scope executes the command in its own process. */
    if (!g_file_test("/run/systemd/system", G_FILE_TEST_IS_DIR))
        return argv;

    GPtrArray *wrapped = g_ptr_array_new();

    g_ptr_array_add(wrapped, g_strdup("systemd-run"));
    g_ptr_array_add(wrapped, g_strdup("--scope"));
    g_ptr_array_add(wrapped, g_strdup("--quiet"));
    g_ptr_array_add(wrapped, g_strdup("--collect"));
    g_ptr_array_add(wrapped, g_strdup("--slice=machine.slice"));
    g_ptr_array_add(wrapped, g_strdup_printf("--description=%s", description));
    g_ptr_array_add(wrapped, g_strdup("--"));
    for (char **arg = argv; *arg != NULL; arg++)
        g_ptr_array_add(wrapped, *arg);
    g_ptr_array_add(wrapped, NULL);
    g_free(argv);
    return (char **)g_ptr_array_free(wrapped, FALSE);
}
