/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-lockstep-life.c - lock-stepping: ends of the channel, takeover, going on alone, changing
 * modes */
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

/* --- ends of the channel --- */

START_TEST(err_peer_end_holds_output_until_it_is_decided)
{
    for (unsigned k = 0; k < KINDS; k++) {
        World w;
        int fd = lone_init_plain(&w, kinds[k]);

        guest_send(&w, 1, 60);
        guest_send(&w, 2, 70);
        /* What the peer said before its end counts. */
        peer_says(fd, 0, 1, 60);
        /* Not close(): over a frame that the kernel sent and nobody read it would be a reset. */
        ck_assert_int_eq(shutdown(fd, SHUT_WR), 0);
        world_until(&w.n_peer_lost, 1);
        ck_assert_str_eq(w.peer_text, "frames channel: the peer has closed it");
        WORLD_UNTIL(&w, st.released[COMPARE_RELEASED_MATCHED] == 1);

        /* It left if that was before the end was known. */
        bool gone = client_recv(&w, 20) == 1;

        guest_send(&w, 3, 80);
        ck_assert_int_eq(client_recv(&w, 20), -1);
        /* The guest is fed on. */
        client_send(&w, 50, 60);
        ck_assert_int_eq(guest_recv(&w, WAIT), 50);
        ck_assert_uint_ge(world_stats(&w).unmirrored_frames, 1);
        /* Goes on alone. */
        world_egress(&w, PROXY_EGRESS_OPEN);
        guest_send(&w, 4, 60);
        for (guint32 i = gone ? 2 : 1; i <= 4; i++)
            ck_assert_int_eq(client_recv(&w, WAIT), i);
        ck_assert_uint_eq(w.n_peer_lost, 1);
        (void)close(fd);
        world_clear(&w);
    }
}
END_TEST

/* The host stood still, shorter than its lease lasts, and the peer has closed the channel and taken
 * over meanwhile. */
START_TEST(err_nothing_leaves_behind_the_end_of_the_channel)
{
    World w;
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

    /* Released, and not written yet. */
    proxy_set_lease(w.proxy, 1);
    guest_send(&w, 1, 60);
    peer_says(fd, 0, 1, 60);
    WORLD_UNTIL(&w, st.lease_waits == 1);
    ck_assert_int_eq(shutdown(fd, SHUT_WR), 0);
    proxy_set_lease(w.proxy, INT64_MAX);
    ck_assert_int_eq(client_recv(&w, 50), -1);
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_int_eq(client_recv(&w, 20), -1);
    (void)close(fd);
    world_clear(&w);
}
END_TEST

START_TEST(err_link_lost_and_claim_lost_drops_all)
{
    World w;
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

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
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

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

    pair_wire_sequence = 0;
    n = pair_encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    m[0] = 9;
    expect_refusal(m, n, "another version");
    n = pair_encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    m[1] = 16;
    expect_refusal(m, n, "type that is not for the frames channel");
    n = pair_encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    be32_store(m + 4, 1 << 30);
    expect_refusal(m, n, "too short or too long");
    n = pair_encode(m, 0, WIRE_EGRESS, 0, 1, 60);
    m[26] = 1;
    expect_refusal(m, n, "reserved bytes");
    n = pair_encode(m, 0, WIRE_EGRESS, 1, 1, 60);
    expect_refusal(m, n, "NIC that is not there");
    n = pair_encode(m, 0, WIRE_INGRESS, 0, 1, 60);
    expect_refusal(m, n, "other direction");
    n = pair_encode(m, 0, WIRE_CONNECTION, 0, 1, 60);
    expect_refusal(m, n, "other direction");
    n = pair_encode(m, 2, WIRE_EGRESS, 0, 1, 60);
    expect_refusal(m, n, "too far ahead");
    first = pair_encode(m, 1, WIRE_EGRESS, 0, 1, 60);
    n = pair_encode(m + first, 0, WIRE_EGRESS, 0, 1, 60);
    expect_refusal(m, first + n, "goes back");
    memset(m, 0xff, sizeof(m));
    expect_refusal(m, sizeof(m), "another version");
}
END_TEST

