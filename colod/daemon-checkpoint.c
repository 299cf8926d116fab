/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-checkpoint.c - gate callbacks and checkpoint policy
 *
 * One checkpoint at a time: trigger (ingress stopped, then QMP), the gate's points in the order of
 * docs/ARCHITECTURE.md, LOADED, RESUME. With early resume RESUME comes before LOADED; the next one
 * waits for both. QEMU loses a trigger that comes before its RESUME, so the next epoch counts from
 * there, and a trigger that no REQUEST answers is given again. When the next one is due is
 * checkpoint-policy.c's.
 */
#include "daemon-private.h"

#include <stdlib.h>

#include "clock.h"

/* The side that is nearer to a fault must see it first: it can tell who is to blame. So each end
 * gives the other one this much longer than itself (gate.h, GateConfig). */
enum { PEER_MARGIN_MS = 500 };

enum {
    TRIGGER_REPEAT_MS = 300, /* REQUEST follows a trigger within milliseconds */
    /* Lock-stepping: POLICY_BURST differences in that time are as many checkpoints as a buffered
     * network makes in half of it. */
    BURST_MS = 800,
    DENSE_INTERVAL_MS = 50, /* the default of a buffered network */
    CALM_FIRST_S = 5,
    CALM_MAX_S = 60,
    RESUME_GRACE_MS = 1000, /* RESUME follows LOADED; if the event is lost we go on all the same */
};

GateConfig
daemon_gate_config(const Daemon *d)
{
    return (GateConfig){
        .message_timeout_ms = d->config->message_timeout_ms,
        .peer_margin_ms = PEER_MARGIN_MS,
        .transfer_timeout_ms = d->config->transfer_timeout_ms,
        .migration_timeout_ms = d->config->migration_timeout_ms,
        .tail_max_bytes = (guint64)d->config->tail_limit_mib << 20,
        /* In buffered mode all that PVM says waits for the next checkpoint anyway. Lock-stepping
         * guests are to run on at the same moment. */
        .early_resume = !daemon_is_lockstep(d),
    };
}

static void
add_duration(Durations *durations, gint64 us)
{
    durations->us[durations->n++ % DURATION_SAMPLES] = (guint32)CLAMP(us, 0, (gint64)G_MAXUINT32);
}

void
daemon_checkpoints_disks_took(Daemon *d, gint64 ns)
{
    add_duration(&d->checkpoints.disks, ns / NS_PER_US);
}

/* ---- when ---- */

void
daemon_checkpoints_init(Daemon *d)
{
    const Config *config = d->config;

    d->checkpoints.policy.config = (CheckpointPolicyConfig){
        .interval_ns = config->interval_ms * NS_PER_MS,
        .dense_interval_ns = DENSE_INTERVAL_MS * NS_PER_MS,
        .calm_first_ns = CALM_FIRST_S * NS_PER_S,
        .calm_max_ns = CALM_MAX_S * NS_PER_S,
    };
    if (!daemon_is_lockstep(d))
        return;
    d->checkpoints.policy.config.spacing_ns = config->spacing_ms * NS_PER_MS;
    if (config->adaptive)
        d->checkpoints.policy.config.burst_ns = BURST_MS * NS_PER_MS;
}

static void start(Daemon *d);

static gboolean
on_due(gpointer user_data)
{
    Daemon *d = user_data;

    daemon_clear_source(&d->checkpoints.timer);
    start(d);
    return G_SOURCE_REMOVE;
}

/* Starts the next one now or when it is due. */
static void
start_when_due(Daemon *d)
{
    Checkpoints *c = &d->checkpoints;
    const gint64 due_ns = checkpoint_policy_due_ns(&c->policy);
    gint64 wait_ns;

    if (due_ns == G_MAXINT64)
        return;
    daemon_clear_source(&c->timer);
    wait_ns = due_ns - clock_now_ns();
    if (wait_ns <= 0)
        start(d);
    else
        c->timer = daemon_add_timer(d, (unsigned)((wait_ns + NS_PER_MS - 1) / NS_PER_MS), on_due);
}

/* The guest runs and the gate is idle. */
static void
begin_epoch_if_over(Daemon *d)
{
    Checkpoints *c = &d->checkpoints;

    if (c->running || c->awaiting_resume)
        return;
    checkpoint_policy_epoch(&c->policy, c->resumed_ns);
    start_when_due(d);
}

static void
vm_runs(Daemon *d)
{
    Checkpoints *c = &d->checkpoints;

    daemon_clear_source(&c->timer);
    c->awaiting_resume = FALSE;
    c->resumed_ns = clock_now_ns();
    begin_epoch_if_over(d);
}

static gboolean
on_resume_missed(gpointer user_data)
{
    vm_runs(user_data);
    return G_SOURCE_REMOVE;
}

