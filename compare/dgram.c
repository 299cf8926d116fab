/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dgram.c - UDP, ICMP and what only has a policy: whole payloads, any order within the flow */
/*
 * Theory of operation
 *
 * A frame is compared with the oldest unmatched one of the other side first: without reordering
 * that is the one, and no hash is computed. Only if they differ are the other side's unmatched
 * frames entered into an index by a hash of the payload (once each, so the cost per frame stays
 * constant however far one side is ahead) and looked up there. The hash only selects; bytes decide.
 * The primary's leave in arrival order: a matched frame waits for those before it.
 */
#define XXH_INLINE_ALL
#include <string.h>
#include <xxhash.h>

#include "engine.h"

static bool
equal(const Held *a, const Held *b)
{
    if (a->payload_len != b->payload_len)
        return false;
    return !(a->flags & HELD_WHOLE) || !memcmp(held_payload(a), held_payload(b), a->payload_len);
}

/* The same for equal frames of the two sides; @side tells whose frames are meant. */
static uint32_t
payload_hash(const Compare *e, const Held *h, uint8_t side)
{
    uint64_t seed = e->hash_key.k[0] ^ ((uint64_t)h->flow->hash << 1) ^ side;

    if (h->flags & HELD_WHOLE)
        return (uint32_t)XXH3_64bits_withSeed(held_payload(h), h->payload_len, seed);
    return (uint32_t)XXH3_64bits_withSeed(&h->payload_len, sizeof(h->payload_len), seed);
}

/* New frames are at the tail: stop at the first that is in the index. */
static void
index_chain(Compare *e, const HeldList *chain)
{
    for (Held *h = chain->tail; h && !(h->flags & HELD_IN_INDEX); h = h->link[LINK_CHAIN].prev) {
        h->index_hash = payload_hash(e, h, h->side);
        /* Oldest first within a bucket, as the walk is from the youngest to the oldest. */
        held_list_insert_after(&e->index[h->index_hash & e->index_mask], NULL, h, LINK_INDEX);
        h->flags |= HELD_IN_INDEX;
    }
}

void
dgram_unindex(Compare *e, Held *h)
{
    if (!(h->flags & HELD_IN_INDEX))
        return;
    held_list_remove(&e->index[h->index_hash & e->index_mask], h, LINK_INDEX);
    h->flags &= (uint16_t)~HELD_IN_INDEX;
}

static Held *
find(Compare *e, const HeldList *chain, const Held *h)
{
    if (!chain->head || equal(chain->head, h))
        return chain->head;
    if (chain->head == chain->tail)
        return NULL;
    index_chain(e, chain);

    uint32_t hash = payload_hash(e, h, !h->side);
    Held *other = e->index[hash & e->index_mask].head;

    while (other && !(other->index_hash == hash && other->flow == h->flow &&
                      other->side != h->side && equal(other, h)))
        other = other->link[LINK_INDEX].next;
    return other;
}

static void
release_fifo(Compare *e, Flow *f)
{
    Held *h;

    while ((h = f->fifo.head) && !(h->flags & HELD_IN_CHAIN)) {
        held_list_remove(&f->fifo, h, LINK_FIFO);
        h->flags &= (uint16_t)~HELD_IN_FIFO;
        engine_release(e, h, COMPARE_RELEASED_MATCHED);
    }
}

static void
process_primary(Compare *e, Flow *f, Held *h)
{
    Held *s = find(e, &f->s_chain, h);

    held_list_append(&f->fifo, h, LINK_FIFO);
    h->flags |= HELD_IN_FIFO;
    if (s) {
        held_list_remove(&f->s_chain, s, LINK_CHAIN);
        s->flags &= (uint16_t)~HELD_IN_CHAIN;
        engine_forget(e, s);
    } else {
        held_list_append(&f->p_chain, h, LINK_CHAIN);
        h->flags |= HELD_IN_CHAIN;
    }
}

static void
process_secondary(Compare *e, Flow *f, Held *h)
{
    Held *p = find(e, &f->p_chain, h);

    if (p) {
        held_list_remove(&f->p_chain, p, LINK_CHAIN);
        p->flags &= (uint16_t)~HELD_IN_CHAIN;
        dgram_unindex(e, p);
        engine_forget(e, h);
    } else {
        held_list_append(&f->s_chain, h, LINK_CHAIN);
        h->flags |= HELD_IN_CHAIN;
    }
}

void
dgram_process(Compare *e, Flow *f, Held *h)
{
    if (f->flags & FLOW_DIVERGED) {
        if (h->side == COMPARE_SECONDARY) {
            engine_forget(e, h);
        } else {
            held_list_append(&f->fifo, h, LINK_FIFO);
            h->flags |= HELD_IN_FIFO;
        }
        return;
    }
    if (h->side == COMPARE_PRIMARY)
        process_primary(e, f, h);
    else
        process_secondary(e, f, h);
    release_fifo(e, f);
}

DiffSpot
dgram_first_difference(const Held *p, const Held *s)
{
    uint32_t at = 0;

    if (p && s) {
        uint32_t common = p->payload_len < s->payload_len ? p->payload_len : s->payload_len;

        while (at < common && held_payload(p)[at] == held_payload(s)[at])
            at++;
    }
    return (DiffSpot){at, at, at};
}
