/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-client.c - asynchronous client of a plugin's control socket
 *
 * Theory of operation
 *
 * A connection has one request under way. The first one asks for nothing but `status {after}`,
 * which is answered at a change, or after WATCH_MS without one: so a plugin that hangs shows
 * within WATCH_MS + silence. The second carries commands in their order. Each of the others carries
 * one that does not wait for its turn. The plugin gets a command's deadline and
 * answers class `timeout` by itself; if not even that comes, it hangs, and the client closes.
 *
 * Everything received is somebody else's: lines are bounded, and one that is not the answer to
 * the request under way closes the client.
 */
#include "disk-client.h"

#include "clock.h"
#include "disk.h"
#include "fd.h"
#include "source.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>

enum {
    LINK_WATCH,
    LINK_IN_TURN,
    LINK_AT_ONCE,  /* the first of them */
    LINKS_MAX = 6, /* the plugin takes 8, and somebody may look with a tool of his own */
    QUEUE_MAX = 64,
    LINE_MAX_BYTES = 64 * 1024,
    MAX_DEPTH = 8,
    WATCH_MS = 500, /* how old figures may be that change without being told */
    RETRY_MS = 5,   /* until the socket is there: nbdkit takes some 20 ms */
};

typedef struct Request {
    char *line;
    guint64 id;
    DiskUrgency urgency;
    unsigned timeout_ms;
    int64_t deadline_ns; /* once it is sent */
    DiskReplyFunc func;
    gpointer user_data;
    GDestroyNotify destroy;
} Request;

typedef struct Link {
    DiskClient *client;
    int fd;
    GSource *input;
    GByteArray *received;
    Request *request; /* under way; NULL: idle */
} Link;

struct DiskClient {
    char *path;
    const DiskClientHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    unsigned silence_ms;
    int64_t connect_deadline_ns;
    pid_t pid;
    guint64 last_id;
    Link links[LINKS_MAX]; /* [0]: the watch's; fd -1: not connected */
    GQueue waiting;        /* Request */
    GSource *timer;        /* the next deadline, or the next attempt to connect */
    GError *broken;
    gboolean closed_told;
    int64_t change;  /* of the last status */
    gboolean *freed; /* of the callback that is running */
};

static void schedule(DiskClient *client);

static Request *
request_new(DiskClient *client, const char *command, json_object *arguments, unsigned timeout_ms)
{
    json_object *message = json_object_new_object();
    Request *request = g_new0(Request, 1);

    if (!arguments)
        arguments = json_object_new_object();
    json_object_object_add(arguments, "timeout_ms", json_object_new_int64(timeout_ms));
    request->id = ++client->last_id;
    json_object_object_add(message, "id", json_object_new_int64((int64_t)request->id));
    json_object_object_add(message, "command", json_object_new_string(command));
    json_object_object_add(message, "arguments", arguments);
    request->line =
        g_strconcat(json_object_to_json_string_ext(message, JSON_C_TO_STRING_PLAIN), "\n", NULL);
    json_object_put(message);
    request->timeout_ms = timeout_ms;
    return request;
}

static void
request_free(gpointer data)
{
    Request *request = data;

    if (request->destroy)
        request->destroy(request->user_data);
    g_free(request->line);
    g_free(request);
}

static void
link_close(Link *link)
{
    source_clear(&link->input);
    g_clear_pointer(&link->received, g_byte_array_unref);
    fd_clear(&link->fd);
    g_clear_pointer(&link->request, request_free);
}

/* --- The end --- */

/* Calls @request's function and frees @request. TRUE: the client is freed. */
static gboolean
reply(DiskClient *client, Request *request, json_object *value, const GError *error)
{
    gboolean freed = FALSE;
    gboolean *outer = client->freed;

    client->freed = &freed;
    if (request->func)
        request->func(value, error, request->user_data);
    request_free(request);
    if (!freed)
        client->freed = outer;
    else if (outer)
        *outer = TRUE;
    return freed;
}

