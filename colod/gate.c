/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* gate.c - what both ends of the checkpoint tunnel share: QEMU's socket, the channel, the deadlines
 */
/*
 * Theory of operation
 *
 * A gate stands between the migration socket of the local QEMU and the checkpoint channel to the
 * peer. Both ends parse both directions (colo-stream.h), so each knows at which step of a
 * checkpoint it is (gate.h, docs/ARCHITECTURE.md, "Gate"), refuses what is out of turn and limits
 * every wait. gate-primary.c and gate-secondary.c hold the two state machines; this file moves
 * bytes for them.
 *
 * Thread: the one of the main context that was current in gate_*_new(); everything is called there.
 *
 * Latency. What a read returns is parsed and handed on in the same dispatch: no timer, no idle and
 * no copy lies between a byte of QEMU and the channel. The socket is read in pieces of one DATA
 * message.
 *
 * Back-pressure. Primary: while the channel is congested QEMU is not read. Secondary: what QEMU's
 * socket does not take is queued, and above VM_QUEUE_HIGH_BYTES the channel is not read until the
 * queue is empty. So a gate holds at most the channel's bound, or the queue, one message and the
 * tail.
 *
 * Deadlines. GATE_TIMER_MESSAGE limits each awaited message, each point where we stand and each
 * silence within a transfer; GATE_TIMER_TRANSFER the transfer as a whole. Restarting one for each
 * piece must be cheap, and g_source_set_ready_time() wakes the loop: a limit that moves to later
 * only is written down, and the source sees when it fires that it must go on waiting.
 *
 * Failure. gate_fail() is the only way down. It closes the channel, stops reading QEMU, drops what
 * was held and calls `failed` once. QEMU's socket stays open until gate_free().
 *
 * Re-entrance. Every callback may free the gate. Each entry (dispatch, channel callback,
 * gate_continue()) holds a reference, and after each call that may call back gate_is_live() is
 * asked before anything else is done.
 */
#include "gate-private.h"

#include "clock.h"
#include "fd.h"
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include <xxhash.h>

enum {
    READS_PER_DISPATCH = 4, /* half a megabyte, then the other sources have their turn */
    VM_SOCKET_BUFFER_BYTES = 1024 * 1024,
    VM_QUEUE_HIGH_BYTES = 1024 * 1024,
    /* Whatever the configuration says: a GByteArray counts in guint. QEMU's device state is far
       below. */
    TAIL_LIMIT_BYTES = 1024 * 1024 * 1024,
};

typedef struct VmSource {
    GSource base;
    Gate *gate;
} VmSource;

typedef struct DeadlineSource {
    GSource base;
    Gate *gate;
    GateTimer timer;
} DeadlineSource;

G_DEFINE_QUARK(colod_gate_error_quark, gate_error)

const char *
gate_step_name(GateStep step)
{
    static const char *const names[] = {
        [GATE_STEP_IDLE] = "idle",         [GATE_STEP_REQUEST] = "request",
        [GATE_STEP_REPLY] = "reply",       [GATE_STEP_SEND] = "send",
        [GATE_STEP_TRANSFER] = "transfer", [GATE_STEP_COMMIT] = "commit",
        [GATE_STEP_RELEASE] = "release",   [GATE_STEP_LOAD] = "load",
    };

    static_assert(G_N_ELEMENTS(names) == GATE_STEP_LOAD + 1, "a step has no name");
    return (unsigned)step < G_N_ELEMENTS(names) ? names[step] : "unknown";
}

/* --- Life ------------------------------------------------------------------------------------ */

/* Nothing passes any more. QEMU's socket stays open. */
static void
shut(Gate *gate)
{
    for (unsigned i = 0; i < GATE_N_TIMERS; i++)
        source_clear(&gate->timers[i].source);
    source_clear(&gate->vm_source);
    g_clear_pointer(&gate->channel, peer_channel_free);
    g_byte_array_set_size(gate->vm_queue, 0);
    gate->vm_queue_at = 0;
    g_byte_array_set_size(gate->tail, 0);
    g_byte_array_set_size(gate->unparsed, 0);
    gate->holding = false;
}

