/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-control.c - control socket: commands and status (docs/PROTOCOL.md, "Control socket") */
#include "daemon-private.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum { DEFAULT_WAIT_MS = 30000, MAX_WAIT_MS = 600000 };

/* ---- status ---- */

gboolean
daemon_is_protected(const Daemon *d)
{
    return d->state == PAIR_PROTECTED || d->state == PAIR_STANDBY;
}

static gboolean
has_detail(const Daemon *d)
{
    return d->detail != NULL && d->detail[0] != '\0';
}

static char *
alone_reason(const Daemon *d)
{
    if (!d->facts.wants_protection)
        return g_strdup("suspended by the operator: `colo protect` ends it");
    if (!d->selftest_done)
        return g_strdup("starting: self-test of QEMU is under way");
    if (!d->selftest_ok)
        return g_strdup_printf("this QEMU cannot do COLO: %s", d->selftest_text);
    if (!d->facts.peer_up)
        return g_strdup_printf("need secondary: host %s is not connected", d->config->peer_host);
    if (has_detail(d))
        return g_strdup_printf("need secondary: %s", d->detail);
    return g_strdup_printf("need secondary: host %s is %s", d->config->peer_host,
                           pair_state_name(d->facts.peer_state));
}

static char *
idle_reason(const Daemon *d)
{
    if (d->facts.stale)
        return g_strdup_printf("%s; `colo failover` starts the VM here all the same",
                               has_detail(d) ? d->detail : "stale generation");
    if (!d->facts.peer_up)
        return g_strdup_printf("VM not running: waiting for host %s%s%s", d->config->peer_host,
                               has_detail(d) ? ": " : "", has_detail(d) ? d->detail : "");
    if (pair_state_has_vm(d->facts.peer_state))
        return g_strdup_printf("host %s runs the VM; waiting to become its secondary%s%s",
                               d->config->peer_host, has_detail(d) ? ": " : "",
                               has_detail(d) ? d->detail : "");
    return g_strdup_printf("VM not running%s%s", has_detail(d) ? ": " : "",
                           has_detail(d) ? d->detail : "");
}

static char *
claim_reason(const Daemon *d)
{
    if (d->config->arbiter == CONFIG_ARBITER_MANUAL)
        return g_strdup_printf(
            "failing over: %s; output is held until `colo failover` is given on the "
            "host that is to go on",
            has_detail(d) ? d->detail : "peer lost");
    return g_strdup_printf("failing over: %s", has_detail(d) ? d->detail : "asking the arbiter");
}

char *
daemon_reason(const Daemon *d)
{
    switch (d->state) {
    case PAIR_BOOT:
    case PAIR_STARTING:
    case PAIR_ADOPTING:
        return g_strdup("starting");
    case PAIR_IDLE:
        return idle_reason(d);
    case PAIR_OFF:
        return g_strdup("VM not running: shut down; `colo failover` starts it here");
    case PAIR_CLAIM_START:
        return g_strdup_printf("VM not running: claiming generation %" G_GUINT64_FORMAT, d->claim);
    case PAIR_ALONE:
        return alone_reason(d);
    case PAIR_PREPARING:
    case PAIR_INCOMING_START:
        return g_strdup("starting the secondary");
    case PAIR_MIGRATING:
    case PAIR_INCOMING:
        return g_strdup("copying memory");
    case PAIR_PROTECTED:
    case PAIR_STANDBY:
        return g_strdup("");
    case PAIR_ADOPT_CLAIM:
    case PAIR_CLAIM_PRIMARY:
    case PAIR_CLAIM_SECONDARY:
        return claim_reason(d);
    case PAIR_JUDGING:
    case PAIR_RESUMING:
    case PAIR_TAKING_OVER:
        return g_strdup_printf("failing over: %s", has_detail(d) ? d->detail : "");
    case PAIR_STOPPING:
        return g_strdup_printf("fenced: %s", has_detail(d) ? d->detail : "stopping the VM");
    case PAIR_N_STATES:
        break;
    }
    return g_strdup("");
}

static void
add_string(json_object *object, const char *key, const char *value)
{
    json_object_object_add(object, key, value ? json_object_new_string(value) : NULL);
}

static void
add_int(json_object *object, const char *key, gint64 value)
{
    json_object_object_add(object, key, json_object_new_int64(value));
}

static int
compare_u32(const void *a, const void *b)
{
    const guint32 x = *(const guint32 *)a, y = *(const guint32 *)b;

    return (x > y) - (x < y);
}

