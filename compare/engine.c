/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* engine.c - the comparison engine: frames in, divergences, epochs, bounds */
/*
 * Theory of operation
 *
 * Goal: no frame of the primary leaves unless the secondary has said the same or a committed
 * checkpoint covers it; every frame of the primary leaves in the end, in arrival order within its
 * flow; and what a match costs does not depend on how much is held.
 *
 * A submitted frame is parsed and described by a Held on the stack that borrows the caller's bytes.
 * The rules of its class (tcp.c, dgram.c) put it on the lists of its flow and match. If that
 * released or used it up, nothing was copied; otherwise engine_store() copies it to slab memory,
 * and the copy takes its place on all lists (held.c). So of a pair one frame is copied and compared
 * once.
 *
 * Time is the caller's; going backwards counts as standing still. What waits too long: timeout.c.
 *
 * Epochs. Frames of the current epoch are compared. Older ones are covered by a checkpoint that is
 * committed: the primary's leave at once, the secondary's are forgotten. Newer ones wait aside
 * until their commit. compare_commit() releases the list of held frames from its front; the state
 * of flows is brought up to date when they are next used (flow_sync()), so a commit costs what is
 * held, not what is known. At a commit the secondary becomes the primary of that moment: its
 * highest ack *is* the primary's, even if its own was higher before.
 *
 * Bounds. Memory and flows are bounded. A frame for which there is no room is refused, a
 * divergence with the bound as its rule asks for a checkpoint, and the caller offers it again.
 *
 * Invariants: a Held on any list is either stored or the one being processed; lists of the
 * secondary hold no frame of the primary and the other way round (but the backlog); a flow that
 * diverged is not compared before the next commit; callbacks never see an engine in mid-change of
 * the list that causes them.
 */
#include "engine.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "window.h"

enum {
    BATCH = 32,           /* frames whose flows are fetched ahead */
    WINDOW_WAIT_PART = 4, /* of the timeout */
    INDEX_BYTES_PER_BUCKET = 1024,
    INDEX_MIN_BUCKETS = 1024,
};

/* --- construction --- */

static uint32_t
round_up_pow2(uint32_t n)
{
    uint32_t p = 16;

    while (p < n)
        p *= 2;
    return p;
}

static int
allocate(Compare *e)
{
    uint32_t buckets = (uint32_t)(e->config.memory_max_bytes / INDEX_BYTES_PER_BUCKET);
    int r = slab_new(e->config.memory_max_bytes, &e->slab);

    if (r < 0)
        return r;
    r = flow_table_new(e->config.flows_max, &e->hash_key, &e->flows);
    if (r < 0)
        return r;
    buckets = round_up_pow2(buckets < INDEX_MIN_BUCKETS ? INDEX_MIN_BUCKETS : buckets);
    e->index = calloc(buckets, sizeof(*e->index));
    e->index_mask = buckets - 1;
    e->scratch = malloc(FRAME_MAX_BYTES);
    return e->index && e->scratch ? 0 : -ENOMEM;
}

int
compare_new(const CompareConfig *config, const CompareOps *ops, void *opaque, Compare **ret_compare)
{
    static_assert(sizeof(Held) + FRAME_MAX_BYTES <= SLAB_MAX_OBJECT_BYTES, "any frame can be held");

    if (config->timeout_ns < COMPARE_TIMEOUT_MS_MIN * NS_PER_MS ||
        config->timeout_ns > COMPARE_TIMEOUT_MS_MAX * NS_PER_MS || config->part_ns < 0 ||
        config->flows_max < 1 || config->flows_max > UINT32_C(1) << 26 ||
        config->memory_max_bytes > SIZE_MAX / 8)
        return -EINVAL;

    Compare *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->config = *config;
    e->config.flows_max = round_up_pow2(config->flows_max);
    e->ops = *ops;
    e->opaque = opaque;
    e->window_wait_ns = config->timeout_ns / WINDOW_WAIT_PART;
    e->hash_key = (HashKey){{config->hash_key[0], config->hash_key[1]}};

    int r = allocate(e);
    if (r < 0) {
        compare_free(e);
        return r;
    }
    *ret_compare = e;
    return 0;
}

