/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-world.c - what the tests of the peer link share */
#include "test-peer-world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

char *pki;
char *peer_world_address;

/* One side */

void
side_free_link(Side *side)
{
    g_clear_pointer(&side->link, peer_link_free);
}

static void
on_up(PeerLink *link, const PeerInfo *peer, gpointer user_data)
{
    Side *side = user_data;

    ck_assert(peer_link_is_up(link));
    ck_assert_uint_eq(side->n_up++, side->n_down);
    g_free(side->peer.host);
    g_free(side->peer.role);
    g_free(side->peer.software_version);
    side->peer = *peer;
    side->peer.host = g_strdup(peer->host);
    side->peer.role = g_strdup(peer->role);
    side->peer.software_version = g_strdup(peer->software_version);
    if (side->fail_in_up) {
        g_autoptr(GError) reason = g_error_new_literal(PEER_ERROR, PEER_ERROR_CLOSED, "test");

        side->fail_in_up = false;
        peer_link_fail(link, reason);
        ck_assert(!peer_link_is_up(link));
    }
    if (side->free_in_up)
        side_free_link(side);
}

static void
on_message(G_GNUC_UNUSED PeerLink *link, PeerMessageType type, json_object *body,
           gpointer user_data)
{
    Side *side = user_data;

    side->n_messages++;
    side->last_type = type;
    g_free(side->last_body);
    side->last_body = g_strdup(json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN));
}

static void
on_down(PeerLink *link, const GError *reason, gpointer user_data)
{
    Side *side = user_data;

    ck_assert(!peer_link_is_up(link));
    ck_assert_int_eq(peer_link_confirmed_ns(link), 0);
    ck_assert_uint_eq(++side->n_down, side->n_up);
    g_clear_error(&side->down_reason);
    side->down_reason = g_error_copy(reason);
    if (side->free_in_down)
        side_free_link(side);
}

static void
on_refused(G_GNUC_UNUSED PeerLink *link, const char *who, const GError *reason, gpointer user_data)
{
    Side *side = user_data;

    side->n_refused++;
    g_string_append_printf(side->refused, "%s-%d %s: %s\n", g_quark_to_string(reason->domain),
                           reason->code, who, reason->message);
    if (side->free_in_refused)
        side_free_link(side);
}

static const char *
our_role(gpointer user_data)
{
    const Side *side = user_data;

    return strcmp(side->config.host, "alpha") == 0 ? "primary" : "secondary";
}

static guint64
our_generation(gpointer user_data)
{
    const Side *side = user_data;

    /* More than a double can hold. */
    return strcmp(side->config.host, "alpha") == 0 ? G_MAXUINT64 : 7;
}

const PeerLinkHandlers side_handlers = {
    .up = on_up,
    .message = on_message,
    .down = on_down,
    .refused = on_refused,
    .our_role = our_role,
    .our_generation = our_generation,
};

/* A port below those that the kernel gives to clients, on an address of this process alone. */
static uint16_t
next_port(void)
{
    static uint16_t port = 20000;

    return port++;
}

/* A side that is @host and talks to @peer_host, with the files of @host in @authority. */
void
side_init(Side *side, const char *authority, const char *host, const char *peer_host)
{
    *side = (Side){.context = g_main_context_new(), .refused = g_string_new(NULL)};
    side->files[0] = g_strdup_printf("%s/%s/%s/ca.pem", pki, authority, host);
    side->files[1] = g_strdup_printf("%s/%s/%s/%s.pem", pki, authority, host, host);
    side->files[2] = g_strdup_printf("%s/%s/%s/%s-key.pem", pki, authority, host, host);
    side->config = (PeerLinkConfig){
        .vm_name = "vm1",
        .vm_uuid = UUID,
        .host = host,
        .peer_host = peer_host,
        .listen_address = peer_world_address,
        .listen_port = next_port(),
        .peer_address = peer_world_address,
        .ca_file = side->files[0],
        .cert_file = side->files[1],
        .key_file = side->files[2],
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
        .heartbeat_ms = HEARTBEAT_MS,
        .heartbeat_limit_ms = HEARTBEAT_LIMIT_MS,
        .retry_ms = RETRY_MS,
    };
}

