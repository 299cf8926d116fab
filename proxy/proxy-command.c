/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-command.c - the control thread's commands, carried out by the proxy thread (theory of
 * operation: proxy.c) */
#include "proxy-private.h"

#include <errno.h>
#include <sys/epoll.h>

#include "clock.h"
#include "inherit.h"

enum {
    /* At a takeover: more than the channel's ring and the kernel's buffers hold, and yet bounded.
     */
    LAST_COPIES_TURNS = 64,
};

/* DESIGN, checkpoint step 1: at most about 1 ms for what is under way. */
static const int64_t QUIESCE_MAX_NS = NS_PER_MS;
static const int64_t QUIESCE_SETTLE_NS = 200 * NS_PER_US;
static const int64_t QUIESCE_STEP_NS = 50 * NS_PER_US;

static void
finish(Proxy *proxy, Command *command, bool notify)
{
    command->notify = notify && command->done;
    command_list_push(&proxy->finished, command);
}

static void
forget_lease(Proxy *proxy)
{
    if (proxy->leased)
        finish(proxy, proxy->leased, false);
    proxy->leased = NULL;
}

bool
proxy_reads_peer(const Proxy *proxy)
{
    return proxy->has_lockstep &&
           (proxy->egress == PROXY_EGRESS_COMPARE || proxy->egress == PROXY_EGRESS_HOLD ||
            proxy->egress == PROXY_EGRESS_SHADOW);
}

/* What the peer mirrored before a takeover is input of the guest that takes over. */
static void
take_last_copies(Proxy *proxy)
{
    Lockstep *lockstep = &proxy->lockstep;
    int64_t now_ns = clock_now_ns();

    if (!lockstep->peer.attached)
        return;
    for (unsigned i = 0; i < LAST_COPIES_TURNS; i++) {
        peer_stream_fill(&lockstep->peer, now_ns);
        if (!lockstep_dispatch(lockstep, proxy->nics, proxy->n_nics, now_ns) &&
            !lockstep->peer.readable)
            break;
        for (unsigned n = 0; n < proxy->n_nics; n++)
            nic_pump(&proxy->nics[n], now_ns);
    }
}

static bool
is_pair_primary(ProxyEgress egress)
{
    return egress == PROXY_EGRESS_HOLD || egress == PROXY_EGRESS_COMPARE;
}

static void
begin_mode(Proxy *proxy, ProxyEgress egress)
{
    Lockstep *lockstep = &proxy->lockstep;

    if (proxy->egress == PROXY_EGRESS_SHADOW &&
        (egress == PROXY_EGRESS_OPEN || is_pair_primary(egress))) {
        take_last_copies(proxy);
        rewriter_takeover(lockstep->rewriter);
        lockstep->rewriting = true;
    }
    if (egress != proxy->egress && !(is_pair_primary(egress) && is_pair_primary(proxy->egress)) &&
        (is_pair_primary(egress) || egress == PROXY_EGRESS_SHADOW)) {
        lockstep->epoch = lockstep->next_epoch = 0;
        if (is_pair_primary(egress))
            inherit_begin(lockstep);
    }
    if (!is_pair_primary(egress))
        inherit_end(lockstep);
    lockstep->paused = false;
}

static void
run_egress(Proxy *proxy, Command *command)
{
    for (unsigned i = 0; i < proxy->n_nics; i++)
        nic_drain(&proxy->nics[i]);
    begin_mode(proxy, command->egress);
    for (unsigned i = 0; i < proxy->n_nics; i++)
        nic_set_egress(&proxy->nics[i], command->egress, &command->engines[i]);
    proxy->egress = command->egress;
    /* What is opened needs no lease any more, and what is dropped none either. */
    if (command->egress != PROXY_EGRESS_HOLD)
        forget_lease(proxy);
    proxy->egress_allowed =
        is_pair_primary(command->egress) || command->egress == PROXY_EGRESS_OPEN;
    if (!proxy->egress_allowed)
        proxy->announce_next_ns = 0;
}

