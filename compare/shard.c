/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* shard.c - an engine of colo-compare, in the main thread or in one of its own */
/*
 * Theory of operation
 *
 * With a thread: the main thread copies packets into batches, one kind per side, and hands them
 * over on a queue; the shard's thread works them off in order, so the order of each flow is that of
 * the sockets. A batch carries the epoch it was collected in. A commit only moves the wanted epoch;
 * the thread commits before its next batch, and batches of the old epoch that are still queued are
 * then treated by the engine's rule for late frames: released or forgotten. If the engine refuses a
 * frame for lack of memory, the thread stops at this frame until the commit that the engine asked
 * for.
 *
 * queue_lock guards the queue, wanted_epoch and stop. engine_lock guards the engine and the ring:
 * the thread holds it while it works, the main thread only to report. Counters that the main thread
 * reads for back-pressure are atomic.
 */
#include "shard.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

enum {
    BATCH_BYTES = 128 * 1024,
    BATCH_FRAMES = 64,
    MAX_SPARE_BATCHES = 64,
    PACKET_ALIGN = 8,
    WAKE_BACKLOG_BYTES = 256 * 1024, /* above, the main thread may be waiting for it to shrink */
};

typedef struct PackedHeader {
    uint32_t len;
    uint32_t vnet_hdr_len;
} PackedHeader;

typedef struct Batch {
    struct Batch *next;
    CompareSide side;
    uint64_t epoch;
    size_t len;
    size_t done;
    uint8_t bytes[BATCH_BYTES];
} Batch;

struct Shard {
    Compare *compare;
    DivergenceRing *ring;
    OutQueue *out;
    OutChunk *chunk; /* of whoever runs the engine */
    int wake_fd;
    bool forgets; /* the secondary's frames for which there is no room */
    uint64_t n_forgotten;
    uint64_t divergences_told; /* to the main thread */
    uint64_t epoch;            /* of the main thread */

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t queue_lock;
    pthread_cond_t queue_cond;
    pthread_mutex_t engine_lock;
    Batch *head, *tail;
    Batch *spare;
    unsigned n_spare;
    uint64_t wanted_epoch;
    bool stop;
    Batch *collecting[2]; /* of the main thread */

    atomic_size_t backlog_bytes;
    atomic_size_t held_bytes;
    atomic_size_t held_bytes_side[2];
    atomic_uint_fast64_t n_divergences;
};

static void
on_release(void *opaque, const CompareRelease *release)
{
    Shard *s = opaque;

    bool good =
        release->lent
            ? outqueue_lend(s->out, &s->chunk, release->bytes, release->len, release->vnet_hdr_len)
            : outqueue_add(s->out, &s->chunk, release->bytes, release->len, release->vnet_hdr_len);

    /* Without memory for the output nothing can be promised any more: fail-stop. */
    if (!good)
        abort();
}

static void
on_divergence(void *opaque, const CompareDivergence *d)
{
    Shard *s = opaque;

    divergence_ring_add(s->ring, d);
    atomic_fetch_add(&s->n_divergences, 1);
}

/* --- running the engine --- */

static void
publish(Shard *s)
{
    const CompareStats *stats = compare_stats(s->compare);

    atomic_store(&s->held_bytes, stats->held_bytes);
    for (int i = 0; i < 2; i++)
        atomic_store(&s->held_bytes_side[i], stats->held_bytes_side[i]);
}

static void
finish(Shard *s)
{
    bool news = s->chunk != NULL;
    uint64_t one = 1;
    uint64_t divergences = atomic_load(&s->n_divergences);

    outqueue_push(s->out, &s->chunk);
    publish(s);
    news |= divergences != s->divergences_told;
    s->divergences_told = divergences;
    /* An eventfd only refuses when its counter is full, and then the main thread is awake. */
    if (news && s->wake_fd >= 0 && write(s->wake_fd, &one, sizeof(one)) < 0)
        return;
}

size_t
shard_run(Shard *s, CompareSide side, const CompareFrame *frames, size_t n, int64_t now_ns,
          int *ret_error)
{
    size_t done = 0;

    for (;;) {
        size_t left = n - done;

        done += s->has_thread
                    ? compare_submit_batch(s->compare, side, frames + done, left, now_ns, ret_error)
                    : compare_lend_batch(s->compare, side, frames + done, left, now_ns, ret_error);
        if (done == n || !s->forgets || side != COMPARE_SECONDARY || *ret_error != -ENOBUFS)
            return done;
        done++; /* the checkpoint that was asked for would forget it, too */
        s->n_forgotten++;
    }
}

