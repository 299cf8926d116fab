/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vm-process.h - a process that outlives us: spawn, find again, watch, end (private to vm.c) */
#pragma once

#include <glib.h>

typedef struct VmProcess VmProcess;

/** @how: "exited with status 1", "killed by signal 9"; once, in the context current at creation. */
typedef void (*VmProcessDeadFunc)(const char *how, gpointer user_data);

/**
 * Starts @argv in its own session with @fds[i] as descriptor @numbers[i]; stdout and stderr go to
 * @log_path. Errors: G_SPAWN_ERROR, G_FILE_ERROR.
 */
VmProcess *vm_process_spawn(const char *const *argv, const int *fds, const int *numbers,
                            gsize n_fds, const char *log_path, VmProcessDeadFunc dead,
                            gpointer user_data, GError **error);

/** Watches a process that is not our child. Errors: G_FILE_ERROR; it is gone or another one. */
VmProcess *vm_process_adopt(gint64 pid, guint64 start_ticks, VmProcessDeadFunc dead,
                            gpointer user_data, GError **error);

void vm_process_free(VmProcess *process);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmProcess, vm_process_free)

gint64 vm_process_pid(const VmProcess *process);
guint64 vm_process_start_ticks(const VmProcess *process);
void vm_process_kill(VmProcess *process);
/** pidfd_getfd(2): a descriptor or a negative errno. */
int vm_process_copy_fd(VmProcess *process, int number);
