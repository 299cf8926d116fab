/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-qmp.c - a scripted QMP server in the test's own main loop */
#include "fake-qmp.h"

#include <errno.h>
#include <json.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <glib-unix.h>

#include "fd.h"
#include "source.h"

#define DEFAULT_GREETING                                                                           \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 3, \"minor\": 1, \"major\": 11}, "             \
    "\"package\": \"fake\"}, \"capabilities\": [\"oob\"]}}"

typedef enum ScriptKind {
    SCRIPT_RETURN,
    SCRIPT_ERROR,
    SCRIPT_RAW,
    SCRIPT_HOLD,
} ScriptKind;

typedef struct ScriptItem {
    ScriptKind kind;
    char *text; /* JSON to return, error description or raw line */
    char *error_class;
} ScriptItem;

/* What the test said about a command, and what was seen of it. */
typedef struct Command {
    GQueue script;                 /* ScriptItem */
    GQueue held;                   /* struct json_object ids */
    struct json_object *ret_value; /* default; NULL = {} */
    FakeQmpFunc func;
    gpointer user_data;
    unsigned count;
    struct json_object *arguments;
    gboolean was_oob;
} Command;

struct FakeQmp {
    GMainContext *context;
    struct json_object *schema;
    GHashTable *commands; /* name → Command */
    char *greeting;
    int listen_fd, fd;
    GSource *accept, *start, *input, *output;
    GByteArray *in, *out;
    size_t drip_bytes;
    gboolean frozen, ready, oob;
    unsigned refused;
    char *refusal;
};

static void fake_arm_output(FakeQmp *fake);

static void
script_item_free(gpointer data)
{
    ScriptItem *item = data;

    g_free(item->text);
    g_free(item->error_class);
    g_free(item);
}

static void
json_put(gpointer data)
{
    json_object_put(data);
}

static void
command_free(gpointer data)
{
    Command *command = data;

    g_queue_clear_full(&command->script, script_item_free);
    g_queue_clear_full(&command->held, json_put);
    json_object_put(command->ret_value);
    json_object_put(command->arguments);
    g_free(command);
}

static GSource *
fake_attach(FakeQmp *fake, GSource *source, GSourceFunc func)
{
    g_source_set_callback(source, func, fake, NULL);
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_attach(source, fake->context);
    return source;
}

static struct json_object *
parse_own(const char *text)
{
    enum json_tokener_error error;
    struct json_object *value = json_tokener_parse_verbose(text, &error);

    if (error != json_tokener_success)
        g_error("the test's JSON is wrong: %s", text);
    return value;
}

static struct json_object *
schema_of(const FakeQmp *fake, const char *name)
{
    struct json_object *commands = json_object_object_get(fake->schema, "commands");

    return json_object_object_get(commands, name);
}

/* The record of a command; made when first asked for. The test cannot script what QEMU lacks. */
static Command *
command_of(FakeQmp *fake, const char *name)
{
    Command *command = g_hash_table_lookup(fake->commands, name);

    if (command)
        return command;
    if (!schema_of(fake, name))
        g_error("the recorded QEMU has no command \"%s\"", name);
    command = g_new0(Command, 1);
    g_queue_init(&command->script);
    g_queue_init(&command->held);
    g_hash_table_insert(fake->commands, g_strdup(name), command);
    return command;
}

/* --- sending -------------------------------------------------------------------------------- */

static void
fake_hang_up(FakeQmp *fake)
{
    source_clear(&fake->start);
    source_clear(&fake->input);
    source_clear(&fake->output);
    fd_clear(&fake->fd);
    g_byte_array_set_size(fake->in, 0);
    g_byte_array_set_size(fake->out, 0);
    fake->ready = FALSE;
}

/* False: nothing more can be sent now. */
static gboolean
fake_flush(FakeQmp *fake)
{
    size_t len = fake->out->len;

    if (fake->drip_bytes)
        len = MIN(len, fake->drip_bytes);

    ssize_t n = send(fake->fd, fake->out->data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0)
        return FALSE;
    g_byte_array_remove_range(fake->out, 0, (guint)n);
    return fake->out->len > 0;
}

