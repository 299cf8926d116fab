/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-front.c - colo-compare as a program: sockets, framing, notify protocol, back-pressure */
#include <errno.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "check-main.h"
#include "frame.h"
#include "packet.h"

enum { PRIMARY, SECONDARY, OUT, NOTIFY, N_SOCKETS, DEADLINE_MS = 20000 };

typedef struct Program {
    GPid pid;
    char *dir;
    bool vnet;
    int fd[N_SOCKETS];
    uint8_t *in; /* what came out */
    size_t in_len, in_size;
} Program;

static const char *const names[] = {"primary", "secondary", "out", "notify"};

static int64_t
now_ms(void)
{
    return g_get_monotonic_time() / 1000;
}

/* Connects; waits for the socket to appear. */
static int
connect_to(const Program *p, int which)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int64_t deadline = now_ms() + DEADLINE_MS;

    g_snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", p->dir, names[which]);
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        (void)close(fd);
        ck_assert_msg(now_ms() < deadline, "%s does not listen", address.sun_path);
        (void)poll(NULL, 0, 5);
    }
}

static Program *
program_start(const char *const *extra)
{
    Program *p = g_new0(Program, 1);
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) error = NULL;

    p->dir = g_dir_make_tmp("colo-compare-XXXXXX", NULL);
    g_ptr_array_add(argv, g_strdup(g_getenv("COLO_COMPARE")));
    for (int i = 0; i < N_SOCKETS; i++) {
        g_ptr_array_add(argv, g_strdup_printf("--%s", names[i]));
        g_ptr_array_add(argv, g_strdup_printf("unix:%s/%s", p->dir, names[i]));
    }
    g_ptr_array_add(argv, g_strdup("--stats-json"));
    g_ptr_array_add(argv, g_strdup_printf("%s/stats", p->dir));
    /* On a busy machine the usual 200 ms pass between two calls of a test; @extra may say less. */
    g_ptr_array_add(argv, g_strdup("--timeout-ms"));
    g_ptr_array_add(argv, g_strdup("10000"));
    for (int i = 0; extra && extra[i]; i++) {
        g_ptr_array_add(argv, g_strdup(extra[i]));
        p->vnet |= g_str_equal(extra[i], "--vnet-hdr");
    }
    g_ptr_array_add(argv, NULL);
    ck_assert_msg(g_spawn_async(NULL, (char **)argv->pdata, NULL, G_SPAWN_DO_NOT_REAP_CHILD, NULL,
                                NULL, &p->pid, &error),
                  "%s", error ? error->message : "");
    for (int i = 0; i < N_SOCKETS; i++)
        p->fd[i] = connect_to(p, i);
    return p;
}

static struct json_object *
program_stats(Program *p)
{
    g_autofree char *path = g_build_filename(p->dir, "stats", NULL);
    int64_t deadline = now_ms() + DEADLINE_MS;
    struct json_object *o = NULL;

    (void)g_unlink(path);
    (void)kill(p->pid, SIGUSR1);
    while (!(o = json_object_from_file(path)) && now_ms() < deadline)
        (void)poll(NULL, 0, 5);
    ck_assert_ptr_nonnull(o);
    return o;
}

static int64_t
stat_of(struct json_object *o, const char *a, const char *b)
{
    struct json_object *v = NULL;

    ck_assert_msg(json_object_object_get_ex(o, a, &v), "no %s", a);
    if (b)
        ck_assert_msg(json_object_object_get_ex(v, b, &v), "no %s", b);
    return json_object_get_int64(v);
}

static void
program_stop(Program *p)
{
    int status;

    (void)kill(p->pid, SIGTERM);
    (void)waitpid(p->pid, &status, 0);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
    for (int i = 0; i < N_SOCKETS; i++) {
        g_autofree char *path = g_build_filename(p->dir, names[i], NULL);

        (void)close(p->fd[i]);
        ck_assert_msg(access(path, F_OK) < 0, "%s is left", path);
    }
    g_autofree char *stats = g_build_filename(p->dir, "stats", NULL);

    ck_assert_int_eq(g_unlink(stats), 0); /* written at the end */
    (void)g_rmdir(p->dir);
    g_free(p->dir);
    g_free(p->in);
    g_free(p);
}

static void
put_all(int fd, const void *bytes, size_t len)
{
    const uint8_t *at = bytes;

    while (len > 0) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

        ck_assert_msg(n > 0, "send: %s", g_strerror(errno));
        at += n;
        len -= (size_t)n;
    }
}

