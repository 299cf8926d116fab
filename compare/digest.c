/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* digest.c - large TCP segments of the secondary without their payload: digests of it instead */
/*
 * Theory of operation
 *
 * Goal: of a stream that both guests send alike, only one copy crosses from host to host: none. The
 * secondary's host sends the headers of a large segment, all of which count, and for each unit of
 * its payload a digest (XXH3-128 with a secret that is random and known to the two hosts only, so
 * that nobody who chooses what a guest sends can make two payloads pass for one). The primary's
 * host has what its guest sent and computes the same.
 *
 * A digest proves that bytes are equal, and nothing else. Whatever it does not prove is decided by
 * the bytes: the engine asks for the whole segment (CompareWantFunc), once, and compares as ever
 * when that comes. So a divergence has both frames and the exact offset, and the rules
 * of tcp.c never see a digest. If the segment does not come it is as good as lost: a timeout and a
 * checkpoint.
 *
 * Two equal guests do not cut a stream alike. Units are what the segment is cut into on the wire
 * (its gso_size), so even where segments begin and end at other places, units mostly do not. The
 * primary's bytes of a unit may come in several segments; they are put together. The whole is
 * wanted if
 * - a unit differs,
 * - the window's end lies within a unit: what is before it may have left already,
 * - a SYN or FIN of the primary lies within it,
 * - the primary's bytes end within a unit and have waited as long as for a part
 *   (CompareConfig.part_ns). Not before: where the primary's burst ends with a short segment and
 * the secondary's goes on, the primary is about to send the same. It can only be kept from it by an
 *   ack that it waits for, which is rare: a short segment is what empties its queue.
 *
 * What the secondary's host says is checked: digests that do not fit their segment are as good as
 * lost too.
 */
#include "digest.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "bytes.h"
#include "engine.h"
#include "seq.h"
#include "tcp-stream.h"

enum {
    VNET_BYTES = 10,
    VNET_GSO_SIZE_OFFSET = 4,
    IPV4_LENGTH_OFFSET = 2,
    IPV6_LENGTH_OFFSET = 4,
    IPV6_HEADER_BYTES = 40,
    ETHERTYPE_OFFSET = 12,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_QINQ = 0x88a8,
    VLAN_BYTES = 4,
};

static void
digest_of(const DigestKey *key, const uint8_t *bytes, size_t len, uint8_t out[static DIGEST_BYTES])
{
    XXH128_hash_t hash = XXH3_128bits_withSecret(bytes, len, key->secret, sizeof(key->secret));

    be64_store(out, hash.high64);
    be64_store(out + 8, hash.low64);
}

static uint32_t
n_units(uint32_t payload_len, uint32_t unit)
{
    return (payload_len + unit - 1) / unit;
}

/* --- the secondary's host --- */

/* No SYN, FIN, RST or urgent data: those take part in the rules. */
static bool
is_plain(const Frame *f)
{
    return f->cls == FRAME_TCP &&
           !(f->tcp_flags & (FRAME_TCP_SYN | FRAME_TCP_FIN | FRAME_TCP_RST | FRAME_TCP_URG));
}

/* Lengths are those of what follows now. @frame was parsed as IP, so its headers are there. */
static void
set_ip_length(uint8_t *frame, bool ipv6, size_t len)
{
    uint8_t *type = frame + VNET_BYTES + ETHERTYPE_OFFSET;

    while (be16_load(type) == ETHERTYPE_VLAN || be16_load(type) == ETHERTYPE_QINQ)
        type += VLAN_BYTES;

    uint8_t *ip = type + 2;
    size_t from_ip = len - (size_t)(ip - frame);

    if (ipv6)
        be16_store(ip + IPV6_LENGTH_OFFSET, (uint16_t)(from_ip - IPV6_HEADER_BYTES));
    else
        be16_store(ip + IPV4_LENGTH_OFFSET, (uint16_t)from_ip);
}

bool
digest_encode(const DigestKey *key, const uint8_t *frame, size_t len, uint8_t *out,
              DigestInfo *ret_info)
{
    uint16_t unit;
    Frame f;

    if (len < DIGEST_PAYLOAD_MIN)
        return false;
    memcpy(&unit, frame + VNET_GSO_SIZE_OFFSET, sizeof(unit)); /* in the host's order */
    if (unit < DIGEST_UNIT_MIN || unit > DIGEST_UNIT_MAX)
        return false;
    frame_parse(frame, len, VNET_BYTES, &f);
    if (!is_plain(&f) || f.payload_len < DIGEST_PAYLOAD_MIN || f.payload_len <= unit)
        return false;

    uint8_t *digest = out + f.payload_off;

    memcpy(out, frame, f.payload_off);
    for (uint32_t pos = 0; pos < f.payload_len; pos += unit, digest += DIGEST_BYTES) {
        uint32_t n = f.payload_len - pos < unit ? f.payload_len - pos : unit;

        digest_of(key, frame + f.payload_off + pos, n, digest);
    }
    *ret_info = (DigestInfo){
        .frame_len = (size_t)(digest - out), .payload_len = f.payload_len, .unit = unit};
    set_ip_length(out, f.ipv6, ret_info->frame_len);
    return true;
}

