/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* loop-watch.h - tells when the main loop stood still, and what it waited for */
#pragma once

#include <glib.h>
#include <stdint.h>

typedef struct LoopStop {
    unsigned ms;         /* that nothing was dispatched */
    unsigned running_ms; /* of them the thread was computing */
    unsigned waiting_ms; /* and so long it could run and had no CPU; the rest it slept, in a call
                          * that blocks, or because the process or the host was stopped */
} LoopStop;

typedef void (*LoopWatchFunc)(const LoopStop *stop, gpointer user_data);

typedef struct LoopWatch LoopWatch;

/**
 * Calls @func, from the thread's default context, each time that context has dispatched nothing for
 * @limit_ms or longer. For the calling thread.
 *
 * @limit_ms: at least 10; it wakes up five times as often.
 */
LoopWatch *loop_watch_new(unsigned limit_ms, LoopWatchFunc func, gpointer user_data);
void loop_watch_free(LoopWatch *watch);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(LoopWatch, loop_watch_free)

/** The first two fields of a /proc/PID/schedstat text, in ns: on a CPU, waiting for one. FALSE: it
 * is malformed; the two are then 0. */
gboolean loop_watch_parse(const char *text, uint64_t *ret_running_ns, uint64_t *ret_waiting_ns);
