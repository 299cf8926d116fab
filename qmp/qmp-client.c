/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-client.c - asynchronous QMP client: greeting, out-of-band, deadlines, events, transcript
 *
 * Theory of operation
 *
 * One connection, one thread, GSources on the context of new(). The states only go forward:
 *
 *   CONNECTING ── connected ──► GREETING ── greeting ──► NEGOTIATING ── {"return"} ──► READY
 *        └──────────────┴─────────────────────┴──── client_fail() ──────────────────────┤
 *                                                             CLOSED ◄── on_closing ── CLOSING
 *
 * CONNECTING tries the socket every QMP_CONNECT_RETRY_MS; one deadline covers everything up to
 * READY. client_fail() drops fd and sources at once and leaves the callbacks to on_closing().
 *
 * A command is in the queue `pending`, in order of id, from send until its function is called:
 *
 *   WAITING ── client_pump() ──► SENT ── reply ──► function
 *      ▲                           │
 *      └─── PAUSED ◄── yank: DeviceNotFound
 *
 * In each phase its deadline, a cancel or the end of the connection can decide it. What is decided
 * inside a call of the application (cancel, refused at send) is kept as `verdict` and delivered
 * from the loop.
 *
 * In-band commands go out in order, at most QMP_IN_FLIGHT_MAX unanswered; a command that timed out
 * keeps its slot until QEMU answers, because QEMU still has it in its queue. Out-of-band commands
 * have no limit of their own and pass waiting in-band ones.
 *
 * Invariants: no callback runs from within a public function; pending ids ascend; out is written by
 * on_output() only; after the last unref no callback runs. A loop callback holds the memory with
 * client_enter() and, after each function of the application, looks at client_is_live().
 */
#include "qmp-client.h"

#include <assert.h>
#include <errno.h>
#include <json.h>
#include <sys/socket.h>
#include <unistd.h>

#include <glib-unix.h>

#include "fd.h"
#include "qmp-parse.h"
#include "qmp-transcript.h"

enum {
    QMP_CONNECT_RETRY_MS = 10, /* QEMU needs some 50 ms from exec to listen(); failover is fast */
    QMP_YANK_RETRY_MS = 20,    /* a registration follows a connect, within milliseconds */
    QMP_READ_BYTES = 65536,    /* per turn of the loop, so that other sources get theirs */
};

typedef enum ClientState {
    CLIENT_CONNECTING,
    CLIENT_GREETING,
    CLIENT_NEGOTIATING,
    CLIENT_READY,
    CLIENT_CLOSING,
    CLIENT_CLOSED,
} ClientState;

static const char *const client_state_names[] = {
    [CLIENT_CONNECTING] = "connecting",   [CLIENT_GREETING] = "greeting",
    [CLIENT_NEGOTIATING] = "negotiating", [CLIENT_READY] = "ready",
    [CLIENT_CLOSING] = "closing",         [CLIENT_CLOSED] = "closed",
};
static_assert(G_N_ELEMENTS(client_state_names) == CLIENT_CLOSED + 1, "one name per state");

typedef enum CommandPhase {
    COMMAND_WAITING,
    COMMAND_SENT,
    COMMAND_PAUSED,
} CommandPhase;

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
    CommandPhase phase;
    GError *verdict;     /* decided, not delivered yet */
    GError *last_answer; /* why it is sent again */
    GSource *deadline;
    GSource *later; /* verdict to deliver, or pause to end */
    QmpReplyFunc func;
    gpointer user_data;
    GDestroyNotify destroy;
} QmpCommand;

struct QmpClient {
    unsigned refs; /* of the application */
    unsigned busy; /* loop callbacks on the stack; the memory lives while either is > 0 */

    GMainContext *context;
    QmpClientHandlers handlers;
    gpointer user_data;
    char *socket_path; /* NULL: made from a descriptor */
    unsigned connect_timeout_ms;

    ClientState state;
    int fd;
    int connect_errno;      /* of the last attempt */
    GSource *connect_timer; /* CONNECTING */
    GSource *deadline;      /* until READY */
    GSource *input;
    GSource *output;  /* while there is something to write */
    GSource *closing; /* CLOSING */
    GError *reason;   /* CLOSING, CLOSED */

