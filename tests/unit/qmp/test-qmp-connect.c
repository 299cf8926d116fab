/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-qmp-connect.c - connection, greeting, negotiation, and what ends them */
#include "qmp-fixture.h"

#include "check-main.h"

#include <glib/gstdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fd.h"
#include "qmp-parse.h"

static char *
temp_path(char **ret_dir)
{
    *ret_dir = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    return g_build_filename(*ret_dir, "q", NULL);
}

/* Waits for the end and checks its code and a word of its message. */
static void
expect_closed(Fixture *f, QmpError code, const char *text)
{
    ck_assert(fake_qmp_wait_until(f->closed, WAIT_MS));
    ck_assert_msg(g_error_matches(f->reason, QMP_ERROR, (int)code), "%s", f->reason->message);
    ck_assert_msg(strstr(f->reason->message, text) != NULL, "%s", f->reason->message);
    for (int i = 0; i < 3; i++)
        fake_qmp_iterate();
    ck_assert_uint_eq(f->closed, 1);
}

START_TEST(unit_greeting_version_and_oob)
{
    Fixture f;

    fixture_start(&f);
    ck_assert_ptr_null(qmp_client_version(f.client));
    ck_assert_ptr_null(qmp_client_package(f.client));
    ck_assert(!qmp_client_has_oob(f.client));
    ck_assert(fake_qmp_wait_until(f.ready, WAIT_MS));
    ck_assert_str_eq(qmp_client_version(f.client), "11.1.3");
    ck_assert_str_eq(qmp_client_package(f.client), "fake");
    ck_assert(qmp_client_has_oob(f.client));
    ck_assert_str_eq(json_object_to_json_string(fake_qmp_arguments(f.qemu, "qmp_capabilities")),
                     "{ \"enable\": [ \"oob\" ] }");
    ck_assert_uint_eq(fake_qmp_refused(f.qemu), 0);
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_oob_is_not_asked_for_when_not_offered)
{
    Fixture f;

    fixture_start(&f);
    fake_qmp_set_greeting(f.qemu, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, "
                                  "\"major\": 7}}, \"capabilities\": []}}");
    ck_assert(fake_qmp_wait_until(f.ready, WAIT_MS));
    ck_assert(!qmp_client_has_oob(f.client));
    ck_assert_str_eq(qmp_client_version(f.client), "7.2.0");
    ck_assert_str_eq(qmp_client_package(f.client), "");
    fixture_yank(&f, "migration", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "ready yank:ok");
    ck_assert(!fake_qmp_was_oob(f.qemu, "yank"));
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_session_byte_by_byte)
{
    Fixture f;

    fixture_start(&f);
    fake_qmp_set_drip(f.qemu, 1);
    fake_qmp_reply(f.qemu, "query-status", "{\"running\": true, \"status\": \"running\"}");
    fixture_send(&f, "query-status", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "ready query-status:ok");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_connect_refused)
{
    g_autofree char *dir = NULL, *path = temp_path(&dir);
    Fixture f = {.log = g_string_new(NULL)};

    close(fd_unix_listen(path)); /* a socket file that nobody serves */
    f.client = qmp_client_new(path, 60, &fixture_handlers, &f);
    expect_closed(&f, QMP_ERROR_CONNECT, "Connection refused");
    ck_assert_ptr_nonnull(strstr(f.reason->message, path));
    g_unlink(path);
    g_rmdir(dir);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_connect_path_too_long_fails_at_once)
{
    g_autofree char *path = g_strnfill(200, 'x');
    Fixture f = {.log = g_string_new(NULL)};

    f.client = qmp_client_new(path, 10 * WAIT_MS, &fixture_handlers, &f);
    ck_assert_uint_eq(f.closed, 0);
    expect_closed(&f, QMP_ERROR_CONNECT, "File name too long");
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_connect_retries_until_a_late_server)
{
    g_autofree char *dir = NULL, *path = temp_path(&dir);
    Fixture f = {.log = g_string_new(NULL)};
    gint64 start_us = g_get_monotonic_time();

    f.client = qmp_client_new(path, WAIT_MS, &fixture_handlers, &f);
    ck_assert(fake_qmp_wait_until(g_get_monotonic_time() - start_us > 50000, WAIT_MS));
    f.qemu = fake_qmp_new_listening(path);
    ck_assert(fake_qmp_wait_until(f.ready, WAIT_MS));
    ck_assert_str_eq(f.log->str, "ready");
    g_unlink(path);
    g_rmdir(dir);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_greeting_garbage)
{
    Fixture f;

    fixture_start(&f);
    fake_qmp_set_greeting(f.qemu, "SSH-2.0-OpenSSH_9.2p1");
    expect_closed(&f, QMP_ERROR_PROTOCOL, "SSH-2.0-OpenSSH_9.2p1");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_greeting_is_another_message)
{
    Fixture f;

    fixture_start(&f);
    fake_qmp_set_greeting(f.qemu, "{\"return\": {}}");
    expect_closed(&f, QMP_ERROR_PROTOCOL, "the QMP greeting");
    fixture_clear(&f);
}
END_TEST

static void
start_short(Fixture *f)
{
    int fd;

    *f = (Fixture){.log = g_string_new(NULL)};
    f->qemu = fake_qmp_new(&fd);
    f->client = qmp_client_new_fd(fd, 60, &fixture_handlers, f);
}

