/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-network.c - the proxy's modes, its channel to the other host's, and what it reports
 *
 * Buffered: PVM's output is held (HOLD) and SVM's kept (KEEP). Lock-stepping: PVM's is compared
 * (COMPARE) with SVM's (SHADOW) over the frames channel, which the two proxies read and write
 * themselves; the control thread only hands it over and tells them the epochs (docs/lockstep.md).
 */
#include "daemon-private.h"

#include <assert.h>
#include <string.h>

#include "clock.h"
#include "frames-stream.h"

enum { PARTS_PER_TIMEOUT = 20 };
static_assert((int)CONFIG_MAX_QUEUES == (int)PROXY_MAX_QUEUES, "what is configured can be had");

gboolean
daemon_is_lockstep(const Daemon *d)
{
    return d->config->network_mode == CONFIG_NETWORK_LOCKSTEP;
}

/* ---- what the proxy reports ---- */

static void
on_hold_high(Proxy *proxy G_GNUC_UNUSED, gpointer user_data)
{
    daemon_checkpoint(user_data, CAUSE_HELD_BYTES);
}

static void
on_lost(Proxy *proxy G_GNUC_UNUSED, guint64 frames, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_WARNING, "lost-frames",
                  "the kernel dropped %" G_GUINT64_FORMAT " frames between QEMU and colod", frames);
    daemon_checkpoint(d, CAUSE_LOST);
}

static void
on_broken(Proxy *proxy G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Daemon *d = user_data;

    daemon_set_detail(d, "network: %s", reason->message);
    event_log_add(d->log, EVENT_ERROR, "network", "%s", reason->message);
}

static CheckpointCause
cause_of(CompareRule rule)
{
    switch (rule) {
    case COMPARE_RULE_TIMEOUT_PRIMARY:
    case COMPARE_RULE_TIMEOUT_SECONDARY:
        return CAUSE_TIMEOUT;
    case COMPARE_RULE_MEMORY:
    case COMPARE_RULE_FLOWS:
        return CAUSE_HELD_BYTES;
    case COMPARE_RULE_PAYLOAD:
    case COMPARE_RULE_SYN:
    case COMPARE_RULE_FIN:
    case COMPARE_RULE_RST:
    case COMPARE_RULE_FRAGMENT:
    case COMPARE_RULE_REORDER:
    case COMPARE_N_RULES:
        break;
    }
    return CAUSE_DIVERGENCE;
}

static void
on_divergence(Proxy *proxy G_GNUC_UNUSED, const ProxyDivergence *what, gpointer user_data)
{
    daemon_checkpoint(user_data, cause_of(what->rule));
}

/* As bad as the end of the checkpoint channel, and most often a sign of the same: the gate finishes
 * what it has to and says that the peer is lost. */
static void
on_peer_lost(Proxy *proxy G_GNUC_UNUSED, const GError *reason, gpointer user_data)
{
    Daemon *d = user_data;

    event_log_add(d->log, EVENT_WARNING, "network", "%s", reason->message);
    if (d->gate != NULL)
        gate_detach_peer(d->gate);
}

static const ProxyHandlers handlers = {
    .hold_high = on_hold_high,
    .lost = on_lost,
    .broken = on_broken,
    .divergence = on_divergence,
    .peer_lost = on_peer_lost,
};

/* ---- making it ---- */

static void
fill_compare_config(const Config *config, CompareConfig *ret_compare)
{
    static const ComparePolicy policies[] = {
        [CONFIG_POLICY_SIZE] = COMPARE_POLICY_SIZE,
        [CONFIG_POLICY_FULL] = COMPARE_POLICY_FULL,
        [CONFIG_POLICY_PASS] = COMPARE_POLICY_PASS,
    };

    compare_config_init(ret_compare);
    ret_compare->timeout_ns = config->compare_timeout_ms * NS_PER_MS;
    /* Long enough for a secondary that is only a little behind, and soon enough for what waits for
     * an ack to be through several times within the timeout. */
    ret_compare->part_ns = ret_compare->timeout_ns / PARTS_PER_TIMEOUT;
    for (unsigned i = 0; i < FRAME_N_CLASSES; i++)
        ret_compare->policy[i] = policies[config->other_frames];
}

static void
fill_proxy_config(const Daemon *d, ProxyConfig *config, char **stream_paths)
{
    *config = (ProxyConfig){.n_nics = d->config->n_nics,
                            .hold_max_bytes = (gsize)d->config->hold_limit_mib << 20,
                            .lockstep = daemon_is_lockstep(d),
                            .test_hooks = d->config->test_hooks};
    fill_compare_config(d->config, &config->compare);
    for (unsigned i = 0; i < d->config->n_nics; i++) {
        const ConfigNic *nic = &d->config->nics[i];
        g_autofree char *name = g_strconcat(nic->name, ".sock", NULL);

        stream_paths[i] = g_build_filename(d->run_dir, name, NULL);
        config->nics[i] = (ProxyNic){
            .name = nic->name,
            .port = nic->port == CONFIG_PORT_TAP ? PROXY_PORT_TAP : PROXY_PORT_STREAM,
            .queues = nic->queues,
            .bridge = nic->bridge,
            .lan_tap = nic->tap,
            .stream_path = stream_paths[i],
        };
        memcpy(config->nics[i].mac, nic->mac, sizeof(nic->mac));
    }
}

