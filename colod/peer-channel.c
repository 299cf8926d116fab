/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-channel.c - one framed, non-blocking message stream over a GIOStream */
/*
 * Theory of operation
 *
 * Goals: low latency (a message leaves within peer_channel_send() if the stream takes it), whole
 * messages to the owner, bounded memory, and no dispatch that keeps the main loop for long.
 *
 * Thread: the one that runs the main context of peer_channel_new(); everything is called there.
 *
 * Writing. Messages are laid into chunks of one TLS record (16 KiB) and each chunk is one write, so
 * header and payload of a small message are one record, and the next ones share a chunk while the
 * stream is full. A chunk in work stays in the cache: the copy costs little beside the cipher.
 * A write that would block must be repeated with the same bytes and the same count (TLS has them
 * enciphered already), so that chunk is pinned: nothing is appended to it. Invariant outside of
 * flush(): out_source is attached if and only if chunks are queued. Failures inside
 * peer_channel_send() are stored and reported from the main loop; before that what the peer had
 * still said is delivered.
 *
 * Reading. One buffer takes what the stream gives until it would block; whole messages are
 * delivered from it in place. A dispatch handles at most READ_BUDGET_BYTES and then goes on in the
 * next iteration through again_source, because what TLS holds buffered need not make the descriptor
 * readable. The same source starts the first read and restarts a stopped one: input may lie in
 * TLS's buffer or in ours. While reading is off an end of file is not noticed.
 *
 * Lifetime. The owner holds one reference and every dispatch another, so the owner may free the
 * channel within a callback; `open` is cleared then and each loop looks at it after a callback.
 * Closing shuts the socket without TLS's close_notify, which could block: framing tells a cut
 * message from an end, and an end is never taken for success.
 */
#include "peer-channel.h"

#include "peer-tls.h"

#include <assert.h>

enum {
    CHUNK_BYTES = 16 * 1024,         /* plain text of one TLS record */
    READ_BUFFER_BYTES = 256 * 1024,  /* more than one largest message and a record */
    READ_BUDGET_BYTES = 1024 * 1024, /* per dispatch: below a millisecond or two of TLS */
    WRITE_BUDGET_BYTES = 1024 * 1024,
};

static_assert(READ_BUFFER_BYTES >= PEER_HEADER_BYTES + PEER_DATA_MAX_BYTES + CHUNK_BYTES,
              "the largest message and one more record must fit the read buffer");

typedef struct Chunk {
    struct Chunk *next;
    size_t start, end; /* bytes[start, end) wait to be written */
    bool pinned;       /* a write of them would have blocked: the next must have the same count */
    uint8_t bytes[CHUNK_BYTES];
} Chunk;

struct PeerChannel {
    GIOStream *stream;
    GPollableInputStream *in;
    GPollableOutputStream *out;
    PeerChannelKind kind;
    const PeerChannelHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    bool open;    /* neither freed nor reported closed */
    bool reading; /* the owner wants messages */

    GSource *in_source, *out_source, *again_source, *fail_source;
    GError *failure; /* stored for fail_source */

    Chunk *head, *tail, *spare;
    size_t queued_bytes;
    bool was_congested;

    size_t in_start, in_end; /* in_buffer[in_start, in_end) is not delivered */
    uint8_t *in_buffer;
};

typedef enum ReadResult {
    READ_WAIT,  /* the stream has no more for now */
    READ_AGAIN, /* the budget is used up */
    READ_STOP,  /* closed, freed, or reading is off */
} ReadResult;

static void fail_later(PeerChannel *channel, GError *failure);
static gboolean on_readable(GObject *stream, gpointer user_data);

static void
channel_clear(gpointer data)
{
    PeerChannel *channel = data;

    g_clear_object(&channel->stream);
    g_clear_error(&channel->failure);
    g_main_context_unref(channel->context);
    g_free(channel->spare);
    g_free(channel->in_buffer);
}

static void
channel_unref(PeerChannel *channel)
{
    g_rc_box_release_full(channel, channel_clear);
}

static void
source_clear(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_clear_pointer(source, g_source_unref);
    }
}

