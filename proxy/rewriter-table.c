/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-table.c - the rewriter's connections: lookup, eviction, generations */
/*
 * Theory of operation
 *
 * Entries live in one array; an open-addressed table of words, hash in the upper half and index + 1
 * in the lower, finds them. It has at least twice as many slots as there are entries, and deletion
 * shifts back what follows, so that probe sequences stay short without tombstones. The hash is
 * keyed: nobody on the network can make connections collide.
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
#include <sys/mman.h>

#include "keyed-hash.h"

static_assert(sizeof(RewriterEntry) == 128, "two lines; rewriter.h states the size");

typedef struct EntryList {
    uint32_t head, tail;
    uint32_t n_current; /* of this generation */
} EntryList;

struct RewriterTable {
    uint64_t *slots; /* hash << 32 | index + 1; 0: empty */
    RewriterEntry *entries;
    uint32_t slot_mask;
    uint32_t entries_max;
    uint32_t n_used_once; /* entries[] from here on was never used */
    uint32_t free_head;
    uint32_t generation;
    EntryList lists[2]; /* by RewriterEntry.open */
    HashKey key;
    uint64_t n_evicted;
};

/* Address space, memory as it is used. */
static void *
map_zeroed(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    /* Best effort: each lookup among many connections is a random access. */
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static size_t
slots_bytes(const RewriterTable *t)
{
    return ((size_t)t->slot_mask + 1) * sizeof(t->slots[0]);
}

static size_t
entries_bytes(const RewriterTable *t)
{
    return (size_t)t->entries_max * sizeof(t->entries[0]);
}

int
rewriter_table_new(uint32_t connections_max, const uint64_t hash_key[2], RewriterTable **ret_table)
{
    RewriterTable *t = calloc(1, sizeof(*t));
    uint32_t n_slots = 2;

    if (!t)
        return -ENOMEM;
    while (n_slots < connections_max * 2)
        n_slots *= 2;
    t->slot_mask = n_slots - 1;
    t->entries_max = connections_max;
    t->key = (HashKey){{hash_key[0], hash_key[1]}};
    t->free_head = REWRITER_NONE;
    for (int i = 0; i < 2; i++)
        t->lists[i] = (EntryList){.head = REWRITER_NONE, .tail = REWRITER_NONE};
    t->slots = map_zeroed(slots_bytes(t));
    t->entries = map_zeroed(entries_bytes(t));
    if (!t->slots || !t->entries) {
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
    if (t->slots)
        (void)munmap(t->slots, slots_bytes(t));
    if (t->entries)
        (void)munmap(t->entries, entries_bytes(t));
    free(t);
}

uint32_t
rewriter_table_hash(const RewriterTable *t, const FlowKey *key)
{
    uint64_t h;

    /* IPv4 leaves w[1..3] zero, and w[5] without VLAN; the hash covers the number of words. */
    if (!(key->w[1] | key->w[2] | key->w[3])) {
        const uint64_t words[3] = {key->w[0], key->w[4], key->w[5]};

        h = keyed_hash(&t->key, words, key->w[5] ? 3 : 2);
    } else {
        h = keyed_hash(&t->key, key->w, FRAME_KEY_WORDS);
    }
    return (uint32_t)(h ^ (h >> 32));
}

static bool
key_equal(const FlowKey *a, const FlowKey *b)
{
    /* Word by word: a vector load of what was just stored in words would have to wait for them. */
    return a->w[0] == b->w[0] && a->w[4] == b->w[4] && a->w[1] == b->w[1] && a->w[2] == b->w[2] &&
           a->w[3] == b->w[3] && a->w[5] == b->w[5];
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
    e->next = REWRITER_NONE;
    if (list->tail == REWRITER_NONE)
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

    if (e->prev == REWRITER_NONE)
        list->head = e->next;
    else
        t->entries[e->prev].next = e->next;
    if (e->next == REWRITER_NONE)
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
    if (e->open == open && e->next == REWRITER_NONE)
        return;
    list_remove(t, e);
    list_append(t, e, open);
}

/* --- table --- */

static void
slot_delete(RewriterTable *t, uint32_t i)
{
    uint32_t hole = i;

    t->slots[hole] = 0;
    for (uint32_t j = (i + 1) & t->slot_mask; t->slots[j]; j = (j + 1) & t->slot_mask) {
        uint32_t home = (uint32_t)(t->slots[j] >> 32) & t->slot_mask;

        /* Move back unless its home lies between the hole and itself. */
        if (((j - home) & t->slot_mask) >= ((j - hole) & t->slot_mask)) {
            t->slots[hole] = t->slots[j];
            t->slots[j] = 0;
            hole = j;
        }
    }
}

void
rewriter_table_remove(RewriterTable *t, RewriterEntry *e)
{
    uint32_t index = index_of(t, e);
    uint32_t i = e->hash & t->slot_mask;

    while ((uint32_t)t->slots[i] != index + 1)
        i = (i + 1) & t->slot_mask;
    slot_delete(t, i);
    list_remove(t, e);
    e->generation = t->generation - 1; /* free, to rewriter_table_next() */
    e->next = t->free_head;
    t->free_head = index;
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
    for (uint32_t i = hash & t->slot_mask; t->slots[i]; i = (i + 1) & t->slot_mask) {
        if (t->slots[i] >> 32 != hash)
            continue;
        RewriterEntry *e = &t->entries[(uint32_t)t->slots[i] - 1];

        if (!key_equal(&e->key, key))
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
    return index == REWRITER_NONE ? NULL : &t->entries[index];
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

    if (t->free_head == REWRITER_NONE && t->n_used_once == t->entries_max && !evict_one(t))
        return NULL;
    if (t->free_head != REWRITER_NONE) {
        index = t->free_head;
        t->free_head = t->entries[index].next;
    } else {
        index = t->n_used_once++;
    }
    RewriterEntry *e = &t->entries[index];

    *e = (RewriterEntry){.key = *key, .hash = hash, .generation = t->generation};
    uint32_t i = hash & t->slot_mask;

    while (t->slots[i])
        i = (i + 1) & t->slot_mask;
    t->slots[i] = ((uint64_t)hash << 32) | (index + 1);
    list_append(t, e, false);
    return e;
}

uint32_t
rewriter_table_new_generation(RewriterTable *t)
{
    uint32_t n = rewriter_table_count(t);

    t->generation++;
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