static char *
connections_path(const Daemon *d)
{
    return g_build_filename(d->run_dir, "connections", NULL);
}

static void
fill_proxy_vm(const Daemon *d, ProxyVm *vm)
{
    const HostState *state = &d->wanted_state;

    *vm = (ProxyVm){.pid = (guint64)state->qemu_pid, .start_ticks = state->qemu_start_ticks};
    static_assert(sizeof(vm->boot_id) == sizeof(state->boot_id), "the same text");
    g_strlcpy(vm->boot_id, state->boot_id, sizeof(vm->boot_id));
}

/* Nothing here keeps the VM from going on. */
static void
tell_kept(Daemon *d)
{
    const ProxyKept *kept = proxy_get_kept(d->proxy);

    if (kept->loaded > 0)
        event_log_add(d->log, EVENT_INFO, "connections", "%u are translated as by the colod before",
                      kept->loaded);
    if (*kept->problem != '\0')
        event_log_add(d->log, EVENT_WARNING, "connections", "%s", kept->problem);
}

void
daemon_network_started(Daemon *d)
{
    ProxyVm vm;

    fill_proxy_vm(d, &vm);
    proxy_set_vm(d->proxy, &vm);
}

void
daemon_network_forget(Daemon *d)
{
    g_autofree char *path = connections_path(d);

    g_clear_pointer(&d->proxy, proxy_free);
    proxy_forget_connections(path);
}

gboolean
daemon_make_proxy(Daemon *d, const int *adopt_fds, GError **error)
{
    g_autofree char *path = connections_path(d);
    ProxyConfig config;
    char *stream_paths[CONFIG_MAX_NICS] = {NULL};

    fill_proxy_config(d, &config, stream_paths);
    config.connections_path = path;
    fill_proxy_vm(d, &config.vm);
    d->proxy = proxy_new(&config, adopt_fds, &handlers, d, error);
    for (unsigned i = 0; i < d->config->n_nics; i++)
        g_free(stream_paths[i]);
    if (d->proxy != NULL)
        tell_kept(d);
    return d->proxy != NULL;
}

/* ---- the frames channel and the lease ---- */

gboolean
daemon_network_attach_peer(Daemon *d)
{
    g_autoptr(GIOStream) stream = NULL;
    ProxyPeer peer;

    if (!daemon_is_lockstep(d))
        return TRUE;
    stream = peer_link_take_stream(d->link, PEER_CHANNEL_FRAMES);
    if (stream == NULL)
        return FALSE;
    peer = frames_stream_new(g_steal_pointer(&stream));
    proxy_attach_peer(d->proxy, &peer);
    daemon_network_renew_lease(d);
    return TRUE;
}

void
daemon_network_detach_peer(Daemon *d)
{
    if (d->proxy != NULL && daemon_is_lockstep(d))
        proxy_detach_peer(d->proxy, NULL, NULL);
}

int64_t
daemon_network_lease_ns(const Daemon *d)
{
    /* Not 0, which is a lease without end. */
    return d->output_held ? 1 : peer_link_confirmed_ns(d->link) + d->lease_ms * NS_PER_MS;
}

void
daemon_network_renew_lease(Daemon *d)
{
    if (d->proxy != NULL && daemon_is_lockstep(d))
        proxy_set_lease(d->proxy, daemon_network_lease_ns(d));
}

void
daemon_network_hold(Daemon *d)
{
    d->output_held = TRUE;
    daemon_network_renew_lease(d);
}

/* ---- modes and epochs ---- */

void
daemon_network_stand_by(Daemon *d)
{
    proxy_set_egress(d->proxy, daemon_is_lockstep(d) ? PROXY_EGRESS_SHADOW : PROXY_EGRESS_KEEP,
                     NULL, NULL);
}

void
daemon_network_arm(Daemon *d, ProxyDoneFunc armed)
{
    proxy_set_egress(d->proxy, daemon_is_lockstep(d) ? PROXY_EGRESS_COMPARE : PROXY_EGRESS_HOLD,
                     armed, d);
}

void
daemon_network_quiesce(Daemon *d, ProxyDoneFunc quiesced)
{
    if (daemon_is_lockstep(d))
        proxy_quiesce(d->proxy, quiesced, d);
    else
        quiesced(d->proxy, d);
}

void
daemon_network_pause(Daemon *d, ProxyDoneFunc paused)
{
    if (daemon_is_lockstep(d))
        proxy_pause(d->proxy, paused, d);
    else
        paused(d->proxy, d);
}

void
daemon_network_commit(Daemon *d, guint64 epoch, ProxyDoneFunc begun)
{
    if (daemon_is_lockstep(d)) {
        proxy_commit(d->proxy, epoch, begun, d);
        return;
    }
    /* SVM stands and its port is empty: what it said came from a state that is replaced now. Kept
     * until here, it spares a survivor's TCP connections the wait for a retransmission. */
    proxy_set_egress(d->proxy, PROXY_EGRESS_KEEP, NULL, NULL);
    begun(d->proxy, d);
}
