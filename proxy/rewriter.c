/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter.c - the secondary's TCP numbers in the primary's terms, and back */
/*
 * Theory of operation
 *
 * Since the last checkpoint both guests have run on their own, with the same input. A TCP
 * connection opened since then has another initial sequence number in each (there is a clock or a
 * random number in it) and other timestamps. Everybody else knows PVM's. So that the comparison can
 * compare, the peer's acknowledgements reach SVM, and SVM can go on alone, all of SVM's
 * connections are translated here by the offset (PVM's number minus SVM's, modulo 2^32):
 *
 *                      from SVM (egress)           to SVM (ingress)
 *   sequence offset    seq + offset                ack - offset, edges of SACK blocks - offset
 *   timestamp offset   TSval + offset              TSecr - offset
 *   left as they are   ack, SACK blocks, TSecr     seq, TSval
 *
 * What is left speaks of the peer's numbers, which are the same for both guests. An ack or TSecr
 * counts only with the ACK flag, a TSecr only if it is not 0 (RFC 7323, 3.2). RSTs carry the same
 * numbers as any segment (one that answers a segment without ACK has seq 0, and keeps it). SYNs and
 * SYN-ACKs leave as they are until the offset is known: the comparison does not look at their
 * numbers (COMPARE_ISN_REWRITTEN). ICMP errors quote what PVM sent; the sequence number in the
 * quote is translated, as guests ignore an error about a number that they have not sent (path MTU
 * discovery would stop). What is learned when: rewriter-conn.h and rewriter-conn.c.
 *
 * Only connections that began since the last commit are known here. What is not known passes
 * as it is, and that is right for all the others: they were in the checkpoint, so SVM has
 * PVM's numbers. So is a handshake that spans a commit: SVM then has PVM's initial number.
 * After a takeover no new ones are learned, the known ones stay until they close, and then some:
 * their last segments may be repeated. The next connection on the same ports ends them.
 *
 * Where an offset cannot be known (counted in RewriterStats: untracked_full, untracked_ambiguous)
 * the connection passes as it is; the guests' answers to it then differ, which the comparison
 * sees as a divergence, and the checkpoint that follows makes the offset 0. Such are
 *   - connections beyond connections_max. What makes room is closed or half-open, the least
 *     recently used first, never one that is open, and never all;
 *   - TCP fast open with data in the SYN or before the handshake's end;
 *   - those whose first acknowledgement was lost on its way to here but not on its way to PVM, if
 *     by the next one the peer had acknowledged data. This is not noticed: the offset comes out
 *     wrong by the length of that data. With a comparison that holds PVM's data until SVM has said
 *     the same this cannot happen, as the offset had to be known for that.
 * A peer that acknowledges a number which PVM never sent is believed, as PVM's number cannot
 * be checked here: PVM answers it with an RST and SVM does not, with the same end.
 * TCP-MD5 and TCP-AO (options 19, 29) sign the numbers: such connections survive no takeover
 * unless they are older than the last checkpoint. ICMP errors from SVM quote what it was told, so
 * they differ from PVM's in the quoted ack. Fragments are passed (counted): TCP does not
 * make them.
 *
 * Checksums are updated by what changed (RFC 1624, equation 3). With NEEDS_CSUM the field has the
 * pseudo-header's sum only, which does not cover what is changed, and is left alone.
 */
#include "rewriter.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "bytes.h"
#include "frame.h"
#include "rewriter-conn.h"
#include "rewriter-quote.h"
#include "rewriter-store.h"
#include "rewriter-table.h"

enum {
    VNET_BYTES = 10,
    PROTO_TCP = 6,
    TCP_SEQ_OFF = 4,
    TCP_ACK_OFF = 8,
    TCP_CSUM_OFF = 16,
    TCP_HEADER_BYTES = 20,
    ICMP_CSUM_OFF = 2,
    OPTION_END = 0,
    OPTION_NOP = 1,
    OPTION_SACK = 5,
    OPTION_TS = 8,
    OPTION_TS_BYTES = 10,
};

struct Rewriter {
    RewriterTable *table;
    RewriterStore *store;         /* or NULL */
    const RewriterEntry *learned; /* by the last frame; or NULL */
    bool alone;
    RewriterStats stats;
};

/* Edit: a frame being changed, and what that does to the checksum at @csum_at. */
typedef struct Edit {
    uint8_t *frame;
    size_t start; /* of what the checksum covers: tells odd from even */
    uint32_t sum; /* of ~old and new 16-bit words; small numbers of them, so no overflow */
} Edit;