static gboolean
on_output(gint fd, GIOCondition condition, gpointer data)
{
    FakeQmp *fake = data;

    (void)fd;
    (void)condition;
    if (!fake_flush(fake) && !fake->out->len)
        source_clear(&fake->output);
    return G_SOURCE_CONTINUE;
}

static void
fake_arm_output(FakeQmp *fake)
{
    if (!fake->output && !fake->frozen && fake->fd >= 0 && fake->out->len)
        fake->output =
            fake_attach(fake, g_unix_fd_source_new(fake->fd, G_IO_OUT), G_SOURCE_FUNC(on_output));
}

void
fake_qmp_send_raw(FakeQmp *fake, const void *bytes, size_t len)
{
    if (fake->fd < 0)
        return;
    g_byte_array_append(fake->out, bytes, (guint)len);
    fake_arm_output(fake);
}

static void
fake_send_line(FakeQmp *fake, const char *line)
{
    fake_qmp_send_raw(fake, line, strlen(line));
    fake_qmp_send_raw(fake, "\r\n", 2);
}

/* Takes @message. */
static void
fake_send(FakeQmp *fake, struct json_object *message)
{
    fake_send_line(fake, json_object_to_json_string_ext(message, JSON_C_TO_STRING_SPACED));
    json_object_put(message);
}

/* Takes @value. */
static void
fake_send_return(FakeQmp *fake, struct json_object *id, struct json_object *value)
{
    struct json_object *message = json_object_new_object();

    json_object_object_add(message, "return", value);
    if (id)
        json_object_object_add(message, "id", json_object_get(id));
    fake_send(fake, message);
}

static void
fake_send_error(FakeQmp *fake, struct json_object *id, const char *error_class, const char *desc)
{
    struct json_object *message = json_object_new_object();
    struct json_object *body = json_object_new_object();

    json_object_object_add(body, "class", json_object_new_string(error_class));
    json_object_object_add(body, "desc", json_object_new_string(desc));
    if (id)
        json_object_object_add(message, "id", json_object_get(id));
    json_object_object_add(message, "error", body);
    fake_send(fake, message);
}

void
fake_qmp_emit(FakeQmp *fake, const char *event, const char *data_json)
{
    struct json_object *known = json_object_object_get(fake->schema, "events");
    struct json_object *message = json_object_new_object();
    struct json_object *timestamp = json_object_new_object();
    gint64 now_us = g_get_real_time();
    bool found = false;

    for (size_t i = 0; i < json_object_array_length(known) && !found; i++)
        found = g_str_equal(json_object_get_string(json_object_array_get_idx(known, i)), event);
    if (!found)
        g_error("the recorded QEMU has no event \"%s\"", event);
    json_object_object_add(timestamp, "seconds", json_object_new_int64(now_us / G_USEC_PER_SEC));
    json_object_object_add(timestamp, "microseconds",
                           json_object_new_int64(now_us % G_USEC_PER_SEC));
    json_object_object_add(message, "timestamp", timestamp);
    json_object_object_add(message, "event", json_object_new_string(event));
    if (data_json)
        json_object_object_add(message, "data", parse_own(data_json));
    fake_send(fake, message);
}

/* --- receiving ------------------------------------------------------------------------------ */

/* Counts the refusal; the text of the latest is kept for the test's message. */
static void
fake_refuse(FakeQmp *fake, struct json_object *id, const char *error_class, const char *desc)
{
    fake->refused++;
    g_free(fake->refusal);
    fake->refusal = g_strdup(desc);
    fake_send_error(fake, id, error_class, desc);
}

/* What QEMU would say against the arguments; NULL: nothing. */
static char *
arguments_fault(struct json_object *schema, struct json_object *arguments)
{
    struct json_object *known = json_object_object_get(schema, "args");

    if (!json_object_object_get_ex(schema, "open", NULL) && arguments) {
        json_object_object_foreach(arguments, name, ignored)
        {
            (void)ignored;
            if (!json_object_object_get_ex(known, name, NULL))
                return g_strdup_printf("Parameter '%s' is unexpected", name);
        }
    }
    json_object_object_foreach(known, name, mandatory)
    {
        if (json_object_get_boolean(mandatory) && !json_object_object_get_ex(arguments, name, NULL))
            return g_strdup_printf("Parameter '%s' is missing", name);
    }
    return NULL;
}

