/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-qmp-life.c - the end of a connection, and references dropped in every callback */
#include "qmp-fixture.h"

#include "check-main.h"

static void
turn_a_while(void)
{
    for (int i = 0; i < 5; i++)
        fake_qmp_iterate();
}

START_TEST(life_close_fails_pending_then_reports_once)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_hold(f.qemu, "stop");
    fixture_send(&f, "stop", COMMAND_MS);
    fixture_send_oob(&f, "query-yank", COMMAND_MS);
    qmp_client_close(f.client);
    qmp_client_close(f.client);
    ck_assert_uint_eq(f.log->len, 0);
    fixture_send(&f, "cont", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.closed, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:closed query-yank:closed cont:closed closed");
    ck_assert(g_error_matches(f.reason, QMP_ERROR, QMP_ERROR_CLOSED));
    fixture_send(&f, "cont", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 4, WAIT_MS));
    ck_assert_uint_eq(f.closed, 1);
    ck_assert_uint_eq(f.destroyed, 4);
    fixture_clear(&f);
}
END_TEST

START_TEST(life_close_while_connecting)
{
    Fixture f = {.log = g_string_new(NULL)};

    f.client = qmp_client_new("/nonexistent/q", WAIT_MS, &fixture_handlers, &f);
    qmp_client_close(f.client);
    ck_assert(fake_qmp_wait_until(f.closed, WAIT_MS));
    ck_assert_str_eq(f.log->str, "closed");
    fixture_clear(&f);
}
END_TEST

START_TEST(life_qemu_closes_with_pending)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_hold(f.qemu, "stop");
    fixture_send(&f, "stop", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(fake_qmp_count(f.qemu, "stop"), WAIT_MS));
    fake_qmp_close(f.qemu);
    ck_assert(fake_qmp_wait_until(f.closed, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:closed closed");
    fixture_clear(&f);
}
END_TEST

static void
send_again(Fixture *f, const char *word)
{
    if (g_str_equal(word, "stop:closed") && f->replies < 3)
        fixture_send(f, "stop", COMMAND_MS);
}

START_TEST(life_send_from_a_failing_reply_does_not_loop)
{
    Fixture f;

    fixture_start_ready(&f);
    f.hook = send_again;
    fake_qmp_freeze(f.qemu, TRUE);
    fixture_send(&f, "stop", COMMAND_MS);
    qmp_client_close(f.client);
    ck_assert(fake_qmp_wait_until(f.replies == 3, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:closed closed stop:closed stop:closed");
    fixture_clear(&f);
}
END_TEST

static void
close_on_event(Fixture *f, const char *word)
{
    if (g_str_equal(word, "event:STOP"))
        qmp_client_close(f->client);
}

START_TEST(life_close_from_event_stops_later_events)
{
    Fixture f;

    fixture_start_ready(&f);
    f.hook = close_on_event;
    fake_qmp_emit(f.qemu, "STOP", NULL);
    fake_qmp_emit(f.qemu, "RESUME", NULL);
    ck_assert(fake_qmp_wait_until(f.closed, WAIT_MS));
    ck_assert_str_eq(f.log->str, "event:STOP closed");
    fixture_clear(&f);
}
END_TEST

/* Everything a client can report, in one session; @word drops the only reference. What follows it
 * must not happen, except the destroy functions. */
static void
session_with_unref_in(const char *word, const char *expected_log)
{
    Fixture f;

    fixture_start(&f);
    f.unref_in = word;
    fake_qmp_hold(f.qemu, "query-status");
    fake_qmp_hold(f.qemu, "query-yank");
    fake_qmp_reply_error(f.qemu, "cont", "GenericError", "no");
    guint64 id = fixture_send_oob(&f, "query-yank", COMMAND_MS);
    fixture_send(&f, "stop", COMMAND_MS);
    fixture_send(&f, "cont", COMMAND_MS);
    fixture_send(&f, "query-status", 60);
    fixture_send(&f, "system_reset", COMMAND_MS);
    fake_qmp_hold(f.qemu, "system_reset");
    ck_assert(
        fake_qmp_wait_until(!f.client || strstr(f.log->str, "query-status:timeout"), WAIT_MS));
    if (f.client)
        fake_qmp_emit(f.qemu, "RESET", "{\"guest\": false, \"reason\": \"none\"}");
    ck_assert(fake_qmp_wait_until(!f.client || f.events, WAIT_MS));
    if (f.client)
        qmp_client_cancel(f.client, id);
    ck_assert(fake_qmp_wait_until(!f.client || strstr(f.log->str, "query-yank:"), WAIT_MS));
    fake_qmp_close(f.qemu);
    ck_assert(fake_qmp_wait_until(!f.client || f.closed, WAIT_MS));
    turn_a_while();
    ck_assert_str_eq(f.log->str, expected_log);
    ck_assert_uint_eq(f.destroyed, 5);
    fixture_clear(&f);
}

START_TEST(life_unref_in_each_callback)
{
    static const char *const words[] = {
        "ready",
        "stop:ok",
        "cont:GenericError",
        "query-status:timeout",
        "event:RESET",
        "query-yank:cancelled",
        "system_reset:closed",
        "closed",
    };
    g_autoptr(GString) until = g_string_new(NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        g_string_append_printf(until, "%s%s", i ? " " : "", words[i]);
        session_with_unref_in(words[i], until->str);
    }
    session_with_unref_in(NULL, until->str);
}
END_TEST

START_TEST(life_unref_outside_is_silent_but_destroys)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_freeze(f.qemu, TRUE);
    fixture_send(&f, "stop", COMMAND_MS);
    qmp_client_cancel(f.client, fixture_send(&f, "cont", COMMAND_MS));
    qmp_client_unref(qmp_client_ref(f.client));
    ck_assert_uint_eq(f.destroyed, 0);
    g_clear_pointer(&f.client, qmp_client_unref);
    ck_assert_uint_eq(f.destroyed, 2);
    turn_a_while();
    ck_assert_uint_eq(f.log->len, 0);
    qmp_client_unref(NULL);
    fixture_clear(&f);
}
END_TEST

START_TEST(life_unref_while_closing)
{
    Fixture f;

    fixture_start_ready(&f);
    qmp_client_close(f.client);
    g_clear_pointer(&f.client, qmp_client_unref);
    turn_a_while();
    ck_assert_uint_eq(f.closed, 0);
    fixture_clear(&f);
}
END_TEST

START_TEST(life_own_context)
{
    GMainContext *context = g_main_context_new();
    Fixture f;

    g_main_context_push_thread_default(context);
    fixture_start_ready(&f);
    fixture_send(&f, "stop", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    fixture_clear(&f);
    g_main_context_pop_thread_default(context);
    g_main_context_unref(context);
}
END_TEST

START_TEST(life_no_handlers)
{
    static const QmpClientHandlers none = {.ready = NULL};
    Fixture f;
    int fd;

    f = (Fixture){.log = g_string_new(NULL)};
    f.qemu = fake_qmp_new(&fd);
    f.client = qmp_client_new_fd(fd, WAIT_MS, &none, NULL);
    fake_qmp_emit(f.qemu, "STOP", NULL);
    fake_qmp_close(f.qemu);
    turn_a_while();
    fixture_clear(&f);
}
END_TEST

CHECK_MAIN("qmp-life", life_close_fails_pending_then_reports_once, life_close_while_connecting,
           life_qemu_closes_with_pending, life_send_from_a_failing_reply_does_not_loop,
           life_close_from_event_stops_later_events, life_unref_in_each_callback,
           life_unref_outside_is_silent_but_destroys, life_unref_while_closing, life_own_context,
           life_no_handlers)
