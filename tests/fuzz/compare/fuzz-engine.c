/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-engine.c - a program of operations on the engine, checked against a slow, obvious model */
/*
 * The model knows two TCP flows as arrays of symbols by stream position (SYN, bytes, FIN), one
 * array a side, and a UDP flow as two lists. After each operation what the engine released (which
 * frames, in which order, with which ack and window) and the number of divergences must be exactly
 * the model's. The second TCP flow has scaled windows.
 *
 * Input: 6 bytes of set-up (stream lengths, where the secondary differs), then 5 bytes an
 * operation.
 */
#include <glib.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "compare.h"
#include "packet.h"

/* abort(), which libFuzzer catches; g_error() raises SIGTRAP, which it does not. */
#define die(...)                                                                                   \
    do {                                                                                           \
        g_printerr(__VA_ARGS__);                                                                   \
        abort();                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    P = COMPARE_PRIMARY,
    S = COMPARE_SECONDARY,
    N_TCP = 2,
    FLOW_UDP = N_TCP,
    N_FLOWS,
    STREAM = 64,
    MAX_OPS = 400,
    SYMBOL_NONE = -1,
    SYMBOL_SYN = 256,
    SYMBOL_FIN = 257,
    OP_BYTES = 5,
    SETUP_BYTES = 6,
    SYN_WINDOW = 10,
    SCALED_FLOW = 1,
    SCALE = 3,
    WAITING_ACKS_MAX = 16, /* as in tcp.c; of ENOUGH_BYTES in window.c there is not a tenth here */
};

#define TIMEOUT_NS INT64_C(200000000)
#define WINDOW_WAIT_NS (TIMEOUT_NS / 4)

typedef struct MFrame {
    int side, flow;
    uint32_t from, to; /* TCP: positions; UDP: from is the payload */
    uint32_t ack;
    uint32_t window; /* the field */
    uint64_t cookie, epoch;
    int64_t time_ns;
    bool matched;
} MFrame;

typedef struct MFlow {
    int said[2][STREAM + 2]; /* symbols of this epoch, SYMBOL_NONE: not yet */
    uint32_t next;
    bool has_s_ack, has_p_ack;
    uint32_t s_ack, p_ack;
    uint32_t s_edge, p_edge;
    bool told_all; /* the client knows s_edge already */
    bool diverged;
} MFlow;

typedef struct Out {
    uint64_t cookie;
    uint32_t ack;
    uint32_t window;
} Out;

typedef struct Model {
    MFlow flows[N_FLOWS];
    GArray *held;   /* MFrame, both sides, by arrival */
    GArray *future; /* MFrame */
    uint64_t epoch;
    int64_t now_ns;
    bool checkpointing;
    uint32_t n_divergences;
    GArray *out; /* Out: what the model released in this operation */
    GArray *engine_out;
    uint32_t engine_divergences;
    Compare *compare;
    uint32_t length[2][N_TCP];
    uint32_t differs_at[N_TCP];
    uint32_t isn[N_TCP];
    uint64_t next_cookie;
} Model;

static uint32_t
end_of(const Model *m, int side, int flow)
{
    return m->length[side][flow] + 2;
}

static int
symbol(const Model *m, int side, int flow, uint32_t position)
{
    if (position == 0)
        return SYMBOL_SYN;
    if (position == end_of(m, side, flow) - 1)
        return SYMBOL_FIN;
    int byte = (int)((position * 37 + (uint32_t)flow * 11) & 0xff);

    return side == S && position == m->differs_at[flow] ? byte ^ 0x55 : byte;
}

/* --- the model's rules --- */

static uint32_t
shift_of(const MFrame *f)
{
    return f->flow == SCALED_FLOW && !(f->from == 0 && f->to > 0) ? SCALE : 0;
}

static uint32_t
edge_of(const MFrame *f)
{
    return f->ack + (f->window << shift_of(f));
}

static void
model_emit(Model *m, const MFrame *f, uint32_t ack, uint32_t window)
{
    Out o = {f->cookie, ack, f->flow == FLOW_UDP ? 0 : window};

    g_array_append_val(m->out, o);
}

static void
model_note_primary(MFlow *flow, const MFrame *f)
{
    if (!flow->has_p_ack || f->ack > flow->p_ack)
        flow->p_ack = f->ack;
    if (!flow->has_p_ack || edge_of(f) > flow->p_edge)
        flow->p_edge = edge_of(f);
    flow->has_p_ack = true;
}

