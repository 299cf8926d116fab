/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-client.c - RSTs about connections that are over: compare/client.c */
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "rig.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

/* What the client sends, to both guests. */
static void
client_says(Rig *rig, uint8_t flags, uint32_t seq, uint32_t ack, const char *text)
{
    static uint8_t buf[PACKET_MAX];
    Packet p = rig->conn;

    p.src = p.ipv6 ? 2 : 0x0a000002;
    p.dst = p.ipv6 ? 1 : 0x0a000001;
    p.sport = 4000;
    p.dport = 80;
    p.tcp_flags = flags;
    p.seq = seq;
    p.ack = ack;
    p.payload = text;
    p.len = text ? strlen(text) : 0;

    size_t len = packet_build(&p, buf);

    compare_note_client(rig->compare, buf, (uint32_t)len, p.vnet_hdr_len);
}

/* Both guests have answered and closed: their next number is 1005. The client's is 500. */
static void
answer_and_close(Rig *rig)
{
    rig_handshake(rig, 1000, 500);
    for (CompareSide side = P; side <= S; side++) {
        rig_tcp(rig, side, ACK, 1001, 500, "bye");
        rig_tcp(rig, side, ACK | FIN, 1004, 500, NULL);
    }
}

static Rig *
rig_closed(const char *name)
{
    Rig *rig = rig_new(name, NULL);

    answer_and_close(rig);
    return rig;
}

/* And so has the client. */
static Rig *
rig_closed_by_all(const char *name)
{
    Rig *rig = rig_closed(name);

    client_says(rig, ACK | FIN, 500, 1005, NULL);
    return rig;
}

static void
expect_clean(Rig *rig)
{
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[P], 0);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[S], 0);
    rig_wait(rig, 300 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}

/* The primary has the connection in TIME-WAIT, the secondary, which was closed on, has forgotten
 * it; and the other way round. The client acknowledges a repeated FIN twice. */
START_TEST(unit_rst_of_one_side_when_both_have_closed)
{
    for (CompareSide side = P; side <= S; side++) {
        Rig *rig = rig_closed_by_all(__func__);

        rig_tcp(rig, P, ACK, 1005, 501, NULL);
        rig_tcp(rig, S, ACK, 1005, 501, NULL);
        rig_tcp(rig, side, RST, 1005, 0, NULL);
        rig_tcp(rig, side, RST, 1005, 0, NULL);
        expect_clean(rig);
    }
}
END_TEST

/* Too many in TIME-WAIT: the primary has forgotten the connection when the client's FIN comes, and
 * refuses it; the secondary takes it. */
START_TEST(unit_rst_against_the_ack_of_the_clients_fin)
{
    Rig *rig = rig_closed_by_all(__func__);

    rig_tcp(rig, P, RST, 1005, 0, NULL);
    rig_tcp(rig, S, ACK, 1005, 501, NULL);
    expect_clean(rig);

    rig = rig_closed_by_all(__func__);
    rig_tcp(rig, S, RST, 1005, 0, NULL);
    expect_clean(rig);
}
END_TEST

/* The secondary is ahead: its RST comes before the primary's FIN. */
START_TEST(unit_rst_of_the_secondary_before_the_primary_has_closed)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, S, ACK | FIN, 1001, 500, "bye");
    client_says(rig, ACK | FIN, 500, 1005, NULL);
    rig_tcp(rig, S, ACK, 1005, 501, NULL);
    rig_tcp(rig, S, RST, 1005, 0, NULL);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[S], 2);
    rig_tcp(rig, P, ACK | FIN, 1001, 500, "bye");
    expect_clean(rig);
}
END_TEST

START_TEST(unit_ipv6_and_vlan_and_vnet)
{
    Rig *rig = rig_new(__func__, NULL);

    rig->conn.ipv6 = true;
    rig->conn.n_vlans = 1;
    rig->conn.vlans[0] = 7;
    rig->conn.vnet_hdr_len = 10;
    answer_and_close(rig);
    client_says(rig, ACK | FIN, 500, 1005, NULL);
    rig_tcp(rig, P, RST, 1005, 0, NULL);
    expect_clean(rig);
}
END_TEST

