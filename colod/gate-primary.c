/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* gate-primary.c - the primary's end of the checkpoint tunnel */
/*
 * Theory of operation
 *
 * Forward (PVM's QEMU to the peer): the initial migration and, in a checkpoint, everything behind
 * VMSTATE_SEND goes on as it is read. At the end of the migration's RAM PVM stands; QEMU is not
 * read, and what was read behind it waits, until GATE_POINT_STATE is passed. REQUEST and SEND are
 * messages of their own: REQUEST waits for GATE_POINT_REQUEST, SEND goes on at once while the owner
 * works at GATE_POINT_MARK. What follows SEND is hashed on its way; END is sent when the tail is
 * out and MARK has been passed.
 *
 * Return (the peer to PVM's QEMU): one item at a time. READY waits for GATE_POINT_READY, then ARM
 * is sent before READY is passed on, so that PVM never runs under the new rule unless ARM is on its
 * way.
 *
 * Early resume. Behind END PVM has nothing left to give to this checkpoint, so with
 * GateConfig.early_resume its QEMU is told RECEIVED and LOADED right then, in the peer's stead, and
 * PVM runs on while the checkpoint is still on its way. What it says from then on lies behind the
 * mark and is held for the next checkpoint, so nobody can tell if this one is never committed:
 * PVM goes on if the peer is lost, SVM from its own state if PVM is. QEMU's next REQUEST, which
 * could only come too early, waits unread until the peer's LOADED.
 *
 * Invariants: PVM's QEMU is given RECEIVED and LOADED only after COMMITTED of this epoch, or with
 * END under early resume, and once; END of epoch n is sent at most once; the exchange with the peer
 * is turn by turn, so bytes at any other moment are an error (forward_is_due(), return_is_due()).
 */
#include "gate-private.h"

#include "clock.h"

static bool
forward_is_due(const Gate *gate)
{
    if (!gate->armed)
        return !gate->ready_seen;
    if (gate->step == GATE_STEP_IDLE || gate->in_transfer)
        return true;
    return gate->step == GATE_STEP_SEND && !gate->tail_over;
}

static bool
return_is_due(const Gate *gate)
{
    if (!gate->armed)
        return !gate->ready_seen;
    return gate->step == GATE_STEP_REPLY || gate->step == GATE_STEP_RELEASE ||
           gate->step == GATE_STEP_LOAD;
}

static void
pass_forward(Gate *gate, View *run, const uint8_t *next)
{
    if (run->len > 0)
        gate_send(gate, PEER_MESSAGE_DATA_FORWARD, *run);
    *run = view_of(next, 0);
}

/* PVM's QEMU is answered in the peer's stead. */
static void
resume_early(Gate *gate)
{
    uint8_t answers[8];

    be32_store(answers, COLO_MESSAGE_VMSTATE_RECEIVED);
    be32_store(answers + 4, COLO_MESSAGE_VMSTATE_LOADED);
    gate->vm_answered = true;
    gate_vm_set_reading(gate, false);
    gate_vm_write(gate, view_of(answers, sizeof(answers)));
    if (gate_is_live(gate))
        gate_notify(gate, GATE_NOTICE_ANSWERED, gate_next_epoch(gate));
}

/* The tail is out, MARK is passed: what covers both is END. */
static void
try_end(Gate *gate)
{
    uint8_t end[PEER_END_BYTES];

    if (gate->step != GATE_STEP_TRANSFER || !gate->tail_over ||
        gate_is_caught(gate, GATE_STEP_TRANSFER))
        return;
    gate->tail_over = false;
    be64_store(end, gate_next_epoch(gate));
    be64_store(end + 8, colo_forward_bytes(gate->forward));
    be64_store(end + 16, gate_transfer_digest(gate));
    gate->step = GATE_STEP_COMMIT;
    gate_await_nothing(gate, GATE_TIMER_TRANSFER);
    gate_await_peer(gate, "COMMITTED from the peer");
    gate_send(gate, PEER_MESSAGE_END, view_of(end, sizeof(end)));
    if (gate->config.early_resume)
        resume_early(gate);
}

static void
on_request(Gate *gate)
{
    (void)gate_item_take(&gate->forward_item);
    gate->step = GATE_STEP_REQUEST;
    gate->under_way = (GateFigures){.request_ns = clock_now_ns()};
    if (!gate_is_caught(gate, GATE_STEP_REQUEST))
        gate_stop_at(gate, GATE_POINT_REQUEST, gate_next_epoch(gate),
                     "go-ahead for CHECKPOINT_REQUEST (ingress stopped)");
}

static void
on_send(Gate *gate)
{
    View message = gate_item_take(&gate->forward_item);

    if (gate_is_caught(gate, GATE_STEP_SEND))
        return;
    gate_send(gate, PEER_MESSAGE_DATA_FORWARD, message);
    gate_transfer_begin(gate);
    gate_stop_at(gate, GATE_POINT_MARK, gate_next_epoch(gate),
                 "mark of the held output, or more of the checkpoint from QEMU");
}

