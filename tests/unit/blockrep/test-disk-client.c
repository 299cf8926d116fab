/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-disk-client.c - the client of a plugin's control socket against a plugin that lies, hangs or
 * goes
 *
 * The fake plugin is in the test's own thread: each test says what it reads and what it answers.
 */
#include "disk-client.h"
#include "disk-process.h"
#include "disk.h"

#include "check-main.h"
#include "fd.h"

#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEADLINE_MS = 20000, SILENCE_MS = 300, CONNECT_MS = 5000, MAX_PEERS = 8 };

typedef struct Fixture {
    char *dir, *path;
    int listen_fd;
    int peers[MAX_PEERS]; /* in the order of their connecting */
    int n_peers;
    DiskClient *client;
    int n_status, n_closed;
    int64_t seen; /* of the last status */
    GError *reason;
    gboolean free_in_status, free_in_closed;
} Fixture;

typedef struct Answer {
    Fixture *fixture;
    int n, code;
    char *text;
    gboolean free_in_reply;
    int n_destroyed;
} Answer;

/* --- Waiting --- */

static gboolean
on_late(gpointer user_data)
{
    *(gboolean *)user_data = TRUE;
    return G_SOURCE_CONTINUE;
}

#define WAIT_FOR(condition)                                                                        \
    do {                                                                                           \
        gboolean is_late = FALSE;                                                                  \
        guint timer = g_timeout_add(DEADLINE_MS, on_late, &is_late);                               \
        while (!(condition) && !is_late)                                                           \
            g_main_context_iteration(NULL, TRUE);                                                  \
        g_source_remove(timer);                                                                    \
        ck_assert_msg(!is_late, "%s", #condition);                                                 \
    } while (0)

/* --- The fake plugin --- */

static bool
is_readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    return poll(&poll_fd, 1, 0) == 1;
}

/* TRUE when @fd can be read; lets the client work meanwhile. */
static bool
wait_readable(int fd)
{
    gint64 end = g_get_monotonic_time() + DEADLINE_MS * 1000;

    while (!is_readable(fd) && g_get_monotonic_time() < end)
        g_main_context_iteration(NULL, FALSE);
    return is_readable(fd);
}

