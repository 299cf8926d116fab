/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-property.c - seeded random conversations: what must hold for all of them */
/*
 * A case is up to four flows of random content. Each side's frames are cut, reordered, repeated and
 * interleaved on their own; both say the same in the end. What must hold is stated in check_*().
 * COLO_TEST_SEED and COLO_TEST_CASES choose others; a failure names the seed of its case.
 */
#include <glib.h>
#include <string.h>

#include "bytes.h"
#include "check-main.h"
#include "rig.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };
enum { MAX_FLOWS = 4, MAX_STREAM = 3000, MAX_FRAMES = 4000 };
#ifndef DEFAULT_CASES
#define DEFAULT_CASES 12000
#endif
#define PART_NS (1 * MS)

/* Check writes a file record for each ck_assert(); millions of them are for failures only. */
#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg("case with seed %u: %s", current_seed, #condition);                       \
    } while (0)

static uint32_t current_seed;

typedef struct Step {
    Packet packet;
    uint32_t ack;
    int flow;
    uint32_t lo, hi; /* TCP: sequence range */
} Step;

typedef struct World {
    GRand *rand;
    Rig *rig;
    int n_flows;
    Packet conn[MAX_FLOWS];
    bool udp[MAX_FLOWS];
    uint8_t stream[2][MAX_FLOWS][MAX_STREAM];
    uint32_t length[MAX_FLOWS];
    uint32_t isn[MAX_FLOWS], ack0[MAX_FLOWS], ack_end[MAX_FLOWS];
    int n[2];
    /* What the secondary has said so far, and how far it acknowledged. */
    uint8_t said[MAX_FLOWS][MAX_STREAM + 2];
    uint32_t s_ack[MAX_FLOWS];
    uint32_t s_edge[MAX_FLOWS]; /* highest ack + window it has announced */
    bool trace;
    Step steps[2][MAX_FRAMES];        /* not cleared between cases, as all before */
    const Step *sent[MAX_FRAMES + 1]; /* by cookie */
    bool parts;
    uint32_t left[MAX_FRAMES + 1]; /* by cookie: up to where it has left */
} World;

static uint32_t
below(World *w, uint32_t n)
{
    return n ? (uint32_t)g_rand_int_range(w->rand, 0, (gint32)n) : 0;
}

static bool
chance(World *w, uint32_t percent)
{
    return below(w, 100) < percent;
}

static void
add_step(World *w, int side, int flow, Packet p, uint32_t lo, uint32_t hi)
{
    g_assert_cmpint(w->n[side], <, MAX_FRAMES);
    w->steps[side][w->n[side]++] =
        (Step){.packet = p, .ack = p.ack, .flow = flow, .lo = lo, .hi = hi};
}

/* One segment [from, to) of the stream's positions; position 0 is the SYN, length + 1 the FIN. */
static void
add_segment(World *w, int side, int flow, uint32_t from, uint32_t to, uint32_t ack)
{
    Packet p = w->conn[flow];
    uint32_t data_from = MAX(from, 1);
    uint32_t data_to = MIN(to, w->length[flow] + 1);

    p.protocol = 6;
    p.seq = w->isn[flow] + from;
    p.ack = ack;
    p.tcp_flags = ACK;
    p.has_window = true;
    p.window = (uint16_t)below(w, chance(w, 50) ? 65536 : 2000);
    if (from == 0 && to > 0)
        p.tcp_flags |= SYN;
    if (to == w->length[flow] + 2 && to > from)
        p.tcp_flags |= FIN;
    if (data_to > data_from) {
        p.payload = w->stream[side][flow] + data_from - 1;
        p.len = data_to - data_from;
    }
    add_step(w, side, flow, p, from, to);
}

static void
shuffle(World *w, Step *steps, int n, int distance)
{
    for (int i = 0; i + 1 < n; i++) {
        int j = i + (int)below(w, (uint32_t)MIN(distance, n - i));
        Step t = steps[i];

        steps[i] = steps[j];
        steps[j] = t;
    }
}