static void
fake_send_raw_reply(FakeQmp *fake, const char *text, struct json_object *id)
{
    g_auto(GStrv) parts = g_strsplit(text, "%ID%", -1);
    g_autofree char *line = g_strjoinv(id ? json_object_to_json_string(id) : "null", parts);

    fake_send_line(fake, line);
}

static void
fake_answer(FakeQmp *fake, Command *command, struct json_object *id)
{
    ScriptItem *item = g_queue_pop_head(&command->script);

    if (!item) {
        fake_send_return(fake, id,
                         command->ret_value ? json_object_get(command->ret_value)
                                            : json_object_new_object());
        return;
    }
    switch (item->kind) {
    case SCRIPT_RETURN:
        fake_send_return(fake, id, parse_own(item->text));
        break;
    case SCRIPT_ERROR:
        fake_send_error(fake, id, item->error_class, item->text);
        break;
    case SCRIPT_RAW:
        fake_send_raw_reply(fake, item->text, id);
        break;
    case SCRIPT_HOLD:
        g_queue_push_tail(&command->held, json_object_get(id));
        break;
    }
    script_item_free(item);
}

static void
fake_execute(FakeQmp *fake, const char *name, struct json_object *arguments, struct json_object *id,
             gboolean oob)
{
    struct json_object *schema = schema_of(fake, name);
    g_autofree char *fault = NULL;

    if (!schema) {
        g_autofree char *desc = g_strdup_printf("The command %s has not been found", name);

        fake_refuse(fake, id, "CommandNotFound", desc);
        return;
    }
    fault = arguments_fault(schema, arguments);
    if (!fault && oob && !(fake->oob && json_object_object_get_ex(schema, "oob", NULL)))
        fault = g_strdup_printf("The command %s does not support OOB", name);
    if (fault) {
        fake_refuse(fake, id, "GenericError", fault);
        return;
    }

    Command *command = command_of(fake, name);

    command->count++;
    command->was_oob = oob;
    json_object_put(command->arguments);
    command->arguments = json_object_get(arguments);
    if (g_str_equal(name, "qmp_capabilities")) {
        struct json_object *enable = json_object_object_get(arguments, "enable");

        fake->ready = TRUE;
        fake->oob = enable && json_object_array_length(enable) > 0;
    }
    fake_answer(fake, command, id);
    if (command->func)
        command->func(fake, arguments, command->user_data);
}

static void
fake_handle_line(FakeQmp *fake, const char *line)
{
    struct json_object *request = json_tokener_parse(line);
    struct json_object *name = NULL, *arguments = NULL, *id = NULL;

    if (!json_object_is_type(request, json_type_object)) {
        fake_refuse(fake, NULL, "GenericError", "QMP input must be a JSON object");
        json_object_put(request);
        return;
    }

    gboolean oob = json_object_object_get_ex(request, "exec-oob", &name);

    json_object_object_get_ex(request, "id", &id);
    json_object_object_get_ex(request, "arguments", &arguments);
    if (!oob)
        json_object_object_get_ex(request, "execute", &name);
    if (!name)
        fake_refuse(fake, id, "GenericError", "QMP input lacks member 'execute'");
    else if (!fake->ready && !g_str_equal(json_object_get_string(name), "qmp_capabilities"))
        fake_refuse(fake, id, "CommandNotFound",
                    "Expecting capabilities negotiation with 'qmp_capabilities'");
    else
        fake_execute(fake, json_object_get_string(name), arguments, id, oob);
    json_object_put(request);
}