static size_t
frame_up(const Program *p, const Packet *packet, uint8_t *buf)
{
    Packet with_header = *packet;
    size_t head = p->vnet ? 8 : 4;

    with_header.vnet_hdr_len = p->vnet ? 12 : 0;
    size_t len = packet_build(&with_header, buf + head);

    be32_store(buf, (uint32_t)len);
    if (p->vnet)
        be32_store(buf + 4, 12);
    return head + len;
}

static void
put_packet(const Program *p, int side, const Packet *packet)
{
    static uint8_t buf[PACKET_MAX + 8];

    put_all(p->fd[side], buf, frame_up(p, packet, buf));
}

static void
put_udp(const Program *p, int side, uint32_t number, uint16_t port)
{
    put_packet(p, side,
               &(Packet){.protocol = 17,
                         .payload = &number,
                         .len = 4,
                         .dport = port,
                         .dst = 0x0b000000u + port});
}

/* Reads what is there within @wait_ms into p->in. */
static bool
read_some(Program *p, int which, int wait_ms)
{
    struct pollfd fd = {.fd = p->fd[which], .events = POLLIN};

    if (p->in_size - p->in_len < 65536)
        p->in = g_realloc(p->in, p->in_size = p->in_size * 2 + 131072);
    if (poll(&fd, 1, wait_ms) <= 0)
        return false;
    ssize_t n = recv(p->fd[which], p->in + p->in_len, p->in_size - p->in_len, 0);

    if (n <= 0)
        return false;
    p->in_len += (size_t)n;
    return true;
}

/* Takes one packet (or text) that came; false if none comes in @wait_ms. */
static bool
get_packet(Program *p, int which, int wait_ms, uint8_t *buf, size_t *ret_len)
{
    size_t head = p->vnet && which == OUT ? 8 : 4;

    for (;;) {
        if (p->in_len >= head && p->in_len >= head + be32_load(p->in)) {
            *ret_len = be32_load(p->in);
            memcpy(buf, p->in + head, *ret_len);
            p->in_len -= head + *ret_len;
            memmove(p->in, p->in + head + *ret_len, p->in_len);
            return true;
        }
        if (!read_some(p, which, wait_ms))
            return false;
    }
}

static void
expect_udp(Program *p, uint32_t number)
{
    static uint8_t buf[PACKET_MAX];
    size_t len;
    uint32_t got;

    ck_assert_msg(get_packet(p, OUT, DEADLINE_MS, buf, &len), "packet %u does not come", number);
    memcpy(&got, buf + len - 4, 4);
    ck_assert_uint_eq(got, number);
}

static void
expect_text(Program *p, const char *text)
{
    static uint8_t buf[PACKET_MAX];
    size_t len;

    ck_assert_msg(get_packet(p, NOTIFY, DEADLINE_MS, buf, &len), "%s does not come", text);
    ck_assert_uint_eq(len, strlen(text));
    ck_assert_mem_eq(buf, text, len);
}

static void
put_text(const Program *p, const char *text)
{
    uint8_t buf[64];

    be32_store(buf, (uint32_t)strlen(text));
    memcpy(buf + 4, text, strlen(text));
    put_all(p->fd[NOTIFY], buf, 4 + strlen(text));
}

static void
many_flows(const char *const *options)
{
    enum { FLOWS = 50, EACH = 100 };
    Program *p = program_start(options);
    uint32_t next[FLOWS] = {0};
    static uint8_t buf[PACKET_MAX];

    for (uint32_t i = 0; i < EACH; i++) {
        for (int side = 0; side < 2; side++) {
            for (uint16_t f = 0; f < FLOWS; f++)
                put_udp(p, side, (uint32_t)f << 16 | i, (uint16_t)(1000 + f));
        }
    }
    for (int n = 0; n < FLOWS * EACH; n++) {
        size_t len;
        uint32_t number;

        ck_assert(get_packet(p, OUT, DEADLINE_MS, buf, &len));
        memcpy(&number, buf + len - 4, 4);
        ck_assert_uint_eq(number & 0xffff, next[number >> 16]++);
    }
    struct json_object *o = program_stats(p);

    ck_assert_int_eq(stat_of(o, "released_matched", NULL), FLOWS * EACH);
    ck_assert_int_eq(stat_of(o, "primary", "packets"), FLOWS * EACH);
    ck_assert_int_eq(stat_of(o, "flows", NULL), FLOWS);
    json_object_put(o);
    program_stop(p);
}