void
compare_free(Compare *e)
{
    if (!e)
        return;
    slab_free_all(e->slab);
    flow_table_free(e->flows);
    free(e->index);
    free(e->scratch);
    free(e);
}

/* --- time --- */

void
engine_advance(Compare *e, int64_t now_ns)
{
    if (now_ns > e->now_ns)
        e->now_ns = now_ns; /* starts at 0, so that differences cannot overflow */
    if (e->now_ns < e->next_second_ns)
        return;
    e->now_s = (uint32_t)(e->now_ns / NS_PER_S);
    e->next_second_ns = e->now_ns < INT64_MAX - NS_PER_S ? e->now_ns + NS_PER_S : INT64_MAX;
}

/* --- divergence --- */

static uint8_t
copy_bytes(uint8_t to[static 16], const Held *h, uint32_t pos)
{
    uint32_t n = h->payload_len - pos < 16 ? h->payload_len - pos : 16;

    if (h->flags & HELD_DIGEST)
        return 0; /* nobody here knows them */
    memcpy(to, held_payload(h) + pos, n);
    return (uint8_t)n;
}

static int64_t
waited(const Compare *e, const Held *h)
{
    return h ? e->now_ns - h->arrival_ns : 0;
}

void
engine_report(Compare *e, const FlowKey *key, CompareRule rule, DiffSpot spot, const Held *p,
              const Held *s)
{
    CompareDivergence d = {
        .rule = rule, .time_ns = e->now_ns, .epoch = e->epoch, .flow = key, .offset = spot.offset};

    d.waited_ns = waited(e, p) > waited(e, s) ? waited(e, p) : waited(e, s);
    if (p) {
        const Held *shown = p->parts.head ? p->parts.head : p;

        d.primary_frame = shown->frame;
        d.primary_len = shown->frame_len;
        d.primary_vnet_hdr_len = shown->vnet_hdr_len;
        if (spot.p_pos <= p->payload_len)
            d.n_primary_bytes = copy_bytes(d.primary_bytes, p, spot.p_pos);
    }
    if (s) {
        const Held *shown = s->parts.head ? s->parts.head : s;

        d.secondary_frame = shown->frame;
        d.secondary_len = shown->frame_len;
        d.secondary_vnet_hdr_len = shown->vnet_hdr_len;
        if (spot.s_pos <= s->payload_len)
            d.n_secondary_bytes = copy_bytes(d.secondary_bytes, s, spot.s_pos);
    }
    e->stats.divergences[rule]++;
    e->ops.divergence(e->opaque, &d);
}

void
engine_diverge(Compare *e, Flow *f, CompareRule rule, DiffSpot spot, const Held *p, const Held *s)
{
    if (f->flags & FLOW_DIVERGED)
        return;
    f->flags |= FLOW_DIVERGED;
    engine_report(e, &f->key, rule, spot, p, s);
}

int
engine_out_of_memory(Compare *e)
{
    if (!e->memory_reported) {
        e->memory_reported = true;
        engine_report(e, NULL, COMPARE_RULE_MEMORY, (DiffSpot){0}, NULL, NULL);
    }
    return -ENOBUFS;
}

static void
forget_list(Compare *e, HeldList *list, HeldLinkKind kind, uint16_t flag)
{
    Held *following;

    for (Held *h = list->head; h; h = following) {
        following = h->link[kind].next;
        if (h->side == COMPARE_PRIMARY)
            continue;
        held_list_remove(list, h, kind);
        h->flags &= (uint16_t)~flag;
        engine_forget(e, h);
    }
}

void
engine_forget_secondary(Compare *e, Flow *f)
{
    HeldList rst = {.head = f->s_rst};

    forget_list(e, &f->s_chain, LINK_CHAIN, HELD_IN_CHAIN);
    forget_list(e, &rst, LINK_CHAIN, HELD_IN_RST);
    forget_list(e, &f->backlog, LINK_FIFO, HELD_IN_BACKLOG);
    f->s_rst = NULL;
}

/* --- taking in --- */

/* The secondary now is the primary of the last commit. But where offsets are learned nobody loads
 * anything: both sides are recordings, and the secondary's goes on in its own numbers. */
