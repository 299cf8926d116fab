/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-frames-stream.c - the frames channel over TLS, used from threads without a main context */
#include "test-peer-world.h"

#include "frames-stream.h"

#include <errno.h>
#include <poll.h>

#ifdef __SANITIZE_THREAD__
enum { PUMP_BYTES = 4 << 20 };
#else
enum { PUMP_BYTES = 32 << 20 };
#endif

/* One end in a thread of its own, as the proxy uses it: writes @goal_bytes of a pattern and reads
 * as many. */
typedef struct End {
    ProxyPeer peer;
    pthread_t thread;
    size_t goal_bytes, sent_bytes, got_bytes;
    ssize_t end; /* what read() or write() said last, if that was the end */
    bool stop_at_goal;
    unsigned n_again[2]; /* -EAGAIN of read and write */
    atomic_bool done;
} End;

static uint8_t
pattern(size_t i)
{
    return (uint8_t)(i * 31 + (i >> 13));
}

static bool
end_write(End *end)
{
    static _Thread_local uint8_t bytes[16384];
    size_t n = MIN(sizeof(bytes), end->goal_bytes - end->sent_bytes);

    for (size_t i = 0; i < n; i++)
        bytes[i] = pattern(end->sent_bytes + i);

    ssize_t r = end->peer.write(end->peer.opaque, bytes, n);

    if (r == -EAGAIN) {
        end->n_again[1]++;
        return true;
    }
    end->end = r;
    if (r > 0)
        end->sent_bytes += (size_t)r;
    return r > 0;
}

static bool
end_read(End *end)
{
    static _Thread_local uint8_t bytes[50000];
    ssize_t r;

    while ((r = end->peer.read(end->peer.opaque, bytes, sizeof(bytes))) > 0)
        for (ssize_t i = 0; i < r; i++)
            g_assert(bytes[i] == pattern(end->got_bytes++));
    end->n_again[0] += r == -EAGAIN;
    end->end = r;
    return r == -EAGAIN;
}

static void *
end_main(void *arg)
{
    End *end = arg;
    bool alive = true;

    while (alive) {
        bool writes = end->sent_bytes < end->goal_bytes;
        struct pollfd p = {.fd = end->peer.fd, .events = (short)(POLLIN | (writes ? POLLOUT : 0))};

        if (end->stop_at_goal && !writes && end->got_bytes >= end->goal_bytes)
            break;
        (void)poll(&p, 1, 100);
        alive = end_read(end);
        if (alive && writes)
            alive = end_write(end);
    }
    end->done = true;
    return NULL;
}

static void
end_start(End *end, Side *side, size_t goal_bytes, bool stop_at_goal)
{
    GIOStream *stream = peer_link_take_stream(side->link, PEER_CHANNEL_FRAMES);

    ck_assert_ptr_nonnull(stream);
    *end = (End){
        .peer = frames_stream_new(stream), .goal_bytes = goal_bytes, .stop_at_goal = stop_at_goal};
    ck_assert_int_eq(pthread_create(&end->thread, NULL, end_main, end), 0);
}

static void
end_stop(End *end)
{
    pthread_join(end->thread, NULL);
    end->peer.close(end->peer.opaque);
}

START_TEST(unit_both_ways_at_full_speed)
{
    Side alpha, beta;
    End a, b;

    pair_up(&alpha, &beta);
    end_start(&a, &alpha, PUMP_BYTES, true);
    end_start(&b, &beta, PUMP_BYTES, true);
    /* The link's own thread goes on meanwhile. */
    WAIT_UNTIL(&alpha, &beta, a.done && b.done);
    ck_assert_uint_eq(a.got_bytes, PUMP_BYTES);
    ck_assert_uint_eq(b.got_bytes, PUMP_BYTES);
    ck_assert_uint_gt(a.n_again[0] + b.n_again[0], 0);
    ck_assert(peer_link_is_up(alpha.link) && peer_link_is_up(beta.link));
    end_stop(&a);
    end_stop(&b);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_a_full_socket_is_eagain_and_the_record_is_whole)
{
    Side alpha, beta;
    static uint8_t bytes[16384], got[50000];
    size_t sent = 0, came = 0;
    ssize_t r;

    pair_up(&alpha, &beta);

    ProxyPeer a = frames_stream_new(peer_link_take_stream(alpha.link, PEER_CHANNEL_FRAMES));
    ProxyPeer b = frames_stream_new(peer_link_take_stream(beta.link, PEER_CHANNEL_FRAMES));

    ck_assert_int_eq(b.read(b.opaque, got, sizeof(got)), -EAGAIN);
    while ((r = a.write(a.opaque, bytes, sizeof(bytes))) > 0)
        sent += (size_t)r;
    ck_assert_int_eq(r, -EAGAIN);
    ck_assert_int_eq(a.write(a.opaque, bytes, sizeof(bytes)), -EAGAIN);
    while (r == -EAGAIN) {
        ssize_t n = b.read(b.opaque, got, sizeof(got));

        ck_assert(n > 0 || n == -EAGAIN);
        came += n > 0 ? (size_t)n : 0;
        r = a.write(a.opaque, bytes, sizeof(bytes));
    }
    ck_assert_int_gt(r, 0);
    sent += (size_t)r;
    while (came < sent) {
        struct pollfd p = {.fd = b.fd, .events = POLLIN};

        r = b.read(b.opaque, got, sizeof(got));
        if (r == -EAGAIN)
            ck_assert_int_eq(poll(&p, 1, DEADLINE_MS), 1);
        else
            came += (size_t)r;
    }
    ck_assert_uint_eq(came, sent);
    a.close(a.opaque);
    b.close(b.opaque);
    pair_clear(&alpha, &beta);
}
END_TEST