static json_object *
pause_status(const Checkpoints *c)
{
    json_object *object = json_object_new_object();
    guint32 sorted[PAUSE_SAMPLES];
    const guint n = MIN(c->n_pauses, PAUSE_SAMPLES);

    if (n == 0)
        return object;
    memcpy(sorted, c->pause_us, n * sizeof(sorted[0]));
    qsort(sorted, n, sizeof(sorted[0]), compare_u32);
    add_int(object, "last", c->pause_us[(c->n_pauses - 1) % PAUSE_SAMPLES]);
    add_int(object, "p50", sorted[n / 2]);
    add_int(object, "p99", sorted[n - 1 - n / 100]);
    return object;
}

static json_object *
checkpoint_status(const Daemon *d)
{
    const Checkpoints *c = &d->checkpoints;
    json_object *object = json_object_new_object();
    json_object *causes = json_object_new_object();

    for (unsigned i = 0; i < N_CAUSES; i++)
        add_int(causes, daemon_cause_name((CheckpointCause)i), (gint64)c->by_cause[i]);
    add_int(object, "count", (gint64)c->count);
    add_int(object, "interval_ms", d->config->interval_ms);
    add_string(object, "step", d->gate ? gate_step_name(gate_step(d->gate)) : "none");
    json_object_object_add(object, "pause_us", pause_status(c));
    add_int(object, "bytes_last", (gint64)c->figures.bytes);
    add_int(object, "pages_last", (gint64)c->figures.pages);
    json_object_object_add(object, "by_cause", causes);
    if (c->commit_ns > 0)
        add_int(object, "since_commit_ms", (clock_now_ns() - c->commit_ns) / NS_PER_MS);
    return object;
}

static const char *
egress_name(const Daemon *d)
{
    switch (d->state) {
    case PAIR_ALONE:
    case PAIR_PREPARING:
    case PAIR_MIGRATING:
        return "open";
    case PAIR_PROTECTED:
    case PAIR_JUDGING:
    case PAIR_CLAIM_PRIMARY:
    case PAIR_RESUMING:
        return "held";
    case PAIR_INCOMING:
    case PAIR_STANDBY:
    case PAIR_CLAIM_SECONDARY:
    case PAIR_TAKING_OVER:
        return "kept";
    case PAIR_BOOT:
    case PAIR_IDLE:
    case PAIR_OFF:
    case PAIR_CLAIM_START:
    case PAIR_STARTING:
    case PAIR_ADOPTING:
    case PAIR_ADOPT_CLAIM:
    case PAIR_INCOMING_START:
    case PAIR_STOPPING:
    case PAIR_N_STATES:
        break;
    }
    return "dropped";
}

static json_object *
network_status(const Daemon *d)
{
    json_object *object = json_object_new_object();
    json_object *hold = json_object_new_object();
    ProxyStats stats = {0};

    if (d->proxy != NULL)
        proxy_get_stats(d->proxy, &stats);
    add_string(object, "mode", "buffered");
    add_string(object, "egress", egress_name(d));
    add_int(object, "held_frames", (gint64)stats.held_frames);
    add_int(object, "held_bytes", (gint64)stats.held_bytes);
    add_int(object, "held_bytes_peak", (gint64)stats.held_bytes_peak);
    add_int(object, "egress_frames", (gint64)stats.egress_frames);
    add_int(object, "egress_bytes", (gint64)stats.egress_bytes);
    add_int(object, "ingress_frames", (gint64)stats.ingress_frames);
    add_int(object, "ingress_bytes", (gint64)stats.ingress_bytes);
    add_int(object, "dropped_frames", (gint64)stats.dropped_frames);
    add_int(object, "lost_frames", (gint64)stats.lost_frames);
    add_int(hold, "p50", (gint64)stats.hold_us_p50);
    add_int(hold, "p99", (gint64)stats.hold_us_p99);
    json_object_object_add(object, "hold_us", hold);
    return object;
}

static json_object *
peer_status(const Daemon *d)
{
    json_object *object = json_object_new_object();

    add_string(object, "name", d->config->peer_host);
    json_object_object_add(object, "connected", json_object_new_boolean(peer_link_is_up(d->link)));
    add_string(object, "state", d->facts.peer_up ? pair_state_name(d->facts.peer_state) : NULL);
    if (d->facts.peer_up)
        add_int(object, "generation", (gint64)d->facts.peer_generation);
    add_string(object, "software", d->peer_software);
    return object;
}

