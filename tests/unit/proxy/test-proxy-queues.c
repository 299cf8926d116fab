/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-proxy-queues.c - a private tap with several queues */
#include "proxy-world.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "clock.h"
#include "fd.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS, QUEUES = 4, RING_FRAMES = 1024 };

static void
open_world(World *w)
{
    world_enter();
    world_open(w, 0, PROXY_PORT_TAP,
               &(ProxyConfig){.hold_max_bytes = 8 * MIB, .nics[0].queues = QUEUES});
}

static void
attach_queue(World *w, unsigned queue, bool attach)
{
    struct ifreq ifr = {.ifr_flags = attach ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

    ck_assert_int_eq(ioctl(queue > 0 ? w->more_fds[queue] : w->guest_fd, TUNSETQUEUE, &ifr), 0);
}

/* The next numbered frame for the guest, whatever queue it comes by. */
static gint64
recv_any(World *w, unsigned *ret_queue)
{
    int64_t deadline_ns = clock_now_ns() + WAIT * NS_PER_MS;
    struct pollfd fds[QUEUES];

    for (unsigned queue = 0; queue < QUEUES; queue++)
        fds[queue] =
            (struct pollfd){queue > 0 ? w->more_fds[queue] : w->guest_fd, .events = POLLIN};
    while (clock_now_ns() < deadline_ns) {
        (void)poll(fds, QUEUES, 20);
        for (unsigned queue = 0; queue < QUEUES; queue++) {
            gint64 number = guest_recv_at(w, queue);

            if (number >= 0) {
                *ret_queue = queue;
                return number;
            }
        }
    }
    return -1;
}

START_TEST(unit_all_queues_are_one_tap)
{
    World w;
    struct ifreq first = {0}, other = {0};

    open_world(&w);
    ck_assert_int_eq(ioctl(w.guest_fd, TUNGETIFF, &first), 0);
    ck_assert(first.ifr_flags & IFF_MULTI_QUEUE);
    for (unsigned queue = 1; queue < QUEUES; queue++) {
        ck_assert_int_eq(ioctl(w.more_fds[queue], TUNGETIFF, &other), 0);
        ck_assert_str_eq(first.ifr_name, other.ifr_name);
        ck_assert(fcntl(w.more_fds[queue], F_GETFL) & O_NONBLOCK);
        ck_assert(fcntl(w.more_fds[queue], F_GETFD) & FD_CLOEXEC);
    }
    world_clear(&w);
}
END_TEST

/* Whatever queue a frame came from: the order of the writes is the order of the LAN, and a mark
 * covers what was written before it. */
START_TEST(unit_egress_of_all_queues_is_in_one_order_up_to_the_mark)
{
    World w;
    guint32 half = 500;

    open_world(&w);
    world_egress(&w, PROXY_EGRESS_HOLD);
    for (guint32 i = 0; i < half; i++)
        guest_send_from(&w, i * 7 % QUEUES, i, 60 + i % 1400);
    world_mark(&w, 1);
    for (guint32 i = half; i < 2 * half; i++)
        guest_send_from(&w, i * 5 % QUEUES, i, 60 + i % 1400);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    for (guint32 i = 0; i < half; i++)
        ck_assert_int_eq(client_recv(&w, WAIT), i);
    ck_assert_int_eq(client_recv(&w, 20), -1);
    world_egress(&w, PROXY_EGRESS_OPEN);
    for (guint32 i = half; i < 2 * half; i++)
        ck_assert_int_eq(client_recv(&w, WAIT), i);
    world_clear(&w);
}
END_TEST

/* Test frames are one flow to the kernel: they all come by one queue, in order. */
START_TEST(unit_ingress_of_a_flow_comes_by_one_queue_in_order)
{
    World w;
    unsigned queue, last = QUEUES;

    open_world(&w);
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    for (guint32 i = 0; i < 200; i++)
        client_send(&w, i, 60);
    for (guint32 i = 0; i < 200; i++) {
        ck_assert_int_eq(recv_any(&w, &queue), i);
        ck_assert(last == QUEUES || last == queue);
        last = queue;
    }
    world_clear(&w);
}
END_TEST

/* A guest that uses one queue only, as each does until its driver has asked for more: QEMU detaches
 * the others. */
START_TEST(unit_detached_queues_get_nothing)
{
    World w;
    unsigned queue;

    open_world(&w);
    for (unsigned i = 1; i < QUEUES; i++)
        attach_queue(&w, i, false);
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    for (guint32 i = 0; i < 100; i++)
        client_send(&w, i, 60);
    for (guint32 i = 0; i < 100; i++) {
        ck_assert_int_eq(recv_any(&w, &queue), i);
        ck_assert_uint_eq(queue, 0);
    }
    attach_queue(&w, 1, true);
    guest_send_from(&w, 1, 1000, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 1000);
    world_clear(&w);
}
END_TEST

/* Each queue has a ring; a full one makes ingress wait and loses nothing. */
START_TEST(err_full_queue_makes_ingress_wait_without_loss)
{
    World w;
    guint32 total = 4000;
    unsigned queue;

    open_world(&w);
    world_egress(&w, PROXY_EGRESS_OPEN);
    world_ingress(&w, true);
    for (guint32 i = 0; i < total; i++)
        client_send(&w, i, 60);

    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    while (world_stats(&w).ingress_frames < RING_FRAMES && clock_now_ns() < deadline)
        g_usleep(1000);
    ck_assert_uint_lt(world_stats(&w).ingress_frames, total);
    for (guint32 i = 0; i < total; i++)
        ck_assert_int_eq(recv_any(&w, &queue), i);
    ck_assert_uint_eq(world_stats(&w).lost_frames, 0);
    world_clear(&w);
}
END_TEST

START_TEST(life_any_queue_leads_an_adopting_proxy_to_the_tap)
{
    World w;

    open_world(&w);
    for (unsigned queue = 0; queue < QUEUES; queue++) {
        auto_fd int copy = fcntl(queue > 0 ? w.more_fds[queue] : w.guest_fd, F_DUPFD_CLOEXEC, 0);

        proxy_free(w.proxy);
        w.proxy = world_proxy(&w, PROXY_PORT_TAP, MIB, copy);
        fd_clear(&copy);
        ck_assert_int_eq(proxy_take_guest_fd(w.proxy, 0, queue), -1);
        world_egress(&w, PROXY_EGRESS_OPEN);
        for (guint32 i = 0; i < QUEUES; i++)
            guest_send_from(&w, i, i, 60);
        for (guint32 i = 0; i < QUEUES; i++)
            ck_assert_int_eq(client_recv(&w, WAIT), i);
    }
    world_clear(&w);
}
END_TEST

/* Also if it was detached when colod was started anew. */
START_TEST(life_a_detached_queue_leads_to_the_tap)
{
    World w;

    open_world(&w);
    attach_queue(&w, 2, false);
    proxy_free(w.proxy);
    w.proxy = world_proxy(&w, PROXY_PORT_TAP, MIB, w.more_fds[2]);
    world_egress(&w, PROXY_EGRESS_OPEN);
    guest_send(&w, 1, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 1);
    world_clear(&w);
}
END_TEST

/* The tap lives as long as one of its queues has a descriptor. */
START_TEST(err_tap_is_gone_with_its_last_queue)
{
    World w;

    open_world(&w);
    world_egress(&w, PROXY_EGRESS_OPEN);
    fd_clear(&w.guest_fd);
    for (unsigned queue = 2; queue < QUEUES; queue++)
        fd_clear(&w.more_fds[queue]);
    guest_send_from(&w, 1, 1, 60);
    ck_assert_int_eq(client_recv(&w, WAIT), 1);
    ck_assert_uint_eq(w.n_broken, 0);
    fd_clear(&w.more_fds[1]);
    world_until(&w.n_broken, 1);
    world_clear(&w);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        unit_all_queues_are_one_tap,
        unit_egress_of_all_queues_is_in_one_order_up_to_the_mark,
        unit_ingress_of_a_flow_comes_by_one_queue_in_order,
        unit_detached_queues_get_nothing,
        err_full_queue_makes_ingress_wait_without_loss,
        life_any_queue_leads_an_adopting_proxy_to_the_tap,
        life_a_detached_queue_leads_to_the_tap,
        err_tap_is_gone_with_its_last_queue,
    };

    return check_run("proxy-queues", tests, G_N_ELEMENTS(tests));
}
