/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-command.c - a command of the QMP client, from send until its function is called
 *
 * Theory of operation
 *
 * A command is in the queue `pending`, in order of id, from send until its function is called:
 *
 *   WAITING ── qmp_client_pump() ──► SENT ── reply ──► function
 *      ▲                               │
 *      └───── PAUSED ◄── yank: DeviceNotFound
 *
 * In each phase its deadline, a cancel or the end of the connection can decide it. What is decided
 * inside a call of the application (cancel, refused at send) is kept as `verdict` and delivered
 * from the loop.
 *
 * In-band commands go out in order, at most QMP_IN_FLIGHT_MAX unanswered; a command that timed out
 * keeps its slot until QEMU answers, because QEMU still has it in its queue. Out-of-band commands
 * have no limit of their own and pass waiting in-band ones.
 */
#include "qmp-client-private.h"

#include "source.h"

#include <json.h>
#include <string.h>

enum {
    QMP_YANK_RETRY_MS = 20, /* a registration follows a connect, within milliseconds */
};

typedef enum QmpCommandPhase {
    QMP_COMMAND_WAITING,
    QMP_COMMAND_SENT,
    QMP_COMMAND_PAUSED,
} QmpCommandPhase;

typedef struct QmpCommand {
    GList link;        /* in client->pending */
    QmpClient *client; /* borrowed: commands die with their client */
    guint64 id;
    char *name;
    struct json_object *message; /* with "execute"; becomes "exec-oob" when it is sent so */
    size_t text_bytes;           /* of message, for the bound on the outgoing queue */
    unsigned timeout_ms;
    gboolean want_oob;
    gboolean retry_not_found;
    QmpCommandPhase phase;
    GError *verdict;     /* decided, not delivered yet */
    GError *last_answer; /* why it is sent again */
    GSource *deadline;
    GSource *later; /* verdict to deliver, or pause to end */
    QmpReplyFunc func;
    gpointer user_data;
    GDestroyNotify destroy;
} QmpCommand;

static void
command_free(QmpCommand *command)
{
    source_clear(&command->deadline);
    source_clear(&command->later);
    if (command->destroy)
        command->destroy(command->user_data);
    g_clear_error(&command->verdict);
    g_clear_error(&command->last_answer);
    json_object_put(command->message);
    g_free(command->name);
    g_free(command);
}

static void
command_deliver(QmpClient *client, QmpCommand *command, struct json_object *ret_value,
                const GError *error)
{
    g_queue_unlink(&client->pending, &command->link);
    source_clear(&command->deadline);
    source_clear(&command->later);
    if (command->func)
        command->func(ret_value, error, command->user_data);
    command_free(command);
}

void
qmp_client_end_commands(QmpClient *client)
{
    guint64 end_id = client->next_id; /* a command sent from here on has its own verdict */

    while (client->refs > 0 && client->pending.head) {
        QmpCommand *command = client->pending.head->data;

        if (command->id >= end_id)
            break;
        command_deliver(client, command, NULL,
                        command->verdict ? command->verdict : client->reason);
    }
}

void
qmp_client_drop_commands(QmpClient *client)
{
    while (client->pending.head) {
        QmpCommand *command = client->pending.head->data;

        g_queue_unlink(&client->pending, &command->link);
        command_free(command);
    }
}

/* --- what decides a command besides its reply ------------------------------------------------ */

static gboolean
on_verdict(gpointer data)
{
    QmpCommand *command = data;
    g_autoptr(QmpClientHold) client = qmp_client_enter(command->client);

    command_deliver(client, command, NULL, command->verdict);
    return G_SOURCE_REMOVE;
}

/* Takes @verdict; nothing can change it any more. */
static void
command_decide(QmpCommand *command, GError *verdict)
{
    command->verdict = verdict;
    source_clear(&command->deadline);
    source_clear(&command->later);
    command->later = qmp_client_attach(command->client, g_idle_source_new(), on_verdict, command);
}

static GError *
command_timeout_error(const QmpCommand *command)
{
    const char *what = command->phase == QMP_COMMAND_WAITING
                           ? "not sent, earlier commands are unanswered"
                           : "no answer";
    g_autofree char *message = NULL;

    if (!command->last_answer)
        return g_error_new(QMP_ERROR, QMP_ERROR_TIMEOUT, "%s: %s within %u ms", command->name, what,
                           command->timeout_ms);
    message = g_strdup_printf("%s: not done within %u ms, last answer: %s", command->name,
                              command->timeout_ms, command->last_answer->message);
    return qmp_error_new_with_class(QMP_ERROR_TIMEOUT, qmp_error_class(command->last_answer),
                                    message);
}

static gboolean
on_command_deadline(gpointer data)
{
    QmpCommand *command = data;
    g_autoptr(QmpClientHold) client = qmp_client_enter(command->client);
    g_autoptr(GError) error = command_timeout_error(command);

    command_deliver(client, command, NULL, error);
    return G_SOURCE_REMOVE;
}

