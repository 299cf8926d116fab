/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-engine.c - epochs, timeouts, bounds, expiry, hostile floods */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "check-main.h"
#include "keyed-hash.h"
#include "rig.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

START_TEST(err_configuration_out_of_range)
{
    CompareConfig config;
    CompareOps ops = {0};
    Compare *compare;

    compare_config_init(&config);
    config.timeout_ns = 9 * MS;
    ck_assert_int_eq(compare_new(&config, &ops, NULL, &compare), -EINVAL);
    config.timeout_ns = 10001 * MS;
    ck_assert_int_eq(compare_new(&config, &ops, NULL, &compare), -EINVAL);
    compare_config_init(&config);
    config.memory_max_bytes = 1;
    ck_assert_int_eq(compare_new(&config, &ops, NULL, &compare), -EINVAL);
    compare_config_init(&config);
    config.flows_max = 0;
    ck_assert_int_eq(compare_new(&config, &ops, NULL, &compare), -EINVAL);
}
END_TEST

START_TEST(unit_names_and_policies)
{
    ComparePolicy policy;

    for (int i = 0; i < COMPARE_N_RULES; i++)
        ck_assert_ptr_nonnull(compare_rule_name((CompareRule)i));
    ck_assert(compare_policy_parse("full", &policy) && policy == COMPARE_POLICY_FULL);
    ck_assert(compare_policy_parse("pass", &policy) && policy == COMPARE_POLICY_PASS);
    ck_assert(!compare_policy_parse("fuller", &policy));
    ck_assert_str_eq(compare_policy_name(COMPARE_POLICY_SIZE), "size");
}
END_TEST

START_TEST(life_commit_releases_in_arrival_order_and_forgets_the_secondary)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK, 1001, 500, "one");
    rig_udp(rig, P, "two");
    rig_tcp(rig, P, ACK, 1004, 500, "three");
    rig_udp(rig, S, "never said by the primary");
    ck_assert_int_eq(compare_begin_checkpoint(rig->compare, 1), 0);
    ck_assert_uint_eq(rig->released->len, 1);
    ck_assert_int_eq(compare_commit(rig->compare, 1, rig->now_ns), 0);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_stats(rig->compare)->held_bytes, 0);
    ck_assert_int_eq(compare_commit(rig->compare, 1, rig->now_ns), -EINVAL);
    ck_assert_int_eq(compare_begin_checkpoint(rig->compare, 1), -EINVAL);
    rig_free(rig);
}
END_TEST

START_TEST(life_the_stream_goes_on_after_a_commit)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK, 1001, 510, "aaa");
    rig_checkpoint(rig);
    rig_tcp(rig, P, ACK, 1001, 510, "aaa"); /* retransmission of what the checkpoint covers */
    rig_tcp(rig, P, ACK, 1004, 510, "bbb");
    rig_tcp(rig, S, ACK, 1001, 510, "aaabb");
    rig_tcp(rig, S, ACK, 1006, 510, "b");
    rig_tcp(rig, P, SYN | ACK, 1000, 500, NULL); /* the handshake again, as both know it */
    rig_tcp(rig, S, SYN | ACK, 1000, 500, NULL);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}
END_TEST

START_TEST(life_frames_of_the_next_epoch_wait_for_its_commit)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "old");
    rig->epoch = 1;
    rig_udp(rig, P, "new");
    rig_udp(rig, S, "new");
    rig_udp(rig, S, "old"); /* as if it were of the new epoch: must not match the old frame */
    ck_assert_uint_eq(rig->released->len, 0);
    compare_commit(rig->compare, 1, rig->now_ns);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_stats(rig->compare)->held_frames[S], 1);
    rig_free(rig);
}
END_TEST

