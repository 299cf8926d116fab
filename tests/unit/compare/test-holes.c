/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-holes.c - the known holes of QEMU's colo-compare, each shown closed here */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "rig.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

START_TEST(h1_pure_ack_syn_fin_rst_do_not_leave_uncompared)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, SYN | ACK, 1000, 500, NULL);
    ck_assert_uint_eq(rig->released->len, 0);
    rig_tcp(rig, S, SYN | ACK, 1000, 500, NULL);
    rig_tcp(rig, P, ACK, 1001, 510, NULL); /* client data the secondary never got */
    ck_assert_uint_eq(rig->released->len, 1);
    rig_tcp(rig, S, ACK, 1001, 510, NULL);
    rig_tcp(rig, P, ACK | FIN, 1001, 510, NULL);
    ck_assert_uint_eq(rig->released->len, 2);
    rig_tcp(rig, S, ACK | FIN, 1001, 510, NULL);
    rig_tcp(rig, P, RST, 1002, 0, NULL);
    ck_assert_uint_eq(rig->released->len, 3);
    rig_tcp(rig, S, RST, 1002, 0, NULL);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(h2_ack_guard_holds_for_data_of_either_arrival_order)
{
    for (int secondary_first = 0; secondary_first < 2; secondary_first++) {
        Rig *rig = rig_new(__func__, NULL);
        Frame f;
        gsize len;

        rig_handshake(rig, 1000, 500);
        if (secondary_first)
            rig_tcp(rig, S, ACK, 1001, 505, "data");
        uint64_t data = rig_tcp(rig, P, ACK, 1001, 900, "data");
        if (!secondary_first)
            rig_tcp(rig, S, ACK, 1001, 505, "data");
        const uint8_t *bytes = g_bytes_get_data(rig_release_of(rig, data)->bytes, &len);

        frame_parse(bytes, len, 0, &f);
        ck_assert_uint_eq(f.ack, 505);
        rig_free(rig);
    }
}
END_TEST

START_TEST(h3_highest_ack_is_kept_and_survives_wrap)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 0xfffffff0);
    rig_tcp(rig, S, ACK, 1001, 0x10, NULL);       /* wrapped: ahead */
    rig_tcp(rig, S, ACK, 1001, 0xfffffff8, NULL); /* an old one after it */
    uint64_t ack = rig_tcp(rig, P, ACK, 1001, 0x10, NULL);
    ck_assert(rig_was_released(rig, ack));
    ack = rig_tcp(rig, P, ACK, 1001, 0x11, NULL);
    ck_assert(!rig_was_released(rig, ack));
    rig_free(rig);
}
END_TEST

START_TEST(h4_port_reuse_and_sequence_zero_are_compared)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK, 1001, 500, "first connection");
    rig_tcp(rig, S, ACK, 1001, 500, "first connection");
    rig_handshake(rig, 0xffffffff, 70); /* its first byte has number 0 */
    uint64_t data = rig_tcp(rig, P, ACK, 0, 70, "second");
    ck_assert(!rig_was_released(rig, data));
    rig_tcp(rig, S, ACK, 0, 70, "sEcond");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_PAYLOAD);
    ck_assert(!rig_was_released(rig, data));
    rig_free(rig);
}
END_TEST

START_TEST(h5_partial_overlap_is_aligned_and_out_of_order_handled)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK, 1001, 500, "abcdef");
    rig_tcp(rig, S, ACK, 1004, 500, "defg");
    rig_tcp(rig, S, ACK, 1001, 500, "ab");
    ck_assert_uint_eq(rig->released->len, 1);
    rig_tcp(rig, S, ACK, 1003, 500, "c");
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}
END_TEST

START_TEST(h6_backlog_leaves_first_in_first_out)
{
    Rig *rig = rig_new(__func__, NULL);
    char text[16];

    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 100; i++) {
            g_snprintf(text, sizeof(text), "%d", i);
            rig_udp(rig, P, text);
        }
        if (round == 1) {
            rig_checkpoint(rig);
            continue;
        }
        for (int i = 0; i < 100; i++) {
            g_snprintf(text, sizeof(text), "%d", i);
            rig_udp(rig, S, text);
        }
    }
    ck_assert_uint_eq(rig->released->len, 200);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(h7_ipv6_arp_vlan_and_unparsable_are_compared)
{
    static const Packet kinds[] = {{.ipv6 = true, .protocol = 17},
                                   {.n_vlans = 1, .vlans = {7}, .protocol = 17},
                                   {.n_vlans = 2, .vlans = {7, 8}, .protocol = 6}};

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        Rig *rig = rig_new(__func__, NULL);
        Packet p = kinds[i];

        p.tcp_flags = ACK;
        p.payload = "x";
        p.len = 1;
        rig_send(rig, P, &p);
        ck_assert_uint_eq(rig->released->len, 0);
        rig_send(rig, S, &p);
        ck_assert_uint_eq(rig->released->len, 1);
        rig_free(rig);
    }
    static const uint8_t types[][2] = {{8, 6}, {8, 0}, {0x86, 0xdd}};

    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        Rig *rig = rig_new(__func__, NULL);
        uint8_t frame[60] = {[12] = types[i][0], [13] = types[i][1]};

        rig_send_raw(rig, P, frame, sizeof(frame), 0);
        ck_assert_uint_eq(rig->released->len, 0);
        rig_send_raw(rig, S, frame, sizeof(frame), 0);
        ck_assert_uint_eq(rig->released->len, 1);
        rig_free(rig);
    }
}
END_TEST

