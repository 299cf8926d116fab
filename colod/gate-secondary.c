/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* gate-secondary.c - the secondary's end of the checkpoint tunnel, where checkpoints are committed
 */
/*
 * Theory of operation
 *
 * Forward (the peer to SVM's QEMU): the initial migration, SEND and the RAM delta go on as they
 * come, REQUEST after GATE_POINT_QUIESCE; QEMU only caches the delta. From the delta's EOF byte on
 * everything is kept back: VMSTATE_SIZE, its length and the device state are the tail. When END(n,
 * length, hash) fits what arrived the owner does its part at GATE_POINT_COMMIT; then the tail is
 * let through and COMMITTED(n) is sent in the same breath. That is the commit point: before it
 * nothing of checkpoint n has touched SVM, after it the load is finished whatever becomes of the
 * peer.
 *
 * In the initial migration nothing from the first byte of device state on goes to SVM's QEMU before
 * GATE_POINT_STATE is passed: with it SVM can run.
 *
 * Return (SVM's QEMU to the peer): one item at a time; REPLY waits for GATE_POINT_REPLY.
 *
 * gate_load(): NEVER until ARM; CLEAN; LOADING from the moment the tail is let through until SVM
 * says LOADED; BROKEN if it never says so. A peer that is lost, or misbehaves, while LOADING is
 * remembered in peer_lost and reported behind LOADED; GATE_TIMER_MESSAGE limits that wait too.
 *
 * Caught by the stall hook, SVM's return direction is still followed, because whether a load ended
 * is true whether or not it is told.
 */
#include "gate-private.h"

#include "clock.h"

static bool
forward_is_due(const Gate *gate)
{
    if (!gate->ready_seen)
        return true;
    if (!gate->armed)
        return false;
    return gate->step == GATE_STEP_IDLE || gate->step == GATE_STEP_SEND || gate->in_transfer;
}

static bool
return_is_due(const Gate *gate)
{
    if (!gate->ready_seen || gate->stalled)
        return true;
    if (gate->standing)
        return false;
    return gate->step == GATE_STEP_REPLY || gate->step == GATE_STEP_RELEASE ||
           gate->step == GATE_STEP_LOAD;
}

/* --- Forward direction ----------------------------------------------------------------------- */

static void
on_request(Gate *gate)
{
    (void)gate_item_take(&gate->forward_item);
    gate->step = GATE_STEP_REQUEST;
    gate->under_way = (GateFigures){.request_ns = clock_now_ns()};
    if (!gate_is_caught(gate, GATE_STEP_REQUEST))
        gate_stop_at(gate, GATE_POINT_QUIESCE, gate_next_epoch(gate),
                     "go-ahead for CHECKPOINT_REQUEST (SVM's input stopped)");
}

static void
on_send(Gate *gate)
{
    View message = gate_item_take(&gate->forward_item);

    if (gate_is_caught(gate, GATE_STEP_SEND))
        return;
    gate->step = GATE_STEP_TRANSFER;
    gate_transfer_begin(gate);
    gate->timers[GATE_TIMER_TRANSFER].from_peer = true;
    gate_await_peer(gate, "more of the checkpoint from the peer");
    gate_vm_write(gate, message);
}

static void
on_tail_end(Gate *gate)
{
    gate->in_transfer = false;
    gate->holding = false;
    gate->tail_over = true;
    gate->under_way.pages = colo_forward_pages(gate->forward);
    gate->under_way.bytes = colo_forward_bytes(gate->forward);
}

/* Room in one piece for what VMSTATE_SIZE announced; the parser has refused more than the limit. */
static void
reserve_tail(Gate *gate, guint bytes)
{
    guint head_bytes = gate->tail->len;

    g_byte_array_set_size(gate->tail, head_bytes + bytes);
    g_byte_array_set_size(gate->tail, head_bytes);
}

