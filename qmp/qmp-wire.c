/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-wire.c - the QMP client's bytes: lines out, lines in, and who each one is for
 *
 * Theory of operation
 *
 * Out: qmp_client_write() appends a line to `out`, on_output() writes what the socket takes. Once
 * the socket refuses, nothing is written any more, but what QEMU said before it died is still read:
 * the end is found by the input alone.
 *
 * In: one read a turn, split into lines of bounded length, each parsed and handled before the next
 * is looked at. Until the greeting came nothing else is taken; then the reply to qmp_capabilities,
 * with events allowed before it; then events and replies. A line that does not fit ends the
 * connection with an excerpt of it.
 */
#include "qmp-client-private.h"

#include "source.h"

#include <errno.h>
#include <glib-unix.h>
#include <json.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    QMP_READ_BYTES = 65536, /* per turn of the loop, so that other sources get theirs */
};

/* --- output --------------------------------------------------------------------------------- */

static gboolean
on_output(gint fd, GIOCondition condition, gpointer data)
{
    g_autoptr(QmpClientHold) client = qmp_client_enter(data);
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

void
qmp_client_write(QmpClient *client, struct json_object *message)
{
    const char *text = qmp_command_message_text(message);

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
        client->output = qmp_client_attach(client, g_unix_fd_source_new(client->fd, G_IO_OUT),
                                           G_SOURCE_FUNC(on_output), client);
}

/* --- messages ------------------------------------------------------------------------------- */

static void
client_unexpected(QmpClient *client, View line, const char *expected)
{
    g_autofree char *excerpt = qmp_excerpt(line);

    qmp_client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_PROTOCOL, "expected %s, got \"%s\"",
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
    negotiation = qmp_command_message_new("qmp_capabilities", arguments, client->negotiation_id);
    json_object_put(arguments);
    qmp_client_set_state(client, QMP_CLIENT_NEGOTIATING, client->version);
    qmp_client_write(client, negotiation);
    json_object_put(negotiation);
}

static void
client_handle_negotiated(QmpClient *client, const QmpMessage *message)
{
    if (message->type == QMP_MESSAGE_ERROR) {
        qmp_client_fail(client, qmp_error_new_command(message->name, message->desc));
        return;
    }
    source_clear(&client->deadline);
    client->has_oob = client->offers_oob;
    qmp_client_set_state(client, QMP_CLIENT_READY, client->has_oob ? "with oob" : "without oob");
    qmp_client_pump(client);
    if (client->handlers.ready)
        client->handlers.ready(client, client->user_data);
}

static void
client_handle(QmpClient *client, const QmpMessage *message, View line)
{
    bool negotiating = client->state == QMP_CLIENT_NEGOTIATING;

    if (client->state == QMP_CLIENT_GREETING) {
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
            qmp_client_handle_reply(client, message);
        else if (message->id == client->negotiation_id)
            client_handle_negotiated(client, message);
        else
            client_unexpected(client, line, "the reply to qmp_capabilities");
        break;
    }
}

/* --- input ---------------------------------------------------------------------------------- */

static void
client_drain_input(QmpClient *client)
{
    while (qmp_client_is_live(client)) {
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
            qmp_client_fail(client, g_steal_pointer(&error));
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
    g_autoptr(QmpClientHold) client = qmp_client_enter(data);
    uint8_t bytes[QMP_READ_BYTES];
    ssize_t n = read(fd, bytes, sizeof(bytes));

    (void)condition;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n < 0) {
        qmp_client_fail(client, g_error_new(QMP_ERROR, QMP_ERROR_CLOSED, "QMP connection lost: %s",
                                            g_strerror(errno)));
    } else if (n == 0) {
        qmp_client_fail(client, client_eof_error(client));
    } else {
        qmp_splitter_feed(client->splitter, view_of(bytes, (size_t)n));
        client_drain_input(client);
    }
    /* When the connection has ended the source is destroyed already. */
    return G_SOURCE_CONTINUE;
}

void
qmp_client_start_input(QmpClient *client)
{
    client->input =
        qmp_client_attach(client, g_unix_fd_source_new(client->fd, G_IO_IN | G_IO_HUP | G_IO_ERR),
                          G_SOURCE_FUNC(on_input), client);
}
