/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward.c - one replicated disk on the host whose guest writes: the guest's requests, status
 *
 * Theory of operation: forward-private.h.
 */
#include "forward-private.h"

#include "fd.h"
#include "store-nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { MASK_CHUNKS = 65536 };

G_DEFINE_QUARK(colod_forward_error_quark, forward_error)

/* --- Life --- */

static void
init_sync(Forward *forward)
{
    pthread_condattr_t attr;

    (void)pthread_mutex_init(&forward->mutex, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&forward->changed, &attr);
    (void)pthread_cond_init(&forward->room, &attr);
    (void)pthread_condattr_destroy(&attr);
}

static void
init_sets(Forward *forward)
{
    forward->confirmed = chunk_set_new(forward->size_bytes);
    forward->flushing = chunk_set_new(forward->size_bytes);
    forward->lacking = chunk_set_new(forward->size_bytes);
    forward->delayed = chunk_set_new(forward->size_bytes);
    for (int i = 0; i < 2; i++)
        forward->recent[i] = chunk_set_new(forward->size_bytes);
    forward->mask = sector_mask_new(MASK_CHUNKS);
    for (int i = 0; i < COPY_JOBS; i++) {
        forward->jobs[i].forward = forward;
        forward->jobs[i].buf = g_malloc(CHUNK_BYTES);
    }
}