static void
on_forward_event(Gate *gate, ColoForwardEvent event)
{
    switch (event) {
    case COLO_FORWARD_NONE:
        break;
    case COLO_FORWARD_DEVICE_STATE:
        gate->state_due = true;
        gate_initial_progress(gate);
        gate_notify(gate, GATE_NOTICE_RAM_DONE, 0);
        break;
    case COLO_FORWARD_REQUEST:
        on_request(gate);
        break;
    case COLO_FORWARD_SEND:
        on_send(gate);
        break;
    case COLO_FORWARD_RAM_END:
        g_byte_array_set_size(gate->tail, 0);
        gate->holding = true;
        break;
    case COLO_FORWARD_SIZE:
        reserve_tail(gate, (guint)colo_forward_tail_bytes(gate->forward));
        break;
    case COLO_FORWARD_TAIL_END:
        on_tail_end(gate);
        break;
    }
}

/* What comes while the owner works at GATE_POINT_STATE. */
static void
keep_unparsed(Gate *gate, View in)
{
    if (in.len > gate->config.tail_max_bytes ||
        gate->unparsed->len > gate->config.tail_max_bytes - in.len)
        gate_fail(gate, GATE_ERROR_STREAM,
                  "initial device state of more than %" G_GUINT64_FORMAT " bytes",
                  gate->config.tail_max_bytes);
    else
        g_byte_array_append(gate->unparsed, in.data, (guint)in.len);
}

static void
on_data_forward(Gate *gate, View in)
{
    View run = view_of(in.data, 0); /* parsed, to be passed on */

    if (gate->in_transfer)
        gate_await_peer(gate, "more of the checkpoint from the peer");
    while (in.len > 0 && gate_is_live(gate) && !gate->stalled) {
        bool direct = !gate->ready_seen || (gate->in_transfer && !gate->holding);
        bool holding = gate->holding;
        ColoForwardEvent event;
        View part;

        if (gate->state_due) {
            gate->state_due = false;
            gate_vm_write(gate, run);
            if (gate_is_live(gate))
                gate_stop_at_state(gate, in);
            return;
        }
        if (!forward_is_due(gate)) {
            gate_fail_peer(gate, GATE_ERROR_PROTOCOL,
                           "the peer sent %zu bytes of the stream out of turn", in.len);
            return;
        }
        if (!gate_parse_forward(gate, &in, &event, &part))
            return;
        if (gate->in_transfer)
            gate_transfer_hash(gate, part);
        if (holding)
            g_byte_array_append(gate->tail, part.data, (guint)part.len);
        else if (direct)
            run.len += part.len;
        else
            gate_item_add(&gate->forward_item, part);
        if (!direct || event == COLO_FORWARD_RAM_END) {
            gate_vm_write(gate, run);
            run = view_of(in.data, 0);
        }
        if (gate_is_live(gate))
            on_forward_event(gate, event);
    }
    if (gate_is_live(gate) && !gate->stalled)
        gate_vm_write(gate, run);
}

/* --- END and the commit point ---------------------------------------------------------------- */

/* Compares END with what arrived. Failing here is the last chance: nothing was applied. */
static bool
end_fits(Gate *gate, View payload)
{
    uint64_t epoch = 0, length = 0, hash = 0;
    uint64_t digest = gate_transfer_digest(gate);
    uint64_t arrived = colo_forward_bytes(gate->forward);

    if (!view_get_be64(&payload, &epoch) || !view_get_be64(&payload, &length) ||
        !view_get_be64(&payload, &hash))
        return false; /* peer-wire.c has checked the length */
    if (epoch == gate_next_epoch(gate) && gate->tail_over && length == arrived && hash == digest)
        return true;
    gate_fail(gate, GATE_ERROR_CHECKSUM,
              "END says epoch %" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT
              " bytes, hash %016" G_GINT64_MODIFIER "x; arrived %" G_GUINT64_FORMAT
              " bytes%s, hash %016" G_GINT64_MODIFIER "x",
              epoch, length, hash, arrived, gate->tail_over ? "" : " and not the tail's end",
              digest);
    return false;
}

