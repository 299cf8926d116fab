/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-event-log.c - the ring of events: order, bound, and texts that are safe to show */
#include "event-log.h"

#include "check-main.h"

#include <string.h>

static const char *
member(json_object *event, const char *key)
{
    return json_object_get_string(json_object_object_get(event, key));
}

START_TEST(unit_fields)
{
    g_autoptr(EventLog) log = event_log_new("web1");

    event_log_add(log, EVENT_WARNING, "peer-refused", "%s from %d", "hello", 7);

    json_object *list = event_log_list(log, 0);
    json_object *event = json_object_array_get_idx(list, 0);

    ck_assert_uint_eq(json_object_array_length(list), 1);
    ck_assert_int_eq(json_object_get_int(json_object_object_get(event, "seq")), 1);
    ck_assert_str_eq(member(event, "event"), "peer-refused");
    ck_assert_str_eq(member(event, "level"), "warning");
    ck_assert_str_eq(member(event, "text"), "hello from 7");
    ck_assert(g_regex_match_simple("^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{6}Z$",
                                   member(event, "time"), 0, 0));
    ck_assert_int_gt(json_object_get_int64(json_object_object_get(event, "monotonic_us")), 0);
    json_object_put(list);
}
END_TEST

START_TEST(unit_list_after)
{
    g_autoptr(EventLog) log = event_log_new("web1");

    for (int i = 0; i < 5; i++)
        event_log_add(log, EVENT_INFO, "e", "%d", i);
    for (guint64 after = 0; after < 8; after++) {
        json_object *list = event_log_list(log, after);

        ck_assert_uint_eq(json_object_array_length(list), after < 5 ? 5 - after : 0);
        json_object_put(list);
    }

    json_object *none = event_log_list(log, G_MAXUINT64);

    ck_assert_uint_eq(json_object_array_length(none), 0);
    json_object_put(none);
}
END_TEST

START_TEST(life_ring_keeps_the_newest)
{
    g_autoptr(EventLog) log = event_log_new("web1");

    for (int i = 1; i <= EVENT_LOG_RING + 10; i++)
        event_log_add(log, EVENT_INFO, "e", "%d", i);

    json_object *list = event_log_list(log, 3);

    ck_assert_uint_eq(json_object_array_length(list), EVENT_LOG_RING);
    ck_assert_str_eq(member(json_object_array_get_idx(list, 0), "text"), "11");
    ck_assert_str_eq(member(json_object_array_get_idx(list, EVENT_LOG_RING - 1), "text"), "1034");
    json_object_put(list);
}
END_TEST

static void
count(json_object *event, gpointer user_data)
{
    ck_assert_ptr_nonnull(json_object_object_get(event, "seq"));
    ++*(int *)user_data;
}

START_TEST(life_subscriber_until_removed)
{
    g_autoptr(EventLog) log = event_log_new("web1");
    int n = 0;

    event_log_set_func(log, count, &n);
    event_log_add(log, EVENT_ERROR, "e", "x");
    event_log_add(log, EVENT_INFO, "e", "x");
    event_log_set_func(log, NULL, NULL);
    event_log_add(log, EVENT_INFO, "e", "x");
    ck_assert_int_eq(n, 2);
}
END_TEST

START_TEST(sec_text_is_one_line_of_valid_bounded_utf8)
{
    g_autoptr(EventLog) log = event_log_new("web1");
    g_autofree char *huge = g_strnfill(100000, 'x');
    json_object *list;

    event_log_add(log, EVENT_INFO, "e",
                  "a\nb\033[2J\xc2\x9b"
                  "c\xff\x7f");
    event_log_add(log, EVENT_INFO, "e", "%s", huge);
    list = event_log_list(log, 0);

    const char *text = member(json_object_array_get_idx(list, 0), "text");

    ck_assert_str_eq(text, "a b [2J  c\xef\xbf\xbd ");
    text = member(json_object_array_get_idx(list, 1), "text");
    ck_assert_uint_eq(strlen(text), 512);
    ck_assert(g_str_has_suffix(text, "x..."));
    json_object_put(list);
}
END_TEST

CHECK_MAIN("event-log", unit_fields, unit_list_after, life_ring_keeps_the_newest,
           life_subscriber_until_removed, sec_text_is_one_line_of_valid_bounded_utf8)
