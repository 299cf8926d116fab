/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* plugin-parts.h - what both plugins do alike: parameters, threads, clients, answers to nbdkit */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

enum { PLUGIN_MAX_REQUEST_BYTES = 32 * 1024 * 1024 }; /* what NBD clients may always send */

/** A parameter that is a path, made absolute, as nbdkit changes its folder later; or an NBD URI.
 * Frees the one before; free() it. 0, or -1 with nbdkit's error set. */
int plugin_set_path(char **path, const char *value);

/** Signals are nbdkit's: its own threads block them, so must ours and those they start. */
void plugin_block_signals(sigset_t *ret_before);
void plugin_restore_signals(const sigset_t *before);

/** Whether this connection's client is at a UNIX socket. False with an error of nbdkit's if it
 * cannot be said: *@ret_known. */
bool plugin_peer_is_local(bool *ret_known);

/* For nbdkit's questions; @handle is not looked at. */
int plugin_yes(void *handle);
int plugin_no(void *handle);
