/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-parse.c - bytes to lines to QMP messages; pure, without I/O or loop */
#include "qmp-parse.h"

#include <json.h>
#include <string.h>

enum {
    EXCERPT_BYTES = 60, /* enough to recognise a message or another protocol in a log line */
};

struct QmpSplitter {
    size_t message_bytes_max;
    GByteArray *bytes;
    size_t taken_bytes;   /* bytes before this were handed out as lines */
    size_t scanned_bytes; /* there is no '\n' in [taken_bytes, scanned_bytes) */
};

QmpSplitter *
qmp_splitter_new(size_t message_bytes_max)
{
    QmpSplitter *splitter = g_new0(QmpSplitter, 1);

    splitter->message_bytes_max = message_bytes_max;
    splitter->bytes = g_byte_array_new();
    return splitter;
}

void
qmp_splitter_free(QmpSplitter *splitter)
{
    if (!splitter)
        return;
    g_byte_array_unref(splitter->bytes);
    g_free(splitter);
}

void
qmp_splitter_feed(QmpSplitter *splitter, View bytes)
{
    if (splitter->taken_bytes) {
        g_byte_array_remove_range(splitter->bytes, 0, (guint)splitter->taken_bytes);
        splitter->scanned_bytes -= splitter->taken_bytes;
        splitter->taken_bytes = 0;
    }
    g_byte_array_append(splitter->bytes, bytes.data, (guint)bytes.len);
}

static View
splitter_view(const QmpSplitter *splitter, size_t from_bytes)
{
    View view = view_of(splitter->bytes->data, splitter->bytes->len);
    bool inside = view_skip(&view, from_bytes);

    g_assert(inside);
    return view;
}

View
qmp_splitter_rest(const QmpSplitter *splitter)
{
    return splitter_view(splitter, splitter->taken_bytes);
}

/* QEMU ends a line with CR LF; the spec lets white space stand between messages. */
static View
trim_right(View line)
{
    while (line.len && strchr(" \t\r", line.data[line.len - 1]) && line.data[line.len - 1])
        line.len--;
    return line;
}

static QmpSplit
too_large(const QmpSplitter *splitter, GError **error)
{
    g_autofree char *excerpt = qmp_excerpt(qmp_splitter_rest(splitter));

    g_set_error(error, QMP_ERROR, QMP_ERROR_TOO_LARGE,
                "QMP message is longer than %zu bytes; it begins with \"%s\"",
                splitter->message_bytes_max, excerpt);
    return QMP_SPLIT_ERROR;
}

/* Takes the bytes up to the next '\n'. False: there is none. */
static bool
take_line(QmpSplitter *splitter, View *ret_line)
{
    View rest = qmp_splitter_rest(splitter);
    View fresh = splitter_view(splitter, splitter->scanned_bytes);
    const uint8_t *end = fresh.len ? memchr(fresh.data, '\n', fresh.len) : NULL;

    if (!end) {
        splitter->scanned_bytes = splitter->bytes->len;
        return false;
    }
    *ret_line = view_of(rest.data, (size_t)(end - rest.data));
    return true;
}

QmpSplit
qmp_splitter_next(QmpSplitter *splitter, View *ret_line, GError **error)
{
    View line;

    while (take_line(splitter, &line)) {
        if (line.len > splitter->message_bytes_max)
            return too_large(splitter, error);
        splitter->taken_bytes += line.len + 1;
        splitter->scanned_bytes = splitter->taken_bytes;
        line = trim_right(line);
        if (line.len) {
            *ret_line = line;
            return QMP_SPLIT_LINE;
        }
    }
    if (qmp_splitter_rest(splitter).len > splitter->message_bytes_max)
        return too_large(splitter, error);
    return QMP_SPLIT_MORE;
}

