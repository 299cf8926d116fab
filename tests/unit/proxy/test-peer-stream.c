/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-stream.c - the frames channel: batches, would-block, order, ends */
#include "peer-stream.h"

#include "check-main.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The other side: takes @budget bytes and then has no room; gives what lies in @in. */
typedef struct FakePeer {
    GByteArray *out, *in;
    size_t budget, in_done, blocked_count;
    unsigned n_writes, n_closed;
    int read_error, write_error;
    bool at_end;
    bool shows_all; /* the descriptor does */
} FakePeer;

static ssize_t
fake_read(gpointer opaque, void *bytes, size_t len)
{
    FakePeer *fake = opaque;
    size_t n = MIN(len, fake->in->len - fake->in_done);

    if (n == 0 && fake->read_error)
        return fake->read_error;
    if (n == 0)
        return fake->at_end ? 0 : -EAGAIN;
    n = MIN(n, 1000); /* odd pieces */
    memcpy(bytes, fake->in->data + fake->in_done, n);
    fake->in_done += n;
    return (ssize_t)n;
}

static ssize_t
fake_write(gpointer opaque, const void *bytes, size_t len)
{
    FakePeer *fake = opaque;

    fake->n_writes++;
    if (fake->write_error)
        return fake->write_error;
    /* As TLS: the same count again. */
    if (fake->blocked_count)
        ck_assert_uint_eq(len, fake->blocked_count);
    if (fake->budget == 0) {
        fake->blocked_count = len;
        return -EAGAIN;
    }
    fake->blocked_count = 0;
    len = MIN(len, fake->budget);
    fake->budget -= len;
    g_byte_array_append(fake->out, bytes, (guint)len);
    return (ssize_t)len;
}

static bool
fake_holds(gpointer opaque)
{
    return !((FakePeer *)opaque)->shows_all;
}

static void
fake_close(gpointer opaque)
{
    ((FakePeer *)opaque)->n_closed++;
}

typedef struct Bench {
    PeerStream stream;
    FakePeer fake;
} Bench;

static void
bench_init(Bench *b)
{
    const ProxyPeer peer = {.read = fake_read,
                            .write = fake_write,
                            .holds = fake_holds,
                            .close = fake_close,
                            .fd = -1,
                            .opaque = &b->fake};

    *b = (Bench){.fake = {.out = g_byte_array_new(), .in = g_byte_array_new()}};
    ck_assert_int_eq(peer_stream_init(&b->stream), 0);
    peer_stream_attach(&b->stream, &peer);
}

static void
bench_clear(Bench *b)
{
    peer_stream_clear(&b->stream);
    ck_assert_uint_eq(b->fake.n_closed, 1);
    g_byte_array_unref(b->fake.out);
    g_byte_array_unref(b->fake.in);
}

static void
send_frame(Bench *b, uint64_t epoch, size_t len)
{
    static uint8_t frame[HOLD_QUEUE_FRAME_MAX];

    memset(frame + WIRE_VNET_BYTES, (int)len, len - WIRE_VNET_BYTES);
    peer_stream_send(&b->stream, WIRE_EGRESS, 0, epoch, frame, len);
}

/* What was written comes in again. */
static void
turn_around(Bench *b)
{
    g_byte_array_append(b->fake.in, b->fake.out->data, b->fake.out->len);
    g_byte_array_set_size(b->fake.out, 0);
    b->stream.readable = true;
    peer_stream_fill(&b->stream, 1);
}

START_TEST(unit_small_frames_share_a_write)
{
    Bench b;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    for (unsigned i = 0; i < 100; i++)
        send_frame(&b, 0, 74);
    ck_assert_uint_eq(b.fake.n_writes, 0);
    peer_stream_flush(&b.stream);
    ck_assert_uint_eq(b.fake.n_writes, 1);
    ck_assert_uint_eq(b.fake.out->len, 100 * (WIRE_OVERHEAD_BYTES + 74));
    bench_clear(&b);
}
END_TEST

START_TEST(unit_a_full_record_leaves_at_once)
{
    Bench b;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    send_frame(&b, 0, 10000);
    ck_assert_uint_eq(b.fake.n_writes, 0);
    send_frame(&b, 0, 10000);
    ck_assert_uint_gt(b.fake.n_writes, 0);
    ck_assert_uint_eq(b.stream.out.len, 0);
    bench_clear(&b);
}
END_TEST

START_TEST(unit_a_blocked_write_is_repeated_with_the_same_count)
{
    Bench b;

    bench_init(&b);
    send_frame(&b, 0, 74);
    peer_stream_flush(&b.stream);
    ck_assert(b.stream.blocked);
    /* More has come meanwhile: the fake checks that the next write is not longer. */
    send_frame(&b, 0, 1000);
    peer_stream_flush(&b.stream);
    ck_assert_uint_eq(b.fake.n_writes, 1);
    b.stream.blocked = false;
    b.fake.budget = SIZE_MAX;
    peer_stream_flush(&b.stream);
    ck_assert_uint_eq(b.fake.n_writes, 3);
    ck_assert_uint_eq(b.stream.out.len, 0);
    bench_clear(&b);
}
END_TEST

