/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pair-fsm.c - the state machine of one host of a pair: pure, one rule table
 *
 * Theory of operation
 *
 * Goal: at any time at most one host lets its guest's output out, and whatever that guest knows
 * covers all that clients have seen. Three rules carry this:
 *
 *   1. Output is opened in three places only: after START_VM (nobody else has a VM: a claim was
 *      won), after ADOPT_VM of a VM that never armed a secondary, and after the LEAVE_COLO that
 *      follows CLAIM_GRANTED. (A planned failover does LEAVE_COLO before that too, to see whether
 *      the VM runs on, while the primary holds its output.)
 *   2. Two hosts without a VM agree by proposal and consent if there is no arbiter. From ARM on,
 * either side needs the claim for generation g+1 before it goes on alone. The claim is granted by
 * the arbiter, by an operator, or by the peer giving its VM up for good (VM_DEAD, saved before it
 * is sent).
 *   3. A host that hears of a newer generation stops its VM.
 *   4. A VM is started only from disks that are UpToDate, and of two such hosts that see each other
 *      from the newer ones: disks outlive what hosts remember of their claims.
 *
 * The table is searched from the top; the first rule whose state, event and guard fit is the step.
 * Rules of several states stand first: fencing must win over everything else.
 */
#include "pair-fsm.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

typedef gboolean (*Guard)(const PairFacts *facts);

typedef struct Rule {
    guint64 states; /* bit per PairState */
    PairEvent event;
    Guard guard; /* NULL: always */
    const char *guard_text;
    PairState next; /* PAIR_N_STATES: stay */
    PairAction actions[PAIR_MAX_ACTIONS];
    const char *why;
} Rule;

#define IN(state) (UINT64_C(1) << PAIR_##state)
static_assert(PAIR_N_STATES < 64, "states are kept as bits");

#define STAY PAIR_N_STATES
#define GUARD(name) guard_##name, #name

#define PRIMARY_STATES                                                                             \
    (IN(ALONE) | IN(PREPARING) | IN(SYNCING) | IN(MIGRATING) | IN(PROTECTED) | IN(HANDING_OVER) |  \
     IN(JUDGING) | IN(CLAIM_PRIMARY) | IN(RESUMING) | IN(STARTING) | IN(ADOPTING) |                \
     IN(ADOPT_CLAIM))
#define SECONDARY_STATES                                                                           \
    (IN(INCOMING_START) | IN(INCOMING) | IN(STANDBY) | IN(PROVING) | IN(CLAIM_SECONDARY))
#define ARMED_STATES                                                                               \
    (IN(PROTECTED) | IN(HANDING_OVER) | IN(JUDGING) | IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) |        \
     IN(STANDBY) | IN(PROVING) | IN(CLAIM_SECONDARY))

static gboolean
peer_has_vm(const PairFacts *f)
{
    return f->peer_up && pair_state_has_vm(f->peer_state);
}

static gboolean
guard_always(const PairFacts *f G_GNUC_UNUSED)
{
    return TRUE;
}

static gboolean
guard_peer_newer(const PairFacts *f)
{
    return f->peer_up && f->peer_generation > f->generation;
}

/* Only operators can bring this about (`colo failover` on both hosts with the manual arbiter: over
 * a cut link, or so soon after each other that the orders cross). The names decide, so that both
 * hosts come to the same end. */
static gboolean
guard_split_brain_loser(const PairFacts *f)
{
    return f->peer_up && f->peer_state == PAIR_ALONE && f->peer_generation == f->generation &&
           !f->name_first;
}

static gboolean
guard_off_wanted(const PairFacts *f)
{
    return f->off_wanted;
}

static gboolean
guard_adoptable_alone(const PairFacts *f)
{
    return f->vm_alive && f->role_primary && !f->stale && !f->protecting;
}

static gboolean
guard_adoptable_by_claim(const PairFacts *f)
{
    return f->vm_alive && f->role_primary && !f->stale && f->protecting;
}

static gboolean
guard_vm_alive(const PairFacts *f)
{
    return f->vm_alive;
}

/* Last primary with nobody armed beside it: this host alone has the right to start the VM again. */
static gboolean
keeps_right(const PairFacts *f)
{
    return f->role_primary && !f->protecting && !f->stale;
}

static gboolean
guard_keeps_no_right(const PairFacts *f)
{
    return !keeps_right(f);
}

/* Two hosts without a VM that see each other agree who starts it: the one with disks that may be
 * started from, the newer disks, the newer generation, then the one that was primary in it, then
 * the configured one, then the first name. Both come to the same result. */
