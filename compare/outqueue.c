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
};

struct OutChunk {
    OutChunk *next;
    size_t len;
    size_t written;
    uint8_t bytes[CHUNK_BYTES];
};

struct OutQueue {
    pthread_mutex_t lock; /* of the lists */
    OutChunk *head, *tail;
    OutChunk *spare;
    unsigned n_spare;
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
    if (!chunk)
        chunk = malloc(sizeof(*chunk));
    if (chunk) {
        chunk->next = NULL;
        chunk->len = chunk->written = 0;
    }
    return chunk;
}

bool
outqueue_add(OutQueue *q, OutChunk **chunk, const uint8_t *bytes, uint32_t len,
             uint8_t vnet_hdr_len)
{
    if (*chunk && CHUNK_BYTES - (*chunk)->len < FRAMING_HEADER_MAX + (size_t)len)
        outqueue_push(q, chunk);
    if (!*chunk && !(*chunk = chunk_get(q)))
        return false;
    OutChunk *c = *chunk;

    c->len += framing_put_header(c->bytes + c->len, q->vnet_hdr, len, vnet_hdr_len);
    memcpy(c->bytes + c->len, bytes, len);
    c->len += len;
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
    if (q->tail)
        q->tail->next = c;
    else
        q->head = c;
    q->tail = c;
    (void)pthread_mutex_unlock(&q->lock);
}

size_t
outqueue_bytes(const OutQueue *q)
{
    return atomic_load(&((OutQueue *)q)->n_bytes);
}

/* Collects what to write. Chunks on the queue change only in the writing thread. */
static int
collect(OutQueue *q, struct iovec *iov)
{
    int n = 0;

    (void)pthread_mutex_lock(&q->lock);
    for (OutChunk *c = q->head; c && n < IOV_MAX_CHUNKS; c = c->next, n++)
        iov[n] = (struct iovec){.iov_base = c->bytes + c->written, .iov_len = c->len - c->written};
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
        if (q->n_spare < MAX_SPARE) {
            c->next = q->spare;
            q->spare = c;
            q->n_spare++;
        } else {
            free(c);
        }
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

void
outqueue_rewind(OutQueue *q)
{
    OutChunk *c = q->head; /* only the writing thread takes from the head */
    size_t at = 0;

    if (!c || !c->written)
        return;
    for (;;) {
        FramingPacket packet;
        int64_t n = framing_next(c->bytes + at, c->len - at, q->vnet_hdr, &packet);

        if (n <= 0 || at + (size_t)n > c->written)
            break;
        at += (size_t)n;
    }
    atomic_fetch_add(&q->n_bytes, c->written - at);
    c->written = at;
}
