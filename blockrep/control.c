/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control.c - a disk's control socket
 *
 * One thread accepts, one per client reads a line, carries it out (which may block up to the
 * request's deadline) and writes the answer. So a client has one request under way, and who wants
 * to ask for status during a failover connects twice. The threads end when `stop_fd` becomes
 * readable.
 */
#include "control.h"

#include "clock.h"
#include "fd.h"

#include <errno.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 8,
    SEND_TIMEOUT_S = 2,
    PLACE_WAIT_MS = 1000, /* for a client that has hung up and whose thread has not seen it yet */
};

typedef struct Client {
    DiskControl *control;
    int fd;
    pthread_t thread;
    bool is_used; /* has a thread that is not joined; the accepting thread's */
    bool ended;   /* that thread is at its end; the control's mutex */
} Client;

struct DiskControl {
    const DiskService *service;
    void *user_data;
    char *path;
    int listen_fd, stop_fd;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t one_ended;
    Client clients[MAX_CLIENTS];
};

/* --- Requests --- */

static json_object *
error_json(const char *error_class, const char *text)
{
    json_object *error = json_object_new_object();
    g_autofree char *valid = g_utf8_make_valid(text, -1);

    json_object_object_add(error, "class", json_object_new_string(error_class));
    json_object_object_add(error, "text", json_object_new_string(valid));
    return error;
}

static const char *
error_class(const DiskService *service, const GError *error)
{
    if (g_error_matches(error, service->error_domain(), service->refused))
        return "refused";
    return g_error_matches(error, service->error_domain(), service->timeout) ? "timeout" : "failed";
}

/* What is returned; NULL: @error. */
static json_object *
carry_out(const DiskControl *control, const DiskRequest *request, GError **error)
{
    const DiskService *service = control->service;
    const int64_t deadline_ns = clock_now_ns() + request->timeout_ms * NS_PER_MS;

    switch (request->command) {
    case DISK_COMMAND_STATUS:
        if (request->after > 0)
            service->wait_change(control->user_data, request->after, deadline_ns);
        return service->status(control->user_data);
    case DISK_COMMAND_QUIT:
        service->quit();
        return json_object_new_object();
    default:
        return service->order(control->user_data, request, deadline_ns, error)
                   ? json_object_new_object()
                   : NULL;
    }
}

static json_object *
answer(const DiskControl *control, const char *line, gsize length)
{
    g_auto(DiskRequest) request = {0};
    g_autofree char *problem = disk_request_parse(control->service->set, line, length, &request);
    json_object *message = json_object_new_object(), *result = NULL;
    g_autoptr(GError) error = NULL;

    json_object_object_add(message, "id", json_object_get(request.id));
    if (!problem)
        result = carry_out(control, &request, &error);
    if (problem)
        json_object_object_add(message, "error", error_json("usage", problem));
    else if (error)
        json_object_object_add(message, "error",
                               error_json(error_class(control->service, error), error->message));
    else
        json_object_object_add(message, "return", result);
    return message;
}

/* Takes @message. False: the client is gone, or does not read. */
static bool
send_message(int fd, json_object *message)
{
    const char *text = json_object_to_json_string_ext(message, JSON_C_TO_STRING_PLAIN |
                                                                   JSON_C_TO_STRING_NOSLASHESCAPE);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    size_t left = strlen(line);
    const char *at = line;

    json_object_put(message);
    while (left > 0) {
        ssize_t n = send(fd, at, left, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        left -= (size_t)n;
    }
    return true;
}

/* --- A client's thread --- */

/* True: @fd can be read; false: the control stops. */
static bool
wait_readable(const DiskControl *control, int fd)
{
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN},
                            {.fd = control->stop_fd, .events = POLLIN}};

    while (poll(fds, 2, -1) < 0 && errno == EINTR)
        ;
    return fds[1].revents == 0;
}

/* Carries out all whole lines of @input and leaves the rest. */
static bool
handle_lines(const Client *client, GByteArray *input)
{
    const uint8_t *end;

    while (input->len > 0 && (end = memchr(input->data, '\n', input->len)) != NULL) {
        gsize length = (gsize)(end - input->data);
        bool is_sent =
            length == 0 ||
            send_message(client->fd, answer(client->control, (const char *)input->data, length));

        g_byte_array_remove_range(input, 0, (guint)length + 1);
        if (!is_sent)
            return false;
    }
    if (input->len <= DISK_LINE_MAX_BYTES)
        return true;
    (void)send_message(client->fd, answer(client->control, (const char *)input->data, input->len));
    return false;
}

