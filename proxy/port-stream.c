/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * port-stream.c - guest port: QEMU's `-netdev stream` on a UNIX socket
 *
 * Each frame is a be32 length and that many bytes; there is no virtio-net header, so checksums are
 * complete and nothing is larger than the MTU. What the guest sent is in our socket when QEMU's
 * write() has returned; a full socket makes QEMU and then the guest wait: nothing is ever lost.
 */
#include "port.h"

#include <assert.h>
#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bytes.h"
#include "fd.h"
#include "link.h"

enum {
    LENGTH_BYTES = 4,
    /* QEMU's NET_BUFSIZE: it refuses longer ones too. */
    STREAM_FRAME_MAX = 4096 + 65536,
    /* Bytes of zero in front of a frame; they overwrite what was delivered before it. */
    BUFFER_HEADROOM = PORT_VNET_BYTES,
    BUFFER_BYTES = 256 * 1024,
};

static_assert(BUFFER_BYTES > LENGTH_BYTES + STREAM_FRAME_MAX, "a whole frame fits");
static_assert(PORT_VNET_BYTES + STREAM_FRAME_MAX <= HOLD_QUEUE_FRAME_MAX, "and can be held");

typedef struct StreamPort {
    Port port;
    size_t start, end;  /* received and not delivered: buffer[start, end) */
    int broken;         /* negative errno, told when the whole frames before it are delivered */
    size_t write_bytes; /* of the frame under way that QEMU's socket has taken */
    uint8_t buffer[BUFFER_HEADROOM + BUFFER_BYTES];
} StreamPort;

/* Delivers the next whole frame. 1: done, 0: none is there yet, -EMSGSIZE: QEMU's stream is out of
 * step or hostile. */
static int
deliver_one(StreamPort *stream, PortSink sink, gpointer user_data)
{
    View v = view_of(stream->buffer + stream->start, stream->end - stream->start);
    uint32_t len;
    const uint8_t *frame;

    if (!view_get_be32(&v, &len))
        return 0;
    if (len > STREAM_FRAME_MAX)
        return -EMSGSIZE;
    if (!view_take(&v, len, &frame))
        return 0;

    /* The ten bytes before the frame are its length and the end of what has been delivered, or the
     * headroom: room for an all-zero virtio-net header without moving the frame. */
    size_t header = stream->start + LENGTH_BYTES - PORT_VNET_BYTES;

    memset(stream->buffer + header, 0, PORT_VNET_BYTES);
    sink(user_data, stream->buffer + header, PORT_VNET_BYTES + len);
    stream->start += LENGTH_BYTES + len;
    return 1;
}

static int
deliver(StreamPort *stream, unsigned max, PortSink sink, gpointer user_data)
{
    unsigned n = 0;

    while (n < max) {
        int r = deliver_one(stream, sink, user_data);

        if (r < 0)
            stream->broken = r;
        if (r <= 0)
            break;
        n++;
    }
    return (int)n;
}

/* Reads what is there. 1: something, 0: nothing now, negative errno: the end. */
static int
fill(StreamPort *stream)
{
    size_t held = stream->end - stream->start;

    if (stream->broken)
        return stream->broken;
    memmove(stream->buffer + BUFFER_HEADROOM, stream->buffer + stream->start, held);
    stream->start = BUFFER_HEADROOM;
    stream->end = BUFFER_HEADROOM + held;

    for (;;) {
        ssize_t n = recv(stream->port.fd, stream->buffer + stream->end,
                         sizeof(stream->buffer) - stream->end, MSG_DONTWAIT);

        if (n > 0) {
            stream->end += (size_t)n;
            return 1;
        }
        if (n == 0)
            return stream->broken = -EPIPE;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        if (errno != EINTR)
            return stream->broken = -errno;
    }
}

static int
stream_read(Port *port, const HoldQueue *queue, unsigned max, PortSink sink, gpointer user_data)
{
    StreamPort *stream = (StreamPort *)port;

    (void)queue;
    for (;;) {
        int n = deliver(stream, max, sink, user_data);

        if (n > 0)
            return n;

        int r = fill(stream);

        if (r <= 0)
            return r;
    }
}

static int
stream_write(Port *port, const uint8_t *frame, size_t len)
{
    StreamPort *stream = (StreamPort *)port;
    uint8_t length[LENGTH_BYTES];

    if (len < PORT_VNET_BYTES)
        return -EINVAL;
    be32_store(length, (uint32_t)(len - PORT_VNET_BYTES));

    size_t total = LENGTH_BYTES + len - PORT_VNET_BYTES;
    size_t head_done = MIN(stream->write_bytes, LENGTH_BYTES);
    size_t body_done = stream->write_bytes - head_done;
    struct iovec parts[2] = {
        {length + head_done, LENGTH_BYTES - head_done},
        {(void *)(uintptr_t)(frame + PORT_VNET_BYTES + body_done),
         len - PORT_VNET_BYTES - body_done},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    ssize_t n;

    do
        n = sendmsg(port->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);

    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? -EAGAIN : -EPIPE;
    stream->write_bytes += (size_t)n;
    port->partial = stream->write_bytes < total;
    if (port->partial)
        return -EAGAIN;
    stream->write_bytes = 0;
    return 0;
}

static guint64
stream_take_lost(Port *port)
{
    (void)port;
    return 0;
}

static bool
stream_is_idle(Port *port)
{
    int bytes = 0;

    return !port->partial && (ioctl(port->fd, SIOCOUTQ, &bytes) < 0 || bytes == 0);
}

static void
stream_close(Port *port)
{
    fd_clear(&port->fd);
    g_free(port);
}

static const PortOps stream_ops = {
    .read = stream_read,
    .write = stream_write,
    .take_lost = stream_take_lost,
    .is_idle = stream_is_idle,
    .close = stream_close,
    .write_polls = true,
};

Port *
port_stream_new(const char *path, GError **error)
{
    int fd = fd_unix_connect(path);

    if (fd < 0) {
        link_error(error, -fd, "cannot connect to QEMU's netdev socket %s", path);
        return NULL;
    }

    StreamPort *stream = g_new0(StreamPort, 1);

    stream->port = (Port){.ops = &stream_ops, .fd = fd};
    stream->start = stream->end = BUFFER_HEADROOM;
    return &stream->port;
}
