/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sector-mask.c - which sectors of a few chunks the guest has written since a copy began (pure)
 *
 * A table of places in chains by hash, and a list of those in use in order of arrival.
 */
#include "sector-mask.h"

#include <string.h>

enum { NONE = -1 };

typedef struct Place {
    uint64_t chunk; /* offset */
    uint64_t bits[SECTORS_PER_CHUNK / 64];
    int chain, next, previous; /* free places: by `next` */
} Place;

struct SectorMask {
    unsigned max, count, n_heads; /* a power of two */
    int *heads;
    Place *places;
    int free, first, last;
};

static void
reset(SectorMask *mask)
{
    for (unsigned i = 0; i < mask->n_heads; i++)
        mask->heads[i] = NONE;
    for (unsigned i = 0; i < mask->max; i++)
        mask->places[i].next = i + 1 < mask->max ? (int)i + 1 : NONE;
    mask->free = 0;
    mask->first = mask->last = NONE;
    mask->count = 0;
}

SectorMask *
sector_mask_new(unsigned max_chunks)
{
    SectorMask *mask = g_new0(SectorMask, 1);

    g_assert(max_chunks > 0 && max_chunks <= 1 << 24);
    mask->max = max_chunks;
    mask->n_heads = 1;
    while (mask->n_heads < max_chunks)
        mask->n_heads *= 2;
    mask->heads = g_new(int, mask->n_heads);
    mask->places = g_new0(Place, max_chunks);
    reset(mask);
    return mask;
}

void
sector_mask_free(SectorMask *mask)
{
    if (!mask)
        return;
    g_free(mask->heads);
    g_free(mask->places);
    g_free(mask);
}

void
sector_mask_clear(SectorMask *mask)
{
    if (mask->count > 0)
        reset(mask);
}

static int *
head_of(const SectorMask *mask, uint64_t chunk)
{
    uint64_t hash = chunk / CHUNK_BYTES * UINT64_C(0x9e3779b97f4a7c15);

    return &mask->heads[(hash >> 32) & (mask->n_heads - 1)];
}

static Place *
find(const SectorMask *mask, uint64_t chunk)
{
    for (int i = *head_of(mask, chunk); i != NONE; i = mask->places[i].chain) {
        if (mask->places[i].chunk == chunk)
            return &mask->places[i];
    }
    return NULL;
}

static Place *
take(SectorMask *mask, uint64_t chunk)
{
    int i = mask->free, *head = head_of(mask, chunk);

    if (i == NONE)
        return NULL;

    Place *place = &mask->places[i];

    mask->free = place->next;
    *place = (Place){.chunk = chunk, .chain = *head, .next = NONE, .previous = mask->last};
    *head = i;
    if (mask->last == NONE)
        mask->first = i;
    else
        mask->places[mask->last].next = i;
    mask->last = i;
    mask->count++;
    return place;
}

bool
sector_mask_add(SectorMask *mask, uint64_t offset, uint64_t len)
{
    uint64_t chunk = chunk_start(offset);
    uint64_t first = (offset - chunk + SECTOR_BYTES - 1) / SECTOR_BYTES;
    uint64_t end = (offset - chunk + len) / SECTOR_BYTES;

    g_assert(len > 0 && offset + len <= chunk + CHUNK_BYTES);
    if (first >= end)
        return false;

    Place *place = find(mask, chunk);

    if (!place && !(place = take(mask, chunk)))
        return false;
    for (uint64_t i = first; i < end; i++)
        place->bits[i / 64] |= UINT64_C(1) << i % 64;
    return offset % SECTOR_BYTES == 0 && len % SECTOR_BYTES == 0;
}

static bool
is_added(const Place *place, uint64_t sector)
{
    return place && place->bits[sector / 64] >> sector % 64 & 1;
}

uint64_t
sector_mask_gap(const SectorMask *mask, uint64_t chunk, uint64_t end, uint64_t from,
                uint64_t *ret_len)
{
    const Place *place = find(mask, chunk);
    uint64_t start = from;

    g_assert(from >= chunk && end <= chunk + CHUNK_BYTES);
    while (start < end && is_added(place, (start - chunk) / SECTOR_BYTES))
        start = start - start % SECTOR_BYTES + SECTOR_BYTES;
    if (start >= end)
        return UINT64_MAX;

    uint64_t stop = start;

    while (stop < end && !is_added(place, (stop - chunk) / SECTOR_BYTES))
        stop = stop - stop % SECTOR_BYTES + SECTOR_BYTES;
    *ret_len = MIN(stop, end) - start;
    return start;
}

void
sector_mask_drop(SectorMask *mask, uint64_t chunk)
{
    Place *place = find(mask, chunk);

    if (!place)
        return;

    int index = (int)(place - mask->places), *link = head_of(mask, chunk);

    while (*link != index)
        link = &mask->places[*link].chain;
    *link = place->chain;
    if (place->previous == NONE)
        mask->first = place->next;
    else
        mask->places[place->previous].next = place->next;
    if (place->next == NONE)
        mask->last = place->previous;
    else
        mask->places[place->next].previous = place->previous;
    place->next = mask->free;
    mask->free = index;
    mask->count--;
}

uint64_t
sector_mask_oldest(const SectorMask *mask)
{
    return mask->first == NONE ? UINT64_MAX : mask->places[mask->first].chunk;
}

unsigned
sector_mask_count(const SectorMask *mask)
{
    return mask->count;
}