START_TEST(life_a_new_peer_replaces_the_one_before)
{
    World w;
    uint8_t byte;
    int fds[2];
    int fd = lone_init_plain(&w, PROXY_PORT_TAP);

    peer_says(fd, 0, 1, 60);
    pair_sockets(fds);
    world_attach_fd(&w, fds[0]);
    /* The old one's end is no news any more. */
    pair_wire_sequence = 0;
    guest_send(&w, 2, 60);
    peer_says(fds[1], 0, 2, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 2);
    /* Closed, with or without a reset for what it had not read: the key of digests, and what the
     * kernel sends on a bridge may have been mirrored before. */
    ssize_t n;

    do
        n = recv(fd, &byte, 1, 0);
    while (n > 0);
    ck_assert(n == 0 || (n < 0 && errno == ECONNRESET));
    (void)close(fd);
    ck_assert_uint_eq(w.n_peer_lost, 0);

    unsigned before = w.n_done;

    proxy_detach_peer(w.proxy, world_done, &w);
    world_until(&w.n_done, before + 1);
    while ((n = recv(fds[1], &byte, 1, 0)) > 0)
        continue;
    ck_assert_int_eq(n, 0);
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
    enum { N = 3000, LEN = 1400 };
    Pair pair;
    gint64 first, number;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (guint32 i = 0; i < N; i++)
        guest_send(&pair.s, i, LEN);
    WORLD_UNTIL(&pair.s, st.shadow_frames == N);
    ck_assert_uint_le(world_stats(&pair.s).held_bytes, 2 << 20);
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

/* A pair that was buffered, and holds frame 1 from then. */
static void
pair_init_buffered(Pair *pair)
{
    pair_init(pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    world_egress(&pair->p, PROXY_EGRESS_HOLD);
    guest_send(&pair->p, 1, 60);
    world_until_held(&pair->p, 1);
}

/* What the engine gives out at the commit comes behind the mark of what was held before, and is
 * covered by that commit all the same. */
START_TEST(unit_back_from_buffered_a_commit_releases_all_it_covers)
{
    Pair pair;

    pair_init_buffered(&pair);
    world_egress(&pair.p, PROXY_EGRESS_COMPARE);
    guest_send(&pair.p, 2, 60);
    WORLD_UNTIL(&pair.p, st.engine_frames[0] == 1);
    pair_checkpoint(&pair);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 2);
    both_send(&pair, 3, 60);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 3);
    pair_clear(&pair);
}
END_TEST

/* A commit whose mark is from before covers what was held up to there, and no more. */
START_TEST(unit_back_from_buffered_between_a_mark_and_its_commit)
{
    Pair pair;

    pair_init_buffered(&pair);
    pair_begin_checkpoint(&pair);
    guest_send(&pair.p, 2, 60);
    world_until_held(&pair.p, 2);
    world_egress(&pair.p, PROXY_EGRESS_COMPARE);
    pair_end_checkpoint(&pair);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
    ck_assert_int_eq(client_recv(&pair.p, 20), -1);
    both_send(&pair, 3, 60);
    WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_MATCHED] == 1);
    ck_assert_int_eq(client_recv(&pair.p, 20), -1);
    pair_checkpoint(&pair);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 2);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 3);
    pair_clear(&pair);
}
END_TEST

/* In buffered mode each frame needs a commit's lease: also one that had matched, and waited. */
START_TEST(err_to_buffered_without_a_lease_releases_nothing)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    proxy_set_lease(pair.p.proxy, 1);
    both_send(&pair, 1, 60);
    WORLD_UNTIL(&pair.p, st.lease_waits == 1);
    world_egress(&pair.p, PROXY_EGRESS_HOLD);
    ck_assert_int_eq(client_recv(&pair.p, 50), -1);
    pair_checkpoint(&pair);
    ck_assert_int_eq(client_recv(&pair.p, WAIT), 1);
    pair_clear(&pair);
}
END_TEST

typedef void (*Stop)(World *w);

static void
stop_ingress(World *w)
{
    world_ingress(w, false);
}

static int64_t
time_to(Stop stop, World *w)
{
    int64_t start_ns = clock_now_ns();

    stop(w);
    return clock_now_ns() - start_ns;
}

/* @given frames have been given to the guest of @w in all, the last of them just now. */
static void
until_given(World *w, guint64 given)
{
    WORLD_UNTIL(w, st.ingress_frames >= given);
}

