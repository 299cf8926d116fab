/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-thread.c - the proxy's own thread: event loop and commands (theory of operation: proxy.c)
 */
#include "proxy-private.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "announce.h"
#include "bytes.h"
#include "clock.h"
#include "digests.h"
#include "inherit.h"
#include "link.h"

enum {
    WATCH_NIC_BITS = 8, /* epoll data: kind << 8 | NIC */
    MAX_EVENTS = 3 + 2 * PROXY_MAX_NICS,
};

/* Not a set of events that epoll knows: the descriptor is taken out of it. */
static const uint32_t WATCH_NEVER = UINT32_MAX;

/* The shortest that the kernel grants. */
static const uint64_t SLICE_NS = 100 * NS_PER_US;

/* Now and three more times: a switch or neighbour may lose the first while the link settles. */
static const int64_t announce_pauses_ns[] = {50 * NS_PER_MS, 150 * NS_PER_MS, 300 * NS_PER_MS};

int
proxy_watch(Proxy *proxy, int operation, int fd, WatchKind kind, unsigned nic, uint32_t events)
{
    struct epoll_event event = {.events = events,
                                .data.u32 = ((uint32_t)kind << WATCH_NIC_BITS) | nic};

    return epoll_ctl(proxy->epoll_fd, operation, fd, &event) < 0 ? -errno : 0;
}

int
proxy_thread_prepare(Proxy *proxy)
{
    int r = proxy_watch(proxy, EPOLL_CTL_ADD, proxy->wake_fd, WATCH_WAKE, 0, EPOLLIN);

    if (r == 0)
        r = proxy_watch(proxy, EPOLL_CTL_ADD, proxy->monitor_fd, WATCH_MONITOR, 0, EPOLLIN);
    for (unsigned i = 0; r == 0 && i < proxy->n_nics; i++) {
        Nic *nic = &proxy->nics[i];

        r = proxy_watch(proxy, EPOLL_CTL_ADD, nic->lan_fd, WATCH_LAN, i, 0);
        if (r == 0 && nic->port)
            r = proxy_watch(proxy, EPOLL_CTL_ADD, nic->port->fd, WATCH_PORT, i, 0);
    }
    return r;
}