static void
source_attach(PeerChannel *channel, GSource **place, GSource *source, GSourceFunc function)
{
    g_assert(!*place);
    g_source_set_callback(source, function, channel, NULL);
    g_source_attach(source, channel->context);
    *place = source;
}

/* Output queue */

static void
drop_queue(PeerChannel *channel)
{
    while (channel->head) {
        Chunk *chunk = channel->head;

        channel->head = chunk->next;
        g_free(chunk);
    }
    channel->tail = NULL;
    channel->queued_bytes = 0;
}

static void
push_chunk(PeerChannel *channel)
{
    Chunk *chunk = channel->spare ? g_steal_pointer(&channel->spare) : g_new(Chunk, 1);

    chunk->next = NULL;
    chunk->start = chunk->end = 0;
    chunk->pinned = false;
    if (channel->tail)
        channel->tail->next = chunk;
    else
        channel->head = chunk;
    channel->tail = chunk;
}

static void
pop_chunk(PeerChannel *channel)
{
    Chunk *chunk = channel->head;

    channel->head = chunk->next;
    if (!channel->head)
        channel->tail = NULL;
    g_free(channel->spare);
    channel->spare = chunk;
}

/* Moves as much of @bytes as fits into the last chunk or a new one. */
static void
queue_some(PeerChannel *channel, View *bytes)
{
    if (!channel->tail || channel->tail->pinned || channel->tail->end == CHUNK_BYTES)
        push_chunk(channel);

    Chunk *tail = channel->tail;
    size_t len = MIN(bytes->len, CHUNK_BYTES - tail->end);
    const uint8_t *from;
    bool taken = view_take(bytes, len, &from);

    g_assert(taken);
    memcpy(tail->bytes + tail->end, from, len);
    tail->end += len;
    channel->queued_bytes += len;
}

static gboolean on_writable(GObject *stream, gpointer user_data);

static void
update_out_source(PeerChannel *channel)
{
    if (!channel->head)
        source_clear(&channel->out_source);
    else if (!channel->out_source)
        source_attach(channel, &channel->out_source,
                      g_pollable_output_stream_create_source(channel->out, NULL),
                      G_SOURCE_FUNC(on_writable));
}

/* Writes until the queue is empty, the stream is full or @budget_bytes are gone. */
static void
flush(PeerChannel *channel, size_t budget_bytes)
{
    size_t written_bytes = 0;

    while (channel->head && written_bytes < budget_bytes) {
        Chunk *chunk = channel->head;
        g_autoptr(GError) error = NULL;
        gssize n = g_pollable_output_stream_write_nonblocking(
            channel->out, chunk->bytes + chunk->start, chunk->end - chunk->start, NULL, &error);

        if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
            chunk->pinned = true;
            break;
        }
        if (n < 0) {
            fail_later(channel, g_steal_pointer(&error));
            return;
        }
        chunk->pinned = false;
        chunk->start += (size_t)n;
        channel->queued_bytes -= (size_t)n;
        written_bytes += (size_t)n;
        if (chunk->start == chunk->end)
            pop_chunk(channel);
    }
    update_out_source(channel);
}

static gboolean
on_writable(G_GNUC_UNUSED GObject *stream, gpointer user_data)
{
    PeerChannel *channel = g_rc_box_acquire(user_data);

    flush(channel, WRITE_BUDGET_BYTES);
    if (!channel->failure && channel->was_congested &&
        channel->queued_bytes < PEER_CHANNEL_CONGESTED_BYTES / 2) {
        channel->was_congested = false;
        channel->handlers->drained(channel, channel->user_data);
    }
    channel_unref(channel);
    /* flush() has removed the source if it is done with it. */
    return G_SOURCE_CONTINUE;
}

/* Failing */

/* Detaches everything and closes the socket; the peer sees the end at once. */
static void
shut(PeerChannel *channel)
{
    channel->open = false;
    source_clear(&channel->in_source);
    source_clear(&channel->out_source);
    source_clear(&channel->again_source);
    source_clear(&channel->fail_source);
    drop_queue(channel);
    peer_stream_close(channel->stream);
}

