/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-tcp.c - the rules for TCP, one case each */
#include <glib.h>
#include <string.h>

#include "bytes.h"
#include "check-main.h"
#include "rig.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

static Rig *
rig_connected(const char *name)
{
    Rig *rig = rig_new(name, NULL);

    rig_handshake(rig, 1000, 500);
    return rig;
}

static void
expect_clean(Rig *rig)
{
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[P], 0);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[S], 0);
    rig_free(rig);
}

START_TEST(unit_same_segments_match_whoever_is_first)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001, 500, "hello");
    ck_assert_uint_eq(rig->released->len, 1); /* the SYN only */
    rig_tcp(rig, S, ACK, 1001, 500, "hello");
    rig_tcp(rig, S, ACK, 1006, 500, " world");
    rig_tcp(rig, P, ACK, 1006, 500, " world");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_different_segmentation)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001, 500, "abcdefghij");
    rig_tcp(rig, S, ACK, 1001, 500, "abc");
    rig_tcp(rig, S, ACK, 1004, 500, "defg");
    ck_assert_uint_eq(rig->released->len, 1);
    rig_tcp(rig, S, ACK, 1008, 500, "hijklm");
    rig_tcp(rig, P, ACK, 1011, 500, "k");
    rig_tcp(rig, P, ACK, 1012, 500, "lm");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_out_of_order_on_both_sides)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1004, 500, "def");
    rig_tcp(rig, P, ACK, 1001, 500, "abc");
    rig_tcp(rig, S, ACK, 1007, 500, "ghi");
    rig_tcp(rig, S, ACK, 1001, 500, "abcd");
    rig_tcp(rig, S, ACK, 1005, 500, "ef");
    rig_tcp(rig, P, ACK, 1007, 500, "ghi");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_partial_overlap_and_retransmission)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001, 500, "abcdef");
    rig_tcp(rig, S, ACK, 1001, 500, "abcd");
    rig_tcp(rig, S, ACK, 1003, 500, "cdefgh");
    rig_tcp(rig, P, ACK, 1001, 500, "abcdef"); /* released bytes pass */
    rig_tcp(rig, P, ACK, 1005, 500, "efgh");
    rig_tcp(rig, S, ACK, 1001, 500, "abcdefgh");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_payload_difference_is_found_at_its_offset)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001, 500, "abcdefghij");
    rig_tcp(rig, S, ACK, 1001, 500, "abcd");
    rig_tcp(rig, S, ACK, 1005, 500, "efXhij");
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    const RigDivergence *d = &g_array_index(rig->divergences, RigDivergence, 0);
    ck_assert_int_eq(d->rule, COMPARE_RULE_PAYLOAD);
    ck_assert_uint_eq(d->offset, 6);
    ck_assert_mem_eq(d->primary_bytes, "ghij", 4);
    ck_assert_mem_eq(d->secondary_bytes, "Xhij", 4);
    ck_assert(d->has_primary && d->has_secondary);
    ck_assert_uint_eq(rig->released->len, 1);
    rig_checkpoint(rig);
    expect_clean((g_array_set_size(rig->divergences, 0), rig));
}
END_TEST

START_TEST(unit_sequence_numbers_wrap)
{
    Rig *rig = rig_new(__func__, NULL);
    uint32_t seq = 0xfffffffa;

    rig_handshake(rig, seq - 1, 0xfffffff0);
    rig_tcp(rig, P, ACK, seq, 0xfffffff0, "abcdefghij");
    rig_tcp(rig, S, ACK, seq, 0xfffffff0, "abcdefghij");
    rig_tcp(rig, P, ACK, seq + 10, 5, "k");
    rig_tcp(rig, S, ACK, seq + 10, 5, "k");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_fin_with_and_without_data)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK | FIN, 1001, 500, "bye");
    rig_tcp(rig, S, ACK, 1001, 500, "bye");
    ck_assert_uint_eq(rig->released->len, 1);
    rig_tcp(rig, S, ACK | FIN, 1004, 500, NULL);
    rig_tcp(rig, P, ACK, 1005, 501, NULL);
    rig_tcp(rig, S, ACK, 1005, 501, NULL);
    expect_clean(rig);
}
END_TEST

