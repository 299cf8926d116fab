/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-world.c - a bridge with a client in a network namespace of the test's own, and a fake QEMU
 */
#include "proxy-world.h"

#include <check.h>
#include <errno.h>
#include <glib/gstdio.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"
#include "link.h"

enum { TYPE_TEST = 0x88b5, HEADER = 14, FRAME_MAX = 70000 };

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

void
world_ioctl_name(unsigned long request, const char *name)
{
    auto_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    ck_assert_msg(ioctl(fd, request, name) == 0, "ioctl %lx %s: %s", request, name,
                  g_strerror(errno));
}

void
world_delete_link(const char *name)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg info;
    } request = {.header = {.nlmsg_len = sizeof(request),
                            .nlmsg_type = RTM_DELLINK,
                            .nlmsg_flags = NLM_F_REQUEST},
                 .info = {.ifi_index = (int)if_nametoindex(name)}};
    auto_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    ck_assert_int_eq(send(fd, &request, sizeof(request), 0), sizeof(request));
}

void
world_enter(void)
{
    g_autoptr(GError) error = NULL;

    /* Anonymous: it goes with the process, whatever becomes of that. */
    if (unshare(CLONE_NEWNET) < 0) {
        g_printerr("test-proxy: cannot make a network namespace: %s. It needs CAP_SYS_ADMIN, "
                   "CAP_NET_ADMIN and CAP_NET_RAW (run as root).\n",
                   g_strerror(errno));
        exit(EXIT_FAILURE);
    }
    if (!link_disable_ipv6("default", &error) || !link_disable_ipv6("all", &error))
        g_error("%s", error->message);
}

static char *
name_of(const World *w, const char *what)
{
    return g_strdup_printf("%s%u", what, w->index);
}

static int
make_client(const World *w)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *name = name_of(w, "client");
    g_autofree char *bridge = name_of(w, "br");
    int fd = link_open_tap(name, &error);

    if (fd < 0 || !link_configure(name, 20000, 0, 0, &error) ||
        !link_add_to_bridge(bridge, name, &error) || !link_set_up(name, &error))
        g_error("%s", error->message);
    ck_assert_int_eq(ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6), 0);
    return fd;
}

static void
on_high(Proxy *proxy, gpointer world)
{
    (void)proxy;
    ((World *)world)->n_high++;
}

static void
on_lost(Proxy *proxy, guint64 frames, gpointer world)
{
    (void)proxy;
    ((World *)world)->n_lost += frames;
}

static void
on_broken(Proxy *proxy, const GError *reason, gpointer world)
{
    World *w = world;

    (void)proxy;
    w->n_broken++;
    g_free(w->broken_text);
    w->broken_text = g_strdup(reason->message);
}

static void
on_divergence(Proxy *proxy, const ProxyDivergence *what, gpointer world)
{
    World *w = world;

    (void)proxy;
    w->n_divergences++;
    w->divergence = *what;
}

static void
on_peer_lost(Proxy *proxy, const GError *reason, gpointer world)
{
    World *w = world;

    (void)proxy;
    w->n_peer_lost++;
    g_free(w->peer_text);
    w->peer_text = g_strdup(reason->message);
}

Proxy *
world_proxy(World *w, ProxyPortKind port, gsize hold_max_bytes, int adopt_fd)
{
    static const ProxyHandlers handlers = {.hold_high = on_high,
                                           .lost = on_lost,
                                           .broken = on_broken,
                                           .divergence = on_divergence,
                                           .peer_lost = on_peer_lost};
    ProxyConfig config = w->base;
    g_autoptr(GError) error = NULL;
    g_autofree char *bridge = name_of(w, "br");
    g_autofree char *lan_tap = name_of(w, "lan");

    config.n_nics = 1;
    config.hold_max_bytes = hold_max_bytes;

    config.nics[0] = (ProxyNic){.name = "nic0",
                                .port = port,
                                .queues = w->base.nics[0].queues,
                                .bridge = bridge,
                                .lan_tap = lan_tap,
                                .stream_path = w->stream_path};
    memcpy(config.nics[0].mac, guest_mac, 6);

    Proxy *proxy = proxy_new(&config, adopt_fd >= 0 ? &adopt_fd : NULL, &handlers, w, &error);

    if (!proxy)
        g_error("%s", error->message);
    return proxy;
}