static void
flow_sync(const Compare *e, Flow *f)
{
    if (f->epoch == (uint32_t)e->epoch)
        return;
    f->epoch = (uint32_t)e->epoch;
    f->flags &= (uint16_t) ~(FLOW_DIVERGED | FLOW_HAS_S_SYN | FLOW_HAS_S_ACK);
    window_note_commit(f);
    if (f->flags & FLOW_HAS_P_SYN)
        f->flags |= FLOW_HAS_S_SYN;
    if (f->flags & FLOW_HAS_P_ACK)
        f->flags |= FLOW_HAS_S_ACK;
    f->s_isn = f->p_isn;
    f->s_ack = f->p_ack;
    f->s_delta = 0;
}

static Flow *
flow_get(Compare *e, const FlowKey *key, uint32_t hash)
{
    Flow *f = flow_table_find(e->flows, key, hash);

    if (!f) {
        f = flow_table_add(e->flows, key, hash, e->now_s);
        if (!f)
            return NULL;
        f->epoch = (uint32_t)e->epoch;
        e->stats.flows_created++;
    }
    flow_sync(e, f);
    f->last_seen_s = e->now_s;
    return f;
}

static bool
has_policy(FrameClass cls)
{
    return cls >= FRAME_IP_OTHER;
}

void
engine_describe(Compare *e, Held *h, const Frame *frame)
{
    h->payload_off = frame->payload_off;
    h->payload_len = frame->payload_len;
    h->l4_off = frame->l4_off;
    h->frag_off_bytes = frame->frag_off_bytes;
    h->frag_more = frame->frag_more;
    h->tcp_flags = frame->tcp_flags;
    h->seq = frame->seq;
    h->ack = frame->ack;
    h->end = frame->seq + frame->payload_len + ((frame->tcp_flags & FRAME_TCP_SYN) != 0) +
             ((frame->tcp_flags & FRAME_TCP_FIN) != 0);
    if (frame->csum_partial)
        h->flags |= HELD_CSUM_PARTIAL;
    if (frame->cls == FRAME_TCP && h->seq == h->end &&
        (frame->tcp_flags & (FRAME_TCP_ACK | FRAME_TCP_RST)) == FRAME_TCP_ACK &&
        e->config.window_gating)
        h->flags |= HELD_PURE_ACK;
    if (!has_policy(frame->cls) || e->config.policy[frame->cls] == COMPARE_POLICY_FULL)
        h->flags |= HELD_WHOLE;
}

static int
route_hashed(Compare *e, Held *h, const Frame *frame, uint32_t hash)
{
    Flow *f = flow_get(e, &frame->key, hash);

    if (!f) {
        if (!e->flows_reported) {
            e->flows_reported = true;
            engine_report(e, NULL, COMPARE_RULE_FLOWS, (DiffSpot){0}, NULL, NULL);
        }
        return -ENOBUFS;
    }
    h->flow = f;
    if (frame->cls == FRAME_TCP)
        tcp_process(e, f, h);
    else
        dgram_process(e, f, h);
    if (f->flags & FLOW_DIVERGED)
        engine_forget_secondary(e, f);
    return 0;
}

int
engine_route(Compare *e, Held *h, const Frame *frame)
{
    return route_hashed(e, h, frame, flow_key_hash(e->flows, &frame->key));
}

/* Of an epoch that is committed already. */
static void
take_stale(Compare *e, Held *h, const Frame *frame)
{
    e->stats.stale[h->side]++;
    if (h->side == COMPARE_SECONDARY) {
        engine_forget(e, h);
        return;
    }
    Flow *f = NULL;

    if (frame->cls == FRAME_TCP)
        f = flow_table_find(e->flows, &frame->key, flow_key_hash(e->flows, &frame->key));
    if (f) {
        flow_sync(e, f);
        tcp_note_stale(f, h);
    }
    engine_release(e, h, COMPARE_RELEASED_COMMITTED);
    if (f)
        tcp_window_moved(e, f);
}

static bool
policy_passes(const Compare *e, FrameClass cls)
{
    return has_policy(cls) && e->config.policy[cls] == COMPARE_POLICY_PASS;
}

/* Takes a frame of the current epoch. @h is on the stack, or stored and on the list of held ones.
 */