static void
gate_clear(gpointer data)
{
    Gate *gate = data;

    colo_forward_free(gate->forward);
    colo_return_free(gate->back);
    g_byte_array_unref(gate->vm_queue);
    g_byte_array_unref(gate->tail);
    g_byte_array_unref(gate->unparsed);
    g_free(gate->vm_buffer);
    (void)XXH3_freeState(gate->hash);
    g_clear_error(&gate->peer_lost);
    g_main_context_unref(gate->context);
}

static Gate *
gate_ref(Gate *gate)
{
    return g_rc_box_acquire(gate);
}

static void
gate_unref(Gate *gate)
{
    g_rc_box_release_full(gate, gate_clear);
}

void
gate_free(Gate *gate)
{
    if (!gate)
        return;
    gate->freed = true;
    shut(gate);
    fd_clear(&gate->vm_fd);
    gate_unref(gate);
}

bool
gate_is_live(const Gate *gate)
{
    return !gate->freed && !gate->failed;
}

guint64
gate_next_epoch(const Gate *gate)
{
    return gate->epoch + 1;
}

/* --- Failure and callbacks ------------------------------------------------------------------- */

static GError *make_error(const Gate *gate, GateError code, const char *format, va_list args)
    G_GNUC_PRINTF(3, 0);

static GError *
make_error(const Gate *gate, GateError code, const char *format, va_list args)
{
    GError *error = g_error_new_valist(GATE_ERROR, (gint)code, format, args);

    if (!gate->armed)
        g_prefix_error(&error, "initial migration: ");
    else if (gate->step >= GATE_STEP_RELEASE)
        g_prefix_error(&error, "checkpoint %" G_GUINT64_FORMAT ", step %s: ", gate->epoch,
                       gate_step_name(gate->step));
    else
        g_prefix_error(&error, "checkpoint %" G_GUINT64_FORMAT ", step %s: ", gate_next_epoch(gate),
                       gate_step_name(gate->step));
    return error;
}

/* @reason is taken. */
static void
fail_with(Gate *gate, GError *reason)
{
    g_autoptr(GError) error = reason;

    if (!gate_is_live(gate))
        return;
    gate->failed = true;
    if (gate->load == GATE_LOAD_LOADING)
        gate->load = GATE_LOAD_BROKEN;
    shut(gate);
    gate->handlers.failed(gate, error, gate->user_data);
}

void
gate_fail(Gate *gate, GateError code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fail_with(gate, make_error(gate, code, format, args));
    va_end(args);
}

void
gate_fail_peer(Gate *gate, GateError code, const char *format, ...)
{
    va_list args;

    va_start(args, format);

    GError *error = make_error(gate, code, format, args);

    va_end(args);
    if (gate_is_live(gate) && !gate->peer_lost && gate->side->defer_peer_loss(gate)) {
        gate->peer_lost = error;
        g_clear_pointer(&gate->channel, peer_channel_free);
    } else {
        fail_with(gate, error);
    }
}

void
gate_report_peer_loss(Gate *gate)
{
    fail_with(gate, g_steal_pointer(&gate->peer_lost));
}

void
gate_notify(Gate *gate, GateNotice notice, guint64 epoch)
{
    gate->handlers.notice(gate, notice, epoch, gate->user_data);
}

void
gate_stop_at(Gate *gate, GatePoint point, guint64 epoch, const char *awaited)
{
    g_assert(!gate->standing);
    gate->standing = true;
    gate->point = point;
    gate_await_message(gate, awaited);
    gate->handlers.point(gate, point, epoch, gate->user_data);
}

void
gate_stop_at_state(Gate *gate, View rest)
{
    g_assert(!gate->standing);
    gate->standing = true;
    gate->point = GATE_POINT_STATE;
    g_byte_array_append(gate->unparsed, rest.data, (guint)rest.len);
    gate_await(gate, GATE_TIMER_MESSAGE, gate->config.transfer_timeout_ms,
               "go-ahead for the device state (disks made equal)");
    gate->handlers.point(gate, GATE_POINT_STATE, 0, gate->user_data);
}

GByteArray *
gate_take_unparsed(Gate *gate)
{
    GByteArray *unparsed = gate->unparsed;

    gate->unparsed = g_byte_array_new();
    return unparsed;
}

void
gate_continue(Gate *gate, GatePoint point)
{
    g_assert(gate->standing && gate->point == point);
    gate->standing = false;
    if (gate->failed || gate->stalled)
        return;
    gate_ref(gate);
    gate->side->pass_point(gate, point);
    gate_unref(gate);
}