static void
connect_stream(World *w)
{
    g_autoptr(GError) error = NULL;

    ck_assert(proxy_connect_ports(w->proxy, &error));
    w->guest_fd = accept4(w->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    ck_assert_int_ge(w->guest_fd, 0);
}

void
world_init(World *w, ProxyPortKind port, gsize hold_max_bytes)
{
    /* A new one each time: what a failed test leaves behind is out of the way. */
    world_enter();
    world_open(w, 0, port, &(ProxyConfig){.hold_max_bytes = hold_max_bytes});
}

void
world_open(World *w, unsigned index, ProxyPortKind port, const ProxyConfig *base)
{
    g_autoptr(GError) error = NULL;

    *w = (World){.guest_fd = -1,
                 .listen_fd = -1,
                 .guest_header = WORLD_TAP_HEADER,
                 .index = index,
                 .base = *base};
    memset(w->more_fds, -1, sizeof(w->more_fds));

    g_autofree char *bridge = name_of(w, "br");

    world_ioctl_name(SIOCBRADDBR, bridge);
    if (!link_set_up(bridge, &error))
        g_error("%s", error->message);
    w->client_fd = make_client(w);
    if (port == PROXY_PORT_STREAM) {
        w->stream_dir = g_dir_make_tmp("cldp-XXXXXX", NULL);
        w->stream_path = g_build_filename(w->stream_dir, "nic0.sock", NULL);
        w->listen_fd = fd_unix_listen(w->stream_path);
        ck_assert_int_ge(w->listen_fd, 0);
        w->guest_header = 0;
    }
    w->proxy = world_proxy(w, port, base->hold_max_bytes, -1);
    if (port == PROXY_PORT_STREAM) {
        ck_assert_int_eq(proxy_take_guest_fd(w->proxy, 0, 0), -1);
        connect_stream(w);
    } else {
        w->guest_fd = proxy_take_guest_fd(w->proxy, 0, 0);
        ck_assert_int_ge(w->guest_fd, 0);
        for (unsigned queue = 1; queue < PROXY_MAX_QUEUES; queue++) {
            w->more_fds[queue] = proxy_take_guest_fd(w->proxy, 0, queue);
            ck_assert_int_eq(w->more_fds[queue] >= 0, queue < MAX(base->nics[0].queues, 1));
        }
        ck_assert_int_eq(proxy_take_guest_fd(w->proxy, 0, 0), -1);
        /* As QEMU does; without it the kernel would compute checksums for the guest. */
        ck_assert_int_eq(ioctl(w->guest_fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6),
                         0);
    }
}

void
world_clear(World *w)
{
    g_autoptr(GError) error = NULL;

    proxy_free(w->proxy);
    fd_clear(&w->guest_fd);
    for (unsigned queue = 1; queue < PROXY_MAX_QUEUES; queue++)
        fd_clear(&w->more_fds[queue]);
    fd_clear(&w->client_fd);
    fd_clear(&w->listen_fd);
    if (w->stream_path)
        (void)g_unlink(w->stream_path);
    if (w->stream_dir)
        (void)g_rmdir(w->stream_dir);
    g_free(w->stream_path);
    g_free(w->stream_dir);
    g_free(w->broken_text);
    g_free(w->peer_text);
}

static void
build(uint8_t *frame, const uint8_t *from, guint32 number, size_t len)
{
    ck_assert_uint_ge(len, HEADER + 4);
    memset(frame, (int)(number & 0xff), len);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, from, 6);
    be16_store(frame + 12, TYPE_TEST);
    be32_store(frame + 14, number);
}