static int
take_current(Compare *e, Held *h, const Frame *frame, uint32_t hash)
{
    if (policy_passes(e, frame->cls)) {
        if (h->side == COMPARE_PRIMARY)
            engine_release(e, h, COMPARE_RELEASED_PASSED);
        else
            engine_forget(e, h);
        return 0;
    }
    if (frame->cls == FRAME_FRAGMENT)
        return fragment_process(e, h, frame);
    return route_hashed(e, h, frame, hash);
}

static void
count_taken(Compare *e, const CompareFrame *in, CompareSide side, FrameClass cls)
{
    uint64_t used = slab_used_bytes(e->slab);

    e->stats.frames[side]++;
    e->stats.bytes[side] += in->len;
    e->stats.classes[side][cls]++;
    if (used > e->stats.held_bytes_max)
        e->stats.held_bytes_max = used;
}

static int
submit_parsed(Compare *e, CompareSide side, const CompareFrame *in, const Frame *frame,
              uint32_t hash)
{
    static const uint8_t nothing[1] = {0}; /* a frame of no bytes may come as NULL */
    Held h;
    int r = 0;

    /* Not all of it: links are written when it is put on a list, and clearing 200 bytes is
     * a tenth of the cost of a frame. */
    h.flow = NULL;
    h.frag_set = NULL;
    h.parts = (HeldList){0};
    h.frame = in->len ? in->bytes : nothing;
    h.frame_len = in->len;
    h.arrival_ns = e->now_ns;
    h.cookie = in->cookie;
    h.epoch = in->epoch;
    h.flags = 0;
    h.lent = e->lending && in->len;
    h.vnet_hdr_len = in->vnet_hdr_len;
    h.side = (uint8_t)side;
    engine_describe(e, &h, frame);

    if (in->digest_unit) {
        e->stats.digests++;
        if (!digest_describe(e, &h, frame, in))
            return 0;
    }
    if (in->epoch == e->epoch && e->overflow) {
        r = -ENOBUFS; /* reported; it must not overtake those that had no room */
    } else if (in->epoch == e->epoch) {
        r = take_current(e, &h, frame, hash);
        if (!r && !(h.flags & HELD_DONE) && !engine_store(e, &h)) {
            engine_unlink(&h);
            r = engine_out_of_memory(e);
        }
    } else if (in->epoch < e->epoch) {
        take_stale(e, &h, frame);
    } else {
        r = engine_store_future(e, &h);
    }
    if (r < 0)
        e->stats.refused++;
    else
        count_taken(e, in, side, frame->cls);
    return r;
}

int
compare_submit(Compare *e, CompareSide side, const CompareFrame *in, int64_t now_ns)
{
    Frame frame;

    if (in->len > FRAME_MAX_BYTES)
        return -EMSGSIZE;
    engine_advance(e, now_ns);
    frame_parse(in->bytes, in->len, in->vnet_hdr_len, &frame);
    return submit_parsed(e, side, in, &frame, flow_key_hash(e->flows, &frame.key));
}

static size_t
submit_some(Compare *e, CompareSide side, const CompareFrame *in, size_t n, int *ret_error)
{
    Frame frames[BATCH];
    uint32_t hashes[BATCH];
    size_t n_valid = 0;

    while (n_valid < n && in[n_valid].len <= FRAME_MAX_BYTES) {
        size_t i = n_valid++;

        frame_parse(in[i].bytes, in[i].len, in[i].vnet_hdr_len, &frames[i]);
        if (i > 0 && flow_key_equal(&frames[i].key, &frames[i - 1].key))
            hashes[i] = hashes[i - 1]; /* bulk transfers come in runs */
        else
            hashes[i] = flow_key_hash(e->flows, &frames[i].key);
        flow_table_prefetch_slot(e->flows, hashes[i]);
    }
    for (size_t i = 0; i < n_valid; i++)
        flow_table_prefetch_flow(e->flows, hashes[i]);
    for (size_t i = 0; i < n_valid; i++) {
        int r = submit_parsed(e, side, &in[i], &frames[i], hashes[i]);

        if (r < 0) {
            *ret_error = r;
            return i;
        }
    }
    if (n_valid < n)
        *ret_error = -EMSGSIZE;
    return n_valid;
}