START_TEST(unit_fin_at_different_offsets)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK | FIN, 1001, 500, "bye");
    rig_tcp(rig, S, ACK, 1001, 500, "bye bye");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_FIN);
    ck_assert_uint_eq(g_array_index(rig->divergences, RigDivergence, 0).offset, 3);
    rig_free(rig);
}
END_TEST

START_TEST(unit_rst_of_both_sides)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, RST | ACK, 1001, 500, NULL);
    ck_assert_uint_eq(rig->released->len, 1);
    rig_tcp(rig, S, RST | ACK, 1001, 500, NULL);
    rig_tcp(rig, P, RST, 1001, 0, NULL); /* again: the connection is reset on both */
    expect_clean(rig);
}
END_TEST

START_TEST(unit_rst_against_data)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, RST | ACK, 1001, 500, NULL);
    rig_tcp(rig, S, ACK, 1001, 500, "still here");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_RST);
    rig_free(rig);

    rig = rig_connected(__func__);
    rig_tcp(rig, P, ACK, 1001, 500, "still here");
    rig_tcp(rig, S, RST | ACK, 1001, 500, NULL);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_RST);
    rig_free(rig);
}
END_TEST

START_TEST(unit_rst_said_more_often_by_the_secondary)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, S, RST, 1001, 0, NULL);
    rig_tcp(rig, S, RST, 1001, 0, NULL);
    rig_tcp(rig, P, RST, 1001, 0, NULL);
    rig_tcp(rig, P, SYN | ACK, 7000, 90, NULL);
    rig_tcp(rig, S, SYN | ACK, 5, 90, NULL);
    expect_clean(rig);
}
END_TEST

/* One guest refuses what the other accepts: at once, in each order, on fresh ports and on ports
 * that were used before. */
START_TEST(unit_rst_against_syn_ack)
{
    for (unsigned i = 0; i < 8; i++) {
        bool reused = i & 1, primary_refuses = i & 2, refusal_first = i & 4;
        CompareSide refuses = primary_refuses ? P : S, accepts = primary_refuses ? S : P;
        g_autofree char *name = g_strdup_printf("%s_%u", __func__, i);
        Rig *rig = reused ? rig_connected(name) : rig_new(name, NULL);
        size_t before;

        if (reused) {
            rig_tcp(rig, P, RST, 1001, 0, NULL);
            rig_tcp(rig, S, RST, 1001, 0, NULL);
            rig_checkpoint(rig); /* what was released before counts as such */
        }
        before = rig->released->len;
        if (!refusal_first)
            rig_tcp(rig, accepts, SYN | ACK, 7000, 901, NULL);
        ck_assert_uint_eq(rig_n_divergences(rig), 0);
        rig_tcp(rig, refuses, RST | ACK, 0, 901, NULL);
        if (refusal_first) {
            ck_assert_uint_eq(rig_n_divergences(rig), 0);
            rig_tcp(rig, accepts, SYN | ACK, 7000, 901, NULL);
        }
        ck_assert_msg(rig_last_rule(rig) == COMPARE_RULE_RST, "%s", name);
        ck_assert_uint_eq(rig_n_divergences(rig), 1);
        ck_assert_uint_eq(rig->released->len, before);
        /* The checkpoint lets the primary's answer leave, and all is well again. */
        rig_checkpoint(rig);
        ck_assert_uint_eq(rig->released->len, before + 1);
        rig_tcp(rig, P, ACK, 7001, 902, "on");
        rig_tcp(rig, S, ACK, 7001, 902, "on");
        ck_assert_uint_eq(rig_n_divergences(rig), 1);
        rig_free(rig);
    }
}
END_TEST

