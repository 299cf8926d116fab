/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* flow-slots.c - from a flow's key to the place of its entry in an array: a keyed hash table */
#include "flow-slots.h"

#include <errno.h>
#include <sys/mman.h>

void *
flow_slots_map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    /* Best effort: 100,000 flows are 20 MB, and each lookup is a random access. */
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

void
flow_slots_unmap(void *map, size_t bytes)
{
    if (map)
        (void)munmap(map, bytes);
}

static size_t
words_bytes(const FlowSlots *slots)
{
    return ((size_t)slots->mask + 1) * sizeof(slots->words[0]);
}

int
flow_slots_init(FlowSlots *slots, uint32_t entries_max, const HashKey *key)
{
    uint32_t n = 2;

    while (n < entries_max * 2)
        n *= 2;
    *slots = (FlowSlots){.mask = n - 1, .key = *key};
    slots->words = flow_slots_map(words_bytes(slots));
    return slots->words ? 0 : -ENOMEM;
}

void
flow_slots_clear(FlowSlots *slots)
{
    flow_slots_unmap(slots->words, words_bytes(slots));
    slots->words = NULL;
}

void
flow_slots_remove(FlowSlots *slots, uint32_t hash, uint32_t index)
{
    uint32_t hole = hash & slots->mask;

    while ((uint32_t)slots->words[hole] != index + 1)
        hole = (hole + 1) & slots->mask;
    slots->words[hole] = 0;
    for (uint32_t j = (hole + 1) & slots->mask; slots->words[j]; j = (j + 1) & slots->mask) {
        uint32_t home = (uint32_t)(slots->words[j] >> 32) & slots->mask;

        /* Move back unless its home lies between the hole and itself. */
        if (((j - home) & slots->mask) >= ((j - hole) & slots->mask)) {
            slots->words[hole] = slots->words[j];
            slots->words[j] = 0;
            hole = j;
        }
    }
}
