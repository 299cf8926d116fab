/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-link.c - the authenticated link of a pair: three channels, hello, heartbeat */
/*
 * Theory of operation
 *
 * Goal: one object that is up when both colods hold three authenticated channels with each other,
 * and goes down as soon as that can no longer be believed. Whoever has no certificate of the pair's
 * CA, or is another VM's or another host's colod, disturbs nothing.
 *
 * Thread: that of the main context of peer_link_new(), which must be its thread-default context
 * whenever it runs. TLS handshakes run in GIO's worker threads; their results arrive in the
 * context.
 *
 * A PeerGreeting (peer-greeting.c) is one TCP connection from its birth until both sides have
 * agreed on it. At most PENDING_MAX accepted ones wait for a verdict, and PENDING_OF_PEER more that
 * come from the peer's configured address; further connections are closed at once. Only a HELLO of
 * the right peer binds a greeting to the link, so nothing that a stranger does changes the link's
 * state, and strangers who say nothing do not keep the peer waiting for their deadline.
 *
 * The link is IDLE, SETTING_UP or UP. The host whose name sorts first connects:
 *
 *   connecting side                          accepting side
 *   IDLE: connect, HELLO control     ->      hello fits: whatever link there was is replaced;
 *   SETTING_UP                       <-      SETTING_UP; WELCOME with a new session id
 *   HELLO checkpoint, HELLO frames   ->      session fits and the slot is free
 *                                    <-      WELCOME, WELCOME: UP when the last one is written
 *   UP when the last one is read
 *
 * The accepting side may be UP first and speak on any channel; that waits in the sockets, because
 * a hello is read to its last byte and not further. If the connecting side never sees the last
 * WELCOME its deadline ends the attempt, and the accepting side sees the end of the control
 * channel. If the accepting side gets no further, its own deadline returns it to IDLE.
 *
 * A newer control channel replaces an older link since only the peer's colod can open one and it
 * opens one only when it has none. This is how a restarted peer gets past half-open sockets.
 *
 * While the link is UP a PeerHeartbeat (peer-heartbeat.c) tells when the peer is silent.
 *
 * TCP_USER_TIMEOUT is set on the control channel only. The others may be held back by their
 * consumer for as long as it likes, and Linux counts a closed window as no progress.
 *
 * down() runs once for each up(), within peer_link_fail() if that is what took the link down. A
 * stream taken by a consumer is only shut down; the consumer sees its end and closes it.
 */
#include "peer-link.h"

#include "clock.h"
#include "peer-greeting.h"
#include "peer-heartbeat.h"
#include "peer-listener.h"
#include "peer-tls.h"
#include "source.h"

#include <string.h>
#include <sys/random.h>

enum {
    PENDING_MAX = 16,       /* accepted connections without a verdict */
    PENDING_OF_PEER = 4,    /* two attempts of it: never more than two channels greet at once */
    REPORT_INTERVAL_S = 10, /* the same text is reported once in this time */
    REPORTS_MAX = 64,       /* different texts remembered; more are dropped */
};

typedef enum LinkState {
    LINK_IDLE,
    LINK_SETTING_UP,
    LINK_UP,
} LinkState;

struct PeerLink {
    PeerLinkConfig config;
    const PeerLinkHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    PeerTls *tls;
    bool freed;
    bool connects; /* our name sorts first */
    guint64 boot_id;
    GHashTable *reports; /* text -> time of the last report, ns */

    PeerListener *listener;
    /* PeerGreeting: accepted, not yet bound to a channel; those in the slots kept for the peer. */
    GPtrArray *pending, *pending_of_peer;

    LinkState state;
    GSource *retry_source;                /* IDLE on the connecting side */
    GSource *setup_deadline;              /* SETTING_UP on the accepting side */
    guint64 session;                      /* 0: none */
    PeerGreeting *bound[PEER_N_CHANNELS]; /* SETTING_UP: under way for the session */
    bool taken[PEER_N_CHANNELS];
    GIOStream *streams[PEER_N_CHANNELS];
    guint64 peer_boot_id;
    PeerInfo peer;
    PeerChannel *control;
    PeerHeartbeat *heartbeat; /* UP */
};

static void link_reset(PeerLink *link, const GError *reason);

/* Random numbers, reports */