static gboolean
on_input(gint fd, GIOCondition condition, gpointer data)
{
    FakeQmp *fake = data;
    guint8 bytes[4096];
    ssize_t n = read(fd, bytes, sizeof(bytes));
    guint8 *end;

    (void)condition;
    if (n < 0 && errno == EAGAIN)
        return G_SOURCE_CONTINUE;
    if (n <= 0) {
        fake_hang_up(fake);
        return G_SOURCE_CONTINUE;
    }
    g_byte_array_append(fake->in, bytes, (guint)n);
    while (fake->in->len && (end = memchr(fake->in->data, '\n', fake->in->len))) {
        size_t len = (size_t)(end - fake->in->data);
        g_autofree char *line = g_strndup((const char *)fake->in->data, len);

        g_byte_array_remove_range(fake->in, 0, (guint)len + 1);
        fake_handle_line(fake, line);
    }
    return G_SOURCE_CONTINUE;
}

/* --- connection ----------------------------------------------------------------------------- */

static void
fake_arm_input(FakeQmp *fake)
{
    if (!fake->input && !fake->frozen && fake->fd >= 0)
        fake->input = fake_attach(fake, g_unix_fd_source_new(fake->fd, G_IO_IN | G_IO_HUP),
                                  G_SOURCE_FUNC(on_input));
}

/* From the loop, so that the test can set another greeting first. */
static gboolean
on_start(gpointer data)
{
    FakeQmp *fake = data;

    source_clear(&fake->start);
    if (fake->greeting)
        fake_send_line(fake, fake->greeting);
    fake_arm_input(fake);
    return G_SOURCE_REMOVE;
}

/* Takes @fd. */
static void
fake_adopt(FakeQmp *fake, int fd)
{
    fake->fd = fd;
    (void)fd_set_nonblocking(fd);
    fake->start = fake_attach(fake, g_idle_source_new(), on_start);
}

static gboolean
on_accept(gint listen_fd, GIOCondition condition, gpointer data)
{
    FakeQmp *fake = data;

    (void)condition;
    if (fake->fd >= 0)
        return G_SOURCE_CONTINUE; /* as QEMU: the second client waits in the backlog */

    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0)
        fake_adopt(fake, fd);
    return G_SOURCE_CONTINUE;
}

static FakeQmp *
fake_new(void)
{
    FakeQmp *fake = g_new0(FakeQmp, 1);

    fake->context = g_main_context_ref_thread_default();
    fake->schema = json_object_from_file(FAKE_QMP_COMMANDS);
    if (!fake->schema)
        g_error("cannot read %s", FAKE_QMP_COMMANDS);
    fake->commands = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, command_free);
    fake->greeting = g_strdup(DEFAULT_GREETING);
    fake->listen_fd = -1;
    fake->fd = -1;
    fake->in = g_byte_array_new();
    fake->out = g_byte_array_new();
    return fake;
}

FakeQmp *
fake_qmp_new(int *ret_client_fd)
{
    FakeQmp *fake = fake_new();
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        g_error("socketpair: %s", g_strerror(errno));
    fake_adopt(fake, pair[0]);
    *ret_client_fd = pair[1];
    return fake;
}

FakeQmp *
fake_qmp_new_listening(const char *path)
{
    FakeQmp *fake = fake_new();

    fake->listen_fd = fd_unix_listen(path);
    if (fake->listen_fd < 0)
        g_error("cannot listen on %s: %s", path, g_strerror(-fake->listen_fd));
    fake->accept =
        fake_attach(fake, g_unix_fd_source_new(fake->listen_fd, G_IO_IN), G_SOURCE_FUNC(on_accept));
    return fake;
}

void
fake_qmp_free(FakeQmp *fake)
{
    if (!fake)
        return;
    fake_hang_up(fake);
    source_clear(&fake->accept);
    fd_clear(&fake->listen_fd);
    g_hash_table_unref(fake->commands);
    json_object_put(fake->schema);
    g_byte_array_unref(fake->in);
    g_byte_array_unref(fake->out);
    g_free(fake->greeting);
    g_free(fake->refusal);
    g_main_context_unref(fake->context);
    g_free(fake);
}

