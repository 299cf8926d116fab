/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-gate-bench.c - one gate between a fake QEMU and a fake peer, all in the default main context
 */
#include "test-gate-bench.h"

#include <errno.h>
#include <unistd.h>

const GateConfig bench_config = {
    .message_timeout_ms = 60000,
    .transfer_timeout_ms = 60000,
    .migration_timeout_ms = 60000,
    .tail_max_bytes = 1024 * 1024,
};

void
settle(void)
{
    while (g_main_context_iteration(NULL, FALSE))
        ;
}

gboolean
bench_expire(gpointer expired)
{
    *(gboolean *)expired = TRUE;
    return G_SOURCE_CONTINUE;
}

static void
bench_record(Bench *bench, const char *name, guint64 epoch)
{
    g_string_append_printf(bench->log, "%s%" G_GUINT64_FORMAT " ", name, epoch);
    if (bench->free_at && strcmp(bench->free_at, name) == 0)
        g_clear_pointer(&bench->gate, gate_free);
}

static void
bench_on_point(Gate *gate, GatePoint point, guint64 epoch, gpointer user_data)
{
    static const char *const names[] = {
        [GATE_POINT_READY] = "?ready",   [GATE_POINT_REQUEST] = "?request",
        [GATE_POINT_MARK] = "?mark",     [GATE_POINT_REPLY] = "?reply",
        [GATE_POINT_COMMIT] = "?commit", [GATE_POINT_QUIESCE] = "?quiesce",
        [GATE_POINT_STATE] = "?state",
    };
    Bench *bench = user_data;

    if (point == GATE_POINT_STATE && !bench->hold_state) {
        gate_continue(gate, point);
        return;
    }
    bench_record(bench, names[point], epoch);
    if (bench->pass && bench->gate)
        gate_continue(gate, point);
}

static void
bench_on_notice(Gate *gate G_GNUC_UNUSED, GateNotice notice, guint64 epoch, gpointer user_data)
{
    static const char *const names[] = {
        [GATE_NOTICE_RAM_DONE] = "ram-done", [GATE_NOTICE_READY] = "ready",
        [GATE_NOTICE_ARMED] = "armed",       [GATE_NOTICE_COMMITTED] = "committed",
        [GATE_NOTICE_LOADED] = "loaded",     [GATE_NOTICE_STALLED] = "stalled",
        [GATE_NOTICE_ANSWERED] = "answered",
    };

    bench_record(user_data, names[notice], epoch);
}

static void
bench_on_failed(Gate *gate G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Bench *bench = user_data;

    ck_assert_ptr_null(bench->failure);
    bench->failure = g_error_copy(reason);
    bench_record(bench, "failed", 0);
}

const GateHandlers bench_handlers = {bench_on_point, bench_on_notice, bench_on_failed};

gboolean
bench_on_vm(gint fd, GIOCondition condition G_GNUC_UNUSED, gpointer user_data)
{
    Bench *bench = user_data;
    static guint8 bytes[256 * 1024];
    ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (n > 0) {
        g_byte_array_append(bench->vm_got, bytes, (guint)n);
        return G_SOURCE_CONTINUE;
    }
    bench->vm_source = 0;
    return G_SOURCE_REMOVE;
}

static void
bench_on_peer_message(PeerChannel *channel G_GNUC_UNUSED, PeerMessageType type, View payload,
                      gpointer user_data)
{
    Bench *bench = user_data;

    if (type == PEER_MESSAGE_DATA_FORWARD || type == PEER_MESSAGE_DATA_RETURN) {
        ck_assert_uint_gt(payload.len, 0);
        g_byte_array_append(bench->peer_got, payload.data, (guint)payload.len);
        bench->n_data++;
        return;
    }

    uint64_t number = 0, length = 0, hash = 0;

    (void)view_get_be64(&payload, &number);
    g_string_append_printf(bench->peer_log, "%s%" G_GUINT64_FORMAT " ",
                           peer_message_type_name(type), number);
    if (type == PEER_MESSAGE_END && view_get_be64(&payload, &length) &&
        view_get_be64(&payload, &hash))
        g_string_append_printf(bench->peer_log,
                               "(%" G_GUINT64_FORMAT " %016" G_GINT64_MODIFIER "x) ", length, hash);
}

