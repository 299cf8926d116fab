/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-parse.h - bytes to lines to QMP messages; pure, without I/O or loop */
#pragma once

#include "bytes.h"
#include "qmp-error.h"

#include <glib.h>

#include <stdbool.h>
#include <stdint.h>

struct json_object;

/* Longest message we accept from QEMU. query-qmp-schema, the longest answer we know, is 0.25 MB in
 * QEMU 11; everything above this is a fault of the other side. */
#define QMP_MESSAGE_BYTES_MAX ((size_t)16 << 20)

/* Deepest nesting. A backing chain of n images costs about 2n levels in query-named-block-nodes;
 * libjson-c recurses when it frees a tree, so this also bounds our stack. */
#define QMP_MESSAGE_DEPTH_MAX 128

/*
 * QmpSplitter: cuts a byte stream into lines. Bounded: it never holds more than the maximum it was
 * made with plus one feed, also while a line never ends. Any one thread.
 */
typedef struct QmpSplitter QmpSplitter;

typedef enum QmpSplit {
    QMP_SPLIT_LINE,  /* a line was taken */
    QMP_SPLIT_MORE,  /* no whole line is left: feed */
    QMP_SPLIT_ERROR, /* QMP_ERROR_TOO_LARGE; stays so */
} QmpSplit;

QmpSplitter *qmp_splitter_new(size_t message_bytes_max);
void qmp_splitter_free(QmpSplitter *splitter);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QmpSplitter, qmp_splitter_free)

/** Appends bytes of the stream; they are copied. Take all lines out before feeding again: that is
 * what keeps the memory bounded. */
void qmp_splitter_feed(QmpSplitter *splitter, View bytes);

/** Takes the next line that is not blank, without its line end and the white space before it.
 *
 * @ret_line: written on QMP_SPLIT_LINE only; borrowed, good until the next call on @splitter.
 * Errors: QMP_ERROR_TOO_LARGE, a line, ended or not, is longer than the maximum.
 */
QmpSplit qmp_splitter_next(QmpSplitter *splitter, View *ret_line, GError **error);

/** What was fed and not taken yet: the beginning of an unfinished line. Borrowed, as above. */
View qmp_splitter_rest(const QmpSplitter *splitter);

typedef enum QmpMessageType {
    QMP_MESSAGE_GREETING,
    QMP_MESSAGE_RETURN,
    QMP_MESSAGE_ERROR,
    QMP_MESSAGE_EVENT,
} QmpMessageType;

/* One message. Pointers other than root borrow from root. */
typedef struct QmpMessage {
    QmpMessageType type;
    struct json_object *root;  /* owned; qmp_message_clear() */
    uint64_t id;               /* RETURN, ERROR: 0 = none, or none that we could have given */
    struct json_object *value; /* RETURN: the value (NULL for JSON null); EVENT: data or NULL */
    const char *name;          /* EVENT: its name; ERROR: its class */
    const char *desc;          /* ERROR */
    int64_t timestamp_us;      /* EVENT: QEMU's real time in microseconds; -1 = it has none */
    struct {
        int major, minor, micro;
        const char *package; /* "" when absent */
        bool offers_oob;
    } greeting; /* GREETING */
} QmpMessage;

/** Reads one line as a QMP message.
 *
 * @ret_message: written on success only; the caller clears it.
 * Errors: QMP_ERROR_PROTOCOL with an excerpt and what was expected: not UTF-8, not JSON, nested
 * deeper than QMP_MESSAGE_DEPTH_MAX, not an object, not exactly one of "QMP", "return", "error",
 * "event", or one of them of the wrong shape.
 * Source: QEMU docs/interop/qmp-spec, "Server Greeting", "Issuing Commands", "Commands Responses",
 * "Asynchronous events".
 */
gboolean qmp_message_parse(View line, QmpMessage *ret_message, GError **error);

/** Frees what @message owns. */
void qmp_message_clear(QmpMessage *message);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(QmpMessage, qmp_message_clear)

/** A short, printable, quotable beginning of @bytes. Return: owned by the caller. */
char *qmp_excerpt(View bytes);
