/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* notify.h - messages of the notify socket, as QEMU's colo-compare speaks on its notify_dev */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "framing.h"

typedef enum NotifyKind {
    NOTIFY_INIT,       /* who is there? Answer: NOTIFY_TEXT_INITIALISED */
    NOTIFY_CHECKPOINT, /* a checkpoint is being made */
    NOTIFY_UNKNOWN,
} NotifyKind;

#define NOTIFY_TEXT_INITIALISED "COLO_COMPARE_GET_XEN_INIT"
#define NOTIFY_TEXT_DO_CHECKPOINT "DO_CHECKPOINT"

/** Takes the first message of @len bytes at @bytes, as framing_next(). @vnet_hdr: packets have
 * virtio-net headers; here their length may be there or not.
 */
int64_t notify_next(const uint8_t *bytes, size_t len, bool vnet_hdr, FramingPacket *ret_packet);

/** What a message asks for. */
NotifyKind notify_kind(const FramingPacket *packet);

/** Sends a message at once, from any thread.
 *
 * Return: 0, or a negative errno: the socket @fd failed, or (-EAGAIN) did not even take these few
 * bytes; how much of them it took is not known then.
 */
int notify_send(int fd, const char *text);
