/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-lockstep.c - lock-stepping end to end: two proxies, two guests, two clients */
#include "lockstep-world.h"

#include "check-main.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "frame-wire.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS, KINDS = 2 };

static const ProxyPortKind kinds[KINDS] = {PROXY_PORT_TAP, PROXY_PORT_STREAM};

static int
compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* --- unit --- */

START_TEST(unit_same_output_leaves_at_once)
{
    enum { N = 400 };
    static int64_t took[N];

    for (unsigned k = 0; k < KINDS; k++) {
        Pair pair;

        pair_init(&pair, kinds[k], PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
        for (guint32 i = 0; i < N; i++) {
            int64_t start_ns = clock_now_ns();

            /* The secondary's last, so that its way is what is measured. */
            both_send(&pair, i, 60 + i);
            ck_assert_int_eq(client_recv(&pair.p, WAIT), i);
            took[i] = clock_now_ns() - start_ns;
        }
        qsort(took, N, sizeof(took[0]), compare_ns);
        printf("added latency, %s port: p50 %.0f us, p99 %.0f us\n",
               kinds[k] == PROXY_PORT_TAP ? "tap" : "stream", (double)took[N / 2] / 1e3,
               (double)took[N * 99 / 100] / 1e3);
        WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_MATCHED] == N);
        ck_assert_uint_eq(pair.p.n_divergences, 0);
        ck_assert_uint_eq(world_stats(&pair.p).egress_frames, N);
        ck_assert_uint_eq(world_stats(&pair.s).egress_frames, 0);
        /* Nothing of the secondary's gets to its own LAN. */
        ck_assert_int_eq(client_recv(&pair.s, 0), -1);
        pair_clear(&pair);
    }
}
END_TEST

START_TEST(unit_ingress_gets_to_both_guests)
{
    for (unsigned k = 0; k < KINDS; k++) {
        Pair pair;

        pair_init(&pair, kinds[k], PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
        for (guint32 i = 0; i < 200; i++)
            client_send(&pair.p, i, 60 + i);
        /* What the secondary's own LAN says is not for its guest. */
        client_send(&pair.s, 99999, 60);
        for (guint32 i = 0; i < 200; i++) {
            ck_assert_int_eq(guest_recv(&pair.p, WAIT), i);
            ck_assert_int_eq(guest_recv(&pair.s, WAIT), i);
        }
        ck_assert_int_eq(guest_recv(&pair.s, 0), -1);
        ck_assert_uint_ge(world_stats(&pair.p).mirrored_frames, 200);
        ck_assert_uint_eq(world_stats(&pair.s).peer_gaps, 0);
        pair_clear(&pair);
    }
}
END_TEST

START_TEST(unit_different_output_waits_for_the_commit)
{
    for (unsigned k = 0; k < KINDS; k++) {
        Pair pair;

        pair_init(&pair, kinds[k], 50, PAIR_HOLD_BYTES);
        both_send(&pair, 1, 60);
        ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
        guest_send(&pair.p, 2, 60);
        WORLD_UNTIL(&pair.p, st.compared_frames[COMPARE_PRIMARY] == 2);
        guest_send(&pair.s, 3, 60);
        world_until(&pair.p.n_divergences, 1);
        ck_assert_int_eq(pair.p.divergence.rule, COMPARE_RULE_TIMEOUT_PRIMARY);
        ck_assert(pair.p.divergence.has_flow);
        ck_assert_uint_eq(pair.p.divergence.epoch, 0);
        ck_assert_int_ge(pair.p.divergence.waited_ns, 50 * NS_PER_MS);
        ck_assert_int_eq(client_recv(&pair.p, 0), -1);
        /* After a divergence the flow is not compared before the commit. */
        both_send(&pair, 4, 60);
        WORLD_UNTIL(&pair.p, st.compared_frames[COMPARE_PRIMARY] == 3);
        ck_assert_int_eq(client_recv(&pair.p, 0), -1);
        pair_begin_checkpoint(&pair);
        ck_assert_int_eq(client_recv(&pair.p, 0), -1);
        pair_end_checkpoint(&pair);
        ck_assert_int_eq(client_recv(&pair.p, WAIT), 2);
        ck_assert_int_eq(client_recv(&pair.p, WAIT), 4);
        both_send(&pair, 5, 60);
        ck_assert_int_eq(client_recv(&pair.p, WAIT), 5);
        ck_assert_uint_eq(pair.p.n_divergences, 1);
        WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_COMMITTED] == 2);
        pair_clear(&pair);
    }
}
END_TEST

