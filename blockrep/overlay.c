/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay.c - blocks of a disk kept aside: which ones, and where; emptied at once
 *
 * Theory of operation
 * ===================
 * The store is cut into slots of one block. Slots are handed out from the front; a hash table
 * (open addressing, linear probing, at most half full) leads from block to slot and an array from
 * slot to block. Both are reserved in address space at the start for as many slots as the limit
 * allows, and take memory as they are used: 24 bytes and 8 per possible slot, so nothing here
 * allocates later, and neither the disk's size nor the number of earlier epochs matters.
 *
 * Emptying. Each entry carries the stamp of the epoch it was made in; one with another stamp is a
 * free one. So to empty is to count the stamp up (64 bits: it does not wrap) and to start handing
 * out slots from the front again. The store is not touched: the next epoch writes over the same
 * slots. That is why there is no ping-pong file, no truncation and no hole punching to pay for at
 * the commit point or behind it: the file never grows beyond the largest epoch, its blocks are
 * allocated already and hot in the page cache, and what an epoch writes is sequential in it.
 *
 * A slot whose data could not be written goes to a free list that runs through the array.
 */
#include "overlay.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

/* In the array of blocks: this slot is free, the rest is the next free slot. */
#define FREE_BIT (UINT64_C(1) << 63)

typedef struct Entry {
    uint64_t stamp;
    uint64_t block;
    uint32_t slot;
} Entry;

struct Overlay {
    Store *store;
    pthread_mutex_t mutex; /* all below */
    Entry *table;
    uint64_t mask; /* entries - 1 */
    uint64_t *block_of;
    uint32_t n_slots; /* limit */
    uint32_t next;    /* slots from here on have not been handed out in this epoch */
    uint32_t free_head;
    uint32_t n_free;
    uint32_t peak;
    uint64_t stamp;
    atomic_uint published;
    atomic_bool high;
};

static void *
reserve_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED)
        g_error("no address space for the index of an overlay (%zu bytes)", bytes);
    return p;
}

static size_t
table_bytes(const Overlay *overlay)
{
    return (overlay->mask + 1) * sizeof(Entry);
}

Overlay *
overlay_new(Store *store)
{
    uint64_t slots = store->size_bytes / OVERLAY_BLOCK_BYTES;

    g_assert(store->size_bytes % OVERLAY_BLOCK_BYTES == 0);
    g_assert(store->size_bytes >= OVERLAY_MIN_LIMIT_BYTES);
    g_assert(store->size_bytes <= OVERLAY_MAX_LIMIT_BYTES);

    Overlay *overlay = g_new0(Overlay, 1);
    uint64_t entries = 1;

    while (entries < 2 * slots)
        entries *= 2;
    overlay->store = store;
    overlay->mask = entries - 1;
    overlay->n_slots = (uint32_t)slots;
    overlay->table = reserve_memory(table_bytes(overlay));
    overlay->block_of = reserve_memory(slots * sizeof(uint64_t));
    overlay->free_head = OVERLAY_NONE;
    overlay->stamp = 1; /* fresh memory has stamp 0 */
    (void)pthread_mutex_init(&overlay->mutex, NULL);
    return overlay;
}

void
overlay_free(Overlay *overlay)
{
    if (!overlay)
        return;
    (void)munmap(overlay->table, table_bytes(overlay));
    (void)munmap(overlay->block_of, overlay->n_slots * sizeof(uint64_t));
    (void)pthread_mutex_destroy(&overlay->mutex);
    store_free(overlay->store);
    g_free(overlay);
}

Store *
overlay_store(Overlay *overlay)
{
    return overlay->store;
}

/* The entry of @block, or the free one where it would be. There always is one: half is free. The
 * multiplier is 2^64 divided by the golden ratio. Groups of eight blocks are spread, the blocks of
 * one stay together: a sequential request finds them in neighbouring cache lines. */
static Entry *
entry_of(const Overlay *overlay, uint64_t block)
{
    uint64_t i = ((((block >> 3) * UINT64_C(0x9e3779b97f4a7c15)) >> 20) << 3) + (block & 7);

    for (;; i++) {
        Entry *entry = &overlay->table[i & overlay->mask];

        if (entry->stamp != overlay->stamp || entry->block == block)
            return entry;
    }
}

