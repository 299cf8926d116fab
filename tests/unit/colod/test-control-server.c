/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-control-server.c - the control socket: answers, events, and clients that misbehave */
#include "control-server.h"
#include "control-server-parse.h"

#include "fd.h"

#include "check-main.h"

#include <errno.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Fixture {
    char *folder, *path;
    EventLog *log;
    ControlServer *server;
    GPtrArray *waiting; /* ControlRequest of the command "wait", not ended yet */
    char *last_arguments;
    int n_calls;
} Fixture;

/* "echo" returns its arguments, "fail" fails, "wait" is ended by the test. */
static void
handle(ControlRequest *request, const char *command, json_object *arguments, gpointer user_data)
{
    Fixture *f = user_data;

    f->n_calls++;
    if (g_str_equal(command, "echo"))
        control_request_return(request, json_object_get(arguments));
    else if (g_str_equal(command, "void"))
        control_request_return(request, NULL);
    else if (g_str_equal(command, "fail"))
        control_request_fail(request, "refused", "not %d now", 7);
    else if (g_str_equal(command, "wait"))
        g_ptr_array_add(f->waiting, request);
    else if (g_str_equal(command, "event")) {
        event_log_add(f->log, EVENT_INFO, "inner", "x");
        control_request_return(request, NULL);
    } else if (g_str_equal(command, "die")) {
        g_clear_pointer(&f->server, control_server_free);
        control_request_return(request, NULL);
    } else
        control_request_fail(request, "usage", "unknown command");
}

static Fixture
fixture_new(void)
{
    return (Fixture){.folder = g_dir_make_tmp("colod-test-XXXXXX", NULL),
                     .log = event_log_new("web1"),
                     .waiting = g_ptr_array_new()};
}

static void
serve(Fixture *f)
{
    g_autoptr(GError) error = NULL;

    f->path = g_build_filename(f->folder, "control.sock", NULL);
    f->server = control_server_new(f->path, f->log, handle, f, &error);
    ck_assert_msg(f->server != NULL, "%s", error ? error->message : "");
}

static void
fixture_clear(Fixture *f)
{
    control_server_free(f->server);
    event_log_free(f->log);
    ck_assert_uint_eq(f->waiting->len, 0);
    g_ptr_array_unref(f->waiting);
    ck_assert_msg(g_rmdir(f->folder) == 0, "the socket was left over");
    g_free(f->folder);
    g_free(f->path);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Fixture, fixture_clear)

/* Runs the loop until nothing is ready: all is local, so nothing more is under way then. */
static void
settle(void)
{
    while (g_main_context_iteration(NULL, FALSE))
        continue;
}

static int
connect_client(const Fixture *f)
{
    int fd = fd_unix_connect(f->path);

    ck_assert_int_ge(fd, 0);
    settle();
    return fd;
}

static void
send_all(int fd, const char *text)
{
    ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void
put(int fd, const char *text)
{
    send_all(fd, text);
    settle();
}

/* All that can be read now. */
static char *
take(int fd)
{
    GString *all = g_string_new(NULL);
    char buffer[65536];
    ssize_t n;

    settle();
    while ((n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0) {
        g_string_append_len(all, buffer, n);
        settle();
    }
    return g_string_free(all, FALSE);
}

static void
assert_answer(int fd, const char *request, const char *answer)
{
    put(fd, request);

    g_autofree char *got = take(fd);

    ck_assert_str_eq(got, answer);
}

static void
assert_closed(int fd)
{
    char byte;

    settle();
    ck_assert_int_le(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
    ck_assert_msg(errno != EAGAIN || recv(fd, &byte, 1, MSG_DONTWAIT) == 0, "still open");
}

START_TEST(unit_answers)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    assert_answer(fd, "{\"id\": 1, \"command\": \"echo\", \"arguments\": {\"a\": [1, \"/\"]}}\n",
                  "{\"id\":1,\"return\":{\"a\":[1,\"/\"]}}\n");
    assert_answer(fd, "{\"id\":\"x\",\"command\":\"void\"}\r\n", "{\"id\":\"x\",\"return\":{}}\n");
    assert_answer(fd, "\n{\"command\":\"fail\"}\n",
                  "{\"id\":null,\"error\":{\"class\":\"refused\",\"text\":\"not 7 now\"}}\n");
    assert_answer(fd, "{\"id\":[{}],\"command\":\"echo\"}\n", "{\"id\":[{}],\"return\":{}}\n");
}
END_TEST

START_TEST(unit_pieces_and_several_lines)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    for (const char *p = "{\"id\":1,\"command\":\"void\"}"; *p; p++) {
        char piece[] = {*p, '\0'};

        assert_answer(fd, piece, "");
    }
    assert_answer(fd, "\n{\"id\":2,\"command\":\"void\"}\n{\"id\":3,",
                  "{\"id\":1,\"return\":{}}\n{\"id\":2,\"return\":{}}\n");
    assert_answer(fd, "\"command\":\"void\"}\n", "{\"id\":3,\"return\":{}}\n");
}
END_TEST

START_TEST(unit_answers_later_and_out_of_order)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    assert_answer(fd, "{\"id\":1,\"command\":\"wait\"}\n{\"id\":2,\"command\":\"wait\"}\n", "");
    control_request_return(g_ptr_array_steal_index(f.waiting, 1), NULL);
    control_request_fail(g_ptr_array_steal_index(f.waiting, 0), "timeout", "late");

    g_autofree char *got = take(fd);

    ck_assert_str_eq(got, "{\"id\":2,\"return\":{}}\n"
                          "{\"id\":1,\"error\":{\"class\":\"timeout\",\"text\":\"late\"}}\n");
}
END_TEST