static void
look_at_record(const DivergenceRecord *record, gpointer user_data)
{
    unsigned *n = user_data;
    char text[RECORD_TEXT_MAX];

    divergence_format(&record->d, text);
    ck_assert_ptr_nonnull(strstr(text, "timeout"));
    ck_assert_uint_eq(record->number, ++*n);
    ck_assert_uint_eq(record->d.primary_len, WORLD_TAP_HEADER + 60 + *n);
    ck_assert_uint_eq(record->d.primary_frame[WORLD_TAP_HEADER + 17], *n);
    ck_assert_uint_eq(record->d.secondary_len, 0);
}

START_TEST(unit_divergences_can_be_looked_at)
{
    Pair pair;
    unsigned n = 0;

    pair_init(&pair, PROXY_PORT_TAP, 10, PAIR_HOLD_BYTES);
    proxy_foreach_divergence(pair.p.proxy, look_at_record, &n);
    ck_assert_uint_eq(n, 0);
    for (guint32 i = 1; i <= 3; i++) {
        guest_send(&pair.p, i, 60 + i);
        world_until(&pair.p.n_divergences, i);
        pair_checkpoint(&pair);
        ck_assert_int_eq(client_recv(&pair.p, WAIT), i);
    }
    proxy_foreach_divergence(pair.p.proxy, look_at_record, &n);
    ck_assert_uint_eq(n, 3);
    ck_assert_uint_eq(world_stats(&pair.p).divergences[COMPARE_RULE_TIMEOUT_PRIMARY], 3);
    pair_clear(&pair);
}
END_TEST

/* --- epochs; the test is the peer --- */

static guint64 wire_sequence;

/* @number as the guest of World would send it. */
static size_t
encode(uint8_t *out, guint64 epoch, WireKind kind, guint8 nic, guint32 number, size_t len)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
    uint8_t frame[2000] = {0};
    uint8_t *ethernet = frame + WIRE_VNET_BYTES;

    memset(ethernet, (int)(number & 0xff), len);
    memset(ethernet, 0xff, 6);
    memcpy(ethernet + 6, mac, 6);
    be16_store(ethernet + 12, 0x88b5);
    be32_store(ethernet + 14, number);
    return wire_encode(out, &(WireFrame){.epoch = epoch,
                                         .sequence = ++wire_sequence,
                                         .nic = nic,
                                         .kind = kind,
                                         .frame = frame,
                                         .len = WIRE_VNET_BYTES + len});
}

static void
peer_says(int fd, guint64 epoch, guint32 number, size_t len)
{
    uint8_t message[4096];
    size_t n = encode(message, epoch, WIRE_EGRESS, 0, number, len);

    ck_assert_int_eq(send(fd, message, n, MSG_NOSIGNAL), (ssize_t)n);
}

static bool
recv_whole(int fd, uint8_t *bytes, size_t len, void (*meanwhile)(gpointer), gpointer user_data)
{
    int64_t deadline_ns = clock_now_ns() + WAIT * NS_PER_MS;

    for (size_t got = 0; got < len;) {
        ssize_t n = recv(fd, bytes + got, len - got, MSG_DONTWAIT);

        if (n > 0)
            got += (size_t)n;
        else if (clock_now_ns() > deadline_ns || n == 0)
            return false;
        else if (meanwhile)
            meanwhile(user_data);
        else
            g_usleep(50);
    }
    return true;
}

