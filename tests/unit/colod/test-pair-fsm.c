/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-pair-fsm.c - the rule table alone: every state x event (two hosts: test-pair-world.c) */
#include "pair-fsm.h"

#include "check-main.h"

static PairFacts
facts_from_bits(guint bits)
{
    const guint mixed = (guint)(bits * UINT32_C(2654435761)) >> 20; /* no bits are left for these */

    return (PairFacts){
        .generation = 5,
        .peer_generation = 4 + (bits & 3) % 3,
        .role_primary = !!(bits & 4),
        .protecting = !!(bits & 8),
        .vm_alive = !!(bits & 16),
        .stale = !!(bits & 32),
        .peer_up = !!(bits & 64),
        .peer_gave_up = !!(bits & 128),
        .promotable = !!(bits & 256),
        .wants_protection = !!(bits & 512),
        .may_prepare = !!(bits & 512),
        .off_wanted = !!(bits & 1024),
        .name_first = !!(bits & 2048),
        .peer_state = (PairState)((bits >> 12) % PAIR_N_STATES),
        .claim_pending = !!(mixed & 1),
        .fresh = !!(mixed & 2),
        .initial_primary = !!(mixed & 4),
        .peer_initial_primary = !!(mixed & 8),
        .peer_role_primary = !!(mixed & 16),
        .vm_stuck = !!(mixed & 32),
    };
}

static gboolean
has_action(const PairStep *step, PairAction action)
{
    for (unsigned i = 0; i < PAIR_MAX_ACTIONS && step->actions[i] != PAIR_ACTION_NONE; i++) {
        if (step->actions[i] == action)
            return TRUE;
    }
    return FALSE;
}

/* ck_assert() writes a mark each time, and this is asked ten million times. */
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ck_abort_msg("%s on %s -> %s: %s", pair_state_name(state), pair_event_name(event),     \
                         pair_state_name(step->next), #condition);                                 \
    } while (0)

/* What must hold for each single step, whatever the facts. */
static void
assert_step_is_safe(PairState state, PairEvent event, const PairFacts *facts, const PairStep *step)
{
    MUST(step->next < PAIR_N_STATES);
    if (step->why == NULL) {
        MUST(step->next == state);
        MUST(step->actions[0] == PAIR_ACTION_NONE);
    }
    if (has_action(step, PAIR_ACTION_OPEN_OUTPUT)) {
        MUST(step->next == PAIR_ALONE);
        MUST(event == PAIR_EVENT_VM_READY || event == PAIR_EVENT_VM_RUNNING);
        MUST(state == PAIR_STARTING || state == PAIR_ADOPTING || state == PAIR_RESUMING ||
             state == PAIR_TAKING_OVER);
    }
    if (step->next == PAIR_TAKING_OVER && state != PAIR_TAKING_OVER) {
        MUST(event == PAIR_EVENT_CLAIM_GRANTED);
        MUST(state == PAIR_CLAIM_SECONDARY);
    }
    if (step->next == PAIR_RESUMING && state != PAIR_RESUMING)
        MUST(event == PAIR_EVENT_CLAIM_GRANTED || state == PAIR_MIGRATING);
    /* In PROVING it was when that began. */
    if (step->next == PAIR_CLAIM_SECONDARY && state != PAIR_CLAIM_SECONDARY &&
        state != PAIR_PROVING)
        MUST(facts->promotable);
    if (step->next == PAIR_PROVING && state != PAIR_PROVING)
        MUST(facts->promotable && facts->peer_up && facts->peer_state == PAIR_HANDING_OVER);
    /* The only copy that is known to be whole, as long as the other one is not known to run. */
    if (state == PAIR_HANDING_OVER && has_action(step, PAIR_ACTION_KILL_VM))
        MUST(event == PAIR_EVENT_VM_STUCK || event == PAIR_EVENT_OP_STOP ||
             facts->peer_generation > facts->generation);
    if (step->next == PAIR_STARTING && state != PAIR_STARTING)
        MUST(event == PAIR_EVENT_CLAIM_GRANTED);
    if (has_action(step, PAIR_ACTION_GRANT))
        MUST(facts->peer_gave_up || event == PAIR_EVENT_PEER_CONSENT);
}

START_TEST(unit_every_state_and_event_is_safe)
{
    for (unsigned state = 0; state < PAIR_N_STATES; state++) {
        for (unsigned event = 0; event < PAIR_N_EVENTS; event++) {
            /* A stride prime to all the fields visits each value of each many times. */
            for (guint bits = 0; bits < (PAIR_N_STATES << 12); bits += 7) {
                PairFacts facts = facts_from_bits(bits);
                PairStep step = pair_fsm_step((PairState)state, (PairEvent)event, &facts);

                assert_step_is_safe((PairState)state, (PairEvent)event, &facts, &step);
            }
        }
    }
}
END_TEST

