/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-qmp.c - bytes of a hostile QMP server, cut into reads of varying size
 *
 * The first byte is the size of the reads (0: all at once), the rest is the stream. Checked besides
 * memory: the splitter stays within its bound, and what parses has the shape its type promises.
 */
#include "qmp-parse.h"

#include <json.h>
#include <stdlib.h>
#include <string.h>

enum {
    MESSAGE_BYTES_MAX = 4096, /* small, so that short inputs reach the bound */
};

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_message(const QmpMessage *message)
{
    MUST(json_object_is_type(message->root, json_type_object));
    switch (message->type) {
    case QMP_MESSAGE_GREETING:
        MUST(message->greeting.major >= 0 && message->greeting.package);
        break;
    case QMP_MESSAGE_EVENT:
        MUST(message->name && *message->name && message->timestamp_us >= -1);
        MUST(!message->value || json_object_is_type(message->value, json_type_object));
        break;
    case QMP_MESSAGE_ERROR:
        MUST(message->name && message->desc);
        break;
    case QMP_MESSAGE_RETURN:
        MUST(!message->name && !message->desc);
        break;
    }
}

static void
check_line(View line)
{
    g_auto(QmpMessage) message = {.id = 0};
    g_autoptr(GError) error = NULL;

    MUST(line.len > 0 && line.len <= MESSAGE_BYTES_MAX && !memchr(line.data, '\n', line.len));
    if (qmp_message_parse(line, &message, &error)) {
        MUST(!error);
        check_message(&message);
    } else {
        MUST(g_error_matches(error, QMP_ERROR, QMP_ERROR_PROTOCOL));
        MUST(strlen(error->message) < 400 && g_utf8_validate(error->message, -1, NULL));
    }
}

/* False: the stream is over, as it is for the client. */
static bool
drain(QmpSplitter *splitter)
{
    g_autoptr(GError) error = NULL;
    QmpSplit split;
    View line;

    while ((split = qmp_splitter_next(splitter, &line, &error)) == QMP_SPLIT_LINE)
        check_line(line);
    MUST((split == QMP_SPLIT_ERROR) == (error != NULL));
    if (split == QMP_SPLIT_ERROR)
        return false;
    MUST(qmp_splitter_rest(splitter).len <= MESSAGE_BYTES_MAX);
    return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(QmpSplitter) splitter = qmp_splitter_new(MESSAGE_BYTES_MAX);
    View stream = view_of(data, size);
    uint8_t read_bytes;

    if (!view_get_u8(&stream, &read_bytes))
        return 0;
    while (stream.len) {
        size_t len = read_bytes ? MIN((size_t)read_bytes, stream.len) : stream.len;
        const uint8_t *bytes = NULL;

        MUST(view_take(&stream, len, &bytes));
        qmp_splitter_feed(splitter, view_of(bytes, len));
        if (!drain(splitter))
            break;
    }
    return 0;
}
