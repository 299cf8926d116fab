/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-status.c - what `colo status` says: the level of protection, its reason, the figures */
#include "daemon-private.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"

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

/* What ended protection: a disk's fault has what else failed for its consequence. NULL: nothing. */
static const char *
cause(const Daemon *d)
{
    if (daemon_disks_problem(d) != NULL)
        return daemon_disks_problem(d);
    return has_detail(d) ? d->detail : NULL;
}

static char *
need_secondary(const Daemon *d)
{
    const char *problem = daemon_disks_problem(d), *separator = problem ? "; " : "";

    if (problem == NULL)
        problem = "";
    if (!d->facts.peer_up)
        return g_strdup_printf("%s%sneed secondary: host %s is not connected%s%s", problem,
                               separator, d->config->peer_host, d->peer_dates ? ": " : "",
                               d->peer_dates ? d->peer_dates : "");
    if (has_detail(d) && !g_str_equal(d->detail, problem))
        return g_strdup_printf("%s%sneed secondary: %s", problem, separator, d->detail);
    return g_strdup_printf("%s%sneed secondary: host %s is %s", problem, separator,
                           d->config->peer_host, pair_state_name(d->facts.peer_state));
}

static char *
alone_reason(const Daemon *d)
{
    if (d->facts.vm_stuck) /* the details are overwritten by what the link tells */
        return g_strdup(
            "QEMU is stuck; this is the only copy of the VM, so it is kept (`colo stop-vm` "
            "ends it)");
    if (!d->facts.wants_protection)
        return g_strdup("suspended by the operator: `colo protect` ends it");
    if (!d->selftest_done)
        return g_strdup("starting: self-test of QEMU is under way");
    if (!d->selftest_ok)
        return g_strdup_printf("this QEMU cannot do COLO: %s", d->selftest_text);
    if (d->facts.peer_up && !daemon_disks_settled(d))
        return g_strdup(daemon_disks_problem(d) ? daemon_disks_problem(d)
                                                : "the failover of a disk is being committed");
    return need_secondary(d);
}

static char *
idle_reason(const Daemon *d)
{
    if (d->facts.stale)
        return g_strdup_printf("%s; `colo failover` starts the VM here all the same",
                               has_detail(d) ? d->detail : "stale generation");
    if (d->facts.disks_unfit && !(d->facts.peer_up && pair_state_has_vm(d->facts.peer_state)))
        return g_strdup_printf("VM not running: it must not start from the disk here: %s; "
                               "waiting for host %s",
                               daemon_disks_unfit(d), d->config->peer_host);
    if (!d->facts.peer_up && d->peer_dates)
        return g_strdup_printf("VM not running: waiting for host %s: %s", d->config->peer_host,
                               d->peer_dates);
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
            cause(d) ? cause(d) : "peer lost");
    return g_strdup_printf("failing over: %s", cause(d) ? cause(d) : "asking the arbiter");
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
    case PAIR_SYNCING:
        return g_strdup_printf("syncing disk %d %%", MAX(daemon_disks_sync_percent(d), 0));
    case PAIR_INCOMING:
        if (d->facts.peer_up && d->facts.peer_state == PAIR_SYNCING)
            return g_strdup("syncing disk");
        return g_strdup("copying memory");
    case PAIR_MIGRATING:
        return g_strdup("copying memory");
    case PAIR_PROTECTED:
    case PAIR_STANDBY:
        return g_strdup("");
    case PAIR_ADOPT_CLAIM:
    case PAIR_CLAIM_PRIMARY:
    case PAIR_CLAIM_SECONDARY:
        return claim_reason(d);
    case PAIR_HANDING_OVER:
    case PAIR_PROVING:
        return g_strdup("failing over: planned, waiting for the secondary's VM to run on");
    case PAIR_JUDGING:
    case PAIR_RESUMING:
    case PAIR_TAKING_OVER:
        return g_strdup_printf("failing over: %s", cause(d) ? cause(d) : "");
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
durations_status(const Durations *durations)
{
    json_object *object = json_object_new_object();
    guint32 sorted[DURATION_SAMPLES];
    const guint n = MIN(durations->n, DURATION_SAMPLES);

    if (n == 0)
        return object;
    memcpy(sorted, durations->us, n * sizeof(sorted[0]));
    qsort(sorted, n, sizeof(sorted[0]), compare_u32);
    add_int(object, "last", durations->us[(durations->n - 1) % DURATION_SAMPLES]);
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
        add_int(causes, checkpoint_cause_name((CheckpointCause)i), (gint64)c->by_cause[i]);
    add_int(object, "count", (gint64)c->count);
    add_int(object, "interval_ms", d->config->interval_ms);
    add_string(object, "step", d->gate ? gate_step_name(gate_step(d->gate)) : "none");
    json_object_object_add(object, "pause_us", durations_status(&c->pauses));
    json_object_object_add(object, "commit_us", durations_status(&c->commits));
    if (d->facts.has_disks)
        json_object_object_add(object, "disk_us", durations_status(&c->disks));
    add_int(object, "bytes_last", (gint64)c->figures.bytes);
    add_int(object, "pages_last", (gint64)c->figures.pages);
    json_object_object_add(object, "by_cause", causes);
    if (c->commit_ns > 0)
        add_int(object, "since_commit_ms", (clock_now_ns() - c->commit_ns) / NS_PER_MS);
    return object;
}