static void
bench_on_peer_drained(PeerChannel *channel G_GNUC_UNUSED, gpointer user_data G_GNUC_UNUSED)
{
}

static void
bench_on_peer_closed(PeerChannel *channel G_GNUC_UNUSED, const GError *reason G_GNUC_UNUSED,
                     gpointer user_data)
{
    g_string_append(((Bench *)user_data)->peer_log, "closed ");
}

GIOStream *
bench_stream(int fd)
{
    g_autoptr(GSocket) sock = g_socket_new_from_fd(fd, NULL);

    ck_assert_ptr_nonnull(sock);
    return G_IO_STREAM(g_socket_connection_factory_create_connection(sock));
}

void
bench_socketpair(int fds[2])
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
}

void
bench_open(Bench *bench, const BenchSide *side, const GateConfig *config)
{
    static const PeerChannelHandlers peer_handlers = {bench_on_peer_message, bench_on_peer_drained,
                                                      bench_on_peer_closed};
    int vm[2], channel[2];

    *bench = (Bench){.vm_got = g_byte_array_new(),
                     .peer_got = g_byte_array_new(),
                     .peer_log = g_string_new(NULL),
                     .log = g_string_new(NULL)};
    bench_socketpair(vm);
    bench_socketpair(channel);

    g_autoptr(GIOStream) ours = bench_stream(channel[0]);
    g_autoptr(GIOStream) theirs = bench_stream(channel[1]);

    bench->vm = vm[1];
    bench->vm_source = g_unix_fd_add(vm[1], G_IO_IN, bench_on_vm, bench);
    bench->peer = peer_channel_new(theirs, PEER_CHANNEL_CHECKPOINT, &peer_handlers, bench);
    bench->gate = side->primary ? gate_primary_new(vm[0], ours, BENCH_GENERATION, config,
                                                   &bench_handlers, bench)
                                : gate_secondary_new(vm[0], ours, config, &bench_handlers, bench);
}

void
bench_close_vm(Bench *bench)
{
    if (bench->vm_source)
        g_source_remove(bench->vm_source);
    bench->vm_source = 0;
    fd_clear(&bench->vm);
}

void
bench_open_at(Bench *bench, const BenchSide *side, const GateConfig *config, GateStep step)
{
    bench_open(bench, side, config ? config : &bench_config);
    side->arm(bench);
    side->advance(bench, step, 1);
}

void
bench_close_peer(Bench *bench)
{
    g_clear_pointer(&bench->peer, peer_channel_free);
    settle();
}

void
bench_close(Bench *bench)
{
    gate_free(bench->gate);
    bench_close_vm(bench);
    peer_channel_free(bench->peer);
    g_byte_array_unref(bench->vm_got);
    g_byte_array_unref(bench->peer_got);
    g_string_free(bench->peer_log, TRUE);
    g_string_free(bench->log, TRUE);
    g_clear_error(&bench->failure);
    settle();
}

void
vm_say(Bench *bench, const void *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(bench->vm, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EPIPE)
            return;
        ck_assert(n > 0 || errno == EAGAIN);
        if (n > 0) {
            bytes = (const char *)bytes + n;
            len -= (size_t)n;
        }
        settle();
    }
    settle();
}

void
vm_say_message(Bench *bench, uint32_t message)
{
    uint8_t bytes[4];

    be32_store(bytes, message);
    vm_say(bench, bytes, sizeof(bytes));
}

void
peer_say(Bench *bench, PeerMessageType type, const void *bytes, size_t len)
{
    do {
        size_t part = MIN(len, (size_t)PEER_DATA_MAX_BYTES);

        peer_channel_send(bench->peer, type, bytes, part);
        bytes = (const char *)bytes + part;
        len -= part;
        settle();
    } while (len > 0);
}

void
peer_say_message(Bench *bench, PeerMessageType type, uint32_t message)
{
    uint8_t bytes[4];

    be32_store(bytes, message);
    peer_say(bench, type, bytes, sizeof(bytes));
}