/* --- the engine --- */

void
compare_set_digests(Compare *e, const DigestKey *key, CompareWantFunc want)
{
    e->digest_key = *key;
    e->want = want;
}

bool
digest_describe(const Compare *e, Held *h, const Frame *frame, const CompareFrame *in)
{
    const uint32_t unit = in->digest_unit, len = in->digest_len;

    if (!e->want || h->side != COMPARE_SECONDARY || !is_plain(frame) || unit < DIGEST_UNIT_MIN ||
        unit > DIGEST_UNIT_MAX || len == 0 || len > FRAME_MAX_BYTES ||
        frame->payload_len != n_units(len, unit) * DIGEST_BYTES)
        return false;
    h->flags |= HELD_DIGEST;
    h->cut = unit;
    h->payload_len = len;
    h->end = h->seq + len;
    return true;
}

static bool
unit_equal(const Compare *e, const Held *s, uint32_t pos, const uint8_t *bytes, uint32_t len)
{
    uint8_t mine[DIGEST_BYTES];

    digest_of(&e->digest_key, bytes, len, mine);
    return memcmp(mine, held_payload(s) + pos / s->cut * DIGEST_BYTES, DIGEST_BYTES) == 0;
}

static uint32_t
unit_len(const Held *s, uint32_t pos)
{
    return s->payload_len - pos < s->cut ? s->payload_len - pos : s->cut;
}

bool
digest_equal(const Compare *e, const Held *p, const Held *s)
{
    uint32_t len;

    for (uint32_t pos = 0; pos < s->payload_len; pos += len) {
        len = unit_len(s, pos);
        if (!unit_equal(e, s, pos, held_payload(p) + pos, len))
            return false;
    }
    return true;
}

/* Where the bytes [from, to) of the primary are, from segment @p on. NULL: not all of them are
 * here.
 * *@ret_odd: and it is no use to wait for them. */
static const uint8_t *
primary_bytes(Compare *e, const Held *p, uint32_t from, uint32_t to, bool *ret_odd)
{
    uint32_t at = from;

    *ret_odd = false;
    if (seq_leq(tcp_data_seq(p), from) && seq_leq(to, tcp_data_end(p)))
        return held_payload(p) + (from - tcp_data_seq(p));
    for (int steps = 0; p && steps < ENGINE_MAX_WALK; p = p->link[LINK_CHAIN].next, steps++) {
        if (seq_leq(p->end, at))
            continue;
        if (seq_gt(p->seq, at))
            return NULL;
        uint32_t end = seq_min(tcp_data_end(p), to);

        *ret_odd = seq_gt(tcp_data_seq(p), at) || (end != to && seq_gt(p->end, end));
        if (*ret_odd)
            return NULL;
        memcpy(e->scratch + (at - from), held_payload(p) + (at - tcp_data_seq(p)), end - at);
        at = end;
        if (at == to)
            return e->scratch;
    }
    return NULL;
}

uint32_t
digest_match(Compare *e, const Flow *f, const Held *p, Held *s)
{
    uint32_t next = f->next;

    while (seq_lt(next, s->end)) {
        uint32_t pos = next - s->seq, len = unit_len(s, pos);
        bool odd = pos % s->cut != 0;
        const uint8_t *bytes = odd ? NULL : primary_bytes(e, p, next, next + len, &odd);

        if (!bytes || !unit_equal(e, s, pos, bytes, len)) {
            if (bytes || odd)
                digest_want(e, s);
            break;
        }
        next += len;
        while (p->link[LINK_CHAIN].next && seq_leq(p->end, next))
            p = p->link[LINK_CHAIN].next;
    }
    return next;
}

void
digest_want(Compare *e, Held *s)
{
    if (s->flags & HELD_WANTED)
        return;
    s->flags |= HELD_WANTED;
    e->stats.wanted++;
    e->want(e->opaque, s->cookie);
}

void
digest_replace(Compare *e, Flow *f, const Held *whole)
{
    Held *h = f->s_chain.tail;

    if (whole->flags & HELD_DIGEST)
        return;
    /* From where a new segment belongs: no walk at all for most. */
    for (int steps = 0; h && seq_geq(h->seq, whole->seq) && steps < ENGINE_MAX_WALK;
         h = h->link[LINK_CHAIN].prev, steps++) {
        if (!(h->flags & HELD_WANTED) || h->seq != whole->seq || h->end != whole->end)
            continue;
        held_list_remove(&f->s_chain, h, LINK_CHAIN);
        h->flags &= (uint16_t)~HELD_IN_CHAIN;
        engine_forget(e, h);
        return;
    }
}