START_TEST(unit_frames_of_all_sizes_in_odd_pieces)
{
    Bench b;
    WireFrame frame;
    size_t bytes;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    for (size_t round = 0; round < 40; round++) {
        /* Round and round through both rings. */
        for (size_t i = 0; i < 5; i++)
            send_frame(&b, round, WIRE_FRAME_MIN + (round * 5 + i) * 347 % 60000);
        do
            peer_stream_flush(&b.stream);
        while (b.stream.out.len > 0);
        turn_around(&b);
        for (size_t i = 0; i < 5; i++) {
            while (!peer_stream_peek(&b.stream, 0, &frame, &bytes))
                peer_stream_fill(&b.stream, 1);
            ck_assert_uint_eq(frame.epoch, round);
            ck_assert_uint_eq(frame.len, WIRE_FRAME_MIN + (round * 5 + i) * 347 % 60000);
            ck_assert_uint_eq(frame.frame[frame.len - 1], (uint8_t)frame.len);
            peer_stream_consume(&b.stream, bytes);
        }
    }
    ck_assert_uint_eq(counter_get(&b.stream.gaps), 0);
    bench_clear(&b);
}
END_TEST

START_TEST(unit_looking_ahead_decodes_each_message_once)
{
    Bench b;
    WireFrame first, second, again;
    size_t n, m, bytes;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    send_frame(&b, 1, 74);
    send_frame(&b, 1, 80);
    peer_stream_flush(&b.stream);
    turn_around(&b);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert(peer_stream_peek(&b.stream, 0, &first, &n));
        ck_assert(peer_stream_peek(&b.stream, n, &second, &m));
        ck_assert(!peer_stream_peek(&b.stream, n + m, &again, &bytes));
    }
    peer_stream_consume(&b.stream, n);
    ck_assert(peer_stream_peek(&b.stream, 0, &again, &bytes));
    ck_assert_uint_eq(again.sequence, second.sequence);
    ck_assert_uint_eq(again.len, 80);
    bench_clear(&b);
}
END_TEST

START_TEST(unit_a_missing_number_is_counted)
{
    Bench b;
    WireFrame frame;
    size_t bytes;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    peer_stream_skip(&b.stream);
    peer_stream_skip(&b.stream);
    send_frame(&b, 0, 74);
    peer_stream_flush(&b.stream);
    turn_around(&b);
    ck_assert(peer_stream_peek(&b.stream, 0, &frame, &bytes));
    ck_assert_uint_eq(counter_get(&b.stream.gaps), 2);
    ck_assert(!b.stream.broken);
    bench_clear(&b);
}
END_TEST

static void
expect_refused(uint64_t sequence, uint64_t epoch, const char *text)
{
    Bench b;
    WireFrame frame;
    size_t bytes;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    b.stream.out_sequence = 4;
    send_frame(&b, 7, 74); /* number 5 */
    b.stream.out_sequence = sequence - 1;
    send_frame(&b, epoch, 74);
    peer_stream_flush(&b.stream);
    turn_around(&b);
    ck_assert(peer_stream_peek(&b.stream, 0, &frame, &bytes));
    /* What is in front of it counts. */
    ck_assert(!peer_stream_peek(&b.stream, bytes, &frame, &bytes));
    ck_assert(!b.stream.broken);
    peer_stream_consume(&b.stream, bytes);
    ck_assert(!peer_stream_peek(&b.stream, 0, &frame, &bytes));
    ck_assert(b.stream.broken);
    ck_assert_str_eq(b.stream.end.text, text);
    bench_clear(&b);
}

START_TEST(sec_numbers_and_epochs_do_not_go_back)
{
    expect_refused(5, 7, "a frame whose number or epoch goes back");
    expect_refused(4, 7, "a frame whose number or epoch goes back");
    expect_refused(6, 6, "a frame whose number or epoch goes back");
}
END_TEST

START_TEST(err_ends_are_told_apart)
{
    Bench b;

    bench_init(&b);
    b.fake.at_end = true;
    peer_stream_fill(&b.stream, 1);
    ck_assert_str_eq(b.stream.end.text, "the peer has closed it");
    bench_clear(&b);

    bench_init(&b);
    g_byte_array_append(b.fake.in, (const guint8 *)"\1\60\0\0", 4);
    b.fake.at_end = true;
    peer_stream_fill(&b.stream, 1);
    ck_assert_str_eq(b.stream.end.text, "the peer has closed it");
    bench_clear(&b);

    bench_init(&b);
    b.fake.read_error = -ECONNRESET;
    peer_stream_fill(&b.stream, 1);
    ck_assert_int_eq(b.stream.end.err, ECONNRESET);
    bench_clear(&b);

    bench_init(&b);
    b.fake.write_error = -EPIPE;
    send_frame(&b, 0, 74);
    peer_stream_flush(&b.stream);
    ck_assert_int_eq(b.stream.end.err, EPIPE);
    ck_assert_uint_eq(b.stream.out.len, 0);
    bench_clear(&b);
}
END_TEST