bool
overlay_find(Overlay *overlay, uint64_t first, unsigned n, uint32_t ret_slots[])
{
    bool found = false;

    (void)pthread_mutex_lock(&overlay->mutex);
    for (unsigned i = 0; i < n; i++) {
        const Entry *entry = entry_of(overlay, first + i);

        ret_slots[i] = entry->stamp == overlay->stamp ? entry->slot : OVERLAY_NONE;
        found |= ret_slots[i] != OVERLAY_NONE;
    }
    (void)pthread_mutex_unlock(&overlay->mutex);
    return found;
}

static uint32_t
take_slot(Overlay *overlay)
{
    uint32_t slot = overlay->free_head;

    if (slot == OVERLAY_NONE) {
        slot = overlay->next++;
    } else {
        overlay->free_head = (uint32_t)overlay->block_of[slot];
        overlay->n_free--;
    }
    overlay->block_of[slot] = OVERLAY_NO_BLOCK;
    return slot;
}

static uint32_t
used(const Overlay *overlay)
{
    return overlay->next - overlay->n_free;
}

int
overlay_reserve(Overlay *overlay, unsigned n, uint32_t ret_slots[])
{
    int r = -ENOSPC;

    (void)pthread_mutex_lock(&overlay->mutex);
    if (n <= overlay->n_slots - used(overlay)) {
        for (unsigned i = 0; i < n; i++)
            ret_slots[i] = take_slot(overlay);
        overlay->peak = MAX(overlay->peak, used(overlay));
        if (used(overlay) >= overlay->n_slots / 4 * 3)
            atomic_store(&overlay->high, true);
        r = 0;
    }
    (void)pthread_mutex_unlock(&overlay->mutex);
    return r;
}

void
overlay_unreserve(Overlay *overlay, unsigned n, const uint32_t slots[])
{
    (void)pthread_mutex_lock(&overlay->mutex);
    for (unsigned i = n; i-- > 0;) { /* the first is handed out first again */
        g_assert(overlay->block_of[slots[i]] == OVERLAY_NO_BLOCK);
        overlay->block_of[slots[i]] = FREE_BIT | overlay->free_head;
        overlay->free_head = slots[i];
        overlay->n_free++;
    }
    (void)pthread_mutex_unlock(&overlay->mutex);
}

void
overlay_publish(Overlay *overlay, uint64_t first, unsigned n, const uint32_t slots[])
{
    (void)pthread_mutex_lock(&overlay->mutex);
    for (unsigned i = 0; i < n; i++) {
        Entry *entry = entry_of(overlay, first + i);

        g_assert(entry->stamp != overlay->stamp);
        g_assert(overlay->block_of[slots[i]] == OVERLAY_NO_BLOCK);
        *entry = (Entry){.stamp = overlay->stamp, .block = first + i, .slot = slots[i]};
        overlay->block_of[slots[i]] = first + i;
    }
    (void)pthread_mutex_unlock(&overlay->mutex);
    (void)atomic_fetch_add(&overlay->published, n);
}

void
overlay_empty(Overlay *overlay)
{
    (void)pthread_mutex_lock(&overlay->mutex);
    overlay->stamp++;
    overlay->next = 0;
    overlay->free_head = OVERLAY_NONE;
    overlay->n_free = 0;
    (void)pthread_mutex_unlock(&overlay->mutex);
    atomic_store(&overlay->published, 0);
    atomic_store(&overlay->high, false);
}

int
overlay_restore(Overlay *overlay, uint32_t n, const uint64_t blocks[])
{
    g_assert(overlay_is_empty(overlay) && overlay_slots(overlay) == 0);
    if (n > overlay->n_slots)
        return -EINVAL;
    for (uint32_t slot = 0; slot < n; slot++) {
        uint32_t found;

        overlay->next = slot + 1;
        overlay->block_of[slot] = OVERLAY_NO_BLOCK;
        if (blocks[slot] == OVERLAY_NO_BLOCK)
            overlay_unreserve(overlay, 1, &slot);
        else if (blocks[slot] & FREE_BIT || overlay_find(overlay, blocks[slot], 1, &found))
            return -EINVAL;
        else
            overlay_publish(overlay, blocks[slot], 1, &slot);
    }
    return 0;
}

