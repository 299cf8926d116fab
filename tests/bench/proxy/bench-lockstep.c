/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-lockstep.c - frames per second of the lock-stepping data plane alone, on one core
 *
 * No guest: PVM's stream port and the frames channel are sockets into which two threads write
 * 64-byte frames, large pieces at a time, the same on both sides. The LAN tap is a datagram socket
 * whose other end throws everything away (a socket filter), so each released frame costs the system
 * call that a tap costs, but not the kernel's bridge behind it. All that the proxy's thread does is
 * counted, by its CPU time; what the feeding threads do is not.
 *
 * A "frame" is one of PVM's that was compared with SVM's and released: two came in, one left.
 */
#include "proxy.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/filter.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"
#include "frame-wire.h"
#include "lan-tap.h"

enum { FRAME_BYTES = 64, FLOWS = 100, PIECE_BYTES = 64 * 1024, RUNS = 12 };

int __real_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event);
int __wrap_lan_tap_open(const ProxyNic *nic, int *ret_ifindex, GError **error);

static int lan_fd, lan_other_fd;

int
__wrap_lan_tap_open(const ProxyNic *nic, int *ret_ifindex, GError **error)
{
    (void)nic, (void)error;
    *ret_ifindex = INT32_MAX;
    return lan_fd;
}

/* /dev/null cannot be watched, and need not be. */
int
__wrap_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    int r = __real_epoll_ctl(epoll_fd, operation, fd, event);

    return r < 0 && fd == lan_fd ? 0 : r;
}

static void
open_lan(bool socket)
{
    if (!socket) {
        lan_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
        lan_other_fd = -1;
        return;
    }

    struct sock_filter drop_all = {.code = BPF_RET | BPF_K, .k = 0};
    struct sock_fprog program = {.len = 1, .filter = &drop_all};
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0 ||
        setsockopt(fds[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) < 0)
        g_error("the LAN's stand-in: %s", g_strerror(errno));
    lan_fd = fds[0];
    lan_other_fd = fds[1];
}

/* --- traffic --- */

typedef struct Feed {
    GByteArray *bytes;
    int fd;
    pthread_t thread;
} Feed;

/* Ethernet frame @i of the run; TCP: each flow's stream goes on, UDP: each payload is different. */
static void
build(uint8_t frame[static FRAME_BYTES], uint32_t i, bool tcp)
{
    static const uint8_t head[34] = {0x02, 0,    0,    0, 0, 1,  0x52, 0x54, 0, 0x12, 0x34, 0x56,
                                     0x08, 0x00, 0x45, 0, 0, 50, 0,    0,    0, 0,    64,   17,
                                     0,    0,    10,   0, 0, 2,  10,   0,    0, 1};
    uint32_t flow = i % FLOWS, step = i / FLOWS;

    memset(frame, 0, FRAME_BYTES);
    memcpy(frame, head, sizeof(head));
    be16_store(frame + 34, 80);
    be16_store(frame + 36, (uint16_t)(1000 + flow));
    if (!tcp) {
        be16_store(frame + 38, 30);
        be32_store(frame + 42, i);
        return;
    }
    frame[23] = 6;
    be32_store(frame + 38, step * 10);
    be32_store(frame + 42, 1);
    frame[46] = 0x50;
    frame[47] = 0x10;
    be32_store(frame + 54, i);
}

static void
build_feeds(Feed *primary, Feed *secondary, uint32_t n, bool tcp)
{
    primary->bytes = g_byte_array_sized_new(n * (4 + FRAME_BYTES));
    secondary->bytes = g_byte_array_sized_new(n * (WIRE_OVERHEAD_BYTES + 10 + FRAME_BYTES));
    for (uint32_t i = 0; i < n; i++) {
        uint8_t frame[4 + WIRE_VNET_BYTES + FRAME_BYTES] = {0};
        uint8_t message[WIRE_OVERHEAD_BYTES + WIRE_VNET_BYTES + FRAME_BYTES];

        build(frame + WIRE_VNET_BYTES, i, tcp);
        wire_encode(message, &(WireFrame){.sequence = i + 1,
                                          .kind = WIRE_EGRESS,
                                          .frame = frame,
                                          .len = WIRE_VNET_BYTES + FRAME_BYTES});
        g_byte_array_append(secondary->bytes, message, sizeof(message));
        be32_store(frame + WIRE_VNET_BYTES - 4, FRAME_BYTES);
        g_byte_array_append(primary->bytes, frame + WIRE_VNET_BYTES - 4, 4 + FRAME_BYTES);
    }
}

static void *
feed_main(void *arg)
{
    Feed *feed = arg;

    for (size_t done = 0; done < feed->bytes->len;) {
        ssize_t n =
            write(feed->fd, feed->bytes->data + done, MIN(feed->bytes->len - done, PIECE_BYTES));

        if (n < 0)
            g_error("feeding: %s", g_strerror(errno));
        done += (size_t)n;
    }
    return NULL;
}

/* --- the frames channel --- */

static ssize_t
fd_read(gpointer opaque, void *bytes, size_t len)
{
    ssize_t n = recv(GPOINTER_TO_INT(opaque), bytes, len, MSG_DONTWAIT);

    return n < 0 ? -errno : n;
}

static ssize_t
fd_write(gpointer opaque, const void *bytes, size_t len)
{
    ssize_t n = send(GPOINTER_TO_INT(opaque), bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);

    return n < 0 ? -errno : n;
}