char *
qmp_excerpt(View bytes)
{
    GString *text = g_string_new(NULL);
    View head = view_of(bytes.data, MIN(bytes.len, (size_t)EXCERPT_BYTES));
    uint8_t byte;

    while (view_get_u8(&head, &byte))
        g_string_append_c(text, g_ascii_isprint((char)byte) ? (char)byte : '.');
    if (bytes.len > EXCERPT_BYTES)
        g_string_append(text, "...");
    return g_string_free(text, FALSE);
}

static gboolean
not_qmp(View line, const char *expected, GError **error)
{
    g_autofree char *excerpt = qmp_excerpt(line);

    g_set_error(error, QMP_ERROR, QMP_ERROR_PROTOCOL, "not QMP: expected %s, got \"%s\"", expected,
                excerpt);
    return FALSE;
}

/* What the tokener found wrong, as an expectation. Returns: owned by the caller. */
static char *
json_expectation(enum json_tokener_error verdict)
{
    const char *what = json_tokener_error_desc(verdict);

    if (verdict == json_tokener_continue)
        what = "it is not finished";
    else if (verdict == json_tokener_success)
        what = "more follows it";
    return g_strdup_printf("one JSON object a line (%s)", what);
}

static bool
begins_as_object(View line)
{
    uint8_t byte = 0;

    while (view_get_u8(&line, &byte) && g_ascii_isspace((char)byte)) {
    }
    return byte == '{';
}

static gboolean
parse_json(View line, struct json_object **ret_root, GError **error)
{
    if (!g_utf8_validate_len((const char *)line.data, line.len, NULL))
        return not_qmp(line, "JSON in UTF-8", error);
    if (!begins_as_object(line))
        return not_qmp(line, "a JSON object", error);
    /* The tokener counts in int. */
    if (line.len > QMP_MESSAGE_BYTES_MAX)
        return not_qmp(line, "a shorter message", error);

    struct json_tokener *tokener = json_tokener_new_ex(QMP_MESSAGE_DEPTH_MAX);

    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);

    struct json_object *root =
        json_tokener_parse_ex(tokener, (const char *)line.data, (int)line.len);
    enum json_tokener_error verdict = json_tokener_get_error(tokener);
    bool whole = json_tokener_get_parse_end(tokener) == line.len;

    json_tokener_free(tokener);
    if (verdict != json_tokener_success || !whole) {
        g_autofree char *expected = json_expectation(verdict);

        json_object_put(root);
        return not_qmp(line, expected, error);
    }
    *ret_root = root;
    return TRUE;
}

static bool
get_object(struct json_object *from, const char *key, struct json_object **ret_object)
{
    struct json_object *found;

    if (!json_object_object_get_ex(from, key, &found) ||
        !json_object_is_type(found, json_type_object))
        return false;
    *ret_object = found;
    return true;
}

/* Strings with a NUL inside are refused: as C strings they would mean something else. */
static bool
get_string(struct json_object *from, const char *key, const char **ret_string)
{
    struct json_object *found;

    if (!json_object_object_get_ex(from, key, &found) ||
        !json_object_is_type(found, json_type_string))
        return false;

    const char *string = json_object_get_string(found);

    if (strlen(string) != (size_t)json_object_get_string_len(found))
        return false;
    *ret_string = string;
    return true;
}

static bool
get_int64(struct json_object *from, const char *key, int64_t *ret_value)
{
    struct json_object *found;

    if (!json_object_object_get_ex(from, key, &found) || !json_object_is_type(found, json_type_int))
        return false;
    *ret_value = json_object_get_int64(found);
    return true;
}

static bool
get_version_part(struct json_object *qemu, const char *key, int *ret_part)
{
    int64_t part;

    if (!get_int64(qemu, key, &part) || part < 0 || part > 9999)
        return false;
    *ret_part = (int)part;
    return true;
}

static bool
offers_oob(struct json_object *greeting)
{
    struct json_object *list;

    if (!json_object_object_get_ex(greeting, "capabilities", &list) ||
        !json_object_is_type(list, json_type_array))
        return false;
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *item = json_object_array_get_idx(list, i);

        if (json_object_is_type(item, json_type_string) &&
            g_str_equal(json_object_get_string(item), "oob"))
            return true;
    }
    return false;
}