void
guest_send_raw(World *w, const guint8 *frame, size_t len)
{
    static uint8_t buffer[FRAME_MAX];
    size_t header = w->guest_header ? (size_t)w->guest_header : 4;

    memset(buffer, 0, header);
    memcpy(buffer + header, frame, len);
    if (!w->guest_header)
        be32_store(buffer, (uint32_t)len);

    size_t sent = 0;
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    while (sent < header + len) {
        ssize_t n = write(w->guest_fd, buffer + sent, header + len - sent);

        ck_assert_msg(n > 0 || errno == EAGAIN, "guest write: %s", g_strerror(errno));
        ck_assert_int_lt(clock_now_ns(), deadline);
        if (n > 0)
            sent += (size_t)n;
    }
}

void
guest_send(World *w, guint32 number, size_t len)
{
    static uint8_t frame[FRAME_MAX];

    build(frame, guest_mac, number, len);
    guest_send_raw(w, frame, len);
}

void
guest_send_from(World *w, unsigned queue, guint32 number, size_t len)
{
    int first = w->guest_fd;

    w->guest_fd = queue > 0 ? w->more_fds[queue] : first;
    guest_send(w, number, len);
    w->guest_fd = first;
}

void
client_send(World *w, guint32 number, size_t len)
{
    static const uint8_t mac[6] = {0x02, 0, 0, 0, 0, 1};
    uint8_t buffer[WORLD_TAP_HEADER + 2000] = {0};

    build(buffer + WORLD_TAP_HEADER, mac, number, len);
    ck_assert_int_eq(write(w->client_fd, buffer, WORLD_TAP_HEADER + len), WORLD_TAP_HEADER + len);
}

/* The number in a test frame, or -1. */
static gint64
number_of(const uint8_t *frame, size_t len)
{
    if (len < HEADER + 4 || be16_load(frame + 12) != TYPE_TEST)
        return -1;
    for (size_t i = HEADER + 4; i < len; i++)
        if (frame[i] != frame[HEADER + 3])
            return -2;
    return be32_load(frame + 14);
}

static bool
wait_readable(int fd, int64_t deadline_ns)
{
    int64_t left = deadline_ns - clock_now_ns();
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, (int)(MAX(left, 0) / NS_PER_MS)) == 1;
}

static gint64
recv_tap(int fd, size_t header, int wait_ms)
{
    static uint8_t buffer[FRAME_MAX];
    int64_t deadline_ns = clock_now_ns() + wait_ms * NS_PER_MS;

    while (wait_readable(fd, deadline_ns)) {
        ssize_t n = read(fd, buffer, sizeof(buffer));

        if (n < (ssize_t)header)
            continue;

        gint64 number = number_of(buffer + header, (size_t)n - header);

        if (number != -1)
            return number;
    }
    return -1;
}

static bool
recv_bytes(int fd, uint8_t *bytes, size_t len, int64_t deadline_ns)
{
    for (size_t done = 0; done < len;) {
        if (!wait_readable(fd, deadline_ns))
            return false;

        ssize_t n = recv(fd, bytes + done, len - done, 0);

        ck_assert_int_gt(n, 0);
        done += (size_t)n;
    }
    return true;
}

gint64
guest_recv(World *w, int wait_ms)
{
    static uint8_t buffer[FRAME_MAX];
    int64_t deadline_ns = clock_now_ns() + wait_ms * NS_PER_MS;
    uint8_t length[4];

    if (w->guest_header)
        return recv_tap(w->guest_fd, (size_t)w->guest_header, wait_ms);
    while (recv_bytes(w->guest_fd, length, 4, deadline_ns)) {
        uint32_t len = be32_load(length);

        ck_assert_uint_le(len, sizeof(buffer));
        ck_assert(recv_bytes(w->guest_fd, buffer, len, deadline_ns));
        gint64 number = number_of(buffer, len);

        if (number != -1)
            return number;
    }
    return -1;
}

