/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-proxy.c - the proxy end to end: fake QEMU, real taps, a client on a bridge */
#include "proxy-world.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"
#include "hold-queue.h"
#include "link.h"
#include "port.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS };

static ProxyStats
stats_of(World *w)
{
    ProxyStats stats;

    proxy_get_stats(w->proxy, &stats);
    return stats;
}

static void
expect_client(World *w, guint32 first, guint32 last)
{
    for (guint32 i = first; i <= last; i++)
        ck_assert_int_eq(client_recv(w, WAIT), i);
}

static void
send_range(World *w, guint32 first, guint32 last)
{
    for (guint32 i = first; i <= last; i++)
        guest_send(w, i, 60 + i % 1400);
}

START_TEST(unit_guest_fd_is_what_qemu_wants)
{
    World w;
    struct ifreq ifr = {0};
    unsigned features = 0;
    int header = 12;

    world_init(&w, PROXY_PORT_TAP, MIB);
    ck_assert(fcntl(w.guest_fd, F_GETFL) & O_NONBLOCK);
    ck_assert(fcntl(w.guest_fd, F_GETFD) & FD_CLOEXEC);
    ck_assert_int_eq(ioctl(w.guest_fd, TUNGETIFF, &ifr), 0);
    ck_assert(ifr.ifr_flags & IFF_VNET_HDR);
    ck_assert(ifr.ifr_flags & IFF_NO_PI);
    ck_assert_int_eq(ioctl(w.guest_fd, TUNGETFEATURES, &features), 0);
    ck_assert_int_eq(ioctl(w.guest_fd, TUNSETVNETHDRSZ, &header), 0);
    /* Not in our namespace. */
    ck_assert_uint_eq(if_nametoindex(ifr.ifr_name), 0);
    world_clear(&w);
    ck_assert_uint_eq(if_nametoindex("lan0"), 0);
}
END_TEST

START_TEST(unit_starts_dropping_with_ingress_off)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    send_range(&w, 1, 10);
    client_send(&w, 1, 60);
    /* The drain before the change treats them by the old rule. */
    world_egress(&w, PROXY_EGRESS_OPEN);
    send_range(&w, 11, 20);
    expect_client(&w, 11, 20);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    ck_assert_uint_eq(stats_of(&w).dropped_frames, 10);
    ck_assert_int_eq(guest_recv(&w, 0), -1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_quiet_vm_is_not_fed_old_frames)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w,
                 PROXY_EGRESS_DROP); /* the thread is there: on a busy host that takes a while */
    for (guint32 i = 0; i < 100; i++)
        client_send(&w, i, 60);
    world_egress(&w, PROXY_EGRESS_DROP);
    world_egress(&w, PROXY_EGRESS_DROP);
    world_ingress(&w, false);
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    client_send(&w, 1000, 60);
    gint64 n = guest_recv(&w, WAIT);

    /* What was under way at the change may still come, what was there long before may not. */
    while (n >= 0 && n != 1000) {
        ck_assert_int_ge(n, 1);
        n = guest_recv(&w, WAIT);
    }
    ck_assert_int_eq(n, 1000);
    world_clear(&w);
}
END_TEST

START_TEST(unit_hold_release_in_order_up_to_the_mark)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, 4 * MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    send_range(&w, 1, 500);
    world_mark(&w, 1);
    ck_assert_uint_eq(stats_of(&w).held_frames, 500);
    send_range(&w, 501, 700);
    world_mark(&w, 2);
    send_range(&w, 701, 710);
    world_until_held(&w, 710);
    /* Nothing has left. */
    ck_assert_int_eq(client_recv(&w, 0), -1);
    ck_assert_uint_eq(stats_of(&w).egress_frames, 0);

    proxy_release(w.proxy, 1, 0, NULL, NULL);
    expect_client(&w, 1, 500);
    world_until_held(&w, 210);
    ck_assert_int_eq(client_recv(&w, 0), -1);

    proxy_release(w.proxy, 2, clock_now_ns() + 10 * NS_PER_S, world_refused, &w);
    expect_client(&w, 501, 700);
    world_until_held(&w, 10);
    ck_assert_int_eq(client_recv(&w, 0), -1);

    /* HOLD to OPEN: what is held goes first. */
    proxy_set_egress(w.proxy, PROXY_EGRESS_OPEN, NULL, NULL);
    send_range(&w, 711, 720);
    expect_client(&w, 701, 720);
    ck_assert_uint_eq(w.n_refused, 0);
    ck_assert_uint_eq(stats_of(&w).lost_frames, 0);
    /* The counter follows the frame: the client may have it first. */
    world_until_held(&w, 0);
    ck_assert_uint_eq(stats_of(&w).egress_frames, 720);
    world_clear(&w);
}
END_TEST

