/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-gate-harness.c - the books of the gate's fuzzer, and what it asserts
 *
 * Theory of operation
 *
 * The harness keeps its own books of what it said and of what came out, with parsers of its own,
 * and after each operation asserts what a gate must hold whatever it is fed:
 *
 * - In each direction what comes out is a beginning of what went in: nothing is invented, changed
 *   or overtaken.
 * - Of the initial device state not a byte passes either end before its point.
 * - Secondary: of a checkpoint's tail not a byte reaches QEMU before an END that fits it and the
 *   owner's leave; COMMITTED(n) leaves once, for each n in turn; what fits END is judged by a hash
 *   of the harness. A state is called clean only with every committed load ended, and no peer
 *   that goes or misbehaves keeps a load from its end.
 * - Primary: REQUEST waits for its point, ARM is out before READY goes in, END(n) leaves once,
 *   behind the whole tail and the mark, and says the right length and hash; `committed` is told
 *   once, for the END that was sent; QEMU gets RECEIVED and LOADED only behind it, or, under early
 *   resume, once each behind END and not from the peer.
 * - A gate that waits has a limit on it, unless it is idle; it fails at most once and nothing
 *   passes afterwards; when QEMU and the peer are gone it has failed.
 */
#include "fuzz-gate-harness.h"

#include "fd.h"

#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    TAIL_MAX_BYTES = 4096,
    SAID_MAX_BYTES = 512 * 1024, /* of one input: below every mark at which a gate stops reading */
    TIMEOUT_MS = 3600 * 1000,    /* never while we look */
};

/* --- The gate's side -------------------------------------------------------------------------- */

static void
settle(void)
{
    while (g_main_context_iteration(NULL, FALSE))
        ;
}

Record
harness_record(const Harness *h, guint64 epoch)
{
    if (epoch > h->books.records->len)
        return (Record){0};
    return g_array_index(h->books.records, Record, epoch - 1);
}

uint64_t
harness_covered_hash(const Harness *h, const Record *record)
{
    View all = view_of(h->forward_in->data, record->tail_end_at);

    (void)view_skip(&all, record->send_at);
    return XXH3_64bits(all.data, all.len);
}

void
harness_pass(Harness *h)
{
    if (!h->standing || !h->gate)
        return;
    h->standing = false;
    h->passed[h->point]++;
    if (h->point == GATE_POINT_COMMIT && h->failures == 0) {
        h->committed++;
        h->end_fits = false;
    }
    gate_continue(h->gate, h->point);
}

static void
on_point(Gate *gate G_GNUC_UNUSED, GatePoint point, guint64 epoch, gpointer user_data)
{
    Harness *h = user_data;

    g_assert(!h->standing && h->failures == 0);
    h->standing = true;
    h->point = point;
    if (point == GATE_POINT_READY) {
        g_assert(h->primary && epoch == 0 && !h->arm_seen);
        h->books.broken |= !colo_forward_set_ready(h->books.parser, NULL);
        g_assert(!h->books.broken);
    } else if (point == GATE_POINT_STATE) {
        g_assert(epoch == 0 && h->passed[GATE_POINT_STATE] == 0 && h->books.state_at > 0);
    } else {
        g_assert(epoch == h->committed + 1);
        g_assert((point == GATE_POINT_REQUEST || point == GATE_POINT_MARK) == h->primary);
    }
    if (point == GATE_POINT_COMMIT)
        g_assert(h->end_fits);
    if (h->pass)
        harness_pass(h);
}

static void
on_notice(Gate *gate G_GNUC_UNUSED, GateNotice notice, guint64 epoch, gpointer user_data)
{
    Harness *h = user_data;

    g_assert(h->failures == 0);
    switch (notice) {
    case GATE_NOTICE_RAM_DONE:
        break;
    case GATE_NOTICE_READY:
        if (!h->primary)
            h->books.broken |= !colo_forward_set_ready(h->books.parser, NULL);
        g_assert(!h->books.broken);
        break;
    case GATE_NOTICE_ARMED:
        g_assert(!h->primary && !h->arm_seen);
        h->arm_seen = true;
        break;
    case GATE_NOTICE_COMMITTED:
        if (h->primary) {
            g_assert(epoch == h->committed + 1 && h->ends == epoch && h->commit_said == epoch);
            h->committed = epoch;
        }
        g_assert(epoch == h->committed);
        break;
    case GATE_NOTICE_LOADED:
        g_assert(epoch == h->committed && epoch == h->loaded + 1);
        h->loaded = epoch;
        break;
    case GATE_NOTICE_ANSWERED:
        g_assert(h->early && epoch == h->committed + 1 && epoch == h->answered + 1);
        h->answered = epoch;
        break;
    case GATE_NOTICE_STALLED:
        g_assert_not_reached();
    }
}