/* A commit lets the FIN of the primary leave as well. */
START_TEST(unit_closed_by_a_commit)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK | FIN, 1001, 500, "bye");
    rig_checkpoint(rig);
    client_says(rig, ACK | FIN, 500, 1005, NULL);
    rig_tcp(rig, P, RST, 1005, 0, NULL);
    expect_clean(rig);
}
END_TEST

/* The primary's last segment waits until its time is over. */
static void
expect_timeout(Rig *rig, const char *why)
{
    ck_assert_msg(!rig_all_released_in_order(rig), "%s", why);
    rig_wait(rig, 300 * MS);
    ck_assert_msg(rig_last_rule(rig) == COMPARE_RULE_TIMEOUT_PRIMARY, "%s", why);
    rig_free(rig);
}

static void
expect_held(Rig *rig, const char *why)
{
    guint before = rig->released->len;

    rig_tcp(rig, P, RST, 1005, 0, NULL);
    ck_assert_msg(rig->released->len == before, "%s", why);
    expect_timeout(rig, why);
}

/* What is compared as ever. */
START_TEST(err_rst_that_means_something)
{
    Rig *rig = rig_closed(__func__);

    expect_held(rig, "the client has not closed");

    rig = rig_closed(__func__);
    client_says(rig, ACK | FIN, 500, 1005, "data");
    expect_held(rig, "the client's data were not acknowledged");

    rig = rig_closed(__func__);
    client_says(rig, ACK | FIN, 500, 1005, "data");
    rig_tcp(rig, P, ACK, 1005, 505, NULL);
    expect_held(rig, "the client's data were not acknowledged by the secondary");

    rig = rig_new(__func__, NULL);
    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK, 1001, 500, "more");
    rig_tcp(rig, S, ACK, 1001, 500, "more");
    client_says(rig, ACK | FIN, 500, 1005, NULL);
    expect_held(rig, "the guests have not closed");
}
END_TEST

/* An RST that takes back what the client has not acknowledged, and one with another number. */
START_TEST(err_rst_with_an_ack_or_another_number)
{
    for (int i = 0; i < 2; i++) {
        Rig *rig = rig_closed(__func__);
        guint before = rig->released->len;

        client_says(rig, ACK | FIN, 500, 1004, NULL);
        rig_tcp(rig, P, i ? RST : RST | ACK, i ? 1004 : 1005, i ? 0 : 501, NULL);
        ck_assert_uint_eq(rig->released->len, before);
        expect_timeout(rig, i ? "another number" : "with an ack");
    }
}
END_TEST

/* The next connection on the same ports is not over because the one before was. */
START_TEST(err_rst_of_the_next_connection)
{
    Rig *rig = rig_closed_by_all(__func__);

    rig_tcp(rig, P, RST, 1005, 0, NULL);
    rig_tcp(rig, P, SYN | ACK, 7000, 501, NULL);
    rig_tcp(rig, S, SYN | ACK, 5, 501, NULL);
    for (CompareSide side = P; side <= S; side++)
        rig_tcp(rig, side, ACK | FIN, 7001, 501, NULL);
    rig_tcp(rig, P, RST, 7002, 0, NULL);
    expect_timeout(rig, "the next connection is open");
}
END_TEST

/* What a client says cannot be believed to be a frame, and makes no flow. */
START_TEST(sec_what_is_no_segment_of_a_known_connection)
{
    Rig *rig = rig_new(__func__, NULL);
    const uint8_t junk[64] = {0};

    for (uint32_t len = 0; len <= sizeof(junk); len++) {
        g_autofree uint8_t *copy = g_memdup2(junk, len);

        compare_note_client(rig->compare, copy, len, 10);
    }
    client_says(rig, ACK | FIN, 500, 1005, NULL);
    ck_assert_uint_eq(compare_stats(rig->compare)->flows, 0);
    rig_free(rig);
}
END_TEST

CHECK_MAIN("compare-client", unit_rst_of_one_side_when_both_have_closed,
           unit_rst_against_the_ack_of_the_clients_fin,
           unit_rst_of_the_secondary_before_the_primary_has_closed, unit_ipv6_and_vlan_and_vnet,
           unit_closed_by_a_commit, err_rst_that_means_something,
           err_rst_with_an_ack_or_another_number, err_rst_of_the_next_connection,
           sec_what_is_no_segment_of_a_known_connection)