START_TEST(unit_mark_covers_all_that_was_written_before)
{
    World w;

    /* The assumption that checkpoints rest on: a frame is in our socket when QEMU's write to the
     * tap has returned. Many rounds, so that the thread is caught at every point. */
    world_init(&w, PROXY_PORT_TAP, 4 * MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    for (guint32 epoch = 1; epoch <= 300; epoch++) {
        guint32 first = epoch * 100, last = first + epoch % 40;

        send_range(&w, first, last);
        world_mark(&w, epoch);
        ck_assert_uint_eq(stats_of(&w).held_frames, last - first + 1);
        proxy_release(w.proxy, epoch, 0, NULL, NULL);
        expect_client(&w, first, last);
        world_until_held(&w, 0);
    }
    world_clear(&w);
}
END_TEST

START_TEST(err_release_with_an_expired_lease_is_refused)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    send_range(&w, 1, 5);
    world_mark(&w, 1);
    proxy_release(w.proxy, 1, clock_now_ns() - 1, world_refused, &w);
    world_until(&w.n_refused, 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    ck_assert_uint_eq(stats_of(&w).held_frames, 5);
    /* The mark is still good for a release with a lease. */
    proxy_release(w.proxy, 1, clock_now_ns() + 10 * NS_PER_S, world_refused, &w);
    expect_client(&w, 1, 5);
    ck_assert_uint_eq(w.n_refused, 1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_hold_to_drop_drops_and_forgets_marks)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    send_range(&w, 1, 5);
    world_mark(&w, 1);
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_uint_eq(stats_of(&w).dropped_frames, 5);
    world_egress(&w, PROXY_EGRESS_HOLD);
    send_range(&w, 6, 8);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    /* Epochs begin anew with each pair. */
    world_mark(&w, 1);
    ck_assert_uint_eq(stats_of(&w).held_frames, 3);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    expect_client(&w, 6, 8);
    world_clear(&w);
}
END_TEST

START_TEST(unit_keep_releases_only_what_came_since_it_was_set_last)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_KEEP);
    send_range(&w, 1, 5);
    world_until_held(&w, 5);
    world_egress(&w, PROXY_EGRESS_KEEP);
    ck_assert_uint_eq(stats_of(&w).dropped_frames, 5);
    send_range(&w, 6, 8);
    world_until_held(&w, 3);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    world_egress(&w, PROXY_EGRESS_OPEN);
    expect_client(&w, 6, 8);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_hold_high_once_until_the_next_release)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    for (guint32 i = 0; i < 600; i++)
        guest_send(&w, i, 1400);
    world_until(&w.n_high, 1);
    world_mark(&w, 1);
    ck_assert_uint_eq(w.n_high, 1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    expect_client(&w, 0, 599);
    for (guint32 i = 0; i < 600; i++)
        guest_send(&w, i, 1400);
    world_until(&w.n_high, 2);
    world_clear(&w);
}
END_TEST

START_TEST(err_bound_makes_frames_wait_without_loss)
{
    World w;
    guint32 total = 2000;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    for (guint32 i = 0; i < total; i++)
        guest_send(&w, i, 1400);
    world_mark(&w, 1);
    guint64 held = stats_of(&w).held_frames;

    ck_assert_uint_lt(held, total);
    ck_assert_uint_le(stats_of(&w).held_bytes, MIB);
    ck_assert_uint_ge(stats_of(&w).held_bytes, MIB / 4 * 3);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    expect_client(&w, 0, (guint32)held - 1);
    for (guint64 epoch = 2; held < total; epoch++) {
        world_mark(&w, epoch);
        guint64 n = stats_of(&w).held_frames;

        proxy_release(w.proxy, epoch, 0, NULL, NULL);
        expect_client(&w, (guint32)held, (guint32)(held + n) - 1);
        held += n;
    }
    ck_assert_uint_eq(stats_of(&w).lost_frames, 0);
    ck_assert_uint_eq(w.n_lost, 0);
    world_clear(&w);
}
END_TEST

