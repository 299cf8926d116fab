/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-stream.c - what both parsers of QEMU's migration stream share */
#include "colo-stream.h"
#include "colo-gather.h"

#include <assert.h>

G_DEFINE_QUARK(colo_stream_error_quark, colo_stream_error)

const char *
colo_message_name(uint32_t message)
{
    static const char *const names[] = {
        [COLO_MESSAGE_CHECKPOINT_READY] = "CHECKPOINT_READY",
        [COLO_MESSAGE_CHECKPOINT_REQUEST] = "CHECKPOINT_REQUEST",
        [COLO_MESSAGE_CHECKPOINT_REPLY] = "CHECKPOINT_REPLY",
        [COLO_MESSAGE_VMSTATE_SEND] = "VMSTATE_SEND",
        [COLO_MESSAGE_VMSTATE_SIZE] = "VMSTATE_SIZE",
        [COLO_MESSAGE_VMSTATE_RECEIVED] = "VMSTATE_RECEIVED",
        [COLO_MESSAGE_VMSTATE_LOADED] = "VMSTATE_LOADED",
    };

    static_assert(G_N_ELEMENTS(names) == COLO_MESSAGE_VMSTATE_LOADED + 1, "a message has no name");
    return message < G_N_ELEMENTS(names) ? names[message] : "unknown";
}

const uint8_t *
colo_gather_take(ColoGather *gather, View *in, size_t need)
{
    const uint8_t *bytes;

    g_assert(need > gather->have && need <= sizeof(gather->bytes));
    if (gather->have == 0 && view_take(in, need, &bytes))
        return bytes;

    size_t part = MIN(need - gather->have, in->len);

    /* An empty view may have no address at all, and memcpy() from NULL is undefined. */
    if (part == 0 || !view_take(in, part, &bytes))
        return NULL;
    memcpy(gather->bytes + gather->have, bytes, part);
    gather->have += part;
    if (gather->have < need)
        return NULL;
    gather->have = 0;
    return gather->bytes;
}

gboolean
colo_message_check(const uint8_t bytes[static COLO_MESSAGE_BYTES], ColoMessage due, uint64_t offset,
                   GError **error)
{
    uint32_t message = be32_load(bytes);

    if (message == (uint32_t)due)
        return TRUE;
    if (message <= COLO_MESSAGE_VMSTATE_LOADED)
        g_set_error(error, COLO_STREAM_ERROR, COLO_STREAM_ERROR_ORDER,
                    "%s out of turn, %s was due (offset %" G_GUINT64_FORMAT ")",
                    colo_message_name(message), colo_message_name(due), offset);
    else
        g_set_error(error, COLO_STREAM_ERROR, COLO_STREAM_ERROR_MESSAGE,
                    "0x%08x is no COLO message, %s was due (offset %" G_GUINT64_FORMAT ")", message,
                    colo_message_name(due), offset);
    return FALSE;
}