START_TEST(life_packets_of_both_sides_come_out_in_order)
{
    many_flows(NULL);
    many_flows((const char *[]){"--vnet-hdr", NULL});
    many_flows((const char *[]){"--shards", "3", NULL});
    many_flows((const char *[]){"--shards", "2", "--vnet-hdr", NULL});
}
END_TEST

static void
notify_case(const char *const *options)
{
    Program *p = program_start(options);

    put_text(p, "COLO_USERSPACE_PROXY_INIT");
    expect_text(p, "COLO_COMPARE_GET_XEN_INIT");
    put_udp(p, PRIMARY, 1, 1000);
    put_udp(p, SECONDARY, 2, 1000);
    expect_text(p, "DO_CHECKPOINT");
    expect_text(p, "DO_CHECKPOINT"); /* again, as no answer came */
    ck_assert(!read_some(p, OUT, 50));
    put_text(p, "COLO_CHECKPOINT");
    expect_udp(p, 1);
    put_udp(p, PRIMARY, 2, 1000); /* the secondary's 2 was of the old epoch */
    ck_assert(!read_some(p, OUT, 50));
    put_udp(p, SECONDARY, 2, 1000);
    expect_udp(p, 2);
    struct json_object *o = program_stats(p);

    ck_assert_int_eq(stat_of(o, "checkpoints", NULL), 1);
    ck_assert_int_eq(stat_of(o, "divergences", "timeout-primary"), 1);
    json_object_put(o);
    program_stop(p);
}

START_TEST(life_notify_protocol)
{
    notify_case((const char *[]){"--timeout-ms", "1000", NULL});
    notify_case((const char *[]){"--timeout-ms", "1000", "--shards", "2", NULL});
}
END_TEST

START_TEST(life_notify_messages_close_together)
{
    enum { ROUNDS = 2000 };
    Program *p = program_start(NULL);

    /* The second comes while the first is served, in each possible moment. */
    for (int i = 0; i < ROUNDS; i++) {
        put_text(p, "COLO_CHECKPOINT");
        put_text(p, "COLO_USERSPACE_PROXY_INIT");
        expect_text(p, "COLO_COMPARE_GET_XEN_INIT");
    }
    struct json_object *o = program_stats(p);

    ck_assert_int_eq(stat_of(o, "checkpoints", NULL), ROUNDS);
    json_object_put(o);
    program_stop(p);
}
END_TEST

START_TEST(err_wrong_framing_drops_the_peer_and_the_next_works)
{
    Program *p = program_start(NULL);
    uint8_t byte;

    put_all(p->fd[PRIMARY], "\xff\xff\xff\xff....", 8);
    ck_assert_int_eq(recv(p->fd[PRIMARY], &byte, 1, 0), 0);
    (void)close(p->fd[PRIMARY]);
    p->fd[PRIMARY] = connect_to(p, PRIMARY);
    put_udp(p, PRIMARY, 7, 1000);
    put_udp(p, SECONDARY, 7, 1000);
    expect_udp(p, 7);
    program_stop(p);
}
END_TEST

START_TEST(life_peers_come_and_go)
{
    Program *p = program_start(NULL);

    put_udp(p, PRIMARY, 1, 1000);
    put_udp(p, SECONDARY, 1, 1000);
    expect_udp(p, 1);
    for (int i = 0; i < N_SOCKETS; i++) {
        (void)close(p->fd[i]);
        p->fd[i] = -1;
    }
    p->fd[PRIMARY] = connect_to(p, PRIMARY);
    p->fd[SECONDARY] = connect_to(p, SECONDARY);
    put_udp(p, PRIMARY, 2, 1000);
    put_udp(p, SECONDARY, 2, 1000);
    /* No output peer yet: it is kept for the next one. */
    struct json_object *o;

    do {
        o = program_stats(p);
        int64_t n = stat_of(o, "released_matched", NULL);

        json_object_put(o);
        if (n == 2)
            break;
    } while (true);
    p->fd[OUT] = connect_to(p, OUT);
    expect_udp(p, 2);
    p->fd[NOTIFY] = connect_to(p, NOTIFY);
    put_text(p, "COLO_USERSPACE_PROXY_INIT");
    expect_text(p, "COLO_COMPARE_GET_XEN_INIT");
    program_stop(p);
}
END_TEST

