/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test-lockstep-tcp.c - one TCP connection through proxies, rewriter and comparison, and over a
 * takeover
 *
 * The guests choose different initial numbers; the client knows PVM's only. Both guests and the
 * client are written out segment by segment.
 */
#include "lockstep-world.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"

enum {
    WAIT = WORLD_DEADLINE_MS,
    FIN = 1,
    SYN = 2,
    RST = 4,
    ACK = 16,
    ETHERNET = 14,
    IP = 20,
    TCP = 20,
    SEGMENT_MAX = 1600,
    CLIENT_ISN = 500,
    P_ISN = 1000,
    S_ISN = 500000,
};

typedef struct Segment {
    guint8 flags;
    guint32 seq, ack;
    size_t len;
    guint8 payload[SEGMENT_MAX];
} Segment;

static guint32
sum_words(guint32 sum, const guint8 *bytes, size_t len)
{
    for (size_t i = 0; i + 1 < len; i += 2)
        sum += be16_load(bytes + i);
    return len % 2 ? sum + (guint32)(bytes[len - 1] << 8) : sum;
}

static guint16
fold(guint32 sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (guint16)sum;
}

/* Over the pseudo header too; right if it is 0xffff. */
static guint16
tcp_sum(const guint8 *ip, size_t tcp_len)
{
    return fold(sum_words(sum_words(6 + (guint32)tcp_len, ip + 12, 8), ip + IP, tcp_len));
}

/* Between 10.0.0.2:80 (the guest) and 10.0.0.1:4000. Returns the frame's length. */
static size_t
build(guint8 frame[static SEGMENT_MAX], bool from_guest, guint8 flags, guint32 seq, guint32 ack,
      const char *text)
{
    static const guint8 guest[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56},
                        client[6] = {2, 0, 0, 0, 0, 1};
    size_t len = strlen(text);
    guint8 *ip = frame + ETHERNET, *tcp = ip + IP;

    memset(frame, 0, ETHERNET + IP + TCP);
    memcpy(frame, from_guest ? client : guest, 6);
    memcpy(frame + 6, from_guest ? guest : client, 6);
    be16_store(frame + 12, 0x0800);
    ip[0] = 0x45;
    be16_store(ip + 2, (guint16)(IP + TCP + len));
    ip[8] = 64;
    ip[9] = 6;
    be32_store(ip + 12, from_guest ? 0x0a000002 : 0x0a000001);
    be32_store(ip + 16, from_guest ? 0x0a000001 : 0x0a000002);
    be16_store(ip + 10, (guint16)~fold(sum_words(0, ip, IP)));
    be16_store(tcp, from_guest ? 80 : 4000);
    be16_store(tcp + 2, from_guest ? 4000 : 80);
    be32_store(tcp + 4, seq);
    be32_store(tcp + 8, ack);
    tcp[12] = 0x50;
    tcp[13] = flags;
    be16_store(tcp + 14, 1000);
    memcpy(tcp + TCP, text, len);
    be16_store(tcp + 16, (guint16)~tcp_sum(ip, TCP + len));
    return ETHERNET + IP + TCP + len;
}

static void
guest_says(World *w, guint8 flags, guint32 seq, guint32 ack, const char *text)
{
    guint8 frame[SEGMENT_MAX];

    guest_send_raw(w, frame, build(frame, true, flags, seq, ack, text));
}

static void
client_says(World *w, guint8 flags, guint32 seq, guint32 ack, const char *text)
{
    guint8 buffer[WORLD_TAP_HEADER + SEGMENT_MAX] = {0};
    size_t len = WORLD_TAP_HEADER + build(buffer + WORLD_TAP_HEADER, false, flags, seq, ack, text);

    ck_assert_int_eq(write(w->client_fd, buffer, len), (ssize_t)len);
}

