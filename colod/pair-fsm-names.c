/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pair-fsm-names.c - what states, events and actions are called */
#include "pair-fsm.h"

#include <assert.h>

static const char *const state_names[] = {
    [PAIR_BOOT] = "boot",
    [PAIR_IDLE] = "idle",
    [PAIR_OFF] = "off",
    [PAIR_CLAIM_START] = "claim-start",
    [PAIR_STARTING] = "starting",
    [PAIR_ADOPTING] = "adopting",
    [PAIR_ADOPT_CLAIM] = "adopt-claim",
    [PAIR_ALONE] = "alone",
    [PAIR_PREPARING] = "preparing",
    [PAIR_SYNCING] = "syncing",
    [PAIR_MIGRATING] = "migrating",
    [PAIR_PROTECTED] = "protected",
    [PAIR_HANDING_OVER] = "handing-over",
    [PAIR_JUDGING] = "judging",
    [PAIR_CLAIM_PRIMARY] = "claim-primary",
    [PAIR_RESUMING] = "resuming",
    [PAIR_INCOMING_START] = "incoming-start",
    [PAIR_INCOMING] = "incoming",
    [PAIR_STANDBY] = "standby",
    [PAIR_PROVING] = "proving",
    [PAIR_CLAIM_SECONDARY] = "claim-secondary",
    [PAIR_TAKING_OVER] = "taking-over",
    [PAIR_STOPPING] = "stopping",
};
static_assert(G_N_ELEMENTS(state_names) == PAIR_N_STATES, "a name for each state");

static const char *const event_names[] = {
    [PAIR_EVENT_BOOT] = "boot",
    [PAIR_EVENT_LONELY] = "lonely",
    [PAIR_EVENT_PEER_UP] = "peer-up",
    [PAIR_EVENT_PEER_STATE] = "peer-state",
    [PAIR_EVENT_PEER_DOWN] = "peer-down",
    [PAIR_EVENT_PEER_VM_DEAD] = "peer-vm-dead",
    [PAIR_EVENT_PEER_PREPARE] = "peer-prepare",
    [PAIR_EVENT_PEER_PREPARED] = "peer-prepared",
    [PAIR_EVENT_PEER_PREPARE_FAILED] = "peer-prepare-failed",
    [PAIR_EVENT_PEER_DISCARD] = "peer-discard",
    [PAIR_EVENT_PEER_HAND_OVER] = "peer-hand-over",
    [PAIR_EVENT_PEER_PROPOSE] = "peer-propose",
    [PAIR_EVENT_PEER_CONSENT] = "peer-consent",
    [PAIR_EVENT_CLAIM_GRANTED] = "claim-granted",
    [PAIR_EVENT_CLAIM_REFUSED] = "claim-refused",
    [PAIR_EVENT_CLAIM_UNKNOWN] = "claim-unknown",
    [PAIR_EVENT_VM_READY] = "vm-ready",
    [PAIR_EVENT_VM_RUNNING] = "vm-running",
    [PAIR_EVENT_VM_ALIVE] = "vm-alive",
    [PAIR_EVENT_VM_STUCK] = "vm-stuck",
    [PAIR_EVENT_VM_DEAD] = "vm-dead",
    [PAIR_EVENT_ARMING] = "arming",
    [PAIR_EVENT_ARMED] = "armed",
    [PAIR_EVENT_DISKS_SYNCED] = "disks-synced",
    [PAIR_EVENT_DISK_FAULT] = "disk-fault",
    [PAIR_EVENT_GATE_PEER] = "gate-peer",
    [PAIR_EVENT_GATE_VM] = "gate-vm",
    [PAIR_EVENT_OP_FAILOVER] = "op-failover",
    [PAIR_EVENT_OP_PROTECT] = "op-protect",
    [PAIR_EVENT_OP_UNPROTECT] = "op-unprotect",
    [PAIR_EVENT_OP_STOP] = "op-stop",
    [PAIR_EVENT_RETRY] = "retry",
    [PAIR_EVENT_TIMEOUT] = "timeout",
};
static_assert(G_N_ELEMENTS(event_names) == PAIR_N_EVENTS, "a name for each event");

static const char *const action_names[] = {
    [PAIR_ACTION_NONE] = "none",
    [PAIR_ACTION_START_VM] = "start-vm",
    [PAIR_ACTION_START_INCOMING] = "start-incoming",
    [PAIR_ACTION_ADOPT_VM] = "adopt-vm",
    [PAIR_ACTION_RUN_VM] = "run-vm",
    [PAIR_ACTION_KILL_VM] = "kill-vm",
    [PAIR_ACTION_PROBE_VM] = "probe-vm",
    [PAIR_ACTION_OPEN_OUTPUT] = "open-output",
    [PAIR_ACTION_HOLD_OUTPUT] = "hold-output",
    [PAIR_ACTION_DROP_OUTPUT] = "drop-output",
    [PAIR_ACTION_CLAIM] = "claim",
    [PAIR_ACTION_CLAIM_OPERATOR] = "claim-operator",
    [PAIR_ACTION_GRANT] = "grant",
    [PAIR_ACTION_PROPOSE] = "propose",
    [PAIR_ACTION_CONSENT] = "consent",
    [PAIR_ACTION_SEND_PREPARE] = "send-prepare",
    [PAIR_ACTION_SEND_PREPARED] = "send-prepared",
    [PAIR_ACTION_SEND_PREPARE_FAILED] = "send-prepare-failed",
    [PAIR_ACTION_CONNECT_DISKS] = "connect-disks",
    [PAIR_ACTION_START_MIGRATION] = "start-migration",
    [PAIR_ACTION_SEND_DISCARD] = "send-discard",
    [PAIR_ACTION_SEND_HAND_OVER] = "send-hand-over",
    [PAIR_ACTION_GIVE_UP] = "give-up",
    [PAIR_ACTION_DETACH_GATE] = "detach-gate",
    [PAIR_ACTION_CLOSE_GATE] = "close-gate",
    [PAIR_ACTION_LEAVE_COLO] = "leave-colo",
    [PAIR_ACTION_ANNOUNCE] = "announce",
    [PAIR_ACTION_RETRY_LATER] = "retry-later",
};
static_assert(G_N_ELEMENTS(action_names) == PAIR_N_ACTIONS, "a name for each action");

const char *
pair_state_name(PairState state)
{
    return (unsigned)state < PAIR_N_STATES ? state_names[state] : "unknown";
}

const char *
pair_event_name(PairEvent event)
{
    return (unsigned)event < PAIR_N_EVENTS ? event_names[event] : "unknown";
}

const char *
pair_action_name(PairAction action)
{
    return (unsigned)action < PAIR_N_ACTIONS ? action_names[action] : "unknown";
}

PairState
pair_state_from_name(const char *name)
{
    for (unsigned i = 0; i < PAIR_N_STATES; i++) {
        if (g_strcmp0(name, state_names[i]) == 0)
            return (PairState)i;
    }
    return PAIR_N_STATES;
}
