/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * peer-stream.c - the frames channel: batches of FRAME messages out and in
 *
 * Out: messages are laid one behind the other into a ring, which is written in chunks of a TLS
 * record as soon as one is full, and at the end of each turn of the loop: small frames share
 * records and system calls, and none waits for more to come. A full ring is back-pressure for
 * whoever sends.
 *
 * In: a ring is filled until the peer has no more; messages are decoded and used in place. What is
 * not consumed stays in front and, when the ring is full, stops the peer. But what wakes the thread
 * is used at once if it is less than a record: most often it is all there is, somebody waits for
 * it, and to be told by TLS that there is no more costs about as much as to read it. If TLS holds
 * nothing, the descriptor tells of what follows.
 *
 * The peer is authenticated but not trusted with our memory: what it says is checked here and in
 * frame-wire.c. A malformed message ends the stream with a text that names it. Numbers must grow;
 * one that is left out is counted (on this channel nothing gets lost, so it was lost before it),
 * and the comparison heals it. Epochs must not go back.
 */
#include "peer-stream.h"

#include <errno.h>
#include <poll.h>

enum {
    IN_BYTES = 1 << 20,
    OUT_BYTES = 4 << 20,
    RECORD_BYTES = 16 * 1024, /* plain text of a TLS record */
    /* Per turn: some 100 us of TLS. */
    FILL_SLICE_BYTES = 256 * 1024,
    FLUSH_SLICE_BYTES = 512 * 1024,
};

int
peer_stream_init(PeerStream *stream)
{
    int r = byte_ring_init(&stream->in, IN_BYTES);

    return r < 0 ? r : byte_ring_init(&stream->out, OUT_BYTES);
}

void
peer_stream_clear(PeerStream *stream)
{
    peer_stream_detach(stream);
    byte_ring_clear(&stream->in);
    byte_ring_clear(&stream->out);
}

void
peer_stream_attach(PeerStream *stream, const ProxyPeer *peer)
{
    g_assert(!stream->attached);
    stream->peer = *peer;
    stream->attached = true;
    stream->broken = stream->told_end = stream->blocked = false;
    stream->end = (PeerEnd){0};
    stream->decoded = stream->pinned = 0;
    stream->readable = true;
    stream->heard_ns = 0;
    stream->out_sequence = stream->in_sequence = stream->in_epoch = 0;
    stream->events = 0;
}

void
peer_stream_detach(PeerStream *stream)
{
    if (!stream->attached)
        return;
    stream->peer.close(stream->peer.opaque);
    stream->attached = false;
    stream->readable = stream->blocked = false;
    byte_ring_consume(&stream->in, stream->in.len);
    byte_ring_consume(&stream->out, stream->out.len);
    counter_set(&stream->queue_bytes, 0);
}

void
peer_stream_fail(PeerStream *stream, int err, const char *text)
{
    if (stream->broken)
        return;
    stream->broken = true;
    stream->end = (PeerEnd){.err = err, .text = text};
    stream->readable = stream->blocked = false;
    byte_ring_consume(&stream->out, stream->out.len);
    counter_set(&stream->queue_bytes, 0);
}

unsigned
peer_stream_room(const PeerStream *stream)
{
    return (unsigned)(byte_ring_room(&stream->out) / WIRE_MESSAGE_MAX);
}

uint8_t *
peer_stream_slot(const PeerStream *stream)
{
    return byte_ring_tail(&stream->out) + WIRE_OVERHEAD_BYTES;
}

void
peer_stream_send(PeerStream *stream, WireKind kind, unsigned nic, uint64_t epoch, uint8_t *frame,
                 size_t len)
{
    const WireFrame message = {.epoch = epoch,
                               .sequence = ++stream->out_sequence,
                               .nic = (uint8_t)nic,
                               .kind = kind,
                               .frame = frame,
                               .len = len};

    g_assert(byte_ring_room(&stream->out) >= WIRE_OVERHEAD_BYTES + len);
    byte_ring_produce(&stream->out, wire_encode(byte_ring_tail(&stream->out), &message));
    counter_set(&stream->queue_bytes, stream->out.len);
    /* A full record gains nothing by waiting for the end of the turn. */
    if (stream->out.len >= RECORD_BYTES)
        peer_stream_flush(stream);
}

