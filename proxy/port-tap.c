/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * port-tap.c - guest port: private tap in a namespace of its own, and a packet socket on it
 *
 * Theory of operation
 *
 * QEMU has the tap's descriptor, we have a packet socket on the tap's interface, both with
 * virtio-net headers, so that GSO and checksum offload survive. The namespace has no address, no
 * route and no IPv6: nobody else ever answers on the tap.
 *
 * From the guest: the kernel delivers to packet sockets inside QEMU's write() to the tap. When that
 * has returned, the frame is in our socket; reading until EAGAIN therefore drains the port. A full
 * socket loses frames, and counts them.
 *
 * To the guest: the tap has no queueing discipline, so sending puts the frame into the tap's ring
 * or fails with ENOBUFS at once. With any other discipline a full ring drops in silence. Nothing
 * tells when the ring has room again: the caller tries again after a while. How many frames QEMU
 * has read the interface counts (/proc/net/dev; from the kernel's side of the tap QEMU's reading is
 * transmission), so an empty ring can be told from one that is not.
 *
 * Queues. QEMU may have several, each a descriptor of its own; we have one socket, which sees the
 * frames of all. QEMU's main loop writes them one after the other (vhost=off), so the socket has
 * them in the order in which QEMU took them from the guest, and a drain has seen them all. Order
 * counts within a flow only, and a guest keeps a flow to one queue while anything of it is under
 * way. To the guest the kernel chooses the queue: the one from which the guest last sent of that
 * flow, or by a hash of the flow. Each has a ring of its own; if one is full the frame waits, and
 * those behind it with it, so that none overtakes another. A queue that the guest does not use is
 * detached by QEMU and not chosen. Any of the descriptors leads an adopting colod to the tap.
 *
 * Life: the namespace lives as long as a socket or tap descriptor of it. QEMU's are the only tap
 * descriptors once handed out; when the last goes the tap goes, and our socket says ENETDOWN.
 */
#include "port.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "fd.h"
#include "link.h"

static const char tap_name[] = "guest0";

enum {
    /* The thread may be off its CPU for 10 ms at 20 Gbit/s: 25 MB. The kernel doubles it. */
    RCVBUF_BYTES = 32 << 20,
    SNDBUF_BYTES = 4 << 20,
    /* Frames QEMU has not taken yet, in each queue. Few: more of them would only be what a
     * checkpoint's secondary never sees; what does not fit waits in the LAN tap. */
    RING_FRAMES = 1024,
    /* The largest that a tap accepts; the guest's own MTU is what counts. */
    TAP_MTU = 65521,
    /* Small frames are read many at a time and then moved together, large ones one by one into
     * their final place. */
    BATCH = 32,
    LARGE_BYTES = 4096,
    LARGE_BATCH = 8,
    VLAN_BYTES = 4,
    MAC_BYTES = 12,
    COUNTERS_BYTES = 4096, /* of /proc/net/dev: two interfaces, and what a kernel may add */
    /* In front of the number of frames that QEMU has read, on an interface's line. */
    COUNTERS_BEFORE_READ = 9,
};

static_assert(sizeof(struct virtio_net_hdr) == PORT_VNET_BYTES, "header of packet sockets");
static_assert((int)HOLD_QUEUE_HEADROOM >= (int)VLAN_BYTES, "a tag fits before the frame");

typedef struct TapPort {
    Port port;
    bool large;         /* the last batch had large frames */
    int pending_error;  /* the socket's; reported when all that came before it has been read */
    guint64 unreadable; /* frames whose offload the header cannot express */
    char name[IFNAMSIZ];
    int counters_fd;     /* /proc/net/dev of its namespace; -1 */
    uint64_t given;      /* frames put into the ring */
    uint64_t read_first; /* what QEMU had read before */
    struct mmsghdr messages[BATCH];
    struct iovec iovecs[BATCH];
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
    } control[BATCH];
} TapPort;

/* The kernel takes an outer VLAN tag out of the frame before packet sockets see it; put it back. */
static const uint8_t *
restore_vlan(uint8_t *frame, size_t *len, const struct tpacket_auxdata *aux)
{
    struct virtio_net_hdr header;
    uint8_t *start = frame - VLAN_BYTES;
    uint8_t *tag = start + PORT_VNET_BYTES + MAC_BYTES;

    memmove(start, frame, PORT_VNET_BYTES + MAC_BYTES);
    be16_store(tag, aux->tp_status & TP_STATUS_VLAN_TPID_VALID ? aux->tp_vlan_tpid : ETH_P_8021Q);
    be16_store(tag + 2, aux->tp_vlan_tci);
    *len += VLAN_BYTES;

    memcpy(&header, start, sizeof(header));
    if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        header.csum_start = (uint16_t)(header.csum_start + VLAN_BYTES);
    if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE)
        header.hdr_len = (uint16_t)(header.hdr_len + VLAN_BYTES);
    memcpy(start, &header, sizeof(header));
    return start;
}

