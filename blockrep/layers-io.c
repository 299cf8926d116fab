/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers-io.c - the three layers, block by block: who has a block, saving, overlaying, committing
 *
 * All under the caller's hold on the blocks it touches. A block that is in an overlay is there as a
 * whole: a write of a part is filled up from what the reader of that overlay sees below it, and
 * that cannot change later without the block being saved first.
 */
#include "layers-private.h"

#include <errno.h>
#include <string.h>

/* --- Which layer has what --- */

/* A piece of a request that is all in one layer. */
typedef struct Run {
    Overlay *overlay; /* NULL: the disk */
    const uint32_t *slots;
    uint64_t offset, len;
} Run;

typedef struct Walk {
    Layers *layers;
    uint64_t offset, end; /* bytes */
    uint64_t first;       /* blocks that are looked up */
    unsigned n, i;
    uint32_t active[FIND_BLOCKS], hidden[FIND_BLOCKS];
} Walk;

static void
walk_begin(Walk *walk, Layers *layers, uint64_t len, uint64_t offset)
{
    walk->layers = layers;
    walk->offset = offset;
    walk->end = offset + len;
    walk->first = offset / BLOCK;
    walk->n = walk->i = 0;
}

static Overlay *
layer_of(const Walk *walk, unsigned i)
{
    if (walk->active[i] != OVERLAY_NONE)
        return walk->layers->active;
    return walk->hidden[i] != OVERLAY_NONE ? walk->layers->hidden : NULL;
}

static void
walk_look_up(Walk *walk)
{
    uint64_t left = (walk->end - walk->offset + walk->offset % BLOCK + BLOCK - 1) / BLOCK;

    walk->first = walk->offset / BLOCK;
    walk->n = (unsigned)MIN(left, FIND_BLOCKS);
    walk->i = 0;
    (void)overlay_find(walk->layers->active, walk->first, walk->n, walk->active);
    (void)overlay_find(walk->layers->hidden, walk->first, walk->n, walk->hidden);
}

/* False: the request is through. */
static bool
walk_next(Walk *walk, Run *ret_run)
{
    if (walk->offset >= walk->end)
        return false;
    if (walk->i == walk->n)
        walk_look_up(walk);

    unsigned start = walk->i;
    Overlay *overlay = layer_of(walk, start);

    while (walk->i < walk->n && layer_of(walk, walk->i) == overlay)
        walk->i++;

    uint64_t stop = MIN((walk->first + walk->i) * BLOCK, walk->end);

    *ret_run = (Run){.overlay = overlay, .offset = walk->offset, .len = stop - walk->offset};
    if (overlay)
        ret_run->slots =
            overlay == walk->layers->active ? &walk->active[start] : &walk->hidden[start];
    walk->offset = stop;
    return true;
}

static bool
all_empty(const Layers *layers)
{
    return overlay_is_empty(layers->active) && overlay_is_empty(layers->hidden);
}

int
io_read_view(Layers *layers, void *buf, uint64_t len, uint64_t offset, Fault *ret_fault)
{
    uint8_t *to = buf;
    Walk walk;
    Run run;
    int r = 0;

    if (all_empty(layers)) {
        r = store_read(layers->disk, buf, len, offset);
    } else {
        walk_begin(&walk, layers, len, offset);
        while (r == 0 && walk_next(&walk, &run)) {
            if (run.overlay)
                r = overlay_read(run.overlay, run.slots, to, run.len,
                                 (uint32_t)(run.offset % BLOCK));
            else
                r = store_read(layers->disk, to, run.len, run.offset);
            to += run.len;
        }
    }
    if (r < 0)
        *ret_fault = FAULT_ACTIVE_DISK;
    return r;
}

int
io_extent(Layers *layers, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole)
{
    Walk walk;
    Run run;
    uint64_t data = 0;

    if (all_empty(layers))
        return store_extent(layers->disk, offset, len, ret_len, ret_hole);
    walk_begin(&walk, layers, len, offset);
    while (walk_next(&walk, &run) && run.overlay)
        data += run.len;
    if (data == 0)
        return store_extent(layers->disk, run.offset, run.len, ret_len, ret_hole);
    *ret_len = data;
    *ret_hole = false;
    return 0;
}

/* --- Copy before write --- */

static bool
is_full(int r)
{
    return r == -ENOSPC || r == -EDQUOT;
}

/* Bytes of @n blocks from @first on: the disk may end inside the last. */
static size_t
bytes_of(const Layers *layers, uint64_t first, unsigned n)
{
    return (size_t)MIN(n * BLOCK, layers->disk->size_bytes - first * BLOCK);
}

