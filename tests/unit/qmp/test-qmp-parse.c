/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-qmp-parse.c - lines and messages: what is taken, and what each refusal says */
#include "qmp-parse.h"

#include "check-main.h"

#include <json.h>

static View
text_view(const char *text)
{
    return view_of(text, strlen(text));
}

static void
expect_line(QmpSplitter *splitter, const char *expected)
{
    g_autoptr(GError) error = NULL;
    View line;

    ck_assert_int_eq(qmp_splitter_next(splitter, &line, &error), QMP_SPLIT_LINE);
    ck_assert_uint_eq(line.len, strlen(expected));
    ck_assert_mem_eq(line.data, expected, line.len);
}

static void
expect_more(QmpSplitter *splitter)
{
    g_autoptr(GError) error = NULL;
    View line;

    ck_assert_int_eq(qmp_splitter_next(splitter, &line, &error), QMP_SPLIT_MORE);
    ck_assert_ptr_null(error);
}

START_TEST(unit_splitter_coalesced_and_split_lines)
{
    g_autoptr(QmpSplitter) splitter = qmp_splitter_new(100);

    expect_more(splitter);
    qmp_splitter_feed(splitter, text_view("one\r\ntwo \t\r\n\r\n  \n th"));
    expect_line(splitter, "one");
    expect_line(splitter, "two");
    expect_more(splitter);
    ck_assert_uint_eq(qmp_splitter_rest(splitter).len, 3);
    qmp_splitter_feed(splitter, text_view("ree"));
    expect_more(splitter);
    qmp_splitter_feed(splitter, text_view("\nfour\n"));
    expect_line(splitter, " three");
    expect_line(splitter, "four");
    expect_more(splitter);
    ck_assert_uint_eq(qmp_splitter_rest(splitter).len, 0);
}
END_TEST

START_TEST(sec_splitter_bounds_a_line_that_never_ends)
{
    g_autoptr(QmpSplitter) splitter = qmp_splitter_new(10);
    g_autoptr(GError) error = NULL, again = NULL;
    View line;

    qmp_splitter_feed(splitter, text_view("0123456789"));
    expect_more(splitter);
    qmp_splitter_feed(splitter, text_view("\x1b"));
    ck_assert_int_eq(qmp_splitter_next(splitter, &line, &error), QMP_SPLIT_ERROR);
    ck_assert(g_error_matches(error, QMP_ERROR, QMP_ERROR_TOO_LARGE));
    ck_assert_ptr_nonnull(strstr(error->message, "\"0123456789.\""));
    ck_assert_int_eq(qmp_splitter_next(splitter, &line, &again), QMP_SPLIT_ERROR);
}
END_TEST

START_TEST(sec_splitter_bounds_a_line_that_ended)
{
    g_autoptr(QmpSplitter) splitter = qmp_splitter_new(10);
    g_autoptr(GError) error = NULL;
    View line;

    qmp_splitter_feed(splitter, text_view("0123456789\n0123456789a\n"));
    expect_line(splitter, "0123456789");
    ck_assert_int_eq(qmp_splitter_next(splitter, &line, &error), QMP_SPLIT_ERROR);
    ck_assert(g_error_matches(error, QMP_ERROR, QMP_ERROR_TOO_LARGE));
}
END_TEST

START_TEST(unit_greeting)
{
    g_auto(QmpMessage) m = {.id = 0};

    ck_assert(qmp_message_parse(
        text_view("{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 3, \"minor\": 1, \"major\": 11},"
                  " \"package\": \"Debian 1:11.1.3+ds-1~bpo13+1\"}, \"capabilities\": [\"oob\"]}}"),
        &m, NULL));
    ck_assert_int_eq(m.type, QMP_MESSAGE_GREETING);
    ck_assert(m.greeting.major == 11 && m.greeting.minor == 1 && m.greeting.micro == 3);
    ck_assert_str_eq(m.greeting.package, "Debian 1:11.1.3+ds-1~bpo13+1");
    ck_assert(m.greeting.offers_oob);
}
END_TEST

START_TEST(unit_return_with_id_and_null)
{
    g_auto(QmpMessage) m = {.id = 0}, n = {.id = 0};

    ck_assert(qmp_message_parse(text_view("{\"return\": {\"a\": 1}, \"id\": 42}"), &m, NULL));
    ck_assert_int_eq(m.type, QMP_MESSAGE_RETURN);
    ck_assert_uint_eq(m.id, 42);
    ck_assert_int_eq(json_object_get_int(json_object_object_get(m.value, "a")), 1);
    ck_assert(qmp_message_parse(text_view("{\"return\": null, \"id\": \"x\"}"), &n, NULL));
    ck_assert_ptr_null(n.value);
    ck_assert_uint_eq(n.id, 0);
}
END_TEST

START_TEST(unit_event_timestamp_in_microseconds)
{
    static const struct {
        const char *text;
        int64_t timestamp_us;
    } cases[] = {
        {"{\"event\":\"STOP\",\"timestamp\":{\"seconds\":2,\"microseconds\":7}}", 2000007},
        {"{\"event\":\"STOP\",\"timestamp\":{\"seconds\":-1,\"microseconds\":-1}}", -1},
        {"{\"event\":\"STOP\",\"timestamp\":{\"seconds\":9223372036854775807,"
         "\"microseconds\":7}}",
         -1},
        {"{\"event\":\"STOP\"}", -1},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_auto(QmpMessage) m = {.id = 0};

        ck_assert(qmp_message_parse(text_view(cases[i].text), &m, NULL));
        ck_assert_int_eq(m.type, QMP_MESSAGE_EVENT);
        ck_assert_str_eq(m.name, "STOP");
        ck_assert_ptr_null(m.value);
        ck_assert_int_eq(m.timestamp_us, cases[i].timestamp_us);
    }
}
END_TEST