static void
model_set_s_edge(MFlow *flow, uint32_t edge)
{
    if (flow->has_s_ack && edge <= flow->s_edge)
        return;
    flow->s_edge = edge;
    flow->told_all = false;
}

static void
model_note_committed(Model *m, const MFrame *f)
{
    MFlow *flow = &m->flows[f->flow];

    if (f->flow == FLOW_UDP)
        return;
    model_note_primary(flow, f);
    flow->next = MAX(flow->next, f->to);
}

static void
model_diverge(Model *m, int flow)
{
    if (m->flows[flow].diverged)
        return;
    m->flows[flow].diverged = true;
    m->n_divergences++;
    for (guint i = m->held->len; i-- > 0;) {
        const MFrame *f = &g_array_index(m->held, MFrame, i);

        if (f->flow == flow && f->side == S)
            g_array_remove_index(m->held, i);
    }
}

static void
model_match_tcp(Model *m, int flow)
{
    MFlow *f = &m->flows[flow];

    while (f->next < STREAM + 2 && f->said[P][f->next] != SYMBOL_NONE &&
           f->said[S][f->next] != SYMBOL_NONE) {
        if (f->said[P][f->next] != f->said[S][f->next]) {
            model_diverge(m, flow);
            return;
        }
        f->next++;
    }
    for (guint i = m->held->len; i-- > 0;) { /* used up */
        const MFrame *h = &g_array_index(m->held, MFrame, i);

        if (h->flow == flow && h->side == S && h->to <= f->next)
            g_array_remove_index(m->held, i);
    }
}

/* True if the head of the flow's queue may leave; *@ret_ack: with which ack. */
static bool
model_may_leave(const Model *m, const MFrame *h, uint32_t *ret_ack)
{
    const MFlow *f = &m->flows[h->flow];

    *ret_ack = h->ack;
    if (h->flow == FLOW_UDP)
        return h->matched;
    if (h->to > f->next && h->to > h->from)
        return false;
    if (!f->has_s_ack)
        return false;
    if (h->ack <= f->s_ack)
        return true;
    bool has_payload = MAX(h->from, 1) < MIN(h->to, end_of(m, P, h->flow) - 1) && h->from > 0;

    *ret_ack = f->s_ack;
    return has_payload;
}

static uint32_t
model_window(const MFlow *f, const MFrame *h, uint32_t ack)
{
    uint32_t room = f->s_edge > ack ? (f->s_edge - ack) >> shift_of(h) : 0;

    return MIN(h->window, room);
}

/* @at: of the head in the list of held frames. */
static bool
model_is_in_the_way(const Model *m, guint at)
{
    const MFrame *head = &g_array_index(m->held, MFrame, at);
    int steps = 0;

    for (guint i = at + 1; i < m->held->len; i++) {
        const MFrame *h = &g_array_index(m->held, MFrame, i);

        if (h->flow != head->flow || h->side != P)
            continue;
        if (++steps > WAITING_ACKS_MAX)
            return true;
        if (h->from != h->to)
            return h->to <= m->flows[h->flow].next;
    }
    return false;
}

static bool
model_waits(const Model *m, guint at)
{
    const MFrame *h = &g_array_index(m->held, MFrame, at);
    const MFlow *f = &m->flows[h->flow];
    uint32_t allowed = model_window(f, h, h->ack);

    if (h->from != h->to || allowed == h->window || m->now_ns - h->time_ns >= WINDOW_WAIT_NS)
        return false;
    bool repeats = f->told_all && f->has_p_ack && h->ack <= f->p_ack && edge_of(h) > f->p_edge;

    return (2 * allowed < h->window || repeats) && !model_is_in_the_way(m, at);
}

static void
model_release(Model *m, int flow)
{
    MFlow *f = &m->flows[flow];

    for (guint i = 0; i < m->held->len && !f->diverged;) {
        MFrame h = g_array_index(m->held, MFrame, i);
        uint32_t ack;

        if (h.flow != flow || h.side != P) {
            i++;
            continue;
        }
        if (!model_may_leave(m, &h, &ack) || (flow != FLOW_UDP && model_waits(m, i)))
            return;
        uint32_t window = flow == FLOW_UDP ? 0 : model_window(f, &h, ack);

        if (flow != FLOW_UDP) {
            f->told_all = window < h.window && ack == h.ack;
            model_note_primary(f, &h);
        }
        model_emit(m, &h, ack, window);
        g_array_remove_index(m->held, i);
    }
}

