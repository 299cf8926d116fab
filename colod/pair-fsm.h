/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pair-fsm.h - the state machine of one host of a pair: pure, one rule table */
#pragma once

#include <glib.h>

/* State of this host. The names are part of the peer protocol (STATE) and of `colo status`. */
typedef enum PairState {
    PAIR_BOOT,          /* nothing decided yet */
    PAIR_IDLE,          /* no VM here; may become either side */
    PAIR_OFF,           /* no VM on purpose: guest shut down, or `colo stop-vm` */
    PAIR_CLAIM_START,   /* claiming a generation to start the VM from scratch */
    PAIR_STARTING,      /* QEMU is being started as primary */
    PAIR_ADOPTING,      /* colod restarted, unprotected QEMU found running: reconnecting to it */
    PAIR_ADOPT_CLAIM,   /* the same, but a secondary may have replaced it: claiming */
    PAIR_ALONE,         /* VM runs here, output open, no secondary */
    PAIR_PREPARING,     /* primary: the peer starts an incoming VM */
    PAIR_SYNCING,       /* primary: the disks are copied to the peer */
    PAIR_MIGRATING,     /* primary: initial migration; the peer is not armed */
    PAIR_PROTECTED,     /* primary: armed; output leaves only when committed */
    PAIR_HANDING_OVER,  /* primary, planned: output held until the secondary's VM is known to run */
    PAIR_JUDGING,       /* primary: QEMU closed the stream: is it dead or did COLO fail? */
    PAIR_CLAIM_PRIMARY, /* primary: secondary lost; output held; claiming the next generation */
    PAIR_RESUMING,      /* primary: claim won, QEMU leaves COLO */
    PAIR_INCOMING_START,  /* secondary: QEMU is being started */
    PAIR_INCOMING,        /* secondary: initial migration; not to be promoted */
    PAIR_STANDBY,         /* secondary: armed */
    PAIR_PROVING,         /* secondary, planned: QEMU leaves COLO before the claim; still quiet */
    PAIR_CLAIM_SECONDARY, /* secondary: primary lost; claiming the next generation */
    PAIR_TAKING_OVER,     /* secondary: claim won, QEMU leaves COLO */
    PAIR_STOPPING,        /* QEMU is being ended */
    PAIR_N_STATES,
} PairState;

typedef enum PairEvent {
    PAIR_EVENT_BOOT,       /* state file and arbiter were read */
    PAIR_EVENT_LONELY,     /* start-up grace is over and the peer was not seen */
    PAIR_EVENT_PEER_UP,    /* link up and the peer's first STATE is here */
    PAIR_EVENT_PEER_STATE, /* a later STATE of the peer */
    PAIR_EVENT_PEER_DOWN,
    PAIR_EVENT_PEER_VM_DEAD, /* the peer gave its VM up: facts.peer_gave_up is set */
    PAIR_EVENT_PEER_PREPARE,
    PAIR_EVENT_PEER_PREPARED,
    PAIR_EVENT_PEER_PREPARE_FAILED,
    PAIR_EVENT_PEER_DISCARD,   /* of our generation or newer */
    PAIR_EVENT_PEER_HAND_OVER, /* of our generation */
    PAIR_EVENT_PEER_PROPOSE,   /* it wants to start the VM in a generation newer than ours */
    PAIR_EVENT_PEER_CONSENT,   /* it lets us start the VM in the generation we proposed */
    PAIR_EVENT_CLAIM_GRANTED,  /* and saved: facts.generation is the new one */
    PAIR_EVENT_CLAIM_REFUSED,
    PAIR_EVENT_CLAIM_UNKNOWN,
    PAIR_EVENT_VM_READY, /* QMP answers; as secondary: it waits for the stream, and we are connected
                          */
    PAIR_EVENT_VM_RUNNING, /* left COLO and runs */
    PAIR_EVENT_VM_ALIVE,   /* it answered the probe of PAIR_JUDGING */
    PAIR_EVENT_VM_STUCK,   /* it missed a deadline */
    PAIR_EVENT_VM_DEAD,    /* the process is gone */
    PAIR_EVENT_ARMING, /* primary: both VMs are equal, output is held, ARM is about to be sent */
    PAIR_EVENT_ARMED,  /* secondary: ARM came */
    PAIR_EVENT_DISKS_SYNCED, /* what is left of the copy does not delay the initial migration */
    PAIR_EVENT_DISK_FAULT,   /* primary: a disk is not replicated any more; secondary: the VM here
                              * has lost its view of a disk */
    PAIR_EVENT_GATE_PEER,    /* the gate failed and our VM is not to blame; any load has ended */
    PAIR_EVENT_GATE_VM,      /* the gate failed on our VM's side */
    PAIR_EVENT_OP_FAILOVER,
    PAIR_EVENT_OP_PROTECT,
    PAIR_EVENT_OP_UNPROTECT,
    PAIR_EVENT_OP_STOP,
    PAIR_EVENT_RETRY,   /* PAIR_ACTION_RETRY_LATER's timer */
    PAIR_EVENT_TIMEOUT, /* the state's own deadline, pair_state_timeout_ms() */
    PAIR_N_EVENTS,
} PairEvent;