START_TEST(life_early_frames_without_room_keep_their_place)
{
    enum { FLOWS = 16 };
    CompareConfig config;

    compare_config_init(&config);
    config.flows_max = FLOWS;
    Rig *rig = rig_new(__func__, &config);

    rig->epoch = 1;
    for (uint16_t i = 0; i <= FLOWS; i++) { /* one more than there is room for */
        rig->conn.dport = (uint16_t)(100 + i);
        rig_udp(rig, P, "first");
    }
    compare_commit(rig->compare, 1, rig->now_ns);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_FLOWS);
    rig->conn.dport = 100;
    rig_udp(rig, S, "first"); /* there is room again */
    rig->conn.dport = 100 + FLOWS;
    rig_udp(rig, P, "second");
    ck_assert_int_eq(rig->last_result, -ENOBUFS); /* or it would leave before the first */
    rig_checkpoint(rig);
    rig_udp(rig, P, "second");
    ck_assert_int_eq(rig->last_result, 0);
    rig_udp(rig, S, "second");
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(life_late_frames_of_an_old_epoch)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_checkpoint(rig);
    rig_udp(rig, P, "x");
    rig->epoch = 0;
    rig_udp(rig, S, "x"); /* never matches a new one */
    ck_assert_uint_eq(rig->released->len, 0);
    rig_udp(rig, P, "late but covered");
    ck_assert_uint_eq(rig->released->len, 1);
    ck_assert_uint_eq(compare_stats(rig->compare)->stale[P], 1);
    ck_assert_uint_eq(compare_stats(rig->compare)->stale[S], 1);
    rig_free(rig);
}
END_TEST

START_TEST(life_the_secondarys_ack_rolls_back_with_its_state)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, S, ACK, 1001, 600, NULL); /* the secondary got more than the primary... */
    rig_checkpoint(rig);                   /* ...and lost it with its state */
    uint64_t ack = rig_tcp(rig, P, ACK, 1001, 600, NULL);
    ck_assert(!rig_was_released(rig, ack));
    rig_tcp(rig, S, ACK, 1001, 600, NULL);
    ck_assert(rig_was_released(rig, ack));
    rig_free(rig);
}
END_TEST

START_TEST(life_nothing_times_out_during_a_checkpoint)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "x");
    compare_begin_checkpoint(rig->compare, 1);
    rig_wait(rig, 5000 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    ck_assert(compare_next_deadline_ns(rig->compare) == INT64_MAX);
    compare_commit(rig->compare, 1, rig->now_ns);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(life_flush_releases_everything)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "now");
    rig->epoch = 3;
    rig_udp(rig, P, "of an epoch to come");
    rig_udp(rig, S, "x");
    compare_flush(rig->compare, rig->now_ns);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_stats(rig->compare)->held_bytes, 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_divergence_is_reported_once_per_flow_and_epoch)
{
    Rig *rig = rig_new(__func__, NULL);

    for (int i = 0; i < 10; i++) {
        rig_udp(rig, P, i & 1 ? "a" : "b");
        rig_wait(rig, 100 * MS);
    }
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    rig->conn.dport = 5000;
    rig_udp(rig, P, "x");
    rig_wait(rig, 200 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 2);
    rig_checkpoint(rig);
    rig_udp(rig, P, "x");
    rig_wait(rig, 200 * MS);
    ck_assert_uint_eq(rig_n_divergences(rig), 3);
    rig_free(rig);
}
END_TEST

START_TEST(unit_frames_of_either_side_time_out)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, S, "only the secondary");
    ck_assert(compare_next_deadline_ns(rig->compare) == rig->now_ns + 200 * MS);
    rig_wait(rig, 200 * MS);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_TIMEOUT_SECONDARY);
    rig_free(rig);
}
END_TEST