/* Reads from the tap up to the next TCP segment. False: none came in time. */
static bool
next_segment(int fd, int wait_ms, Segment *ret)
{
    guint8 buffer[WORLD_TAP_HEADER + 70000];
    int64_t deadline_ns = clock_now_ns() + wait_ms * NS_PER_MS;

    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left_ns = MAX(deadline_ns - clock_now_ns(), 0);

        if (poll(&p, 1, (int)(left_ns / NS_PER_MS)) != 1)
            return false;

        ssize_t n = read(fd, buffer, sizeof(buffer));
        const guint8 *ip = buffer + WORLD_TAP_HEADER + ETHERNET, *tcp = ip + IP;

        if (n < WORLD_TAP_HEADER + ETHERNET + IP + TCP || be16_load(ip - 2) != 0x0800 || ip[9] != 6)
            continue;

        size_t tcp_len = (size_t)be16_load(ip + 2) - IP;

        ck_assert_uint_eq(tcp_sum(ip, tcp_len), 0xffff);
        *ret = (Segment){.flags = tcp[13],
                         .seq = be32_load(tcp + 4),
                         .ack = be32_load(tcp + 8),
                         .len = tcp_len - TCP};
        memcpy(ret->payload, tcp + TCP, ret->len);
        return true;
    }
}

static void
expect(int fd, guint8 flags, guint32 seq, guint32 ack, const char *text)
{
    Segment s;

    ck_assert(next_segment(fd, WAIT, &s));
    ck_assert_uint_eq(s.flags, flags);
    ck_assert_uint_eq(s.seq, seq);
    ck_assert_uint_eq(s.ack, ack);
    ck_assert_uint_eq(s.len, strlen(text));
    ck_assert_mem_eq(s.payload, text, s.len);
}

