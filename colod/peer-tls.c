/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-tls.c - sockets and mutual TLS 1.3 of the peer link */
/*
 * Theory of operation
 *
 * The TLS library (GnuTLS, below GIO) verifies the peer's chain and dates within the handshake, on
 * both sides, against our CA alone. It does not look at host names of clients nor at key purposes,
 * and takes older versions of TLS: peer_tls_check() does that before a byte of ours is exchanged.
 * Older versions are also switched off up front: glib-networking reads its priority string from the
 * environment, once, when it is first used. A constructor sets it because setenv() is not safe once
 * there are threads; an administrator's own setting stays, and the check catches a wrong one.
 */
#include "peer-tls.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    DISCARD_MAX_BYTES = 16 * 1024 * 1024,
    KEEPALIVE_S = 1, /* idle time and interval; the smallest TCP knows */
    KEEPALIVE_PROBES = 3,
};

#define TLS_PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3"

struct PeerTls {
    GTlsDatabase *authorities;
    GTlsCertificate *certificate; /* with its key */
};

__attribute__((constructor)) static void
allow_tls_1_3_only(void)
{
    g_setenv("G_TLS_GNUTLS_PRIORITY", TLS_PRIORITY, FALSE);
}

/* Sockets */

GSocket *
peer_stream_get_socket(GIOStream *stream)
{
    g_autoptr(GIOStream) base = NULL;

    if (G_IS_TLS_CONNECTION(stream))
        g_object_get(stream, "base-io-stream", &base, NULL);
    else
        base = g_object_ref(stream);
    return G_IS_SOCKET_CONNECTION(base) ? g_socket_connection_get_socket(G_SOCKET_CONNECTION(base))
                                        : NULL;
}

void
peer_stream_set_nodelay(GIOStream *stream)
{
    if (G_IS_TLS_CONNECTION(stream)) {
        g_autoptr(GIOStream) base = NULL;

        g_object_get(stream, "base-io-stream", &base, NULL);
        peer_stream_set_nodelay(base);
    } else if (G_IS_TCP_CONNECTION(stream)) {
        (void)g_socket_set_option(peer_stream_get_socket(stream), IPPROTO_TCP, TCP_NODELAY, 1,
                                  NULL);
    }
}

void
peer_stream_close(GIOStream *stream)
{
    GSocket *socket = peer_stream_get_socket(stream);

    if (!socket) {
        (void)g_io_stream_close(stream, NULL, NULL);
        return;
    }
    if (g_socket_is_closed(socket))
        return;
    /* Closing over unread input makes Linux send a reset and drop what we had still queued, maybe
     * the message that says why we go. MSG_TRUNC discards without copying (tcp(7)). */
    if (G_IS_TLS_CONNECTION(stream))
        (void)recv(g_socket_get_fd(socket), NULL, DISCARD_MAX_BYTES, MSG_DONTWAIT | MSG_TRUNC);
    (void)g_socket_close(socket, NULL);
}

void
peer_stream_shutdown(GIOStream *stream)
{
    GSocket *socket = peer_stream_get_socket(stream);

    if (socket && !g_socket_is_closed(socket))
        (void)g_socket_shutdown(socket, TRUE, TRUE, NULL);
}

void
peer_stream_set_timeouts(GIOStream *stream, unsigned user_timeout_ms)
{
    GSocket *socket = peer_stream_get_socket(stream);

    if (!socket)
        return;
    g_socket_set_keepalive(socket, TRUE);
    (void)g_socket_set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_S, NULL);
    (void)g_socket_set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_S, NULL);
    (void)g_socket_set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES, NULL);
    if (user_timeout_ms)
        (void)g_socket_set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)user_timeout_ms,
                                  NULL);
}

/* Certificates */

