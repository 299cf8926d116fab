/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ring-map.h - memory mapped twice in a row, and a ring of bytes in it */
#pragma once

#include <stddef.h>
#include <stdint.h>

/** Maps the same @bytes (whole pages) twice in a row, so that whatever begins in the first half is
 * contiguous. All of it is there at once. NULL and errno on failure. */
uint8_t *ring_map_new(size_t bytes);
/** All its pages are there afterwards. Takes a moment, on a busy host a tenth of a second for what
 * is held: not for a thread that owes somebody a heartbeat. */
void ring_map_populate(uint8_t *map, size_t bytes);
void ring_map_free(uint8_t *map, size_t bytes); /* NULL is fine */

/* ByteRing: a FIFO of bytes, contiguous at both ends. One thread. */
typedef struct ByteRing {
    uint8_t *map;
    size_t bytes; /* capacity */
    size_t head, len;
} ByteRing;

/** Rounds @bytes up to pages. Returns 0 or a negative errno. */
int byte_ring_init(ByteRing *ring, size_t bytes);
void byte_ring_clear(ByteRing *ring);

static inline uint8_t *
byte_ring_head(const ByteRing *ring)
{
    return ring->map + ring->head;
}

/** Where byte_ring_room() bytes may be put before byte_ring_produce(). */
static inline uint8_t *
byte_ring_tail(const ByteRing *ring)
{
    return ring->map + (ring->head + ring->len) % ring->bytes;
}

static inline size_t
byte_ring_room(const ByteRing *ring)
{
    return ring->bytes - ring->len;
}

static inline void
byte_ring_produce(ByteRing *ring, size_t n)
{
    ring->len += n;
}

static inline void
byte_ring_consume(ByteRing *ring, size_t n)
{
    ring->len -= n;
    /* An empty ring begins anew: a short queue stays in cache. */
    ring->head = ring->len ? (ring->head + n) % ring->bytes : 0;
}
