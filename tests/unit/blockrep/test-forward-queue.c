/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-forward-queue.c - the window: merging, order, barriers; against a plain model too
 *
 * The random test keeps three small disks: what the guest was acknowledged, what of that the peer
 * may have at the next barrier (nothing held), and the peer's own, to which entries are applied
 * somewhere between being sent and being confirmed, in any order. Whenever the queue is drained the
 * last two are equal.
 */
#include "forward-queue.h"

#include "check-main.h"

#include <string.h>

enum {
    DISK = 4096,
    SMALL_ENTRIES = 24,
    MIB = 1024 * 1024,
};

#ifndef DEFAULT_OPS
#define DEFAULT_OPS 400000
#endif

static const uint8_t pattern[8 * MIB] = {1, 2, 3, 4, 5, 6, 7, 8};

static ForwardEntry *
take(ForwardQueue *queue, ForwardKind kind, uint64_t offset, uint64_t len)
{
    ForwardEntry *entry = forward_queue_take(queue);

    ck_assert_ptr_nonnull(entry);
    ck_assert_int_eq(entry->kind, kind);
    ck_assert_uint_eq(entry->offset, offset);
    ck_assert_uint_eq(entry->len, len);
    return entry;
}

START_TEST(unit_neighbours_are_merged)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);
    ForwardQueueStatus status;

    for (unsigned i = 0; i < 8; i++)
        ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, i * 512, 512, pattern), 512);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_ZERO, 8192, 4096, NULL), 4096);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_ZERO, 8192 + 4096, 4096, NULL), 4096);
    forward_queue_status(queue, &status);
    ck_assert_uint_eq(status.entries, 2);
    ck_assert_uint_eq(status.used_bytes, 4096);
    ck_assert_uint_eq(status.queued_bytes, 4096 + 8192);
    ck_assert_uint_eq(status.merged, 8);

    ForwardEntry *write = take(queue, FORWARD_WRITE, 0, 4096);

    ck_assert_int_eq(memcmp(write->data + 512, pattern, 512), 0);
    take(queue, FORWARD_ZERO, 8192, 8192);
    ck_assert_ptr_null(forward_queue_take(queue));
}
END_TEST

START_TEST(unit_the_newest_data_is_sent)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);

    (void)forward_queue_add(queue, FORWARD_WRITE, 0, 4096, pattern + 100);
    (void)forward_queue_add(queue, FORWARD_WRITE, 1000, 8, pattern);
    (void)forward_queue_add(queue, FORWARD_ZERO, 1004, 2, NULL);

    ForwardEntry *entry = take(queue, FORWARD_WRITE, 0, 4096);
    static const uint8_t want[] = {1, 2, 3, 4, 0, 0, 7, 8};

    ck_assert_int_eq(memcmp(entry->data + 1000, want, 8), 0);
}
END_TEST

START_TEST(unit_what_is_in_flight_is_waited_for)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);

    (void)forward_queue_add(queue, FORWARD_WRITE, 0, 4096, pattern);

    ForwardEntry *first = take(queue, FORWARD_WRITE, 0, 4096);

    (void)forward_queue_add(queue, FORWARD_WRITE, 4095, 2, pattern);
    (void)forward_queue_add(queue, FORWARD_TRIM, 8192, 4096, NULL);
    take(queue, FORWARD_TRIM, 8192, 4096);
    ck_assert_ptr_null(forward_queue_take(queue));
    ck_assert(forward_queue_overlaps(queue, 4096, 1));
    forward_queue_done(queue, first);
    take(queue, FORWARD_WRITE, 4095, 2);
    ck_assert(!forward_queue_overlaps(queue, 0, 4095));
}
END_TEST

/* Another who writes: the copy. */
START_TEST(unit_a_reserved_range)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);
    ForwardEntry *reserved = forward_queue_reserve(queue, 4096, 4096);

    ck_assert_ptr_nonnull(reserved);
    ck_assert_ptr_null(forward_queue_reserve(queue, 8191, 1));
    (void)forward_queue_add(queue, FORWARD_WRITE, 0, 5000, pattern);
    ck_assert_ptr_null(forward_queue_take(queue));
    forward_queue_done(queue, reserved);
    take(queue, FORWARD_WRITE, 0, 5000);
    ck_assert_ptr_null(forward_queue_reserve(queue, 0, 1));
}
END_TEST