static void *
run_client(void *user_data)
{
    Client *client = user_data;
    DiskControl *control = client->control;
    g_autoptr(GByteArray) input = g_byte_array_new();
    uint8_t buffer[DISK_LINE_MAX_BYTES];

    while (wait_readable(control, client->fd)) {
        ssize_t n = recv(client->fd, buffer, sizeof(buffer), 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        g_byte_array_append(input, buffer, (guint)n);
        if (!handle_lines(client, input))
            break;
    }
    fd_clear(&client->fd);
    (void)pthread_mutex_lock(&control->mutex);
    client->ended = true;
    (void)pthread_cond_signal(&control->one_ended);
    (void)pthread_mutex_unlock(&control->mutex);
    return NULL;
}

/* --- The accepting thread --- */

/* A place without a thread, or whose thread has ended; with the mutex held. */
static Client *
find_place(DiskControl *control)
{
    for (int i = 0; i < MAX_CLIENTS; i++) {
        Client *client = &control->clients[i];

        if (!client->is_used || client->ended)
            return client;
    }
    return NULL;
}

/* The place, without a thread; NULL: all clients are there to stay. */
static Client *
free_place(DiskControl *control)
{
    int64_t deadline_ns = clock_now_ns() + PLACE_WAIT_MS * NS_PER_MS;
    struct timespec until = {.tv_sec = deadline_ns / NS_PER_S, .tv_nsec = deadline_ns % NS_PER_S};
    Client *client;
    int r = 0;

    (void)pthread_mutex_lock(&control->mutex);
    while (!(client = find_place(control)) && r == 0)
        r = pthread_cond_timedwait(&control->one_ended, &control->mutex, &until);
    (void)pthread_mutex_unlock(&control->mutex);
    if (client && client->is_used)
        (void)pthread_join(client->thread, NULL);
    if (client)
        client->is_used = client->ended = false; /* its thread is gone: nobody else looks */
    return client;
}

static void
accept_client(DiskControl *control)
{
    struct timeval timeout = {.tv_sec = SEND_TIMEOUT_S};
    auto_fd int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));

    Client *client = free_place(control);

    if (client) {
        client->control = control;
        client->fd = fd;
        client->is_used = pthread_create(&client->thread, NULL, run_client, client) == 0;
        if (client->is_used) {
            (void)fd_steal(&fd);
            return;
        }
    }

    json_object *message = json_object_new_object();

    json_object_object_add(message, "id", NULL);
    json_object_object_add(message, "error",
                           error_json("refused", "8 clients are connected already; close one"));
    (void)send_message(fd, message);
}

static void *
run_accept(void *user_data)
{
    DiskControl *control = user_data;

    while (wait_readable(control, control->listen_fd))
        accept_client(control);
    return NULL;
}

DiskControl *
disk_control_new(const char *path, const DiskService *service, void *user_data, GError **error)
{
    auto_fd int listen_fd = fd_unix_listen(path);
    auto_fd int stop_fd = eventfd(0, EFD_CLOEXEC);

    if (listen_fd < 0 || stop_fd < 0) {
        int code = listen_fd < 0 ? -listen_fd : errno;

        listen_fd = MAX(listen_fd, -1);
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code), "%s: cannot listen on it: %s",
                    path, g_strerror(code));
        return NULL;
    }

    DiskControl *control = g_new0(DiskControl, 1);
    pthread_condattr_t attr;

    (void)pthread_mutex_init(&control->mutex, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&control->one_ended, &attr);
    (void)pthread_condattr_destroy(&attr);
    control->service = service;
    control->user_data = user_data;
    control->path = g_strdup(path);
    control->listen_fd = fd_steal(&listen_fd);
    control->stop_fd = fd_steal(&stop_fd);
    if (pthread_create(&control->thread, NULL, run_accept, control) != 0)
        g_error("no thread for the control socket");
    return control;
}

void
disk_control_free(DiskControl *control)
{
    const uint64_t one = 1;

    if (!control)
        return;
    if (write(control->stop_fd, &one, sizeof(one)) != sizeof(one))
        g_assert_not_reached(); /* an eventfd with room */
    (void)pthread_join(control->thread, NULL);
    for (int i = 0; i < MAX_CLIENTS; i++) {
        if (control->clients[i].is_used)
            (void)pthread_join(control->clients[i].thread, NULL);
    }
    (void)g_unlink(control->path);
    fd_clear(&control->listen_fd);
    fd_clear(&control->stop_fd);
    (void)pthread_cond_destroy(&control->one_ended);
    (void)pthread_mutex_destroy(&control->mutex);
    g_free(control->path);
    g_free(control);
}