    QmpSplitter *splitter;
    GByteArray *out;
    size_t out_done_bytes; /* written already */
    gboolean out_dead;     /* the peer does not read any more; its last words may still come */
    QmpTranscript *transcript;

    char *version;
    char *package;
    gboolean offers_oob;
    gboolean has_oob;

    guint64 next_id;
    guint64 negotiation_id;
    GQueue pending;
    guint64 in_flight[QMP_IN_FLIGHT_MAX]; /* ids of in-band commands QEMU has; 0 = free slot */
    guint64 ignored_replies;
};

static void client_pump(QmpClient *client);

/* --- memory --------------------------------------------------------------------------------- */

static void
source_clear(GSource **source)
{
    if (!*source)
        return;
    g_source_destroy(*source);
    g_clear_pointer(source, g_source_unref);
}

/* Takes @source. All sources have the same priority: in one turn of the loop the input, attached
 * first, goes before the deadlines, so an answer that has arrived beats the deadline. */
static GSource *
client_attach(QmpClient *client, GSource *source, GSourceFunc func, gpointer data)
{
    g_source_set_callback(source, func, data, NULL);
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_attach(source, client->context);
    return source;
}

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
client_drop_connection(QmpClient *client)
{
    source_clear(&client->connect_timer);
    source_clear(&client->deadline);
    source_clear(&client->input);
    source_clear(&client->output);
    fd_clear(&client->fd);
}

static void
client_set_state(QmpClient *client, ClientState state, const char *why)
{
    g_debug("qmp: %s -> %s: %s", client_state_names[client->state], client_state_names[state], why);
    client->state = state;
}

/* The application has gone: no callback from here on. */
static void
client_dispose(QmpClient *client)
{
    client_set_state(client, CLIENT_CLOSED, "last reference dropped");
    client_drop_connection(client);
    source_clear(&client->closing);
    while (client->pending.head) {
        QmpCommand *command = client->pending.head->data;

        g_queue_unlink(&client->pending, &command->link);
        command_free(command);
    }
}

static void
client_free(QmpClient *client)
{
    g_clear_error(&client->reason);
    qmp_splitter_free(client->splitter);
    g_byte_array_unref(client->out);
    qmp_transcript_free(client->transcript);
    g_free(client->version);
    g_free(client->package);
    g_free(client->socket_path);
    g_main_context_unref(client->context);
    g_free(client);
}

/* Holds the memory, not the connection, while a loop callback runs. */
typedef QmpClient ClientHold;

static ClientHold *
client_enter(QmpClient *client)
{
    client->busy++;
    return client;
}

static void
client_leave(ClientHold *client)
{
    if (--client->busy == 0 && client->refs == 0)
        client_free(client);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ClientHold, client_leave)

QmpClient *
qmp_client_ref(QmpClient *client)
{
    g_assert(client->refs > 0);
    client->refs++;
    return client;
}

void
qmp_client_unref(QmpClient *client)
{
    if (!client)
        return;
    g_assert(client->refs > 0);
    if (--client->refs > 0)
        return;

    g_autoptr(ClientHold) hold = client_enter(client);

    client_dispose(hold);
}

/* The connection goes on; asked after each call into the application. */
static bool
client_is_live(const QmpClient *client)
{
    return client->refs > 0 && client->state < CLIENT_CLOSING;
}

/* --- the end -------------------------------------------------------------------------------- */

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

static gboolean
on_closing(gpointer data)
{
    g_autoptr(ClientHold) client = client_enter(data);
    guint64 end_id = client->next_id; /* a command sent from here on has its own verdict */

    source_clear(&client->closing);
    while (client->refs > 0 && client->pending.head) {
        QmpCommand *command = client->pending.head->data;

        if (command->id >= end_id)
            break;
        command_deliver(client, command, NULL,
                        command->verdict ? command->verdict : client->reason);
    }
    if (client->refs == 0)
        return G_SOURCE_REMOVE;
    client_set_state(client, CLIENT_CLOSED, client->reason->message);
    if (client->handlers.closed)
        client->handlers.closed(client, client->reason, client->user_data);
    return G_SOURCE_REMOVE;
}

