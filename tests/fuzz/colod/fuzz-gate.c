/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-gate.c - a real gate of either end between a hostile QEMU and a hostile peer */
/*
 * Input: one byte of flags, then operations: one byte that selects it, its arguments behind it (see
 * the table `operations`). Some say what QEMU and the peer would say, so that the fuzzer gets far;
 * the others say anything.
 *
 * What must hold is asserted by fuzz-gate-harness.c after each operation.
 */
#include "fuzz-gate-harness.h"

#include "test-colo-build.h"

enum { FLAG_PRIMARY = 1, FLAG_PASS = 2, FLAG_ARM = 4, FLAG_EARLY = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- Operations ------------------------------------------------------------------------------- */

static void
build_migration_op(GByteArray *out, unsigned argument G_GNUC_UNUSED)
{
    build_migration(out);
}

static void
build_pages(GByteArray *out, unsigned argument)
{
    build_delta(out, argument % 4);
}

static void
build_head_op(GByteArray *out, unsigned argument G_GNUC_UNUSED)
{
    build_return_head(out);
}

/* Anything, in either direction. */
static void
say_raw(Harness *h, bool from_vm, View *in)
{
    const uint8_t *bytes;
    uint8_t len = 0;

    (void)view_get_u8(in, &len);

    size_t n = MIN(len, in->len);

    if (view_take(in, n, &bytes))
        harness_say(h, from_vm, view_of(bytes, n));
}

static void
op_raw_vm(Harness *h, View *in)
{
    say_raw(h, true, in);
}

static void
op_raw_peer(Harness *h, View *in)
{
    say_raw(h, false, in);
}

/* END or COMMITTED that would fit, spoilt by what is XORed onto it. */
static void
op_verdict(Harness *h, View *in)
{
    Record record = harness_record(h, h->committed + 1);
    bool whole = record.tail_end_at > 0;
    uint8_t spoil[3] = {0};

    for (size_t i = 0; i < (h->primary ? 1 : G_N_ELEMENTS(spoil)); i++)
        (void)view_get_u8(in, &spoil[i]);

    uint64_t numbers[3] = {h->committed + 1};

    if (whole) {
        numbers[1] = record.tail_end_at - record.send_at;
        numbers[2] = harness_covered_hash(h, &record);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++)
        numbers[i] ^= spoil[i];
    if (h->primary) {
        harness_say_peer_message(h, PEER_MESSAGE_COMMITTED, numbers, 1);
    } else {
        h->end_fits = whole && !spoil[0] && !spoil[1] && !spoil[2];
        harness_say_peer_message(h, PEER_MESSAGE_END, numbers, 3);
    }
}

/* Any message of the checkpoint channel, for this end or not. */
static void
op_peer_message(Harness *h, View *in)
{
    static const PeerMessageType types[] = {PEER_MESSAGE_ARM, PEER_MESSAGE_COMMITTED,
                                            PEER_MESSAGE_END};
    uint64_t numbers[3] = {0};
    uint8_t which = 0, number = 0;

    (void)view_get_u8(in, &which);
    (void)view_get_u8(in, &number);
    numbers[0] = number;
    h->end_fits = false;
    harness_say_peer_message(h, types[which % G_N_ELEMENTS(types)], numbers,
                             which % G_N_ELEMENTS(types) == 2 ? 3 : 1);
}

static void
op_pass(Harness *h, View *in G_GNUC_UNUSED)
{
    harness_pass(h);
}

static void
op_expect(Harness *h, View *in G_GNUC_UNUSED)
{
    gate_expect_request(h->gate);
}

static void
op_chunk(Harness *h, View *in)
{
    uint8_t chunk = 0;

    (void)view_get_u8(in, &chunk);
    h->chunk = chunk;
}

static void
op_close_vm(Harness *h, View *in G_GNUC_UNUSED)
{
    harness_close_vm(h);
}

static void
op_close_peer(Harness *h, View *in G_GNUC_UNUSED)
{
    g_clear_pointer(&h->peer, peer_channel_free);
}

static void
op_detach(Harness *h, View *in G_GNUC_UNUSED)
{
    gate_detach_peer(h->gate);
}

static void
op_free(Harness *h, View *in G_GNUC_UNUSED)
{
    g_clear_pointer(&h->gate, gate_free);
}

/* The order is that of the seeds: append. */
static const struct Operation {
    void (*run)(Harness *h, View *in);
    /* Or: what is built, of an argument of one byte, is said. */
    void (*build)(GByteArray *out, unsigned argument);
    bool forward;
} operations[] = {
    {.build = build_migration_op, .forward = true},
    {.build = build_be32, .forward = true},
    {.build = build_be32},
    {.build = build_head_op},
    {.build = build_pages, .forward = true},
    {.build = build_tail, .forward = true},
    {.run = op_raw_vm},
    {.run = op_raw_peer},
    {.run = op_verdict},
    {.run = op_peer_message},
    {.run = op_pass},
    {.run = op_expect},
    {.run = op_chunk},
    {.run = op_close_vm},
    {.run = op_close_peer},
    {.run = op_detach},
    {.run = op_free},
};

static void
operate(Harness *h, const struct Operation *operation, View *in)
{
    uint8_t argument = 0;

    if (operation->run) {
        operation->run(h, in);
        return;
    }
    (void)view_get_u8(in, &argument);
    harness_say_built(h, operation->forward, operation->build, argument);
}

/* --- One input -------------------------------------------------------------------------------- */

/* What every input would have to find first: the initial migration, READY, ARM. */
static void
harness_arm(Harness *h)
{
    const uint64_t generation = GENERATION;

    harness_say_built(h, true, build_migration_op, 0);
    harness_pass(h);
    harness_say_built(h, false, build_head_op, 0);
    harness_say_built(h, false, build_be32, 0);
    if (h->primary)
        harness_pass(h);
    else
        harness_say_peer_message(h, PEER_MESSAGE_ARM, &generation, 1);
    harness_check(h);
    g_assert(h->arm_seen && h->failures == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    View in = view_of(data, size);
    uint8_t flags = 0, op;
    Harness h;

    (void)view_get_u8(&in, &flags);
    harness_init(&h, flags & FLAG_PRIMARY, flags & FLAG_PASS, flags & FLAG_EARLY);
    if (flags & FLAG_ARM)
        harness_arm(&h);
    while (h.gate && view_get_u8(&in, &op)) {
        operate(&h, &operations[op % G_N_ELEMENTS(operations)], &in);
        harness_check(&h);
    }
    if (h.gate) {
        op_close_peer(&h, NULL);
        op_close_vm(&h, NULL);
        harness_check(&h);
        g_assert(h.failures == 1);
    }
    harness_clear(&h);
    return 0;
}
