/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-copy.c - the thread that reads what the peer lacks
 *
 * A chunk is reserved in the window first, so the guest's writes to it go out behind it, and taken
 * out of `lacking`; then it is read without the lock, and the connection's thread sends its runs.
 * What the guest has written there since the connection began is left out (forward-private.h).
 */
#include "forward-private.h"

#include "store.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum {
    SYNCED_CHUNKS = 16, /* 1 MiB: some 10 ms at 1 Gbit/s */
    TRIES = 16,         /* chunks looked at for one in which nothing is in flight */
    IDLE_MS = 1000,
    MAX_FOLLOWING = 63,
    PREFETCH_CHUNKS = 16, /* 1 MiB */
};

/* --- Which --- */

/* The next that may be copied now, from @from on; UINT64_MAX: none up to the end. */
static uint64_t
next_chunk(const Forward *forward, uint64_t from)
{
    uint64_t at = chunk_set_next(forward->lacking, from);

    while (at != UINT64_MAX && chunk_set_has(forward->delayed, at))
        at = chunk_set_next(forward->lacking, at + CHUNK_BYTES);
    return at;
}

static ForwardEntry *
reserve(Forward *forward, uint64_t chunk)
{
    return forward_queue_reserve(forward->queue, chunk,
                                 MIN(CHUNK_BYTES, forward->size_bytes - chunk));
}

/* Those the guest writes to come first: there is room for few. NULL: none can be copied now. */
static ForwardEntry *
choose(Forward *forward)
{
    uint64_t chunk = sector_mask_oldest(forward->mask);
    ForwardEntry *reserved = NULL;

    if (chunk != UINT64_MAX && !chunk_set_has(forward->delayed, chunk))
        reserved = reserve(forward, chunk);
    for (int i = 0; !reserved && i < TRIES; i++) {
        chunk = next_chunk(forward, forward->cursor);
        if (chunk == UINT64_MAX && (chunk = next_chunk(forward, 0)) == UINT64_MAX)
            return NULL;
        forward->cursor = chunk + CHUNK_BYTES;
        reserved = reserve(forward, chunk);
    }
    return reserved;
}

static CopyJob *
free_job(Forward *forward)
{
    for (int i = 0; i < COPY_JOBS; i++) {
        if (forward->jobs[i].state == COPY_FREE)
            return &forward->jobs[i];
    }
    return NULL;
}

/* The peer will have it: from here on writes of the guest only go behind it. */
static CopyJob *
begin(Forward *forward)
{
    CopyJob *job = free_job(forward);
    ForwardEntry *reserved = job ? choose(forward) : NULL;
    uint64_t at, len;

    if (!reserved)
        return NULL;
    *job = (CopyJob){.forward = forward, .buf = job->buf, .state = COPY_READING};
    job->reserved = reserved;
    job->chunk = reserved->offset;
    job->len = reserved->len;
    at = job->chunk;
    while ((at = sector_mask_gap(forward->mask, job->chunk, job->chunk + job->len, at, &len)) !=
           UINT64_MAX) {
        job->runs[job->n_runs].offset = at;
        job->runs[job->n_runs++].len = len;
        at += len;
        if (at >= job->chunk + job->len)
            break;
    }
    sector_mask_drop(forward->mask, job->chunk);
    chunk_set_remove(forward->lacking, job->chunk, job->len);
    at = job->chunk + CHUNK_BYTES;
    while (job->n_following < MAX_FOLLOWING && at < forward->size_bytes &&
           chunk_set_has(forward->lacking, at)) {
        job->n_following++;
        at += CHUNK_BYTES;
    }
    return job;
}

/* --- Reading, without the lock --- */

int
forward_read_disk(Forward *forward, uint8_t *buf, uint64_t len, uint64_t offset)
{
    forward->has_read = true; /* the thread's own, as is who looks at it */
    return store_read(forward->store, buf, len, offset);
}