size_t
compare_submit_batch(Compare *e, CompareSide side, const CompareFrame *frames, size_t n,
                     int64_t now_ns, int *ret_error)
{
    size_t done = 0;

    engine_advance(e, now_ns);
    while (done < n) {
        size_t some = n - done < BATCH ? n - done : BATCH;
        size_t taken = submit_some(e, side, frames + done, some, ret_error);

        done += taken;
        if (taken < some)
            break;
    }
    return done;
}

size_t
compare_lend_batch(Compare *e, CompareSide side, const CompareFrame *frames, size_t n,
                   int64_t now_ns, int *ret_error)
{
    e->lending = true;
    size_t done = compare_submit_batch(e, side, frames, n, now_ns, ret_error);

    e->lending = false;
    return done;
}

/* --- checkpoints --- */

static void
flow_clear(Flow *f)
{
    f->fifo = f->p_chain = f->s_chain = f->backlog = (HeldList){0};
    f->s_rst = NULL;
    f->flags &= (uint16_t) ~(FLOW_BACKLOG_P | FLOW_BACKLOG_S | FLOW_EARLY_S);
}

/* Releases the primary's held frames in arrival order, forgets the secondary's. */
static void
release_all(Compare *e)
{
    Held *h;

    fragment_forget_all(e);
    while ((h = e->age.head)) {
        if (h->flow)
            flow_clear(h->flow);
        if (h->side == COMPARE_SECONDARY) {
            engine_forget(e, h);
            continue;
        }
        if (h->flow && frame_key_class(&h->flow->key) == FRAME_TCP)
            tcp_note_committed(h->flow, h);
        engine_release(e, h, COMPARE_RELEASED_COMMITTED);
    }
}

static void
take_again(Compare *e, Held *h)
{
    Frame frame;

    if (h->epoch > e->epoch || (h->epoch == e->epoch && e->overflow)) {
        held_list_append(&e->future, h, LINK_AGE);
        return;
    }
    frame_parse(h->frame, h->frame_len, h->vnet_hdr_len, &frame);
    h->arrival_ns = e->now_ns; /* the list of held frames is in order of arrival */
    engine_age(e, h);
    if (h->epoch < e->epoch) {
        take_stale(e, h, &frame);
    } else if (take_current(e, h, &frame, flow_key_hash(e->flows, &frame.key)) < 0) {
        /* A bound was met and reported. It is covered by the checkpoint that follows, and so is
         * all that comes after it. */
        e->overflow = true;
        engine_unage(e, h);
        held_list_append(&e->future, h, LINK_AGE);
    }
}

int
compare_begin_checkpoint(Compare *e, uint64_t epoch)
{
    if (epoch <= e->epoch)
        return -EINVAL;
    e->checkpointing = true;
    return 0;
}

int
compare_commit(Compare *e, uint64_t epoch, int64_t now_ns)
{
    HeldList list = e->future;
    Held *following;

    if (epoch <= e->epoch)
        return -EINVAL;
    engine_advance(e, now_ns);
    release_all(e);
    e->epoch = epoch;
    e->checkpointing = e->memory_reported = e->flows_reported = e->overflow = false;
    e->stats.checkpoints++;
    e->future = (HeldList){0};
    for (Held *h = list.head; h; h = following) {
        following = h->link[LINK_AGE].next;
        take_again(e, h);
    }
    return 0;
}

void
compare_flush(Compare *e, int64_t now_ns)
{
    HeldList list = e->future;
    Held *following;

    engine_advance(e, now_ns);
    release_all(e);
    e->future = (HeldList){0};
    for (Held *h = list.head; h; h = following) {
        following = h->link[LINK_AGE].next;
        engine_age(e, h);
        if (h->side == COMPARE_PRIMARY)
            engine_release(e, h, COMPARE_RELEASED_COMMITTED);
        else
            engine_forget(e, h);
    }
    e->checkpointing = e->memory_reported = e->flows_reported = e->overflow = false;
}

uint64_t
compare_epoch(const Compare *e)
{
    return e->epoch;
}

const CompareStats *
compare_stats(const Compare *e)
{
    CompareStats *stats = &((Compare *)e)->stats;

    stats->flows = flow_table_count(e->flows);
    stats->flows_expired = flow_table_expired(e->flows);
    stats->flows_evicted = flow_table_evicted(e->flows);
    stats->held_bytes = slab_used_bytes(e->slab);
    return stats;
}
