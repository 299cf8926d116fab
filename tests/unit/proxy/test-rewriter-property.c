/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter-property.c - seeded random connections through a simulated pair: what must hold */
/*
 * A case is one to three 4-tuples on each of which connections are opened one after the other, by
 * the peer, the guest, or both at once, closed or reset in any order, over a network that
 * loses, repeats and reorders. Everything that reaches the primary's proxy goes to PVM and, through
 * the rewriter, to SVM, each with delays and losses of its own. Both guests run the same
 * application on MiniTcp with other initial numbers and clocks. Checkpoints come at random, and
 * in half of the cases a takeover.
 *
 *   gated      PVM's frames are held by the comparison engine until SVM, translated, has said as
 *              much; a divergence (200 ms without that, say) is a checkpoint. Nothing may ever be
 * translated wrongly, and every connection ends as its applications want it, through the takeover
 * too. not gated  PVM's frames leave at once, so SVM may be late for anything. A wrong offset is
 *              possible where the peer acknowledges data of PVM before SVM is through with the
 *              handshake, if the first acknowledgement got lost on the way to SVM, or was
 *              under way when SVM, right after a checkpoint, repeated its SYN-ACK. Counted: rare.
 *
 * COLO_TEST_SEED and COLO_TEST_CASES choose others; a failure names the seed of its case.
 */
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "compare.h"
#include "mini-tcp.h"
#include "rewriter.h"
#include "seq.h"

#ifndef DEFAULT_CASES
#define DEFAULT_CASES 1500
#endif

enum {
    MAX_CONNS = 3,
    MAX_INCS = 4,
    MAX_FLYING = 4096,
    MAX_COOKIES = 8192,
    COMPARE_TIMEOUT_MS = 200,
    CASE_MAX_MS = 60000,
    /* How far a translated TSval may be from PVM's clock: lag, and repetitions of a SYN. */
    TS_TOLERANCE_MS = 1500,
};

enum { PVM, SVM, PEER, N_ENDS };
enum { PASSIVE, ACTIVE, SIMULTANEOUS, N_KINDS };

/* Where a frame goes next; the rings keep their order. */
enum { TO_PEER, TO_PROXY, TO_PVM_RING, TO_SVM_RING };

#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg("case with seed %u at %d ms: %s", current_seed, (int)current_ms,          \
                         #condition);                                                              \
    } while (0)

static uint32_t current_seed;
static int64_t current_ms;

typedef struct World World;

typedef struct Wire {
    Segment s;
    uint8_t payload[MINI_MSS];
    int conn;
    uint32_t inc;
    int where;
    int64_t at_ms;
} Wire;

typedef struct Conn {
    World *world;
    int index;
    uint32_t inc;
    int kind;
    MiniApp app[2]; /* guests', peer's */
    MiniTcp end[N_ENDS];
    int64_t open_at[N_ENDS]; /* 0: not to */
    int64_t lonely_since;    /* SVM goes on though the others are through */
    uint32_t refused_ack;    /* what SVM has reset last while it waited for a SYN-ACK */
    bool refused;
    bool tainted; /* not gated: the offset is wrong until the next checkpoint */
} Conn;

struct World {
    GRand *rand;
    Rewriter *rewriter;
    Compare *compare; /* gated only */
    uint64_t epoch, n_cookies;
    bool diverged;
    Conn conns[MAX_CONNS];
    int n_conns;
    bool gated, alone, ring_losses, ipv6;
    int lag_ms, loss_percent;
    int64_t now_ms, takeover_at, ring_at[2];
    Wire flying[MAX_FLYING];
    int n_flying;
    struct {
        int conn;
        uint32_t inc;
    } cookies[MAX_COOKIES]; /* of the primary's frames */
};

typedef struct Totals {
    unsigned incs, wrong, translated, checkpoints, takeovers, early, learned, through_takeover;
} Totals;
static Totals totals;

typedef struct End {
    Conn *conn;
    int side;
} End;

