/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-proxy-parts.c - the pure parts of the proxy: announcements, learned addresses, histogram */
#include "addresses.h"
#include "announce.h"
#include "histogram.h"

#include "check-main.h"

#include <string.h>

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
static const uint8_t ip4[4] = {10, 77, 0, 2};
static const uint8_t ip6[16] = {0xfd, 0, [15] = 2};

START_TEST(unit_rarp_is_the_frame_qemu_sends)
{
    static const uint8_t want[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x80, 0x35,
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x03, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56,
        0x00, 0x00, 0x00, 0x00, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    ck_assert_uint_eq(announce_rarp(mac, frame), 60);
    ck_assert_mem_eq(frame, want, 60);
}
END_TEST

START_TEST(unit_gratuitous_arp_bytes)
{
    static const uint8_t want[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x06,
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56,
        0x0a, 0x4d, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x4d, 0x00, 0x02};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    ck_assert_uint_eq(announce_arp(mac, ip4, frame), 60);
    ck_assert_mem_eq(frame, want, 60);
}
END_TEST

START_TEST(unit_neighbour_advertisement_bytes)
{
    static const uint8_t want[86] = {
        0x33, 0x33, 0x00, 0x00, 0x00, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x86, 0xdd,
        /* IPv6: 32 bytes of ICMPv6, hop limit 255, fd00::2 -> ff02::1 */
        0x60, 0, 0, 0, 0, 32, 58, 255, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xff,
        0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        /* 136, code 0, checksum, Override, target, option 2 */
        136, 0, 0xd5, 0xdd, 0x20, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 1,
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    ck_assert_uint_eq(announce_na(mac, ip6, frame), 86);
    ck_assert_mem_eq(frame, want, 86);
}
END_TEST

static bool
parse(const uint8_t *frame, size_t len, AddressSighting *ret)
{
    /* A copy of exactly that length: the sanitizer sees any byte too far. */
    g_autofree uint8_t *copy = g_memdup2(frame, MAX(len, 1));

    return address_parse(view_of(copy, len), mac, ret);
}

START_TEST(unit_learns_from_arp_and_neighbour_advertisement)
{
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    AddressSighting s;

    size_t len = announce_arp(mac, ip4, frame);
    ck_assert(parse(frame, len, &s) && !s.ipv6 && s.claimed && !s.router);
    ck_assert_mem_eq(s.bytes, ip4, 4);

    len = announce_na(mac, ip6, frame);
    ck_assert(parse(frame, len, &s) && s.ipv6 && s.claimed && !s.router);
    ck_assert_mem_eq(s.bytes, ip6, 16);
    frame[58] |= 0x80;
    ck_assert(parse(frame, len, &s) && s.router);

    /* Solicitation: its source; from "::" (a probe) nothing. */
    frame[54] = 135;
    ck_assert(parse(frame, len, &s) && s.claimed && !s.router);
    memset(frame + 22, 0, 16);
    ck_assert(!parse(frame, len, &s));
}
END_TEST

START_TEST(unit_learns_from_packet_sources_with_less_weight)
{
    uint8_t frame[60] = {[6] = 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0x00, 0x45};
    AddressSighting s;

    memcpy(frame + 26, ip4, 4);
    ck_assert(parse(frame, sizeof(frame), &s) && !s.ipv6 && !s.claimed);
    ck_assert_mem_eq(s.bytes, ip4, 4);

    frame[11]++; /* somebody else's MAC: bridged by the guest */
    ck_assert(!parse(frame, sizeof(frame), &s));
}
END_TEST

START_TEST(unit_unusable_addresses_show_nothing)
{
    static const uint8_t bad[][4] = {
        {0, 0, 0, 0}, {127, 0, 0, 1}, {224, 0, 0, 1}, {255, 255, 255, 255}};
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    AddressSighting s;

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
        ck_assert(!parse(frame, announce_arp(mac, bad[i], frame), &s));

    static const uint8_t loopback[16] = {[15] = 1}, multicast[16] = {0xff, 2};

    ck_assert(!parse(frame, announce_na(mac, loopback, frame), &s));
    ck_assert(!parse(frame, announce_na(mac, multicast, frame), &s));
}
END_TEST

START_TEST(sec_truncated_frames_are_refused_at_every_length)
{
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    AddressSighting s = {.router = true};

    announce_arp(mac, ip4, frame);
    for (size_t len = 0; len < 32; len++)
        ck_assert(!parse(frame, len, &s));
    announce_na(mac, ip6, frame);
    for (size_t len = 0; len < 54; len++)
        ck_assert(!parse(frame, len, &s));
    ck_assert(s.router);
    /* Not a whole advertisement: only the packet's source is left to see. */
    for (size_t len = 54; len < 78; len++)
        ck_assert(parse(frame, len, &s) && !s.claimed);
}
END_TEST

START_TEST(sec_vlan_tagged_frames_teach_nothing)
{
    uint8_t frame[64] = {0};
    AddressSighting s;

    announce_arp(mac, ip4, (uint8_t[ANNOUNCE_FRAME_MAX]){0});
    memcpy(frame + 6, mac, 6);
    frame[12] = 0x81;
    frame[16] = 0x08;
    frame[17] = 0x00;
    frame[18] = 0x45;
    ck_assert(!parse(frame, sizeof(frame), &s));
}
END_TEST

static void
learn(AddressTable *table, unsigned nic, uint8_t last, bool claimed)
{
    AddressSighting s = {.has_address = true, .claimed = claimed, .bytes = {10, 0, 0, last}};

    address_table_learn(table, nic, &s);
}

START_TEST(unit_claimed_addresses_replace_packet_sources)
{
    AddressTable table = {0};

    learn(&table, 0, 1, false);
    learn(&table, 0, 2, false);
    learn(&table, 1, 3, false);
    ck_assert_uint_eq(table.n, 3);
    learn(&table, 0, 2, true);
    ck_assert_uint_eq(table.n, 2);
    /* The other NIC's remain, and more sources of NIC 0 are not entered. */
    learn(&table, 0, 9, false);
    ck_assert_uint_eq(table.n, 2);
    learn(&table, 0, 2, true);
    ck_assert_uint_eq(table.n, 2);
}
END_TEST

START_TEST(sec_table_is_bounded_and_the_longest_unseen_gives_way)
{
    AddressTable table = {0};

    for (uint8_t i = 1; i <= PROXY_MAX_ADDRESSES; i++)
        learn(&table, 0, i, true);
    learn(&table, 0, 1, true);
    learn(&table, 0, 200, true);
    ck_assert_uint_eq(table.n, PROXY_MAX_ADDRESSES);

    bool first = false, second = false;

    for (unsigned i = 0; i < table.n; i++) {
        first |= table.entries[i].address.bytes[3] == 1;
        second |= table.entries[i].address.bytes[3] == 2;
    }
    ck_assert(first && !second);
}
END_TEST

START_TEST(sec_addresses_from_the_peer_are_checked)
{
    AddressTable table = {0};
    ProxyAddress address = {.nic = PROXY_MAX_NICS, .bytes = {10, 0, 0, 1}};

    address_table_add(&table, &address);
    ck_assert_uint_eq(table.n, 0);
    address.nic = 0;
    address_table_add(&table, &address);
    address.bytes[9] = 7; /* beyond an IPv4 address: the same one */
    address_table_add(&table, &address);
    ck_assert_uint_eq(table.n, 1);
    address.bytes[0] = 0;
    address_table_add(&table, &address);
    ck_assert_uint_eq(table.n, 1);
}
END_TEST

START_TEST(unit_histogram_percentiles_are_within_an_eighth)
{
    static Histogram histogram;
    uint64_t counts[HISTOGRAM_BUCKETS] = {0};

    ck_assert_uint_eq(histogram_percentile(counts, 50), 0);
    for (uint64_t us = 1; us <= 1000; us++)
        histogram_add(&histogram, us);
    histogram_sum(&histogram, counts);
    ck_assert_uint_ge(histogram_percentile(counts, 50), 500);
    ck_assert_uint_le(histogram_percentile(counts, 50), 500 + 500 / 8);
    ck_assert_uint_ge(histogram_percentile(counts, 99), 990);
    ck_assert_uint_le(histogram_percentile(counts, 99), 990 + 990 / 8);
    ck_assert_uint_ge(histogram_percentile(counts, 100), 1000);
}
END_TEST

START_TEST(unit_histogram_every_value_falls_into_its_bucket)
{
    for (unsigned shift = 0; shift < 40; shift++) {
        static const uint64_t ends = UINT32_MAX;
        uint64_t counts[HISTOGRAM_BUCKETS] = {0}, us = UINT64_C(1) << shift;
        g_autofree Histogram *histogram = g_new0(Histogram, 1);

        histogram_add(histogram, us);
        histogram_sum(histogram, counts);
        ck_assert_uint_ge(histogram_percentile(counts, 50), MIN(us, ends));
        ck_assert_uint_le(histogram_percentile(counts, 50), MIN(us + us / 8, ends));
    }
}
END_TEST

START_TEST(unit_histogram_forgets_old_values)
{
    static Histogram histogram;
    uint64_t counts[HISTOGRAM_BUCKETS] = {0};

    for (unsigned i = 0; i < HISTOGRAM_GENERATION; i++)
        histogram_add(&histogram, 1000000);
    for (unsigned i = 0; i < 2 * HISTOGRAM_GENERATION; i++)
        histogram_add(&histogram, 3);
    histogram_sum(&histogram, counts);
    ck_assert_uint_eq(histogram_percentile(counts, 100), 3);
}
END_TEST

CHECK_MAIN("proxy-parts", unit_rarp_is_the_frame_qemu_sends, unit_gratuitous_arp_bytes,
           unit_neighbour_advertisement_bytes, unit_learns_from_arp_and_neighbour_advertisement,
           unit_learns_from_packet_sources_with_less_weight, unit_unusable_addresses_show_nothing,
           sec_truncated_frames_are_refused_at_every_length, sec_vlan_tagged_frames_teach_nothing,
           unit_claimed_addresses_replace_packet_sources,
           sec_table_is_bounded_and_the_longest_unseen_gives_way,
           sec_addresses_from_the_peer_are_checked, unit_histogram_percentiles_are_within_an_eighth,
           unit_histogram_every_value_falls_into_its_bucket, unit_histogram_forgets_old_values)