static gboolean
open_files(Forward *forward, const ForwardConfig *config, GError **error)
{
    forward->store = store_open(config->disk, STORE_READ, error);
    if (!forward->store)
        return FALSE;
    forward->size_bytes = forward->store->size_bytes;
    if (!disk_meta_load(config->metadata, forward->size_bytes, &forward->meta, error))
        return FALSE;
    forward->map = dirty_map_open(config->map, forward->size_bytes, error);
    if (!forward->map)
        return FALSE;
    forward->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    forward->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (forward->wake_fd < 0 || forward->stop_fd < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "eventfd: %s", g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

Forward *
forward_new(const ForwardConfig *config, GError **error)
{
    Forward *forward = g_new0(Forward, 1);

    forward->wake_fd = forward->stop_fd = -1;
    forward->disk = g_strdup(config->disk);
    forward->meta_path = g_strdup(config->metadata);
    forward->run_dir = g_strdup(config->run_dir);
    forward->tls_ca = g_strdup(config->tls_ca);
    forward->tls_cert = g_strdup(config->tls_cert);
    forward->tls_key = g_strdup(config->tls_key);
    forward->request_timeout_ns = config->request_timeout_ms * NS_PER_MS;
    forward->change = 1;
    forward->journal = journal_file_new(config->metadata, NULL);
    init_sync(forward);
    if (!open_files(forward, config, error)) {
        forward_free(forward);
        return NULL;
    }
    forward->queue = forward_queue_new(config->limit_bytes, config->max_entries);
    init_sets(forward);
    return forward;
}

void
forward_stop(Forward *forward)
{
    const uint64_t one = 1;

    forward_lock(forward);
    forward->stopping = true;
    if (forward->is_connected)
        forward_lose(forward, FAULT_NONE, "");
    if (forward->is_connecting && write(forward->stop_fd, &one, sizeof(one)) < 0)
        g_assert_not_reached();
    (void)pthread_cond_broadcast(&forward->changed);
    (void)pthread_cond_broadcast(&forward->room);
    forward_unlock(forward);
    forward_link_stop(forward);
}

void
forward_free(Forward *forward)
{
    if (!forward)
        return;
    forward_stop(forward);
    for (int i = 0; i < COPY_JOBS; i++)
        g_free(forward->jobs[i].buf);
    verify_free(forward->verify);
    sector_mask_free(forward->mask);
    for (int i = 0; i < 2; i++)
        chunk_set_free(forward->recent[i]);
    chunk_set_free(forward->delayed);
    chunk_set_free(forward->lacking);
    chunk_set_free(forward->flushing);
    chunk_set_free(forward->confirmed);
    forward_queue_free(forward->queue);
    /* Who closes the map says with it that the disk has what it does not mark; also one that was
     * found armed, whoever armed it. */
    if (forward->map && dirty_map_is_armed(forward->map) && store_flush(forward->store) < 0)
        dirty_map_distrust(forward->map);
    dirty_map_free(forward->map);
    journal_free(forward->journal);
    store_free(forward->store);
    fd_clear(&forward->wake_fd);
    fd_clear(&forward->stop_fd);
    (void)pthread_cond_destroy(&forward->room);
    (void)pthread_cond_destroy(&forward->changed);
    (void)pthread_mutex_destroy(&forward->mutex);
    g_free(forward->disk);
    g_free(forward->meta_path);
    g_free(forward->run_dir);
    g_free(forward->tls_ca);
    g_free(forward->tls_cert);
    g_free(forward->tls_key);
    g_free(forward->peer_host);
    g_free(forward);
}

uint64_t
forward_size_bytes(const Forward *forward)
{
    return forward->size_bytes;
}

/* --- Waiting --- */

void
forward_lock(Forward *forward)
{
    (void)pthread_mutex_lock(&forward->mutex);
}

void
forward_unlock(Forward *forward)
{
    (void)pthread_mutex_unlock(&forward->mutex);
}

bool
forward_wait(Forward *forward, int64_t deadline_ns)
{
    struct timespec until = {.tv_sec = deadline_ns / NS_PER_S, .tv_nsec = deadline_ns % NS_PER_S};

    if (forward->stopping)
        return false;
    return pthread_cond_timedwait(&forward->changed, &forward->mutex, &until) != ETIMEDOUT;
}

void
forward_changed(Forward *forward)
{
    forward->change++;
    (void)pthread_cond_broadcast(&forward->changed);
}

void
forward_wake(Forward *forward)
{
    const uint64_t one = 1;

    if (!forward->link_waits)
        return;
    forward->link_waits = false;
    if (write(forward->wake_fd, &one, sizeof(one)) != sizeof(one))
        g_assert_not_reached(); /* the thread resets it: it never fills */
}

int64_t
forward_send_ns(const Forward *forward)
{
    uint64_t bytes;
    unsigned n = forward_queue_unsent(forward->queue, &bytes);

    if (n == 0)
        return INT64_MAX;
    if (forward->mode != FORWARD_MIRRORING || forward_queue_is_holding(forward->queue) ||
        n >= LINGER_ENTRIES || bytes >= LINGER_BYTES)
        return 0;
    return forward->sent_ns + LINGER_NS;
}

/* What was put into the window is to be sent, not necessarily now. */
static void
wake_in_time(Forward *forward)
{
    if (forward->link_waits && forward_send_ns(forward) < forward->link_wakes_ns)
        forward_wake(forward);
}

ForwardFacts
forward_facts(const Forward *forward, uint64_t generation, bool first)
{
    return (ForwardFacts){
        .generation = forward->meta.generation,
        .asked_generation = generation,
        .first = first,
        .never_used = forward->meta.generation == 0,
        .up_to_date = forward->meta.state == DISK_UPTODATE,
        .committing = forward->meta.commit[0] != '\0',
        .holding = forward_queue_is_holding(forward->queue),
        .drained = forward_queue_is_drained(forward->queue),
    };
}

/* --- What was written lately --- */

static void
age_recent(Forward *forward)
{
    int64_t now_ns = clock_now_ns(), age_ns = now_ns - forward->recent_ns;
    ChunkSet *older = forward->recent[1];

    if (age_ns < SETTLED_NS)
        return;
    chunk_set_clear(older);
    forward->recent[1] = forward->recent[0];
    forward->recent[0] = older;
    if (age_ns >= 2 * SETTLED_NS)
        chunk_set_clear(forward->recent[1]);
    forward->recent_ns = now_ns;
}

void
forward_note_recent(Forward *forward, uint64_t offset, uint64_t len)
{
    age_recent(forward);
    chunk_set_add(forward->recent[0], offset, len);
}

void
forward_recent_into(Forward *forward, ChunkSet *set)
{
    age_recent(forward);
    chunk_set_merge(set, forward->recent[0]);
    chunk_set_merge(set, forward->recent[1]);
}

/* --- The guest's requests --- */

static void
mark(Forward *forward, uint64_t offset, uint64_t len)
{
    dirty_map_mark(forward->map, offset, len);
    chunk_set_remove(forward->confirmed, offset, len);
    chunk_set_remove(forward->flushing, offset, len);
    forward_note_recent(forward, offset, len);
    if (forward->is_verifying)
        verify_written(forward->verify, offset, len);
}

/* How much of the request, from its front, the copy and the queue have to be told of in one step:
 * up to the end of the chunk, if the peer lacks that. What cannot be put down as written (a part of
 * a sector, or too many chunks) the copy reads when the disk certainly has it: then it sends what
 * the queue sends too, in either order. */
static uint64_t
note_for_copy(Forward *forward, uint64_t offset, uint64_t len)
{
    uint64_t in_chunk = MIN(len, chunk_start(offset) + CHUNK_BYTES - offset);

    if (chunk_set_count(forward->lacking) == 0)
        return len;
    if (!chunk_set_has(forward->lacking, offset) || forward_queue_is_holding(forward->queue) ||
        sector_mask_add(forward->mask, offset, in_chunk))
        return in_chunk;
    chunk_set_add(forward->delayed, offset, in_chunk);
    forward->delayed_recent = false;
    forward->delayed_until_ns = clock_now_ns() + SETTLED_NS;
    return in_chunk;
}

/* One step of a request: how much is settled; 0: there is no room. */
static uint64_t
change_some(Forward *forward, const ForwardEntry *what)
{
    uint64_t len = what->len;

    switch (forward->mode) {
    case FORWARD_IDLE:
        return len;
    case FORWARD_ALONE:
        mark(forward, what->offset, len);
        return len;
    case FORWARD_SYNCING:
        len = note_for_copy(forward, what->offset, len);
        break;
    case FORWARD_MIRRORING:
        break;
    case FORWARD_MODE_COUNT:
        g_assert_not_reached();
    }
    mark(forward, what->offset, len);
    return forward_queue_add(forward->queue, what->kind, what->offset, len, what->data);
}

void
forward_change(Forward *forward, ForwardKind kind, uint64_t offset, uint64_t len, const void *data)
{
    ForwardEntry left = {
        .kind = kind, .offset = offset, .len = len, .data = (uint8_t *)(uintptr_t)data};

    forward_lock(forward);
    forward->requests++;
    while (left.len > 0) {
        uint64_t done = change_some(forward, &left);

        left.offset += done;
        left.len -= done;
        left.data = left.data ? left.data + done : NULL;
        if (done > 0)
            continue;
        forward_wake(forward);
        (void)pthread_cond_wait(&forward->room, &forward->mutex);
    }
    wake_in_time(forward);
    forward_unlock(forward);
}

/* --- Status --- */

/* Of the last copy beside the guest: until `synced`, or so far. */
static uint64_t
sync_ms(const Forward *forward)
{
    if (forward->connected_ns == 0)
        return 0;

    int64_t end_ns = forward->synced_ns > 0 ? forward->synced_ns : clock_now_ns();

    return (uint64_t)((end_ns - forward->connected_ns) / NS_PER_MS);
}

void
forward_status(Forward *forward, ForwardStatus *ret_status)
{
    forward_lock(forward);
    *ret_status = (ForwardStatus){
        .mode = forward->mode,
        .meta = forward->meta,
        .fault = forward->fault,
        .change = forward->change,
        .holding = forward_queue_is_holding(forward->queue),
        .synced = forward->synced,
        .epoch = forward->epoch,
        .sync_ms = sync_ms(forward),
        .left_bytes = chunk_set_count(forward->lacking) * CHUNK_BYTES,
        .copied_bytes = forward->copied_bytes,
        .sent_bytes = forward->sent_bytes,
        .equal_bytes = forward->equal_bytes,
        .rate_bytes_s = forward->rate_bytes_s,
        .requests = forward->requests,
        .sent_requests = forward->sent_requests,
        .flushes = forward->flushes,
        .has_verify = forward->verify != NULL,
    };
    if (forward->verify)
        verify_status(forward->verify, &ret_status->verify);
    (void)g_strlcpy(ret_status->fault_text, forward->fault_text, sizeof(ret_status->fault_text));
    forward_queue_status(forward->queue, &ret_status->queue);
    forward_unlock(forward);
    /* Looks through the whole map, which the guest's requests must not wait for. */
    ret_status->marked_bytes = dirty_map_marked_bytes(forward->map);
}

void
forward_wait_change(Forward *forward, uint64_t after, int64_t deadline_ns)
{
    forward_lock(forward);
    while (forward->change == after && forward_wait(forward, deadline_ns))
        ;
    forward_unlock(forward);
}