static void
make_tcp(World *w, int side, int flow)
{
    uint32_t end = w->length[flow] + 2;
    uint32_t max_cut = chance(w, 20) ? 3 : 20 + below(w, 600);
    uint32_t ack = w->ack0[flow];
    int first;

    add_segment(w, side, flow, 0, 1, ack);
    first = w->n[side];
    for (uint32_t at = 1; at < end;) {
        uint32_t cut = at + 1 + below(w, max_cut);
        uint32_t to = MIN(end, cut);
        uint32_t from = chance(w, 20) ? at - below(w, MIN(at, 50)) : at; /* overlap */

        if (chance(w, 30))
            ack += below(w, w->ack_end[flow] - ack + 1);
        add_segment(w, side, flow, MAX(from, 1), to, ack);
        if (chance(w, 10))
            add_segment(w, side, flow, MAX(from, 1), to, ack); /* repeated */
        if (chance(w, 10))
            add_segment(w, side, flow, to, to, ack); /* pure ack */
        at = to;
    }
    if (chance(w, 60))
        shuffle(w, w->steps[side] + first, w->n[side] - first, 1 + (int)below(w, 12));
    add_segment(w, side, flow, end, end, w->ack_end[flow]);
}

static void
make_udp(World *w, int side, int flow)
{
    int first = w->n[side];

    for (uint32_t at = 0; at < w->length[flow]; at += 100) {
        Packet p = w->conn[flow];

        p.protocol = 17;
        p.payload = w->stream[side][flow] + at;
        p.len = MIN(100, w->length[flow] - at);
        add_step(w, side, flow, p, at, at + 100);
    }
    if (chance(w, 60))
        shuffle(w, w->steps[side] + first, w->n[side] - first, 1 + (int)below(w, 30));
}

/* Interleaves the flows of one side, keeping the order within each. */
static void
interleave(World *w, int side, const int *ends)
{
    static Step out[MAX_FRAMES];
    int at[MAX_FLOWS];
    int n = 0;

    for (int f = 0; f < w->n_flows; f++)
        at[f] = f ? ends[f - 1] : 0;
    while (n < w->n[side]) {
        int f = (int)below(w, (uint32_t)w->n_flows);

        while (at[f] == ends[f])
            f = (f + 1) % w->n_flows;
        out[n++] = w->steps[side][at[f]++];
    }
    memcpy(w->steps[side], out, (size_t)n * sizeof(Step));
}

static void
make_world(World *w, uint32_t seed, Rig *rig)
{
    memset(w, 0, offsetof(World, steps));
    w->trace = g_getenv("COLO_TEST_TRACE") != NULL;
    w->rand = g_rand_new_with_seed(seed);
    w->rig = rig;
    w->n_flows = 1 + (int)below(w, MAX_FLOWS);
    for (int f = 0; f < w->n_flows; f++) {
        w->conn[f] = (Packet){.ipv6 = chance(w, 30),
                              .n_vlans = (uint8_t)below(w, 3),
                              .vlans = {1, 2},
                              .dport = (uint16_t)(100 + f)};
        w->udp[f] = chance(w, 25);
        w->length[f] = below(w, chance(w, 5) ? MAX_STREAM : 300);
        w->isn[f] = chance(w, 30) ? 0u - below(w, 2000) : g_rand_int(w->rand);
        w->ack0[f] = chance(w, 30) ? 0u - below(w, 2000) : g_rand_int(w->rand);
        w->ack_end[f] = w->ack0[f] + below(w, 5000);
        for (uint32_t i = 0; i < w->length[f]; i++)
            w->stream[P][f][i] = w->stream[S][f][i] = (uint8_t)below(w, 256);
    }
}

static void
make_frames(World *w)
{
    for (int side = 0; side < 2; side++) {
        int ends[MAX_FLOWS];

        for (int f = 0; f < w->n_flows; f++) {
            if (w->udp[f])
                make_udp(w, side, f);
            else
                make_tcp(w, side, f);
            ends[f] = w->n[side];
        }
        interleave(w, side, ends);
    }
}

/* In parts or at once: each byte of a segment once, in order, none that the secondary has not said,
 * or says otherwise. A FIN counts as one. */
