/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* frames-stream.c - the frames channel's stream as the proxy wants it
 *
 * GIO's non-blocking calls do not depend on a main context, so the proxy's thread can make them by
 * itself and no frame waits for another thread. What TLS holds buffered does not make the
 * descriptor readable: the proxy reads until -EAGAIN.
 */
#include "frames-stream.h"

#include "peer-tls.h"

#include <errno.h>

static ssize_t
errno_of(const GError *error)
{
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
        return -EAGAIN;
    /* Cut without TLS's goodbye, which neither side says: to the proxy an end like any other. */
    if (g_error_matches(error, G_TLS_ERROR, G_TLS_ERROR_EOF) ||
        g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED))
        return -ECONNRESET;
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT))
        return -ETIMEDOUT;
    return -EIO;
}

static ssize_t
stream_read(gpointer opaque, void *bytes, size_t len)
{
    GInputStream *in = g_io_stream_get_input_stream(opaque);
    g_autoptr(GError) error = NULL;
    const gssize n = g_pollable_input_stream_read_nonblocking(G_POLLABLE_INPUT_STREAM(in), bytes,
                                                              len, NULL, &error);

    return n < 0 ? errno_of(error) : n;
}

static ssize_t
stream_write(gpointer opaque, const void *bytes, size_t len)
{
    GOutputStream *out = g_io_stream_get_output_stream(opaque);
    g_autoptr(GError) error = NULL;
    const gssize n = g_pollable_output_stream_write_nonblocking(G_POLLABLE_OUTPUT_STREAM(out),
                                                                bytes, len, NULL, &error);

    return n < 0 ? errno_of(error) : n;
}

static void
stream_close(gpointer opaque)
{
    g_autoptr(GIOStream) stream = opaque;

    /* The link may be using the socket at this moment, to shut it down. */
    peer_stream_shutdown(stream);
}

void
frames_stream_init(GIOStream *stream, ProxyPeer *ret_peer)
{
    peer_stream_set_nodelay(stream);
    *ret_peer = (ProxyPeer){
        .read = stream_read,
        .write = stream_write,
        .close = stream_close,
        .fd = g_socket_get_fd(peer_stream_get_socket(stream)),
        .opaque = g_object_ref(stream),
    };
}