static gboolean
guard_elected(const PairFacts *f)
{
    if (!f->peer_up || f->peer_state != PAIR_IDLE || f->stale || f->disks_unfit)
        return FALSE;
    if (f->peer_disks_unfit)
        return TRUE;
    if (f->disk_generation != f->peer_disk_generation)
        return f->disk_generation > f->peer_disk_generation;
    if (f->generation != f->peer_generation)
        return f->generation > f->peer_generation && f->role_primary;
    if (f->role_primary != f->peer_role_primary)
        return f->role_primary;
    if (f->initial_primary != f->peer_initial_primary)
        return f->initial_primary;
    return f->name_first;
}

static gboolean
guard_lonely_starter(const PairFacts *f)
{
    return !f->peer_up && !f->disks_unfit && (keeps_right(f) || (f->fresh && f->initial_primary));
}

static gboolean
guard_peer_without_vm(const PairFacts *f)
{
    return !peer_has_vm(f) && !f->disks_unfit &&
           (f->peer_disks_unfit || f->disk_generation >= f->peer_disk_generation);
}

static gboolean
guard_peer_unseen(const PairFacts *f)
{
    return !f->peer_up && !f->disks_unfit;
}

static gboolean
guard_has_disks(const PairFacts *f)
{
    return f->has_disks;
}

static gboolean
guard_peer_has_vm(const PairFacts *f)
{
    return peer_has_vm(f);
}

static gboolean
guard_peer_not_older(const PairFacts *f)
{
    return f->peer_up && f->peer_generation >= f->generation;
}

static gboolean
guard_peer_gave_up(const PairFacts *f)
{
    return f->peer_gave_up;
}

static gboolean
guard_can_protect(const PairFacts *f)
{
    return f->peer_up && (f->peer_state == PAIR_IDLE || f->peer_state == PAIR_OFF) &&
           f->wants_protection && f->may_prepare && !f->vm_stuck;
}

static gboolean
guard_promotable(const PairFacts *f)
{
    return f->promotable;
}

static gboolean
guard_name_first(const PairFacts *f)
{
    return f->name_first;
}

static gboolean
guard_peer_up(const PairFacts *f)
{
    return f->peer_up;
}

/* While a claim of ours is under way it may be granted: then the other side will be refused, and
 * giving our VM up would leave none. */
static gboolean
guard_no_claim_pending(const PairFacts *f)
{
    return !f->claim_pending;
}

/* The peer still has an armed VM of our generation. */
static gboolean
guard_peer_stands_by(const PairFacts *f)
{
    return f->peer_up && f->peer_generation == f->generation &&
           (f->peer_state == PAIR_STANDBY || f->peer_state == PAIR_PROVING ||
            f->peer_state == PAIR_CLAIM_SECONDARY);
}

/* The primary holds its output and waits for us. */
static gboolean
guard_peer_hands_over(const PairFacts *f)
{
    return f->peer_up && f->peer_generation == f->generation && f->peer_state == PAIR_HANDING_OVER;
}

static gboolean
guard_promotable_peer_hands_over(const PairFacts *f)
{
    return f->promotable && guard_peer_hands_over(f);
}

/* A secondary whose primary has gone on alone and whose messages crossed with ours. */
static gboolean
guard_peer_holds_leftover(const PairFacts *f)
{
    return f->peer_up && f->peer_generation <= f->generation &&
           ((UINT64_C(1) << f->peer_state) & SECONDARY_STATES);
}

static gboolean
guard_peer_stands_by_no_claim_pending(const PairFacts *f)
{
    return guard_peer_stands_by(f) && !f->claim_pending;
}

#define ON(event) PAIR_EVENT_##event
#define DO(...)                                                                                    \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define A(action) PAIR_ACTION_##action