/* Takes @reason. The callbacks follow from the loop, so this may be called from anywhere. */
static void
client_fail(QmpClient *client, GError *reason)
{
    if (!client_is_live(client)) {
        g_error_free(reason);
        return;
    }
    qmp_transcript_line(client->transcript, QMP_TRANSCRIPT_NOTE,
                        view_of(reason->message, strlen(reason->message)));
    client->reason = reason;
    client_set_state(client, CLIENT_CLOSING, reason->message);
    client_drop_connection(client);
    client->closing = client_attach(client, g_idle_source_new(), on_closing, client);
}

void
qmp_client_close(QmpClient *client)
{
    client_fail(client, g_error_new_literal(QMP_ERROR, QMP_ERROR_CLOSED,
                                            "the QMP connection was closed by this side"));
}

/* --- commands ------------------------------------------------------------------------------- */

static gboolean
on_verdict(gpointer data)
{
    QmpCommand *command = data;
    g_autoptr(ClientHold) client = client_enter(command->client);

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
    command->later = client_attach(command->client, g_idle_source_new(), on_verdict, command);
}

static GError *
command_timeout_error(const QmpCommand *command)
{
    const char *what = command->phase == COMMAND_WAITING
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
    g_autoptr(ClientHold) client = client_enter(command->client);
    g_autoptr(GError) error = command_timeout_error(command);

    command_deliver(client, command, NULL, error);
    return G_SOURCE_REMOVE;
}

static gboolean
on_pause_over(gpointer data)
{
    QmpCommand *command = data;
    g_autoptr(ClientHold) client = client_enter(command->client);

    source_clear(&command->later);
    command->phase = COMMAND_WAITING;
    client_pump(client);
    return G_SOURCE_REMOVE;
}

/* Takes @answer. */
static void
command_pause(QmpCommand *command, GError *answer)
{
    g_clear_error(&command->last_answer);
    command->last_answer = answer;
    command->phase = COMMAND_PAUSED;
    command->later = client_attach(command->client, g_timeout_source_new(QMP_YANK_RETRY_MS),
                                   on_pause_over, command);
}

