/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-vm.h - a throw-away QEMU process, and the private folder of its sockets
 *
 * One thread, the one whose thread-default main context was current when a process was started.
 */
#pragma once

#include <glib.h>

/* A folder under TMPDIR with mode 0700, removed with its last reference. */
typedef struct SelftestDir SelftestDir;

/** Errors: G_FILE_ERROR. */
SelftestDir *selftest_dir_new(GError **error);
SelftestDir *selftest_dir_ref(SelftestDir *dir);
void selftest_dir_unref(SelftestDir *dir);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SelftestDir, selftest_dir_unref)

const char *selftest_dir_path(const SelftestDir *dir);

/** Removes it now, as far as that goes; the last reference removes what is made afterwards. */
void selftest_dir_remove(const SelftestDir *dir);

typedef struct SelftestVm SelftestVm;

/** The process is gone and reaped. Once, from the main loop. */
typedef void (*SelftestVmGoneFunc)(SelftestVm *vm, gpointer user_data);

/**
 * Runs @argv, which dies with the calling thread. Its standard error is kept, the end of it only.
 * @dir: the process holds a reference until it is reaped.
 * Errors: G_SPAWN_ERROR when it cannot be executed, G_FILE_ERROR when it cannot be watched.
 */
SelftestVm *selftest_vm_start(const char *const *argv, SelftestDir *dir, SelftestVmGoneFunc gone,
                              gpointer user_data, GError **error);

/** SIGKILL; gone() follows. Harmless when it is gone. */
void selftest_vm_kill(SelftestVm *vm);

/** As selftest_vm_kill(), without gone(): what is left is reaped from the main loop. */
void selftest_vm_free(SelftestVm *vm);

gboolean selftest_vm_is_gone(const SelftestVm *vm);

/** Exit code of a process that is gone by itself; -1 otherwise. */
int selftest_vm_exit_code(const SelftestVm *vm);

/** How it ended: "exited with status 1", "was killed by signal 9 (Killed)". Caller frees. */
char *selftest_vm_describe_end(const SelftestVm *vm);

/** Its last line on standard error so far: one line of valid UTF-8, bounded; NULL if there is none.
 * Caller frees. */
char *selftest_vm_last_words(SelftestVm *vm);
