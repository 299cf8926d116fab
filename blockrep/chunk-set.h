/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-set.h - a set of a disk's chunks (of 64 KiB), in memory (pure) */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum { CHUNK_BYTES = 64 * 1024 };

/* One thread at a time. Ranges are in bytes, not empty and inside the disk; each chunk that they
 * touch is meant. */
typedef struct ChunkSet ChunkSet;

ChunkSet *chunk_set_new(uint64_t disk_bytes); /* empty */
void chunk_set_free(ChunkSet *set);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ChunkSet, chunk_set_free)

/** A range may be in already, or in part; so may one that is removed not be. */
void chunk_set_add(ChunkSet *set, uint64_t offset, uint64_t len);
void chunk_set_remove(ChunkSet *set, uint64_t offset, uint64_t len);
bool chunk_set_has(const ChunkSet *set, uint64_t offset); /* the chunk of this byte */
void chunk_set_clear(ChunkSet *set);
/** The start of the first chunk that ends behind @offset; UINT64_MAX: none. */
uint64_t chunk_set_next(const ChunkSet *set, uint64_t offset);
/** Chunks in the set; in constant time. */
uint64_t chunk_set_count(const ChunkSet *set);
/** Adds all of @other, of the same disk. */
void chunk_set_merge(ChunkSet *set, const ChunkSet *other);

/** The start of the chunk that @offset is in. */
static inline uint64_t
chunk_start(uint64_t offset)
{
    return offset - offset % CHUNK_BYTES;
}
