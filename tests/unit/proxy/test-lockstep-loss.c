/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-lockstep-loss.c - the packet-loss cases: a frame lost on purpose at each place of the path
 *
 * In each the service goes on after at most the comparison's timeout and one checkpoint, without
 * anything that a client was told being unknown to the secondary.
 */
#include "lockstep-world.h"

#include "check-main.h"

#include <string.h>

#include "bytes.h"
#include "clock.h"

enum { WAIT = WORLD_DEADLINE_MS, TIMEOUT_MS = 100, LEN = 100 };

/* The guests serve: what a client says is answered with the same number, by each guest that got it.
 * Returns how many guests did within @wait_ms. */
static unsigned
serve(Pair *pair, guint32 number, int wait_ms)
{
    unsigned n = 0;

    if (guest_recv(&pair->p, wait_ms) == number) {
        guest_send(&pair->p, number, LEN);
        n++;
    }
    if (guest_recv(&pair->s, wait_ms) == number) {
        guest_send(&pair->s, number, LEN);
        n++;
    }
    return n;
}

static void
expect_service(Pair *pair, guint32 number)
{
    client_send(&pair->p, number, LEN);
    ck_assert_uint_eq(serve(pair, number, WAIT), 2);
    ck_assert_int_eq(client_recv(&pair->p, WAIT), number);
}

/* As the daemon does: a divergence asks for a checkpoint. */
static void
expect_heals_by_checkpoint(Pair *pair, unsigned divergences_before, int64_t lost_ns)
{
    world_until(&pair->p.n_divergences, divergences_before + 1);
    ck_assert_int_ge(clock_now_ns() - lost_ns, TIMEOUT_MS * NS_PER_MS);
    pair_checkpoint(pair);
}

typedef struct Case {
    ProxyLoss which;
    unsigned answers;  /* guests that get the request */
    bool at_secondary; /* where it is lost */
    bool diverges;
    bool client_repeats; /* the answer is lost for good: TCP, or the application, asks again */
} Case;

static const Case cases[] = {
    {PROXY_LOSE_AT_ENGINE, 2, false, true, false},
    {PROXY_LOSE_PRIMARY_EGRESS, 2, false, true, true},
    {PROXY_LOSE_RELEASE, 2, false, false, true},
    {PROXY_LOSE_MIRROR, 1, false, true, false},
    {PROXY_LOSE_SECONDARY_INGRESS, 1, true, true, false},
    {PROXY_LOSE_REWRITER_INGRESS, 1, true, true, false},
    {PROXY_LOSE_REWRITER_EGRESS, 2, true, true, false},
    {PROXY_LOSE_SECONDARY_EGRESS, 2, true, true, false},
};

static void
run_case(const Case *c, ProxyPortKind port)
{
    Pair pair;

    pair_init(&pair, port, TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (guint32 i = 0; i < 20; i++)
        expect_service(&pair, i);

    World *w = c->at_secondary ? &pair.s : &pair.p;
    unsigned divergences = pair.p.n_divergences;
    int64_t start_ns = clock_now_ns();

    ck_assert_uint_eq(divergences, 0);
    proxy_test_lose(w->proxy, c->which, 1);
    client_send(&pair.p, 1000, LEN);
    ck_assert_uint_eq(serve(&pair, 1000, c->answers == 2 ? WAIT : 20), c->answers);
    if (c->diverges)
        expect_heals_by_checkpoint(&pair, divergences, start_ns);
    if (c->client_repeats)
        expect_service(&pair, 1000);
    else
        ck_assert_int_eq(client_recv(&pair.p, WAIT), 1000);
    ck_assert_uint_eq(world_stats(w).test_lost, 1);
    for (guint32 i = 0; i < 20; i++)
        expect_service(&pair, 2000 + i);
    ck_assert_uint_eq(pair.p.n_divergences, c->diverges ? 1 : 0);
    pair_clear(&pair);
}

START_TEST(unit_each_loss_heals)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        run_case(&cases[i], PROXY_PORT_TAP);
        run_case(&cases[i], PROXY_PORT_STREAM);
    }
    ck_assert_uint_eq(G_N_ELEMENTS(cases), PROXY_N_LOSSES);
}
END_TEST