static void
check_part(World *w, const RigRelease *r, const Frame *f, const uint8_t *payload)
{
    const Step *step = w->sent[r->cookie];
    uint32_t at = f->seq - w->isn[step->flow], data = at + ((f->tcp_flags & SYN) != 0);
    uint32_t end = data + f->payload_len + ((f->tcp_flags & FIN) != 0);

    must(at == w->left[r->cookie] && end <= step->hi);
    must(r->why == COMPARE_RELEASED_PART ? at < end && end < step->hi : end == step->hi);
    w->left[r->cookie] = end;
    must(f->payload_len == 0 ||
         !memcmp(payload, w->stream[P][step->flow] + data - 1, f->payload_len));
    if (r->why == COMPARE_RELEASED_COMMITTED)
        return;
    for (; at < end; at++)
        must(w->said[step->flow][at]);
    must(f->payload_len == 0 ||
         !memcmp(payload, w->stream[S][step->flow] + data - 1, f->payload_len));
}

/* No byte leaves before the secondary said it; no ack that the secondary did not give; and no
 * window that it did not announce. */
static void
check_release(World *w, const RigRelease *r)
{
    const Step *step = w->sent[r->cookie];
    gsize len;
    const uint8_t *bytes = g_bytes_get_data(r->bytes, &len);
    Frame f;

    frame_parse(bytes, len, 0, &f);
    if (w->parts && !w->udp[step->flow])
        check_part(w, r, &f, bytes + f.payload_off);
    if (w->udp[step->flow] || r->why == COMPARE_RELEASED_COMMITTED)
        return;
    for (uint32_t i = step->lo; i < step->hi && r->why != COMPARE_RELEASED_PART; i++)
        must(w->said[step->flow][i]); /* it left too early otherwise */
    must((int32_t)(f.ack - w->s_ack[step->flow]) <= 0);
    uint16_t window = be16_load(bytes + f.l4_off + 14);

    must((int32_t)(f.ack + window - w->s_edge[step->flow]) <= 0);
    must(window <= step->packet.window);
    must(packet_tcp_checksum_ok(bytes, len, 0));
}

static void
check_order(World *w)
{
    uint64_t last[MAX_FLOWS] = {0};

    for (guint i = 0; i < w->rig->released->len; i++) {
        const RigRelease *r = &g_array_index(w->rig->released, RigRelease, i);
        int flow = w->sent[r->cookie]->flow;

        must(w->parts ? r->cookie >= last[flow] : r->cookie > last[flow]);
        last[flow] = r->cookie;
    }
}

static void
send_step(World *w, int side, const Step *step)
{
    guint before = w->rig->released->len;

    if (w->trace)
        g_printerr("%c flow %d %s [%u,%u) flags %02x seq %u ack %u\n", side == P ? 'P' : 'S',
                   step->flow, w->udp[step->flow] ? "udp" : "tcp", step->lo, step->hi,
                   step->packet.tcp_flags, step->packet.seq, step->ack);
    if (side == S && !w->udp[step->flow]) {
        memset(w->said[step->flow] + step->lo, 1, step->hi - step->lo);
        if (step->lo == 0 || (int32_t)(step->ack - w->s_ack[step->flow]) > 0)
            w->s_ack[step->flow] = step->ack;
        uint32_t edge = step->ack + step->packet.window;

        if (step->lo == 0 || (int32_t)(edge - w->s_edge[step->flow]) > 0)
            w->s_edge[step->flow] = edge;
    }
    if (side == P) {
        w->sent[w->rig->next_cookie + 1] = step;
        w->left[w->rig->next_cookie + 1] = step->lo;
    }
    rig_send(w->rig, (CompareSide)side, &step->packet);
    must(w->rig->last_result == 0);
    if (w->trace)
        g_printerr("   released %u\n", w->rig->released->len - before);
    for (guint i = before; i < w->rig->released->len; i++)
        check_release(w, &g_array_index(w->rig->released, RigRelease, i));
}