void
side_start(Side *side)
{
    g_autoptr(GError) error = NULL;

    g_main_context_push_thread_default(side->context);
    side->link = peer_link_new(&side->config, &side_handlers, side, &error);
    g_main_context_pop_thread_default(side->context);
    ck_assert_msg(side->link != NULL, "%s", error ? error->message : "");
}

void
side_run(Side *side)
{
    g_main_context_push_thread_default(side->context);
    while (g_main_context_iteration(side->context, FALSE))
        ;
    g_main_context_pop_thread_default(side->context);
}

int
side_errors(Side *side, PeerError code)
{
    g_autofree char *text = g_strdup_printf("%s-%d ", g_quark_to_string(PEER_ERROR), (int)code);

    return strstr(side->refused->str, text) != NULL;
}

/* Waits a millisecond for input of strangers and threads: the two contexts are polled in turn. */
static gboolean
on_tick(gpointer user_data)
{
    *(bool *)user_data = true;
    return G_SOURCE_REMOVE;
}

void
tick(Side *side)
{
    bool over = false;
    GSource *source = g_timeout_source_new(1);

    g_source_set_callback(source, on_tick, &over, NULL);
    g_source_attach(source, side->context);
    g_main_context_push_thread_default(side->context);
    while (!over)
        g_main_context_iteration(side->context, TRUE);
    g_main_context_pop_thread_default(side->context);
    g_source_unref(source);
}

void
side_clear(Side *side)
{
    side_free_link(side);
    /* Operations that were cancelled end within the context. */
    for (int i = 0; i < 10; i++)
        tick(side);
    for (int i = 0; i < 3; i++)
        g_free(side->files[i]);
    g_free(side->peer.host);
    g_free(side->peer.role);
    g_free(side->peer.software_version);
    g_free(side->last_body);
    g_clear_error(&side->down_reason);
    g_string_free(side->refused, TRUE);
    g_main_context_unref(side->context);
}

void
pair_init(Side *alpha, Side *beta)
{
    side_init(alpha, "ca", "alpha", "beta");
    side_init(beta, "ca", "beta", "alpha");
    alpha->config.peer_port = beta->config.listen_port;
    beta->config.peer_port = alpha->config.listen_port;
}

void
pair_start(Side *alpha, Side *beta)
{
    side_start(alpha);
    side_start(beta);
}

void
pair_up(Side *alpha, Side *beta)
{
    pair_init(alpha, beta);
    pair_start(alpha, beta);
    WAIT_UNTIL(alpha, beta, alpha->n_up == 1 && beta->n_up == 1);
}

void
pair_clear(Side *alpha, Side *beta)
{
    side_clear(alpha);
    side_clear(beta);
}

/* The link of an up pair still carries messages. */
void
expect_undisturbed(Side *alpha, Side *beta)
{
    unsigned before = beta->n_messages;

    peer_link_send(alpha->link, PEER_MESSAGE_STATE, NULL);
    WAIT_UNTIL(alpha, beta, beta->n_messages == before + 1);
    ck_assert_uint_eq(alpha->n_down, 0);
    ck_assert_uint_eq(beta->n_down, 0);
}

/* Strangers */

static gboolean
stranger_accepts(G_GNUC_UNUSED GTlsConnection *connection,
                 G_GNUC_UNUSED GTlsCertificate *certificate,
                 G_GNUC_UNUSED GTlsCertificateFlags errors, G_GNUC_UNUSED gpointer user_data)
{
    return TRUE;
}