/* QEMU was told to go on. */
static void
await_resume(Daemon *d)
{
    daemon_clear_source(&d->checkpoints.timer);
    d->checkpoints.awaiting_resume = TRUE;
    d->checkpoints.timer = daemon_add_timer(d, RESUME_GRACE_MS, on_resume_missed);
    proxy_set_ingress(d->proxy, TRUE, NULL, NULL);
}

static void
on_trigger_refused(Vm *vm G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Daemon *d = user_data;

    /* The gate's deadline for REQUEST deals with it; this is for the reader of the log. */
    if (error != NULL && d->state == PAIR_PROTECTED)
        event_log_add(d->log, EVENT_WARNING, "checkpoint", "QEMU refused to start one: %s",
                      error->message);
}

static gboolean
on_trigger_unanswered(gpointer user_data)
{
    Daemon *d = user_data;

    if (d->gate == NULL || gate_step(d->gate) != GATE_STEP_IDLE)
        return G_SOURCE_REMOVE;
    vm_checkpoint(d->vm, on_trigger_refused, d);
    return G_SOURCE_CONTINUE;
}

static void
on_ingress_stopped(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    if (!d->checkpoints.running || d->gate == NULL || gate_step(d->gate) != GATE_STEP_IDLE)
        return;
    gate_expect_request(d->gate);
    vm_checkpoint(d->vm, on_trigger_refused, d);
    daemon_clear_source(&d->checkpoints.timer);
    d->checkpoints.timer = daemon_add_timer(d, TRIGGER_REPEAT_MS, on_trigger_unanswered);
}

static void
start(Daemon *d)
{
    Checkpoints *c = &d->checkpoints;

    c->cause = checkpoint_policy_start(&c->policy, clock_now_ns());
    c->running = TRUE;
    proxy_set_ingress(d->proxy, FALSE, on_ingress_stopped, d);
}

void
daemon_checkpoint(Daemon *d, CheckpointCause cause)
{
    if (d->state != PAIR_PROTECTED || d->gate == NULL)
        return;
    checkpoint_policy_ask(&d->checkpoints.policy, cause);
    start_when_due(d);
}

void
daemon_checkpoints_end(Daemon *d, const char *why)
{
    Checkpoints *c = &d->checkpoints;
    ControlRequest *request;

    daemon_clear_source(&c->timer);
    c->running = c->awaiting_resume = FALSE;
    checkpoint_policy_reset(&c->policy);
    c->stopped_us = 0;
    while ((request = daemon_take_waiting(&c->requests)) != NULL)
        control_request_fail(request, "failed", "no checkpoint: %s", why);
}

/* ---- the gate's points ---- */

static void
on_output_held(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    if (d->state != PAIR_MIGRATING || d->gate == NULL)
        return;
    event_log_add(d->log, EVENT_INFO, "output", "held");
    daemon_event(d, PAIR_EVENT_ARMING);
    if (d->state == PAIR_PROTECTED)
        gate_continue(d->gate, GATE_POINT_READY);
}

static void
on_request_quiesced(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    if (d->gate != NULL && gate_stands_at(d->gate, GATE_POINT_REQUEST))
        gate_continue(d->gate, GATE_POINT_REQUEST);
}

static void
at_request(Daemon *d)
{
    Checkpoints *c = &d->checkpoints;

    if (c->running) {
        gate_continue(d->gate, GATE_POINT_REQUEST);
        return;
    }
    daemon_clear_source(&c->timer);
    checkpoint_policy_ask(&c->policy, CAUSE_QEMU);
    c->cause = checkpoint_policy_start(&c->policy, clock_now_ns());
    c->running = TRUE;
    proxy_set_ingress(d->proxy, FALSE, on_request_quiesced, d);
}

static void
on_marked(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    daemon_disks_proxy_ready(user_data);
}

static void
on_quiesced(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    if (d->gate != NULL && gate_stands_at(d->gate, GATE_POINT_QUIESCE))
        gate_continue(d->gate, GATE_POINT_QUIESCE);
}

static void
on_paused(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    if (d->gate != NULL && gate_stands_at(d->gate, GATE_POINT_REPLY))
        gate_continue(d->gate, GATE_POINT_REPLY);
}

static void
on_begun(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    daemon_disks_proxy_ready(user_data);
}

static void
on_point(Gate *gate G_GNUC_UNUSED, GatePoint point, guint64 epoch, gpointer user_data)
{
    Daemon *d = user_data;

    switch (point) {
    case GATE_POINT_READY:
        daemon_network_arm(d, on_output_held);
        break;
    case GATE_POINT_STATE:
        daemon_disks_at_point(d, point, epoch);
        break;
    case GATE_POINT_REQUEST:
        at_request(d);
        break;
    case GATE_POINT_MARK:
        daemon_disks_at_point(d, point, epoch);
        proxy_mark(d->proxy, epoch, on_marked, d);
        break;
    case GATE_POINT_QUIESCE:
        daemon_network_quiesce(d, on_quiesced);
        break;
    case GATE_POINT_REPLY:
        daemon_network_pause(d, on_paused);
        break;
    case GATE_POINT_COMMIT:
        daemon_disks_at_point(d, point, epoch);
        daemon_network_commit(d, epoch, on_begun);
        break;
    case GATE_N_POINTS:
        break;
    }
}