START_TEST(err_full_packet_socket_is_told)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    /* More than hold queue and socket buffer together. */
    for (guint32 i = 0; i < 2500; i++)
        guest_send(&w, i, 64000);

    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    while (w.n_lost == 0 && clock_now_ns() < deadline)
        g_main_context_iteration(NULL, FALSE);
    ck_assert_uint_gt(w.n_lost, 0);
    ck_assert_uint_ge(stats_of(&w).lost_frames, w.n_lost);
    world_clear(&w);
}
END_TEST

static void
check_ingress(World *w)
{
    world_egress(w, PROXY_EGRESS_OPEN);
    world_ingress(w, true);
    for (guint32 i = 0; i < 300; i++)
        client_send(w, i, 60 + i);
    for (guint32 i = 0; i < 300; i++)
        ck_assert_int_eq(guest_recv(w, WAIT), i);

    /* A short pause loses nothing and lets nothing through. */
    world_ingress(w, false);
    for (guint32 i = 300; i < 1500; i++)
        client_send(w, i, 60);
    world_ingress(w, false);
    ck_assert_int_eq(guest_recv(w, 0), -1);
    world_ingress(w, true);
    for (guint32 i = 300; i < 1500; i++)
        ck_assert_int_eq(guest_recv(w, WAIT), i);
    /* The host's own IGMP may be among them. */
    ck_assert_uint_ge(stats_of(w).ingress_frames, 1500);
    ck_assert_uint_eq(stats_of(w).lost_frames, 0);
}

START_TEST(unit_ingress_pause_loses_nothing)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    check_ingress(&w);
    world_clear(&w);
}
END_TEST

START_TEST(err_stopped_guest_makes_ingress_wait_without_loss)
{
    World w;
    guint32 total = 4000; /* more than the private tap's ring; the rest fits into the LAN tap's */

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    for (guint32 i = 0; i < total; i++)
        client_send(&w, i, 60);
    /* The guest reads nothing: the ring fills up. */
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    while (stats_of(&w).ingress_frames < 1024 && clock_now_ns() < deadline)
        g_usleep(1000);
    ck_assert_uint_ge(stats_of(&w).ingress_frames, 1024);
    ck_assert_uint_lt(stats_of(&w).ingress_frames, total);
    for (guint32 i = 0; i < total; i++)
        ck_assert_int_eq(guest_recv(&w, WAIT), i);
    ck_assert_uint_eq(stats_of(&w).lost_frames, 0);
    world_clear(&w);
}
END_TEST

/* A 64 KB TCP/IPv4 GSO frame with a partial checksum, @header bytes of virtio-net header. */
static size_t
build_gso(uint8_t *buffer, size_t header, const uint8_t *from)
{
    size_t len = 64000;
    struct virtio_net_hdr h = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                               .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                               .hdr_len = 54,
                               .gso_size = 1448,
                               .csum_start = 34,
                               .csum_offset = 16};
    uint8_t *f = buffer + header;

    memset(buffer, 0, header + len);
    memcpy(buffer, &h, sizeof(h));
    memset(f, 0xff, 6);
    memcpy(f + 6, from, 6);
    be16_store(f + 12, 0x0800);
    f[14] = 0x45;
    be16_store(f + 16, (uint16_t)(len - 14));
    f[22] = 64;
    f[23] = 6;
    memcpy(f + 26, (uint8_t[]){10, 77, 0, 2, 10, 77, 0, 1}, 8);

    /* A bridge with br_netfilter drops IPv4 with a wrong header checksum. */
    uint32_t sum = 0;

    for (size_t i = 14; i < 34; i += 2)
        sum += be16_load(f + i);
    sum = (sum & 0xffff) + (sum >> 16);
    be16_store(f + 24, (uint16_t) ~(sum + (sum >> 16)));
    f[46] = 0x50;
    f[47] = 0x10;
    return header + len;
}

