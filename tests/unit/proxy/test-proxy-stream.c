/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-proxy-stream.c - the proxy end to end, with QEMU's stream socket as the private port */
#include "proxy-world.h"

#include "check-main.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS };

START_TEST(unit_stream_port_both_ways)
{
    World w;

    world_init(&w, PROXY_PORT_STREAM, MIB);
    world_check_ingress(&w);
    guest_send_range(&w, 1, 1000);
    client_expect(&w, 1, 1000);
    world_egress(&w, PROXY_EGRESS_HOLD);
    guest_send_range(&w, 1, 100);
    world_mark(&w, 1);
    ck_assert_uint_eq(world_stats(&w).held_frames, 100);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    client_expect(&w, 1, 100);
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
    client_expect(&w, 0, 2);
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
    client_expect(&w, 0, sent - 1);
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
    client_expect(&w, 5, 5);
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
    client_expect(&w, 5, 5);
    ck_assert_uint_eq(world_stats(&w).lost_frames, 2);
    world_clear(&w);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        unit_stream_port_both_ways,
        unit_stream_frames_arrive_in_pieces,
        err_stream_bound_stops_the_guest_without_loss,
        err_stream_slow_guest_gets_whole_frames,
        sec_stream_length_beyond_the_bound_breaks_the_port,
        sec_runts_are_counted_and_dropped,
    };

    return check_run("proxy-stream", tests, G_N_ELEMENTS(tests));
}
