/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-actions.c - what the state machine asks for: VM, proxy, gate
 *
 * A VM, its proxy and, while protected, its gate come and go together. Whatever fails on the way to
 * a usable VM ends in its death: the text goes into `detail`, the process is killed, and VM_DEAD
 * takes the state machine from there.
 */
#include "daemon-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <glib-unix.h>
#include <glib/gstdio.h>

#include "fd.h"

enum {
    WATCH_PERIOD_MS = 500,
    SOCKET_BUFFER_BYTES = 1024 * 1024,
};

static void
fail_vm(Daemon *d, const char *what, const GError *error)
{
    daemon_set_detail(d, "%s: %s", what, error->message);
    event_log_add(d->log, EVENT_ERROR, "vm", "%s", d->detail);
    if (d->vm != NULL)
        vm_kill(d->vm);
    else
        daemon_event(d, PAIR_EVENT_VM_DEAD);
}

/* ---- gate ---- */

void
daemon_close_gate(Daemon *d)
{
    if (d->migration_accept != NULL)
        (void)g_unlink(d->migration_path);
    daemon_clear_source(&d->migration_accept);
    fd_clear(&d->migration_fd);
    g_clear_object(&d->incoming_stream);
    g_clear_pointer(&d->gate, gate_free);
}

/* The checkpoint channel for the gate; the proxy gets the frames channel, if it compares. */
static GIOStream *
take_streams(Daemon *d, GError **error)
{
    g_autoptr(GIOStream) stream = peer_link_take_stream(d->link, PEER_CHANNEL_CHECKPOINT);

    d->streams_used = TRUE;
    if (stream != NULL && daemon_network_attach_peer(d))
        return g_steal_pointer(&stream);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED,
                "the peer link is down, or its channel was used before");
    return NULL;
}