/* The old connection's RSTs and the next one's SYN-ACK, one side ahead: no difference. */
START_TEST(unit_rst_and_then_syn_ack_of_one_side_first)
{
    for (CompareSide first = P; first <= S; first++) {
        CompareSide second = first == P ? S : P;
        Rig *rig = rig_connected(__func__);

        rig_tcp(rig, first, RST, 1001, 0, NULL);
        rig_tcp(rig, first, SYN | ACK, first == P ? 7000 : 5, 90, NULL);
        rig_tcp(rig, first, RST | ACK, 7001, 91, NULL);
        rig_tcp(rig, second, RST, 1001, 0, NULL);
        rig_tcp(rig, second, SYN | ACK, second == P ? 7000 : 5, 90, NULL);
        rig_tcp(rig, second, RST | ACK, 7001, 91, NULL);
        expect_clean(rig);
    }
}
END_TEST

START_TEST(unit_rst_of_a_closed_port_matches_exactly)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, RST | ACK, 0, 501, NULL);
    rig_tcp(rig, S, RST | ACK, 0, 777, NULL);
    ck_assert_uint_eq(rig->released->len, 0);
    rig_tcp(rig, S, RST | ACK, 0, 501, NULL);
    rig_tcp(rig, P, RST | ACK, 0, 777, NULL);
    expect_clean(rig);
}
END_TEST

START_TEST(unit_pure_ack_waits_for_the_secondary)
{
    Rig *rig = rig_connected(__func__);
    uint64_t ack = rig_tcp(rig, P, ACK, 1001, 600, NULL);

    ck_assert(!rig_was_released(rig, ack));
    rig_tcp(rig, S, ACK, 1001, 599, NULL);
    ck_assert(!rig_was_released(rig, ack));
    rig_tcp(rig, S, ACK, 1001, 620, NULL);
    ck_assert(rig_was_released(rig, ack));
    rig_tcp(rig, P, ACK, 1001, 600, NULL); /* a duplicate ack or window update */
    expect_clean(rig);
}
END_TEST

static void
lowered_ack_case(Packet extra)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = extra;

    p.protocol = 6;
    rig->conn = p;
    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, S, ACK, 1001, 510, "data");
    uint64_t now = rig_tcp(rig, P, ACK, 1001, 0x12345678, "data");
    uint64_t later = rig_tcp(rig, P, ACK, 1005, 0x12345678, "more");
    rig_tcp(rig, S, ACK, 1005, 511, "more");
    const RigRelease *r[] = {rig_release_of(rig, now), rig_release_of(rig, later)};

    for (int i = 0; i < 2; i++) {
        gsize len;
        const uint8_t *bytes = g_bytes_get_data(r[i]->bytes, &len);
        Frame f;

        ck_assert_int_eq(r[i]->why, COMPARE_RELEASED_ACK_LOWERED);
        frame_parse(bytes, len, p.vnet_hdr_len, &f);
        ck_assert_uint_eq(f.ack, 510 + (uint32_t)i);
        ck_assert(packet_tcp_checksum_ok(bytes, len, p.vnet_hdr_len));
    }
    rig_free(rig);
}

START_TEST(unit_data_leaves_with_the_ack_lowered)
{
    lowered_ack_case((Packet){0});
    lowered_ack_case((Packet){.ipv6 = true});
    lowered_ack_case((Packet){.n_vlans = 2, .vlans = {1, 2}, .n_tcp_options = 3});
    /* checksum offload: the field must stay as it is */
    lowered_ack_case((Packet){.vnet_hdr_len = 12, .csum_partial = true});
}
END_TEST

START_TEST(unit_syn_and_fin_are_not_sent_with_a_lowered_ack)
{
    Rig *rig = rig_connected(__func__);
    uint64_t fin = rig_tcp(rig, P, ACK | FIN, 1001, 600, NULL);

    rig_tcp(rig, S, ACK | FIN, 1001, 500, NULL);
    ck_assert(!rig_was_released(rig, fin));
    rig_tcp(rig, S, ACK, 1002, 600, NULL);
    expect_clean(rig);
}
END_TEST

