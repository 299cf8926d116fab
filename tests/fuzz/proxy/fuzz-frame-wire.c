/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-frame-wire.c - a hostile peer on the frames channel, in pieces of any size, against the
 * stream's rings and two NICs' worth of bookkeeping; what is accepted must survive a round trip */
#include "peer-stream.h"

#include <errno.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Hostile {
    const uint8_t *data;
    size_t size, done, step;
} Hostile;

static ssize_t
hostile_read(gpointer opaque, void *bytes, size_t len)
{
    Hostile *h = opaque;
    size_t n = MIN(MIN(len, h->step), h->size - h->done);

    memcpy(bytes, h->data + h->done, n);
    h->done += n;
    return (ssize_t)n;
}

static ssize_t
hostile_write(gpointer opaque, const void *bytes, size_t len)
{
    (void)opaque, (void)bytes;
    return (ssize_t)len;
}

static void
hostile_close(gpointer opaque)
{
    (void)opaque;
}

static void
check_round_trip(const WireFrame *frame)
{
    static uint8_t bytes[WIRE_MESSAGE_MAX];
    WireFrame again;
    size_t n = wire_encode(bytes, frame), m;

    g_assert(n == WIRE_OVERHEAD_BYTES + frame->len);
    g_assert(wire_decode(bytes, n, &again, &m) == WIRE_OK && m == n);
    g_assert(again.epoch == frame->epoch && again.sequence == frame->sequence);
    g_assert(again.nic == frame->nic && again.kind == frame->kind && again.len == frame->len);
    g_assert(memcmp(again.frame, frame->frame, frame->len) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static PeerStream stream;
    Hostile h = {.data = data, .size = size, .step = size > 0 ? 1 + data[0] * 7U : 1};
    const ProxyPeer peer = {
        .read = hostile_read, .write = hostile_write, .close = hostile_close, .opaque = &h};
    WireFrame frames[2];
    size_t first, second;

    if (!stream.in.map && peer_stream_init(&stream) < 0)
        return 0;
    peer_stream_attach(&stream, &peer);
    while (!stream.broken) {
        peer_stream_fill(&stream, 1);
        while (peer_stream_peek(&stream, 0, &frames[0], &first)) {
            g_assert(frames[0].len >= WIRE_FRAME_MIN && frames[0].len <= HOLD_QUEUE_FRAME_MAX);
            check_round_trip(&frames[0]);
            /* One ahead, which may be refused only once it is the first. */
            if (peer_stream_peek(&stream, first, &frames[1], &second))
                g_assert(frames[1].sequence > frames[0].sequence);
            peer_stream_consume(&stream, first);
        }
    }
    peer_stream_detach(&stream);
    return 0;
}