/* A broken descriptor would be reported for ever, whatever is asked for. */
static void
set_watch(Proxy *proxy, int fd, WatchKind kind, unsigned nic, uint32_t events, uint32_t *registered)
{
    if (events == *registered)
        return;
    *registered = events;
    if (events == WATCH_NEVER)
        (void)epoll_ctl(proxy->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    else
        (void)proxy_watch(proxy, EPOLL_CTL_MOD, fd, kind, nic, events);
}

static void
update_watch(Proxy *proxy, Nic *nic)
{
    uint32_t lan = 0, port = 0;

    if (nic_wants_lan_input(nic))
        lan |= EPOLLIN;
    if (nic->lan_blocked)
        lan |= EPOLLOUT;
    if (nic->lan_broken)
        lan = WATCH_NEVER;
    set_watch(proxy, nic->lan_fd, WATCH_LAN, nic->index, lan, &nic->lan_events);

    if (!nic->port)
        return;
    if (nic_wants_port_input(nic))
        port |= EPOLLIN;
    if (nic->ingress_stalled && nic->port->ops->write_polls)
        port |= EPOLLOUT;
    if (nic->port_broken)
        port = WATCH_NEVER;
    set_watch(proxy, nic->port->fd, WATCH_PORT, nic->index, port, &nic->port_events);
}

static bool
news_pending(const NicNews *news)
{
    return news->hold_high || news->lost > 0 || news->broken || news->divergence.count > 0;
}

static void
merge_news(NicNews *to, NicNews *from)
{
    to->hold_high |= from->hold_high;
    to->lost += from->lost;
    if (from->broken) {
        to->broken = true;
        to->broken_lan = from->broken_lan;
        to->broken_errno = from->broken_errno;
    }
    if (to->divergence.count == 0)
        to->divergence = from->divergence;
    else
        to->divergence.count += from->divergence.count;
    *from = (NicNews){0};
}

/* Hands replies and news to the control thread. */
static void
publish(Proxy *proxy)
{
    bool any = proxy->finished.head != NULL || proxy->peer_ended.ended;

    for (unsigned i = 0; i < proxy->n_nics; i++)
        any |= news_pending(&proxy->nics[i].news);
    if (!any)
        return;

    pthread_mutex_lock(&proxy->lock);
    for (Command *c; (c = command_list_pop(&proxy->finished));)
        command_list_push(&proxy->replies, c);
    for (unsigned i = 0; i < proxy->n_nics; i++)
        merge_news(&proxy->news[i], &proxy->nics[i].news);
    if (proxy->peer_ended.ended)
        proxy->peer_news = proxy->peer_ended;
    proxy->peer_ended.ended = false;
    pthread_mutex_unlock(&proxy->lock);

    const uint64_t one = 1;

    /* Cannot fail but for a counter at its maximum: then the other side is awake anyway. */
    (void)!write(proxy->reply_fd, &one, sizeof(one));
}

/* Carries out what the control thread has asked for. False: to quit. */
static bool
run_commands(Proxy *proxy)
{
    for (;;) {
        pthread_mutex_lock(&proxy->lock);
        bool quit = proxy->quit;
        Command *command = quit ? NULL : command_list_pop(&proxy->todo);
        pthread_mutex_unlock(&proxy->lock);

        if (!command)
            return !quit;
        proxy_run_command(proxy, command);
        publish(proxy);
    }
}

/* The peer's frames to the NICs. */
static void
read_peer(Proxy *proxy, int64_t now_ns)
{
    Lockstep *lockstep = &proxy->lockstep;

    proxy->peer_pending = false;
    if (!lockstep->peer.attached || !proxy_reads_peer(proxy))
        return;
    peer_stream_fill(&lockstep->peer, now_ns);
    proxy->peer_pending = lockstep_dispatch(lockstep, proxy->nics, proxy->n_nics, now_ns);
}

static void
write_peer(Proxy *proxy)
{
    PeerStream *peer = &proxy->lockstep.peer;

    if (!peer->attached)
        return;
    inherit_send(&proxy->lockstep);
    digests_send_key(&proxy->lockstep);
    peer_stream_flush(peer);
    proxy->lockstep.mirrored_in_turn = false;
    /* What it said before its end is told of comes first. */
    if (peer->broken && !peer->told_end && !proxy->peer_pending) {
        peer->told_end = true;
        proxy->peer_ended =
            (PeerNews){.ended = true, .end = peer->end, .serial = proxy->peer_serial};
    }
}

static void
update_peer_watch(Proxy *proxy)
{
    PeerStream *peer = &proxy->lockstep.peer;
    uint32_t events = 0;

    if (!peer->attached || peer->events == WATCH_NEVER)
        return;
    if (proxy_reads_peer(proxy) && byte_ring_room(&peer->in) > 0)
        events |= EPOLLIN;
    if (peer->blocked)
        events |= EPOLLOUT;
    if (peer->broken)
        events = WATCH_NEVER;
    set_watch(proxy, peer->peer.fd, WATCH_PEER, 0, events, &peer->events);
}

static void
announce_one(Nic *nic, uint8_t *buffer, size_t len)
{
    /* A lost announcement is repeated; the LAN tap's state shows in frames that matter. */
    (void)!write(nic->lan_fd, buffer, PORT_VNET_BYTES + len);
}

static void
announce_all(Proxy *proxy)
{
    uint8_t buffer[PORT_VNET_BYTES + ANNOUNCE_FRAME_MAX] = {0};
    uint8_t *frame = buffer + PORT_VNET_BYTES;
    AddressTable table;

    pthread_mutex_lock(&proxy->book.lock);
    table = proxy->book.table;
    pthread_mutex_unlock(&proxy->book.lock);

    for (unsigned i = 0; i < proxy->n_nics; i++)
        announce_one(&proxy->nics[i], buffer, announce_rarp(proxy->nics[i].config.mac, frame));
    for (unsigned i = 0; i < table.n; i++) {
        const ProxyAddress *address = &table.entries[i].address;

        if (address->nic >= proxy->n_nics)
            continue;

        Nic *nic = &proxy->nics[address->nic];
        const uint8_t *mac = nic->config.mac;

        if (!address->ipv6)
            announce_one(nic, buffer, announce_arp(mac, address->bytes, frame));
        else if (!table.router[address->nic])
            announce_one(nic, buffer, announce_na(mac, address->bytes, frame));
    }
}

static void
announce_if_due(Proxy *proxy, int64_t now_ns)
{
    if (proxy->announce_next_ns == 0 || now_ns < proxy->announce_next_ns)
        return;
    announce_all(proxy);
    proxy->announce_next_ns = proxy->announce_step < G_N_ELEMENTS(announce_pauses_ns)
                                  ? now_ns + announce_pauses_ns[proxy->announce_step]
                                  : 0;
    proxy->announce_step++;
}

static void
lan_gone(int ifindex, gpointer user_data)
{
    Proxy *proxy = user_data;

    for (unsigned i = 0; i < proxy->n_nics; i++)
        if (proxy->nics[i].lan_ifindex == ifindex)
            nic_fail_lan(&proxy->nics[i], ENODEV);
}

static void
handle_port_event(Nic *nic, uint32_t events)
{
    if (events & EPOLLOUT)
        nic->ingress_retry_ns = 0;
    if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        return;
    nic->port_readable = true;
    /* With a full queue the end cannot be read, and would be reported for ever. */
    if ((events & (EPOLLERR | EPOLLHUP)) && !nic_wants_port_input(nic))
        nic_fail_port(nic, EPIPE);
}

static void
handle_lan_event(Nic *nic, uint32_t events)
{
    if (events & EPOLLOUT)
        nic->lan_blocked = false;
    if (events & EPOLLIN)
        nic->lan_readable = true;
    if (events & EPOLLERR)
        nic_fail_lan(nic, ENODEV);
}

static void
handle_peer_event(PeerStream *peer, uint32_t events)
{
    if (events & EPOLLOUT)
        peer->blocked = false;
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        peer->readable = peer->woken = true;
    /* Where it is not read, its end would be reported for ever. */
    if ((events & (EPOLLERR | EPOLLHUP)) && !(peer->events & EPOLLIN))
        peer_stream_fail(peer, EPIPE, "the connection is gone");
}

static void
handle_event(Proxy *proxy, const struct epoll_event *event)
{
    Nic *nic = &proxy->nics[event->data.u32 & ((1U << WATCH_NIC_BITS) - 1)];
    uint64_t ignored;

    switch ((WatchKind)(event->data.u32 >> WATCH_NIC_BITS)) {
    case WATCH_WAKE:
        (void)!read(proxy->wake_fd, &ignored, sizeof(ignored));
        break;
    case WATCH_MONITOR:
        link_read_monitor(proxy->monitor_fd, lan_gone, proxy);
        break;
    case WATCH_PORT:
        handle_port_event(nic, event->events);
        break;
    case WATCH_LAN:
        handle_lan_event(nic, event->events);
        break;
    case WATCH_PEER:
        handle_peer_event(&proxy->lockstep.peer, event->events);
        break;
    }
}

/* When something is to be done that no descriptor tells of. INT64_MAX: never. */
static int64_t
next_deadline(const Proxy *proxy)
{
    int64_t next = proxy->announce_next_ns ? proxy->announce_next_ns : INT64_MAX;

    if (proxy->peer_pending ||
        peer_stream_is_runnable(&proxy->lockstep.peer, proxy_reads_peer(proxy)))
        return 0;
    if (proxy->quiescing)
        next = MIN(next, proxy_quiesce_deadline_ns(clock_now_ns()));
    for (unsigned i = 0; i < proxy->n_nics; i++) {
        const Nic *nic = &proxy->nics[i];

        if (nic_is_runnable(nic))
            return 0;
        if (nic->ingress_stalled)
            next = MIN(next, nic->ingress_retry_ns);
        if (nic->lost_due)
            next = MIN(next, nic->lost_next_ns);
        next = MIN(next, redirector_deadline_ns(nic));
    }
    return next;
}

static void
wait_for_events(Proxy *proxy)
{
    struct epoll_event events[MAX_EVENTS];
    int64_t next = next_deadline(proxy);
    int64_t wait_ns = next == 0 ? 0 : MAX(next - clock_now_ns(), 0);
    struct timespec timeout = {.tv_sec = wait_ns / NS_PER_S, .tv_nsec = wait_ns % NS_PER_S};
    /* epoll_pwait2(): a full ring of the guest is looked at again after 100 us. */
    int n = epoll_pwait2(proxy->epoll_fd, events, MAX_EVENTS, next == INT64_MAX ? NULL : &timeout,
                         NULL);

    for (int i = 0; i < n; i++)
        handle_event(proxy, &events[i]);
}

/* Of sched_setattr(2); <linux/sched/types.h> of some systems cannot be had together with the C
 * library's own headers. */
typedef struct SchedAttr {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns;
    uint64_t deadline_ns;
    uint64_t period_ns;
} SchedAttr;

/*
 * Turns are short, and a guest's CPU is most often busy when one becomes due: it has just sent the
 * frame that this thread is woken for, and will be idle in a tenth of a millisecond. Since
 * Linux 6.6 the scheduler lets it run on until its slice is over, whatever our nice value, unless
 * we ask for slices shorter than the usual ones (6.12); others ignore it. The share of the CPU
 * stays that of the nice value. Measured with an idle pair: 0.2 of the 1.1 ms of a ping.
 */
static void
ask_for_short_slices(void)
{
    SchedAttr attr = {0};

    if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) < 0 || attr.policy != 0)
        return;
    attr.size = sizeof(attr);
    attr.flags = 0;
    attr.runtime_ns = SLICE_NS;
    /* Best effort: it is about latency alone. */
    (void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

/* Not the control thread: it owes the peer heartbeats. */
static void
nic_populate(Nic *nic)
{
    hold_queue_populate(nic->queue);
    if (nic->ls.inbox) {
        hold_queue_populate(nic->ls.stage);
        hold_queue_populate(nic->ls.inbox);
    }
}

void *
proxy_thread_main(void *arg)
{
    Proxy *proxy = arg;

    ask_for_short_slices();
    for (unsigned i = 0; i < proxy->n_nics; i++)
        nic_populate(&proxy->nics[i]);
    for (;;) {
        wait_for_events(proxy);
        if (!run_commands(proxy))
            return NULL;

        int64_t now_ns = clock_now_ns();

        read_peer(proxy, now_ns);
        for (unsigned i = 0; i < proxy->n_nics; i++) {
            nic_read(&proxy->nics[i]);
            redirector_tick(&proxy->nics[i], now_ns);
        }
        proxy_check_lease(proxy);
        for (unsigned i = 0; i < proxy->n_nics; i++) {
            Nic *nic = &proxy->nics[i];

            nic_flush(nic);
            nic_pump(nic, now_ns);
            nic_check_lost(nic, now_ns);
            redirector_publish(nic);
        }
        write_peer(proxy);
        lockstep_publish(&proxy->lockstep);
        announce_if_due(proxy, now_ns);
        proxy_check_lease(proxy);
        proxy_check_quiesced(proxy, now_ns);
        publish(proxy);
        for (unsigned i = 0; i < proxy->n_nics; i++)
            update_watch(proxy, &proxy->nics[i]);
        update_peer_watch(proxy);
    }
}