static void
on_tail_end(Gate *gate)
{
    gate->in_transfer = false;
    gate->tail_over = true;
    gate->under_way.pages = colo_forward_pages(gate->forward);
    gate->under_way.bytes = colo_forward_bytes(gate->forward);
    try_end(gate);
}

static void
on_forward_event(Gate *gate, ColoForwardEvent event)
{
    switch (event) {
    case COLO_FORWARD_REQUEST:
        on_request(gate);
        break;
    case COLO_FORWARD_SEND:
        on_send(gate);
        break;
    case COLO_FORWARD_TAIL_END:
        on_tail_end(gate);
        break;
    case COLO_FORWARD_NONE:
    case COLO_FORWARD_DEVICE_STATE:
    case COLO_FORWARD_RAM_END:
    case COLO_FORWARD_SIZE:
        break;
    }
}

static void
stand_before_state(Gate *gate, View rest)
{
    gate_notify(gate, GATE_NOTICE_RAM_DONE, 0);
    if (!gate_is_live(gate))
        return;
    gate->vm_held = true;
    gate_vm_set_reading(gate, false);
    gate_stop_at_state(gate, rest);
}

static void
primary_vm_bytes(Gate *gate, uint8_t *bytes, size_t len)
{
    View in = view_of(bytes, len);
    View run = view_of(bytes, 0); /* parsed, to be passed on */

    if (gate->in_transfer)
        gate_await_message(gate, "more of the checkpoint from QEMU");
    while (in.len > 0 && gate_is_live(gate) && !gate->stalled) {
        bool direct = !gate->armed || gate->in_transfer;
        ColoForwardEvent event;
        View part;

        if (!forward_is_due(gate)) {
            gate_fail(gate, GATE_ERROR_STREAM, "PVM's QEMU sent %zu bytes out of turn", in.len);
            return;
        }
        if (!gate_parse_forward(gate, &in, &event, &part))
            return;
        if (gate->in_transfer)
            gate_transfer_hash(gate, part);
        if (event == COLO_FORWARD_TAIL_END && gate->corrupt_next) {
            bytes[len - in.len - 1] ^= 1;
            gate->corrupt_next = false;
        }
        if (direct)
            run.len += part.len;
        else
            gate_item_add(&gate->forward_item, part);
        if (event == COLO_FORWARD_TAIL_END || event == COLO_FORWARD_DEVICE_STATE || !direct)
            pass_forward(gate, &run, in.data);
        if (event == COLO_FORWARD_DEVICE_STATE) {
            stand_before_state(gate, in);
            return;
        }
        on_forward_event(gate, event);
    }
    if (gate_is_live(gate) && !gate->stalled)
        pass_forward(gate, &run, NULL);
    if (gate_is_live(gate) && gate->stalled)
        gate_vm_set_reading(gate, false);
}

/* --- Return direction ------------------------------------------------------------------------ */

static void
on_ready(Gate *gate)
{
    g_autoptr(GError) error = NULL;

    gate->ready_seen = true;
    if (!colo_forward_set_ready(gate->forward, &error))
        gate_fail(gate, GATE_ERROR_STREAM, "SVM's return channel: %s", error->message);
    else
        gate_stop_at(gate, GATE_POINT_READY, 0, "go-ahead for CHECKPOINT_READY (output held)");
}

/* One of REPLY, RECEIVED, LOADED: passed on (the latter two unless QEMU has been given them), and
 * the next step begins. */
static void
pass_return(Gate *gate, GateStep step, GateStep next)
{
    View item = gate_item_take(&gate->return_item);

    if (gate_is_caught(gate, step))
        return;
    gate->step = next;
    if (next == GATE_STEP_SEND)
        gate_await_message(gate, "VMSTATE_SEND from QEMU");
    else if (next == GATE_STEP_LOAD)
        gate_await_peer(gate, "VMSTATE_LOADED from the peer");
    else
        gate_await_nothing(gate, GATE_TIMER_MESSAGE);
    if (!gate->vm_answered) {
        gate_vm_write(gate, item);
    } else if (next == GATE_STEP_IDLE) {
        gate->vm_answered = false;
        gate_vm_set_reading(gate, true);
    }
}

static void
on_return_event(Gate *gate, ColoReturnEvent event)
{
    switch (event) {
    case COLO_RETURN_NONE:
        break;
    case COLO_RETURN_PATH_MESSAGE:
        gate_vm_write(gate, gate_item_take(&gate->return_item));
        break;
    case COLO_RETURN_READY:
        (void)gate_item_take(&gate->return_item);
        on_ready(gate);
        break;
    case COLO_RETURN_REPLY:
        pass_return(gate, GATE_STEP_REPLY, GATE_STEP_SEND);
        break;
    case COLO_RETURN_RECEIVED:
        pass_return(gate, GATE_STEP_RELEASE, GATE_STEP_LOAD);
        break;
    case COLO_RETURN_LOADED:
        pass_return(gate, GATE_STEP_LOAD, GATE_STEP_IDLE);
        if (gate_is_live(gate) && !gate->stalled) {
            gate_figures_loaded(gate);
            gate_notify(gate, GATE_NOTICE_LOADED, gate->epoch);
        }
        break;
    }
}

