/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-table.c - the rewriter's connections: lookup, eviction, generations */
/*
 * Theory of operation
 *
 * Entries live in one array; FlowSlots finds them. Its hash is keyed: nobody on the network can
 * make connections collide.
 *
 * A commit counts the generation up. Entries of older ones are still in table and lists but
 * nobody sees them: a lookup that meets one removes it, and when the table is full they go first.
 * (32 bits: the number would have to come round to the same value, 13 years at 10 commits a second,
 * with the entry untouched.)
 *
 * Two lists: open connections, in the order in which they opened, and all others, in the order of
 * use. Both are appended to only, so what is of an older generation is at their heads, and finding
 * the one to evict is a look at two heads.
 */
#include "rewriter-table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "rewriter-store.h"

static_assert(sizeof(RewriterEntry) == 128, "two lines; rewriter.h states the size");

typedef struct EntryList {
    uint32_t head, tail;
    uint32_t n_current; /* of this generation */
} EntryList;

struct RewriterTable {
    FlowSlots slots;
    RewriterStore *store; /* or NULL */
    RewriterEntry *entries;
    uint32_t entries_max;
    uint32_t n_used_once; /* entries[] from here on was never used */
    uint32_t free_head;
    uint32_t generation;
    EntryList lists[2]; /* by RewriterEntry.open */
    uint64_t n_evicted;
};

static size_t
entries_bytes(const RewriterTable *t)
{
    return (size_t)t->entries_max * sizeof(t->entries[0]);
}

int
rewriter_table_new(uint32_t connections_max, const uint64_t hash_key[2], RewriterTable **ret_table)
{
    RewriterTable *t = calloc(1, sizeof(*t));
    const HashKey key = {{hash_key[0], hash_key[1]}};

    if (!t)
        return -ENOMEM;
    t->entries_max = connections_max;
    t->free_head = FLOW_NONE;
    for (int i = 0; i < 2; i++)
        t->lists[i] = (EntryList){.head = FLOW_NONE, .tail = FLOW_NONE};
    t->entries = flow_slots_map(entries_bytes(t));
    if (flow_slots_init(&t->slots, connections_max, &key) < 0 || !t->entries) {
        rewriter_table_free(t);
        return -ENOMEM;
    }
    *ret_table = t;
    return 0;
}

void
rewriter_table_free(RewriterTable *t)
{
    if (!t)
        return;
    flow_slots_clear(&t->slots);
    flow_slots_unmap(t->entries, entries_bytes(t));
    free(t);
}

void
rewriter_table_set_store(RewriterTable *t, RewriterStore *store)
{
    t->store = store;
}

uint32_t
rewriter_table_hash(const RewriterTable *t, const FlowKey *key)
{
    return flow_slots_hash(&t->slots, key);
}

/* --- lists --- */

static uint32_t
index_of(const RewriterTable *t, const RewriterEntry *e)
{
    return (uint32_t)(e - t->entries);
}

static bool
is_stale(const RewriterTable *t, const RewriterEntry *e)
{
    return e->generation != t->generation;
}

static void
list_append(RewriterTable *t, RewriterEntry *e, bool open)
{
    EntryList *list = &t->lists[open];
    uint32_t index = index_of(t, e);

    e->open = open;
    e->prev = list->tail;
    e->next = FLOW_NONE;
    if (list->tail == FLOW_NONE)
        list->head = index;
    else
        t->entries[list->tail].next = index;
    list->tail = index;
    list->n_current++;
}

static void
list_remove(RewriterTable *t, RewriterEntry *e)
{
    EntryList *list = &t->lists[e->open];

    if (e->prev == FLOW_NONE)
        list->head = e->next;
    else
        t->entries[e->prev].next = e->next;
    if (e->next == FLOW_NONE)
        list->tail = e->prev;
    else
        t->entries[e->next].prev = e->prev;
    if (!is_stale(t, e))
        list->n_current--;
}