static gboolean
on_pause_over(gpointer data)
{
    QmpCommand *command = data;
    g_autoptr(QmpClientHold) client = qmp_client_enter(command->client);

    source_clear(&command->later);
    command->phase = QMP_COMMAND_WAITING;
    qmp_client_pump(client);
    return G_SOURCE_REMOVE;
}

/* Takes @answer. */
static void
command_pause(QmpCommand *command, GError *answer)
{
    g_clear_error(&command->last_answer);
    command->last_answer = answer;
    command->phase = QMP_COMMAND_PAUSED;
    command->later = qmp_client_attach(command->client, g_timeout_source_new(QMP_YANK_RETRY_MS),
                                       on_pause_over, command);
}

/* --- sending -------------------------------------------------------------------------------- */

const char *
qmp_command_message_text(struct json_object *message)
{
    return json_object_to_json_string_ext(message,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}

struct json_object *
qmp_command_message_new(const char *command, struct json_object *arguments, guint64 id)
{
    struct json_object *message = json_object_new_object();

    json_object_object_add(message, "execute", json_object_new_string(command));
    if (arguments)
        json_object_object_add(message, "arguments", json_object_get(arguments));
    json_object_object_add(message, "id", json_object_new_int64((int64_t)id));
    return message;
}

static guint64 *
in_flight_slot(QmpClient *client, guint64 id)
{
    for (size_t i = 0; i < G_N_ELEMENTS(client->in_flight); i++) {
        if (client->in_flight[i] == id)
            return &client->in_flight[i];
    }
    return NULL;
}

static void
command_write_oob(QmpCommand *command)
{
    json_object_object_del(command->message, "execute");
    json_object_object_add(command->message, "exec-oob", json_object_new_string(command->name));
    command->phase = QMP_COMMAND_SENT;
    qmp_client_write(command->client, command->message);
}

static void
command_write(QmpCommand *command, guint64 *slot)
{
    *slot = command->id;
    command->phase = QMP_COMMAND_SENT;
    qmp_client_write(command->client, command->message);
}

void
qmp_client_pump(QmpClient *client)
{
    guint64 *slot;

    if (client->state != QMP_CLIENT_READY)
        return;
    for (GList *l = client->pending.head; l && client->has_oob; l = l->next) {
        QmpCommand *command = l->data;

        if (command->want_oob && command->phase == QMP_COMMAND_WAITING && !command->verdict)
            command_write_oob(command);
    }
    for (GList *l = client->pending.head; l && (slot = in_flight_slot(client, 0)); l = l->next) {
        QmpCommand *command = l->data;

        if (command->phase == QMP_COMMAND_WAITING && !command->verdict)
            command_write(command, slot);
    }
}

static size_t
client_outgoing_bytes(const QmpClient *client)
{
    size_t sum = client->out->len - client->out_done_bytes;

    for (const GList *l = client->pending.head; l; l = l->next) {
        const QmpCommand *command = l->data;

        if (command->phase != QMP_COMMAND_SENT && !command->verdict)
            sum += command->text_bytes;
    }
    return sum;
}

/* Why a new command cannot be taken, or NULL. */
static GError *
client_refusal(const QmpClient *client, const char *text)
{
    if (client->state >= QMP_CLIENT_CLOSING)
        return g_error_new(QMP_ERROR, QMP_ERROR_CLOSED, "the QMP connection is closed: %s",
                           client->reason->message);
    if (client->pending.length >= QMP_PENDING_MAX)
        return g_error_new(QMP_ERROR, QMP_ERROR_TOO_LARGE, "%d QMP commands are open already",
                           QMP_PENDING_MAX);
    if (client_outgoing_bytes(client) + strlen(text) > QMP_OUTGOING_BYTES_MAX)
        return g_error_new(QMP_ERROR, QMP_ERROR_TOO_LARGE,
                           "more than %zu bytes wait to be sent to QEMU", QMP_OUTGOING_BYTES_MAX);
    /* QEMU would answer without an id, and we would wait for the deadline. */
    if (!g_utf8_validate(text, -1, NULL))
        return g_error_new_literal(QMP_ERROR, QMP_ERROR_PROTOCOL,
                                   "a QMP command with text that is not UTF-8");
    return NULL;
}

static QmpCommand *
command_new(QmpClient *client, const char *name, struct json_object *arguments, unsigned timeout_ms)
{
    g_assert(timeout_ms > 0);
    g_assert(!arguments || json_object_is_type(arguments, json_type_object));

    QmpCommand *command = g_new0(QmpCommand, 1);

    command->link.data = command;
    command->client = client;
    command->id = client->next_id++;
    command->name = g_strdup(name);
    command->message = qmp_command_message_new(name, arguments, command->id);
    command->timeout_ms = timeout_ms;
    return command;
}

static void
command_set_func(QmpCommand *command, QmpReplyFunc func, gpointer user_data, GDestroyNotify destroy)
{
    command->func = func;
    command->user_data = user_data;
    command->destroy = destroy;
}

/* Queues @command, or its refusal (taken, may be NULL). */
static guint64
client_submit(QmpClient *client, QmpCommand *command, GError *refusal)
{
    const char *text = qmp_command_message_text(command->message);

    command->text_bytes = strlen(text);
    if (!refusal)
        refusal = client_refusal(client, text);
    g_queue_push_tail_link(&client->pending, &command->link);
    if (refusal) {
        command_decide(command, refusal);
    } else {
        command->deadline = qmp_client_attach(client, g_timeout_source_new(command->timeout_ms),
                                              on_command_deadline, command);
        qmp_client_pump(client);
    }
    return command->id;
}

guint64
qmp_client_send(QmpClient *client, const char *command, struct json_object *arguments,
                unsigned timeout_ms, QmpReplyFunc func, gpointer user_data, GDestroyNotify destroy)
{
    QmpCommand *cmd = command_new(client, command, arguments, timeout_ms);

    command_set_func(cmd, func, user_data, destroy);
    return client_submit(client, cmd, NULL);
}

guint64
qmp_client_send_oob(QmpClient *client, const char *command, struct json_object *arguments,
                    unsigned timeout_ms, QmpReplyFunc func, gpointer user_data,
                    GDestroyNotify destroy)
{
    QmpCommand *cmd = command_new(client, command, arguments, timeout_ms);

    cmd->want_oob = TRUE;
    command_set_func(cmd, func, user_data, destroy);
    return client_submit(client, cmd, NULL);
}

/* One YankInstance of QEMU's qapi/yank.json; NULL: @text is none. */
static struct json_object *
yank_instance_new(const char *text)
{
    static const struct {
        const char *prefix, *type, *key;
    } kinds[] = {
        {"chardev:", "chardev", "id"},
        {"block-node:", "block-node", "node-name"},
    };
    struct json_object *instance;

    if (g_str_equal(text, "migration")) {
        instance = json_object_new_object();
        json_object_object_add(instance, "type", json_object_new_string("migration"));
        return instance;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        size_t skip = strlen(kinds[i].prefix);

        if (!g_str_has_prefix(text, kinds[i].prefix) || !text[skip])
            continue;
        instance = json_object_new_object();
        json_object_object_add(instance, "type", json_object_new_string(kinds[i].type));
        json_object_object_add(instance, kinds[i].key, json_object_new_string(&text[skip]));
        return instance;
    }
    return NULL;
}

guint64
qmp_client_yank(QmpClient *client, const char *const *instances, size_t n, unsigned timeout_ms,
                QmpReplyFunc func, gpointer user_data, GDestroyNotify destroy)
{
    struct json_object *arguments = json_object_new_object();
    struct json_object *list = json_object_new_array();
    GError *refusal = NULL;

    json_object_object_add(arguments, "instances", list);
    for (size_t i = 0; i < n && !refusal; i++) {
        struct json_object *instance = yank_instance_new(instances[i]);

        if (instance)
            json_object_array_add(list, instance);
        else
            refusal = g_error_new(QMP_ERROR, QMP_ERROR_PROTOCOL, "\"%s\" is no yank instance",
                                  instances[i]);
    }

    QmpCommand *cmd = command_new(client, "yank", arguments, timeout_ms);

    json_object_put(arguments);
    cmd->want_oob = TRUE;
    cmd->retry_not_found = TRUE;
    command_set_func(cmd, func, user_data, destroy);
    return client_submit(client, cmd, refusal);
}

/* --- reply and cancel ----------------------------------------------------------------------- */

static QmpCommand *
client_find(const QmpClient *client, guint64 id)
{
    for (GList *l = client->pending.head; l; l = l->next) {
        QmpCommand *command = l->data;

        if (command->id == id)
            return command;
    }
    return NULL;
}

void
qmp_client_handle_reply(QmpClient *client, const QmpMessage *message)
{
    QmpCommand *command = client_find(client, message->id);
    guint64 *slot = message->id ? in_flight_slot(client, message->id) : NULL;
    g_autoptr(GError) error = NULL;

    if (slot) {
        *slot = 0;
        qmp_client_pump(client);
    }
    if (!command || command->phase != QMP_COMMAND_SENT || command->verdict) {
        client->ignored_replies++;
        g_debug("qmp: reply with id %" G_GUINT64_FORMAT " ignored%s%s", message->id,
                message->desc ? ": " : "", message->desc ? message->desc : "");
        return;
    }
    if (message->type == QMP_MESSAGE_RETURN) {
        command_deliver(client, command, message->value, NULL);
        return;
    }
    error = qmp_error_new_command(message->name, message->desc);
    if (command->retry_not_found && g_str_equal(message->name, "DeviceNotFound"))
        command_pause(command, g_steal_pointer(&error));
    else
        command_deliver(client, command, NULL, error);
}

void
qmp_client_cancel(QmpClient *client, guint64 id)
{
    QmpCommand *command = client_find(client, id);

    if (!command || command->verdict)
        return;
    command_decide(command,
                   g_error_new(QMP_ERROR, QMP_ERROR_CANCELLED, "%s: cancelled", command->name));
}
