/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-stream.h - incremental parsers of both directions of QEMU's migration stream under x-colo */
#pragma once

#include "bytes.h"

#include <glib.h>

#define COLO_STREAM_ERROR (colo_stream_error_quark())
GQuark colo_stream_error_quark(void);

typedef enum ColoStreamError {
    COLO_STREAM_ERROR_MAGIC,   /* does not start with QEVM, version 3 */
    COLO_STREAM_ERROR_SECTION, /* unknown section type, or one that COLO does not send here */
    COLO_STREAM_ERROR_FLAGS,   /* page flags that we do not know or that must be off */
    COLO_STREAM_ERROR_MESSAGE, /* not a COLO message */
    COLO_STREAM_ERROR_ORDER,   /* a COLO message out of turn */
    COLO_STREAM_ERROR_SIZE,    /* VMSTATE_SIZE zero or above the limit, name or command too long */
    COLO_STREAM_ERROR_RETURN_PATH, /* unknown or malformed return-path message */
} ColoStreamError;

/* The values of enum COLOMessage, QEMU qapi/migration.json and migration/colo.c. */
typedef enum ColoMessage {
    COLO_MESSAGE_CHECKPOINT_READY = 0,
    COLO_MESSAGE_CHECKPOINT_REQUEST = 1,
    COLO_MESSAGE_CHECKPOINT_REPLY = 2,
    COLO_MESSAGE_VMSTATE_SEND = 3,
    COLO_MESSAGE_VMSTATE_SIZE = 4,
    COLO_MESSAGE_VMSTATE_RECEIVED = 5,
    COLO_MESSAGE_VMSTATE_LOADED = 6,
} ColoMessage;

/** "CHECKPOINT_REQUEST" and so on; "unknown" for other values. Static. */
const char *colo_message_name(uint32_t message);

/* What colo_forward_parse() came to the end of. */
typedef enum ColoForwardEvent {
    COLO_FORWARD_NONE,         /* all input consumed, in the middle of something */
    COLO_FORWARD_DEVICE_STATE, /* initial migration: RAM is over, what follows is opaque until READY
                                */
    COLO_FORWARD_REQUEST,
    COLO_FORWARD_SEND,
    COLO_FORWARD_RAM_END, /* the delta's EOF byte: the tail begins with the next byte */
    COLO_FORWARD_SIZE,    /* VMSTATE_SIZE and its length were read: colo_forward_tail_bytes() */
    COLO_FORWARD_TAIL_END,
} ColoForwardEvent;

typedef struct ColoForward ColoForward;

/** @tail_max_bytes: the largest device state accepted. */
ColoForward *colo_forward_new(uint64_t tail_max_bytes);
void colo_forward_free(ColoForward *parser);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ColoForward, colo_forward_free)

/**
 * Consumes bytes of the primary-to-secondary direction up to and including the next boundary.
 *
 * @in: advanced past what was consumed; all consumed bytes belong before the boundary.
 * Pure: no clock, no I/O; bytes may be split anywhere. Pages are skipped in one step, so the cost
 * is per page record. After an error the parser is dead and answers the same error again. Errors:
 * COLO_STREAM_ERROR; the text gives the byte offset in the stream.
 */
gboolean colo_forward_parse(ColoForward *parser, View *in, ColoForwardEvent *ret_event,
                            GError **error);

/**
 * The return direction said CHECKPOINT_READY: the opaque initial device state ended, COLO messages
 * follow. FALSE with COLO_STREAM_ERROR_ORDER if the initial RAM was not even over.
 */
gboolean colo_forward_set_ready(ColoForward *parser, GError **error);

/* Of the current checkpoint, reset at VMSTATE_SEND. */
uint64_t colo_forward_pages(const ColoForward *parser);
uint64_t colo_forward_bytes(const ColoForward *parser); /* RAM delta, size message and tail */
uint64_t colo_forward_tail_bytes(const ColoForward *parser);

/* What colo_return_parse() came to the end of. */
typedef enum ColoReturnEvent {
    COLO_RETURN_NONE,
    COLO_RETURN_PATH_MESSAGE, /* an ordinary return-path message (PONG, SHUT) */
    COLO_RETURN_READY,
    COLO_RETURN_REPLY,
    COLO_RETURN_RECEIVED,
    COLO_RETURN_LOADED,
} ColoReturnEvent;

typedef struct ColoReturn ColoReturn;

/* Tells a raw return channel (QEMU without `return-path`) from one that opens with return-path
 * messages by its first four bytes: READY is 0, and no return-path message has type 0. */
ColoReturn *colo_return_new(void);
void colo_return_free(ColoReturn *parser);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ColoReturn, colo_return_free)

/** As colo_forward_parse(), for the secondary-to-primary direction; checks the order of messages.
 */
gboolean colo_return_parse(ColoReturn *parser, View *in, ColoReturnEvent *ret_event,
                           GError **error);
