/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-queue.h - what the guest has changed and the peer has not confirmed yet: a bounded window
 * (pure)
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * One thread at a time. No allocation after forward_queue_new(). Where one is to become of two
 * that overlap and are no writes, the lower number wins: it promises more.
 */
typedef struct ForwardQueue ForwardQueue;

typedef enum ForwardKind {
    FORWARD_WRITE,
    FORWARD_ZERO,  /* and keep its space */
    FORWARD_UNMAP, /* zeros; the space may be given back */
    FORWARD_TRIM,
    FORWARD_KIND_COUNT,
} ForwardKind;

enum {
    FORWARD_WRITE_MAX_BYTES = 1024 * 1024, /* of an entry; longer requests become several */
    FORWARD_ZERO_MAX_BYTES = 32 * 1024 * 1024,
    FORWARD_MIN_LIMIT_BYTES = 4 * FORWARD_WRITE_MAX_BYTES,
    FORWARD_MAX_ENTRIES = 65535,
};

typedef struct ForwardEntry {
    ForwardKind kind;
    uint64_t offset, len;
    uint8_t *data; /* of a write */
} ForwardEntry;

/** At most @limit_bytes of data in at most @max_entries entries. */
ForwardQueue *forward_queue_new(uint64_t limit_bytes, unsigned max_entries);
void forward_queue_free(ForwardQueue *queue);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ForwardQueue, forward_queue_free)

/**
 * Takes a request, from its front as much as there is room for: the rest is to be given again when
 * there is room. @data: of FORWARD_WRITE, copied.
 *
 * Return: how many bytes were taken.
 */
uint64_t forward_queue_add(ForwardQueue *queue, ForwardKind kind, uint64_t offset, uint64_t len,
                           const void *data);

/**
 * The next to be sent: it is in flight until forward_queue_done(). Overlaps nothing in flight.
 * NULL: nothing can be sent now.
 */
ForwardEntry *forward_queue_take(ForwardQueue *queue);
/** The peer has confirmed it. */
void forward_queue_done(ForwardQueue *queue, ForwardEntry *entry);

/**
 * Keeps the range from being sent until forward_queue_done(): somebody else writes it. NULL:
 * something in it is in flight, or there is no room.
 */
ForwardEntry *forward_queue_reserve(ForwardQueue *queue, uint64_t offset, uint64_t len);

/** What comes from now on is not sent, and not merged with what came before. */
void forward_queue_hold(ForwardQueue *queue);
/** What is held may be sent. Only when drained. */
void forward_queue_release(ForwardQueue *queue);
bool forward_queue_is_holding(const ForwardQueue *queue);
/** All but what is held is confirmed. */
bool forward_queue_is_drained(const ForwardQueue *queue);

/** Of what waits to be sent: how many entries; how many bytes. */
unsigned forward_queue_unsent(const ForwardQueue *queue, uint64_t *ret_bytes);

/** Is something in the range not confirmed? */
bool forward_queue_overlaps(const ForwardQueue *queue, uint64_t offset, uint64_t len);

/** Forgets all, and holds nothing. Entries in flight are gone too. */
void forward_queue_clear(ForwardQueue *queue);

typedef struct ForwardQueueStatus {
    uint64_t limit_bytes, used_bytes; /* of the window */
    uint64_t queued_bytes;            /* not confirmed; zeros and trims count by their length */
    uint64_t held_bytes;
    uint64_t sent_bytes; /* data in flight */
    unsigned entries, in_flight;
    uint64_t merged; /* requests, or parts, that became part of an entry there was */
} ForwardQueueStatus;

void forward_queue_status(const ForwardQueue *queue, ForwardQueueStatus *ret_status);
