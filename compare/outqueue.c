/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* outqueue.c - released packets on their way to the output socket */
#include "outqueue.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "frame.h"
#include "framing.h"

enum {
    CHUNK_BYTES = 256 * 1024,
    MAX_SPARE = 32, /* chunks kept for use again */
    IOV_MAX_CHUNKS = 16,
    /* Stretches lent at a time. In a stream whose order is that of the buffer there is one, and one
     * more for what waited on each side; where each packet would be one, copying is cheaper. */
    MAX_LENT = 8,
};

struct OutChunk {
    OutChunk *next;
    size_t len;
    size_t written;
    const uint8_t *from; /* its bytes */
    uint8_t *own;        /* the same, CHUNK_BYTES of room; NULL: they are lent */
};

struct OutQueue {
    pthread_mutex_t lock; /* of the lists */
    OutChunk *head, *tail;
    OutChunk *spare;
    unsigned n_spare;
    OutChunk lent[MAX_LENT];
    unsigned n_lent;
    atomic_size_t n_bytes;
    bool vnet_hdr;
};

OutQueue *
outqueue_new(bool vnet_hdr)
{
    OutQueue *q = calloc(1, sizeof(*q));

    if (!q)
        return NULL;
    (void)pthread_mutex_init(&q->lock, NULL);
    q->vnet_hdr = vnet_hdr;
    return q;
}

static void
free_chunks(OutChunk *chunk)
{
    while (chunk) {
        OutChunk *next = chunk->next;

        if (chunk->own)
            free(chunk);
        chunk = next;
    }
}

void
outqueue_free(OutQueue *q)
{
    if (!q)
        return;
    free_chunks(q->head);
    free_chunks(q->spare);
    (void)pthread_mutex_destroy(&q->lock);
    free(q);
}

static OutChunk *
chunk_get(OutQueue *q)
{
    (void)pthread_mutex_lock(&q->lock);
    OutChunk *chunk = q->spare;

    if (chunk) {
        q->spare = chunk->next;
        q->n_spare--;
    }
    (void)pthread_mutex_unlock(&q->lock);
    if (!chunk && !(chunk = malloc(sizeof(*chunk) + CHUNK_BYTES)))
        return NULL;
    uint8_t *own = (uint8_t *)(chunk + 1);

    *chunk = (OutChunk){.own = own, .from = own};
    return chunk;
}

/* With the lock held. */
static void
chunk_done(OutQueue *q, OutChunk *chunk)
{
    if (!chunk->own)
        return;
    if (q->n_spare == MAX_SPARE) {
        free(chunk);
        return;
    }
    chunk->next = q->spare;
    q->spare = chunk;
    q->n_spare++;
}

/* With the lock held. What waits does so in full chunks: its bytes are bounded, so its memory is.
 */
static void
append(OutQueue *q, OutChunk *chunk)
{
    OutChunk *tail = q->tail;

    if (tail && tail->own && chunk->own && !chunk->written &&
        chunk->len <= CHUNK_BYTES - tail->len) {
        memcpy(tail->own + tail->len, chunk->own, chunk->len);
        tail->len += chunk->len; /* the thread that writes only looks at what was there */
        chunk_done(q, chunk);
        return;
    }
    chunk->next = NULL;
    if (tail)
        tail->next = chunk;
    else
        q->head = chunk;
    q->tail = chunk;
}

bool
outqueue_add(OutQueue *q, OutChunk **chunk, const uint8_t *bytes, uint32_t len,
             uint8_t vnet_hdr_len)
{
    if (*chunk &&
        (!(*chunk)->own || CHUNK_BYTES - (*chunk)->len < FRAMING_HEADER_MAX + (size_t)len))
        outqueue_push(q, chunk);
    if (!*chunk && !(*chunk = chunk_get(q)))
        return false;
    OutChunk *c = *chunk;

    c->len += framing_put_header(c->own + c->len, q->vnet_hdr, len, vnet_hdr_len);
    memcpy(c->own + c->len, bytes, len);
    c->len += len;
    return true;
}