static const Rule rules[] = {
    /* Fencing. A secondary that is not armed follows its primary's generation instead. */
    {PRIMARY_STATES | IN(STANDBY) | IN(PROVING) | IN(CLAIM_SECONDARY) | IN(TAKING_OVER),
     ON(PEER_UP), GUARD(peer_newer), PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)),
     "the peer has a newer generation"},
    {PRIMARY_STATES | IN(STANDBY) | IN(PROVING) | IN(CLAIM_SECONDARY) | IN(TAKING_OVER),
     ON(PEER_STATE), GUARD(peer_newer), PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)),
     "the peer has a newer generation"},
    {IN(ALONE) | IN(PREPARING) | IN(SYNCING), ON(PEER_UP), GUARD(split_brain_loser), PAIR_STOPPING,
     DO(A(DROP_OUTPUT), A(KILL_VM)), "both hosts were made to run the VM; the other one keeps it"},
    {IN(ALONE) | IN(PREPARING) | IN(SYNCING), ON(PEER_STATE), GUARD(split_brain_loser),
     PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)),
     "both hosts were made to run the VM; the other one keeps it"},

    /* Start of colod. */
    {IN(BOOT), ON(BOOT), GUARD(adoptable_alone), PAIR_ADOPTING, DO(A(ADOPT_VM)),
     "QEMU outlived colod and nobody replaced it"},
    {IN(BOOT), ON(BOOT), GUARD(adoptable_by_claim), PAIR_ADOPT_CLAIM, DO(A(ADOPT_VM)),
     "QEMU outlived colod; a secondary may have replaced it"},
    {IN(BOOT), ON(BOOT), GUARD(vm_alive), PAIR_STOPPING, DO(A(KILL_VM)),
     "QEMU outlived colod but must not go on"},
    {IN(BOOT), ON(BOOT), GUARD(always), PAIR_IDLE, DO(A(NONE)), "no VM here"},

    /* No VM here. */
    {IN(IDLE), ON(PEER_UP), GUARD(elected), PAIR_CLAIM_START, DO(A(CLAIM)),
     "neither host has the VM and this one is to start it"},
    {IN(IDLE), ON(PEER_STATE), GUARD(elected), PAIR_CLAIM_START, DO(A(CLAIM)),
     "neither host has the VM and this one is to start it"},
    {IN(IDLE), ON(PEER_VM_DEAD), GUARD(elected), PAIR_CLAIM_START, DO(A(CLAIM)),
     "the peer gave its VM up and this host is to start it"},
    {IN(IDLE), ON(RETRY), GUARD(elected), PAIR_CLAIM_START, DO(A(CLAIM)),
     "neither host has the VM and this one is to start it"},
    {IN(IDLE) | IN(OFF), ON(PEER_UP), GUARD(keeps_no_right), STAY, DO(A(GIVE_UP)),
     "the peer is told that nothing runs here"},
    {IN(IDLE), ON(LONELY), GUARD(lonely_starter), PAIR_CLAIM_START, DO(A(CLAIM)),
     "the peer does not show up and this host may start the VM"},
    {IN(IDLE), ON(RETRY), GUARD(lonely_starter), PAIR_CLAIM_START, DO(A(CLAIM)),
     "the peer does not show up and this host may start the VM"},
    {IN(IDLE) | IN(OFF), ON(OP_FAILOVER), GUARD(peer_unseen), PAIR_CLAIM_START,
     DO(A(CLAIM_OPERATOR)), "operator's order to start the VM here"},
    {IN(IDLE) | IN(OFF), ON(OP_FAILOVER), GUARD(peer_without_vm), PAIR_CLAIM_START,
     DO(A(PROPOSE), A(RETRY_LATER)), "operator's order to start the VM here"},
    {IN(IDLE) | IN(OFF), ON(PEER_PREPARE), GUARD(peer_not_older), PAIR_INCOMING_START,
     DO(A(START_INCOMING)), "the primary asks for a secondary"},
    {IN(IDLE) | IN(OFF), ON(PEER_PREPARE), GUARD(always), STAY, DO(A(SEND_PREPARE_FAILED)),
     "the asking host has an older generation"},
    {IN(IDLE), ON(OP_STOP), GUARD(always), PAIR_OFF, DO(A(NONE)), "operator's order"},

    {IN(CLAIM_START), ON(PEER_UP), GUARD(peer_has_vm), PAIR_IDLE, DO(A(NONE)),
     "the peer has the VM"},
    {IN(CLAIM_START), ON(PEER_STATE), GUARD(peer_has_vm), PAIR_IDLE, DO(A(NONE)),
     "the peer has the VM"},
    {IN(CLAIM_START), ON(CLAIM_GRANTED), GUARD(always), PAIR_STARTING, DO(A(START_VM)),
     "claim granted"},
    /* A claim that was won and then not used stands in the way; the peer's word clears it. */
    {IN(CLAIM_START), ON(CLAIM_REFUSED), GUARD(peer_up), STAY, DO(A(PROPOSE), A(RETRY_LATER)),
     "claim refused; asking the peer"},
    {IN(CLAIM_START), ON(CLAIM_REFUSED), GUARD(always), PAIR_IDLE, DO(A(RETRY_LATER)),
     "claim refused"},
    /* Without an arbiter two hosts need each other's word: what one has heard of the other may be
       old. */
    {IN(CLAIM_START), ON(CLAIM_UNKNOWN), GUARD(peer_up), STAY, DO(A(PROPOSE), A(RETRY_LATER)),
     "the arbiter is silent; asking the peer"},
    {IN(CLAIM_START), ON(CLAIM_UNKNOWN), GUARD(always), PAIR_IDLE, DO(A(RETRY_LATER)),
     "the claim could not be decided"},
    {IN(CLAIM_START), ON(PEER_CONSENT), GUARD(always), STAY, DO(A(GRANT)), "the peer consents"},
    {IN(CLAIM_START), ON(PEER_PROPOSE), GUARD(name_first), STAY, DO(A(NONE)),
     "both hosts propose; the first name goes on"},
    {IN(IDLE) | IN(OFF) | IN(CLAIM_START), ON(PEER_PROPOSE), GUARD(always), PAIR_IDLE,
     DO(A(CONSENT), A(RETRY_LATER)), "the peer starts the VM"},
    {IN(CLAIM_START), ON(RETRY), GUARD(always), PAIR_IDLE, DO(A(RETRY_LATER)),
     "no answer from the peer"},
    {IN(CLAIM_START), ON(PEER_DOWN), GUARD(always), PAIR_IDLE, DO(A(RETRY_LATER)), "link lost"},

    {IN(STARTING), ON(VM_READY), GUARD(always), PAIR_ALONE, DO(A(OPEN_OUTPUT), A(RUN_VM)),
     "QEMU is ready"},
    {IN(STARTING) | IN(RESUMING) | IN(TAKING_OVER) | IN(ADOPTING) | IN(JUDGING), ON(TIMEOUT),
     GUARD(always), PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)), "QEMU missed its deadline"},
    {IN(INCOMING_START), ON(TIMEOUT), GUARD(always), PAIR_STOPPING,
     DO(A(KILL_VM), A(SEND_PREPARE_FAILED)), "QEMU missed its deadline"},

    /* Adoption. */
    /* The colod before may have died between a takeover and its announcement. */
    {IN(ADOPTING), ON(VM_READY), GUARD(always), PAIR_ALONE, DO(A(OPEN_OUTPUT), A(ANNOUNCE)),
     "QEMU answers; it goes on"},
    {IN(ADOPT_CLAIM), ON(VM_READY), GUARD(always), STAY, DO(A(CLAIM)), "QEMU answers"},

    /* VM here, alone. */
    {IN(ALONE), ON(PEER_UP), GUARD(can_protect), PAIR_PREPARING, DO(A(SEND_PREPARE)),
     "the peer can be secondary"},
    {IN(ALONE), ON(PEER_STATE), GUARD(can_protect), PAIR_PREPARING, DO(A(SEND_PREPARE)),
     "the peer can be secondary"},
    {IN(ALONE), ON(RETRY), GUARD(can_protect), PAIR_PREPARING, DO(A(SEND_PREPARE)),
     "the peer can be secondary"},
    {IN(ALONE), ON(PEER_STATE), GUARD(peer_holds_leftover), STAY,
     DO(A(SEND_DISCARD), A(RETRY_LATER)), "the peer holds a VM that nobody feeds"},
    {IN(ALONE), ON(RETRY), GUARD(peer_holds_leftover), STAY, DO(A(SEND_DISCARD), A(RETRY_LATER)),
     "the peer holds a VM that nobody feeds"},
    {IN(ALONE), ON(OP_PROTECT), GUARD(can_protect), PAIR_PREPARING, DO(A(SEND_PREPARE)),
     "operator's order"},

    /* The last copy of the guest is not thrown away because it stands still. */
    {IN(ALONE), ON(VM_STUCK), GUARD(always), STAY, DO(A(NONE)),
     "QEMU is stuck; nobody else has the VM, so it is kept"},
    {IN(PREPARING) | IN(SYNCING), ON(VM_STUCK), GUARD(always), PAIR_ALONE,
     DO(A(SEND_DISCARD), A(RETRY_LATER)), "QEMU is stuck; nobody else has the VM, so it is kept"},
    {IN(MIGRATING), ON(VM_STUCK), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(SEND_DISCARD), A(RETRY_LATER)), "QEMU is stuck in the initial migration"},

    {IN(PREPARING), ON(PEER_PREPARED), GUARD(has_disks), PAIR_SYNCING, DO(A(CONNECT_DISKS)),
     "the peer's disks and VM wait"},
    {IN(PREPARING), ON(PEER_PREPARED), GUARD(always), PAIR_MIGRATING, DO(A(START_MIGRATION)),
     "the peer's VM waits for the stream"},
    {IN(PREPARING), ON(PEER_PREPARE_FAILED), GUARD(always), PAIR_ALONE, DO(A(RETRY_LATER)),
     "the peer could not prepare"},
    /* VM_DEAD is ignored while PREPARING: it may have been sent before the peer saw PREPARE. */
    {IN(PREPARING), ON(PEER_DOWN), GUARD(always), PAIR_ALONE, DO(A(RETRY_LATER)), "link lost"},
    {IN(PREPARING), ON(TIMEOUT), GUARD(always), PAIR_ALONE, DO(A(SEND_DISCARD), A(RETRY_LATER)),
     "the peer did not prepare in time"},
    {IN(PREPARING), ON(OP_UNPROTECT), GUARD(always), PAIR_ALONE, DO(A(SEND_DISCARD)),
     "operator's order"},

    {IN(SYNCING), ON(DISKS_SYNCED), GUARD(always), PAIR_MIGRATING, DO(A(START_MIGRATION)),
     "the disks are all but equal"},
    {IN(SYNCING), ON(DISK_FAULT), GUARD(always), PAIR_ALONE, DO(A(SEND_DISCARD), A(RETRY_LATER)),
     "a disk could not be copied"},
    {IN(SYNCING), ON(PEER_DOWN), GUARD(always), PAIR_ALONE, DO(A(RETRY_LATER)), "link lost"},
    {IN(SYNCING), ON(PEER_VM_DEAD), GUARD(always), PAIR_ALONE, DO(A(RETRY_LATER)),
     "the secondary ended while the disks were copied"},
    {IN(SYNCING), ON(OP_UNPROTECT), GUARD(always), PAIR_ALONE, DO(A(SEND_DISCARD)),
     "operator's order"},

    {IN(MIGRATING), ON(DISK_FAULT), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(SEND_DISCARD), A(RETRY_LATER)), "a disk is not replicated any more"},
    {IN(MIGRATING), ON(ARMING), GUARD(always), PAIR_PROTECTED, DO(A(NONE)), "both VMs are equal"},
    {IN(MIGRATING), ON(GATE_PEER), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(SEND_DISCARD), A(RETRY_LATER)), "initial migration failed"},
    {IN(MIGRATING), ON(GATE_VM), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(SEND_DISCARD), A(RETRY_LATER)), "initial migration failed in QEMU"},
    {IN(MIGRATING), ON(PEER_DOWN), GUARD(always), PAIR_RESUMING, DO(A(LEAVE_COLO), A(RETRY_LATER)),
     "link lost during initial migration"},
    {IN(MIGRATING), ON(PEER_VM_DEAD), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(RETRY_LATER)), "the secondary ended during initial migration"},
    {IN(MIGRATING), ON(TIMEOUT), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(SEND_DISCARD), A(RETRY_LATER)), "initial migration took too long"},
    {IN(MIGRATING), ON(OP_UNPROTECT), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO), A(SEND_DISCARD)), "operator's order"},

    /* Primary, armed. */
    {IN(PROTECTED), ON(PEER_DOWN), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM)), "link lost"},
    {IN(PROTECTED), ON(GATE_PEER), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM), A(SEND_DISCARD)),
     "checkpointing failed"},
    {IN(PROTECTED), ON(DISK_FAULT), GUARD(always), PAIR_CLAIM_PRIMARY,
     DO(A(CLAIM), A(SEND_DISCARD)), "a disk is not replicated any more"},
    {IN(PROTECTED), ON(PEER_VM_DEAD), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM)),
     "the secondary's VM ended"},
    {IN(PROTECTED), ON(GATE_VM), GUARD(always), PAIR_JUDGING, DO(A(PROBE_VM)),
     "QEMU closed its stream"},
    {IN(PROTECTED) | IN(JUDGING), ON(VM_STUCK), GUARD(always), PAIR_STOPPING,
     DO(A(DROP_OUTPUT), A(KILL_VM)), "QEMU is stuck"},
    {IN(PROTECTED), ON(PEER_HAND_OVER), GUARD(always), PAIR_HANDING_OVER, DO(A(HOLD_OUTPUT)),
     "handing over to the peer"},
    {IN(PROTECTED), ON(OP_UNPROTECT), GUARD(always), STAY, DO(A(SEND_DISCARD)), "operator's order"},

    /* The gate's end is the secondary leaving COLO. Its newer generation ends our VM. */
    {IN(HANDING_OVER), ON(PEER_DOWN), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM)), "link lost"},
    {IN(HANDING_OVER), ON(PEER_VM_DEAD), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM)),
     "the secondary's VM ended"},
    {IN(HANDING_OVER), ON(TIMEOUT), GUARD(always), PAIR_CLAIM_PRIMARY,
     DO(A(CLAIM), A(SEND_DISCARD)), "the secondary did not go on"},
    {IN(HANDING_OVER), ON(VM_STUCK), GUARD(always), PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)),
     "QEMU is stuck"},

    {IN(JUDGING), ON(VM_ALIVE), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM), A(SEND_DISCARD)),
     "QEMU lives, COLO failed in it"},
    {IN(JUDGING), ON(PEER_DOWN), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM)), "link lost"},
    {IN(JUDGING), ON(PEER_VM_DEAD), GUARD(always), PAIR_CLAIM_PRIMARY, DO(A(CLAIM)),
     "the secondary's VM ended"},

    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM), ON(CLAIM_GRANTED), GUARD(always), PAIR_RESUMING,
     DO(A(LEAVE_COLO)), "claim granted"},
    {IN(CLAIM_SECONDARY), ON(CLAIM_GRANTED), GUARD(always), PAIR_TAKING_OVER, DO(A(LEAVE_COLO)),
     "claim granted"},
    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) | IN(CLAIM_SECONDARY), ON(CLAIM_REFUSED), GUARD(always),
     PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)), "claim refused: the other side goes on"},
    {IN(ADOPT_CLAIM), ON(CLAIM_UNKNOWN), GUARD(peer_stands_by), PAIR_STOPPING,
     DO(A(DROP_OUTPUT), A(KILL_VM)), "the secondary stands by and takes over"},
    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) | IN(CLAIM_SECONDARY), ON(CLAIM_UNKNOWN),
     GUARD(peer_gave_up), STAY, DO(A(GRANT)), "the peer gave up; no arbiter needed"},
    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) | IN(CLAIM_SECONDARY), ON(CLAIM_UNKNOWN), GUARD(always),
     STAY, DO(A(RETRY_LATER)), "the claim could not be decided"},
    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) | IN(CLAIM_SECONDARY), ON(PEER_VM_DEAD), GUARD(always),
     STAY, DO(A(CLAIM)), "the peer gave its VM up"},
    {IN(CLAIM_PRIMARY), ON(RETRY), GUARD(peer_stands_by), STAY, DO(A(CLAIM), A(SEND_DISCARD)),
     "nobody went on: the primary does"},
    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) | IN(CLAIM_SECONDARY), ON(RETRY), GUARD(always), STAY,
     DO(A(CLAIM)), "asking the arbiter again"},
    {IN(CLAIM_PRIMARY) | IN(ADOPT_CLAIM) | IN(CLAIM_SECONDARY), ON(OP_FAILOVER), GUARD(always),
     STAY, DO(A(CLAIM_OPERATOR)), "operator's order"},
    {IN(CLAIM_PRIMARY), ON(PEER_UP), GUARD(peer_stands_by), STAY, DO(A(SEND_DISCARD)),
     "the link is back and nobody went on: the primary does"},
    {IN(CLAIM_PRIMARY), ON(PEER_STATE), GUARD(peer_stands_by), STAY, DO(A(SEND_DISCARD)),
     "nobody went on: the primary does"},
    /* The adopted VM missed some time; the standby has not. */
    {IN(ADOPT_CLAIM), ON(PEER_UP), GUARD(peer_stands_by_no_claim_pending), PAIR_STOPPING,
     DO(A(DROP_OUTPUT), A(KILL_VM)), "the secondary stands by and takes over"},
    {IN(ADOPT_CLAIM), ON(PEER_STATE), GUARD(peer_stands_by_no_claim_pending), PAIR_STOPPING,
     DO(A(DROP_OUTPUT), A(KILL_VM)), "the secondary stands by and takes over"},

    {IN(RESUMING), ON(VM_RUNNING), GUARD(always), PAIR_ALONE, DO(A(OPEN_OUTPUT)),
     "the VM goes on without a secondary"},

    /* Secondary. */
    {IN(INCOMING_START), ON(VM_READY), GUARD(always), PAIR_INCOMING, DO(A(SEND_PREPARED)),
     "QEMU waits for the stream"},
    {IN(INCOMING_START), ON(VM_DEAD), GUARD(always), PAIR_IDLE, DO(A(SEND_PREPARE_FAILED)),
     "QEMU did not start"},
    {IN(INCOMING), ON(ARMED), GUARD(always), PAIR_STANDBY, DO(A(NONE)), "both VMs are equal"},
    {IN(INCOMING), ON(GATE_PEER), GUARD(always), PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)),
     "initial migration failed"},
    {IN(INCOMING) | IN(STANDBY), ON(GATE_VM), GUARD(always), PAIR_STOPPING,
     DO(A(CLOSE_GATE), A(KILL_VM)), "QEMU failed"},
    {IN(INCOMING) | IN(STANDBY) | IN(PROVING) | IN(CLAIM_SECONDARY), ON(DISK_FAULT), GUARD(always),
     PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)), "the VM here has lost its view of a disk"},
    {IN(TAKING_OVER), ON(DISK_FAULT), GUARD(always), PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)),
     "the VM here has lost its view of a disk"},
    {IN(INCOMING_START) | IN(INCOMING), ON(PEER_DOWN), GUARD(always), PAIR_STOPPING,
     DO(A(CLOSE_GATE), A(KILL_VM)), "link lost before the VM was whole"},
    {IN(INCOMING_START) | IN(INCOMING) | IN(STANDBY), ON(PEER_VM_DEAD), GUARD(always), STAY,
     DO(A(DETACH_GATE)), "the primary's VM ended"},
    {IN(INCOMING), ON(TIMEOUT), GUARD(always), PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)),
     "initial migration took too long"},
    {IN(CLAIM_SECONDARY), ON(PEER_DISCARD), GUARD(no_claim_pending), PAIR_STOPPING,
     DO(A(CLOSE_GATE), A(KILL_VM)), "the primary goes on without a secondary"},
    {IN(INCOMING_START) | IN(INCOMING) | IN(STANDBY), ON(PEER_DISCARD), GUARD(always),
     PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)), "the primary goes on without a secondary"},
    {IN(INCOMING) | IN(STANDBY), ON(VM_STUCK), GUARD(always), PAIR_STOPPING,
     DO(A(CLOSE_GATE), A(KILL_VM)), "QEMU is stuck"},
    {IN(STANDBY), ON(PEER_DOWN), GUARD(always), STAY, DO(A(DETACH_GATE)), "link lost"},
    {IN(STANDBY), ON(PEER_STATE), GUARD(peer_hands_over), STAY, DO(A(DETACH_GATE)),
     "the primary holds its output and hands over"},
    {IN(STANDBY), ON(GATE_PEER), GUARD(promotable_peer_hands_over), PAIR_PROVING, DO(A(LEAVE_COLO)),
     "the primary hands over"},
    {IN(PROVING), ON(VM_RUNNING), GUARD(peer_hands_over), PAIR_CLAIM_SECONDARY,
     DO(A(CLAIM_OPERATOR)), "the VM runs on, and the primary waits for it"},
    {IN(PROVING), ON(VM_RUNNING), GUARD(always), PAIR_CLAIM_SECONDARY, DO(A(CLAIM)),
     "the VM runs on, and the primary was lost meanwhile"},
    {IN(PROVING), ON(VM_STUCK), GUARD(always), PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)),
     "QEMU is stuck"},
    {IN(PROVING), ON(TIMEOUT), GUARD(always), PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)),
     "QEMU missed its deadline"},
    {IN(PROVING), ON(PEER_DISCARD), GUARD(always), PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)),
     "the primary goes on without a secondary"},
    {IN(STANDBY), ON(GATE_PEER), GUARD(promotable), PAIR_CLAIM_SECONDARY, DO(A(CLAIM)),
     "the primary is lost"},
    {IN(STANDBY), ON(GATE_PEER), GUARD(always), PAIR_STOPPING, DO(A(CLOSE_GATE), A(KILL_VM)),
     "the primary is lost and the VM here is not whole"},
    {IN(STANDBY), ON(OP_FAILOVER), GUARD(peer_up), STAY, DO(A(SEND_HAND_OVER)), "operator's order"},
    {IN(TAKING_OVER), ON(VM_RUNNING), GUARD(always), PAIR_ALONE, DO(A(OPEN_OUTPUT), A(ANNOUNCE)),
     "taken over"},

    /* Ends of QEMU. */
    {IN(PROTECTED) | IN(HANDING_OVER) | IN(JUDGING) | IN(CLAIM_PRIMARY) | IN(ALONE) |
         IN(PREPARING) | IN(SYNCING) | IN(MIGRATING) | IN(RESUMING) | IN(TAKING_OVER),
     ON(VM_DEAD), GUARD(off_wanted), PAIR_OFF,
     DO(A(DROP_OUTPUT), A(CLOSE_GATE), A(SEND_DISCARD), A(GIVE_UP)), "the guest was shut down"},
    {IN(STOPPING), ON(VM_DEAD), GUARD(off_wanted), PAIR_OFF,
     DO(A(CLOSE_GATE), A(SEND_DISCARD), A(GIVE_UP)), "stopped"},
    {IN(PREPARING) | IN(SYNCING) | IN(MIGRATING), ON(VM_DEAD), GUARD(always), PAIR_IDLE,
     DO(A(DROP_OUTPUT), A(CLOSE_GATE), A(SEND_DISCARD), A(RETRY_LATER)), "QEMU ended"},
    {IN(STARTING) | IN(ALONE) | IN(ADOPTING), ON(VM_DEAD), GUARD(always), PAIR_IDLE,
     DO(A(DROP_OUTPUT), A(RETRY_LATER)), "QEMU ended"},
    {ARMED_STATES | IN(RESUMING) | IN(TAKING_OVER) | IN(INCOMING) | IN(STOPPING), ON(VM_DEAD),
     GUARD(always), PAIR_IDLE, DO(A(DROP_OUTPUT), A(CLOSE_GATE), A(GIVE_UP), A(RETRY_LATER)),
     "QEMU ended"},
    {IN(STOPPING), ON(TIMEOUT), GUARD(always), STAY, DO(A(KILL_VM)), "QEMU did not end in time"},
    {PRIMARY_STATES, ON(OP_STOP), GUARD(always), PAIR_STOPPING, DO(A(DROP_OUTPUT), A(KILL_VM)),
     "operator's order"},
};

