/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-client.c - the CLI's end of the control socket
 *
 * One thread, one request at a time: poll(2) with what is left of the deadline before each read and
 * write. What comes from the socket is bounded and may be anything.
 */
#include "colo-client.h"

#include "clock.h"
#include "fd.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_LINE_BYTES = 16 * 1024 * 1024, /* `events` of a full ring is below 1 MiB */
    MAX_DEPTH = 32,
    CONNECT_RETRY_MS = 20, /* a full backlog of a UNIX socket cannot be polled for */
};

static const char socket_name[] = "control.sock";

struct ColoClient {
    int fd;
    char *path;
    GByteArray *input;
    int64_t next_id;
};

G_DEFINE_QUARK(colo_client_error_quark, colo_client_error)

/* --- Finding and connecting --- */

char *
colo_client_find_socket(const char *run_folder, const char *vm_name, GError **error)
{
    if (vm_name)
        return g_build_filename(run_folder, vm_name, socket_name, NULL);

    g_autoptr(GDir) dir = g_dir_open(run_folder, 0, NULL);
    g_autofree char *found = NULL;
    g_autoptr(GString) names = g_string_new(NULL);
    const char *name;
    unsigned n = 0;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(run_folder, name, socket_name, NULL);

        if (!g_file_test(path, G_FILE_TEST_EXISTS))
            continue;
        g_string_append_printf(names, " %s", name);
        g_free(found);
        found = g_steal_pointer(&path);
        n++;
    }
    if (n == 1)
        return g_steal_pointer(&found);
    if (n == 0)
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_FIND,
                    "no VM has a control socket under %s; start colod, or name the socket with "
                    "--socket",
                    run_folder);
    else
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_FIND,
                    "several VMs run here; choose one with -n:%s", names->str);
    return NULL;
}

static int
left_ms(int64_t deadline_ns)
{
    int64_t left = deadline_ns - clock_now_ns();

    return left <= 0 ? 0 : (int)MIN(left / NS_PER_MS + 1, (int64_t)G_MAXINT);
}

ColoClient *
colo_client_connect(const char *path, int64_t deadline_ns, GError **error)
{
    int fd;

    while ((fd = fd_unix_connect(path)) == -EAGAIN && left_ms(deadline_ns) > 0)
        (void)poll(NULL, 0, CONNECT_RETRY_MS);
    if (fd < 0) {
        const char *remedy = fd == -ENOENT || fd == -ECONNREFUSED ? "is colod running for this VM?"
                             : fd == -EACCES                      ? "run colo as root"
                             : fd == -EAGAIN ? "colod does not accept connections, see its log"
                                             : "check the path";

        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_CONNECT,
                    "cannot connect to %s: %s; %s", path, g_strerror(-fd), remedy);
        return NULL;
    }

    ColoClient *client = g_new0(ColoClient, 1);

    client->fd = fd;
    client->path = g_strdup(path);
    client->input = g_byte_array_new();
    return client;
}

void
colo_client_free(ColoClient *client)
{
    if (!client)
        return;
    fd_clear(&client->fd);
    g_byte_array_unref(client->input);
    g_free(client->path);
    g_free(client);
}

/* --- Bytes and lines --- */

/* @deadline_ns 0: no limit. */
static gboolean
wait_ready(const ColoClient *client, short events, int64_t deadline_ns, GError **error)
{
    struct pollfd item = {.fd = client->fd, .events = events};
    int n;

    do
        n = poll(&item, 1, deadline_ns == 0 ? -1 : left_ms(deadline_ns));
    while (n < 0 && errno == EINTR);
    if (n == 0)
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_DEADLINE,
                    "colod did not answer in time; see its log, or wait longer with --timeout");
    else if (n < 0)
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_CLOSED, "cannot wait for %s: %s",
                    client->path, g_strerror(errno));
    return n > 0;
}

static gboolean
fail_closed(GError **error)
{
    g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_CLOSED,
                "colod closed the connection; see its log");
    return FALSE;
}