static void
tell_the_end(DiskClient *client)
{
    g_autoptr(GError) reason = g_error_copy(client->broken);
    g_autoptr(GPtrArray) open = g_ptr_array_new();
    gboolean freed = FALSE;
    Request *request;

    for (int i = 0; i < LINKS_MAX; i++) {
        if (client->links[i].request)
            g_ptr_array_add(open, g_steal_pointer(&client->links[i].request));
        link_close(&client->links[i]);
    }
    while ((request = g_queue_pop_head(&client->waiting)))
        g_ptr_array_add(open, request);
    for (guint i = 0; i < open->len; i++) {
        if (freed)
            request_free(open->pdata[i]);
        else
            freed = reply(client, open->pdata[i], NULL, reason);
    }
    if (freed || client->closed_told)
        return;
    client->closed_told = TRUE;
    client->handlers->closed(client, reason, client->user_data);
}

/* The end is told from the loop. */
static void
break_off(DiskClient *client, DiskError code, const char *what)
{
    if (client->broken)
        return;
    client->broken = g_error_new(DISK_ERROR, (int)code, "%s: %s", client->path, what);
    schedule(client);
}

/* --- Sending --- */

static void
link_send(Link *link, Request *request)
{
    size_t length = strlen(request->line);
    ssize_t n;

    link->request = request;
    request->deadline_ns =
        clock_now_ns() + (request->timeout_ms + link->client->silence_ms) * NS_PER_MS;
    do
        n = send(link->fd, request->line, length, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    /* A request is far smaller than a socket's buffer, and the buffer is empty. */
    if (n != (ssize_t)length)
        break_off(link->client, DISK_ERROR_PROCESS, n < 0 ? g_strerror(errno) : "does not read");
}

static void take_answer(Link *link, const char *line, size_t length);

static void
take_lines(Link *link)
{
    DiskClient *client = link->client;
    gboolean freed = FALSE;
    const uint8_t *end;

    client->freed = &freed;
    while (!freed && !client->broken && link->received->len > 0 &&
           (end = memchr(link->received->data, '\n', link->received->len))) {
        size_t length = (size_t)(end - link->received->data);
        g_autofree char *line = g_strndup((const char *)link->received->data, length);

        g_byte_array_remove_range(link->received, 0, (guint)length + 1);
        take_answer(link, line, length);
    }
    if (freed)
        return;
    client->freed = NULL;
    if (!client->broken && link->received->len > LINE_MAX_BYTES)
        break_off(client, DISK_ERROR_PROCESS, "its answer is too long");
}

static gboolean
on_input(gint fd, GIOCondition condition G_GNUC_UNUSED, gpointer user_data)
{
    Link *link = user_data;
    uint8_t buffer[4096];
    ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return G_SOURCE_CONTINUE;
    if (n <= 0) {
        break_off(link->client, DISK_ERROR_PROCESS,
                  n < 0 ? g_strerror(errno) : "the process closed the connection");
        source_clear(&link->input); /* it would fire on; the end comes from the timer */
        return G_SOURCE_REMOVE;
    }
    g_byte_array_append(link->received, buffer, (guint)n);
    take_lines(link);
    return G_SOURCE_CONTINUE; /* of no meaning if the source was destroyed meanwhile */
}

/* 0 or a negative errno. */
static int
link_open(DiskClient *client, Link *link)
{
    int fd = fd_unix_connect(client->path);

    if (fd < 0)
        return fd;
    link->client = client;
    link->fd = fd;
    link->received = g_byte_array_new();
    link->input = g_unix_fd_source_new(fd, G_IO_IN);
    g_source_set_callback(link->input, G_SOURCE_FUNC(on_input), link, NULL);
    g_source_attach(link->input, client->context);
    return 0;
}

/* An idle link for a request of this urgency, or NULL. */
static Link *
find_link(DiskClient *client, DiskUrgency urgency)
{
    int first = urgency == DISK_AT_ONCE ? LINK_AT_ONCE : LINK_IN_TURN;
    int end = urgency == DISK_AT_ONCE ? LINKS_MAX : LINK_AT_ONCE;

    for (int i = first; i < end; i++) {
        if (!client->links[i].request)
            return &client->links[i];
    }
    return NULL;
}

/* Gives waiting requests to idle links. */
static void
pump(DiskClient *client)
{
    GList *next;

    for (GList *at = client->waiting.head; at && !client->broken; at = next) {
        Request *request = at->data;
        Link *link = find_link(client, request->urgency);
        int r = link && link->fd < 0 ? link_open(client, link) : 0;

        next = at->next;
        if (r < 0) {
            break_off(client, DISK_ERROR_PROCESS, g_strerror(-r));
        } else if (link) {
            g_queue_delete_link(&client->waiting, at);
            link_send(link, request);
        }
    }
}

/* --- Receiving --- */

static void
watch(DiskClient *client, gboolean first)
{
    json_object *arguments = json_object_new_object();

    if (!first)
        json_object_object_add(arguments, "after", json_object_new_int64(client->change));
    link_send(&client->links[LINK_WATCH], request_new(client, "status", arguments, WATCH_MS));
}

static void
take_status(DiskClient *client, json_object *status)
{
    json_object *change = NULL;
    gboolean *freed = client->freed;

    if (!json_object_object_get_ex(status, "change", &change) ||
        !json_object_is_type(change, json_type_int)) {
        break_off(client, DISK_ERROR_PROCESS, "its status has no `change`");
        return;
    }
    client->change = json_object_get_int64(change);
    client->handlers->status(client, status, client->user_data);
    if (!*freed && !client->broken)
        watch(client, FALSE);
}

static GError *
error_of(json_object *error)
{
    json_object *class = NULL, *text = NULL;
    DiskError code = DISK_ERROR_FAILED;

    (void)json_object_object_get_ex(error, "class", &class);
    (void)json_object_object_get_ex(error, "text", &text);

    const char *name = class ? json_object_get_string(class) : "";

    if (g_strcmp0(name, "refused") == 0 || g_strcmp0(name, "usage") == 0)
        code = DISK_ERROR_REFUSED;
    else if (g_strcmp0(name, "timeout") == 0)
        code = DISK_ERROR_TIMEOUT;
    return g_error_new_literal(DISK_ERROR, (int)code,
                               text ? json_object_get_string(text) : "an error without a text");
}

/* The line as an object that answers @id, the caller's; or NULL. */
static json_object *
parse_answer(const char *line, size_t length, guint64 id)
{
    json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);
    json_object *value = NULL;

    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);

    json_object *object = json_tokener_parse_ex(tokener, line, (int)length);
    bool whole = json_tokener_get_error(tokener) == json_tokener_success &&
                 json_tokener_get_parse_end(tokener) == length;

    json_tokener_free(tokener);
    if (whole && json_object_is_type(object, json_type_object) &&
        json_object_object_get_ex(object, "id", &value) &&
        json_object_is_type(value, json_type_int) && json_object_get_uint64(value) == id)
        return object;
    json_object_put(object);
    return NULL;
}