static guint64
random_id(void)
{
    guint64 id = 0;

    while (id == 0)
        if (getrandom(&id, sizeof(id), 0) != (ssize_t)sizeof(id))
            id = 0;
    return id;
}

static gboolean
report_is_old(G_GNUC_UNUSED gpointer key, gpointer value, gpointer user_data)
{
    const int64_t *then_ns = value, *now_ns = user_data;

    return *now_ns - *then_ns > REPORT_INTERVAL_S * NS_PER_S;
}

/* Calls `refused` unless the same was said lately. The table cannot grow by what strangers do. */
static void
report(PeerLink *link, const char *who, const GError *reason)
{
    int64_t now_ns = clock_now_ns();

    if (link->freed)
        return;

    g_autofree char *text = g_strdup_printf("%s: %s", who, reason->message);

    g_hash_table_foreach_remove(link->reports, report_is_old, &now_ns);
    if (g_hash_table_contains(link->reports, text) ||
        g_hash_table_size(link->reports) >= REPORTS_MAX)
        return;
    g_hash_table_insert(link->reports, g_steal_pointer(&text), g_memdup2(&now_ns, sizeof(now_ns)));
    link->handlers->refused(link, who, reason, link->user_data);
}

static void
link_clear(gpointer data)
{
    PeerLink *link = data;

    g_ptr_array_unref(link->pending);
    g_ptr_array_unref(link->pending_of_peer);
    g_hash_table_unref(link->reports);
    peer_tls_free(link->tls);
    g_main_context_unref(link->context);
}

static void
link_unref(PeerLink *link)
{
    g_rc_box_release_full(link, link_clear);
}

/* Heartbeat */

static void
on_silent(const GError *reason, gpointer user_data)
{
    link_reset(user_data, reason);
}

static void
on_confirmed(int64_t confirmed_ns, gpointer user_data)
{
    PeerLink *link = user_data;

    if (link->handlers->confirmed)
        link->handlers->confirmed(link, confirmed_ns, link->user_data);
}

static const PeerHeartbeatHandlers heartbeat_handlers = {
    .silent = on_silent,
    .confirmed = on_confirmed,
};

/* Control channel */

static void
on_control_message(G_GNUC_UNUSED PeerChannel *channel, PeerMessageType type, View payload,
                   gpointer user_data)
{
    PeerLink *link = g_rc_box_acquire(user_data);
    g_autoptr(GError) error = NULL;
    json_object *body = NULL;

    if (type == PEER_MESSAGE_HEARTBEAT) {
        (void)peer_heartbeat_take(link->heartbeat, payload, &error);
    } else if (type <= PEER_MESSAGE_REFUSED) {
        g_set_error(&error, PEER_ERROR, PEER_ERROR_PROTOCOL, "%s on an open link",
                    peer_message_type_name((unsigned)type));
    } else if ((body = peer_json_parse(payload, &error))) {
        link->handlers->message(link, type, body, link->user_data);
        json_object_put(body);
    } else {
        g_prefix_error(&error, "%s: ", peer_message_type_name((unsigned)type));
    }
    if (error)
        link_reset(link, error);
    link_unref(link);
}

static void
on_control_drained(G_GNUC_UNUSED PeerChannel *channel, G_GNUC_UNUSED gpointer user_data)
{
}

static void
on_control_closed(G_GNUC_UNUSED PeerChannel *channel, const GError *reason, gpointer user_data)
{
    link_reset(user_data, reason);
}

static const PeerChannelHandlers control_handlers = {
    .message = on_control_message,
    .drained = on_control_drained,
    .closed = on_control_closed,
};

/* Connecting */

static const PeerGreetingHandlers greeting_handlers;

static void
connect_channel(PeerLink *link, PeerChannelKind kind)
{
    g_main_context_push_thread_default(link->context);
    link->bound[kind] =
        peer_greeting_connect(kind, link->tls, &link->config, &greeting_handlers, link);
    g_main_context_pop_thread_default(link->context);
}

static gboolean
on_retry(gpointer user_data)
{
    PeerLink *link = user_data;

    source_clear(&link->retry_source);
    link->state = LINK_SETTING_UP;
    connect_channel(link, PEER_CHANNEL_CONTROL);
    return G_SOURCE_REMOVE;
}

