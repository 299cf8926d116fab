/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* flow.c - the flow table: constant-time lookup by a keyed hash, lazy expiry */
/*
 * Theory of operation
 *
 * Flows live in one array; FlowSlots finds them, so a lookup normally touches one line of it and
 * one flow.
 *
 * Expiry: two FIFO lists, one for flows that are closed or never got past the handshake, one for
 * the rest. A packet only writes last_seen_s; a flow that reaches the head of its list and was used
 * since goes to the tail (and perhaps to the other list). So a tick costs as much as it
 * expires or moves, whatever the number of flows, and each flow moves once per idle time.
 */
#include "flow.h"

#include <errno.h>
#include <stdlib.h>

enum {
    EVICT_TRIES = 32,   /* flows looked at before the table counts as full */
    EXPIRE_BATCH = 256, /* flows handled per tick: bounds the time of one call */
};

typedef struct ExpiryList {
    uint32_t head, tail;
} ExpiryList;

struct FlowTable {
    FlowSlots slots;
    Flow *flows;
    uint32_t flows_max;
    uint32_t n_flows;
    uint32_t n_used_once; /* flows[] from here on was never used */
    uint32_t free_head;   /* linked by expiry_next */
    ExpiryList lists[2];  /* [1]: short */
    uint64_t n_expired;
    uint64_t n_evicted;
};

static size_t
flows_bytes(const FlowTable *t)
{
    return (size_t)t->flows_max * sizeof(Flow);
}

int
flow_table_new(uint32_t flows_max, const HashKey *key, FlowTable **ret_table)
{
    FlowTable *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    t->flows_max = flows_max;
    t->free_head = FLOW_NONE;
    for (int i = 0; i < 2; i++)
        t->lists[i] = (ExpiryList){FLOW_NONE, FLOW_NONE};
    t->flows = flow_slots_map(flows_bytes(t));
    if (flow_slots_init(&t->slots, flows_max, key) < 0 || !t->flows) {
        flow_table_free(t);
        return -ENOMEM;
    }
    *ret_table = t;
    return 0;
}

void
flow_table_free(FlowTable *t)
{
    if (!t)
        return;
    flow_slots_clear(&t->slots);
    flow_slots_unmap(t->flows, flows_bytes(t));
    free(t);
}

uint32_t
flow_key_hash(const FlowTable *t, const FlowKey *key)
{
    return flow_slots_hash(&t->slots, key);
}

void
flow_table_prefetch_slot(const FlowTable *t, uint32_t hash)
{
    __builtin_prefetch(&t->slots.words[hash & t->slots.mask]);
}

void
flow_table_prefetch_flow(const FlowTable *t, uint32_t hash)
{
    uint64_t slot = t->slots.words[hash & t->slots.mask];

    if (!slot)
        return;
    const char *flow = (const char *)&t->flows[(uint32_t)slot - 1];

    __builtin_prefetch(flow);
    __builtin_prefetch(flow + 64);
    __builtin_prefetch(flow + 128);
}

Flow *
flow_table_find(const FlowTable *t, const FlowKey *key, uint32_t hash)
{
    uint32_t at = hash, index;

    while ((index = flow_slots_next(&t->slots, hash, &at)) != FLOW_NONE) {
        Flow *f = &t->flows[index];

        if (flow_key_equal(&f->key, key))
            return f;
    }
    return NULL;
}

static uint32_t
flow_index(const FlowTable *t, const Flow *f)
{
    return (uint32_t)(f - t->flows);
}

static void
expiry_append(FlowTable *t, Flow *f, uint32_t now_s)
{
    bool is_short = (f->flags & FLOW_CLOSED) || !(f->flags & FLOW_ESTABLISHED);
    ExpiryList *list = &t->lists[is_short];
    uint32_t index = flow_index(t, f);

    f->flags = (uint16_t)(is_short ? f->flags | FLOW_SHORT_LIST : f->flags & ~FLOW_SHORT_LIST);
    f->queued_s = now_s;
    f->expiry_prev = list->tail;
    f->expiry_next = FLOW_NONE;
    if (list->tail == FLOW_NONE)
        list->head = index;
    else
        t->flows[list->tail].expiry_next = index;
    list->tail = index;
}

