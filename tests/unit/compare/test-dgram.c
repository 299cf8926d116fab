/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-dgram.c - UDP, ICMP and the policies of other classes */
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "rig.h"

START_TEST(unit_udp_any_order_in_output_order)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "one");
    rig_udp(rig, P, "two");
    rig_udp(rig, P, "three");
    rig_udp(rig, S, "three");
    rig_udp(rig, S, "two");
    ck_assert_uint_eq(rig->released->len, 0);
    rig_udp(rig, S, "one");
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_udp_equal_payloads_pair_one_to_one)
{
    Rig *rig = rig_new(__func__, NULL);

    for (int i = 0; i < 5; i++)
        rig_udp(rig, S, "same");
    for (int i = 0; i < 6; i++)
        rig_udp(rig, P, "same");
    ck_assert_uint_eq(rig->released->len, 5);
    rig_free(rig);
}
END_TEST

START_TEST(unit_udp_checksum_offload_does_not_matter)
{
    Rig *rig = rig_new(__func__, NULL);

    rig->conn.vnet_hdr_len = 12;
    rig->conn.csum_partial = true;
    rig_udp(rig, P, "x");
    rig->conn.csum_partial = false;
    rig->conn.ttl = 3;
    rig_udp(rig, S, "x");
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(unit_udp_different_payload_waits_for_the_timeout)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "answer 41");
    rig_udp(rig, S, "answer 42");
    rig_wait(rig, 199 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_wait(rig, 1 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    const RigDivergence *d = &g_array_index(rig->divergences, RigDivergence, 0);
    ck_assert_int_eq(d->rule, COMPARE_RULE_TIMEOUT_PRIMARY);
    ck_assert_uint_eq(d->offset, 8);
    ck_assert(d->primary_bytes[0] == '1' && d->secondary_bytes[0] == '2');
    ck_assert_int_eq(d->waited_ns, 200 * MS);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(unit_udp_flows_do_not_mix)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "x");
    rig->conn.dport = 4001;
    rig_udp(rig, S, "x");
    ck_assert_uint_eq(rig->released->len, 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_icmp_and_icmpv6_whole_message)
{
    for (int v6 = 0; v6 < 2; v6++) {
        Rig *rig = rig_new(__func__, NULL);
        char message[] = "\x81\x00\x11\x22\x12\x34\x00\x01payload";
        Packet p = {.ipv6 = v6, .protocol = v6 ? 58 : 1, .payload = message, .len = 15};

        rig_send(rig, P, &p);
        p.ttl = 7;
        rig_send(rig, S, &p);
        ck_assert(rig_all_released_in_order(rig));
        message[10] ^= 1;
        rig_send(rig, P, &p);
        message[10] ^= 1;
        rig_send(rig, S, &p);
        ck_assert(!rig_all_released_in_order(rig));
        rig_free(rig);
    }
}
END_TEST

static Rig *
rig_with_policy(const char *name, FrameClass cls, ComparePolicy policy)
{
    CompareConfig config;

    compare_config_init(&config);
    config.policy[cls] = policy;
    return rig_new(name, &config);
}

/* How many of three frames of the primary leave, if the secondary's have the same size but for the
 * third, and the same content for the first. */
static guint
three_frames(Rig *rig, const Packet *packet)
{
    Packet p = *packet;

    p.payload = "aaaa";
    p.len = 4;
    rig_send(rig, P, &p);
    p.ip_id++;
    rig_send(rig, S, &p);
    p.dst = 0x0a000063;
    rig_send(rig, P, &p);
    p.payload = "bbbb";
    rig_send(rig, S, &p);
    p.dst = 0x0a000064;
    rig_send(rig, P, &p);
    p.len = 3;
    rig_send(rig, S, &p);
    guint n = rig->released->len;

    rig_free(rig);
    return n;
}

START_TEST(unit_policies_of_other_ip_protocols)
{
    Packet sctp = {.protocol = 132};

    ck_assert_uint_eq(
        three_frames(rig_with_policy(__func__, FRAME_IP_OTHER, COMPARE_POLICY_FULL), &sctp), 1);
    ck_assert_uint_eq(
        three_frames(rig_with_policy(__func__, FRAME_IP_OTHER, COMPARE_POLICY_SIZE), &sctp), 2);
    ck_assert_uint_eq(
        three_frames(rig_with_policy(__func__, FRAME_IP_OTHER, COMPARE_POLICY_PASS), &sctp), 3);
}
END_TEST

static void
l2_case(FrameClass cls, uint8_t hi, uint8_t lo)
{
    static const guint expected[] = {
        [COMPARE_POLICY_FULL] = 1, [COMPARE_POLICY_SIZE] = 2, [COMPARE_POLICY_PASS] = 3};

    for (int policy = 0; policy < 3; policy++) {
        Rig *rig = rig_with_policy(__func__, cls, (ComparePolicy)policy);
        uint8_t frame[60] = {2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, hi, lo};

        rig_send_raw(rig, P, frame, 60, 0);
        rig_send_raw(rig, S, frame, 60, 0);
        frame[0] = 8; /* another flow */
        rig_send_raw(rig, P, frame, 60, 0);
        frame[40]++;
        rig_send_raw(rig, S, frame, 60, 0);
        frame[0] = 16;
        rig_send_raw(rig, P, frame, 60, 0);
        rig_send_raw(rig, S, frame, 59, 0);
        ck_assert_uint_eq(rig->released->len, expected[policy]);
        rig_free(rig);
    }
}

START_TEST(unit_policies_of_arp_unknown_and_malformed)
{
    l2_case(FRAME_ARP, 0x08, 0x06);
    l2_case(FRAME_L2_OTHER, 0x88, 0xb5);
    l2_case(FRAME_MALFORMED, 0x08, 0x00); /* zeroes are no IPv4 */
}
END_TEST

/* Ethernet frames of a guest that tells its neighbours where it is. */
static const struct {
    const char *name;
    uint8_t bytes[90];
    size_t len;
} announcements[] = {
    {"gratuitous ARP",
     "\xff\xff\xff\xff\xff\xff\x52\x54\0\x12\x34\x56\x08\x06\0\x01\x08\0\x06\x04\0\x01"
     "\x52\x54\0\x12\x34\x56\x0a\x4d\0\x02\0\0\0\0\0\0\x0a\x4d\0\x02",
     42},
    {"RARP",
     "\xff\xff\xff\xff\xff\xff\x52\x54\0\x12\x34\x56\x80\x35\0\x01\x08\0\x06\x04\0\x03"
     "\x52\x54\0\x12\x34\x56\0\0\0\0\x52\x54\0\x12\x34\x56\0\0\0\0",
     60},
    {"unsolicited neighbour advertisement",
     "\x33\x33\0\0\0\x01\x52\x54\0\x12\x34\x56\x86\xdd\x60\0\0\0\0\x18\x3a\xff"
     "\xfd\x77\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"
     "\x88\0\xd4\xef\x20\0\0\0\xfd\x77\0\0\0\0\0\0\0\0\0\0\0\0\0\x02",
     78},
    {"MLD report",
     "\x33\x33\0\0\0\x16\x52\x54\0\x12\x34\x56\x86\xdd\x60\0\0\0\0\x10\0\x01"
     "\xfd\x77\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x16"
     "\x3a\0\x05\x02\0\0\x01\0\x8f\0\xba\xc8\0\0\0\0",
     70},
    {"IGMP report",
     "\x01\0\x5e\0\0\x16\x52\x54\0\x12\x34\x56\x08\0\x45\0\0\x24\0\0\0\0\x01\x02\0\0"
     "\x0a\x4d\0\x02\xe0\0\0\x16\x22\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
     50},
};

START_TEST(unit_announcements_of_the_secondary_alone)
{
    for (size_t i = 0; i < G_N_ELEMENTS(announcements); i++) {
        for (int ignore = 0; ignore < 2; ignore++) {
            CompareConfig config;

            compare_config_init(&config);
            config.ignore_announcements = ignore;
            Rig *rig = rig_new(__func__, &config);

            rig_send_raw(rig, S, announcements[i].bytes, announcements[i].len, 0);
            rig_send_raw(rig, S, announcements[i].bytes, announcements[i].len, 0);
            rig_wait(rig, 200 * MS);
            ck_assert_msg(rig_n_divergences(rig) == (ignore ? 0 : 1), "%s", announcements[i].name);
            ck_assert_uint_eq(compare_stats(rig->compare)->announcements, ignore ? 2 : 0);
            ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[S], 0);
            rig_free(rig);
        }
    }
}
END_TEST