START_TEST(unit_port_reuse_starts_a_new_comparison)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK | FIN, 1001, 501, "old");
    rig_tcp(rig, S, ACK | FIN, 1001, 501, "old");
    /* The secondary is first this time; numbers are lower than before. */
    rig_tcp(rig, S, SYN | ACK, 5, 90, NULL);
    rig_tcp(rig, P, SYN | ACK, 300, 90, NULL);
    rig_tcp(rig, P, ACK, 301, 90, "new");
    rig_tcp(rig, S, ACK, 301, 90, "new");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_what_the_secondary_sends_before_its_syn)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK | FIN, 1001, 501, NULL);
    rig_tcp(rig, S, ACK | FIN, 1001, 501, NULL);
    rig_tcp(rig, P, SYN | ACK, 90000, 70, NULL);
    rig_tcp(rig, S, ACK, 1002, 502, NULL);         /* late, of the old connection: no ack here */
    rig_tcp(rig, S, ACK, 90001, 71, "overtaking"); /* of the new one */
    rig_tcp(rig, S, SYN | ACK, 5, 70, NULL);
    rig_tcp(rig, P, ACK, 90001, 71, "overtaking");
    uint64_t ack = rig_tcp(rig, P, ACK, 90011, 72, NULL);
    ck_assert(!rig_was_released(rig, ack));
    rig_tcp(rig, S, ACK, 90011, 72, NULL);
    expect_clean(rig);
}
END_TEST

START_TEST(unit_port_reuse_while_the_old_one_is_held)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK | FIN, 1001, 501, "old");
    rig_tcp(rig, P, SYN | ACK, 300, 90, NULL);
    rig_tcp(rig, P, RST | ACK, 301, 90, NULL);
    rig_tcp(rig, P, SYN | ACK, 7000, 95, NULL);
    rig_tcp(rig, S, ACK | FIN, 1001, 501, "old");
    ck_assert_uint_eq(rig->released->len, 2);
    rig_tcp(rig, S, SYN | ACK, 5, 90, NULL);
    ck_assert_uint_eq(rig->released->len, 3);
    rig_tcp(rig, S, RST | ACK, 301, 90, NULL);
    rig_tcp(rig, S, SYN | ACK, 9, 95, NULL);
    rig_tcp(rig, S, ACK, 7001, 95, "third");
    rig_tcp(rig, P, ACK, 7001, 95, "third");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_simultaneous_open)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, SYN, 1000, 0, NULL);
    rig_tcp(rig, S, SYN, 2000, 0, NULL);
    uint64_t syn_ack = rig_tcp(rig, P, SYN | ACK, 1000, 500, NULL);
    ck_assert(!rig_was_released(rig, syn_ack));
    rig_tcp(rig, S, SYN | ACK, 2000, 500, NULL);
    rig_tcp(rig, P, ACK, 1001, 500, "x");
    rig_tcp(rig, S, ACK, 1001, 500, "x");
    expect_clean(rig);
}
END_TEST

/* By the second time the rewriter knows the offset. */
START_TEST(unit_repeated_syn_ack_of_the_secondary_is_translated)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, SYN | ACK, 1000, 500, NULL);
    rig_tcp(rig, S, SYN | ACK, 2000, 500, NULL);
    rig_tcp(rig, S, SYN | ACK, 1000, 500, NULL);
    rig_tcp(rig, S, SYN | ACK, 2000, 500, NULL);
    rig_tcp(rig, P, SYN | ACK, 1000, 500, NULL);
    rig_tcp(rig, P, ACK, 1001, 500, "x");
    rig_tcp(rig, S, ACK, 1001, 500, "x");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_syn_with_data)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, SYN, 1000, 0, "fast open");
    rig_tcp(rig, S, SYN, 5000, 0, "fast open");
    expect_clean(rig);

    rig = rig_new(__func__, NULL);
    rig_tcp(rig, P, SYN, 1000, 0, "fast open");
    rig_tcp(rig, S, SYN, 5000, 0, "fast oPen");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_PAYLOAD);
    ck_assert_uint_eq(g_array_index(rig->divergences, RigDivergence, 0).offset, 6);
    rig_free(rig);
}
END_TEST

START_TEST(unit_window_probes_pass)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001, 500, "abc");
    rig_tcp(rig, S, ACK, 1001, 500, "abc");
    rig_tcp(rig, P, ACK, 1003, 500, NULL); /* seq before the next, no data: Linux */
    rig_tcp(rig, P, ACK, 1003, 500, "c");  /* one old byte: keep-alive of others */
    expect_clean(rig);
}
END_TEST