/* Sends packets of the primary only, as many as are taken. Return: how many whole ones. */
static uint32_t
fill_primary(Program *p, uint32_t max)
{
    static uint8_t payload[1400], buf[PACKET_MAX];
    uint32_t n = 0;

    for (; n < max; n++) {
        memcpy(payload + sizeof(payload) - 4, &n, 4);
        size_t len = frame_up(p, &(Packet){.protocol = 17, .payload = payload, .len = 1400}, buf);
        struct pollfd fd = {.fd = p->fd[PRIMARY], .events = POLLOUT};

        if (poll(&fd, 1, 500) <= 0)
            break;
        put_all(p->fd[PRIMARY], buf, len);
    }
    return n;
}

static void
backpressure_case(const char *const *options)
{
    static uint8_t payload[1400], buf[PACKET_MAX];
    Program *p = program_start(options);
    uint32_t n = fill_primary(p, 50000);

    ck_assert_uint_lt(n, 50000); /* the sender was stopped... */
    uint32_t sent = 0;

    for (uint32_t i = 0; i < n;) { /* ...and nothing was lost */
        while (sent < n && sent < i + 64) {
            memcpy(payload + sizeof(payload) - 4, &sent, 4);
            put_packet(p, SECONDARY, &(Packet){.protocol = 17, .payload = payload, .len = 1400});
            sent++;
        }
        size_t len;
        uint32_t number;

        ck_assert_msg(get_packet(p, OUT, DEADLINE_MS, buf, &len), "%u of %u", i, n);
        memcpy(&number, buf + len - 4, 4);
        ck_assert_uint_eq(number, i);
        i++;
    }
    struct json_object *o = program_stats(p);

    ck_assert_int_le(stat_of(o, "held_bytes_max", NULL), 2 * 4 * 1024 * 1024);
    ck_assert_int_eq(stat_of(o, "divergences", "memory"), 0);
    json_object_put(o);
    program_stop(p);
}

START_TEST(sec_one_side_ahead_is_slowed_down_not_lost)
{
    backpressure_case((const char *[]){"--memory-mib", "4", "--timeout-ms", "10000", NULL});
    backpressure_case(
        (const char *[]){"--memory-mib", "4", "--timeout-ms", "10000", "--shards", "2", NULL});
}
END_TEST

static void
put_numbered(const Program *p, int side, uint32_t number)
{
    static uint8_t payload[1400];

    memcpy(payload + sizeof(payload) - 4, &number, 4);
    put_packet(p, side, &(Packet){.protocol = 17, .payload = payload, .len = sizeof(payload)});
}

/* The same, if the socket takes it within @wait_ms. */
static bool
try_numbered(const Program *p, int side, uint32_t number, int wait_ms)
{
    struct pollfd fd = {.fd = p->fd[side], .events = POLLOUT};

    if (poll(&fd, 1, wait_ms) <= 0)
        return false;
    put_numbered(p, side, number);
    return true;
}

static void
expect_numbered(Program *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        expect_udp(p, i);
}

static void
covered_case(const char *const *options)
{
    Program *p = program_start(options);
    uint32_t n = fill_primary(p, 50000);

    expect_text(p, "DO_CHECKPOINT");
    /* On to the bound, where the engine refuses them and they stay in the socket. */
    while (n < 50000 && try_numbered(p, PRIMARY, n, 500))
        n++;
    ck_assert_uint_lt(n, 50000);
    p->in_len = 0; /* it may have been said again */
    put_text(p, "COLO_CHECKPOINT");
    expect_numbered(p, n);
    /* Nothing of it waits for the secondary in the new epoch. */
    struct json_object *o = program_stats(p);

    ck_assert_int_eq(stat_of(o, "checkpoints", NULL), 1);
    ck_assert_int_eq(stat_of(o, "held_bytes", NULL), 0);
    ck_assert_int_eq(stat_of(o, "primary", "held"), 0);
    json_object_put(o);
    put_numbered(p, PRIMARY, n);
    put_numbered(p, SECONDARY, n);
    expect_udp(p, n);
    program_stop(p);
}

START_TEST(life_a_checkpoint_covers_what_was_still_in_the_socket)
{
    covered_case((const char *[]){"--memory-mib", "4", "--timeout-ms", "100", NULL});
    covered_case(
        (const char *[]){"--memory-mib", "4", "--timeout-ms", "100", "--shards", "2", NULL});
}
END_TEST