int
rewriter_new(const RewriterConfig *config, Rewriter **ret_rewriter)
{
    if (!config->connections_max || config->connections_max > REWRITER_CONNECTIONS_LIMIT)
        return -EINVAL;
    Rewriter *r = calloc(1, sizeof(*r));

    if (!r)
        return -ENOMEM;
    int err = rewriter_table_new(config->connections_max, config->hash_key, &r->table);

    if (err < 0) {
        free(r);
        return err;
    }
    r->store = config->store;
    rewriter_table_set_store(r->table, r->store);
    *ret_rewriter = r;
    return 0;
}

void
rewriter_free(Rewriter *r)
{
    if (!r)
        return;
    rewriter_table_free(r->table);
    free(r);
}

static void
refresh_gauges(Rewriter *r)
{
    r->stats.connections = rewriter_table_count(r->table);
    r->stats.connections_open = rewriter_table_count_open(r->table);
    r->stats.evicted = rewriter_table_evicted(r->table);
    if (r->store)
        r->stats.unsaved = rewriter_store_unsaved(r->store);
}

void
rewriter_commit(Rewriter *r)
{
    r->stats.forgotten += rewriter_table_new_generation(r->table);
    r->alone = false;
    refresh_gauges(r);
}

void
rewriter_takeover(Rewriter *r)
{
    r->alone = true;
}

const RewriterStats *
rewriter_stats(const Rewriter *r)
{
    return &r->stats;
}

/* --- changing a frame --- */

/* Adds @delta to the number at @at, and to the sum what that does to it. */
static void
edit_add32(Edit *e, size_t at, uint32_t delta)
{
    uint32_t old = be32_load(e->frame + at);
    uint32_t value = old + delta;
    uint32_t sum = (~old >> 16) + (~old & 0xffff) + (value >> 16) + (value & 0xffff);

    be32_store(e->frame + at, value);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    if ((at - e->start) & 1) /* an option at an odd place: RFC 1071, byte order */
        sum = (sum >> 8) | ((sum & 0xff) << 8);
    e->sum += sum;
}

static void
edit_checksum(const Edit *e, size_t at)
{
    uint32_t sum = (uint16_t)~be16_load(e->frame + at) + e->sum;

    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    be16_store(e->frame + at, (uint16_t)~sum);
}

/* One option of @options, which is advanced. False: no more, or malformed. */
static bool
option_next(View *options, uint8_t *ret_kind, View *ret_body)
{
    uint8_t len;

    do {
        if (!view_get_u8(options, ret_kind) || *ret_kind == OPTION_END)
            return false;
    } while (*ret_kind == OPTION_NOP);
    if (!view_get_u8(options, &len) || len < 2 || len - 2u > options->len)
        return false;
    *ret_body = view_of(options->data, len - 2u);
    return view_skip(options, len - 2u);
}

static View
options_of(const uint8_t *frame, const Frame *f)
{
    return view_of(frame + f->l4_off + TCP_HEADER_BYTES,
                   f->payload_off - f->l4_off - TCP_HEADER_BYTES);
}

static void
edit_sack(Edit *e, View blocks, uint32_t delta)
{
    const uint8_t *edge;

    while (view_take(&blocks, 4, &edge))
        edit_add32(e, (size_t)(edge - e->frame), delta);
}

static void
edit_options(Edit *e, const Frame *f, const RewriterConn *c, bool egress)
{
    View options = options_of(e->frame, f);
    bool ts = c->flags & REWRITER_CONN_TS_OFF;
    View body;
    uint8_t kind;

    while (option_next(&options, &kind, &body)) {
        size_t at = (size_t)(body.data - e->frame);

        if (kind == OPTION_SACK && !egress)
            edit_sack(e, body, 0 - c->seq_off);
        if (kind != OPTION_TS || body.len != OPTION_TS_BYTES - 2 || !ts)
            continue;
        if (egress)
            edit_add32(e, at, c->ts_off);
        else if (be32_load(e->frame + at + 4))
            edit_add32(e, at + 4, 0 - c->ts_off);
    }
}

static void
translate(uint8_t *frame, const Frame *f, const RewriterConn *c, bool egress)
{
    Edit e = {.frame = frame, .start = f->l4_off};

    if (egress)
        edit_add32(&e, f->l4_off + TCP_SEQ_OFF, c->seq_off);
    else
        edit_add32(&e, f->l4_off + TCP_ACK_OFF, 0 - c->seq_off);
    edit_options(&e, f, c, egress);
    if (!f->csum_partial)
        edit_checksum(&e, f->l4_off + TCP_CSUM_OFF);
}