START_TEST(unit_seen_first_in_the_middle)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, ACK, 7000, 500, "second");
    rig_tcp(rig, P, ACK, 6995, 500, "first");
    rig_tcp(rig, S, ACK, 7000, 500, "second");
    ck_assert(rig_was_released(rig, 1)); /* compared, and first to come */
    rig_tcp(rig, S, ACK, 6995, 500, "fi");
    ck_assert(!rig_was_released(rig, 2));
    rig_tcp(rig, S, ACK, 6997, 500, "rst");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_bytes_before_the_first_seen_are_compared_too)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, ACK, 7000, 500, "second");
    rig_tcp(rig, S, ACK, 7000, 500, "second");
    rig_tcp(rig, P, ACK, 6995, 500, "first");
    rig_tcp(rig, S, ACK, 6995, 500, "fiXst");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_PAYLOAD);
    rig_free(rig);
}
END_TEST

START_TEST(unit_initial_numbers_exact)
{
    CompareConfig config;

    compare_config_init(&config);
    config.isn = COMPARE_ISN_EXACT;
    Rig *rig = rig_new(__func__, &config);
    rig_tcp(rig, P, SYN, 1000, 0, NULL);
    rig_tcp(rig, S, SYN, 1001, 0, NULL);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_SYN);
    rig_free(rig);
}
END_TEST

START_TEST(unit_initial_numbers_learned)
{
    CompareConfig config;

    compare_config_init(&config);
    config.isn = COMPARE_ISN_LEARN;
    Rig *rig = rig_new(__func__, &config);
    rig_tcp(rig, S, SYN | ACK, 0xfffffffe, 500, NULL);
    rig_tcp(rig, S, ACK, 0xffffffff, 500, "abc");
    rig_tcp(rig, P, SYN | ACK, 1000, 500, NULL);
    rig_tcp(rig, P, ACK, 1001, 500, "ab");
    rig_tcp(rig, P, ACK, 1003, 500, "cde");
    rig_tcp(rig, S, ACK, 2, 500, "de");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_ipv6_and_vlan_and_vnet)
{
    static const Packet kinds[] = {{.ipv6 = true},
                                   {.ipv6 = true, .n_dest_options = 2},
                                   {.n_vlans = 2, .vlans = {3, 4}},
                                   {.vnet_hdr_len = 12, .csum_partial = true},
                                   {.vnet_hdr_len = 10}};

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        Rig *rig = rig_new(__func__, NULL);

        rig->conn = kinds[i];
        rig->conn.protocol = 6;
        rig_handshake(rig, 1000, 500);
        rig_tcp(rig, P, ACK, 1001, 500, "hello");
        rig->conn.ttl = 9; /* of the primary; so are ID, options, window */
        rig->conn.ip_id = 4711;
        rig->conn.n_tcp_options = 5;
        rig_tcp(rig, S, ACK, 1001, 500, "hello");
        expect_clean(rig);
    }
}
END_TEST

START_TEST(unit_gso_frames_of_64_kib_against_segments)
{
    Rig *rig = rig_new(__func__, NULL);
    g_autofree char *payload = g_malloc(64000);

    for (int i = 0; i < 64000; i++)
        payload[i] = (char)(i * 31 >> 3);
    rig->conn.vnet_hdr_len = 12;
    rig_handshake(rig, 1000, 500);
    Packet p = rig->conn;
    p.tcp_flags = ACK;
    p.ack = 500;
    p.seq = 1001;
    p.payload = payload;
    p.len = 64000;
    rig_send(rig, P, &p);
    for (uint32_t at = 0; at < 64000; at += 1448) {
        p.seq = 1001 + at;
        p.payload = payload + at;
        p.len = MIN(1448, 64000 - at);
        rig_send(rig, S, &p);
    }
    expect_clean(rig);
}
END_TEST

