/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vm.c - one QEMU process: start or adopt it, watch it, and the QMP commands colod needs of it
 *
 * Theory of operation
 *
 * Two things tell that QEMU is gone or ill: its pidfd (the process ended: `dead`) and QMP (no
 * answer in time, or the connection broke while the process lives: `stuck`). A dying QEMU closes
 * QMP first, so a broken connection is judged only after DEATH_GRACE_MS.
 *
 * An operation is a short list of commands, sent one after the other; the first error ends it. All
 * run in the main loop of the creator; operations still open when the Vm is freed are forgotten.
 */
#include "vm.h"

#include <glib/gstdio.h>
#include <string.h>

#include "fd.h"
#include "qmp-client.h"
#include "source.h"
#include "process.h"

G_DEFINE_QUARK(colod_vm_error_quark, vm_error)

enum {
    QMP_CONNECT_TIMEOUT_MS = 10000, /* QEMU start-up on a loaded host */
    COMMAND_TIMEOUT_MS = 3000,
    DEATH_GRACE_MS = 200, /* between QMP's end of file and the pidfd */
    LEAVE_POLL_MS = 2,    /* leaving COLO takes 1.5 - 20 ms */
    OP_MAX_COMMANDS = 4,
};

/* colod decides when to checkpoint; QEMU's own timer must never fire. */
static const gint64 NEVER_MS = 1000000000;
/* No limit that a peer link could reach, bytes per second. */
static const gint64 BANDWIDTH_MAX = G_GINT64_CONSTANT(100) * 1000 * 1000 * 1000;

struct Vm {
    Process *process;
    QmpClient *qmp;
    const VmHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    GSource *grace; /* QMP broke; waiting for the process to end */
    GSource *watch; /* period of the probes */
    GSource *leave_poll;
    unsigned watch_period_ms, watch_limit_ms;
    gboolean ready, stuck_said, probing, return_path;
    gboolean stop_to_migrate;
    char *qmp_broken; /* why */
    /* vm_leave_colo() */
    VmDoneFunc leave_done;
    gpointer leave_data;
    gboolean leave_asking;
};

typedef struct Command {
    const char *name;
    json_object *arguments; /* owned */
} Command;

/* A list of commands under way. */
typedef struct Op {
    Vm *vm;
    Command commands[OP_MAX_COMMANDS];
    unsigned n, next;
    VmDoneFunc done;
    gpointer user_data;
} Op;

/* ---- helpers ---- */

static GSource *
add_timer(Vm *vm, unsigned ms, GSourceFunc func)
{
    GSource *source = g_timeout_source_new(ms);

    g_source_set_callback(source, func, vm, NULL);
    g_source_attach(source, vm->context);
    return source;
}

static void
say_stuck(Vm *vm, const GError *reason)
{
    if (vm->stuck_said)
        return;
    vm->stuck_said = TRUE;
    vm->handlers->stuck(vm, reason, vm->user_data);
}

static json_object *
object_with_string(const char *key, const char *value)
{
    json_object *object = json_object_new_object();

    json_object_object_add(object, key, json_object_new_string(value));
    return object;
}

/* ---- operations ---- */

static void
op_free(gpointer data)
{
    Op *op = data;

    for (unsigned i = op->next; i < op->n; i++)
        json_object_put(op->commands[i].arguments);
    g_free(op);
}

static void op_send_next(Op *op);

static void
on_op_reply(json_object *value G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Op *op = user_data;

    if (error == NULL && op->next < op->n) {
        op_send_next(op);
        return;
    }

    Vm *vm = op->vm;
    VmDoneFunc done = op->done;
    gpointer done_data = op->user_data;

    op_free(op);
    if (done != NULL)
        done(vm, error, done_data);
}

/* The Op passes from reply to reply; QmpClient's destroy notify would free it after the first one.
 * When the client goes away with the command open, the Op is freed by on_op_dropped(). */
typedef struct Sent {
    Op *op;
} Sent;

