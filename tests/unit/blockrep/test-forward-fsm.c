/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-forward-fsm.c - every mode with every event and all facts */
#include "forward-fsm.h"

#include "check-main.h"

#include <string.h>

static const ForwardFacts whole = {
    .generation = 4, .asked_generation = 4, .up_to_date = true, .holding = true, .drained = true};

static ForwardMode
step(ForwardMode mode, ForwardEvent event, const ForwardFacts *facts)
{
    ForwardMode next = FORWARD_MODE_COUNT;
    const char *reason = forward_fsm_step(mode, event, facts, &next);

    ck_assert_msg(reason == NULL, "%s", reason);
    return next;
}

static void
refuse(ForwardMode mode, ForwardEvent event, const ForwardFacts *facts, const char *part)
{
    ForwardMode next = FORWARD_MODE_COUNT;
    const char *reason = forward_fsm_step(mode, event, facts, &next);

    ck_assert_ptr_nonnull(reason);
    ck_assert_msg(strstr(reason, part) != NULL, "%s", reason);
    ck_assert_int_eq(next, FORWARD_MODE_COUNT);
}

START_TEST(unit_a_life)
{
    ck_assert_int_eq(step(FORWARD_IDLE, FORWARD_EVENT_ALONE, &whole), FORWARD_ALONE);
    ck_assert_int_eq(step(FORWARD_ALONE, FORWARD_EVENT_CONNECT, &whole), FORWARD_SYNCING);
    ck_assert_int_eq(step(FORWARD_SYNCING, FORWARD_EVENT_FINISH, &whole), FORWARD_SYNCING);
    ck_assert_int_eq(step(FORWARD_SYNCING, FORWARD_EVENT_FINISHED, &whole), FORWARD_MIRRORING);
    ck_assert_int_eq(step(FORWARD_MIRRORING, FORWARD_EVENT_FINISH, &whole), FORWARD_MIRRORING);
    ck_assert_int_eq(step(FORWARD_MIRRORING, FORWARD_EVENT_RELEASE, &whole), FORWARD_MIRRORING);
    ck_assert_int_eq(step(FORWARD_MIRRORING, FORWARD_EVENT_BARRIER, &whole), FORWARD_MIRRORING);
    ck_assert_int_eq(step(FORWARD_MIRRORING, FORWARD_EVENT_LOST, &whole), FORWARD_ALONE);
    ck_assert_int_eq(step(FORWARD_SYNCING, FORWARD_EVENT_LOST, &whole), FORWARD_ALONE);
    ck_assert_int_eq(step(FORWARD_MIRRORING, FORWARD_EVENT_ALONE, &whole), FORWARD_ALONE);
}
END_TEST

START_TEST(err_disks_that_are_not_the_truth)
{
    ForwardFacts facts = whole;

    facts.asked_generation = 3;
    refuse(FORWARD_IDLE, FORWARD_EVENT_ALONE, &facts, "older");
    refuse(FORWARD_ALONE, FORWARD_EVENT_CONNECT, &facts, "older");
    facts = whole;
    facts.up_to_date = false;
    refuse(FORWARD_IDLE, FORWARD_EVENT_ALONE, &facts, "not UpToDate");
    facts.first = true;
    refuse(FORWARD_IDLE, FORWARD_EVENT_ALONE, &facts, "not UpToDate");
    facts.committing = true;
    refuse(FORWARD_IDLE, FORWARD_EVENT_ALONE, &facts, "commit");
    facts = (ForwardFacts){.asked_generation = 1, .never_used = true};
    refuse(FORWARD_IDLE, FORWARD_EVENT_ALONE, &facts, "never replicated");
    facts.first = true;
    ck_assert_int_eq(step(FORWARD_IDLE, FORWARD_EVENT_ALONE, &facts), FORWARD_ALONE);
}
END_TEST

START_TEST(err_orders_at_the_wrong_time)
{
    ForwardFacts facts = whole;

    refuse(FORWARD_IDLE, FORWARD_EVENT_CONNECT, &facts, "alone comes first");
    refuse(FORWARD_SYNCING, FORWARD_EVENT_CONNECT, &facts, "already");
    refuse(FORWARD_MIRRORING, FORWARD_EVENT_CONNECT, &facts, "already");
    refuse(FORWARD_ALONE, FORWARD_EVENT_FINISH, &facts, "not being synced");
    refuse(FORWARD_SYNCING, FORWARD_EVENT_BARRIER, &facts, "not being mirrored");
    refuse(FORWARD_ALONE, FORWARD_EVENT_RELEASE, &facts, "not being mirrored");
    refuse(FORWARD_IDLE, FORWARD_EVENT_VERIFY, &facts, "not being mirrored");
    refuse(FORWARD_ALONE, FORWARD_EVENT_LOST, &facts, "no peer");
    facts.drained = false;
    refuse(FORWARD_MIRRORING, FORWARD_EVENT_RELEASE, &facts, "not through");
    refuse(FORWARD_SYNCING, FORWARD_EVENT_FINISHED, &facts, "not at its end");
    facts.holding = false;
    refuse(FORWARD_MIRRORING, FORWARD_EVENT_FINISH, &facts, "not being synced");
}
END_TEST

/* Whatever comes: a mirror comes of a sync that was drained and held, a peer of a disk that was
 * alone, and nobody is idle again. */
static void
check_one(ForwardMode mode, ForwardEvent event, const ForwardFacts *facts)
{
    ForwardMode next = FORWARD_MODE_COUNT;

    if (forward_fsm_step(mode, event, facts, &next)) {
        ck_assert_int_eq(next, FORWARD_MODE_COUNT);
        return;
    }
    ck_assert_int_lt(next, FORWARD_MODE_COUNT);
    ck_assert(next != FORWARD_IDLE);
    if (next == FORWARD_MIRRORING && mode != FORWARD_MIRRORING)
        ck_assert(mode == FORWARD_SYNCING && facts->holding && facts->drained);
    if (next == FORWARD_SYNCING && mode != FORWARD_SYNCING)
        ck_assert(mode == FORWARD_ALONE && facts->asked_generation >= facts->generation);
    if (mode == FORWARD_IDLE)
        ck_assert(facts->up_to_date || (facts->first && facts->never_used));
    if (event == FORWARD_EVENT_ALONE)
        ck_assert(facts->asked_generation >= facts->generation && !facts->committing);
}

START_TEST(unit_every_mode_and_event)
{
    for (int mode = 0; mode < FORWARD_MODE_COUNT; mode++) {
        for (int event = 0; event < FORWARD_EVENT_COUNT; event++) {
            for (unsigned bits = 0; bits < 1 << 7; bits++) {
                ForwardFacts facts = {
                    .generation = 2,
                    .asked_generation = 1 + bits % 2 * 2,
                    .first = bits & 2,
                    .never_used = bits & 4,
                    .up_to_date = bits & 8,
                    .committing = bits & 16,
                    .holding = bits & 32,
                    .drained = bits & 64,
                };

                check_one((ForwardMode)mode, (ForwardEvent)event, &facts);
            }
        }
    }
}
END_TEST

CHECK_MAIN("forward-fsm", unit_a_life, err_disks_that_are_not_the_truth,
           err_orders_at_the_wrong_time, unit_every_mode_and_event)
