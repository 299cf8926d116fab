/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-link-sec.c - strangers and wrong peers at the door: they get nothing and disturb
 * nothing */
#include "test-peer-world.h"

#include <sys/socket.h>
#include <unistd.h>

/* The two never come up; @reporter says so, with @code and @text. */
static void
expect_never_up_for(Side *alpha, Side *beta, Side *reporter, PeerError code, const char *text)
{
    pair_start(alpha, beta);
    WAIT_UNTIL(alpha, beta, side_errors(reporter, code));
    ck_assert_msg(strstr(reporter->refused->str, text), "'%s' in '%s'", text,
                  reporter->refused->str);
    ck_assert_uint_eq(alpha->n_up + beta->n_up, 0);
    pair_clear(alpha, beta);
}

static void
expect_never_up(Side *alpha, Side *beta, Side *reporter, const char *text)
{
    expect_never_up_for(alpha, beta, reporter, PEER_ERROR_IDENTITY, text);
}

/* Like pair_init(), but one side's files come from elsewhere. */
static void
pair_init_files(Side *alpha, Side *beta, const char *alpha_authority, const char *beta_authority)
{
    side_init(alpha, alpha_authority, "alpha", "beta");
    side_init(beta, beta_authority, "beta", "alpha");
    alpha->config.peer_port = beta->config.listen_port;
    beta->config.peer_port = alpha->config.listen_port;
}

START_TEST(sec_peer_link_wrong_ca)
{
    Side alpha, beta;

    pair_init_files(&alpha, &beta, "ca", "other");
    expect_never_up(&alpha, &beta, &alpha, "not signed by our CA");
}
END_TEST

START_TEST(sec_peer_link_wrong_ca_of_client)
{
    Side alpha, beta;
    Stranger stranger = {0};

    pair_up(&alpha, &beta);

    g_autofree char *cert = g_build_filename(pki, "other/alpha/alpha.pem", NULL);
    g_autofree char *key = g_build_filename(pki, "other/alpha/alpha-key.pem", NULL);

    stranger_start(&stranger, &beta, cert, key);
    WAIT_UNTIL(&beta, &alpha, beta.n_refused && atomic_load(&stranger.done));
    ck_assert(side_errors(&beta, PEER_ERROR_IDENTITY));
    ck_assert(strstr(beta.refused->str, "not signed by our CA"));
    ck_assert_uint_eq(stranger.received->len, 0);
    expect_undisturbed(&alpha, &beta);
    stranger_clear(&stranger);
    pair_clear(&alpha, &beta);
}
END_TEST

/* Of a server, then of a client. */
static void
expect_out_of_time(const char *authority, const char *text)
{
    Side alpha, beta;

    pair_init_files(&alpha, &beta, "ca", authority);
    expect_never_up_for(&alpha, &beta, &alpha, PEER_ERROR_DATES, text);
    pair_init_files(&alpha, &beta, authority, "ca");
    expect_never_up_for(&alpha, &beta, &beta, PEER_ERROR_DATES, text);
}

START_TEST(sec_peer_link_expired_certificate)
{
    expect_out_of_time("expired", "peer's certificate is expired since 2001-01-01 00:00:00 UTC");
}
END_TEST

/* As when this host's clock stands before the day on which the certificates were made. */
START_TEST(sec_peer_link_certificate_of_the_future)
{
    expect_out_of_time("future",
                       "peer's certificate is not valid before 2101-02-03 04:05:06 UTC by "
                       "this host's clock; check the clocks");
}
END_TEST

START_TEST(sec_peer_link_wrong_host_name)
{
    Side alpha, gamma;

    /* gamma's certificate is of the right CA, but it is not beta. */
    side_init(&alpha, "ca", "alpha", "beta");
    side_init(&gamma, "ca", "gamma", "alpha");
    alpha.config.peer_port = gamma.config.listen_port;
    expect_never_up(&alpha, &gamma, &alpha, "for another host");

    /* aa connects to beta, who expects alpha. */
    Side aa, beta;

    side_init(&aa, "ca", "aa", "beta");
    side_init(&beta, "ca", "beta", "alpha");
    aa.config.peer_port = beta.config.listen_port;
    expect_never_up(&aa, &beta, &beta, "does not carry the DNS name 'alpha'");
}
END_TEST

