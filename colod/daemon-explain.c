/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-explain.c - `colo explain`: why checkpoints happen
 *
 * Captures are written by a thread of their own, from copies: a folder may be slow to write to.
 */
#include "daemon-private.h"

#include "clock.h"

/* What the thread needs. The request is the main thread's. */
typedef struct SaveTask {
    ExplainRecords *records;
    char *dir;
    ControlRequest *request;
    json_object *answer;
} SaveTask;

static void
save_task_free(gpointer data)
{
    SaveTask *save = data;

    explain_records_free(save->records);
    g_free(save->dir);
    json_object_put(save->answer);
    g_free(save);
}

static void
take_record(const DivergenceRecord *record, gpointer user_data)
{
    explain_records_add(user_data, record);
}

static json_object *
explain(const Daemon *d, const ExplainRecords *records)
{
    const gint64 now_ns = clock_now_ns();
    json_object *object = json_object_new_object();

    json_object_object_add(object, "mode",
                           json_object_new_string(daemon_is_lockstep(d) ? "lockstep" : "buffered"));
    json_object_object_add(
        object, "dense",
        json_object_new_boolean(checkpoint_policy_is_dense(&d->checkpoints.policy, now_ns)));
    json_object_object_add(object, "window_s", json_object_new_int(EXPLAIN_WINDOW_S));
    json_object_object_add(object, "causes",
                           explain_causes_to_json(&d->checkpoints.recent, now_ns));
    json_object_object_add(object, "differences", explain_records_to_json(records, now_ns));
    return object;
}

static gpointer
save_thread(gpointer data)
{
    g_autoptr(GTask) task = data;
    SaveTask *save = g_task_get_task_data(task);
    GError *error = NULL;

    if (explain_records_save(save->records, save->dir, &error))
        g_task_return_boolean(task, TRUE);
    else
        g_task_return_error(task, error);
    return NULL;
}

static void
on_saved(GObject *source G_GNUC_UNUSED, GAsyncResult *result, gpointer user_data)
{
    DaemonRef *self = user_data;
    SaveTask *save = g_task_get_task_data(G_TASK(result));
    g_autoptr(GError) error = NULL;
    const gboolean saved = g_task_propagate_boolean(G_TASK(result), &error);

    /* Requests end with the daemon's control server. */
    if (self->daemon != NULL && saved) {
        json_object_object_add(save->answer, "saved",
                               json_object_new_int64(explain_records_count(save->records)));
        control_request_return(save->request, g_steal_pointer(&save->answer));
    } else if (self->daemon != NULL) {
        control_request_fail(save->request, "failed", "%s", error->message);
    }
    g_rc_box_release(self);
}

void
daemon_explain(Daemon *d, ControlRequest *request, const char *save_dir)
{
    g_autoptr(ExplainRecords) records = explain_records_new();
    json_object *answer;

    if (d->proxy != NULL)
        proxy_foreach_divergence(d->proxy, take_record, records);
    answer = explain(d, records);
    if (save_dir == NULL) {
        control_request_return(request, answer);
        return;
    }

    g_autoptr(GTask) task = g_task_new(NULL, NULL, on_saved, g_rc_box_acquire(d->self));
    SaveTask *save = g_new0(SaveTask, 1);

    save->records = g_steal_pointer(&records);
    save->dir = g_strdup(save_dir);
    save->request = request;
    save->answer = answer;
    g_task_set_task_data(task, save, save_task_free);
    g_thread_unref(g_thread_new("colo-explain", save_thread, g_object_ref(task)));
}
