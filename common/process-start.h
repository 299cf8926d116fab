/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* process-start.h - fork and exec, without waiting for the exec */
#pragma once

#include <glib.h>

typedef struct ProcessStart {
    const char *program;     /* path of the file to run */
    const char *const *argv; /* NULL-terminated */
    const char *const *envp; /* NULL: ours */
    const int *fds;          /* what the program finds as descriptors numbers[] (each above 2) */
    const int *numbers;
    gsize n_fds;
    int log_fd; /* its stdout and stderr; above 2 */
} ProcessStart;

/**
 * Starts a program in its own session, with nice value and OOM score of an ordinary one, stdin from
 * /dev/null and no other descriptors than those given. Any thread.
 *
 * Returns the pid of the child, which its parent must reap, or a negative errno. What fails later
 * than the fork is told by a line in the log and exit status PROCESS_START_FAILED.
 */
pid_t process_start(const ProcessStart *start);

enum { PROCESS_START_FAILED = 127 }; /* as the shell's: not found or not to be run */