static const char *
message_text(struct json_object *message)
{
    return json_object_to_json_string_ext(message,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}

static size_t
client_outgoing_bytes(const QmpClient *client)
{
    size_t sum = client->out->len - client->out_done_bytes;

    for (const GList *l = client->pending.head; l; l = l->next) {
        const QmpCommand *command = l->data;

        if (command->phase != COMMAND_SENT && !command->verdict)
            sum += command->text_bytes;
    }
    return sum;
}

/* Why a new command cannot be taken, or NULL. */
static GError *
client_refusal(const QmpClient *client, const char *text)
{
    if (client->state >= CLIENT_CLOSING)
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

static struct json_object *
message_new(const char *command, struct json_object *arguments, guint64 id)
{
    struct json_object *message = json_object_new_object();

    json_object_object_add(message, "execute", json_object_new_string(command));
    if (arguments)
        json_object_object_add(message, "arguments", json_object_get(arguments));
    json_object_object_add(message, "id", json_object_new_int64((int64_t)id));
    return message;
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
    command->message = message_new(name, arguments, command->id);
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
    const char *text = message_text(command->message);

    command->text_bytes = strlen(text);
    if (!refusal)
        refusal = client_refusal(client, text);
    g_queue_push_tail_link(&client->pending, &command->link);
    if (refusal) {
        command_decide(command, refusal);
    } else {
        command->deadline = client_attach(client, g_timeout_source_new(command->timeout_ms),
                                          on_command_deadline, command);
        client_pump(client);
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
qmp_client_cancel(QmpClient *client, guint64 id)
{
    QmpCommand *command = client_find(client, id);

    if (!command || command->verdict)
        return;
    command_decide(command,
                   g_error_new(QMP_ERROR, QMP_ERROR_CANCELLED, "%s: cancelled", command->name));
}

/* --- output --------------------------------------------------------------------------------- */

static gboolean
on_output(gint fd, GIOCondition condition, gpointer data)
{
    g_autoptr(ClientHold) client = client_enter(data);
    View rest = view_of(client->out->data, client->out->len);
    bool inside = view_skip(&rest, client->out_done_bytes);

    (void)condition;
    g_assert(inside);

    ssize_t n = send(fd, rest.data, rest.len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n < 0) {
        /* What QEMU said before it died is still to be read: the input finds the end. */
        g_debug("qmp: send: %s", g_strerror(errno));
        client->out_dead = TRUE;
    } else {
        client->out_done_bytes += (size_t)n;
    }
    if (client->out_dead || client->out_done_bytes == client->out->len) {
        g_byte_array_set_size(client->out, 0);
        client->out_done_bytes = 0;
        source_clear(&client->output);
    }
    return G_SOURCE_CONTINUE;
}

static void
client_write(QmpClient *client, struct json_object *message)
{
    const char *text = message_text(message);

    if (client->out_dead)
        return;
    qmp_transcript_line(client->transcript, QMP_TRANSCRIPT_OUT, view_of(text, strlen(text)));
    if (client->out_done_bytes) {
        g_byte_array_remove_range(client->out, 0, (guint)client->out_done_bytes);
        client->out_done_bytes = 0;
    }
    g_byte_array_append(client->out, (const guint8 *)text, (guint)strlen(text));
    g_byte_array_append(client->out, (const guint8 *)"\n", 1);
    if (!client->output)
        client->output = client_attach(client, g_unix_fd_source_new(client->fd, G_IO_OUT),
                                       G_SOURCE_FUNC(on_output), client);
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
    command->phase = COMMAND_SENT;
    client_write(command->client, command->message);
}

static void
command_write(QmpCommand *command, guint64 *slot)
{
    *slot = command->id;
    command->phase = COMMAND_SENT;
    client_write(command->client, command->message);
}

/* Sends what may be sent: everything out of band, then in-band while there are free slots. */
static void
client_pump(QmpClient *client)
{
    guint64 *slot;

    if (client->state != CLIENT_READY)
        return;
    for (GList *l = client->pending.head; l && client->has_oob; l = l->next) {
        QmpCommand *command = l->data;

        if (command->want_oob && command->phase == COMMAND_WAITING && !command->verdict)
            command_write_oob(command);
    }
    for (GList *l = client->pending.head; l && (slot = in_flight_slot(client, 0)); l = l->next) {
        QmpCommand *command = l->data;

        if (command->phase == COMMAND_WAITING && !command->verdict)
            command_write(command, slot);
    }
}

/* --- input ---------------------------------------------------------------------------------- */

static void
client_handle_reply(QmpClient *client, const QmpMessage *message)
{
    QmpCommand *command = client_find(client, message->id);
    guint64 *slot = message->id ? in_flight_slot(client, message->id) : NULL;
    g_autoptr(GError) error = NULL;

    if (slot) {
        *slot = 0;
        client_pump(client);
    }
    if (!command || command->phase != COMMAND_SENT || command->verdict) {
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

static void
client_unexpected(QmpClient *client, View line, const char *expected)
{
    g_autofree char *excerpt = qmp_excerpt(line);

    client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_PROTOCOL, "expected %s, got \"%s\"",
                                    expected, excerpt));
}

static void
client_handle_greeting(QmpClient *client, const QmpMessage *message)
{
    struct json_object *arguments = json_object_new_object();
    struct json_object *enable = json_object_new_array();
    struct json_object *negotiation;

    client->version = g_strdup_printf("%d.%d.%d", message->greeting.major, message->greeting.minor,
                                      message->greeting.micro);
    client->package = g_strdup(message->greeting.package);
    client->offers_oob = message->greeting.offers_oob;
    if (client->offers_oob)
        json_object_array_add(enable, json_object_new_string("oob"));
    json_object_object_add(arguments, "enable", enable);
    client->negotiation_id = client->next_id++;
    negotiation = message_new("qmp_capabilities", arguments, client->negotiation_id);
    json_object_put(arguments);
    client_set_state(client, CLIENT_NEGOTIATING, client->version);
    client_write(client, negotiation);
    json_object_put(negotiation);
}

static void
client_handle_negotiated(QmpClient *client, const QmpMessage *message)
{
    if (message->type == QMP_MESSAGE_ERROR) {
        client_fail(client, qmp_error_new_command(message->name, message->desc));
        return;
    }
    source_clear(&client->deadline);
    client->has_oob = client->offers_oob;
    client_set_state(client, CLIENT_READY, client->has_oob ? "with oob" : "without oob");
    client_pump(client);
    if (client->handlers.ready)
        client->handlers.ready(client, client->user_data);
}

static void
client_handle(QmpClient *client, const QmpMessage *message, View line)
{
    bool negotiating = client->state == CLIENT_NEGOTIATING;

    if (client->state == CLIENT_GREETING) {
        if (message->type == QMP_MESSAGE_GREETING)
            client_handle_greeting(client, message);
        else
            client_unexpected(client, line, "the QMP greeting");
        return;
    }
    switch (message->type) {
    case QMP_MESSAGE_GREETING:
        client_unexpected(client, line, "no second greeting");
        break;
    case QMP_MESSAGE_EVENT:
        if (client->handlers.event)
            client->handlers.event(client, message->name, message->value, message->timestamp_us,
                                   client->user_data);
        break;
    case QMP_MESSAGE_RETURN:
    case QMP_MESSAGE_ERROR:
        if (!negotiating)
            client_handle_reply(client, message);
        else if (message->id == client->negotiation_id)
            client_handle_negotiated(client, message);
        else
            client_unexpected(client, line, "the reply to qmp_capabilities");
        break;
    }
}

static void
client_drain_input(QmpClient *client)
{
    while (client_is_live(client)) {
        g_auto(QmpMessage) message = {.id = 0};
        g_autoptr(GError) error = NULL;
        View line;
        QmpSplit split = qmp_splitter_next(client->splitter, &line, &error);

        if (split == QMP_SPLIT_MORE)
            return;
        if (split == QMP_SPLIT_LINE)
            qmp_transcript_line(client->transcript, QMP_TRANSCRIPT_IN, line);
        if (split == QMP_SPLIT_LINE && qmp_message_parse(line, &message, &error))
            client_handle(client, &message, line);
        else
            client_fail(client, g_steal_pointer(&error));
    }
}

static GError *
client_eof_error(const QmpClient *client)
{
    View rest = qmp_splitter_rest(client->splitter);
    g_autofree char *excerpt = qmp_excerpt(rest);

    if (rest.len)
        return g_error_new(QMP_ERROR, QMP_ERROR_PROTOCOL,
                           "QEMU closed the connection in the middle of a message: \"%s\"",
                           excerpt);
    return g_error_new_literal(QMP_ERROR, QMP_ERROR_CLOSED, "QEMU closed the QMP connection");
}

static gboolean
on_input(gint fd, GIOCondition condition, gpointer data)
{
    g_autoptr(ClientHold) client = client_enter(data);
    uint8_t bytes[QMP_READ_BYTES];
    ssize_t n = read(fd, bytes, sizeof(bytes));

    (void)condition;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n < 0) {
        client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_CLOSED, "QMP connection lost: %s",
                                        g_strerror(errno)));
    } else if (n == 0) {
        client_fail(client, client_eof_error(client));
    } else {
        qmp_splitter_feed(client->splitter, view_of(bytes, (size_t)n));
        client_drain_input(client);
    }
    /* When the connection has ended the source is destroyed already. */
    return G_SOURCE_CONTINUE;
}

/* --- connecting ----------------------------------------------------------------------------- */

static void
client_connected(QmpClient *client, int fd)
{
    int r;

    source_clear(&client->connect_timer);
    client->fd = fd;
    r = fd_set_nonblocking(fd);
    if (r < 0) {
        client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_CONNECT, "QMP descriptor: %s",
                                        g_strerror(-r)));
        return;
    }
    client_set_state(client, CLIENT_GREETING, "connected");
    client->input = client_attach(client, g_unix_fd_source_new(fd, G_IO_IN | G_IO_HUP | G_IO_ERR),
                                  G_SOURCE_FUNC(on_input), client);
}

