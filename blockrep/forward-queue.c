/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-queue.c - what the guest has changed and the peer has not confirmed yet (pure)
 *
 * Theory of operation. The peer's disk is looked at only at barriers, when everything is
 * confirmed. So between two of them the order does not matter except where ranges overlap, and the
 * queue keeps three sets of ranges, each free of overlaps within itself:
 *
 *   unsent   a later request is written into the entries it overlaps, and only what is new becomes
 *            an entry; so each byte is here once, with its newest value
 *   flight   sent, not confirmed. An unsent entry that overlaps one of these waits for it.
 *   held     as unsent, but of after the barrier: nothing goes between the two before the release
 *
 * Entries are slots of one array. A set is an array of slot numbers sorted by offset (bisection to
 * look something up, memmove() of a few KiB at worst to insert) and the two sets to be sent are
 * lists in order of arrival as well. Data is in a ring: entries are freed nearly in the order they
 * came in, and what was freed early is given back when all before it was.
 */
#include "forward-queue.h"

#include <string.h>

enum {
    NONE = 0xffff,
    FRONT_BYTES = 2 * FORWARD_WRITE_MAX_BYTES, /* of the ring: about a core's cache */
    LOOK_AHEAD = 64, /* entries that wait for one in flight, passed over to find one that can go */
};

typedef struct Slot {
    ForwardEntry entry; /* first: what is handed out is this */
    uint32_t block;     /* of a write: index of its piece of the ring */
    uint16_t next, previous;
} Slot;

/* Of the ring, in the order they were handed out. */
typedef struct Block {
    uint64_t end; /* position, counted without wrapping */
    bool is_free;
} Block;

typedef struct Set {
    uint16_t *ids; /* by offset */
    unsigned n;
    uint16_t first, last; /* by arrival; not of `flight` */
    uint64_t bytes;
} Set;

struct ForwardQueue {
    unsigned max_entries, n_entries;
    Slot *slots;
    uint16_t free_slots; /* list by `next` */
    Set unsent, held, flight;
    bool holding;

    uint8_t *ring;
    uint64_t limit_bytes;
    uint64_t head, tail; /* positions, counted without wrapping: [tail, head) is in use */
    Block *blocks;       /* as many as there are slots, used in a circle */
    uint32_t first_block, n_blocks;
    uint64_t merged, sent_bytes;
};

/* --- Sets --- */

static uint64_t
end_of(const ForwardEntry *entry)
{
    return entry->offset + entry->len;
}

