/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-channel.c - the framed stream over plain sockets, one end driven by hand */
#include "check-main.h"
#include "clock.h"
#include "fd.h"
#include "peer-channel.h"

#include <errno.h>
#include <gio/gunixconnection.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEADLINE_MS = 10000 };

/* A channel on one end of a socket pair and what it told us; the other end is `fd`. */
typedef struct Rig {
    PeerChannel *channel;
    int fd;
    unsigned n_messages, n_drained, n_closed;
    GByteArray *payloads; /* all payloads in a row */
    PeerMessageType last_type;
    size_t last_len;
    GError *reason;
    /* what to do in a callback */
    bool free_in_message, free_in_drained, free_in_closed, stop_in_message, send_in_drained;
    bool echo;
} Rig;

static void
rig_free_channel(Rig *rig)
{
    g_clear_pointer(&rig->channel, peer_channel_free);
}

static void
on_message(PeerChannel *channel, PeerMessageType type, View payload, gpointer user_data)
{
    Rig *rig = user_data;

    rig->n_messages++;
    rig->last_type = type;
    rig->last_len = payload.len;
    g_byte_array_append(rig->payloads, payload.data, (guint)payload.len);
    if (rig->echo)
        peer_channel_send(channel, type, payload.data, payload.len);
    if (rig->stop_in_message)
        peer_channel_set_reading(channel, FALSE);
    if (rig->free_in_message)
        rig_free_channel(rig);
}

static void
on_drained(PeerChannel *channel, gpointer user_data)
{
    Rig *rig = user_data;

    rig->n_drained++;
    ck_assert(!peer_channel_is_congested(channel));
    if (rig->send_in_drained)
        peer_channel_send(channel, PEER_MESSAGE_DATA_RETURN, "more", 4);
    if (rig->free_in_drained)
        rig_free_channel(rig);
}

static void
on_closed(G_GNUC_UNUSED PeerChannel *channel, const GError *reason, gpointer user_data)
{
    Rig *rig = user_data;

    rig->n_closed++;
    rig->reason = g_error_copy(reason);
    if (rig->free_in_closed)
        rig_free_channel(rig);
}

static const PeerChannelHandlers handlers = {
    .message = on_message, .drained = on_drained, .closed = on_closed};

static void
rig_init(Rig *rig, PeerChannelKind kind)
{
    int fds[2];
    g_autoptr(GSocket) socket = NULL;
    g_autoptr(GSocketConnection) connection = NULL;

    *rig = (Rig){.payloads = g_byte_array_new(), .fd = -1};
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    rig->fd = fds[1];
    ck_assert_int_eq(fd_set_nonblocking(rig->fd), 0);
    socket = g_socket_new_from_fd(fds[0], NULL);
    ck_assert(socket);
    connection = g_socket_connection_factory_create_connection(socket);
    rig->channel = peer_channel_new(G_IO_STREAM(connection), kind, &handlers, rig);
}

static void
rig_clear(Rig *rig)
{
    rig_free_channel(rig);
    fd_clear(&rig->fd);
    g_clear_error(&rig->reason);
    g_byte_array_unref(rig->payloads);
    while (g_main_context_iteration(NULL, FALSE))
        ;
}

/* Iterates the main context until @condition holds; fails after the deadline. */
static gboolean
wake_up(G_GNUC_UNUSED gpointer unused)
{
    return G_SOURCE_CONTINUE;
}

