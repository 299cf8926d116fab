/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-nic-lease.c - the lease is looked at before each frame: one NIC, a clock of the test's own
 *
 * A host can stand still at any place, and for longer than its lease. The clock here jumps at
 * a call of the test's choice, which is what the thread sees of that.
 */
#include <check.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check-main.h"
#include "clock.h"
#include "nic.h"

enum { N_FRAMES = 10, FRAME_BYTES = PORT_VNET_BYTES + 60, HOLD_BYTES = 4 << 20 };

static const int64_t LEASE_NS = 1000 * NS_PER_MS;

static struct {
    int64_t now_ns;
    unsigned calls_left; /* until it jumps; 0: it stands */
    int64_t jump_ns;
    void (*meanwhile)(void); /* at the jump; or NULL */
} fake;

int64_t __wrap_clock_now_ns(void);

int64_t
__wrap_clock_now_ns(void)
{
    if (fake.calls_left > 0 && --fake.calls_left == 0) {
        fake.now_ns += fake.jump_ns;
        if (fake.meanwhile)
            fake.meanwhile();
    }
    return fake.now_ns;
}

typedef struct Bench {
    Nic nic;
    Lockstep lockstep;
    int lan, peer; /* the other ends */
} Bench;

static ssize_t
no_io(gpointer opaque, void *bytes, size_t len)
{
    (void)opaque;
    (void)bytes;
    (void)len;
    return -EAGAIN;
}

static ssize_t
no_output(gpointer opaque, const void *bytes, size_t len)
{
    (void)bytes;
    return no_io(opaque, NULL, len);
}

static void
no_close(gpointer opaque)
{
    (void)opaque;
}