/* --- from frames to steps --- */

/* A tag with VLAN 0 is a priority only: one side of a conversation may have it, the other not. */
static uint64_t
without_priority_tags(uint64_t vlans)
{
    const uint64_t priority = 0x1000; /* as in frame.c */
    uint64_t outer = vlans >> 16, inner = vlans & 0xffff;

    if (inner == priority)
        inner = 0;
    if (outer == priority)
        outer = 0;
    return inner ? (outer << 16) | inner : outer;
}

/* The key of the other direction. */
static FlowKey
key_reversed(const FlowKey *key)
{
    uint64_t ports = key->w[4] >> 32;
    FlowKey reversed = *key;

    if (frame_key_is_ipv6(key)) {
        reversed.w[0] = key->w[2];
        reversed.w[1] = key->w[3];
        reversed.w[2] = key->w[0];
        reversed.w[3] = key->w[1];
    } else {
        reversed.w[0] = (key->w[0] << 32) | (key->w[0] >> 32);
    }
    ports = ((ports & 0xffff) << 16) | (ports >> 16);
    reversed.w[4] = (ports << 32) | (uint32_t)key->w[4];
    return reversed;
}

static RewriterSegment
segment_of(const uint8_t *frame, const Frame *f, bool egress)
{
    RewriterSegment s = {.egress = egress,
                         .tcp_flags = f->tcp_flags,
                         .has_payload = f->payload_len > 0,
                         .seq = f->seq,
                         .ack = f->ack};
    View options = options_of(frame, f);
    View body;
    uint8_t kind;

    while (!s.has_ts && option_next(&options, &kind, &body)) {
        if (kind == OPTION_TS && body.len == OPTION_TS_BYTES - 2)
            s.has_ts = view_get_be32(&body, &s.tsval) && view_get_be32(&body, &s.tsecr);
    }
    return s;
}

static void
untracked(Rewriter *r, uint64_t *counter, int64_t now_ns)
{
    (*counter)++;
    r->stats.untracked_last_ns = now_ns;
}

/* The connection a segment belongs to; NULL: it passes as it is. */
static RewriterEntry *
entry_for(Rewriter *r, const Frame *f, bool egress, int64_t now_ns)
{
    const uint8_t syn_rst = FRAME_TCP_SYN | FRAME_TCP_RST;
    FlowKey key = egress ? f->key : key_reversed(&f->key);

    key.w[5] = without_priority_tags(key.w[5]);
    uint32_t hash = rewriter_table_hash(r->table, &key);
    RewriterEntry *entry = rewriter_table_find(r->table, &key, hash);

    if (entry || r->alone || (f->tcp_flags & syn_rst) != FRAME_TCP_SYN)
        return entry;
    entry = rewriter_table_add(r->table, &key, hash);
    if (!entry)
        untracked(r, &r->stats.untracked_full, now_ns);
    return entry;
}

static void
count(Rewriter *r, unsigned did, bool egress, int64_t now_ns)
{
    r->stats.translated[!egress] += (did & REWRITER_TRANSLATE) != 0;
    r->stats.learned += (did & REWRITER_DID_LEARN) != 0;
    r->stats.early += (did & REWRITER_DID_REMEMBER) != 0;
    if (did & REWRITER_DID_GIVE_UP)
        untracked(r, &r->stats.untracked_ambiguous, now_ns);
}

static void
save(Rewriter *r, const RewriterEntry *entry)
{
    RewriterRecord record = {.key = entry->key};
    bool worth = rewriter_conn_export(&entry->conn, &record.conn);

    rewriter_table_save(r->table, entry, worth ? &record : NULL);
}

/* For the next daemon, if it is another one than before for that. */
static void
save_changed(Rewriter *r, const RewriterEntry *entry, const RewriterConn *before)
{
    if (r->store && !rewriter_conn_exports_same(before, &entry->conn))
        save(r, entry);
}