void
peer_stream_skip(PeerStream *stream)
{
    stream->out_sequence++;
}

void
peer_stream_flush(PeerStream *stream)
{
    size_t written = 0;

    if (!peer_stream_is_usable(stream))
        return;
    while (stream->out.len > 0 && !stream->blocked && written < FLUSH_SLICE_BYTES) {
        size_t count = stream->pinned ? stream->pinned : MIN(stream->out.len, RECORD_BYTES);
        ssize_t n = stream->peer.write(stream->peer.opaque, byte_ring_head(&stream->out), count);

        if (n == -EAGAIN) {
            stream->pinned = count;
            stream->blocked = true;
            break;
        }
        if (n <= 0) {
            peer_stream_fail(stream, n < 0 ? (int)-n : EPIPE, "writing failed");
            return;
        }
        stream->pinned = 0;
        byte_ring_consume(&stream->out, (size_t)n);
        written += (size_t)n;
    }
    counter_set(&stream->queue_bytes, stream->out.len);
}

void
peer_stream_fill(PeerStream *stream, int64_t now_ns)
{
    size_t came = 0;

    while (stream->readable && peer_stream_is_usable(stream) && byte_ring_room(&stream->in) > 0 &&
           came < FILL_SLICE_BYTES) {
        ssize_t n = stream->peer.read(stream->peer.opaque, byte_ring_tail(&stream->in),
                                      byte_ring_room(&stream->in));

        if (n == -EAGAIN) {
            stream->readable = false;
            break;
        }
        if (n == 0)
            peer_stream_fail(stream, 0, "the peer has closed it");
        else if (n < 0)
            peer_stream_fail(stream, (int)-n, "reading failed");
        if (n <= 0)
            break;
        byte_ring_produce(&stream->in, (size_t)n);
        came += (size_t)n;
        if (stream->woken && n < RECORD_BYTES) {
            stream->readable = !stream->peer.holds || stream->peer.holds(stream->peer.opaque);
            break;
        }
    }
    stream->woken = false;
    if (came > 0)
        stream->heard_ns = now_ns;
}

/* False: the peer counts backwards. */
static bool
check_order(PeerStream *stream, const WireFrame *frame)
{
    if (frame->sequence <= stream->in_sequence || frame->epoch < stream->in_epoch)
        return false;
    counter_add(&stream->gaps, frame->sequence - stream->in_sequence - 1);
    stream->in_sequence = frame->sequence;
    stream->in_epoch = frame->epoch;
    return true;
}

/* The stream is of no more use, and neither is what follows in the ring. */
static bool
refuse(PeerStream *stream, const char *text)
{
    peer_stream_fail(stream, 0, text);
    byte_ring_consume(&stream->in, stream->in.len);
    stream->decoded = 0;
    return false;
}

bool
peer_stream_peek(PeerStream *stream, size_t offset, WireFrame *ret_frame, size_t *ret_bytes)
{
    uint8_t *bytes = byte_ring_head(&stream->in) + offset;

    if (offset < stream->decoded) {
        wire_again(bytes, ret_frame, ret_bytes);
        return true;
    }

    WireResult r = wire_decode(bytes, stream->in.len - offset, ret_frame, ret_bytes);

    if (r == WIRE_SHORT)
        return false;
    /* What is in front of it counts; it is refused when it has become the first. */
    if (r != WIRE_OK)
        return offset == 0 && refuse(stream, wire_result_text(r));
    if (!check_order(stream, ret_frame))
        return offset == 0 && refuse(stream, "a frame whose number or epoch goes back");
    stream->decoded = offset + *ret_bytes;
    return true;
}

void
peer_stream_consume(PeerStream *stream, size_t bytes)
{
    byte_ring_consume(&stream->in, bytes);
    stream->decoded -= MIN(stream->decoded, bytes);
}

bool
peer_stream_is_open(const PeerStream *stream)
{
    struct pollfd p = {.fd = stream->peer.fd, .events = POLLRDHUP};

    return peer_stream_is_usable(stream) && poll(&p, 1, 0) == 0;
}

bool
peer_stream_is_runnable(const PeerStream *stream, bool wants_input)
{
    if (!peer_stream_is_usable(stream))
        return false;
    return (wants_input && stream->readable && byte_ring_room(&stream->in) > 0) ||
           (stream->out.len > 0 && !stream->blocked);
}
