/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vm.h - one QEMU process: start or adopt it, watch it, and the QMP commands colod needs of it */
#pragma once

#include "config.h"
#include "qmp-client.h"

#include <glib.h>
#include <json-c/json.h>

#define VM_ERROR (vm_error_quark())
GQuark vm_error_quark(void);

typedef enum VmError {
    VM_ERROR_START, /* QEMU could not be executed or ended before QMP answered */
    VM_ERROR_ADOPT, /* the recorded process is gone, another one, or cannot be opened */
    VM_ERROR_QMP,   /* QMP refused or did not answer; the text says what */
} VmError;

typedef struct Vm Vm;

/* Of a NIC. */
typedef struct VmTapFds {
    int queues[CONFIG_MAX_QUEUES];
} VmTapFds;

/* Callbacks run in the main context current in vm_start() or vm_adopt(); the Vm may be freed from
 * each. */
typedef struct VmHandlers {
    /* QMP answers. Once. */
    void (*ready)(Vm *vm, gpointer user_data);
    /* The process is gone; @how says with which status or signal. Once; nothing follows. */
    void (*dead)(Vm *vm, const char *how, gpointer user_data);
    /* A probe missed its deadline, or QMP broke while the process lives. Once until it answers
     * again. */
    void (*stuck)(Vm *vm, const GError *reason, gpointer user_data);
    /* After `stuck`: a probe was answered. */
    void (*answers)(Vm *vm, gpointer user_data);
    /* STOP and RESUME, with QEMU's own time stamps. */
    void (*stopped)(Vm *vm, gint64 timestamp_us, gpointer user_data);
    void (*resumed)(Vm *vm, gint64 timestamp_us, gpointer user_data);
    /* The guest asked to be powered off. */
    void (*guest_shutdown)(Vm *vm, gpointer user_data);
} VmHandlers;

/* Of an operation. @error NULL: done. Never from within the call; not called after vm_free(). */
typedef void (*VmDoneFunc)(Vm *vm, const GError *error, gpointer user_data);

/**
 * Starts QEMU, in a session of its own (under systemd in a scope of its own), so that it outlives
 * us.
 *
 * @run_dir: absolute; its qmp.sock, console.log, qemu.log and qmp.log are used.
 * @guest_fds: of each NIC the queues of its tap, the others and all of a stream port -1; borrowed,
 * duplicated.
 * @more: further arguments (of disks), char *; NULL: none.
 * @incoming: with `-incoming defer`; else stopped (`-S`) until vm_run().
 * Errors: as process_spawn(). That QEMU ends at once is told by `dead`.
 */
Vm *vm_start(const Config *config, const char *run_dir, const VmTapFds *guest_fds,
             const GPtrArray *more, gboolean incoming, const VmHandlers *handlers,
             gpointer user_data, GError **error);

/** Watches a QEMU that outlived the colod that started it and connects to its QMP socket.
 * @pid, @start_ticks: as noted when it was started (vm_pid(), vm_start_ticks()). Errors: as
 * process_adopt(). */
Vm *vm_adopt(const Config *config, const char *run_dir, gint64 pid, guint64 start_ticks,
             const VmHandlers *handlers, gpointer user_data, GError **error);

/** Stops watching; QEMU goes on. NULL is fine. */
void vm_free(Vm *vm);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Vm, vm_free)

/** For the disks' nodes; borrowed, NULL before ready. */
QmpClient *vm_qmp(Vm *vm);
gint64 vm_pid(const Vm *vm);
/** When the process was started, in clock ticks since boot: with the pid, which process it is. */
guint64 vm_start_ticks(const Vm *vm);
/** The number that a queue of @nic's tap has inside QEMU. */
int vm_tap_fd_number(unsigned nic, unsigned queue);
/** Copies QEMU's tap descriptor of @nic (pidfd_getfd(2)). Return: a descriptor the caller owns, or
 * a negative errno. */
int vm_copy_tap_fd(Vm *vm, int fd_number);
/** "11.1.3"; NULL before ready. Borrowed. */
const char *vm_version(const Vm *vm);

/** SIGKILL by pidfd; `dead` follows. */
void vm_kill(Vm *vm);

/** Lets a VM started with -S run (`cont`). */
void vm_run(Vm *vm, VmDoneFunc done, gpointer user_data);
/** Whether the capability `return-path` goes with x-colo (SelftestResult.return_path). Before the
 * next two. */
void vm_set_return_path(Vm *vm, gboolean return_path);
/** As secondary: sets capabilities and listens for the stream on the UNIX socket @path. */
void vm_listen_incoming(Vm *vm, const char *path, VmDoneFunc done, gpointer user_data);
/** As primary: sets capabilities and starts the migration to the UNIX socket @path. */
void vm_migrate(Vm *vm, const char *path, VmDoneFunc done, gpointer user_data);
/** As primary in COLO: starts a checkpoint now. */
void vm_checkpoint(Vm *vm, VmDoneFunc done, gpointer user_data);
/** Ends COLO or a migration, whatever of it is under way; the migration socket is closed already.
 * @done: the guest runs and no migration is active. The caller sets the deadline. */
void vm_leave_colo(Vm *vm, VmDoneFunc done, gpointer user_data);
/** Asks whether QEMU's main loop answers. @done's error is set if it did not within @timeout_ms. */
void vm_probe(Vm *vm, unsigned timeout_ms, VmDoneFunc done, gpointer user_data);
/** Probes every @period_ms from ready on; `stuck` if an answer takes longer than @limit_ms. */
void vm_set_watch(Vm *vm, unsigned period_ms, unsigned limit_ms);

/* ---- pure parts, for tests ---- */

/** QEMU's command line, NULL-terminated; free with g_strfreev(). */
char **vm_command_line(const Config *config, const char *run_dir, const GPtrArray *more,
                       gboolean incoming);