static gboolean
parse_greeting(View line, QmpMessage *message, GError **error)
{
    struct json_object *greeting, *version, *qemu;

    if (!get_object(message->root, "QMP", &greeting) ||
        !get_object(greeting, "version", &version) || !get_object(version, "qemu", &qemu) ||
        !get_version_part(qemu, "major", &message->greeting.major) ||
        !get_version_part(qemu, "minor", &message->greeting.minor) ||
        !get_version_part(qemu, "micro", &message->greeting.micro))
        return not_qmp(line, "a greeting with QEMU's version", error);
    message->greeting.package = "";
    (void)get_string(version, "package", &message->greeting.package);
    message->greeting.offers_oob = offers_oob(greeting);
    return TRUE;
}

/* Seconds and microseconds are both -1 when QEMU could not read its clock. */
static int64_t
event_timestamp_us(struct json_object *event)
{
    struct json_object *timestamp;
    int64_t seconds, microseconds, sum;

    if (!get_object(event, "timestamp", &timestamp) || !get_int64(timestamp, "seconds", &seconds) ||
        !get_int64(timestamp, "microseconds", &microseconds) || seconds < 0 || microseconds < 0)
        return -1;
    if (__builtin_mul_overflow(seconds, INT64_C(1000000), &sum) ||
        __builtin_add_overflow(sum, microseconds, &sum))
        return -1;
    return sum;
}

static gboolean
parse_event(View line, QmpMessage *message, GError **error)
{
    if (!get_string(message->root, "event", &message->name) || !*message->name)
        return not_qmp(line, "an event with a name", error);
    if (json_object_object_get_ex(message->root, "data", &message->value) &&
        !json_object_is_type(message->value, json_type_object))
        return not_qmp(line, "an event whose data is an object", error);
    message->timestamp_us = event_timestamp_us(message->root);
    return TRUE;
}

static gboolean
parse_error(View line, QmpMessage *message, GError **error)
{
    struct json_object *body;

    if (!get_object(message->root, "error", &body) || !get_string(body, "class", &message->name) ||
        !get_string(body, "desc", &message->desc))
        return not_qmp(line, "an error with class and desc", error);
    return TRUE;
}

static void
parse_id(QmpMessage *message)
{
    int64_t id;

    if (get_int64(message->root, "id", &id) && id > 0)
        message->id = (uint64_t)id;
}

static gboolean
parse_body(View line, QmpMessage *message, GError **error)
{
    struct json_object *root = message->root;
    bool is_greeting = json_object_object_get_ex(root, "QMP", NULL);
    bool is_event = json_object_object_get_ex(root, "event", NULL);
    bool is_error = json_object_object_get_ex(root, "error", NULL);
    bool is_return = json_object_object_get_ex(root, "return", &message->value);

    if (is_greeting + is_event + is_error + is_return != 1)
        return not_qmp(line, "exactly one of \"QMP\", \"event\", \"return\", \"error\"", error);
    if (is_greeting) {
        message->type = QMP_MESSAGE_GREETING;
        return parse_greeting(line, message, error);
    }
    if (is_event) {
        message->type = QMP_MESSAGE_EVENT;
        return parse_event(line, message, error);
    }
    parse_id(message);
    if (is_error) {
        message->type = QMP_MESSAGE_ERROR;
        return parse_error(line, message, error);
    }
    message->type = QMP_MESSAGE_RETURN;
    return TRUE;
}

gboolean
qmp_message_parse(View line, QmpMessage *ret_message, GError **error)
{
    g_auto(QmpMessage) message = {.timestamp_us = -1};

    if (!parse_json(line, &message.root, error) || !parse_body(line, &message, error))
        return FALSE;
    *ret_message = message;
    message.root = NULL;
    return TRUE;
}

void
qmp_message_clear(QmpMessage *message)
{
    json_object_put(message->root);
    message->root = NULL;
}
