/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-link.c - the thread of a connection: sends what is in the window, hears what is confirmed
 *
 * It alone touches the connection. A turn: take what can be sent (with the lock), send it, wait for
 * the peer, a deadline or somebody who wakes it (without), account for what has come back (with).
 */
#include "forward-private.h"

#include <errno.h>
#include <unistd.h>

enum {
    MAX_SENT = 48,                    /* requests at a time; the target has 16 threads */
    MAX_SENT_BYTES = 8 * 1024 * 1024, /* what has to get through within a request's deadline */
    FLUSH_TIMEOUT_MS = 60 * 1000,     /* writes back what the page cache has: slow disks */
    SETTLE_CHUNKS = 1024,             /* while copying a flush comes at least this often */
};

/* What is to be sent in this turn; a job's run where there is no entry. */
typedef struct Batch {
    ForwardEntry *entries[MAX_SENT];
    CopyJob *jobs[MAX_SENT];
    unsigned runs[MAX_SENT];
    unsigned n;
    bool flush;
} Batch;

/* --- Losing it --- */

void
forward_lose(Forward *forward, Fault fault, const char *text)
{
    const uint64_t one = 1;
    ForwardFacts facts = {0};
    ForwardMode mode;

    if (forward_fsm_step(forward->mode, FORWARD_EVENT_LOST, &facts, &mode))
        return; /* lost already */
    forward->mode = mode;
    forward->is_connected = false;
    forward->synced = false;
    if (forward->is_verifying)
        verify_cancel(forward->verify);
    forward->is_verifying = false;
    forward->fault = fault;
    if (fault != FAULT_NONE)
        (void)g_snprintf(forward->fault_text, sizeof(forward->fault_text), "%s: %s",
                         fault_name(fault), text);
    if (write(forward->stop_fd, &one, sizeof(one)) != sizeof(one))
        g_assert_not_reached(); /* an eventfd with room */
    (void)pthread_cond_broadcast(&forward->room);
    forward_changed(forward);
}

/* --- Unmarking --- */

bool
forward_settle(Forward *forward)
{
    ChunkSet *empty = forward->flushing;

    if (forward->settle != SETTLE_IDLE || chunk_set_count(forward->confirmed) == 0)
        return false;
    forward->flushing = forward->confirmed;
    forward->confirmed = empty;
    forward->settle = SETTLE_WANTED;
    return true;
}

/* A flush costs the peer little if it comes regularly. */
static void
settle_while_syncing(Forward *forward)
{
    bool is_end = forward->finishing && chunk_set_count(forward->lacking) == 0 &&
                  forward_queue_is_drained(forward->queue);

    if (forward->mode == FORWARD_SYNCING &&
        (is_end || chunk_set_count(forward->confirmed) >= SETTLE_CHUNKS ||
         clock_now_ns() - forward->settled_ns >= SETTLE_EVERY_NS))
        (void)forward_settle(forward);
}

static void
flushed(Forward *forward)
{
    uint64_t at = chunk_set_next(forward->flushing, 0);

    for (; at != UINT64_MAX; at = chunk_set_next(forward->flushing, at + CHUNK_BYTES))
        dirty_map_clear(forward->map, at, MIN(CHUNK_BYTES, forward->size_bytes - at));
    chunk_set_clear(forward->flushing);
    forward->settle = SETTLE_IDLE;
    forward->settled_ns = clock_now_ns();
    forward->flushes++;
    forward_changed(forward); /* who shows what is marked */
}

void
forward_confirm(Forward *forward, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len;

    for (uint64_t at = chunk_start(offset); at < end; at += CHUNK_BYTES) {
        uint64_t n = MIN(CHUNK_BYTES, forward->size_bytes - at);

        if (!chunk_set_has(forward->lacking, at) && !forward_queue_overlaps(forward->queue, at, n))
            chunk_set_add(forward->confirmed, at, n);
    }
}

/* --- What has come back --- */