START_TEST(unit_vm_death_is_handled_wherever_there_is_a_vm)
{
    PairFacts facts = {.generation = 1};

    for (unsigned state = 0; state < PAIR_N_STATES; state++) {
        if (!pair_state_has_vm((PairState)state))
            continue;

        PairStep step = pair_fsm_step((PairState)state, PAIR_EVENT_VM_DEAD, &facts);

        ck_assert_msg(step.why != NULL, "VM death ignored in %s",
                      pair_state_name((PairState)state));
        ck_assert(!pair_state_has_vm(step.next));
    }
}
END_TEST

START_TEST(unit_states_with_deadline_handle_their_timeout)
{
    PairFacts facts = {.generation = 1};

    for (unsigned state = 0; state < PAIR_N_STATES; state++) {
        if (pair_state_timeout_ms((PairState)state) == 0)
            continue;

        PairStep step = pair_fsm_step((PairState)state, PAIR_EVENT_TIMEOUT, &facts);

        ck_assert_msg(step.why != NULL, "no rule for the timeout of %s",
                      pair_state_name((PairState)state));
    }
}
END_TEST

/* Where nobody else has the guest, QEMU is not killed for standing still. */
START_TEST(unit_a_stuck_last_copy_is_kept)
{
    static const PairState alone[] = {PAIR_ALONE,    PAIR_PREPARING,   PAIR_MIGRATING,
                                      PAIR_RESUMING, PAIR_TAKING_OVER, PAIR_ADOPTING};
    PairFacts facts = {.generation = 1,
                       .peer_generation = 1,
                       .peer_up = TRUE,
                       .peer_state = PAIR_IDLE,
                       .wants_protection = TRUE,
                       .may_prepare = TRUE,
                       .vm_stuck = TRUE};

    for (gsize i = 0; i < G_N_ELEMENTS(alone); i++) {
        PairStep step = pair_fsm_step(alone[i], PAIR_EVENT_VM_STUCK, &facts);

        ck_assert(!has_action(&step, PAIR_ACTION_KILL_VM));
        ck_assert(pair_state_has_vm(step.next) && step.next != PAIR_STOPPING);
        ck_assert(i > 2 || step.why != NULL);
    }
    ck_assert_int_eq(pair_fsm_step(PAIR_MIGRATING, PAIR_EVENT_VM_STUCK, &facts).next,
                     PAIR_RESUMING);
    /* It is not protected before it answers again. */
    ck_assert_ptr_null(pair_fsm_step(PAIR_ALONE, PAIR_EVENT_RETRY, &facts).why);
    facts.vm_stuck = FALSE;
    ck_assert_int_eq(pair_fsm_step(PAIR_ALONE, PAIR_EVENT_RETRY, &facts).next, PAIR_PREPARING);
    ck_assert_uint_ge(pair_state_timeout_ms(PAIR_RESUMING), 60000);
    ck_assert_uint_ge(pair_state_timeout_ms(PAIR_TAKING_OVER), 60000);
    ck_assert_uint_ge(pair_state_timeout_ms(PAIR_ADOPTING), 60000);
}
END_TEST

START_TEST(unit_a_claim_under_way_is_not_thrown_away)
{
    PairFacts facts = {.generation = 5,
                       .peer_generation = 5,
                       .peer_up = TRUE,
                       .claim_pending = TRUE,
                       .peer_state = PAIR_CLAIM_SECONDARY};

    ck_assert_ptr_null(pair_fsm_step(PAIR_CLAIM_SECONDARY, PAIR_EVENT_PEER_DISCARD, &facts).why);
    ck_assert_ptr_null(pair_fsm_step(PAIR_ADOPT_CLAIM, PAIR_EVENT_PEER_UP, &facts).why);
    facts.claim_pending = FALSE;
    ck_assert_int_eq(pair_fsm_step(PAIR_CLAIM_SECONDARY, PAIR_EVENT_PEER_DISCARD, &facts).next,
                     PAIR_STOPPING);
    ck_assert_int_eq(pair_fsm_step(PAIR_ADOPT_CLAIM, PAIR_EVENT_PEER_UP, &facts).next,
                     PAIR_STOPPING);
}
END_TEST

START_TEST(unit_names_round_trip)
{
    for (unsigned state = 0; state < PAIR_N_STATES; state++)
        ck_assert_int_eq(pair_state_from_name(pair_state_name((PairState)state)), state);
    ck_assert_int_eq(pair_state_from_name("no such state"), PAIR_N_STATES);
    ck_assert_int_eq(pair_state_from_name(NULL), PAIR_N_STATES);
}
END_TEST

CHECK_MAIN("pair-fsm", unit_every_state_and_event_is_safe,
           unit_vm_death_is_handled_wherever_there_is_a_vm,
           unit_states_with_deadline_handle_their_timeout, unit_names_round_trip,
           unit_a_claim_under_way_is_not_thrown_away, unit_a_stuck_last_copy_is_kept)