static void
on_failed(Gate *gate G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Harness *h = user_data;

    g_assert(reason->domain == GATE_ERROR && reason->message[0]);
    g_assert(h->failures == 0);
    h->failures++;
    /* What becomes of the peer does not break off a load. */
    if (!h->primary && (g_error_matches(reason, GATE_ERROR, GATE_ERROR_PEER_CLOSED) ||
                        g_error_matches(reason, GATE_ERROR, GATE_ERROR_PROTOCOL)))
        g_assert(h->loaded == h->committed);
}

/* --- What comes out --------------------------------------------------------------------------- */

static gboolean
on_vm(gint fd, GIOCondition condition G_GNUC_UNUSED, gpointer user_data)
{
    Harness *h = user_data;
    uint8_t bytes[64 * 1024];
    ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (n > 0) {
        g_byte_array_append(h->primary ? h->return_out : h->forward_out, bytes, (guint)n);
        return G_SOURCE_CONTINUE;
    }
    h->vm_source = 0;
    return G_SOURCE_REMOVE;
}

static uint64_t
take_number(View *payload)
{
    uint64_t number = 0;
    bool whole = view_get_be64(payload, &number);

    g_assert(whole);
    return number;
}

/* The peer's view of a primary's END. */
static void
see_end(Harness *h, View payload)
{
    uint64_t epoch = take_number(&payload);
    uint64_t length = take_number(&payload);
    uint64_t hash = take_number(&payload);
    Record record = harness_record(h, epoch);

    g_assert(epoch == h->ends + 1 && epoch == h->committed + 1);
    h->ends = epoch;
    g_assert(h->passed[GATE_POINT_MARK] == epoch);
    g_assert(record.tail_end_at > 0 && h->forward_out->len == record.tail_end_at);
    g_assert(length == record.tail_end_at - record.send_at &&
             hash == harness_covered_hash(h, &record));
}

static void
on_peer_message(PeerChannel *channel G_GNUC_UNUSED, PeerMessageType type, View payload,
                gpointer user_data)
{
    Harness *h = user_data;

    if (type == PEER_MESSAGE_DATA_FORWARD || type == PEER_MESSAGE_DATA_RETURN) {
        g_assert((type == PEER_MESSAGE_DATA_FORWARD) == h->primary && payload.len > 0);
        g_byte_array_append(h->primary ? h->forward_out : h->return_out, payload.data,
                            (guint)payload.len);
    } else if (type == PEER_MESSAGE_END) {
        g_assert(h->primary);
        see_end(h, payload);
    } else if (type == PEER_MESSAGE_ARM) {
        g_assert(h->primary && !h->arm_seen && h->passed[GATE_POINT_READY] == 1);
        g_assert(take_number(&payload) == GENERATION);
        h->arm_seen = true;
    } else {
        g_assert(!h->primary && type == PEER_MESSAGE_COMMITTED);
        h->commit_seen++;
        g_assert(take_number(&payload) == h->commit_seen && h->commit_seen <= h->committed);
    }
}

static void
on_peer_drained(PeerChannel *channel G_GNUC_UNUSED, gpointer user_data G_GNUC_UNUSED)
{
}

static void
on_peer_closed(PeerChannel *channel G_GNUC_UNUSED, const GError *reason G_GNUC_UNUSED,
               gpointer user_data G_GNUC_UNUSED)
{
}

/* --- What must hold --------------------------------------------------------------------------- */

static void
check_beginning(const GByteArray *out, const GByteArray *in)
{
    g_assert(out->len <= in->len);
    g_assert(out->len == 0 || memcmp(out->data, in->data, out->len) == 0);
}

/* Messages in @bytes, which a gate has let through and which must therefore parse. */
static void
count_return(const GByteArray *bytes, guint64 ret_counts[COLO_RETURN_LOADED + 1])
{
    g_autoptr(ColoReturn) parser = colo_return_new();
    View in = view_of(bytes->data, bytes->len);

    memset(ret_counts, 0, (COLO_RETURN_LOADED + 1) * sizeof(*ret_counts));
    while (in.len > 0) {
        ColoReturnEvent event;

        if (!colo_return_parse(parser, &in, &event, NULL))
            g_assert_not_reached();
        ret_counts[event]++;
    }
}

static void
check_primary(const Harness *h, const guint64 counts[])
{
    Record held = harness_record(h, h->passed[GATE_POINT_REQUEST] + 1);

    if (held.request_at > 0)
        g_assert(h->forward_out->len <= held.request_at - 4);
    g_assert(counts[COLO_RETURN_READY] <= h->passed[GATE_POINT_READY]);
    g_assert(h->answered <= h->ends);
    g_assert(counts[COLO_RETURN_RECEIVED] <= (h->early ? h->answered : h->committed));
    g_assert(counts[COLO_RETURN_LOADED] <= (h->early ? h->answered : h->committed));
}