static size_t
recv_gso(int fd, size_t header)
{
    static uint8_t buffer[70000];
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    while (clock_now_ns() < deadline) {
        ssize_t n = read(fd, buffer, sizeof(buffer));

        /* Short ones are the host's IGMP. */
        if (n < (ssize_t)header + 1000 || be16_load(buffer + header + 12) != 0x0800)
            continue;

        const struct virtio_net_hdr *h = (const void *)buffer;

        ck_assert_int_eq(h->gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
        ck_assert_int_eq(h->gso_size, 1448);
        ck_assert(h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM);
        return (size_t)n - header;
    }
    return 0;
}

START_TEST(unit_gso_frames_pass_whole_both_ways)
{
    static const uint8_t guest[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56},
                         client[6] = {2, 0, 0, 0, 0, 1};
    static uint8_t buffer[70000];
    World w;
    int header = 12;

    world_init(&w, PROXY_PORT_TAP, MIB);
    /* As QEMU for a virtio 1.0 guest. */
    ck_assert_int_eq(ioctl(w.guest_fd, TUNSETVNETHDRSZ, &header), 0);
    w.guest_header = header;
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    size_t len = build_gso(buffer, 12, guest);

    ck_assert_int_eq(write(w.guest_fd, buffer, len), len);
    ck_assert_uint_eq(recv_gso(w.client_fd, WORLD_TAP_HEADER), 64000);

    len = build_gso(buffer, WORLD_TAP_HEADER, client);
    ck_assert_int_eq(write(w.client_fd, buffer, len), len);
    ck_assert_uint_eq(recv_gso(w.guest_fd, 12), 64000);

    guest_send(&w, 7, 100);
    expect_client(&w, 7, 7);
    world_clear(&w);
}
END_TEST

START_TEST(unit_vlan_tags_survive)
{
    static const uint8_t tag[4] = {0x81, 0x00, 0x00, 0x2a};
    World w;
    uint8_t out[WORLD_TAP_HEADER + 64] = {0}, in[2000];
    uint8_t *frame = out + WORLD_TAP_HEADER;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, (uint8_t[]){0x52, 0x54, 0, 0x12, 0x34, 0x56}, 6);
    memcpy(frame + 12, tag, 4);
    be16_store(frame + 16, 0x88b5);
    be32_store(frame + 18, 77);
    ck_assert_int_eq(write(w.guest_fd, out, sizeof(out)), sizeof(out));
    guest_send(&w, 1, 60);
    world_egress(&w, PROXY_EGRESS_OPEN);

    ssize_t n;
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    do
        n = read(w.client_fd, in, sizeof(in));
    while ((n < 0 || in[WORLD_TAP_HEADER + 12] != 0x81) && clock_now_ns() < deadline);
    ck_assert_int_eq(n, sizeof(out));
    ck_assert_mem_eq(in + WORLD_TAP_HEADER, frame, 64);
    expect_client(&w, 1, 1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_stream_port_both_ways)
{
    World w;

    world_init(&w, PROXY_PORT_STREAM, MIB);
    check_ingress(&w);
    send_range(&w, 1, 1000);
    expect_client(&w, 1, 1000);
    world_egress(&w, PROXY_EGRESS_HOLD);
    send_range(&w, 1, 100);
    world_mark(&w, 1);
    ck_assert_uint_eq(stats_of(&w).held_frames, 100);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    expect_client(&w, 1, 100);
    world_clear(&w);
}
END_TEST

START_TEST(unit_stream_frames_arrive_in_pieces)
{
    World w;
    uint8_t bytes[3 * 64] = {0};
    size_t at = 0;

    world_init(&w, PROXY_PORT_STREAM, MIB);
    world_egress(&w, PROXY_EGRESS_OPEN);
    for (uint32_t i = 0; i < 3; i++) {
        uint8_t *f = bytes + at + 4;

        be32_store(bytes + at, 60);
        memset(f, 0xff, 6);
        memcpy(f + 6, (uint8_t[]){0x52, 0x54, 0, 0x12, 0x34, 0x56}, 6);
        be16_store(f + 12, 0x88b5);
        be32_store(f + 14, i);
        memset(f + 18, (int)i, 42);
        at += 64;
    }
    for (size_t i = 0; i < at; i++) {
        ck_assert_int_eq(write(w.guest_fd, bytes + i, 1), 1);
        /* So that the thread sees each byte alone. */
        world_ingress(&w, false);
    }
    expect_client(&w, 0, 2);
    world_clear(&w);
}
END_TEST

START_TEST(err_stream_bound_stops_the_guest_without_loss)
{
    World w;

    world_init(&w, PROXY_PORT_STREAM, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    uint8_t frame[4 + 1400] = {0};
    guint32 sent = 0;

    be32_store(frame, 1400);
    memset(frame + 4, 0xff, 6);
    memcpy(frame + 10, (uint8_t[]){0x52, 0x54, 0, 0x12, 0x34, 0x56}, 6);
    be16_store(frame + 16, 0x88b5);

    /* Until the socket is full: exactly then a real QEMU stops taking frames from the guest. */
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;
    size_t partial = 0;

    for (int full = 0; full < 50 && clock_now_ns() < deadline;) {
        be32_store(frame + 18, sent);
        memset(frame + 22, (int)(sent & 0xff), sizeof(frame) - 22);
        ssize_t n = write(w.guest_fd, frame + partial, sizeof(frame) - partial);

        if (n < 0) {
            full++;
            g_usleep(1000);
            continue;
        }
        full = 0;
        partial += (size_t)n;
        if (partial == sizeof(frame)) {
            partial = 0;
            sent++;
        }
    }
    ck_assert_uint_gt(sent, MIB / 1500 / 2);
    proxy_set_egress(w.proxy, PROXY_EGRESS_OPEN, NULL, NULL);
    ck_assert_uint_gt(sent, 0);
    expect_client(&w, 0, sent - 1);
    world_clear(&w);
}
END_TEST

START_TEST(err_stream_slow_guest_gets_whole_frames)
{
    World w;
    guint32 total = 3000;

    world_init(&w, PROXY_PORT_STREAM, MIB);
    int bytes = 4096;

    /* A small buffer: frames go in several pieces. */
    ck_assert_int_eq(setsockopt(w.guest_fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)), 0);
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    for (guint32 i = 0; i < total; i++)
        client_send(&w, i, 1500);
    for (guint32 i = 0; i < total; i++)
        ck_assert_int_eq(guest_recv(&w, WAIT), i);
    world_clear(&w);
}
END_TEST

START_TEST(sec_stream_length_beyond_the_bound_breaks_the_port)
{
    World w;
    uint8_t length[4];

    world_init(&w, PROXY_PORT_STREAM, MIB);
    world_egress(&w, PROXY_EGRESS_OPEN);
    guest_send(&w, 5, 100);
    be32_store(length, 4096 + 65536 + 1);
    ck_assert_int_eq(write(w.guest_fd, length, 4), 4);
    world_until(&w.n_broken, 1);
    ck_assert_ptr_nonnull(strstr(w.broken_text, "too long"));
    expect_client(&w, 5, 5);
    /* Commands are still carried out. */
    world_mark(&w, 1);
    ck_assert_uint_eq(w.n_broken, 1);
    world_clear(&w);
}
END_TEST

START_TEST(sec_runts_are_counted_and_dropped)
{
    World w;
    uint8_t runt[4 + 13];

    world_init(&w, PROXY_PORT_STREAM, MIB);
    world_egress(&w, PROXY_EGRESS_OPEN);
    be32_store(runt, 13);
    memset(runt + 4, 0xff, 13);
    ck_assert_int_eq(write(w.guest_fd, runt, sizeof(runt)), sizeof(runt));
    be32_store(runt, 0);
    ck_assert_int_eq(write(w.guest_fd, runt, 4), 4);
    guest_send(&w, 5, 100);
    expect_client(&w, 5, 5);
    ck_assert_uint_eq(stats_of(&w).lost_frames, 2);
    world_clear(&w);
}
END_TEST

START_TEST(err_qemu_gone_is_told_once_after_its_last_frames)
{
    static const ProxyPortKind kinds[] = {PROXY_PORT_TAP, PROXY_PORT_STREAM};

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        World w;

        world_init(&w, kinds[i], MIB);
        world_egress(&w, PROXY_EGRESS_OPEN);
        send_range(&w, 1, 3);
        fd_clear(&w.guest_fd);
        world_until(&w.n_broken, 1);
        expect_client(&w, 1, 3);
        world_egress(&w, PROXY_EGRESS_HOLD);
        world_ingress(&w, true);
        world_mark(&w, 1);
        ck_assert_uint_eq(w.n_broken, 1);
        world_clear(&w);
    }
}
END_TEST

