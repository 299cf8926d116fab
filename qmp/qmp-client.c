/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-client.c - asynchronous QMP client: the connection's life, from the first attempt to closed()
 *
 * Theory of operation
 *
 * One connection, one thread, GSources on the context of new(). The states only go forward:
 *
 *   CONNECTING ── connected ──► GREETING ── greeting ──► NEGOTIATING ── {"return"} ──► READY
 *        └──────────────┴─────────────────────┴── qmp_client_fail() ────────────────────┤
 *                                                             CLOSED ◄── on_closing ── CLOSING
 *
 * CONNECTING tries the socket every QMP_CONNECT_RETRY_MS; one deadline covers everything up to
 * READY. qmp_client_fail() drops fd and sources at once and leaves the callbacks to on_closing().
 *
 * What a command goes through stands in qmp-command.c, what becomes of bytes in qmp-wire.c.
 *
 * Invariants: no callback runs from within a public function; pending ids ascend; out is written by
 * on_output() only; after the last unref no callback runs. A loop callback holds the memory with
 * qmp_client_enter() and, after each function of the application, looks at qmp_client_is_live().
 */
#include "qmp-client-private.h"

#include "fd.h"
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum {
    QMP_CONNECT_RETRY_MS = 10, /* QEMU needs some 50 ms from exec to listen(); failover is fast */
};

static const char *const client_state_names[] = {
    [QMP_CLIENT_CONNECTING] = "connecting",   [QMP_CLIENT_GREETING] = "greeting",
    [QMP_CLIENT_NEGOTIATING] = "negotiating", [QMP_CLIENT_READY] = "ready",
    [QMP_CLIENT_CLOSING] = "closing",         [QMP_CLIENT_CLOSED] = "closed",
};
static_assert(G_N_ELEMENTS(client_state_names) == QMP_CLIENT_CLOSED + 1, "one name per state");

/* --- memory --------------------------------------------------------------------------------- */

GSource *
qmp_client_attach(QmpClient *client, GSource *source, GSourceFunc func, gpointer data)
{
    g_source_set_callback(source, func, data, NULL);
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_attach(source, client->context);
    return source;
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

void
qmp_client_set_state(QmpClient *client, QmpClientState state, const char *why)
{
    g_debug("qmp: %s -> %s: %s", client_state_names[client->state], client_state_names[state], why);
    client->state = state;
}

/* The application has gone: no callback from here on. */
static void
client_dispose(QmpClient *client)
{
    qmp_client_set_state(client, QMP_CLIENT_CLOSED, "last reference dropped");
    client_drop_connection(client);
    source_clear(&client->closing);
    qmp_client_drop_commands(client);
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

QmpClientHold *
qmp_client_enter(QmpClient *client)
{
    client->busy++;
    return client;
}

void
qmp_client_leave(QmpClientHold *client)
{
    if (--client->busy == 0 && client->refs == 0)
        client_free(client);
}

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

    g_autoptr(QmpClientHold) hold = qmp_client_enter(client);

    client_dispose(hold);
}

bool
qmp_client_is_live(const QmpClient *client)
{
    return client->refs > 0 && client->state < QMP_CLIENT_CLOSING;
}

/* --- the end -------------------------------------------------------------------------------- */

static gboolean
on_closing(gpointer data)
{
    g_autoptr(QmpClientHold) client = qmp_client_enter(data);

    source_clear(&client->closing);
    qmp_client_end_commands(client);
    if (client->refs == 0)
        return G_SOURCE_REMOVE;
    qmp_client_set_state(client, QMP_CLIENT_CLOSED, client->reason->message);
    if (client->handlers.closed)
        client->handlers.closed(client, client->reason, client->user_data);
    return G_SOURCE_REMOVE;
}

void
qmp_client_fail(QmpClient *client, GError *reason)
{
    if (!qmp_client_is_live(client)) {
        g_error_free(reason);
        return;
    }
    qmp_transcript_line(client->transcript, QMP_TRANSCRIPT_NOTE,
                        view_of(reason->message, strlen(reason->message)));
    client->reason = reason;
    qmp_client_set_state(client, QMP_CLIENT_CLOSING, reason->message);
    client_drop_connection(client);
    client->closing = qmp_client_attach(client, g_idle_source_new(), on_closing, client);
}

void
qmp_client_close(QmpClient *client)
{
    qmp_client_fail(client, g_error_new_literal(QMP_ERROR, QMP_ERROR_CLOSED,
                                                "the QMP connection was closed by this side"));
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
        qmp_client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_CONNECT, "QMP descriptor: %s",
                                            g_strerror(-r)));
        return;
    }
    qmp_client_set_state(client, QMP_CLIENT_GREETING, "connected");
    qmp_client_start_input(client);
}

static gboolean
on_connect_timer(gpointer data)
{
    g_autoptr(QmpClientHold) client = qmp_client_enter(data);
    int r = fd_unix_connect(client->socket_path);

    if (r >= 0) {
        client_connected(client, r);
        return G_SOURCE_REMOVE;
    }
    client->connect_errno = -r;
    /* Not there yet, left over from a dead QEMU, or its backlog is full: that can change. */
    if (r == -ENOENT || r == -ECONNREFUSED || r == -EAGAIN || r == -EINTR)
        return G_SOURCE_CONTINUE;
    qmp_client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_CONNECT, "cannot connect to %s: %s",
                                        client->socket_path, g_strerror(-r)));
    return G_SOURCE_REMOVE;
}

static gboolean
on_connect_deadline(gpointer data)
{
    g_autoptr(QmpClientHold) client = qmp_client_enter(data);
    GError *error;

    if (client->state == QMP_CLIENT_CONNECTING)
        error = g_error_new(QMP_ERROR, QMP_ERROR_CONNECT, "cannot connect to %s within %u ms: %s",
                            client->socket_path, client->connect_timeout_ms,
                            g_strerror(client->connect_errno));
    else if (client->state == QMP_CLIENT_GREETING)
        /* QEMU serves one client at a time; a second one sits in the backlog without a word. */
        error = g_error_new(QMP_ERROR, QMP_ERROR_TIMEOUT,
                            "no QMP greeting within %u ms; is another client connected?",
                            client->connect_timeout_ms);
    else
        error =
            g_error_new(QMP_ERROR, QMP_ERROR_TIMEOUT, "no answer to qmp_capabilities within %u ms",
                        client->connect_timeout_ms);
    qmp_client_fail(client, error);
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
    client->deadline = qmp_client_attach(client, g_timeout_source_new(client->connect_timeout_ms),
                                         on_connect_deadline, client);
}

QmpClient *
qmp_client_new(const char *socket_path, unsigned connect_timeout_ms,
               const QmpClientHandlers *handlers, gpointer user_data)
{
    QmpClient *client = client_new(connect_timeout_ms, handlers, user_data);

    client->socket_path = g_strdup(socket_path);
    client->connect_timer = qmp_client_attach(client, g_timeout_source_new(QMP_CONNECT_RETRY_MS),
                                              on_connect_timer, client);
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
    if (qmp_client_is_live(client))
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
    return client->state >= QMP_CLIENT_READY;
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