/* In a lock-stepping pair output is compared where a buffered one holds it. */
static const char *
egress_name(const Daemon *d)
{
    const gboolean lockstep = daemon_is_lockstep(d);

    switch (d->state) {
    case PAIR_ALONE:
    case PAIR_PREPARING:
    case PAIR_SYNCING:
    case PAIR_MIGRATING:
        return "open";
    case PAIR_PROTECTED:
    case PAIR_HANDING_OVER:
    case PAIR_JUDGING:
    case PAIR_CLAIM_PRIMARY:
    case PAIR_RESUMING:
        return lockstep && !d->output_held ? "compared" : "held";
    case PAIR_INCOMING:
    case PAIR_STANDBY:
    case PAIR_PROVING:
    case PAIR_CLAIM_SECONDARY:
    case PAIR_TAKING_OVER:
        return lockstep ? "shadow" : "kept";
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
released_status(const ProxyStats *stats)
{
    json_object *object = json_object_new_object();

    add_int(object, "matched", (gint64)stats->released[COMPARE_RELEASED_MATCHED]);
    add_int(object, "ack_lowered", (gint64)stats->released[COMPARE_RELEASED_ACK_LOWERED]);
    add_int(object, "passed", (gint64)stats->released[COMPARE_RELEASED_PASSED]);
    add_int(object, "committed", (gint64)stats->released[COMPARE_RELEASED_COMMITTED]);
    add_int(object, "parts", (gint64)stats->released[COMPARE_RELEASED_PART]);
    return object;
}

static json_object *
compare_status(const Daemon *d, const ProxyStats *stats)
{
    json_object *object = json_object_new_object();
    json_object *rules = json_object_new_object();

    json_object_object_add(object, "dense",
                           json_object_new_boolean(
                               checkpoint_policy_is_dense(&d->checkpoints.policy, clock_now_ns())));
    add_int(object, "primary_frames", (gint64)stats->compared_frames[COMPARE_PRIMARY]);
    add_int(object, "secondary_frames", (gint64)stats->compared_frames[COMPARE_SECONDARY]);
    json_object_object_add(object, "released", released_status(stats));
    add_int(object, "windows_lowered", (gint64)stats->windows_lowered);
    add_int(object, "digests", (gint64)stats->digests);
    add_int(object, "digests_wanted", (gint64)stats->digests_wanted);
    for (int rule = 0; rule < COMPARE_N_RULES; rule++)
        add_int(rules, compare_rule_name((CompareRule)rule), (gint64)stats->divergences[rule]);
    json_object_object_add(object, "differences", rules);
    add_int(object, "waiting_primary", (gint64)stats->engine_frames[COMPARE_PRIMARY]);
    add_int(object, "waiting_secondary", (gint64)stats->engine_frames[COMPARE_SECONDARY]);
    add_int(object, "waiting_bytes", (gint64)stats->engine_bytes);
    add_int(object, "lag_us", (gint64)stats->lag_us);
    add_int(object, "mirrored_frames", (gint64)stats->mirrored_frames);
    add_int(object, "shadow_frames", (gint64)stats->shadow_frames);
    add_int(object, "unsaved_connections", (gint64)stats->rewriter_unsaved);
    add_int(object, "forgotten_frames", (gint64)stats->ingress_forgotten);
    add_int(object, "duplicate_frames", (gint64)stats->ingress_duplicates);
    add_int(object, "peer_gaps", (gint64)stats->peer_gaps);
    add_int(object, "peer_queue_bytes", (gint64)stats->peer_queue_bytes);
    if (d->config->test_hooks)
        add_int(object, "test_lost_frames", (gint64)stats->test_lost);
    return object;
}

static json_object *
network_status(const Daemon *d)
{
    json_object *object = json_object_new_object();
    json_object *hold = json_object_new_object();
    ProxyStats stats = {0};

    if (d->proxy != NULL)
        proxy_get_stats(d->proxy, &stats);
    add_string(object, "mode", daemon_is_lockstep(d) ? "lockstep" : "buffered");
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
    if (daemon_is_lockstep(d))
        json_object_object_add(object, "compare", compare_status(d, &stats));
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

json_object *
daemon_status(const Daemon *d)
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
    if (d->facts.has_disks)
        json_object_object_add(object, "disks", daemon_disks_status(d));
    return object;
}