static void
write_first_case(const char *const *options)
{
    enum { N = 10000 };
    Program *p = program_start(options);

    /* QEMU's main loop is on both ends: while it writes it does not read. */
    for (uint32_t i = 0; i < N; i++) {
        ck_assert_msg(try_numbered(p, SECONDARY, i, DEADLINE_MS), "secondary blocked at %u", i);
        ck_assert_msg(try_numbered(p, PRIMARY, i, DEADLINE_MS), "primary blocked at %u", i);
    }
    expect_numbered(p, N);
    program_stop(p);
}

START_TEST(life_a_peer_that_writes_before_it_reads)
{
    write_first_case(NULL);
    write_first_case((const char *[]){"--shards", "2", NULL});
}
END_TEST

static void
wanted_case(const char *const *options)
{
    enum { MORE = 200, SECONDARY_MAX = 20000 };
    Program *p = program_start(options);
    uint32_t n = 0;

    while (try_numbered(p, PRIMARY, n, 100)) /* until it is as far ahead as it may be */
        n++;
    expect_text(p, "DO_CHECKPOINT");
    for (uint32_t i = 0; i < MORE; i++, n++)
        ck_assert_msg(try_numbered(p, PRIMARY, n, DEADLINE_MS), "primary blocked at %u", i);
    /* Far more than there is room for; none of it equals what the primary says. */
    for (uint32_t i = 0; i < SECONDARY_MAX; i++)
        ck_assert_msg(try_numbered(p, SECONDARY, UINT32_MAX - i, DEADLINE_MS),
                      "secondary blocked at %u", i);
    ck_assert(!read_some(p, OUT, 0));
    p->in_len = 0;
    put_text(p, "COLO_CHECKPOINT");
    expect_numbered(p, n);
    program_stop(p);
}

START_TEST(life_who_is_asked_for_a_checkpoint_is_not_blocked)
{
    wanted_case((const char *[]){"--memory-mib", "8", "--timeout-ms", "2000", NULL});
    wanted_case(
        (const char *[]){"--memory-mib", "8", "--timeout-ms", "2000", "--shards", "2", NULL});
}
END_TEST

START_TEST(life_a_new_peer_loses_nothing_of_the_one_before)
{
    Program *p =
        program_start((const char *[]){"--memory-mib", "4", "--timeout-ms", "10000", NULL});
    uint32_t n = fill_primary(p, 50000);

    ck_assert_uint_lt(n, 50000);
    (void)close(p->fd[PRIMARY]); /* with packets in its socket */
    p->fd[PRIMARY] = connect_to(p, PRIMARY);
    put_numbered(p, PRIMARY, n);
    for (uint32_t i = 0; i <= n; i++)
        put_numbered(p, SECONDARY, i);
    expect_numbered(p, n + 1);
    program_stop(p);
}
END_TEST

START_TEST(unit_empty_packets)
{
    enum { N = 100 };
    static const uint8_t headers[4 * N];
    Program *p = program_start(NULL);
    static uint8_t buf[PACKET_MAX];
    size_t len;

    put_all(p->fd[PRIMARY], headers, sizeof(headers));
    put_all(p->fd[SECONDARY], headers, sizeof(headers));
    for (int i = 0; i < N; i++) {
        ck_assert(get_packet(p, OUT, DEADLINE_MS, buf, &len));
        ck_assert_uint_eq(len, 0);
    }
    program_stop(p);
}
END_TEST

/* The frames of the first are held where they were read; those of the second go elsewhere. */
START_TEST(life_held_packets_outlive_their_peer)
{
    enum { EACH = 100 };
    Program *p = program_start(NULL);
    struct json_object *o;
    int64_t held;

    for (uint32_t i = 0; i < EACH; i++)
        put_numbered(p, PRIMARY, i);
    (void)close(p->fd[PRIMARY]);
    p->fd[PRIMARY] = connect_to(p, PRIMARY);
    for (uint32_t i = EACH; i < 2 * EACH; i++)
        put_numbered(p, PRIMARY, i);
    do {
        o = program_stats(p);
        held = stat_of(o, "primary", "held");
        json_object_put(o);
    } while (held < 2 * EACH);
    for (uint32_t i = 0; i < 2 * EACH; i++)
        put_numbered(p, SECONDARY, i);
    expect_numbered(p, 2 * EACH);
    program_stop(p);
}
END_TEST