static void
on_sent_reply(json_object *value, const GError *error, gpointer user_data)
{
    Sent *sent = user_data;

    on_op_reply(value, error, g_steal_pointer(&sent->op));
}

static void
sent_free(gpointer data)
{
    Sent *sent = data;

    g_clear_pointer(&sent->op, op_free);
    g_free(sent);
}

static void
op_send_next(Op *op)
{
    Command *command = &op->commands[op->next++];
    Sent *sent = g_new0(Sent, 1);

    sent->op = op;
    qmp_client_send(op->vm->qmp, command->name, command->arguments, COMMAND_TIMEOUT_MS,
                    on_sent_reply, sent, sent_free);
    json_object_put(g_steal_pointer(&command->arguments));
}

static Op *
op_new(Vm *vm, VmDoneFunc done, gpointer user_data)
{
    Op *op = g_new0(Op, 1);

    op->vm = vm;
    op->done = done;
    op->user_data = user_data;
    return op;
}

static void
op_add(Op *op, const char *name, json_object *arguments)
{
    g_assert(op->n < OP_MAX_COMMANDS);
    op->commands[op->n++] = (Command){.name = name, .arguments = arguments};
}

/* Set each time: a survivor may still have other settings. */
static json_object *
colo_capabilities(const Vm *vm)
{
    enum { RETURN_PATH };
    static const char *const names[] = {[RETURN_PATH] = "return-path", "x-colo"};
    json_object *list = json_object_new_array();
    json_object *arguments = json_object_new_object();

    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        json_object *entry = object_with_string("capability", names[i]);

        json_object_object_add(entry, "state",
                               json_object_new_boolean(i != RETURN_PATH || vm->return_path));
        json_object_array_add(list, entry);
    }
    json_object_object_add(arguments, "capabilities", list);
    return arguments;
}

static json_object *
checkpoint_delay(void)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "x-checkpoint-delay", json_object_new_int64(NEVER_MS));
    return arguments;
}

static json_object *
unix_uri(const char *path)
{
    g_autofree char *uri = g_strconcat("unix:", path, NULL);

    return object_with_string("uri", uri);
}

void
vm_run(Vm *vm, VmDoneFunc done, gpointer user_data)
{
    Op *op = op_new(vm, done, user_data);

    op_add(op, "cont", NULL);
    op_send_next(op);
}

void
vm_listen_incoming(Vm *vm, const char *path, VmDoneFunc done, gpointer user_data)
{
    Op *op = op_new(vm, done, user_data);

    op_add(op, "migrate-set-capabilities", colo_capabilities(vm));
    op_add(op, "migrate-incoming", unix_uri(path));
    op_send_next(op);
}

void
vm_migrate(Vm *vm, const char *path, VmDoneFunc done, gpointer user_data)
{
    Op *op = op_new(vm, done, user_data);
    json_object *parameters = checkpoint_delay();

    json_object_object_add(parameters, "max-bandwidth", json_object_new_int64(BANDWIDTH_MAX));
    op_add(op, "migrate-set-capabilities", colo_capabilities(vm));
    op_add(op, "migrate-set-parameters", parameters);
    if (vm->stop_to_migrate)
        op_add(op, "stop", NULL);
    op_add(op, "migrate", unix_uri(path));
    op_send_next(op);
}

void
vm_checkpoint(Vm *vm, VmDoneFunc done, gpointer user_data)
{
    Op *op = op_new(vm, done, user_data);

    /* Setting the delay, to whatever value, starts a checkpoint at once (migration/colo.c). */
    op_add(op, "migrate-set-parameters", checkpoint_delay());
    op_send_next(op);
}

/* ---- leaving COLO ---- */

static void leave_ask(Vm *vm);

static gboolean
on_leave_poll(gpointer user_data)
{
    Vm *vm = user_data;

    source_clear(&vm->leave_poll);
    leave_ask(vm);
    return G_SOURCE_REMOVE;
}

static gboolean
string_is(json_object *object, const char *key, const char *value)
{
    json_object *member;

    return json_object_object_get_ex(object, key, &member) &&
           g_strcmp0(json_object_get_string(member), value) == 0;
}