/* ---- the gate's notices ---- */

static void
on_lease_expired(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_WARNING, "lease",
                  "output stays held: the peer has not confirmed a heartbeat for %u ms",
                  d->lease_ms);
}

static void
committed_on_primary(Daemon *d, guint64 epoch)
{
    Checkpoints *c = &d->checkpoints;
    ControlRequest *request;

    daemon_disks_release(d, epoch);
    proxy_release(d->proxy, epoch, daemon_network_lease_ns(d), on_lease_expired, d);
    c->commit_ns = clock_now_ns();
    c->count++;
    c->by_cause[c->cause]++;
    explain_causes_add(&c->recent, c->cause, c->commit_ns);
    while ((request = daemon_take_waiting(&c->requests)) != NULL) {
        json_object *value = json_object_new_object();

        json_object_object_add(value, "epoch", json_object_new_int64((int64_t)epoch));
        control_request_return(request, value);
    }
}

static void
loaded(Daemon *d, Gate *gate)
{
    Checkpoints *c = &d->checkpoints;

    gate_get_figures(gate, &c->figures);
    add_duration(&c->commits, (c->figures.committed_ns - c->figures.request_ns) / NS_PER_US);
    if (d->state != PAIR_PROTECTED)
        return;
    c->running = FALSE;
    if (!daemon_gate_config(d).early_resume)
        await_resume(d);
    begin_epoch_if_over(d);
}

static void
on_notice(Gate *gate, GateNotice notice, guint64 epoch, gpointer user_data)
{
    Daemon *d = user_data;

    switch (notice) {
    case GATE_NOTICE_RAM_DONE:
        event_log_add(d->log, EVENT_INFO, "migration", "memory is copied");
        break;
    case GATE_NOTICE_READY:
        if (d->state == PAIR_PROTECTED) {
            daemon_disks_release(d, 0);
            await_resume(d);
        }
        break;
    case GATE_NOTICE_ARMED:
        daemon_event(d, PAIR_EVENT_ARMED);
        break;
    case GATE_NOTICE_ANSWERED:
        await_resume(d);
        break;
    case GATE_NOTICE_COMMITTED:
        if (d->state == PAIR_PROTECTED) {
            committed_on_primary(d, epoch);
        } else {
            d->checkpoints.count++;
            d->checkpoints.commit_ns = clock_now_ns();
        }
        break;
    case GATE_NOTICE_LOADED:
        loaded(d, gate);
        break;
    case GATE_NOTICE_STALLED:
        event_log_add(d->log, EVENT_WARNING, "stalled",
                      "test hook: the gate stands at step %d (%s)", (int)gate_step(gate),
                      gate_step_name(gate_step(gate)));
        break;
    }
}

static void
on_failed(Gate *gate G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Daemon *d = user_data;
    const gboolean vm_to_blame = g_error_matches(reason, GATE_ERROR, GATE_ERROR_VM_CLOSED) ||
                                 g_error_matches(reason, GATE_ERROR, GATE_ERROR_DEADLINE) ||
                                 g_error_matches(reason, GATE_ERROR, GATE_ERROR_STREAM);

    daemon_set_detail(d, "%s", reason->message);
    event_log_add(d->log, EVENT_WARNING, "gate", "%s", reason->message);
    daemon_event(d, vm_to_blame ? PAIR_EVENT_GATE_VM : PAIR_EVENT_GATE_PEER);
}

const GateHandlers daemon_gate_handlers = {
    .point = on_point,
    .notice = on_notice,
    .failed = on_failed,
};

/* ---- VM ---- */

void
daemon_vm_stopped(Vm *vm G_GNUC_UNUSED, gint64 timestamp_us, gpointer user_data)
{
    Daemon *d = user_data;
    /* Not the stop of the initial migration. */
    const gboolean in_checkpoint =
        (d->state == PAIR_PROTECTED && d->checkpoints.running) || d->state == PAIR_STANDBY;

    d->checkpoints.stopped_us = in_checkpoint ? timestamp_us : 0;
    d->checkpoints.stopped_ns = clock_now_ns();
}

void
daemon_vm_resumed(Vm *vm G_GNUC_UNUSED, gint64 timestamp_us, gpointer user_data)
{
    Daemon *d = user_data;
    Checkpoints *c = &d->checkpoints;

    if (c->stopped_us > 0)
        add_duration(&c->pauses, checkpoint_pause_us(timestamp_us - c->stopped_us,
                                                     (clock_now_ns() - c->stopped_ns) / NS_PER_US));
    c->stopped_us = 0;
    if (c->awaiting_resume)
        vm_runs(d);
}