static void
run_mark(Proxy *proxy, guint64 epoch)
{
    for (unsigned i = 0; i < proxy->n_nics; i++) {
        Nic *nic = &proxy->nics[i];

        nic_drain(nic);
        if (nic->egress == PROXY_EGRESS_HOLD)
            hold_queue_mark(nic->queue, epoch);
        if (nic->egress == PROXY_EGRESS_COMPARE)
            redirector_mark(nic, epoch);
    }
    proxy->lockstep.next_epoch = epoch;
}

static bool
lease_expired(const Command *command)
{
    return command->lease_ns != 0 && clock_now_ns() > command->lease_ns;
}

static void
run_commit_on_primary(Proxy *proxy, guint64 epoch)
{
    Lockstep *lockstep = &proxy->lockstep;

    if (!is_pair_primary(proxy->egress) || epoch <= lockstep->epoch)
        return;
    lockstep->epoch = epoch;
    lockstep->next_epoch = MAX(lockstep->next_epoch, epoch);
}

static void
run_release(Proxy *proxy, Command *command)
{
    run_commit_on_primary(proxy, command->epoch);
    if (proxy->egress == PROXY_EGRESS_COMPARE) {
        /* The commit counts whatever the lease: that rules when frames leave (nic_flush()). */
        for (unsigned i = 0; i < proxy->n_nics; i++)
            redirector_release(&proxy->nics[i], command->epoch, clock_now_ns());
        finish(proxy, command, false);
        return;
    }
    forget_lease(proxy);
    if (lease_expired(command)) {
        for (unsigned i = 0; i < proxy->n_nics; i++)
            if (proxy->nics[i].egress == PROXY_EGRESS_HOLD)
                hold_queue_unrelease(proxy->nics[i].queue);
        finish(proxy, command, true);
        return;
    }
    for (unsigned i = 0; i < proxy->n_nics; i++)
        if (proxy->nics[i].egress == PROXY_EGRESS_HOLD)
            nic_release(&proxy->nics[i], command->epoch);
    proxy->leased = command;
}

/* The lease also covers the writing, which may take several turns: looked at before each. */
void
proxy_check_lease(Proxy *proxy)
{
    bool left = false;

    if (!proxy->leased)
        return;
    for (unsigned i = 0; i < proxy->n_nics; i++)
        left |= nic_has_released(&proxy->nics[i]);
    if (!left) {
        forget_lease(proxy);
        return;
    }
    if (!lease_expired(proxy->leased))
        return;
    for (unsigned i = 0; i < proxy->n_nics; i++)
        if (proxy->nics[i].egress == PROXY_EGRESS_HOLD)
            hold_queue_unrelease(proxy->nics[i].queue);
    finish(proxy, proxy->leased, true);
    proxy->leased = NULL;
}

/* Nothing more is on its way to a guest, as far as can be seen. What a tap's ring holds cannot:
 * QEMU is given a little time for what was put there last. */
static bool
is_quiesced(const Proxy *proxy, int64_t now_ns)
{
    if (proxy->lockstep.peer.out.len > 0 && peer_stream_is_usable(&proxy->lockstep.peer))
        return false;
    for (unsigned i = 0; i < proxy->n_nics; i++) {
        const Nic *nic = &proxy->nics[i];

        if (!nic->port || nic->port_broken)
            continue;
        if (now_ns < nic->ingress_given_ns + QUIESCE_SETTLE_NS)
            return false;
        if (!nic->port->ops->is_idle(nic->port))
            return false;
    }
    return true;
}

static void
end_quiesce(Proxy *proxy)
{
    if (proxy->quiescing)
        finish(proxy, proxy->quiescing, true);
    proxy->quiescing = NULL;
}

void
proxy_check_quiesced(Proxy *proxy, int64_t now_ns)
{
    if (proxy->quiescing && (now_ns >= proxy->quiesce_until_ns || is_quiesced(proxy, now_ns)))
        end_quiesce(proxy);
}

int64_t
proxy_quiesce_deadline_ns(const Proxy *proxy, int64_t now_ns)
{
    return MIN(now_ns + QUIESCE_STEP_NS, proxy->quiesce_until_ns);
}

/* @command is done when what is under way has got there, so that both guests have the same input.
 */
