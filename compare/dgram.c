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

#include "bytes.h"
#include "engine.h"

enum {
    ETHERTYPE_RARP = 0x8035,
    ARP_BYTES = 28,
    ARP_SENDER_OFFSET = 14, /* protocol addresses */
    ARP_TARGET_OFFSET = 24,
    PROTO_IGMP = 2,
    IGMP_REPORT = 0x12, /* RFC 1112, 2236, 3376 */
    IGMP2_REPORT = 0x16,
    IGMP3_REPORT = 0x22,
    MLD_REPORT = 131, /* RFC 2710, 4861, 3810 */
    NEIGHBOUR_ADVERTISEMENT = 136,
    MLD2_REPORT = 143,
};

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

static bool
arp_is_announcement(const Held *h)
{
    const uint8_t *arp = held_payload(h); /* RFC 826, for IPv4 over Ethernet */

    return h->payload_len >= ARP_BYTES &&
           be32_load(arp + ARP_SENDER_OFFSET) == be32_load(arp + ARP_TARGET_OFFSET);
}

bool
dgram_is_announcement(const Held *h)
{
    const FlowKey *key = &h->flow->key;
    uint8_t type = h->payload_len > 0 ? held_payload(h)[0] : 0;

    switch (frame_key_class(key)) {
    case FRAME_ARP:
        return arp_is_announcement(h);
    case FRAME_L2_OTHER:
        return (key->w[0] & 0xffff) == ETHERTYPE_RARP;
    case FRAME_ICMP:
        /* To ff00::/8: a solicited advertisement goes to the host that asked. */
        return frame_key_is_ipv6(key) && key->w[2] >> 56 == 0xff &&
               (type == MLD_REPORT || type == NEIGHBOUR_ADVERTISEMENT || type == MLD2_REPORT);
    case FRAME_IP_OTHER:
        return !frame_key_is_ipv6(key) && frame_key_protocol(key) == PROTO_IGMP &&
               (type == IGMP_REPORT || type == IGMP2_REPORT || type == IGMP3_REPORT);
    case FRAME_TCP:
    case FRAME_UDP:
    case FRAME_FRAGMENT:
    case FRAME_MALFORMED:
    case FRAME_N_CLASSES:
        break;
    }
    return false;
}

void
dgram_forget_secondary(Compare *e, Held *h)
{
    held_list_remove(&h->flow->s_chain, h, LINK_CHAIN);
    h->flags &= (uint16_t)~HELD_IN_CHAIN;
    engine_forget(e, h);
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