static int
below(World *w, int n)
{
    return n > 0 ? g_rand_int_range(w->rand, 0, n) : 0;
}

static bool
chance(World *w, int percent)
{
    return below(w, 100) < percent;
}

/* --- frames on their way --- */

static void
fly(World *w, const Wire *wire, int where, int64_t at_ms)
{
    g_assert_cmpint(w->n_flying, <, MAX_FLYING);
    w->flying[w->n_flying] = *wire;
    w->flying[w->n_flying].where = where;
    w->flying[w->n_flying].at_ms = at_ms;
    w->n_flying++;
}

static void
over_network(World *w, const Wire *wire, int where)
{
    if (chance(w, w->loss_percent))
        return;
    do
        fly(w, wire, where, w->now_ms + 1 + below(w, 10));
    while (chance(w, w->loss_percent / 2));
}

static void
into_ring(World *w, const Wire *wire, int side)
{
    if (w->ring_losses && below(w, 200) == 0)
        return;
    int64_t at = w->now_ms + below(w, side == SVM ? w->lag_ms : 5);

    w->ring_at[side] = MAX(w->ring_at[side], at);
    fly(w, wire, side == SVM ? TO_SVM_RING : TO_PVM_RING, w->ring_at[side]);
}

static size_t
build(const World *w, const Wire *wire, uint8_t *frame)
{
    Segment s = wire->s;

    s.style = (SegmentStyle){.ipv6 = w->ipv6, .n_nops = 2};
    s.payload = wire->payload;
    s.peer_port = (uint16_t)(4000 + wire->conn);
    return segment_build(&s, frame);
}

static Segment
read_back(const Wire *wire, const uint8_t *frame, size_t len)
{
    Segment s = wire->s;

    s.style.n_nops = 2;
    must(segment_checksum_ok(frame, len));
    segment_read(frame, len, &s);
    return s;
}

static Segment
through_rewriter(World *w, const Wire *wire)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    size_t len = build(w, wire, frame);

    if (wire->s.egress)
        rewriter_egress(w->rewriter, frame, len, w->now_ms * 1000000);
    else
        rewriter_ingress(w->rewriter, frame, len, w->now_ms * 1000000);
    return read_back(wire, frame, len);
}

/* --- what must hold --- */

static void
must_be_right(Conn *c, bool right)
{
    if (right)
        return;
    must(!c->world->gated);
    if (!c->tainted)
        totals.wrong++;
    c->tainted = true;
}

/* In the numbers that the peer knows, what SVM says is at the place where SVM has it. */
static void
check_egress(Conn *c, const Segment *before, const Segment *after)
{
    const MiniTcp *svm = &c->end[SVM], *peer = &c->end[PEER], *pvm = &c->end[PVM];
    bool answer_to_nothing = (before->flags & RST) && !svm->aborted;

    must(after->ack == before->ack && after->flags == before->flags);
    must(!after->has_ts || after->tsecr == before->tsecr);
    if (!peer->has_irs || peer->inc != svm->inc || answer_to_nothing || c->tainted)
        return;
    bool right = after->seq - peer->irs == before->seq - svm->isn;

    if (before->flags & SYN) {
        must_be_right(c, right || after->seq == before->seq);
        return;
    }
    must_be_right(c, right);
    if (peer->irs != pvm->isn || pvm->inc != svm->inc || !before->has_ts || c->tainted)
        return;
    int32_t off = (int32_t)(after->tsval - (uint32_t)c->world->now_ms - pvm->ts_off);

    must(ABS(off) <= TS_TOLERANCE_MS);
}