static void
model_udp(Model *m, MFrame *f)
{
    for (guint i = 0; i < m->held->len; i++) {
        MFrame *h = &g_array_index(m->held, MFrame, i);

        if (h->flow != FLOW_UDP || h->side == f->side || h->matched || h->from != f->from)
            continue;
        if (h->side == P) {
            h->matched = true;
            return;
        }
        g_array_remove_index(m->held, i);
        f->matched = true;
        break;
    }
    g_array_append_val(m->held, *f);
}

static void
model_tcp(Model *m, MFrame *f)
{
    MFlow *flow = &m->flows[f->flow];

    for (uint32_t i = f->from; i < f->to; i++)
        flow->said[f->side][i] = symbol(m, f->side, f->flow, i);
    if (f->side == S) {
        model_set_s_edge(flow, edge_of(f));
        if (!flow->has_s_ack || f->ack > flow->s_ack)
            flow->s_ack = f->ack;
        flow->has_s_ack = true;
    }
    if (f->side == P || f->to > MAX(flow->next, f->from))
        g_array_append_val(m->held, *f);
    model_match_tcp(m, f->flow);
}

static void
model_current(Model *m, MFrame f)
{
    f.time_ns = m->now_ns;
    if (m->flows[f.flow].diverged) {
        if (f.side == P)
            g_array_append_val(m->held, f);
        return;
    }
    if (f.flow == FLOW_UDP)
        model_udp(m, &f);
    else
        model_tcp(m, &f);
    model_release(m, f.flow);
}

static void
model_stale(Model *m, const MFrame *f)
{
    MFlow *flow = &m->flows[f->flow];

    if (f->side == S)
        return;
    model_note_committed(m, f);
    if (f->flow != FLOW_UDP) {
        model_set_s_edge(flow, flow->has_s_ack ? edge_of(f) : flow->p_edge);
        if (!flow->has_s_ack || flow->p_ack > flow->s_ack)
            flow->s_ack = flow->p_ack;
        flow->has_s_ack = true;
    }
    model_emit(m, f, f->ack, f->window);
    if (f->flow == FLOW_UDP || flow->diverged)
        return;
    model_match_tcp(m, f->flow);
    model_release(m, f->flow);
}

static void
model_submit(Model *m, MFrame f)
{
    if (f.epoch == m->epoch)
        model_current(m, f);
    else if (f.epoch < m->epoch)
        model_stale(m, &f);
    else
        g_array_append_val(m->future, f);
}

static void
model_commit(Model *m)
{
    GArray *future = m->future;

    for (guint i = 0; i < m->held->len; i++) {
        const MFrame *h = &g_array_index(m->held, MFrame, i);

        if (h->side == S)
            continue;
        model_note_committed(m, h);
        model_emit(m, h, h->ack, h->window);
    }
    g_array_set_size(m->held, 0);
    m->epoch++;
    m->checkpointing = false;
    for (int i = 0; i < N_FLOWS; i++) {
        MFlow *f = &m->flows[i];

        f->diverged = false;
        f->has_s_ack = f->has_p_ack;
        f->s_ack = f->p_ack;
        f->s_edge = f->p_edge;
        f->told_all = false;
        memset(f->said, 0xff, sizeof(f->said)); /* SYMBOL_NONE */
    }
    m->future = g_array_new(FALSE, FALSE, sizeof(MFrame));
    for (guint i = 0; i < future->len; i++)
        model_submit(m, g_array_index(future, MFrame, i));
    g_array_unref(future);
}

/* Acks whose time for a window is over, in the order they came. */
static void
model_release_waiting(Model *m)
{
    for (guint i = 0; i < m->held->len; i++) {
        const MFrame *h = &g_array_index(m->held, MFrame, i);
        guint before = m->held->len;

        if (h->side != P || h->flow == FLOW_UDP || h->from != h->to ||
            m->now_ns - h->time_ns < WINDOW_WAIT_NS)
            continue;
        model_release(m, h->flow);
        if (m->held->len != before)
            i = (guint)-1; /* the list has changed */
    }
}

static void
model_tick(Model *m)
{
    if (m->checkpointing)
        return;
    model_release_waiting(m);
    for (guint i = 0; i < m->held->len; i++) {
        const MFrame *h = &g_array_index(m->held, MFrame, i);

        if (m->now_ns - h->time_ns < TIMEOUT_NS || m->flows[h->flow].diverged)
            continue;
        model_diverge(m, h->flow);
        i = (guint)-1; /* the list has changed */
    }
}

/* --- the engine --- */

