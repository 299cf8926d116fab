/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon.c - one VM's colod: life, the loop around the state machine, its timers
 *
 * Theory of operation
 *
 * Every part reports events; daemon_event() queues them and steps the state machine (pair-fsm.c)
 * once for each, in order, so that an event raised by an action is treated after the step that
 * raised it. After a step its actions are carried out, a changed state is told to peer, log and
 * systemd, and the state's own deadline is armed. Facts are refreshed before each step.
 */
#include "daemon-private.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "clock.h"

enum {
    LONELY_MS = 5000, /* grace for the peer after our start */
    RETRY_FIRST_MS = 500,
    RETRY_MAX_MS = 10000,
    SHUT_DOWN_MS = 4000,
};

void
daemon_clear_source(GSource **source)
{
    if (*source != NULL) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

GSource *
daemon_add_timer(Daemon *d, unsigned ms, GSourceFunc func)
{
    GSource *source = g_timeout_source_new(ms);

    g_source_set_callback(source, func, d, NULL);
    g_source_attach(source, g_main_context_get_thread_default());
    return source;
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

/* ---- timers of the state machine ---- */

static void arm_state_timer(Daemon *d);

static gboolean
on_state_timeout(gpointer user_data)
{
    Daemon *d = user_data;

    daemon_clear_source(&d->state_timer);
    /* What the disks wait for has deadlines of its own. */
    if ((d->state == PAIR_INCOMING && d->facts.peer_up && d->facts.peer_state == PAIR_SYNCING) ||
        daemon_disks_leaving(d)) {
        arm_state_timer(d);
        return G_SOURCE_REMOVE;
    }
    daemon_set_detail(d, "no progress within %u ms in state %s", pair_state_timeout_ms(d->state),
                      pair_state_name(d->state));
    daemon_event(d, PAIR_EVENT_TIMEOUT);
    return G_SOURCE_REMOVE;
}

static gboolean
on_retry(gpointer user_data)
{
    Daemon *d = user_data;

    daemon_clear_source(&d->retry_timer);
    daemon_event(d, PAIR_EVENT_RETRY);
    return G_SOURCE_REMOVE;
}

void
daemon_retry_later(Daemon *d)
{
    if (d->retry_timer != NULL)
        return;
    d->retry_timer = daemon_add_timer(d, d->retry_ms, on_retry);
    d->retry_ms = MIN(d->retry_ms * 2, RETRY_MAX_MS);
}

static gboolean
on_lonely(gpointer user_data)
{
    Daemon *d = user_data;

    daemon_clear_source(&d->lonely_timer);
    daemon_event(d, PAIR_EVENT_LONELY);
    return G_SOURCE_REMOVE;
}

static void
arm_state_timer(Daemon *d)
{
    unsigned ms = pair_state_timeout_ms(d->state);

    daemon_clear_source(&d->state_timer);
    if (ms > 0)
        d->state_timer = daemon_add_timer(d, ms, on_state_timeout);
}

/* ---- the loop ---- */

void
daemon_refresh_facts(Daemon *d)
{
    d->facts.initial_primary = d->config->initial_role == CONFIG_ROLE_PRIMARY;
    d->facts.name_first = strcmp(d->config->host, d->config->peer_host) < 0;
    d->facts.may_prepare = d->selftest_ok && d->retry_timer == NULL && d->guest_digest != NULL &&
                           daemon_disks_settled(d);
    d->facts.promotable =
        d->gate != NULL && gate_load(d->gate) == GATE_LOAD_CLEAN && daemon_disks_whole(d);
    if (!pair_state_has_vm(d->state))
        daemon_disks_refresh_facts(d);
}

static gboolean
is_end_state(PairState state)
{
    return state == PAIR_IDLE || state == PAIR_OFF || state == PAIR_ALONE;
}

void
daemon_finish_shut_down(Daemon *d)
{
    if (d->shut_down_done != NULL && is_end_state(d->state) && d->saves.length == 0 &&
        !daemon_disks_busy(d)) {
        void (*done)(gpointer) = g_steal_pointer(&d->shut_down_done);

        daemon_clear_source(&d->shut_down_timer);
        done(d->shut_down_data);
    }
}

static void
enter_state(Daemon *d)
{
    arm_state_timer(d);
    switch (d->state) {
    case PAIR_PROTECTED:
    case PAIR_STANDBY:
        d->retry_ms = RETRY_FIRST_MS;
        daemon_disks_set_problem(d, NULL);
        daemon_set_detail(d, "%s", "");
        break;
    case PAIR_ALONE:
        if (d->wanted_state.protecting) {
            d->wanted_state.protecting = FALSE;
            daemon_save(d, NULL, NULL);
        }
        daemon_renew_link(d, "the channels of the last session are used up");
        daemon_disks_alone(d);
        daemon_end_waiting(d);
        daemon_retry_later(d);
        break;
    case PAIR_IDLE:
    case PAIR_OFF:
        daemon_drop_waiting(d);
        break;
    case PAIR_BOOT:
    case PAIR_CLAIM_START:
    case PAIR_STARTING:
    case PAIR_ADOPTING:
    case PAIR_ADOPT_CLAIM:
    case PAIR_PREPARING:
    case PAIR_SYNCING:
    case PAIR_MIGRATING:
    case PAIR_HANDING_OVER:
    case PAIR_PROVING:
    case PAIR_JUDGING:
    case PAIR_CLAIM_PRIMARY:
    case PAIR_RESUMING:
    case PAIR_INCOMING_START:
    case PAIR_INCOMING:
    case PAIR_CLAIM_SECONDARY:
    case PAIR_TAKING_OVER:
    case PAIR_STOPPING:
    case PAIR_N_STATES:
        break;
    }
    if (d->state != PAIR_PROTECTED)
        daemon_checkpoints_end(d, "protection ended");
}

static void
log_step(Daemon *d, PairState before, PairEvent event, const PairStep *step)
{
    const gboolean told =
        d->detail != NULL && d->detail[0] != '\0' &&
        (event == PAIR_EVENT_GATE_PEER || event == PAIR_EVENT_GATE_VM ||
         event == PAIR_EVENT_PEER_DOWN || event == PAIR_EVENT_VM_DEAD ||
         event == PAIR_EVENT_VM_STUCK || event == PAIR_EVENT_DISK_FAULT ||
         event == PAIR_EVENT_TIMEOUT || event == PAIR_EVENT_CLAIM_REFUSED ||
         event == PAIR_EVENT_CLAIM_UNKNOWN || event == PAIR_EVENT_PEER_PREPARE_FAILED);

    if (before == step->next && event == PAIR_EVENT_RETRY)
        return;
    event_log_add(d->log, told ? EVENT_WARNING : EVENT_INFO, "state",
                  "%s -> %s on %s: %s%s%s (generation %" G_GUINT64_FORMAT ")",
                  pair_state_name(before), pair_state_name(step->next), pair_event_name(event),
                  step->why, told ? ": " : "", told ? d->detail : "", d->facts.generation);
}

/* Test hook: this process stands still, all its threads, until SIGCONT or SIGKILL: nothing of what
 * the state is to do is done yet, but the last one's saves are. */
static void
stand_still(Daemon *d)
{
    d->stall_state = PAIR_BOOT;
    event_log_add(d->log, EVENT_WARNING, "stalled", "test hook: colod stands still on entering %s",
                  pair_state_name(d->state));
    (void)raise(SIGSTOP);
}

static void
step(Daemon *d, PairEvent event)
{
    PairState before = d->state;
    PairStep result;

    daemon_refresh_facts(d);
    if (event == PAIR_EVENT_CLAIM_GRANTED || event == PAIR_EVENT_CLAIM_REFUSED ||
        event == PAIR_EVENT_CLAIM_UNKNOWN)
        d->facts.claim_pending = FALSE;
    result = pair_fsm_step(d->state, event, &d->facts);
    if (result.why == NULL)
        return;
    log_step(d, before, event, &result);
    d->state = result.next;
    if (d->state != before && d->state == d->stall_state)
        stand_still(d);
    if (d->state != before) {
        /* Before the actions: one of them may be the new state's claim. */
        d->claim_serial++;
        daemon_disks_new_state(d);
        d->facts.claim_pending = FALSE;
    }
    for (unsigned i = 0; i < PAIR_MAX_ACTIONS && result.actions[i] != PAIR_ACTION_NONE; i++)
        daemon_act(d, result.actions[i]);
    if (d->state != before) {
        enter_state(d);
        daemon_send_state(d);
        (void)sd_notifyf(0, "STATUS=%s, generation %" G_GUINT64_FORMAT, pair_state_name(d->state),
                         d->facts.generation);
    }
}

void
daemon_event(Daemon *d, PairEvent event)
{
    g_queue_push_tail(&d->events, GINT_TO_POINTER((int)event + 1));
    if (d->stepping)
        return;
    d->stepping = TRUE;
    while (!g_queue_is_empty(&d->events)) {
        PairEvent next = (PairEvent)(GPOINTER_TO_INT(g_queue_pop_head(&d->events)) - 1);

        step(d, next);
        if (next == PAIR_EVENT_VM_DEAD)
            daemon_forget_vm(d);
    }
    d->stepping = FALSE;
    daemon_finish_shut_down(d);
}

/* ---- self-test ---- */

static void
on_selftest(const SelftestResult *result, gpointer user_data)
{
    Daemon *d = user_data;

    d->selftest_done = TRUE;
    d->selftest_ok = result->verdict == SELFTEST_OK;
    d->return_path = result->return_path;
    g_free(d->selftest_text);
    d->selftest_text = g_strdup(result->text);
    event_log_add(d->log, d->selftest_ok ? EVENT_INFO : EVENT_ERROR, "selftest", "%s %s: %s",
                  result->qemu, result->version ? result->version : "",
                  d->selftest_ok ? "can do COLO" : result->text);
    if (d->state == PAIR_ALONE)
        daemon_event(d, PAIR_EVENT_RETRY);
}

/* ---- life ---- */

static gboolean
prepare_paths(Daemon *d, const char *run_dir, const char *state_dir, GError **error)
{
    g_autofree char *vm_state_dir = g_build_filename(state_dir, d->config->vm_name, NULL);

    d->run_dir = g_strdup(run_dir);
    d->state_path = g_build_filename(vm_state_dir, "state", NULL);
    d->selftest_path = g_build_filename(state_dir, "selftest.json", NULL);
    d->migration_path = g_build_filename(run_dir, "migration.sock", NULL);
    for (unsigned i = 0; i < 2; i++) {
        const char *dir = i == 0 ? run_dir : vm_state_dir;

        if (g_mkdir_with_parents(dir, 0700) < 0) {
            g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, "%s: cannot make it: %s", dir,
                        g_strerror(errno));
            return FALSE;
        }
    }
    return TRUE;
}

/* Of what the peer waits for us, a half: time to see it coming, and rare on a host that is not
 * overloaded. */
static void
on_loop_stop(const LoopStop *stop, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_WARNING, "late",
                  "colod stood still for %u ms: for %u ms without a CPU, for %u ms computing, else "
                  "in a call that blocks or stopped; at %u ms the peer takes this host for dead",
                  stop->ms, stop->waiting_ms, stop->running_ms, d->config->heartbeat_limit_ms);
}

