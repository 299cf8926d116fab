/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-lockstep-bounds.c - lock-stepping: back-pressure on each queue, and the lease */
#include "lockstep-world.h"

#include "check-main.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS, KINDS = 2 };

/* --- bounds --- */

/* A guest that gets its frames in order. */
typedef struct Receiver {
    World *w;
    guint32 given;
} Receiver;

static void
receive_some(gpointer user_data)
{
    Receiver *r = user_data;

    while (guest_recv(r->w, 0) == r->given)
        r->given++;
}

/* The client sends @n frames, not faster than the proxy reads: what outran it would be lost in the
 * LAN tap's queue, which holds 4096. Once the channel is full the proxy reads no more, and that
 * queue must do for the rest. */
static void
send_many(Receiver *r, guint32 n, size_t len)
{
    enum { AHEAD = 1024 };
    const int64_t deadline_ns = clock_now_ns() + 20 * NS_PER_S;

    for (guint32 i = 0; i < n; i++) {
        client_send(r->w, i, len);
        receive_some(r);
        while (world_stats(r->w).mirrored_frames + AHEAD < i &&
               world_stats(r->w).peer_queue_bytes <= 3 * MIB) {
            ck_assert_int_lt(clock_now_ns(), deadline_ns);
            receive_some(r);
        }
    }
}