bool
gate_stands_at(const Gate *gate, GatePoint point)
{
    return gate_is_live(gate) && !gate->stalled && gate->standing && gate->point == point;
}

bool
gate_is_caught(Gate *gate, GateStep step)
{
    if (gate->stalled || gate->stall_step != step)
        return gate->stalled;
    gate->stalled = true;
    for (unsigned i = 0; i < GATE_N_TIMERS; i++)
        gate_await_nothing(gate, (GateTimer)i);
    gate_notify(gate, GATE_NOTICE_STALLED,
                step >= GATE_STEP_RELEASE ? gate->epoch : gate_next_epoch(gate));
    return true;
}

/* --- Deadlines ------------------------------------------------------------------------------- */

static gboolean
dispatch_deadline(GSource *source, GSourceFunc callback G_GNUC_UNUSED,
                  gpointer user_data G_GNUC_UNUSED)
{
    Gate *gate = ((DeadlineSource *)source)->gate;
    GateDeadline *deadline = &gate->timers[((DeadlineSource *)source)->timer];

    if (deadline->due_us < 0 || g_get_monotonic_time() < deadline->due_us) {
        deadline->armed_us = deadline->due_us;
        g_source_set_ready_time(source, deadline->due_us);
        return G_SOURCE_CONTINUE;
    }
    gate_ref(gate);
    gate_fail(gate, deadline->from_peer ? GATE_ERROR_PEER_DEADLINE : GATE_ERROR_DEADLINE,
              "no %s within %u ms", deadline->awaited, deadline->limit_ms);
    gate_unref(gate);
    return G_SOURCE_REMOVE;
}

static void
add_deadline(Gate *gate, GateTimer timer)
{
    static GSourceFuncs funcs = {.dispatch = dispatch_deadline};
    GateDeadline *deadline = &gate->timers[timer];

    deadline->source = g_source_new(&funcs, sizeof(DeadlineSource));
    deadline->due_us = deadline->armed_us = -1;
    ((DeadlineSource *)deadline->source)->gate = gate;
    ((DeadlineSource *)deadline->source)->timer = timer;
    g_source_attach(deadline->source, gate->context);
}

void
gate_await(Gate *gate, GateTimer timer, unsigned limit_ms, const char *awaited)
{
    GateDeadline *deadline = &gate->timers[timer];

    if (!deadline->source)
        return; /* failed */
    deadline->awaited = awaited;
    deadline->limit_ms = limit_ms;
    deadline->from_peer = false;
    deadline->due_us = g_get_monotonic_time() + (gint64)limit_ms * 1000;
    if (deadline->armed_us >= 0 && deadline->armed_us <= deadline->due_us)
        return;
    deadline->armed_us = deadline->due_us;
    g_source_set_ready_time(deadline->source, deadline->due_us);
}

void
gate_await_message(Gate *gate, const char *awaited)
{
    gate_await(gate, GATE_TIMER_MESSAGE, gate->config.message_timeout_ms, awaited);
}

void
gate_await_peer(Gate *gate, const char *awaited)
{
    gate_await(gate, GATE_TIMER_MESSAGE,
               gate->config.message_timeout_ms + gate->config.peer_margin_ms, awaited);
    gate->timers[GATE_TIMER_MESSAGE].from_peer = true;
}

void
gate_await_nothing(Gate *gate, GateTimer timer)
{
    gate->timers[timer].due_us = -1;
}

void
gate_initial_progress(Gate *gate)
{
    const GateConfig *c = &gate->config;

    if (gate->ready_seen || gate->standing)
        return;
    /* The primary stands at GATE_POINT_STATE meanwhile. */
    gate_await(gate, GATE_TIMER_MESSAGE,
               gate->state_due ? c->transfer_timeout_ms + c->peer_margin_ms
                               : c->migration_timeout_ms,
               "byte of the initial migration");
}

/* --- QEMU's socket --------------------------------------------------------------------------- */

static void
update_vm_events(Gate *gate)
{
    GIOCondition events = (gate->vm_reading ? G_IO_IN : 0) | (gate->vm_queue->len ? G_IO_OUT : 0);

    if (!gate->vm_source || events == gate->vm_events)
        return;
    gate->vm_events = events;
    g_source_modify_unix_fd(gate->vm_source, gate->vm_tag, events);
}

