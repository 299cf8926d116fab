/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* port.h - one guest NIC's end inside QEMU, as the proxy sees it */
#pragma once

#include <glib.h>

#include <stdbool.h>
#include <stdint.h>

#include "hold-queue.h"
#include "proxy.h"

/* Every frame inside the proxy begins with a struct virtio_net_hdr, host byte order. */
enum { PORT_VNET_BYTES = 10, PORT_ETHERNET_BYTES = 14 };

typedef struct Port Port;

/* Takes one frame (header and Ethernet frame) that is valid during the call only. */
typedef void (*PortSink)(gpointer user_data, const uint8_t *frame, size_t len);

typedef struct PortOps {
    /* Reads at most @max frames (> 0, at most hold_queue_room()) and gives each to @sink; may use
     * the free slots of @queue as buffers. Returns how many, 0: nothing is there now, or a negative
     * errno: broken, what QEMU sent before that has been read. */
    int (*read)(Port *port, const HoldQueue *queue, unsigned max, PortSink sink,
                gpointer user_data);
    /* Gives the guest a frame. 0: taken. -EAGAIN: offer the same frame again, when the descriptor
     * is writable (@write_polls) or after a while. Other negative errno: this frame cannot be
     * given; -EPIPE: broken. */
    int (*write)(Port *port, const uint8_t *frame, size_t len);
    /* Frames of the guest that were lost since the last call: a system call, not for every frame.
     */
    guint64 (*take_lost)(Port *port);
    /* QEMU has taken all that was written, as far as that can be seen. A system call. */
    bool (*is_idle)(Port *port);
    void (*close)(Port *port);
    bool write_polls;
} PortOps;

struct Port {
    const PortOps *ops;
    int fd;
    bool partial; /* QEMU has the beginning of the frame last offered: no other may follow */
    bool drained; /* the last read() got all there was: the descriptor tells of more */
};

/** A private tap of @queues in a new namespace, their descriptors for QEMU in @ret_guest_fds; or,
 * with @adopt_fd >= 0, that of the tap which a running QEMU uses (borrowed, any queue of it;
 * @ret_guest_fds are not written). NULL: PROXY_ERROR_SETUP. */
Port *port_tap_new(int adopt_fd, unsigned queues, int *ret_guest_fds, GError **error);

/** Connects to QEMU's stream netdev. NULL: PROXY_ERROR_SETUP. */
Port *port_stream_new(const char *path, GError **error);