static Rig *
rig_with_parts(const char *name, const Packet *conn)
{
    CompareConfig config;
    Rig *rig;

    compare_config_init(&config);
    config.part_ns = 10 * MS;
    rig = rig_new(name, &config);
    rig->conn = *conn;
    rig->conn.protocol = 6;
    rig_handshake(rig, 1000, 500);
    return rig;
}

static void
expect_segment(const Rig *rig, guint number, uint8_t flags, uint32_t seq, uint32_t ack,
               const char *text)
{
    const RigRelease *release = &g_array_index(rig->released, RigRelease, number);
    gsize len;
    const uint8_t *bytes = g_bytes_get_data(release->bytes, &len);
    Frame frame;

    ck_assert_uint_eq(rig->released->len, number + 1);
    frame_parse(bytes, len, rig->conn.vnet_hdr_len, &frame);
    ck_assert_uint_eq(frame.cls, FRAME_TCP);
    ck_assert_uint_eq(frame.tcp_flags, flags);
    ck_assert_uint_eq(frame.seq, seq);
    ck_assert_uint_eq(frame.ack, ack);
    ck_assert_uint_eq(frame.payload_len, strlen(text));
    ck_assert_int_eq(memcmp(bytes + frame.payload_off, text, strlen(text)), 0);
    ck_assert(packet_tcp_checksum_ok(bytes, len, rig->conn.vnet_hdr_len));
}

/* Nagle's algorithm: the secondary sends the rest when what it has sent is acknowledged. */
static void
parts_case(const char *name, const Packet *conn)
{
    Rig *rig = rig_with_parts(name, conn);

    rig_tcp(rig, P, ACK | FIN, 1001, 600, "abcdefghij");
    rig_tcp(rig, S, ACK, 1001, 550, "abc");
    rig_wait(rig, 9 * MS);
    ck_assert_uint_eq(rig->released->len, 1);
    ck_assert_int_eq(compare_next_deadline_ns(rig->compare), rig->now_ns + MS);
    rig_wait(rig, MS);
    expect_segment(rig, 1, ACK, 1001, 550, "abc");
    rig_wait(rig, 20 * MS);
    ck_assert_uint_eq(rig->released->len, 2); /* the secondary has said no more */
    rig_tcp(rig, S, ACK, 1004, 700, "defg");
    expect_segment(rig, 2, ACK, 1004, 600, "defg"); /* it has waited: at once; never a higher ack */
    rig_tcp(rig, S, ACK | FIN, 1008, 700, "hij");
    expect_segment(rig, 3, ACK | FIN, 1008, 600, "hij");
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    ck_assert_uint_eq(compare_stats(rig->compare)->released[COMPARE_RELEASED_PART], 2);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[P], 0);
    rig_free(rig);
}

START_TEST(unit_leaves_in_parts_when_the_rest_does_not_come)
{
    parts_case(__func__, &(Packet){0});
    parts_case(__func__, &(Packet){.ipv6 = true, .n_dest_options = 1});
    parts_case(__func__, &(Packet){.n_vlans = 2, .vlans = {1, 2}, .n_tcp_options = 3});
    parts_case(__func__, &(Packet){.vnet_hdr_len = 12, .csum_partial = true});
    parts_case(__func__, &(Packet){.vnet_hdr_len = 10, .ipv6 = true, .csum_partial = true});
}
END_TEST

START_TEST(unit_parts_of_the_first_segment_only)
{
    Rig *rig = rig_with_parts(__func__, &(Packet){0});

    rig_tcp(rig, P, ACK, 1001, 500, "abcd");
    rig_tcp(rig, P, ACK, 1005, 500, "efgh");
    rig_wait(rig, 20 * MS);
    ck_assert_uint_eq(rig->released->len, 1); /* nothing of it was said by both */
    rig_tcp(rig, S, ACK, 1001, 500, "ab");
    expect_segment(rig, 1, ACK, 1001, 500, "ab");
    rig_tcp(rig, S, ACK, 1003, 500, "cdef");
    ck_assert_uint_eq(rig->released->len, 4);
    rig_tcp(rig, S, ACK, 1007, 500, "gh");
    expect_segment(rig, 4, ACK, 1007, 500, "gh");
    rig_free(rig);
}
END_TEST