static GIOStream *
stranger_connect(Stranger *stranger)
{
    g_autoptr(GSocketClient) client = g_socket_client_new();

    g_socket_client_set_enable_proxy(client, FALSE);

    g_autoptr(GSocketConnection) tcp =
        g_socket_client_connect_to_host(client, peer_world_address, stranger->port, NULL, NULL);

    ck_assert(tcp);

    GIOStream *tls = g_tls_client_connection_new(G_IO_STREAM(tcp), NULL, NULL);

    g_signal_connect(tls, "accept-certificate", G_CALLBACK(stranger_accepts), NULL);
    if (stranger->cert_file) {
        g_autoptr(GTlsCertificate) certificate =
            g_tls_certificate_new_from_files(stranger->cert_file, stranger->key_file, NULL);

        ck_assert(certificate);
        g_tls_connection_set_certificate(G_TLS_CONNECTION(tls), certificate);
    }
    return tls;
}

static void *
stranger_main(void *data)
{
    Stranger *stranger = data;
    g_autoptr(GIOStream) tls = stranger_connect(stranger);
    uint8_t bytes[4096];
    gssize n = -1;

    if (g_tls_connection_handshake(G_TLS_CONNECTION(tls), NULL, NULL) &&
        g_output_stream_write_all(g_io_stream_get_output_stream(tls), stranger->send->data,
                                  stranger->send->len, NULL, NULL, NULL)) {
        do {
            n = g_input_stream_read(g_io_stream_get_input_stream(tls), bytes, sizeof(bytes), NULL,
                                    NULL);
            if (n > 0)
                g_byte_array_append(stranger->received, bytes, (guint)n);
        } while (n > 0);
    }
    peer_stream_close(tls);
    atomic_store(&stranger->done, true);
    return NULL;
}

void
stranger_start(Stranger *stranger, const Side *target, const char *cert_file, const char *key_file)
{
    stranger->port = target->config.listen_port;
    stranger->cert_file = cert_file;
    stranger->key_file = key_file;
    stranger->received = g_byte_array_new();
    if (!stranger->send)
        stranger->send = g_byte_array_new();
    atomic_store(&stranger->done, false);
    ck_assert_int_eq(pthread_create(&stranger->thread, NULL, stranger_main, stranger), 0);
}

void
stranger_clear(Stranger *stranger)
{
    ck_assert_int_eq(pthread_join(stranger->thread, NULL), 0);
    g_byte_array_unref(stranger->send);
    g_byte_array_unref(stranger->received);
}

void
stranger_say(Stranger *stranger, PeerMessageType type, const char *json)
{
    uint8_t header[PEER_HEADER_BYTES];

    if (!stranger->send)
        stranger->send = g_byte_array_new();
    peer_header_encode(header, type, (uint32_t)strlen(json));
    g_byte_array_append(stranger->send, header, sizeof(header));
    g_byte_array_append(stranger->send, (const guint8 *)json, (guint)strlen(json));
}

char *
hello_json(PeerChannelKind channel, guint64 session)
{
    const PeerHello hello = {
        .channel = channel,
        .vm = (char *)"vm1",
        .uuid = (char *)UUID,
        .info = {.host = (char *)"alpha",
                 .role = (char *)"primary",
                 .software_version = (char *)"0",
                 .boot_id = 1},
        .session = session,
    };

    return peer_hello_format(&hello);
}

bool
stranger_heard(const Stranger *stranger, const char *text)
{
    return stranger->received->len &&
           memmem(stranger->received->data, stranger->received->len, text, strlen(text));
}

int
plain_connect(const Side *target)
{
    return plain_connect_from(target, "127.0.0.1");
}

int
plain_connect_from(const Side *target, const char *source)
{
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(source)};
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(target->config.listen_port),
                                  .sin_addr.s_addr = inet_addr(peer_world_address)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_eq(bind(fd, (struct sockaddr *)&from, sizeof(from)), 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(fd_set_nonblocking(fd), 0);
    return fd;
}