/* Takes one DER element of the given tag. Lengths beyond 24 bits do not occur in certificates. */
static bool
der_take(View *in, uint8_t tag, View *ret_content)
{
    View view = *in;
    uint8_t found, octet;
    size_t len;
    const uint8_t *content;

    if (!view_get_u8(&view, &found) || found != tag || !view_get_u8(&view, &octet))
        return false;
    len = octet;
    if (octet & 0x80) {
        unsigned n = octet & 0x7f;

        if (n == 0 || n > 3)
            return false;
        for (len = 0; n; n--) {
            if (!view_get_u8(&view, &octet))
                return false;
            len = (len << 8) | octet;
        }
    }
    if (!view_take(&view, len, &content))
        return false;
    *ret_content = view_of(content, len);
    *in = view;
    return true;
}

static bool
view_equals(View view, const void *bytes, size_t len)
{
    return view.len == len && memcmp(view.data, bytes, len) == 0;
}

enum {
    DER_BOOLEAN = 0x01,
    DER_INTEGER = 0x02,
    DER_OCTETS = 0x04,
    DER_OID = 0x06,
    DER_SEQUENCE = 0x30,
    DER_CONTEXT_0 = 0xa0, /* version; 1 and 2 are the unique ids, primitive */
    DER_CONTEXT_1 = 0x81,
    DER_CONTEXT_2 = 0x82,
    DER_CONTEXT_3 = 0xa3, /* extensions */
};

/* TBSCertificate of RFC 5280, 4.1, up to its extensions. False: malformed. */
static bool
find_extensions(View der, View *ret_extensions)
{
    View certificate, tbs, field, wrapped;

    if (!der_take(&der, DER_SEQUENCE, &certificate) || !der_take(&certificate, DER_SEQUENCE, &tbs))
        return false;
    (void)der_take(&tbs, DER_CONTEXT_0, &field);
    if (!der_take(&tbs, DER_INTEGER, &field))
        return false;
    /* signature, issuer, validity, subject, public key */
    for (int i = 0; i < 5; i++)
        if (!der_take(&tbs, DER_SEQUENCE, &field))
            return false;
    (void)der_take(&tbs, DER_CONTEXT_1, &field);
    (void)der_take(&tbs, DER_CONTEXT_2, &field);
    if (tbs.len == 0) {
        *ret_extensions = view_of(NULL, 0);
        return true;
    }
    return der_take(&tbs, DER_CONTEXT_3, &wrapped) &&
           der_take(&wrapped, DER_SEQUENCE, ret_extensions);
}

/* Whether ExtKeyUsageSyntax @value lists @purpose or anyExtendedKeyUsage. */
static bool
usage_lists(View value, PeerTlsPurpose purpose)
{
    const uint8_t wanted[] = {0x2b, 6, 1, 5, 5, 7, 3, (uint8_t)purpose};
    static const uint8_t any[] = {0x55, 0x1d, 37, 0};
    View list, oid;

    if (!der_take(&value, DER_SEQUENCE, &list))
        return false;
    while (der_take(&list, DER_OID, &oid))
        if (view_equals(oid, wanted, sizeof(wanted)) || view_equals(oid, any, sizeof(any)))
            return true;
    return false;
}

bool
peer_tls_certificate_allows(View der, PeerTlsPurpose purpose)
{
    static const uint8_t ext_key_usage[] = {0x55, 0x1d, 37};
    View extensions, extension, oid, critical, value;

    if (!find_extensions(der, &extensions))
        return false;
    while (extensions.len) {
        if (!der_take(&extensions, DER_SEQUENCE, &extension) ||
            !der_take(&extension, DER_OID, &oid))
            return false;
        (void)der_take(&extension, DER_BOOLEAN, &critical);
        if (!der_take(&extension, DER_OCTETS, &value))
            return false;
        if (view_equals(oid, ext_key_usage, sizeof(ext_key_usage)))
            return usage_lists(value, purpose);
    }
    return true;
}

/* Exact names only: a wildcard would let one host pose as another. */
static bool
has_dns_name(GTlsCertificate *certificate, const char *host)
{
    g_autoptr(GPtrArray) names = g_tls_certificate_get_dns_names(certificate);

    for (guint i = 0; names && i < names->len; i++) {
        gsize len;
        const char *name = g_bytes_get_data(g_ptr_array_index(names, i), &len);

        if (len == strlen(host) && g_ascii_strncasecmp(name, host, len) == 0)
            return true;
    }
    return false;
}

