/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* flow-slots.h - from a flow's key to the place of its entry in an array: a keyed hash table */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"
#include "keyed-hash.h"

enum { FLOW_NONE = UINT32_MAX }; /* no entry */

/*
 * FlowSlots: an open-addressed table of words, hash in the upper half, index + 1 in the lower. It
 * knows nothing of the entries: who looks up compares the keys of those whose hash is the same. It
 * has at least twice as many slots as there are entries, and deletion shifts back what follows, so
 * that probe sequences stay short without tombstones; a lookup normally touches one line of it.
 *
 * Embedded in the table it serves and used from one thread at a time. Inline, as it is in the path
 * of each packet.
 */
typedef struct FlowSlots {
    uint64_t *words; /* 0: empty */
    uint32_t mask;
    HashKey key;
} FlowSlots;

/** @entries_max: at most 2^30. Return: 0, or -ENOMEM. */
int flow_slots_init(FlowSlots *slots, uint32_t entries_max, const HashKey *key);
/** Gives back the memory; a table of zeroes is allowed. */
void flow_slots_clear(FlowSlots *slots);

/** The entry is in, with this hash. */
void flow_slots_remove(FlowSlots *slots, uint32_t hash, uint32_t index);

/** @bytes of zeroes: address space is reserved, memory used as it is touched, in huge pages if they
 * can be had. NULL: none left. Given back with flow_slots_unmap(). */
void *flow_slots_map(size_t bytes);
void flow_slots_unmap(void *map, size_t bytes);

static inline uint32_t
flow_slots_hash(const FlowSlots *slots, const FlowKey *key)
{
    uint64_t h;

    /* IPv4 leaves w[1..3] zero, and w[5] without VLAN. The number of words is hashed too, and the
     * class in w[4] tells the kinds apart. */
    if (!(key->w[1] | key->w[2] | key->w[3])) {
        const uint64_t words[3] = {key->w[0], key->w[4], key->w[5]};

        h = keyed_hash(&slots->key, words, key->w[5] ? 3 : 2);
    } else {
        h = keyed_hash(&slots->key, key->w, FRAME_KEY_WORDS);
    }
    return (uint32_t)(h ^ (h >> 32));
}

static inline bool
flow_key_equal(const FlowKey *a, const FlowKey *b)
{
    /* Word by word: a vector load of what was just stored in words would have to wait for them. */
    return a->w[0] == b->w[0] && a->w[4] == b->w[4] && a->w[1] == b->w[1] && a->w[2] == b->w[2] &&
           a->w[3] == b->w[3] && a->w[5] == b->w[5];
}

/** The next entry with this hash; *@at is @hash to begin with. Return: its index; FLOW_NONE: no
 * more. */
static inline uint32_t
flow_slots_next(const FlowSlots *slots, uint32_t hash, uint32_t *at)
{
    uint64_t word;

    while ((word = slots->words[*at & slots->mask])) {
        ++*at;
        if (word >> 32 == hash)
            return (uint32_t)word - 1;
    }
    return FLOW_NONE;
}

/** There is room: no more than entries_max are in. */
static inline void
flow_slots_insert(FlowSlots *slots, uint32_t hash, uint32_t index)
{
    uint32_t i = hash & slots->mask;

    while (slots->words[i])
        i = (i + 1) & slots->mask;
    slots->words[i] = ((uint64_t)hash << 32) | (index + 1);
}