static void
on_release(void *opaque, const CompareRelease *release)
{
    Model *m = opaque;
    Frame frame;

    frame_parse(release->bytes, release->len, 0, &frame);
    Out o = {.cookie = release->cookie};

    if (frame.cls == FRAME_TCP) {
        o.ack = frame.ack;
        o.window = be16_load(release->bytes + frame.l4_off + 14);
    }

    if (frame.cls == FRAME_TCP && !packet_tcp_checksum_ok(release->bytes, release->len, 0))
        die("checksum of frame %" G_GUINT64_FORMAT, o.cookie);
    g_array_append_val(m->engine_out, o);
}

static void
on_divergence(void *opaque, const CompareDivergence *d)
{
    Model *m = opaque;
    (void)d;

    m->engine_divergences++;
}

static void
engine_submit(Model *m, const MFrame *f)
{
    uint8_t payload[STREAM];
    static uint8_t bytes[PACKET_MAX];
    Packet p = {.protocol = f->flow == FLOW_UDP ? 17 : 6, .dport = (uint16_t)(100 + f->flow)};

    if (f->flow == FLOW_UDP) {
        memset(payload, (int)f->from, 20);
        p.payload = payload;
        p.len = 20;
    } else {
        uint32_t lo = MAX(f->from, 1);
        uint32_t hi = MIN(f->to, end_of(m, f->side, f->flow) - 1);

        for (uint32_t i = lo; i < hi; i++)
            payload[i - lo] = (uint8_t)symbol(m, f->side, f->flow, i);
        p.payload = payload;
        p.len = hi > lo ? hi - lo : 0;
        p.seq = m->isn[f->flow] + f->from;
        p.ack = f->ack;
        p.has_window = true;
        p.window = (uint16_t)f->window;
        p.tcp_flags = FRAME_TCP_ACK;
        if (f->from == 0 && f->to > 0) {
            p.tcp_flags |= FRAME_TCP_SYN;
            p.has_scale = f->flow == SCALED_FLOW;
            p.scale = SCALE;
        }
        if (f->to == end_of(m, f->side, f->flow) && f->to > f->from)
            p.tcp_flags |= FRAME_TCP_FIN;
    }
    size_t len = packet_build(&p, bytes);
    g_autofree uint8_t *copy = g_memdup2(bytes, len);
    CompareFrame frame = {
        .bytes = copy, .len = (uint32_t)len, .epoch = f->epoch, .cookie = f->cookie};

    if (g_getenv("COLO_FUZZ_TRACE"))
        g_printerr("%c flow %d [%u, %u) ack %u window %u epoch %d cookie %d next %u held %u\n",
                   f->side == P ? 'P' : 'S', f->flow, f->from, f->to, f->ack, f->window,
                   (int)f->epoch, (int)f->cookie, m->flows[f->flow].next, m->held->len);
    if (compare_submit(m->compare, (CompareSide)f->side, &frame, m->now_ns) != 0)
        die("refused");
}

static void
check(Model *m, const char *what)
{
    if (m->engine_divergences != m->n_divergences)
        die("%s: %u divergences, model says %u", what, m->engine_divergences, m->n_divergences);
    if (m->engine_out->len != m->out->len)
        die("%s: %u released, model says %u", what, m->engine_out->len, m->out->len);
    for (guint i = 0; i < m->out->len; i++) {
        const Out *a = &g_array_index(m->engine_out, Out, i);
        const Out *b = &g_array_index(m->out, Out, i);

        if (a->cookie != b->cookie || a->ack != b->ack || a->window != b->window)
            die("%s: released %" G_GUINT64_FORMAT " ack %u window %u, model says %" G_GUINT64_FORMAT
                " ack %u window %u",
                what, a->cookie, a->ack, a->window, b->cookie, b->ack, b->window);
    }
    const CompareStats *stats = compare_stats(m->compare);

    /* The engine may keep a covered frame of the secondary until the one before it is through. */
    if (stats->held_frames[P] + stats->held_frames[S] < m->held->len + m->future->len)
        die("%s: %u held, model says %u\n", what, stats->held_frames[P] + stats->held_frames[S],
            m->held->len + m->future->len);
    g_array_set_size(m->out, 0);
    g_array_set_size(m->engine_out, 0);
}

static void
submit_both(Model *m, MFrame f)
{
    if (f.side == P)
        f.cookie = ++m->next_cookie;
    engine_submit(m, &f);
    model_submit(m, f);
    check(m, "submit");
}

/* --- the program --- */