static void
expiry_remove(FlowTable *t, Flow *f)
{
    ExpiryList *list = &t->lists[(f->flags & FLOW_SHORT_LIST) != 0];

    if (f->expiry_prev == FLOW_NONE)
        list->head = f->expiry_next;
    else
        t->flows[f->expiry_prev].expiry_next = f->expiry_next;
    if (f->expiry_next == FLOW_NONE)
        list->tail = f->expiry_prev;
    else
        t->flows[f->expiry_next].expiry_prev = f->expiry_prev;
}

static void
flow_remove(FlowTable *t, Flow *f)
{
    uint32_t index = flow_index(t, f);

    flow_slots_remove(&t->slots, f->hash, index);
    expiry_remove(t, f);
    f->expiry_next = t->free_head;
    t->free_head = index;
    t->n_flows--;
}

/* Looks at the oldest flows of the short list, then of the other. */
static bool
evict_one(FlowTable *t, uint32_t now_s)
{
    for (int l = 1; l >= 0; l--) {
        for (int tries = 0; tries < EVICT_TRIES && t->lists[l].head != FLOW_NONE; tries++) {
            Flow *f = &t->flows[t->lists[l].head];

            if (flow_is_empty(f)) {
                flow_remove(t, f);
                t->n_evicted++;
                return true;
            }
            expiry_remove(t, f);
            expiry_append(t, f, now_s);
        }
    }
    return false;
}

Flow *
flow_table_add(FlowTable *t, const FlowKey *key, uint32_t hash, uint32_t now_s)
{
    uint32_t index;

    if (t->n_flows == t->flows_max && !evict_one(t, now_s))
        return NULL;
    if (t->free_head != FLOW_NONE) {
        index = t->free_head;
        t->free_head = t->flows[index].expiry_next;
    } else {
        index = t->n_used_once++;
    }
    Flow *f = &t->flows[index];

    *f = (Flow){.key = *key, .hash = hash, .last_seen_s = now_s};
    flow_slots_insert(&t->slots, hash, index);
    expiry_append(t, f, now_s);
    t->n_flows++;
    return f;
}

static void
expire_list(FlowTable *t, ExpiryList *list, uint32_t now_s, uint32_t idle_s, uint32_t closed_s)
{
    uint32_t list_s = list == &t->lists[1] ? closed_s : idle_s;

    for (int n = 0; n < EXPIRE_BATCH && list->head != FLOW_NONE; n++) {
        Flow *f = &t->flows[list->head];
        bool closes = (f->flags & FLOW_CLOSED) || !(f->flags & FLOW_ESTABLISHED);
        uint32_t limit_s = closes ? closed_s : idle_s;

        if (now_s - f->queued_s < list_s)
            return; /* and so are all behind it */
        if (flow_is_empty(f) && now_s - f->last_seen_s >= limit_s) {
            flow_remove(t, f);
            t->n_expired++;
        } else {
            expiry_remove(t, f);
            expiry_append(t, f, now_s);
        }
    }
}

void
flow_table_expire(FlowTable *t, uint32_t now_s, uint32_t idle_s, uint32_t closed_s)
{
    expire_list(t, &t->lists[0], now_s, idle_s, closed_s);
    expire_list(t, &t->lists[1], now_s, idle_s, closed_s);
}

uint32_t
flow_table_count(const FlowTable *t)
{
    return t->n_flows;
}

uint64_t
flow_table_expired(const FlowTable *t)
{
    return t->n_expired;
}

uint64_t
flow_table_evicted(const FlowTable *t)
{
    return t->n_evicted;
}