START_TEST(unit_held_until_release)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);

    (void)forward_queue_add(queue, FORWARD_WRITE, 0, 512, pattern);
    forward_queue_hold(queue);
    (void)forward_queue_add(queue, FORWARD_WRITE, 512, 512, pattern);
    (void)forward_queue_add(queue, FORWARD_WRITE, 0, 512, pattern);

    ForwardEntry *before = take(queue, FORWARD_WRITE, 0, 512);

    ck_assert(!forward_queue_is_drained(queue));
    ck_assert_ptr_null(forward_queue_take(queue));
    forward_queue_done(queue, before);
    ck_assert(forward_queue_is_drained(queue));
    ck_assert_ptr_null(forward_queue_take(queue));
    forward_queue_release(queue);
    ck_assert(!forward_queue_is_drained(queue));
    take(queue, FORWARD_WRITE, 512, 512);
    take(queue, FORWARD_WRITE, 0, 512);
}
END_TEST

START_TEST(unit_zeros_over_writes)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);
    ForwardQueueStatus status;

    (void)forward_queue_add(queue, FORWARD_WRITE, 4096, 512, pattern);
    (void)forward_queue_add(queue, FORWARD_UNMAP, 0, 65536, NULL);
    forward_queue_status(queue, &status);
    ck_assert_uint_eq(status.entries, 1);
    ck_assert_uint_eq(status.used_bytes, 0);
    (void)forward_queue_add(queue, FORWARD_WRITE, 4096, 512, pattern);
    take(queue, FORWARD_UNMAP, 0, 4096);
    take(queue, FORWARD_UNMAP, 4608, 65536 - 4608);
    take(queue, FORWARD_WRITE, 4096, 512);
}
END_TEST

/* Data comes in as far as there is room, and more when some was confirmed. */
START_TEST(err_a_full_window)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);
    uint64_t taken = forward_queue_add(queue, FORWARD_WRITE, 0, 6 * MIB, pattern);

    ck_assert_uint_eq(taken, 4 * MIB);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, taken, 1, pattern), 0);
    forward_queue_done(queue, take(queue, FORWARD_WRITE, 0, MIB));
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, taken, 2 * MIB, pattern), MIB);
    /* Entries too: zeros take no data but a place each. */
    forward_queue_clear(queue);
    for (unsigned i = 0; i < 16; i++)
        ck_assert_uint_eq(forward_queue_add(queue, FORWARD_ZERO, 8192 * i, 4096, NULL), 4096);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_ZERO, 8192 * 16, 4096, NULL), 0);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, 100, 100, pattern), 0);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, 0, 100, pattern), 0);
    ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, 0, 4096, pattern), 4096);
}
END_TEST

/* While the peer keeps up, the same memory is used again and again; all of it is there for one that
 * does not. */
START_TEST(life_the_front_of_the_window)
{
    enum { LIMIT = 16 * MIB, FRONT = 2 * MIB, STEP = 64 * 1024, STEPS = 1000 };
    g_autoptr(ForwardQueue) queue = forward_queue_new(LIMIT, 512);
    ForwardEntry *before = NULL;
    const uint8_t *base = NULL;
    uint64_t offset = 0, reach = 0;

    for (int i = 0; i < STEPS; i++, offset += 2 * STEP) { /* never empty, and no neighbours */
        ck_assert_uint_eq(forward_queue_add(queue, FORWARD_WRITE, offset, STEP, pattern), STEP);

        ForwardEntry *entry = take(queue, FORWARD_WRITE, offset, STEP);

        base = base ? base : entry->data;
        reach = MAX(reach, (uint64_t)(entry->data - base) + STEP);
        if (before)
            forward_queue_done(queue, before);
        before = entry;
    }
    ck_assert_uint_le(reach, FRONT + STEP);
    forward_queue_done(queue, before);

    uint64_t taken = 0;

    while (forward_queue_add(queue, FORWARD_WRITE, offset + 2 * taken, STEP, pattern) == STEP)
        taken += STEP;
    ck_assert_uint_eq(taken, LIMIT);
}
END_TEST