/* What the peer acknowledges is what SVM takes for it. */
static void
check_ingress(Conn *c, const Segment *before, const Segment *after, uint32_t inc)
{
    const MiniTcp *svm = &c->end[SVM], *peer = &c->end[PEER];
    bool waits_for_syn_ack =
        svm->state == MINI_SYN_SENT &&
        (!(before->flags & SYN) || (c->refused && c->refused_ack == before->ack));

    must(after->seq == before->seq && after->tsval == before->tsval);
    if (svm->inc != inc || svm->state == MINI_CLOSED || peer->inc != inc || !peer->has_irs ||
        !(before->flags & ACK) || (before->flags & RST) || waits_for_syn_ack || c->tainted)
        return;
    must_be_right(c, after->ack - svm->isn == before->ack - peer->irs);
    for (int i = 0; i < 2 * before->n_sacks; i++)
        must_be_right(c, after->sacks[i] - svm->isn == before->sacks[i] - peer->irs);
    if (before->has_ts && before->tsecr && !c->tainted) {
        uint32_t svm_clock = (uint32_t)c->world->now_ms + svm->ts_off;

        must(seq_leq(after->tsecr, svm_clock));
        must(svm_clock - after->tsecr < 10000);
    }
    totals.translated++;
}

/* The peer has got all, said all, and was not reset by anybody but the application. */
static void
check_end(const Conn *c)
{
    const MiniTcp *peer = &c->end[PEER];

    if (c->app[0].abort_at || c->app[1].abort_at)
        return;
    must(peer->state == MINI_DONE && !peer->reset);
    must(peer->una == c->app[1].total + 2);
    must(peer->rcv == c->app[0].total + 2);
}

/* --- the pair --- */

/* The engine says that a frame of PVM's may leave, perhaps with a lowered ack. */
static void
on_release(void *opaque, const CompareRelease *release)
{
    World *w = opaque;
    Wire wire = {.conn = w->cookies[release->cookie % MAX_COOKIES].conn,
                 .inc = w->cookies[release->cookie % MAX_COOKIES].inc,
                 .s = {.egress = true}};
    Frame f;

    frame_parse(release->bytes, release->len, release->vnet_hdr_len, &f);
    wire.s.len = f.payload_len;
    memcpy(wire.payload, release->bytes + f.payload_off, f.payload_len);
    /* Timestamps come first in the options, and are in all but RSTs; then SACK blocks. */
    size_t options = f.payload_off - f.l4_off - 20;

    wire.s.has_ts = options >= 12;
    wire.s.n_sacks = options > 12;
    wire.s = read_back(&wire, release->bytes, release->len);
    over_network(w, &wire, TO_PEER);
}

static void
on_divergence(void *opaque, const CompareDivergence *divergence)
{
    World *w = opaque;

    if (g_getenv("COLO_TEST_TRACE"))
        g_printerr("%6d divergence: %s\n", (int)w->now_ms, compare_rule_name(divergence->rule));
    w->diverged = true;
}

static void
to_compare(World *w, const Wire *wire, CompareSide side)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    CompareFrame f = {.bytes = frame,
                      .len = (uint32_t)build(w, wire, frame),
                      .vnet_hdr_len = SEGMENT_VNET_BYTES,
                      .epoch = w->epoch};

    if (side == COMPARE_PRIMARY) {
        f.cookie = w->n_cookies++;
        w->cookies[f.cookie % MAX_COOKIES].conn = wire->conn;
        w->cookies[f.cookie % MAX_COOKIES].inc = wire->inc;
    }
    must(compare_submit(w->compare, side, &f, w->now_ms * 1000000) == 0);
}

static void
from_pvm(World *w, const Wire *wire)
{
    if (w->gated)
        to_compare(w, wire, COMPARE_PRIMARY);
    else
        over_network(w, wire, TO_PEER);
}

static void
from_svm(World *w, Conn *c, Wire *wire)
{
    Segment s = through_rewriter(w, wire);

    check_egress(c, &wire->s, &s);
    if ((wire->s.flags & (RST | ACK)) == RST && c->end[SVM].state == MINI_SYN_SENT) {
        c->refused = true;
        c->refused_ack = wire->s.seq;
    }
    wire->s = s;
    if (w->alone)
        over_network(w, wire, TO_PEER);
    else if (w->gated)
        to_compare(w, wire, COMPARE_SECONDARY);
}