/* Records of all sizes, many at once: read only as often as the descriptor, or holds(), says that
 * there is something. Whatever TLS kept to itself would be missing. */
START_TEST(unit_nothing_is_held_that_is_not_told)
{
    static const size_t sizes[] = {1, 100, 16384, 100, 5000, 16383, 16384, 16384, 7, 1};
    static uint8_t bytes[16384], got[20000];
    const size_t rooms[] = {sizeof(got), 1000, 16384};
    Side alpha, beta;
    size_t sent = 0, came = 0;

    pair_up(&alpha, &beta);

    ProxyPeer a = frames_stream_new(peer_link_take_stream(alpha.link, PEER_CHANNEL_FRAMES));
    ProxyPeer b = frames_stream_new(peer_link_take_stream(beta.link, PEER_CHANNEL_FRAMES));
    struct pollfd p = {.fd = b.fd, .events = POLLIN};

    /* What came with the handshake. */
    ck_assert_int_eq(b.read(b.opaque, got, sizeof(got)), -EAGAIN);
    for (unsigned round = 0; round < G_N_ELEMENTS(rooms); round++) {
        for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
            ck_assert_int_eq(a.write(a.opaque, bytes, sizes[i]), (ssize_t)sizes[i]);
            sent += sizes[i];
        }
        while (came < sent) {
            ck_assert_int_eq(poll(&p, 1, DEADLINE_MS), 1);
            do {
                ssize_t n = b.read(b.opaque, got, rooms[round]);

                ck_assert(n > 0 || n == -EAGAIN);
                came += n > 0 ? (size_t)n : 0;
            } while (b.holds(b.opaque));
        }
        ck_assert_uint_eq(came, sent);
    }
    a.close(a.opaque);
    b.close(b.opaque);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(err_the_peers_close_is_the_end)
{
    Side alpha, beta;
    End b;

    pair_up(&alpha, &beta);

    ProxyPeer a = frames_stream_new(peer_link_take_stream(alpha.link, PEER_CHANNEL_FRAMES));

    end_start(&b, &beta, 0, false);
    a.close(a.opaque);
    WAIT_UNTIL(&alpha, &beta, b.done);
    ck_assert(b.end == 0 || b.end == -ECONNRESET);
    end_stop(&b);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(life_the_link_goes_down_under_the_proxy)
{
    Side alpha, beta;
    End a, b;
    g_autoptr(GError) reason =
        g_error_new_literal(PEER_ERROR, PEER_ERROR_SILENT, "the test says so");

    pair_up(&alpha, &beta);
    end_start(&a, &alpha, SIZE_MAX, false);
    end_start(&b, &beta, SIZE_MAX, false);
    WAIT_UNTIL(&alpha, &beta, peer_link_confirmed_ns(alpha.link) > 0);
    peer_link_fail(alpha.link, reason);
    WAIT_UNTIL(&alpha, &beta, a.done && b.done);
    ck_assert_int_ne(a.end, -EAGAIN);
    ck_assert_int_ne(b.end, -EAGAIN);
    end_stop(&a);
    end_stop(&b);
    /* It comes back by itself, with streams of its own. */
    WAIT_UNTIL(&alpha, &beta, alpha.n_up == 2 && beta.n_up == 2);
    pair_clear(&alpha, &beta);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        unit_both_ways_at_full_speed,
        unit_a_full_socket_is_eagain_and_the_record_is_whole,
        unit_nothing_is_held_that_is_not_told,
        err_the_peers_close_is_the_end,
        life_the_link_goes_down_under_the_proxy,
    };

    return peer_world_run("frames-stream", tests, G_N_ELEMENTS(tests));
}