/* Arranges the connecting side's next attempt. */
static void
link_start(PeerLink *link)
{
    if (link->connects && !link->freed)
        source_set_timeout(&link->retry_source, link->context, link->config.retry_ms, on_retry,
                           link);
}

/* States */

/* Takes what the link keeps of the peer's hello. */
static void
link_keep_peer(PeerLink *link, PeerHello *hello)
{
    PeerHello old = {.info = link->peer};

    link->peer = hello->info;
    hello->info = (PeerInfo){0};
    peer_hello_clear(&old);
}

static void
link_up(PeerLink *link)
{
    source_clear(&link->setup_deadline);
    link->state = LINK_UP;
    link->taken[PEER_CHANNEL_CONTROL] = true;
    peer_stream_set_timeouts(link->streams[PEER_CHANNEL_CONTROL], link->config.heartbeat_limit_ms);
    g_main_context_push_thread_default(link->context);
    link->control = peer_channel_new(link->streams[PEER_CHANNEL_CONTROL], PEER_CHANNEL_CONTROL,
                                     &control_handlers, link);
    link->heartbeat =
        peer_heartbeat_new(link->control, link->config.heartbeat_ms,
                           link->config.heartbeat_limit_ms, &heartbeat_handlers, link);
    g_main_context_pop_thread_default(link->context);
    link->handlers->up(link, &link->peer, link->user_data);
}

static void
close_streams(PeerLink *link)
{
    g_clear_pointer(&link->control, peer_channel_free);
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
        if (link->streams[kind] && link->taken[kind])
            peer_stream_shutdown(link->streams[kind]);
        else if (link->streams[kind])
            peer_stream_close(link->streams[kind]);
        g_clear_object(&link->streams[kind]);
        link->taken[kind] = false;
    }
}

/* Back to IDLE without a word. */
static void
link_drop(PeerLink *link)
{
    link->state = LINK_IDLE;
    link->session = 0;
    source_clear(&link->setup_deadline);
    source_clear(&link->retry_source);
    g_clear_pointer(&link->heartbeat, peer_heartbeat_free);
    close_streams(link);
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++)
        g_clear_pointer(&link->bound[kind], peer_greeting_abandon);
}

static void
link_reset(PeerLink *link, const GError *reason)
{
    bool was_up = link->state == LINK_UP;
    g_autoptr(GError) kept = g_error_copy(reason); /* closing may free what it is part of */

    link_drop(link);
    link_start(link);
    if (was_up)
        link->handlers->down(link, kept, link->user_data);
}

static gboolean
on_setup_deadline(gpointer user_data)
{
    PeerLink *link = g_rc_box_acquire(user_data);
    g_autoptr(GError) reason =
        g_error_new(PEER_ERROR, PEER_ERROR_TIMEOUT, "peer did not open all channels within %u ms",
                    link->config.connect_timeout_ms);
    g_autofree char *who = g_strdup(link->config.peer_host);

    link_reset(link, reason);
    report(link, who, reason);
    link_unref(link);
    return G_SOURCE_REMOVE;
}

/* Greetings */

static bool
is_claimed(const PeerLink *link, PeerChannelKind kind)
{
    return link->bound[kind] || link->streams[kind];
}

static void
forget_pending(PeerLink *link, PeerGreeting *greeting)
{
    if (!g_ptr_array_remove_fast(link->pending, greeting))
        (void)g_ptr_array_remove_fast(link->pending_of_peer, greeting);
}

/* Takes a greeting that ends off our books. Return: whether it was bound to a channel. */
static bool
forget_greeting(PeerLink *link, PeerGreeting *greeting)
{
    forget_pending(link, greeting);
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
        if (link->bound[kind] == greeting) {
            link->bound[kind] = NULL;
            return true;
        }
    }
    return false;
}

static void
on_describe(PeerHello *ours, gpointer user_data)
{
    PeerLink *link = user_data;

    ours->info.role = (char *)link->handlers->our_role(link->user_data);
    ours->info.generation = link->handlers->our_generation(link->user_data);
    ours->info.boot_id = link->boot_id;
    ours->session = link->session;
}

static void
refuse(PeerGreeting *greeting, const char *code, const char *text)
{
    peer_greeting_refuse(greeting, code,
                         g_error_new_literal(PEER_ERROR, PEER_ERROR_PROTOCOL, text));
}