static void
trace(const Conn *c, const char *who, const Segment *s, uint32_t inc)
{
    if (g_getenv("COLO_TEST_TRACE"))
        g_printerr("%6d c%d.%u %-12s %s%s%s%s seq %08x ack %08x len %zu ts %x %x\n",
                   (int)current_ms, c->index, inc, who, s->flags & SYN ? "S" : "",
                   s->flags & FIN ? "F" : "", s->flags & RST ? "R" : "", s->flags & ACK ? "A" : "",
                   s->seq, s->ack, s->len, s->tsval, s->tsecr);
}

static void
emit(void *opaque, MiniTcp *tcp, const Segment *s)
{
    const End *end = opaque;
    Conn *c = end->conn;
    Wire wire = {.s = *s, .conn = c->index, .inc = tcp->inc};

    if (s->len)
        memcpy(wire.payload, s->payload, s->len);
    trace(c, (const char *[]){"pvm says", "svm says", "peer says"}[end->side], s, tcp->inc);
    if (end->side == PEER)
        over_network(c->world, &wire, TO_PROXY);
    else if (end->side == PVM)
        from_pvm(c->world, &wire);
    else
        from_svm(c->world, c, &wire);
}

static bool
begin(void *opaque, MiniTcp *tcp, uint32_t inc)
{
    const End *end = opaque;
    Conn *c = end->conn;

    if (inc != c->inc)
        return false;
    tcp->isn = g_rand_int(c->world->rand);
    tcp->ts_off = g_rand_int(c->world->rand);
    tcp->app = c->app[end->side == PEER];
    return true;
}

static void
input(Conn *c, int side, const Wire *wire)
{
    End end = {c, side};
    const MiniOps ops = {emit, begin, &end};
    Segment s = wire->s;

    s.payload = wire->payload;
    trace(c, (const char *[]){"to pvm", "to svm", "to peer"}[side], &s, wire->inc);
    mini_input(&c->end[side], &s, wire->inc, c->world->now_ms, &ops);
}

static void
at_proxy(World *w, Conn *c, const Wire *wire)
{
    Wire copy = *wire;

    if (!w->alone)
        into_ring(w, wire, PVM);
    copy.s = through_rewriter(w, wire);
    trace(c, "at proxy", &copy.s, wire->inc);
    check_ingress(c, &wire->s, &copy.s, wire->inc);
    into_ring(w, &copy, SVM);
}

static void
deliver(World *w, int i)
{
    Wire wire = w->flying[i];
    Conn *c = &w->conns[wire.conn];

    w->flying[i].conn = -1;
    if (wire.where == TO_PEER)
        input(c, PEER, &wire);
    else if (wire.where == TO_PROXY)
        at_proxy(w, c, &wire);
    else if (wire.where == TO_SVM_RING)
        input(c, SVM, &wire);
    else if (!w->alone)
        input(c, PVM, &wire);
}

static void
compact(World *w)
{
    int n = 0;

    for (int i = 0; i < w->n_flying; i++)
        if (w->flying[i].conn >= 0)
            w->flying[n++] = w->flying[i];
    w->n_flying = n;
}

/* All of the rings now (@rings), or what is due. Delivering may add some behind. */
static void
deliver_due(World *w, bool rings)
{
    int n = w->n_flying;

    for (int i = 0; i < n; i++) {
        const Wire *wire = &w->flying[i];
        bool in_ring = wire->where == TO_PVM_RING || wire->where == TO_SVM_RING;

        if (rings ? in_ring : wire->at_ms <= w->now_ms)
            deliver(w, i);
    }
    compact(w);
}

static void
checkpoint(World *w)
{
    if (g_getenv("COLO_TEST_TRACE"))
        g_printerr("%6d checkpoint\n", (int)w->now_ms);
    if (!chance(w, 10)) /* mostly, the rings are empty when the guests stop */
        deliver_due(w, true);
    w->epoch++;
    if (w->gated)
        must(compare_begin_checkpoint(w->compare, w->epoch) == 0);
    rewriter_commit(w->rewriter);
    for (int i = 0; i < w->n_conns; i++) {
        Conn *c = &w->conns[i];
        const MiniTcp *pvm = &c->end[PVM];

        c->end[SVM] = *pvm;
        c->open_at[SVM] = c->open_at[PVM];
        c->tainted = false;
    }
    if (w->gated)
        must(compare_commit(w->compare, w->epoch, w->now_ms * 1000000) == 0);
    w->diverged = false;
    totals.checkpoints++;
}