void
shard_settle(Shard *s, CompareSide side)
{
    outqueue_push(s->out, &s->chunk);
    compare_settle(s->compare, side);
}

uint32_t
shard_lent(const Shard *s, CompareSide side)
{
    return compare_lent(s->compare, side);
}

void
shard_tick(Shard *s, int64_t now_ns)
{
    compare_tick(s->compare, now_ns);
    finish(s);
}

int64_t
shard_next_deadline_ns(const Shard *s)
{
    return compare_next_deadline_ns(s->compare);
}

static size_t
take_frames(const Batch *b, size_t *at, CompareFrame *frames)
{
    size_t n = 0;

    while (n < BATCH_FRAMES && *at < b->len) {
        PackedHeader header;

        memcpy(&header, b->bytes + *at, sizeof(header));
        frames[n++] = (CompareFrame){.bytes = b->bytes + *at + sizeof(header),
                                     .len = header.len,
                                     .vnet_hdr_len = (uint8_t)header.vnet_hdr_len,
                                     .epoch = b->epoch};
        *at += sizeof(header) + (header.len + PACKET_ALIGN - 1) / PACKET_ALIGN * PACKET_ALIGN;
    }
    return n;
}

/* True: all done; false: the engine refused a frame, b->done is where. */
static bool
run_batch(Shard *s, Batch *b)
{
    CompareFrame frames[BATCH_FRAMES];
    int64_t now_ns = clock_now_ns();
    int error = 0;

    while (b->done < b->len) {
        size_t at = b->done;
        size_t n = take_frames(b, &at, frames);
        size_t taken = shard_run(s, b->side, frames, n, now_ns, &error);

        if (taken < n) {
            b->done = (size_t)(frames[taken].bytes - sizeof(PackedHeader) - b->bytes);
            return false;
        }
        b->done = at;
    }
    compare_tick(s->compare, now_ns);
    return true;
}

/* --- the thread --- */

static void
recycle(Shard *s, Batch *b)
{
    uint64_t one = 1;

    if (atomic_fetch_sub(&s->backlog_bytes, b->len) > WAKE_BACKLOG_BYTES)
        (void)!write(s->wake_fd, &one, sizeof(one)); /* as in finish() */
    if (s->n_spare == MAX_SPARE_BATCHES) {
        free(b);
        return;
    }
    b->next = s->spare;
    s->spare = b;
    s->n_spare++;
}

static void
wait_for_work(Shard *s, int64_t deadline_ns)
{
    struct timespec until = {.tv_sec = deadline_ns / NS_PER_S, .tv_nsec = deadline_ns % NS_PER_S};

    if (deadline_ns == INT64_MAX)
        (void)pthread_cond_wait(&s->queue_cond, &s->queue_lock);
    else
        (void)pthread_cond_timedwait(&s->queue_cond, &s->queue_lock, &until);
}

/* Called and returns with queue_lock held; gives it up while the engine runs. */
static void
commit_wanted(Shard *s)
{
    uint64_t epoch = s->wanted_epoch;

    (void)pthread_mutex_unlock(&s->queue_lock);
    (void)pthread_mutex_lock(&s->engine_lock);
    (void)compare_commit(s->compare, epoch, clock_now_ns());
    finish(s);
    (void)pthread_mutex_unlock(&s->engine_lock);
    (void)pthread_mutex_lock(&s->queue_lock);
}

/* The same contract. Return: false if the batch has to wait for a commit. */
static bool
work_head(Shard *s)
{
    Batch *b = s->head;

    (void)pthread_mutex_unlock(&s->queue_lock);
    (void)pthread_mutex_lock(&s->engine_lock);
    bool done = run_batch(s, b);

    finish(s);
    (void)pthread_mutex_unlock(&s->engine_lock);
    (void)pthread_mutex_lock(&s->queue_lock);
    if (!done)
        return false;
    s->head = b->next;
    if (!s->head)
        s->tail = NULL;
    recycle(s, b);
    return true;
}