Daemon *
daemon_new(Config *config, const char *run_dir, const char *state_dir, GError **error)
{
    g_autoptr(Daemon) d = g_new0(Daemon, 1);

    d->self = g_rc_box_new0(DaemonRef);
    d->self->daemon = d;
    d->config = config;
    d->migration_fd = -1;
    d->retry_ms = RETRY_FIRST_MS;
    d->log = event_log_new(config->vm_name);
    daemon_checkpoints_init(d);
    if (!prepare_paths(d, run_dir, state_dir, error) ||
        !host_state_load(d->state_path, &d->wanted_state, error))
        return NULL;
    d->guest_digest = config_guest_digest(config, error);
    if (d->guest_digest == NULL)
        return NULL;
    d->facts.wants_protection = !d->wanted_state.unprotect;
    daemon_disks_init(d);
    d->arbiter = arbiter_new(config, error);
    if (d->arbiter == NULL || !daemon_start_control(d, error) || !daemon_start_link(d, error))
        return NULL;
    event_log_add(d->log, EVENT_INFO, "started",
                  "colod %s on host %s, generation %" G_GUINT64_FORMAT, COLOD_VERSION, config->host,
                  d->wanted_state.generation);
    d->selftest = selftest_start(config->qemu, config->accel, d->selftest_path, on_selftest, d);
    d->lonely_timer = daemon_add_timer(d, LONELY_MS, on_lonely);
    d->loop_watch = loop_watch_new(config->heartbeat_limit_ms / 2, on_loop_stop, d);
    daemon_boot(d);
    return g_steal_pointer(&d);
}

