/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-hello.c - the JSON of HELLO and REFUSED: one error per way to get it wrong */
#include "check-main.h"
#include "peer-hello.h"

#include <string.h>

#define UUID "4ab1d5e2-0c5f-4e0f-9d49-5a2b8d3f7c11"

static char *
hello_json(PeerChannelKind channel, guint64 session)
{
    const PeerHello hello = {
        .channel = channel,
        .vm = (char *)"vm1",
        .uuid = (char *)UUID,
        .info = {.host = (char *)"alpha",
                 .role = (char *)"primary",
                 .software_version = (char *)"0",
                 .boot_id = 1},
        .session = session,
    };

    return peer_hello_format(&hello);
}

START_TEST(unit_peer_hello_round_trip)
{
    g_autofree char *json = hello_json(PEER_CHANNEL_FRAMES, G_MAXUINT64);
    g_auto(PeerHello) hello = {0};

    ck_assert(peer_hello_parse(view_of(json, strlen(json)), &hello, NULL));
    ck_assert_int_eq(hello.channel, PEER_CHANNEL_FRAMES);
    ck_assert(hello.session == G_MAXUINT64);
    ck_assert_uint_eq(hello.info.boot_id, 1);
    ck_assert_str_eq(hello.vm, "vm1");
    ck_assert_str_eq(hello.uuid, UUID);
    ck_assert_str_eq(hello.info.host, "alpha");
    ck_assert_str_eq(hello.info.role, "primary");
}
END_TEST

START_TEST(err_peer_hello_members)
{
    static const char *const keys[] = {"channel",  "vm",         "uuid",    "host",   "role",
                                       "software", "generation", "boot_id", "session"};
    static const char *const bad_values[] = {"1", "null", "\"\\u0000x\"", "[\"a\"]",
                                             "\"-"
                                             "1xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\""};
    g_autofree char *json = hello_json(PEER_CHANNEL_CONTROL, 1);

    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        for (size_t j = 0; j <= G_N_ELEMENTS(bad_values); j++) {
            json_object *object = json_tokener_parse(json);
            PeerHello hello = {.session = 4711};
            g_autoptr(GError) error = NULL;

            if (j == G_N_ELEMENTS(bad_values))
                json_object_object_del(object, keys[i]);
            else
                json_object_object_add(object, keys[i], json_tokener_parse(bad_values[j]));

            const char *text = json_object_to_json_string(object);

            ck_assert(!peer_hello_parse(view_of(text, strlen(text)), &hello, &error));
            ck_assert(g_error_matches(error, PEER_ERROR, PEER_ERROR_PROTOCOL));
            ck_assert_msg(strstr(error->message, keys[i]), "%s", error->message);
            ck_assert(hello.session == 4711 && !hello.vm);
            json_object_put(object);
        }
    }
}
END_TEST

START_TEST(err_peer_hello_numbers)
{
    static const char *const bad[] = {"", " 1", "+1", "-1", "1.0", "0x1", "18446744073709551616"};

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *json = hello_json(PEER_CHANNEL_CONTROL, 1);
        json_object *object = json_tokener_parse(json);
        g_auto(PeerHello) hello = {0};

        json_object_object_add(object, "generation", json_object_new_string(bad[i]));

        const char *text = json_object_to_json_string(object);

        ck_assert_msg(!peer_hello_parse(view_of(text, strlen(text)), &hello, NULL), "%s", bad[i]);
        json_object_put(object);
    }
}
END_TEST

START_TEST(unit_peer_refused_parse)
{
    static const struct {
        const char *json;
        PeerError code;
        const char *text;
    } cases[] = {
        {"{\"code\":\"vm\",\"text\":\"no\\nway\"}", PEER_ERROR_REFUSED, "(vm): no\\nway"},
        {"{\"code\":\"vm\"}", PEER_ERROR_PROTOCOL, "text"},
        {"{}", PEER_ERROR_PROTOCOL, "code"},
        {"]", PEER_ERROR_PROTOCOL, "JSON"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = peer_refused_parse(view_of(cases[i].json, strlen(cases[i].json)));

        ck_assert(g_error_matches(error, PEER_ERROR, (int)cases[i].code));
        ck_assert_msg(strstr(error->message, cases[i].text), "%s", error->message);
    }
}
END_TEST

CHECK_MAIN("peer-hello", unit_peer_hello_round_trip, unit_peer_refused_parse,
           err_peer_hello_members, err_peer_hello_numbers)