static void
pair_of(int kind, int *ret_mine, int *ret_other)
{
    int fds[2];

    ck_assert_int_eq(socketpair(AF_UNIX, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
    *ret_mine = fds[0];
    *ret_other = fds[1];
}

/* A primary that compares, with N_FRAMES released and a lease of LEASE_NS. */
static Bench *
bench_new(void)
{
    Bench *b = g_new0(Bench, 1);
    ProxyConfig config = {.hold_max_bytes = HOLD_BYTES, .rewriter_connections_max = 16};
    ProxyPeer peer = {.read = no_io, .write = no_output, .close = no_close};
    const uint8_t frame[FRAME_BYTES] = {0};

    fake.now_ns = NS_PER_S;
    fake.calls_left = 0;
    fake.meanwhile = NULL;
    compare_config_init(&config.compare);
    ck_assert_int_eq(lockstep_init(&b->lockstep, &config, false), 0);
    ck_assert_int_eq(nic_lockstep_init(&b->nic, &b->lockstep), 0);
    pair_of(SOCK_STREAM, &peer.fd, &b->peer);
    peer_stream_attach(&b->lockstep.peer, &peer);
    pair_of(SOCK_SEQPACKET, &b->nic.lan_fd, &b->lan);
    b->nic.queue = hold_queue_new(HOLD_BYTES);
    b->nic.egress = PROXY_EGRESS_COMPARE;
    for (unsigned i = 0; i < N_FRAMES; i++)
        (void)hold_queue_append(b->nic.queue, frame, sizeof(frame), fake.now_ns);
    hold_queue_release_all(b->nic.queue);
    atomic_store(&b->lockstep.lease_until_ns, fake.now_ns + LEASE_NS);
    return b;
}

static unsigned
n_left(const Bench *b)
{
    uint8_t frame[FRAME_BYTES + 1];
    unsigned n = 0;

    while (recv(b->lan, frame, sizeof(frame), MSG_DONTWAIT) == FRAME_BYTES)
        n++;
    return n;
}

static void
bench_free(Bench *b)
{
    int peer_fd = b->lockstep.peer.peer.fd;

    (void)close(b->lan);
    (void)close(b->nic.lan_fd);
    (void)close(b->peer);
    hold_queue_free(b->nic.queue);
    nic_lockstep_clear(&b->nic);
    lockstep_clear(&b->lockstep);
    (void)close(peer_fd);
    g_free(b);
}

START_TEST(unit_all_leave_within_the_lease)
{
    Bench *b = bench_new();

    fake.calls_left = 3;
    fake.jump_ns = LEASE_NS; /* the last moment of it */
    nic_flush(&b->nic);
    ck_assert_uint_eq(n_left(b), N_FRAMES);
    ck_assert_uint_eq(counter_get(&b->nic.ls.lease_waits), 0);
    bench_free(b);
}
END_TEST

/* It stands still before the first, the second, ... frame: nothing leaves behind that place. */
START_TEST(err_nothing_leaves_behind_the_lease_wherever_the_host_stood_still)
{
    for (unsigned at = 1; at <= N_FRAMES; at++) {
        Bench *b = bench_new();

        fake.calls_left = at;
        fake.jump_ns = LEASE_NS + 1;
        nic_flush(&b->nic);
        ck_assert_uint_eq(n_left(b), at - 1);
        ck_assert_uint_eq(counter_get(&b->nic.ls.lease_waits), 1);
        ck_assert(!nic_is_runnable(&b->nic)); /* it waits, and does not spin */
        nic_flush(&b->nic);
        ck_assert_uint_eq(n_left(b), 0);
        ck_assert_uint_eq(counter_get(&b->nic.ls.lease_waits), 1);
        /* Renewed: the rest leaves, in full. */
        atomic_store(&b->lockstep.lease_until_ns, INT64_MAX);
        nic_flush(&b->nic);
        ck_assert_uint_eq(n_left(b), N_FRAMES + 1 - at);
        bench_free(b);
    }
}
END_TEST

static Bench *the_bench;

static void
peer_closes_and_the_lease_is_renewed(void)
{
    ck_assert_int_eq(shutdown(the_bench->peer, SHUT_WR), 0);
    atomic_store(&the_bench->lockstep.lease_until_ns, INT64_MAX);
}

/* A lease from behind the channel's end does not count, wherever the thread stood still. */
START_TEST(err_a_lease_renewed_behind_the_end_of_the_channel_releases_nothing)
{
    Bench *b = the_bench = bench_new();

    atomic_store(&b->lockstep.lease_until_ns, fake.now_ns - 1);
    fake.calls_left = 1;
    fake.jump_ns = NS_PER_MS;
    fake.meanwhile = peer_closes_and_the_lease_is_renewed;
    nic_flush(&b->nic);
    nic_flush(&b->nic);
    ck_assert_uint_eq(n_left(b), 0);
    ck_assert(!nic_is_runnable(&b->nic));
    bench_free(b);
}
END_TEST

/* With the queue full, what the engine had not taken stays in the stage when the output is opened.
 */
START_TEST(err_what_is_still_staged_is_dropped_with_the_rest)
{
    Bench *b = bench_new();
    const uint8_t frame[FRAME_BYTES] = {0};
    Compare *engine = NULL;

    b->nic.egress = PROXY_EGRESS_OPEN;
    (void)hold_queue_append(b->nic.ls.stage, frame, sizeof(frame), fake.now_ns);
    hold_queue_release_all(b->nic.ls.stage);
    nic_set_egress(&b->nic, PROXY_EGRESS_DROP, &engine);
    nic_read(&b->nic);
    nic_set_egress(&b->nic, PROXY_EGRESS_OPEN, &engine);
    nic_read(&b->nic);
    nic_flush(&b->nic);
    ck_assert_uint_eq(n_left(b), 0);
    ck_assert_uint_eq(counter_get(&b->nic.dropped), N_FRAMES + 1);
    bench_free(b);
}
END_TEST

CHECK_MAIN("nic-lease", unit_all_leave_within_the_lease,
           err_what_is_still_staged_is_dropped_with_the_rest,
           err_a_lease_renewed_behind_the_end_of_the_channel_releases_nothing,
           err_nothing_leaves_behind_the_lease_wherever_the_host_stood_still)
