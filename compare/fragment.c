/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fragment.c - IPv4 and IPv6 fragments are put together per side, then compared as one datagram */
/*
 * Theory of operation
 *
 * Fragments with equal side, addresses, protocol, identification and VLANs form a set, kept by
 * offset. When nothing is missing from 0 to the last, the payload is copied together and takes the
 * way of an unfragmented frame; the fragments of the primary leave with it, as they came.
 * The two sides may cut differently, and the identification may differ.
 *
 * Fragments that overlap must agree on the common bytes: a receiver may believe either. If they do
 * not, or there are too many, the set is poisoned and reported; so is one that misses pieces for
 * the timeout. The primary's fragments of such a set wait for the checkpoint.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"

enum { DATAGRAM_MAX_BYTES = 65535 };

static uint32_t
frag_end(const Held *h)
{
    return h->frag_off_bytes + h->payload_len;
}

static FragSet *
set_find(Compare *e, const uint64_t *words, uint32_t bucket)
{
    FragSet *set = e->frag_buckets[bucket];

    while (set && memcmp(set->words, words, sizeof(set->words)) != 0)
        set = set->next;
    return set;
}

/* NULL: bound reached. */
static FragSet *
set_get(Compare *e, const Held *h, const Frame *frame)
{
    uint64_t words[FRAME_KEY_WORDS];

    memcpy(words, frame->key.w, sizeof(words));
    words[4] = ((uint64_t)frame->frag_id << 32) | ((uint64_t)h->side << 16) |
               ((uint64_t)frame->protocol << 8) | frame->ipv6;
    uint32_t bucket =
        (uint32_t)keyed_hash(&e->hash_key, words, FRAME_KEY_WORDS) % ENGINE_FRAG_BUCKETS;
    FragSet *set = set_find(e, words, bucket);

    if (set || e->n_frag_sets == ENGINE_MAX_FRAG_SETS)
        return set;
    set = slab_alloc(e->slab, sizeof(*set));
    if (!set)
        return NULL;
    *set = (FragSet){.next = e->frag_buckets[bucket], .first = *frame, .bucket = bucket};
    memcpy(set->words, words, sizeof(set->words));
    e->frag_buckets[bucket] = set;
    e->n_frag_sets++;
    return set;
}

static void
set_free(Compare *e, FragSet *set)
{
    FragSet **at = &e->frag_buckets[set->bucket];

    while (*at != set)
        at = &(*at)->next;
    *at = set->next;
    e->n_frag_sets--;
    slab_release(e->slab, set);
}

void
fragment_forget_all(Compare *e)
{
    if (!e->n_frag_sets)
        return;
    for (uint32_t b = 0; b < ENGINE_FRAG_BUCKETS; b++) {
        while (e->frag_buckets[b])
            set_free(e, e->frag_buckets[b]);
    }
}

static void
poison(Compare *e, FragSet *set, CompareRule rule, const Held *h)
{
    bool primary = h->side == COMPARE_PRIMARY;

    if (set->poisoned)
        return;
    set->poisoned = true;
    engine_report(e, &set->first.key, rule, (DiffSpot){.offset = h->frag_off_bytes},
                  primary ? h : NULL, primary ? NULL : h);
}

void
fragment_timeout(Compare *e, const Held *h)
{
    poison(e, h->frag_set,
           h->side == COMPARE_PRIMARY ? COMPARE_RULE_TIMEOUT_PRIMARY
                                      : COMPARE_RULE_TIMEOUT_SECONDARY,
           h);
}

/* Adds @h by offset; false if it contradicts a fragment that is there. */
static bool
set_insert(FragSet *set, Held *h)
{
    Held *where = set->sorted.tail;
    bool consistent = true;

    while (where && where->frag_off_bytes > h->frag_off_bytes)
        where = where->link[LINK_CHAIN].prev;
    for (const Held *o = set->sorted.head; o; o = o->link[LINK_CHAIN].next) {
        uint32_t lo = o->frag_off_bytes > h->frag_off_bytes ? o->frag_off_bytes : h->frag_off_bytes;
        uint32_t hi = frag_end(o) < frag_end(h) ? frag_end(o) : frag_end(h);

        if (lo < hi && memcmp(held_payload(o) + (lo - o->frag_off_bytes),
                              held_payload(h) + (lo - h->frag_off_bytes), hi - lo) != 0)
            consistent = false;
    }
    held_list_insert_after(&set->sorted, where, h, LINK_CHAIN);
    held_list_append(&set->arrived, h, LINK_FIFO);
    set->n_parts++;
    return consistent;
}

