/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-greeting.c - one connection from its birth until both sides have agreed on it, or not */
/*
 * Theory of operation
 *
 * A PeerGreeting always has exactly one asynchronous operation under way, and that operation owns
 * it: nothing else frees it. Its deadline and peer_greeting_abandon() only cancel the operation,
 * which then ends and finds `handlers` gone (abandoned) or `timed_out` set. This matters because
 * the TLS handshake runs in a worker thread of GIO: its socket must not be closed below it.
 * GIO has ten such threads and adds more slowly; silent strangers hold theirs until the deadline,
 * so handshakes wait for the next one in the order of urgency.
 *
 * The exception is the moment between the peer's HELLO and our answer, within the `hello` callback,
 * when no operation is under way; on_hello() holds the greeting then.
 */
#include "peer-greeting.h"

#include "peer-tls.h"
#include "source.h"

#include <string.h>

/* One message of the exchange */

static void
on_bytes_sent(GObject *stream, GAsyncResult *result, gpointer user_data)
{
    g_autoptr(GTask) task = user_data;
    GError *error = NULL;

    if (g_output_stream_write_all_finish(G_OUTPUT_STREAM(stream), result, NULL, &error))
        g_task_return_boolean(task, TRUE);
    else
        g_task_return_error(task, error);
}

static void
hello_send_async(GIOStream *stream, PeerMessageType type, const char *json,
                 GCancellable *cancellable, GAsyncReadyCallback callback, gpointer user_data)
{
    GTask *task = g_task_new(stream, cancellable, callback, user_data);
    size_t len = strlen(json);
    GByteArray *bytes = g_byte_array_sized_new((guint)(PEER_HEADER_BYTES + len));
    uint8_t header[PEER_HEADER_BYTES];

    peer_header_encode(header, type, (uint32_t)len);
    g_byte_array_append(bytes, header, sizeof(header));
    g_byte_array_append(bytes, (const guint8 *)json, (guint)len);
    g_task_set_task_data(task, bytes, (GDestroyNotify)g_byte_array_unref);
    g_output_stream_write_all_async(g_io_stream_get_output_stream(stream), bytes->data, bytes->len,
                                    G_PRIORITY_DEFAULT, cancellable, on_bytes_sent, task);
}

static gboolean
hello_send_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}

typedef struct Receiver {
    uint8_t header_bytes[PEER_HEADER_BYTES];
    PeerHeader header;
    uint8_t *payload;
} Receiver;

static void
receiver_free(gpointer data)
{
    Receiver *receiver = data;

    g_free(receiver->payload);
    g_free(receiver);
}

/* Whether all @len bytes came; if not the task has failed. */
static gboolean
came_whole(GTask *task, GObject *stream, GAsyncResult *result, size_t len)
{
    GError *error = NULL;
    gsize got;

    if (!g_input_stream_read_all_finish(G_INPUT_STREAM(stream), result, &got, &error)) {
        if (g_error_matches(error, G_TLS_ERROR, G_TLS_ERROR_EOF) ||
            g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED)) {
            error->domain = PEER_ERROR;
            error->code = PEER_ERROR_CLOSED;
        }
        g_task_return_error(task, error);
        return FALSE;
    }
    if (got < len) {
        g_task_return_new_error(task, PEER_ERROR, PEER_ERROR_CLOSED,
                                "peer closed the connection before the hello was through");
        return FALSE;
    }
    return TRUE;
}

static void
on_payload(GObject *stream, GAsyncResult *result, gpointer user_data)
{
    g_autoptr(GTask) task = user_data;
    Receiver *receiver = g_task_get_task_data(task);

    if (came_whole(task, stream, result, receiver->header.length))
        g_task_return_boolean(task, TRUE);
}

static void
on_header(GObject *stream, GAsyncResult *result, gpointer user_data)
{
    g_autoptr(GTask) task = user_data;
    Receiver *receiver = g_task_get_task_data(task);
    GError *error = NULL;

    if (!came_whole(task, stream, result, PEER_HEADER_BYTES))
        return;
    /* HELLO and its answers may travel on each channel; which one this is it says itself. */
    if (!peer_header_decode(receiver->header_bytes, PEER_CHANNEL_CONTROL, &receiver->header,
                            &error)) {
        g_task_return_error(task, error);
        return;
    }
    if (receiver->header.type > PEER_MESSAGE_REFUSED) {
        g_task_return_new_error(task, PEER_ERROR, PEER_ERROR_PROTOCOL, "%s before the hello",
                                peer_message_type_name((unsigned)receiver->header.type));
        return;
    }
    receiver->payload = g_malloc(receiver->header.length + 1);
    g_input_stream_read_all_async(G_INPUT_STREAM(stream), receiver->payload,
                                  receiver->header.length, G_PRIORITY_DEFAULT,
                                  g_task_get_cancellable(task), on_payload, g_object_ref(task));
}

