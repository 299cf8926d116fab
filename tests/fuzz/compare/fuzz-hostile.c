/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-hostile.c - any frames in any order: each leaves once, in order, and memory comes back */
/*
 * No model here: flags, numbers, fragments and raw bytes are the fuzzer's choice, so what may match
 * is anybody's guess. What must hold anyway: no frame of the primary leaves twice, a refused frame
 * is taken after a checkpoint, the bound is kept, and two commits empty the engine.
 */
#include <errno.h>
#include <glib.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "compare.h"
#include "packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            g_printerr("%s:%d: %s\n", __FILE__, __LINE__, #condition);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum { MAX_FRAMES = 4096, OP_BYTES = 10, MEMORY = 256 * 1024 };

typedef struct World {
    Compare *compare;
    uint64_t n_sent; /* of the primary; cookies count from 1 */
    uint64_t n_released;
    uint8_t released[MAX_FRAMES + 1];
    int64_t now_ns;
    bool lending;
    GPtrArray *lent[2];               /* frames, until they are settled */
    uint32_t digest_len, digest_unit; /* of the frame submitted next */
} World;

static void
on_release(void *opaque, const CompareRelease *release)
{
    World *w = opaque;
    Frame frame;

    must(release->cookie >= 1 && release->cookie <= w->n_sent + 1);
    must(!w->released[release->cookie]);
    w->released[release->cookie] = 1;
    w->n_released++;
    frame_parse(release->bytes, release->len, release->vnet_hdr_len, &frame);
}

static void
on_divergence(void *opaque, const CompareDivergence *d)
{
    (void)opaque;
    must(d->rule < COMPARE_N_RULES && d->n_primary_bytes <= 16 && d->n_secondary_bytes <= 16);
    must(d->waited_ns >= 0);
}

/* It never comes. */
static void
on_want(void *opaque, uint64_t cookie)
{
    const World *w = opaque;

    must(cookie <= w->n_sent + 1);
}

static void
commit(World *w)
{
    must(compare_commit(w->compare, compare_epoch(w->compare) + 1, w->now_ns) == 0);
}

static int
take(World *w, CompareSide side, const CompareFrame *frame)
{
    int r = 0;

    if (!w->lending)
        return compare_submit(w->compare, side, frame, w->now_ns);
    return compare_lend_batch(w->compare, side, frame, 1, w->now_ns, &r) == 1 ? 0 : r;
}

/* What was lent is freed: a use of it later is seen. */
static void
settle(World *w, CompareSide side)
{
    compare_settle(w->compare, side);
    must(compare_lent(w->compare, side) == 0);
    g_ptr_array_set_size(w->lent[side], 0);
}

static void
submit(World *w, CompareSide side, const uint8_t *bytes, size_t len, uint8_t vnet, int epoch_step)
{
    g_autofree uint8_t *copy = g_memdup2(bytes, len);
    CompareFrame frame = {
        .bytes = copy, .len = (uint32_t)len, .vnet_hdr_len = vnet, .cookie = w->n_sent + 1};

    if (side == COMPARE_SECONDARY) {
        frame.digest_len = w->digest_len;
        frame.digest_unit = w->digest_unit;
    }

    if (side == COMPARE_PRIMARY && w->n_sent == MAX_FRAMES - 1)
        return;
    for (int tries = 0;; tries++) {
        uint64_t now = compare_epoch(w->compare);

        frame.epoch = epoch_step < 0 && now > 0 ? now - 1 : now + (epoch_step > 0);
        int r = take(w, side, &frame);

        must(compare_stats(w->compare)->held_bytes <= MEMORY);
        if (r == 0 && w->lending)
            g_ptr_array_add(w->lent[side], g_steal_pointer(&copy));
        if (r == 0)
            break;
        must(r == -ENOBUFS && tries < 3);
        commit(w); /* frames of the epoch to come may fill it once more */
    }
    if (side == COMPARE_PRIMARY)
        w->n_sent++;
}