static void
quiesce(Proxy *proxy, Command *command)
{
    int64_t now_ns = clock_now_ns();

    proxy->quiescing = command;
    proxy->quiesce_until_ns = now_ns + QUIESCE_MAX_NS;
    proxy_check_quiesced(proxy, now_ns);
}

static void
run_ingress(Proxy *proxy, bool flowing)
{
    for (unsigned i = 0; i < proxy->n_nics; i++) {
        Nic *nic = &proxy->nics[i];

        nic->ingress_on = flowing;
        nic->lan_readable = true;
    }
}

static void
attach(Proxy *proxy, Command *command)
{
    Nic *nic = &proxy->nics[command->nic];
    int r = proxy_watch(proxy, EPOLL_CTL_ADD, command->port->fd, WATCH_PORT, command->nic, 0);

    nic->port = command->port;
    command->port = NULL;
    nic->port_events = 0;
    nic->port_readable = true;
    nic->lan_readable = true;
    if (r < 0)
        nic_fail_port(nic, -r);
}

static void
detach_peer(Proxy *proxy)
{
    PeerStream *peer = &proxy->lockstep.peer;

    if (!peer->attached)
        return;
    (void)epoll_ctl(proxy->epoll_fd, EPOLL_CTL_DEL, peer->peer.fd, NULL);
    peer_stream_detach(peer);
    proxy->peer_ended.ended = false;
    proxy->peer_pending = false;
}

static void
attach_peer(Proxy *proxy, Command *command)
{
    PeerStream *peer = &proxy->lockstep.peer;

    detach_peer(proxy);
    peer_stream_attach(peer, &command->peer);
    command->peer = (ProxyPeer){0};
    proxy->peer_serial = command->serial;

    int r = proxy_watch(proxy, EPOLL_CTL_ADD, peer->peer.fd, WATCH_PEER, 0, 0);

    if (r < 0)
        peer_stream_fail(peer, -r, "it cannot be watched");
}

/* The guest stands; whatever it said is of the epoch that ends. */
static void
run_pause(Proxy *proxy)
{
    for (unsigned i = 0; i < proxy->n_nics; i++)
        nic_drain(&proxy->nics[i]);
    proxy->lockstep.paused = proxy->egress == PROXY_EGRESS_SHADOW;
}

static void
run_commit(Proxy *proxy, guint64 epoch)
{
    Lockstep *lockstep = &proxy->lockstep;

    if (proxy->egress != PROXY_EGRESS_SHADOW)
        return;
    for (unsigned i = 0; i < proxy->n_nics; i++)
        shadow_commit(&proxy->nics[i]);
    rewriter_commit(lockstep->rewriter);
    lockstep->epoch = lockstep->next_epoch = epoch;
    lockstep->paused = false;
}

void
proxy_run_command(Proxy *proxy, Command *command)
{
    /* In the order given: what follows does not wait. */
    end_quiesce(proxy);
    switch (command->kind) {
    case COMMAND_EGRESS:
        run_egress(proxy, command);
        break;
    case COMMAND_INGRESS:
        run_ingress(proxy, command->flowing);
        if (command->flowing || proxy->egress != PROXY_EGRESS_COMPARE)
            break;
        quiesce(proxy, command);
        return;
    case COMMAND_MARK:
        run_mark(proxy, command->epoch);
        break;
    case COMMAND_RELEASE:
        run_release(proxy, command);
        return;
    case COMMAND_ANNOUNCE:
        proxy->announce_step = 0;
        proxy->announce_next_ns = proxy->egress_allowed ? clock_now_ns() : 0;
        break;
    case COMMAND_ATTACH:
        attach(proxy, command);
        break;
    case COMMAND_ATTACH_PEER:
        attach_peer(proxy, command);
        break;
    case COMMAND_DETACH_PEER:
        detach_peer(proxy);
        break;
    case COMMAND_PAUSE:
        run_pause(proxy);
        break;
    case COMMAND_COMMIT:
        run_commit(proxy, command->epoch);
        break;
    case COMMAND_LOSE:
        proxy->lockstep.lose[command->loss] += command->n;
        proxy->lockstep.losing = true;
        break;
    }
    finish(proxy, command, true);
}