static void
check_secondary(const Harness *h, const guint64 counts[])
{
    Record held = harness_record(h, h->committed + 1);
    Record asked = harness_record(h, h->passed[GATE_POINT_QUIESCE] + 1);
    GateLoad load = gate_load(h->gate);

    if (asked.request_at > 0)
        g_assert(h->forward_out->len <= asked.request_at - 4);
    if (held.ram_end_at > 0)
        g_assert(h->forward_out->len <= held.ram_end_at);
    g_assert(counts[COLO_RETURN_REPLY] <= h->passed[GATE_POINT_REPLY]);
    g_assert(h->commit_seen <= h->committed);
    g_assert((load == GATE_LOAD_NEVER) == !h->arm_seen);
    if (load == GATE_LOAD_CLEAN)
        g_assert(h->loaded == h->committed);
    if (h->failures)
        g_assert(load != GATE_LOAD_LOADING);
}

static bool
has_deadline(const Gate *gate)
{
    return gate->timers[GATE_TIMER_MESSAGE].due_us >= 0 ||
           gate->timers[GATE_TIMER_TRANSFER].due_us >= 0;
}

void
harness_check(Harness *h)
{
    guint64 counts[COLO_RETURN_LOADED + 1];

    settle();
    check_beginning(h->forward_out, h->forward_in);
    if (!h->early) /* else QEMU has answers that the peer has not given yet */
        check_beginning(h->return_out, h->return_in);
    if (!h->gate)
        return;
    count_return(h->return_out, counts);
    if (h->books.state_at > 0 && h->passed[GATE_POINT_STATE] == 0)
        g_assert(h->forward_out->len <= h->books.state_at);
    if (h->primary)
        check_primary(h, counts);
    else
        check_secondary(h, counts);
    if (h->over) {
        g_assert(h->over_forward == h->forward_out->len && h->over_return == h->return_out->len);
    } else if (h->failures) {
        h->over = true;
        h->over_forward = h->forward_out->len;
        h->over_return = h->return_out->len;
    } else {
        /* What we cannot read it must not have taken. After a commit a misbehaving peer is dropped
         * first and told of behind the load; from QEMU nothing is read between its answers and the
         * peer's. */
        g_assert(!h->books.broken || h->gate->peer_lost || h->gate->vm_answered);
        g_assert((h->arm_seen && gate_step(h->gate) == GATE_STEP_IDLE) || has_deadline(h->gate));
    }
}

/* --- What is said ----------------------------------------------------------------------------- */

static void
book_forward(Harness *h, View in)
{
    Books *books = &h->books;
    const Record empty = {0};

    while (in.len > 0 && !books->broken) {
        ColoForwardEvent event;

        books->broken = !colo_forward_parse(books->parser, &in, &event, NULL);
        if (!books->broken && event == COLO_FORWARD_DEVICE_STATE)
            books->state_at = h->forward_in->len - in.len;
        if (books->broken || event == COLO_FORWARD_NONE || event == COLO_FORWARD_DEVICE_STATE)
            continue;
        if (event == COLO_FORWARD_REQUEST)
            g_array_append_val(books->records, empty);

        Record *record = &g_array_index(books->records, Record, books->records->len - 1);
        size_t at = h->forward_in->len - in.len;

        if (event == COLO_FORWARD_REQUEST)
            record->request_at = at;
        else if (event == COLO_FORWARD_SEND)
            record->send_at = at;
        else if (event == COLO_FORWARD_RAM_END)
            record->ram_end_at = at;
        else if (event == COLO_FORWARD_TAIL_END)
            record->tail_end_at = at;
    }
}

/* @from_vm: QEMU says it, else the peer. */
static void
say_piece(Harness *h, bool from_vm, View bytes)
{
    if (!from_vm) {
        peer_channel_send(h->peer,
                          h->primary ? PEER_MESSAGE_DATA_RETURN : PEER_MESSAGE_DATA_FORWARD,
                          bytes.data, bytes.len);
        settle();
        return;
    }
    while (bytes.len > 0 && h->gate && h->failures == 0) {
        ssize_t n = send(h->vm, bytes.data, bytes.len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno != EAGAIN)
            return;
        (void)view_skip(&bytes, n > 0 ? (size_t)n : 0);
        settle();
    }
}

/* Where a gate stands before the device state, and under early resume until LOADED, it leaves QEMU
 * unread: more than the socket takes cannot be said. It is writable while it is a quarter full at
 * most, and no operation says as much as that.
 */