PairStep
pair_fsm_step(PairState state, PairEvent event, const PairFacts *facts)
{
    PairStep step = {.next = state};

    for (gsize i = 0; i < G_N_ELEMENTS(rules); i++) {
        const Rule *rule = &rules[i];

        if (rule->event != event || !(rule->states & (UINT64_C(1) << state)) || !rule->guard(facts))
            continue;
        if (rule->next != STAY)
            step.next = rule->next;
        memcpy(step.actions, rule->actions, sizeof(step.actions));
        step.why = rule->why;
        break;
    }
    return step;
}

const char *
pair_state_role(PairState state)
{
    const guint64 bit = UINT64_C(1) << state;

    if (bit & PRIMARY_STATES)
        return "primary";
    if (bit & (SECONDARY_STATES | IN(TAKING_OVER)))
        return "secondary";
    return "none";
}

gboolean
pair_state_has_vm(PairState state)
{
    const guint64 without = IN(BOOT) | IN(IDLE) | IN(OFF) | IN(CLAIM_START);

    return !((UINT64_C(1) << state) & without);
}

unsigned
pair_state_timeout_ms(PairState state)
{
    switch (state) {
    case PAIR_STARTING:
    case PAIR_INCOMING_START:
        return 15000; /* QEMU start-up on a loaded host */
    case PAIR_PREPARING:
        return 20000; /* the peer's start-up and its answer */
    case PAIR_MIGRATING:
    case PAIR_INCOMING:
        return 600000; /* the gate watches for silence; this bounds a guest that never converges */
    case PAIR_JUDGING:
        return 1000;
    case PAIR_PROVING:
        return 3000;
    case PAIR_HANDING_OVER:
        return 8000; /* longer than PROVING and the load before it: the other side decides first */
    case PAIR_ADOPTING:
    case PAIR_RESUMING:
    case PAIR_TAKING_OVER:
        /* It takes milliseconds. QEMU may stand still for longer (storage, a suspended host), and
         * it has the only copy of the guest: the alternative is to boot it anew. */
        return 60000;
    case PAIR_STOPPING:
        return 5000;
    case PAIR_BOOT:
    case PAIR_IDLE:
    case PAIR_OFF:
    case PAIR_CLAIM_START:
    case PAIR_ADOPT_CLAIM:
    case PAIR_ALONE:
    case PAIR_SYNCING: /* the disks watch for silence */
    case PAIR_PROTECTED:
    case PAIR_CLAIM_PRIMARY:
    case PAIR_STANDBY:
    case PAIR_CLAIM_SECONDARY:
    case PAIR_N_STATES:
        break;
    }
    return 0;
}

