/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-private.h - what the daemon's files share
 *
 *   daemon.c             life, state machine loop, timers
 *   daemon-state.c       saving, claims, generations
 *   daemon-actions.c     what the state machine asks for: VM, proxy, gate
 *   daemon-peer.c        messages to and from the peer
 *   daemon-checkpoint.c  gate callbacks and checkpoint policy
 *   daemon-network.c     the proxy: modes, frames channel, lease, differences
 *   daemon-disk.c        disks; daemon-disk-life.c: of the configuration, and their status
 *   daemon-control.c     control socket
 *   daemon-explain.c     why checkpoints happen
 *   daemon-status.c      status
 *
 * All of it runs in the main thread.
 */
#pragma once

#include "arbiter.h"
#include "checkpoint-policy.h"
#include "config.h"
#include "control-server.h"
#include "daemon.h"
#include "event-log.h"
#include "explain.h"
#include "gate.h"
#include "loop-watch.h"
#include "pair-fsm.h"
#include "peer-link.h"
#include "proxy.h"
#include "selftest.h"
#include "state-file.h"
#include "vm.h"

#include <glib.h>
#include <json-c/json.h>

enum { DURATION_SAMPLES = 1024 };

/* The last of them, for percentiles. */
typedef struct Durations {
    guint32 us[DURATION_SAMPLES];
    guint n; /* ever */
} Durations;

typedef struct Checkpoints {
    CheckpointPolicy policy;
    gboolean running;         /* from trigger to LOADED */
    gboolean awaiting_resume; /* QEMU was told to go on and has not said RESUME */
    CheckpointCause cause;    /* of the one that runs */
    GSource *timer;           /* the next one is due; QEMU is to answer; RESUME is to come */
    gint64 resumed_ns;
    guint64 count;
    guint64 by_cause[N_CAUSES];
    ExplainCauses recent;
    gint64 stopped_us; /* QEMU's clock at STOP, 0: runs */
    gint64 stopped_ns; /* ours when we heard of it */
    Durations pauses;  /* of the local guest, STOP to RESUME */
    Durations disks;   /* their part: barrier (primary), checkpoint (secondary) */
    Durations commits; /* REQUEST to COMMITTED: how long the output waits beyond its epoch */
    gint64 commit_ns;
    GateFigures figures;
    GQueue requests; /* Waiting: `colo checkpoint`, ended at the next COMMITTED */
} Checkpoints;

/* A control request that waits, in a queue, for a state or a checkpoint; not for ever. */
typedef struct Waiting {
    Daemon *daemon;
    GQueue *queue;
    ControlRequest *request;
    GSource *timer;
} Waiting;

typedef struct Disks Disks;
typedef struct SaveJob SaveJob;
typedef void (*SavedFunc)(Daemon *d, gboolean saved, gpointer user_data);

/* For what may end after the daemon: reference counted (g_rc_box), NULL once it is gone. */
typedef struct DaemonRef {
    Daemon *daemon;
} DaemonRef;

struct Daemon {
    DaemonRef *self;
    Config *config;
    char *run_dir, *state_path, *selftest_path, *migration_path;
    char *guest_digest;
    EventLog *log;
    ControlServer *control;
    PeerLink *link;
    Arbiter *arbiter;
    Selftest *selftest;

    PairState state;
    PairFacts facts;
    GQueue events; /* PairEvent + 1 */
    gboolean stepping;
    PairState stall_state; /* test hook: where to stand still; BOOT, which nobody enters: nowhere */
    char *detail;          /* what the last failure said, for `status` */
    char *peer_dates;      /* why the peer's certificate was refused; NULL since the link is up */
    GSource *state_timer, *retry_timer, *lonely_timer;
    LoopWatch *loop_watch;
    unsigned retry_ms;

    HostState wanted_state; /* newest that was asked to be saved; facts follow what is saved */
    GQueue saves;           /* SaveJob */
    gboolean saving;

    guint claim_serial;     /* changes with the state: older answers are void */
    guint64 claim;          /* generation being claimed or proposed */
    guint64 arbiter_newest; /* newest generation the arbiter told us of */
    guint64 peer_proposal;

    Vm *vm;
    Proxy *proxy;
    Disks *disks;
    Gate *gate;
    int migration_fd; /* listening for PVM's migration */
    GSource *migration_accept;
    GIOStream *incoming_stream; /* secondary: until the primary migrates */
    gboolean streams_used;      /* the link's checkpoint channel belongs to a gate, or did */
    Checkpoints checkpoints;

