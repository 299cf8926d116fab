/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-lockstep-digests.c - SVM's large segments cross the channel as digests, and whole where
 * that is not enough */
#include "lockstep-world.h"

#include "check-main.h"
#include "digests.h"

#include <linux/virtio_net.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"

enum {
    WAIT = WORLD_DEADLINE_MS,
    UNIT = 1448,
    IP_AT = WORLD_TAP_HEADER + 14,
    TCP_AT = IP_AT + 20,
    PAYLOAD_AT = TCP_AT + 20,
    PAYLOAD = 40 * UNIT + 7,
    FRAME = PAYLOAD_AT + PAYLOAD,
};

static void
fill_ip_checksum(uint8_t *ip)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < 20; i += 2)
        sum += be16_load(ip + i);
    sum = (sum & 0xffff) + (sum >> 16);
    be16_store(ip + 10, (uint16_t) ~(sum + (sum >> 16)));
}

/* A GSO segment as a guest sends it. */
static void
build(uint8_t *frame, uint32_t seq)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
    const struct virtio_net_hdr header = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                          .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                                          .hdr_len = 54,
                                          .gso_size = UNIT,
                                          .csum_start = 34,
                                          .csum_offset = 16};
    uint8_t *ip = frame + IP_AT, *tcp = frame + TCP_AT;

    memset(frame, 0, PAYLOAD_AT);
    memcpy(frame, &header, sizeof(header));
    memset(frame + WORLD_TAP_HEADER, 0xff, 6);
    memcpy(frame + WORLD_TAP_HEADER + 6, mac, 6);
    be16_store(frame + WORLD_TAP_HEADER + 12, 0x0800);
    ip[0] = 0x45;
    be16_store(ip + 2, FRAME - IP_AT);
    ip[8] = 64;
    ip[9] = 6;
    memcpy(ip + 12, (uint8_t[]){10, 77, 0, 2, 10, 77, 0, 1}, 8);
    fill_ip_checksum(ip);
    be16_store(tcp, 80);
    be16_store(tcp + 2, 4000);
    be32_store(tcp + 4, seq);
    be32_store(tcp + 8, 500);
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    be16_store(tcp + 14, 5000);
    for (unsigned i = 0; i < PAYLOAD; i++)
        frame[PAYLOAD_AT + i] = (uint8_t)((seq + i) * 31 + ((seq + i) >> 8));
}

static void
say(World *w, const uint8_t *frame)
{
    ck_assert_int_eq(write(w->guest_fd, frame, FRAME), FRAME);
}

/* The client gets this segment, whole. */
static void
expect_segment(World *w, const uint8_t *want)
{
    static uint8_t got[WORLD_TAP_HEADER + 70000];
    int64_t deadline_ns = clock_now_ns() + WAIT * NS_PER_MS;

    for (;;) {
        ssize_t n = read(w->client_fd, got, sizeof(got));

        if (n == FRAME && memcmp(got + TCP_AT, want + TCP_AT, 12) == 0)
            break;
        ck_assert_msg(clock_now_ns() < deadline_ns, "no segment");
        while (g_main_context_iteration(NULL, FALSE))
            continue;
    }
    ck_assert_mem_eq(got + PAYLOAD_AT, want + PAYLOAD_AT, PAYLOAD);
}

START_TEST(unit_equal_segments_cross_as_digests)
{
    static uint8_t frame[FRAME];
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (unsigned i = 0; i < 50; i++) {
        build(frame, 1000 + i * PAYLOAD);
        say(i % 2 ? &pair.p : &pair.s, frame);
        say(i % 2 ? &pair.s : &pair.p, frame);
        expect_segment(&pair.p, frame);
    }
    /* The key may come after SVM's first words, which go whole then. */
    WORLD_UNTIL(&pair.p, st.digests >= 45);
    ck_assert_uint_eq(world_stats(&pair.p).digests_wanted, 0);
    ck_assert_uint_eq(pair.p.n_divergences, 0);
    pair_clear(&pair);
}
END_TEST

/* SVM says something else once: the whole segment is fetched, and the record shows both. */
START_TEST(err_a_difference_is_decided_by_the_whole_segment)
{
    static uint8_t frame[FRAME], other[FRAME];
    const unsigned at = 20 * UNIT + 3;
    Pair pair;

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    for (unsigned i = 0; i < 10; i++) {
        build(frame, 1000 + i * PAYLOAD);
        say(&pair.s, frame);
        say(&pair.p, frame);
        expect_segment(&pair.p, frame);
    }
    build(frame, 1000 + 10 * PAYLOAD);
    memcpy(other, frame, sizeof(other));
    other[PAYLOAD_AT + at] ^= 1;
    say(&pair.s, other);
    say(&pair.p, frame);
    world_until(&pair.p.n_divergences, 1);
    ck_assert_int_eq(pair.p.divergence.rule, COMPARE_RULE_PAYLOAD);
    ck_assert_uint_eq(pair.p.divergence.offset, 10 * PAYLOAD + at);
    ck_assert_int_lt(pair.p.divergence.waited_ns, PAIR_TIMEOUT_MS * NS_PER_MS);
    WORLD_UNTIL(&pair.p, st.digests_wanted == 1);
    pair_checkpoint(&pair);
    expect_segment(&pair.p, frame);

    /* For a while large frames go whole, then as digests again. */
    guint64 before = world_stats(&pair.p).digests;

    for (unsigned i = 11; i < 111; i++) {
        build(frame, 1000 + i * PAYLOAD);
        say(&pair.s, frame);
        say(&pair.p, frame);
        expect_segment(&pair.p, frame);
        if (i == 60)
            ck_assert_uint_eq(world_stats(&pair.p).digests, before);
    }
    WORLD_UNTIL(&pair.p, st.digests == before + 36);
    ck_assert_uint_eq(world_stats(&pair.p).digests_wanted, 1);
    pair_clear(&pair);
}
END_TEST