static void
free_timers(Daemon *d)
{
    daemon_clear_source(&d->state_timer);
    daemon_clear_source(&d->retry_timer);
    daemon_clear_source(&d->lonely_timer);
    daemon_clear_source(&d->shut_down_timer);
    g_clear_pointer(&d->loop_watch, loop_watch_free);
}

void
daemon_free(Daemon *d)
{
    if (d == NULL)
        return;
    free_timers(d);
    daemon_checkpoints_end(d, "colod ends");
    daemon_drop_waiting(d);
    daemon_close_gate(d);
    g_clear_pointer(&d->selftest, selftest_free);
    g_clear_pointer(&d->link, peer_link_free);
    g_clear_pointer(&d->arbiter, arbiter_free);
    daemon_disks_free(d);
    g_clear_pointer(&d->vm, vm_free);
    g_clear_pointer(&d->proxy, proxy_free);
    g_clear_pointer(&d->control, control_server_free);
    g_clear_pointer(&d->log, event_log_free);
    g_queue_clear(&d->events);
    g_free(d->run_dir);
    g_free(d->state_path);
    g_free(d->selftest_path);
    g_free(d->migration_path);
    g_free(d->guest_digest);
    g_free(d->detail);
    g_free(d->peer_dates);
    g_free(d->peer_software);
    g_free(d->peer_qemu_version);
    g_free(d->selftest_text);
    g_free(d->qemu_version);
    g_clear_pointer(&d->config, config_free);
    d->self->daemon = NULL;
    g_rc_box_release(d->self);
    g_free(d);
}

