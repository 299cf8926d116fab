/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-load.h - the file of a daemon's rewriter, read by the next daemon */
#pragma once

#include "bytes.h"
#include "rewriter-store.h"

typedef struct RewriterLoad {
    uint32_t loaded;
    uint32_t damaged;    /* slots whose record is not what was written; ignored */
    uint32_t beyond_max; /* the rewriter is full of others */
    const char *problem; /* NULL, or why nothing was loaded */
    int error;           /* errno that goes with it, or 0 */
} RewriterLoad;

/** Takes what the file at @path says, if it is @vm's, into @rewriter. Nobody writes it any more.
 *
 * Nothing in it is trusted. ret_load->error is ENOENT if there is no file.
 */
void rewriter_load(const char *path, const RewriterVm *vm, Rewriter *rewriter,
                   RewriterLoad *ret_load);

/* ---- pure parts, for tests ---- */

/** @header: the file's first REWRITER_STORE_HEADER_BYTES. Return: NULL, or what is wrong. */
const char *rewriter_load_header(View header, const RewriterVm *vm, uint32_t *ret_generation);
/** The slots in @slots; the rest that is less than one is left. Counts in @load. */
void rewriter_load_slots(View slots, uint32_t generation, Rewriter *rewriter, RewriterLoad *load);
