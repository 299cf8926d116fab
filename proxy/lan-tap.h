/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lan-tap.h - the proxy's own tap on the LAN bridge */
#pragma once

#include "proxy.h"

/** Makes @nic->lan_tap, adds it to @nic->bridge and sets it up. It lives as long as the descriptor.
 *
 * Frames have a virtio-net header of 10 bytes. For a stream port the kernel is told to leave
 * nothing to the receiver, since QEMU's stream has no place for it: that header is then all zero.
 * Returns the descriptor, or -1 and PROXY_ERROR_SETUP. */
int lan_tap_open(const ProxyNic *nic, int *ret_ifindex, GError **error);