static void
on_data_return(Gate *gate, View in)
{
    while (in.len > 0 && gate_is_live(gate) && !gate->stalled) {
        ColoReturnEvent event;
        View part;

        if (!return_is_due(gate)) {
            gate_fail(gate, GATE_ERROR_PROTOCOL, "the peer sent %zu return bytes out of turn",
                      in.len);
            return;
        }
        if (!gate_parse_return(gate, &in, &event, &part))
            return;
        gate_item_add(&gate->return_item, part);
        on_return_event(gate, event);
    }
}

static void
on_committed(Gate *gate, View payload)
{
    uint64_t epoch = 0;

    (void)view_get_be64(&payload, &epoch);
    if (gate->step != GATE_STEP_COMMIT || epoch != gate_next_epoch(gate)) {
        gate_fail(gate, GATE_ERROR_PROTOCOL, "COMMITTED(%" G_GUINT64_FORMAT ") out of turn", epoch);
        return;
    }
    if (gate_is_caught(gate, GATE_STEP_COMMIT))
        return;
    gate->epoch = epoch;
    gate->step = GATE_STEP_RELEASE;
    gate->under_way.committed_ns = clock_now_ns();
    gate_await_peer(gate, "VMSTATE_RECEIVED from the peer");
    gate_notify(gate, GATE_NOTICE_COMMITTED, epoch);
}

static void
primary_peer_message(Gate *gate, PeerMessageType type, View payload)
{
    if (type == PEER_MESSAGE_DATA_RETURN)
        on_data_return(gate, payload);
    else if (type == PEER_MESSAGE_COMMITTED)
        on_committed(gate, payload);
    else
        gate_fail(gate, GATE_ERROR_PROTOCOL, "%s is not for a primary",
                  peer_message_type_name(type));
}

/* --- Points ---------------------------------------------------------------------------------- */

static void
pass_state(Gate *gate)
{
    g_autoptr(GByteArray) rest = gate_take_unparsed(gate);

    gate->vm_held = false;
    gate_vm_set_reading(gate, true);
    gate_initial_progress(gate);
    if (rest->len > 0)
        primary_vm_bytes(gate, rest->data, rest->len);
}

static void
pass_ready(Gate *gate)
{
    uint8_t generation[PEER_EPOCH_BYTES], ready[4];

    be64_store(generation, gate->generation);
    be32_store(ready, COLO_MESSAGE_CHECKPOINT_READY);
    gate->armed = true;
    gate_await_nothing(gate, GATE_TIMER_MESSAGE);
    gate_send(gate, PEER_MESSAGE_ARM, view_of(generation, sizeof(generation)));
    gate_vm_write(gate, view_of(ready, sizeof(ready)));
    if (gate_is_live(gate))
        gate_notify(gate, GATE_NOTICE_READY, 0);
}

static void
primary_pass_point(Gate *gate, GatePoint point)
{
    switch (point) {
    case GATE_POINT_STATE:
        pass_state(gate);
        break;
    case GATE_POINT_READY:
        pass_ready(gate);
        break;
    case GATE_POINT_REQUEST:
        gate->step = GATE_STEP_REPLY;
        gate_await_peer(gate, "CHECKPOINT_REPLY from the peer");
        gate_send_message(gate, PEER_MESSAGE_DATA_FORWARD, COLO_MESSAGE_CHECKPOINT_REQUEST);
        break;
    case GATE_POINT_MARK:
        gate->step = GATE_STEP_TRANSFER;
        gate_await_message(gate, "more of the checkpoint from QEMU");
        try_end(gate);
        break;
    case GATE_POINT_QUIESCE:
    case GATE_POINT_REPLY:
    case GATE_POINT_COMMIT:
    case GATE_N_POINTS:
        g_assert_not_reached();
    }
}

static bool
primary_defer_peer_loss(Gate *gate G_GNUC_UNUSED)
{
    return false;
}

Gate *
gate_primary_new(int vm_fd, GIOStream *channel_stream, guint64 generation, const GateConfig *config,
                 const GateHandlers *handlers, gpointer user_data)
{
    static const GateSide side = {primary_vm_bytes, primary_peer_message, primary_pass_point,
                                  primary_defer_peer_loss};
    Gate *gate = gate_new(&side, vm_fd, channel_stream, config, handlers, user_data);

    gate->generation = generation;
    return gate;
}