static void
append_states(GString *out, guint64 states)
{
    const char *separator = "";

    for (unsigned i = 0; i < PAIR_N_STATES; i++) {
        if (states & (UINT64_C(1) << i)) {
            g_string_append_printf(out, "%s%s", separator, pair_state_name((PairState)i));
            separator = ", ";
        }
    }
}

char *
pair_fsm_to_markdown(void)
{
    GString *out = g_string_new("| state | event | if | next | actions | why |\n"
                                "| --- | --- | --- | --- | --- | --- |\n");

    for (gsize i = 0; i < G_N_ELEMENTS(rules); i++) {
        const Rule *rule = &rules[i];
        const gboolean always = rule->guard == guard_always;

        g_string_append(out, "| ");
        append_states(out, rule->states);
        g_string_append_printf(out, " | %s | %s | %s |", pair_event_name(rule->event),
                               always ? "" : rule->guard_text,
                               rule->next == STAY ? "(stays)" : pair_state_name(rule->next));
        for (unsigned j = 0; j < PAIR_MAX_ACTIONS && rule->actions[j] != PAIR_ACTION_NONE; j++)
            g_string_append_printf(out, "%s %s", j ? "," : "", pair_action_name(rule->actions[j]));
        g_string_append_printf(out, " | %s |\n", rule->why);
    }
    return g_string_free(out, FALSE);
}