/* A control channel was opened: whatever link there was is over. False: down() freed the link. */
static bool
begin_session(PeerLink *link, const PeerHello *theirs)
{
    g_autoptr(GError) replaced = g_error_new_literal(
        PEER_ERROR, PEER_ERROR_CLOSED, "replaced: the peer opened a newer control channel");

    if (link->state != LINK_IDLE)
        link_reset(link, replaced);
    if (link->freed)
        return false;
    link->state = LINK_SETTING_UP;
    link->session = random_id();
    link->peer_boot_id = theirs->info.boot_id;
    source_set_timeout(&link->setup_deadline, link->context, link->config.connect_timeout_ms,
                       on_setup_deadline, link);
    return true;
}

static void
on_hello(PeerGreeting *greeting, const PeerHello *theirs, gpointer user_data)
{
    PeerLink *link = g_rc_box_acquire(user_data);

    if (link->connects)
        refuse(greeting, "protocol", "this host sorts first: it connects and does not accept");
    else if (theirs->channel != PEER_CHANNEL_CONTROL &&
             (link->state != LINK_SETTING_UP || theirs->session != link->session ||
              theirs->info.boot_id != link->peer_boot_id || is_claimed(link, theirs->channel)))
        refuse(greeting, "session", "channel of a session that is not being set up");
    else if (theirs->channel != PEER_CHANNEL_CONTROL || begin_session(link, theirs)) {
        forget_pending(link, greeting);
        link->bound[theirs->channel] = greeting;
        peer_greeting_welcome(greeting);
    }
    link_unref(link);
}

static void
on_failed(PeerGreeting *greeting, const char *who, const GError *reason, gpointer user_data)
{
    PeerLink *link = g_rc_box_acquire(user_data);
    bool was_bound = forget_greeting(link, greeting);

    /* Bound greetings exist only while the link is being set up. */
    if (was_bound)
        link_reset(link, reason);
    report(link, who, reason);
    link_unref(link);
}

/* Both sides have agreed on this channel. */
static void
on_agreed(PeerGreeting *greeting, GIOStream *stream, PeerHello *theirs, gpointer user_data)
{
    PeerLink *link = g_rc_box_acquire(user_data);
    PeerChannelKind kind = theirs->channel;

    (void)forget_greeting(link, greeting);
    link->streams[kind] = g_object_ref(stream);
    if (kind == PEER_CHANNEL_CONTROL)
        link_keep_peer(link, theirs);
    if (link->connects && kind == PEER_CHANNEL_CONTROL) {
        link->session = theirs->session;
        connect_channel(link, PEER_CHANNEL_CHECKPOINT);
        connect_channel(link, PEER_CHANNEL_FRAMES);
    } else if (theirs->session != link->session && link->connects) {
        g_autoptr(GError) reason =
            g_error_new_literal(PEER_ERROR, PEER_ERROR_PROTOCOL, "WELCOME names another session");

        link_reset(link, reason);
        report(link, link->config.peer_host, reason);
    } else if (link->streams[PEER_CHANNEL_CONTROL] && link->streams[PEER_CHANNEL_CHECKPOINT] &&
               link->streams[PEER_CHANNEL_FRAMES]) {
        link_up(link);
    }
    link_unref(link);
}

static const PeerGreetingHandlers greeting_handlers = {
    .describe = on_describe,
    .hello = on_hello,
    .agreed = on_agreed,
    .failed = on_failed,
};

/* Listening */

static bool
is_at_peer_address(const PeerLink *link, GSocket *socket)
{
    g_autoptr(GInetAddress) ours = g_inet_address_new_from_string(link->config.peer_address);
    g_autoptr(GSocketAddress) theirs = g_socket_get_remote_address(socket, NULL);

    return ours && G_IS_INET_SOCKET_ADDRESS(theirs) &&
           g_inet_address_equal(ours,
                                g_inet_socket_address_get_address(G_INET_SOCKET_ADDRESS(theirs)));
}

/* Where a greeting is booked, or NULL if there is no room. An address proves nothing, it only keeps
 * others from standing in the peer's way. */
static GPtrArray *
find_slots(PeerLink *link, bool from_peer)
{
    if (from_peer && link->pending_of_peer->len < PENDING_OF_PEER)
        return link->pending_of_peer;
    return link->pending->len < PENDING_MAX ? link->pending : NULL;
}

