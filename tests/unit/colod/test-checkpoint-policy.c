/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-checkpoint-policy.c - spacing, interval, rank of causes, dense time */
#include "checkpoint-policy.h"

#include "check-main.h"
#include "clock.h"

#define MS NS_PER_MS
#define START (1000 * MS)

static const CheckpointPolicyConfig lockstep = {
    .interval_ns = 10000 * MS,
    .spacing_ns = 10 * MS,
    .burst_ns = 800 * MS,
    .dense_interval_ns = 50 * MS,
    .calm_first_ns = 5000 * MS,
    .calm_max_ns = 60000 * MS,
};

static CheckpointPolicy
policy_running(void)
{
    CheckpointPolicy policy = {.config = lockstep};

    checkpoint_policy_epoch(&policy, START);
    return policy;
}

START_TEST(unit_interval)
{
    CheckpointPolicy policy = {.config = lockstep};

    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), INT64_MAX);
    checkpoint_policy_epoch(&policy, START);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), START + 10000 * MS);
    ck_assert_int_eq(checkpoint_policy_start(&policy, START + 10000 * MS), CAUSE_INTERVAL);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), INT64_MAX);
    checkpoint_policy_epoch(&policy, START + 10010 * MS);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), START + 20010 * MS);
}
END_TEST

START_TEST(unit_spacing)
{
    CheckpointPolicy policy = policy_running();

    checkpoint_policy_ask(&policy, CAUSE_DIVERGENCE);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), START + 10 * MS);
    ck_assert_int_eq(checkpoint_policy_start(&policy, START + 10 * MS), CAUSE_DIVERGENCE);
    /* Asked for while one is under way: the next one, not this. */
    checkpoint_policy_ask(&policy, CAUSE_TIMEOUT);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), INT64_MAX);
    checkpoint_policy_epoch(&policy, START + 20 * MS);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), START + 30 * MS);
}
END_TEST

START_TEST(unit_operator_does_not_wait)
{
    CheckpointPolicy policy = policy_running();

    checkpoint_policy_ask(&policy, CAUSE_OPERATOR);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), 0);
}
END_TEST

START_TEST(unit_rank)
{
    for (int first = 0; first < N_CAUSES; first++) {
        for (int second = 0; second < N_CAUSES; second++) {
            CheckpointPolicy policy = policy_running();

            checkpoint_policy_ask(&policy, (CheckpointCause)first);
            checkpoint_policy_ask(&policy, (CheckpointCause)second);
            ck_assert_int_eq(checkpoint_policy_start(&policy, START),
                             first < second ? first : second);
            /* And only once. */
            checkpoint_policy_epoch(&policy, START);
            ck_assert_int_eq(checkpoint_policy_start(&policy, START), CAUSE_INTERVAL);
        }
    }
}
END_TEST

START_TEST(unit_names)
{
    for (int cause = 0; cause < N_CAUSES; cause++)
        for (int other = 0; other < cause; other++)
            ck_assert_str_ne(checkpoint_cause_name((CheckpointCause)cause),
                             checkpoint_cause_name((CheckpointCause)other));
}
END_TEST

/* @n checkpoints because of differences, @every_ms apart. Return: the time of the last. */
static int64_t
differ(CheckpointPolicy *policy, int64_t from_ns, unsigned n, int64_t every_ms)
{
    int64_t now_ns = from_ns;

    for (unsigned i = 0; i < n; i++) {
        now_ns = from_ns + (int64_t)i * every_ms * MS;
        checkpoint_policy_ask(policy, i % 2 ? CAUSE_TIMEOUT : CAUSE_DIVERGENCE);
        (void)checkpoint_policy_start(policy, now_ns);
        checkpoint_policy_epoch(policy, now_ns);
    }
    return now_ns;
}

START_TEST(unit_dense_after_a_burst)
{
    CheckpointPolicy policy = policy_running();
    int64_t now_ns = differ(&policy, START, POLICY_BURST - 1, 100);

    ck_assert(!checkpoint_policy_is_dense(&policy, now_ns));
    now_ns = differ(&policy, now_ns + 100 * MS, 1, 0);
    ck_assert(checkpoint_policy_is_dense(&policy, now_ns));
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), now_ns + 50 * MS);
    /* It ends by itself. */
    checkpoint_policy_epoch(&policy, now_ns + 5001 * MS);
    ck_assert(!checkpoint_policy_is_dense(&policy, now_ns + 5001 * MS));
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), now_ns + 15001 * MS);
}
END_TEST

START_TEST(unit_not_dense_when_rare)
{
    CheckpointPolicy policy = policy_running();
    int64_t now_ns = differ(&policy, START, 10 * POLICY_BURST, 120);

    ck_assert(!checkpoint_policy_is_dense(&policy, now_ns));
}
END_TEST

START_TEST(unit_dense_for_longer_each_time)
{
    CheckpointPolicy policy = policy_running();
    int64_t now_ns = START, expected_ns = 5000 * MS;

    for (unsigned i = 0; i < 6; i++) {
        now_ns = differ(&policy, now_ns, POLICY_BURST, 20);
        ck_assert_int_eq(policy.dense_until_ns - now_ns, expected_ns);
        now_ns = policy.dense_until_ns + 100 * MS;
        expected_ns = expected_ns * 2 < 60000 * MS ? expected_ns * 2 : 60000 * MS;
    }
    /* After a long calm it starts anew. */
    now_ns = differ(&policy, now_ns + 61000 * MS, POLICY_BURST, 20);
    ck_assert_int_eq(policy.dense_until_ns - now_ns, 5000 * MS);
}
END_TEST

START_TEST(unit_buffered_is_never_dense)
{
    CheckpointPolicy policy = {.config = {.interval_ns = 50 * MS}};

    checkpoint_policy_epoch(&policy, START);
    (void)differ(&policy, START, 3 * POLICY_BURST, 1);
    ck_assert(!checkpoint_policy_is_dense(&policy, START + 100 * MS));
}
END_TEST

START_TEST(life_reset)
{
    CheckpointPolicy policy = policy_running();

    checkpoint_policy_ask(&policy, CAUSE_LOST);
    (void)checkpoint_policy_start(&policy, START);
    checkpoint_policy_ask(&policy, CAUSE_LOST);
    checkpoint_policy_reset(&policy);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), INT64_MAX);
    checkpoint_policy_epoch(&policy, START);
    ck_assert_int_eq(checkpoint_policy_due_ns(&policy), START + 10000 * MS);
}
END_TEST

/* As an administrator may, forwards and back, while the guest stands. */
START_TEST(unit_a_clock_that_is_set_makes_no_long_pause)
{
    const int64_t hour_us = 3600LL * 1000000;

    ck_assert_int_eq(checkpoint_pause_us(8000, 9500), 8000);
    ck_assert_int_eq(checkpoint_pause_us(8000, 700), 8000); /* we heard late of the STOP */
    ck_assert_int_eq(checkpoint_pause_us(8000 + 25 * hour_us, 9500), 9500);
    ck_assert_int_eq(checkpoint_pause_us(8000 - hour_us, 9500), 9500);
    ck_assert_int_eq(checkpoint_pause_us(0, 5000000), 5000000); /* by five seconds, back */
}
END_TEST

CHECK_MAIN("checkpoint-policy", unit_a_clock_that_is_set_makes_no_long_pause, unit_interval,
           unit_spacing, unit_operator_does_not_wait, unit_rank, unit_names,
           unit_dense_after_a_burst, unit_not_dense_when_rare, unit_dense_for_longer_each_time,
           unit_buffered_is_never_dense, life_reset)