START_TEST(unit_parts_and_a_difference_behind_them)
{
    Rig *rig = rig_with_parts(__func__, &(Packet){0});

    rig_tcp(rig, P, ACK, 1001, 500, "abcdef");
    rig_tcp(rig, S, ACK, 1001, 500, "abc");
    rig_wait(rig, 10 * MS);
    expect_segment(rig, 1, ACK, 1001, 500, "abc");
    rig_tcp(rig, S, ACK, 1004, 500, "xyz");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_PAYLOAD);
    rig_wait(rig, 20 * MS);
    ck_assert_uint_eq(rig->released->len, 2); /* the checkpoint decides */
    rig_checkpoint(rig);
    expect_segment(rig, 2, ACK, 1004, 500, "def");
    rig_free(rig);
}
END_TEST

/* The primary ended with its last bytes, which have left; the secondary said those only. */
static Rig *
rig_with_fin_behind(const char *name)
{
    Rig *rig = rig_with_parts(name, &(Packet){0});

    rig_tcp(rig, P, ACK | FIN, 1001, 500, "abc");
    rig_tcp(rig, S, ACK, 1001, 500, "abc");
    rig_wait(rig, 10 * MS);
    expect_segment(rig, 1, ACK, 1001, 500, "abc");
    return rig;
}

/* The FIN is what the secondary has to say too, like any byte. */
START_TEST(unit_parts_leave_the_fin_behind)
{
    Rig *rig = rig_with_fin_behind(__func__);

    rig_tcp(rig, S, ACK | FIN, 1004, 500, NULL);
    expect_segment(rig, 2, ACK | FIN, 1004, 500, "");
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_parts_and_a_secondary_that_does_not_say_fin)
{
    Rig *rig = rig_with_fin_behind(__func__);

    rig_tcp(rig, S, ACK, 1004, 500, "def");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_FIN);
    ck_assert_uint_eq(rig->released->len, 2);
    rig_checkpoint(rig);
    expect_segment(rig, 2, ACK | FIN, 1004, 500, "");
    rig_free(rig);
}
END_TEST

START_TEST(unit_no_parts_unless_asked_for)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001, 500, "abcdef");
    rig_tcp(rig, S, ACK, 1001, 500, "abc");
    rig_wait(rig, 150 * MS);
    ck_assert_uint_eq(rig->released->len, 1);
    rig_wait(rig, 50 * MS);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_TIMEOUT_PRIMARY);
    rig_free(rig);
}
END_TEST

START_TEST(unit_parts_of_a_gso_frame)
{
    Rig *rig = rig_with_parts(__func__, &(Packet){.vnet_hdr_len = 10, .csum_partial = true});
    uint8_t frame[PACKET_MAX];
    g_autofree char *payload = g_malloc0(5000);
    Packet p = rig->conn;
    const RigRelease *release;
    const uint8_t *out;
    uint16_t size = 1448, linear = 2962, left;
    gsize len;

    p.tcp_flags = ACK;
    p.ack = 500;
    p.seq = 1001;
    p.payload = payload;
    p.len = 5000;
    len = packet_build(&p, frame);
    frame[1] = 1;                               /* VIRTIO_NET_HDR_GSO_TCPV4 */
    memcpy(frame + 2, &linear, sizeof(linear)); /* hdr_len: what Linux has in one piece */
    memcpy(frame + 4, &size, sizeof(size));
    rig_send_raw(rig, P, frame, len, 10);
    for (p.len = 2000; p.len >= 1000; p.len -= 1000, p.seq += 2000) {
        rig_send(rig, S, &p);
        rig_wait(rig, 10 * MS);
        release = &g_array_index(rig->released, RigRelease, rig->released->len - 1);
        out = g_bytes_get_data(release->bytes, &len);
        memcpy(&left, out + 4, sizeof(left));
        ck_assert_int_eq(release->why, COMPARE_RELEASED_PART);
        ck_assert_uint_eq(out[1], p.len > 1448 ? 1 : 0);
        ck_assert_uint_eq(left, p.len > 1448 ? 1448 : 0);
        memcpy(&left, out + 2, sizeof(left));
        ck_assert_uint_eq(left, len - 10 - p.len); /* longer than the frame: the tap refuses it */
        ck_assert(packet_tcp_checksum_ok(out, len, 10));
    }
    ck_assert_uint_eq(rig->released->len, 3);
    rig_free(rig);
}
END_TEST