START_TEST(h8_later_fragments_have_no_ports)
{
    Rig *rig = rig_new(__func__, NULL);
    uint8_t payload[2000];

    /* Bytes that would be read as other ports on each side, were they a header. */
    for (int i = 0; i < 2000; i++)
        payload[i] = (uint8_t)i;
    Packet p = {.protocol = 17, .payload = payload, .len = 2000, .ip_id = 5};
    p.frag_len = 1000;
    rig_send(rig, P, &p);
    p.frag_off = 1000;
    p.frag_len = 1008;
    rig_send(rig, P, &p);
    p.frag_off = 0;
    p.frag_len = 504;
    rig_send(rig, S, &p);
    p.frag_off = 504;
    p.frag_len = 1504;
    rig_send(rig, S, &p);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}
END_TEST

START_TEST(h9_ip_id_and_ttl_are_not_compared)
{
    CompareConfig config;

    compare_config_init(&config);
    config.policy[FRAME_IP_OTHER] = COMPARE_POLICY_FULL;
    Rig *rig = rig_new(__func__, &config);
    Packet p = {.protocol = 47, .ip_id = 1, .ttl = 64, .payload = "gre", .len = 3};

    rig_send(rig, P, &p);
    p.ip_id = 2;
    p.ttl = 63;
    rig_send(rig, S, &p);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(h10_unmatched_frames_wait_the_timeout_and_no_longer)
{
    CompareConfig config;

    compare_config_init(&config);
    config.timeout_ns = 10 * MS;
    Rig *rig = rig_new(__func__, &config);

    rig_udp(rig, P, "x");
    rig_wait(rig, 10 * MS - 1);
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_wait(rig, 1);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    rig_free(rig);
}
END_TEST

START_TEST(h11_a_full_memory_asks_for_a_checkpoint_and_loses_nothing)
{
    CompareConfig config;
    static uint8_t payload[1400];
    int refused = 0;

    compare_config_init(&config);
    config.memory_max_bytes = 256 * 1024;
    Rig *rig = rig_new(__func__, &config);
    Packet p = {.protocol = 17, .payload = payload, .len = sizeof(payload)};

    for (uint32_t i = 0; i < 1000; i++) {
        memcpy(payload, &i, 4);
        rig_send(rig, P, &p);
        if (rig->last_result == 0)
            continue;
        refused++;
        ck_assert_int_eq(rig->last_result, -ENOBUFS);
        ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_MEMORY);
        ck_assert_uint_eq(rig_n_divergences(rig), (size_t)refused);
        rig_checkpoint(rig);
        rig_send(rig, P, &p); /* the same frame again */
        ck_assert_int_eq(rig->last_result, 0);
    }
    ck_assert_int_gt(refused, 2);
    rig_checkpoint(rig);
    ck_assert_uint_eq(rig->released->len, 1000);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_le(compare_stats(rig->compare)->held_bytes_max, 256 * 1024);
    rig_free(rig);
}
END_TEST

START_TEST(h12_held_frames_wait_for_the_commit_not_the_begin)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "x");
    rig_udp(rig, S, "y");
    rig_wait(rig, 200 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    compare_begin_checkpoint(rig->compare, 1);
    rig_wait(rig, 1000 * MS);
    ck_assert_uint_eq(rig->released->len, 0);
    compare_commit(rig->compare, 1, rig->now_ns);
    ck_assert_uint_eq(rig->released->len, 1);
    rig_free(rig);
}
END_TEST

START_TEST(h13_cost_per_frame_does_not_grow_with_what_is_held)
{
    CompareConfig config;
    int64_t took_us[2];

    compare_config_init(&config);
    for (int big = 0; big < 2; big++) {
        int n = big ? 40000 : 4000;
        Rig *rig = rig_new(__func__, &config);
        int64_t start = g_get_monotonic_time();

        rig_handshake(rig, 1000, 500);
        for (int i = 0; i < n; i++)
            rig_tcp(rig, P, ACK, 1001 + (uint32_t)i, 500, "x");
        for (int i = 0; i < n; i++) {
            char text[16];

            g_snprintf(text, sizeof(text), "%d", i);
            rig_udp(rig, P, text);
        }
        for (int i = n - 1; i >= 0; i--) {
            char text[16];

            g_snprintf(text, sizeof(text), "%d", i);
            rig_udp(rig, S, text);
        }
        for (int i = 0; i < n; i++)
            rig_tcp(rig, S, ACK, 1001 + (uint32_t)i, 500, "x");
        took_us[big] = g_get_monotonic_time() - start;
        ck_assert_uint_eq(rig->released->len, 2u * (guint)n + 1);
        rig_free(rig);
    }
    /* Ten times as much in linear time; squared it would be a hundred. Room for a busy machine. */
    ck_assert_msg(took_us[1] < 40 * took_us[0], "%ld us against %ld us", (long)took_us[1],
                  (long)took_us[0]);
}
END_TEST

CHECK_MAIN("compare-holes", h1_pure_ack_syn_fin_rst_do_not_leave_uncompared,
           h2_ack_guard_holds_for_data_of_either_arrival_order,
           h3_highest_ack_is_kept_and_survives_wrap, h4_port_reuse_and_sequence_zero_are_compared,
           h5_partial_overlap_is_aligned_and_out_of_order_handled,
           h6_backlog_leaves_first_in_first_out, h7_ipv6_arp_vlan_and_unparsable_are_compared,
           h8_later_fragments_have_no_ports, h9_ip_id_and_ttl_are_not_compared,
           h10_unmatched_frames_wait_the_timeout_and_no_longer,
           h11_a_full_memory_asks_for_a_checkpoint_and_loses_nothing,
           h12_held_frames_wait_for_the_commit_not_the_begin,
           h13_cost_per_frame_does_not_grow_with_what_is_held)