static void
take_answer(Link *link, const char *line, size_t length)
{
    DiskClient *client = link->client;
    json_object *answer = link->request ? parse_answer(line, length, link->request->id) : NULL;
    json_object *value = NULL, *failure = NULL;
    g_autoptr(GError) error = NULL;

    if (!answer || (!json_object_object_get_ex(answer, "error", &failure) &&
                    (!json_object_object_get_ex(answer, "return", &value) ||
                     !json_object_is_type(value, json_type_object)))) {
        json_object_put(answer);
        break_off(client, DISK_ERROR_PROCESS, "it answers something else than was asked");
        return;
    }
    if (failure)
        error = error_of(failure);

    Request *request = g_steal_pointer(&link->request);

    if (link == &client->links[LINK_WATCH]) {
        request_free(request);
        if (!error)
            take_status(client, value);
        else
            break_off(client, DISK_ERROR_PROCESS, error->message);
    } else if (!reply(client, request, value, error)) {
        pump(client);
        schedule(client);
    }
    json_object_put(answer);
}

/* --- Time --- */

static void
try_to_connect(DiskClient *client)
{
    Link *link = &client->links[LINK_WATCH];
    struct ucred peer;
    socklen_t length = sizeof(peer);
    int r = link_open(client, link);

    if (r == 0) {
        if (getsockopt(link->fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0)
            client->pid = peer.pid;
        watch(client, TRUE);
        pump(client);
        return;
    }
    if (clock_now_ns() >= client->connect_deadline_ns)
        break_off(client, DISK_ERROR_PROCESS, g_strerror(-r));
}

static gboolean
on_timer(gpointer user_data)
{
    DiskClient *client = user_data;
    int64_t now = clock_now_ns();

    source_clear(&client->timer);
    if (!client->broken && client->links[LINK_WATCH].fd < 0)
        try_to_connect(client);
    for (int i = 0; i < LINKS_MAX && !client->broken; i++) {
        const Request *request = client->links[i].request;

        if (request && now >= request->deadline_ns)
            break_off(client, DISK_ERROR_TIMEOUT, "it does not answer");
    }
    if (client->broken)
        tell_the_end(client);
    else
        schedule(client);
    return G_SOURCE_REMOVE;
}

static void
schedule(DiskClient *client)
{
    int64_t next = INT64_MAX, now = clock_now_ns();

    if (client->broken)
        next = now;
    else if (client->links[LINK_WATCH].fd < 0)
        next = now + RETRY_MS * NS_PER_MS;
    for (int i = 0; i < LINKS_MAX && !client->broken; i++) {
        if (client->links[i].request)
            next = MIN(next, client->links[i].request->deadline_ns);
    }
    if (next == INT64_MAX)
        source_clear(&client->timer);
    else
        source_set_timeout(&client->timer, client->context,
                           (unsigned)((MAX(next - now, 0) + NS_PER_MS - 1) / NS_PER_MS), on_timer,
                           client);
}

/* --- Public --- */

DiskClient *
disk_client_new(const char *path, unsigned connect_ms, unsigned silence_ms,
                const DiskClientHandlers *handlers, gpointer user_data)
{
    DiskClient *client = g_new0(DiskClient, 1);

    client->path = g_strdup(path);
    client->handlers = handlers;
    client->user_data = user_data;
    client->context = g_main_context_ref_thread_default();
    client->silence_ms = silence_ms;
    client->connect_deadline_ns = clock_now_ns() + connect_ms * NS_PER_MS;
    g_queue_init(&client->waiting);
    for (int i = 0; i < LINKS_MAX; i++)
        client->links[i].fd = -1;
    schedule(client);
    return client;
}

void
disk_client_free(DiskClient *client)
{
    if (!client)
        return;
    if (client->freed)
        *client->freed = TRUE;
    source_clear(&client->timer);
    for (int i = 0; i < LINKS_MAX; i++)
        link_close(&client->links[i]);
    g_queue_clear_full(&client->waiting, request_free);
    g_clear_error(&client->broken);
    g_main_context_unref(client->context);
    g_free(client->path);
    g_free(client);
}

void
disk_client_send(DiskClient *client, const char *command, json_object *arguments,
                 DiskUrgency urgency, unsigned timeout_ms, DiskReplyFunc func, gpointer user_data,
                 GDestroyNotify destroy)
{
    Request *request = request_new(client, command, arguments, timeout_ms);

    request->urgency = urgency;
    request->func = func;
    request->user_data = user_data;
    request->destroy = destroy;
    g_queue_push_tail(&client->waiting, request);
    if (client->waiting.length > QUEUE_MAX)
        break_off(client, DISK_ERROR_TIMEOUT, "it does not answer");
    if (client->links[LINK_WATCH].fd >= 0)
        pump(client);
    schedule(client);
}

pid_t
disk_client_pid(const DiskClient *client)
{
    return client->pid;
}

const char *
disk_client_path(const DiskClient *client)
{
    return client->path;
}