typedef struct Taken {
    unsigned n;
    size_t bytes;
} Taken;

static void
count_frame(gpointer user_data, const uint8_t *frame, size_t len)
{
    Taken *taken = user_data;

    (void)frame;
    taken->n++;
    taken->bytes += len;
}

static void
write_frames(int fd, unsigned n, size_t len)
{
    static uint8_t frame[HOLD_QUEUE_FRAME_MAX] = {[PORT_VNET_BYTES] = 0x02};

    for (unsigned i = 0; i < n; i++)
        ck_assert_int_eq(write(fd, frame, PORT_VNET_BYTES + len), (ssize_t)(PORT_VNET_BYTES + len));
}

/* Who is told so asks no more until the descriptor tells of something. */
START_TEST(unit_a_port_is_drained_when_fewer_came_than_were_asked_for)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(8 * MIB);
    Taken taken = {0};
    int fd;
    Port *port = port_tap_new(-1, 1, &fd, NULL);

    ck_assert_ptr_nonnull(port);
    write_frames(fd, 40, 60);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 32);
    ck_assert(!port->drained);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 8);
    ck_assert(port->drained);
    /* Large ones are read one by one, but more than one in a turn. */
    write_frames(fd, 1, 60000);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 1);
    write_frames(fd, 10, 60000);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 8);
    ck_assert(!port->drained);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 2);
    ck_assert(port->drained);
    ck_assert_uint_eq(taken.n, 51);
    ck_assert_uint_eq(taken.bytes,
                      40 * 60 + 11 * (size_t)60000 + taken.n * (size_t)PORT_VNET_BYTES);
    fd_clear(&fd);
    port->ops->close(port);
}
END_TEST