#define WAIT_UNTIL(condition)                                                                      \
    do {                                                                                           \
        int64_t deadline_ns = clock_now_ns() + DEADLINE_MS * NS_PER_MS;                            \
        guint tick = g_timeout_add(20, wake_up, NULL);                                             \
                                                                                                   \
        while (!(condition)) {                                                                     \
            ck_assert_msg(clock_now_ns() < deadline_ns, "deadline: %s", #condition);               \
            g_main_context_iteration(NULL, TRUE);                                                  \
        }                                                                                          \
        g_source_remove(tick);                                                                     \
    } while (0)

static void
run_pending(void)
{
    for (int i = 0; i < 20; i++)
        g_main_context_iteration(NULL, FALSE);
}

static void
put(Rig *rig, const void *bytes, size_t len)
{
    ck_assert_int_eq(send(rig->fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void
put_message(Rig *rig, PeerMessageType type, const char *payload)
{
    uint8_t header[PEER_HEADER_BYTES];

    peer_header_encode(header, type, (uint32_t)strlen(payload));
    put(rig, header, sizeof(header));
    put(rig, payload, strlen(payload));
}

/* Takes what the channel wrote until @len bytes are there. */
static void
take(Rig *rig, uint8_t *bytes, size_t len)
{
    size_t got = 0;
    int64_t deadline_ns = clock_now_ns() + DEADLINE_MS * NS_PER_MS;

    while (got < len) {
        ssize_t n = recv(rig->fd, bytes + got, len - got, 0);

        ck_assert(n > 0 || (n < 0 && errno == EAGAIN));
        ck_assert(clock_now_ns() < deadline_ns);
        if (n > 0)
            got += (size_t)n;
        g_main_context_iteration(NULL, FALSE);
    }
}

static void
expect_closed(Rig *rig, PeerError code, const char *text)
{
    WAIT_UNTIL(rig->n_closed);
    run_pending();
    ck_assert_uint_eq(rig->n_closed, 1);
    ck_assert_msg(g_error_matches(rig->reason, PEER_ERROR, (int)code), "%s", rig->reason->message);
    ck_assert_msg(strstr(rig->reason->message, text), "'%s' in '%s'", text, rig->reason->message);
}

START_TEST(unit_peer_channel_sends_at_once)
{
    Rig rig;
    uint8_t bytes[PEER_HEADER_BYTES + 5];

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    peer_channel_send(rig.channel, PEER_MESSAGE_STATE, "{ } ", 5);
    /* Without any iteration, and in one piece. */
    ck_assert_int_eq(recv(rig.fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    ck_assert_mem_eq(bytes, ((uint8_t[]){1, 17, 0, 0, 0, 0, 0, 5}), 8);
    ck_assert_mem_eq(bytes + 8, "{ } ", 5);
    rig_clear(&rig);
}
END_TEST

START_TEST(unit_peer_channel_split_everywhere)
{
    Rig rig;
    uint8_t bytes[PEER_HEADER_BYTES + 3];

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    peer_header_encode(bytes, PEER_MESSAGE_DATA_FORWARD, 3);
    for (int i = 0; i < 3; i++)
        bytes[PEER_HEADER_BYTES + i] = (uint8_t)('a' + i);
    for (size_t split = 1; split < sizeof(bytes); split++) {
        put(&rig, bytes, split);
        run_pending();
        ck_assert_uint_eq(rig.n_messages, split - 1);
        put(&rig, bytes + split, sizeof(bytes) - split);
        WAIT_UNTIL(rig.n_messages == split);
        ck_assert_uint_eq(rig.last_len, 3);
    }
    ck_assert_mem_eq(rig.payloads->data, "abcabc", 6);
    rig_clear(&rig);
}
END_TEST

START_TEST(unit_peer_channel_coalesced)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    for (int i = 0; i < 100; i++)
        put_message(&rig, PEER_MESSAGE_DATA_FORWARD, i % 2 ? "" : "0123456789");
    WAIT_UNTIL(rig.n_messages == 100);
    ck_assert_uint_eq(rig.payloads->len, 500);
    ck_assert_uint_eq(rig.n_closed, 0);
    rig_clear(&rig);
}
END_TEST

START_TEST(unit_peer_channel_largest_messages)
{
    Rig rig;
    g_autofree uint8_t *payload = g_malloc(PEER_DATA_MAX_BYTES);
    g_autofree uint8_t *back = g_malloc(PEER_HEADER_BYTES + PEER_DATA_MAX_BYTES);

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    rig.echo = true;
    for (uint32_t i = 0; i < PEER_DATA_MAX_BYTES; i++)
        payload[i] = (uint8_t)(i * 7 + (i >> 8));
    for (unsigned round = 1; round <= 20; round++) {
        uint32_t len = PEER_DATA_MAX_BYTES - (round % 2 ? 0 : round * 997);
        size_t sent = 0;

        peer_header_encode(back, PEER_MESSAGE_DATA_RETURN, len);
        put(&rig, back, PEER_HEADER_BYTES);
        while (sent < len) {
            ssize_t n = send(rig.fd, payload + sent, len - sent, MSG_NOSIGNAL);

            ck_assert(n > 0 || errno == EAGAIN);
            sent += n > 0 ? (size_t)n : 0;
            g_main_context_iteration(NULL, FALSE);
        }
        WAIT_UNTIL(rig.n_messages == round);
        ck_assert_uint_eq(rig.last_len, len);
        take(&rig, back, PEER_HEADER_BYTES + len);
        ck_assert_mem_eq(back + PEER_HEADER_BYTES, payload, len);
    }
    rig_clear(&rig);
}
END_TEST

START_TEST(unit_peer_channel_congested_then_drained)
{
    Rig rig;
    uint8_t block[1000] = {0};
    size_t sent = 0;

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    rig.send_in_drained = true;
    while (!peer_channel_is_congested(rig.channel)) {
        memset(block, (int)(sent % 251), sizeof(block));
        peer_channel_send(rig.channel, PEER_MESSAGE_DATA_RETURN, block, sizeof(block));
        sent++;
    }
    run_pending();
    ck_assert_uint_eq(rig.n_drained, 0);
    for (size_t i = 0; i < sent; i++) {
        uint8_t got[PEER_HEADER_BYTES + sizeof(block)];

        take(&rig, got, sizeof(got));
        ck_assert_uint_eq(got[1], PEER_MESSAGE_DATA_RETURN);
        ck_assert_uint_eq(got[PEER_HEADER_BYTES], i % 251);
        ck_assert_uint_eq(got[sizeof(got) - 1], i % 251);
    }
    ck_assert_uint_eq(rig.n_drained, 1);

    uint8_t more[PEER_HEADER_BYTES + 4];

    take(&rig, more, sizeof(more));
    ck_assert_mem_eq(more + PEER_HEADER_BYTES, "more", 4);
    rig_clear(&rig);
}
END_TEST

START_TEST(unit_peer_channel_set_reading)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    rig.stop_in_message = true;
    for (int i = 0; i < 5; i++)
        put_message(&rig, PEER_MESSAGE_DATA_FORWARD, "x");
    /* All five lie in the channel's buffer after one read; each resumption gives one. */
    for (unsigned i = 1; i <= 5; i++) {
        WAIT_UNTIL(rig.n_messages == i);
        run_pending();
        ck_assert_uint_eq(rig.n_messages, i);
        peer_channel_set_reading(rig.channel, TRUE);
    }
    fd_clear(&rig.fd);
    expect_closed(&rig, PEER_ERROR_CLOSED, "closed the connection");
    rig_clear(&rig);
}
END_TEST

static gboolean
count_up(gpointer user_data)
{
    ++*(unsigned *)user_data;
    return G_SOURCE_CONTINUE;
}

START_TEST(unit_peer_channel_lets_others_run)
{
    Rig rig;
    unsigned others = 0;
    guint id = g_idle_add_full(G_PRIORITY_DEFAULT, count_up, &others, NULL);
    g_autofree uint8_t *bytes = g_malloc0(PEER_HEADER_BYTES + PEER_DATA_MAX_BYTES);

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    peer_header_encode(bytes, PEER_MESSAGE_DATA_FORWARD, PEER_DATA_MAX_BYTES);
    for (unsigned i = 0; i < 200; i++) {
        size_t sent = 0;

        while (sent < PEER_HEADER_BYTES + PEER_DATA_MAX_BYTES) {
            ssize_t n =
                send(rig.fd, bytes + sent, PEER_HEADER_BYTES + PEER_DATA_MAX_BYTES - sent, 0);

            sent += n > 0 ? (size_t)n : 0;
            if (n < 0)
                g_main_context_iteration(NULL, FALSE);
        }
    }
    WAIT_UNTIL(rig.n_messages == 200);
    ck_assert_uint_gt(others, 20);
    g_source_remove(id);
    rig_clear(&rig);
}
END_TEST

START_TEST(err_peer_channel_end_of_file)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    put_message(&rig, PEER_MESSAGE_STATE, "{}");
    fd_clear(&rig.fd);
    expect_closed(&rig, PEER_ERROR_CLOSED, "closed the connection");
    ck_assert_uint_eq(rig.n_messages, 1);
    rig_clear(&rig);
}
END_TEST

START_TEST(err_peer_channel_end_within_message)
{
    for (size_t len = 1; len < PEER_HEADER_BYTES + 4; len++) {
        Rig rig;
        uint8_t bytes[PEER_HEADER_BYTES + 4] = {0};

        rig_init(&rig, PEER_CHANNEL_CONTROL);
        peer_header_encode(bytes, PEER_MESSAGE_STATE, 4);
        put(&rig, bytes, len);
        fd_clear(&rig.fd);
        expect_closed(&rig, PEER_ERROR_CLOSED, "within a message");
        ck_assert_uint_eq(rig.n_messages, 0);
        rig_clear(&rig);
    }
}
END_TEST

static void
expect_refused_header(const uint8_t header[static PEER_HEADER_BYTES], PeerError code,
                      const char *text)
{
    Rig rig;
    char end;

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    put_message(&rig, PEER_MESSAGE_STATE, "{}");
    put(&rig, header, PEER_HEADER_BYTES);
    put_message(&rig, PEER_MESSAGE_STATE, "{}");
    expect_closed(&rig, code, text);
    ck_assert_uint_eq(rig.n_messages, 1);
    /* Its socket is closed though the channel is not freed. */
    ck_assert(recv(rig.fd, &end, 1, 0) <= 0);
    peer_channel_send(rig.channel, PEER_MESSAGE_STATE, "{}", 2);
    peer_channel_set_reading(rig.channel, FALSE);
    peer_channel_set_reading(rig.channel, TRUE);
    run_pending();
    rig_clear(&rig);
}

START_TEST(err_peer_channel_oversized)
{
    expect_refused_header((const uint8_t[]){1, 17, 0, 0, 0, 1, 0, 1}, PEER_ERROR_PROTOCOL, "bound");
}
END_TEST

START_TEST(err_peer_channel_unknown_type)
{
    expect_refused_header((const uint8_t[]){1, 99, 0, 0, 0, 0, 0, 0}, PEER_ERROR_PROTOCOL,
                          "unknown type 99");
}
END_TEST

START_TEST(err_peer_channel_type_of_another_channel)
{
    expect_refused_header((const uint8_t[]){1, 36, 0, 0, 0, 0, 0, 8}, PEER_ERROR_PROTOCOL,
                          "COMMITTED");
}
END_TEST

START_TEST(err_peer_channel_version)
{
    expect_refused_header((const uint8_t[]){9, 17, 0, 0, 0, 0, 0, 2}, PEER_ERROR_VERSION,
                          "version 9");
}
END_TEST

START_TEST(err_peer_channel_reserved)
{
    expect_refused_header((const uint8_t[]){1, 17, 1, 0, 0, 0, 0, 2}, PEER_ERROR_PROTOCOL,
                          "reserved");
}
END_TEST

START_TEST(err_peer_channel_overflow)
{
    Rig rig;
    g_autofree uint8_t *block = g_malloc0(PEER_DATA_MAX_BYTES);

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    for (int i = 0; i < PEER_CHANNEL_QUEUE_MAX_BYTES / PEER_DATA_MAX_BYTES + 10; i++)
        peer_channel_send(rig.channel, PEER_MESSAGE_DATA_RETURN, block, PEER_DATA_MAX_BYTES);
    ck_assert_uint_eq(rig.n_closed, 0);
    expect_closed(&rig, PEER_ERROR_OVERFLOW, "full");
    rig_clear(&rig);
}
END_TEST

START_TEST(err_peer_channel_write_after_peer_left)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    /* What the peer said before it left is delivered although writing fails first. */
    put_message(&rig, PEER_MESSAGE_VM_DEAD, "{\"generation\":1}");
    fd_clear(&rig.fd);
    peer_channel_send(rig.channel, PEER_MESSAGE_STATE, "{}", 2);
    ck_assert_uint_eq(rig.n_closed, 0);
    expect_closed(&rig, PEER_ERROR_CLOSED, "");
    ck_assert_uint_eq(rig.n_messages, 1);
    ck_assert_int_eq(rig.last_type, PEER_MESSAGE_VM_DEAD);
    rig_clear(&rig);
}
END_TEST

START_TEST(life_peer_channel_free_in_message)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    rig.free_in_message = true;
    put_message(&rig, PEER_MESSAGE_STATE, "{}");
    put_message(&rig, PEER_MESSAGE_STATE, "{}");
    WAIT_UNTIL(rig.n_messages);
    run_pending();
    ck_assert_uint_eq(rig.n_messages, 1);
    ck_assert_uint_eq(rig.n_closed, 0);
    rig_clear(&rig);
}
END_TEST

START_TEST(life_peer_channel_free_in_closed)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    rig.free_in_closed = true;
    fd_clear(&rig.fd);
    expect_closed(&rig, PEER_ERROR_CLOSED, "");
    rig_clear(&rig);

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    rig.free_in_closed = true;
    put(&rig, "garbage!", 8);
    expect_closed(&rig, PEER_ERROR_VERSION, "");
    rig_clear(&rig);
}
END_TEST