static void
enlarge_buffers(int fd)
{
    const int bytes = SOCKET_BUFFER_BYTES;

    /* Fewer wake-ups per checkpoint; smaller buffers only cost time. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
}

/* QEMU stands still from the moment somebody connects until the stream's first bytes are there, so
 * nobody does while the disks are copied. FALSE: it failed. */
static gboolean
open_secondary_gate(Daemon *d)
{
    g_autoptr(GIOStream) stream = g_steal_pointer(&d->incoming_stream);
    g_autoptr(GError) error = NULL;
    GateConfig config = daemon_gate_config(d);
    auto_fd int fd = fd_unix_connect(d->migration_path);

    if (fd < 0) {
        error = g_error_new(VM_ERROR, VM_ERROR_QMP, "%s: %s", d->migration_path, g_strerror(-fd));
        fail_vm(d, "QEMU's migration socket", error);
        return FALSE;
    }
    enlarge_buffers(fd);
    d->gate = gate_secondary_new(fd_steal(&fd), stream, &config, &daemon_gate_handlers, d);
    return TRUE;
}

static void
on_listening(Vm *vm G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Daemon *d = user_data;
    g_autoptr(GError) own_error = NULL;
    g_autoptr(GIOStream) stream = NULL;

    if (d->state != PAIR_INCOMING_START)
        return;
    if (error != NULL) {
        fail_vm(d, "QEMU refused to become secondary", error);
        return;
    }
    if (g_strcmp0(d->peer_qemu_version, vm_version(d->vm)) != 0) {
        own_error =
            g_error_new(VM_ERROR, VM_ERROR_QMP, "here %s, on the primary %s; install the same",
                        vm_version(d->vm), d->peer_qemu_version);
        fail_vm(d, "QEMU versions differ", own_error);
        return;
    }
    stream = take_streams(d, &own_error);
    if (stream == NULL) {
        /* Used up by a session whose other end has not renewed the link. */
        fail_vm(d, "checkpoint channel", own_error);
        daemon_renew_link(d, "no checkpoint channel left");
        return;
    }
    daemon_network_stand_by(d);
    d->incoming_stream = g_steal_pointer(&stream);
    if (d->facts.has_disks || open_secondary_gate(d))
        daemon_event(d, PAIR_EVENT_VM_READY);
}

void
daemon_peer_migrates(Daemon *d)
{
    if (d->state == PAIR_INCOMING && d->gate == NULL && d->incoming_stream != NULL)
        (void)open_secondary_gate(d);
}

static gboolean
on_migration_connection(gint listen_fd, GIOCondition condition G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;
    g_autoptr(GError) error = NULL;
    g_autoptr(GIOStream) stream = NULL;
    GateConfig config = daemon_gate_config(d);
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return G_SOURCE_CONTINUE;
    daemon_clear_source(&d->migration_accept);
    fd_clear(&d->migration_fd);
    (void)g_unlink(d->migration_path);
    stream = take_streams(d, &error);
    if (stream == NULL) {
        daemon_set_detail(d, "checkpoint channel: %s", error->message);
        (void)close(fd);
        daemon_event(d, PAIR_EVENT_GATE_PEER);
        return G_SOURCE_REMOVE;
    }
    enlarge_buffers(fd);
    d->gate = gate_primary_new(fd, stream, d->facts.generation, &config, &daemon_gate_handlers, d);
    return G_SOURCE_REMOVE;
}

static void
on_migrate(Vm *vm G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Daemon *d = user_data;

    if (error == NULL || d->state != PAIR_MIGRATING)
        return;
    daemon_set_detail(d, "QEMU refused to migrate: %s", error->message);
    daemon_event(d, PAIR_EVENT_GATE_VM);
}

static void
on_protecting_saved(Daemon *d, gboolean saved, gpointer user_data G_GNUC_UNUSED)
{
    if (d->state != PAIR_MIGRATING)
        return;
    if (!saved) {
        daemon_event(d, PAIR_EVENT_GATE_VM);
        return;
    }
    d->migration_fd = fd_unix_listen(d->migration_path);
    if (d->migration_fd < 0) {
        daemon_set_detail(d, "%s: %s", d->migration_path, g_strerror(-d->migration_fd));
        daemon_event(d, PAIR_EVENT_GATE_VM);
        return;
    }
    d->migration_accept = g_unix_fd_source_new(d->migration_fd, G_IO_IN);
    g_source_set_callback(d->migration_accept, G_SOURCE_FUNC(on_migration_connection), d, NULL);
    g_source_attach(d->migration_accept, g_main_context_get_thread_default());
    vm_set_return_path(d->vm, d->return_path);
    vm_migrate(d->vm, d->migration_path, on_migrate, d);
}

static void
start_migration(Daemon *d)
{
    /* From here on a crash of ours must end in a claim: the secondary may become armed. */
    d->wanted_state.protecting = TRUE;
    daemon_save(d, on_protecting_saved, NULL);
}

/* ---- VM ---- */

static void
on_vm_adopted(Vm *vm G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Daemon *d = user_data;

    if (error == NULL && d->state == PAIR_ADOPTING)
        daemon_disks_adopt(d);
}

static void
fail_disks(Daemon *d, const char *problem)
{
    g_autoptr(GError) error = g_error_new_literal(VM_ERROR, VM_ERROR_START, problem);

    fail_vm(d, "disks", error);
}

void
daemon_disks_adopted(Daemon *d, const char *problem)
{
    if (problem != NULL)
        fail_disks(d, problem);
    else
        daemon_event(d, PAIR_EVENT_VM_READY);
}

static void
on_vm_ready(Vm *vm, gpointer user_data)
{
    Daemon *d = user_data;
    g_autoptr(GError) error = NULL;

    g_free(d->qemu_version);
    d->qemu_version = g_strdup(vm_version(vm));
    if (!proxy_connect_ports(d->proxy, &error)) {
        fail_vm(d, "network", error);
        return;
    }
    /* Freezing QEMU's main loop for longer than a message may take is being stuck. */
    vm_set_watch(vm, WATCH_PERIOD_MS, d->config->message_timeout_ms + WATCH_PERIOD_MS);
    vm_set_return_path(vm, d->return_path);
    if (d->state == PAIR_INCOMING_START)
        vm_listen_incoming(vm, d->migration_path, on_listening, d);
    else if (d->state == PAIR_ADOPTING)
        /* colod may have died between winning a claim and getting QEMU out of COLO. */
        vm_leave_colo(vm, on_vm_adopted, d);
    else if (d->state == PAIR_ADOPT_CLAIM)
        daemon_disks_adopt(d);
    else
        daemon_event(d, PAIR_EVENT_VM_READY);
}

static void
on_vm_dead(Vm *vm G_GNUC_UNUSED, const char *how, gpointer user_data)
{
    Daemon *d = user_data;

    if (d->state != PAIR_STOPPING && d->state != PAIR_INCOMING_START)
        daemon_set_detail(d, "QEMU %s", how);
    event_log_add(d->log, EVENT_INFO, "vm-dead", "QEMU %s", how);
    daemon_event(d, PAIR_EVENT_VM_DEAD);
}

static void
on_vm_stuck(Vm *vm, const GError *reason, gpointer user_data)
{
    Daemon *d = user_data;

    /* A connection that has come to nothing is not made again, so it will never be ready, and the
     * claim that is to follow has no deadline. The other states have theirs. */
    if (d->state == PAIR_ADOPT_CLAIM && vm_version(vm) == NULL) {
        fail_vm(d, "adopting the running QEMU", reason);
        return;
    }
    daemon_set_detail(d, "QEMU is stuck: %s", reason->message);
    event_log_add(d->log, EVENT_WARNING, "vm-stuck", "%s", reason->message);
    d->facts.vm_stuck = TRUE;
    daemon_event(d, PAIR_EVENT_VM_STUCK);
}

static void
on_vm_answers(Vm *vm G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_INFO, "vm-answers", "QEMU answers again");
    daemon_set_detail(d, "%s", "");
    d->facts.vm_stuck = FALSE;
    daemon_retry_later(d);
}

