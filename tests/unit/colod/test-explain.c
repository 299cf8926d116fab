/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-explain.c - differences grouped by service, advice, captures, causes of the last minute */
#include "explain.h"

#include "check-main.h"
#include "clock.h"

#include <glib/gstdio.h>
#include <string.h>

#define NOW (100 * NS_PER_S)

/* A flow as frame_parse() makes it; addresses do not matter here. */
static FlowKey
flow(FrameClass cls, guint64 source_port, guint64 destination_port)
{
    FlowKey key = {.w = {G_GUINT64_CONSTANT(0x0a4d00020a4d0001)}};

    key.w[4] = source_port << 48 | destination_port << 32 | (guint64)cls << 8;
    return key;
}

static void
add(ExplainRecords *records, CompareRule rule, const FlowKey *key, gint64 time_ns)
{
    static const guint8 frame[60] = {0x52, 0x54};
    static guint64 number;
    DivergenceRecord record = {
        .d = {.rule = rule,
              .time_ns = time_ns,
              .waited_ns = 200 * NS_PER_MS,
              .flow = key,
              .primary_frame = frame,
              .primary_len = sizeof(frame)},
        .number = ++number,
    };

    explain_records_add(records, &record);
}

static const char *
text(json_object *list, size_t i, const char *key)
{
    return json_object_get_string(json_object_object_get(json_object_array_get_idx(list, i), key));
}

static int
number(json_object *list, size_t i, const char *key)
{
    return json_object_get_int(json_object_object_get(json_object_array_get_idx(list, i), key));
}

START_TEST(unit_groups_by_service)
{
    g_autoptr(ExplainRecords) records = explain_records_new();
    json_object *list;

    for (guint64 port = 40000; port < 40003; port++) {
        FlowKey https = flow(FRAME_TCP, 443, port);

        add(records, COMPARE_RULE_PAYLOAD, &https, NOW - 2 * NS_PER_S);
    }
    FlowKey ntp = flow(FRAME_UDP, 51000, 123);
    FlowKey arp = flow(FRAME_ARP, 0, 0);

    add(records, COMPARE_RULE_PAYLOAD, &ntp, NOW - NS_PER_S);
    add(records, COMPARE_RULE_TIMEOUT_SECONDARY, &arp, NOW - NS_PER_S);
    add(records, COMPARE_RULE_MEMORY, NULL, NOW - NS_PER_S);
    ck_assert_uint_eq(explain_records_count(records), 6);

    list = explain_records_to_json(records, NOW);
    ck_assert_uint_eq(json_object_array_length(list), 4);
    ck_assert_str_eq(text(list, 0, "what"), "tcp port 443");
    ck_assert_str_eq(text(list, 0, "rule"), "payload");
    ck_assert_int_eq(number(list, 0, "count"), 3);
    ck_assert_int_eq(number(list, 0, "last_s"), 2);
    ck_assert_int_eq(number(list, 0, "waited_ms"), 200);
    ck_assert_ptr_nonnull(strstr(text(list, 0, "flow"), "40002"));
    ck_assert_ptr_nonnull(strstr(text(list, 0, "advice"), "TLS"));
    json_object_put(list);
}
END_TEST

START_TEST(unit_advice)
{
    static const struct {
        FrameClass cls;
        guint64 port;
        CompareRule rule;
        const char *part; /* NULL: none is given */
    } rows[] = {
        {FRAME_UDP, 53, COMPARE_RULE_PAYLOAD, "DNS"},
        {FRAME_UDP, 123, COMPARE_RULE_PAYLOAD, "NTP"},
        {FRAME_TCP, 22, COMPARE_RULE_PAYLOAD, "SSH"},
        {FRAME_TCP, 80, COMPARE_RULE_PAYLOAD, NULL},
        {FRAME_TCP, 80, COMPARE_RULE_TIMEOUT_PRIMARY, "tcp_max_tw_buckets"},
        {FRAME_UDP, 7, COMPARE_RULE_TIMEOUT_PRIMARY, "compare-timeout-ms"},
        {FRAME_ARP, 0, COMPARE_RULE_TIMEOUT_SECONDARY, "other-frames=pass"},
        {FRAME_TCP, 80, COMPARE_RULE_FLOWS, "bound"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(ExplainRecords) records = explain_records_new();
        FlowKey key = flow(rows[i].cls, rows[i].port, rows[i].port ? 50000 : 0);
        json_object *list;

        add(records, rows[i].rule, &key, NOW);
        list = explain_records_to_json(records, NOW);
        if (rows[i].part)
            ck_assert_ptr_nonnull(strstr(text(list, 0, "advice"), rows[i].part));
        else
            ck_assert_ptr_null(text(list, 0, "advice"));
        json_object_put(list);
    }
}
END_TEST

START_TEST(unit_saves_captures)
{
    g_autoptr(ExplainRecords) records = explain_records_new();
    g_autofree char *dir = g_dir_make_tmp("colod-explain-XXXXXX", NULL);
    g_autoptr(GDir) listing = NULL;
    g_autoptr(GError) error = NULL;
    FlowKey key = flow(FRAME_TCP, 80, 50000);
    unsigned n = 0;
    const char *name;

    add(records, COMPARE_RULE_PAYLOAD, &key, NOW);
    add(records, COMPARE_RULE_FIN, &key, NOW);
    ck_assert(explain_records_save(records, dir, &error));
    listing = g_dir_open(dir, 0, NULL);
    while ((name = g_dir_read_name(listing))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);

        ck_assert(g_str_has_suffix(name, "-payload.pcapng") ||
                  g_str_has_suffix(name, "-fin.pcapng"));
        ck_assert_int_eq(g_unlink(path), 0);
        n++;
    }
    ck_assert_uint_eq(n, 2);
    ck_assert_int_eq(g_rmdir(dir), 0);
}
END_TEST

START_TEST(err_folder_is_missing)
{
    g_autoptr(ExplainRecords) records = explain_records_new();
    g_autoptr(GError) error = NULL;
    FlowKey key = flow(FRAME_TCP, 80, 50000);

    add(records, COMPARE_RULE_PAYLOAD, &key, NOW);
    ck_assert(!explain_records_save(records, "/nonexistent/folder", &error));
    ck_assert(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOENT));
    ck_assert_ptr_nonnull(strstr(error->message, "/nonexistent/folder/"));
}
END_TEST

START_TEST(unit_causes_of_the_last_minute)
{
    g_autofree ExplainCauses *causes = g_new0(ExplainCauses, 1);
    json_object *object;

    explain_causes_add(causes, CAUSE_OPERATOR, NOW - 61 * NS_PER_S);
    for (unsigned i = 0; i < EXPLAIN_RECENT; i++)
        explain_causes_add(causes, CAUSE_INTERVAL, NOW - 30 * NS_PER_S);
    explain_causes_add(causes, CAUSE_DIVERGENCE, NOW);
    object = explain_causes_to_json(causes, NOW);
    ck_assert_int_eq(json_object_get_int(json_object_object_get(object, "operator")), 0);
    ck_assert_int_eq(json_object_get_int(json_object_object_get(object, "interval")),
                     EXPLAIN_RECENT - 1);
    ck_assert_int_eq(json_object_get_int(json_object_object_get(object, "divergence")), 1);
    json_object_put(object);
}
END_TEST

CHECK_MAIN("explain", unit_groups_by_service, unit_advice, unit_saves_captures,
           err_folder_is_missing, unit_causes_of_the_last_minute)