static void
on_incoming(GSocket *socket, gpointer user_data)
{
    PeerLink *link = user_data;
    bool from_peer = is_at_peer_address(link, socket);
    GPtrArray *slots = find_slots(link, from_peer);
    g_autoptr(GError) error = NULL;
    PeerGreeting *greeting = NULL;

    if (slots) {
        g_main_context_push_thread_default(link->context);
        greeting = peer_greeting_accept(socket, from_peer, link->tls, &link->config,
                                        &greeting_handlers, link, &error);
        g_main_context_pop_thread_default(link->context);
    } else {
        error = g_error_new(PEER_ERROR, PEER_ERROR_REFUSED,
                            "busy: %d connections are being checked already", PENDING_MAX);
    }
    if (greeting) {
        g_ptr_array_add(slots, greeting);
    } else {
        /* Without the port: reports of one stranger are to look alike. */
        g_autofree char *who = peer_socket_remote_name(socket);

        (void)g_socket_close(socket, NULL);
        report(link, who, error);
    }
}

static void
on_listener_failed(const GError *reason, gpointer user_data)
{
    report(user_data, "listener", reason);
}

static const PeerListenerHandlers listener_handlers = {
    .incoming = on_incoming,
    .failed = on_listener_failed,
};

/* Public functions */

static gboolean
config_check(const PeerLinkConfig *config, GError **error)
{
    if (strcmp(config->host, config->peer_host) != 0)
        return TRUE;
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                "this host and its peer have the same name '%s'", config->host);
    return FALSE;
}

PeerLink *
peer_link_new(const PeerLinkConfig *config, const PeerLinkHandlers *handlers, gpointer user_data,
              GError **error)
{
    if (!config_check(config, error))
        return NULL;

    g_autoptr(PeerTls) tls =
        peer_tls_new(config->ca_file, config->cert_file, config->key_file, config->host, error);

    if (!tls)
        return NULL;

    PeerLink *link = g_rc_box_new0(PeerLink);

    link->config = *config;
    link->handlers = handlers;
    link->user_data = user_data;
    link->context = g_main_context_ref_thread_default();
    link->tls = g_steal_pointer(&tls);
    link->connects = strcmp(config->host, config->peer_host) < 0;
    link->boot_id = random_id();
    link->reports = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    link->pending = g_ptr_array_new();
    link->pending_of_peer = g_ptr_array_new();
    link->listener = peer_listener_new(config->listen_address, config->listen_port,
                                       &listener_handlers, link, error);
    if (!link->listener) {
        peer_link_free(link);
        return NULL;
    }
    if (link->connects)
        source_set_timeout(&link->retry_source, link->context, 0, on_retry, link);
    return link;
}

static void
abandon_all(GPtrArray *greetings)
{
    for (guint i = 0; i < greetings->len; i++)
        peer_greeting_abandon(g_ptr_array_index(greetings, i));
    g_ptr_array_set_size(greetings, 0);
}

void
peer_link_free(PeerLink *link)
{
    if (!link)
        return;
    link->freed = true;
    link_drop(link);
    abandon_all(link->pending);
    abandon_all(link->pending_of_peer);
    g_clear_pointer(&link->listener, peer_listener_free);
    link_keep_peer(link, &(PeerHello){0});
    link_unref(link);
}

gboolean
peer_link_is_up(const PeerLink *link)
{
    return link->state == LINK_UP;
}

void
peer_link_send(PeerLink *link, PeerMessageType type, json_object *body)
{
    const char *text = body ? json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN) : "{}";

    if (link->state != LINK_UP)
        return;
    peer_channel_send(link->control, type, text, strlen(text));
}

GIOStream *
peer_link_take_stream(PeerLink *link, PeerChannelKind kind)
{
    if (link->state != LINK_UP || link->taken[kind])
        return NULL;
    link->taken[kind] = true;
    return g_object_ref(link->streams[kind]);
}

void
peer_link_fail(PeerLink *link, const GError *reason)
{
    g_rc_box_acquire(link);
    if (link->state != LINK_IDLE)
        link_reset(link, reason);
    link_unref(link);
}

int64_t
peer_link_confirmed_ns(const PeerLink *link)
{
    return link->heartbeat ? peer_heartbeat_confirmed_ns(link->heartbeat) : 0;
}