/* Each with the words its message must contain. */
static const struct {
    const char *line, *expected;
} refused[] = {
    {"SSH-2.0-OpenSSH_9.2p1", "a JSON object"},
    {"{\"return\": ", "one JSON object a line (it is not finished)"},
    {"{\"return\": {}} {\"return\": {}}", "one JSON object a line"},
    {"{'return': {}}x", "one JSON object a line"},
    {"[{\"return\": {}}]", "a JSON object"},
    {"null", "a JSON object"},
    {"\"text\"", "a JSON object"},
    {"{\"return\": \"\xff\"}", "UTF-8"},
    {"{\"id\": 1}", "exactly one of"},
    {"{\"return\": {}, \"error\": {\"class\": \"a\", \"desc\": \"b\"}}", "exactly one of"},
    {"{\"return\": {}, \"event\": \"STOP\"}", "exactly one of"},
    {"{\"event\": 5}", "an event with a name"},
    {"{\"event\": \"\"}", "an event with a name"},
    {"{\"event\": \"ST\\u0000OP\"}", "an event with a name"},
    {"{\"event\": \"STOP\", \"data\": []}", "whose data is an object"},
    {"{\"error\": \"text\"}", "an error with class and desc"},
    {"{\"error\": {\"class\": \"a\"}}", "an error with class and desc"},
    {"{\"QMP\": {}}", "a greeting with QEMU's version"},
    {"{\"QMP\": {\"version\": {\"qemu\": {\"major\": -1, \"minor\": 0, \"micro\": 0}}}}",
     "a greeting with QEMU's version"},
};

START_TEST(err_refusals_quote_the_line_and_say_what_was_expected)
{
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_auto(QmpMessage) m = {.id = 77};
        g_autoptr(GError) error = NULL;
        g_autofree char *excerpt = qmp_excerpt(text_view(refused[i].line));

        ck_assert_msg(!qmp_message_parse(text_view(refused[i].line), &m, &error), "%s taken",
                      refused[i].line);
        ck_assert(g_error_matches(error, QMP_ERROR, QMP_ERROR_PROTOCOL));
        ck_assert_msg(strstr(error->message, refused[i].expected), "%s: %s", refused[i].line,
                      error->message);
        ck_assert_ptr_nonnull(strstr(error->message, excerpt));
        ck_assert_uint_eq(m.id, 77);
    }
}
END_TEST

START_TEST(sec_nesting_is_bounded)
{
    g_autofree char *open = g_strnfill(QMP_MESSAGE_DEPTH_MAX - 10, '[');
    g_autofree char *close = g_strnfill(QMP_MESSAGE_DEPTH_MAX - 10, ']');
    g_autofree char *good = g_strdup_printf("{\"return\": %s%s}", open, close);
    g_autofree char *bad = g_strdup_printf("{\"return\": %s%s%s%s}", open, open, close, close);
    g_auto(QmpMessage) m = {.id = 0};
    g_autoptr(GError) error = NULL;

    ck_assert(qmp_message_parse(text_view(good), &m, NULL));
    ck_assert(!qmp_message_parse(text_view(bad), &m, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "deep"));
}
END_TEST

START_TEST(sec_nul_byte_does_not_hide_what_follows)
{
    static const char line[] = "{\"return\": {}}\0{\"event\": \"STOP\"}";
    g_auto(QmpMessage) m = {.id = 0};
    g_autoptr(GError) error = NULL;

    ck_assert(!qmp_message_parse(view_of(line, sizeof(line) - 1), &m, &error));
    ck_assert(g_error_matches(error, QMP_ERROR, QMP_ERROR_PROTOCOL));
}
END_TEST

START_TEST(sec_excerpt_is_short_and_printable)
{
    g_autofree char *long_text = g_strnfill(5000, 'x');
    g_autofree char *excerpt = qmp_excerpt(text_view(long_text));
    g_autofree char *controls = qmp_excerpt(text_view("a\x1b[31m\n\xc3\xa9"));

    ck_assert_uint_eq(strlen(excerpt), 63);
    ck_assert(g_str_has_suffix(excerpt, "x..."));
    ck_assert_str_eq(controls, "a.[31m...");
}
END_TEST

START_TEST(unit_error_class_survives_copy_and_belongs_to_our_domain)
{
    g_autoptr(GError) error = qmp_error_new_command("DeviceNotFound", "no such");
    g_autoptr(GError) copy = g_error_copy(error);
    g_autoptr(GError) other = g_error_new_literal(G_FILE_ERROR, G_FILE_ERROR_IO, "x");
    g_autoptr(GError) plain = g_error_new_literal(QMP_ERROR, QMP_ERROR_CLOSED, "x");

    ck_assert_str_eq(copy->message, "DeviceNotFound: no such");
    ck_assert_str_eq(qmp_error_class(copy), "DeviceNotFound");
    ck_assert_ptr_null(qmp_error_class(other));
    ck_assert_ptr_null(qmp_error_class(plain));
    ck_assert_ptr_null(qmp_error_class(NULL));
}
END_TEST

CHECK_MAIN("qmp-parse", unit_splitter_coalesced_and_split_lines,
           sec_splitter_bounds_a_line_that_never_ends, sec_splitter_bounds_a_line_that_ended,
           unit_greeting, unit_return_with_id_and_null, unit_event_timestamp_in_microseconds,
           err_refusals_quote_the_line_and_say_what_was_expected, sec_nesting_is_bounded,
           sec_nul_byte_does_not_hide_what_follows, sec_excerpt_is_short_and_printable,
           unit_error_class_survives_copy_and_belongs_to_our_domain)