static void
account(Forward *forward, const Done *done)
{
    if (done->r < 0) {
        bool is_link = done->r == -ENOTCONN;

        forward_lose(forward, is_link ? FAULT_FORWARDING : FAULT_SECONDARY_DISK,
                     is_link ? "the connection has ended" : g_strerror(-done->r));
        return;
    }
    if (done->entry) {
        uint64_t offset = done->entry->offset, len = done->entry->len;

        forward_queue_done(forward->queue, done->entry);
        forward_confirm(forward, offset, len);
    } else if (done->job) {
        forward_copy_done(forward, done->job);
    } else {
        flushed(forward);
    }
}

static void
account_all(Forward *forward)
{
    for (unsigned i = 0; i < forward->n_done; i++)
        account(forward, &forward->done[i]);
    if (forward->n_done == 0)
        return;
    forward->n_done = 0;
    (void)pthread_cond_broadcast(&forward->room);
    /* While mirroring only a barrier and a comparison wait for what is confirmed. */
    if (forward->mode != FORWARD_MIRRORING || forward->is_verifying ||
        forward_queue_is_holding(forward->queue))
        (void)pthread_cond_broadcast(&forward->changed);
}

static void
request_done(void *user_data, int r)
{
    Ticket *ticket = user_data;
    Forward *forward = ticket->forward;

    ticket->done.r = r;
    ticket->is_used = false;
    forward->done[forward->n_done++] = ticket->done;
}

/* --- Sending --- */

static void
submit(Forward *forward, const Done *done, NbdPeerRequest *request)
{
    Ticket *ticket = forward->tickets;

    while (ticket->is_used)
        ticket++; /* as many as the connection has requests */
    *ticket = (Ticket){.forward = forward, .done = *done, .is_used = true};
    request->done = request_done;
    request->user_data = ticket;
    if (!nbd_peer_submit(forward->peer, request))
        g_assert_not_reached(); /* MAX_SENT and a flush are fewer */
}

static void
submit_entry(Forward *forward, ForwardEntry *entry)
{
    static const NbdPeerOp ops[] = {
        [FORWARD_WRITE] = NBD_PEER_WRITE,
        [FORWARD_ZERO] = NBD_PEER_ZERO,
        [FORWARD_UNMAP] = NBD_PEER_UNMAP,
        [FORWARD_TRIM] = NBD_PEER_TRIM,
    };
    NbdPeerRequest request = {
        .op = ops[entry->kind],
        .buf = entry->data,
        .offset = entry->offset,
        .len = entry->len,
        .deadline_ns = clock_now_ns() + forward->request_timeout_ns,
    };

    submit(forward, &(Done){.entry = entry}, &request);
}

static void
submit_run(Forward *forward, CopyJob *job, unsigned run)
{
    NbdPeerRequest request = {
        .op = job->runs[run].is_zero ? NBD_PEER_UNMAP : NBD_PEER_WRITE,
        .buf = job->buf + (job->runs[run].offset - job->chunk),
        .offset = job->runs[run].offset,
        .len = job->runs[run].len,
        .deadline_ns = clock_now_ns() + forward->request_timeout_ns,
    };

    submit(forward, &(Done){.job = job}, &request);
}

/* The guest's come first: a checkpoint waits for them. */
static void
take(Forward *forward, uint64_t sent_bytes, Batch *batch)
{
    unsigned n_free = MAX_SENT - MIN(nbd_peer_in_flight(forward->peer), MAX_SENT);
    bool is_time = forward_send_ns(forward) <= clock_now_ns();

    *batch = (Batch){.n = 0};
    while (is_time && batch->n < n_free && sent_bytes < MAX_SENT_BYTES &&
           (batch->entries[batch->n] = forward_queue_take(forward->queue))) {
        sent_bytes += batch->entries[batch->n]->data ? batch->entries[batch->n]->len : 0;
        batch->n++;
    }
    while (batch->n < n_free &&
           (batch->jobs[batch->n] = forward_copy_next(forward, &batch->runs[batch->n]))) {
        batch->entries[batch->n] = NULL;
        batch->n++;
    }
    settle_while_syncing(forward);
    batch->flush = forward->settle == SETTLE_WANTED;
    if (batch->flush)
        forward->settle = SETTLE_SENT;
    forward->sent_requests += batch->n;
    if (batch->n > 0)
        forward->sent_ns = clock_now_ns();
}