void
rewriter_table_touch(RewriterTable *t, RewriterEntry *e, bool open)
{
    /* Open ones are not evicted: no order to be kept, no neighbours to be fetched. */
    if (e->open && open)
        return;
    if (e->open == open && e->next == FLOW_NONE)
        return;
    list_remove(t, e);
    list_append(t, e, open);
}

/* --- table --- */

void
rewriter_table_remove(RewriterTable *t, RewriterEntry *e)
{
    uint32_t index = index_of(t, e);

    if (t->store && !is_stale(t, e))
        rewriter_store_drop(t->store, index);
    flow_slots_remove(&t->slots, e->hash, index);
    list_remove(t, e);
    e->generation = t->generation - 1; /* free, to rewriter_table_next() */
    e->next = t->free_head;
    t->free_head = index;
}

void
rewriter_table_save(RewriterTable *t, const RewriterEntry *e, const RewriterRecord *record)
{
    if (!t->store)
        return;
    if (record)
        rewriter_store_put(t->store, index_of(t, e), t->generation, record);
    else
        rewriter_store_drop(t->store, index_of(t, e));
}

RewriterEntry *
rewriter_table_next(RewriterTable *t, uint32_t *cursor)
{
    while (*cursor < t->n_used_once) {
        RewriterEntry *e = &t->entries[(*cursor)++];

        if (!is_stale(t, e))
            return e;
    }
    return NULL;
}

RewriterEntry *
rewriter_table_find(RewriterTable *t, const FlowKey *key, uint32_t hash)
{
    uint32_t at = hash, index;

    while ((index = flow_slots_next(&t->slots, hash, &at)) != FLOW_NONE) {
        RewriterEntry *e = &t->entries[index];

        if (!flow_key_equal(&e->key, key))
            continue;
        if (!is_stale(t, e))
            return e;
        rewriter_table_remove(t, e);
        return NULL;
    }
    return NULL;
}

static RewriterEntry *
entry_at(const RewriterTable *t, uint32_t index)
{
    return index == FLOW_NONE ? NULL : &t->entries[index];
}

static bool
evict_one(RewriterTable *t)
{
    RewriterEntry *other = entry_at(t, t->lists[false].head);
    RewriterEntry *open = entry_at(t, t->lists[true].head);

    if (open && is_stale(t, open) && !(other && is_stale(t, other)))
        other = open;
    if (!other)
        return false;
    if (!is_stale(t, other))
        t->n_evicted++;
    rewriter_table_remove(t, other);
    return true;
}

RewriterEntry *
rewriter_table_add(RewriterTable *t, const FlowKey *key, uint32_t hash)
{
    uint32_t index;

    if (t->free_head == FLOW_NONE && t->n_used_once == t->entries_max && !evict_one(t))
        return NULL;
    if (t->free_head != FLOW_NONE) {
        index = t->free_head;
        t->free_head = t->entries[index].next;
    } else {
        index = t->n_used_once++;
    }
    RewriterEntry *e = &t->entries[index];

    *e = (RewriterEntry){.key = *key, .hash = hash, .generation = t->generation};
    flow_slots_insert(&t->slots, hash, index);
    list_append(t, e, false);
    return e;
}

uint32_t
rewriter_table_new_generation(RewriterTable *t)
{
    uint32_t n = rewriter_table_count(t);

    t->generation++;
    if (t->store)
        rewriter_store_begin(t->store, t->generation);
    t->lists[0].n_current = t->lists[1].n_current = 0;
    return n;
}

uint32_t
rewriter_table_count(const RewriterTable *t)
{
    return t->lists[0].n_current + t->lists[1].n_current;
}

uint32_t
rewriter_table_count_open(const RewriterTable *t)
{
    return t->lists[true].n_current;
}

uint64_t
rewriter_table_evicted(const RewriterTable *t)
{
    return t->n_evicted;
}