START_TEST(unit_time_going_backwards_or_jumping)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_udp(rig, P, "x");
    rig->now_ns -= 900 * MS;
    rig_wait(rig, 0);
    rig_udp(rig, P, "y");
    rig->now_ns = INT64_MIN;
    rig_wait(rig, 0);
    rig_udp(rig, S, "x");
    rig_udp(rig, S, "y");
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig->now_ns = INT64_MAX;
    rig_wait(rig, 0);
    rig_udp(rig, P, "z");
    rig_wait(rig, 0);
    rig_udp(rig, S, "z");
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(unit_batches_do_what_single_frames_do)
{
    Rig *rig = rig_new(__func__, NULL);
    static uint8_t bytes[100][128];
    CompareFrame frames[100];
    int error = 0;

    for (int side = 0; side < 2; side++) {
        for (uint32_t i = 0; i < 100; i++) {
            Packet p = {.protocol = 17, .dport = (uint16_t)(5000 + i % 7), .payload = &i, .len = 4};

            frames[i] = (CompareFrame){
                .bytes = bytes[i], .len = (uint32_t)packet_build(&p, bytes[i]), .cookie = i + 1};
        }
        ck_assert_uint_eq(
            compare_submit_batch(rig->compare, (CompareSide)side, frames, 100, rig->now_ns, &error),
            100);
    }
    rig->next_cookie = 100;
    ck_assert(rig_all_released_in_order(rig));
    frames[50].len = FRAME_MAX_BYTES + 1;
    ck_assert_uint_eq(compare_submit_batch(rig->compare, P, frames, 100, rig->now_ns, &error), 50);
    ck_assert_int_eq(error, -EMSGSIZE);
    rig_free(rig);
}
END_TEST

START_TEST(unit_lent_frames_are_copied_only_if_they_stay)
{
    Rig *rig = rig_new(__func__, NULL);

    rig->lending = true;
    uint64_t first = rig_udp(rig, P, "one");
    uint64_t second = rig_udp(rig, P, "two");

    ck_assert_uint_eq(compare_lent(rig->compare, P), 2);
    rig_udp(rig, S, "one"); /* the rig compares where a frame leaves from with where it was lent */
    ck_assert(rig_was_released(rig, first));
    ck_assert_uint_eq(compare_lent(rig->compare, P), 1);
    ck_assert_uint_eq(compare_lent(rig->compare, S), 0);
    rig_udp(rig, S, "three");
    rig_settle(rig, P);
    ck_assert_uint_eq(compare_lent(rig->compare, S), 1);
    rig_udp(rig, S, "two"); /* against the copy */
    ck_assert(rig_was_released(rig, second));
    rig_settle(rig, S);
    rig_udp(rig, P, "three");
    rig_send_raw(rig, P, "", 0, 0); /* has no place it could be sent from */
    rig_send_raw(rig, S, "", 0, 0);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_stats(rig->compare)->held_bytes, 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_lent_frames_with_a_lowered_ack_leave_the_lender_alone)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    rig->lending = true;
    uint64_t held = rig_tcp(rig, P, ACK, 1001, 900, "data");
    g_autoptr(GBytes) lent = g_bytes_ref(g_ptr_array_index(rig->lent[P], 0));
    g_autofree void *before = g_memdup2(g_bytes_get_data(lent, NULL), g_bytes_get_size(lent));

    rig_tcp(rig, S, ACK, 1001, 700, "data");
    ck_assert_int_eq(rig_release_of(rig, held)->why, COMPARE_RELEASED_ACK_LOWERED);
    ck_assert_mem_eq(before, g_bytes_get_data(lent, NULL), g_bytes_get_size(lent));
    rig_free(rig);
}
END_TEST

START_TEST(life_a_commit_takes_lent_frames_along)
{
    Rig *rig = rig_new(__func__, NULL);

    rig->lending = true;
    rig_udp(rig, P, "primary");
    rig_udp(rig, S, "secondary");
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_lent(rig->compare, P) + compare_lent(rig->compare, S), 0);
    rig->epoch++; /* what is of an epoch to come is copied at once */
    rig_udp(rig, P, "early");
    ck_assert_uint_eq(compare_lent(rig->compare, P), 0);
    rig_settle(rig, P);
    rig_settle(rig, S);
    rig->epoch--;
    rig_checkpoint(rig);
    rig_udp(rig, S, "early");
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(err_lent_frames_meet_the_memory_bound_as_copies_do)
{
    static const uint8_t payload[1400];
    uint32_t taken[2] = {0, 0};

    for (int lending = 0; lending < 2; lending++) {
        Rig *rig = rig_new(__func__, NULL);
        Packet p = {.protocol = 17, .payload = payload, .len = sizeof(payload)};

        rig->lending = lending;
        while (rig_send(rig, P, &p), rig->last_result == 0)
            taken[lending]++;
        ck_assert_int_eq(rig->last_result, -ENOBUFS);
        ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_MEMORY);
        rig_settle(rig, P);
        rig_checkpoint(rig);
        ck_assert(rig_all_released_in_order(rig));
        rig_free(rig);
    }
    ck_assert_uint_eq(taken[0], taken[1]);
}
END_TEST