static gboolean
send_line(ColoClient *client, json_object *message, int64_t deadline_ns, GError **error)
{
    const char *json = json_object_to_json_string_ext(message, JSON_C_TO_STRING_PLAIN);
    g_autofree char *line = g_strconcat(json, "\n", NULL);
    const char *rest = line;
    size_t left = strlen(line);

    while (left > 0) {
        if (!wait_ready(client, POLLOUT, deadline_ns, error))
            return FALSE;

        ssize_t n = send(client->fd, rest, left, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return fail_closed(error);
        if (n > 0) {
            rest += n;
            left -= (size_t)n;
        }
    }
    return TRUE;
}

static gboolean
read_more(ColoClient *client, int64_t deadline_ns, GError **error)
{
    guint8 buffer[65536];

    if (client->input->len > MAX_LINE_BYTES) {
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_PROTOCOL,
                    "an answer from %s is over 16 MiB; is this colod's socket?", client->path);
        return FALSE;
    }
    if (!wait_ready(client, POLLIN, deadline_ns, error))
        return FALSE;

    ssize_t n = recv(client->fd, buffer, sizeof(buffer), MSG_DONTWAIT);

    if (n > 0)
        g_byte_array_append(client->input, buffer, (guint)n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        return fail_closed(error);
    return TRUE;
}

static json_object *
parse_line(const char *text, size_t length)
{
    json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);

    g_assert(tokener);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);

    json_object *object = json_tokener_parse_ex(tokener, text, (int)length);

    if (json_tokener_get_error(tokener) != json_tokener_success ||
        !json_object_is_type(object, json_type_object)) {
        json_object_put(object);
        object = NULL;
    }
    json_tokener_free(tokener);
    return object;
}

static json_object *
receive(ColoClient *client, int64_t deadline_ns, GError **error)
{
    const guint8 *end;

    while (!(end = client->input->len ? memchr(client->input->data, '\n', client->input->len)
                                      : NULL)) {
        if (!read_more(client, deadline_ns, error))
            return NULL;
    }

    guint length = (guint)(end - client->input->data);
    json_object *object = parse_line((const char *)client->input->data, length);

    g_byte_array_remove_range(client->input, 0, length + 1);
    if (!object)
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_PROTOCOL,
                    "what came from %s is no JSON object; is this colod's socket?", client->path);
    return object;
}

/* --- Calls --- */

static void
set_answer_error(const char *command, json_object *answer_error, GError **error)
{
    json_object *error_class = json_object_object_get(answer_error, "class");
    json_object *text = json_object_object_get(answer_error, "text");

    g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_ANSWER, "%s: %s: %s", command,
                error_class ? json_object_get_string(error_class) : "failed",
                text ? json_object_get_string(text) : "colod gave no reason; see its log");
}

/* An error without id is about the connection, so it is ours too. */
static gboolean
is_answer_to(json_object *message, int64_t id)
{
    json_object *answered = json_object_object_get(message, "id");

    if (!answered)
        return json_object_object_get(message, "error") != NULL;
    return json_object_is_type(answered, json_type_int) && json_object_get_int64(answered) == id;
}

json_object *
colo_client_call(ColoClient *client, const char *command, json_object *arguments,
                 int64_t deadline_ns, GError **error)
{
    json_object *request = json_object_new_object();
    int64_t id = ++client->next_id;

    json_object_object_add(request, "id", json_object_new_int64(id));
    json_object_object_add(request, "command", json_object_new_string(command));
    if (arguments)
        json_object_object_add(request, "arguments", arguments);

    gboolean sent = send_line(client, request, deadline_ns, error);

    json_object_put(request);
    while (sent) {
        json_object *message = receive(client, deadline_ns, error);

        if (!message)
            return NULL;
        if (!is_answer_to(message, id)) {
            json_object_put(message);
            continue;
        }

        json_object *value = json_object_object_get(message, "return");
        json_object *answer_error = json_object_object_get(message, "error");

        if (answer_error || !value)
            set_answer_error(command, answer_error, error);
        value = answer_error ? NULL : json_object_get(value);
        json_object_put(message);
        return value;
    }
    return NULL;
}

json_object *
colo_client_next_event(ColoClient *client, GError **error)
{
    for (;;) {
        json_object *message = receive(client, 0, error);

        if (!message)
            return NULL;

        json_object *event = json_object_get(json_object_object_get(message, "event"));

        json_object_put(message);
        if (event)
            return event;
    }
}
