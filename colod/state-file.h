/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* state-file.h - what a host must remember of its VM over a crash of colod or of the host */
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum StateRole { STATE_ROLE_NONE, STATE_ROLE_PRIMARY, STATE_ROLE_SECONDARY } StateRole;
const char *state_role_name(StateRole role); /* "none", "primary", "secondary" */

enum { STATE_MAX_NICS = 8 };

/* A value type: no pointers, copied by assignment. */
typedef struct HostState {
    guint64 generation; /* newest generation this host owned or heard of and accepted; 0: never */
    guint64 claiming;   /* generation a claim was begun for and not known to have ended; 0: none */
    StateRole role;     /* in `generation` */
    bool protecting;    /* primary only: a secondary may have been armed in this generation, so that
                         * going on    needs the claim for the next */
    bool unprotect;     /* the operator wants no protection until `colo protect` */
    gint64 qemu_pid;    /* 0: no VM */
    guint64 qemu_start_ticks;   /* field 22 of /proc/PID/stat: tells a reused pid */
    int tap_fd[STATE_MAX_NICS]; /* descriptor numbers inside QEMU, -1: none */
    char boot_id[40]; /* /proc/sys/kernel/random/boot_id of the host when QEMU was started */
} HostState;

/** All zero, descriptors -1. */
void host_state_init(HostState *state);

/**
 * Reads @path. A missing file gives host_state_init() and TRUE. A file that is damaged (checksum
 * line does not fit, syntax, unknown version) is an error with the path and the remedy: a host that
 * does not know its generation must not guess one.
 */
gboolean host_state_load(const char *path, HostState *ret_state, GError **error);

/** Writes atomically and durably (temporary file, fsync, rename, fsync of the folder). Blocks: call
 * it from a worker thread where a stall matters. */
gboolean host_state_save(const char *path, const HostState *state, GError **error);