START_TEST(unit_idle_and_closed_flows_expire)
{
    Rig *rig = rig_new(__func__, NULL);

    for (int i = 0; i < 100; i++) {
        rig->conn.dport = (uint16_t)(5000 + i);
        rig_handshake(rig, 1000, 500);
        if (i < 50)
            continue;
        rig_tcp(rig, P, ACK, 1001, 500, "x");
        rig_tcp(rig, S, ACK, 1001, 500, "x");
    }
    ck_assert_uint_eq(compare_stats(rig->compare)->flows, 100);
    for (int s = 0; s < 62; s++)
        rig_wait(rig, 1000 * MS);
    ck_assert_uint_eq(compare_stats(rig->compare)->flows, 50);
    for (int s = 0; s < 602; s++)
        rig_wait(rig, 1000 * MS);
    ck_assert_uint_eq(compare_stats(rig->compare)->flows, 0);
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    rig_free(rig);
}
END_TEST

START_TEST(unit_a_flow_in_use_does_not_expire)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    for (uint32_t s = 0; s < 1000; s++) {
        rig_tcp(rig, P, ACK, 1001 + s, 500, "x");
        rig_tcp(rig, S, ACK, 1001 + s, 500, "x");
        rig_wait(rig, 1000 * MS);
    }
    ck_assert_uint_eq(compare_stats(rig->compare)->flows_created, 1);
    rig_free(rig);
}
END_TEST

static Rig *
rig_small(const char *name)
{
    CompareConfig config;

    compare_config_init(&config);
    config.memory_max_bytes = 256 * 1024;
    config.flows_max = 64;
    return rig_new(name, &config);
}

START_TEST(sec_flow_table_full_of_held_frames)
{
    Rig *rig = rig_small(__func__);
    uint64_t sent = 0;

    for (int i = 0; i < 1000; i++) {
        rig->conn.dport = (uint16_t)(1000 + i);
        rig_udp(rig, P, "x");
        sent += rig->last_result == 0;
    }
    ck_assert_int_eq(rig->last_result, -ENOBUFS);
    ck_assert_uint_eq(sent, 64);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_FLOWS);
    rig_checkpoint(rig);
    rig_udp(rig, P, "x");
    ck_assert_int_eq(rig->last_result, 0);
    rig_free(rig);
}
END_TEST

START_TEST(sec_syn_flood_is_evicted_before_live_flows)
{
    Rig *rig = rig_small(__func__);

    rig_handshake(rig, 1000, 500);
    rig_tcp(rig, P, ACK, 1001, 500, "live");
    rig_tcp(rig, S, ACK, 1001, 500, "live");
    Packet live = rig->conn;

    rig_wait(rig, 70000 * MS); /* it moves to the list of established flows */
    rig->conn = live;
    rig_tcp(rig, P, ACK, 1005, 500, "again");
    rig_tcp(rig, S, ACK, 1005, 500, "again");
    uint64_t created = compare_stats(rig->compare)->flows_created;

    for (uint32_t i = 0; i < 10000; i++) {
        rig->conn.dst = 0x0b000000 + i;
        rig_tcp(rig, P, SYN | ACK, i * 77, 500, NULL);
        rig_tcp(rig, S, SYN | ACK, i * 99, 500, NULL);
        ck_assert_int_eq(rig->last_result, 0);
    }
    ck_assert_uint_le(compare_stats(rig->compare)->flows, 64);
    ck_assert_uint_eq(rig_n_divergences(rig), 0);
    ck_assert(rig_all_released_in_order(rig));
    rig->conn = live; /* still known: bytes of the window pass, others do not */
    rig_tcp(rig, P, ACK, 1005, 500, "again");
    ck_assert(rig_all_released_in_order(rig));
    ck_assert_uint_eq(compare_stats(rig->compare)->flows_created, created + 10000);
    rig_free(rig);
}
END_TEST