START_TEST(unit_subscribe_streams_old_and_new_events)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);
    event_log_add(f.log, EVENT_INFO, "first", "x");
    event_log_add(f.log, EVENT_INFO, "second", "x");

    auto_fd int fd = connect_client(&f);
    auto_fd int other = connect_client(&f);

    put(fd, "{\"id\":1,\"command\":\"subscribe\",\"arguments\":{\"after\":1}}\n");

    g_autofree char *old = take(fd);

    ck_assert(g_str_has_prefix(old, "{\"id\":1,\"return\":{}}\n{\"event\":{\"seq\":2,"));
    event_log_add(f.log, EVENT_INFO, "third", "x");

    g_autofree char *new = take(fd);

    ck_assert(g_str_has_prefix(new, "{\"event\":{\"seq\":3,"));
    ck_assert_ptr_nonnull(strstr(new, "\"event\":\"third\""));
    assert_answer(other, "", "");

    assert_answer(fd, "{\"id\":2,\"command\":\"subscribe\"}\n",
                  "{\"id\":2,\"error\":{\"class\":\"usage\",\"text\":\"this connection has "
                  "subscribed before\"}}\n");
    assert_answer(other, "{\"id\":3,\"command\":\"subscribe\",\"arguments\":{\"after\":-1}}\n",
                  "{\"id\":3,\"error\":{\"class\":\"usage\",\"text\":\"\\\"after\\\" is a number "
                  "of an event\"}}\n");
    put(fd, "{\"id\":4,\"command\":\"event\"}\n");

    g_autofree char *inner = take(fd);

    ck_assert(g_str_has_prefix(inner, "{\"event\":{\"seq\":4,"));
    ck_assert(g_str_has_suffix(inner, "\n{\"id\":4,\"return\":{}}\n"));
}
END_TEST

START_TEST(err_malformed_requests_keep_the_connection)
{
    static const struct {
        const char *line, *part;
    } rows[] = {
        {"x\n", "\"id\":null,\"error\":{\"class\":\"usage\",\"text\":\"at byte 0: "},
        {"{\"id\":1\n", "the line ends inside"},
        {"{} {}\n", "at byte "},
        {"[]\n", "a request is a JSON object"},
        {"null\n", "the line ends inside"},
        {"{\"id\":5}\n", "\"id\":5,\"error\":{\"class\":\"usage\",\"text\":\"\\\"command\\\" is"},
        {"{\"command\":1}\n", "is missing or no string"},
        {"{\"command\":\"a\\u0000b\"}\n", "zero character"},
        {"{\"command\":\"echo\",\"arguments\":[]}\n", "\\\"arguments\\\" is no object"},
        {"{\"command\":\"echo\",\"arguments\":null}\n", "\\\"arguments\\\" is no object"},
        {"{'command':'echo'}\n", "at byte "},
        {"{\"command\":\"\xff\"}\n", "at byte "},
        {"{\"command\":\"nonsense\"}\n", "unknown command"},
    };

    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        put(fd, rows[i].line);

        g_autofree char *got = take(fd);

        ck_assert_msg(strstr(got, rows[i].part) != NULL, "%s: %s", rows[i].line, got);
        ck_assert_msg(strchr(got, '\n') == got + strlen(got) - 1, "one line: %s", got);
    }
    ck_assert_int_eq(f.n_calls, 1);
    ck_assert_int_eq(send(fd, "{\0}\n", 4, 0), 4);

    g_autofree char *nul = take(fd);

    ck_assert_ptr_nonnull(strstr(nul, "a zero byte is no JSON"));
    assert_answer(fd, "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");
}
END_TEST