static void
takeover(World *w)
{
    w->alone = true;
    w->takeover_at = 0;
    rewriter_takeover(w->rewriter);
    for (int i = 0; i < w->n_conns; i++) {
        Conn *c = &w->conns[i];

        totals.through_takeover += c->end[PEER].state == MINI_OPEN;
        if (c->open_at[PVM]) /* what PVM had opened already SVM will */
            c->open_at[PVM] = 0;
    }
    totals.takeovers++;
}

/* --- cases --- */

static bool
idle(const MiniTcp *t)
{
    return t->state == MINI_CLOSED || t->state == MINI_DONE;
}

static bool
conn_idle(const Conn *c, bool with_svm)
{
    bool pvm = c->world->alone || (idle(&c->end[PVM]) && !c->open_at[PVM]);

    return pvm && idle(&c->end[PEER]) && !c->open_at[PEER] &&
           (!with_svm || (idle(&c->end[SVM]) && !c->open_at[SVM]));
}

static MiniApp
random_app(World *w, bool aborts)
{
    MiniApp app = {.total = chance(w, 30) ? 0 : (uint32_t)below(w, 6000),
                   .fin_after_peer = chance(w, 40)};

    if (aborts && chance(w, 15))
        app.abort_at = 1 + (uint32_t)below(w, 2000);
    return app;
}

static void
next_connection(World *w, Conn *c)
{
    int64_t at = w->now_ms + 1 + below(w, 30);

    if (c->inc)
        check_end(c);
    c->inc++;
    c->tainted = c->refused = false;
    c->kind = below(w, N_KINDS);
    c->app[0] = random_app(w, true);
    c->app[1] = random_app(w, true);
    if (c->app[0].fin_after_peer)
        c->app[1].fin_after_peer = false;
    c->open_at[PEER] = c->kind == ACTIVE ? 0 : at;
    c->open_at[PVM] = c->kind == PASSIVE || w->alone ? 0 : at + below(w, 5);
    c->open_at[SVM] = c->kind == PASSIVE ? 0 : at + below(w, w->lag_ms);
    totals.incs++;
}

static void
run_ends(World *w, Conn *c)
{
    for (int side = 0; side < N_ENDS; side++) {
        End end = {c, side};
        const MiniOps ops = {emit, begin, &end};
        MiniTcp *t = &c->end[side];

        if (side == PVM && w->alone)
            continue;
        if (c->open_at[side] && w->now_ms >= c->open_at[side]) {
            if (t->inc < c->inc && idle(t))
                mini_open(t, c->inc, w->now_ms, &ops);
            c->open_at[side] = 0;
        }
        mini_timer(t, w->now_ms, &ops);
    }
}

/* True: SVM goes on with what the others are through with, and needs a checkpoint. */
static bool
lonely(World *w, Conn *c)
{
    if (w->alone)
        return false;
    if (!conn_idle(c, false) || conn_idle(c, true))
        c->lonely_since = w->now_ms;
    return w->now_ms - c->lonely_since > 2 * COMPARE_TIMEOUT_MS;
}

static void
tick(World *w)
{
    bool wants_checkpoint = !w->alone && below(w, 1000) < 4;

    current_ms = ++w->now_ms;
    deliver_due(w, false);
    for (int i = 0; i < w->n_conns; i++) {
        run_ends(w, &w->conns[i]);
        wants_checkpoint |= lonely(w, &w->conns[i]);
        if (conn_idle(&w->conns[i], true) && w->conns[i].inc < MAX_INCS)
            next_connection(w, &w->conns[i]);
    }
    if (w->gated && !w->alone)
        compare_tick(w->compare, w->now_ms * 1000000);
    if (!w->alone && (wants_checkpoint || w->diverged))
        checkpoint(w);
    if (w->takeover_at && w->now_ms >= w->takeover_at)
        takeover(w);
}

