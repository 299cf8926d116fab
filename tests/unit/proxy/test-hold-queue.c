/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-hold-queue.c - the ring of held frames against a simple model */
#include "hold-queue.h"

#include "check-main.h"

#include <string.h>

/* The model: numbered frames in a GQueue, marks as frame numbers. */
typedef struct Model {
    GQueue *frames; /* guint64 number */
    guint64 next, head, released;
    GArray *marks; /* Mark */
} Model;

typedef struct Mark {
    guint64 epoch, before;
} Mark;

static size_t
length_of(guint64 number)
{
    GRand *rand = g_rand_new_with_seed((guint32)number);
    guint32 kind = g_rand_int_range(rand, 0, 10);
    size_t len = kind < 7   ? (size_t)g_rand_int_range(rand, 24, 1600)
                 : kind < 9 ? (size_t)g_rand_int_range(rand, 1600, 66000)
                            : HOLD_QUEUE_FRAME_MAX;

    g_rand_free(rand);
    return len;
}

static void
fill(uint8_t *data, size_t len, guint64 number)
{
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(number * 31 + i * 7);
    memcpy(data, &number, sizeof(number));
}

static void
check_frame(const HeldFrame *frame, guint64 number)
{
    static uint8_t want[HOLD_QUEUE_FRAME_MAX];
    size_t len = length_of(number);

    fill(want, len, number);
    ck_assert_uint_eq(frame->len, len);
    ck_assert_int_eq(frame->stamp, (int64_t)number);
    ck_assert_int_eq(memcmp(frame->data, want, len), 0);
}

/* As a port does: fill several slots, then append some of them, with or without a VLAN tag's shift,
 * skip others. */
static void
append_batch(HoldQueue *queue, Model *model, GRand *rand)
{
    unsigned wanted = (unsigned)g_rand_int_range(rand, 1, 9);
    unsigned n = MIN(hold_queue_room(queue), wanted);
    bool shifted[8], skipped[8];

    for (unsigned i = 0; i < n; i++) {
        guint64 number = model->next + i;
        uint8_t *slot = hold_queue_slot(queue, i);

        shifted[i] = g_rand_boolean(rand);
        skipped[i] = g_rand_int_range(rand, 0, 8) == 0;
        if (shifted[i])
            slot -= HOLD_QUEUE_HEADROOM;
        fill(slot, length_of(number), number);
    }

    const uint8_t *slots[8];

    for (unsigned i = 0; i < n; i++)
        slots[i] = hold_queue_slot(queue, i) - (shifted[i] ? HOLD_QUEUE_HEADROOM : 0);
    for (unsigned i = 0; i < n; i++) {
        guint64 number = model->next++;

        if (skipped[i])
            continue;
        hold_queue_append(queue, slots[i], length_of(number), (int64_t)number);
        g_queue_push_tail(model->frames, g_memdup2(&number, sizeof(number)));
    }
}

static void
model_release(Model *model, guint64 epoch)
{
    for (guint i = 0; i < model->marks->len; i++) {
        const Mark *mark = &g_array_index(model->marks, Mark, i);

        if (mark->epoch <= epoch)
            model->released = MAX(model->released, mark->before);
    }
}

static void
pop_some(HoldQueue *queue, Model *model, unsigned n)
{
    while (n-- > 0) {
        HeldFrame frame;
        const guint64 *oldest = g_queue_peek_head(model->frames);
        bool want = oldest && *oldest < model->released;

        ck_assert_int_eq(hold_queue_peek(queue, &frame), want);
        if (!want)
            return;
        check_frame(&frame, *oldest);
        model->head = *oldest + 1;
        hold_queue_pop(queue);
        g_free(g_queue_pop_head(model->frames));
    }
}

