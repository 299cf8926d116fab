/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* hold-queue.c - a bounded FIFO of frames with marks */
#include "hold-queue.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "counter.h"
#include "ring-map.h"

typedef struct Entry {
    int64_t stamp;
    uint32_t len;
    uint32_t offset; /* of the frame behind the header */
} Entry;

enum {
    ENTRY_ALIGN = 8,
    /* Largest entry: also the distance of two slots. */
    SLOT_BYTES = (sizeof(Entry) + HOLD_QUEUE_HEADROOM + HOLD_QUEUE_FRAME_MAX + ENTRY_ALIGN - 1) /
                 ENTRY_ALIGN * ENTRY_ALIGN,
};

static_assert(sizeof(Entry) % ENTRY_ALIGN == 0, "entries stay aligned");
static_assert(HOLD_QUEUE_MIN_BYTES > 8 * SLOT_BYTES, "the smallest queue can reach 3/4");

typedef struct Mark {
    guint64 epoch;
    guint64 sequence; /* frames before this one are covered */
} Mark;

struct HoldQueue {
    uint8_t *ring; /* @ring_bytes mapped twice */
    size_t ring_bytes;
    size_t max_bytes;

    /* Offsets in the ring; both are set to 0 when it is empty, which keeps a short queue in cache.
     */
    size_t head, tail;
    /* Frames ever taken, released, appended: head <= released <= tail. */
    guint64 head_sequence, released_sequence, tail_sequence;

    Mark marks[HOLD_QUEUE_MARKS];
    unsigned first_mark, n_marks;

    Counter frames, bytes, bytes_peak;
};

static size_t
entry_bytes(const Entry *entry)
{
    size_t n = sizeof(Entry) + entry->offset + entry->len;

    return (n + ENTRY_ALIGN - 1) / ENTRY_ALIGN * ENTRY_ALIGN;
}

static Entry *
entry_at(const HoldQueue *queue, size_t position)
{
    return (Entry *)(void *)(queue->ring + position);
}

HoldQueue *
hold_queue_new(size_t max_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    g_assert(max_bytes >= HOLD_QUEUE_MIN_BYTES);
    if (max_bytes > SIZE_MAX / 4) {
        errno = ENOMEM;
        return NULL;
    }

    size_t ring_bytes = (max_bytes + page - 1) / page * page;
    uint8_t *ring = ring_map_new(ring_bytes);

    if (!ring)
        return NULL;

    HoldQueue *queue = g_new0(HoldQueue, 1);

    queue->ring = ring;
    queue->ring_bytes = ring_bytes;
    queue->max_bytes = max_bytes;
    return queue;
}

void
hold_queue_populate(HoldQueue *queue)
{
    ring_map_populate(queue->ring, queue->ring_bytes);
}

void
hold_queue_free(HoldQueue *queue)
{
    if (!queue)
        return;
    ring_map_free(queue->ring, queue->ring_bytes);
    g_free(queue);
}

unsigned
hold_queue_room(const HoldQueue *queue)
{
    return (unsigned)((queue->max_bytes - counter_get(&queue->bytes)) / SLOT_BYTES);
}

uint8_t *
hold_queue_slot(const HoldQueue *queue, unsigned i)
{
    /* Not modulo the ring: the second mapping continues it, and slots stay in ascending order. */
    return queue->ring + queue->tail + (size_t)i * SLOT_BYTES + sizeof(Entry) + HOLD_QUEUE_HEADROOM;
}

/* The same bytes as @data, by the mapping in which they lie just behind @place: memmove() must see
 * that the two overlap. */
static const uint8_t *
nearest_alias(const HoldQueue *queue, const uint8_t *place, const uint8_t *data)
{
    uintptr_t ring = (uintptr_t)queue->ring, from = (uintptr_t)data, to = (uintptr_t)place;

    if (from < ring || from >= ring + 2 * queue->ring_bytes)
        return data;
    return from >= to + queue->ring_bytes ? data - queue->ring_bytes : data;
}

uint8_t *
hold_queue_append(HoldQueue *queue, const uint8_t *data, size_t len, int64_t stamp)
{
    g_assert(len <= HOLD_QUEUE_FRAME_MAX && hold_queue_room(queue) > 0);

    uint8_t *place = queue->ring + queue->tail + sizeof(Entry);

    data = nearest_alias(queue, place, data);
    uint32_t offset = data == place + HOLD_QUEUE_HEADROOM ? HOLD_QUEUE_HEADROOM : 0;

    /* Slots lie at or behind the tail and are appended in order, so this moves towards lower
     * addresses only, and never over a later slot. */
    if (data != place + offset)
        memmove(place + offset, data, len);

    Entry *entry = entry_at(queue, queue->tail);

    *entry = (Entry){.stamp = stamp, .len = (uint32_t)len, .offset = offset};
    size_t bytes = entry_bytes(entry);

    queue->tail = (queue->tail + bytes) % queue->ring_bytes;
    queue->tail_sequence++;
    counter_add(&queue->frames, 1);
    counter_add(&queue->bytes, bytes);
    counter_set(&queue->bytes_peak,
                MAX(counter_get(&queue->bytes_peak), counter_get(&queue->bytes)));
    return place + offset;
}

static Mark *
mark_at(HoldQueue *queue, unsigned i)
{
    return &queue->marks[(queue->first_mark + i) % HOLD_QUEUE_MARKS];
}