static void
on_guest_shutdown(Vm *vm G_GNUC_UNUSED, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_INFO, "guest-shutdown", "the guest was shut down from inside");
    d->facts.off_wanted = TRUE;
    /* Ahead of QEMU's end, which would make the secondary take over a guest that wants to be off.
     */
    if (g_str_equal(pair_state_role(d->state), "primary"))
        daemon_send_generation(d, PEER_MESSAGE_DISCARD, d->facts.generation,
                               "the guest was shut down");
}

static const VmHandlers vm_handlers = {
    .ready = on_vm_ready,
    .dead = on_vm_dead,
    .stuck = on_vm_stuck,
    .answers = on_vm_answers,
    .stopped = daemon_vm_stopped,
    .resumed = daemon_vm_resumed,
    .guest_shutdown = on_guest_shutdown,
};

static void
remember_vm(Daemon *d)
{
    g_autofree char *boot_id = NULL;

    d->wanted_state.qemu_pid = vm_pid(d->vm);
    d->wanted_state.qemu_start_ticks = vm_start_ticks(d->vm);
    for (unsigned i = 0; i < STATE_MAX_NICS; i++) {
        const gboolean tap = i < d->config->n_nics && d->config->nics[i].port == CONFIG_PORT_TAP;

        d->wanted_state.tap_fd[i] = tap ? vm_tap_fd_number(i, 0) : -1;
    }
    if (g_file_get_contents("/proc/sys/kernel/random/boot_id", &boot_id, NULL, NULL))
        g_strlcpy(d->wanted_state.boot_id, g_strstrip(boot_id), sizeof(d->wanted_state.boot_id));
    daemon_save(d, NULL, NULL);
}

static void
start_vm(Daemon *d, gboolean incoming)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) disks = daemon_disks_arguments(d, incoming);
    VmTapFds fds[CONFIG_MAX_NICS];

    d->facts.off_wanted = FALSE;
    if (!daemon_make_proxy(d, NULL, &error)) {
        fail_vm(d, "network", error);
        return;
    }
    for (unsigned i = 0; i < d->config->n_nics; i++)
        for (unsigned queue = 0; queue < CONFIG_MAX_QUEUES; queue++)
            fds[i].queues[queue] = proxy_take_guest_fd(d->proxy, i, queue);
    d->vm = vm_start(d->config, d->run_dir, fds, disks, incoming, &vm_handlers, d, &error);
    for (unsigned i = 0; i < d->config->n_nics; i++)
        for (unsigned queue = 0; queue < CONFIG_MAX_QUEUES; queue++)
            fd_clear(&fds[i].queues[queue]);
    if (d->vm == NULL) {
        fail_vm(d, "QEMU", error);
        return;
    }
    remember_vm(d);
    daemon_network_started(d);
}