/* Whether the other side has closed @fd. */
bool
is_cut(int fd)
{
    char byte;
    ssize_t n = recv(fd, &byte, 1, 0);

    return n == 0 || (n < 0 && errno != EAGAIN);
}

static void
fake_describe(PeerHello *ours, gpointer user_data)
{
    Fake *fake = user_data;

    ours->info.role = (char *)"primary";
    ours->info.boot_id = fake->boot_id;
    ours->session = fake->session;
}

static void
fake_agreed(G_GNUC_UNUSED PeerGreeting *greeting, GIOStream *stream, PeerHello *theirs,
            gpointer user_data)
{
    Fake *fake = user_data;

    fake->n_agreed++;
    fake->session = theirs->session;
    g_clear_object(&fake->streams[theirs->channel]);
    fake->streams[theirs->channel] = g_object_ref(stream);
}

static void
fake_failed(G_GNUC_UNUSED PeerGreeting *greeting, G_GNUC_UNUSED const char *who,
            const GError *reason, gpointer user_data)
{
    Fake *fake = user_data;

    fake->n_failed++;
    g_clear_error(&fake->reason);
    fake->reason = g_error_copy(reason);
}

static const PeerGreetingHandlers fake_handlers = {
    .describe = fake_describe, .agreed = fake_agreed, .failed = fake_failed};

void
fake_init(Fake *fake, Side *side)
{
    g_autoptr(GError) error = NULL;

    *fake = (Fake){.side = side, .boot_id = 99};
    fake->tls = peer_tls_new(side->config.ca_file, side->config.cert_file, side->config.key_file,
                             side->config.host, &error);
    ck_assert_msg(fake->tls != NULL, "%s", error ? error->message : "");
}

/* Opens a channel to @target. Return: whether it was agreed on. */
bool
fake_open(Fake *fake, Side *target, PeerChannelKind kind)
{
    unsigned agreed = fake->n_agreed, failed = fake->n_failed;

    fake->side->config.peer_port = target->config.listen_port;
    g_main_context_push_thread_default(fake->side->context);
    peer_greeting_connect(kind, fake->tls, &fake->side->config, &fake_handlers, fake);
    g_main_context_pop_thread_default(fake->side->context);
    WAIT_UNTIL(fake->side, target, fake->n_agreed > agreed || fake->n_failed > failed);
    return fake->n_agreed > agreed;
}

static void
fake_ignore(G_GNUC_UNUSED PeerChannel *channel, G_GNUC_UNUSED PeerMessageType type,
            G_GNUC_UNUSED View payload, G_GNUC_UNUSED gpointer user_data)
{
}

static void
fake_closed(G_GNUC_UNUSED PeerChannel *channel, G_GNUC_UNUSED const GError *reason,
            G_GNUC_UNUSED gpointer user_data)
{
}

static const PeerChannelHandlers fake_channel_handlers = {.message = fake_ignore,
                                                          .closed = fake_closed};

void
fake_up(Fake *fake, Side *target)
{
    unsigned n_up = target->n_up;

    for (int kind = 0; kind < PEER_N_CHANNELS; kind++)
        ck_assert(fake_open(fake, target, (PeerChannelKind)kind));
    WAIT_UNTIL(fake->side, target, target->n_up == n_up + 1);
    g_main_context_push_thread_default(fake->side->context);
    fake->control = peer_channel_new(fake->streams[PEER_CHANNEL_CONTROL], PEER_CHANNEL_CONTROL,
                                     &fake_channel_handlers, NULL);
    g_main_context_pop_thread_default(fake->side->context);
}

void
fake_clear(Fake *fake)
{
    g_clear_pointer(&fake->control, peer_channel_free);
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
        if (fake->streams[kind])
            peer_stream_close(fake->streams[kind]);
        g_clear_object(&fake->streams[kind]);
    }
    g_clear_error(&fake->reason);
    peer_tls_free(fake->tls);
}

/* Certificates */