START_TEST(sec_peer_link_wrong_host_in_hello)
{
    Side alpha, beta;
    Fake fake;

    pair_init(&alpha, &beta);
    fake_init(&fake, &alpha);
    side_start(&beta);
    alpha.config.host = "delta";
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_CONTROL));
    ck_assert(strstr(fake.reason->message, "(host)"));
    fake_clear(&fake);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(sec_peer_link_wrong_key_usage)
{
    Side alpha, beta;

    /* Certificates for servers only: good for beta, who accepts, but not for alpha. */
    pair_init_files(&alpha, &beta, "server-only", "server-only");
    expect_never_up(&alpha, &beta, &beta, "not meant for a client");
}
END_TEST

START_TEST(sec_peer_link_no_certificate)
{
    Side alpha, beta;
    Stranger stranger = {0};

    pair_up(&alpha, &beta);
    stranger_start(&stranger, &beta, NULL, NULL);
    WAIT_UNTIL(&beta, &alpha, beta.n_refused && atomic_load(&stranger.done));
    ck_assert_msg(side_errors(&beta, PEER_ERROR_IDENTITY), "%s", beta.refused->str);
    ck_assert_uint_eq(stranger.received->len, 0);
    expect_undisturbed(&alpha, &beta);
    stranger_clear(&stranger);
    pair_clear(&alpha, &beta);
}
END_TEST

static void
on_child_exit(G_GNUC_UNUSED GPid pid, G_GNUC_UNUSED int status, gpointer user_data)
{
    *(bool *)user_data = true;
}

