/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* range-lock.c - shared and exclusive locks on ranges of a disk, first come, first served
 *
 * One list in order of arrival, held and waiting alike. A hold is granted when nothing before it
 * conflicts; so nobody is overtaken by who conflicts with him, an exclusive hold of everything
 * (checkpoint, failover) gets its turn under any load, and there is no cycle to wait in. The list
 * is as long as requests are under way, and nbdkit bounds those (threads of a connection, 16), so a
 * walk is shorter than the smallest disk access.
 */
#include "range-lock.h"

#include "clock.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

struct RangeLock {
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a hold has left the list */
    RangeHold head;         /* ring; only its links count */
    unsigned waiting;
    unsigned count;
};

RangeLock *
range_lock_new(void)
{
    RangeLock *lock = g_new0(RangeLock, 1);
    pthread_condattr_t attr;

    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&lock->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    (void)pthread_mutex_init(&lock->mutex, NULL);
    lock->head.prev = lock->head.next = &lock->head;
    return lock;
}

void
range_lock_free(RangeLock *lock)
{
    g_assert(lock->count == 0);
    (void)pthread_cond_destroy(&lock->changed);
    (void)pthread_mutex_destroy(&lock->mutex);
    g_free(lock);
}

static bool
must_wait(const RangeLock *lock, const RangeHold *hold)
{
    for (const RangeHold *h = hold->prev; h != &lock->head; h = h->prev) {
        if (h->start < hold->end && hold->start < h->end &&
            (h->mode == RANGE_EXCLUSIVE || hold->mode == RANGE_EXCLUSIVE))
            return true;
    }
    return false;
}

static void
append(RangeLock *lock, RangeHold *hold)
{
    hold->prev = lock->head.prev;
    hold->next = &lock->head;
    hold->prev->next = hold;
    lock->head.prev = hold;
    lock->count++;
}

static void
take_out(RangeLock *lock, RangeHold *hold)
{
    hold->prev->next = hold->next;
    hold->next->prev = hold->prev;
    lock->count--;
    if (lock->waiting > 0)
        (void)pthread_cond_broadcast(&lock->changed);
}

static int
wait_turn(RangeLock *lock, const RangeHold *hold, const struct timespec *until)
{
    int r = 0;

    lock->waiting++;
    while (r == 0 && must_wait(lock, hold))
        r = until ? pthread_cond_timedwait(&lock->changed, &lock->mutex, until)
                  : pthread_cond_wait(&lock->changed, &lock->mutex);
    lock->waiting--;
    g_assert(r == 0 || r == ETIMEDOUT);
    return must_wait(lock, hold) ? -ETIMEDOUT : 0;
}

static int
take(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end, RangeMode mode,
     const struct timespec *until)
{
    *hold = (RangeHold){.start = start, .end = end, .mode = mode};
    (void)pthread_mutex_lock(&lock->mutex);
    append(lock, hold);

    int r = must_wait(lock, hold) ? wait_turn(lock, hold, until) : 0;

    if (r < 0)
        take_out(lock, hold);
    (void)pthread_mutex_unlock(&lock->mutex);
    return r;
}

void
range_lock_take(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end, RangeMode mode)
{
    (void)take(lock, hold, start, end, mode, NULL);
}

int
range_lock_take_until(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end,
                      RangeMode mode, int64_t deadline_ns)
{
    struct timespec until = {.tv_sec = deadline_ns / NS_PER_S, .tv_nsec = deadline_ns % NS_PER_S};

    return take(lock, hold, start, end, mode, &until);
}

void
range_lock_release(RangeLock *lock, RangeHold *hold)
{
    (void)pthread_mutex_lock(&lock->mutex);
    take_out(lock, hold);
    (void)pthread_mutex_unlock(&lock->mutex);
}

unsigned
range_lock_count(RangeLock *lock)
{
    (void)pthread_mutex_lock(&lock->mutex);

    unsigned count = lock->count;

    (void)pthread_mutex_unlock(&lock->mutex);
    return count;
}