static void
send_batch(Forward *forward, const Batch *batch)
{
    for (unsigned i = 0; i < batch->n; i++) {
        if (batch->entries[i])
            submit_entry(forward, batch->entries[i]);
        else
            submit_run(forward, batch->jobs[i], batch->runs[i]);
    }
    if (batch->flush) {
        NbdPeerRequest request = {.op = NBD_PEER_FLUSH,
                                  .deadline_ns = clock_now_ns() + FLUSH_TIMEOUT_MS * NS_PER_MS};

        submit(forward, &(Done){.r = 0}, &request);
    }
}

/* When the next turn is to be, if nothing happens before. After something was sent the next write
 * will come soon: then nobody has to wake the thread for it. */
static int64_t
next_turn_ns(const Forward *forward)
{
    int64_t now_ns = clock_now_ns(), linger_ns = forward->sent_ns + LINGER_NS;

    if (forward->mode == FORWARD_SYNCING)
        return MAX(forward->settled_ns + SETTLE_EVERY_NS, now_ns + NS_PER_MS);
    return linger_ns > now_ns ? linger_ns : INT64_MAX;
}

/* False: it is over. */
static bool
turn(Forward *forward)
{
    g_autoptr(GError) error = NULL;
    ForwardQueueStatus status;
    uint64_t count;
    Batch batch;

    forward_lock(forward);
    if (!forward->is_connected) {
        forward_unlock(forward);
        return false;
    }
    forward_queue_status(forward->queue, &status);
    take(forward, status.sent_bytes, &batch);
    /* Nothing to wait for that has come back already. */
    forward->link_waits = true;

    int64_t until_ns = forward->link_wakes_ns = next_turn_ns(forward);

    forward_unlock(forward);
    send_batch(forward, &batch);

    /* Sending may have brought the answer. */
    gboolean ok =
        nbd_peer_run(forward->peer, forward->wake_fd, forward->n_done > 0 ? 0 : until_ns, &error);

    forward_lock(forward);
    if (!forward->link_waits && read(forward->wake_fd, &count, sizeof(count)) < 0)
        g_assert_not_reached(); /* forward_wake() has written */
    forward->link_waits = false;
    account_all(forward);
    if (!ok)
        forward_lose(forward, FAULT_FORWARDING, error->message);
    forward_unlock(forward);
    return ok;
}

static void *
run(void *user_data)
{
    Forward *forward = user_data;

    while (turn(forward))
        ;
    nbd_peer_free(g_steal_pointer(&forward->peer)); /* what was under way comes back in done[] */
    return NULL;
}

void
forward_link_start(Forward *forward, NbdPeer *peer)
{
    forward->peer = peer;
    forward->n_done = 0;
    forward->is_connected = true;
    forward->settled_ns = clock_now_ns();
    if (pthread_create(&forward->link_thread, NULL, run, forward) != 0 ||
        pthread_create(&forward->copy_thread, NULL, forward_copy_run, forward) != 0)
        g_error("no thread for a connection");
    forward->has_threads = true;
}

void
forward_link_stop(Forward *forward)
{
    forward_lock(forward);

    bool has_threads = forward->has_threads;

    g_assert(!has_threads || !forward->is_connected);
    forward->has_threads = false;
    forward_unlock(forward);
    if (!has_threads)
        return;
    (void)pthread_join(forward->link_thread, NULL);
    (void)pthread_join(forward->copy_thread, NULL);
    forward_lock(forward);
    forward->n_done = 0;
    forward_queue_clear(forward->queue);
    chunk_set_clear(forward->lacking);
    forward_unlock(forward);
}