/* One error code for every way in which the other side or the network ends a connection. */
static GError *
close_reason(GError *error)
{
    if (g_error_matches(error, G_TLS_ERROR, G_TLS_ERROR_EOF) ||
        g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED)) {
        error->domain = PEER_ERROR;
        error->code = PEER_ERROR_CLOSED;
    }
    g_prefix_error(&error, "connection broke: ");
    return error;
}

/* Reports @reason (taken), or the failure that was stored before it. */
static void
fail_now(PeerChannel *channel, GError *reason)
{
    g_autoptr(GError) failure = channel->failure ? g_steal_pointer(&channel->failure) : NULL;
    g_autoptr(GError) later = reason;

    shut(channel);
    channel->handlers->closed(channel, failure ? failure : later, channel->user_data);
}

static ReadResult read_some(PeerChannel *channel);

/* What the peer said before the output failed (a REFUSED, a COMMITTED) still counts. */
static gboolean
on_fail(gpointer user_data)
{
    PeerChannel *channel = g_rc_box_acquire(user_data);
    bool overflow = g_error_matches(channel->failure, PEER_ERROR, PEER_ERROR_OVERFLOW);
    ReadResult result = overflow ? READ_STOP : read_some(channel);

    if (channel->open && result != READ_AGAIN)
        fail_now(channel, NULL);
    channel_unref(channel);
    /* fail_now() and peer_channel_free() have removed the source if it is done. */
    return G_SOURCE_CONTINUE;
}

static void
fail_later(PeerChannel *channel, GError *failure)
{
    g_assert(!channel->failure);
    channel->failure = failure->domain == PEER_ERROR ? failure : close_reason(failure);
    drop_queue(channel);
    source_clear(&channel->out_source);

    GSource *source = g_idle_source_new();

    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    source_attach(channel, &channel->fail_source, source, on_fail);
}

/* Input */

/* Delivers the first whole message of the buffer. False: there is none, or the channel closed. */
static bool
deliver_one(PeerChannel *channel)
{
    View view =
        view_of(channel->in_buffer + channel->in_start, channel->in_end - channel->in_start);
    const uint8_t *header_bytes, *payload;
    PeerHeader header;
    GError *error = NULL;

    if (!view_take(&view, PEER_HEADER_BYTES, &header_bytes))
        return false;
    if (!peer_header_decode(header_bytes, channel->kind, &header, &error)) {
        g_clear_error(&channel->failure);
        fail_now(channel, error);
        return false;
    }
    if (!view_take(&view, header.length, &payload))
        return false;
    channel->in_start += PEER_HEADER_BYTES + header.length;
    channel->handlers->message(channel, header.type, view_of(payload, header.length),
                               channel->user_data);
    return true;
}

static void
make_room(PeerChannel *channel)
{
    size_t rest = channel->in_end - channel->in_start;

    if (channel->in_start == channel->in_end) {
        channel->in_start = channel->in_end = 0;
    } else if (READ_BUFFER_BYTES - channel->in_end < CHUNK_BYTES) {
        memmove(channel->in_buffer, channel->in_buffer + channel->in_start, rest);
        channel->in_start = 0;
        channel->in_end = rest;
    }
}

static void
fail_read(PeerChannel *channel, GError *error)
{
    size_t rest = channel->in_end - channel->in_start;

    if (!error)
        error = g_error_new_literal(PEER_ERROR, PEER_ERROR_CLOSED, "peer closed the connection");
    else
        error = close_reason(error);
    if (rest && error->domain == PEER_ERROR)
        g_prefix_error(&error, "cut within a message, after %zu bytes of it: ", rest);
    fail_now(channel, error);
}

static ReadResult
read_some(PeerChannel *channel)
{
    size_t read_bytes = 0;

    for (;;) {
        while (channel->open && channel->reading && deliver_one(channel))
            ;
        if (!channel->open || !channel->reading)
            return READ_STOP;
        if (read_bytes >= READ_BUDGET_BYTES)
            return READ_AGAIN;
        make_room(channel);

        g_autoptr(GError) error = NULL;
        gssize n = g_pollable_input_stream_read_nonblocking(
            channel->in, channel->in_buffer + channel->in_end, READ_BUFFER_BYTES - channel->in_end,
            NULL, &error);

        if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
            return READ_WAIT;
        if (n <= 0) {
            fail_read(channel, g_steal_pointer(&error));
            return READ_STOP;
        }
        channel->in_end += (size_t)n;
        read_bytes += (size_t)n;
    }
}