/* QEMU is waited for, but a guest that does not listen only once. */
static void
check_waits_for_the_guest(ProxyPortKind port, bool secondary)
{
    /* QUIESCE_PORT_NS; what a guest that is not waited for takes is much less. */
    const int64_t patience_ns = 300 * NS_PER_MS;
    Stop stop = secondary ? world_quiesce : stop_ingress;
    Pair pair;

    pair_init(&pair, port, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    World *w = secondary ? &pair.s : &pair.p;

    client_send(&pair.p, 1, 60);
    until_given(w, 1);
    ck_assert_int_ge(time_to(stop, w), patience_ns);
    ck_assert_int_lt(time_to(stop, w), patience_ns);
    if (secondary)
        world_commit(w, 1);
    else
        world_mark(w, 1);
    ck_assert_uint_eq(world_stats(w).ingress_duplicates, 1);
    ck_assert_int_eq(guest_recv(w, WAIT), 1);
    ck_assert_int_lt(time_to(stop, w), patience_ns);
    if (secondary) {
        world_mark(&pair.p, 1);
        world_commit(w, 2);
    }
    world_ingress(&pair.p, true);
    if (!secondary) {
        client_send(&pair.p, 2, 60);
        until_given(w, 2);
        /* It listens again: it is waited for again. */
        ck_assert_int_ge(time_to(stop, w), patience_ns);
        world_ingress(&pair.p, true);
    }
    pair_clear(&pair);
}

START_TEST(unit_a_checkpoint_waits_until_the_guest_has_taken_its_input)
{
    for (unsigned secondary = 0; secondary < 2; secondary++) {
        check_waits_for_the_guest(PROXY_PORT_STREAM, secondary);
        check_waits_for_the_guest(PROXY_PORT_TAP, secondary);
    }
}
END_TEST

/* What it is not given any more waits for the commit, which forgets it, or for the takeover. */
START_TEST(unit_a_quiesced_guest_is_given_nothing)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    world_quiesce(&pair.s);
    client_send(&pair.p, 1, 60);
    ck_assert_int_eq(guest_recv(&pair.p, WAIT), 1);
    WORLD_UNTIL(&pair.s, st.ingress_queued_bytes > 0);
    ck_assert_int_eq(guest_recv(&pair.s, 0), -1);
    world_egress(&pair.s, PROXY_EGRESS_OPEN);
    ck_assert_int_eq(guest_recv(&pair.s, WAIT), 1);
    pair_clear(&pair);
}
END_TEST

/* The records of connections: too short, too long, of no TCP connection, a flag that is none. */
START_TEST(sec_malformed_connections_break_the_channel)
{
    static const size_t sizes[] = {60, 101 - WIRE_VNET_BYTES, 102 - WIRE_VNET_BYTES,
                                   103 - WIRE_VNET_BYTES};

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        World w;
        ProxyConfig base;
        int fds[2];
        uint8_t m[512];
        size_t n;

        pair_wire_sequence = 0;
        lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
        world_enter();
        world_open(&w, 0, PROXY_PORT_TAP, &base);
        pair_sockets(fds);
        world_attach_fd(&w, fds[0]);
        world_egress(&w, PROXY_EGRESS_SHADOW);
        n = pair_encode(m, 0, WIRE_CONNECTION, 0, 0xffffffff, sizes[i]);
        ck_assert_int_eq(send(fds[1], m, n, MSG_NOSIGNAL), (ssize_t)n);
        world_until(&w.n_peer_lost, 1);
        ck_assert_str_eq(w.peer_text, "frames channel: a malformed record of a connection");
        (void)close(fds[1]);
        world_clear(&w);
    }
}
END_TEST

CHECK_MAIN("lockstep-life", err_peer_end_holds_output_until_it_is_decided,
           err_nothing_leaves_behind_the_end_of_the_channel, err_link_lost_and_claim_lost_drops_all,
           sec_garbage_from_the_peer_breaks_the_channel_with_its_name,
           sec_malformed_connections_break_the_channel, life_a_new_peer_replaces_the_one_before,
           life_takeover_says_what_the_primary_had_not,
           life_takeover_gives_the_guest_what_was_mirrored, unit_what_a_shadow_keeps_is_bounded,
           unit_what_a_shadow_keeps_is_not_old, life_survivor_becomes_the_primary_of_a_new_pair,
           unit_buffered_for_a_while_and_back,
           unit_back_from_buffered_a_commit_releases_all_it_covers,
           unit_back_from_buffered_between_a_mark_and_its_commit,
           err_to_buffered_without_a_lease_releases_nothing, unit_a_quiesced_guest_is_given_nothing,
           unit_a_checkpoint_waits_until_the_guest_has_taken_its_input)