static const struct tpacket_auxdata *
vlan_of(struct msghdr *message)
{
    const struct cmsghdr *c = CMSG_FIRSTHDR(message);

    if (!c || c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA)
        return NULL;

    const struct tpacket_auxdata *aux = (const void *)CMSG_DATA(c);

    return aux->tp_status & TP_STATUS_VLAN_VALID ? aux : NULL;
}

static int
receive(TapPort *tap, const HoldQueue *queue, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        tap->iovecs[i] =
            (struct iovec){.iov_base = hold_queue_slot(queue, i), .iov_len = HOLD_QUEUE_FRAME_MAX};
        tap->messages[i].msg_hdr = (struct msghdr){.msg_iov = &tap->iovecs[i],
                                                   .msg_iovlen = 1,
                                                   .msg_control = tap->control[i].bytes,
                                                   .msg_controllen = sizeof(tap->control[i])};
    }
    for (;;) {
        int r = recvmmsg(tap->port.fd, tap->messages, n, MSG_DONTWAIT, NULL);

        if (r > 0)
            return r;
        if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return tap->pending_error;
        /* A frame that the header cannot describe: the kernel has dropped it. */
        if (r < 0 && errno == EINVAL)
            tap->unreadable++;
        else if (r < 0 && errno == ENETDOWN)
            /* Told once, and before the frames that are still queued. */
            tap->pending_error = -errno;
        else if (r < 0 && errno != EINTR)
            return -errno;
    }
}

/* @n frames, or as many as there are. */
static int
read_batch(TapPort *tap, const HoldQueue *queue, unsigned asked, PortSink sink, gpointer user_data)
{
    int n = receive(tap, queue, asked);
    size_t longest = 0;

    for (int i = 0; i < n; i++) {
        struct msghdr *message = &tap->messages[i].msg_hdr;
        const uint8_t *frame = tap->iovecs[i].iov_base;
        size_t len = tap->messages[i].msg_len;
        const struct tpacket_auxdata *vlan = vlan_of(message);

        longest = MAX(longest, len);
        if (message->msg_flags & MSG_TRUNC) {
            tap->unreadable++;
            continue;
        }
        if (vlan && len >= PORT_VNET_BYTES + PORT_ETHERNET_BYTES)
            frame = restore_vlan(tap->iovecs[i].iov_base, &len, vlan);
        sink(user_data, frame, len);
    }
    if (n > 0)
        tap->large = longest > LARGE_BYTES;
    /* An error that waits for the end is told by another read only. */
    tap->port.drained = n >= 0 && (unsigned)n < asked && !tap->pending_error;
    return n;
}

static int
tap_read(Port *port, const HoldQueue *queue, unsigned max, PortSink sink, gpointer user_data)
{
    TapPort *tap = (TapPort *)port;
    unsigned total = 0;

    if (!tap->large)
        return read_batch(tap, queue, MIN(max, BATCH), sink, user_data);
    while (total < MIN(max, LARGE_BATCH) && tap->large) {
        int n = read_batch(tap, queue, 1, sink, user_data);

        if (n < 0 && total > 0)
            tap->pending_error = n;
        else if (n < 0)
            return n;
        if (n <= 0)
            break;
        total++;
    }
    return (int)total;
}

static int
tap_write(Port *port, const uint8_t *frame, size_t len)
{
    ssize_t n;

    do
        n = send(port->fd, frame, len, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);

    if (n >= 0) {
        ((TapPort *)port)->given++;
        return 0;
    }
    /* ENOBUFS: the tap's ring is full. EAGAIN: the socket's own budget is. */
    if (errno == ENOBUFS || errno == EAGAIN || errno == EWOULDBLOCK)
        return -EAGAIN;
    return errno == ENXIO || errno == ENODEV || errno == ENETDOWN ? -EPIPE : -errno;
}

static guint64
tap_take_lost(Port *port)
{
    TapPort *tap = (TapPort *)port;
    struct tpacket_stats stats = {0};
    socklen_t len = sizeof(stats);
    guint64 lost = tap->unreadable;

    tap->unreadable = 0;
    /* Reading it resets it. */
    if (getsockopt(port->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &len) == 0)
        lost += stats.tp_drops;
    return lost;
}

/* How many frames QEMU has read from the tap. False: not known. */
static bool
count_read(const TapPort *tap, uint64_t *ret_read)
{
    char text[COUNTERS_BYTES], prefix[IFNAMSIZ + 2];
    ssize_t n = tap->counters_fd < 0 ? -1 : pread(tap->counters_fd, text, sizeof(text) - 1, 0);

    if (n <= 0)
        return false;
    text[n] = '\0';
    (void)snprintf(prefix, sizeof(prefix), "%s:", tap->name);

    char *at = strstr(text, prefix);

    if (!at)
        return false;
    at += strlen(prefix);
    for (unsigned i = 0; i < COUNTERS_BEFORE_READ; i++)
        (void)strtoull(at, &at, 10);
    *ret_read = strtoull(at, NULL, 10);
    return true;
}

static bool
tap_is_idle(Port *port)
{
    const TapPort *tap = (const TapPort *)port;
    uint64_t read;

    return !count_read(tap, &read) || read - tap->read_first >= tap->given;
}