/* What goes back to the front never writes over what waits: one is always left in flight. */
START_TEST(life_a_peer_that_falls_behind)
{
    enum { LIMIT = 4 * MIB, FRONT = 2 * MIB, STEP = 100 * 1000 };
    g_autoptr(ForwardQueue) queue = forward_queue_new(LIMIT, 512);
    g_autofree uint8_t *data = g_malloc(STEP);
    ForwardEntry *flight[64];
    unsigned n = 0, first = 0;

    for (unsigned round = 1, sent = 0; round < 300; round++) {
        for (unsigned i = 0; i <= round * 7 % 41; i++, sent++, n++) {
            const uint64_t offset = UINT64_C(2) * STEP * sent;

            memset(data, (int)(sent % 251), STEP);
            if (forward_queue_add(queue, FORWARD_WRITE, offset, STEP, data) == 0)
                break; /* the way to the end counts as used */
            flight[sent % 64] = take(queue, FORWARD_WRITE, offset, STEP);
        }
        ck_assert_uint_gt(n, MIN(round * 7 % 41, FRONT / 2 / STEP));
        for (; n > 1; n--, first++) {
            const ForwardEntry *entry = flight[first % 64];

            ck_assert_int_eq(entry->data[0], first % 251);
            ck_assert_int_eq(memcmp(entry->data, entry->data + 1, STEP - 1), 0);
            forward_queue_done(queue, flight[first % 64]);
        }
    }
}
END_TEST

START_TEST(life_forgets_all)
{
    g_autoptr(ForwardQueue) queue = forward_queue_new(4 * MIB, 16);
    ForwardQueueStatus status;

    for (unsigned i = 0; i < 100; i++) {
        (void)forward_queue_add(queue, FORWARD_WRITE, 0, 2 * MIB, pattern);
        (void)forward_queue_take(queue);
        forward_queue_hold(queue);
        (void)forward_queue_add(queue, FORWARD_WRITE, 100, MIB, pattern);
        forward_queue_clear(queue);
        forward_queue_status(queue, &status);
        ck_assert_uint_eq(status.entries + status.queued_bytes + status.used_bytes, 0);
        ck_assert(!forward_queue_is_holding(queue));
    }
}
END_TEST

/* --- Against the model --- */

typedef struct Flying {
    ForwardEntry *entry;
    bool is_reserved, is_applied;
} Flying;

typedef struct Model {
    GRand *rand;
    ForwardQueue *queue;
    uint8_t guest[DISK], barrier[DISK], peer[DISK];
    Flying flying[SMALL_ENTRIES];
    unsigned n_flying;
    bool holding;
} Model;

static uint32_t
below(Model *model, uint32_t n)
{
    return (uint32_t)g_rand_int_range(model->rand, 0, (gint32)n);
}

static void
apply(uint8_t *disk, ForwardKind kind, uint64_t offset, uint64_t len, const uint8_t *data)
{
    if (kind == FORWARD_WRITE)
        memcpy(disk + offset, data, len);
    else
        memset(disk + offset, 0, len);
}

/* What did not fit is written by nobody: the guest has to wait with it. */
static void
request(Model *model)
{
    uint8_t data[DISK];
    uint64_t offset = below(model, DISK);
    uint32_t most = below(model, 4) ? 200 : DISK;
    uint64_t len = 1 + below(model, MIN(DISK - (uint32_t)offset, most));
    ForwardKind kind =
        below(model, 3) ? FORWARD_WRITE : (ForwardKind)below(model, FORWARD_KIND_COUNT);

    for (uint64_t i = 0; i < len; i++)
        data[i] = (uint8_t)below(model, 255) + 1;

    uint64_t taken =
        forward_queue_add(model->queue, kind, offset, len, kind == FORWARD_WRITE ? data : NULL);

    ck_assert_uint_le(taken, len);
    apply(model->guest, kind, offset, taken, data);
    if (!model->holding)
        apply(model->barrier, kind, offset, taken, data);
    if (taken > 0)
        ck_assert(forward_queue_overlaps(model->queue, offset, taken));
}