START_TEST(err_a_slow_channel_stops_ingress_and_loses_nothing)
{
    enum { N = 6000, LEN = 1400 };
    World w;
    Receiver r = {.w = &w};
    ProxyConfig base;

    pair_wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_STREAM, &base);

    /* Nobody reads at the peer. At most 4 MiB are queued to it; then the LAN tap is left alone. */
    send_many(&r, N, LEN);
    while (guest_recv(&w, 50) == r.given)
        r.given++;
    ck_assert_uint_lt(r.given, N);
    ck_assert_uint_gt(r.given, 1000);
    ck_assert_uint_gt(world_stats(&w).peer_queue_bytes, 3 * MIB);
    for (guint32 i = 0; i < N; i++) {
        WireFrame frame;

        ck_assert_uint_eq(peer_next_copy(fd, &frame, receive_some, &r), i);
    }
    while (r.given < N)
        ck_assert_int_eq(guest_recv(&w, WAIT), r.given++);
    ck_assert_uint_eq(world_stats(&w).lost_frames, 0);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(err_a_guest_that_takes_nothing_stops_the_channel_and_loses_nothing)
{
    enum { N = 9000, LEN = 1400 };
    Pair pair;
    Receiver r = {.w = &pair.p};

    pair_init(&pair, PROXY_PORT_STREAM, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    /* SVM reads nothing: inbox, input ring, channel and output ring fill; then PVM gets no more. */
    send_many(&r, N, LEN);
    while (guest_recv(&pair.p, 50) == r.given)
        r.given++;
    ck_assert_uint_lt(r.given, N);
    ck_assert_uint_gt(world_stats(&pair.s).ingress_queued_bytes, 3 * MIB);
    for (guint32 i = 0; i < N; i++) {
        gint64 number;

        while ((number = guest_recv(&pair.s, 1)) < 0)
            receive_some(&r);
        ck_assert_int_eq(number, i);
    }
    while (r.given < N)
        ck_assert_int_eq(guest_recv(&pair.p, WAIT), r.given++);
    pair_clear(&pair);
}
END_TEST

START_TEST(err_output_ahead_of_the_peer_waits_in_the_guest)
{
    enum { N = 1500, LEN = 1400 };
    Pair pair;

    /* Half of the bound is 512 KiB: some 300 frames. */
    pair_init(&pair, PROXY_PORT_STREAM, 5000, MIB);
    for (guint32 i = 0; i < 300; i++)
        guest_send(&pair.p, i, LEN);
    WORLD_UNTIL(&pair.p, st.engine_frames[0] > 250);
    /* The other side may go on, and frees it. */
    for (guint32 i = 300, s = 0; s < N; s++) {
        guest_send(&pair.s, s, LEN);
        ck_assert_int_eq(client_recv(&pair.p, WAIT), s);
        if (i < N)
            guest_send(&pair.p, i++, LEN);
    }
    ck_assert_uint_eq(world_stats(&pair.p).lost_frames, 0);
    ck_assert_uint_eq(pair.p.n_divergences, 0);
    pair_clear(&pair);
}
END_TEST

START_TEST(err_a_silent_peer_ends_in_a_checkpoint_not_in_a_loss)
{
    enum { N = 3000, LEN = 1400 };
    Pair pair;
    guint32 sent = 0, got = 0;
    int64_t deadline_ns = clock_now_ns() + 20 * NS_PER_S;

    /* SVM says nothing at all. Each piece is more than the engine takes; the rest waits in the
     * socket. */
    pair_init(&pair, PROXY_PORT_STREAM, 20, MIB);
    while (got < N) {
        unsigned before = pair.p.n_divergences;

        for (unsigned i = 0; i < 300 && sent < N; i++)
            guest_send(&pair.p, sent++, LEN);
        world_until(&pair.p.n_divergences, before + 1);
        pair_checkpoint(&pair);
        while (client_recv(&pair.p, 20) == got)
            got++;
        ck_assert_int_lt(clock_now_ns(), deadline_ns);
    }
    ck_assert_uint_eq(world_stats(&pair.p).lost_frames, 0);
    pair_clear(&pair);
}
END_TEST

/* A UDP frame of a flow of its own. */
static void
guest_send_flow(World *w, guint16 port)
{
    uint8_t frame[60] = {0x02, 0,    0,    0, 0, 1,  0x52, 0x54, 0, 0x12, 0x34, 0x56,
                         0x08, 0x00, 0x45, 0, 0, 46, 0,    0,    0, 0,    64,   17,
                         0,    0,    10,   0, 0, 2,  10,   0,    0, 1};

    be16_store(frame + 34, port);
    be16_store(frame + 36, 53);
    be16_store(frame + 38, 26);
    guest_send_raw(w, frame, sizeof(frame));
}

START_TEST(err_what_the_engine_refuses_waits_and_asks_for_a_checkpoint)
{
    enum { FLOWS = 40 };
    World w;
    ProxyConfig base;

    lockstep_config(&base, 5000, PAIR_HOLD_BYTES);
    base.compare.flows_max = 16;

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    for (guint16 i = 0; i < FLOWS; i++)
        guest_send_flow(&w, (guint16)(1000 + i));
    world_until(&w.n_divergences, 1);
    ck_assert_int_eq(w.divergence.rule, COMPARE_RULE_FLOWS);
    ck_assert(!w.divergence.has_flow);
    WORLD_UNTIL(&w, st.engine_refused > 0);
    ck_assert_uint_lt(world_stats(&w).compared_frames[0], FLOWS);
    ck_assert_uint_eq(world_stats(&w).egress_frames, 0);
    /* Each checkpoint lets some leave. */
    for (guint64 epoch = 1, left = 0; left < FLOWS; epoch++) {
        ck_assert_uint_lt(epoch, 10);
        world_checkpoint_alone(&w, epoch);
        WORLD_UNTIL(&w, st.egress_frames > left);
        left = world_stats(&w).egress_frames;
    }
    ck_assert_uint_eq(world_stats(&w).egress_frames, FLOWS);
    ck_assert_uint_eq(world_stats(&w).lost_frames, 0);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

/* --- the lease --- */

START_TEST(unit_nothing_leaves_without_a_lease)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    proxy_set_lease(pair.p.proxy, clock_now_ns() - 1);
    both_send(&pair, 1, 60);
    WORLD_UNTIL(&pair.p, st.lease_waits == 1 && st.held_frames == 1);
    /* Not by a commit either: the host may have been replaced. */
    guest_send(&pair.p, 2, 61);
    pair_checkpoint(&pair);
    WORLD_UNTIL(&pair.p, st.held_frames == 2);
    ck_assert_int_eq(client_recv(&pair.p, 20), -1);
    proxy_set_lease(pair.p.proxy, clock_now_ns() + 10 * NS_PER_S);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 2);
    /* And the commit counted. */
    both_send(&pair, 3, 60);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 3);
    ck_assert_uint_eq(pair.p.n_divergences, 0);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_a_lease_that_ends_needs_no_word)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    proxy_set_lease(pair.p.proxy, INT64_MAX);
    both_send(&pair, 1, 60);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
    proxy_set_lease(pair.p.proxy, clock_now_ns() + 100 * NS_PER_MS);
    for (guint32 i = 2; world_stats(&pair.p).lease_waits == 0; i++) {
        both_send(&pair, i, 60);
        g_usleep(1000);
        ck_assert_uint_lt(i, 5000);
    }
    while (client_recv(&pair.p, 0) >= 0)
        ;
    both_send(&pair, 99999, 60);
    ck_assert_int_eq(client_recv(&pair.p, 50), -1);
    /* DROP: the other side won. */
    world_egress(&pair.p, PROXY_EGRESS_DROP);
    proxy_set_lease(pair.p.proxy, INT64_MAX);
    ck_assert_int_eq(client_recv(&pair.p, 50), -1);
    pair_clear(&pair);
}
END_TEST

CHECK_MAIN("lockstep-bounds", err_a_slow_channel_stops_ingress_and_loses_nothing,
           err_a_guest_that_takes_nothing_stops_the_channel_and_loses_nothing,
           err_output_ahead_of_the_peer_waits_in_the_guest,
           err_a_silent_peer_ends_in_a_checkpoint_not_in_a_loss,
           err_what_the_engine_refuses_waits_and_asks_for_a_checkpoint,
           unit_nothing_leaves_without_a_lease, unit_a_lease_that_ends_needs_no_word)
