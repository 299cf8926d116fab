/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* process.h - a process that outlives us: spawn, find again, watch, end */
#pragma once

#include <glib.h>

#define PROCESS_ERROR (process_error_quark())
GQuark process_error_quark(void);

typedef enum ProcessError {
    PROCESS_ERROR_START, /* it is not there, its log cannot be written, the system refused */
    PROCESS_ERROR_ADOPT, /* it is gone, or another one has its pid */
} ProcessError;

typedef struct Process Process;

/** @how: "exited with status 1", "killed by signal 9"; once, in the context current at creation. */
typedef void (*ProcessDeadFunc)(const char *how, gpointer user_data);

/**
 * Starts @argv (argv[0] is looked for in PATH) in its own session, with the usual nice value and
 * OOM score whatever ours are, and with @fds[i] as descriptor @numbers[i]; stdout and stderr go to
 * @log_path. @envp: NULL for our own. Does not wait for the program to be loaded: if that fails,
 * the log says so and `dead` is told of exit status 127. Errors: PROCESS_ERROR.
 */
Process *process_spawn(const char *const *argv, const char *const *envp, const int *fds,
                       const int *numbers, gsize n_fds, const char *log_path, ProcessDeadFunc dead,
                       gpointer user_data, GError **error);

/** Watches a process that is not our child. Errors: PROCESS_ERROR. */
Process *process_adopt(gint64 pid, guint64 start_ticks, ProcessDeadFunc dead, gpointer user_data,
                       GError **error);

/** Stops watching; the process goes on. */
void process_free(Process *process);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Process, process_free)

gint64 process_pid(const Process *process);
/** In clock ticks since boot. */
guint64 process_start_ticks(const Process *process);
/** SIGKILL by pidfd; `dead` follows. */
void process_kill(Process *process);
/** pidfd_getfd(2): a descriptor or a negative errno. */
int process_copy_fd(Process *process, int number);

/** Takes @argv (g_strfreev()) and returns it, under systemd as the command of a scope of its own:
 * a restart of our unit must not touch the process. Its pid is that of what @argv starts. */
char **process_in_scope(char **argv, const char *description);

/** Field 22 of a /proc/PID/stat text (start time in clock ticks), or 0 if it is malformed. */
guint64 process_parse_start_ticks(const char *stat);
/** Of a process that exists, or 0. */
guint64 process_read_start_ticks(gint64 pid);
/** Whether process @pid exists and was started at @start_ticks. */
gboolean process_exists(gint64 pid, guint64 start_ticks);
