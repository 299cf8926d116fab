/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lan-tap.c - the proxy's own tap on the LAN bridge */
#include "lan-tap.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>

#include "fd.h"
#include "link.h"

/* Linux 6.2; not in Debian 12's headers. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

enum {
    /* Ingress pauses of a checkpoint (some 10 ms) must fit: 4096 frames are 48 MB/s of small ones
     * or any rate of GSO frames. */
    LAN_QUEUE_FRAMES = 4096,
};

static gboolean
set_offload(int fd, const ProxyNic *nic, GError **error)
{
    unsigned long tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    unsigned long wanted = nic->port == PROXY_PORT_TAP ? tcp | TUN_F_USO4 | TUN_F_USO6 : 0;

    if (ioctl(fd, TUNSETOFFLOAD, wanted) == 0)
        return TRUE;
    /* Older kernels refuse unknown bits. */
    if (wanted != 0 && ioctl(fd, TUNSETOFFLOAD, tcp) == 0)
        return TRUE;
    return link_error(error, errno, "cannot set the offloads of tap %s", nic->lan_tap);
}

int
lan_tap_open(const ProxyNic *nic, int *ret_ifindex, GError **error)
{
    int mtu;
    uint8_t mac[6];

    if (!link_get_mtu(nic->bridge, &mtu, error))
        return -1;

    auto_fd int fd = link_open_tap(nic->lan_tap, error);

    if (fd < 0)
        return -1;

    /* A bridge takes over the lowest MAC of its ports: one that starts with fe never is (libvirt
     * does the same). It must differ from the guest's own, which would make it the host's. */
    memcpy(mac, nic->mac, 6);
    mac[0] = nic->mac[0] == 0xfe ? 0xfa : 0xfe;

    /* The MTU before it becomes a port: the bridge's own would follow the smallest. */
    if (!set_offload(fd, nic, error) || !link_set_mac(nic->lan_tap, mac, error) ||
        !link_configure(nic->lan_tap, LAN_QUEUE_FRAMES, mtu, 0, error) ||
        !link_disable_ipv6(nic->lan_tap, error) ||
        !link_add_to_bridge(nic->bridge, nic->lan_tap, error) || !link_set_up(nic->lan_tap, error))
        return -1;
    *ret_ifindex = (int)if_nametoindex(nic->lan_tap);
    return fd_steal(&fd);
}
