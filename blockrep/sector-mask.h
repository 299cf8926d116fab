/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sector-mask.h - which sectors of a few chunks the guest has written since a copy began (pure) */
#pragma once

#include "chunk-set.h"

enum { SECTOR_BYTES = 512, SECTORS_PER_CHUNK = CHUNK_BYTES / SECTOR_BYTES };

/* One thread at a time; no allocation after sector_mask_new(). */
typedef struct SectorMask SectorMask;

/** @max_chunks: of how many chunks it can know at once. */
SectorMask *sector_mask_new(unsigned max_chunks);
void sector_mask_free(SectorMask *mask);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SectorMask, sector_mask_free)

/** The range is inside one chunk; its whole sectors are added. False: there is no room, or parts of
 * sectors were left out. */
bool sector_mask_add(SectorMask *mask, uint64_t offset, uint64_t len);
/**
 * Runs of the chunk [@chunk, @end) that were not added: the first one at or behind @from.
 *
 * Return: its offset, UINT64_MAX: none. @ret_len: its length.
 */
uint64_t sector_mask_gap(const SectorMask *mask, uint64_t chunk, uint64_t end, uint64_t from,
                         uint64_t *ret_len);
/** Forgets the chunk that begins at @chunk, known or not. */
void sector_mask_drop(SectorMask *mask, uint64_t chunk);
/** Forgets all. */
void sector_mask_clear(SectorMask *mask);
/** One that something was added to, the longest known; UINT64_MAX: none. */
uint64_t sector_mask_oldest(const SectorMask *mask);
/** Chunks that are known. */
unsigned sector_mask_count(const SectorMask *mask);