static json_object *
status(const Daemon *d)
{
    json_object *object = json_object_new_object();
    json_object *qemu = json_object_new_object();
    g_autofree char *reason = daemon_reason(d);

    add_string(object, "vm", d->config->vm_name);
    add_string(object, "host", d->config->host);
    add_string(object, "role", pair_state_role(d->state));
    add_string(object, "state", pair_state_name(d->state));
    json_object_object_add(object, "protected", json_object_new_boolean(daemon_is_protected(d)));
    add_string(object, "reason", reason);
    add_int(object, "generation", (gint64)d->facts.generation);
    json_object_object_add(object, "peer", peer_status(d));
    add_string(qemu, "path", d->config->qemu);
    add_string(qemu, "version", d->qemu_version);
    if (d->vm != NULL)
        add_int(qemu, "pid", vm_pid(d->vm));
    json_object_object_add(object, "qemu", qemu);
    json_object_object_add(object, "checkpoint", checkpoint_status(d));
    json_object_object_add(object, "network", network_status(d));
    return object;
}

/* ---- commands that wait ---- */

static void
waiting_free(Waiting *waiting)
{
    daemon_clear_source(&waiting->timer);
    g_free(waiting);
}

void
daemon_end_waiting(Daemon *d)
{
    Waiting *waiting;

    while ((waiting = g_queue_pop_head(&d->waiting)) != NULL) {
        control_request_return(waiting->request, NULL);
        waiting_free(waiting);
    }
}

void
daemon_drop_waiting(Daemon *d)
{
    Waiting *waiting;

    while ((waiting = g_queue_pop_head(&d->waiting)) != NULL) {
        g_autofree char *reason = daemon_reason(d);

        control_request_fail(waiting->request, "failed", "this host does not run the VM: %s",
                             reason);
        waiting_free(waiting);
    }
}

static gboolean
on_waiting_timeout(gpointer user_data)
{
    Waiting *waiting = user_data;
    g_autofree char *reason = daemon_reason(waiting->daemon);

    g_queue_remove(&waiting->daemon->waiting, waiting);
    control_request_fail(waiting->request, "timeout", "not done in time: %s", reason);
    waiting_free(waiting);
    return G_SOURCE_REMOVE;
}

/* An argument that may be left out. FALSE: it is no whole number of the range, and the request was
 * failed. */
static gboolean
get_int(ControlRequest *request, json_object *arguments, const char *key, gint64 min, gint64 max,
        gint64 *value)
{
    json_object *member;

    if (arguments == NULL || !json_object_object_get_ex(arguments, key, &member))
        return TRUE;
    if (!json_object_is_type(member, json_type_int) || json_object_get_int64(member) < min ||
        json_object_get_int64(member) > max) {
        control_request_fail(request, "usage",
                             "%s must be a whole number from %" G_GINT64_FORMAT
                             " to %" G_GINT64_FORMAT,
                             key, min, max);
        return FALSE;
    }
    *value = json_object_get_int64(member);
    return TRUE;
}

static void
wait_until_alone(Daemon *d, ControlRequest *request, gint64 timeout_ms)
{
    Waiting *waiting = g_new0(Waiting, 1);

    waiting->daemon = d;
    waiting->request = request;
    waiting->timer = g_timeout_source_new((guint)timeout_ms);
    g_source_set_callback(waiting->timer, on_waiting_timeout, waiting, NULL);
    g_source_attach(waiting->timer, g_main_context_get_thread_default());
    g_queue_push_tail(&d->waiting, waiting);
}

/* ---- commands ---- */

typedef void (*CommandFunc)(Daemon *d, ControlRequest *request, json_object *arguments);

static gboolean
accepts(Daemon *d, PairEvent event)
{
    daemon_refresh_facts(d);
    return pair_fsm_step(d->state, event, &d->facts).why != NULL;
}

static void
command_status(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    control_request_return(request, status(d));
}

static void
command_events(Daemon *d, ControlRequest *request, json_object *arguments)
{
    json_object *value;
    gint64 after = 0;

    if (!get_int(request, arguments, "after", 0, G_MAXINT64, &after))
        return;
    value = json_object_new_object();
    json_object_object_add(value, "events", event_log_list(d->log, (guint64)after));
    control_request_return(request, value);
}