static void
set_remove(FragSet *set, Held *h)
{
    held_list_remove(&set->sorted, h, LINK_CHAIN);
    held_list_remove(&set->arrived, h, LINK_FIFO);
    set->n_parts--;
}

/* The length if the last fragment fits what is known; false if lengths contradict each other. */
static bool
note_total(FragSet *set, const Held *h)
{
    if (frag_end(h) > DATAGRAM_MAX_BYTES)
        return false;
    if (h->frag_more)
        return h->payload_len % 8 == 0 && (!set->total_bytes || frag_end(h) <= set->total_bytes);
    if (set->total_bytes && set->total_bytes != frag_end(h))
        return false;
    set->total_bytes = frag_end(h);
    for (const Held *o = set->sorted.head; o; o = o->link[LINK_CHAIN].next) {
        if (frag_end(o) > set->total_bytes)
            return false;
    }
    return true;
}

static bool
set_complete(const FragSet *set)
{
    uint32_t covered = 0;

    for (const Held *h = set->sorted.head; h; h = h->link[LINK_CHAIN].next) {
        if (h->frag_off_bytes > covered)
            return false;
        if (frag_end(h) > covered)
            covered = frag_end(h);
    }
    return set->total_bytes && covered == set->total_bytes;
}

static Held *
assemble(Compare *e, const FragSet *set)
{
    const Held *head = set->arrived.head;
    Held *whole = slab_alloc(e->slab, sizeof(*whole) + set->total_bytes);

    if (!whole)
        return NULL;
    uint8_t *bytes = (uint8_t *)(whole + 1);

    *whole = (Held){.frame = bytes,
                    .frame_len = set->total_bytes,
                    .arrival_ns = e->now_ns,
                    .epoch = head->epoch,
                    .side = head->side,
                    .parts = set->arrived,
                    .flags = HELD_STORED};
    for (const Held *h = set->sorted.head; h; h = h->link[LINK_CHAIN].next)
        memcpy(bytes + h->frag_off_bytes, held_payload(h), h->payload_len);
    return whole;
}

static int
complete(Compare *e, FragSet *set)
{
    Held *whole = assemble(e, set);
    Frame frame;

    if (!whole)
        return engine_out_of_memory(e);
    frame_parse_reassembled(whole->frame, whole->frame_len, &set->first, &frame);
    for (Held *h = set->arrived.head; h; h = h->link[LINK_FIFO].next) {
        engine_unage(e, h);
        h->frag_set = NULL;
    }
    engine_age(e, whole);
    e->stats.held_frames[whole->side]++;
    engine_describe(e, whole, &frame);
    if (engine_route(e, whole, &frame) < 0) {
        /* No room for a flow: the set waits for the checkpoint that was asked for. */
        engine_unage(e, whole);
        e->stats.held_frames[whole->side]--;
        slab_release(e->slab, whole);
        for (Held *h = set->arrived.head; h; h = h->link[LINK_FIFO].next) {
            h->frag_set = set;
            engine_age(e, h);
        }
        set->poisoned = true;
        return 0;
    }
    e->stats.reassembled[set->words[4] >> 16 & 1]++;
    set_free(e, set);
    return 0;
}

static int
add_to_set(Compare *e, FragSet *set, Held *h)
{
    h->frag_set = set;
    if (set->poisoned)
        return 0;
    if (set->n_parts == ENGINE_MAX_FRAGMENTS || !note_total(set, h) || !set_insert(set, h)) {
        poison(e, set, COMPARE_RULE_FRAGMENT, h);
        return 0;
    }
    if (!set_complete(set))
        return 0;
    int r = complete(e, set);

    if (r < 0) {
        set_remove(set, h);
        h->frag_set = NULL;
    }
    return r;
}

int
fragment_process(Compare *e, Held *h, const Frame *frame)
{
    FragSet *set = set_get(e, h, frame);
    Held *stored = h;

    if (!set)
        return engine_out_of_memory(e);
    if (!(h->flags & HELD_STORED)) {
        h->frag_set = set;
        h->lent = false; /* it goes through more hands than there are lists */
        stored = engine_store(e, h);
        h->flags |= HELD_DONE;
        if (!stored) {
            if (!set->n_parts && !set->poisoned)
                set_free(e, set);
            return engine_out_of_memory(e);
        }
    }
    int r = add_to_set(e, set, stored);

    if (r < 0 && stored != h)
        engine_forget(e, stored);
    return r;
}
