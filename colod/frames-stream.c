/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * frames-stream.c - the frames channel of the peer link as the proxy wants it
 *
 * The proxy thread has no GLib main context, and needs none: the pollable streams are used without
 * sources, on the socket's descriptor. What TLS has read and deciphered does not make the
 * descriptor readable: after a read that filled the buffer the rest of the record may be there.
 * After a shorter one nothing is, since GnuTLS takes no more from the socket than the record it is
 * at. After -EAGAIN from a write TLS holds the record enciphered, and the proxy offers the same
 * bytes again.
 *
 * GIO makes an error object for each -EAGAIN, inside of TLS too. That is the one allocation on this
 * path; it comes once per wake-up, not once per frame.
 */
#include "frames-stream.h"

#include "peer-tls.h"

#include <errno.h>
#include <sys/socket.h>

typedef struct FramesStream {
    GIOStream *stream;
    GPollableInputStream *in;
    GPollableOutputStream *out;
    int fd;
    bool filled; /* the last read got all it asked for */
} FramesStream;

static ssize_t
error_number(const GError *error)
{
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
        return -EAGAIN;
    /* The link's connections end without TLS's close_notify. */
    if (g_error_matches(error, G_TLS_ERROR, G_TLS_ERROR_EOF))
        return 0;
    return g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED) ? -ECONNRESET : -EIO;
}

static ssize_t
frames_read(gpointer opaque, void *bytes, size_t len)
{
    FramesStream *frames = opaque;
    g_autoptr(GError) error = NULL;
    gssize n = g_pollable_input_stream_read_nonblocking(frames->in, bytes, len, NULL, &error);

    frames->filled = n == (gssize)len;
    return n >= 0 ? n : error_number(error);
}

static ssize_t
frames_write(gpointer opaque, const void *bytes, size_t len)
{
    FramesStream *frames = opaque;
    g_autoptr(GError) error = NULL;
    gssize n = g_pollable_output_stream_write_nonblocking(frames->out, bytes, len, NULL, &error);
    ssize_t r = n >= 0 ? n : error_number(error);

    return r == 0 ? -ECONNRESET : r;
}

static bool
frames_holds(gpointer opaque)
{
    return ((FramesStream *)opaque)->filled;
}

static void
frames_close(gpointer opaque)
{
    FramesStream *frames = opaque;

    /* The system call alone: the link may be doing the same in its thread, and whoever drops the
     * last reference closes the descriptor. */
    (void)shutdown(frames->fd, SHUT_RDWR);
    g_object_unref(frames->stream);
    g_free(frames);
}

ProxyPeer
frames_stream_new(GIOStream *stream)
{
    FramesStream *frames = g_new(FramesStream, 1);

    /* The proxy sends what it has at the end of each turn: nothing is gained by waiting. */
    peer_stream_set_nodelay(stream);
    *frames = (FramesStream){
        .stream = stream,
        .in = G_POLLABLE_INPUT_STREAM(g_io_stream_get_input_stream(stream)),
        .out = G_POLLABLE_OUTPUT_STREAM(g_io_stream_get_output_stream(stream)),
        .fd = g_socket_get_fd(peer_stream_get_socket(stream)),
    };
    return (ProxyPeer){.read = frames_read,
                       .write = frames_write,
                       .holds = frames_holds,
                       .close = frames_close,
                       .fd = frames->fd,
                       .opaque = frames};
}