static bool
overlaps_flying(const Model *model, const ForwardEntry *entry)
{
    for (unsigned i = 0; i < model->n_flying; i++) {
        const ForwardEntry *other = model->flying[i].entry;

        if (other->offset < entry->offset + entry->len &&
            entry->offset < other->offset + other->len)
            return true;
    }
    return false;
}

static void
send_one(Model *model)
{
    ForwardEntry *entry = forward_queue_take(model->queue);

    if (!entry)
        return;
    ck_assert(!overlaps_flying(model, entry));
    ck_assert_uint_le(entry->offset + entry->len, DISK);
    model->flying[model->n_flying++] = (Flying){.entry = entry};
}

/* The copy writes what the guest's disk has, which any unsent entry repeats. */
static void
reserve(Model *model)
{
    uint64_t offset = below(model, DISK - 100);
    ForwardEntry *entry = forward_queue_reserve(model->queue, offset, 1 + below(model, 100));

    if (!entry)
        return;
    ck_assert(!overlaps_flying(model, entry));
    model->flying[model->n_flying++] = (Flying){.entry = entry, .is_reserved = true};
}

static void
land(Model *model)
{
    unsigned i = model->n_flying > 0 ? below(model, model->n_flying) : 0;
    Flying *flying = &model->flying[i];

    if (model->n_flying == 0)
        return;
    if (!flying->is_applied && !flying->is_reserved)
        apply(model->peer, flying->entry->kind, flying->entry->offset, flying->entry->len,
              flying->entry->data);
    flying->is_applied = true;
    if (below(model, 2))
        return; /* applied there, and nobody knows here */
    forward_queue_done(model->queue, flying->entry);
    model->flying[i] = model->flying[--model->n_flying];
}

static void
drain(Model *model)
{
    while (!forward_queue_is_drained(model->queue)) {
        send_one(model);
        land(model);
    }
    ck_assert_int_eq(memcmp(model->barrier, model->peer, DISK), 0);
}

static void
barrier(Model *model)
{
    if (!model->holding) {
        forward_queue_hold(model->queue);
        model->holding = true;
        return;
    }
    drain(model);
    forward_queue_release(model->queue);
    model->holding = false;
    memcpy(model->barrier, model->guest, DISK);
}

/* The link breaks; a copy makes the disks equal. */
static void
lose(Model *model)
{
    forward_queue_clear(model->queue);
    model->n_flying = 0;
    model->holding = false;
    memcpy(model->peer, model->guest, DISK);
    memcpy(model->barrier, model->guest, DISK);
}

static void
step(Model *model)
{
    uint32_t dice = below(model, 1000);

    if (dice < 400)
        request(model);
    else if (dice < 700)
        send_one(model);
    else if (dice < 960)
        land(model);
    else if (dice < 980)
        reserve(model);
    else if (dice < 998)
        barrier(model);
    else if (dice < 999)
        drain(model);
    else
        lose(model);
}

static void
run_model(uint32_t seed, unsigned max_entries, unsigned ops)
{
    Model model = {.rand = g_rand_new_with_seed(seed)};

    model.queue = forward_queue_new(FORWARD_MIN_LIMIT_BYTES, max_entries);
    for (unsigned i = 0; i < ops; i++)
        step(&model);
    drain(&model);
    if (model.holding)
        barrier(&model);
    drain(&model);
    ck_assert_int_eq(memcmp(model.guest, model.peer, DISK), 0);
    forward_queue_free(model.queue);
    g_rand_free(model.rand);
}

START_TEST(unit_random_requests)
{
    for (uint32_t seed = 1; seed <= 8; seed++)
        run_model(seed, seed % 2 ? SMALL_ENTRIES : 3, DEFAULT_OPS / 8);
}
END_TEST

CHECK_MAIN("forward-queue", unit_neighbours_are_merged, unit_the_newest_data_is_sent,
           unit_what_is_in_flight_is_waited_for, unit_a_reserved_range, unit_held_until_release,
           unit_zeros_over_writes, err_a_full_window, life_forgets_all,
           life_the_front_of_the_window, life_a_peer_that_falls_behind, unit_random_requests)