static void
forget_first_mark(HoldQueue *queue)
{
    queue->first_mark = (queue->first_mark + 1) % HOLD_QUEUE_MARKS;
    queue->n_marks--;
}

void
hold_queue_mark(HoldQueue *queue, guint64 epoch)
{
    g_assert(queue->n_marks == 0 || mark_at(queue, queue->n_marks - 1)->epoch < epoch);
    if (queue->n_marks == HOLD_QUEUE_MARKS)
        forget_first_mark(queue);
    *mark_at(queue, queue->n_marks++) = (Mark){.epoch = epoch, .sequence = queue->tail_sequence};
}

void
hold_queue_release(HoldQueue *queue, guint64 epoch)
{
    for (unsigned i = 0; i < queue->n_marks && mark_at(queue, i)->epoch <= epoch; i++)
        queue->released_sequence = MAX(queue->released_sequence, mark_at(queue, i)->sequence);

    /* A mark is kept until its frames are gone: hold_queue_unrelease() may need it again. */
    while (queue->n_marks > 0 && mark_at(queue, 0)->sequence <= queue->head_sequence &&
           mark_at(queue, 0)->epoch <= epoch)
        forget_first_mark(queue);
}

void
hold_queue_release_all(HoldQueue *queue)
{
    queue->released_sequence = queue->tail_sequence;
    queue->n_marks = 0;
}

void
hold_queue_unrelease(HoldQueue *queue)
{
    queue->released_sequence = queue->head_sequence;
}

guint64
hold_queue_drop_all(HoldQueue *queue)
{
    guint64 dropped = counter_get(&queue->frames);

    queue->head = queue->tail = 0;
    queue->head_sequence = queue->released_sequence = queue->tail_sequence;
    queue->n_marks = 0;
    counter_set(&queue->frames, 0);
    counter_set(&queue->bytes, 0);
    return dropped;
}

static HeldFrame
frame_at(const HoldQueue *queue, size_t position)
{
    const Entry *entry = entry_at(queue, position);

    return (HeldFrame){.data = queue->ring + position + sizeof(Entry) + entry->offset,
                       .len = entry->len,
                       .stamp = entry->stamp};
}

bool
hold_queue_peek(const HoldQueue *queue, HeldFrame *ret_frame)
{
    return hold_queue_peek_many(queue, ret_frame, 1) == 1;
}

unsigned
hold_queue_peek_many(const HoldQueue *queue, HeldFrame *ret_frames, unsigned max)
{
    size_t position = queue->head;
    unsigned n = (unsigned)MIN(queue->released_sequence - queue->head_sequence, max);

    for (unsigned i = 0; i < n; i++) {
        ret_frames[i] = frame_at(queue, position);
        position = (position + entry_bytes(entry_at(queue, position))) % queue->ring_bytes;
    }
    return n;
}

void
hold_queue_foreach(const HoldQueue *queue, void (*func)(const HeldFrame *frame, gpointer data),
                   gpointer data)
{
    size_t position = queue->head;

    for (guint64 i = queue->head_sequence; i < queue->tail_sequence; i++) {
        HeldFrame frame = frame_at(queue, position);

        func(&frame, data);
        position = (position + entry_bytes(entry_at(queue, position))) % queue->ring_bytes;
    }
}

guint64
hold_queue_last_sequence(const HoldQueue *queue)
{
    return queue->tail_sequence - 1;
}

bool
hold_queue_find(const HoldQueue *queue, guint64 sequence, HeldFrame *ret_frame)
{
    size_t position = queue->head;

    if (sequence < queue->head_sequence || sequence >= queue->tail_sequence)
        return false;
    for (guint64 i = queue->head_sequence; i < sequence; i++)
        position = (position + entry_bytes(entry_at(queue, position))) % queue->ring_bytes;
    *ret_frame = frame_at(queue, position);
    return true;
}

bool
hold_queue_peek_oldest(const HoldQueue *queue, HeldFrame *ret_frame)
{
    if (queue->head_sequence == queue->tail_sequence)
        return false;
    *ret_frame = frame_at(queue, queue->head);
    return true;
}

void
hold_queue_drop_oldest(HoldQueue *queue)
{
    g_assert(queue->head_sequence < queue->tail_sequence);

    size_t bytes = entry_bytes(entry_at(queue, queue->head));

    queue->head = (queue->head + bytes) % queue->ring_bytes;
    queue->head_sequence++;
    queue->released_sequence = MAX(queue->released_sequence, queue->head_sequence);
    counter_set(&queue->frames, counter_get(&queue->frames) - 1);
    counter_set(&queue->bytes, counter_get(&queue->bytes) - bytes);
    if (queue->head_sequence == queue->tail_sequence)
        queue->head = queue->tail = 0;
}

void
hold_queue_pop(HoldQueue *queue)
{
    g_assert(queue->head_sequence < queue->released_sequence);
    hold_queue_drop_oldest(queue);
}

bool
hold_queue_has_held(const HoldQueue *queue)
{
    return queue->released_sequence < queue->tail_sequence;
}

bool
hold_queue_is_released(const HoldQueue *queue, guint64 sequence)
{
    return sequence < queue->released_sequence;
}

guint64
hold_queue_frames(const HoldQueue *queue)
{
    return counter_get(&queue->frames);
}

guint64
hold_queue_bytes(const HoldQueue *queue)
{
    return counter_get(&queue->bytes);
}

guint64
hold_queue_bytes_peak(const HoldQueue *queue)
{
    return counter_get(&queue->bytes_peak);
}