/* Reads one HELLO, WELCOME or REFUSED and not a byte more: what follows belongs to a consumer. */
static void
hello_receive_async(GIOStream *stream, GCancellable *cancellable, GAsyncReadyCallback callback,
                    gpointer user_data)
{
    GTask *task = g_task_new(stream, cancellable, callback, user_data);
    Receiver *receiver = g_new0(Receiver, 1);

    g_task_set_task_data(task, receiver, receiver_free);
    g_input_stream_read_all_async(g_io_stream_get_input_stream(stream), receiver->header_bytes,
                                  PEER_HEADER_BYTES, G_PRIORITY_DEFAULT, cancellable, on_header,
                                  task);
}

static gboolean
hello_receive_finish(GAsyncResult *result, PeerMessageType *ret_type, GBytes **ret_payload,
                     GError **error)
{
    Receiver *receiver = g_task_get_task_data(G_TASK(result));

    if (!g_task_propagate_boolean(G_TASK(result), error))
        return FALSE;
    *ret_type = receiver->header.type;
    *ret_payload = g_bytes_new_take(g_steal_pointer(&receiver->payload), receiver->header.length);
    return TRUE;
}

/* Greeting */

struct PeerGreeting {
    const PeerGreetingHandlers *handlers; /* NULL: abandoned */
    gpointer user_data;
    const PeerLinkConfig *config;
    PeerTls *tls;
    bool accepted; /* the peer connected to us */
    bool urgent;   /* its handshake goes before those of strangers */
    bool busy;     /* an operation owns it */
    bool timed_out;
    PeerChannelKind channel; /* of an accepted one: after its HELLO */
    const char *stage;       /* for the report of a deadline */
    char *who;
    GCancellable *cancellable;
    GSource *deadline;
    GIOStream *stream; /* TCP, then TLS over it */
    PeerHello theirs;
    GError *refusal; /* why we are sending REFUSED */
};

static void on_handshake(GObject *source, GAsyncResult *result, gpointer user_data);
static void on_received(GObject *source, GAsyncResult *result, gpointer user_data);
static void on_sent(GObject *source, GAsyncResult *result, gpointer user_data);

static void
greeting_free(PeerGreeting *greeting)
{
    source_clear(&greeting->deadline);
    if (greeting->stream)
        peer_stream_close(greeting->stream);
    g_clear_object(&greeting->stream);
    g_clear_object(&greeting->cancellable);
    g_clear_error(&greeting->refusal);
    peer_hello_clear(&greeting->theirs);
    g_free(greeting->who);
    g_free(greeting);
}

static gboolean
on_deadline(gpointer user_data)
{
    PeerGreeting *greeting = user_data;

    greeting->timed_out = true;
    g_cancellable_cancel(greeting->cancellable);
    return G_SOURCE_REMOVE;
}

static PeerGreeting *
greeting_new(PeerTls *tls, const PeerLinkConfig *config, const PeerGreetingHandlers *handlers,
             gpointer user_data)
{
    PeerGreeting *greeting = g_new0(PeerGreeting, 1);

    greeting->handlers = handlers;
    greeting->user_data = user_data;
    greeting->config = config;
    greeting->tls = tls;
    greeting->cancellable = g_cancellable_new();
    source_set_timeout(&greeting->deadline, g_main_context_get_thread_default(),
                       config->connect_timeout_ms, on_deadline, greeting);
    return greeting;
}

/* Begins the next operation. */
static void
greeting_enter(PeerGreeting *greeting, const char *stage)
{
    greeting->stage = stage;
    greeting->busy = true;
}

/* Ends a greeting that came to nothing, with @error (taken). */
static void
greeting_fail(PeerGreeting *greeting, GError *error)
{
    g_autoptr(GError) reason = error;

    if (greeting->handlers && greeting->timed_out) {
        g_clear_error(&reason);
        reason = g_error_new(PEER_ERROR, PEER_ERROR_TIMEOUT, "%s: not done within %u ms",
                             greeting->stage, greeting->config->connect_timeout_ms);
    }
    source_clear(&greeting->deadline);
    if (greeting->handlers)
        greeting->handlers->failed(greeting, greeting->who, reason, greeting->user_data);
    greeting_free(greeting);
}

static void
greeting_agree(PeerGreeting *greeting)
{
    g_autoptr(GIOStream) stream = g_steal_pointer(&greeting->stream);

    source_clear(&greeting->deadline);
    greeting->handlers->agreed(greeting, stream, &greeting->theirs, greeting->user_data);
    greeting_free(greeting);
}

/*
 * At the end of each operation: whether the greeting is to go on. If it was abandoned it is freed;
 * an operation can end well although it was cancelled.
 */
