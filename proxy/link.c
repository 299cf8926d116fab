/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* link.c - network interfaces and namespaces */
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fd.h"
#include "proxy.h"

enum {
    /* News of other VMs' interfaces arrive here too: enough for a burst of hundreds. */
    MONITOR_RCVBUF_BYTES = 1 << 20,
    REPLY_TIMEOUT_S = 2,
};

gboolean
link_error(GError **error, int err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);

    if (err > 0)
        g_set_error(error, PROXY_ERROR, PROXY_ERROR_SETUP, "%s: %s%s", text, g_strerror(err),
                    err == EPERM || err == EACCES
                        ? " (CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_NET_RAW are needed)"
                        : "");
    else
        g_set_error_literal(error, PROXY_ERROR, PROXY_ERROR_SETUP, text);
    return FALSE;
}

static gboolean
name_request(const char *name, struct ifreq *ret_request, GError **error)
{
    *ret_request = (struct ifreq){0};
    if (strlen(name) == 0 || strlen(name) >= IFNAMSIZ)
        return link_error(error, 0, "interface name \"%s\" is not 1 to %d characters long", name,
                          IFNAMSIZ - 1);
    memcpy(ret_request->ifr_name, name, strlen(name) + 1);
    return TRUE;
}

static gboolean
link_ioctl(unsigned long request, struct ifreq *ifr, const char *what, GError **error)
{
    auto_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || ioctl(fd, request, ifr) < 0)
        return link_error(error, errno, "cannot %s of interface %s", what, ifr->ifr_name);
    return TRUE;
}

/* One queue of a tap, which exists already or not, as @flags say. */
static int
open_queue(const char *name, int flags, GError **error)
{
    struct ifreq ifr;
    int header = sizeof(struct virtio_net_hdr);

    if (!name_request(name, &ifr, error))
        return -1;

    auto_fd int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0) {
        link_error(error, errno, "cannot open /dev/net/tun (is the module tun loaded?)");
        return -1;
    }
    ifr.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags);
    if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
        link_error(error, errno, "cannot make tap %s", name);
        return -1;
    }
    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0) {
        link_error(error, errno, "cannot set the virtio-net header size of tap %s", name);
        return -1;
    }
    return fd_steal(&fd);
}

int
link_open_tap(const char *name, GError **error)
{
    /* IFF_TUN_EXCL: a persistent tap of that name, or another program's, is not ours to take. */
    return open_queue(name, IFF_TUN_EXCL, error);
}

gboolean
link_open_tap_queues(const char *name, unsigned n, int *ret_fds, GError **error)
{
    const int flags = n > 1 ? IFF_MULTI_QUEUE : 0;
    unsigned opened = 0;

    for (; opened < n; opened++) {
        ret_fds[opened] = open_queue(name, opened == 0 ? flags | IFF_TUN_EXCL : flags, error);
        if (ret_fds[opened] < 0)
            break;
    }
    if (opened == n)
        return TRUE;
    for (unsigned i = 0; i < opened; i++)
        fd_clear(&ret_fds[i]);
    return FALSE;
}

static gboolean
add_flags(const char *name, short flags, GError **error)
{
    struct ifreq ifr;

    if (!name_request(name, &ifr, error) || !link_ioctl(SIOCGIFFLAGS, &ifr, "get flags", error))
        return FALSE;
    ifr.ifr_flags = (short)(ifr.ifr_flags | flags);
    return link_ioctl(SIOCSIFFLAGS, &ifr, "set flags", error);
}

gboolean
link_configure(const char *name, int qlen, int mtu, short flags, GError **error)
{
    struct ifreq ifr;

    if (!name_request(name, &ifr, error))
        return FALSE;
    ifr.ifr_qlen = qlen;
    if (!link_ioctl(SIOCSIFTXQLEN, &ifr, "set the queue length", error))
        return FALSE;
    ifr.ifr_mtu = mtu;
    if (mtu > 0 && !link_ioctl(SIOCSIFMTU, &ifr, "set the MTU", error))
        return FALSE;
    return flags == 0 || add_flags(name, flags, error);
}

gboolean
link_set_up(const char *name, GError **error)
{
    return add_flags(name, IFF_UP, error);
}

gboolean
link_set_mac(const char *name, const uint8_t mac[static 6], GError **error)
{
    struct ifreq ifr;

    if (!name_request(name, &ifr, error))
        return FALSE;
    ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(ifr.ifr_hwaddr.sa_data, mac, 6);
    return link_ioctl(SIOCSIFHWADDR, &ifr, "set the MAC address", error);
}

gboolean
link_get_mtu(const char *name, int *ret_mtu, GError **error)
{
    struct ifreq ifr;

    if (!name_request(name, &ifr, error) || !link_ioctl(SIOCGIFMTU, &ifr, "get the MTU", error))
        return FALSE;
    *ret_mtu = ifr.ifr_mtu;
    return TRUE;
}

