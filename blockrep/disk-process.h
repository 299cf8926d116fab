/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-process.h - one nbdkit with a plugin of ours: start or find, watch, command, end
 *
 * Thread: as disk-client.h. It outlives us: disk_process_free() only stops watching.
 */
#pragma once

#include "disk-client.h"

enum { DISK_PROCESS_MAX_FDS = 2 };

typedef struct DiskProcess DiskProcess;

typedef struct DiskProcessHandlers {
    /* It serves, and this is its first status. Once. */
    void (*ready)(DiskProcess *process, json_object *status, gpointer user_data);
    /* A later status. */
    void (*status)(DiskProcess *process, json_object *status, gpointer user_data);
    /* It is gone, or could not be found; @how says why. Once, nothing follows: replies
     * that are open do not come. */
    void (*dead)(DiskProcess *process, const char *how, gpointer user_data);
} DiskProcessHandlers;

typedef struct DiskProcessSpec {
    const char *const *argv; /* nbdkit and its arguments */
    const char *control_path;
    const char *log_path;
    const char *description;       /* of the scope under systemd */
    int fds[DISK_PROCESS_MAX_FDS]; /* listening sockets; borrowed */
    unsigned n_fds;
} DiskProcessSpec;

/**
 * @start_ms: until the control socket must answer; @silence_ms: how long it may be silent later.
 * One that misses either is killed, and then dead.
 */
DiskProcess *disk_process_start(const DiskProcessSpec *spec, unsigned start_ms, unsigned silence_ms,
                                const DiskProcessHandlers *handlers, gpointer user_data,
                                GError **error);
/** One that outlived the colod that started it, by its control socket. None there: dead. */
DiskProcess *disk_process_find(const char *control_path, unsigned silence_ms,
                               const DiskProcessHandlers *handlers, gpointer user_data);
void disk_process_free(DiskProcess *process);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DiskProcess, disk_process_free)

/** As disk_client_send(). */
void disk_process_send(DiskProcess *process, const char *command, json_object *arguments,
                       DiskUrgency urgency, unsigned timeout_ms, DiskReplyFunc func,
                       gpointer user_data, GDestroyNotify destroy);
/** Orders it to quit, and kills it if it does not within @limit_ms; dead follows. */
void disk_process_end(DiskProcess *process, unsigned limit_ms);
/** pidfd_getfd(2) of its @index-th listening socket: a descriptor or a negative errno. */
int disk_process_copy_fd(DiskProcess *process, unsigned index);
