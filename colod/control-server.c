/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-server.c - the JSON control socket
 *
 * Theory of operation
 * ===================
 * Main thread only; nothing blocks. One listening source, one source per client whose condition
 * follows what the client waits for: input while it may send, output while some is unsent.
 *
 * A client lives as long as its connection or the last request of it that a handler still owns:
 * both hold a reference. `server` in the client becomes NULL when the connection ends; an answer to
 * such a client is dropped. A client that has shut down its sending side (`nc -N`) still gets its
 * answers and, if it subscribed, events.
 *
 * Limits: clients, bytes a line, requests under way and unread output, all below. A client that
 * reaches one is told so, or dropped if it does not listen.
 */
#include "control-server.h"
#include "control-server-parse.h"

#include "fd.h"

#include <errno.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 32,
    MAX_LINE_BYTES = 64 * 1024,
    MAX_UNREAD_BYTES = 1024 * 1024,
    MAX_UNDER_WAY = 64,
    MAX_DEPTH = 16,         /* of a request's JSON */
    READ_BYTES = 16 * 1024, /* per dispatch: a client that floods must not starve the loop */
    ACCEPT_RETRY_MS = 1000, /* after running out of descriptors */
};

typedef struct Client {
    ControlServer *server; /* NULL: gone */
    unsigned refs;
    int fd;
    GSource *source;
    GIOCondition condition; /* of `source` */
    GByteArray *input;      /* no newline in it, except while it is taken apart */
    GByteArray *output;     /* unsent */
    unsigned under_way;
    gboolean subscribed;
    gboolean input_ended; /* end of file, or a line that was too long */
} Client;

struct ControlServer {
    char *path;
    EventLog *log;
    ControlFunc func;
    gpointer user_data;
    int fd;
    GMainContext *context;
    GSource *source; /* accepts, or waits to accept again */
    GPtrArray *clients;
};

struct ControlRequest {
    Client *client; /* a reference */
    json_object *id;
};

/* --- One line --- */

void
control_line_clear(ControlLine *line)
{
    json_object_put(line->id);
    json_object_put(line->object);
    *line = (ControlLine){0};
}

static json_object *
parse_json(const char *text, gsize length, char **ret_problem)
{
    json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);

    g_assert(tokener);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);

    json_object *object = json_tokener_parse_ex(tokener, text, (int)length);
    enum json_tokener_error code = json_tokener_get_error(tokener);

    if (code == json_tokener_continue)
        *ret_problem = g_strdup("the line ends inside the JSON object");
    else if (code != json_tokener_success)
        *ret_problem = g_strdup_printf("at byte %zu: %s", json_tokener_get_parse_end(tokener),
                                       json_tokener_error_desc(code));
    else if (json_tokener_get_parse_end(tokener) != length)
        *ret_problem = g_strdup_printf("at byte %zu: something follows the JSON object",
                                       json_tokener_get_parse_end(tokener));
    json_tokener_free(tokener);
    return object;
}

char *
control_line_parse(const char *text, gsize length, ControlLine *ret_line)
{
    char *problem = NULL;
    json_object *command;

    *ret_line = (ControlLine){0};
    g_assert(length <= MAX_LINE_BYTES);
    if (memchr(text, '\0', length))
        return g_strdup("a zero byte is no JSON");
    while (length > 0 && g_ascii_isspace(text[length - 1]))
        length--;
    ret_line->object = parse_json(text, length, &problem);
    if (problem)
        return problem;
    if (!json_object_is_type(ret_line->object, json_type_object))
        return g_strdup("a request is a JSON object, {\"id\": 1, \"command\": \"...\"}");

    ret_line->id = json_object_get(json_object_object_get(ret_line->object, "id"));
    if (!json_object_object_get_ex(ret_line->object, "command", &command) ||
        !json_object_is_type(command, json_type_string))
        return g_strdup("\"command\" is missing or no string");
    if (strlen(json_object_get_string(command)) != (size_t)json_object_get_string_len(command))
        return g_strdup("\"command\" holds a zero character");
    if (json_object_object_get_ex(ret_line->object, "arguments", &ret_line->arguments) &&
        !json_object_is_type(ret_line->arguments, json_type_object))
        return g_strdup("\"arguments\" is no object");
    ret_line->command = json_object_get_string(command);
    return NULL;
}