static void
random_step(HoldQueue *queue, Model *model, GRand *rand, guint64 *epoch)
{
    switch (g_rand_int_range(rand, 0, 16)) {
    case 0: {
        Mark mark = {.epoch = ++*epoch, .before = model->next};

        hold_queue_mark(queue, mark.epoch);
        g_array_append_val(model->marks, mark);
        if (model->marks->len > HOLD_QUEUE_MARKS)
            g_array_remove_index(model->marks, 0);
        break;
    }
    case 1:
    case 2: {
        guint64 ago = (guint64)g_rand_int_range(rand, 0, 3), which = *epoch - MIN(*epoch, ago);

        hold_queue_release(queue, which);
        model_release(model, which);
        break;
    }
    case 3:
        if (g_rand_int_range(rand, 0, 10) == 0) {
            ck_assert_uint_eq(hold_queue_drop_all(queue), g_queue_get_length(model->frames));
            g_queue_clear_full(model->frames, g_free);
            g_array_set_size(model->marks, 0);
            model->released = model->head = model->next;
        }
        break;
    case 4:
        hold_queue_unrelease(queue);
        model->released = model->head;
        break;
    case 5:
        if (g_rand_int_range(rand, 0, 5) == 0) {
            hold_queue_release_all(queue);
            model->released = model->next;
            g_array_set_size(model->marks, 0);
        }
        break;
    case 6:
    case 7:
    case 8:
    case 9:
        pop_some(queue, model, (unsigned)g_rand_int_range(rand, 1, 30));
        break;
    default:
        if (hold_queue_room(queue) > 0)
            append_batch(queue, model, rand);
    }
}

/* Sanitized builds do a share of them. */
#ifndef SEEDS
#define SEEDS 6
#endif
#ifndef ROUNDS
#define ROUNDS 100000
#endif

START_TEST(unit_random_operations_agree_with_the_model)
{
    for (guint32 seed = 1; seed <= SEEDS; seed++) {
        GRand *rand = g_rand_new_with_seed(seed);
        size_t bound = HOLD_QUEUE_MIN_BYTES + (size_t)seed * 12345;
        HoldQueue *queue = hold_queue_new(bound);
        Model model = {.frames = g_queue_new(), .marks = g_array_new(FALSE, FALSE, sizeof(Mark))};
        guint64 epoch = 0;

        for (unsigned i = 0; i < 1500; i++) {
            random_step(queue, &model, rand, &epoch);
            ck_assert_uint_eq(hold_queue_frames(queue), g_queue_get_length(model.frames));
            ck_assert_uint_le(hold_queue_bytes(queue), bound);
            ck_assert_uint_le(hold_queue_bytes(queue), hold_queue_bytes_peak(queue));
        }
        hold_queue_release_all(queue);
        model.released = model.next;
        pop_some(queue, &model, G_MAXUINT);
        ck_assert_uint_eq(hold_queue_bytes(queue), 0);
        g_queue_free_full(model.frames, g_free);
        g_array_free(model.marks, TRUE);
        hold_queue_free(queue);
        g_rand_free(rand);
    }
}
END_TEST

START_TEST(unit_wrap_around_keeps_small_frames_intact)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(HOLD_QUEUE_MIN_BYTES);
    uint8_t data[100];
    HeldFrame frame;
    guint64 in = 0, out = 0;

    /* Never empty, so that it goes round many times. */
    for (unsigned round = 0; round < ROUNDS; round++) {
        memset(data, (int)(in & 0xff), sizeof(data));
        hold_queue_append(queue, data, 24 + in % 77, (int64_t)in);
        in++;
        if (in - out < 1000)
            continue;
        hold_queue_release_all(queue);
        ck_assert(hold_queue_peek(queue, &frame));
        ck_assert_uint_eq(frame.len, 24 + out % 77);
        ck_assert_uint_eq(frame.data[0], out & 0xff);
        ck_assert_uint_eq(frame.data[frame.len - 1], out & 0xff);
        hold_queue_pop(queue);
        out++;
    }
}
END_TEST

START_TEST(unit_bound_leaves_room_for_the_largest_frame_or_none)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(HOLD_QUEUE_MIN_BYTES);
    static uint8_t data[HOLD_QUEUE_FRAME_MAX];
    unsigned n = hold_queue_room(queue);

    ck_assert_uint_eq(n, HOLD_QUEUE_MIN_BYTES / (HOLD_QUEUE_FRAME_MAX + 32));
    for (unsigned i = 0; i < n; i++)
        hold_queue_append(queue, data, sizeof(data), 0);
    ck_assert_uint_eq(hold_queue_room(queue), 0);
    ck_assert_uint_ge(hold_queue_bytes(queue), HOLD_QUEUE_MIN_BYTES / 4 * 3);
}
END_TEST

START_TEST(unit_release_without_its_mark_releases_only_older_marks)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(HOLD_QUEUE_MIN_BYTES);
    uint8_t data[64] = {0};
    HeldFrame frame;

    hold_queue_append(queue, data, sizeof(data), 1);
    hold_queue_mark(queue, 5);
    hold_queue_append(queue, data, sizeof(data), 2);
    hold_queue_release(queue, 4);
    ck_assert(!hold_queue_peek(queue, &frame));
    hold_queue_release(queue, 9);
    ck_assert(hold_queue_peek(queue, &frame) && frame.stamp == 1);
    hold_queue_pop(queue);
    ck_assert(!hold_queue_peek(queue, &frame));
}
END_TEST