/* @n <= COPY_BLOCKS blocks that no overlay has. */
static int
save_run(Layers *layers, uint64_t first, unsigned n, Fault *ret_fault)
{
    uint8_t old[COPY_BLOCKS * BLOCK];
    uint32_t slots[COPY_BLOCKS];
    size_t len = bytes_of(layers, first, n);
    int r = store_read(layers->disk, old, len, first * BLOCK);

    if (r < 0) {
        *ret_fault = FAULT_HIDDEN_COPY;
        return r;
    }
    r = overlay_reserve(layers->hidden, n, slots);
    if (r < 0) {
        *ret_fault = FAULT_HIDDEN_FULL;
        return r;
    }
    r = overlay_write(layers->hidden, slots, old, len, 0);
    if (r < 0) {
        overlay_unreserve(layers->hidden, n, slots);
        *ret_fault = is_full(r) ? FAULT_HIDDEN_FULL : FAULT_HIDDEN_COPY;
        return r;
    }
    overlay_publish(layers->hidden, first, n, slots);
    atomic_fetch_add(&layers->saved_bytes, len);
    return 0;
}

/* What SVM has written itself nobody will read below active again: not SVM, which has the whole
 * block there, and not the commit, which takes active's. Both are emptied together. */
int
io_save_old(Layers *layers, uint64_t len, uint64_t offset, Fault *ret_fault)
{
    uint64_t end = (offset + len + BLOCK - 1) / BLOCK;
    uint32_t hidden[COPY_BLOCKS], active[COPY_BLOCKS];
    unsigned n;

    for (uint64_t first = offset / BLOCK; first < end; first += n) {
        n = (unsigned)MIN(end - first, COPY_BLOCKS);
        (void)overlay_find(layers->hidden, first, n, hidden);
        (void)overlay_find(layers->active, first, n, active);
        for (unsigned i = 0, j; i < n; i = j + 1) {
            for (j = i; j < n && hidden[j] == OVERLAY_NONE && active[j] == OVERLAY_NONE; j++)
                ;
            int r = j > i ? save_run(layers, first + i, j - i, ret_fault) : 0;

            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* --- Writes of the secondary's guest while the disk is mirrored --- */

static int
active_failed(int r, Fault *ret_fault)
{
    *ret_fault = is_full(r) ? FAULT_ACTIVE_FULL : FAULT_ACTIVE_DISK;
    return r;
}

static int
put(Overlay *overlay, const uint32_t slots[], const uint8_t *buf, size_t len, uint32_t skip)
{
    return buf ? overlay_write(overlay, slots, buf, len, skip)
               : overlay_zero(overlay, slots, len, skip);
}

/* A part of one block. */
static int
write_part(Layers *layers, const uint8_t *buf, size_t len, uint64_t offset, Fault *ret_fault)
{
    uint64_t block = offset / BLOCK;
    uint32_t skip = (uint32_t)(offset % BLOCK), slot;
    uint8_t whole[BLOCK] = {0};
    int r;

    if (overlay_find(layers->active, block, 1, &slot)) {
        r = put(layers->active, &slot, buf, len, skip);
        return r < 0 ? active_failed(r, ret_fault) : 0;
    }
    r = io_read_view(layers, whole, bytes_of(layers, block, 1), block * BLOCK, ret_fault);
    if (r < 0)
        return r;
    if (buf)
        memcpy(whole + skip, buf, len);
    else
        memset(whole + skip, 0, len);
    r = overlay_reserve(layers->active, 1, &slot);
    if (r < 0)
        return active_failed(r, ret_fault);
    r = overlay_write(layers->active, &slot, whole, sizeof(whole), 0);
    if (r < 0) {
        overlay_unreserve(layers->active, 1, &slot);
        return active_failed(r, ret_fault);
    }
    overlay_publish(layers->active, block, 1, &slot);
    return 0;
}

/* @n <= FIND_BLOCKS whole blocks. */
static int
write_blocks(Layers *layers, const uint8_t *buf, uint64_t first, unsigned n, Fault *ret_fault)
{
    uint32_t slots[FIND_BLOCKS], fresh[FIND_BLOCKS];
    bool is_new[FIND_BLOCKS];
    unsigned missing = 0, k = 0;

    (void)overlay_find(layers->active, first, n, slots);
    for (unsigned i = 0; i < n; i++) {
        is_new[i] = slots[i] == OVERLAY_NONE;
        missing += is_new[i];
    }

    int r = overlay_reserve(layers->active, missing, fresh);

    if (r < 0)
        return active_failed(r, ret_fault);
    for (unsigned i = 0; i < n; i++) {
        if (is_new[i])
            slots[i] = fresh[k++];
    }
    r = put(layers->active, slots, buf, n * BLOCK, 0);
    if (r < 0) {
        overlay_unreserve(layers->active, missing, fresh);
        return active_failed(r, ret_fault);
    }
    for (unsigned i = 0, j; i < n; i = j + 1) {
        for (j = i; j < n && is_new[j]; j++)
            ;
        overlay_publish(layers->active, first + i, j - i, &slots[i]);
    }
    return 0;
}

int
io_write_active(Layers *layers, const void *buf, uint64_t len, uint64_t offset, Fault *ret_fault)
{
    const uint8_t *from = buf;

    while (len > 0) {
        uint64_t skip = offset % BLOCK, piece;
        int r;

        if (skip > 0 || len < BLOCK) {
            piece = MIN(len, BLOCK - skip);
            r = write_part(layers, from, piece, offset, ret_fault);
        } else {
            unsigned n = (unsigned)MIN(len / BLOCK, FIND_BLOCKS);

            piece = n * BLOCK;
            r = write_blocks(layers, from, offset / BLOCK, n, ret_fault);
        }
        if (r < 0)
            return r;
        from = from ? from + piece : NULL;
        len -= piece;
        offset += piece;
    }
    return 0;
}

/* --- Writes of the survivor's guest while the overlays are committed --- */

int
io_write_disk(Layers *layers, const void *buf, uint64_t len, uint64_t offset, bool unmap)
{
    return buf ? store_write(layers->disk, buf, len, offset)
               : store_zero(layers->disk, len, offset, unmap);
}

/* Where an overlay has a block it gets the data too: the commit, now or after a crash, copies the
 * slot over the block, and so must find the newest there. */
int
io_write_through(Layers *layers, const void *buf, uint64_t len, uint64_t offset, bool unmap,
                 Fault *ret_fault)
{
    const uint8_t *from = buf;
    Walk walk;
    Run run;
    int r = 0;

    walk_begin(&walk, layers, len, offset);
    while (r == 0 && walk_next(&walk, &run)) {
        if (run.overlay)
            r = put(run.overlay, run.slots, from, run.len, (uint32_t)(run.offset % BLOCK));
        from = from ? from + run.len : NULL;
    }
    if (r == 0)
        r = io_write_disk(layers, buf, len, offset, unmap);
    if (r < 0)
        *ret_fault = FAULT_ACTIVE_DISK;
    return r;
}

/* --- Commit --- */

/* Slots from *@slot on that hold neighbouring blocks: how many, from which block. Skips free ones.
 */
static unsigned
next_piece(Overlay *overlay, uint32_t *slot, uint64_t *ret_first)
{
    uint32_t end = overlay_slots(overlay);
    unsigned n = 1;

    while (*slot < end && overlay_block_of(overlay, *slot) == OVERLAY_NO_BLOCK)
        (*slot)++;
    if (*slot == end)
        return 0;
    *ret_first = overlay_block_of(overlay, *slot);
    while (n < COPY_BLOCKS && *slot + n < end &&
           overlay_block_of(overlay, *slot + n) == *ret_first + n)
        n++;
    return n;
}

static int
copy_piece(Layers *layers, Overlay *overlay, uint32_t slot, uint64_t first, unsigned n)
{
    uint8_t data[COPY_BLOCKS * BLOCK];
    uint32_t slots[COPY_BLOCKS], above[COPY_BLOCKS];
    int r;

    for (unsigned i = 0; i < n; i++)
        slots[i] = slot + i;
    r = overlay_read(overlay, slots, data, bytes_of(layers, first, n), 0);
    if (overlay == layers->active)
        memset(above, 0xff, sizeof(above)); /* OVERLAY_NONE: nothing is above active */
    else
        (void)overlay_find(layers->active, first, n, above);
    for (unsigned i = 0, j; i < n && r == 0; i = j + 1) {
        for (j = i; j < n && above[j] == OVERLAY_NONE; j++)
            ;
        if (j > i)
            r = store_write(layers->disk, data + i * BLOCK, bytes_of(layers, first + i, j - i),
                            (first + i) * BLOCK);
    }
    return r;
}

int
layers_commit_piece(Layers *layers, Overlay *overlay, uint32_t *slot)
{
    RangeHold hold;
    uint64_t first;
    unsigned n = next_piece(overlay, slot, &first);

    if (n == 0)
        return 0;
    range_lock_take(layers->lock, &hold, first * BLOCK, (first + n) * BLOCK, RANGE_EXCLUSIVE);

    int r = copy_piece(layers, overlay, *slot, first, n);

    range_lock_release(layers->lock, &hold);
    if (r < 0)
        return r;
    *slot += n;
    return 1;
}

/* Hidden's too: the disk has the primary's newer content there, and gets the older back. */
static void
mark_overlay(Layers *layers, Overlay *overlay)
{
    uint32_t end = overlay_slots(overlay);

    for (uint32_t slot = 0; slot < end; slot++) {
        uint64_t block = overlay_block_of(overlay, slot);

        if (block != OVERLAY_NO_BLOCK)
            dirty_map_mark(layers->map, block * BLOCK, bytes_of(layers, block, 1));
    }
}

void
layers_mark_overlays(Layers *layers)
{
    if (!layers->map)
        return;
    mark_overlay(layers, layers->hidden);
    mark_overlay(layers, layers->active);
}