/* A length of zero was for who segments the frame; a part need not be segmented. */
START_TEST(unit_parts_of_a_frame_without_ip_length)
{
    for (int ipv6 = 0; ipv6 < 2; ipv6++) {
        Rig *rig = rig_with_parts(
            __func__, &(Packet){.vnet_hdr_len = 10, .csum_partial = true, .ipv6 = ipv6});
        uint8_t frame[PACKET_MAX];
        const size_t at = 10 + 14 + (ipv6 ? 4 : 2);
        Packet p = rig->conn;
        const uint8_t *out;
        gsize len;

        p.tcp_flags = ACK;
        p.ack = 500;
        p.seq = 1001;
        p.payload = "abcdef";
        p.len = 6;
        len = packet_build(&p, frame);
        memset(frame + at, 0, 2);
        rig_send_raw(rig, P, frame, len, 10);
        rig_tcp(rig, S, ACK, 1001, 500, "abc");
        rig_wait(rig, 10 * MS);
        ck_assert_uint_eq(rig->released->len, 2);
        out = g_bytes_get_data(g_array_index(rig->released, RigRelease, 1).bytes, NULL);
        ck_assert_uint_eq(be16_load(out + at), (ipv6 ? 0 : 20) + 20 + 3);
        rig_free(rig);
    }
}
END_TEST

START_TEST(err_sequence_far_outside_is_not_taken_for_a_retransmission)
{
    Rig *rig = rig_connected(__func__);

    rig_tcp(rig, P, ACK, 1001 + 0x90000000, 500, "never said");
    rig_tcp(rig, P, ACK, 1001 - 50, 500, "nor this");
    ck_assert_uint_eq(rig->released->len, 1);
    rig_wait(rig, 300 * MS);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_TIMEOUT_PRIMARY);
    rig_free(rig);
}
END_TEST

CHECK_MAIN("compare-tcp", unit_same_segments_match_whoever_is_first, unit_different_segmentation,
           unit_out_of_order_on_both_sides, unit_partial_overlap_and_retransmission,
           unit_payload_difference_is_found_at_its_offset, unit_sequence_numbers_wrap,
           unit_fin_with_and_without_data, unit_fin_at_different_offsets, unit_rst_of_both_sides,
           unit_rst_against_data, unit_rst_said_more_often_by_the_secondary,
           unit_rst_against_syn_ack, unit_rst_and_then_syn_ack_of_one_side_first,
           unit_rst_of_a_closed_port_matches_exactly, unit_pure_ack_waits_for_the_secondary,
           unit_data_leaves_with_the_ack_lowered, unit_syn_and_fin_are_not_sent_with_a_lowered_ack,
           unit_port_reuse_starts_a_new_comparison, unit_what_the_secondary_sends_before_its_syn,
           unit_port_reuse_while_the_old_one_is_held, unit_simultaneous_open,
           unit_repeated_syn_ack_of_the_secondary_is_translated, unit_syn_with_data,
           unit_window_probes_pass, unit_seen_first_in_the_middle,
           unit_bytes_before_the_first_seen_are_compared_too, unit_initial_numbers_exact,
           unit_initial_numbers_learned, unit_ipv6_and_vlan_and_vnet,
           unit_gso_frames_of_64_kib_against_segments,
           unit_leaves_in_parts_when_the_rest_does_not_come, unit_parts_of_the_first_segment_only,
           unit_parts_and_a_difference_behind_them, unit_parts_leave_the_fin_behind,
           unit_parts_and_a_secondary_that_does_not_say_fin, unit_no_parts_unless_asked_for,
           unit_parts_of_a_gso_frame, unit_parts_of_a_frame_without_ip_length,
           err_sequence_far_outside_is_not_taken_for_a_retransmission)
