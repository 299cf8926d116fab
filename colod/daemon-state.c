/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-state.c - what is saved, and the ways to a new generation
 *
 * Whatever another host or a later start of ours may rely on is on the disk before it is acted on
 * or said. Saves run in a worker thread, one at a time, in order; `wanted_state` is the newest,
 * facts follow when a save has ended.
 *
 * A claim belongs to the state that began it: claim_serial changes with the state, and an older
 * answer is void. A generation that was granted to a void claim is burnt: saved as ours, without a
 * role, so that nobody waits for it.
 */
#include "daemon-private.h"

#include <string.h>

#include "process.h"

struct SaveJob {
    HostState state;
    SavedFunc func;
    gpointer user_data;
};

typedef struct SaveTask {
    char *path;
    HostState state;
    GError *error;
} SaveTask;

static void
save_task_free(gpointer data)
{
    SaveTask *task = data;

    g_free(task->path);
    g_clear_error(&task->error);
    g_free(task);
}

/* A thread of its own: GTask's pool is shared with TLS handshakes, and silent strangers must not be
 * able to delay a takeover. */
static gpointer
save_thread(gpointer data)
{
    g_autoptr(GTask) task = data;
    SaveTask *save = g_task_get_task_data(task);

    g_task_return_boolean(task, host_state_save(save->path, &save->state, &save->error));
    return NULL;
}

static void start_save(Daemon *d);

static void
adopt_saved(Daemon *d, const HostState *state)
{
    d->facts.generation = state->generation;
    d->facts.role_primary = state->role == STATE_ROLE_PRIMARY;
    d->facts.protecting = state->protecting;
    d->facts.fresh = state->generation == 0 && d->arbiter_newest == 0;
    if (state->generation >= d->arbiter_newest)
        d->facts.stale = FALSE;
}

static void
on_saved(GObject *source G_GNUC_UNUSED, GAsyncResult *result, gpointer user_data)
{
    DaemonRef *ref = user_data;
    Daemon *d = ref->daemon;
    SaveTask *task = g_task_get_task_data(G_TASK(result));
    const gboolean saved = g_task_propagate_boolean(G_TASK(result), NULL);

    g_rc_box_release(ref);
    if (d == NULL)
        return;

    g_autofree SaveJob *job = g_queue_pop_head(&d->saves);

    d->saving = FALSE;
    if (saved) {
        adopt_saved(d, &task->state);
    } else {
        daemon_set_detail(d, "cannot save: %s", task->error->message);
        event_log_add(d->log, EVENT_ERROR, "save", "%s", task->error->message);
    }
    start_save(d);
    if (job->func != NULL)
        job->func(d, saved, job->user_data);
    daemon_finish_shut_down(d);
}

static void
start_save(Daemon *d)
{
    const SaveJob *job = g_queue_peek_head(&d->saves);

    if (job == NULL || d->saving)
        return;

    SaveTask *save = g_new0(SaveTask, 1);
    g_autoptr(GTask) task = g_task_new(NULL, NULL, on_saved, g_rc_box_acquire(d->self));

    d->saving = TRUE;
    save->path = g_strdup(d->state_path);
    save->state = job->state;
    g_task_set_task_data(task, save, save_task_free);
    g_thread_unref(g_thread_new("colod-save", save_thread, g_object_ref(task)));
}

void
daemon_save(Daemon *d, SavedFunc func, gpointer user_data)
{
    SaveJob *job = g_new0(SaveJob, 1);

    job->state = d->wanted_state;
    job->func = func;
    job->user_data = user_data;
    g_queue_push_tail(&d->saves, job);
    start_save(d);
}

/* ---- generations ---- */

static void
on_granted_saved(Daemon *d, gboolean saved, gpointer user_data)
{
    if (GPOINTER_TO_UINT(user_data) != d->claim_serial)
        return;
    daemon_event(d, saved ? PAIR_EVENT_CLAIM_GRANTED : PAIR_EVENT_CLAIM_UNKNOWN);
}

static void
take_generation(Daemon *d, guint64 generation)
{
    d->wanted_state.generation = generation;
    d->wanted_state.claiming = 0;
    d->wanted_state.role = STATE_ROLE_PRIMARY;
    d->wanted_state.protecting = FALSE;
    daemon_save(d, on_granted_saved, GUINT_TO_POINTER(d->claim_serial));
}