/* --- A client --- */

static void
client_unref(Client *client)
{
    if (--client->refs > 0)
        return;
    g_assert(!client->server && !client->source);
    g_byte_array_unref(client->input);
    g_byte_array_unref(client->output);
    g_free(client);
}

static Client *
client_ref(Client *client)
{
    client->refs++;
    return client;
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Client, client_unref)

static void
client_set_source(Client *client, GSource *source)
{
    if (client->source) {
        g_source_destroy(client->source);
        g_source_unref(client->source);
    }
    client->source = source;
}

/* The connection ends; requests under way keep the object. */
static void
client_drop(Client *client)
{
    ControlServer *server = client->server;

    if (!server)
        return;
    client->server = NULL;
    client_set_source(client, NULL);
    fd_clear(&client->fd);
    g_ptr_array_remove_fast(server->clients, client);
}

static gboolean client_ready(int fd, GIOCondition condition, gpointer user_data);

/* After each change of output, input_ended or under_way. */
static void
client_update(Client *client)
{
    if (!client->server)
        return;
    if (client->input_ended && client->output->len == 0 && client->under_way == 0 &&
        !client->subscribed) {
        client_drop(client);
        return;
    }

    GIOCondition wanted = (client->input_ended ? 0 : G_IO_IN) |
                          (client->output->len > 0 ? G_IO_OUT : 0) | G_IO_HUP | G_IO_ERR;

    if (client->source && wanted == client->condition)
        return;

    GSource *source = g_unix_fd_source_new(client->fd, wanted);

    g_source_set_callback(source, G_SOURCE_FUNC(client_ready), client, NULL);
    g_source_attach(source, client->server->context);
    client_set_source(client, source);
    client->condition = wanted;
}

