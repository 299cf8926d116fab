/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-frame.c - the frame parser: every class, every bound */
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "frame.h"
#include "packet.h"

static uint8_t buf[PACKET_MAX];

static Frame
parse(const Packet *p)
{
    size_t len = packet_build(p, buf);
    Frame f;

    frame_parse(buf, len, p->vnet_hdr_len, &f);
    return f;
}

START_TEST(unit_tcp_over_ipv4_and_ipv6)
{
    for (int v6 = 0; v6 < 2; v6++) {
        Packet p = {.ipv6 = v6,
                    .protocol = 6,
                    .seq = 0xfffffff0,
                    .ack = 7,
                    .tcp_flags = 0x12,
                    .n_tcp_options = 3,
                    .payload = "hello",
                    .len = 5};
        Frame f = parse(&p);

        ck_assert_int_eq(f.cls, FRAME_TCP);
        ck_assert_uint_eq(f.seq, 0xfffffff0);
        ck_assert_uint_eq(f.ack, 7);
        ck_assert_uint_eq(f.tcp_flags, 0x12);
        ck_assert_uint_eq(f.payload_len, 5);
        ck_assert_mem_eq(buf + f.payload_off, "hello", 5);
        ck_assert_int_eq(f.ipv6, v6);
    }
}
END_TEST

/* Plain frames are parsed in one go; with a tag they are not. Each byte of the headers is changed
 * in turn, to all values. */
START_TEST(unit_plain_tcp_is_parsed_as_with_a_tag)
{
    enum { IP = 14, HEADERS = 54, TAG = 4 };
    Packet plain = {.protocol = 6,
                    .seq = 0x01020304,
                    .ack = 7,
                    .tcp_flags = 0x18,
                    .n_tcp_options = 2,
                    .payload = "hello",
                    .len = 5};
    Packet tagged = plain;
    size_t len = packet_build(&plain, buf);
    g_autofree uint8_t *one = g_memdup2(buf, len);
    int n_tcp = 0;

    tagged.n_vlans = 1;
    tagged.vlans[0] = 5;
    len = packet_build(&tagged, buf) - TAG;
    for (size_t at = IP; at < HEADERS; at++) {
        for (int value = 0; value < 256; value++) {
            uint8_t was = one[at];
            Frame a, b;

            one[at] = buf[at + TAG] = (uint8_t)value;
            frame_parse(one, len, 0, &a);
            frame_parse(buf, len + TAG, 0, &b);
            ck_assert_int_eq(a.cls, b.cls);
            if (a.cls != FRAME_MALFORMED)
                ck_assert_mem_eq(a.key.w, b.key.w, 5 * sizeof(a.key.w[0]));
            ck_assert_uint_eq(a.payload_off + TAG, b.payload_off);
            ck_assert_uint_eq(a.payload_len, b.payload_len);
            ck_assert_uint_eq(a.seq, b.seq);
            ck_assert_uint_eq(a.ack, b.ack);
            ck_assert_uint_eq(a.tcp_flags, b.tcp_flags);
            ck_assert_uint_eq(a.protocol, b.protocol);
            n_tcp += a.cls == FRAME_TCP;
            one[at] = buf[at + TAG] = was;
        }
    }
    ck_assert_int_gt(n_tcp, 7000); /* of 10240: most values harm nothing */
}
END_TEST

START_TEST(unit_key_tells_flows_apart)
{
    Packet base = {.protocol = 17, .payload = "x", .len = 1};
    Packet variants[7];
    Frame a = parse(&base);

    for (int i = 0; i < 7; i++)
        variants[i] = base;
    variants[0].src = 0x0a000009;
    variants[1].dst = 0x0a000009;
    variants[2].sport = 81;
    variants[3].dport = 81;
    variants[4].protocol = 6;
    variants[5].n_vlans = 1;
    variants[6].ipv6 = true;
    for (int i = 0; i < 7; i++) {
        Frame b = parse(&variants[i]);

        ck_assert_msg(memcmp(&a.key, &b.key, sizeof(a.key)) != 0, "variant %d", i);
    }
    Packet same = base;

    same.ttl = 3;
    same.ip_id = 99;
    Frame b = parse(&same);
    ck_assert_mem_eq(&a.key, &b.key, sizeof(a.key));
}
END_TEST

