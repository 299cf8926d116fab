/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* process-start.c - fork and exec, without waiting for the exec
 *
 * g_spawn_async() and posix_spawn() return when the child's exec is done. On a busy host, or with
 * the program on a disk that does not answer, that takes longer than the peer waits for our
 * heartbeats. Between fork and exec there are only calls that signal-safety(7) lists: another
 * thread may have held a lock of the allocator at the fork.
 */
#include "process-start.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { FIRST_PASSED_FD = STDERR_FILENO + 1 };

static _Noreturn void
give_up(const char *line)
{
    (void)!write(STDERR_FILENO, line, strlen(line));
    _exit(PROCESS_START_FAILED);
}

/* What we have is for noticing and relaying in time; what we start could keep us waiting. */
static void
become_ordinary(void)
{
    static const char normal[] = "0";
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    (void)setpriority(PRIO_PROCESS, 0, 0);
    if (fd < 0)
        return;
    (void)!write(fd, normal, strlen(normal));
    (void)close(fd);
}

static void
take_standard_streams(int log_fd)
{
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    (void)dup2(log_fd, STDOUT_FILENO);
    (void)dup2(log_fd, STDERR_FILENO);
    if (null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0)
        give_up("colod: /dev/null cannot be opened\n");
}

/* @copies: room for n_fds. A number may be that of another one's source: first all move away. */
static void
take_descriptors(const ProcessStart *start, int *copies, int first_free)
{
    for (gsize i = 0; i < start->n_fds; i++) {
        copies[i] = fcntl(start->fds[i], F_DUPFD_CLOEXEC, first_free);
        if (copies[i] < 0)
            give_up("colod: too many open files to pass them on\n");
    }
    if (close_range(FIRST_PASSED_FD, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
        give_up("colod: descriptors cannot be kept from the program\n");
    for (gsize i = 0; i < start->n_fds; i++) {
        if (dup2(copies[i], start->numbers[i]) < 0)
            give_up("colod: a descriptor cannot be passed on\n");
    }
}

static _Noreturn void
run_in_child(const ProcessStart *start, int *copies, int first_free)
{
    char **envp = start->envp ? (char **)start->envp : environ;

    (void)setsid(); /* a terminal's signals, and the end of our session, must not reach it */
    (void)signal(SIGPIPE, SIG_DFL);
    become_ordinary();
    take_standard_streams(start->log_fd);
    take_descriptors(start, copies, first_free);
    (void)execve(start->program, (char **)start->argv, envp);
    give_up("colod: the program cannot be run: it is gone, or not a program of this machine\n");
}

pid_t
process_start(const ProcessStart *start)
{
    g_autofree int *copies = g_new0(int, start->n_fds);
    int first_free = FIRST_PASSED_FD;

    g_assert(start->log_fd >= FIRST_PASSED_FD);
    for (gsize i = 0; i < start->n_fds; i++) {
        g_assert(start->numbers[i] >= FIRST_PASSED_FD);
        first_free = MAX(first_free, start->numbers[i] + 1);
    }

    pid_t pid = fork();

    if (pid == 0)
        run_in_child(start, copies, first_free);
    return pid < 0 ? -errno : pid;
}
