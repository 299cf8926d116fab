/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* flow.h - the flow table: constant-time lookup by a keyed hash, lazy expiry */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "flow-slots.h"
#include "held.h"

enum {
    FLOW_BYTES_MAX = 192,     /* with 16 of the table: 208 for an idle flow */
    FLOW_HAS_WINDOW = 1 << 0, /* TCP: base and next are known: a flag, never a number */
    FLOW_HAS_P_SYN = 1 << 1,
    FLOW_HAS_S_SYN = 1 << 2,
    FLOW_HAS_P_ACK = 1 << 3,
    FLOW_HAS_S_ACK = 1 << 4,
    FLOW_RST_DONE = 1 << 5,
    FLOW_DIVERGED = 1 << 6, /* reported: only the checkpoint moves its frames */
    FLOW_CLOSED = 1 << 7,   /* FIN or RST left: expires early */
    FLOW_BACKLOG_P = 1 << 8,
    FLOW_BACKLOG_S = 1 << 9,
    FLOW_REFEEDING = 1 << 10,
    FLOW_ESTABLISHED = 1 << 11, /* more than a handshake was seen */
    FLOW_SHORT_LIST = 1 << 12,  /* which expiry list it is on */
    FLOW_EARLY_S = 1 << 14,     /* the backlog has segments that overtook the secondary's SYN */
    FLOW_DELTA_SEEN = 1 << 13,  /* the offset from the SYNs was checked against a later segment */
    FLOW_TOLD_ALL = 1 << 15,    /* the peer was told all of the secondary's window, not more */
};

/*
 * Flow: one direction of one conversation: what the guest sends. For TCP the bytes in [base, next)
 * are known to be the same on both sides, or covered by a checkpoint.
 */
struct Flow {
    FlowKey key;
    HeldList fifo;    /* primary: not released yet, in output order */
    HeldList p_chain; /* primary: unmatched; TCP by sequence, others by arrival */
    HeldList s_chain; /* secondary: the same */
    HeldList backlog; /* TCP: frames of the next connection on the same ports, both sides */
    Held *s_rst;      /* TCP: RSTs of the secondary that the primary has not sent, by LINK_CHAIN */
    uint32_t base, next;
    uint32_t p_isn, s_isn, s_delta;
    uint32_t p_ack, s_ack;
    uint32_t p_edge, s_edge; /* see window.c; known if FLOW_HAS_P_ACK, FLOW_HAS_S_ACK */
    uint32_t epoch;          /* low bits of the epoch its state belongs to */
    uint32_t hash;
    uint32_t last_seen_s; /* engine's seconds */
    uint32_t queued_s;    /* when it was put on its expiry list */
    uint32_t expiry_prev, expiry_next;
    uint16_t flags;
    uint8_t p_scale, s_scale; /* of the windows of each side */
    uint32_t client_end;      /* TCP: behind the client's FIN; see client.c */
    bool has_client_end;
};
static_assert(sizeof(struct Flow) <= FLOW_BYTES_MAX, "idle flows are many");

typedef struct FlowTable FlowTable;

/** Creates a table for at most @flows_max flows (a power of two). Address space is reserved, memory
 * used as flows come. Return: 0 or a negative errno.
 */
int flow_table_new(uint32_t flows_max, const HashKey *key, FlowTable **ret_table);
void flow_table_free(FlowTable *table);

uint32_t flow_key_hash(const FlowTable *table, const FlowKey *key);
void flow_table_prefetch_slot(const FlowTable *table, uint32_t hash);
void flow_table_prefetch_flow(const FlowTable *table, uint32_t hash);

/** Return: the flow, or NULL. */
Flow *flow_table_find(const FlowTable *table, const FlowKey *key, uint32_t hash);

/** Adds a flow that is not there; NULL when full and none could be evicted.
 *
 * When full, an old flow without held frames makes room, half-open and closed ones first.
 */
Flow *flow_table_add(FlowTable *table, const FlowKey *key, uint32_t hash, uint32_t now_s);

/** Forgets flows without held frames unused for @idle_s (@closed_s: closed or half open). */
void flow_table_expire(FlowTable *table, uint32_t now_s, uint32_t idle_s, uint32_t closed_s);

uint32_t flow_table_count(const FlowTable *table);
uint64_t flow_table_expired(const FlowTable *table);
uint64_t flow_table_evicted(const FlowTable *table);

static inline bool
flow_is_empty(const Flow *f)
{
    return !f->fifo.head && !f->p_chain.head && !f->s_chain.head && !f->backlog.head && !f->s_rst;
}
