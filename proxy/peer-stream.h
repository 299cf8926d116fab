/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-stream.h - the frames channel: batches of FRAME messages out and in. Proxy thread only. */
#pragma once

#include "counter.h"
#include "frame-wire.h"
#include "proxy.h"
#include "ring-map.h"

/* Why a stream ended. */
typedef struct PeerEnd {
    int err;          /* positive errno, or 0 with @text */
    const char *text; /* static */
} PeerEnd;

typedef struct PeerStream {
    ProxyPeer peer;
    bool attached;
    bool broken; /* for good; what has been read before can still be taken */
    PeerEnd end;
    bool told_end;

    ByteRing in, out;
    size_t decoded; /* bytes from the head of @in whose messages have been decoded before */
    size_t pinned;  /* a write of so many would have blocked: the next must be the same */
    bool readable;  /* reading may give something; TLS may hold what the descriptor does not show */
    bool woken;     /* the descriptor says so, and it was not read since */
    bool blocked;   /* writing gave -EAGAIN */
    int64_t heard_ns; /* when bytes came last */

    uint64_t out_sequence, in_sequence, in_epoch;
    Counter gaps, queue_bytes;
    uint32_t events; /* registered with epoll */
} PeerStream;

/** Allocates the rings. Returns 0 or a negative errno. */
int peer_stream_init(PeerStream *stream);
void peer_stream_clear(PeerStream *stream);

/** Begins anew with @peer, which it owns until peer_stream_detach(). Nothing must be attached. */
void peer_stream_attach(PeerStream *stream, const ProxyPeer *peer);
/** Closes the peer and forgets what is in the rings. */
void peer_stream_detach(PeerStream *stream);

/** The first reason counts; @text is static. */
void peer_stream_fail(PeerStream *stream, int err, const char *text);

static inline bool
peer_stream_is_usable(const PeerStream *stream)
{
    return stream->attached && !stream->broken;
}

/** The other side has not closed it, as far as this host's kernel knows: also what has not been
 * read yet. A system call. */
bool peer_stream_is_open(const PeerStream *stream);

/** How many messages of the largest size can be sent. */
unsigned peer_stream_room(const PeerStream *stream);

/** Where the next frame will lie, if there is room: it can be built there. */
uint8_t *peer_stream_slot(const PeerStream *stream);
/** Queues a frame (the slot, or anything else, which is copied), numbered; there must be room. It
 * leaves with a full record, or with peer_stream_flush(). */
void peer_stream_send(PeerStream *stream, WireKind kind, unsigned nic, uint64_t epoch,
                      uint8_t *frame, size_t len);
/** Uses up a number without sending: the peer sees a gap. */
void peer_stream_skip(PeerStream *stream);
/** Writes what the peer takes, at most a slice. */
void peer_stream_flush(PeerStream *stream);

/** Reads what there is, at most a slice. */
void peer_stream_fill(PeerStream *stream, int64_t now_ns);
/** The message at @offset of what has been read. False: there is none (or the stream is broken). */
bool peer_stream_peek(PeerStream *stream, size_t offset, WireFrame *ret_frame, size_t *ret_bytes);
/** The first @bytes are done with. */
void peer_stream_consume(PeerStream *stream, size_t bytes);

/** Something can be done without waiting for the descriptor. */
bool peer_stream_is_runnable(const PeerStream *stream, bool wants_input);