/* No event tells of the end that came together with the last frames. */
START_TEST(err_the_end_behind_the_last_frames_is_to_be_read)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(8 * MIB);
    Taken taken = {0};
    int fd;
    Port *port = port_tap_new(-1, 1, &fd, NULL);

    ck_assert_ptr_nonnull(port);
    write_frames(fd, 3, 60);
    fd_clear(&fd);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 3);
    ck_assert(!port->drained);
    ck_assert_int_lt(port->ops->read(port, queue, 64, count_frame, &taken), 0);
    port->ops->close(port);
}
END_TEST

START_TEST(err_lan_tap_or_bridge_deleted)
{
    static const char *const links[] = {"lan0", "br0"};

    for (unsigned i = 0; i < G_N_ELEMENTS(links); i++) {
        World w;

        world_init(&w, PROXY_PORT_TAP, MIB);
        world_egress(&w, PROXY_EGRESS_OPEN);
        world_delete_link(links[i]);
        world_until(&w.n_broken, 1);
        ck_assert_ptr_nonnull(strstr(w.broken_text, "LAN tap"));
        send_range(&w, 1, 3);
        world_egress(&w, PROXY_EGRESS_DROP);
        ck_assert_uint_eq(w.n_broken, 1);
        ck_assert_uint_eq(stats_of(&w).lost_frames, 3);
        world_clear(&w);
    }
}
END_TEST