START_TEST(unit_too_many_marks_forget_the_oldest_and_release_less)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(HOLD_QUEUE_MIN_BYTES);
    uint8_t data[64] = {0};
    HeldFrame frame;

    for (guint64 epoch = 1; epoch <= HOLD_QUEUE_MARKS + 1; epoch++) {
        hold_queue_append(queue, data, sizeof(data), (int64_t)epoch);
        hold_queue_mark(queue, epoch);
    }
    hold_queue_release(queue, 1);
    ck_assert(!hold_queue_peek(queue, &frame));
    hold_queue_release(queue, 2);
    for (int64_t want = 1; want <= 2; want++) {
        ck_assert(hold_queue_peek(queue, &frame) && frame.stamp == want);
        hold_queue_pop(queue);
    }
    ck_assert(!hold_queue_peek(queue, &frame));
}
END_TEST

START_TEST(unit_unrelease_keeps_the_mark)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(HOLD_QUEUE_MIN_BYTES);
    uint8_t data[64] = {0};
    HeldFrame frame;

    hold_queue_append(queue, data, sizeof(data), 1);
    hold_queue_mark(queue, 1);
    hold_queue_release(queue, 1);
    hold_queue_unrelease(queue);
    ck_assert(!hold_queue_peek(queue, &frame));
    hold_queue_release(queue, 1);
    ck_assert(hold_queue_peek(queue, &frame));
}
END_TEST

static void
collect(const HeldFrame *frame, gpointer data)
{
    g_array_append_val((GArray *)data, frame->stamp);
}

START_TEST(unit_oldest_goes_first_and_the_rest_can_be_looked_at)
{
    HoldQueue *queue = hold_queue_new(HOLD_QUEUE_MIN_BYTES);
    g_autoptr(GArray) seen = g_array_new(FALSE, FALSE, sizeof(int64_t));
    uint8_t data[1000] = {0};
    HeldFrame frames[8];

    ck_assert(!hold_queue_peek_oldest(queue, frames));
    /* Many times around the ring, so that every kind of wrap is met. */
    for (int64_t i = 0; i < 5000; i++) {
        memset(data, (int)i, sizeof(data));
        uint8_t *place = hold_queue_append(queue, data, 24 + (size_t)(i * 7 % 900), i);

        ck_assert_uint_eq(place[23], (uint8_t)i);
        if (hold_queue_frames(queue) > 5)
            hold_queue_drop_oldest(queue);
        ck_assert(hold_queue_peek_oldest(queue, frames));
        ck_assert_int_eq(frames[0].stamp, MAX(i - 4, 0));
        ck_assert(hold_queue_has_held(queue));
        ck_assert_uint_eq(hold_queue_peek_many(queue, frames, 8), 0);
        g_array_set_size(seen, 0);
        hold_queue_foreach(queue, collect, seen);
        ck_assert_uint_eq(seen->len, hold_queue_frames(queue));
        for (guint j = 0; j < seen->len; j++)
            ck_assert_int_eq(g_array_index(seen, int64_t, j), MAX(i - 4, 0) + j);
    }
    hold_queue_release_all(queue);
    ck_assert(!hold_queue_has_held(queue));
    ck_assert_uint_eq(hold_queue_peek_many(queue, frames, 3), 3);
    ck_assert_int_eq(frames[2].stamp, 4997);
    ck_assert_uint_eq(hold_queue_peek_many(queue, frames, 8), 5);
    /* Released and then dropped: the next one is held again. */
    for (unsigned i = 0; i < 5; i++)
        hold_queue_drop_oldest(queue);
    (void)hold_queue_append(queue, data, 24, 1);
    ck_assert_uint_eq(hold_queue_peek_many(queue, frames, 8), 0);
    hold_queue_free(queue);
}
END_TEST

CHECK_MAIN("hold-queue", unit_random_operations_agree_with_the_model,
           unit_wrap_around_keeps_small_frames_intact,
           unit_bound_leaves_room_for_the_largest_frame_or_none,
           unit_release_without_its_mark_releases_only_older_marks,
           unit_too_many_marks_forget_the_oldest_and_release_less, unit_unrelease_keeps_the_mark,
           unit_oldest_goes_first_and_the_rest_can_be_looked_at)
