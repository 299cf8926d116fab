/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-set.c - a set of a disk's chunks, in memory (pure): a bit each */
#include "chunk-set.h"

#include <string.h>

enum { BITS = 64 };

struct ChunkSet {
    uint64_t n_chunks, n_words, count;
    uint64_t *words;
};

ChunkSet *
chunk_set_new(uint64_t disk_bytes)
{
    ChunkSet *set = g_new0(ChunkSet, 1);

    set->n_chunks = disk_bytes / CHUNK_BYTES + (disk_bytes % CHUNK_BYTES != 0);
    set->n_words = (set->n_chunks + BITS - 1) / BITS;
    set->words = g_new0(uint64_t, set->n_words);
    return set;
}

void
chunk_set_free(ChunkSet *set)
{
    if (!set)
        return;
    g_free(set->words);
    g_free(set);
}

/* The bits of chunks [first, last] that are in the word of @first. */
static uint64_t
mask_of(uint64_t first, uint64_t last)
{
    uint64_t from = first % BITS, n = MIN(last - first + 1, BITS - from);

    return (n == BITS ? UINT64_MAX : (UINT64_C(1) << n) - 1) << from;
}

void
chunk_set_add(ChunkSet *set, uint64_t offset, uint64_t len)
{
    uint64_t last = (offset + len - 1) / CHUNK_BYTES;

    g_assert(len > 0 && last < set->n_chunks);
    for (uint64_t i = offset / CHUNK_BYTES; i <= last; i = (i / BITS + 1) * BITS) {
        uint64_t mask = mask_of(i, last), *word = &set->words[i / BITS];

        set->count += (uint64_t)__builtin_popcountll(mask & ~*word);
        *word |= mask;
    }
}

void
chunk_set_remove(ChunkSet *set, uint64_t offset, uint64_t len)
{
    uint64_t last = (offset + len - 1) / CHUNK_BYTES;

    g_assert(len > 0 && last < set->n_chunks);
    for (uint64_t i = offset / CHUNK_BYTES; i <= last; i = (i / BITS + 1) * BITS) {
        uint64_t mask = mask_of(i, last), *word = &set->words[i / BITS];

        set->count -= (uint64_t)__builtin_popcountll(mask & *word);
        *word &= ~mask;
    }
}

bool
chunk_set_has(const ChunkSet *set, uint64_t offset)
{
    uint64_t i = offset / CHUNK_BYTES;

    g_assert(i < set->n_chunks);
    return set->words[i / BITS] >> i % BITS & 1;
}

void
chunk_set_clear(ChunkSet *set)
{
    if (set->count > 0)
        memset(set->words, 0, set->n_words * sizeof(*set->words));
    set->count = 0;
}

uint64_t
chunk_set_next(const ChunkSet *set, uint64_t offset)
{
    uint64_t i = offset / CHUNK_BYTES;

    if (set->count == 0 || i >= set->n_chunks)
        return UINT64_MAX;

    uint64_t word = set->words[i / BITS] & (UINT64_MAX << i % BITS);

    for (i /= BITS; word == 0; word = set->words[i]) {
        if (++i == set->n_words)
            return UINT64_MAX;
    }
    return (i * BITS + (uint64_t)__builtin_ctzll(word)) * CHUNK_BYTES;
}

uint64_t
chunk_set_count(const ChunkSet *set)
{
    return set->count;
}

void
chunk_set_merge(ChunkSet *set, const ChunkSet *other)
{
    g_assert(set->n_chunks == other->n_chunks);
    for (uint64_t i = 0; i < set->n_words && other->count > 0; i++) {
        set->count += (uint64_t)__builtin_popcountll(other->words[i] & ~set->words[i]);
        set->words[i] |= other->words[i];
    }
}