START_TEST(err_greeting_timeout)
{
    Fixture f;

    start_short(&f);
    fake_qmp_set_greeting(f.qemu, NULL);
    fixture_send(&f, "query-status", COMMAND_MS);
    expect_closed(&f, QMP_ERROR_TIMEOUT, "no QMP greeting within 60 ms");
    ck_assert_str_eq(f.log->str, "query-status:timeout closed");
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "query-status"), 0);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_negotiation_timeout)
{
    Fixture f;

    start_short(&f);
    fake_qmp_hold(f.qemu, "qmp_capabilities");
    expect_closed(&f, QMP_ERROR_TIMEOUT, "qmp_capabilities within 60 ms");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_negotiation_refused)
{
    Fixture f;

    fixture_start(&f);
    fake_qmp_reply_error(f.qemu, "qmp_capabilities", "GenericError", "not today");
    expect_closed(&f, QMP_ERROR_COMMAND, "GenericError: not today");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_negotiation_reply_with_wrong_id)
{
    Fixture f;

    fixture_start(&f);
    fake_qmp_reply_raw(f.qemu, "qmp_capabilities", "{\"return\": {}, \"id\": 999}");
    expect_closed(&f, QMP_ERROR_PROTOCOL, "the reply to qmp_capabilities");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_second_greeting)
{
    static const char greeting[] = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 1, "
                                   "\"minor\": 1, \"micro\": 1}}}}\r\n";
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_send_raw(f.qemu, greeting, strlen(greeting));
    expect_closed(&f, QMP_ERROR_PROTOCOL, "no second greeting");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_top_level_array)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_send_raw(f.qemu, "[1]\n", 4);
    expect_closed(&f, QMP_ERROR_PROTOCOL, "expected a JSON object, got \"[1]\"");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_eof_in_the_middle_of_a_line)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_send_raw(f.qemu, "{\"retu", 6);
    fake_qmp_close(f.qemu);
    expect_closed(&f, QMP_ERROR_PROTOCOL, "in the middle of a message: \"{\"retu\"");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_eof_after_last_words)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_emit(f.qemu, "SHUTDOWN", "{\"guest\": false, \"reason\": \"host-signal\"}");
    fake_qmp_close(f.qemu);
    fixture_send(&f, "query-status", COMMAND_MS); /* meets EPIPE; the event still arrives */
    expect_closed(&f, QMP_ERROR_CLOSED, "QEMU closed");
    ck_assert_str_eq(f.log->str, "event:SHUTDOWN query-status:closed closed");
    fixture_clear(&f);
}
END_TEST

START_TEST(sec_message_too_large)
{
    Fixture f;
    g_autofree char *chunk = g_strnfill(1 << 20, 'x');

    fixture_start_ready(&f);
    for (size_t sent = 0; sent <= QMP_MESSAGE_BYTES_MAX; sent += 1 << 20)
        fake_qmp_send_raw(f.qemu, chunk, 1 << 20);
    expect_closed(&f, QMP_ERROR_TOO_LARGE, "longer than 16777216 bytes; it begins with \"xxx");
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_large_answer_is_taken)
{
    Fixture f;
    g_autofree char *text = g_strnfill(3 << 20, 'x');
    g_autofree char *json = g_strdup_printf("\"%s\"", text);

    fixture_start_ready(&f);
    fake_qmp_reply(f.qemu, "query-qmp-schema", json);
    fixture_send(&f, "query-qmp-schema", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_int_eq(json_object_get_string_len(f.last_value), 3 << 20);
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_transcript_of_a_session)
{
    g_autofree char *dir = NULL, *path = temp_path(&dir), *text = NULL;
    Fixture f;

    fixture_start(&f);
    ck_assert(qmp_client_set_transcript(f.client, path, NULL));
    fixture_send(&f, "query-status", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    qmp_client_close(f.client);
    ck_assert(g_file_get_contents(path, &text, NULL, NULL));

    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    static const char *const words[] = {
        " < {\"QMP\": ",     " > {\"execute\":\"qmp_capabilities\"",
        " < { \"return\": ", " > {\"execute\":\"query-status\"",
        " < { \"return\": ", " ! the QMP connection was closed by this side"};

    ck_assert_uint_eq(g_strv_length(lines), G_N_ELEMENTS(words) + 1);
    for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
        ck_assert_msg(strstr(lines[i], words[i]) != NULL, "%s", lines[i]);
    g_unlink(path);
    g_rmdir(dir);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_transcript_path)
{
    g_autoptr(GError) error = NULL;
    Fixture f;

    fixture_start(&f);
    ck_assert(!qmp_client_set_transcript(f.client, "/nonexistent/x", &error));
    ck_assert(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOENT));
    fixture_clear(&f);
}
END_TEST

CHECK_MAIN("qmp-connect", unit_greeting_version_and_oob, unit_oob_is_not_asked_for_when_not_offered,
           unit_session_byte_by_byte, err_connect_refused, err_connect_path_too_long_fails_at_once,
           unit_connect_retries_until_a_late_server, err_greeting_garbage,
           err_greeting_is_another_message, err_greeting_timeout, err_negotiation_timeout,
           err_negotiation_refused, err_negotiation_reply_with_wrong_id, err_second_greeting,
           err_top_level_array, err_eof_in_the_middle_of_a_line, err_eof_after_last_words,
           sec_message_too_large, unit_large_answer_is_taken, unit_transcript_of_a_session,
           err_transcript_path)