START_TEST(sec_hash_flooding_needs_the_key)
{
    /* Inputs chosen to collide under one key spread under another: the longest probe sequence
     * shows in time. Here: the hash of 4,096 flows that differ in few bits has few collisions. */
    static uint8_t seen[1 << 16];
    HashKey key = {{0x0123456789abcdef, 42}};
    int collisions = 0;

    for (uint64_t i = 0; i < 4096; i++) {
        uint64_t words[3] = {i << 32, i << 48, 0};
        uint16_t slot = (uint16_t)keyed_hash(&key, words, 3);

        collisions += seen[slot];
        seen[slot] = 1;
    }
    ck_assert_int_lt(collisions, 200); /* 4096^2 / 2 / 65536 = 128 expected */
    HashKey other = {{0x0123456789abcdef, 43}};
    uint64_t words[3] = {1, 2, 3};
    ck_assert(keyed_hash(&key, words, 3) != keyed_hash(&other, words, 3));
}
END_TEST

START_TEST(sec_backlog_of_syns_is_bounded)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_tcp(rig, P, ACK, 1, 1, "held");
    for (uint32_t i = 0; i < 1000; i++)
        rig_tcp(rig, P, SYN, 5000 + i * 1000, 0, NULL);
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_REORDER);
    ck_assert_uint_eq(rig_n_divergences(rig), 1);
    rig_checkpoint(rig);
    ck_assert(rig_all_released_in_order(rig));
    rig_free(rig);
}
END_TEST

START_TEST(sec_descending_sequences_cost_a_bounded_search)
{
    Rig *rig = rig_new(__func__, NULL);

    rig_handshake(rig, 1000, 500);
    for (uint32_t i = 0; i < 20000; i++)
        rig_tcp(rig, S, ACK, 90001 - 2 * i, 500, "x");
    ck_assert_int_eq(rig_last_rule(rig), COMPARE_RULE_REORDER);
    rig_checkpoint(rig);
    ck_assert_uint_eq(compare_stats(rig->compare)->held_bytes, 0);
    rig_free(rig);
}
END_TEST

START_TEST(err_frame_too_long)
{
    Rig *rig = rig_new(__func__, NULL);
    g_autofree uint8_t *bytes = g_malloc0(FRAME_MAX_BYTES + 1);

    rig_send_raw(rig, P, bytes, FRAME_MAX_BYTES + 1, 0);
    ck_assert_int_eq(rig->last_result, -EMSGSIZE);
    rig_send_raw(rig, P, bytes, FRAME_MAX_BYTES, 0);
    ck_assert_int_eq(rig->last_result, 0);
    rig_free(rig);
}
END_TEST

CHECK_MAIN("compare-engine", err_configuration_out_of_range, unit_names_and_policies,
           life_commit_releases_in_arrival_order_and_forgets_the_secondary,
           life_the_stream_goes_on_after_a_commit,
           life_frames_of_the_next_epoch_wait_for_its_commit,
           life_early_frames_without_room_keep_their_place, life_late_frames_of_an_old_epoch,
           life_the_secondarys_ack_rolls_back_with_its_state,
           life_nothing_times_out_during_a_checkpoint, life_flush_releases_everything,
           unit_divergence_is_reported_once_per_flow_and_epoch, unit_frames_of_either_side_time_out,
           unit_time_going_backwards_or_jumping, unit_batches_do_what_single_frames_do,
           unit_lent_frames_are_copied_only_if_they_stay,
           unit_lent_frames_with_a_lowered_ack_leave_the_lender_alone,
           life_a_commit_takes_lent_frames_along,
           err_lent_frames_meet_the_memory_bound_as_copies_do, unit_idle_and_closed_flows_expire,
           unit_a_flow_in_use_does_not_expire, sec_flow_table_full_of_held_frames,
           sec_syn_flood_is_evicted_before_live_flows, sec_hash_flooding_needs_the_key,
           sec_backlog_of_syns_is_bounded, sec_descending_sequences_cost_a_bounded_search,
           err_frame_too_long)