/* A new channel begins without a key, and gets it. */
START_TEST(life_digests_on_a_new_channel)
{
    static uint8_t frame[FRAME];
    Pair pair;
    int fds[2];

    pair_init(&pair, PROXY_PORT_TAP, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    pair_sockets(fds);
    world_attach_fd(&pair.p, fds[0]);
    world_attach_fd(&pair.s, fds[1]);
    world_egress(&pair.s, PROXY_EGRESS_SHADOW);
    for (unsigned i = 0; i < 20; i++) {
        build(frame, 1000 + i * PAYLOAD);
        say(&pair.s, frame);
        say(&pair.p, frame);
        expect_segment(&pair.p, frame);
    }
    WORLD_UNTIL(&pair.p, st.digests >= 15);
    pair_clear(&pair);
}
END_TEST

static void
tell(int fd, WireKind kind, uint8_t *frame, size_t len)
{
    uint8_t message[4096];
    size_t n = wire_encode(
        message,
        &(WireFrame){.sequence = ++pair_wire_sequence, .kind = kind, .frame = frame, .len = len});

    ck_assert_int_eq(send(fd, message, n, MSG_NOSIGNAL), (ssize_t)n);
}

/* A secondary; the test is its primary. */
static int
lone_secondary(World *w)
{
    ProxyConfig base;
    int fds[2];

    pair_wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    world_enter();
    world_open(w, 0, PROXY_PORT_TAP, &base);
    pair_sockets(fds);
    world_attach_fd(w, fds[0]);
    world_egress(w, PROXY_EGRESS_SHADOW);
    return fds[1];
}

START_TEST(sec_a_malformed_key_or_request_ends_the_channel)
{
    static const struct {
        WireKind kind;
        size_t len;
        uint8_t last;
        const char *text;
    } cases[] = {
        {WIRE_DIGEST_KEY, WIRE_VNET_BYTES + DIGEST_SECRET_BYTES - 1, 0, "key"},
        {WIRE_DIGEST_KEY, WIRE_VNET_BYTES + DIGEST_SECRET_BYTES + 1, 0, "key"},
        {WIRE_WANT, DIGESTS_WANT_BYTES + 1, 0, "request"},
        {WIRE_WANT, DIGESTS_WANT_BYTES - 1, 0, "request"},
        {WIRE_WANT, DIGESTS_WANT_BYTES, 1, "request"},
        {WIRE_DIGEST, 1000, 0, "direction"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint8_t frame[2000] = {0};
        World w;
        auto_fd int fd = lone_secondary(&w);

        frame[cases[i].len - 1] = cases[i].last;
        tell(fd, cases[i].kind, frame, cases[i].len);
        world_until(&w.n_peer_lost, 1);
        ck_assert_ptr_nonnull(strstr(w.peer_text, cases[i].text));
        world_clear(&w);
    }
}
END_TEST

/* What is not kept (any more) cannot be sent; the comparison's timeout heals that. */
START_TEST(sec_a_request_for_what_is_not_there_is_nothing)
{
    uint8_t frame[DIGESTS_WANT_BYTES];
    World w;
    auto_fd int fd = lone_secondary(&w);

    digests_encode_want(frame, 12345);
    tell(fd, WIRE_WANT, frame, sizeof(frame));
    digests_encode_want(frame, UINT64_MAX);
    tell(fd, WIRE_WANT, frame, sizeof(frame));
    WORLD_UNTIL(&w, st.shadow_unsent == 2);
    ck_assert_uint_eq(w.n_peer_lost, 0);
    world_clear(&w);
}
END_TEST

/* The primary; digests without sense are as good as lost, and end nothing. */
START_TEST(sec_digests_without_sense_are_lost)
{
    uint8_t frame[2000] = {0};
    ProxyConfig base;
    World w;

    pair_wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);

    auto_fd int fd = lone_init(&w, PROXY_PORT_TAP, &base);

    tell(fd, WIRE_DIGEST, frame, WIRE_FRAME_MIN);
    tell(fd, WIRE_DIGEST, frame, WIRE_FRAME_MIN + DIGESTS_TAIL_BYTES);
    memset(frame + 100, 0xff, 1900);
    tell(fd, WIRE_DIGEST, frame, 2000);
    peer_says(fd, 0, 7, 60);
    guest_send(&w, 7, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 7);
    ck_assert_uint_eq(w.n_peer_lost, 0);
    WORLD_UNTIL(&w, st.digests == 3);
    world_clear(&w);
}
END_TEST

CHECK_MAIN("lockstep-digests", unit_equal_segments_cross_as_digests,
           err_a_difference_is_decided_by_the_whole_segment, life_digests_on_a_new_channel,
           sec_a_malformed_key_or_request_ends_the_channel,
           sec_a_request_for_what_is_not_there_is_nothing, sec_digests_without_sense_are_lost)