START_TEST(life_peer_channel_free_in_drained)
{
    Rig rig;
    uint8_t block[16384];
    static uint8_t sink[PEER_CHANNEL_CONGESTED_BYTES / 2];

    rig_init(&rig, PEER_CHANNEL_CHECKPOINT);
    memset(block, 1, sizeof(block));
    rig.free_in_drained = true;
    while (!peer_channel_is_congested(rig.channel))
        peer_channel_send(rig.channel, PEER_MESSAGE_DATA_RETURN, block, sizeof(block));
    while (rig.channel) {
        (void)!recv(rig.fd, sink, sizeof(sink), MSG_DONTWAIT);
        g_main_context_iteration(NULL, FALSE);
    }
    ck_assert_uint_eq(rig.n_drained, 1);
    rig_clear(&rig);
}
END_TEST

START_TEST(life_peer_channel_free_with_failure_pending)
{
    Rig rig;

    rig_init(&rig, PEER_CHANNEL_CONTROL);
    fd_clear(&rig.fd);
    peer_channel_send(rig.channel, PEER_MESSAGE_STATE, "{}", 2);
    rig_free_channel(&rig);
    run_pending();
    ck_assert_uint_eq(rig.n_closed, 0);
    peer_channel_free(NULL);
    rig_clear(&rig);
}
END_TEST

CHECK_MAIN("peer-channel", unit_peer_channel_sends_at_once, unit_peer_channel_split_everywhere,
           unit_peer_channel_coalesced, unit_peer_channel_largest_messages,
           unit_peer_channel_congested_then_drained, unit_peer_channel_set_reading,
           unit_peer_channel_lets_others_run, err_peer_channel_end_of_file,
           err_peer_channel_end_within_message, err_peer_channel_oversized,
           err_peer_channel_unknown_type, err_peer_channel_type_of_another_channel,
           err_peer_channel_version, err_peer_channel_reserved, err_peer_channel_overflow,
           err_peer_channel_write_after_peer_left, life_peer_channel_free_in_message,
           life_peer_channel_free_in_closed, life_peer_channel_free_in_drained,
           life_peer_channel_free_with_failure_pending)