/* A well-formed packet from ten bytes of choice. */
static void
op_packet(World *w, const uint8_t *op)
{
    static const uint8_t protocols[] = {6, 6, 6, 17, 1, 132, 6, 6};
    static const uint8_t payload[2048];
    static uint8_t buf[PACKET_MAX];
    Packet p = {.protocol = protocols[op[1] & 7],
                .ipv6 = op[1] & 8,
                .vnet_hdr_len = op[1] & 16 ? 12 : 0,
                .csum_partial = (op[1] & 48) == 48,
                .dport = (uint16_t)(1 + (op[1] >> 6)),
                .tcp_flags = op[2] & 0x17,
                .seq = (uint32_t)(int32_t)(int8_t)op[3] * (op[2] & 0x20 ? 0x1000000 : 8),
                .ack = (uint32_t)(int32_t)(int8_t)op[4] * (op[2] & 0x40 ? 0x1000000 : 8),
                .payload = payload + (op[5] & 1),
                .len = (size_t)(op[5] >> 1) * (op[2] & 0x80 ? 16 : 1),
                .ip_id = op[6] & 3};

    if (op[6] & 4) {
        size_t upper = p.len + (p.protocol == 6 ? 20 : p.protocol == 17 ? 8 : 0);

        p.frag_off = (size_t)op[7] * 8;
        if (p.frag_off >= upper)
            return;
        p.frag_len = MIN(8 + (size_t)op[8] * 8, upper - p.frag_off);
    }
    size_t len = packet_build(&p, buf);

    if (op[9] & 1) /* and one bit of it wrong */
        buf[(size_t)op[8] % len] ^= (uint8_t)(1 << (op[9] >> 5));
    if (op[9] & 16) { /* digests, mostly as many as there should be */
        w->digest_unit = 500 + op[8];
        w->digest_len = (uint32_t)(p.len / DIGEST_BYTES) * w->digest_unit - (op[7] & 15);
    }
    submit(w, op[0] & 1, buf, len, p.vnet_hdr_len,
           (op[9] & 0xe) == 2   ? 1
           : (op[9] & 0xe) == 4 ? -1
                                : 0);
    w->digest_len = w->digest_unit = 0;
}

static void
op_other(World *w, const uint8_t *op)
{
    switch (op[1] & 3) {
    case 0:
        commit(w);
        break;
    case 1:
        must(compare_begin_checkpoint(w->compare, compare_epoch(w->compare) + 1) == 0);
        break;
    case 2:
        compare_flush(w->compare, w->now_ns);
        break;
    default:
        w->now_ns += (int64_t)(int8_t)op[2] * (op[3] & 1 ? INT64_C(100000000000) : 3000000);
        compare_tick(w->compare, w->now_ns);
        if (op[3] & 2)
            settle(w, op[3] & 4 ? COMPARE_SECONDARY : COMPARE_PRIMARY);
        break;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static World w;
    const CompareOps ops = {on_release, on_divergence};
    CompareConfig config;

    memset(&w, 0, sizeof(w));
    compare_config_init(&config);
    config.memory_max_bytes = MEMORY;
    config.flows_max = 16;
    config.isn = size ? data[0] % 3 : 0;
    config.policy[FRAME_MALFORMED] = size > 1 ? data[1] % 3 : 0;
    w.lending = size > 1 && (data[1] & 0xc0) == 0x40; /* never with digests */
    for (int i = 0; i < 2; i++)
        w.lent[i] = g_ptr_array_new_with_free_func(g_free);
    must(compare_new(&config, &ops, &w, &w.compare) == 0);
    if (size > 1 && data[1] & 0x80)
        compare_set_digests(w.compare, &(DigestKey){{1}}, on_want);
    for (size_t at = 2; at + OP_BYTES <= size; at += OP_BYTES) {
        const uint8_t *op = data + at;

        if (op[0] < 0xd0)
            op_packet(&w, op);
        else if (op[0] < 0xe0)
            submit(&w, op[0] & 1, op, MIN(size - at, (size_t)op[1]), op[0] & 2 ? 10 : 0, 0);
        else
            op_other(&w, op);
    }
    commit(&w);
    commit(&w); /* what was of the epoch to come */
    must(w.n_released == w.n_sent);
    must(compare_stats(w.compare)->held_bytes == 0);
    must(compare_stats(w.compare)->held_frames[0] + compare_stats(w.compare)->held_frames[1] == 0);
    compare_free(w.compare);
    for (int i = 0; i < 2; i++)
        g_ptr_array_unref(w.lent[i]);
    return 0;
}