static bool
udp_outstanding(const Model *m, int side, uint32_t payload)
{
    const GArray *lists[] = {m->held, m->future};

    /* Equal payloads of one side are interchangeable but for their age, which the model would
     * have to know the engine's choice of. */
    for (int l = 0; l < 2; l++) {
        for (guint i = 0; i < lists[l]->len; i++) {
            const MFrame *h = &g_array_index(lists[l], MFrame, i);

            if (h->flow == FLOW_UDP && h->side == side && h->from == payload)
                return true;
        }
    }
    return false;
}

static void
op_frame(Model *m, const uint8_t *op)
{
    MFrame f = {.side = op[0] & 1, .flow = (op[0] >> 1) % N_FLOWS, .epoch = m->epoch};

    if ((op[4] & 0xf0) == 0xf0)
        f.epoch += 1;
    else if ((op[4] & 0xf0) == 0xe0 && m->epoch > 0)
        f.epoch -= 1;
    if (f.flow == FLOW_UDP) {
        f.from = op[1] & 15;
        if (!udp_outstanding(m, f.side, f.from))
            submit_both(m, f);
        return;
    }
    uint32_t end = end_of(m, f.side, f.flow);

    f.from = 1 + op[1] % (end - 1);
    f.to = MIN(end, f.from + op[2] % 16);
    f.ack = 1000 + op[3];
    f.window = (op[4] & 15u) * 16;
    submit_both(m, f);
}

static void
op_other(Model *m, const uint8_t *op)
{
    switch (op[1] % 4) {
    case 0:
        if (compare_begin_checkpoint(m->compare, m->epoch + 1) != 0)
            die("begin");
        m->checkpointing = true;
        break;
    case 1:
        if (compare_commit(m->compare, m->epoch + 1, m->now_ns) != 0)
            die("commit");
        model_commit(m);
        break;
    default:
        m->now_ns += (int64_t)op[2] * 2000000;
        compare_tick(m->compare, m->now_ns);
        model_tick(m);
        break;
    }
    check(m, "other");
}

static void
setup(Model *m, const uint8_t *data)
{
    CompareConfig config;
    const CompareOps ops = {on_release, on_divergence};

    memset(m, 0, sizeof(*m));
    compare_config_init(&config);
    config.timeout_ns = TIMEOUT_NS;
    config.memory_max_bytes = 1024 * 1024;
    config.flows_max = 16;
    /* The model forgets no flow; 400 operations take 204 s at most. */
    config.flow_idle_ns = config.flow_closed_ns = INT64_C(1000000000000);
    if (compare_new(&config, &ops, m, &m->compare) != 0)
        die("new");
    m->held = g_array_new(FALSE, FALSE, sizeof(MFrame));
    m->future = g_array_new(FALSE, FALSE, sizeof(MFrame));
    m->out = g_array_new(FALSE, FALSE, sizeof(Out));
    m->engine_out = g_array_new(FALSE, FALSE, sizeof(Out));
    m->now_ns = 1;
    for (int i = 0; i < N_FLOWS; i++)
        memset(m->flows[i].said, 0xff, sizeof(m->flows[i].said));
    for (int i = 0; i < N_TCP; i++) {
        m->length[P][i] = m->length[S][i] = 1 + data[i] % (STREAM - 1);
        if (data[2 + i] & 0x80)
            m->length[S][i] = 1 + data[2 + i] % (STREAM - 1);
        m->differs_at[i] = data[4 + i];
        m->isn[i] = i ? 0xfffffff0 : 7;
    }
}

static void
teardown(Model *m)
{
    compare_free(m->compare);
    g_array_unref(m->held);
    g_array_unref(m->future);
    g_array_unref(m->out);
    g_array_unref(m->engine_out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static Model m;

    if (size < SETUP_BYTES)
        return 0;
    setup(&m, data);
    for (int flow = 0; flow < N_TCP; flow++) {
        for (int side = P; side <= S; side++)
            submit_both(&m, (MFrame){.side = side,
                                     .flow = flow,
                                     .from = 0,
                                     .to = 1,
                                     .ack = 1000,
                                     .window = SYN_WINDOW});
    }
    size_t n_ops = 0;

    for (size_t at = SETUP_BYTES; at + OP_BYTES <= size && n_ops < MAX_OPS;
         at += OP_BYTES, n_ops++) {
        if (data[at] < 0xe0)
            op_frame(&m, data + at);
        else
            op_other(&m, data + at);
    }
    teardown(&m);
    return 0;
}
