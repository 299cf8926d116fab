/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* gate-parse.c - what both ends take out of the streams: events, items, the checksum of a transfer
 */
#include "gate-private.h"

#include <string.h>
#include <xxhash.h>

bool
gate_parse_forward(Gate *gate, View *in, ColoForwardEvent *ret_event, View *ret_part)
{
    g_autoptr(GError) error = NULL;
    View before = *in;

    if (!colo_forward_parse(gate->forward, in, ret_event, &error)) {
        gate_fail(gate, GATE_ERROR_STREAM, "PVM's stream: %s", error->message);
        return false;
    }
    *ret_part = view_of(before.data, before.len - in->len);
    return true;
}

bool
gate_parse_return(Gate *gate, View *in, ColoReturnEvent *ret_event, View *ret_part)
{
    g_autoptr(GError) error = NULL;
    View before = *in;

    if (!colo_return_parse(gate->back, in, ret_event, &error)) {
        gate_fail(gate, GATE_ERROR_STREAM, "SVM's return channel: %s", error->message);
        return false;
    }
    *ret_part = view_of(before.data, before.len - in->len);
    return true;
}

void
gate_item_add(GateItem *item, View part)
{
    /* The parsers end an item before that. */
    g_assert(part.len <= sizeof(item->bytes) - item->len);
    memcpy(item->bytes + item->len, part.data, part.len);
    item->len += part.len;
}

View
gate_item_take(GateItem *item)
{
    View taken = view_of(item->bytes, item->len);

    item->len = 0;
    return taken;
}

void
gate_transfer_begin(Gate *gate)
{
    (void)XXH3_64bits_reset(gate->hash);
    gate->in_transfer = true;
    gate->tail_over = false;
    gate_await(gate, GATE_TIMER_TRANSFER, gate->config.transfer_timeout_ms,
               "end of the checkpoint's transfer");
}

void
gate_transfer_hash(Gate *gate, View part)
{
    (void)XXH3_64bits_update(gate->hash, part.data, part.len);
}

uint64_t
gate_transfer_digest(const Gate *gate)
{
    return XXH3_64bits_digest(gate->hash);
}