START_TEST(unit_losses_of_the_channel_are_counted_by_the_receiver)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, TIMEOUT_MS, PAIR_HOLD_BYTES);
    proxy_test_lose(pair.p.proxy, PROXY_LOSE_MIRROR, 3);
    for (guint32 i = 0; i < 10; i++)
        client_send(&pair.p, i, LEN);
    for (guint32 i = 3; i < 10; i++)
        ck_assert_int_eq(guest_recv(&pair.s, WAIT), i);
    WORLD_UNTIL(&pair.s, st.peer_gaps == 3);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_hooks_are_off_by_default)
{
    ProxyConfig base;
    World w;

    lockstep_config(&base, TIMEOUT_MS, PAIR_HOLD_BYTES);
    base.test_hooks = false;
    (void)lone_init(&w, PROXY_PORT_TAP, &base);
    proxy_test_lose(w.proxy, PROXY_LOSE_RELEASE, 1);
    guest_send(&w, 1, LEN);
    world_egress(&w, PROXY_EGRESS_OPEN);
    ck_assert_int_eq(client_recv(&w, WAIT), 1);
    ck_assert_uint_eq(world_stats(&w).test_lost, 0);
    world_clear(&w);
}
END_TEST

/* --- TCP: an acknowledgement stands for the input that it acknowledges --- */

enum { TCP_FIN = 1, TCP_SYN = 2, TCP_PSH = 8, TCP_ACK = 16, TCP_LEN = 60 };

/* From the guest 10.0.0.2:80 to the client 10.0.0.1:4000. */
static void
guest_send_tcp(World *w, guint8 flags, guint32 seq, guint32 ack)
{
    uint8_t frame[TCP_LEN] = {0x02, 0,    0,    0, 0, 1,  0x52, 0x54, 0, 0x12, 0x34, 0x56,
                              0x08, 0x00, 0x45, 0, 0, 40, 0,    0,    0, 0,    64,   6,
                              0,    0,    10,   0, 0, 2,  10,   0,    0, 1};

    be16_store(frame + 34, 80);
    be16_store(frame + 36, 4000);
    be32_store(frame + 38, seq);
    be32_store(frame + 42, ack);
    frame[46] = 0x50;
    frame[47] = flags;
    be16_store(frame + 48, 1000);
    guest_send_raw(w, frame, sizeof(frame));
}

START_TEST(sec_what_the_secondary_lacks_is_not_acknowledged)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (unsigned i = 0; i < 2; i++)
        guest_send_tcp(i ? &pair.s : &pair.p, TCP_SYN | TCP_ACK, 1000, 501);
    WORLD_UNTIL(&pair.p, st.egress_frames == 1);

    /* The client's 100 bytes are lost on the way to the secondary: only PVM acknowledges them. */
    proxy_test_lose(pair.p.proxy, PROXY_LOSE_MIRROR, 1);
    client_send(&pair.p, 1, LEN);
    ck_assert_int_eq(guest_recv(&pair.p, WAIT), 1);
    guest_send_tcp(&pair.p, TCP_ACK, 1001, 601);
    WORLD_UNTIL(&pair.p, st.compared_frames[COMPARE_PRIMARY] == 2);
    WORLD_UNTIL(&pair.p, st.egress_frames == 1);

    /* A failover now: the client has not been told, so it will send them again. */
    world_until(&pair.p.n_divergences, 1);
    WORLD_UNTIL(&pair.p, st.egress_frames == 1);
    pair_checkpoint(&pair);
    WORLD_UNTIL(&pair.p, st.egress_frames == 2);
    pair_clear(&pair);
}
END_TEST

CHECK_MAIN("lockstep-loss", unit_each_loss_heals,
           unit_losses_of_the_channel_are_counted_by_the_receiver, unit_hooks_are_off_by_default,
           sec_what_the_secondary_lacks_is_not_acknowledged)