static gboolean on_again(gpointer user_data);

static void
read_again(PeerChannel *channel)
{
    if (channel->again_source)
        return;

    GSource *source = g_idle_source_new();

    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    source_attach(channel, &channel->again_source, source, on_again);
}

static void
read_dispatch(PeerChannel *channel)
{
    g_rc_box_acquire(channel);
    if (read_some(channel) == READ_AGAIN)
        read_again(channel);
    channel_unref(channel);
}

static gboolean
on_readable(G_GNUC_UNUSED GObject *stream, gpointer user_data)
{
    read_dispatch(user_data);
    return G_SOURCE_CONTINUE;
}

static gboolean
on_again(gpointer user_data)
{
    PeerChannel *channel = user_data;

    source_clear(&channel->again_source);
    read_dispatch(channel);
    return G_SOURCE_REMOVE;
}

/* Public functions */

PeerChannel *
peer_channel_new(GIOStream *stream, PeerChannelKind kind, const PeerChannelHandlers *handlers,
                 gpointer user_data)
{
    PeerChannel *channel = g_rc_box_new0(PeerChannel);

    channel->stream = g_object_ref(stream);
    channel->in = G_POLLABLE_INPUT_STREAM(g_io_stream_get_input_stream(stream));
    channel->out = G_POLLABLE_OUTPUT_STREAM(g_io_stream_get_output_stream(stream));
    channel->kind = kind;
    channel->handlers = handlers;
    channel->user_data = user_data;
    channel->context = g_main_context_ref_thread_default();
    channel->in_buffer = g_malloc(READ_BUFFER_BYTES);
    channel->open = true;
    peer_stream_set_nodelay(stream);
    peer_channel_set_reading(channel, TRUE);
    return channel;
}

void
peer_channel_free(PeerChannel *channel)
{
    if (!channel)
        return;
    if (channel->open)
        shut(channel);
    channel_unref(channel);
}

void
peer_channel_send(PeerChannel *channel, PeerMessageType type, const void *payload, size_t len)
{
    uint8_t header[PEER_HEADER_BYTES];

    g_assert(len <= PEER_DATA_MAX_BYTES);
    if (!channel->open || channel->failure)
        return;
    if (channel->queued_bytes + sizeof(header) + len > PEER_CHANNEL_QUEUE_MAX_BYTES) {
        fail_later(channel, g_error_new(PEER_ERROR, PEER_ERROR_OVERFLOW,
                                        "output queue of the %s channel is full (%d bytes)",
                                        peer_channel_kind_name(channel->kind),
                                        PEER_CHANNEL_QUEUE_MAX_BYTES));
        return;
    }
    peer_header_encode(header, type, (uint32_t)len);

    View parts[] = {view_of(header, sizeof(header)), view_of(payload, len)};

    for (size_t i = 0; i < G_N_ELEMENTS(parts); i++) {
        while (parts[i].len && !channel->failure) {
            queue_some(channel, &parts[i]);
            /* Each full record leaves at once, while it is still in the cache. */
            if (!channel->out_source && channel->tail->end == CHUNK_BYTES)
                flush(channel, CHUNK_BYTES);
        }
    }
    if (!channel->out_source && !channel->failure)
        flush(channel, WRITE_BUDGET_BYTES);
    if (peer_channel_is_congested(channel))
        channel->was_congested = true;
}

gboolean
peer_channel_is_congested(const PeerChannel *channel)
{
    return channel->queued_bytes > PEER_CHANNEL_CONGESTED_BYTES;
}

void
peer_channel_set_reading(PeerChannel *channel, gboolean reading)
{
    if (!channel->open || channel->reading == !!reading)
        return;
    channel->reading = !!reading;
    if (reading) {
        source_attach(channel, &channel->in_source,
                      g_pollable_input_stream_create_source(channel->in, NULL),
                      G_SOURCE_FUNC(on_readable));
        read_again(channel);
    } else {
        source_clear(&channel->in_source);
        source_clear(&channel->again_source);
    }
}