START_TEST(err_socket_in_use_or_folder_missing)
{
    g_auto(Fixture) f = fixture_new();
    g_autoptr(EventLog) log = event_log_new("x");
    g_autoptr(GError) error = NULL;

    serve(&f);
    ck_assert_ptr_null(control_server_new(f.path, log, handle, NULL, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE));
    g_clear_error(&error);
    ck_assert_ptr_null(control_server_new("/nonexistent/s", log, handle, NULL, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND));
    ck_assert_ptr_nonnull(strstr(error->message, "/nonexistent/s: cannot listen"));
    settle();
}
END_TEST

START_TEST(life_stale_socket_is_replaced)
{
    g_auto(Fixture) f = fixture_new();
    g_autofree char *path = g_build_filename(f.folder, "control.sock", NULL);
    int crashed = fd_unix_listen(path);

    ck_assert_int_ge(crashed, 0);
    close(crashed);
    serve(&f);

    auto_fd int fd = connect_client(&f);

    assert_answer(fd, "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");
}
END_TEST

START_TEST(life_half_closed_client_gets_its_answer)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    send_all(fd, "{\"id\":1,\"command\":\"wait\"}\n");
    shutdown(fd, SHUT_WR);
    settle();
    ck_assert_uint_eq(f.waiting->len, 1);
    control_request_return(g_ptr_array_steal_index(f.waiting, 0), NULL);

    g_autofree char *got = take(fd);

    ck_assert_str_eq(got, "{\"id\":1,\"return\":{}}\n");
    assert_closed(fd);
}
END_TEST

START_TEST(life_requests_outlive_client_and_server)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);
    auto_fd int last = connect_client(&f);

    put(fd, "{\"id\":1,\"command\":\"wait\"}\n");
    put(last, "{\"id\":2,\"command\":\"wait\"}\n");
    fd_clear(&fd);
    settle();
    control_request_return(g_ptr_array_steal_index(f.waiting, 0), NULL);
    g_clear_pointer(&f.server, control_server_free);
    control_request_fail(g_ptr_array_steal_index(f.waiting, 0), "failed", "x");
    assert_closed(last);
}
END_TEST

START_TEST(life_server_freed_by_its_handler)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    assert_answer(fd, "{\"id\":1,\"command\":\"die\"}\n{\"id\":2,\"command\":\"void\"}\n", "");
    ck_assert_int_eq(f.n_calls, 1);
    assert_closed(fd);
}
END_TEST

START_TEST(sec_line_too_long_is_refused_and_the_client_dropped)
{
    g_auto(Fixture) f = fixture_new();
    g_autofree char *piece = g_strnfill(8192, 'x');

    serve(&f);

    auto_fd int fd = connect_client(&f);
    auto_fd int other = connect_client(&f);

    for (int i = 0; i < 8; i++)
        put(fd, piece); /* 64 KiB exactly: still allowed */
    assert_answer(fd, "", "");
    assert_answer(fd, "x",
                  "{\"id\":null,\"error\":{\"class\":\"usage\",\"text\":\"a line is at most 64 KiB "
                  "long\"}}\n");
    assert_closed(fd);
    assert_answer(other, "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");
}
END_TEST

START_TEST(sec_deep_json)
{
    g_auto(Fixture) f = fixture_new();
    g_autofree char *deep = g_strnfill(30000, '[');
    g_autofree char *line =
        g_strconcat("{\"id\":1,\"command\":\"echo\",\"arguments\":{\"a\":", deep, "\n", NULL);

    serve(&f);

    auto_fd int fd = connect_client(&f);

    put(fd, line);

    g_autofree char *got = take(fd);

    ck_assert_msg(strstr(got, "\"usage\",\"text\":\"at byte ") && strstr(got, "nesting"), "%s",
                  got);
    ck_assert_int_eq(f.n_calls, 0);
}
END_TEST

START_TEST(sec_too_many_clients)
{
    g_auto(Fixture) f = fixture_new();
    int clients[32];

    serve(&f);
    for (int i = 0; i < 32; i++)
        clients[i] = connect_client(&f);

    auto_fd int one_more = connect_client(&f);
    g_autofree char *got = take(one_more);

    ck_assert_ptr_nonnull(strstr(got, "32 clients are connected already"));
    assert_closed(one_more);
    assert_answer(clients[31], "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");
    close(clients[0]);
    settle();

    auto_fd int next = connect_client(&f);

    assert_answer(next, "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");
    for (int i = 1; i < 32; i++)
        close(clients[i]);
}
END_TEST