    char *peer_software, *peer_qemu_version;
    gboolean peer_said_state;
    unsigned lease_ms;    /* the smaller one of the two hosts' heartbeat limits */
    gboolean output_held; /* handing over: there is no lease, until output is opened or dropped */
    gboolean selftest_done, selftest_ok, return_path;
    char *selftest_text, *qemu_version;

    GQueue waiting; /* Waiting: `colo failover` until this host runs the VM */
    void (*shut_down_done)(gpointer user_data);
    gpointer shut_down_data;
    GSource *shut_down_timer;
};

/* daemon.c */
/* Steps the state machine and acts; from within a step: after it. */
void daemon_event(Daemon *d, PairEvent event);
/* What failed last: `status` shows it until the pair is protected again. */
void daemon_set_detail(Daemon *d, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Calls @func with @d after @ms, again and again unless it returns G_SOURCE_REMOVE. The caller owns
 * the source: daemon_clear_source(). */
GSource *daemon_add_timer(Daemon *d, unsigned ms, GSourceFunc func);
void daemon_clear_source(GSource **source);
/* Reads facts anew from what is saved and from the parts. */
void daemon_refresh_facts(Daemon *d);
/* PAIR_EVENT_RETRY after a while, that doubles from one time to the next up to a bound. */
void daemon_retry_later(Daemon *d);
/* Ends a shut-down under way once the state and the disk are in order. */
void daemon_finish_shut_down(Daemon *d);

/* daemon-state.c */
/* Saves `wanted_state` as it is now. @func (or NULL) is called from the main loop, with whether it
 * is on the disk. */
void daemon_save(Daemon *d, SavedFunc func, gpointer user_data);
/* Asks the arbiter for the next generation; the answer is an event. @operator_decides: also past
 * what others have left at the arbiter. */
void daemon_claim(Daemon *d, gboolean operator_decides);
/* The next generation is ours because the peer has said so. */
void daemon_grant(Daemon *d);
/* Saves that this host is not to be primary of the proposed generation, then tells the peer. */
void daemon_consent(Daemon *d);
/* Tells the peer which generation this host would start with. */
void daemon_propose(Daemon *d);
/* Saves that this host has no VM any more, then tells the peer. */
void daemon_give_up(Daemon *d);
/* An idle host follows the newest generation it hears of. */
void daemon_follow_generation(Daemon *d, guint64 generation);
/* Asks the arbiter what is the newest generation; then PAIR_EVENT_BOOT. */
void daemon_boot(Daemon *d);

/* daemon-actions.c */
void daemon_act(Daemon *d, PairAction action);
/* Ends the migration stream and all that belongs to it. */
void daemon_close_gate(Daemon *d);
/* Secondary: the stream is about to come. */
void daemon_peer_migrates(Daemon *d);
/* QEMU is gone: its gate, proxy and disks go too. */
void daemon_forget_vm(Daemon *d);
/* The end of daemon_disks_start() and of daemon_disks_adopt(). */
void daemon_disks_started(Daemon *d, const char *problem);
void daemon_disks_adopted(Daemon *d, const char *problem);

/* daemon-peer.c */
gboolean daemon_start_link(Daemon *d, GError **error);
/* These send one message (docs/PROTOCOL.md), or nothing while the link is down. @reason may be
 * NULL. */
void daemon_send_state(Daemon *d);
void daemon_send_generation(Daemon *d, PeerMessageType type, guint64 generation,
                            const char *reason);
void daemon_send_prepare(Daemon *d);
/* The channels serve one protection: takes the link down if they were used, so that it comes anew.
 */
void daemon_renew_link(Daemon *d, const char *why);

/* daemon-checkpoint.c */
extern const GateHandlers daemon_gate_handlers;
void daemon_checkpoints_init(Daemon *d);
/* Wants one; when it begins is the policy's to say. While the pair is not protected: nothing. */
void daemon_checkpoint(Daemon *d, CheckpointCause cause);
/* Protection is over: requests that wait for a checkpoint fail, with @why. */
void daemon_checkpoints_end(Daemon *d, const char *why);
/* The disks' part of a checkpoint, for `status`. */
void daemon_checkpoints_disks_took(Daemon *d, gint64 ns);
void daemon_vm_stopped(Vm *vm, gint64 timestamp_us, gpointer user_data);
void daemon_vm_resumed(Vm *vm, gint64 timestamp_us, gpointer user_data);
GateConfig daemon_gate_config(const Daemon *d);

/* daemon-network.c */
gboolean daemon_is_lockstep(const Daemon *d);
/* For a VM about to be started, or (@adopt_fds) one that runs. */
gboolean daemon_make_proxy(Daemon *d, const int *adopt_fds, GError **error);
/** The VM was started and is noted. */
void daemon_network_started(Daemon *d);
/** The VM is gone: the proxy goes, and what it kept for the next daemon. */
void daemon_network_forget(Daemon *d);
/* Takes the frames channel if it is needed. FALSE: there is none. */
gboolean daemon_network_attach_peer(Daemon *d);
void daemon_network_detach_peer(Daemon *d);
/* As secondary: nothing of what SVM says leaves. */
void daemon_network_stand_by(Daemon *d);
/* Until when output may leave: the peer does not act on our silence before. CLOCK_MONOTONIC. */
int64_t daemon_network_lease_ns(const Daemon *d);
void daemon_network_renew_lease(Daemon *d);
/* Output is held, lease or not, until another mode is set. */
void daemon_network_hold(Daemon *d);
/* The gate's points; the callback goes on from there. */
void daemon_network_arm(Daemon *d, ProxyDoneFunc armed);
void daemon_network_quiesce(Daemon *d, ProxyDoneFunc quiesced);
void daemon_network_pause(Daemon *d, ProxyDoneFunc paused);
void daemon_network_commit(Daemon *d, guint64 epoch, ProxyDoneFunc begun);

/* daemon-disk.c */
void daemon_disks_init(Daemon *d);
void daemon_disks_free(Daemon *d);
/* Reads what is on this host: while no VM runs. */
void daemon_disks_refresh_facts(Daemon *d);
/* Why the VM must not start from the disks here, or NULL. */
const char *daemon_disks_unfit(const Daemon *d);
/** The fault because of which the pair is not protected; NULL: none, or not a disk's. */
const char *daemon_disks_problem(const Daemon *d);
void daemon_disks_set_problem(Daemon *d, const char *text);
/* What SVM sees can become the truth. */
gboolean daemon_disks_whole(const Daemon *d);
/* No failover is left to be committed or moved to the local image. */
gboolean daemon_disks_settled(const Daemon *d);
/* An operation is under way. */
gboolean daemon_disks_busy(const Daemon *d);
gboolean daemon_disks_want_checkpoint(const Daemon *d);
/* Another state: what the last one waited for is void. */
void daemon_disks_new_state(Daemon *d);
/* Before QEMU starts, and when it was found running; may end from within. */
void daemon_disks_start(Daemon *d, gboolean incoming);
GPtrArray *daemon_disks_arguments(const Daemon *d, gboolean incoming);
void daemon_disks_adopt(Daemon *d);
void daemon_disks_stop(Daemon *d);
void daemon_disks_connect(Daemon *d);
/* -1: nothing is copied. */
int daemon_disks_sync_percent(const Daemon *d);
/* Beside QEMU's way out of COLO; VM_RUNNING when both are through. */
void daemon_disks_leave(Daemon *d);
void daemon_disks_vm_left(Daemon *d);
/* The failover is what the state still waits for. */
gboolean daemon_disks_leaving(const Daemon *d);
/* The guest goes on without the peer; disks that were committed move to the local image. */
void daemon_disks_alone(Daemon *d);
void daemon_disks_move(Daemon *d);
/* STATE, MARK, COMMIT: the gate goes on when disks and proxy are through. */
void daemon_disks_at_point(Daemon *d, GatePoint point, guint64 epoch);
void daemon_disks_proxy_ready(Daemon *d);
/* Lets the gate go on if proxy and disks have done their part. */
void daemon_disks_pass(Daemon *d);
void daemon_disks_release(Daemon *d, guint64 epoch);
void daemon_disks_verify(Daemon *d, ControlRequest *request);
json_object *daemon_disks_status(const Daemon *d);

/* daemon-control.c */
gboolean daemon_start_control(Daemon *d, GError **error);
/* The first request that waits in @queue, for the caller to answer; NULL: none does. */
ControlRequest *daemon_take_waiting(GQueue *queue);
/* Commands that wait until the VM runs here: done, or failed. */
void daemon_end_waiting(Daemon *d);
void daemon_drop_waiting(Daemon *d);

/* daemon-explain.c */
/* Answers @request, which it takes. @save_dir: where captures are written, or NULL. */
void daemon_explain(Daemon *d, ControlRequest *request, const char *save_dir);

/* daemon-status.c */
/* New objects and strings; the caller's. */
json_object *daemon_status(const Daemon *d);
gboolean daemon_is_protected(const Daemon *d);
char *daemon_reason(const Daemon *d);
