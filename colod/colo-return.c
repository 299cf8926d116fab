/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-return.c - parser of the secondary-to-primary direction of QEMU's migration stream */
/*
 * Theory of operation
 *
 * With capability return-path (QEMU 11 insists on it) the direction opens with return-path
 * messages, be16 type, be16 length, payload: PONG answers the ping of the stream's beginning, SHUT
 * ends the phase. After SHUT, or from the first byte without the capability, it is COLO messages
 * only: READY once, then REPLY, RECEIVED, LOADED for each checkpoint.
 *
 * One function per state over one table, as in colo-forward.c.
 */
#include "colo-stream.h"
#include "colo-gather.h"

/* enum mig_rp_message_type, QEMU migration/migration.h. The others belong to postcopy. */
enum {
    RP_SHUT = 1,
    RP_PONG = 2,
    RP_SWITCHOVER_ACK = 7,
    RP_HEADER_BYTES = 4,
    RP_VALUE_BYTES = 4,
};

typedef enum ReturnState {
    STATE_FIRST, /* raw or return-path? */
    STATE_PATH_HEADER,
    STATE_PONG_VALUE,
    STATE_SHUT_VALUE,
    STATE_READY,
    STATE_REPLY,
    STATE_RECEIVED,
    STATE_LOADED,
} ReturnState;

struct ColoReturn {
    ReturnState state;
    uint64_t offset; /* of the item under way */
    ColoGather gather;
    GError *error; /* set: dead */
};

typedef struct ReturnStep {
    uint8_t need; /* bytes of the item */
    gboolean (*run)(ColoReturn *parser, const uint8_t *item, ColoReturnEvent *ret_event,
                    GError **error);
} ReturnStep;

ColoReturn *
colo_return_new(void)
{
    return g_new0(ColoReturn, 1);
}

void
colo_return_free(ColoReturn *parser)
{
    if (!parser)
        return;
    g_clear_error(&parser->error);
    g_free(parser);
}

static gboolean
path_error(const ColoReturn *parser, const char *what, unsigned type, unsigned value,
           GError **error)
{
    g_set_error(error, COLO_STREAM_ERROR, COLO_STREAM_ERROR_RETURN_PATH,
                "%s: return-path message of type %u, length or value %u (offset %" G_GUINT64_FORMAT
                ")",
                what, type, value, parser->offset);
    return FALSE;
}

static gboolean
run_path_header(ColoReturn *parser, const uint8_t *item, ColoReturnEvent *ret_event, GError **error)
{
    unsigned type = be16_load(item);
    unsigned length = be16_load(item + 2);

    if (type != RP_SHUT && type != RP_PONG && type != RP_SWITCHOVER_ACK)
        return path_error(parser, "unknown or not for COLO", type, length, error);
    if (length != (type == RP_SWITCHOVER_ACK ? 0 : RP_VALUE_BYTES))
        return path_error(parser, "malformed", type, length, error);

    if (type == RP_SWITCHOVER_ACK)
        *ret_event = COLO_RETURN_PATH_MESSAGE;
    else
        parser->state = type == RP_SHUT ? STATE_SHUT_VALUE : STATE_PONG_VALUE;
    return TRUE;
}

static gboolean
run_first(ColoReturn *parser, const uint8_t *item, ColoReturnEvent *ret_event, GError **error)
{
    if (be32_load(item) == COLO_MESSAGE_CHECKPOINT_READY) {
        parser->state = STATE_REPLY;
        *ret_event = COLO_RETURN_READY;
        return TRUE;
    }
    parser->state = STATE_PATH_HEADER;
    return run_path_header(parser, item, ret_event, error);
}

static gboolean
run_pong_value(ColoReturn *parser, const uint8_t *item G_GNUC_UNUSED, ColoReturnEvent *ret_event,
               GError **error G_GNUC_UNUSED)
{
    parser->state = STATE_PATH_HEADER;
    *ret_event = COLO_RETURN_PATH_MESSAGE;
    return TRUE;
}

static gboolean
run_shut_value(ColoReturn *parser, const uint8_t *item, ColoReturnEvent *ret_event, GError **error)
{
    uint32_t value = be32_load(item);

    if (value != 0)
        return path_error(parser, "the secondary's QEMU reports a failed load", RP_SHUT, value,
                          error);
    parser->state = STATE_READY;
    *ret_event = COLO_RETURN_PATH_MESSAGE;
    return TRUE;
}

static gboolean
run_message(ColoReturn *parser, const uint8_t *item, ColoReturnEvent *ret_event, GError **error)
{
    static const struct {
        ColoMessage due;
        ColoReturnEvent event;
        ReturnState next;
    } turns[] = {
        [STATE_READY] = {COLO_MESSAGE_CHECKPOINT_READY, COLO_RETURN_READY, STATE_REPLY},
        [STATE_REPLY] = {COLO_MESSAGE_CHECKPOINT_REPLY, COLO_RETURN_REPLY, STATE_RECEIVED},
        [STATE_RECEIVED] = {COLO_MESSAGE_VMSTATE_RECEIVED, COLO_RETURN_RECEIVED, STATE_LOADED},
        [STATE_LOADED] = {COLO_MESSAGE_VMSTATE_LOADED, COLO_RETURN_LOADED, STATE_REPLY},
    };

    if (!colo_message_check(item, turns[parser->state].due, parser->offset, error))
        return FALSE;
    *ret_event = turns[parser->state].event;
    parser->state = turns[parser->state].next;
    return TRUE;
}

static const ReturnStep steps[] = {
    [STATE_FIRST] = {RP_HEADER_BYTES, run_first},
    [STATE_PATH_HEADER] = {RP_HEADER_BYTES, run_path_header},
    [STATE_PONG_VALUE] = {RP_VALUE_BYTES, run_pong_value},
    [STATE_SHUT_VALUE] = {RP_VALUE_BYTES, run_shut_value},
    [STATE_READY] = {COLO_MESSAGE_BYTES, run_message},
    [STATE_REPLY] = {COLO_MESSAGE_BYTES, run_message},
    [STATE_RECEIVED] = {COLO_MESSAGE_BYTES, run_message},
    [STATE_LOADED] = {COLO_MESSAGE_BYTES, run_message},
};

gboolean
colo_return_parse(ColoReturn *parser, View *in, ColoReturnEvent *ret_event, GError **error)
{
    ColoReturnEvent event = COLO_RETURN_NONE;

    while (!parser->error && event == COLO_RETURN_NONE) {
        const ReturnStep *step = &steps[parser->state];
        const uint8_t *item = colo_gather_take(&parser->gather, in, step->need);

        if (!item)
            break;
        if (step->run(parser, item, &event, &parser->error))
            parser->offset += step->need;
    }
    if (parser->error) {
        g_propagate_error(error, g_error_copy(parser->error));
        return FALSE;
    }
    *ret_event = event;
    return TRUE;
}