/* On the accepting side GIO asks even when the chain was found good, and refuses without an answer.
 */
static gboolean
accept_if_good(G_GNUC_UNUSED GTlsConnection *connection, G_GNUC_UNUSED GTlsCertificate *certificate,
               GTlsCertificateFlags errors, G_GNUC_UNUSED gpointer user_data)
{
    return errors == G_TLS_CERTIFICATE_NO_FLAGS;
}

/*
 * The database is given at construction: g_tls_*_connection_new() would first read the system's
 * whole trust store, for tens of milliseconds, in the main loop, at each stranger's knock.
 */
static GTlsConnection *
wrap(PeerTls *tls, GIOStream *tcp, gboolean is_server, const char *peer_host, GCallback accept,
     GError **error)
{
    GTlsBackend *backend = g_tls_backend_get_default();
    gpointer connection;

    if (is_server) {
        connection = g_initable_new(g_tls_backend_get_server_connection_type(backend), NULL, error,
                                    "base-io-stream", tcp, "database", tls->authorities,
                                    "certificate", tls->certificate, "authentication-mode",
                                    G_TLS_AUTHENTICATION_REQUIRED, NULL);
    } else {
        g_autoptr(GSocketConnectable) identity = g_network_address_new(peer_host, 0);

        connection =
            g_initable_new(g_tls_backend_get_client_connection_type(backend), NULL, error,
                           "base-io-stream", tcp, "database", tls->authorities, "certificate",
                           tls->certificate, "server-identity", identity, NULL);
    }
    if (connection)
        g_signal_connect(connection, "accept-certificate", accept, NULL);
    return connection;
}

static gboolean
accept_any(G_GNUC_UNUSED GTlsConnection *connection, G_GNUC_UNUSED GTlsCertificate *certificate,
           G_GNUC_UNUSED GTlsCertificateFlags errors, G_GNUC_UNUSED gpointer user_data)
{
    return TRUE;
}

/* One end of the handshake with ourselves. */
typedef struct SelfEnd {
    GTlsConnection *connection;
    GCancellable *cancellable;
    bool done;
    GError *error;
} SelfEnd;

static void
on_self_handshake(GObject *connection, GAsyncResult *result, gpointer user_data)
{
    SelfEnd *end = user_data;

    end->done = true;
    if (!g_tls_connection_handshake_finish(G_TLS_CONNECTION(connection), result, &end->error))
        g_cancellable_cancel(end->cancellable); /* the other end need not wait */
}

static gboolean
self_end_start(SelfEnd *end, PeerTls *tls, int fd, gboolean is_server, GError **error)
{
    g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, error);

    if (!socket) {
        (void)close(fd);
        return FALSE;
    }

    g_autoptr(GSocketConnection) plain = g_socket_connection_factory_create_connection(socket);

    end->connection =
        wrap(tls, G_IO_STREAM(plain), is_server, "self", G_CALLBACK(accept_any), error);
    if (!end->connection)
        return FALSE;
    g_tls_connection_handshake_async(end->connection, G_PRIORITY_DEFAULT, end->cancellable,
                                     on_self_handshake, end);
    return TRUE;
}

/* GIO does not tell whether a key belongs to a certificate; a handshake does. */
static gboolean
shake_own_hand(PeerTls *tls, GError **error)
{
    g_autoptr(GMainContext) context = g_main_context_new();
    g_autoptr(GCancellable) cancellable = g_cancellable_new();
    SelfEnd ends[2] = {{.cancellable = cancellable}, {.cancellable = cancellable}};
    int fds[2];
    GError *first = NULL;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0) {
        g_set_error_literal(error, G_IO_ERROR, g_io_error_from_errno(errno), g_strerror(errno));
        return FALSE;
    }
    g_main_context_push_thread_default(context);
    for (int i = 0; i < 2; i++)
        if (!self_end_start(&ends[i], tls, fds[i], i == 0, first ? NULL : &first))
            ends[i].done = true;
    if (first)
        g_cancellable_cancel(cancellable);
    while (!ends[0].done || !ends[1].done)
        g_main_context_iteration(context, TRUE);
    for (int i = 0; i < 2; i++) {
        /* The one that was cancelled only followed. */
        if (ends[i].error && !g_error_matches(ends[i].error, G_IO_ERROR, G_IO_ERROR_CANCELLED) &&
            !first)
            first = g_steal_pointer(&ends[i].error);
        g_clear_error(&ends[i].error);
        if (ends[i].connection)
            peer_stream_close(G_IO_STREAM(ends[i].connection));
        g_clear_object(&ends[i].connection);
    }
    g_main_context_pop_thread_default(context);
    if (first)
        g_propagate_error(error, first);
    return !first;
}