static void
drop_role(Daemon *d, guint64 generation)
{
    d->wanted_state.generation = MAX(generation, d->wanted_state.generation);
    d->wanted_state.claiming = 0;
    d->wanted_state.role = STATE_ROLE_NONE;
    d->wanted_state.protecting = FALSE;
}

typedef struct ClaimAnswer {
    Daemon *daemon;
    guint serial;
    guint64 generation;
} ClaimAnswer;

static void
note_newest(Daemon *d, const ArbiterAnswer *answer)
{
    d->arbiter_newest = MAX(d->arbiter_newest, answer->newest);
    if (answer->newest > d->facts.generation && answer->owner[0] != '\0' &&
        strcmp(answer->owner, d->config->host) != 0)
        d->facts.stale = TRUE;
}

static void
on_claim(const ArbiterAnswer *answer, gpointer user_data)
{
    g_autofree ClaimAnswer *claim = user_data;
    Daemon *d = claim->daemon;
    const gboolean is_void = claim->serial != d->claim_serial;

    /* A claim that stays open is asked again and again: said once. */
    if (answer->verdict != ARBITER_UNKNOWN || g_strcmp0(answer->text, d->detail) != 0)
        event_log_add(d->log, answer->verdict == ARBITER_GRANTED ? EVENT_INFO : EVENT_WARNING,
                      "claim", "generation %" G_GUINT64_FORMAT ": %s%s", claim->generation,
                      answer->text, is_void ? " (too late)" : "");
    note_newest(d, answer);
    if (is_void) {
        if (answer->verdict == ARBITER_GRANTED && claim->generation > d->wanted_state.generation &&
            !pair_state_has_vm(d->state)) {
            drop_role(d, claim->generation);
            daemon_save(d, NULL, NULL);
        }
        return;
    }
    if (answer->verdict != ARBITER_GRANTED)
        daemon_set_detail(d, "%s", answer->text);
    switch (answer->verdict) {
    case ARBITER_GRANTED:
        take_generation(d, claim->generation);
        break;
    case ARBITER_REFUSED:
        daemon_event(d, PAIR_EVENT_CLAIM_REFUSED);
        break;
    case ARBITER_UNKNOWN:
        daemon_event(d, PAIR_EVENT_CLAIM_UNKNOWN);
        break;
    }
}

/* Beside the claim, not ahead of it: a takeover is not to wait for our disk. If we die before this
 * is written and after the claim is won, an operator is needed. */
static void
note_claim(Daemon *d)
{
    if (d->wanted_state.claiming == d->claim)
        return;
    d->wanted_state.claiming = d->claim;
    daemon_save(d, NULL, NULL);
}

void
daemon_claim(Daemon *d, gboolean operator_decides)
{
    /* An operator's order goes past what others left at the arbiter; on our own we claim only what
     * follows the generation that we know. */
    const guint64 last =
        operator_decides ? MAX(d->facts.generation, d->arbiter_newest) : d->facts.generation;
    ClaimAnswer *claim;

    if (last == G_MAXUINT64) {
        /* Nobody has counted that far: somebody has put it there. */
        daemon_set_detail(d,
                          "no generation follows %" G_GUINT64_FORMAT
                          "; remove that claim, then start "
                          "colod again",
                          last);
        daemon_event(d, PAIR_EVENT_CLAIM_UNKNOWN);
        return;
    }
    claim = g_new0(ClaimAnswer, 1);
    d->claim = last + 1;
    claim->daemon = d;
    claim->serial = d->claim_serial;
    claim->generation = d->claim;
    d->facts.claim_pending = TRUE;
    note_claim(d);
    arbiter_claim(d->arbiter, d->claim, operator_decides, on_claim, claim);
}

void
daemon_grant(Daemon *d)
{
    event_log_add(d->log, EVENT_INFO, "claim",
                  "generation %" G_GUINT64_FORMAT ": taken with the peer's word", d->claim);
    d->facts.claim_pending = TRUE;
    take_generation(d, d->claim);
}