static bool
greeting_left(PeerGreeting *greeting)
{
    greeting->busy = false;
    if (greeting->handlers && !greeting->timed_out)
        return true;
    greeting_fail(greeting, g_error_new_literal(G_IO_ERROR, G_IO_ERROR_CANCELLED, "cancelled"));
    return false;
}

/* False: the CA's file, which is read anew each time, is gone or broken. */
static gboolean
greeting_handshake(PeerGreeting *greeting, GError **error)
{
    GTlsConnection *connection = peer_tls_wrap(greeting->tls, greeting->stream, greeting->accepted,
                                               greeting->config->peer_host, error);

    if (!connection)
        return FALSE;
    peer_stream_set_nodelay(greeting->stream);
    peer_stream_set_timeouts(greeting->stream, 0);
    g_object_unref(greeting->stream);
    greeting->stream = G_IO_STREAM(connection);
    greeting_enter(greeting, "TLS handshake");
    g_tls_connection_handshake_async(connection,
                                     greeting->urgent ? G_PRIORITY_HIGH : G_PRIORITY_DEFAULT,
                                     greeting->cancellable, on_handshake, greeting);
    return TRUE;
}

static void
greeting_receive(PeerGreeting *greeting)
{
    greeting_enter(greeting, greeting->accepted ? "waiting for HELLO" : "waiting for WELCOME");
    hello_receive_async(greeting->stream, greeting->cancellable, on_received, greeting);
}

/* Sends our HELLO or WELCOME. */
static void
greeting_send(PeerGreeting *greeting)
{
    PeerHello ours = {
        .channel = greeting->channel,
        .vm = (char *)greeting->config->vm_name,
        .uuid = (char *)greeting->config->vm_uuid,
        .info = {.host = (char *)greeting->config->host, .software_version = (char *)COLOD_VERSION},
    };

    greeting->handlers->describe(&ours, greeting->user_data);

    g_autofree char *json = peer_hello_format(&ours);

    greeting_enter(greeting, greeting->accepted ? "sending WELCOME" : "sending HELLO");
    hello_send_async(greeting->stream,
                     greeting->accepted ? PEER_MESSAGE_WELCOME : PEER_MESSAGE_HELLO, json,
                     greeting->cancellable, on_sent, greeting);
}

static void
on_handshake(GObject *source, GAsyncResult *result, gpointer user_data)
{
    PeerGreeting *greeting = user_data;
    GTlsConnection *connection = G_TLS_CONNECTION(source);
    GError *error = NULL;

    if (!g_tls_connection_handshake_finish(connection, result, &error))
        greeting_fail(greeting, peer_tls_explain(connection, error));
    else if (!greeting_left(greeting))
        return;
    else if (!peer_tls_check(connection, greeting->config->peer_host, &error))
        greeting_fail(greeting, error);
    else if (greeting->accepted)
        greeting_receive(greeting);
    else
        greeting_send(greeting);
}

static void
on_sent(G_GNUC_UNUSED GObject *source, GAsyncResult *result, gpointer user_data)
{
    PeerGreeting *greeting = user_data;
    GError *error = NULL;
    bool sent = hello_send_finish(result, &error);

    if (greeting->refusal) {
        /* Whether the peer heard it or not, this is why. */
        g_clear_error(&error);
        greeting->timed_out = false;
        greeting_fail(greeting, g_steal_pointer(&greeting->refusal));
    } else if (!sent) {
        greeting_fail(greeting, error);
    } else if (!greeting_left(greeting)) {
        return;
    } else if (greeting->accepted) {
        greeting_agree(greeting);
    } else {
        greeting_receive(greeting);
    }
}

static void
on_hello(PeerGreeting *greeting, PeerMessageType type, View payload)
{
    GError *error = NULL;
    const char *code = "protocol";

    if (type != PEER_MESSAGE_HELLO)
        error = g_error_new(PEER_ERROR, PEER_ERROR_PROTOCOL, "%s instead of HELLO",
                            peer_message_type_name((unsigned)type));
    else if (peer_hello_parse(payload, &greeting->theirs, &error))
        code = peer_hello_judge(&greeting->theirs, greeting->config, &error);
    if (error) {
        peer_greeting_refuse(greeting, code, error);
        return;
    }
    greeting->channel = greeting->theirs.channel;
    greeting->handlers->hello(greeting, &greeting->theirs, greeting->user_data);
    if (!greeting->busy)
        greeting_free(greeting); /* abandoned */
}