START_TEST(life_adoption_after_the_first_proxy_is_gone)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_OPEN);
    send_range(&w, 1, 3);
    expect_client(&w, 1, 3);
    proxy_free(w.proxy);
    w.proxy = NULL;
    /* While nobody is there the guest reaches nobody. */
    send_range(&w, 4, 5);

    auto_fd int copy = fcntl(w.guest_fd, F_DUPFD_CLOEXEC, 0);

    w.proxy = world_proxy(&w, PROXY_PORT_TAP, MIB, copy);
    fd_clear(&copy);
    ck_assert_int_eq(proxy_take_guest_fd(w.proxy, 0, 0), -1);
    world_egress(&w, PROXY_EGRESS_HOLD);
    world_ingress(&w, true);
    send_range(&w, 6, 8);
    client_send(&w, 100, 60);
    ck_assert_int_eq(guest_recv(&w, WAIT), 100);
    world_mark(&w, 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    expect_client(&w, 6, 8);
    world_clear(&w);
}
END_TEST

START_TEST(err_setup_errors_name_the_cause)
{
    static const struct {
        const char *bridge, *lan_tap, *text;
        gsize hold;
    } cases[] = {
        {"missing", "lan0", "missing", MIB},
        {"nobridge", "lan0", "is it a bridge", MIB},
        {"lo", "a-name-that-is-too-long", "a-name-that-is-too-long", MIB},
        {"lo", "lan0", "bound", 1000},
    };

    world_enter();

    auto_fd int no_bridge = link_open_tap("nobridge", NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        ProxyConfig config = {.n_nics = 1, .hold_max_bytes = cases[i].hold};
        g_autoptr(GError) error = NULL;

        config.nics[0] = (ProxyNic){.name = "nic0",
                                    .port = PROXY_PORT_TAP,
                                    .bridge = cases[i].bridge,
                                    .lan_tap = cases[i].lan_tap};
        ck_assert_ptr_null(proxy_new(&config, NULL, NULL, NULL, &error));
        ck_assert(g_error_matches(error, PROXY_ERROR, PROXY_ERROR_SETUP));
        ck_assert_msg(strstr(error->message, cases[i].text) != NULL, "%s", error->message);
        ck_assert_uint_eq(if_nametoindex("lan0"), 0);
    }
}
END_TEST

static void
never(Proxy *proxy, gpointer world)
{
    (void)proxy;
    (void)world;
    ck_abort_msg("called after proxy_free()");
}

START_TEST(life_free_with_commands_pending)
{
    for (unsigned round = 0; round < 20; round++) {
        World w;

        world_init(&w, PROXY_PORT_TAP, MIB);
        proxy_set_egress(w.proxy, PROXY_EGRESS_HOLD, never, &w);
        send_range(&w, 1, 100);
        for (guint64 epoch = 1; epoch < 20; epoch++) {
            proxy_mark(w.proxy, epoch, never, &w);
            proxy_release(w.proxy, epoch, 1, never, &w);
        }
        proxy_announce(w.proxy);
        /* Sometimes the replies are already waiting. */
        for (int64_t end_ns = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;
             round % 2 && stats_of(&w).held_frames + stats_of(&w).dropped_frames < 100;) {
            ck_assert_int_lt(clock_now_ns(), end_ns);
            g_usleep(100);
        }
        g_clear_pointer(&w.proxy, proxy_free);
        while (g_main_context_iteration(NULL, FALSE))
            ;
        world_clear(&w);
    }
}
END_TEST

static void
free_it(Proxy *proxy, gpointer world)
{
    World *w = world;

    proxy_free(proxy);
    w->proxy = NULL;
    w->n_done++;
}

START_TEST(life_free_from_within_a_callback)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    proxy_set_egress(w.proxy, PROXY_EGRESS_OPEN, free_it, &w);
    proxy_mark(w.proxy, 1, never, &w);
    world_until(&w.n_done, 1);
    while (g_main_context_iteration(NULL, FALSE))
        ;
    world_clear(&w);
}
END_TEST

/* Until there are @enough, or the time is over. */
static unsigned
count_announcements(World *w, uint16_t type, unsigned enough, unsigned ms)
{
    const int64_t until_ns = clock_now_ns() + ms * NS_PER_MS;
    uint8_t frame[2000];
    unsigned n = 0;

    while (n < enough && clock_now_ns() < until_ns) {
        ssize_t len = read(w->client_fd, frame, sizeof(frame));

        if (len > WORLD_TAP_HEADER + 14 && be16_load(frame + WORLD_TAP_HEADER + 12) == type)
            n++;
        else if (len < 0)
            g_usleep(1000);
    }
    return n;
}

