/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers.h - one disk as two machines see it: disk, hidden overlay, active overlay */
#pragma once

#include "dirty-map.h"
#include "fault.h"
#include "overlay.h"
#include "store.h"
#include "target-fsm.h"

/* Whose request it is: the primary's mirrored ones, or those of the secondary's guest. */
typedef enum Side { SIDE_TARGET, SIDE_ACTIVE } Side;

typedef struct Layers Layers;

/** Takes all three. Starts in TARGET_IDLE. */
Layers *layers_new(Store *disk, Overlay *hidden, Overlay *active);
/** @notify: called in a request's thread, within it, after a fault and when an overlay has reached
 * its high-water mark (once an epoch). It must not call requests. Set it before the first one. */
void layers_set_notify(Layers *layers, void (*notify)(void *user_data), void *user_data);
/** What the survivor's guest writes (committing, local) is marked in @map, which stays the
 * caller's. Set it before the first request. */
void layers_set_map(Layers *layers, DirtyMap *map);
void layers_free(Layers *layers);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Layers, layers_free)

/*
 * Requests: any thread, several at once. 0 or a negative errno; then *@ret_fault says by name what
 * failed. Any offset and length inside the disk (else -EINVAL). A request that fails in the middle
 * leaves its own range undefined, as a disk does, on the layer it writes; never the other side's
 * view.
 */
int layers_read(Layers *layers, Side side, void *buf, size_t len, uint64_t offset,
                Fault *ret_fault);
int layers_write(Layers *layers, Side side, const void *buf, size_t len, uint64_t offset,
                 Fault *ret_fault);
/** @unmap: the space may be given back. */
int layers_zero(Layers *layers, Side side, uint64_t len, uint64_t offset, bool unmap,
                Fault *ret_fault);
/** Advice: what the range reads as afterwards is open. */
int layers_trim(Layers *layers, Side side, uint64_t len, uint64_t offset, Fault *ret_fault);
int layers_flush(Layers *layers, Side side, Fault *ret_fault);
/** Flushes the disk for a commit. The medium tells an error once: the guest's next flush fails with
 * it too, for what was lost may be its own. */
int layers_flush_disk(Layers *layers);
/** As store_extent(), for what @side reads. */
int layers_extent(Layers *layers, Side side, uint64_t offset, uint64_t len, uint64_t *ret_len,
                  bool *ret_hole, Fault *ret_fault);

/**
 * Waits for all requests under way up to @deadline_ns, then, with nothing under way, sets the mode
 * and if @forget forgets both overlays. -ETIMEDOUT: nothing was changed.
 */
int layers_switch(Layers *layers, TargetMode mode, bool forget, int64_t deadline_ns);

/** With nothing under way: forgets both overlays, unless a mirrored write was lost (-EIO). */
int layers_checkpoint(Layers *layers, int64_t deadline_ns);

/** Waits for the requests that are under way now. -ETIMEDOUT. */
int layers_drain(Layers *layers, int64_t deadline_ns);

/**
 * Commit: copies the blocks of one overlay into the disk, in mode TARGET_COMMITTING, from slot
 * *@slot on, at most one piece (64 KiB); *@slot is set to where to go on. Blocks of @hidden that
 * active has too are left out. May be repeated from the start at any time.
 *
 * Return: 1: more, 0: done, or a negative errno.
 */
int layers_commit_piece(Layers *layers, Overlay *overlay, uint32_t *slot);

/** Marks the blocks of both overlays in the map, in mode TARGET_COMMITTING. */
void layers_mark_overlays(Layers *layers);

/** The mode now; exact only for who is the one that switches. */
TargetMode layers_mode(Layers *layers);
Store *layers_disk(Layers *layers);
Overlay *layers_hidden(Layers *layers);
Overlay *layers_active(Layers *layers);

/** The fault that ended mirroring, FAULT_NONE: all mirrored writes are in the disk. */
Fault layers_stale(Layers *layers);
/** Before a sync writes all of the disk anew, with nothing under way. */
void layers_clear_stale(Layers *layers);

typedef struct LayersCounters {
    uint64_t requests[2];   /* by Side, answered */
    uint64_t under_way;     /* of both sides; also who waits for a range, or for all of them */
    uint64_t saved_bytes;   /* old blocks */
    uint64_t skipped_trims; /* mirrored trims that hidden had no room for */
    uint64_t faults[FAULT_COUNT];
} LayersCounters;

void layers_counters(Layers *layers, LayersCounters *ret_counters);
/** Counts a fault that was found outside. */
void layers_count_fault(Layers *layers, Fault fault);