static void
on_welcome(PeerGreeting *greeting, PeerMessageType type, View payload)
{
    GError *error = NULL;

    if (type == PEER_MESSAGE_REFUSED)
        error = peer_refused_parse(payload);
    else if (type != PEER_MESSAGE_WELCOME)
        error = g_error_new(PEER_ERROR, PEER_ERROR_PROTOCOL, "%s instead of WELCOME",
                            peer_message_type_name((unsigned)type));
    else if (peer_hello_parse(payload, &greeting->theirs, &error) &&
             !peer_hello_judge(&greeting->theirs, greeting->config, &error) &&
             (greeting->theirs.channel != greeting->channel || greeting->theirs.session == 0))
        error = g_error_new_literal(PEER_ERROR, PEER_ERROR_PROTOCOL,
                                    "WELCOME names another channel or no session");
    if (error)
        greeting_fail(greeting, error);
    else
        greeting_agree(greeting);
}

static void
on_received(G_GNUC_UNUSED GObject *source, GAsyncResult *result, gpointer user_data)
{
    PeerGreeting *greeting = user_data;
    g_autoptr(GBytes) bytes = NULL;
    PeerMessageType type;
    GError *error = NULL;

    if (!hello_receive_finish(result, &type, &bytes, &error)) {
        bool version = g_error_matches(error, PEER_ERROR, PEER_ERROR_VERSION);
        bool protocol = g_error_matches(error, PEER_ERROR, PEER_ERROR_PROTOCOL);

        if (greeting->handlers && greeting->accepted && (version || protocol))
            peer_greeting_refuse(greeting, version ? "version" : "protocol", error);
        else
            greeting_fail(greeting, error);
        return;
    }
    if (!greeting_left(greeting))
        return;

    gsize len;
    const void *data = g_bytes_get_data(bytes, &len);

    if (greeting->accepted)
        on_hello(greeting, type, view_of(data, len));
    else
        on_welcome(greeting, type, view_of(data, len));
}

static void
on_connected(GObject *client, GAsyncResult *result, gpointer user_data)
{
    PeerGreeting *greeting = user_data;
    GError *error = NULL;
    GSocketConnection *connection =
        g_socket_client_connect_finish(G_SOCKET_CLIENT(client), result, &error);

    if (!connection) {
        greeting_fail(greeting, error);
        return;
    }
    greeting->stream = G_IO_STREAM(connection);
    if (greeting_left(greeting) && !greeting_handshake(greeting, &error))
        greeting_fail(greeting, error);
}

char *
peer_socket_remote_name(GSocket *socket)
{
    g_autoptr(GSocketAddress) address = g_socket_get_remote_address(socket, NULL);

    if (!G_IS_INET_SOCKET_ADDRESS(address))
        return g_strdup("unknown address");
    return g_inet_address_to_string(
        g_inet_socket_address_get_address(G_INET_SOCKET_ADDRESS(address)));
}

PeerGreeting *
peer_greeting_accept(GSocket *socket, bool urgent, PeerTls *tls, const PeerLinkConfig *config,
                     const PeerGreetingHandlers *handlers, gpointer user_data, GError **error)
{
    PeerGreeting *greeting = greeting_new(tls, config, handlers, user_data);

    greeting->accepted = true;
    greeting->urgent = urgent;
    greeting->who = peer_socket_remote_name(socket);
    greeting->stream = G_IO_STREAM(g_socket_connection_factory_create_connection(socket));
    if (!greeting_handshake(greeting, error)) {
        greeting_free(greeting);
        return NULL;
    }
    return greeting;
}

PeerGreeting *
peer_greeting_connect(PeerChannelKind channel, PeerTls *tls, const PeerLinkConfig *config,
                      const PeerGreetingHandlers *handlers, gpointer user_data)
{
    PeerGreeting *greeting = greeting_new(tls, config, handlers, user_data);
    g_autoptr(GSocketClient) client = g_socket_client_new();
    g_autoptr(GSocketConnectable) address =
        g_network_address_new(config->peer_address, config->peer_port);

    greeting->urgent = true;
    greeting->channel = channel;
    greeting->who = g_strdup_printf("%s at %s port %u", config->peer_host, config->peer_address,
                                    config->peer_port);
    g_socket_client_set_enable_proxy(client, FALSE);
    greeting_enter(greeting, "TCP connect");
    g_socket_client_connect_async(client, address, greeting->cancellable, on_connected, greeting);
    return greeting;
}

void
peer_greeting_welcome(PeerGreeting *greeting)
{
    greeting_send(greeting);
}

void
peer_greeting_refuse(PeerGreeting *greeting, const char *code, GError *reason)
{
    g_autofree char *json = peer_refused_format(code, reason->message);

    greeting->refusal = reason;
    greeting_enter(greeting, "sending REFUSED");
    hello_send_async(greeting->stream, PEER_MESSAGE_REFUSED, json, greeting->cancellable, on_sent,
                     greeting);
}

void
peer_greeting_abandon(PeerGreeting *greeting)
{
    greeting->handlers = NULL;
    source_clear(&greeting->deadline);
    g_cancellable_cancel(greeting->cancellable);
}
