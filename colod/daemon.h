/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon.h - one VM's colod: everything wired to the state machine */
#pragma once

#include "config.h"

#include <glib.h>

typedef struct Daemon Daemon;

/**
 * Opens the control socket, reads the state file and starts to decide.
 *
 * @config: taken. @run_dir: of this VM (made if missing, 0700). @state_dir: of all VMs. Runs in the
 * thread-default main context. Errors: any part's, with path or address in the text.
 */
Daemon *daemon_new(Config *config, const char *run_dir, const char *state_dir, GError **error);

/** Lets go of everything; QEMU goes on. */
void daemon_free(Daemon *daemon);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Daemon, daemon_free)

/**
 * Ends in good order: a protected primary hands over, a secondary says so; a VM that is alone keeps
 * running.
 * @done: once, at most a few seconds later.
 */
void daemon_shut_down(Daemon *daemon, void (*done)(gpointer user_data), gpointer user_data);
