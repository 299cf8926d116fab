/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* notify.c - messages of the notify socket, as QEMU's colo-compare speaks on its notify_dev */
#include "notify.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

enum { TEXT_MAX = 256 };

/* QEMU expects the second length here too if it uses vnet headers; others do not send it. Text does
 * not begin with a zero byte, a length does. */
int64_t
notify_next(const uint8_t *bytes, size_t len, bool vnet_hdr, FramingPacket *ret_packet)
{
    return framing_next(bytes, len, vnet_hdr && len > 4 && bytes[4] == 0, ret_packet);
}

static bool
text_is(const FramingPacket *packet, const char *text)
{
    size_t len = strlen(text);

    /* Senders differ in whether the terminating zero is part of it. */
    return (packet->len == len || (packet->len == len + 1 && !packet->bytes[len])) &&
           memcmp(packet->bytes, text, len) == 0;
}

NotifyKind
notify_kind(const FramingPacket *packet)
{
    if (text_is(packet, "COLO_USERSPACE_PROXY_INIT"))
        return NOTIFY_INIT;
    if (text_is(packet, "COLO_CHECKPOINT"))
        return NOTIFY_CHECKPOINT;
    return NOTIFY_UNKNOWN;
}

int
notify_send(int fd, const char *text)
{
    uint8_t message[FRAMING_HEADER_MAX + TEXT_MAX];
    size_t len = strnlen(text, TEXT_MAX);
    size_t header = framing_put_header(message, false, (uint32_t)len, 0);

    memcpy(message + header, text, len); /* without the terminating zero */
    ssize_t n = send(fd, message, header + len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0)
        return -errno;
    return n == (ssize_t)(header + len) ? 0 : -EAGAIN;
}