/* The client opens a connection; each guest answers in its own numbers. */
static void
open_connection(Pair *pair)
{
    client_says(&pair->p, SYN, CLIENT_ISN, 0, "");
    expect(pair->p.guest_fd, SYN, CLIENT_ISN, 0, "");
    expect(pair->s.guest_fd, SYN, CLIENT_ISN, 0, "");
    guest_says(&pair->p, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    guest_says(&pair->s, SYN | ACK, S_ISN, CLIENT_ISN + 1, "");
    expect(pair->p.client_fd, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    client_says(&pair->p, ACK, CLIENT_ISN + 1, P_ISN + 1, "");
    expect(pair->p.guest_fd, ACK, CLIENT_ISN + 1, P_ISN + 1, "");
    expect(pair->s.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
}

/* A request of 3 bytes and an answer of 5. */
static void
exchange(Pair *pair)
{
    client_says(&pair->p, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    expect(pair->p.guest_fd, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    expect(pair->s.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "GET");
    guest_says(&pair->p, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
    guest_says(&pair->s, ACK, S_ISN + 1, CLIENT_ISN + 4, "hello");
    expect(pair->p.client_fd, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
}

START_TEST(unit_numbers_differ_inside_and_agree_outside)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, 1000, PAIR_HOLD_BYTES);
    open_connection(&pair);
    exchange(&pair);
    ck_assert_uint_eq(pair.p.n_divergences, 0);
    WORLD_UNTIL(&pair.s, st.rewriter_connections == 1 && st.rewriter_untracked == 0);
    WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_MATCHED] == 2);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_an_ack_is_lowered_to_what_the_secondary_has)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, 1000, PAIR_HOLD_BYTES);
    open_connection(&pair);
    client_says(&pair.p, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    expect(pair.p.guest_fd, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    /* SVM says the same before it has seen the request. */
    guest_says(&pair.s, ACK, S_ISN + 1, CLIENT_ISN + 1, "hello");
    guest_says(&pair.p, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
    expect(pair.p.client_fd, ACK, P_ISN + 1, CLIENT_ISN + 1, "hello");
    WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_ACK_LOWERED] == 1);
    pair_clear(&pair);
}
END_TEST

START_TEST(unit_different_bytes_diverge_at_once)
{
    Pair pair;
    int64_t start_ns;

    pair_init(&pair, PROXY_PORT_TAP, 5000, PAIR_HOLD_BYTES);
    open_connection(&pair);
    start_ns = clock_now_ns();
    guest_says(&pair.p, ACK, P_ISN + 1, CLIENT_ISN + 1, "hello");
    guest_says(&pair.s, ACK, S_ISN + 1, CLIENT_ISN + 1, "help!");
    world_until(&pair.p.n_divergences, 1);
    ck_assert_int_lt(clock_now_ns() - start_ns, 2 * NS_PER_S);
    ck_assert_int_eq(pair.p.divergence.rule, COMPARE_RULE_PAYLOAD);
    ck_assert_uint_eq(pair.p.divergence.offset, 3);
    pair_checkpoint(&pair);
    expect(pair.p.client_fd, ACK, P_ISN + 1, CLIENT_ISN + 1, "hello");
    /* SVM is PVM now: the same numbers, and no rewriting any more. */
    guest_says(&pair.p, ACK, P_ISN + 6, CLIENT_ISN + 1, "more");
    guest_says(&pair.s, ACK, P_ISN + 6, CLIENT_ISN + 1, "more");
    expect(pair.p.client_fd, ACK, P_ISN + 6, CLIENT_ISN + 1, "more");
    client_says(&pair.p, ACK, CLIENT_ISN + 1, P_ISN + 10, "");
    expect(pair.s.guest_fd, ACK, CLIENT_ISN + 1, P_ISN + 10, "");
    pair_clear(&pair);
}
END_TEST

/* The survivor's own secondary takes over in its turn: inside it are the numbers of the first
 * secondary, outside those of the first primary. */
static void
take_over_again(World *survivor, World *next)
{
    proxy_free(survivor->proxy);
    survivor->proxy = NULL;
    world_egress(next, PROXY_EGRESS_OPEN);
    world_ingress(next, true);
    expect(next->client_fd, ACK, P_ISN + 14, CLIENT_ISN + 7, "again");
    guest_says(next, ACK, S_ISN + 19, CLIENT_ISN + 9, "still here");
    expect(next->client_fd, ACK, P_ISN + 19, CLIENT_ISN + 9, "still here");
    client_says(next, ACK, CLIENT_ISN + 9, P_ISN + 29, "good");
    expect(next->guest_fd, ACK, CLIENT_ISN + 9, S_ISN + 29, "good");
}

/* The survivor protects itself again with @next. */
static void
protect_again(World *survivor, World *next, unsigned index)
{
    int fds[2];

    world_open(next, index, PROXY_PORT_TAP, &survivor->base);
    pair_sockets(fds);
    world_attach_fd(survivor, fds[0]);
    world_attach_fd(next, fds[1]);
    world_egress(next, PROXY_EGRESS_SHADOW);
    proxy_set_lease(survivor->proxy, INT64_MAX);
    world_egress(survivor, PROXY_EGRESS_COMPARE);
}

static void
take_over(World *dead, World *survivor)
{
    proxy_free(dead->proxy);
    dead->proxy = NULL;
    world_egress(survivor, PROXY_EGRESS_OPEN);
    world_ingress(survivor, true);
}

/* The client has PVM's SYN-ACK, but its ACK does not come through before PVM dies. */
static void
die_in_a_handshake(Pair *pair)
{
    pair_init(pair, PROXY_PORT_TAP, 1000, PAIR_HOLD_BYTES);
    client_says(&pair->p, SYN, CLIENT_ISN, 0, "");
    expect(pair->p.guest_fd, SYN, CLIENT_ISN, 0, "");
    expect(pair->s.guest_fd, SYN, CLIENT_ISN, 0, "");
    guest_says(&pair->p, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    guest_says(&pair->s, SYN | ACK, S_ISN, CLIENT_ISN + 1, "");
    expect(pair->p.client_fd, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    take_over(&pair->p, &pair->s);
    expect(pair->s.client_fd, SYN | ACK, S_ISN, CLIENT_ISN + 1, "");
}

/* The last of a row of survivors: inside are S's numbers, outside P's. */
static void
expect_translated(World *w)
{
    client_says(w, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    expect(w->guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "GET");
    guest_says(w, ACK, S_ISN + 1, CLIENT_ISN + 4, "hello");
    expect(w->client_fd, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
}

/* It ends under the new primary, which tells the new secondary; and so on. */
START_TEST(life_a_handshake_that_ends_after_the_arming_survives_the_next_takeovers)
{
    Pair pair;
    World t, u;

    die_in_a_handshake(&pair);
    protect_again(&pair.s, &t, 2);
    /* Both guests repeat it. */
    guest_says(&pair.s, SYN | ACK, S_ISN, CLIENT_ISN + 1, "");
    guest_says(&t, SYN | ACK, S_ISN, CLIENT_ISN + 1, "");
    expect(pair.s.client_fd, SYN | ACK, S_ISN, CLIENT_ISN + 1, "");
    client_says(&pair.s, ACK, CLIENT_ISN + 1, P_ISN + 1, "");
    expect(pair.s.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
    expect(t.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
    take_over(&pair.s, &t);
    expect(t.client_fd, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    protect_again(&t, &u, 3);
    client_says(&t, ACK, CLIENT_ISN + 1, P_ISN + 1, "");
    expect(t.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
    expect(u.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
    take_over(&t, &u);
    expect_translated(&u);
    world_clear(&u);
    world_clear(&t);
    pair_clear(&pair);
}
END_TEST

/* It has not ended when the new primary dies too; the second survivor learns from the client, also
 * as the primary of a third pair. */
START_TEST(life_a_handshake_survives_two_takeovers)
{
    for (unsigned again = 0; again < 2; again++) {
        Pair pair;
        World t, u;

        die_in_a_handshake(&pair);
        protect_again(&pair.s, &t, 2);
        client_says(&pair.s, SYN, CLIENT_ISN, 0, ""); /* what was sent before has arrived */
        expect(t.guest_fd, SYN, CLIENT_ISN, 0, "");
        take_over(&pair.s, &t);
        if (again) {
            protect_again(&t, &u, 3);
            client_says(&t, ACK, CLIENT_ISN + 1, P_ISN + 1, "");
            expect(t.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
            expect(u.guest_fd, ACK, CLIENT_ISN + 1, S_ISN + 1, "");
            take_over(&t, &u);
            expect_translated(&u);
            world_clear(&u);
        } else {
            expect_translated(&t);
        }
        world_clear(&t);
        pair_clear(&pair);
    }
}
END_TEST

/* The guests have given the old handshake up, and the client comes by the same ports. */
START_TEST(life_the_next_connection_ends_an_inherited_handshake)
{
    enum { NEXT_ISN = 90000, T_ISN = 777000, Q_ISN = 42000 };
    Pair pair;
    World t;

    die_in_a_handshake(&pair);
    protect_again(&pair.s, &t, 2);
    client_says(&pair.s, SYN, NEXT_ISN, 0, "");
    expect(pair.s.guest_fd, SYN, NEXT_ISN, 0, "");
    expect(t.guest_fd, SYN, NEXT_ISN, 0, "");
    guest_says(&pair.s, SYN | ACK, Q_ISN, NEXT_ISN + 1, "");
    guest_says(&t, SYN | ACK, T_ISN, NEXT_ISN + 1, "");
    expect(pair.s.client_fd, SYN | ACK, Q_ISN, NEXT_ISN + 1, "");
    client_says(&pair.s, ACK, NEXT_ISN + 1, Q_ISN + 1, "");
    expect(pair.s.guest_fd, ACK, NEXT_ISN + 1, Q_ISN + 1, "");
    expect(t.guest_fd, ACK, NEXT_ISN + 1, T_ISN + 1, "");
    take_over(&pair.s, &t);
    expect(t.client_fd, SYN | ACK, Q_ISN, NEXT_ISN + 1, "");
    client_says(&t, ACK, NEXT_ISN + 1, Q_ISN + 1, "GET");
    expect(t.guest_fd, ACK, NEXT_ISN + 1, T_ISN + 1, "GET");
    world_clear(&t);
    pair_clear(&pair);
}
END_TEST

START_TEST(life_a_connection_survives_two_takeovers_in_both_directions)
{
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, 1000, PAIR_HOLD_BYTES);
    open_connection(&pair);
    exchange(&pair);
    proxy_free(pair.p.proxy);
    pair.p.proxy = NULL;
    world_egress(&pair.s, PROXY_EGRESS_OPEN);
    world_ingress(&pair.s, true);
    /* What was said lately comes once more, in the numbers that the client knows. */
    expect(pair.s.client_fd, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    expect(pair.s.client_fd, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
    guest_says(&pair.s, ACK, S_ISN + 6, CLIENT_ISN + 4, "on we go");
    expect(pair.s.client_fd, ACK, P_ISN + 6, CLIENT_ISN + 4, "on we go");
    client_says(&pair.s, ACK, CLIENT_ISN + 4, P_ISN + 14, "yes");
    expect(pair.s.guest_fd, ACK, CLIENT_ISN + 4, S_ISN + 14, "yes");

    /* The survivor protects itself again: its output is compared in its own numbers and leaves in
     * the client's. */
    World t;
    int fds[2];

    world_open(&t, 2, PROXY_PORT_TAP, &pair.s.base);
    pair_sockets(fds);
    world_attach_fd(&pair.s, fds[0]);
    world_attach_fd(&t, fds[1]);
    world_egress(&t, PROXY_EGRESS_SHADOW);
    proxy_set_lease(pair.s.proxy, INT64_MAX);
    world_egress(&pair.s, PROXY_EGRESS_COMPARE);
    guest_says(&pair.s, ACK, S_ISN + 14, CLIENT_ISN + 7, "again");
    guest_says(&t, ACK, S_ISN + 14, CLIENT_ISN + 7, "again");
    expect(pair.s.client_fd, ACK, P_ISN + 14, CLIENT_ISN + 7, "again");
    client_says(&pair.s, ACK, CLIENT_ISN + 7, P_ISN + 19, "ok");
    expect(pair.s.guest_fd, ACK, CLIENT_ISN + 7, S_ISN + 19, "ok");
    expect(t.guest_fd, ACK, CLIENT_ISN + 7, S_ISN + 19, "ok");
    take_over_again(&pair.s, &t);
    world_clear(&t);
    pair_clear(&pair);
}
END_TEST

/* The guests and the client have closed. What one guest says to a straggler the other need not say:
 * the primary's leaves, the secondary's is forgotten, and nothing waits for a checkpoint. */
START_TEST(unit_a_guest_alone_refuses_a_straggler)
{
    const guint32 end = P_ISN + 7, s_end = S_ISN + 7; /* behind "hello" and FIN */
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    open_connection(&pair);
    exchange(&pair);
    guest_says(&pair.p, FIN | ACK, end - 1, CLIENT_ISN + 4, "");
    guest_says(&pair.s, FIN | ACK, s_end - 1, CLIENT_ISN + 4, "");
    expect(pair.p.client_fd, FIN | ACK, end - 1, CLIENT_ISN + 4, "");
    client_says(&pair.p, FIN | ACK, CLIENT_ISN + 4, end, "");
    expect(pair.p.guest_fd, FIN | ACK, CLIENT_ISN + 4, end, "");
    expect(pair.s.guest_fd, FIN | ACK, CLIENT_ISN + 4, s_end, "");
    guest_says(&pair.s, RST, s_end, 0, "");
    WORLD_UNTIL(&pair.p, st.compared_frames[COMPARE_SECONDARY] == 4 &&
                             st.engine_frames[COMPARE_SECONDARY] == 0);
    guest_says(&pair.p, RST, end, 0, "");
    expect(pair.p.client_fd, RST, end, 0, "");
    ck_assert_uint_eq(pair.p.n_divergences, 0);
    pair_clear(&pair);
}
END_TEST

/* --- the daemon of a survivor dies, its guest does not --- */

static const ProxyVm svm = {
    .boot_id = "11111111-2222-3333-4444-555555555555", .pid = 4711, .start_ticks = 99};

typedef struct KeepingPair {
    Pair pair;
    char *dir, *path; /* of the secondary */
} KeepingPair;

static void
keeping_init(KeepingPair *k)
{
    Pair *pair = &k->pair;
    ProxyConfig base;

    *k = (KeepingPair){.dir = g_dir_make_tmp("colod-kept-XXXXXX", NULL)};
    k->path = g_build_filename(k->dir, "connections", NULL);
    lockstep_config(&base, 1000, PAIR_HOLD_BYTES);
    world_enter();
    world_open(&pair->p, 0, PROXY_PORT_TAP, &base);
    base.connections_path = k->path;
    world_open(&pair->s, 1, PROXY_PORT_TAP, &base);
    ck_assert_str_eq(proxy_get_kept(pair->s.proxy)->problem, "");
    proxy_set_vm(pair->s.proxy, &svm);
    pair_join(pair);
}

static void
keeping_clear(KeepingPair *k)
{
    pair_clear(&k->pair);
    proxy_forget_connections(k->path);
    ck_assert_int_eq(g_rmdir(k->dir), 0); /* nothing else is left */
    g_free(k->path);
    g_free(k->dir);
}

/* The next daemon adopts the guest, which goes on alone. */
static const ProxyKept *
restart(World *w, const ProxyVm *vm)
{
    auto_fd int copy = fcntl(w->guest_fd, F_DUPFD_CLOEXEC, 0);

    proxy_free(w->proxy);
    w->base.vm = *vm;
    w->proxy = world_proxy(w, PROXY_PORT_TAP, PAIR_HOLD_BYTES, copy);
    world_egress(w, PROXY_EGRESS_OPEN);
    world_ingress(w, true);
    return proxy_get_kept(w->proxy);
}

/* @path: where the next one keeps what it knows, or NULL. */
static void
protect_again_keeping(World *survivor, World *next, unsigned index, const char *path)
{
    const char *ours = survivor->base.connections_path;

    survivor->base.connections_path = path;
    protect_again(survivor, next, index);
    survivor->base.connections_path = ours;
}

/* Its daemon dies before it has taken over, after that, and when there is a new secondary; each
 * time the connection goes on in the numbers that the client knows. */
START_TEST(life_a_connection_survives_the_daemons_of_the_survivor)
{
    KeepingPair k;
    World *s = &k.pair.s, t;
    const ProxyKept *kept;

    keeping_init(&k);
    open_connection(&k.pair);
    proxy_free(k.pair.p.proxy);
    k.pair.p.proxy = NULL;
    for (int i = 0; i < 3; i++) {
        kept = restart(s, &svm);
        ck_assert_str_eq(kept->problem, "");
        ck_assert_uint_eq(kept->loaded, 1);
        expect_translated(s);
    }
    protect_again_keeping(s, &t, 2, NULL);
    guest_says(s, ACK, S_ISN + 1, CLIENT_ISN + 4, "hello");
    guest_says(&t, ACK, S_ISN + 1, CLIENT_ISN + 4, "hello");
    expect(s->client_fd, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
    kept = restart(s, &svm);
    ck_assert_uint_eq(kept->loaded, 1);
    expect_translated(s);
    /* The next secondary is told by the daemon that was told itself. */
    world_clear(&t);
    protect_again_keeping(s, &t, 3, NULL);
    guest_says(s, ACK, S_ISN + 1, CLIENT_ISN + 4, "hello");
    guest_says(&t, ACK, S_ISN + 1, CLIENT_ISN + 4, "hello");
    expect(s->client_fd, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
    take_over(s, &t);
    expect(t.client_fd, ACK, P_ISN + 1, CLIENT_ISN + 4, "hello");
    expect_translated(&t);
    world_clear(&t);
    keeping_clear(&k);
}
END_TEST

/* What a survivor was told of by the primary it had: the older layer. */
START_TEST(life_an_inherited_connection_survives_the_daemon)
{
    KeepingPair k;
    World t;
    g_autofree char *dir = g_dir_make_tmp("colod-kept-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "connections", NULL);

    keeping_init(&k);
    open_connection(&k.pair);
    take_over(&k.pair.p, &k.pair.s);
    expect(k.pair.s.client_fd, SYN | ACK, P_ISN, CLIENT_ISN + 1, "");
    protect_again_keeping(&k.pair.s, &t, 2, path);
    proxy_set_vm(t.proxy, &svm);
    guest_says(&k.pair.s, ACK, S_ISN + 1, CLIENT_ISN + 1, "hello");
    guest_says(&t, ACK, S_ISN + 1, CLIENT_ISN + 1, "hello");
    expect(k.pair.s.client_fd, ACK, P_ISN + 1, CLIENT_ISN + 1, "hello");
    proxy_free(k.pair.s.proxy);
    k.pair.s.proxy = NULL;
    ck_assert_uint_eq(restart(&t, &svm)->loaded, 1);
    expect_translated(&t);
    world_clear(&t);
    proxy_forget_connections(path);
    ck_assert_int_eq(g_rmdir(dir), 0);
    keeping_clear(&k);
}
END_TEST

START_TEST(life_a_commit_is_the_end_of_what_is_kept)
{
    KeepingPair k;

    keeping_init(&k);
    open_connection(&k.pair);
    pair_checkpoint(&k.pair);
    proxy_free(k.pair.p.proxy);
    k.pair.p.proxy = NULL;
    ck_assert_uint_eq(restart(&k.pair.s, &svm)->loaded, 0);
    /* SVM is PVM. */
    client_says(&k.pair.s, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    expect(k.pair.s.guest_fd, ACK, CLIENT_ISN + 1, P_ISN + 1, "GET");
    keeping_clear(&k);
}
END_TEST

/* Nothing of it is believed, and the VM goes on. */
START_TEST(err_what_is_kept_of_another_vm_is_ignored)
{
    const ProxyVm other = {.boot_id = "another", .pid = 4711, .start_ticks = 99};
    KeepingPair k;
    const ProxyKept *kept;

    keeping_init(&k);
    open_connection(&k.pair);
    proxy_free(k.pair.p.proxy);
    k.pair.p.proxy = NULL;
    kept = restart(&k.pair.s, &other);
    ck_assert_uint_eq(kept->loaded, 0);
    ck_assert_msg(strstr(kept->problem, "it is of another VM") != NULL, "%s", kept->problem);
    guest_says(&k.pair.s, ACK, S_ISN + 1, CLIENT_ISN + 1, "hello");
    expect(k.pair.s.client_fd, ACK, S_ISN + 1, CLIENT_ISN + 1, "hello");
    keeping_clear(&k);
}
END_TEST

CHECK_MAIN("lockstep-tcp", unit_numbers_differ_inside_and_agree_outside,
           unit_a_guest_alone_refuses_a_straggler, unit_an_ack_is_lowered_to_what_the_secondary_has,
           unit_different_bytes_diverge_at_once,
           life_a_connection_survives_two_takeovers_in_both_directions,
           life_a_handshake_that_ends_after_the_arming_survives_the_next_takeovers,
           life_a_handshake_survives_two_takeovers,
           life_a_connection_survives_the_daemons_of_the_survivor,
           life_an_inherited_connection_survives_the_daemon,
           life_a_commit_is_the_end_of_what_is_kept, err_what_is_kept_of_another_vm_is_ignored,
           life_the_next_connection_ends_an_inherited_handshake)