static gboolean
on_connect_timer(gpointer data)
{
    g_autoptr(ClientHold) client = client_enter(data);
    int r = fd_unix_connect(client->socket_path);

    if (r >= 0) {
        client_connected(client, r);
        return G_SOURCE_REMOVE;
    }
    client->connect_errno = -r;
    /* Not there yet, left over from a dead QEMU, or its backlog is full: that can change. */
    if (r == -ENOENT || r == -ECONNREFUSED || r == -EAGAIN || r == -EINTR)
        return G_SOURCE_CONTINUE;
    client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_CONNECT, "cannot connect to %s: %s",
                                    client->socket_path, g_strerror(-r)));
    return G_SOURCE_REMOVE;
}

static gboolean
on_connect_deadline(gpointer data)
{
    g_autoptr(ClientHold) client = client_enter(data);
    GError *error;

    if (client->state == CLIENT_CONNECTING)
        error = g_error_new(QMP_ERROR, QMP_ERROR_CONNECT, "cannot connect to %s within %u ms: %s",
                            client->socket_path, client->connect_timeout_ms,
                            g_strerror(client->connect_errno));
    else if (client->state == CLIENT_GREETING)
        /* QEMU serves one client at a time; a second one sits in the backlog without a word. */
        error = g_error_new(QMP_ERROR, QMP_ERROR_TIMEOUT,
                            "no QMP greeting within %u ms; is another client connected?",
                            client->connect_timeout_ms);
    else
        error =
            g_error_new(QMP_ERROR, QMP_ERROR_TIMEOUT, "no answer to qmp_capabilities within %u ms",
                        client->connect_timeout_ms);
    client_fail(client, error);
    return G_SOURCE_REMOVE;
}