void
daemon_propose(Daemon *d)
{
    d->claim = MAX(d->facts.generation, d->arbiter_newest) + 1;
    daemon_send_generation(d, PEER_MESSAGE_PROPOSE, d->claim, NULL);
}

static void
on_consent_saved(Daemon *d, gboolean saved, gpointer user_data G_GNUC_UNUSED)
{
    if (!saved)
        return;
    daemon_send_generation(d, PEER_MESSAGE_CONSENT, d->facts.generation, NULL);
    daemon_send_state(d);
}

void
daemon_consent(Daemon *d)
{
    drop_role(d, d->peer_proposal);
    daemon_save(d, on_consent_saved, NULL);
}

static void
on_give_up_saved(Daemon *d, gboolean saved, gpointer user_data)
{
    /* Not for the peer to rely on unless it is on the disk, and not if we have a VM again. */
    if (saved && !pair_state_has_vm(d->state))
        daemon_send_generation(d, PEER_MESSAGE_VM_DEAD, GPOINTER_TO_SIZE(user_data),
                               daemon_disks_problem(d) ? daemon_disks_problem(d) : d->detail);
}

void
daemon_give_up(Daemon *d)
{
    drop_role(d, d->wanted_state.generation);
    d->wanted_state.qemu_pid = 0;
    daemon_save(d, on_give_up_saved, GSIZE_TO_POINTER((gsize)d->wanted_state.generation));
}

static void
on_followed(Daemon *d, gboolean saved, gpointer user_data G_GNUC_UNUSED)
{
    if (!saved)
        return;
    daemon_send_state(d);
    /* What the peer said last meets other facts now: this host may be the one to start the VM. */
    if (d->facts.peer_up)
        daemon_event(d, PAIR_EVENT_PEER_STATE);
}

void
daemon_follow_generation(Daemon *d, guint64 generation)
{
    if ((d->state != PAIR_IDLE && d->state != PAIR_OFF) || generation <= d->wanted_state.generation)
        return;
    drop_role(d, generation);
    daemon_save(d, on_followed, NULL);
}

/* ---- start ---- */

static gboolean
our_vm_lives(const Daemon *d)
{
    g_autofree char *boot_id = NULL;

    return d->wanted_state.qemu_pid > 0 &&
           g_file_get_contents("/proc/sys/kernel/random/boot_id", &boot_id, NULL, NULL) &&
           strcmp(g_strstrip(boot_id), d->wanted_state.boot_id) == 0 &&
           process_exists(d->wanted_state.qemu_pid, d->wanted_state.qemu_start_ticks);
}

/* The newest generation is ours, and yet not in the state file. If that says that we were claiming
 * it, or if its VM still lives, we died before we could note the answer and nobody ever ran in it.
 * If not, the file is older than that generation: it was set back, and what ran then is gone. */
static gboolean
claimed_and_never_used(const Daemon *d, const ArbiterAnswer *answer)
{
    return strcmp(answer->owner, d->config->host) == 0 &&
           (d->facts.vm_alive || d->wanted_state.claiming == answer->newest);
}

static void
judge_newer_generation(Daemon *d, const ArbiterAnswer *answer)
{
    d->facts.stale = !claimed_and_never_used(d, answer);
    if (d->facts.stale) {
        daemon_set_detail(d, "stale: %s; this host knows generation %" G_GUINT64_FORMAT,
                          answer->text, d->facts.generation);
        return;
    }
    /* A primary's VM goes on, by the same claim again. */
    if (d->facts.vm_alive && d->facts.role_primary)
        return;
    drop_role(d, answer->newest);
    d->facts.role_primary = d->facts.protecting = FALSE;
    daemon_save(d, NULL, NULL);
}

static void
on_boot_query(const ArbiterAnswer *answer, gpointer user_data)
{
    Daemon *d = user_data;

    note_newest(d, answer);
    d->facts.vm_alive = our_vm_lives(d);
    adopt_saved(d, &d->wanted_state);
    if (answer->newest > d->facts.generation)
        judge_newer_generation(d, answer);
    daemon_event(d, PAIR_EVENT_BOOT);
}

void
daemon_boot(Daemon *d)
{
    arbiter_query(d->arbiter, on_boot_query, d);
}