static void
idle(Shard *s, bool stalled)
{
    (void)pthread_mutex_unlock(&s->queue_lock);
    (void)pthread_mutex_lock(&s->engine_lock);
    shard_tick(s, clock_now_ns());
    int64_t deadline_ns = compare_next_deadline_ns(s->compare);

    (void)pthread_mutex_unlock(&s->engine_lock);
    (void)pthread_mutex_lock(&s->queue_lock);
    if (!s->stop && (stalled || !s->head) && s->wanted_epoch == compare_epoch(s->compare))
        wait_for_work(s, deadline_ns);
}

static void *
thread_main(void *opaque)
{
    Shard *s = opaque;
    bool stalled = false;

    (void)pthread_mutex_lock(&s->queue_lock);
    while (!s->stop) {
        if (s->wanted_epoch > compare_epoch(s->compare)) {
            commit_wanted(s);
            stalled = false;
        } else if (s->head && !stalled) {
            stalled = !work_head(s);
        } else {
            idle(s, stalled);
        }
    }
    (void)pthread_mutex_unlock(&s->queue_lock);
    return NULL;
}

/* --- main thread --- */

static int
start_thread(Shard *s)
{
    pthread_condattr_t attr;

    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s->queue_cond, &attr);
    (void)pthread_condattr_destroy(&attr);
    int r = pthread_create(&s->thread, NULL, thread_main, s);

    s->has_thread = r == 0;
    return -r;
}

int
shard_new(const CompareConfig *config, OutQueue *out, int wake_fd, bool forgets, Shard **ret_shard)
{
    static const CompareOps ops = {on_release, on_divergence};
    Shard *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return -ENOMEM;
    s->out = out;
    s->wake_fd = wake_fd;
    s->forgets = forgets;
    (void)pthread_mutex_init(&s->queue_lock, NULL);
    (void)pthread_mutex_init(&s->engine_lock, NULL);
    s->ring = divergence_ring_new(SHARD_RING_RECORDS);
    r = s->ring ? compare_new(config, &ops, s, &s->compare) : -ENOMEM;
    if (r == 0 && wake_fd >= 0)
        r = start_thread(s);
    if (r < 0) {
        shard_free(s);
        return r;
    }
    *ret_shard = s;
    return 0;
}

static void
free_batches(Batch *b)
{
    while (b) {
        Batch *next = b->next;

        free(b);
        b = next;
    }
}

void
shard_free(Shard *s)
{
    if (!s)
        return;
    if (s->has_thread) {
        (void)pthread_mutex_lock(&s->queue_lock);
        s->stop = true;
        (void)pthread_cond_signal(&s->queue_cond);
        (void)pthread_mutex_unlock(&s->queue_lock);
        (void)pthread_join(s->thread, NULL);
        (void)pthread_cond_destroy(&s->queue_cond);
    }
    free_batches(s->head);
    free_batches(s->spare);
    for (int i = 0; i < 2; i++)
        free(s->collecting[i]);
    outqueue_push(s->out, &s->chunk);
    compare_free(s->compare);
    divergence_ring_free(s->ring);
    (void)pthread_mutex_destroy(&s->queue_lock);
    (void)pthread_mutex_destroy(&s->engine_lock);
    free(s);
}

static void
send_batch(Shard *s, CompareSide side)
{
    Batch *b = s->collecting[side];

    if (!b)
        return;
    s->collecting[side] = NULL;
    atomic_fetch_add(&s->backlog_bytes, b->len);
    (void)pthread_mutex_lock(&s->queue_lock);
    if (s->tail)
        s->tail->next = b;
    else
        s->head = b;
    s->tail = b;
    (void)pthread_cond_signal(&s->queue_cond);
    (void)pthread_mutex_unlock(&s->queue_lock);
}

static Batch *
new_batch(Shard *s, CompareSide side)
{
    (void)pthread_mutex_lock(&s->queue_lock);
    Batch *b = s->spare;

    if (b) {
        s->spare = b->next;
        s->n_spare--;
    }
    (void)pthread_mutex_unlock(&s->queue_lock);
    if (!b)
        b = malloc(sizeof(*b));
    if (b) {
        b->next = NULL;
        b->side = side;
        b->epoch = s->epoch;
        b->len = b->done = 0;
    }
    return b;
}

