/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-range-lock.c - ranges: who waits for whom, in which order, and until when */
#include "range-lock.h"

#include "check-main.h"
#include "clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

static int64_t
now(void)
{
    return clock_now_ns();
}

/* Tries without waiting: a deadline that has passed. */
static int
try_take(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end, RangeMode mode)
{
    return range_lock_take_until(lock, hold, start, end, mode, now() - NS_PER_MS);
}

START_TEST(unit_what_conflicts)
{
    g_autoptr(RangeLock) lock = range_lock_new();
    RangeHold held, other;

    range_lock_take(lock, &held, 100, 200, RANGE_SHARED);
    ck_assert_int_eq(try_take(lock, &other, 150, 160, RANGE_SHARED), 0);
    range_lock_release(lock, &other);
    ck_assert_int_eq(try_take(lock, &other, 199, 300, RANGE_EXCLUSIVE), -ETIMEDOUT);
    ck_assert_int_eq(try_take(lock, &other, 200, 300, RANGE_EXCLUSIVE), 0);
    range_lock_release(lock, &other);
    range_lock_release(lock, &held);

    range_lock_take(lock, &held, 100, 200, RANGE_EXCLUSIVE);
    ck_assert_int_eq(try_take(lock, &other, 0, 101, RANGE_SHARED), -ETIMEDOUT);
    ck_assert_int_eq(try_take(lock, &other, 0, 100, RANGE_SHARED), 0);
    range_lock_release(lock, &other);
    range_lock_release(lock, &held);
    ck_assert_uint_eq(range_lock_count(lock), 0);
}
END_TEST

typedef struct Waiter {
    RangeLock *lock;
    uint64_t start, end;
    RangeMode mode;
    atomic_int *order;
    int place; /* in which order it got its turn */
    pthread_t thread;
} Waiter;

static void *
wait_and_hold(void *data)
{
    Waiter *waiter = data;
    RangeHold hold;

    range_lock_take(waiter->lock, &hold, waiter->start, waiter->end, waiter->mode);
    waiter->place = atomic_fetch_add(waiter->order, 1);
    range_lock_release(waiter->lock, &hold);
    return NULL;
}

/* Returns when @waiter stands in the list. */
static void
start(Waiter *waiter)
{
    unsigned before = range_lock_count(waiter->lock);

    ck_assert_int_eq(pthread_create(&waiter->thread, NULL, wait_and_hold, waiter), 0);
    while (range_lock_count(waiter->lock) == before)
        g_thread_yield();
}

/* A stream of shared holds does not keep an exclusive one out: later ones wait behind it. */
START_TEST(life_nobody_is_overtaken)
{
    g_autoptr(RangeLock) lock = range_lock_new();
    atomic_int order = 0;
    RangeHold first;
    Waiter all = {.lock = lock, .end = UINT64_MAX, .mode = RANGE_EXCLUSIVE, .order = &order};
    Waiter late = {.lock = lock, .start = 10, .end = 20, .mode = RANGE_SHARED, .order = &order};

    range_lock_take(lock, &first, 0, 100, RANGE_SHARED);
    start(&all);
    start(&late);
    ck_assert_int_eq(atomic_load(&order), 0);
    range_lock_release(lock, &first);
    (void)pthread_join(all.thread, NULL);
    (void)pthread_join(late.thread, NULL);
    ck_assert_int_eq(all.place, 0);
    ck_assert_int_eq(late.place, 1);
}
END_TEST

/* One that gives up leaves nothing behind: who waited for it goes on. */
START_TEST(err_a_deadline_that_passes)
{
    g_autoptr(RangeLock) lock = range_lock_new();
    atomic_int order = 0;
    RangeHold held, all;
    Waiter late = {
        .lock = lock, .start = 500, .end = 600, .mode = RANGE_EXCLUSIVE, .order = &order};

    range_lock_take(lock, &held, 0, 100, RANGE_SHARED);
    ck_assert_int_eq(
        range_lock_take_until(lock, &all, 0, UINT64_MAX, RANGE_EXCLUSIVE, now() + 20 * NS_PER_MS),
        -ETIMEDOUT);
    ck_assert_int_eq(pthread_create(&late.thread, NULL, wait_and_hold, &late), 0);
    (void)pthread_join(late.thread, NULL); /* does not touch `held` */
    ck_assert_int_eq(late.place, 0);
    range_lock_release(lock, &held);
}
END_TEST

enum { THREADS = 4, ROUNDS = 4000, CELLS = 8 };

typedef struct Crowd {
    RangeLock *lock;
    int cells[CELLS]; /* plain: a race is what TSan is to find */
    unsigned seed;
} Crowd;

static void *
add_in_ranges(void *data)
{
    Crowd *crowd = data;
    unsigned seed = __atomic_add_fetch(&crowd->seed, 1, __ATOMIC_RELAXED);

    for (int i = 0; i < ROUNDS; i++) {
        uint64_t start = (uint64_t)(rand_r(&seed) % CELLS);
        uint64_t end = start + 1 + (uint64_t)rand_r(&seed) % (CELLS - start);
        RangeMode mode = rand_r(&seed) % 3 ? RANGE_EXCLUSIVE : RANGE_SHARED;
        RangeHold hold;
        int sum = 0;

        range_lock_take(crowd->lock, &hold, start, end, mode);
        for (uint64_t c = start; c < end; c++)
            sum += mode == RANGE_EXCLUSIVE ? ++crowd->cells[c] : crowd->cells[c];
        range_lock_release(crowd->lock, &hold);
        if (sum < 0)
            break;
    }
    return NULL;
}

START_TEST(life_many_threads)
{
    Crowd crowd = {.lock = range_lock_new()};
    pthread_t threads[THREADS];
    int sum = 0;

    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, add_in_ranges, &crowd), 0);
    for (int i = 0; i < THREADS; i++)
        (void)pthread_join(threads[i], NULL);
    for (int i = 0; i < CELLS; i++)
        sum += crowd.cells[i];
    ck_assert_int_gt(sum, ROUNDS);
    ck_assert_uint_eq(range_lock_count(crowd.lock), 0);
    range_lock_free(crowd.lock);
}
END_TEST

CHECK_MAIN("range-lock", unit_what_conflicts, life_nobody_is_overtaken, err_a_deadline_that_passes,
           life_many_threads)
