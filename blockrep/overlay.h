/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlay.h - blocks of a disk kept aside: which ones, and where; emptied at once */
#pragma once

#include "store.h"

/* Why 4 KiB: it is what guests' file systems and QEMU's page cache write in, so that most writes
 * are whole blocks and save or fill nothing around them; at 64 KiB a random 4 KiB write would copy
 * sixteen times its size. */
enum { OVERLAY_BLOCK_BYTES = 4096 };

#define OVERLAY_MIN_LIMIT_BYTES (UINT64_C(64) * OVERLAY_BLOCK_BYTES)
/* Its index is written down at a failover: 2^24 slots are 128 MiB of it. */
#define OVERLAY_MAX_LIMIT_BYTES (UINT64_C(1) << 36)
#define OVERLAY_NONE UINT32_MAX     /* a slot that is none */
#define OVERLAY_NO_BLOCK UINT64_MAX /* a block that is none */

typedef struct Overlay Overlay;

/** @store: taken; its size is the limit, a multiple of the block within the bounds above. */
Overlay *overlay_new(Store *store);
void overlay_free(Overlay *overlay);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Overlay, overlay_free)

Store *overlay_store(Overlay *overlay);

/*
 * All calls: any thread. A call is atomic; what a caller does with slots between two calls is
 * guarded by its hold on the blocks' range (range-lock.h).
 */

/** Slots of blocks [@first, @first + @n), OVERLAY_NONE where there is none. Return: any found? */
bool overlay_find(Overlay *overlay, uint64_t first, unsigned n, uint32_t ret_slots[]);

/** Takes @n free slots, consecutive where possible. -ENOSPC: not that many are left; none taken. */
int overlay_reserve(Overlay *overlay, unsigned n, uint32_t ret_slots[]);
/** Gives reserved slots back (the data could not be written). */
void overlay_unreserve(Overlay *overlay, unsigned n, const uint32_t slots[]);
/** From now on block @first + i is in @slots[i]; the blocks had none, the data is written. */
void overlay_publish(Overlay *overlay, uint64_t first, unsigned n, const uint32_t slots[]);

/** Forgets all blocks, in constant time. Nobody else may be at work (a hold on everything). */
void overlay_empty(Overlay *overlay);

/** Fills an empty overlay from a list of what was in each of its slots (OVERLAY_NO_BLOCK: free).
 * Before other threads use it. -EINVAL: too many, or a block twice; the overlay is of no use then.
 */
int overlay_restore(Overlay *overlay, uint32_t n, const uint64_t blocks[]);

/** Reads or writes @len bytes that begin @skip bytes into the block of @slots[0] and go on through
 * the blocks of the following slots. Neighbouring slots are one transfer. */
int overlay_read(Overlay *overlay, const uint32_t slots[], void *buf, size_t len, uint32_t skip);
int overlay_write(Overlay *overlay, const uint32_t slots[], const void *buf, size_t len,
                  uint32_t skip);
/** Writes zeros. */
int overlay_zero(Overlay *overlay, const uint32_t slots[], size_t len, uint32_t skip);

/** Slots handed out, published or not: every published one is below. */
uint32_t overlay_slots(Overlay *overlay);
/** The block in @slot, OVERLAY_NO_BLOCK if it is not published. */
uint64_t overlay_block_of(Overlay *overlay, uint32_t slot);

uint64_t overlay_used_bytes(Overlay *overlay);
uint64_t overlay_limit_bytes(Overlay *overlay);
uint64_t overlay_peak_bytes(Overlay *overlay); /* largest use so far, over all epochs */
/** At least three quarters in use? Costs no lock. */
bool overlay_is_high(Overlay *overlay);
/** Nothing in it? A hint without the caller's hold, exact with it. Costs no lock. */
bool overlay_is_empty(Overlay *overlay);
