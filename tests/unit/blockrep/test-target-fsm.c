/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-target-fsm.c - every mode, event and combination of facts: what may never happen */
#include "target-fsm.h"

#include "check-main.h"

#include <glib.h>

typedef struct Case {
    TargetMode mode, next;
    TargetEvent event;
    TargetFacts facts;
    const char *reason;
} Case;

/* Generations and epochs older than, equal to and newer than the disk's. */
static void
for_all(void (*check)(const Case *))
{
    for (int mode = 0; mode < TARGET_MODE_COUNT; mode++) {
        for (int event = 0; event < TARGET_EVENT_COUNT; event++) {
            for (unsigned i = 0; i < 3 * 3 * 2; i++) {
                Case c = {.mode = (TargetMode)mode,
                          .next = TARGET_MODE_COUNT,
                          .event = (TargetEvent)event,
                          .facts = {.generation = 5,
                                    .asked_generation = 4 + i % 3,
                                    .epoch = 70,
                                    .asked_epoch = 69 + i / 3 % 3,
                                    .stale = i / 9}};

                c.reason = target_fsm_step(c.mode, c.event, &c.facts, &c.next);
                check(&c);
            }
        }
    }
}

static void
check_whole(const Case *c)
{
    if (c->reason)
        ck_assert_msg(c->next == TARGET_MODE_COUNT, "%s", c->reason);
    else
        ck_assert_int_lt(c->next, TARGET_MODE_COUNT);
    ck_assert_ptr_nonnull(target_mode_name(c->mode));
}

START_TEST(unit_every_step_is_defined)
{
    for_all(check_whole);
}
END_TEST

/* A survivor's disk is overwritten only by a newer generation, its overlays never. */
static void
check_truth(const Case *c)
{
    if (c->reason || (c->next != TARGET_SYNCING && c->next != TARGET_MIRRORING))
        return;
    ck_assert(c->mode != TARGET_COMMITTING);
    if (c->mode == TARGET_LOCAL)
        ck_assert(c->event == TARGET_EVENT_SYNC && c->facts.asked_generation > c->facts.generation);
}

START_TEST(sec_the_truth_is_not_overwritten)
{
    for_all(check_truth);
}
END_TEST

static void
check_lost(const Case *c)
{
    if (c->reason || !c->facts.stale)
        return;
    ck_assert(c->event != TARGET_EVENT_CHECKPOINT && c->event != TARGET_EVENT_BARRIER &&
              c->event != TARGET_EVENT_MIRROR);
}

START_TEST(sec_a_lost_write_ends_checkpoints)
{
    for_all(check_lost);
}
END_TEST

static void
check_local(const Case *c)
{
    if (!c->reason && c->next == TARGET_LOCAL && c->mode != TARGET_LOCAL)
        ck_assert(c->mode == TARGET_COMMITTING && c->event == TARGET_EVENT_COMMITTED);
    if (!c->reason && c->next == TARGET_COMMITTING && c->mode != TARGET_COMMITTING)
        ck_assert(c->mode == TARGET_MIRRORING && c->facts.asked_generation > c->facts.generation);
}

START_TEST(sec_only_a_failover_makes_the_truth)
{
    for_all(check_local);
}
END_TEST

/* A survivor can always be made from a mirror, whatever happened to mirrored writes. */
START_TEST(unit_failover_with_a_lost_write)
{
    TargetFacts facts = {.generation = 1, .asked_generation = 2, .stale = true};
    TargetMode next;

    ck_assert_ptr_null(target_fsm_step(TARGET_MIRRORING, TARGET_EVENT_FAILOVER, &facts, &next));
    ck_assert_int_eq(next, TARGET_COMMITTING);
}
END_TEST

START_TEST(unit_orders_may_be_repeated)
{
    TargetFacts facts = {.generation = 2, .asked_generation = 2, .epoch = 9, .asked_epoch = 9};
    TargetMode next;

    ck_assert_ptr_null(target_fsm_step(TARGET_COMMITTING, TARGET_EVENT_FAILOVER, &facts, &next));
    ck_assert_int_eq(next, TARGET_COMMITTING);
    ck_assert_ptr_null(target_fsm_step(TARGET_LOCAL, TARGET_EVENT_FAILOVER, &facts, &next));
    ck_assert_int_eq(next, TARGET_LOCAL);
    ck_assert_ptr_null(target_fsm_step(TARGET_MIRRORING, TARGET_EVENT_CHECKPOINT, &facts, &next));
    ck_assert_int_eq(next, TARGET_MIRRORING);
    ck_assert_ptr_null(target_fsm_step(TARGET_SYNCING, TARGET_EVENT_SYNC, &facts, &next));
    ck_assert_int_eq(next, TARGET_SYNCING);
}
END_TEST

CHECK_MAIN("target-fsm", unit_every_step_is_defined, sec_the_truth_is_not_overwritten,
           sec_a_lost_write_ends_checkpoints, sec_only_a_failover_makes_the_truth,
           unit_failover_with_a_lost_write, unit_orders_may_be_repeated)
