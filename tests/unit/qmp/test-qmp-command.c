/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-qmp-command.c - commands: matching, order, deadlines, out-of-band, yank, bounds */
#include "qmp-fixture.h"

#include "check-main.h"

START_TEST(unit_reply_value_and_arguments)
{
    Fixture f;
    struct json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "command-line", json_object_new_string("a\"b/\n\xc3\xa9"));
    fixture_start_ready(&f);
    fake_qmp_reply(f.qemu, "human-monitor-command", "\"done\"");
    ck_assert_uint_gt(qmp_client_send(f.client, "human-monitor-command", arguments, COMMAND_MS,
                                      fixture_on_reply, pending_new(&f, "hmp"), pending_free),
                      0);
    json_object_put(arguments);
    ck_assert_uint_eq(f.replies, 0);
    ck_assert(fake_qmp_wait_until(f.destroyed, WAIT_MS));
    ck_assert_str_eq(f.log->str, "hmp:ok");
    ck_assert_str_eq(json_object_get_string(f.last_value), "done");
    ck_assert_str_eq(json_object_get_string(json_object_object_get(
                         fake_qmp_arguments(f.qemu, "human-monitor-command"), "command-line")),
                     "a\"b/\n\xc3\xa9");
    fixture_clear(&f);
}
END_TEST

static void
emit_resume(FakeQmp *qemu, struct json_object *arguments, gpointer user_data)
{
    ck_assert_ptr_null(arguments);
    fake_qmp_emit(qemu, user_data, NULL);
}

START_TEST(unit_fake_defaults_and_side_effects)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_set_default(f.qemu, "query-status", "{\"status\": \"colo\"}");
    fake_qmp_reply(f.qemu, "query-status", "{\"status\": \"running\"}");
    fake_qmp_on_command(f.qemu, "cont", emit_resume, (gpointer) "RESUME");
    fixture_send(&f, "query-status", COMMAND_MS);
    fixture_send(&f, "query-status", COMMAND_MS);
    fixture_send(&f, "cont", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.events, WAIT_MS));
    ck_assert_str_eq(f.log->str, "query-status:ok query-status:ok cont:ok event:RESUME");
    fixture_send(&f, "query-status", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 4, WAIT_MS));
    ck_assert_str_eq(json_object_to_json_string(f.last_value), "{ \"status\": \"colo\" }");
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_no_function_is_fine)
{
    Fixture f;

    fixture_start_ready(&f);
    qmp_client_send(f.client, "stop", NULL, COMMAND_MS, NULL, NULL, NULL);
    fixture_send(&f, "cont", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "stop"), 1);
    ck_assert_uint_eq(qmp_client_ignored_replies(f.client), 0);
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_events_keep_their_order_among_replies)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_emit(f.qemu, "STOP", NULL);
    fake_qmp_emit(f.qemu, "RESUME", NULL);
    fake_qmp_emit(f.qemu, "MIGRATION", "{\"status\": \"colo\"}");
    fake_qmp_emit(f.qemu, "STOP", NULL);
    ck_assert(fake_qmp_wait_until(f.events == 4, WAIT_MS));
    ck_assert_str_eq(f.log->str, "event:STOP event:RESUME event:MIGRATION event:STOP");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_command_error_has_class_and_text)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_reply_error(f.qemu, "cont", "DeviceNotActive", "no medium");
    fixture_send(&f, "cont", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 1, WAIT_MS));
    fixture_send(&f, "no-such-command", COMMAND_MS);
    ck_assert(g_error_matches(f.last_error, QMP_ERROR, QMP_ERROR_COMMAND));
    ck_assert_str_eq(f.last_error->message, "DeviceNotActive: no medium");
    ck_assert(fake_qmp_wait_until(f.replies == 2, WAIT_MS));
    ck_assert_str_eq(f.log->str, "cont:DeviceNotActive no-such-command:CommandNotFound");
    ck_assert_uint_eq(fake_qmp_refused(f.qemu), 1);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_fake_refuses_wrong_arguments)
{
    Fixture f;
    struct json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "x-checkpoint-dely", json_object_new_int(1));
    fixture_start_ready(&f);
    qmp_client_send(f.client, "migrate-set-parameters", arguments, COMMAND_MS, fixture_on_reply,
                    pending_new(&f, "a"), pending_free);
    fixture_send(&f, "x-blockdev-change", COMMAND_MS);
    fixture_send_oob(&f, "query-status", COMMAND_MS);
    json_object_put(arguments);
    ck_assert(fake_qmp_wait_until(f.replies == 3, WAIT_MS));
    ck_assert_uint_eq(fake_qmp_refused(f.qemu), 3);
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "migrate-set-parameters"), 0);
    ck_assert_ptr_nonnull(fake_qmp_refusal(f.qemu));
    fixture_clear(&f);
}
END_TEST

