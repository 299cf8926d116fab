/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-control.c - control socket: commands (docs/PROTOCOL.md, "Control socket") */
#include "daemon-private.h"

#include "source.h"

#include <string.h>

enum {
    DEFAULT_WAIT_MS = 30000,
    MAX_WAIT_MS = 24 * 3600 * 1000, /* the most that `colo --timeout` takes */
};

/* ---- commands that wait ---- */

static ControlRequest *
waiting_end(Waiting *waiting)
{
    ControlRequest *request = waiting->request;

    daemon_clear_source(&waiting->timer);
    g_free(waiting);
    return request;
}

ControlRequest *
daemon_take_waiting(GQueue *queue)
{
    Waiting *waiting = g_queue_pop_head(queue);

    return waiting != NULL ? waiting_end(waiting) : NULL;
}

void
daemon_end_waiting(Daemon *d)
{
    ControlRequest *request;

    while ((request = daemon_take_waiting(&d->waiting)) != NULL)
        control_request_return(request, NULL);
}

void
daemon_drop_waiting(Daemon *d)
{
    ControlRequest *request;

    while ((request = daemon_take_waiting(&d->waiting)) != NULL) {
        g_autofree char *reason = daemon_reason(d);

        control_request_fail(request, "failed", "this host does not run the VM: %s", reason);
    }
}