static gboolean
on_shut_down_timeout(gpointer user_data)
{
    Daemon *d = user_data;
    void (*done)(gpointer) = g_steal_pointer(&d->shut_down_done);

    daemon_clear_source(&d->shut_down_timer);
    event_log_add(d->log, EVENT_WARNING, "shutdown", "not in good order within %d ms, state %s",
                  SHUT_DOWN_MS, pair_state_name(d->state));
    done(d->shut_down_data);
    return G_SOURCE_REMOVE;
}

void
daemon_shut_down(Daemon *d, void (*done)(gpointer user_data), gpointer user_data)
{
    if (d->shut_down_done != NULL)
        return;
    event_log_add(d->log, EVENT_INFO, "shutdown", "asked to end in state %s",
                  pair_state_name(d->state));
    d->shut_down_done = done;
    d->shut_down_data = user_data;
    d->shut_down_timer = daemon_add_timer(d, SHUT_DOWN_MS, on_shut_down_timeout);
    if (d->state == PAIR_PROTECTED)
        daemon_event(d, PAIR_EVENT_PEER_HAND_OVER);
    else if (g_str_equal(pair_state_role(d->state), "secondary"))
        daemon_event(d, PAIR_EVENT_PEER_DISCARD);
    daemon_finish_shut_down(d);
}
