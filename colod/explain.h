/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* explain.h - why checkpoints happen: differences between the guests, grouped, with advice */
#pragma once

#include "checkpoint-policy.h"
#include "record.h"

#include <glib.h>
#include <json-c/json.h>

/* Copies of divergences, oldest first. Any thread, one at a time. */
typedef struct ExplainRecords ExplainRecords;

ExplainRecords *explain_records_new(void);
void explain_records_free(ExplainRecords *records);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ExplainRecords, explain_records_free)

/** @record: copied, with its frames. */
void explain_records_add(ExplainRecords *records, const DivergenceRecord *record);
unsigned explain_records_count(const ExplainRecords *records);

/**
 * What the guest was saying when the two differed: an array of objects with what, rule, count,
 * last_s (seconds before @now_ns, CLOCK_MONOTONIC), waited_ms and flow (of the last one) and, where
 * there is some, advice; most frequent first.
 */
json_object *explain_records_to_json(const ExplainRecords *records, gint64 now_ns);

/**
 * Writes each to @dir, which must exist, as NUMBER-RULE.pcapng with two interfaces, as
 * colo-replay(1) reads it. Blocks. Errors: G_FILE_ERROR, the text names the file.
 */
gboolean explain_records_save(const ExplainRecords *records, const char *dir, GError **error);

enum { EXPLAIN_RECENT = 1024, EXPLAIN_WINDOW_S = 60 };

/* When the last checkpoints were, and why. All zero is empty. */
typedef struct ExplainCauses {
    struct {
        gint64 ns;
        CheckpointCause cause;
    } recent[EXPLAIN_RECENT];
    unsigned n; /* ever */
} ExplainCauses;

void explain_causes_add(ExplainCauses *causes, CheckpointCause cause, gint64 now_ns);

/** An object: how many for each cause in the last EXPLAIN_WINDOW_S seconds. */
json_object *explain_causes_to_json(const ExplainCauses *causes, gint64 now_ns);