START_TEST(unit_announcements_of_the_primary_wait_for_the_secondary)
{
    for (size_t i = 0; i < G_N_ELEMENTS(announcements); i++) {
        CompareConfig config;

        compare_config_init(&config);
        config.ignore_announcements = true;
        Rig *rig = rig_new(__func__, &config);

        rig_send_raw(rig, P, announcements[i].bytes, announcements[i].len, 0);
        ck_assert_uint_eq(rig->released->len, 0);
        rig_send_raw(rig, S, announcements[i].bytes, announcements[i].len, 0);
        ck_assert_uint_eq(rig->released->len, 1);
        rig_send_raw(rig, P, announcements[i].bytes, announcements[i].len, 0);
        rig_wait(rig, 200 * MS);
        ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_TIMEOUT_PRIMARY);
        ck_assert_uint_eq(rig->released->len, 1);
        rig_free(rig);
    }
}
END_TEST

START_TEST(err_what_only_resembles_an_announcement)
{
    /* An ARP request for another address; a solicited advertisement, to one host; all cut short. */
    for (size_t i = 0; i < G_N_ELEMENTS(announcements); i++) {
        for (int cut = 0; cut < 2; cut++) {
            CompareConfig config;
            uint8_t frame[sizeof(announcements[i].bytes)];
            size_t len = announcements[i].len;

            memcpy(frame, announcements[i].bytes, sizeof(frame));
            if (cut)
                len -= 20;
            else if (i == 0)
                frame[len - 1] ^= 1;
            else if (i == 2 || i == 3)
                frame[38] = 0xfd;
            else
                continue;
            compare_config_init(&config);
            config.ignore_announcements = true;
            Rig *rig = rig_new(__func__, &config);

            rig_send_raw(rig, S, frame, len, 0);
            rig_wait(rig, 200 * MS);
            ck_assert_msg(cut && i == 1 ? rig_n_divergences(rig) == 0 : rig_n_divergences(rig) == 1,
                          "%s, %d", announcements[i].name, cut);
            rig_free(rig);
        }
    }
}
END_TEST

START_TEST(unit_one_side_far_ahead_and_reordered)
{
    enum { N = 20000 };
    Rig *rig = rig_new(__func__, NULL);
    char text[32];

    for (int i = 0; i < N; i++) {
        g_snprintf(text, sizeof(text), "datagram %d", i);
        rig_udp(rig, P, text);
    }
    for (int i = N - 1; i >= 0; i--) { /* the worst order there is */
        g_snprintf(text, sizeof(text), "datagram %d", i);
        rig_udp(rig, S, text);
    }
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

CHECK_MAIN("compare-dgram", unit_udp_any_order_in_output_order,
           unit_udp_equal_payloads_pair_one_to_one, unit_udp_checksum_offload_does_not_matter,
           unit_udp_different_payload_waits_for_the_timeout, unit_udp_flows_do_not_mix,
           unit_icmp_and_icmpv6_whole_message, unit_policies_of_other_ip_protocols,
           unit_policies_of_arp_unknown_and_malformed, unit_announcements_of_the_secondary_alone,
           unit_announcements_of_the_primary_wait_for_the_secondary,
           err_what_only_resembles_an_announcement, unit_one_side_far_ahead_and_reordered)