/* Frames are copied, or lent until any moment. Not from w->rand: a seed stays the same case. */
static void
lend_or_settle(World *w)
{
    uint32_t any = current_seed + (uint32_t)w->rig->next_cookie * 7 + w->rig->released->len;

    if (any % 5 == 0)
        w->rig->lending = any % 2;
    if (any % 11 == 0)
        rig_settle(w->rig, (CompareSide)(any / 11 % 2));
}

static void
wait_a_while(World *w)
{
    guint before = w->rig->released->len;

    rig_wait(w->rig, below(w, w->parts ? 2 * PART_NS : 300000));
    for (guint i = before; i < w->rig->released->len; i++)
        check_release(w, &g_array_index(w->rig->released, RigRelease, i));
}

/* Runs both sides, the primary's SYN of each flow before the secondary's data, as in life: nobody
 * sends data before the peer saw the SYN, and it leaves only when both have sent one. */
static void
run_frames(World *w)
{
    int at[2] = {0, 0};
    uint32_t bias = below(w, 101);
    bool syn_seen[MAX_FLOWS] = {false};

    while (at[P] < w->n[P] || at[S] < w->n[S]) {
        int side = at[P] == w->n[P] || (at[S] < w->n[S] && chance(w, bias)) ? S : P;
        const Step *step = &w->steps[side][at[side]];

        if (side == S && !w->udp[step->flow] && step->lo != 0 && !syn_seen[step->flow]) {
            side = P;
            step = &w->steps[P][at[P]];
        }
        at[side]++;
        if (side == P && step->lo == 0)
            syn_seen[step->flow] = true;
        send_step(w, side, step);
        if (chance(w, w->parts ? 30 : 5))
            wait_a_while(w);
        lend_or_settle(w);
    }
}

static Rig *
small_rig(CompareIsn isn, int64_t part_ns)
{
    CompareConfig config;

    compare_config_init(&config);
    config.part_ns = part_ns;
    config.memory_max_bytes = 1024 * 1024;
    config.flows_max = 64;
    config.isn = isn;
    return rig_new("property", &config);
}

static void
case_equal_streams(World *w, uint32_t seed)
{
    static const CompareIsn modes[] = {COMPARE_ISN_REWRITTEN, COMPARE_ISN_LEARN, COMPARE_ISN_EXACT};

    make_world(w, seed, small_rig(modes[seed % 3], 0));
    make_frames(w);
    run_frames(w);
    rig_wait(w->rig, 50 * MS); /* acks that wait for a window the secondary does not open */
    must(rig_n_divergences(w->rig) == 0);
    must(w->rig->released->len == (guint)w->n[P]);
    check_order(w);
    const CompareStats *stats = compare_stats(w->rig->compare);

    must(stats->held_bytes == 0);
    must(stats->held_frames[P] + stats->held_frames[S] == 0);
    must(stats->held_bytes_max <= 1024 * 1024);
}

/* Slow enough for parts; what only waits too long for that is reported as ever. */
static void
case_in_parts(World *w, uint32_t seed)
{
    guint before;

    make_world(w, seed, small_rig(COMPARE_ISN_REWRITTEN, PART_NS));
    w->parts = true;
    for (int f = 0; f < w->n_flows; f++)
        if (w->length[f] > 0 && chance(w, 20))
            w->stream[S][f][below(w, w->length[f])] ^= 1;
    make_frames(w);
    run_frames(w);
    before = w->rig->released->len;
    rig_checkpoint(w->rig);
    for (guint i = before; i < w->rig->released->len; i++)
        check_release(w, &g_array_index(w->rig->released, RigRelease, i));
    check_order(w);
    for (int i = 1; i <= w->n[P]; i++)
        must(w->udp[w->sent[i]->flow] || w->left[i] == w->sent[i]->hi);
    must(compare_stats(w->rig->compare)->held_bytes == 0);
}