void
daemon_disks_started(Daemon *d, const char *problem)
{
    const gboolean incoming = d->state == PAIR_INCOMING_START;

    if (!incoming && d->state != PAIR_STARTING)
        return;
    if (problem != NULL)
        fail_disks(d, problem);
    else
        start_vm(d, incoming);
}

static void
on_incoming_saved(Daemon *d, gboolean saved, gpointer user_data G_GNUC_UNUSED)
{
    if (d->state != PAIR_INCOMING_START)
        return;
    if (saved)
        daemon_disks_start(d, TRUE);
    else
        daemon_event(d, PAIR_EVENT_VM_DEAD);
}

static void
start_incoming(Daemon *d)
{
    d->wanted_state.generation = MAX(d->wanted_state.generation, d->facts.peer_generation);
    d->wanted_state.role = STATE_ROLE_SECONDARY;
    d->wanted_state.protecting = FALSE;
    daemon_save(d, on_incoming_saved, NULL);
}

static gboolean
adopt_proxy(Daemon *d, GError **error)
{
    int fds[CONFIG_MAX_NICS];
    gboolean made = TRUE;

    for (unsigned i = 0; i < d->config->n_nics; i++) {
        fds[i] = -1;
        if (d->wanted_state.tap_fd[i] < 0 || !made)
            continue;
        fds[i] = vm_copy_tap_fd(d->vm, d->wanted_state.tap_fd[i]);
        if (fds[i] < 0) {
            g_set_error(error, VM_ERROR, VM_ERROR_ADOPT, "tap of %s in QEMU: %s",
                        d->config->nics[i].name, g_strerror(-fds[i]));
            made = FALSE;
        }
    }
    made = made && daemon_make_proxy(d, fds, error);
    for (unsigned i = 0; i < d->config->n_nics; i++)
        fd_clear(&fds[i]);
    return made;
}

static gboolean
find_vm(Daemon *d, GError **error)
{
    d->vm = vm_adopt(d->config, d->run_dir, d->wanted_state.qemu_pid,
                     d->wanted_state.qemu_start_ticks, &vm_handlers, d, error);
    return d->vm != NULL;
}

static void
adopt_vm(Daemon *d)
{
    g_autoptr(GError) error = NULL;

    if (!find_vm(d, &error) || !adopt_proxy(d, &error)) {
        fail_vm(d, "adopting the running QEMU", error);
        return;
    }
    event_log_add(d->log, EVENT_INFO, "adopted", "QEMU %" G_GINT64_FORMAT, vm_pid(d->vm));
}

static void
kill_vm(Daemon *d)
{
    g_autoptr(GError) error = NULL;

    if (d->vm == NULL && !find_vm(d, &error)) {
        daemon_event(d, PAIR_EVENT_VM_DEAD);
        return;
    }
    vm_kill(d->vm);
}

void
daemon_forget_vm(Daemon *d)
{
    daemon_close_gate(d);
    g_clear_pointer(&d->vm, vm_free);
    d->facts.vm_stuck = FALSE;
    daemon_network_forget(d);
    daemon_disks_stop(d);
    if (d->wanted_state.qemu_pid != 0) {
        d->wanted_state.qemu_pid = 0;
        daemon_save(d, NULL, NULL);
    }
}

static void
on_probe(Vm *vm G_GNUC_UNUSED, const GError *error, gpointer user_data)
{
    Daemon *d = user_data;

    if (error == NULL)
        daemon_event(d, PAIR_EVENT_VM_ALIVE);
}

static void
on_left_colo(Vm *vm G_GNUC_UNUSED, const GError *error G_GNUC_UNUSED, gpointer user_data)
{
    daemon_disks_vm_left(user_data);
}

static void
set_output(Daemon *d, ProxyEgress egress)
{
    d->output_held = FALSE;
    if (d->proxy == NULL)
        return;
    proxy_set_egress(d->proxy, egress, NULL, NULL);
    proxy_set_ingress(d->proxy, egress == PROXY_EGRESS_OPEN, NULL, NULL);
    daemon_network_detach_peer(d);
    event_log_add(d->log, EVENT_INFO, "output", "%s",
                  egress == PROXY_EGRESS_OPEN ? "open" : "dropped");
}

static void
detach_gate(Daemon *d)
{
    if (d->gate != NULL)
        gate_detach_peer(d->gate);
    else if (d->incoming_stream != NULL)
        daemon_event(d, PAIR_EVENT_GATE_PEER);
}