START_TEST(unit_vlan_tags_up_to_two)
{
    Packet p = {.protocol = 17, .payload = "x", .len = 1, .n_vlans = 2, .vlans = {5, 6}};
    Frame two = parse(&p);
    ck_assert_int_eq(two.cls, FRAME_UDP);

    p.vlans[1] = 7;
    Frame other = parse(&p);
    ck_assert(memcmp(&two.key, &other.key, sizeof(two.key)) != 0);

    p.n_vlans = 1;
    p.vlans[0] = 0; /* a priority tag is not "no tag" */
    Frame priority = parse(&p);

    p.n_vlans = 0;
    Frame none = parse(&p);
    ck_assert(memcmp(&priority.key, &none.key, sizeof(none.key)) != 0);
}
END_TEST

START_TEST(err_three_vlan_tags)
{
    uint8_t bytes[64] = {0};
    Frame f;

    for (int i = 0; i < 3; i++)
        memcpy(bytes + 12 + 4 * i, "\x81\x00\x00\x05", 4);
    frame_parse(bytes, sizeof(bytes), 0, &f);
    ck_assert_int_eq(f.cls, FRAME_MALFORMED);
    ck_assert_ptr_nonnull(strstr(f.malformed_why, "VLAN"));
}
END_TEST

START_TEST(unit_vnet_header_offload_flag)
{
    Packet p = {.protocol = 6, .vnet_hdr_len = 12, .csum_partial = true, .payload = "x", .len = 1};
    Frame f = parse(&p);

    ck_assert_int_eq(f.cls, FRAME_TCP);
    ck_assert(f.csum_partial);
    ck_assert_mem_eq(buf + f.payload_off, "x", 1);
    frame_parse(buf, 5, 12, &f);
    ck_assert_int_eq(f.cls, FRAME_MALFORMED);
}
END_TEST

START_TEST(unit_gso_frame_of_64_kib)
{
    static uint8_t payload[65000];
    Packet p = {.protocol = 6, .vnet_hdr_len = 12, .payload = payload, .len = sizeof(payload)};
    Frame f = parse(&p);

    ck_assert_int_eq(f.cls, FRAME_TCP);
    ck_assert_uint_eq(f.payload_len, 65000);

    /* Lengths that do not fit 16 bits are left 0: the frame's length counts. */
    p.ipv6 = true;
    size_t len = packet_build(&p, buf);
    buf[12 + 14 + 4] = buf[12 + 14 + 5] = 0;
    frame_parse(buf, len, 12, &f);
    ck_assert_int_eq(f.cls, FRAME_TCP);
    ck_assert_uint_eq(f.payload_len, 65000);
}
END_TEST

START_TEST(unit_ipv6_extension_headers)
{
    Packet p = {.ipv6 = true, .protocol = 17, .n_dest_options = 3, .payload = "abc", .len = 3};
    Frame f = parse(&p);

    ck_assert_int_eq(f.cls, FRAME_UDP);
    ck_assert_uint_eq(f.payload_len, 3);
    p.n_dest_options = FRAME_MAX_EXT_HEADERS + 1;
    f = parse(&p);
    ck_assert_int_eq(f.cls, FRAME_MALFORMED);
}
END_TEST

START_TEST(unit_fragments_of_both_families)
{
    for (int v6 = 0; v6 < 2; v6++) {
        static uint8_t payload[3000];
        Packet p = {.ipv6 = v6,
                    .protocol = 17,
                    .ip_id = 77,
                    .payload = payload,
                    .len = 3000,
                    .frag_off = 1400,
                    .frag_len = 1400};
        Frame f = parse(&p);

        ck_assert_int_eq(f.cls, FRAME_FRAGMENT);
        ck_assert_uint_eq(f.frag_id, 77);
        ck_assert_uint_eq(f.frag_off_bytes, 1400);
        ck_assert(f.frag_more);
        ck_assert_uint_eq(f.payload_len, 1400);
        ck_assert_uint_eq(f.protocol, 17);
    }
}
END_TEST

START_TEST(unit_ethernet_padding_is_cut)
{
    Packet p = {.protocol = 17, .payload = "x", .len = 1};
    size_t len = packet_build(&p, buf);
    Frame f;

    memset(buf + len, 0xee, 60 - len);
    frame_parse(buf, 60, 0, &f);
    ck_assert_uint_eq(f.payload_len, 1);
}
END_TEST

