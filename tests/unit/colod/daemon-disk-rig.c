/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-disk-rig.c - a daemon of which only the disks are real */
#include "daemon-disk-rig.h"

#include <check.h>
#include <string.h>

static Rig *
rig_of(Daemon *d)
{
    return (Rig *)d;
}

static void G_GNUC_PRINTF(2, 3) tell(Daemon *d, const char *format, ...)
{
    GString *told = rig_of(d)->told;
    va_list args;

    if (told->len > 0)
        g_string_append(told, ", ");
    va_start(args, format);
    g_string_append_vprintf(told, format, args);
    va_end(args);
}

/* ---- the rest of the daemon ---- */

static void
act(Daemon *d, PairAction action)
{
    g_string_append_printf(rig_of(d)->told, " %s", pair_action_name(action));
    if (action == PAIR_ACTION_CONNECT_DISKS)
        daemon_disks_connect(d);
    else if (action == PAIR_ACTION_LEAVE_COLO)
        daemon_disks_leave(d);
}

/* As in daemon.c. */
void
daemon_event(Daemon *d, PairEvent event)
{
    const PairState before = d->state;
    PairStep step;

    ck_assert(!d->stepping);
    d->stepping = TRUE;
    step = pair_fsm_step(d->state, event, &d->facts);
    tell(d, "%s", pair_event_name(event));
    if (step.why != NULL)
        d->state = step.next;
    if (d->state != before) {
        g_string_append_printf(rig_of(d)->told, " > %s", pair_state_name(d->state));
        daemon_disks_new_state(d);
    }
    for (unsigned i = 0; i < PAIR_MAX_ACTIONS && step.actions[i] != PAIR_ACTION_NONE; i++)
        act(d, step.actions[i]);
    if (d->state != before && d->state == PAIR_ALONE)
        daemon_disks_alone(d);
    d->stepping = FALSE;
}

void
daemon_set_detail(Daemon *d, const char *format, ...)
{
    va_list args;

    g_free(d->detail);
    va_start(args, format);
    d->detail = g_strdup_vprintf(format, args);
    va_end(args);
}

GSource *
daemon_add_timer(Daemon *d, unsigned ms, GSourceFunc func)
{
    Rig *rig = rig_of(d);
    GSource *source = g_timeout_source_new(ms); /* never attached */

    ck_assert(rig->timer == NULL || g_source_is_destroyed(rig->timer));
    g_clear_pointer(&rig->timer, g_source_unref);
    rig->timer = g_source_ref(source);
    rig->timer_ms = ms;
    rig->timer_func = func;
    return source;
}

void
daemon_clear_source(GSource **source)
{
    if (*source != NULL) {
        g_source_destroy(*source);
        g_clear_pointer(source, g_source_unref);
    }
}

void
daemon_checkpoint(Daemon *d, CheckpointCause cause)
{
    tell(d, "checkpoint %s", checkpoint_cause_name(cause));
}

void
daemon_checkpoints_disks_took(Daemon *d G_GNUC_UNUSED, gint64 ns)
{
    ck_assert(ns >= 0);
}

void
daemon_send_state(Daemon *d)
{
    tell(d, "send-state%s", daemon_disks_want_checkpoint(d) ? " wants-checkpoint" : "");
}

void
daemon_finish_shut_down(Daemon *d)
{
    rig_of(d)->n_finish_shut_down++;
}

void
daemon_disks_started(Daemon *d, const char *problem)
{
    tell(d, "started%s%s", problem ? ": " : "", problem ? problem : "");
}

void
daemon_disks_adopted(Daemon *d, const char *problem)
{
    tell(d, "adopted%s%s", problem ? ": " : "", problem ? problem : "");
}

bool
gate_stands_at(const Gate *gate, GatePoint point)
{
    return gate->stands && gate->at == point;
}

void
gate_continue(Gate *gate, GatePoint point)
{
    ck_assert(gate_stands_at(gate, point));
    gate->stands = FALSE;
    gate->n_passed++;
}

QmpClient *
vm_qmp(Vm *vm G_GNUC_UNUSED)
{
    return NULL;
}

void
control_request_return(ControlRequest *request, json_object *value G_GNUC_UNUSED)
{
    ck_assert(!request->returned && request->error_class == NULL);
    request->returned = TRUE;
}

void
control_request_fail(ControlRequest *request, const char *error_class, const char *format, ...)
{
    va_list args;

    ck_assert(!request->returned && request->error_class == NULL);
    request->error_class = g_strdup(error_class);
    va_start(args, format);
    request->error_text = g_strdup_vprintf(format, args);
    va_end(args);
}

/* ---- the test's side ---- */

Rig *
rig_new(unsigned n_disks, PairState state)
{
    static char *const names[] = {"disk0", "disk1", "disk2"};
    Rig *rig = g_new0(Rig, 1);

    rig->told = g_string_new(NULL);
    rig->config.n_disks = n_disks;
    for (unsigned i = 0; i < n_disks; i++)
        rig->config.disks[i] = (ConfigDisk){.name = names[i], .overlay = (char *)"files"};
    rig->daemon.config = &rig->config;
    rig->daemon.state = state;
    rig->daemon.state_path = "/nowhere/state";
    rig->daemon.log = event_log_new("test");
    rig->daemon.facts.generation = RIG_GENERATION;
    daemon_disks_init(&rig->daemon);
    return rig;
}

void
rig_free(Rig *rig)
{
    g_autofree char *asked = fake_disk_take_asked();

    daemon_disks_free(&rig->daemon);
    ck_assert(rig->timer == NULL || g_source_is_destroyed(rig->timer));
    g_clear_pointer(&rig->timer, g_source_unref);
    event_log_free(rig->daemon.log);
    g_free(rig->daemon.detail);
    g_string_free(rig->told, TRUE);
    g_free(rig);
}

void
rig_enter(Rig *rig, PairState state)
{
    rig->daemon.state = state;
    daemon_disks_new_state(&rig->daemon);
}

Disk *
rig_disk(Rig *rig, unsigned i)
{
    return rig->daemon.disks->slots[i].disk;
}

void
rig_end_all(Rig *rig, const char *problem)
{
    for (unsigned i = 0; i < rig->config.n_disks; i++)
        fake_disk_end(rig_disk(rig, i), i == 0 ? problem : NULL);
}

char *
rig_take_told(Rig *rig)
{
    char *told = g_string_free(rig->told, FALSE);

    rig->told = g_string_new(NULL);
    return told;
}

char *
rig_warnings(Rig *rig)
{
    json_object *events = event_log_list(rig->daemon.log, 0);
    GString *text = g_string_new(NULL);

    for (size_t i = 0; i < json_object_array_length(events); i++) {
        json_object *event = json_object_array_get_idx(events, i);

        if (g_strcmp0(json_object_get_string(json_object_object_get(event, "level")), "warning") ==
            0)
            g_string_append_printf(text, "%s\n",
                                   json_object_get_string(json_object_object_get(event, "text")));
    }
    json_object_put(events);
    return g_string_free(text, FALSE);
}

void
rig_fire_timer(Rig *rig, unsigned expected_ms)
{
    ck_assert(rig->timer != NULL && !g_source_is_destroyed(rig->timer));
    ck_assert_uint_eq(rig->timer_ms, expected_ms);
    (void)rig->timer_func(&rig->daemon);
}