START_TEST(err_timeout_and_late_reply_is_ignored)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_hold(f.qemu, "stop");
    fixture_send(&f, "stop", 40);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.last_error->message, "stop: no answer within 40 ms");
    ck_assert(fake_qmp_release(f.qemu, "stop", "{}"));
    fixture_send(&f, "cont", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 2, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:timeout cont:ok");
    ck_assert_uint_eq(qmp_client_ignored_replies(f.client), 1);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_frozen_qemu_times_out_every_command)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_freeze(f.qemu, TRUE);
    fixture_send(&f, "stop", 30);
    fixture_yank(&f, "migration", 60);
    ck_assert(fake_qmp_wait_until(f.replies == 2, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:timeout yank:timeout");
    ck_assert_ptr_null(qmp_error_class(f.last_error));
    fake_qmp_freeze(f.qemu, FALSE);
    ck_assert(fake_qmp_wait_until(qmp_client_ignored_replies(f.client) == 2, WAIT_MS));
    fixture_clear(&f);
}
END_TEST

START_TEST(err_unknown_and_missing_ids_are_ignored)
{
    static const char lines[] = "{\"return\": {}, \"id\": 12345}\r\n"
                                "{\"return\": {}, \"id\": \"text\"}\r\n"
                                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"x\"}}\r\n";
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_hold(f.qemu, "stop");
    fixture_send(&f, "stop", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(fake_qmp_count(f.qemu, "stop"), WAIT_MS));
    fake_qmp_send_raw(f.qemu, lines, strlen(lines));
    ck_assert(fake_qmp_wait_until(qmp_client_ignored_replies(f.client) == 3, WAIT_MS));
    ck_assert_uint_eq(f.replies, 0);
    fake_qmp_release(f.qemu, "stop", "{}");
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:ok");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_reply_with_both_return_and_error_ends_it)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_reply_raw(f.qemu, "stop",
                       "{\"return\": {}, \"error\": {\"class\": \"a\", \"desc\": \"b\"}, "
                       "\"id\": %ID%}");
    fixture_send(&f, "stop", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.closed, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:protocol closed");
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_cancel_sent_and_unsent)
{
    Fixture f;
    guint64 sent, unsent;

    fixture_start_ready(&f);
    fake_qmp_hold(f.qemu, "stop");
    sent = fixture_send(&f, "stop", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(fake_qmp_count(f.qemu, "stop"), WAIT_MS));
    for (int i = 0; i < QMP_IN_FLIGHT_MAX - 1; i++)
        fake_qmp_hold(f.qemu, "query-status");
    for (int i = 0; i < QMP_IN_FLIGHT_MAX - 1; i++)
        fixture_send(&f, "query-status", COMMAND_MS);
    unsent = fixture_send(&f, "cont", COMMAND_MS);
    qmp_client_cancel(f.client, sent);
    qmp_client_cancel(f.client, sent);
    qmp_client_cancel(f.client, unsent);
    qmp_client_cancel(f.client, 4711);
    ck_assert_uint_eq(f.replies, 0);
    ck_assert(fake_qmp_wait_until(f.replies == 2, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:cancelled cont:cancelled");
    fake_qmp_release(f.qemu, "stop", "{}");
    ck_assert(fake_qmp_wait_until(qmp_client_ignored_replies(f.client) == 1, WAIT_MS));
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "cont"), 0);
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_in_band_window_keeps_qemu_reading)
{
    Fixture f;

    fixture_start_ready(&f);
    for (int i = 0; i < QMP_IN_FLIGHT_MAX; i++) {
        fake_qmp_hold(f.qemu, "query-status");
        fixture_send(&f, "query-status", 60);
    }
    fixture_send(&f, "cont", COMMAND_MS);
    fixture_yank(&f, "migration", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 1, WAIT_MS));
    ck_assert_str_eq(f.log->str, "yank:ok");
    ck_assert(fake_qmp_was_oob(f.qemu, "yank"));
    /* A command that timed out is still in QEMU's queue: it keeps its slot. */
    ck_assert(fake_qmp_wait_until(f.replies == 1 + QMP_IN_FLIGHT_MAX, WAIT_MS));
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "cont"), 0);
    fixture_send(&f, "stop", 20);
    ck_assert(fake_qmp_wait_until(f.replies == 2 + QMP_IN_FLIGHT_MAX, WAIT_MS));
    ck_assert_ptr_nonnull(strstr(f.last_error->message, "stop: not sent"));
    fake_qmp_release(f.qemu, "query-status", "{}");
    ck_assert(fake_qmp_wait_until(f.replies == 3 + QMP_IN_FLIGHT_MAX, WAIT_MS));
    ck_assert(g_str_has_suffix(f.log->str, "stop:timeout cont:ok"));
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "stop"), 0);
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_oob_reply_overtakes)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_hold(f.qemu, "stop");
    fixture_send(&f, "stop", COMMAND_MS);
    fixture_send_oob(&f, "query-yank", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 1, WAIT_MS));
    fake_qmp_release(f.qemu, "stop", "{}");
    ck_assert(fake_qmp_wait_until(f.replies == 2, WAIT_MS));
    ck_assert_str_eq(f.log->str, "query-yank:ok stop:ok");
    ck_assert(fake_qmp_was_oob(f.qemu, "query-yank"));
    ck_assert(!fake_qmp_was_oob(f.qemu, "stop"));
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_yank_retries_while_device_not_found)
{
    static const char *const instances[] = {"migration", "chardev:c0", "block-node:n:0"};
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_reply_error(f.qemu, "yank", "DeviceNotFound", "Instance not found");
    fake_qmp_reply_error(f.qemu, "yank", "DeviceNotFound", "Instance not found");
    qmp_client_yank(f.client, instances, G_N_ELEMENTS(instances), COMMAND_MS, fixture_on_reply,
                    pending_new(&f, "yank"), pending_free);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "yank:ok");
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "yank"), 3);
    ck_assert_str_eq(
        json_object_to_json_string_ext(fake_qmp_arguments(f.qemu, "yank"), JSON_C_TO_STRING_PLAIN),
        "{\"instances\":[{\"type\":\"migration\"},"
        "{\"type\":\"chardev\",\"id\":\"c0\"},"
        "{\"type\":\"block-node\",\"node-name\":\"n:0\"}]}");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_yank_never_found_and_other_error_and_bad_instance)
{
    Fixture f;

    fixture_start_ready(&f);
    for (int i = 0; i < 100; i++)
        fake_qmp_reply_error(f.qemu, "yank", "DeviceNotFound", "Instance not found");
    fixture_yank(&f, "chardev:late", 70);
    ck_assert(fake_qmp_wait_until(f.replies == 1, WAIT_MS));
    ck_assert(g_error_matches(f.last_error, QMP_ERROR, QMP_ERROR_TIMEOUT));
    ck_assert_str_eq(qmp_error_class(f.last_error), "DeviceNotFound");
    ck_assert_ptr_nonnull(strstr(f.last_error->message, "Instance not found"));
    ck_assert_uint_gt(fake_qmp_count(f.qemu, "yank"), 1);
    fixture_yank(&f, "socket:x", COMMAND_MS);
    fixture_yank(&f, "chardev:", COMMAND_MS);
    ck_assert_uint_eq(f.replies, 1);
    ck_assert(fake_qmp_wait_until(f.replies == 3, WAIT_MS));
    ck_assert_str_eq(f.log->str, "yank:timeout yank:protocol yank:protocol");
    fixture_clear(&f);
}
END_TEST

