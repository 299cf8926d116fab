/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* arbiter.h - who may go on: the claim for a generation (docs/ARCHITECTURE.md, "Claims") */
#pragma once

#include "config.h"

#include <glib.h>

typedef enum ArbiterVerdict {
    ARBITER_GRANTED, /* the generation is ours; nobody else can get it */
    ARBITER_REFUSED, /* another host has it, or a newer one */
    ARBITER_UNKNOWN, /* not decided: arbiter out of reach, or only an operator can tell (manual) */
} ArbiterVerdict;

typedef struct ArbiterAnswer {
    ArbiterVerdict verdict;
    guint64 newest; /* newest generation known to the arbiter; 0 if none or unknown */
    char owner[64]; /* of `newest`; empty if unknown */
    char *text;     /* one sentence for status and events; borrowed by the callback */
} ArbiterAnswer;

typedef void (*ArbiterFunc)(const ArbiterAnswer *answer, gpointer user_data);

typedef struct Arbiter Arbiter;

/**
 * Errors (G_FILE_ERROR): the path of a `file` arbiter is missing or not writable; the text names it
 * and says what to do.
 */
Arbiter *arbiter_new(const Config *config, GError **error);
void arbiter_free(Arbiter *arbiter); /* pending answers are dropped */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Arbiter, arbiter_free)

/**
 * Claims @generation for this host. @func runs exactly once in the caller's main context, within
 * the configured arbiter timeout (ARBITER_UNKNOWN if storage did not answer by then), never from
 * within this call.
 *
 * `file`: <path>/<vm>.<generation, 20 digits> is created by link(2) from a file that already holds
 * the owner's name, is fsynced, and then the folder is: atomic also on NFS. A claim that exists and
 * names us is granted again (a retry after a crash). A claim older than the newest is refused.
 * `manual`: always ARBITER_UNKNOWN; the operator's `colo failover` is what decides.
 *
 * @operator_decides: the operator ordered it: `manual` grants; `file` still records the claim, and
 * still refuses a generation that somebody else owns.
 */
void arbiter_claim(Arbiter *arbiter, guint64 generation, gboolean operator_decides,
                   ArbiterFunc func, gpointer user_data);

/** Asks for the newest generation without claiming (verdict: GRANTED if the newest is ours, REFUSED
 * if another's, UNKNOWN if none or out of reach). Same delivery. */
void arbiter_query(Arbiter *arbiter, ArbiterFunc func, gpointer user_data);