static void
on_end(Gate *gate, View payload)
{
    if (gate->step != GATE_STEP_TRANSFER) {
        gate_fail_peer(gate, GATE_ERROR_PROTOCOL, "END out of turn");
        return;
    }
    if (gate_is_caught(gate, GATE_STEP_TRANSFER) || !end_fits(gate, payload))
        return;
    gate->tail_over = false;
    gate->step = GATE_STEP_COMMIT;
    gate_await_nothing(gate, GATE_TIMER_TRANSFER);
    if (!gate_is_caught(gate, GATE_STEP_COMMIT))
        gate_stop_at(gate, GATE_POINT_COMMIT, gate_next_epoch(gate),
                     "go-ahead for the commit (overlays emptied, rewriter switched)");
}

static void
commit(Gate *gate)
{
    uint8_t epoch[PEER_EPOCH_BYTES];

    gate->epoch = gate_next_epoch(gate);
    gate->step = GATE_STEP_RELEASE;
    gate->load = GATE_LOAD_LOADING;
    gate->under_way.committed_ns = clock_now_ns();
    be64_store(epoch, gate->epoch);
    gate_await_message(gate, "VMSTATE_RECEIVED from QEMU");
    gate_vm_write(gate, view_of(gate->tail->data, gate->tail->len));
    if (!gate_is_live(gate))
        return;
    g_byte_array_set_size(gate->tail, 0);
    gate_send(gate, PEER_MESSAGE_COMMITTED, view_of(epoch, sizeof(epoch)));
    gate_notify(gate, GATE_NOTICE_COMMITTED, gate->epoch);
}

static void
on_arm(Gate *gate)
{
    if (!gate->ready_seen || gate->armed) {
        gate_fail_peer(gate, GATE_ERROR_PROTOCOL, "ARM out of turn");
        return;
    }
    gate->armed = true;
    gate->load = GATE_LOAD_CLEAN;
    gate_await_nothing(gate, GATE_TIMER_MESSAGE);
    gate_notify(gate, GATE_NOTICE_ARMED, 0);
}

static void
secondary_peer_message(Gate *gate, PeerMessageType type, View payload)
{
    if (type == PEER_MESSAGE_DATA_FORWARD && gate->standing && gate->point == GATE_POINT_STATE)
        keep_unparsed(gate, payload);
    else if (type == PEER_MESSAGE_DATA_FORWARD)
        on_data_forward(gate, payload);
    else if (type == PEER_MESSAGE_END)
        on_end(gate, payload);
    else if (type == PEER_MESSAGE_ARM)
        on_arm(gate);
    else
        gate_fail_peer(gate, GATE_ERROR_PROTOCOL, "%s is not for a secondary",
                       peer_message_type_name(type));
}

/* --- Return direction ------------------------------------------------------------------------ */

static void
on_ready(Gate *gate)
{
    g_autoptr(GError) error = NULL;

    gate->ready_seen = true;
    if (!colo_forward_set_ready(gate->forward, &error)) {
        gate_fail(gate, GATE_ERROR_STREAM, "SVM's return channel: %s", error->message);
        return;
    }
    gate_await_peer(gate, "ARM from the peer");
    gate_send_message(gate, PEER_MESSAGE_DATA_RETURN, COLO_MESSAGE_CHECKPOINT_READY);
    gate_notify(gate, GATE_NOTICE_READY, 0);
}

static void
on_reply(Gate *gate)
{
    if (!gate_is_caught(gate, GATE_STEP_REPLY))
        gate_stop_at(gate, GATE_POINT_REPLY, gate_next_epoch(gate),
                     "go-ahead for CHECKPOINT_REPLY (SVM's port drained)");
}

static void
on_received(Gate *gate)
{
    if (gate_is_caught(gate, GATE_STEP_RELEASE))
        return;
    gate->step = GATE_STEP_LOAD;
    gate_await_message(gate, "VMSTATE_LOADED from QEMU");
    gate_send_message(gate, PEER_MESSAGE_DATA_RETURN, COLO_MESSAGE_VMSTATE_RECEIVED);
}