/* Carried out in the order listed. */
typedef enum PairAction {
    PAIR_ACTION_NONE,
    PAIR_ACTION_START_VM,       /* as primary, stopped; VM_READY follows */
    PAIR_ACTION_START_INCOMING, /* as secondary; VM_READY follows */
    PAIR_ACTION_ADOPT_VM,       /* reconnect to the running QEMU; VM_READY follows */
    PAIR_ACTION_RUN_VM,         /* let a VM started with START_VM run */
    PAIR_ACTION_KILL_VM,        /* SIGKILL; VM_DEAD follows */
    PAIR_ACTION_PROBE_VM,       /* VM_ALIVE follows if it answers */
    PAIR_ACTION_OPEN_OUTPUT,    /* release what is held, then let output through */
    PAIR_ACTION_HOLD_OUTPUT,    /* nothing more leaves, whatever the other side says */
    PAIR_ACTION_DROP_OUTPUT,    /* forget what is held and drop what comes */
    PAIR_ACTION_CLAIM,          /* the generation after the newest known; CLAIM_* follows */
    PAIR_ACTION_CLAIM_OPERATOR, /* the same, on an operator's order */
    PAIR_ACTION_GRANT,   /* the peer gave up and the arbiter is out of reach: take the claimed
                          * generation;          CLAIM_GRANTED follows */
    PAIR_ACTION_PROPOSE, /* ask the peer to let us start the VM in the generation after the newest
                          * known; PEER_CONSENT follows */
    PAIR_ACTION_CONSENT, /* save the proposed generation as not ours, then send the consent */
    PAIR_ACTION_SEND_PREPARE,
    PAIR_ACTION_SEND_PREPARED,
    PAIR_ACTION_SEND_PREPARE_FAILED,
    PAIR_ACTION_CONNECT_DISKS,   /* DISKS_SYNCED follows */
    PAIR_ACTION_START_MIGRATION, /* first saves that a secondary may become armed */
    PAIR_ACTION_SEND_DISCARD,
    PAIR_ACTION_SEND_HAND_OVER,
    PAIR_ACTION_GIVE_UP,     /* save role none, then send VM_DEAD */
    PAIR_ACTION_DETACH_GATE, /* secondary: no more from the peer; the gate fails once a load under
                                way ended */
    PAIR_ACTION_CLOSE_GATE,
    PAIR_ACTION_LEAVE_COLO, /* close the gate, yank, x-colo-lost-heartbeat; VM_RUNNING follows */
    PAIR_ACTION_ANNOUNCE,
    PAIR_ACTION_RETRY_LATER,
    PAIR_N_ACTIONS,
} PairAction;

/* What the rules may look at. Kept by the daemon; nothing here is changed by a step. */
typedef struct PairFacts {
    guint64 generation;       /* ours, as saved */
    gboolean role_primary;    /* saved role in that generation is primary */
    gboolean protecting;      /* saved: a secondary of that generation may be armed */
    gboolean vm_alive;        /* at BOOT: our QEMU process still runs */
    gboolean stale;           /* the arbiter knows a newer generation that is not ours */
    gboolean fresh;           /* no generation ever, here or at the arbiter */
    gboolean initial_primary; /* configuration */
    gboolean name_first;      /* our host name sorts before the peer's: breaks ties */
    gboolean peer_up;
    PairState peer_state;    /* valid if peer_up */
    guint64 peer_generation; /* valid if peer_up */
    gboolean peer_role_primary, peer_initial_primary;
    gboolean peer_gave_up;  /* VM_DEAD came since the peer last had a VM */
    gboolean claim_pending; /* asked for, not answered */
    gboolean vm_stuck;      /* it missed a deadline and has not answered since */
    gboolean promotable;    /* SVM's state is whole: gate_load() is GATE_LOAD_CLEAN */
    gboolean wants_protection;
    gboolean may_prepare; /* self-test passed and no retry timer is running */
    gboolean off_wanted;  /* guest shut down, or OP_STOP */
    gboolean has_disks;
    gboolean disks_unfit;      /* the VM must not be started from the disks here */
    guint64 disk_generation;   /* of the disks here: the newer one has what clients know; 0: none */
    gboolean peer_disks_unfit; /* valid if peer_up */
    guint64 peer_disk_generation; /* valid if peer_up */
} PairFacts;

enum { PAIR_MAX_ACTIONS = 5 };

typedef struct PairStep {
    PairState next;
    PairAction actions[PAIR_MAX_ACTIONS]; /* up to the first PAIR_ACTION_NONE */
    const char *why;                      /* static; NULL: the event is ignored in this state */
} PairStep;

/**
 * One step. Pure: any thread. An event without a rule leaves the state and asks for nothing.
 */
PairStep pair_fsm_step(PairState state, PairEvent event, const PairFacts *facts);

const char *pair_state_name(PairState state);
const char *pair_event_name(PairEvent event);
const char *pair_action_name(PairAction action);

/** The state named @name, or PAIR_N_STATES. */
PairState pair_state_from_name(const char *name);

/** "primary", "secondary", "none": what the state makes of this host. */
const char *pair_state_role(PairState state);

/** Whether a VM of the current generation may exist on a host in @state. */
gboolean pair_state_has_vm(PairState state);

/** Deadline of the state itself in milliseconds, 0: none. PAIR_EVENT_TIMEOUT when it is over. */
unsigned pair_state_timeout_ms(PairState state);

/** The rule table as Markdown, for docs/ARCHITECTURE.md. Free with g_free(). */
char *pair_fsm_to_markdown(void);