static void
leave_colo(Daemon *d)
{
    daemon_close_gate(d);
    daemon_disks_leave(d);
    vm_leave_colo(d->vm, on_left_colo, d);
}

static void
start_primary(Daemon *d)
{
    daemon_disks_start(d, FALSE);
}

static void
run_vm(Daemon *d)
{
    vm_run(d->vm, NULL, NULL);
}

static void
probe_vm(Daemon *d)
{
    vm_probe(d->vm, d->config->message_timeout_ms, on_probe, d);
}

static void
open_output(Daemon *d)
{
    set_output(d, PROXY_EGRESS_OPEN);
}

static void
drop_output(Daemon *d)
{
    set_output(d, PROXY_EGRESS_DROP);
}

static void
announce(Daemon *d)
{
    proxy_announce(d->proxy);
}

static void
claim(Daemon *d)
{
    daemon_claim(d, FALSE);
}

static void
claim_for_operator(Daemon *d)
{
    daemon_claim(d, TRUE);
}

/* ---- messages to the peer ---- */

static void
send_prepare(Daemon *d)
{
    d->facts.peer_gave_up = FALSE;
    daemon_send_prepare(d);
}

static void
send_prepared(Daemon *d)
{
    daemon_send_generation(d, PEER_MESSAGE_PREPARED, d->facts.generation, NULL);
}

static void
send_prepare_failed(Daemon *d)
{
    daemon_send_generation(d, PEER_MESSAGE_PREPARE_FAILED, d->facts.generation, d->detail);
}

static void
send_discard(Daemon *d)
{
    daemon_send_generation(d, PEER_MESSAGE_DISCARD, d->facts.generation, d->detail);
}

static void
send_hand_over(Daemon *d)
{
    daemon_send_generation(d, PEER_MESSAGE_HAND_OVER, d->facts.generation, NULL);
}

void
daemon_act(Daemon *d, PairAction action)
{
    static void (*const functions[])(Daemon *) = {
        [PAIR_ACTION_START_VM] = start_primary,
        [PAIR_ACTION_START_INCOMING] = start_incoming,
        [PAIR_ACTION_ADOPT_VM] = adopt_vm,
        [PAIR_ACTION_RUN_VM] = run_vm,
        [PAIR_ACTION_KILL_VM] = kill_vm,
        [PAIR_ACTION_PROBE_VM] = probe_vm,
        [PAIR_ACTION_OPEN_OUTPUT] = open_output,
        [PAIR_ACTION_HOLD_OUTPUT] = daemon_network_hold,
        [PAIR_ACTION_DROP_OUTPUT] = drop_output,
        [PAIR_ACTION_CLAIM] = claim,
        [PAIR_ACTION_CLAIM_OPERATOR] = claim_for_operator,
        [PAIR_ACTION_GRANT] = daemon_grant,
        [PAIR_ACTION_PROPOSE] = daemon_propose,
        [PAIR_ACTION_CONSENT] = daemon_consent,
        [PAIR_ACTION_SEND_PREPARE] = send_prepare,
        [PAIR_ACTION_SEND_PREPARED] = send_prepared,
        [PAIR_ACTION_SEND_PREPARE_FAILED] = send_prepare_failed,
        [PAIR_ACTION_CONNECT_DISKS] = daemon_disks_connect,
        [PAIR_ACTION_START_MIGRATION] = start_migration,
        [PAIR_ACTION_SEND_DISCARD] = send_discard,
        [PAIR_ACTION_SEND_HAND_OVER] = send_hand_over,
        [PAIR_ACTION_GIVE_UP] = daemon_give_up,
        [PAIR_ACTION_DETACH_GATE] = detach_gate,
        [PAIR_ACTION_CLOSE_GATE] = daemon_close_gate,
        [PAIR_ACTION_LEAVE_COLO] = leave_colo,
        [PAIR_ACTION_ANNOUNCE] = announce,
        [PAIR_ACTION_RETRY_LATER] = daemon_retry_later,
    };

    static_assert(G_N_ELEMENTS(functions) == PAIR_N_ACTIONS, "a function for each action");
    g_assert(functions[action] != NULL);
    functions[action](d);
}