/* Lost is what was in the socket of the one that left; the next gets whole packets, in order. */
START_TEST(life_a_new_output_peer_goes_on_with_a_whole_packet)
{
    enum { N = 3000, READ = 100 };
    Program *p = program_start(NULL);
    static uint8_t buf[PACKET_MAX];
    uint32_t next;
    size_t len;

    for (uint32_t i = 0; i < N; i++) { /* more than its socket takes */
        put_numbered(p, SECONDARY, i);
        put_numbered(p, PRIMARY, i);
    }
    expect_numbered(p, READ);
    (void)close(p->fd[OUT]);
    p->in_len = 0;
    p->fd[OUT] = connect_to(p, OUT);
    ck_assert(get_packet(p, OUT, DEADLINE_MS, buf, &len));
    memcpy(&next, buf + len - 4, 4);
    ck_assert_uint_ge(next, READ);
    ck_assert_uint_lt(next, N);
    while (++next < N)
        expect_udp(p, next);
    program_stop(p);
}
END_TEST

static int
run_status(const char *const *arguments)
{
    g_autofree char *err = NULL;
    int status = -1;
    const char *argv[8] = {g_getenv("COLO_COMPARE")};

    for (int i = 0; arguments[i]; i++)
        argv[i + 1] = arguments[i];
    ck_assert(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL,
                           &err, &status, NULL));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
put_ack(const Program *p, int side, uint16_t window)
{
    put_packet(p, side,
               &(Packet){.protocol = 6,
                         .tcp_flags = FRAME_TCP_ACK,
                         .seq = 1,
                         .ack = 1000,
                         .has_window = true,
                         .window = window});
}

static void
expect_window(Program *p, uint16_t window)
{
    static uint8_t buf[PACKET_MAX];
    size_t len;

    ck_assert(get_packet(p, OUT, DEADLINE_MS, buf, &len));
    ck_assert_uint_eq(be16_load(buf + len - 6), window); /* checksum and urgent pointer follow */
}

/* The second ack waits a quarter of the timeout; nobody sends anything that would wake us. */
static void
window_case(const char *const *options)
{
    Program *p = program_start(options);

    put_ack(p, SECONDARY, 300);
    put_ack(p, PRIMARY, 400);
    expect_window(p, 300);
    put_ack(p, PRIMARY, 900);
    expect_window(p, 300);
    struct json_object *o = program_stats(p);

    ck_assert_int_eq(stat_of(o, "windows_lowered", NULL), 2);
    ck_assert_int_eq(stat_of(o, "divergences", "timeout-primary"), 0);
    json_object_put(o);
    program_stop(p);
}

START_TEST(life_windows_are_lowered)
{
    window_case(NULL);
    window_case((const char *[]){"--shards", "2", NULL});
}
END_TEST

START_TEST(err_usage)
{
    ck_assert_int_eq(run_status((const char *[]){"--version", NULL}), 0);
    ck_assert_int_eq(run_status((const char *[]){NULL}), 2);
    ck_assert_int_eq(run_status((const char *[]){"--primary", "unix:/x", NULL}), 2);
    ck_assert_int_eq(run_status((const char *[]){"--primary", "nonsense", "--secondary", "unix:/x",
                                                 "--out", "unix:/x", NULL}),
                     1);
    ck_assert_int_eq(run_status((const char *[]){"--primary", "tcp:127.0.0.1", "--secondary",
                                                 "unix:/x", "--out", "unix:/x", NULL}),
                     1);
}
END_TEST

CHECK_MAIN("compare-front", life_packets_of_both_sides_come_out_in_order, unit_empty_packets,
           life_notify_protocol, life_notify_messages_close_together,
           err_wrong_framing_drops_the_peer_and_the_next_works, life_peers_come_and_go,
           sec_one_side_ahead_is_slowed_down_not_lost,
           life_a_checkpoint_covers_what_was_still_in_the_socket,
           life_a_peer_that_writes_before_it_reads,
           life_who_is_asked_for_a_checkpoint_is_not_blocked,
           life_a_new_peer_loses_nothing_of_the_one_before, life_held_packets_outlive_their_peer,
           life_a_new_output_peer_goes_on_with_a_whole_packet, life_windows_are_lowered, err_usage)