bool
outqueue_lend(OutQueue *q, OutChunk **chunk, const uint8_t *bytes, uint32_t len,
              uint8_t vnet_hdr_len)
{
    size_t header = framing_header_len(q->vnet_hdr);
    OutChunk *c = *chunk;

    if (c && !c->own && c->from + c->len == bytes - header) {
        c->len += header + len;
        return true;
    }
    if (q->n_lent == MAX_LENT)
        return outqueue_add(q, chunk, bytes, len, vnet_hdr_len);
    outqueue_push(q, chunk);
    *chunk = &q->lent[q->n_lent++];
    **chunk = (OutChunk){.from = bytes - header, .len = header + len};
    return true;
}

void
outqueue_push(OutQueue *q, OutChunk **chunk)
{
    OutChunk *c = *chunk;

    if (!c)
        return;
    *chunk = NULL;
    atomic_fetch_add(&q->n_bytes, c->len);
    (void)pthread_mutex_lock(&q->lock);
    append(q, c);
    (void)pthread_mutex_unlock(&q->lock);
}

size_t
outqueue_bytes(const OutQueue *q)
{
    return atomic_load(&((OutQueue *)q)->n_bytes);
}

/* Collects what to write. Other threads only add to the end. */
static int
collect(OutQueue *q, struct iovec *iov)
{
    int n = 0;

    (void)pthread_mutex_lock(&q->lock);
    for (OutChunk *c = q->head; c && n < IOV_MAX_CHUNKS; c = c->next, n++)
        iov[n] = (struct iovec){.iov_base = (uint8_t *)c->from + c->written,
                                .iov_len = c->len - c->written};
    (void)pthread_mutex_unlock(&q->lock);
    return n;
}

static void
advance(OutQueue *q, size_t n)
{
    (void)pthread_mutex_lock(&q->lock);
    while (n > 0 && q->head) {
        OutChunk *c = q->head;
        size_t here = n < c->len - c->written ? n : c->len - c->written;

        c->written += here;
        n -= here;
        if (c->written < c->len)
            break;
        q->head = c->next;
        if (!q->head)
            q->tail = NULL;
        chunk_done(q, c);
    }
    (void)pthread_mutex_unlock(&q->lock);
}

int
outqueue_write(OutQueue *q, int fd)
{
    struct iovec iov[IOV_MAX_CHUNKS];
    int n;

    while ((n = collect(q, iov)) > 0) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -errno;
        atomic_fetch_sub(&q->n_bytes, (size_t)sent);
        advance(q, (size_t)sent);
    }
    return 0;
}

/* The last start of a packet of @c from @at on that is not behind @limit. */
static size_t
packet_start(const OutQueue *q, const OutChunk *c, size_t at, size_t limit)
{
    for (;;) {
        FramingPacket packet;
        int64_t n = framing_next(c->from + at, c->len - at, q->vnet_hdr, &packet);

        if (n <= 0 || at + (size_t)n > limit)
            return at;
        at += (size_t)n;
    }
}

/* Puts a copy of @lent, from the packet it is being written in, at the end of the list. */
static bool
keep(OutQueue *q, const OutChunk *lent)
{
    size_t at = packet_start(q, lent, 0, lent->written);

    while (at < lent->len) {
        size_t end = packet_start(q, lent, at, at + CHUNK_BYTES);
        OutChunk *c = chunk_get(q);

        if (!c)
            return false;
        memcpy(c->own, lent->from + at, end - at);
        c->len = end - at;
        c->written = at < lent->written ? lent->written - at : 0;
        append(q, c);
        at = end;
    }
    return true;
}

bool
outqueue_keep(OutQueue *q)
{
    OutChunk *c = q->head;

    if (!q->n_lent)
        return true;
    q->n_lent = 0;
    q->head = q->tail = NULL; /* where something is lent there is no other thread */
    while (c) {
        OutChunk *next = c->next;

        if (c->own)
            append(q, c);
        else if (!keep(q, c))
            return false;
        c = next;
    }
    return true;
}

void
outqueue_rewind(OutQueue *q)
{
    OutChunk *c = q->head; /* only the writing thread takes from the head */

    if (!c || !c->written)
        return;
    (void)pthread_mutex_lock(&q->lock);
    size_t at = packet_start(q, c, 0, c->written);

    (void)pthread_mutex_unlock(&q->lock);
    atomic_fetch_add(&q->n_bytes, c->written - at);
    c->written = at;
}