START_TEST(sec_slow_reader_is_dropped)
{
    g_auto(Fixture) f = fixture_new();
    g_autofree char *text = g_strnfill(400, 'x');

    serve(&f);

    auto_fd int slow = connect_client(&f);
    auto_fd int good = connect_client(&f);

    put(slow, "{\"id\":1,\"command\":\"subscribe\"}\n");
    put(good, "{\"id\":1,\"command\":\"subscribe\"}\n");
    for (int i = 0; i < 6000; i++) {
        event_log_add(f.log, EVENT_INFO, "e", "%s", text);
        if (i % 100 == 99) {
            g_autofree char *got = take(good);

            ck_assert_uint_gt(strlen(got), 100 * 400);
        }
    }

    /* What fitted into the socket can still be read; then comes the end, not the rest. */
    g_autofree char *got = take(slow);

    ck_assert_uint_lt(strlen(got), 2 * 1024 * 1024);
    assert_closed(slow);
    assert_answer(good, "{\"id\":2,\"command\":\"void\"}\n", "{\"id\":2,\"return\":{}}\n");
}
END_TEST

START_TEST(sec_flood_of_requests_is_bounded)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);

    auto_fd int fd = connect_client(&f);

    for (int i = 0; i < 200; i++)
        put(fd, "{\"id\":1,\"command\":\"wait\"}\n");
    ck_assert_uint_eq(f.waiting->len, 64);

    g_autofree char *got = take(fd);
    g_auto(GStrv) lines = g_strsplit(got, "\n", -1);

    ck_assert_uint_eq(g_strv_length(lines), 200 - 64 + 1);
    ck_assert_ptr_nonnull(strstr(lines[0], "\"refused\",\"text\":\"64 requests"));
    while (f.waiting->len > 0)
        control_request_return(g_ptr_array_steal_index_fast(f.waiting, 0), NULL);
    g_free(take(fd));
    assert_answer(fd, "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");
}
END_TEST

START_TEST(sec_client_gone_with_unread_answers)
{
    g_auto(Fixture) f = fixture_new();

    serve(&f);
    for (int i = 0; i < 50; i++) {
        auto_fd int fd = fd_unix_connect(f.path);

        send_all(fd, "{\"command\":\"wait\"}\n{\"id\":1,\"command\":\"echo\"}\n");
        fd_clear(&fd);
        settle();
        ck_assert_uint_eq(f.waiting->len, 1);
        control_request_return(g_ptr_array_steal_index(f.waiting, 0), NULL);
    }
    ck_assert_int_eq(f.n_calls, 100);
}
END_TEST

START_TEST(sec_out_of_descriptors_does_not_spin)
{
    g_auto(Fixture) f = fixture_new();
    struct rlimit old, none;

    serve(&f);

    auto_fd int fd = connect_client(&f);
    auto_fd int waiting = fd_unix_connect(f.path);

    ck_assert(getrlimit(RLIMIT_NOFILE, &old) == 0);
    none = old;
    none.rlim_cur = (rlim_t)dup(fd); /* the lowest number that is free */
    close((int)none.rlim_cur);
    ck_assert(setrlimit(RLIMIT_NOFILE, &none) == 0);
    settle(); /* returns: the socket is not polled any more */
    ck_assert(setrlimit(RLIMIT_NOFILE, &old) == 0);
    assert_answer(fd, "{\"id\":1,\"command\":\"void\"}\n", "{\"id\":1,\"return\":{}}\n");

    /* The loop itself waits for the retry. */
    send_all(waiting, "{\"id\":2,\"command\":\"void\"}\n");
    while (f.n_calls < 2)
        g_main_context_iteration(NULL, TRUE);
    assert_answer(waiting, "", "{\"id\":2,\"return\":{}}\n");
}
END_TEST

CHECK_MAIN("control-server", unit_answers, unit_pieces_and_several_lines,
           unit_answers_later_and_out_of_order, unit_subscribe_streams_old_and_new_events,
           err_malformed_requests_keep_the_connection, err_socket_in_use_or_folder_missing,
           life_stale_socket_is_replaced, life_half_closed_client_gets_its_answer,
           life_requests_outlive_client_and_server, life_server_freed_by_its_handler,
           sec_line_too_long_is_refused_and_the_client_dropped, sec_deep_json, sec_too_many_clients,
           sec_slow_reader_is_dropped, sec_flood_of_requests_is_bounded,
           sec_client_gone_with_unread_answers, sec_out_of_descriptors_does_not_spin)