/* The next numbered frame that was mirrored; whatever else the kernel sends on a bridge is skipped.
 * Returns its number. */
static guint32
next_copy(int fd, WireFrame *ret_frame, void (*meanwhile)(gpointer), gpointer user_data)
{
    static uint8_t bytes[WIRE_MESSAGE_MAX];
    size_t n;

    do {
        ck_assert(recv_whole(fd, bytes, WIRE_HEADER_BYTES, meanwhile, user_data));
        ck_assert(
            recv_whole(fd, bytes + WIRE_HEADER_BYTES, be32_load(bytes + 4), meanwhile, user_data));
        ck_assert_int_eq(wire_decode(bytes, sizeof(bytes), ret_frame, &n), WIRE_OK);
        ck_assert_uint_eq(ret_frame->sequence, ++wire_sequence);
        ck_assert_int_eq(ret_frame->kind, WIRE_INGRESS);
    } while (be16_load(ret_frame->frame + WIRE_VNET_BYTES + 12) != 0x88b5);
    return be32_load(ret_frame->frame + WIRE_VNET_BYTES + 14);
}

static void
checkpoint_alone(World *w, guint64 epoch)
{
    world_mark(w, epoch);
    proxy_release(w->proxy, epoch, 0, NULL, NULL);
    world_ingress(w, true); /* carried out after it */
}