static void
tap_close(Port *port)
{
    fd_clear(&port->fd);
    fd_clear(&((TapPort *)port)->counters_fd);
    g_free(port);
}

static const PortOps tap_ops = {
    .read = tap_read,
    .write = tap_write,
    .take_lost = tap_take_lost,
    .is_idle = tap_is_idle,
    .close = tap_close,
    .write_polls = false,
};

static gboolean
set_option(int fd, int level, int option, int value, const char *what, GError **error)
{
    if (setsockopt(fd, level, option, &value, sizeof(value)) < 0)
        return link_error(error, errno, "cannot set %s of the guest port's packet socket", what);
    return TRUE;
}

/* In the guest port's namespace. -1 on error. */
static int
open_packet_socket(const char *name, GError **error)
{
    /* Protocol 0: it receives nothing before bind(), so it never sees a frame without header. */
    auto_fd int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        link_error(error, errno, "cannot open a packet socket");
        return -1;
    }
    if (!set_option(fd, SOL_PACKET, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR", error) ||
        !set_option(fd, SOL_PACKET, PACKET_AUXDATA, 1, "PACKET_AUXDATA", error) ||
        !set_option(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING", error) ||
        !set_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, RCVBUF_BYTES, "SO_RCVBUFFORCE", error) ||
        !set_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, SNDBUF_BYTES, "SO_SNDBUFFORCE", error))
        return -1;

    struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                  .sll_protocol = GUINT16_TO_BE(ETH_P_ALL),
                                  .sll_ifindex = (int)if_nametoindex(name)};

    if (address.sll_ifindex == 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        link_error(error, errno, "cannot bind the packet socket to the guest's tap %s", name);
        return -1;
    }
    return fd_steal(&fd);
}

typedef struct TapSetup {
    char name[IFNAMSIZ];
    unsigned queues;
    int tap_fds[PROXY_MAX_QUEUES], socket_fd, counters_fd;
} TapSetup;

/* The file is of the namespace of the thread that opens it. Without it the ring cannot be seen. */
static void
open_counters(TapSetup *setup)
{
    setup->counters_fd = open("/proc/thread-self/net/dev", O_RDONLY | O_CLOEXEC);
}

static gboolean
open_adopted(gpointer user_data, GError **error)
{
    TapSetup *setup = user_data;

    open_counters(setup);
    setup->socket_fd = open_packet_socket(setup->name, error);
    return setup->socket_fd >= 0;
}

static gboolean
make_tap(gpointer user_data, GError **error)
{
    TapSetup *setup = user_data;

    /* Before the tap exists, so that not even a multicast listener report goes to the guest. */
    if (!link_disable_ipv6("default", error) ||
        !link_open_tap_queues(tap_name, setup->queues, setup->tap_fds, error))
        return FALSE;
    if (link_configure(tap_name, RING_FRAMES, TAP_MTU, IFF_NOARP, error) &&
        link_set_up(tap_name, error) && link_set_noqueue(tap_name, error))
        setup->socket_fd = open_packet_socket(tap_name, error);
    if (setup->socket_fd >= 0) {
        open_counters(setup);
        g_strlcpy(setup->name, tap_name, sizeof(setup->name));
        return TRUE;
    }
    for (unsigned i = 0; i < setup->queues; i++)
        fd_clear(&setup->tap_fds[i]);
    return FALSE;
}

static gboolean
adopt_tap(int adopt_fd, TapSetup *setup, GError **error)
{
    struct ifreq ifr = {0};

    if (ioctl(adopt_fd, TUNGETIFF, &ifr) < 0)
        return link_error(error, errno, "the descriptor to adopt is no tap with an interface");
    if (!(ifr.ifr_flags & IFF_VNET_HDR))
        return link_error(error, 0, "tap %s to adopt has no virtio-net headers", ifr.ifr_name);

    auto_fd int netns_fd = ioctl(adopt_fd, SIOCGSKNS);

    if (netns_fd < 0)
        return link_error(error, errno, "cannot find the namespace of tap %s", ifr.ifr_name);
    memcpy(setup->name, ifr.ifr_name, IFNAMSIZ);
    return link_run_in_netns(netns_fd, open_adopted, setup, error);
}

Port *
port_tap_new(int adopt_fd, unsigned queues, int *ret_guest_fds, GError **error)
{
    TapSetup setup = {.queues = queues, .socket_fd = -1, .counters_fd = -1};
    gboolean ok = adopt_fd >= 0 ? adopt_tap(adopt_fd, &setup, error)
                                : link_run_in_netns(-1, make_tap, &setup, error);

    if (!ok) {
        fd_clear(&setup.counters_fd);
        return NULL;
    }

    TapPort *tap = g_new0(TapPort, 1);

    tap->port = (Port){.ops = &tap_ops, .fd = setup.socket_fd};
    for (unsigned i = 0; adopt_fd < 0 && i < queues; i++)
        ret_guest_fds[i] = setup.tap_fds[i];
    tap->counters_fd = setup.counters_fd;
    g_strlcpy(tap->name, setup.name, sizeof(tap->name));
    (void)count_read(tap, &tap->read_first);
    return &tap->port;
}
