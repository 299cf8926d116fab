/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* hold-queue.h - a bounded FIFO of frames: those released, then those held until a mark is released
 */
#pragma once

#include <glib.h>

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * One ring of memory, allocated once and mapped twice in a row, so that every frame is contiguous.
 * The first part of the queue is released (its writer just has not got to it yet), the rest is
 * held. Used from one thread; only the getters for statistics may be called from another.
 *
 * Frames are read straight into the free space: hold_queue_slot() gives buffers for a batch, and
 * hold_queue_append() of a frame that already lies at the tail copies nothing.
 */
typedef struct HoldQueue HoldQueue;

enum {
    /* A virtio-net header and the largest frame there is: QEMU's own bound (NET_BUFSIZE). */
    HOLD_QUEUE_FRAME_MAX = 10 + 4096 + 65536,
    /* Before the frame in a slot: room to put a VLAN tag back without moving the frame. */
    HOLD_QUEUE_HEADROOM = 4,
    HOLD_QUEUE_MIN_BYTES = 1 << 20,
    /* Marks that can be outstanding; the oldest is forgotten beyond that (its frames are then
     * released with the next one: later, never earlier). */
    HOLD_QUEUE_MARKS = 64,
};

typedef struct HeldFrame {
    uint8_t *data; /* the owner of the queue may change it in place */
    size_t len;
    int64_t stamp; /* as appended: when it arrived, or another number of the owner's */
} HeldFrame;

/** Allocates everything. @max_bytes: the bound, at least HOLD_QUEUE_MIN_BYTES; each frame counts
 * with its bookkeeping. Returns NULL and sets errno. */
HoldQueue *hold_queue_new(size_t max_bytes);
/** The memory is set aside by hold_queue_new(); this finds its pages: by the thread that uses it.
 */
void hold_queue_populate(HoldQueue *queue);
void hold_queue_free(HoldQueue *queue);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HoldQueue, hold_queue_free)

/** How many frames of the largest size still fit. 0: stop reading. */
unsigned hold_queue_room(const HoldQueue *queue);

/** Buffer @i < hold_queue_room() for HOLD_QUEUE_FRAME_MAX bytes with HOLD_QUEUE_HEADROOM before it.
 * Valid until the next call that changes the queue, except that hold_queue_append() of slot i
 * leaves the later slots valid. */
uint8_t *hold_queue_slot(const HoldQueue *queue, unsigned i);

/** Appends a held frame. There must be room. @data may be (or begin up to HOLD_QUEUE_HEADROOM bytes
 * before) a slot's buffer. Returns where it lies now. */
uint8_t *hold_queue_append(HoldQueue *queue, const uint8_t *data, size_t len, int64_t stamp);

/** All that is queued now is covered by @epoch, which is higher than every outstanding mark's. */
void hold_queue_mark(HoldQueue *queue, guint64 epoch);

/** Releases what the mark of @epoch covers; without such a mark, what the marks before it cover. */
void hold_queue_release(HoldQueue *queue, guint64 epoch);

/** Releases all that is queued now and forgets the marks. */
void hold_queue_release_all(HoldQueue *queue);

/** Holds again what is released but was not taken yet. */
void hold_queue_unrelease(HoldQueue *queue);

/** Drops everything, marks too. Returns the number of frames dropped. */
guint64 hold_queue_drop_all(HoldQueue *queue);

/** The oldest frame, if it is released. It stays queued until hold_queue_pop(). */
bool hold_queue_peek(const HoldQueue *queue, HeldFrame *ret_frame);
void hold_queue_pop(HoldQueue *queue);
/** The same for the first @max; returns how many. */
unsigned hold_queue_peek_many(const HoldQueue *queue, HeldFrame *ret_frames, unsigned max);

/** Calls @func with each frame, oldest first; it may change the bytes. */
void hold_queue_foreach(const HoldQueue *queue, void (*func)(const HeldFrame *frame, gpointer data),
                        gpointer data);

/** The number of the frame appended last; they count up as long as the queue lives. */
guint64 hold_queue_last_sequence(const HoldQueue *queue);
/** The frame with that number, if it is still queued. Walks over those before it. */
bool hold_queue_find(const HoldQueue *queue, guint64 sequence, HeldFrame *ret_frame);

/** The oldest frame, released or held; hold_queue_drop_oldest() must only be called if there is
 * one. */
bool hold_queue_peek_oldest(const HoldQueue *queue, HeldFrame *ret_frame);
void hold_queue_drop_oldest(HoldQueue *queue);
/** Some frames are not released. */
bool hold_queue_has_held(const HoldQueue *queue);
/** The frame with that number is released, or gone. */
bool hold_queue_is_released(const HoldQueue *queue, guint64 sequence);

/* Statistics, from any thread. Bytes include bookkeeping: they are what the bound counts. */
guint64 hold_queue_frames(const HoldQueue *queue);
guint64 hold_queue_bytes(const HoldQueue *queue);
guint64 hold_queue_bytes_peak(const HoldQueue *queue);
