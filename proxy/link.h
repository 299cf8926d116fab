/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* link.h - network interfaces and namespaces: set-up only, never on the packet path */
#pragma once

#include <glib.h>

#include <stdbool.h>
#include <stdint.h>

/* All names are looked up in the calling thread's network namespace. Errors: PROXY_ERROR_SETUP. */

/** Sets PROXY_ERROR_SETUP to the text and, for @err > 0, its errno. Always FALSE. */
gboolean link_error(GError **error, int err, const char *format, ...) G_GNUC_PRINTF(3, 4);

/** Opens a new tap with virtio-net headers of 10 bytes: non-blocking, close-on-exec. -1 on error.
 */
int link_open_tap(const char *name, GError **error);

/** The same with @n queues, each a descriptor of its own in @ret_fds. */
gboolean link_open_tap_queues(const char *name, unsigned n, int *ret_fds, GError **error);

/** @qlen: frames its ring holds; @mtu 0: as it is; @flags: IFF_NOARP or 0. */
gboolean link_configure(const char *name, int qlen, int mtu, short flags, GError **error);
gboolean link_set_up(const char *name, GError **error);
gboolean link_set_mac(const char *name, const uint8_t mac[static 6], GError **error);
gboolean link_get_mtu(const char *name, int *ret_mtu, GError **error);
gboolean link_add_to_bridge(const char *bridge, const char *name, GError **error);

/** Replaces the queueing discipline by none. */
gboolean link_set_noqueue(const char *name, GError **error);

/** @name: an interface, or "default" for those made later. No IPv6 in this kernel: nothing to do.
 */
gboolean link_disable_ipv6(const char *name, GError **error);

/** Netlink socket that tells when an interface goes or leaves its bridge. -1 on error. */
int link_open_monitor(GError **error);

/** Reads one batch of news without blocking; calls @gone for each such interface. */
void link_read_monitor(int monitor_fd, void (*gone)(int ifindex, gpointer user_data),
                       gpointer user_data);

typedef gboolean (*LinkNetnsFunc)(gpointer user_data, GError **error);

/** Runs @func in a short-lived thread inside the namespace @netns_fd, or a new one if it is -1, and
 * waits for it. The caller's own namespace is never changed, so no error can leave it elsewhere. */
gboolean link_run_in_netns(int netns_fd, LinkNetnsFunc func, gpointer user_data, GError **error);
