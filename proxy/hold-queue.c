/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* hold-queue.c - a bounded FIFO of frames with marks */
#include "hold-queue.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "counter.h"
#include "fd.h"

typedef struct Entry {
    int64_t arrived_ns;
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

/* Maps the same @bytes twice in a row. NULL and errno on failure. */
static uint8_t *
map_twice(size_t bytes)
{
    auto_fd int fd = memfd_create("colod-hold", MFD_CLOEXEC);

    /* fallocate(): too little memory is an error now, not a SIGBUS in the middle of a checkpoint.
     */
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fallocate(fd, 0, 0, (off_t)bytes) < 0)
        return NULL;

    void *space = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (space == MAP_FAILED)
        return NULL;
    for (unsigned i = 0; i < 2; i++) {
        void *want = (uint8_t *)space + i * bytes;

        if (mmap(want, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd,
                 0) == MAP_FAILED) {
            int saved_errno = errno;

            (void)munmap(space, 2 * bytes);
            errno = saved_errno;
            return NULL;
        }
    }
    return space;
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
    uint8_t *ring = map_twice(ring_bytes);

    if (!ring)
        return NULL;

    HoldQueue *queue = g_new0(HoldQueue, 1);

    queue->ring = ring;
    queue->ring_bytes = ring_bytes;
    queue->max_bytes = max_bytes;
    return queue;
}

void
hold_queue_free(HoldQueue *queue)
{
    if (!queue)
        return;
    (void)munmap(queue->ring, 2 * queue->ring_bytes);
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

void
hold_queue_append(HoldQueue *queue, const uint8_t *data, size_t len, int64_t arrived_ns)
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

    *entry = (Entry){.arrived_ns = arrived_ns, .len = (uint32_t)len, .offset = offset};
    size_t bytes = entry_bytes(entry);

    queue->tail = (queue->tail + bytes) % queue->ring_bytes;
    queue->tail_sequence++;
    counter_add(&queue->frames, 1);
    counter_add(&queue->bytes, bytes);
    counter_set(&queue->bytes_peak,
                MAX(counter_get(&queue->bytes_peak), counter_get(&queue->bytes)));
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

bool
hold_queue_peek(const HoldQueue *queue, HeldFrame *ret_frame)
{
    if (queue->head_sequence == queue->released_sequence)
        return false;

    const Entry *entry = entry_at(queue, queue->head);

    *ret_frame = (HeldFrame){.data = queue->ring + queue->head + sizeof(Entry) + entry->offset,
                             .len = entry->len,
                             .arrived_ns = entry->arrived_ns};
    return true;
}

void
hold_queue_pop(HoldQueue *queue)
{
    g_assert(queue->head_sequence < queue->released_sequence);

    size_t bytes = entry_bytes(entry_at(queue, queue->head));

    queue->head = (queue->head + bytes) % queue->ring_bytes;
    queue->head_sequence++;
    counter_set(&queue->frames, counter_get(&queue->frames) - 1);
    counter_set(&queue->bytes, counter_get(&queue->bytes) - bytes);
    if (queue->head_sequence == queue->tail_sequence)
        queue->head = queue->tail = 0;
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