static gboolean
on_waiting_timeout(gpointer user_data)
{
    Waiting *waiting = user_data;
    g_autofree char *reason = daemon_reason(waiting->daemon);

    g_queue_remove(waiting->queue, waiting);
    control_request_fail(waiting_end(waiting), "timeout", "not done in time%s%s",
                         *reason ? ": " : "", reason);
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
wait_in(GQueue *queue, Daemon *d, ControlRequest *request, gint64 timeout_ms)
{
    Waiting *waiting = g_new0(Waiting, 1);

    waiting->daemon = d;
    waiting->queue = queue;
    waiting->request = request;
    source_set_timeout(&waiting->timer, g_main_context_get_thread_default(), (unsigned)timeout_ms,
                       on_waiting_timeout, waiting);
    g_queue_push_tail(queue, waiting);
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
    control_request_return(request, daemon_status(d));
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
command_explain(Daemon *d, ControlRequest *request, json_object *arguments)
{
    json_object *save = NULL;

    if (arguments == NULL || !json_object_object_get_ex(arguments, "save", &save)) {
        daemon_explain(d, request, NULL);
        return;
    }
    if (!json_object_is_type(save, json_type_string) ||
        !g_path_is_absolute(json_object_get_string(save))) {
        control_request_fail(request, "usage", "save must be the absolute path of a folder");
        return;
    }
    daemon_explain(d, request, json_object_get_string(save));
}

static void
command_checkpoint(Daemon *d, ControlRequest *request, json_object *arguments)
{
    gint64 timeout_ms = DEFAULT_WAIT_MS;

    if (!get_int(request, arguments, "timeout_ms", 1, MAX_WAIT_MS, &timeout_ms))
        return;
    if (d->state != PAIR_PROTECTED) {
        control_request_fail(request, "refused",
                             "checkpoints are made by a protected primary; this host is %s",
                             pair_state_name(d->state));
        return;
    }
    wait_in(&d->checkpoints.requests, d, request, timeout_ms);
    daemon_checkpoint(d, CAUSE_OPERATOR);
}

static void
command_failover(Daemon *d, ControlRequest *request, json_object *arguments)
{
    gint64 timeout_ms = DEFAULT_WAIT_MS;

    if (!get_int(request, arguments, "timeout_ms", 1, MAX_WAIT_MS, &timeout_ms))
        return;
    if (!accepts(d, PAIR_EVENT_OP_FAILOVER)) {
        if (!pair_state_has_vm(d->state) && d->facts.disks_unfit) {
            control_request_fail(request, "refused", "the VM must not start from the disk here: %s",
                                 daemon_disks_unfit(d));
            return;
        }
        if (!pair_state_has_vm(d->state) && d->facts.peer_up && !d->facts.peer_disks_unfit &&
            d->facts.peer_disk_generation > d->facts.disk_generation) {
            control_request_fail(request, "refused",
                                 "the disk of host %s is newer: give the command there",
                                 d->config->peer_host);
            return;
        }
        control_request_fail(request, "refused",
                             "this host is %s: give the command on the host that is to take over",
                             pair_state_name(d->state));
        return;
    }
    event_log_add(d->log, EVENT_INFO, "operator", "failover");
    wait_in(&d->waiting, d, request, timeout_ms);
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

static void
command_verify(Daemon *d, ControlRequest *request, json_object *arguments G_GNUC_UNUSED)
{
    event_log_add(d->log, EVENT_INFO, "operator", "verify");
    daemon_disks_verify(d, request);
}

/* A point of a failover, or of any other way of the state machine; `boot` is nowhere. */
static void
stall_at_state(Daemon *d, ControlRequest *request, const char *name)
{
    const PairState state = pair_state_from_name(name);

    if (!d->config->test_hooks) {
        control_request_fail(request, "refused", "set hooks=true in [test] first");
    } else if (state == PAIR_N_STATES) {
        control_request_fail(request, "usage", "no such state: \"%s\"", name != NULL ? name : "");
    } else {
        d->stall_state = state;
        control_request_return(request, NULL);
    }
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

    if (arguments != NULL && json_object_object_get_ex(arguments, "state", &step)) {
        stall_at_state(d, request, json_object_get_string(step));
        return;
    }
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

/* -1: no such place. */
static int
find_loss(const char *name)
{
    static const char *const names[] = {
        [PROXY_LOSE_AT_ENGINE] = "at-engine",
        [PROXY_LOSE_PRIMARY_EGRESS] = "primary-egress",
        [PROXY_LOSE_RELEASE] = "release",
        [PROXY_LOSE_MIRROR] = "mirror",
        [PROXY_LOSE_SECONDARY_INGRESS] = "secondary-ingress",
        [PROXY_LOSE_REWRITER_INGRESS] = "rewriter-ingress",
        [PROXY_LOSE_REWRITER_EGRESS] = "rewriter-egress",
        [PROXY_LOSE_SECONDARY_EGRESS] = "secondary-egress",
    };

    G_STATIC_ASSERT(G_N_ELEMENTS(names) == PROXY_N_LOSSES);
    for (int i = 0; i < PROXY_N_LOSSES; i++)
        if (name != NULL && strcmp(names[i], name) == 0)
            return i;
    return -1;
}

static void
command_test_lose(Daemon *d, ControlRequest *request, json_object *arguments)
{
    gint64 frames = 1;
    json_object *place = NULL;
    int which;

    if (!hooks_allowed(d, request) ||
        !get_int(request, arguments, "frames", 1, G_MAXUINT16, &frames))
        return;
    if (arguments != NULL)
        (void)json_object_object_get_ex(arguments, "place", &place);
    which = find_loss(json_object_get_string(place));
    if (which < 0 || !daemon_is_lockstep(d)) {
        control_request_fail(request, "usage", "%s",
                             which < 0 ? "no such place" : "nothing is compared here");
        return;
    }
    proxy_test_lose(d->proxy, (ProxyLoss)which, (unsigned)frames);
    control_request_return(request, NULL);
}

static const struct {
    const char *name;
    CommandFunc func;
} commands[] = {
    {"status", command_status},         {"events", command_events},
    {"explain", command_explain},       {"checkpoint", command_checkpoint},
    {"failover", command_failover},     {"protect", command_protect},
    {"unprotect", command_unprotect},   {"stop-vm", command_stop_vm},
    {"test-stall", command_test_stall}, {"test-corrupt", command_test_corrupt},
    {"test-lose", command_test_lose},   {"verify", command_verify},
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