START_TEST(unit_classes_without_rules_of_their_own)
{
    uint8_t arp[42] = {0};
    Frame f;

    arp[12] = 8;
    arp[13] = 6;
    frame_parse(arp, sizeof(arp), 0, &f);
    ck_assert_int_eq(f.cls, FRAME_ARP);
    ck_assert_uint_eq(f.payload_len, 28);
    arp[12] = 0x80; /* RARP */
    arp[13] = 0x35;
    frame_parse(arp, sizeof(arp), 0, &f);
    ck_assert_int_eq(f.cls, FRAME_L2_OTHER);

    Packet p = {.protocol = 132, .payload = "sctp", .len = 4};
    f = parse(&p);
    ck_assert_int_eq(f.cls, FRAME_IP_OTHER);
    ck_assert_uint_eq(f.payload_len, 4);
}
END_TEST

START_TEST(unit_icmp_echo_identifier_is_part_of_the_flow)
{
    Packet p = {.protocol = 1, .payload = "\x08\x00\x00\x00\x12\x34\x00\x01", .len = 8};
    Frame a = parse(&p);
    char text[128];

    ck_assert_int_eq(a.cls, FRAME_ICMP);
    frame_key_format(&a.key, text, sizeof(text));
    ck_assert_str_eq(text, "10.0.0.1 > 10.0.0.2 icmp type 8 id 4660");
}
END_TEST

START_TEST(err_every_truncation_is_malformed_or_shorter)
{
    for (int i = 0; i < 6; i++) {
        Packet p = {.ipv6 = i & 1,
                    .protocol = (uint8_t)(i < 2   ? 6
                                          : i < 4 ? 17
                                          : i & 1 ? 58
                                                  : 1),
                    .payload = "\x80\x00\x00\x00\x12\x34\x00\x01",
                    .len = 8};
        size_t len = packet_build(&p, buf);

        for (size_t cut = 0; cut < len; cut++) {
            g_autofree uint8_t *copy = g_memdup2(buf, cut); /* so that ASan sees an over-read */
            Frame f;

            frame_parse(copy, cut, 0, &f);
            ck_assert_msg(f.cls == FRAME_MALFORMED, "case %d cut at %zu: class %d", i, cut, f.cls);
            ck_assert_ptr_nonnull(f.malformed_why);
            ck_assert_uint_le(f.payload_off + f.payload_len, cut);
        }
    }
}
END_TEST

START_TEST(err_tcp_data_offset_out_of_range)
{
    Packet p = {.protocol = 6, .payload = "x", .len = 1};
    size_t len = packet_build(&p, buf);
    Frame f;

    buf[14 + 20 + 12] = 0xf0;
    frame_parse(buf, len, 0, &f);
    ck_assert_int_eq(f.cls, FRAME_MALFORMED);
    buf[14 + 20 + 12] = 0x40;
    frame_parse(buf, len, 0, &f);
    ck_assert_int_eq(f.cls, FRAME_MALFORMED);
}
END_TEST

START_TEST(unit_key_formats)
{
    Packet p = {.ipv6 = true, .protocol = 6};
    Frame f = parse(&p);
    char text[160];

    frame_key_format(&f.key, text, sizeof(text));
    ck_assert_str_eq(text, "[fd00::1]:80 > [fd00::2]:4000 tcp");
    frame_key_format(&f.key, text, 5);
    ck_assert_str_eq(text, "[fd0");
}
END_TEST

CHECK_MAIN("frame", unit_tcp_over_ipv4_and_ipv6, unit_plain_tcp_is_parsed_as_with_a_tag,
           unit_key_tells_flows_apart, unit_vlan_tags_up_to_two, err_three_vlan_tags,
           unit_vnet_header_offload_flag, unit_gso_frame_of_64_kib, unit_ipv6_extension_headers,
           unit_fragments_of_both_families, unit_ethernet_padding_is_cut,
           unit_classes_without_rules_of_their_own, unit_icmp_echo_identifier_is_part_of_the_flow,
           err_every_truncation_is_malformed_or_shorter, err_tcp_data_offset_out_of_range,
           unit_key_formats)