void
peer_say_number(Bench *bench, PeerMessageType type, uint64_t number)
{
    uint8_t bytes[8];

    be64_store(bytes, number);
    peer_say(bench, type, bytes, sizeof(bytes));
}

void
peer_say_end(Bench *bench, uint64_t epoch, uint64_t length, uint64_t hash)
{
    uint8_t end[PEER_END_BYTES];

    be64_store(end, epoch);
    be64_store(end + 8, length);
    be64_store(end + 16, hash);
    peer_say(bench, PEER_MESSAGE_END, end, sizeof(end));
}

void
expect_bytes(GByteArray *got, const void *bytes, size_t len)
{
    ck_assert_uint_eq(got->len, len);
    ck_assert(len == 0 || memcmp(got->data, bytes, len) == 0);
    g_byte_array_set_size(got, 0);
}

void
expect_message(GByteArray *got, uint32_t message)
{
    uint8_t bytes[4];

    be32_store(bytes, message);
    expect_bytes(got, bytes, sizeof(bytes));
}

void
expect_text(GString *log, const char *text)
{
    ck_assert_str_eq(log->str, text);
    g_string_truncate(log, 0);
}

static int
deadline_code(const char *text)
{
    return strstr(text, "from the peer") ? GATE_ERROR_PEER_DEADLINE : GATE_ERROR_DEADLINE;
}

void
expect_failure(Bench *bench, GateError code, const char *text)
{
    ck_assert_ptr_nonnull(bench->failure);
    ck_assert_msg(g_error_matches(bench->failure, GATE_ERROR, (gint)code), "%s",
                  bench->failure->message);
    ck_assert_ptr_nonnull(strstr(bench->failure->message, text));
}

void
expect_callback(Bench *bench, const char *name, guint64 epoch)
{
    g_autofree char *text = g_strdup_printf("%s%" G_GUINT64_FORMAT " ", name, epoch);

    expect_text(bench->log, text);
}

GByteArray *
delta_new(void)
{
    GByteArray *delta = g_byte_array_new();

    build_delta(delta, BENCH_PAGES);
    return delta;
}

GByteArray *
tail_new(void)
{
    GByteArray *tail = g_byte_array_new();

    build_tail(tail, BENCH_TAIL_BYTES);
    return tail;
}

GByteArray *
covered_new(void)
{
    GByteArray *covered = delta_new();

    build_tail(covered, BENCH_TAIL_BYTES);
    return covered;
}

/* --- Tests that are the same for both ends ---------------------------------------------------- */

void
bench_test_checkpoints(const BenchSide *side)
{
    Bench bench;
    GateFigures figures;

    bench_open(&bench, side, &bench_config);
    side->arm(&bench);
    gate_get_figures(bench.gate, &figures);
    ck_assert_uint_eq(figures.epoch, 0);
    for (guint64 epoch = 1; epoch <= 4; epoch++) {
        side->advance(&bench, GATE_STEP_LOAD, epoch);
        side->finish(&bench, epoch);
        gate_get_figures(bench.gate, &figures);
        ck_assert_uint_eq(figures.epoch, epoch);
        ck_assert_uint_eq(figures.pages, BENCH_PAGES);
        ck_assert_int_le(figures.request_ns, figures.committed_ns);
        ck_assert_int_le(figures.committed_ns, figures.loaded_ns);
    }
    ck_assert_ptr_null(bench.failure);
    bench_close(&bench);
}

void
bench_test_deadlines(const BenchSide *side, GateStep first, const char *const awaited[],
                     void (*check)(Bench *bench, GateStep step))
{
    GateConfig config = bench_config;

    config.message_timeout_ms = 150;
    for (GateStep step = first; step <= GATE_STEP_LOAD; step++) {
        Bench bench;

        bench_open_at(&bench, side, &config, step);
        WAIT(bench.failure);
        expect_failure(&bench, deadline_code(awaited[step]), awaited[step]);
        if (check)
            check(&bench, step);
        bench_close(&bench);
    }
}
