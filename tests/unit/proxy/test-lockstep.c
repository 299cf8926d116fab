/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-lockstep.c - lock-stepping end to end: same and different output, epochs, NICs */
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
        WORLD_UNTIL(&pair.p, st.egress_frames == N);
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
        WORLD_UNTIL(&pair.p, st.mirrored_frames >= 200);
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

START_TEST(unit_frames_of_an_old_epoch_match_nothing)
{
    World w;
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

    world_checkpoint_alone(&w, 1);
    /* Said before the checkpoint, it comes after it, and is what the primary now says. */
    peer_says(fd, 0, 7, 60);
    WORLD_UNTIL(&w, st.stale[COMPARE_SECONDARY] == 1);
    guest_send(&w, 7, 60);
    world_until(&w.n_divergences, 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    world_checkpoint_alone(&w, 2);
    ck_assert_int_eq(client_recv(&w, WAIT), 7);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(unit_frames_of_the_next_epoch_wait_for_its_commit)
{
    World w;
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

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
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

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
    WireFrame frame;
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

    for (guint32 epoch = 0; epoch < 3; epoch++) {
        if (epoch > 0)
            world_checkpoint_alone(&w, epoch);
        client_send(&w, epoch, 60);
        ck_assert_int_eq(guest_recv(&w, WAIT), epoch);
        ck_assert_uint_eq(peer_next_copy(fd, &frame, NULL, NULL), epoch);
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
    /* The guest may have it a moment before it is off the queue. */
    WORLD_UNTIL(&pair.s, st.ingress_queued_bytes == 0);
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

/* --- several NICs --- */

static void
send_on(int fd, guint32 number, size_t len)
{
    uint8_t message[4096];
    /* The wire's frame without its virtio-net header is the stream's, after a length. */
    uint8_t *frame = message + WIRE_OVERHEAD_BYTES + WIRE_VNET_BYTES - 4;

    (void)pair_encode(message, 0, WIRE_EGRESS, 0, number, len);
    pair_wire_sequence--;
    be32_store(frame, (uint32_t)len);
    ck_assert_int_eq(send(fd, frame, 4 + len, MSG_NOSIGNAL), (ssize_t)(4 + len));
}

static void
peer_says_on(int fd, guint8 nic, guint32 number, size_t len)
{
    uint8_t message[4096];
    size_t n = pair_encode(message, 0, WIRE_EGRESS, nic, number, len);

    ck_assert_int_eq(send(fd, message, n, MSG_NOSIGNAL), (ssize_t)n);
}

/* One proxy with two stream NICs, on the bridges of two worlds. */
static Proxy *
two_nics(const char *dir, int guest_fds[2])
{
    static const uint8_t macs[2][6] = {{0x52, 0x54, 0, 1, 1, 1}, {0x52, 0x54, 0, 1, 1, 2}};
    g_autoptr(GError) error = NULL;
    g_autofree char *first = g_build_filename(dir, "a", NULL);
    g_autofree char *second = g_build_filename(dir, "b", NULL);
    ProxyConfig config;
    int listen_fds[2];

    lockstep_config(&config, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    config.n_nics = 2;
    for (unsigned i = 0; i < 2; i++) {
        const char *path = i ? second : first;

        listen_fds[i] = fd_unix_listen(path);
        config.nics[i] = (ProxyNic){.name = i ? "nic1" : "nic0",
                                    .port = PROXY_PORT_STREAM,
                                    .bridge = i ? "br1" : "br0",
                                    .lan_tap = i ? "tap1" : "tap0",
                                    .stream_path = path};
        memcpy(config.nics[i].mac, macs[i], 6);
    }

    Proxy *proxy = proxy_new(&config, NULL, NULL, NULL, &error);

    if (!proxy || !proxy_connect_ports(proxy, &error))
        g_error("%s", error->message);
    for (unsigned i = 0; i < 2; i++) {
        guest_fds[i] = accept4(listen_fds[i], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        ck_assert_int_ge(guest_fds[i], 0);
        (void)close(listen_fds[i]);
        (void)unlink(i ? second : first);
    }
    return proxy;
}

START_TEST(unit_nics_are_compared_apart)
{
    World lan[2], w;
    ProxyConfig base;
    int guest_fds[2], fds[2];
    g_autofree char *dir = g_dir_make_tmp("cldp-XXXXXX", NULL);
    WireFrame frame;

    pair_wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    world_enter();
    for (unsigned i = 0; i < 2; i++)
        world_open(&lan[i], i, PROXY_PORT_TAP, &base);
    w = (World){.proxy = two_nics(dir, guest_fds)};
    pair_sockets(fds);
    world_attach_fd(&w, fds[0]);
    proxy_set_lease(w.proxy, INT64_MAX);
    world_egress(&w, PROXY_EGRESS_COMPARE);
    world_ingress(&w, true);

    /* The same frame on both; the peer has said it on one. */
    send_on(guest_fds[0], 7, 60);
    send_on(guest_fds[1], 7, 60);
    peer_says_on(fds[1], 1, 7, 60);
    ck_assert_int_eq(client_recv(&lan[1], WAIT), 7);
    ck_assert_int_eq(client_recv(&lan[0], 20), -1);
    peer_says_on(fds[1], 0, 7, 60);
    ck_assert_int_eq(client_recv(&lan[0], WAIT), 7);

    /* A run of one NIC within a batch of both. */
    for (guint32 i = 0; i < 40; i++) {
        send_on(guest_fds[i / 4 % 2], 100 + i, 60 + i);
        peer_says_on(fds[1], i / 4 % 2, 100 + i, 60 + i);
    }
    for (guint32 i = 0; i < 40; i++)
        ck_assert_int_eq(client_recv(&lan[i / 4 % 2], WAIT), 100 + i);

    /* Copies carry the NIC. */
    pair_wire_sequence = 0;
    client_send(&lan[1], 9, 60);
    ck_assert_uint_eq(peer_next_copy(fds[1], &frame, NULL, NULL), 9);
    ck_assert_uint_eq(frame.nic, 1);
    client_send(&lan[0], 8, 60);
    ck_assert_uint_eq(peer_next_copy(fds[1], &frame, NULL, NULL), 8);
    ck_assert_uint_eq(frame.nic, 0);

    proxy_free(w.proxy);
    for (unsigned i = 0; i < 2; i++) {
        (void)close(guest_fds[i]);
        world_clear(&lan[i]);
    }
    (void)close(fds[1]);
    (void)rmdir(dir);
}
END_TEST

CHECK_MAIN("lockstep", unit_same_output_leaves_at_once, unit_ingress_gets_to_both_guests,
           unit_different_output_waits_for_the_commit, unit_divergences_can_be_looked_at,
           unit_frames_of_an_old_epoch_match_nothing,
           unit_frames_of_the_next_epoch_wait_for_its_commit,
           unit_frames_before_the_mark_match_until_the_commit,
           unit_ingress_copies_carry_the_epoch_of_the_mark,
           unit_copies_of_a_stopped_guest_wait_and_are_forgotten_at_the_commit,
           unit_stream_ports_lose_and_repeat_nothing_at_checkpoints, unit_nics_are_compared_apart)