static void
case_one_changed_byte(World *w, uint32_t seed)
{
    make_world(w, seed, small_rig(COMPARE_ISN_REWRITTEN, 0));
    int flow = (int)below(w, (uint32_t)w->n_flows);

    w->length[flow] = MAX(w->length[flow], 1);
    uint32_t at = below(w, w->length[flow]);
    w->stream[below(w, 2)][flow][at] ^= (uint8_t)(1 << below(w, 8));
    /* Both sides' frames are made from their own stream. */
    make_frames(w);
    run_frames(w);
    rig_wait(w->rig, 200 * MS);
    must(rig_n_divergences(w->rig) >= 1);
    for (guint i = 0; i < w->rig->released->len; i++) {
        const Step *step = w->sent[g_array_index(w->rig->released, RigRelease, i).cookie];
        uint32_t position = w->udp[flow] ? at : at + 1;

        must(step->flow != flow || position < step->lo || position >= step->hi);
    }
    check_order(w);
    rig_checkpoint(w->rig);
    must(w->rig->released->len == (guint)w->n[P]);
    check_order(w);
}

/* Checkpoints anywhere, time anyhow, secondaries that say nonsense: all leaves once, in order. */
static void
case_anything_with_checkpoints(World *w, uint32_t seed)
{
    int at[2] = {0, 0};

    make_world(w, seed, small_rig(COMPARE_ISN_REWRITTEN, 0));
    make_frames(w);
    while (at[P] < w->n[P] || at[S] < w->n[S]) {
        int side = at[P] == w->n[P] || (at[S] < w->n[S] && chance(w, 50)) ? S : P;
        Step *step = &w->steps[side][at[side]++];

        if (side == P)
            w->sent[w->rig->next_cookie + 1] = step;
        if (side == S && chance(w, 5))
            step->packet.tcp_flags ^= (uint8_t)(1 << below(w, 5));
        if (chance(w, 3))
            w->rig->epoch = compare_epoch(w->rig->compare) + below(w, 2);
        rig_send(w->rig, (CompareSide)side, &step->packet);
        if (chance(w, 5))
            rig_wait(w->rig,
                     chance(w, 50) ? (int64_t)below(w, 1000) * MS : -(int64_t)below(w, 1000) * MS);
        if (chance(w, 3)) {
            w->rig->epoch = compare_epoch(w->rig->compare);
            rig_checkpoint(w->rig);
        }
        lend_or_settle(w);
    }
    w->rig->epoch = compare_epoch(w->rig->compare);
    rig_checkpoint(w->rig);
    rig_checkpoint(w->rig); /* frames of a future epoch may have been held by the first */
    must(w->rig->released->len == (guint)w->n[P]);
    must(compare_stats(w->rig->compare)->held_bytes == 0);
}

static void
run_cases(void (*one_case)(World *w, uint32_t seed), uint32_t n)
{
    const char *seed_text = g_getenv("COLO_TEST_SEED");
    const char *cases_text = g_getenv("COLO_TEST_CASES");
    uint32_t seed = seed_text ? (uint32_t)g_ascii_strtoull(seed_text, NULL, 10) : 1;
    static World w;

    if (cases_text)
        n = (uint32_t)g_ascii_strtoull(cases_text, NULL, 10);
    for (uint32_t i = 0; i < n; i++) {
        current_seed = seed + i;
        one_case(&w, seed + i);
        g_rand_free(w.rand);
        rig_free(w.rig);
    }
}

START_TEST(property_equal_streams_never_diverge_and_all_leaves)
{
    run_cases(case_equal_streams, DEFAULT_CASES);
}
END_TEST

START_TEST(property_one_changed_byte_is_found)
{
    run_cases(case_one_changed_byte, DEFAULT_CASES / 2);
}
END_TEST

START_TEST(property_checkpoints_and_time_anywhere)
{
    run_cases(case_anything_with_checkpoints, DEFAULT_CASES / 2);
}
END_TEST

START_TEST(property_parts_are_what_was_said_once_and_in_order)
{
    run_cases(case_in_parts, DEFAULT_CASES / 4);
}
END_TEST

CHECK_MAIN("compare-property", property_equal_streams_never_diverge_and_all_leaves,
           property_one_changed_byte_is_found, property_checkpoints_and_time_anywhere,
           property_parts_are_what_was_said_once_and_in_order)