static void
command_checkpoint(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    if (d->state != PAIR_PROTECTED) {
        control_request_fail(request, "refused",
                             "checkpoints are made by a protected primary; this host is %s",
                             pair_state_name(d->state));
        return;
    }
    g_queue_push_tail(&d->checkpoints.requests, request);
    daemon_checkpoint(d, CAUSE_OPERATOR);
}

static void
command_failover(Daemon *d, ControlRequest *request, json_object *arguments)
{
    gint64 timeout_ms = DEFAULT_WAIT_MS;

    if (!get_int(request, arguments, "timeout_ms", 1, MAX_WAIT_MS, &timeout_ms))
        return;
    if (!accepts(d, PAIR_EVENT_OP_FAILOVER)) {
        control_request_fail(request, "refused",
                             "this host is %s: give the command on the host that is to take over",
                             pair_state_name(d->state));
        return;
    }
    event_log_add(d->log, EVENT_INFO, "operator", "failover");
    wait_until_alone(d, request, timeout_ms);
    daemon_event(d, PAIR_EVENT_OP_FAILOVER);
}

static void
set_wanted(Daemon *d, ControlRequest *request, gboolean wanted)
{
    event_log_add(d->log, EVENT_INFO, "operator", "%s", wanted ? "protect" : "unprotect");
    d->facts.wants_protection = wanted;
    d->wanted_state.unprotect = !wanted;
    daemon_save(d, NULL, NULL);
    daemon_event(d, wanted ? PAIR_EVENT_OP_PROTECT : PAIR_EVENT_OP_UNPROTECT);
    control_request_return(request, NULL);
}

static void
command_protect(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    set_wanted(d, request, TRUE);
}

static void
command_unprotect(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    if (g_str_equal(pair_state_role(d->state), "secondary")) {
        control_request_fail(request, "refused",
                             "this host is the secondary: give the command on %s",
                             d->config->peer_host);
        return;
    }
    set_wanted(d, request, FALSE);
}

static void
command_stop_vm(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    if (!accepts(d, PAIR_EVENT_OP_STOP)) {
        control_request_fail(request, "refused", "this host is %s: give the command on the primary",
                             pair_state_name(d->state));
        return;
    }
    event_log_add(d->log, EVENT_INFO, "operator", "stop-vm");
    d->facts.off_wanted = TRUE;
    daemon_event(d, PAIR_EVENT_OP_STOP);
    control_request_return(request, NULL);
}

static gboolean
hooks_allowed(Daemon *d, ControlRequest *request)
{
    if (!d->config->test_hooks)
        control_request_fail(request, "refused", "set hooks=true in [test] first");
    else if (d->gate == NULL)
        control_request_fail(request, "refused", "no checkpoint tunnel in state %s",
                             pair_state_name(d->state));
    return d->config->test_hooks && d->gate != NULL;
}

static void
command_test_stall(Daemon *d, ControlRequest *request, json_object *arguments)
{
    json_object *step;

    if (!hooks_allowed(d, request))
        return;
    if (arguments == NULL || !json_object_object_get_ex(arguments, "step", &step) ||
        json_object_get_int(step) < GATE_STEP_REQUEST ||
        json_object_get_int(step) > GATE_STEP_LOAD) {
        control_request_fail(request, "usage", "step must be 1 to 7");
        return;
    }
    gate_set_stall(d->gate, (GateStep)json_object_get_int(step));
    control_request_return(request, NULL);
}

static void
command_test_corrupt(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    if (!hooks_allowed(d, request))
        return;
    gate_corrupt_next(d->gate);
    control_request_return(request, NULL);
}

static const struct {
    const char *name;
    CommandFunc func;
} commands[] = {
    {"status", command_status},
    {"events", command_events},
    {"checkpoint", command_checkpoint},
    {"failover", command_failover},
    {"protect", command_protect},
    {"unprotect", command_unprotect},
    {"stop-vm", command_stop_vm},
    {"test-stall", command_test_stall},
    {"test-corrupt", command_test_corrupt},
};

static void
on_command(ControlRequest *request, const char *command, json_object *arguments, gpointer user_data)
{
    for (gsize i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(commands[i].name, command) == 0) {
            commands[i].func(user_data, request, arguments);
            return;
        }
    }
    control_request_fail(request, "usage", "unknown command \"%s\"", command);
}

gboolean
daemon_start_control(Daemon *d, GError **error)
{
    g_autofree char *path = g_build_filename(d->run_dir, "control.sock", NULL);

    d->control = control_server_new(path, d->log, on_command, d, error);
    return d->control != NULL;
}