static void
client_flush(Client *client)
{
    while (client->server && client->output->len > 0) {
        ssize_t n = send(client->fd, client->output->data, client->output->len,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            client_drop(client);
        else
            g_byte_array_remove_range(client->output, 0, (guint)n);
    }
}

/* Takes @message. */
static void
client_send(Client *client, json_object *message)
{
    if (client->server) {
        const char *text = json_object_to_json_string_ext(
            message, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);

        /* Judged before this message: one that is alone may be long. */
        if (client->output->len > MAX_UNREAD_BYTES) {
            client_drop(client);
        } else {
            g_byte_array_append(client->output, (const guint8 *)text, (guint)strlen(text));
            g_byte_array_append(client->output, (const guint8 *)"\n", 1);
            client_flush(client);
        }
    }
    json_object_put(message);
}

static json_object *
make_error(json_object *id, const char *error_class, const char *text)
{
    json_object *message = json_object_new_object();
    json_object *error = json_object_new_object();
    g_autofree char *valid = g_utf8_make_valid(text, -1);

    json_object_object_add(error, "class", json_object_new_string(error_class));
    json_object_object_add(error, "text", json_object_new_string(valid));
    json_object_object_add(message, "id", json_object_get(id));
    json_object_object_add(message, "error", error);
    return message;
}

static json_object *
make_return(json_object *id, json_object *value)
{
    json_object *message = json_object_new_object();

    json_object_object_add(message, "id", json_object_get(id));
    json_object_object_add(message, "return", value ? value : json_object_new_object());
    return message;
}

static void
send_event(Client *client, json_object *event)
{
    json_object *message = json_object_new_object();

    json_object_object_add(message, "event", json_object_get(event));
    client_send(client, message);
}

static void
subscribe(Client *client, const ControlLine *line)
{
    json_object *after = json_object_object_get(line->arguments, "after");

    if (after && (!json_object_is_type(after, json_type_int) || json_object_get_int64(after) < 0)) {
        client_send(client, make_error(line->id, "usage", "\"after\" is a number of an event"));
        return;
    }
    if (client->subscribed) {
        client_send(client, make_error(line->id, "usage", "this connection has subscribed before"));
        return;
    }
    client_send(client, make_return(line->id, NULL));
    client->subscribed = TRUE;

    json_object *list =
        event_log_list(client->server->log, after ? json_object_get_uint64(after) : 0);

    for (size_t i = 0; i < json_object_array_length(list) && client->server; i++)
        send_event(client, json_object_array_get_idx(list, i));
    json_object_put(list);
}

static void
handle_line(Client *client, const char *text, gsize length)
{
    g_auto(ControlLine) line = {0};
    g_autofree char *problem = control_line_parse(text, length, &line);

    if (!line.command) {
        client_send(client, make_error(line.id, "usage", problem));
        return;
    }
    if (g_str_equal(line.command, "subscribe")) {
        subscribe(client, &line);
        return;
    }
    if (client->under_way >= MAX_UNDER_WAY) {
        client_send(client, make_error(line.id, "refused",
                                       "64 requests of this connection are under way; wait for "
                                       "answers"));
        return;
    }

    ControlRequest *request = g_new0(ControlRequest, 1);
    json_object *arguments =
        line.arguments ? json_object_get(line.arguments) : json_object_new_object();

    request->client = client_ref(client);
    request->id = json_object_get(line.id);
    client->under_way++;
    client->server->func(request, line.command, arguments, client->server->user_data);
    json_object_put(arguments);
}

/* Takes whole lines off the input; what is left is the start of one. */
static void
handle_input(Client *client)
{
    gsize done = 0;

    while (client->server) {
        const char *start = (const char *)client->input->data + done;
        gsize left = client->input->len - done;
        const char *end = left > 0 ? memchr(start, '\n', left) : NULL;
        gsize length = end ? (gsize)(end - start) : left;

        if (length > MAX_LINE_BYTES) {
            client_send(client, make_error(NULL, "usage", "a line is at most 64 KiB long"));
            client->input_ended = TRUE;
            client->subscribed = FALSE;
            done = client->input->len;
            break;
        }
        if (!end)
            break;
        if (length > 0)
            handle_line(client, start, length);
        done += length + 1;
    }
    if (client->server)
        g_byte_array_remove_range(client->input, 0, (guint)done);
}

static void
read_input(Client *client)
{
    char buffer[READ_BYTES];
    ssize_t n = recv(client->fd, buffer, sizeof(buffer), MSG_DONTWAIT);

    if (n > 0) {
        g_byte_array_append(client->input, (const guint8 *)buffer, (guint)n);
        handle_input(client);
    } else if (n == 0) {
        client->input_ended = TRUE;
    } else if (errno != EAGAIN && errno != EINTR) {
        client_drop(client);
    }
}

static gboolean
client_ready(G_GNUC_UNUSED int fd, GIOCondition condition, gpointer user_data)
{
    g_autoptr(Client) client = client_ref(user_data);

    /* A client that has gone may have left requests: they are read first, up to end of file. */
    if ((condition & G_IO_IN) && !client->input_ended)
        read_input(client);
    else if (condition & (G_IO_HUP | G_IO_ERR))
        client_drop(client);
    if (client->server && (condition & G_IO_OUT))
        client_flush(client);
    client_update(client);
    return G_SOURCE_CONTINUE; /* client_update() or client_drop() has replaced the source */
}

/* --- The server --- */

static gboolean accept_ready(int fd, GIOCondition condition, gpointer user_data);

static void
set_accept_source(ControlServer *server, GSource *source)
{
    if (server->source) {
        g_source_destroy(server->source);
        g_source_unref(server->source);
    }
    server->source = source;
    if (source)
        g_source_attach(source, server->context);
}

static gboolean
listen_again(gpointer user_data)
{
    ControlServer *server = user_data;
    GSource *source = g_unix_fd_source_new(server->fd, G_IO_IN);

    g_source_set_callback(source, G_SOURCE_FUNC(accept_ready), server, NULL);
    set_accept_source(server, source);
    return G_SOURCE_REMOVE;
}

/* A socket that cannot be accepted stays readable: without a pause the loop would spin. */
static void
pause_accepting(ControlServer *server)
{
    GSource *source = g_timeout_source_new(ACCEPT_RETRY_MS);

    g_source_set_callback(source, listen_again, server, NULL);
    set_accept_source(server, source);
}

static gboolean
accept_ready(int fd, G_GNUC_UNUSED GIOCondition condition, gpointer user_data)
{
    ControlServer *server = user_data;
    int client_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (client_fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            pause_accepting(server);
        return G_SOURCE_CONTINUE;
    }

    g_autoptr(Client) client = client_ref(g_new0(Client, 1));

    client->server = server;
    client_ref(client); /* the server's, dropped with the connection */
    client->fd = client_fd;
    client->input = g_byte_array_new();
    client->output = g_byte_array_new();
    g_ptr_array_add(server->clients, client);
    if (server->clients->len > MAX_CLIENTS) {
        client_send(client,
                    make_error(NULL, "refused", "32 clients are connected already; close one"));
        client_drop(client);
        return G_SOURCE_CONTINUE;
    }
    client_update(client);
    return G_SOURCE_CONTINUE;
}

static void
on_event(json_object *event, gpointer user_data)
{
    ControlServer *server = user_data;

    /* From the end: a client that is dropped is replaced by the last, which has had its turn. */
    for (guint i = server->clients->len; i-- > 0;) {
        Client *client = g_ptr_array_index(server->clients, i);

        if (!client->subscribed)
            continue;
        client_ref(client);
        send_event(client, event);
        client_update(client);
        client_unref(client);
    }
}

ControlServer *
control_server_new(const char *path, EventLog *log, ControlFunc func, gpointer user_data,
                   GError **error)
{
    /* Somebody answers there: taking the socket over would hide the other daemon. */
    auto_fd int other = fd_unix_connect(path);

    if (other >= 0 || other == -EAGAIN) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE,
                    "%s: another colod serves this VM; stop it first", path);
        return NULL;
    }

    int fd = fd_unix_listen(path);

    if (fd < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(-fd),
                    "%s: cannot listen: %s; its folder must exist and be writable", path,
                    g_strerror(-fd));
        return NULL;
    }

    ControlServer *server = g_new0(ControlServer, 1);

    server->path = g_strdup(path);
    server->log = log;
    server->func = func;
    server->user_data = user_data;
    server->fd = fd;
    server->context = g_main_context_ref_thread_default();
    server->clients = g_ptr_array_new_with_free_func((GDestroyNotify)client_unref);
    listen_again(server);
    event_log_set_func(log, on_event, server);
    return server;
}

void
control_server_free(ControlServer *server)
{
    if (!server)
        return;
    event_log_set_func(server->log, NULL, NULL);
    while (server->clients->len > 0)
        client_drop(g_ptr_array_index(server->clients, 0));
    g_ptr_array_unref(server->clients);
    set_accept_source(server, NULL);
    g_main_context_unref(server->context);
    fd_clear(&server->fd);
    (void)g_unlink(server->path);
    g_free(server->path);
    g_free(server);
}

/* --- Requests --- */

/* Takes both. */
static void
request_end(ControlRequest *request, json_object *message)
{
    Client *client = request->client;

    client->under_way--;
    client_send(client, message);
    client_update(client);
    client_unref(client);
    json_object_put(request->id);
    g_free(request);
}

void
control_request_return(ControlRequest *request, json_object *value)
{
    request_end(request, make_return(request->id, value));
}

void
control_request_fail(ControlRequest *request, const char *error_class, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);

    request_end(request, make_error(request->id, error_class, text));
}