void
fake_qmp_freeze(FakeQmp *fake, gboolean frozen)
{
    fake->frozen = frozen;
    if (frozen) {
        source_clear(&fake->input);
        source_clear(&fake->output);
    } else if (!fake->start) {
        fake_arm_input(fake);
        fake_arm_output(fake);
    }
}

void
fake_qmp_close(FakeQmp *fake)
{
    fake->drip_bytes = 0;
    while (fake->fd >= 0 && fake->out->len && fake_flush(fake)) {
    }
    fake_hang_up(fake);
}

/* --- script and record ---------------------------------------------------------------------- */

void
fake_qmp_set_greeting(FakeQmp *fake, const char *text)
{
    g_free(fake->greeting);
    fake->greeting = g_strdup(text);
}

static void
fake_script(FakeQmp *fake, const char *command, ScriptKind kind, const char *error_class,
            const char *text)
{
    ScriptItem *item = g_new0(ScriptItem, 1);

    item->kind = kind;
    item->error_class = g_strdup(error_class);
    item->text = g_strdup(text);
    g_queue_push_tail(&command_of(fake, command)->script, item);
}

void
fake_qmp_reply(FakeQmp *fake, const char *command, const char *ret_json)
{
    fake_script(fake, command, SCRIPT_RETURN, NULL, ret_json);
}

void
fake_qmp_reply_error(FakeQmp *fake, const char *command, const char *error_class, const char *desc)
{
    fake_script(fake, command, SCRIPT_ERROR, error_class, desc);
}

void
fake_qmp_reply_raw(FakeQmp *fake, const char *command, const char *line)
{
    fake_script(fake, command, SCRIPT_RAW, NULL, line);
}

void
fake_qmp_hold(FakeQmp *fake, const char *command)
{
    fake_script(fake, command, SCRIPT_HOLD, NULL, NULL);
}

void
fake_qmp_set_default(FakeQmp *fake, const char *command, const char *ret_json)
{
    Command *record = command_of(fake, command);

    json_object_put(record->ret_value);
    record->ret_value = parse_own(ret_json);
}

gboolean
fake_qmp_release(FakeQmp *fake, const char *command, const char *ret_json)
{
    struct json_object *id;

    if (!command_of(fake, command)->held.length)
        return FALSE;
    id = g_queue_pop_head(&command_of(fake, command)->held);
    fake_send_return(fake, id, parse_own(ret_json));
    json_object_put(id);
    return TRUE;
}

void
fake_qmp_on_command(FakeQmp *fake, const char *command, FakeQmpFunc func, gpointer user_data)
{
    Command *record = command_of(fake, command);

    record->func = func;
    record->user_data = user_data;
}

void
fake_qmp_set_drip(FakeQmp *fake, size_t n)
{
    fake->drip_bytes = n;
}

static const Command *
seen(const FakeQmp *fake, const char *command)
{
    static const Command never = {.count = 0};
    const Command *found = g_hash_table_lookup(fake->commands, command);

    return found ? found : &never;
}

unsigned
fake_qmp_count(const FakeQmp *fake, const char *command)
{
    return seen(fake, command)->count;
}

struct json_object *
fake_qmp_arguments(const FakeQmp *fake, const char *command)
{
    return seen(fake, command)->arguments;
}

gboolean
fake_qmp_was_oob(const FakeQmp *fake, const char *command)
{
    return seen(fake, command)->was_oob;
}

unsigned
fake_qmp_refused(const FakeQmp *fake)
{
    return fake->refused;
}

const char *
fake_qmp_refusal(const FakeQmp *fake)
{
    return fake->refusal;
}

gboolean
fake_qmp_is_ready(const FakeQmp *fake)
{
    return fake->ready;
}

static gboolean
on_tick(gpointer data)
{
    (void)data;
    return G_SOURCE_CONTINUE;
}

void
fake_qmp_iterate(void)
{
    GMainContext *context = g_main_context_ref_thread_default();
    GSource *tick = g_timeout_source_new(5);

    g_source_set_callback(tick, on_tick, NULL, NULL);
    g_source_attach(tick, context);
    g_main_context_iteration(context, TRUE);
    source_clear(&tick);
    g_main_context_unref(context);
}