static void
run(const char *command)
{
    g_autofree char *output = NULL, *errors = NULL;
    int status;
    const char *argv[] = {"/bin/sh", "-euc", command, NULL};

    if (!g_spawn_sync(pki, (char **)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &output, &errors,
                      &status, NULL) ||
        status != 0) {
        g_printerr("%s\n%s%s", command, output ? output : "", errors ? errors : "");
        exit(EXIT_FAILURE);
    }
}

static void
make_pki(void)
{
    pki = g_dir_make_tmp("test-peer-link-XXXXXX", NULL);
    run("for ca in ca other; do '" COLO_PKI "' init $ca/ca;"
        " for host in alpha beta gamma aa; do"
        " '" COLO_PKI "' host $ca/ca $host $ca/$host; done; done");
    /* The same keys and names, but over since 2001, or not begun before 2101, or for servers only.
     */
    run("touch index.txt; for host in alpha beta; do"
        " for kind in expired future server-only; do"
        " mkdir -p $kind/$host; cp ca/$host/* $kind/$host/;"
        " cat >$host.cnf <<END\n"
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nrand_serial=yes\nnew_certs_dir=.\n"
        "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n"
        "[expired]\nsubjectAltName=DNS:$host\n[future]\nsubjectAltName=DNS:$host\n[server-only]"
        "\nsubjectAltName=DNS:$host\n"
        "extendedKeyUsage=serverAuth\nEND\n"
        "openssl req -new -subj /CN=$host -key ca/$host/$host-key.pem -out $host.csr;"
        "if [ $kind = expired ]; then dates='-startdate 20000101000000Z -enddate 20010101000000Z';"
        "elif [ $kind = future ]; then dates='-startdate 21010203040506Z -enddate 21020101000000Z';"
        "else dates='-days 100'; fi;"
        "openssl ca -batch -config $host.cnf -extensions $kind -cert ca/ca/ca.pem"
        " -keyfile ca/ca/ca-key.pem -in $host.csr -out $kind/$host/$host.pem -notext $dates;"
        "done; done");
}

/*
 * Sanitizers and the TLS module of GIO, which is loaded at run time and not built with them.
 *
 * TSan does not see how GLib hands a connection from the main thread to a worker and back, and of
 * GLib's mutexes, inlined in part, it sees some unlocks without their locks. ld-linux: the dynamic
 * linker frees the thread-local storage of one ended thread in another.
 * LeakSanitizer's record of the module's thread-local storage goes stale when a worker ends, and
 * its scan at exit then crashes ("Tracer caught signal 11"); without that record it scans the rest.
 */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void);

const char *
__tsan_default_suppressions(void)
{
    return "race:libgobject-2.0.so.0\nrace:libgiognutls.so\nrace:libgnutls.so\n"
           "race:libtasn1.so\nrace:libnettle.so\nrace:libhogweed.so\nrace:libgmp.so\n"
           "race:libp11-kit.so\nrace:libidn2.so\nrace:libunistring.so\nrace:ld-linux\n";
}

const char *
__tsan_default_options(void)
{
    return "report_mutex_bugs=0";
}

const char *
__asan_default_options(void)
{
    return "intercept_tls_get_addr=0";
}

int
peer_world_run(const char *name, const TTest *const *tests, size_t n_tests)
{
    g_autofree char *openssl = g_find_program_in_path("openssl");

    if (!openssl || !g_tls_backend_supports_tls(g_tls_backend_get_default())) {
        g_print("skipped: %s\n", openssl ? "no TLS module for GIO" : "no openssl");
        return 77;
    }
    make_pki();
    peer_world_address = g_strdup_printf("127.%d.%d.%d", 1 + getpid() / 62500 % 250,
                                         getpid() / 250 % 250, 1 + getpid() % 250);

    int result = check_run(name, tests, n_tests);
    g_autofree char *remove = g_strdup_printf("rm -rf '%s'", pki);

    run(remove);
    g_free(pki);
    g_free(peer_world_address);
    return result;
}