/* Place of the first entry that ends behind @offset; set->n: none. */
static unsigned
set_find(const ForwardQueue *queue, const Set *set, uint64_t offset)
{
    unsigned low = 0, high = set->n;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (end_of(&queue->slots[set->ids[middle]].entry) > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static Slot *
set_first_in(const ForwardQueue *queue, const Set *set, uint64_t offset, uint64_t end)
{
    unsigned place = set_find(queue, set, offset);

    if (place == set->n || queue->slots[set->ids[place]].entry.offset >= end)
        return NULL;
    return &queue->slots[set->ids[place]];
}

static void
set_insert(ForwardQueue *queue, Set *set, Slot *slot)
{
    unsigned place = set_find(queue, set, slot->entry.offset);

    memmove(set->ids + place + 1, set->ids + place, (set->n - place) * sizeof(*set->ids));
    set->ids[place] = (uint16_t)(slot - queue->slots);
    set->n++;
    set->bytes += slot->entry.len;
}

static void
set_remove(ForwardQueue *queue, Set *set, const Slot *slot)
{
    unsigned place = set_find(queue, set, slot->entry.offset);

    g_assert(place < set->n && &queue->slots[set->ids[place]] == slot);
    memmove(set->ids + place, set->ids + place + 1, (set->n - place - 1) * sizeof(*set->ids));
    set->n--;
    set->bytes -= slot->entry.len;
}

static void
line_append(ForwardQueue *queue, Set *set, Slot *slot)
{
    uint16_t id = (uint16_t)(slot - queue->slots);

    slot->next = NONE;
    slot->previous = set->last;
    if (set->last == NONE)
        set->first = id;
    else
        queue->slots[set->last].next = id;
    set->last = id;
}

static void
line_remove(ForwardQueue *queue, Set *set, const Slot *slot)
{
    if (slot->previous == NONE)
        set->first = slot->next;
    else
        queue->slots[slot->previous].next = slot->next;
    if (slot->next == NONE)
        set->last = slot->previous;
    else
        queue->slots[slot->next].previous = slot->previous;
}

/* --- The ring --- */

/* While little waits only the front of the ring is used: memory that was used shortly before is in
 * the caches, from which new memory would drive the guest, and the rest need not become resident.
 * The way to the end counts as used until what lies before it is confirmed; so there must be little
 * of that, and more room at the front. */
static bool
is_front_better(const ForwardQueue *queue, uint64_t len)
{
    uint64_t place = queue->head % queue->limit_bytes, used = queue->head - queue->tail;

    return place >= FRONT_BYTES && used <= FRONT_BYTES / 4 && len <= place - used;
}

/* Where @len bytes in a row would go; false: no room now. */
static bool
ring_find(const ForwardQueue *queue, uint64_t len, uint64_t *ret_start)
{
    bool is_empty = queue->n_blocks == 0;
    uint64_t start = is_empty ? 0 : queue->head, tail = is_empty ? 0 : queue->tail;
    uint64_t to_end = queue->limit_bytes - start % queue->limit_bytes;

    if (to_end < len || (!is_empty && is_front_better(queue, len)))
        start += to_end;
    *ret_start = start;
    /* Blocks are given back later than slots, if those before them are not. */
    return start + len - tail <= queue->limit_bytes && queue->n_blocks < queue->max_entries;
}

static bool
ring_take(ForwardQueue *queue, uint64_t len, Slot *slot)
{
    uint64_t start;

    if (!ring_find(queue, len, &start))
        return false;
    if (queue->n_blocks == 0)
        queue->tail = 0;
    slot->block = (queue->first_block + queue->n_blocks) % queue->max_entries;
    slot->entry.data = queue->ring + start % queue->limit_bytes;
    queue->n_blocks++;
    queue->head = start + len;
    queue->blocks[slot->block] = (Block){.end = queue->head};
    return true;
}

/* Makes the newest block longer, where it is. */
static bool
ring_extend(ForwardQueue *queue, const Slot *slot, uint64_t len)
{
    bool is_newest = queue->n_blocks > 0 &&
                     slot->block == (queue->first_block + queue->n_blocks - 1) % queue->max_entries;
    uint64_t used_of_lap = (queue->head - 1) % queue->limit_bytes + 1;

    if (!is_newest || queue->limit_bytes - used_of_lap < len ||
        queue->head + len - queue->tail > queue->limit_bytes)
        return false;
    queue->head += len;
    queue->blocks[slot->block].end = queue->head;
    return true;
}

static void
ring_give(ForwardQueue *queue, uint32_t block)
{
    queue->blocks[block].is_free = true;
    while (queue->n_blocks > 0 && queue->blocks[queue->first_block].is_free) {
        queue->tail = queue->blocks[queue->first_block].end;
        queue->first_block = (queue->first_block + 1) % queue->max_entries;
        queue->n_blocks--;
    }
}

/* --- Slots --- */

static Slot *
slot_take(ForwardQueue *queue)
{
    Slot *slot;

    if (queue->free_slots == NONE)
        return NULL;
    slot = &queue->slots[queue->free_slots];
    g_assert(slot); /* for the analyzer, which takes `slots` for NULL */
    queue->free_slots = slot->next;
    queue->n_entries++;
    return slot;
}

static void
slot_give(ForwardQueue *queue, Slot *slot)
{
    if (slot->entry.data)
        ring_give(queue, slot->block);
    slot->entry.data = NULL;
    slot->next = queue->free_slots;
    queue->free_slots = (uint16_t)(slot - queue->slots);
    queue->n_entries--;
}

static void
drop(ForwardQueue *queue, Set *set, Slot *slot)
{
    set_remove(queue, set, slot);
    line_remove(queue, set, slot);
    slot_give(queue, slot);
}

static void
reset(ForwardQueue *queue)
{
    const Set empty = {.first = NONE, .last = NONE};
    Set *sets[] = {&queue->unsent, &queue->held, &queue->flight};

    for (unsigned i = 0; i < G_N_ELEMENTS(sets); i++) {
        uint16_t *ids = sets[i]->ids;

        *sets[i] = empty;
        sets[i]->ids = ids;
    }
    queue->free_slots = NONE;
    for (unsigned i = queue->max_entries; i-- > 0;) {
        queue->slots[i] = (Slot){.next = queue->free_slots};
        queue->free_slots = (uint16_t)i;
    }
    queue->n_entries = 0;
    queue->n_blocks = 0;
    queue->first_block = 0;
    queue->head = queue->tail = 0;
    queue->sent_bytes = 0;
    queue->holding = false;
}

ForwardQueue *
forward_queue_new(uint64_t limit_bytes, unsigned max_entries)
{
    ForwardQueue *queue = g_new0(ForwardQueue, 1);

    g_assert(limit_bytes >= FORWARD_MIN_LIMIT_BYTES);
    g_assert(max_entries > 0 && max_entries <= FORWARD_MAX_ENTRIES);
    queue->max_entries = max_entries;
    queue->limit_bytes = limit_bytes;
    queue->slots = g_new0(Slot, max_entries);
    queue->blocks = g_new0(Block, max_entries);
    queue->unsent.ids = g_new0(uint16_t, max_entries);
    queue->held.ids = g_new0(uint16_t, max_entries);
    queue->flight.ids = g_new0(uint16_t, max_entries);
    queue->ring = g_malloc(limit_bytes); /* resident as it is used */
    reset(queue);
    return queue;
}

void
forward_queue_free(ForwardQueue *queue)
{
    if (!queue)
        return;
    g_free(queue->slots);
    g_free(queue->blocks);
    g_free(queue->unsent.ids);
    g_free(queue->held.ids);
    g_free(queue->flight.ids);
    g_free(queue->ring);
    g_free(queue);
}

void
forward_queue_clear(ForwardQueue *queue)
{
    reset(queue);
}

/* --- Requests --- */

static uint64_t
max_of(ForwardKind kind)
{
    return kind == FORWARD_WRITE ? FORWARD_WRITE_MAX_BYTES : FORWARD_ZERO_MAX_BYTES;
}

static void
grow(ForwardQueue *queue, Set *set, Slot *slot, uint64_t len, const uint8_t *data)
{
    if (data)
        memcpy(slot->entry.data + slot->entry.len, data, len);
    slot->entry.len += len;
    set->bytes += len;
    queue->merged++;
}

/* The range is of no entry yet, nor is what lies between the newest entry and it. How much of it
 * became one. */
static uint64_t
append(ForwardQueue *queue, Set *set, const ForwardEntry *piece)
{
    Slot *last = set->last == NONE ? NULL : &queue->slots[set->last];
    uint64_t len = MIN(piece->len, max_of(piece->kind));
    bool follows = last && last->entry.kind == piece->kind && end_of(&last->entry) == piece->offset;

    if (follows && last->entry.len + len <= max_of(piece->kind) &&
        (!piece->data || ring_extend(queue, last, len))) {
        grow(queue, set, last, len, piece->data);
        return len;
    }

    Slot *slot = slot_take(queue);

    if (!slot)
        return 0;
    slot->entry = (ForwardEntry){.kind = piece->kind, .offset = piece->offset, .len = len};
    if (piece->data && !ring_take(queue, len, slot)) {
        slot_give(queue, slot);
        return 0;
    }
    if (piece->data)
        memcpy(slot->entry.data, piece->data, len);
    set_insert(queue, set, slot);
    line_append(queue, set, slot);
    return len;
}

/* Takes [offset, end) out of an entry without data, for a write to be put there. False: there is no
 * room for that, and nothing has changed. */
static bool
cut(ForwardQueue *queue, Set *set, Slot *slot, uint64_t offset, uint64_t end)
{
    const ForwardEntry old = slot->entry;
    bool is_left = old.offset<offset, is_right = end_of(&old)> end;
    unsigned n_free = queue->max_entries - queue->n_entries;
    uint64_t start;

    if (n_free + 1 < 1U + is_left + is_right ||
        !ring_find(queue, MIN(end - offset, FORWARD_WRITE_MAX_BYTES), &start))
        return false;
    if (!is_left && !is_right) {
        drop(queue, set, slot);
        return true;
    }
    slot->entry.offset = is_left ? old.offset : end; /* its place in the set is the same */
    slot->entry.len = is_left ? offset - old.offset : end_of(&old) - end;
    set->bytes -= old.len - slot->entry.len;
    if (is_left && is_right) {
        Slot *right = slot_take(queue);

        g_assert(right); /* n_free */
        right->entry = (ForwardEntry){.kind = old.kind, .offset = end, .len = end_of(&old) - end};
        set_insert(queue, set, right);
        line_append(queue, set, right);
    }
    return true;
}

/* A write meets an unsent entry in [offset, end). True: it is in it. */
static bool
write_into(ForwardQueue *queue, Slot *slot, uint64_t offset, uint64_t end, const uint8_t *data)
{
    if (slot->entry.kind != FORWARD_WRITE)
        return false;
    memcpy(slot->entry.data + (offset - slot->entry.offset), data, end - offset);
    queue->merged++;
    return true;
}

/* So does something else. */
static bool
clear_in(ForwardQueue *queue, Slot *slot, ForwardKind kind, uint64_t offset, uint64_t end)
{
    if (slot->entry.kind != FORWARD_WRITE) {
        slot->entry.kind = MIN(slot->entry.kind, kind);
    } else {
        if (slot->entry.offset == offset && end_of(&slot->entry) == end)
            return false; /* nothing of it is left */
        memset(slot->entry.data + (offset - slot->entry.offset), 0, end - offset);
    }
    queue->merged++;
    return true;
}

/* One step from @offset on: up to the next entry, or as far as that entry goes. */
static uint64_t
add_some(ForwardQueue *queue, Set *set, const ForwardEntry *piece)
{
    uint64_t offset = piece->offset, end = end_of(piece);
    Slot *met = set_first_in(queue, set, offset, end);

    if (!met)
        return append(queue, set, piece);
    if (met->entry.offset > offset) {
        ForwardEntry before = *piece;

        before.len = met->entry.offset - offset;
        return append(queue, set, &before);
    }
    end = MIN(end, MIN(end_of(&met->entry), offset + max_of(piece->kind)));

    bool is_in = piece->data ? write_into(queue, met, offset, end, piece->data)
                             : clear_in(queue, met, piece->kind, offset, end);

    if (is_in)
        return end - offset;
    if (piece->data) {
        if (!cut(queue, set, met, offset, end))
            return 0;
    } else {
        drop(queue, set, met);
    }

    ForwardEntry instead = *piece;

    instead.len = end - offset;
    return append(queue, set, &instead);
}

uint64_t
forward_queue_add(ForwardQueue *queue, ForwardKind kind, uint64_t offset, uint64_t len,
                  const void *data)
{
    Set *set = queue->holding ? &queue->held : &queue->unsent;
    uint64_t done = 0;

    g_assert((kind == FORWARD_WRITE) == (data != NULL));
    while (done < len) {
        ForwardEntry piece = {
            .kind = kind,
            .offset = offset + done,
            .len = len - done,
            .data = data ? (uint8_t *)(uintptr_t)data + done : NULL, /* only read */
        };
        uint64_t taken = add_some(queue, set, &piece);

        if (taken == 0)
            break;
        done += taken;
    }
    return done;
}

/* --- Sending --- */

ForwardEntry *
forward_queue_take(ForwardQueue *queue)
{
    uint16_t id = queue->unsent.first;

    for (int i = 0; i < LOOK_AHEAD && id != NONE; i++, id = queue->slots[id].next) {
        Slot *slot = &queue->slots[id];

        if (set_first_in(queue, &queue->flight, slot->entry.offset, end_of(&slot->entry)))
            continue;
        set_remove(queue, &queue->unsent, slot);
        line_remove(queue, &queue->unsent, slot);
        set_insert(queue, &queue->flight, slot);
        queue->sent_bytes += slot->entry.data ? slot->entry.len : 0;
        return &slot->entry;
    }
    return NULL;
}

void
forward_queue_done(ForwardQueue *queue, ForwardEntry *entry)
{
    Slot *slot = (Slot *)entry;

    set_remove(queue, &queue->flight, slot);
    queue->sent_bytes -= slot->entry.data ? slot->entry.len : 0;
    slot_give(queue, slot);
}

ForwardEntry *
forward_queue_reserve(ForwardQueue *queue, uint64_t offset, uint64_t len)
{
    if (set_first_in(queue, &queue->flight, offset, offset + len))
        return NULL;

    Slot *slot = slot_take(queue);

    if (!slot)
        return NULL;
    slot->entry = (ForwardEntry){.kind = FORWARD_ZERO, .offset = offset, .len = len};
    set_insert(queue, &queue->flight, slot);
    return &slot->entry;
}

/* --- Barriers --- */

void
forward_queue_hold(ForwardQueue *queue)
{
    queue->holding = true;
}

void
forward_queue_release(ForwardQueue *queue)
{
    Set empty = queue->unsent;

    g_assert(forward_queue_is_drained(queue));
    queue->unsent = queue->held;
    queue->held = empty;
    queue->holding = false;
}

bool
forward_queue_is_holding(const ForwardQueue *queue)
{
    return queue->holding;
}

bool
forward_queue_is_drained(const ForwardQueue *queue)
{
    return queue->unsent.n == 0 && queue->flight.n == 0;
}

unsigned
forward_queue_unsent(const ForwardQueue *queue, uint64_t *ret_bytes)
{
    *ret_bytes = queue->unsent.bytes;
    return queue->unsent.n;
}

bool
forward_queue_overlaps(const ForwardQueue *queue, uint64_t offset, uint64_t len)
{
    return set_first_in(queue, &queue->unsent, offset, offset + len) ||
           set_first_in(queue, &queue->held, offset, offset + len) ||
           set_first_in(queue, &queue->flight, offset, offset + len);
}

void
forward_queue_status(const ForwardQueue *queue, ForwardQueueStatus *ret_status)
{
    *ret_status = (ForwardQueueStatus){
        .limit_bytes = queue->limit_bytes,
        .used_bytes = queue->n_blocks > 0 ? queue->head - queue->tail : 0,
        .queued_bytes = queue->unsent.bytes + queue->flight.bytes,
        .held_bytes = queue->held.bytes,
        .sent_bytes = queue->sent_bytes,
        .entries = queue->n_entries,
        .in_flight = queue->flight.n,
        .merged = queue->merged,
    };
}
