/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-fragment.c - fragments: put together per side, compared whole, bounded */
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "rig.h"

enum { LEN = 4000 };

static uint8_t payload[LEN];

static Packet
datagram(bool ipv6)
{
    for (int i = 0; i < LEN; i++)
        payload[i] = (uint8_t)(i * 7 >> 2);
    return (Packet){.ipv6 = ipv6, .protocol = 17, .ip_id = 9, .payload = payload, .len = LEN};
}

static size_t
upper_len(const Packet *p)
{
    return (p->protocol == 6 ? 20 : 8) + p->len;
}

static uint64_t
send_piece(Rig *rig, CompareSide side, Packet p, size_t off, size_t len)
{
    p.frag_off = off;
    p.frag_len = MIN(len, upper_len(&p) - off);
    return rig_send(rig, side, &p);
}

static void
send_cut(Rig *rig, CompareSide side, const Packet *p, size_t piece)
{
    for (size_t off = 0; off < upper_len(p); off += piece)
        send_piece(rig, side, *p, off, piece);
}

START_TEST(unit_cut_differently_on_the_two_sides)
{
    for (int v6 = 0; v6 < 2; v6++) {
        Rig *rig = rig_new(__func__, NULL);
        Packet p = datagram(v6);

        send_cut(rig, P, &p, 1480);
        p.ip_id = 1234; /* belongs to the side */
        send_cut(rig, S, &p, 720);
        ck_assert(rig_all_released_in_order(rig));
        send_cut(rig, S, &p, 1480);
        rig_send(rig, P, &p); /* not cut at all */
        ck_assert(rig_all_released_in_order(rig));
        ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[S], 0);
        ck_assert_uint_eq(rig_n_divergences(rig), 0);
        rig_free(rig);
    }
}
END_TEST

START_TEST(unit_out_of_order_and_repeated_pieces)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(false);

    send_piece(rig, P, p, 2960, 1480);
    send_piece(rig, P, p, 0, 1480);
    send_piece(rig, P, p, 0, 1480);
    send_cut(rig, S, &p, 1480);
    ck_assert_uint_eq(rig->released->len, 0);
    send_piece(rig, P, p, 1480, 1480);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(unit_difference_is_found)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(false);

    send_cut(rig, P, &p, 1480);
    payload[3500] ^= 1;
    send_cut(rig, S, &p, 1480);
    ck_assert_uint_eq(rig->released->len, 0);
    rig_wait(rig, 200 * MS);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_TIMEOUT_PRIMARY);
    ck_assert_uint_eq(g_array_index(rig->divergences, RigDivergence, 0).offset, 3500);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(unit_overlap_with_the_same_bytes_is_accepted)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(false);

    send_piece(rig, P, p, 0, 1480);
    send_piece(rig, P, p, 1000, 1480);
    send_piece(rig, P, p, 2400, 1608);
    rig_send(rig, S, &p);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(sec_overlap_with_other_bytes_needs_a_checkpoint)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(false);

    send_piece(rig, P, p, 0, 1480);
    payload[1200] ^= 0xff;
    send_piece(rig, P, p, 1000, 1480);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_FRAGMENT);
    send_piece(rig, P, p, 2400, 1608);
    ck_assert_uint_eq(rig->released->len, 0);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(err_missing_piece_times_out)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(true);

    send_piece(rig, P, p, 0, 1480);
    send_cut(rig, S, &p, 1480);
    rig_wait(rig, 250 * MS);
    ck_assert_int_ge(rig_last_rule(rig), COMPARE_RULE_TIMEOUT_PRIMARY);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_stats(rig->compare)->held_bytes, 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_fragmented_tcp)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    Packet p = datagram(false);
    p.protocol = 6;
    p.tcp_flags = FRAME_TCP_ACK;
    p.seq = 1001;
    p.ack = 500;
    send_cut(rig, P, &p, 1480);
    ck_assert_uint_eq(rig->released->len, 1);
    rig_send(rig, S, &p);
    ck_assert(rig_all_released_in_order(rig));
    /* Its header is in the first of three frames: the ack is not lowered there, it waits. */
    p.seq += LEN;
    p.ack = 600;
    send_cut(rig, P, &p, 1480);
    p.ack = 500;
    rig_send(rig, S, &p);
    ck_assert_uint_eq(rig->released->len, 4);
    rig_tcp(rig, S, FRAME_TCP_ACK, p.seq + LEN, 600, NULL);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(sec_tiny_fragments_of_one_datagram)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(false);

    for (size_t off = 0; off < 8 * 200; off += 8)
        send_piece(rig, P, p, off, 8);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_FRAGMENT);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(sec_fragment_flood_is_bounded_and_asks_for_a_checkpoint)
{
    Rig *rig = rig_new(__func__, NULL);
    Packet p = datagram(false);
    int refused = 0;

    for (int i = 0; i < 20000; i++) {
        p.ip_id = (uint16_t)i;
        p.src = 0x0b000000 + (uint32_t)i;
        send_piece(rig, P, p, 8, 1000);
        if (rig->last_result < 0)
            refused++;
    }
    ck_assert_int_gt(refused, 0);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_MEMORY);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    ck_assert_uint_le(compare_stats(rig->compare)->held_bytes_max, 8 * 1024 * 1024);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    send_piece(rig, P, p, 8, 1000);
    ck_assert_int_eq(rig->last_result, 0);
    rig_free(rig);
}
END_TEST

CHECK_MAIN("compare-fragment", unit_cut_differently_on_the_two_sides,
           unit_out_of_order_and_repeated_pieces, unit_difference_is_found,
           unit_overlap_with_the_same_bytes_is_accepted,
           sec_overlap_with_other_bytes_needs_a_checkpoint, err_missing_piece_times_out,
           unit_fragmented_tcp, sec_tiny_fragments_of_one_datagram,
           sec_fragment_flood_is_bounded_and_asks_for_a_checkpoint)