bool
shard_add(Shard *s, CompareSide side, const FramingPacket *packet)
{
    PackedHeader header = {packet->len, packet->vnet_hdr_len};
    Batch *b = s->collecting[side];

    if (b && BATCH_BYTES - b->len < sizeof(header) + packet->len + PACKET_ALIGN) {
        send_batch(s, side);
        b = NULL;
    }
    if (!b && !(b = new_batch(s, side)))
        return false;
    s->collecting[side] = b;
    memcpy(b->bytes + b->len, &header, sizeof(header));
    memcpy(b->bytes + b->len + sizeof(header), packet->bytes, packet->len);
    b->len += sizeof(header) + (packet->len + PACKET_ALIGN - 1) / PACKET_ALIGN * PACKET_ALIGN;
    return true;
}

void
shard_send(Shard *s)
{
    send_batch(s, COMPARE_PRIMARY);
    send_batch(s, COMPARE_SECONDARY);
}

size_t
shard_backlog_bytes(const Shard *s)
{
    return atomic_load(&((Shard *)s)->backlog_bytes);
}

void
shard_commit(Shard *s, int64_t now_ns)
{
    s->epoch++;
    if (!s->has_thread) {
        (void)compare_commit(s->compare, s->epoch, now_ns);
        finish(s);
        return;
    }
    (void)pthread_mutex_lock(&s->queue_lock);
    s->wanted_epoch = s->epoch;
    (void)pthread_cond_signal(&s->queue_cond);
    (void)pthread_mutex_unlock(&s->queue_lock);
}

uint64_t
shard_epoch(const Shard *s)
{
    return s->epoch;
}

size_t
shard_held(const Shard *s, size_t ret_bytes[static 2])
{
    for (int i = 0; i < 2; i++)
        ret_bytes[i] = atomic_load(&((Shard *)s)->held_bytes_side[i]);
    return atomic_load(&((Shard *)s)->held_bytes);
}

uint64_t
shard_divergences(const Shard *s)
{
    return atomic_load(&((Shard *)s)->n_divergences);
}

/* All counters are uint64_t but for the gauges, which the caller knows. */
static void
add_stats(CompareStats *sum, const CompareStats *stats)
{
    for (int i = 0; i < 2; i++) {
        sum->frames[i] += stats->frames[i];
        sum->bytes[i] += stats->bytes[i];
        sum->stale[i] += stats->stale[i];
        sum->reassembled[i] += stats->reassembled[i];
        sum->held_frames[i] += stats->held_frames[i];
        sum->held_bytes_side[i] += stats->held_bytes_side[i];
        for (int c = 0; c < FRAME_N_CLASSES; c++)
            sum->classes[i][c] += stats->classes[i][c];
    }
    for (int i = 0; i < COMPARE_N_WHYS; i++)
        sum->released[i] += stats->released[i];
    for (int i = 0; i < COMPARE_N_RULES; i++)
        sum->divergences[i] += stats->divergences[i];
    sum->refused += stats->refused;
    sum->announcements += stats->announcements;
    sum->windows_lowered += stats->windows_lowered;
    sum->checkpoints = stats->checkpoints; /* the same in each */
    sum->flows_created += stats->flows_created;
    sum->flows_expired += stats->flows_expired;
    sum->flows_evicted += stats->flows_evicted;
    sum->flows += stats->flows;
    sum->held_bytes += stats->held_bytes;
    sum->held_bytes_max += stats->held_bytes_max;
    sum->hold_ns_total += stats->hold_ns_total;
    if (stats->hold_ns_max > sum->hold_ns_max)
        sum->hold_ns_max = stats->hold_ns_max;
}

void
shard_report(Shard *s, CompareStats *sum, uint64_t *n_forgotten, struct json_object *list)
{
    (void)pthread_mutex_lock(&s->engine_lock);
    *n_forgotten += s->n_forgotten;
    add_stats(sum, compare_stats(s->compare));
    for (uint32_t i = 0; i < divergence_ring_count(s->ring); i++)
        json_object_array_add(list, divergence_to_json(&divergence_ring_get(s->ring, i)->d));
    (void)pthread_mutex_unlock(&s->engine_lock);
}