gboolean
link_add_to_bridge(const char *bridge, const char *name, GError **error)
{
    struct ifreq ifr;

    if (!name_request(bridge, &ifr, error))
        return FALSE;
    ifr.ifr_ifindex = (int)if_nametoindex(name);

    auto_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || ioctl(fd, SIOCBRADDIF, &ifr) < 0)
        return link_error(error, errno, "cannot add tap %s to %s (is it a bridge?)", name, bridge);
    return TRUE;
}

/* Waits for the acknowledgement of a request. Returns 0 or a negative errno. */
static int
netlink_ack(int fd)
{
    const struct timeval timeout = {.tv_sec = REPLY_TIMEOUT_S};
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[256];
    } reply = {0};

    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0)
        return -errno;

    ssize_t n = recv(fd, &reply, sizeof(reply), 0);

    if (n < 0)
        return -errno;
    if ((size_t)n < sizeof(reply.header) + sizeof(reply.error) ||
        reply.header.nlmsg_type != NLMSG_ERROR)
        return -EBADMSG;
    return reply.error.error;
}

gboolean
link_set_noqueue(const char *name, GError **error)
{
    struct {
        struct nlmsghdr header;
        struct tcmsg tc;
        struct rtattr kind;
        char kind_name[8];
    } request = {
        .header = {.nlmsg_len = sizeof(request),
                   .nlmsg_type = RTM_NEWQDISC,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE},
        .tc = {.tcm_family = AF_UNSPEC,
               .tcm_ifindex = (int)if_nametoindex(name),
               .tcm_parent = TC_H_ROOT},
        .kind = {.rta_len = RTA_LENGTH(sizeof("noqueue")), .rta_type = TCA_KIND},
        .kind_name = "noqueue",
    };
    auto_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    if (fd < 0 || send(fd, &request, sizeof(request), 0) < 0)
        return link_error(error, errno, "cannot ask for no queueing discipline on %s", name);

    int r = netlink_ack(fd);

    return r == 0 || link_error(error, -r, "cannot remove the queueing discipline of %s", name);
}

gboolean
link_disable_ipv6(const char *name, GError **error)
{
    g_autofree char *path = g_strdup_printf("/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    auto_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 && errno == ENOENT)
        return TRUE;
    if (fd < 0 || write(fd, "1\n", 2) != 2)
        return link_error(error, errno, "cannot write %s", path);
    return TRUE;
}

int
link_open_monitor(GError **error)
{
    const int bytes = MONITOR_RCVBUF_BYTES;
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK};
    auto_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0) {
        link_error(error, errno, "cannot watch the host's network interfaces");
        return -1;
    }
    return fd_steal(&fd);
}

void
link_read_monitor(int monitor_fd, void (*gone)(int ifindex, gpointer user_data), gpointer user_data)
{
    union {
        struct nlmsghdr align;
        char bytes[16384];
    } buffer;
    /* An overflow (ENOBUFS) is not an end: a tap that went is also seen at its own descriptor. */
    ssize_t n = recv(monitor_fd, &buffer, sizeof(buffer), MSG_DONTWAIT);

    if (n <= 0)
        return;

    unsigned left = (unsigned)n;

    for (struct nlmsghdr *h = &buffer.align; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
        if (h->nlmsg_len < NLMSG_LENGTH(sizeof(struct ifinfomsg)))
            continue;

        const struct ifinfomsg *info = NLMSG_DATA(h);

        /* AF_UNSPEC: the interface was deleted; AF_BRIDGE: it is no longer a port of its bridge. */
        if (h->nlmsg_type == RTM_DELLINK)
            gone(info->ifi_index, user_data);
    }
}

typedef struct NetnsCall {
    int netns_fd;
    LinkNetnsFunc func;
    gpointer user_data;
    GError *error;
    gboolean ok;
} NetnsCall;

static void *
netns_thread(void *arg)
{
    NetnsCall *call = arg;
    int r = call->netns_fd < 0 ? unshare(CLONE_NEWNET) : setns(call->netns_fd, CLONE_NEWNET);

    if (r < 0)
        call->ok = link_error(&call->error, errno, "cannot %s the guest's network namespace",
                              call->netns_fd < 0 ? "make" : "enter");
    else
        call->ok = call->func(call->user_data, &call->error);
    return NULL;
}

gboolean
link_run_in_netns(int netns_fd, LinkNetnsFunc func, gpointer user_data, GError **error)
{
    NetnsCall call = {.netns_fd = netns_fd, .func = func, .user_data = user_data};
    pthread_t thread;
    int r = pthread_create(&thread, NULL, netns_thread, &call);

    if (r != 0)
        return link_error(error, r, "cannot start a thread");
    pthread_join(thread, NULL);
    if (!call.ok)
        g_propagate_error(error, call.error);
    return call.ok;
}