gint64
guest_recv_at(World *w, unsigned queue)
{
    return recv_tap(queue > 0 ? w->more_fds[queue] : w->guest_fd, (size_t)w->guest_header, 0);
}

gint64
client_recv(World *w, int wait_ms)
{
    return recv_tap(w->client_fd, WORLD_TAP_HEADER, wait_ms);
}

void
world_done(Proxy *proxy, gpointer world)
{
    (void)proxy;
    ((World *)world)->n_done++;
}

void
world_refused(Proxy *proxy, gpointer world)
{
    (void)proxy;
    ((World *)world)->n_refused++;
}

static gboolean
wake_up(gpointer unused)
{
    (void)unused;
    return G_SOURCE_CONTINUE;
}

void
world_until(const unsigned *counter, unsigned at_least)
{
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;
    guint tick = g_timeout_add(20, wake_up, NULL);

    while (*counter < at_least) {
        ck_assert_msg(clock_now_ns() < deadline, "deadline passed: %u < %u", *counter, at_least);
        g_main_context_iteration(NULL, TRUE);
    }
    g_source_remove(tick);
}

void
world_egress(World *w, ProxyEgress egress)
{
    unsigned before = w->n_done;

    proxy_set_egress(w->proxy, egress, world_done, w);
    world_until(&w->n_done, before + 1);
}

void
world_ingress(World *w, bool flowing)
{
    unsigned before = w->n_done;

    proxy_set_ingress(w->proxy, flowing, world_done, w);
    world_until(&w->n_done, before + 1);
}

void
world_mark(World *w, guint64 epoch)
{
    unsigned before = w->n_done;

    proxy_mark(w->proxy, epoch, world_done, w);
    world_until(&w->n_done, before + 1);
}

void
world_until_held(World *w, guint64 frames)
{
    int64_t deadline = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;
    ProxyStats stats;

    for (;;) {
        proxy_get_stats(w->proxy, &stats);
        if (stats.held_frames == frames)
            return;
        ck_assert_msg(clock_now_ns() < deadline, "%" G_GUINT64_FORMAT " frames held",
                      stats.held_frames);
        g_usleep(200);
    }
}

ProxyStats
world_stats(const World *w)
{
    ProxyStats stats;

    proxy_get_stats(w->proxy, &stats);
    return stats;
}

void
client_expect(World *w, guint32 first, guint32 last)
{
    for (guint32 i = first; i <= last; i++)
        ck_assert_int_eq(client_recv(w, WORLD_DEADLINE_MS), i);
}

void
guest_send_range(World *w, guint32 first, guint32 last)
{
    for (guint32 i = first; i <= last; i++)
        guest_send(w, i, 60 + i % 1400);
}

void
world_check_ingress(World *w)
{
    world_egress(w, PROXY_EGRESS_OPEN);
    world_ingress(w, true);
    for (guint32 i = 0; i < 300; i++)
        client_send(w, i, 60 + i);
    for (guint32 i = 0; i < 300; i++)
        ck_assert_int_eq(guest_recv(w, WORLD_DEADLINE_MS), i);

    /* A short pause loses nothing and lets nothing through. */
    world_ingress(w, false);
    for (guint32 i = 300; i < 1500; i++)
        client_send(w, i, 60);
    world_ingress(w, false);
    ck_assert_int_eq(guest_recv(w, 0), -1);
    world_ingress(w, true);
    for (guint32 i = 300; i < 1500; i++)
        ck_assert_int_eq(guest_recv(w, WORLD_DEADLINE_MS), i);
    /* The host's own IGMP may be among them. */
    ck_assert_uint_ge(world_stats(w).ingress_frames, 1500);
    ck_assert_uint_eq(world_stats(w).lost_frames, 0);
}