static void
on_loaded(Gate *gate)
{
    gate->load = GATE_LOAD_CLEAN;
    if (!gate_is_caught(gate, GATE_STEP_LOAD)) {
        gate->step = GATE_STEP_IDLE;
        gate_await_nothing(gate, GATE_TIMER_MESSAGE);
        gate_figures_loaded(gate);
        gate_send_message(gate, PEER_MESSAGE_DATA_RETURN, COLO_MESSAGE_VMSTATE_LOADED);
    } else if (!gate->peer_lost) {
        return;
    }
    if (!gate_is_live(gate))
        return;
    gate_notify(gate, GATE_NOTICE_LOADED, gate->epoch);
    if (gate_is_live(gate) && gate->peer_lost)
        gate_report_peer_loss(gate);
}

static void
on_return_event(Gate *gate, ColoReturnEvent event)
{
    View item = gate->return_item.len && event != COLO_RETURN_NONE
                    ? gate_item_take(&gate->return_item)
                    : view_of(NULL, 0);

    switch (event) {
    case COLO_RETURN_NONE:
        break;
    case COLO_RETURN_PATH_MESSAGE:
        gate_send(gate, PEER_MESSAGE_DATA_RETURN, item);
        break;
    case COLO_RETURN_READY:
        on_ready(gate);
        break;
    case COLO_RETURN_REPLY:
        on_reply(gate);
        break;
    case COLO_RETURN_RECEIVED:
        on_received(gate);
        break;
    case COLO_RETURN_LOADED:
        on_loaded(gate);
        break;
    }
}

static void
secondary_vm_bytes(Gate *gate, uint8_t *bytes, size_t len)
{
    View in = view_of(bytes, len);

    while (in.len > 0 && gate_is_live(gate)) {
        ColoReturnEvent event;
        View part;

        if (!return_is_due(gate)) {
            gate_fail(gate, GATE_ERROR_STREAM, "SVM's QEMU sent %zu bytes out of turn", in.len);
            return;
        }
        if (!gate_parse_return(gate, &in, &event, &part))
            return;
        gate_item_add(&gate->return_item, part);
        on_return_event(gate, event);
    }
}

/* --- Points and loss ------------------------------------------------------------------------- */

static void
pass_request(Gate *gate)
{
    uint8_t request[4];

    be32_store(request, COLO_MESSAGE_CHECKPOINT_REQUEST);
    gate->step = GATE_STEP_REPLY;
    gate_await_message(gate, "CHECKPOINT_REPLY from QEMU");
    gate_vm_write(gate, view_of(request, sizeof(request)));
}

static void
pass_state(Gate *gate)
{
    g_autoptr(GByteArray) state = gate_take_unparsed(gate);

    gate_initial_progress(gate);
    on_data_forward(gate, view_of(state->data, state->len));
}

static void
secondary_pass_point(Gate *gate, GatePoint point)
{
    switch (point) {
    case GATE_POINT_QUIESCE:
        pass_request(gate);
        break;
    case GATE_POINT_STATE:
        pass_state(gate);
        break;
    case GATE_POINT_REPLY:
        gate->step = GATE_STEP_SEND;
        gate_await_peer(gate, "VMSTATE_SEND from the peer");
        gate_send_message(gate, PEER_MESSAGE_DATA_RETURN, COLO_MESSAGE_CHECKPOINT_REPLY);
        break;
    case GATE_POINT_COMMIT:
        commit(gate);
        break;
    case GATE_POINT_READY:
    case GATE_POINT_REQUEST:
    case GATE_POINT_MARK:
    case GATE_N_POINTS:
        g_assert_not_reached();
    }
}

static bool
secondary_defer_peer_loss(Gate *gate)
{
    if (gate->load != GATE_LOAD_LOADING)
        return false;
    if (gate->stalled)
        gate_await_message(gate, "VMSTATE_LOADED from QEMU");
    return true;
}

Gate *
gate_secondary_new(int vm_fd, GIOStream *channel_stream, const GateConfig *config,
                   const GateHandlers *handlers, gpointer user_data)
{
    static const GateSide side = {secondary_vm_bytes, secondary_peer_message, secondary_pass_point,
                                  secondary_defer_peer_loss};

    return gate_new(&side, vm_fd, channel_stream, config, handlers, user_data);
}