static bool
is_zero(const uint8_t *data, uint64_t len)
{
    return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static void
look_for_zeros(CopyJob *job)
{
    for (unsigned i = 0; i < job->n_runs; i++)
        job->runs[i].is_zero =
            is_zero(job->buf + (job->runs[i].offset - job->chunk), job->runs[i].len);
}

/* --- Progress --- */

static void
count_copied(Forward *forward, const CopyJob *job, bool is_equal)
{
    int64_t now_ns = clock_now_ns(), age_ns = now_ns - forward->rate_ns;

    forward->copied_bytes += job->len;
    if (is_equal)
        forward->equal_bytes += job->len;
    for (unsigned i = 0; i < job->n_runs; i++)
        forward->sent_bytes += job->runs[i].is_zero ? 0 : job->runs[i].len;
    if (age_ns >= NS_PER_S) {
        forward->rate_bytes_s =
            (uint64_t)((double)(forward->copied_bytes - forward->rate_from_bytes) *
                       (double)NS_PER_S / (double)age_ns);
        forward->rate_ns = now_ns;
        forward->rate_from_bytes = forward->copied_bytes;
    }
    if (forward->rate_limit > 0) {
        int64_t cost_ns =
            (int64_t)((double)job->len * (double)NS_PER_S / (double)forward->rate_limit);

        forward->copy_not_before_ns = MAX(forward->copy_not_before_ns, now_ns) + cost_ns;
    }
}

static bool
is_busy(const Forward *forward)
{
    for (int i = 0; i < COPY_JOBS; i++) {
        if (forward->jobs[i].state != COPY_FREE)
            return true;
    }
    return false;
}

/* Said once: what comes after it is small. */
static void
say_synced(Forward *forward)
{
    if (forward->synced || chunk_set_count(forward->lacking) > SYNCED_CHUNKS ||
        forward->mode != FORWARD_SYNCING)
        return;
    forward->synced = true;
    forward->synced_ns = clock_now_ns();
    forward_changed(forward);
}

/* --- The thread --- */

/* While the page cache has anything of the disk, each direct write of QEMU's takes longer. */
static void
forget_disk(Forward *forward)
{
    if (!forward->has_read || forward->mode != FORWARD_MIRRORING || forward->is_verifying)
        return;
    forward->has_read = false;
    forward_unlock(forward);
    store_forget(forward->store);
    forward_lock(forward);
}

/* The limit is of a copy beside the guest; at the end the guest stands and waits. */
static bool
must_pause(const Forward *forward)
{
    return !forward->finishing && clock_now_ns() < forward->copy_not_before_ns;
}

static void
wait_for_work(Forward *forward, int64_t until_ns)
{
    until_ns = MIN(until_ns, clock_now_ns() + IDLE_MS * NS_PER_MS);
    if (must_pause(forward))
        until_ns = MIN(until_ns, forward->copy_not_before_ns);
    if (chunk_set_count(forward->delayed) > 0)
        until_ns = MIN(until_ns, forward->delayed_until_ns);
    (void)forward_wait(forward, until_ns);
}

static void
copy_one(Forward *forward, Digests *digests, CopyJob *job)
{
    bool compare = forward->compare, is_equal = false;

    forward_unlock(forward);
    store_prefetch(forward->store, job->chunk,
                   (1 + MIN(job->n_following, PREFETCH_CHUNKS)) * CHUNK_BYTES);

    int r = forward_read_disk(forward, job->buf, job->len, job->chunk);

    if (r == 0 && compare)
        is_equal = digests_equal(forward, digests, job);
    if (r == 0 && !is_equal)
        look_for_zeros(job);
    forward_lock(forward);
    if (!forward->is_connected)
        return;
    if (r < 0) {
        forward_lose(forward, FAULT_PRIMARY_DISK, g_strerror(-r));
        return;
    }
    if (is_equal)
        job->n_runs = 0;
    count_copied(forward, job, is_equal);
    job->state = COPY_READY;
    forward_wake(forward);
}

void *
forward_copy_run(void *user_data)
{
    Forward *forward = user_data;
    Digests *digests = digests_new();

    forward_lock(forward);
    forward->rate_ns = clock_now_ns();
    while (forward->is_connected) {
        int64_t when_ns = INT64_MAX;

        if (chunk_set_count(forward->delayed) > 0 && clock_now_ns() >= forward->delayed_until_ns)
            chunk_set_clear(forward->delayed);

        CopyJob *job = must_pause(forward) ? NULL : begin(forward);

        if (!job && !is_busy(forward))
            say_synced(forward); /* there may have been nothing to copy */
        if (job)
            copy_one(forward, digests, job);
        else if (!forward_verify_some(forward, digests, &when_ns))
            wait_for_work(forward, when_ns);
        if (forward->mode == FORWARD_MIRRORING && !forward->is_verifying)
            digests_close(digests);
        forget_disk(forward);
    }
    forward_unlock(forward);
    digests_free(digests);
    return NULL;
}

/* --- For the connection's thread --- */

static void
finish_job(Forward *forward, CopyJob *job)
{
    forward_queue_done(forward->queue, g_steal_pointer(&job->reserved));
    job->state = COPY_FREE;
    forward_confirm(forward, job->chunk, job->len);
    if (!is_busy(forward))
        say_synced(forward);
    (void)pthread_cond_broadcast(&forward->changed);
}

CopyJob *
forward_copy_next(Forward *forward, unsigned *ret_run)
{
    for (int i = 0; i < COPY_JOBS; i++) {
        CopyJob *job = &forward->jobs[i];

        if (job->state == COPY_READY && job->n_runs == 0) {
            finish_job(forward, job); /* the guest has written all of it */
            continue;
        }
        if (job->state != COPY_READY)
            continue;
        *ret_run = job->n_sent++;
        if (job->n_sent == job->n_runs)
            job->state = COPY_SENT;
        return job;
    }
    return NULL;
}

void
forward_copy_done(Forward *forward, CopyJob *job)
{
    if (++job->n_done == job->n_runs)
        finish_job(forward, job);
}

void
forward_copy_reset(Forward *forward)
{
    for (int i = 0; i < COPY_JOBS; i++) {
        forward->jobs[i].state = COPY_FREE;
        forward->jobs[i].reserved = NULL;
    }
    sector_mask_clear(forward->mask);
    forward->cursor = 0;
    forward->copied_bytes = forward->sent_bytes = forward->equal_bytes = 0;
    forward->rate_bytes_s = 0;
    forward->rate_from_bytes = 0;
    forward->copy_not_before_ns = 0;
}