START_TEST(unit_room_is_counted_in_the_largest_messages)
{
    Bench b;
    unsigned n = 0;

    bench_init(&b);
    while (peer_stream_room(&b.stream) > 0) {
        send_frame(&b, 0, HOLD_QUEUE_FRAME_MAX);
        n++;
    }
    ck_assert_uint_ge(n, 32);
    /* The input ring too is bounded: the rest stays with the peer. */
    b.fake.budget = SIZE_MAX;
    b.stream.blocked = false;
    while (b.stream.out.len > 0)
        peer_stream_flush(&b.stream);
    turn_around(&b);
    for (unsigned i = 0; i < 100; i++)
        peer_stream_fill(&b.stream, 1);
    ck_assert_uint_eq(byte_ring_room(&b.stream.in), 0);
    ck_assert_uint_lt(b.fake.in_done, b.fake.in->len);
    bench_clear(&b);
}
END_TEST

/* The end shows although what was said before it has not been read. */
START_TEST(err_a_closed_end_shows_before_it_is_read)
{
    Bench b;
    int fds[2];

    bench_init(&b);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    b.stream.peer.fd = fds[0];
    ck_assert(peer_stream_is_open(&b.stream));
    ck_assert_int_eq(write(fds[1], "x", 1), 1);
    ck_assert(peer_stream_is_open(&b.stream));
    ck_assert_int_eq(shutdown(fds[1], SHUT_WR), 0);
    ck_assert(!peer_stream_is_open(&b.stream));
    (void)close(fds[0]);
    (void)close(fds[1]);
    bench_clear(&b);
}
END_TEST

/* Somebody waits for the frame that woke the thread: it is to be had before more is read. */
START_TEST(unit_what_wakes_is_used_before_more_is_read)
{
    WireFrame frame;
    size_t bytes;
    Bench b;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    for (unsigned i = 0; i < 3; i++)
        send_frame(&b, 0, 900); /* the first read gives all of it, and some of the next */
    peer_stream_flush(&b.stream);
    g_byte_array_append(b.fake.in, b.fake.out->data, b.fake.out->len);
    b.stream.readable = b.stream.woken = true;
    peer_stream_fill(&b.stream, 1);
    ck_assert_uint_eq(b.stream.in.len, 1000);
    ck_assert(peer_stream_peek(&b.stream, 0, &frame, &bytes));
    /* The rest in the next turn, which comes without another event, and up to the end. */
    ck_assert(peer_stream_is_runnable(&b.stream, true));
    peer_stream_fill(&b.stream, 2);
    ck_assert_uint_eq(b.stream.in.len, b.fake.in->len);
    ck_assert(!peer_stream_is_runnable(&b.stream, true));
    bench_clear(&b);
}
END_TEST

/* To be told that there is no more costs as much as to read it: the descriptor tells as well. */
START_TEST(unit_what_wakes_is_not_read_twice_if_nothing_is_held)
{
    Bench b;

    bench_init(&b);
    b.fake.budget = SIZE_MAX;
    send_frame(&b, 0, 900);
    peer_stream_flush(&b.stream);
    g_byte_array_append(b.fake.in, b.fake.out->data, b.fake.out->len);
    b.fake.shows_all = true;
    b.stream.readable = b.stream.woken = true;
    peer_stream_fill(&b.stream, 1);
    ck_assert_uint_eq(b.stream.in.len, b.fake.in->len);
    ck_assert(!peer_stream_is_runnable(&b.stream, true));
    /* Whatever wakes it again is read as ever. */
    g_byte_array_append(b.fake.in, b.fake.out->data, b.fake.out->len);
    b.stream.readable = b.stream.woken = true;
    peer_stream_fill(&b.stream, 2);
    ck_assert_uint_eq(b.stream.in.len, b.fake.in->len);
    bench_clear(&b);
}
END_TEST

CHECK_MAIN("peer-stream", err_a_closed_end_shows_before_it_is_read, unit_small_frames_share_a_write,
           unit_a_full_record_leaves_at_once, unit_a_blocked_write_is_repeated_with_the_same_count,
           unit_frames_of_all_sizes_in_odd_pieces, unit_looking_ahead_decodes_each_message_once,
           unit_what_wakes_is_used_before_more_is_read,
           unit_what_wakes_is_not_read_twice_if_nothing_is_held, unit_a_missing_number_is_counted,
           sec_numbers_and_epochs_do_not_go_back, err_ends_are_told_apart,
           unit_room_is_counted_in_the_largest_messages)