static void
leave_finish(Vm *vm)
{
    VmDoneFunc done = g_steal_pointer(&vm->leave_done);

    source_clear(&vm->leave_poll);
    done(vm, NULL, vm->leave_data);
}

static void
on_leave_status(json_object *value, const GError *error, gpointer user_data)
{
    Vm *vm = user_data;

    vm->leave_asking = FALSE;
    if (vm->leave_done == NULL)
        return;
    if (error == NULL && string_is(value, "status", "running")) {
        leave_finish(vm);
        return;
    }
    /* A migration that failed at its very end leaves the guest stopped; nobody else would start it.
     */
    if (error == NULL &&
        (string_is(value, "status", "postmigrate") || string_is(value, "status", "paused")))
        qmp_client_send(vm->qmp, "cont", NULL, COMMAND_TIMEOUT_MS, NULL, NULL, NULL);
    if (vm->leave_poll == NULL)
        vm->leave_poll = add_timer(vm, LEAVE_POLL_MS, on_leave_poll);
}

static void
on_leave_colo_status(json_object *value, const GError *error, gpointer user_data)
{
    Vm *vm = user_data;

    if (vm->leave_done != NULL && error == NULL && string_is(value, "mode", "none")) {
        qmp_client_send(vm->qmp, "query-status", NULL, COMMAND_TIMEOUT_MS, on_leave_status, vm,
                        NULL);
        return;
    }
    /* Still in COLO, or entered it only now: ask again. */
    vm->leave_asking = FALSE;
    if (vm->leave_done == NULL)
        return;
    if (error == NULL)
        qmp_client_send(vm->qmp, "x-colo-lost-heartbeat", NULL, COMMAND_TIMEOUT_MS, NULL, NULL,
                        NULL);
    if (vm->leave_poll == NULL)
        vm->leave_poll = add_timer(vm, LEAVE_POLL_MS, on_leave_poll);
}

static void
leave_ask(Vm *vm)
{
    if (vm->leave_asking)
        return;
    vm->leave_asking = TRUE;
    qmp_client_send(vm->qmp, "query-colo-status", NULL, COMMAND_TIMEOUT_MS, on_leave_colo_status,
                    vm, NULL);
}

void
vm_leave_colo(Vm *vm, VmDoneFunc done, gpointer user_data)
{
    json_object *instances = json_object_new_array();
    json_object *arguments = json_object_new_object();

    g_assert(vm->leave_done == NULL);
    vm->leave_done = done;
    vm->leave_data = user_data;
    json_object_array_add(instances, object_with_string("type", "migration"));
    json_object_object_add(arguments, "instances", instances);
    /* Once, without retry: the socket is closed on our side, so this only speeds QEMU up, and a
     * late one would hit the next migration. An error (no such instance) is as good. */
    qmp_client_send_oob(vm->qmp, "yank", arguments, COMMAND_TIMEOUT_MS, NULL, NULL, NULL);
    json_object_put(arguments);
    qmp_client_send(vm->qmp, "x-colo-lost-heartbeat", NULL, COMMAND_TIMEOUT_MS, NULL, NULL, NULL);
    leave_ask(vm);
}

/* ---- watching ---- */

typedef struct Probe {
    Vm *vm;
    VmDoneFunc done;
    gpointer user_data;
} Probe;

static void
on_probe_reply(json_object *value G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Probe *probe = user_data;

    probe->done(probe->vm, error, probe->user_data);
}

void
vm_probe(Vm *vm, unsigned timeout_ms, VmDoneFunc done, gpointer user_data)
{
    Probe *probe = g_new(Probe, 1);

    *probe = (Probe){.vm = vm, .done = done, .user_data = user_data};
    qmp_client_send(vm->qmp, "query-status", NULL, timeout_ms, on_probe_reply, probe, g_free);
}

