/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* replay.h - runs two captures through an engine as the output of the two sides */
#pragma once

#include <gio/gio.h>
#include <json-c/json.h>

#include "compare.h"

typedef struct ReplayOptions {
    CompareConfig config;
    const char *primary_path; /* both sides (interfaces 0 and 1) if @secondary_path is NULL */
    const char *secondary_path;
    const char *write_dir; /* a pcapng of each divergence; or NULL */
    gboolean align;        /* each capture starts at time 0 */
    gboolean progress;     /* on stderr */
    void (*on_divergence)(void *opaque, const CompareDivergence *divergence, const char *text);
    void *opaque;
} ReplayOptions;

typedef struct ReplayResult {
    CompareStats stats;
    uint64_t n_divergences;
    uint64_t n_checkpoints;
    int64_t duration_ns;
    struct json_object *divergences; /* array; owned by the result */
} ReplayResult;

/** Runs the captures to their end.
 *
 * Each divergence counts as a checkpoint that is committed at once. Frames that are left when both
 * captures end count as timed out. Error: which file, which packet, what is wrong.
 */
gboolean replay_run(const ReplayOptions *options, ReplayResult *ret_result, GError **error);
void replay_result_clear(ReplayResult *result);