static bool
all_done(const World *w)
{
    for (int i = 0; i < w->n_conns; i++)
        if (w->conns[i].inc < MAX_INCS || !conn_idle(&w->conns[i], true))
            return false;
    return true;
}

static void
make_compare(World *w, uint32_t seed)
{
    const CompareOps ops = {on_release, on_divergence};
    CompareConfig config;

    compare_config_init(&config);
    config.timeout_ns = COMPARE_TIMEOUT_MS * INT64_C(1000000);
    config.memory_max_bytes = 1 << 20;
    config.flows_max = 64;
    config.hash_key[0] = seed;
    g_assert_cmpint(compare_new(&config, &ops, w, &w->compare), ==, 0);
}

static void
run_case(World *w, uint32_t seed)
{
    const RewriterConfig config = {.connections_max = 64, .hash_key = {seed, 3}};

    current_seed = seed;
    memset(w, 0, offsetof(World, flying));
    w->n_flying = 0;
    w->rand = g_rand_new_with_seed(seed);
    g_assert_cmpint(rewriter_new(&config, &w->rewriter), ==, 0);
    w->n_conns = 1 + below(w, MAX_CONNS);
    w->gated = chance(w, 60);
    w->ring_losses = chance(w, 50);
    w->ipv6 = chance(w, 50);
    w->lag_ms = chance(w, 20) ? 100 : 1 + below(w, 20);
    w->loss_percent = chance(w, 30) ? 0 : below(w, 12);
    w->takeover_at = w->gated && chance(w, 70) ? 1 + below(w, 1200) : 0;
    make_compare(w, seed);
    for (int i = 0; i < w->n_conns; i++) {
        w->conns[i].world = w;
        w->conns[i].index = i;
        for (int side = 0; side < N_ENDS; side++)
            w->conns[i].end[side].guest = side != PEER;
    }
    while (!all_done(w)) {
        must(w->now_ms < CASE_MAX_MS);
        tick(w);
    }
    for (int i = 0; i < w->n_conns; i++)
        check_end(&w->conns[i]);
    totals.early += (unsigned)rewriter_stats(w->rewriter)->early;
    totals.learned += (unsigned)rewriter_stats(w->rewriter)->learned;
    must(rewriter_stats(w->rewriter)->untracked_full == 0);
    compare_free(w->compare);
    rewriter_free(w->rewriter);
    g_rand_free(w->rand);
}

static unsigned
from_environment(const char *name, unsigned otherwise)
{
    const char *text = g_getenv(name);

    return text ? (unsigned)g_ascii_strtoull(text, NULL, 10) : otherwise;
}

START_TEST(unit_random_connections)
{
    unsigned first = from_environment("COLO_TEST_SEED", 1);
    unsigned n_cases = from_environment("COLO_TEST_CASES", DEFAULT_CASES);
    World *w = g_new0(World, 1);

    for (unsigned i = 0; i < n_cases; i++)
        run_case(w, first + i);
    g_free(w);
    g_print("%u connections, %u learned, %u acks translated, %u early, %u wrong, "
            "%u checkpoints, %u takeovers with %u open connections\n",
            totals.incs, totals.learned, totals.translated, totals.early, totals.wrong,
            totals.checkpoints, totals.takeovers, totals.through_takeover);
    if (n_cases < 100)
        return;
    /* The cases are what they are meant to be. */
    ck_assert_uint_gt(totals.learned, totals.incs / 4);
    ck_assert_uint_gt(totals.through_takeover, n_cases / 10);
    ck_assert_uint_gt(totals.early, 0);
    ck_assert_uint_le(totals.wrong, totals.incs / 100);
}
END_TEST

CHECK_MAIN("rewriter-property", unit_random_connections)