/* The last of four comes 300 ms after the one before, 500 ms after the first; what shows that no
 * more comes lasts longer than that. */
START_TEST(unit_announces_four_times_and_never_while_dropping)
{
    enum { PAUSE_MS = 350, ALL_MS = 600, NONE = 1000 };
    World w;
    ProxyAddress address = {.bytes = {10, 77, 0, 2}}, got[PROXY_MAX_ADDRESSES];

    world_init(&w, PROXY_PORT_TAP, MIB);
    proxy_add_address(w.proxy, &address);
    ck_assert_uint_eq(proxy_get_addresses(w.proxy, got), 1);
    ck_assert_mem_eq(got[0].bytes, address.bytes, 4);
    proxy_announce(w.proxy);
    world_mark(&w, 1);
    ck_assert_uint_eq(count_announcements(&w, 0x0806, NONE, 20), 0);

    world_egress(&w, PROXY_EGRESS_HOLD);
    proxy_announce(w.proxy);
    ck_assert_uint_eq(count_announcements(&w, 0x0806, 4, WORLD_DEADLINE_MS), 4);
    ck_assert_uint_eq(count_announcements(&w, 0x0806, NONE, PAUSE_MS), 0);

    /* A host that is fenced meanwhile falls silent at once. */
    proxy_announce(w.proxy);
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_uint_le(count_announcements(&w, 0x8035, NONE, ALL_MS), 1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_addresses_are_learned_while_dropping_too)
{
    World w;
    ProxyAddress got[PROXY_MAX_ADDRESSES];
    uint8_t arp[WORLD_TAP_HEADER + 60] = {0};
    uint8_t *f = arp + WORLD_TAP_HEADER;

    world_init(&w, PROXY_PORT_TAP, MIB);
    memcpy(f, (uint8_t[]){0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34,
                          0x56, 8,    6,    0,    1,    8,    0,    6,    4, 0,    1,
                          0x52, 0x54, 0,    0x12, 0x34, 0x56, 10,   77,   0, 9},
           32);
    ck_assert_int_eq(write(w.guest_fd, arp, sizeof(arp)), sizeof(arp));
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_uint_eq(proxy_get_addresses(w.proxy, got), 1);
    ck_assert_mem_eq(got[0].bytes, ((uint8_t[]){10, 77, 0, 9}), 4);
    world_clear(&w);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        unit_guest_fd_is_what_qemu_wants,
        unit_starts_dropping_with_ingress_off,
        unit_quiet_vm_is_not_fed_old_frames,
        unit_hold_release_in_order_up_to_the_mark,
        unit_mark_covers_all_that_was_written_before,
        err_release_with_an_expired_lease_is_refused,
        unit_hold_to_drop_drops_and_forgets_marks,
        unit_keep_releases_only_what_came_since_it_was_set_last,
        unit_hold_high_once_until_the_next_release,
        err_bound_makes_frames_wait_without_loss,
        err_full_packet_socket_is_told,
        unit_ingress_pause_loses_nothing,
        err_stopped_guest_makes_ingress_wait_without_loss,
        unit_gso_frames_pass_whole_both_ways,
        unit_vlan_tags_survive,
        unit_stream_port_both_ways,
        unit_stream_frames_arrive_in_pieces,
        err_stream_bound_stops_the_guest_without_loss,
        err_stream_slow_guest_gets_whole_frames,
        sec_stream_length_beyond_the_bound_breaks_the_port,
        sec_runts_are_counted_and_dropped,
        err_qemu_gone_is_told_once_after_its_last_frames,
        unit_a_port_is_drained_when_fewer_came_than_were_asked_for,
        err_the_end_behind_the_last_frames_is_to_be_read,
        err_lan_tap_or_bridge_deleted,
        life_adoption_after_the_first_proxy_is_gone,
        err_setup_errors_name_the_cause,
        life_free_with_commands_pending,
        life_free_from_within_a_callback,
        unit_announces_four_times_and_never_while_dropping,
        unit_addresses_are_learned_while_dropping_too,
    };

    return check_run("proxy", tests, G_N_ELEMENTS(tests));
}