static void
handle_tcp(Rewriter *r, uint8_t *frame, const Frame *f, bool egress, int64_t now_ns)
{
    RewriterEntry *entry = entry_for(r, f, egress, now_ns);

    r->stats.tcp_frames[!egress]++;
    if (!entry)
        return;
    RewriterSegment segment = segment_of(frame, f, egress);
    const RewriterConn before = entry->conn;
    unsigned did = rewriter_conn_step(&entry->conn, &segment, r->alone);

    count(r, did, egress, now_ns);
    if (did & REWRITER_DID_LEARN)
        r->learned = entry;
    if (did & REWRITER_FORGET) {
        r->learned = NULL;
        rewriter_table_remove(r->table, entry);
    } else {
        save_changed(r, entry, &before);
        if (did & REWRITER_TRANSLATE)
            translate(frame, f, &entry->conn, egress);
        rewriter_table_touch(r->table, entry, rewriter_conn_is_open(&entry->conn));
    }
    refresh_gauges(r);
}

/* An ICMP error about what PVM sent: SVM knows it by another number. */
static void
handle_icmp(Rewriter *r, uint8_t *frame, const Frame *f)
{
    Edit e = {.frame = frame, .start = f->payload_off};
    FlowKey key;
    size_t seq_at;

    if (!rewriter_quote_parse(frame, f, &key, &seq_at))
        return;
    key.w[5] = without_priority_tags(key.w[5]);
    const RewriterEntry *entry =
        rewriter_table_find(r->table, &key, rewriter_table_hash(r->table, &key));

    if (!entry || !rewriter_conn_is_known(&entry->conn))
        return;
    edit_add32(&e, seq_at, 0 - entry->conn.seq_off);
    if (!f->csum_partial)
        edit_checksum(&e, f->payload_off + ICMP_CSUM_OFF);
    r->stats.icmp_translated++;
}

static void
handle(Rewriter *r, uint8_t *frame, size_t len, bool egress, int64_t now_ns)
{
    Frame f;

    r->learned = NULL;
    frame_parse(frame, len, VNET_BYTES, &f);
    if (f.cls == FRAME_TCP)
        handle_tcp(r, frame, &f, egress, now_ns);
    else if (f.cls == FRAME_ICMP && !egress)
        handle_icmp(r, frame, &f);
    else if (f.cls == FRAME_FRAGMENT && f.protocol == PROTO_TCP)
        r->stats.fragments++;
}

void
rewriter_egress(Rewriter *r, uint8_t *frame, size_t len, int64_t now_ns)
{
    handle(r, frame, len, true, now_ns);
}

void
rewriter_ingress(Rewriter *r, uint8_t *frame, size_t len, int64_t now_ns)
{
    handle(r, frame, len, false, now_ns);
}

/* --- from one rewriter to another --- */

bool
rewriter_export(Rewriter *r, uint32_t *cursor, RewriterRecord *ret_record)
{
    const RewriterEntry *entry;

    while ((entry = rewriter_table_next(r->table, cursor)) != NULL) {
        if (!rewriter_conn_export(&entry->conn, &ret_record->conn))
            continue;
        ret_record->key = entry->key;
        return true;
    }
    return false;
}

bool
rewriter_learned(const Rewriter *r, RewriterRecord *ret_record)
{
    if (!r->learned || !rewriter_conn_export(&r->learned->conn, &ret_record->conn))
        return false;
    ret_record->key = r->learned->key;
    return true;
}

int
rewriter_import(Rewriter *r, const RewriterRecord *record)
{
    uint32_t hash = rewriter_table_hash(r->table, &record->key);
    RewriterEntry *entry = rewriter_table_find(r->table, &record->key, hash);

    if (!rewriter_conn_is_exported(&record->conn))
        return -EINVAL;
    r->learned = NULL;
    if (!entry)
        entry = rewriter_table_add(r->table, &record->key, hash);
    if (!entry)
        return -ENOBUFS;
    entry->conn = record->conn;
    save(r, entry);
    rewriter_table_touch(r->table, entry, rewriter_conn_is_open(&entry->conn));
    refresh_gauges(r);
    return 0;
}

bool
rewriter_note_egress(Rewriter *r, const uint8_t *frame, size_t len)
{
    RewriterEntry *entry;
    FlowKey key;
    Frame f;

    frame_parse(frame, len, VNET_BYTES, &f);
    if (f.cls != FRAME_TCP || (f.tcp_flags & (FRAME_TCP_SYN | FRAME_TCP_RST)) != FRAME_TCP_SYN)
        return false;
    key = f.key;
    key.w[5] = without_priority_tags(key.w[5]);
    entry = rewriter_table_find(r->table, &key, rewriter_table_hash(r->table, &key));
    if (entry && f.seq == entry->conn.isn)
        return true;
    if (entry)
        rewriter_table_remove(r->table, entry);
    refresh_gauges(r);
    return false;
}