START_TEST(unit_frames_of_an_old_epoch_match_nothing)
{
    World w;
    ProxyConfig base;

    wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    checkpoint_alone(&w, 1);
    /* Said before the checkpoint, it comes after it, and is what the primary now says. */
    peer_says(fd, 0, 7, 60);
    WORLD_UNTIL(&w, st.stale[COMPARE_SECONDARY] == 1);
    guest_send(&w, 7, 60);
    world_until(&w.n_divergences, 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    checkpoint_alone(&w, 2);
    ck_assert_int_eq(client_recv(&w, WAIT), 7);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(unit_frames_of_the_next_epoch_wait_for_its_commit)
{
    World w;
    ProxyConfig base;

    wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    world_mark(&w, 1);
    /* The secondary goes on before the primary knows of the commit. */
    peer_says(fd, 1, 7, 60);
    guest_send(&w, 7, 60);
    WORLD_UNTIL(&w, st.compared_frames[0] == 1 && st.compared_frames[1] == 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    ck_assert_int_eq(client_recv(&w, WAIT), 7);
    WORLD_UNTIL(&w, st.released[COMPARE_RELEASED_MATCHED] == 1);
    ck_assert_uint_eq(w.n_divergences, 0);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(unit_frames_before_the_mark_match_until_the_commit)
{
    World w;
    ProxyConfig base;

    wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    guest_send(&w, 7, 60);
    world_mark(&w, 1);
    peer_says(fd, 0, 7, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 7);
    WORLD_UNTIL(&w, st.released[COMPARE_RELEASED_MATCHED] == 1);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(unit_ingress_copies_carry_the_epoch_of_the_mark)
{
    World w;
    ProxyConfig base;
    WireFrame frame;

    wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    for (guint32 epoch = 0; epoch < 3; epoch++) {
        if (epoch > 0)
            checkpoint_alone(&w, epoch);
        client_send(&w, epoch, 60);
        ck_assert_int_eq(guest_recv(&w, WAIT), epoch);
        ck_assert_uint_eq(next_copy(fd, &frame, NULL, NULL), epoch);
        ck_assert_uint_eq(frame.epoch, epoch);
        ck_assert_uint_eq(frame.len, WIRE_VNET_BYTES + 60);
    }
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(unit_copies_of_a_stopped_guest_wait_and_are_forgotten_at_the_commit)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_STREAM, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    world_pause(&pair.s);
    for (guint32 i = 0; i < 5; i++)
        client_send(&pair.p, i, 60);
    for (guint32 i = 0; i < 5; i++)
        ck_assert_int_eq(guest_recv(&pair.p, WAIT), i);
    WORLD_UNTIL(&pair.p, st.peer_queue_bytes == 0);
    ck_assert_int_eq(guest_recv(&pair.s, 0), -1);
    world_mark(&pair.p, 1);
    pair.epoch = 1;
    pair_end_checkpoint(&pair);
    client_send(&pair.p, 100, 60);
    /* PVM's state has seen the five. */
    ck_assert_int_eq(guest_recv(&pair.s, WAIT), 100);
    ck_assert_uint_ge(world_stats(&pair.s).ingress_forgotten, 5);
    ck_assert_uint_eq(world_stats(&pair.s).ingress_queued_bytes, 0);
    pair_clear(&pair);
}
END_TEST

/* Reads what has come, without waiting; counts how often each number did. */
static void
take_all(World *w, guint8 *seen, guint32 n)
{
    gint64 number;

    while ((number = guest_recv(w, 0)) >= 0) {
        ck_assert_int_lt(number, n);
        seen[number]++;
    }
}

START_TEST(unit_stream_ports_lose_and_repeat_nothing_at_checkpoints)
{
    enum { CHECKPOINTS = 300, EACH = 10, N = CHECKPOINTS * EACH };
    static guint8 primary[N], secondary[N];
    guint32 sent = 0, missing = 0;
    Pair pair;
    ProxyStats stats;

    memset(primary, 0, sizeof(primary));
    memset(secondary, 0, sizeof(secondary));
    pair_init(&pair, PROXY_PORT_STREAM, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (unsigned i = 0; i < CHECKPOINTS; i++) {
        for (unsigned j = 0; j < EACH; j++)
            client_send(&pair.p, sent++, 60);
        /* The guests take some of it; then they stand, with whatever is under way. */
        take_all(&pair.p, primary, N);
        take_all(&pair.s, secondary, N);
        pair_checkpoint(&pair);
    }
    /* Once more: no checkpoint follows that could overtake it. */
    client_send(&pair.p, N - 1, 60);
    while (primary[N - 1] < 2)
        take_all(&pair.p, primary, N);
    while (secondary[N - 1] < 1 || world_stats(&pair.s).ingress_queued_bytes > 0)
        take_all(&pair.s, secondary, N);
    stats = world_stats(&pair.s);
    for (unsigned i = 0; i < N - 1; i++) {
        ck_assert_msg(primary[i] == 1, "PVM got frame %u %u times", i, primary[i]);
        ck_assert_msg(secondary[i] <= 1, "SVM got frame %u twice", i);
        missing += secondary[i] == 0;
    }
    /* What it did not get, the state it loaded had seen. */
    ck_assert_uint_le(missing, stats.ingress_forgotten);
    pair_clear(&pair);
}
END_TEST

/* --- bounds --- */

/* A guest that gets its frames in order. */
typedef struct Receiver {
    World w;
    guint32 given;
} Receiver;

static void
receive_some(gpointer user_data)
{
    Receiver *r = user_data;

    while (guest_recv(&r->w, 0) == r->given)
        r->given++;
}

START_TEST(err_a_slow_channel_stops_ingress_and_loses_nothing)
{
    enum { N = 6000, LEN = 1400 };
    Receiver r = {0};
    ProxyConfig base;

    wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&r.w, PROXY_PORT_STREAM, &base);

    /* Nobody reads at the peer. At most 4 MiB are queued to it; then the LAN tap is left alone. */
    for (guint32 i = 0; i < N; i++) {
        client_send(&r.w, i, LEN);
        receive_some(&r);
    }
    while (guest_recv(&r.w, 50) == r.given)
        r.given++;
    ck_assert_uint_lt(r.given, N);
    ck_assert_uint_gt(r.given, 1000);
    ck_assert_uint_gt(world_stats(&r.w).peer_queue_bytes, 3 * MIB);
    for (guint32 i = 0; i < N; i++) {
        WireFrame frame;

        ck_assert_uint_eq(next_copy(fd, &frame, receive_some, &r), i);
    }
    while (r.given < N)
        ck_assert_int_eq(guest_recv(&r.w, WAIT), r.given++);
    ck_assert_uint_eq(world_stats(&r.w).lost_frames, 0);
    (void)close(fd);
    world_clear(&r.w);
}
END_TEST

START_TEST(err_a_guest_that_takes_nothing_stops_the_channel_and_loses_nothing)
{
    enum { N = 9000, LEN = 1400 };
    Pair pair;
    guint32 given = 0;

    pair_init(&pair, PROXY_PORT_STREAM, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    /* SVM reads nothing: inbox, input ring, channel and output ring fill; then PVM gets no more. */
    for (guint32 i = 0; i < N; i++) {
        client_send(&pair.p, i, LEN);
        while (guest_recv(&pair.p, 0) == given)
            given++;
    }
    while (guest_recv(&pair.p, 50) == given)
        given++;
    ck_assert_uint_lt(given, N);
    ck_assert_uint_gt(world_stats(&pair.s).ingress_queued_bytes, 3 * MIB);
    for (guint32 i = 0; i < N; i++) {
        gint64 number;

        while ((number = guest_recv(&pair.s, 1)) < 0)
            while (guest_recv(&pair.p, 0) == given)
                given++;
        ck_assert_int_eq(number, i);
    }
    while (given < N)
        ck_assert_int_eq(guest_recv(&pair.p, WAIT), given++);
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
    for (guint64 epoch = 1; world_stats(&w).egress_frames < FLOWS; epoch++) {
        ck_assert_uint_lt(epoch, 10);
        checkpoint_alone(&w, epoch);
    }
    WORLD_UNTIL(&w, st.egress_frames == FLOWS);
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
    proxy_set_lease(pair.p.proxy, clock_now_ns() + 100 * NS_PER_MS);
    both_send(&pair, 1, 60);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
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

/* --- ends of the channel --- */

START_TEST(err_peer_end_holds_output_until_it_is_decided)
{
    for (unsigned k = 0; k < KINDS; k++) {
        World w;
        ProxyConfig base;

        wire_sequence = 0;
        lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

        int fd = lone_init(&w, kinds[k], &base);

        guest_send(&w, 1, 60);
        guest_send(&w, 2, 70);
        /* What the peer said before its end counts. */
        peer_says(fd, 0, 1, 60);
        (void)close(fd);
        world_until(&w.n_peer_lost, 1);
        ck_assert_str_eq(w.peer_text, "frames channel: the peer has closed it");
        ck_assert_int_eq(client_recv(&w, WAIT), 1);
        guest_send(&w, 3, 80);
        ck_assert_int_eq(client_recv(&w, 20), -1);
        /* The guest is fed on. */
        client_send(&w, 50, 60);
        ck_assert_int_eq(guest_recv(&w, WAIT), 50);
        ck_assert_uint_ge(world_stats(&w).unmirrored_frames, 1);
        /* Goes on alone. */
        world_egress(&w, PROXY_EGRESS_OPEN);
        guest_send(&w, 4, 60);
        for (guint32 i = 2; i <= 4; i++)
            ck_assert_int_eq(client_recv(&w, WAIT), i);
        ck_assert_uint_eq(w.n_peer_lost, 1);
        world_clear(&w);
    }
}
END_TEST

START_TEST(err_link_lost_and_claim_lost_drops_all)
{
    World w;
    ProxyConfig base;

    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    guest_send(&w, 1, 60);
    WORLD_UNTIL(&w, st.engine_frames[0] == 1);
    (void)close(fd);
    world_until(&w.n_peer_lost, 1);
    world_egress(&w, PROXY_EGRESS_DROP);
    world_egress(&w, PROXY_EGRESS_OPEN);
    guest_send(&w, 2, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 2);
    ck_assert_uint_eq(world_stats(&w).dropped_frames, 1);
    world_clear(&w);
}
END_TEST

static void
expect_refusal(const uint8_t *bytes, size_t len, const char *text)
{
    World w;
    ProxyConfig base;

    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    ck_assert_int_eq(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
    world_until(&w.n_peer_lost, 1);
    ck_assert_msg(strstr(w.peer_text, text) != NULL, "%s", w.peer_text);
    /* The proxy lives. */
    world_egress(&w, PROXY_EGRESS_OPEN);
    guest_send(&w, 2, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 2);
    (void)close(fd);
    world_clear(&w);
}

START_TEST(sec_garbage_from_the_peer_breaks_the_channel_with_its_name)
{
    uint8_t m[8192];
    size_t n, first;

    wire_sequence = 0;
    n = encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    m[0] = 9;
    expect_refusal(m, n, "another version");
    n = encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    m[1] = 16;
    expect_refusal(m, n, "type that is not for the frames channel");
    n = encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    be32_store(m + 4, 1 << 30);
    expect_refusal(m, n, "too short or too long");
    n = encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    m[26] = 1;
    expect_refusal(m, n, "reserved bytes");
    n = encode(m, 0, WIRE_EGRESS, 1, 1, 60);
    expect_refusal(m, n, "NIC that is not there");
    n = encode(m, 0, WIRE_INGRESS, 0, 1, 60);
    expect_refusal(m, n, "other direction");
    n = encode(m, 2, WIRE_EGRESS, 0, 1, 60);
    expect_refusal(m, n, "too far ahead");
    first = encode(m, 1, WIRE_EGRESS, 0, 1, 60);
    n = encode(m + first, 0, WIRE_EGRESS, 0, 1, 60);
    expect_refusal(m, first + n, "goes back");
    memset(m, 0xff, sizeof(m));
    expect_refusal(m, sizeof(m), "another version");
}
END_TEST

START_TEST(life_a_new_peer_replaces_the_one_before)
{
    World w;
    ProxyConfig base;
    int fds[2];

    wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    peer_says(fd, 0, 1, 60);
    pair_sockets(fds);
    world_attach_fd(&w, fds[0]);
    /* The old one's end is no news any more. */
    wire_sequence = 0;
    guest_send(&w, 2, 60);
    peer_says(fds[1], 0, 2, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 2);
    /* Closed, with or without a reset for what it had not read. */
    ck_assert(recv(fd, &fds, 1, 0) <= 0 && errno != EAGAIN);
    (void)close(fd);
    ck_assert_uint_eq(w.n_peer_lost, 0);

    unsigned before = w.n_done;

    proxy_detach_peer(w.proxy, world_done, &w);
    world_until(&w.n_done, before + 1);
    ck_assert_int_eq(recv(fds[1], &fd, 1, 0), 0);
    (void)close(fds[1]);
    ck_assert_uint_eq(w.n_peer_lost, 0);
    world_clear(&w);
}
END_TEST

/* --- takeover, going on alone, changing modes --- */

START_TEST(life_takeover_says_what_the_primary_had_not)
{
    for (unsigned k = 0; k < KINDS; k++) {
        Pair pair;

        pair_init(&pair, kinds[k], PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
        guest_send(&pair.s, 1, 60);
        WORLD_UNTIL(&pair.s, st.shadow_frames == 1);
        pair_checkpoint(&pair);
        /* Of the state that a checkpoint replaced nothing is left. */
        guest_send(&pair.s, 2, 60);
        guest_send(&pair.s, 3, 60);
        client_send(&pair.p, 10, 60);
        ck_assert_int_eq(guest_recv(&pair.s, WAIT), 10);
        proxy_free(pair.p.proxy);
        pair.p.proxy = NULL;
        world_until(&pair.s.n_peer_lost, 1);
        ck_assert_int_eq(client_recv(&pair.s, 0), -1);
        world_egress(&pair.s, PROXY_EGRESS_OPEN);
        world_ingress(&pair.s, true);
        ck_assert_int_eq(client_recv(&pair.s, WAIT), 2);
        ck_assert_int_eq(client_recv(&pair.s, WAIT), 3);
        guest_send(&pair.s, 4, 60);
        ck_assert_int_eq(client_recv(&pair.s, WAIT), 4);
        client_send(&pair.s, 11, 60);
        ck_assert_int_eq(guest_recv(&pair.s, WAIT), 11);
        pair_clear(&pair);
    }
}
END_TEST

START_TEST(life_takeover_gives_the_guest_what_was_mirrored)
{
    Pair pair;

    /* SVM stood for a checkpoint that never came. */
    pair_init(&pair, PROXY_PORT_STREAM, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    world_pause(&pair.s);
    for (guint32 i = 0; i < 5; i++)
        client_send(&pair.p, i, 60);
    /* Mirrored before PVM was given it. */
    for (guint32 i = 0; i < 5; i++)
        ck_assert_int_eq(guest_recv(&pair.p, WAIT), i);
    WORLD_UNTIL(&pair.p, st.peer_queue_bytes == 0);
    proxy_free(pair.p.proxy);
    pair.p.proxy = NULL;
    world_egress(&pair.s, PROXY_EGRESS_OPEN);
    world_ingress(&pair.s, true);
    client_send(&pair.s, 5, 60);
    for (guint32 i = 0; i <= 5; i++)
        ck_assert_int_eq(guest_recv(&pair.s, WAIT), i);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_what_a_shadow_keeps_is_bounded)
{
    enum { N = 1000, LEN = 1400 };
    Pair pair;
    gint64 first, number;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (guint32 i = 0; i < N; i++)
        guest_send(&pair.s, i, LEN);
    WORLD_UNTIL(&pair.s, st.shadow_frames == N);
    ck_assert_uint_le(world_stats(&pair.s).held_bytes, 256 * 1024);
    world_egress(&pair.s, PROXY_EGRESS_OPEN);
    first = number = client_recv(&pair.s, WAIT);
    ck_assert_int_gt(first, N - 256 * 1024 / LEN);
    ck_assert_int_lt(first, N - 256 * 1024 / LEN / 2);
    while (number < N - 1)
        ck_assert_int_eq(client_recv(&pair.s, WAIT), ++number);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_what_a_shadow_keeps_is_not_old)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    guest_send(&pair.s, 1, 60);
    WORLD_UNTIL(&pair.s, st.shadow_frames == 1);
    /* More than 200 ms later the peer is still heard of. */
    int64_t start_ns = clock_now_ns();
    guint32 i = 0;

    while (clock_now_ns() - start_ns < 250 * NS_PER_MS) {
        client_send(&pair.p, i, 60);
        ck_assert_int_eq(guest_recv(&pair.s, WAIT), i++);
        (void)guest_recv(&pair.p, WAIT);
    }
    guest_send(&pair.s, 2, 60);
    WORLD_UNTIL(&pair.s, st.shadow_frames == 2);
    world_egress(&pair.s, PROXY_EGRESS_OPEN);
    ck_assert_int_eq(client_recv(&pair.s, WAIT), 2);
    ck_assert_int_eq(client_recv(&pair.s, 20), -1);
    pair_clear(&pair);
}
END_TEST

START_TEST(life_survivor_becomes_the_primary_of_a_new_pair)
{
    Pair pair;
    World t;
    int fds[2];

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (unsigned i = 0; i < 5; i++)
        pair_checkpoint(&pair);
    world_egress(&pair.s, PROXY_EGRESS_OPEN);
    world_ingress(&pair.s, true);
    world_open(&t, 2, PROXY_PORT_TAP, &pair.s.base);
    pair_sockets(fds);
    world_attach_fd(&pair.s, fds[0]);
    world_attach_fd(&t, fds[1]);
    world_egress(&t, PROXY_EGRESS_SHADOW);
    proxy_set_lease(pair.s.proxy, INT64_MAX);
    world_egress(&pair.s, PROXY_EGRESS_COMPARE);

    Pair next = {.p = pair.s, .s = t};

    /* The proxy's callbacks go to the world that it was made with: wait on the frames alone. */
    both_send(&next, 1, 60);
    ck_assert_int_eq(client_recv(&next.p, WAIT), 1);
    client_send(&next.p, 2, 60);
    ck_assert_int_eq(guest_recv(&next.s, WAIT), 2);
    ck_assert_int_eq(guest_recv(&next.p, WAIT), 2);
    world_clear(&t);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_buffered_for_a_while_and_back)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    guest_send(&pair.p, 1, 60);
    WORLD_UNTIL(&pair.p, st.engine_frames[0] == 1);
    /* What the engine held stays held. */
    world_egress(&pair.p, PROXY_EGRESS_HOLD);
    both_send(&pair, 2, 60);
    WORLD_UNTIL(&pair.p, st.held_frames == 2 && st.peer_ignored == 1);
    ck_assert_int_eq(client_recv(&pair.p, 20), -1);
    pair_checkpoint(&pair);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 2);
    guest_send(&pair.p, 3, 60);
    world_until_held(&pair.p, 1);
    /* Back: what was held waits for its commit, what matches waits behind it. */
    world_egress(&pair.p, PROXY_EGRESS_COMPARE);
    both_send(&pair, 4, 70);
    WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_MATCHED] == 1);
    ck_assert_int_eq(client_recv(&pair.p, 20), -1);
    pair_checkpoint(&pair);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 3);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 4);
    both_send(&pair, 5, 60);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 5);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_ingress_is_quiet_within_a_millisecond_or_two)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_STREAM, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    /* The guest has not taken it: that cannot be waited for. */
    client_send(&pair.p, 1, 60);
    WORLD_UNTIL(&pair.p, st.ingress_frames >= 1);

    int64_t start_ns = clock_now_ns();

    world_ingress(&pair.p, false);
    ck_assert_int_ge(clock_now_ns() - start_ns, NS_PER_MS);
    world_mark(&pair.p, 1);
    ck_assert_uint_eq(world_stats(&pair.p).ingress_duplicates, 1);
    ck_assert_int_eq(guest_recv(&pair.p, WAIT), 1);
    /* The next command does not wait. */
    world_ingress(&pair.p, true);
    pair_clear(&pair);
}
END_TEST

CHECK_MAIN("lockstep", unit_same_output_leaves_at_once, unit_ingress_gets_to_both_guests,
           unit_different_output_waits_for_the_commit, unit_divergences_can_be_looked_at,
           unit_frames_of_an_old_epoch_match_nothing,
           unit_frames_of_the_next_epoch_wait_for_its_commit,
           unit_frames_before_the_mark_match_until_the_commit,
           unit_ingress_copies_carry_the_epoch_of_the_mark,
           unit_copies_of_a_stopped_guest_wait_and_are_forgotten_at_the_commit,
           unit_stream_ports_lose_and_repeat_nothing_at_checkpoints,
           err_a_slow_channel_stops_ingress_and_loses_nothing,
           err_a_guest_that_takes_nothing_stops_the_channel_and_loses_nothing,
           err_output_ahead_of_the_peer_waits_in_the_guest,
           err_a_silent_peer_ends_in_a_checkpoint_not_in_a_loss,
           err_what_the_engine_refuses_waits_and_asks_for_a_checkpoint,
           unit_nothing_leaves_without_a_lease, unit_a_lease_that_ends_needs_no_word,
           err_peer_end_holds_output_until_it_is_decided, err_link_lost_and_claim_lost_drops_all,
           sec_garbage_from_the_peer_breaks_the_channel_with_its_name,
           life_a_new_peer_replaces_the_one_before, life_takeover_says_what_the_primary_had_not,
           life_takeover_gives_the_guest_what_was_mirrored, unit_what_a_shadow_keeps_is_bounded,
           unit_what_a_shadow_keeps_is_not_old, life_survivor_becomes_the_primary_of_a_new_pair,
           unit_buffered_for_a_while_and_back, unit_ingress_is_quiet_within_a_millisecond_or_two)