static void
on_watch_answer(Vm *vm, const GError *error, gpointer user_data G_GNUC_UNUSED)
{
    const gboolean was_stuck = vm->stuck_said;

    vm->probing = FALSE;
    if (error == NULL)
        vm->stuck_said = FALSE;
    if (error == NULL && was_stuck)
        vm->handlers->answers(vm, vm->user_data);
    else if (g_error_matches(error, QMP_ERROR, QMP_ERROR_TIMEOUT))
        say_stuck(vm, error);
}

static gboolean
on_watch(gpointer user_data)
{
    Vm *vm = user_data;

    if (!vm->probing) {
        vm->probing = TRUE;
        vm_probe(vm, vm->watch_limit_ms, on_watch_answer, NULL);
    }
    return G_SOURCE_CONTINUE;
}

static void
start_watch(Vm *vm)
{
    source_clear(&vm->watch);
    if (vm->ready && vm->watch_period_ms > 0)
        vm->watch = add_timer(vm, vm->watch_period_ms, on_watch);
}

void
vm_set_return_path(Vm *vm, gboolean return_path)
{
    vm->return_path = return_path;
}

void
vm_set_watch(Vm *vm, unsigned period_ms, unsigned limit_ms)
{
    vm->watch_period_ms = period_ms;
    vm->watch_limit_ms = limit_ms;
    start_watch(vm);
}

/* ---- QMP and process events ---- */

static void
on_qmp_ready(QmpClient *qmp G_GNUC_UNUSED, gpointer user_data)
{
    Vm *vm = user_data;

    vm->ready = TRUE;
    start_watch(vm);
    vm->handlers->ready(vm, vm->user_data);
}

static gboolean
is_guest_shutdown(json_object *data)
{
    json_object *guest;

    return data != NULL && json_object_object_get_ex(data, "guest", &guest) &&
           json_object_get_boolean(guest) && !string_is(data, "reason", "guest-reset");
}

static void
on_qmp_event(QmpClient *qmp G_GNUC_UNUSED, const char *name, json_object *data,
             int64_t timestamp_us, gpointer user_data)
{
    Vm *vm = user_data;

    if (strcmp(name, "STOP") == 0) {
        vm->handlers->stopped(vm, timestamp_us, vm->user_data);
    } else if (strcmp(name, "RESUME") == 0) {
        if (vm->leave_done != NULL)
            leave_ask(vm);
        vm->handlers->resumed(vm, timestamp_us, vm->user_data);
    } else if (strcmp(name, "SHUTDOWN") == 0 && is_guest_shutdown(data)) {
        vm->handlers->guest_shutdown(vm, vm->user_data);
    }
}

static gboolean
on_grace_over(gpointer user_data)
{
    Vm *vm = user_data;
    g_autoptr(GError) reason = g_error_new(VM_ERROR, VM_ERROR_QMP, "%s", vm->qmp_broken);

    source_clear(&vm->grace);
    say_stuck(vm, reason);
    return G_SOURCE_REMOVE;
}

static void
on_qmp_closed(QmpClient *qmp G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Vm *vm = user_data;

    source_clear(&vm->watch);
    g_free(vm->qmp_broken);
    vm->qmp_broken = g_strdup_printf("QMP: %s", reason->message);
    vm->grace = add_timer(vm, DEATH_GRACE_MS, on_grace_over);
}

static const QmpClientHandlers qmp_handlers = {
    .ready = on_qmp_ready,
    .event = on_qmp_event,
    .closed = on_qmp_closed,
};

static void
on_process_dead(const char *how, gpointer user_data)
{
    Vm *vm = user_data;

    source_clear(&vm->grace);
    source_clear(&vm->watch);
    vm->handlers->dead(vm, how, vm->user_data);
}

/* ---- life ---- */

static Vm *
vm_alloc(const Config *config, const VmHandlers *handlers, gpointer user_data)
{
    Vm *vm = g_new0(Vm, 1);

    /* QEMU under TCG loses dirty pages if the guest runs during the initial migration
     * (docs/qemu-compat.md, "Lost dirty pages under TCG"). COLO starts the guest again by itself.
     */
    vm->stop_to_migrate = g_str_has_prefix(config->accel, "tcg");

    vm->handlers = handlers;
    vm->user_data = user_data;
    vm->context = g_main_context_ref_thread_default();
    return vm;
}