static bool
is_unread(const Harness *h)
{
    struct pollfd vm = {.fd = h->vm, .events = POLLOUT};

    return h->gate && (h->gate->vm_answered || !h->gate->vm_reading) && poll(&vm, 1, 0) == 0;
}

void
harness_say(Harness *h, bool from_vm, View bytes)
{
    bool forward = from_vm == h->primary;
    GByteArray *in = forward ? h->forward_in : h->return_in;
    bool lost = from_vm ? h->vm < 0 : h->peer == NULL;
    const uint8_t *piece = NULL;

    if (lost || h->failures || in->len + bytes.len > SAID_MAX_BYTES || (from_vm && is_unread(h)))
        return;
    while (bytes.len > 0 && h->gate && h->failures == 0) {
        /* Few pieces of what is long: each costs a turn of the loop. */
        size_t len = h->chunk ? MAX(h->chunk, bytes.len / 16) : bytes.len;

        len = MIN(MIN(len, bytes.len), (size_t)PEER_DATA_MAX_BYTES);
        (void)view_take(&bytes, len, &piece);
        g_byte_array_append(in, piece, (guint)len);
        if (forward)
            book_forward(h, view_of(piece, len));
        say_piece(h, from_vm, view_of(piece, len));
    }
}

void
harness_say_built(Harness *h, bool forward, void (*build)(GByteArray *out, unsigned argument),
                  unsigned argument)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    build(bytes, argument);
    harness_say(h, forward == h->primary, view_of(bytes->data, bytes->len));
}

void
harness_say_peer_message(Harness *h, PeerMessageType type, const uint64_t *numbers, size_t n)
{
    uint8_t payload[PEER_END_BYTES];

    if (!h->peer || h->failures)
        return;
    for (size_t i = 0; i < n; i++)
        be64_store(payload + 8 * i, numbers[i]);
    if (type == PEER_MESSAGE_COMMITTED && h->ends == h->committed + 1 && numbers[0] == h->ends)
        h->commit_said = numbers[0];
    peer_channel_send(h->peer, type, payload, 8 * n);
}

/* --- Life ------------------------------------------------------------------------------------- */

void
harness_close_vm(Harness *h)
{
    if (h->vm_source)
        g_source_remove(h->vm_source);
    h->vm_source = 0;
    fd_clear(&h->vm);
}

static void
socketpair_new(int ret_fds[2])
{
    int r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_fds);

    g_assert(r == 0);
}

static GIOStream *
stream_new(int fd)
{
    g_autoptr(GSocket) sock = g_socket_new_from_fd(fd, NULL);

    g_assert(sock);
    return G_IO_STREAM(g_socket_connection_factory_create_connection(sock));
}

void
harness_init(Harness *h, bool primary, bool pass, bool early)
{
    static const PeerChannelHandlers peer_handlers = {on_peer_message, on_peer_drained,
                                                      on_peer_closed};
    static const GateHandlers handlers = {on_point, on_notice, on_failed};
    const GateConfig config = {.message_timeout_ms = TIMEOUT_MS,
                               .transfer_timeout_ms = TIMEOUT_MS,
                               .migration_timeout_ms = TIMEOUT_MS,
                               .tail_max_bytes = TAIL_MAX_BYTES,
                               .early_resume = primary && early};
    int vm[2], channel[2];

    *h = (Harness){.primary = primary,
                   .pass = pass,
                   .early = primary && early,
                   .forward_in = g_byte_array_new(),
                   .forward_out = g_byte_array_new(),
                   .return_in = g_byte_array_new(),
                   .return_out = g_byte_array_new(),
                   .books = {.parser = colo_forward_new(TAIL_MAX_BYTES),
                             .records = g_array_new(FALSE, FALSE, sizeof(Record))}};
    socketpair_new(vm);
    socketpair_new(channel);

    g_autoptr(GIOStream) ours = stream_new(channel[0]);
    g_autoptr(GIOStream) theirs = stream_new(channel[1]);

    h->vm = vm[1];
    h->vm_source = g_unix_fd_add(h->vm, G_IO_IN, on_vm, h);
    h->peer = peer_channel_new(theirs, PEER_CHANNEL_CHECKPOINT, &peer_handlers, h);
    h->gate = h->primary ? gate_primary_new(vm[0], ours, GENERATION, &config, &handlers, h)
                         : gate_secondary_new(vm[0], ours, &config, &handlers, h);
}

void
harness_clear(Harness *h)
{
    gate_free(h->gate);
    harness_close_vm(h);
    peer_channel_free(h->peer);
    settle();
    colo_forward_free(h->books.parser);
    g_array_unref(h->books.records);
    g_byte_array_unref(h->forward_in);
    g_byte_array_unref(h->forward_out);
    g_byte_array_unref(h->return_in);
    g_byte_array_unref(h->return_out);
}