static gboolean
check_own(PeerTls *tls, const char *ca_file, const char *cert_file, const char *key_file,
          const char *host, GError **error)
{
    g_autoptr(GTlsCertificate) ca = g_tls_certificate_new_from_file(ca_file, error);

    if (!ca) {
        g_prefix_error(error, "%s: ", ca_file);
        return FALSE;
    }
    if (g_tls_certificate_verify(tls->certificate, NULL, ca) &
        (G_TLS_CERTIFICATE_UNKNOWN_CA | G_TLS_CERTIFICATE_GENERIC_ERROR)) {
        g_set_error(error, G_TLS_ERROR, G_TLS_ERROR_BAD_CERTIFICATE, "%s is not signed by %s",
                    cert_file, ca_file);
        return FALSE;
    }
    if (!has_dns_name(tls->certificate, host)) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_IDENTITY,
                    "%s does not carry this host's name '%s' as a DNS name", cert_file, host);
        return FALSE;
    }
    if (!shake_own_hand(tls, error)) {
        g_prefix_error(error, "%s and %s do not fit each other: ", cert_file, key_file);
        return FALSE;
    }
    return TRUE;
}

/* GIO's own text does not always name the file. */
static gboolean
check_readable(const char *file, GError **error)
{
    g_autofree char *contents = NULL;

    return g_file_get_contents(file, &contents, NULL, error);
}

PeerTls *
peer_tls_new(const char *ca_file, const char *cert_file, const char *key_file, const char *host,
             GError **error)
{
    PeerTls *tls;

    if (!check_readable(ca_file, error) || !check_readable(cert_file, error) ||
        !check_readable(key_file, error))
        return NULL;
    tls = g_new0(PeerTls, 1);
    tls->authorities = g_tls_file_database_new(ca_file, error);
    if (!tls->authorities) {
        g_prefix_error(error, "%s: ", ca_file);
    } else {
        tls->certificate = g_tls_certificate_new_from_files(cert_file, key_file, error);
        if (!tls->certificate)
            g_prefix_error(error, "%s, %s: ", cert_file, key_file);
        else if (check_own(tls, ca_file, cert_file, key_file, host, error))
            return tls;
    }
    peer_tls_free(tls);
    return NULL;
}

void
peer_tls_free(PeerTls *tls)
{
    if (!tls)
        return;
    g_clear_object(&tls->authorities);
    g_clear_object(&tls->certificate);
    g_free(tls);
}

GTlsConnection *
peer_tls_wrap(PeerTls *tls, GIOStream *tcp, gboolean is_server, const char *peer_host,
              GError **error)
{
    return wrap(tls, tcp, is_server, peer_host, G_CALLBACK(accept_if_good), error);
}