void
gate_vm_set_reading(Gate *gate, bool reading)
{
    gate->vm_reading = reading && !gate->vm_held;
    update_vm_events(gate);
}

static void
fail_vm(Gate *gate, int error)
{
    gate_fail(gate, GATE_ERROR_VM_CLOSED, "QEMU closed its migration socket%s%s", error ? ": " : "",
              error ? g_strerror(error) : "");
}

/* Writes what the socket takes. False: the gate failed. */
static bool
write_some(Gate *gate, View *bytes)
{
    while (bytes->len > 0) {
        ssize_t n = send(gate->vm_fd, bytes->data, bytes->len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        if (n < 0) {
            fail_vm(gate, errno);
            return false;
        }
        (void)view_skip(bytes, (size_t)n);
    }
    return true;
}

static void
set_peer_reading(Gate *gate, bool reading)
{
    if (gate->channel)
        peer_channel_set_reading(gate->channel, reading);
}

void
gate_vm_write(Gate *gate, View bytes)
{
    if (bytes.len == 0 || (gate->vm_queue->len == 0 && !write_some(gate, &bytes)))
        return;
    if (bytes.len == 0)
        return;
    /* What was written long ago goes before the array grows. */
    if (gate->vm_queue_at >= VM_QUEUE_HIGH_BYTES) {
        g_byte_array_remove_range(gate->vm_queue, 0, (guint)gate->vm_queue_at);
        gate->vm_queue_at = 0;
    }
    g_byte_array_append(gate->vm_queue, bytes.data, (guint)bytes.len);
    if (gate->vm_queue->len - gate->vm_queue_at > VM_QUEUE_HIGH_BYTES)
        set_peer_reading(gate, false);
    update_vm_events(gate);
}

static void
flush_vm_queue(Gate *gate)
{
    View rest =
        view_of(gate->vm_queue->data + gate->vm_queue_at, gate->vm_queue->len - gate->vm_queue_at);

    if (!write_some(gate, &rest))
        return;
    gate_initial_progress(gate);
    gate->vm_queue_at = gate->vm_queue->len - rest.len;
    if (rest.len > 0)
        return;
    g_byte_array_set_size(gate->vm_queue, 0);
    gate->vm_queue_at = 0;
    set_peer_reading(gate, true);
    update_vm_events(gate);
}

static void
read_vm(Gate *gate)
{
    for (unsigned i = 0; i < READS_PER_DISPATCH && gate_is_live(gate) && gate->vm_reading; i++) {
        ssize_t n = recv(gate->vm_fd, gate->vm_buffer, PEER_DATA_MAX_BYTES, MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
            return;
        if (n <= 0) {
            fail_vm(gate, n < 0 ? errno : 0);
            return;
        }
        gate_initial_progress(gate);
        gate->side->vm_bytes(gate, gate->vm_buffer, (size_t)n);
        if (n < PEER_DATA_MAX_BYTES)
            return;
    }
}

static gboolean
dispatch_vm(GSource *source, GSourceFunc callback G_GNUC_UNUSED, gpointer user_data G_GNUC_UNUSED)
{
    Gate *gate = gate_ref(((VmSource *)source)->gate);
    GIOCondition events = g_source_query_unix_fd(source, gate->vm_tag);

    if (events & G_IO_OUT && gate->vm_queue->len > 0)
        flush_vm_queue(gate);
    if (gate_is_live(gate) && gate->vm_reading && events & (G_IO_IN | G_IO_HUP | G_IO_ERR))
        read_vm(gate);
    else if (gate_is_live(gate) && events & (G_IO_HUP | G_IO_ERR))
        fail_vm(gate, 0); /* it would be reported for ever while we do not read */
    gate_unref(gate);
    return G_SOURCE_CONTINUE;
}

static void
add_vm_source(Gate *gate)
{
    static GSourceFuncs funcs = {.dispatch = dispatch_vm};
    const int bytes = VM_SOCKET_BUFFER_BYTES;

    /* As much as the host allows; the defaults do as well, only slower. */
    (void)setsockopt(gate->vm_fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    (void)setsockopt(gate->vm_fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    (void)fd_set_nonblocking(gate->vm_fd);
    gate->vm_source = g_source_new(&funcs, sizeof(VmSource));
    ((VmSource *)gate->vm_source)->gate = gate;
    gate->vm_reading = true;
    gate->vm_events = G_IO_IN;
    gate->vm_tag = g_source_add_unix_fd(gate->vm_source, gate->vm_fd, gate->vm_events);
    g_source_attach(gate->vm_source, gate->context);
}

/* --- The checkpoint channel ------------------------------------------------------------------ */

void
gate_send(Gate *gate, PeerMessageType type, View payload)
{
    if (!gate->channel)
        return;
    peer_channel_send(gate->channel, type, payload.data, payload.len);
    if (peer_channel_is_congested(gate->channel))
        gate_vm_set_reading(gate, false);
}

void
gate_send_message(Gate *gate, PeerMessageType type, ColoMessage message)
{
    uint8_t bytes[4];

    be32_store(bytes, message);
    gate_send(gate, type, view_of(bytes, sizeof(bytes)));
}

static void
on_message(PeerChannel *channel G_GNUC_UNUSED, PeerMessageType type, View payload,
           gpointer user_data)
{
    Gate *gate = gate_ref(user_data);

    if (!gate->stalled) {
        gate_initial_progress(gate);
        gate->side->peer_message(gate, type, payload);
    }
    gate_unref(gate);
}

static void
on_drained(PeerChannel *channel G_GNUC_UNUSED, gpointer user_data)
{
    Gate *gate = user_data;

    gate_initial_progress(gate);
    if (gate->in_transfer)
        gate_await_message(gate, "more of the checkpoint from QEMU");
    gate_vm_set_reading(gate, !gate->vm_answered);
}

static void
on_closed(PeerChannel *channel G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Gate *gate = gate_ref(user_data);

    gate_fail_peer(gate, GATE_ERROR_PEER_CLOSED, "checkpoint channel: %s", reason->message);
    gate_unref(gate);
}

/* --- Public functions ------------------------------------------------------------------------ */

Gate *
gate_new(const GateSide *side, int vm_fd, GIOStream *channel_stream, const GateConfig *config,
         const GateHandlers *handlers, gpointer user_data)
{
    static const PeerChannelHandlers channel_handlers = {on_message, on_drained, on_closed};
    Gate *gate = g_rc_box_new0(Gate);

    gate->side = side;
    gate->handlers = *handlers;
    gate->user_data = user_data;
    gate->config = *config;
    gate->context = g_main_context_ref_thread_default();
    gate->vm_fd = vm_fd;
    gate->vm_buffer = g_malloc(PEER_DATA_MAX_BYTES);
    gate->vm_queue = g_byte_array_new();
    gate->tail = g_byte_array_new();
    gate->unparsed = g_byte_array_new();
    gate->forward = colo_forward_new(MIN(config->tail_max_bytes, TAIL_LIMIT_BYTES));
    gate->back = colo_return_new();
    gate->hash = XXH3_createState();
    g_assert(gate->hash);
    for (unsigned i = 0; i < GATE_N_TIMERS; i++)
        add_deadline(gate, (GateTimer)i);
    add_vm_source(gate);
    gate->channel =
        peer_channel_new(channel_stream, PEER_CHANNEL_CHECKPOINT, &channel_handlers, gate);
    gate_initial_progress(gate);
    return gate;
}

GateStep
gate_step(const Gate *gate)
{
    return gate->step;
}

GateLoad
gate_load(const Gate *gate)
{
    return gate->load;
}

void
gate_figures_loaded(Gate *gate)
{
    gate->under_way.epoch = gate->epoch;
    gate->under_way.loaded_ns = clock_now_ns();
    gate->figures = gate->under_way;
}

void
gate_get_figures(const Gate *gate, GateFigures *ret_figures)
{
    *ret_figures = gate->figures;
    ret_figures->epoch = gate->epoch;
}

void
gate_set_stall(Gate *gate, GateStep step)
{
    gate->stall_step = step;
}

void
gate_corrupt_next(Gate *gate)
{
    gate->corrupt_next = true;
}

void
gate_expect_request(Gate *gate)
{
    if (gate_is_live(gate) && gate->armed && gate->step == GATE_STEP_IDLE && !gate->stalled)
        gate_await_message(gate, "CHECKPOINT_REQUEST");
}

void
gate_detach_peer(Gate *gate)
{
    if (gate_is_live(gate) && !gate->peer_lost)
        gate_fail_peer(gate, GATE_ERROR_PEER_CLOSED, "the peer is lost");
}