static void
connect_qmp(Vm *vm, const Config *config, const char *run_dir)
{
    g_autofree char *path = g_build_filename(run_dir, "qmp.sock", NULL);
    g_autofree char *log = g_build_filename(run_dir, "qmp.log", NULL);
    g_autoptr(GError) error = NULL;

    vm->qmp = qmp_client_new(path, QMP_CONNECT_TIMEOUT_MS, &qmp_handlers, vm);
    if (config->qmp_log && !qmp_client_set_transcript(vm->qmp, log, &error))
        g_printerr("colod: %s\n", error->message);
}

Vm *
vm_start(const Config *config, const char *run_dir, const VmTapFds *guest_fds,
         const GPtrArray *more, gboolean incoming, const VmHandlers *handlers, gpointer user_data,
         GError **error)
{
    g_autofree char *log_path = g_build_filename(run_dir, "qemu.log", NULL);
    g_autofree char *qmp_path = g_build_filename(run_dir, "qmp.sock", NULL);
    g_auto(GStrv) argv = vm_command_line(config, run_dir, more, incoming);
    g_autofree char *description = g_strdup_printf("colod VM %s", config->vm_name);
    g_autoptr(Vm) vm = vm_alloc(config, handlers, user_data);
    int fds[CONFIG_MAX_NICS * CONFIG_MAX_QUEUES], numbers[CONFIG_MAX_NICS * CONFIG_MAX_QUEUES];
    gsize n = 0;

    for (unsigned i = 0; i < config->n_nics; i++) {
        for (unsigned queue = 0; queue < CONFIG_MAX_QUEUES; queue++) {
            if (guest_fds[i].queues[queue] < 0)
                continue;
            fds[n] = guest_fds[i].queues[queue];
            numbers[n++] = vm_tap_fd_number(i, queue);
        }
    }
    argv = process_in_scope(g_steal_pointer(&argv), description);
    /* A stale socket would answer the first connect() with ECONNREFUSED for ever. */
    (void)g_unlink(qmp_path);
    vm->process = process_spawn((const char *const *)argv, NULL, fds, numbers, n, log_path,
                                on_process_dead, vm, error);
    if (vm->process == NULL)
        return NULL;
    connect_qmp(vm, config, run_dir);
    return g_steal_pointer(&vm);
}

Vm *
vm_adopt(const Config *config, const char *run_dir, gint64 pid, guint64 start_ticks,
         const VmHandlers *handlers, gpointer user_data, GError **error)
{
    g_autoptr(Vm) vm = vm_alloc(config, handlers, user_data);

    vm->process = process_adopt(pid, start_ticks, on_process_dead, vm, error);
    if (vm->process == NULL)
        return NULL;
    connect_qmp(vm, config, run_dir);
    return g_steal_pointer(&vm);
}

void
vm_free(Vm *vm)
{
    if (vm == NULL)
        return;
    source_clear(&vm->grace);
    source_clear(&vm->watch);
    source_clear(&vm->leave_poll);
    g_clear_pointer(&vm->qmp, qmp_client_unref);
    g_clear_pointer(&vm->process, process_free);
    g_main_context_unref(vm->context);
    g_free(vm->qmp_broken);
    g_free(vm);
}

QmpClient *
vm_qmp(Vm *vm)
{
    return vm->qmp;
}

gint64
vm_pid(const Vm *vm)
{
    return process_pid(vm->process);
}

guint64
vm_start_ticks(const Vm *vm)
{
    return process_start_ticks(vm->process);
}

int
vm_copy_tap_fd(Vm *vm, int fd_number)
{
    return process_copy_fd(vm->process, fd_number);
}

const char *
vm_version(const Vm *vm)
{
    return qmp_client_version(vm->qmp);
}

void
vm_kill(Vm *vm)
{
    process_kill(vm->process);
}