static int
accept_peer(Fixture *fixture)
{
    ck_assert(wait_readable(fixture->listen_fd));
    ck_assert_int_lt(fixture->n_peers, MAX_PEERS);

    int fd = accept4(fixture->listen_fd, NULL, NULL, SOCK_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    fixture->peers[fixture->n_peers++] = fd;
    return fd;
}

/* The next request; its id. */
static int64_t
read_request(int fd, char **ret_command, json_object **ret_arguments)
{
    char buffer[4096];
    json_object *value = NULL;

    ck_assert(wait_readable(fd));

    ssize_t n = recv(fd, buffer, sizeof(buffer) - 1, 0);

    ck_assert_int_gt(n, 0);
    buffer[n] = '\0';
    ck_assert_ptr_eq(strchr(buffer, '\n'), buffer + n - 1); /* one line */

    json_object *request = json_tokener_parse(buffer);

    ck_assert(json_object_object_get_ex(request, "command", &value));
    if (ret_command)
        *ret_command = g_strdup(json_object_get_string(value));
    ck_assert(json_object_object_get_ex(request, "arguments", &value));
    if (ret_arguments)
        *ret_arguments = json_object_get(value);
    ck_assert(json_object_object_get_ex(request, "id", &value));

    int64_t id = json_object_get_int64(value);

    json_object_put(request);
    return id;
}

static void
send_text(int fd, const char *text)
{
    size_t length = strlen(text);

    ck_assert_int_eq(send(fd, text, length, MSG_NOSIGNAL), (ssize_t)length);
}

static void
answer(int fd, int64_t id, const char *rest)
{
    g_autofree char *line = g_strdup_printf("{\"id\":%" G_GINT64_FORMAT ",%s}\n", id, rest);

    send_text(fd, line);
}

/* Reads a request that must be @command and answers it. */
static void
serve(int fd, const char *command, const char *rest)
{
    g_autofree char *asked = NULL;
    int64_t id = read_request(fd, &asked, NULL);

    ck_assert_str_eq(asked, command);
    answer(fd, id, rest);
}

#define STATUS(change) "\"return\":{\"change\":" #change "}"
#define DONE "\"return\":{}"

/* --- The client's side --- */

static void
on_status(DiskClient *client, json_object *status, gpointer user_data)
{
    Fixture *fixture = user_data;
    json_object *change = NULL;

    ck_assert(json_object_object_get_ex(status, "change", &change));
    fixture->seen = json_object_get_int64(change);
    fixture->n_status++;
    if (fixture->free_in_status) {
        disk_client_free(client);
        fixture->client = NULL;
    }
}

static void
on_closed(DiskClient *client, const GError *reason, gpointer user_data)
{
    Fixture *fixture = user_data;

    fixture->n_closed++;
    ck_assert_int_eq(fixture->n_closed, 1);
    fixture->reason = g_error_copy(reason);
    if (fixture->free_in_closed) {
        disk_client_free(client);
        fixture->client = NULL;
    }
}

static const DiskClientHandlers handlers = {.status = on_status, .closed = on_closed};

static void
on_reply(json_object *value, const GError *error, gpointer user_data)
{
    Answer *reply = user_data;

    ck_assert((value == NULL) == (error != NULL));
    reply->n++;
    reply->code = error ? error->code : -1;
    reply->text = g_strdup(error ? error->message : json_object_get_string(value));
    if (reply->free_in_reply)
        g_clear_pointer(&reply->fixture->client, disk_client_free);
}

static void
on_destroy(gpointer user_data)
{
    Answer *reply = user_data;

    reply->n_destroyed++;
}

static void
ask(Fixture *fixture, const char *command, DiskUrgency urgency, unsigned timeout_ms, Answer *reply)
{
    reply->fixture = fixture;
    disk_client_send(fixture->client, command, NULL, urgency, timeout_ms, on_reply, reply,
                     on_destroy);
    ck_assert_int_eq(reply->n, 0);
}

static void
fixture_init(Fixture *fixture)
{
    *fixture = (Fixture){.listen_fd = -1};
    fixture->dir = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    fixture->path = g_build_filename(fixture->dir, "control", NULL);
}

static void
start(Fixture *fixture)
{
    fixture_init(fixture);
    fixture->listen_fd = fd_unix_listen(fixture->path);
    ck_assert_int_ge(fixture->listen_fd, 0);
    fixture->client = disk_client_new(fixture->path, CONNECT_MS, SILENCE_MS, &handlers, fixture);
    serve(accept_peer(fixture), "status", STATUS(1));
    WAIT_FOR(fixture->n_status == 1);
    ck_assert_int_eq(disk_client_pid(fixture->client), getpid());
}

static void
fixture_clear(Fixture *fixture)
{
    disk_client_free(fixture->client);
    for (int i = 0; i < fixture->n_peers; i++)
        fd_clear(&fixture->peers[i]);
    fd_clear(&fixture->listen_fd);
    g_clear_error(&fixture->reason);
    (void)g_unlink(fixture->path);
    (void)g_rmdir(fixture->dir);
    g_free(fixture->path);
    g_free(fixture->dir);
}

static void
assert_closed(Fixture *fixture, DiskError code, const char *part)
{
    WAIT_FOR(fixture->n_closed == 1);
    ck_assert_msg(g_error_matches(fixture->reason, DISK_ERROR, (int)code), "%s",
                  fixture->reason->message);
    ck_assert_msg(strstr(fixture->reason->message, part) != NULL, "%s", fixture->reason->message);
}

/* --- What it is for --- */

START_TEST(unit_status_is_watched)
{
    Fixture fixture;
    json_object *arguments = NULL, *after = NULL;

    start(&fixture);

    int64_t id = read_request(fixture.peers[0], NULL, &arguments);

    ck_assert(json_object_object_get_ex(arguments, "after", &after));
    ck_assert_int_eq(json_object_get_int64(after), 1);
    json_object_put(arguments);
    answer(fixture.peers[0], id, STATUS(7));
    WAIT_FOR(fixture.n_status == 2);
    ck_assert_int_eq(fixture.seen, 7);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(unit_the_socket_may_come_late)
{
    Fixture fixture;

    fixture_init(&fixture);
    fixture.client = disk_client_new(fixture.path, CONNECT_MS, SILENCE_MS, &handlers, &fixture);

    Answer reply = {0};

    ask(&fixture, "alone", DISK_IN_TURN, 1000, &reply); /* waits for it too */
    for (int i = 0; i < 3; i++)
        g_main_context_iteration(NULL, TRUE);
    ck_assert_int_eq(fixture.n_closed, 0);
    fixture.listen_fd = fd_unix_listen(fixture.path);
    serve(accept_peer(&fixture), "status", STATUS(1));
    serve(accept_peer(&fixture), "alone", DONE);
    WAIT_FOR(reply.n == 1);
    ck_assert_int_eq(reply.code, -1);
    ck_assert_int_eq(reply.n_destroyed, 1);
    g_free(reply.text);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(unit_commands_keep_their_order_and_urgent_ones_do_not_wait)
{
    Fixture fixture;
    Answer barrier = {0}, release = {0}, alone = {0};

    start(&fixture);
    ask(&fixture, "barrier", DISK_IN_TURN, 5000, &barrier);
    ask(&fixture, "release", DISK_IN_TURN, 5000, &release);
    ask(&fixture, "alone", DISK_AT_ONCE, 5000, &alone);

    int in_turn = accept_peer(&fixture), at_once = accept_peer(&fixture);
    g_autofree char *first = NULL;
    int64_t barrier_id = read_request(in_turn, &first, NULL);

    ck_assert_str_eq(first, "barrier");
    serve(at_once, "alone", DONE);
    WAIT_FOR(alone.n == 1);
    ck_assert(!is_readable(in_turn));
    ck_assert_int_eq(barrier.n, 0);
    answer(in_turn, barrier_id, DONE);
    WAIT_FOR(barrier.n == 1);
    serve(in_turn, "release", DONE); /* on the same connection */
    WAIT_FOR(release.n == 1);
    ck_assert_int_eq(fixture.n_peers, 3);
    g_free(barrier.text);
    g_free(release.text);
    g_free(alone.text);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(err_classes)
{
    static const struct {
        const char *answer;
        int code;
        const char *text;
    } rows[] = {
        {"\"error\":{\"class\":\"refused\",\"text\":\"no\"}", DISK_ERROR_REFUSED, "no"},
        {"\"error\":{\"class\":\"usage\",\"text\":\"no\"}", DISK_ERROR_REFUSED, "no"},
        {"\"error\":{\"class\":\"timeout\",\"text\":\"t\"}", DISK_ERROR_TIMEOUT, "t"},
        {"\"error\":{\"class\":\"failed\",\"text\":\"emptying: x\"}", DISK_ERROR_FAILED,
         "emptying"},
        {"\"error\":{\"class\":\"new\",\"text\":\"x\"}", DISK_ERROR_FAILED, "x"},
        {"\"error\":{}", DISK_ERROR_FAILED, "without a text"},
        {"\"error\":7", DISK_ERROR_FAILED, "without a text"},
    };
    Fixture fixture;

    start(&fixture);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        Answer reply = {0};

        ask(&fixture, "finish", DISK_IN_TURN, 1000, &reply);
        serve(i == 0 ? accept_peer(&fixture) : fixture.peers[1], "finish", rows[i].answer);
        WAIT_FOR(reply.n == 1);
        ck_assert_int_eq(reply.code, rows[i].code);
        ck_assert_msg(strstr(reply.text, rows[i].text) != NULL, "%s", reply.text);
        g_free(reply.text);
    }
    ck_assert_int_eq(fixture.n_closed, 0); /* an error is no reason to end */
    fixture_clear(&fixture);
}
END_TEST

/* --- A plugin that is ill --- */

START_TEST(err_nobody_listens)
{
    Fixture fixture;

    fixture_init(&fixture);
    fixture.client = disk_client_new(fixture.path, 20, SILENCE_MS, &handlers, &fixture);
    ck_assert_int_eq(fixture.n_closed, 0);
    assert_closed(&fixture, DISK_ERROR_PROCESS, "No such file");
    ck_assert_int_eq(disk_client_pid(fixture.client), 0);

    Answer late = {0};

    ask(&fixture, "alone", DISK_AT_ONCE, 1000, &late); /* an end that comes all the same */
    WAIT_FOR(late.n == 1);
    ck_assert_int_eq(late.code, DISK_ERROR_PROCESS);
    g_free(late.text);
    fixture_clear(&fixture);
}
END_TEST

static void
on_process_dead(DiskProcess *process G_GNUC_UNUSED, const char *how, gpointer user_data)
{
    char **text = user_data;

    ck_assert_ptr_null(*text);
    *text = g_strdup(how);
}

/* A colod that comes back after its disk's process has died, and left its socket. */
START_TEST(err_a_socket_that_nobody_listens_on_any_more)
{
    static const DiskProcessHandlers process_handlers = {.dead = on_process_dead};
    Fixture fixture;
    g_autofree char *how = NULL;

    fixture_init(&fixture);
    fixture.listen_fd = fd_unix_listen(fixture.path);
    ck_assert_int_ge(fixture.listen_fd, 0);
    fd_clear(&fixture.listen_fd);
    ck_assert(g_file_test(fixture.path, G_FILE_TEST_EXISTS));

    g_autoptr(DiskProcess) process =
        disk_process_find(fixture.path, SILENCE_MS, &process_handlers, &how);

    WAIT_FOR(how != NULL);
    ck_assert_ptr_nonnull(strstr(how, "not found"));
    ck_assert(!g_file_test(fixture.path, G_FILE_TEST_EXISTS));
    g_clear_pointer(&process, disk_process_free);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(err_a_command_without_an_answer)
{
    Fixture fixture;
    Answer reply = {0}, waiting = {0};

    start(&fixture);
    ask(&fixture, "barrier", DISK_IN_TURN, 50, &reply);
    ask(&fixture, "release", DISK_IN_TURN, 50, &waiting);
    (void)read_request(accept_peer(&fixture), NULL, NULL);
    assert_closed(&fixture, DISK_ERROR_TIMEOUT, "does not answer");
    ck_assert_int_eq(reply.n, 1);
    ck_assert_int_eq(reply.code, DISK_ERROR_TIMEOUT);
    ck_assert_int_eq(waiting.n, 1);
    ck_assert_int_eq(waiting.n_destroyed, 1);
    g_free(reply.text);
    g_free(waiting.text);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(err_a_status_without_an_answer)
{
    Fixture fixture;

    start(&fixture); /* the second `status` is never answered */
    assert_closed(&fixture, DISK_ERROR_TIMEOUT, "does not answer");
    fixture_clear(&fixture);
}
END_TEST

START_TEST(err_the_plugin_goes)
{
    Fixture fixture;
    Answer reply = {0};

    start(&fixture);
    ask(&fixture, "barrier", DISK_IN_TURN, 5000, &reply);
    (void)read_request(accept_peer(&fixture), NULL, NULL);
    fd_clear(&fixture.peers[1]);
    assert_closed(&fixture, DISK_ERROR_PROCESS, "closed the connection");
    ck_assert_int_eq(reply.code, DISK_ERROR_PROCESS);
    g_free(reply.text);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(sec_garbage)
{
    static const char *const rows[] = {
        "garbage\n",
        "\n",
        "[]\n",
        "7\n",
        "{}\n",
        "{\"id\":99,\"return\":{}}\n",
        "{\"id\":\"2\",\"return\":{}}\n",
        "{\"id\":null,\"return\":{}}\n",
        "{\"id\":-3,\"return\":{}}\n",
        "{\"id\":3}\n",
        "{\"id\":3,\"return\":7}\n",
        "{\"id\":3,\"return\":null}\n",
        "{\"id\":3,\"return\":{}} x\n",
        "{\"id\":3,\"return\":{\"a\":\"\xff\"}}\n",
        "{\"id\":3,\"return\":[[[[[[[[[[[[]]]]]]]]]]]]}\n",
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        Fixture fixture;
        Answer reply = {0};

        start(&fixture);
        ask(&fixture, "barrier", DISK_IN_TURN, 5000, &reply);
        ck_assert_int_eq(read_request(accept_peer(&fixture), NULL, NULL), 3);
        send_text(fixture.peers[1], rows[i]);
        assert_closed(&fixture, DISK_ERROR_PROCESS, "something else");
        ck_assert_int_eq(reply.n, 1);
        g_free(reply.text);
        fixture_clear(&fixture);
    }
}
END_TEST

START_TEST(sec_an_answer_nobody_asked_for)
{
    Fixture fixture;
    Answer reply = {0};

    start(&fixture);
    ask(&fixture, "finish", DISK_IN_TURN, 5000, &reply);
    serve(accept_peer(&fixture), "finish", DONE);
    WAIT_FOR(reply.n == 1);
    send_text(fixture.peers[1], "{\"id\":3,\"return\":{}}\n");
    assert_closed(&fixture, DISK_ERROR_PROCESS, "something else");
    ck_assert_int_eq(reply.n, 1);
    g_free(reply.text);
    fixture_clear(&fixture);
}
END_TEST

START_TEST(sec_a_status_without_a_change)
{
    Fixture fixture;

    start(&fixture);
    serve(fixture.peers[0], "status", "\"return\":{\"mode\":\"idle\"}");
    assert_closed(&fixture, DISK_ERROR_PROCESS, "no `change`");
    fixture_clear(&fixture);
}
END_TEST

START_TEST(sec_a_line_without_an_end)
{
    Fixture fixture;
    g_autofree char *long_text = g_strnfill(10000, ' ');

    start(&fixture);
    for (int i = 0; i < 20 && fixture.n_closed == 0; i++) {
        (void)send(fixture.peers[0], long_text, 10000, MSG_NOSIGNAL | MSG_DONTWAIT);
        for (int turn = 0; turn < 20; turn++)
            g_main_context_iteration(NULL, FALSE);
    }
    assert_closed(&fixture, DISK_ERROR_PROCESS, "too long");
    fixture_clear(&fixture);
}
END_TEST

START_TEST(sec_more_commands_than_anybody_can_want)
{
    Fixture fixture;

    start(&fixture);
    for (int i = 0; i < 70; i++)
        disk_client_send(fixture.client, "release", NULL, DISK_IN_TURN, 5000, NULL, NULL, NULL);
    assert_closed(&fixture, DISK_ERROR_TIMEOUT, "does not answer");
    fixture_clear(&fixture);
}
END_TEST

/* --- Life --- */

START_TEST(life_freed_in_each_callback)
{
    Fixture fixture;
    Answer reply = {.free_in_reply = TRUE}, dropped = {0};

    start(&fixture);
    ask(&fixture, "finish", DISK_IN_TURN, 5000, &reply);
    ask(&fixture, "verify", DISK_IN_TURN, 5000, &dropped);
    serve(accept_peer(&fixture), "finish", DONE);
    WAIT_FOR(reply.n == 1);
    ck_assert_ptr_null(fixture.client);
    ck_assert_int_eq(reply.n_destroyed, 1);
    ck_assert_int_eq(dropped.n, 0);
    ck_assert_int_eq(dropped.n_destroyed, 1);
    g_free(reply.text);
    fixture_clear(&fixture);

    start(&fixture);
    fixture.free_in_status = TRUE;
    serve(fixture.peers[0], "status", STATUS(2));
    WAIT_FOR(fixture.client == NULL);
    fixture_clear(&fixture);

    start(&fixture);
    fixture.free_in_closed = TRUE;
    fd_clear(&fixture.peers[0]);
    WAIT_FOR(fixture.client == NULL);
    fixture_clear(&fixture);

    start(&fixture);
    reply = (Answer){.free_in_reply = TRUE};
    dropped = (Answer){0};
    ask(&fixture, "finish", DISK_IN_TURN, 5000, &reply);
    ask(&fixture, "verify", DISK_IN_TURN, 5000, &dropped);
    fd_clear(&fixture.peers[0]); /* at the end, the first of two replies frees it */
    WAIT_FOR(fixture.client == NULL);
    ck_assert_int_eq(fixture.n_closed, 0);
    ck_assert_int_eq(reply.n + dropped.n, 1);
    ck_assert_int_eq(reply.n_destroyed + dropped.n_destroyed, 2);
    g_free(reply.text);
    fixture_clear(&fixture);
}
END_TEST

CHECK_MAIN("disk-client", unit_status_is_watched, unit_the_socket_may_come_late,
           unit_commands_keep_their_order_and_urgent_ones_do_not_wait, err_classes,
           err_nobody_listens, err_a_socket_that_nobody_listens_on_any_more,
           err_a_command_without_an_answer, err_a_status_without_an_answer, err_the_plugin_goes,
           sec_garbage, sec_an_answer_nobody_asked_for, sec_a_status_without_a_change,
           sec_a_line_without_an_end, sec_more_commands_than_anybody_can_want,
           life_freed_in_each_callback)