gboolean
peer_tls_check(GTlsConnection *connection, const char *peer_host, GError **error)
{
    GTlsCertificate *certificate = g_tls_connection_get_peer_certificate(connection);
    PeerTlsPurpose purpose =
        G_IS_TLS_SERVER_CONNECTION(connection) ? PEER_TLS_PURPOSE_CLIENT : PEER_TLS_PURPOSE_SERVER;
    g_autoptr(GByteArray) der = NULL;

    if (g_tls_connection_get_protocol_version(connection) != G_TLS_PROTOCOL_VERSION_TLS_1_3) {
        g_set_error_literal(error, PEER_ERROR, PEER_ERROR_IDENTITY,
                            "peer did not agree to TLS 1.3");
        return FALSE;
    }
    if (!certificate) {
        g_set_error_literal(error, PEER_ERROR, PEER_ERROR_IDENTITY, "peer has no certificate");
        return FALSE;
    }
    if (!has_dns_name(certificate, peer_host)) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_IDENTITY,
                    "peer's certificate does not carry the DNS name '%s'", peer_host);
        return FALSE;
    }
    g_object_get(certificate, "certificate", &der, NULL);
    if (!der || !peer_tls_certificate_allows(view_of(der->data, der->len), purpose)) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_IDENTITY,
                    "peer's certificate is not meant for a %s (extended key usage)",
                    purpose == PEER_TLS_PURPOSE_CLIENT ? "client" : "server");
        return FALSE;
    }
    return TRUE;
}

/* "DAY TIME UTC", or NULL: the certificate has no such date. */
static char *
date_text(GDateTime *date)
{
    g_autoptr(GDateTime) utc = date ? g_date_time_to_utc(date) : NULL;

    return utc ? g_date_time_format(utc, "%Y-%m-%d %H:%M:%S UTC") : NULL;
}

/* The dates of @certificate, if it is out of its time by this host's clock. */
static char *
time_flaw(GTlsCertificate *certificate)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autoptr(GDateTime) first = g_tls_certificate_get_not_valid_before(certificate);
    g_autoptr(GDateTime) last = g_tls_certificate_get_not_valid_after(certificate);
    g_autofree char *first_text = date_text(first);
    g_autofree char *last_text = date_text(last);

    if (first_text && g_date_time_compare(now, first) < 0)
        return g_strdup_printf("not valid before %s by this host's clock; check the clocks",
                               first_text);
    if (last_text && g_date_time_compare(now, last) > 0)
        return g_strdup_printf("expired since %s by this host's clock", last_text);
    return NULL;
}

GError *
peer_tls_explain(GTlsConnection *connection, GError *error)
{
    static const struct {
        GTlsCertificateFlags flag;
        const char *text;
    } flaws[] = {
        {G_TLS_CERTIFICATE_UNKNOWN_CA, "not signed by our CA"},
        {G_TLS_CERTIFICATE_BAD_IDENTITY, "for another host"},
        {G_TLS_CERTIFICATE_NOT_ACTIVATED, "not valid yet"},
        {G_TLS_CERTIFICATE_EXPIRED, "expired"},
        {G_TLS_CERTIFICATE_REVOKED, "revoked"},
        {G_TLS_CERTIFICATE_INSECURE, "of an insecure algorithm"},
        {G_TLS_CERTIFICATE_GENERIC_ERROR, "not valid"},
    };
    const GTlsCertificateFlags out_of_time =
        G_TLS_CERTIFICATE_NOT_ACTIVATED | G_TLS_CERTIFICATE_EXPIRED;
    GTlsCertificateFlags errors = g_tls_connection_get_peer_certificate_errors(connection);
    GTlsCertificate *certificate = g_tls_connection_get_peer_certificate(connection);
    g_autofree char *dates = errors & out_of_time && certificate ? time_flaw(certificate) : NULL;
    g_autoptr(GString) text = g_string_new(NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(flaws); i++)
        if (errors & flaws[i].flag)
            g_string_append_printf(text, "%s%s", text->len ? ", " : "peer's certificate is ",
                                   dates && flaws[i].flag & out_of_time ? dates : flaws[i].text);
    if (text->len || g_error_matches(error, G_TLS_ERROR, G_TLS_ERROR_BAD_CERTIFICATE) ||
        g_error_matches(error, G_TLS_ERROR, G_TLS_ERROR_CERTIFICATE_REQUIRED)) {
        error->domain = PEER_ERROR;
        error->code = dates && !(errors & ~out_of_time) ? PEER_ERROR_DATES : PEER_ERROR_IDENTITY;
    }
    if (text->len)
        g_prefix_error(&error, "%s: ", text->str);
    g_prefix_error(&error, "TLS handshake: ");
    return error;
}
