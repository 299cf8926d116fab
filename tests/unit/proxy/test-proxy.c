/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-proxy.c - the proxy end to end: fake QEMU, real taps, a client on a bridge */
#include "proxy-world.h"

#include "check-main.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS };

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
    guest_send_range(&w, 1, 10);
    client_send(&w, 1, 60);
    /* The drain before the change treats them by the old rule. */
    world_egress(&w, PROXY_EGRESS_OPEN);
    guest_send_range(&w, 11, 20);
    client_expect(&w, 11, 20);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    ck_assert_uint_eq(world_stats(&w).dropped_frames, 10);
    ck_assert_int_eq(guest_recv(&w, 0), -1);
    world_clear(&w);
}
END_TEST

/* How many frames the proxy has read from its LAN tap: a tap counts when it is read. */
static guint64
lan_frames_read(void)
{
    g_autofree char *text = NULL;
    guint64 n = 0;

    ck_assert(g_file_get_contents("/proc/thread-self/net/dev", &text, NULL, NULL));
    const char *line = strstr(text, "lan0:");

    /* Eight figures of what was received come first, then bytes. */
    ck_assert_ptr_nonnull(line);
    ck_assert_int_eq(sscanf(line, "lan0: %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64, &n), 1);
    return n;
}

START_TEST(unit_quiet_vm_is_not_fed_old_frames)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w,
                 PROXY_EGRESS_DROP); /* the thread is there: on a busy host that takes a while */
    for (guint32 i = 0; i < 100; i++)
        client_send(&w, i, 60);
    /* A bridge on a busy host may deliver later. */
    for (int64_t end_ns = clock_now_ns() + WAIT * NS_PER_MS; lan_frames_read() < 100;) {
        ck_assert_int_lt(clock_now_ns(), end_ns);
        g_usleep(1000);
    }
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
    guest_send_range(&w, 1, 500);
    world_mark(&w, 1);
    ck_assert_uint_eq(world_stats(&w).held_frames, 500);
    guest_send_range(&w, 501, 700);
    world_mark(&w, 2);
    guest_send_range(&w, 701, 710);
    world_until_held(&w, 710);
    /* Nothing has left. */
    ck_assert_int_eq(client_recv(&w, 0), -1);
    ck_assert_uint_eq(world_stats(&w).egress_frames, 0);

    proxy_release(w.proxy, 1, 0, NULL, NULL);
    client_expect(&w, 1, 500);
    world_until_held(&w, 210);
    ck_assert_int_eq(client_recv(&w, 0), -1);

    proxy_release(w.proxy, 2, clock_now_ns() + 10 * NS_PER_S, world_refused, &w);
    client_expect(&w, 501, 700);
    world_until_held(&w, 10);
    ck_assert_int_eq(client_recv(&w, 0), -1);

    /* HOLD to OPEN: what is held goes first. */
    proxy_set_egress(w.proxy, PROXY_EGRESS_OPEN, NULL, NULL);
    guest_send_range(&w, 711, 720);
    client_expect(&w, 701, 720);
    ck_assert_uint_eq(w.n_refused, 0);
    ck_assert_uint_eq(world_stats(&w).lost_frames, 0);
    /* The counter follows the frame: the client may have it first. */
    world_until_held(&w, 0);
    ck_assert_uint_eq(world_stats(&w).egress_frames, 720);
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

        guest_send_range(&w, first, last);
        world_mark(&w, epoch);
        ck_assert_uint_eq(world_stats(&w).held_frames, last - first + 1);
        proxy_release(w.proxy, epoch, 0, NULL, NULL);
        client_expect(&w, first, last);
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
    guest_send_range(&w, 1, 5);
    world_mark(&w, 1);
    proxy_release(w.proxy, 1, clock_now_ns() - 1, world_refused, &w);
    world_until(&w.n_refused, 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    ck_assert_uint_eq(world_stats(&w).held_frames, 5);
    /* The mark is still good for a release with a lease. */
    proxy_release(w.proxy, 1, clock_now_ns() + 10 * NS_PER_S, world_refused, &w);
    client_expect(&w, 1, 5);
    ck_assert_uint_eq(w.n_refused, 1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_hold_to_drop_drops_and_forgets_marks)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_HOLD);
    guest_send_range(&w, 1, 5);
    world_mark(&w, 1);
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_uint_eq(world_stats(&w).dropped_frames, 5);
    world_egress(&w, PROXY_EGRESS_HOLD);
    guest_send_range(&w, 6, 8);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    /* Epochs begin anew with each pair. */
    world_mark(&w, 1);
    ck_assert_uint_eq(world_stats(&w).held_frames, 3);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    client_expect(&w, 6, 8);
    world_clear(&w);
}
END_TEST

START_TEST(unit_keep_releases_only_what_came_since_it_was_set_last)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_KEEP);
    guest_send_range(&w, 1, 5);
    world_until_held(&w, 5);
    world_egress(&w, PROXY_EGRESS_KEEP);
    ck_assert_uint_eq(world_stats(&w).dropped_frames, 5);
    guest_send_range(&w, 6, 8);
    world_until_held(&w, 3);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    world_egress(&w, PROXY_EGRESS_OPEN);
    client_expect(&w, 6, 8);
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
    client_expect(&w, 0, 599);
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
    guint64 held = world_stats(&w).held_frames;

    ck_assert_uint_lt(held, total);
    ck_assert_uint_le(world_stats(&w).held_bytes, MIB);
    ck_assert_uint_ge(world_stats(&w).held_bytes, MIB / 4 * 3);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    client_expect(&w, 0, (guint32)held - 1);
    for (guint64 epoch = 2; held < total; epoch++) {
        world_mark(&w, epoch);
        guint64 n = world_stats(&w).held_frames;

        proxy_release(w.proxy, epoch, 0, NULL, NULL);
        client_expect(&w, (guint32)held, (guint32)(held + n) - 1);
        held += n;
    }
    ck_assert_uint_eq(world_stats(&w).lost_frames, 0);
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
    ck_assert_uint_ge(world_stats(&w).lost_frames, w.n_lost);
    world_clear(&w);
}
END_TEST

START_TEST(unit_ingress_pause_loses_nothing)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_check_ingress(&w);
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

    while (world_stats(&w).ingress_frames < 1024 && clock_now_ns() < deadline)
        g_usleep(1000);
    ck_assert_uint_ge(world_stats(&w).ingress_frames, 1024);
    ck_assert_uint_lt(world_stats(&w).ingress_frames, total);
    for (guint32 i = 0; i < total; i++)
        ck_assert_int_eq(guest_recv(&w, WAIT), i);
    ck_assert_uint_eq(world_stats(&w).lost_frames, 0);
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
    client_expect(&w, 7, 7);
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
    client_expect(&w, 1, 1);
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
    };

    return check_run("proxy", tests, G_N_ELEMENTS(tests));
}
