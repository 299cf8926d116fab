/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-table.h - the rewriter's connections: lookup, eviction, generations */
#pragma once

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>

#include "flow-slots.h"
#include "rewriter.h"

/* One cache line holds what a lookup and a step need of most frames, the next the rest. */
typedef struct RewriterEntry {
    alignas(64) FlowKey key; /* as SVM sends */
    RewriterConn conn;
    uint32_t hash;
    uint32_t prev, next; /* on its list; next also on the free list */
    uint32_t generation;
    bool open; /* which list */
} RewriterEntry;

typedef struct RewriterTable RewriterTable;
typedef struct RewriterStore RewriterStore;

/** Return: 0, or -ENOMEM. @connections_max: at least 1. */
int rewriter_table_new(uint32_t connections_max, const uint64_t hash_key[2],
                       RewriterTable **ret_table);
void rewriter_table_free(RewriterTable *table);
/** What rewriter_table_save() writes to (borrowed), while nothing is known yet. */
void rewriter_table_set_store(RewriterTable *table, RewriterStore *store);

uint32_t rewriter_table_hash(const RewriterTable *table, const FlowKey *key);

/** Return: the connection, or NULL. One of an older generation is gone. */
RewriterEntry *rewriter_table_find(RewriterTable *table, const FlowKey *key, uint32_t hash);

/** Adds a connection that is not there, all zero.
 *
 * If the table is full one of an older generation makes room, else the least recently used one that
 * is not open. Return: NULL if all are open.
 */
RewriterEntry *rewriter_table_add(RewriterTable *table, const FlowKey *key, uint32_t hash);

/** @entry was used and now is open or not: evicted last of its kind. */
void rewriter_table_touch(RewriterTable *table, RewriterEntry *entry, bool open);

void rewriter_table_remove(RewriterTable *table, RewriterEntry *entry);

/** The store, if there is one, has @record of @entry from now on, until it is removed or a new
 * generation begins; NULL: nothing. */
void rewriter_table_save(RewriterTable *table, const RewriterEntry *entry,
                         const RewriterRecord *record);

/** Walks over all connections, in no order: the first at or after *@cursor, which is moved behind
 * it (0 to begin with). NULL: no more. Others may be added and removed between two calls. */
RewriterEntry *rewriter_table_next(RewriterTable *table, uint32_t *cursor);

/** Forgets all, at no cost. Return: how many. */
uint32_t rewriter_table_new_generation(RewriterTable *table);

uint32_t rewriter_table_count(const RewriterTable *table);
uint32_t rewriter_table_count_open(const RewriterTable *table);
uint64_t rewriter_table_evicted(const RewriterTable *table);