/* --- Data --- */

typedef enum Transfer { TRANSFER_READ, TRANSFER_WRITE, TRANSFER_ZERO } Transfer;

static int
transfer(Overlay *overlay, const uint32_t slots[], uint8_t *buf, size_t len, uint32_t skip,
         Transfer how)
{
    g_assert(skip < OVERLAY_BLOCK_BYTES);
    while (len > 0) {
        uint64_t offset = (uint64_t)slots[0] * OVERLAY_BLOCK_BYTES + skip;
        size_t piece = OVERLAY_BLOCK_BYTES - skip;
        unsigned n = 1;
        int r = 0;

        while (piece < len && slots[n] == slots[0] + n) {
            piece += OVERLAY_BLOCK_BYTES;
            n++;
        }
        piece = MIN(piece, len);
        switch (how) {
        case TRANSFER_READ:
            r = store_read(overlay->store, buf, piece, offset);
            break;
        case TRANSFER_WRITE:
            r = store_write(overlay->store, buf, piece, offset);
            break;
        case TRANSFER_ZERO: /* the slot stays allocated: the next epoch wants it again */
            r = store_zero(overlay->store, piece, offset, false);
            break;
        }
        if (r < 0)
            return r;
        buf = buf ? buf + piece : NULL;
        len -= piece;
        slots += n;
        skip = 0;
    }
    return 0;
}

int
overlay_read(Overlay *overlay, const uint32_t slots[], void *buf, size_t len, uint32_t skip)
{
    return transfer(overlay, slots, buf, len, skip, TRANSFER_READ);
}

int
overlay_write(Overlay *overlay, const uint32_t slots[], const void *buf, size_t len, uint32_t skip)
{
    /* One walk for both directions; a write only reads through the pointer. */
    return transfer(overlay, slots, (uint8_t *)(uintptr_t)buf, len, skip, TRANSFER_WRITE);
}

int
overlay_zero(Overlay *overlay, const uint32_t slots[], size_t len, uint32_t skip)
{
    return transfer(overlay, slots, NULL, len, skip, TRANSFER_ZERO);
}

/* --- What is in it --- */

uint32_t
overlay_slots(Overlay *overlay)
{
    (void)pthread_mutex_lock(&overlay->mutex);

    uint32_t next = overlay->next;

    (void)pthread_mutex_unlock(&overlay->mutex);
    return next;
}

uint64_t
overlay_block_of(Overlay *overlay, uint32_t slot)
{
    (void)pthread_mutex_lock(&overlay->mutex);

    uint64_t block = overlay->block_of[slot];

    g_assert(slot < overlay->next);
    (void)pthread_mutex_unlock(&overlay->mutex);
    return block & FREE_BIT ? OVERLAY_NO_BLOCK : block;
}

uint64_t
overlay_used_bytes(Overlay *overlay)
{
    (void)pthread_mutex_lock(&overlay->mutex);

    uint64_t n = used(overlay);

    (void)pthread_mutex_unlock(&overlay->mutex);
    return n * OVERLAY_BLOCK_BYTES;
}

uint64_t
overlay_limit_bytes(Overlay *overlay)
{
    return (uint64_t)overlay->n_slots * OVERLAY_BLOCK_BYTES;
}

uint64_t
overlay_peak_bytes(Overlay *overlay)
{
    (void)pthread_mutex_lock(&overlay->mutex);

    uint64_t peak = overlay->peak;

    (void)pthread_mutex_unlock(&overlay->mutex);
    return peak * OVERLAY_BLOCK_BYTES;
}

bool
overlay_is_high(Overlay *overlay)
{
    return atomic_load(&overlay->high);
}

bool
overlay_is_empty(Overlay *overlay)
{
    return atomic_load(&overlay->published) == 0;
}