START_TEST(sec_peer_link_tls_1_2)
{
    Side alpha, beta;
    bool gone = false;
    GPid pid;
    g_autoptr(GError) error = NULL;

    pair_up(&alpha, &beta);

    g_autofree char *to = g_strdup_printf("%s:%u", peer_world_address, beta.config.listen_port);
    char *argv[] = {(char *)"openssl", (char *)"s_client", (char *)"-connect", to,
                    (char *)"-tls1_2", (char *)"-cert",    alpha.files[1],     (char *)"-key",
                    alpha.files[2],    (char *)"-CAfile",  alpha.files[0],     NULL};

    ck_assert(g_spawn_async(NULL, argv, NULL,
                            G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD |
                                G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL,
                            NULL, NULL, &pid, &error));

    GSource *child = g_child_watch_source_new(pid);

    g_source_set_callback(child, G_SOURCE_FUNC(on_child_exit), &gone, NULL);
    g_source_attach(child, beta.context);
    WAIT_UNTIL(&beta, &alpha, gone && beta.n_refused);
    /* Refused by the library, or, if an administrator has widened its priorities, by us. */
    ck_assert_msg(strstr(beta.refused->str, "TLS handshake") ||
                      strstr(beta.refused->str, "did not agree to TLS 1.3"),
                  "%s", beta.refused->str);
    if (strstr(g_getenv("G_TLS_GNUTLS_PRIORITY"), "1.3") == NULL)
        ck_assert(strstr(beta.refused->str, "did not agree to TLS 1.3"));
    expect_undisturbed(&alpha, &beta);
    g_source_unref(child);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(sec_peer_link_garbage)
{
    static const char *const garbage[] = {"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff",
                                          "\x01\x01\x00\x00\x00\x00\x00\x02{}"};
    Side alpha, beta;

    pair_up(&alpha, &beta);
    for (size_t i = 0; i < G_N_ELEMENTS(garbage); i++) {
        auto_fd int fd = plain_connect(&beta);
        size_t len = i == 2 ? 10 : strlen(garbage[i]);

        ck_assert_int_eq(send(fd, garbage[i], len, MSG_NOSIGNAL), (ssize_t)len);
        (void)shutdown(fd, SHUT_WR);
        WAIT_UNTIL(&beta, &alpha, is_cut(fd));
    }
    WAIT_UNTIL(&beta, &alpha, beta.n_refused);
    expect_undisturbed(&alpha, &beta);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(sec_peer_link_slow_connection)
{
    Side alpha, beta;

    pair_init(&alpha, &beta);
    beta.config.connect_timeout_ms = SHORT_TIMEOUT_MS;
    pair_start(&alpha, &beta);
    WAIT_UNTIL(&alpha, &beta, alpha.n_up && beta.n_up);

    /* One never says a word, one begins a TLS record and one a hello. */
    auto_fd int mute = plain_connect(&beta);
    auto_fd int slow = plain_connect(&beta);
    Stranger stranger = {.send = g_byte_array_new()};

    g_byte_array_append(stranger.send, (const guint8 *)"\1\1\0", 3);
    ck_assert_int_eq(send(slow, "\x16\x03\x01\x02", 4, MSG_NOSIGNAL), 4);
    stranger_start(&stranger, &beta, alpha.files[1], alpha.files[2]);
    WAIT_UNTIL(&beta, &alpha, is_cut(mute) && is_cut(slow) && atomic_load(&stranger.done));
    ck_assert(side_errors(&beta, PEER_ERROR_TIMEOUT));
    ck_assert_msg(strstr(beta.refused->str, "TLS handshake: not done within"), "%s",
                  beta.refused->str);
    ck_assert_msg(strstr(beta.refused->str, "waiting for HELLO: not done within"), "%s",
                  beta.refused->str);
    ck_assert_uint_eq(stranger.received->len, 0);
    expect_undisturbed(&alpha, &beta);
    stranger_clear(&stranger);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(sec_peer_link_too_many_pending)
{
    enum { STRANGERS = 20, PENDING_MAX = 16 };

    Side alpha, beta;
    int fds[STRANGERS];
    unsigned n_cut;

    pair_init(&alpha, &beta);
    beta.config.connect_timeout_ms = 2000;
    pair_start(&alpha, &beta);
    WAIT_UNTIL(&alpha, &beta, alpha.n_up && beta.n_up);
    for (int i = 0; i < STRANGERS; i++)
        fds[i] = plain_connect(&beta);
    /* The last four are cut at once, the others at the deadline. */
    WAIT_UNTIL(&beta, &alpha, is_cut(fds[STRANGERS - 1]));
    n_cut = 0;
    for (int i = 0; i < STRANGERS; i++)
        n_cut += is_cut(fds[i]);
    ck_assert_uint_eq(n_cut, STRANGERS - PENDING_MAX);
    ck_assert(strstr(beta.refused->str, "busy"));
    ck_assert_uint_eq(beta.n_refused, 1);
    expect_undisturbed(&alpha, &beta);
    for (int i = 0; i < STRANGERS; i++) {
        WAIT_UNTIL(&beta, &alpha, is_cut(fds[i]));
        (void)close(fds[i]);
    }
    /* Then there is room again. */
    auto_fd int fd = plain_connect(&beta);

    (void)send(fd, "x", 1, MSG_NOSIGNAL);
    (void)shutdown(fd, SHUT_WR);
    WAIT_UNTIL(&beta, &alpha, is_cut(fd));
    expect_undisturbed(&alpha, &beta);
    pair_clear(&alpha, &beta);
}
END_TEST

/* Silent strangers have taken every slot and shall keep it for longer than this test waits: the
 * peer, known by its address, comes in nevertheless. */
START_TEST(sec_peer_link_strangers_hold_all_slots)
{
    enum { STRANGERS = 20, PENDING_MAX = 16 };

    Side alpha, beta;
    int fds[STRANGERS];
    unsigned n_kept = 0;

    pair_init(&alpha, &beta);
    beta.config.connect_timeout_ms = 10 * DEADLINE_MS;
    beta.config.peer_address = "127.0.0.1"; /* from where alpha connects */
    side_start(&beta);
    for (int i = 0; i < STRANGERS; i++)
        fds[i] = plain_connect_from(&beta, "127.0.0.2");
    WAIT_UNTIL(&beta, NULL, is_cut(fds[STRANGERS - 1]));
    ck_assert(strstr(beta.refused->str, "busy"));
    side_start(&alpha);
    WAIT_UNTIL(&alpha, &beta, alpha.n_up && beta.n_up);
    /* Without a single refusal: alpha got its slot at the first try. */
    ck_assert_uint_eq(alpha.n_refused, 0);
    for (int i = 0; i < STRANGERS; i++)
        n_kept += !is_cut(fds[i]);
    ck_assert_uint_eq(n_kept, PENDING_MAX);
    expect_undisturbed(&alpha, &beta);
    for (int i = 0; i < STRANGERS; i++)
        (void)close(fds[i]);
    pair_clear(&alpha, &beta);
}
END_TEST

/* What beta says to a stranger with alpha's certificate whose first bytes are those of @stranger.
 */
static void
expect_answer(Stranger *stranger, PeerError code, const char *answer)
{
    Side alpha, beta;

    pair_up(&alpha, &beta);
    stranger_start(stranger, &beta, alpha.files[1], alpha.files[2]);
    WAIT_UNTIL(&beta, &alpha, beta.n_refused && atomic_load(&stranger->done));
    ck_assert_msg(side_errors(&beta, code), "%s", beta.refused->str);
    ck_assert_msg(stranger_heard(stranger, answer), "%s", answer);
    expect_undisturbed(&alpha, &beta);
    stranger_clear(stranger);
    pair_clear(&alpha, &beta);
}

START_TEST(err_peer_link_wire_version)
{
    Stranger stranger = {0};

    stranger_say(&stranger, PEER_MESSAGE_HELLO, "{}");
    stranger.send->data[0] = 2;
    expect_answer(&stranger, PEER_ERROR_VERSION, "\"code\":\"version\"");
}
END_TEST

START_TEST(err_peer_link_other_message_first)
{
    Stranger stranger = {0}, welcome = {0};

    stranger_say(&stranger, PEER_MESSAGE_STATE, "{}");
    expect_answer(&stranger, PEER_ERROR_PROTOCOL, "\"code\":\"protocol\"");
    stranger_say(&welcome, PEER_MESSAGE_WELCOME, "{}");
    expect_answer(&welcome, PEER_ERROR_PROTOCOL, "\"code\":\"protocol\"");
}
END_TEST

START_TEST(err_peer_link_malformed_hello)
{
    Stranger stranger = {0};
    g_autofree char *json = hello_json(PEER_CHANNEL_CONTROL, 0);
    char *channel = strstr(json, "control");

    channel[0] = 'k';
    stranger_say(&stranger, PEER_MESSAGE_HELLO, json);
    expect_answer(&stranger, PEER_ERROR_PROTOCOL, "\"code\":\"protocol\"");
}
END_TEST

START_TEST(err_peer_link_second_hello_of_wrong_session)
{
    Stranger stranger = {0};
    g_autofree char *json = hello_json(PEER_CHANNEL_CHECKPOINT, 12345);

    stranger_say(&stranger, PEER_MESSAGE_HELLO, json);
    expect_answer(&stranger, PEER_ERROR_PROTOCOL, "\"code\":\"session\"");
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        err_peer_link_wire_version,
        err_peer_link_other_message_first,
        err_peer_link_malformed_hello,
        err_peer_link_second_hello_of_wrong_session,
        sec_peer_link_wrong_ca,
        sec_peer_link_wrong_ca_of_client,
        sec_peer_link_expired_certificate,
        sec_peer_link_certificate_of_the_future,
        sec_peer_link_wrong_host_name,
        sec_peer_link_wrong_host_in_hello,
        sec_peer_link_wrong_key_usage,
        sec_peer_link_no_certificate,
        sec_peer_link_tls_1_2,
        sec_peer_link_garbage,
        sec_peer_link_slow_connection,
        sec_peer_link_too_many_pending,
        sec_peer_link_strangers_hold_all_slots,
    };

    return peer_world_run("peer-link-sec", tests, G_N_ELEMENTS(tests));
}