static QmpClient *
client_new(unsigned connect_timeout_ms, const QmpClientHandlers *handlers, gpointer user_data)
{
    g_assert(connect_timeout_ms > 0);

    QmpClient *client = g_new0(QmpClient, 1);

    client->refs = 1;
    client->context = g_main_context_ref_thread_default();
    client->handlers = *handlers;
    client->user_data = user_data;
    client->connect_timeout_ms = connect_timeout_ms;
    client->fd = -1;
    client->splitter = qmp_splitter_new(QMP_MESSAGE_BYTES_MAX);
    client->out = g_byte_array_new();
    client->next_id = 1;
    g_queue_init(&client->pending);
    return client;
}

static void
client_start_deadline(QmpClient *client)
{
    client->deadline = client_attach(client, g_timeout_source_new(client->connect_timeout_ms),
                                     on_connect_deadline, client);
}

QmpClient *
qmp_client_new(const char *socket_path, unsigned connect_timeout_ms,
               const QmpClientHandlers *handlers, gpointer user_data)
{
    QmpClient *client = client_new(connect_timeout_ms, handlers, user_data);

    client->socket_path = g_strdup(socket_path);
    client->connect_timer =
        client_attach(client, g_timeout_source_new(QMP_CONNECT_RETRY_MS), on_connect_timer, client);
    g_source_set_ready_time(client->connect_timer, 0); /* the first attempt at once */
    client_start_deadline(client);
    return client;
}

QmpClient *
qmp_client_new_fd(int fd, unsigned connect_timeout_ms, const QmpClientHandlers *handlers,
                  gpointer user_data)
{
    QmpClient *client = client_new(connect_timeout_ms, handlers, user_data);

    client_connected(client, fd);
    if (client_is_live(client))
        client_start_deadline(client);
    return client;
}

/* --- the rest ------------------------------------------------------------------------------- */

gboolean
qmp_client_set_transcript(QmpClient *client, const char *path, GError **error)
{
    QmpTranscript *transcript = qmp_transcript_new(path, QMP_TRANSCRIPT_BYTES_MAX, error);

    if (!transcript)
        return FALSE;
    qmp_transcript_free(client->transcript);
    client->transcript = transcript;
    return TRUE;
}

static bool
client_was_ready(const QmpClient *client)
{
    return client->state >= CLIENT_READY;
}

const char *
qmp_client_version(const QmpClient *client)
{
    return client_was_ready(client) ? client->version : NULL;
}

const char *
qmp_client_package(const QmpClient *client)
{
    return client_was_ready(client) ? client->package : NULL;
}

gboolean
qmp_client_has_oob(const QmpClient *client)
{
    return client->has_oob;
}

guint64
qmp_client_ignored_replies(const QmpClient *client)
{
    return client->ignored_replies;
}