static void
fd_close(gpointer opaque)
{
    (void)close(GPOINTER_TO_INT(opaque));
}

/* --- the proxy's thread --- */

/* CPU time of the thread called "colo-proxy"; Linux makes a clock of each thread's id. */
static int64_t
proxy_cpu_ns(void)
{
    g_autoptr(GDir) tasks = g_dir_open("/proc/self/task", 0, NULL);
    const char *name;

    while (tasks && (name = g_dir_read_name(tasks))) {
        g_autofree char *path = g_build_filename("/proc/self/task", name, "comm", NULL);
        g_autofree char *comm = NULL;
        struct timespec ts;

        if (!g_file_get_contents(path, &comm, NULL, NULL) || strcmp(comm, "colo-proxy\n") != 0)
            continue;

        const clockid_t clock = (clockid_t)((~(unsigned)atoi(name) << 3) | 6);

        if (clock_gettime(clock, &ts) == 0)
            return ts.tv_sec * NS_PER_S + ts.tv_nsec;
    }
    g_error("the proxy's thread is not there");
}

static void
on_done(Proxy *proxy, gpointer flag)
{
    (void)proxy;
    *(bool *)flag = true;
}

static void
wait_for(const bool *flag)
{
    while (!*flag)
        g_main_context_iteration(NULL, TRUE);
}

static Proxy *
open_proxy(const char *path, bool socket, int *ret_guest_fd, int *ret_peer_fd)
{
    ProxyConfig config = {.n_nics = 1, .hold_max_bytes = 64 << 20, .lockstep = true};
    g_autoptr(GError) error = NULL;
    int peer[2];
    bool done = false;
    int listen_fd = fd_unix_listen(path);

    compare_config_init(&config.compare);
    config.compare.timeout_ns = 10 * NS_PER_S;
    config.nics[0] = (ProxyNic){.name = "nic0", .port = PROXY_PORT_STREAM, .stream_path = path};
    open_lan(socket);

    Proxy *proxy = proxy_new(&config, NULL, NULL, NULL, &error);

    if (!proxy || !proxy_connect_ports(proxy, &error))
        g_error("%s", error->message);
    *ret_guest_fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (*ret_guest_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, peer) < 0)
        g_error("%s", g_strerror(errno));
    (void)close(listen_fd);
    *ret_peer_fd = peer[1];

    const ProxyPeer channel = {.read = fd_read,
                               .write = fd_write,
                               .close = fd_close,
                               .fd = peer[0],
                               .opaque = GINT_TO_POINTER(peer[0])};

    proxy_attach_peer(proxy, &channel);
    proxy_set_lease(proxy, INT64_MAX);
    proxy_set_egress(proxy, PROXY_EGRESS_COMPARE, on_done, &done);
    wait_for(&done);
    return proxy;
}

static void
run(const char *path, uint32_t n, bool tcp, bool socket, bool last)
{
    Feed primary, secondary;
    ProxyStats stats = {0};
    Proxy *proxy = open_proxy(path, socket, &primary.fd, &secondary.fd);
    int64_t deadline_ns = clock_now_ns() + 60 * NS_PER_S;

    build_feeds(&primary, &secondary, n, tcp);

    int64_t cpu_ns = proxy_cpu_ns(), wall_ns = clock_now_ns();

    pthread_create(&primary.thread, NULL, feed_main, &primary);
    pthread_create(&secondary.thread, NULL, feed_main, &secondary);
    while (stats.egress_frames < n && clock_now_ns() < deadline_ns) {
        g_usleep(200);
        proxy_get_stats(proxy, &stats);
    }
    cpu_ns = proxy_cpu_ns() - cpu_ns;
    wall_ns = clock_now_ns() - wall_ns;
    if (stats.egress_frames < n || stats.released[COMPARE_RELEASED_MATCHED] < n / 10 * 9)
        g_error("only %" G_GUINT64_FORMAT " frames left", stats.egress_frames);
    printf("  {\"frames\": \"%s, 64 bytes, %d flows\", \"lan\": \"%s\", \"n\": %u, "
           "\"per_cpu_s\": %.0f, "
           "\"per_wall_s\": %.0f, \"cpu_ns\": %.0f}%s\n",
           tcp ? "TCP" : "UDP", FLOWS, socket ? "socket" : "null", n,
           (double)n * 1e9 / (double)cpu_ns, (double)n * 1e9 / (double)wall_ns, (double)cpu_ns / n,
           last ? "" : ",");
    pthread_join(primary.thread, NULL);
    pthread_join(secondary.thread, NULL);
    proxy_free(proxy);
    g_byte_array_unref(primary.bytes);
    g_byte_array_unref(secondary.bytes);
    (void)close(primary.fd);
    (void)close(secondary.fd);
    fd_clear(&lan_other_fd);
}

int
main(int argc, char **argv)
{
    const uint32_t n = argc > 1 ? (uint32_t)atoi(argv[1]) : 1000000;
    g_autofree char *dir = g_dir_make_tmp("colo-bench-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "nic0.sock", NULL);

    printf("{\"bench\": \"lockstep\", \"runs\": [\n");
    for (unsigned i = 0; i < RUNS; i++)
        run(path, n, i % 2 == 0, i % 4 < 2, i == RUNS - 1);
    printf("]}\n");
    (void)g_unlink(path);
    (void)g_rmdir(dir);
    return EXIT_SUCCESS;
}