START_TEST(err_yank_error_of_another_class_is_final)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_reply_error(f.qemu, "yank", "GenericError", "no");
    fixture_yank(&f, "migration", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "yank:GenericError");
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "yank"), 1);
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_yank_cancelled_between_attempts)
{
    Fixture f;
    guint64 id;

    fixture_start_ready(&f);
    fake_qmp_reply_error(f.qemu, "yank", "DeviceNotFound", "Instance not found");
    id = fixture_yank(&f, "migration", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(fake_qmp_count(f.qemu, "yank"), WAIT_MS));
    fake_qmp_iterate();
    qmp_client_cancel(f.client, id);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "yank:cancelled");
    fixture_clear(&f);
}
END_TEST

START_TEST(sec_pending_commands_are_bounded)
{
    Fixture f;

    fixture_start_ready(&f);
    fake_qmp_freeze(f.qemu, TRUE);
    for (int i = 0; i <= QMP_PENDING_MAX; i++)
        fixture_send(&f, "stop", COMMAND_MS);
    ck_assert(fake_qmp_wait_until(f.replies == 1, WAIT_MS));
    ck_assert_str_eq(f.log->str, "stop:too-large");
    fixture_clear(&f);
}
END_TEST

START_TEST(sec_outgoing_bytes_are_bounded)
{
    Fixture f;
    g_autofree char *text = g_strnfill(QMP_OUTGOING_BYTES_MAX / 3, 'x');
    struct json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "command-line", json_object_new_string(text));
    fixture_start_ready(&f);
    fake_qmp_freeze(f.qemu, TRUE);
    for (int i = 0; i < 3; i++)
        qmp_client_send(f.client, "human-monitor-command", arguments, COMMAND_MS, fixture_on_reply,
                        pending_new(&f, "hmp"), pending_free);
    ck_assert(fake_qmp_wait_until(f.replies == 1, WAIT_MS));
    ck_assert_str_eq(f.log->str, "hmp:too-large");
    fake_qmp_freeze(f.qemu, FALSE);
    ck_assert(fake_qmp_wait_until(f.replies == 3, WAIT_MS));
    ck_assert_str_eq(f.log->str, "hmp:too-large hmp:ok hmp:ok");
    json_object_put(arguments);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_command_text_not_utf8)
{
    Fixture f;
    struct json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "command-line", json_object_new_string("\xff"));
    fixture_start_ready(&f);
    qmp_client_send(f.client, "human-monitor-command", arguments, COMMAND_MS, fixture_on_reply,
                    pending_new(&f, "hmp"), pending_free);
    json_object_put(arguments);
    ck_assert(fake_qmp_wait_until(f.replies, WAIT_MS));
    ck_assert_str_eq(f.log->str, "hmp:protocol");
    ck_assert_uint_eq(fake_qmp_count(f.qemu, "human-monitor-command"), 0);
    fixture_clear(&f);
}
END_TEST

CHECK_MAIN("qmp-command", unit_reply_value_and_arguments, unit_fake_defaults_and_side_effects,
           unit_no_function_is_fine, unit_events_keep_their_order_among_replies,
           err_command_error_has_class_and_text, err_fake_refuses_wrong_arguments,
           err_timeout_and_late_reply_is_ignored, err_frozen_qemu_times_out_every_command,
           err_unknown_and_missing_ids_are_ignored, err_reply_with_both_return_and_error_ends_it,
           unit_cancel_sent_and_unsent, unit_in_band_window_keeps_qemu_reading,
           unit_oob_reply_overtakes, unit_yank_retries_while_device_not_found,
           err_yank_never_found_and_other_error_and_bad_instance,
           err_yank_error_of_another_class_is_final, unit_yank_cancelled_between_attempts,
           sec_pending_commands_are_bounded, sec_outgoing_bytes_are_bounded,
           err_command_text_not_utf8)
