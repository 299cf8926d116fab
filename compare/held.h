/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* held.h - a frame inside the engine, and the lists it can be on */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "compare.h"

typedef struct Flow Flow;
typedef struct FragSet FragSet;
typedef struct Held Held;

/* The lists a frame can be on at the same time. */
typedef enum HeldLinkKind {
    LINK_AGE,   /* engine: all held frames in arrival order; or the frames of a future epoch */
    LINK_FIFO,  /* flow: frames of the primary in output order; or the backlog of a flow; or the
                   fragments of a datagram in arrival order */
    LINK_CHAIN, /* flow: unmatched frames of one side; or the fragments by offset */
    LINK_INDEX, /* engine: a bucket of the datagram index */
    N_LINKS
} HeldLinkKind;

typedef struct HeldLink {
    Held *prev, *next;
} HeldLink;

typedef struct HeldList {
    Held *head, *tail;
} HeldList;

enum {
    HELD_STORED = 1 << 0, /* in slab memory; otherwise on the stack of compare_submit() */
    HELD_DONE = 1 << 1,   /* on the stack and no longer needed: released or forgotten */
    HELD_IN_FIFO = 1 << 2,
    HELD_IN_CHAIN = 1 << 3, /* unmatched */
    HELD_IN_INDEX = 1 << 4,
    HELD_IN_RST = 1 << 5, /* the secondary's RSTs, linked by LINK_CHAIN */
    HELD_IN_BACKLOG = 1 << 6,
    HELD_CSUM_PARTIAL = 1 << 7,
    HELD_LOWERED = 1 << 8,   /* its ack was lowered for release */
    HELD_WHOLE = 1 << 9,     /* compare the payload; otherwise its length only */
    HELD_CUT = 1 << 10,      /* its payload below `cut` has left */
    HELD_PURE_ACK = 1 << 11, /* TCP with an ack and no data, SYN, FIN or RST */
    HELD_DIGEST = 1 << 12,   /* digests are in place of its payload, each of `cut` bytes */
    HELD_WANTED = 1 << 13,   /* the same, and the whole segment was asked for */
};

struct Held {
    HeldLink link[N_LINKS];
    Flow *flow;
    FragSet *frag_set;    /* a fragment waiting for the others */
    HeldList parts;       /* a reassembled datagram: its fragments, by LINK_FIFO */
    const uint8_t *frame; /* follows this struct if stored and not lent */
    int64_t arrival_ns;
    uint64_t cookie;
    uint64_t epoch;
    uint32_t frame_len;
    uint32_t payload_off;
    uint32_t payload_len;
    uint32_t l4_off;
    uint32_t seq, end, ack; /* TCP: the range in sequence space, SYN and FIN included */
    union {
        uint32_t index_hash; /* datagrams */
        uint32_t cut;        /* TCP, with HELD_CUT or HELD_DIGEST */
    };
    uint16_t flags;
    uint16_t frag_off_bytes;
    uint8_t vnet_hdr_len;
    uint8_t side;
    uint8_t tcp_flags;
    bool frag_more : 1;
    bool lent : 1; /* its bytes are still the caller's; see compare_lend_batch() */
};

static inline const uint8_t *
held_payload(const Held *h)
{
    return h->frame + h->payload_off;
}

static inline void
held_list_insert_after(HeldList *list, Held *where, Held *h, HeldLinkKind kind)
{
    Held *next = where ? where->link[kind].next : list->head;

    h->link[kind] = (HeldLink){.prev = where, .next = next};
    if (where)
        where->link[kind].next = h;
    else
        list->head = h;
    if (next)
        next->link[kind].prev = h;
    else
        list->tail = h;
}

static inline void
held_list_append(HeldList *list, Held *h, HeldLinkKind kind)
{
    held_list_insert_after(list, list->tail, h, kind);
}

static inline void
held_list_remove(HeldList *list, Held *h, HeldLinkKind kind)
{
    HeldLink *l = &h->link[kind];

    if (l->prev)
        l->prev->link[kind].next = l->next;
    else
        list->head = l->next;
    if (l->next)
        l->next->link[kind].prev = l->prev;
    else
        list->tail = l->prev;
}

/** Puts @to where @from is; @to's links of that kind already are a copy of @from's. */
static inline void
held_list_replace(HeldList *list, Held *from, Held *to, HeldLinkKind kind)
{
    const HeldLink *l = &from->link[kind];

    if (l->prev)
        l->prev->link[kind].next = to;
    else
        list->head = to;
    if (l->next)
        l->next->link[kind].prev = to;
    else
        list->tail = to;
}
