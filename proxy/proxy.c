/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * proxy.c - the proxy object, as the control thread sees it
 *
 * Theory of operation
 *
 * A NIC is a guest port (port-tap.c or port-stream.c: QEMU's end), a hold queue (hold-queue.c) and
 * a LAN tap (lan-tap.c: the bridge's end); nic.c moves frames between them. In lock-stepping the
 * frames channel to the peer's proxy (peer-stream.c) joins them, with a comparison engine and a
 * stage on the primary (redirector.c), a rewriter and an inbox on the secondary (shadow.c):
 * docs/lockstep.md.
 *
 * Threads. The control thread calls the functions of proxy.h. The proxy thread (proxy-thread.c)
 * runs one epoll loop over all NICs and the peer's channel; it alone touches frames, queues, ports,
 * engines and the channel, and allocates nothing: engines are made by the control thread and come
 * back to it with their command. Between them are two lists of commands under one mutex, each with
 * an eventfd: commands go to the proxy thread, and the same nodes come back to be notified and
 * freed. What happens by itself (queue high, frames lost, port broken) is merged into one NicNews
 * per NIC, so it takes bounded memory however slow the control thread is. Statistics are relaxed
 * atomics with one writer; learned addresses and the records of divergences have mutexes of their
 * own, which are taken when an address is new and when the guests differ, not for each frame. The
 * lease is one atomic number.
 *
 * Command order. Commands are carried out one after the other in the order given, before any
 * further frame is looked at; each is done when its callback is queued. Egress changes and marks
 * drain the guest ports first: QEMU's write of a frame ends after the frame is in our socket, so
 * with the guest stopped a read until EAGAIN has seen all it ever sent. A full hold queue ends a
 * drain early: what is left in the socket then counts as sent after the mark, which releases it
 * later, never earlier. The one command that takes time is the stopping of ingress in COMPARE: it
 * is done when what was under way has got to the guests, after at most 1 ms, or when another
 * command comes.
 *
 * Invariants.
 * - In HOLD, only frames before a mark whose release was asked for are written to the LAN, and only
 *   while that release's lease lasts (looked at before every slice of FLUSH_SLICE frames).
 * - In COMPARE, only what the engine released is written to the LAN (matched, or covered by a
 *   commit that was ordered), and only while the lease lasts and the peer has not closed the
 *   channel, looked at before every slice. Without a peer nothing matches.
 * - In SHADOW a guest is given copies of its own epoch only, and none while it stands.
 * - Every frame that is compared or mirrored carries the epoch of the state that it belongs to.
 * - Frames that find no room stay where they come from; none is dropped without being counted.
 * - Frames leave in the order in which they came (COMPARE: within their flow); a LAN tap that takes
 *   none makes them wait.
 * - In DROP, KEEP and SHADOW nothing is written to the LAN, announcements neither.
 * - A mark that is forgotten or never made releases too little, never too much.
 * - No loop of the thread is without bound, so proxy_free() waits for one turn at most.
 */
#include "proxy-private.h"

#include <errno.h>
#include <glib-unix.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fd.h"
#include "keep.h"
#include "lan-tap.h"
#include "link.h"

G_DEFINE_QUARK(colod_proxy_error_quark, proxy_error)

static void
free_command(Command *command)
{
    if (command->port)
        command->port->ops->close(command->port);
    if (command->peer.close)
        command->peer.close(command->peer.opaque);
    for (unsigned i = 0; i < PROXY_MAX_NICS; i++)
        compare_free(command->engines[i]);
    g_free(command);
}

static void
free_commands(CommandList *list)
{
    for (Command *c; (c = command_list_pop(list));)
        free_command(c);
}

static void
clear_nic(Nic *nic)
{
    if (nic->port)
        nic->port->ops->close(nic->port);
    fd_clear(&nic->lan_fd);
    hold_queue_free(nic->queue);
    nic_lockstep_clear(nic);
    g_free(nic->ingress);
    g_free((char *)nic->config.name);
    g_free((char *)nic->config.bridge);
    g_free((char *)nic->config.lan_tap);
    g_free((char *)nic->config.stream_path);
}

static void
proxy_unref(Proxy *proxy)
{
    if (--proxy->refs > 0)
        return;
    for (unsigned i = 0; i < PROXY_MAX_NICS; i++)
        clear_nic(&proxy->nics[i]);
    if (proxy->has_lockstep)
        lockstep_clear(&proxy->lockstep);
    pthread_mutex_destroy(&proxy->lock);
    pthread_mutex_destroy(&proxy->book.lock);
    g_free(proxy);
}

void
proxy_wake(Proxy *proxy)
{
    const uint64_t one = 1;

    (void)!write(proxy->wake_fd, &one, sizeof(one));
}

void
proxy_submit(Proxy *proxy, Command command)
{
    g_assert(!proxy->freed);
    pthread_mutex_lock(&proxy->lock);
    command_list_push(&proxy->todo, g_memdup2(&command, sizeof(command)));
    pthread_mutex_unlock(&proxy->lock);
    proxy_wake(proxy);
}

static const char *
broken_text(const Nic *nic, const NicNews *news)
{
    if (news->broken_lan)
        return "the LAN tap was deleted or taken out of its bridge";
    if (nic->config.port == PROXY_PORT_TAP)
        return "the guest's tap is gone (QEMU has closed it)";
    switch (news->broken_errno) {
    case EPIPE:
    case ECONNRESET:
        return "QEMU has closed the stream";
    case EMSGSIZE:
        return "QEMU's stream announces a frame that is too long";
    default:
        return "QEMU's stream failed";
    }
}

static void
tell_news(Proxy *proxy, unsigned i, const NicNews *news)
{
    const ProxyHandlers *handlers = &proxy->handlers;
    Nic *nic = &proxy->nics[i];

    if (news->hold_high && handlers->hold_high)
        handlers->hold_high(proxy, proxy->user_data);
    if (news->lost > 0 && handlers->lost && !proxy->freed)
        handlers->lost(proxy, news->lost, proxy->user_data);
    if (news->broken && handlers->broken && !proxy->freed) {
        g_autoptr(GError) reason =
            g_error_new(PROXY_ERROR, PROXY_ERROR_PORT, "%s: %s (%s)", nic->config.name,
                        broken_text(nic, news), g_strerror(news->broken_errno));

        handlers->broken(proxy, reason, proxy->user_data);
    }
    if (news->divergence.count > 0)
        proxy_tell_divergence(proxy, &news->divergence);
}

/* Each callback may call proxy_free(): the reference keeps the memory, @freed ends the loops. */
static void
dispatch(Proxy *proxy)
{
    NicNews news[PROXY_MAX_NICS];
    PeerNews peer_news;
    CommandList replies;

    pthread_mutex_lock(&proxy->lock);
    memcpy(news, proxy->news, sizeof(news));
    memset(proxy->news, 0, sizeof(proxy->news));
    peer_news = proxy->peer_news;
    proxy->peer_news.ended = false;
    replies = proxy->replies;
    proxy->replies = (CommandList){0};
    pthread_mutex_unlock(&proxy->lock);

    /* News first: frames lost before a mark are known when the mark is done. */
    for (unsigned i = 0; i < proxy->n_nics && !proxy->freed; i++)
        tell_news(proxy, i, &news[i]);
    proxy_tell_peer(proxy, &peer_news);
    for (Command *c; !proxy->freed && (c = command_list_pop(&replies));) {
        if (c->notify)
            c->done(proxy, c->user_data);
        free_command(c);
    }
    free_commands(&replies);
}

static gboolean
on_reply(int fd, GIOCondition condition, gpointer user_data)
{
    Proxy *proxy = user_data;
    uint64_t ignored;

    (void)condition;
    (void)!read(fd, &ignored, sizeof(ignored));
    proxy->refs++;
    dispatch(proxy);

    gboolean keep = !proxy->freed;

    proxy_unref(proxy);
    return keep;
}

static gboolean
check_config(const ProxyConfig *config, GError **error)
{
    g_assert(config->n_nics <= PROXY_MAX_NICS);
    for (unsigned i = 0; i < config->n_nics; i++)
        g_assert(config->nics[i].queues <= PROXY_MAX_QUEUES);
    if (config->hold_max_bytes < HOLD_QUEUE_MIN_BYTES)
        return link_error(error, 0, "the bound of held output is less than %d bytes",
                          HOLD_QUEUE_MIN_BYTES);
    return TRUE;
}

static gboolean
init_nic(Proxy *proxy, unsigned i, const ProxyConfig *config, int adopt_fd, GError **error)
{
    Nic *nic = &proxy->nics[i];
    const ProxyNic *from = &config->nics[i];

    nic->config = *from;
    nic->config.name = g_strdup(from->name);
    nic->config.bridge = g_strdup(from->bridge);
    nic->config.lan_tap = g_strdup(from->lan_tap);
    nic->config.stream_path = g_strdup(from->stream_path);
    nic->hold_max_bytes = config->hold_max_bytes;
    nic->ingress = g_malloc0(HOLD_QUEUE_FRAME_MAX);
    nic->queue = hold_queue_new(config->hold_max_bytes);
    if (!nic->queue)
        return link_error(error, errno, "%s: no memory to hold %" G_GSIZE_FORMAT " bytes of output",
                          from->name, config->hold_max_bytes);
    if (config->lockstep) {
        int r = nic_lockstep_init(nic, &proxy->lockstep);

        if (r < 0)
            return link_error(error, -r, "%s: no memory for lock-stepping", from->name);
    }
    nic->lan_fd = lan_tap_open(from, &nic->lan_ifindex, error);
    if (nic->lan_fd < 0) {
        g_prefix_error(error, "%s: ", from->name);
        return FALSE;
    }
    if (from->port != PROXY_PORT_TAP)
        return TRUE;
    nic->port = port_tap_new(adopt_fd, MAX(from->queues, 1), proxy->guest_fds[i], error);
    if (!nic->port)
        g_prefix_error(error, "%s: ", from->name);
    return nic->port != NULL;
}

static Proxy *
proxy_alloc(unsigned n_nics, const ProxyHandlers *handlers, gpointer user_data)
{
    Proxy *proxy = g_new0(Proxy, 1);

    proxy->refs = 1;
    proxy->n_nics = n_nics;
    proxy->handlers = handlers ? *handlers : (ProxyHandlers){0};
    proxy->user_data = user_data;
    proxy->wake_fd = proxy->reply_fd = proxy->monitor_fd = proxy->epoll_fd = -1;
    pthread_mutex_init(&proxy->lock, NULL);
    pthread_mutex_init(&proxy->book.lock, NULL);
    for (unsigned i = 0; i < PROXY_MAX_NICS; i++) {
        for (unsigned queue = 0; queue < PROXY_MAX_QUEUES; queue++)
            proxy->guest_fds[i][queue] = -1;
        proxy->nics[i].lan_fd = -1;
        proxy->nics[i].index = i;
        proxy->nics[i].book = &proxy->book;
    }
    return proxy;
}

static gboolean
open_loop(Proxy *proxy, GError **error)
{
    proxy->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    proxy->reply_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    proxy->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (proxy->wake_fd < 0 || proxy->reply_fd < 0 || proxy->epoll_fd < 0)
        return link_error(error, errno, "cannot make the proxy's event loop");
    proxy->monitor_fd = link_open_monitor(error);
    return proxy->monitor_fd >= 0;
}

static gboolean
start_thread(Proxy *proxy, GError **error)
{
    sigset_t all, old;
    int r = proxy_thread_prepare(proxy);

    if (r < 0)
        return link_error(error, -r, "cannot watch the proxy's descriptors");
    /* Signals are the control thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&proxy->thread, NULL, proxy_thread_main, proxy);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r != 0)
        return link_error(error, r, "cannot start the proxy's thread");
    (void)pthread_setname_np(proxy->thread, "colo-proxy");
    proxy->running = true;
    return TRUE;
}

Proxy *
proxy_new(const ProxyConfig *config, const int *adopt_fds, const ProxyHandlers *handlers,
          gpointer user_data, GError **error)
{
    if (!check_config(config, error))
        return NULL;

    g_autoptr(Proxy) proxy = proxy_alloc(config->n_nics, handlers, user_data);

    if (config->lockstep) {
        int r = lockstep_init(&proxy->lockstep, config, adopt_fds != NULL);

        proxy->has_lockstep = true;
        proxy->test_hooks = config->test_hooks;
        if (r < 0) {
            link_error(error, -r, "no memory for lock-stepping");
            return NULL;
        }
    }

    /* The monitor before the taps: nothing that happens to them is missed. */
    if (!open_loop(proxy, error))
        return NULL;
    for (unsigned i = 0; i < config->n_nics; i++)
        if (!init_nic(proxy, i, config, adopt_fds ? adopt_fds[i] : -1, error))
            return NULL;
    if (!start_thread(proxy, error))
        return NULL;

    proxy->source = g_unix_fd_source_new(proxy->reply_fd, G_IO_IN);
    g_source_set_callback(proxy->source, G_SOURCE_FUNC(on_reply), proxy, NULL);
    g_source_attach(proxy->source, g_main_context_get_thread_default());
    return g_steal_pointer(&proxy);
}

void
proxy_free(Proxy *proxy)
{
    if (!proxy)
        return;
    g_assert(!proxy->freed);
    proxy->freed = true;
    if (proxy->running) {
        pthread_mutex_lock(&proxy->lock);
        proxy->quit = true;
        pthread_mutex_unlock(&proxy->lock);
        proxy_wake(proxy);
        pthread_join(proxy->thread, NULL);
    }
    if (proxy->source) {
        g_source_destroy(proxy->source);
        g_source_unref(proxy->source);
    }
    free_commands(&proxy->todo);
    free_commands(&proxy->replies);
    free_commands(&proxy->finished);
    if (proxy->leased)
        free_command(proxy->leased);
    if (proxy->quiescing)
        free_command(proxy->quiescing);
    if (proxy->has_lockstep)
        peer_stream_detach(&proxy->lockstep.peer);
    for (unsigned i = 0; i < PROXY_MAX_NICS; i++) {
        for (unsigned queue = 0; queue < PROXY_MAX_QUEUES; queue++)
            fd_clear(&proxy->guest_fds[i][queue]);
        /* Now, even if a callback still holds the object: the taps must be gone on return. */
        fd_clear(&proxy->nics[i].lan_fd);
    }
    fd_clear(&proxy->epoll_fd);
    fd_clear(&proxy->monitor_fd);
    fd_clear(&proxy->wake_fd);
    fd_clear(&proxy->reply_fd);
    proxy_unref(proxy);
}

int
proxy_take_guest_fd(Proxy *proxy, unsigned nic, unsigned queue)
{
    g_assert(nic < proxy->n_nics && queue < PROXY_MAX_QUEUES);
    return fd_steal(&proxy->guest_fds[nic][queue]);
}

gboolean
proxy_connect_ports(Proxy *proxy, GError **error)
{
    for (unsigned i = 0; i < proxy->n_nics; i++) {
        const ProxyNic *config = &proxy->nics[i].config;

        if (config->port != PROXY_PORT_STREAM || proxy->connected[i])
            continue;

        Port *port = port_stream_new(config->stream_path, error);

        if (!port) {
            g_prefix_error(error, "%s: ", config->name);
            return FALSE;
        }
        proxy->connected[i] = true;
        proxy_submit(proxy, (Command){.kind = COMMAND_ATTACH, .nic = i, .port = port});
    }
    return TRUE;
}

void
proxy_set_vm(Proxy *proxy, const ProxyVm *vm)
{
    if (proxy->has_lockstep)
        keep_set_vm(&proxy->lockstep, vm);
}

const ProxyKept *
proxy_get_kept(const Proxy *proxy)
{
    return &proxy->lockstep.kept;
}

void
proxy_set_egress(Proxy *proxy, ProxyEgress egress, ProxyDoneFunc done, gpointer user_data)
{
    Command command = {
        .kind = COMMAND_EGRESS, .egress = egress, .done = done, .user_data = user_data};

    g_assert(proxy->has_lockstep ||
             (egress != PROXY_EGRESS_COMPARE && egress != PROXY_EGRESS_SHADOW));
    /* Made here, so that the proxy thread need not allocate. */
    for (unsigned i = 0; egress == PROXY_EGRESS_COMPARE && i < proxy->n_nics; i++)
        command.engines[i] =
            lockstep_new_engine(&proxy->lockstep, &redirector_ops, &proxy->nics[i]);
    proxy_submit(proxy, command);
}

void
proxy_set_ingress(Proxy *proxy, bool flowing, ProxyDoneFunc done, gpointer user_data)
{
    proxy_submit(proxy, (Command){.kind = COMMAND_INGRESS,
                                  .flowing = flowing,
                                  .done = done,
                                  .user_data = user_data});
}

void
proxy_mark(Proxy *proxy, guint64 epoch, ProxyDoneFunc done, gpointer user_data)
{
    proxy_submit(
        proxy,
        (Command){.kind = COMMAND_MARK, .epoch = epoch, .done = done, .user_data = user_data});
}

void
proxy_release(Proxy *proxy, guint64 epoch, int64_t lease_ns, ProxyDoneFunc refused,
              gpointer user_data)
{
    proxy_submit(proxy, (Command){.kind = COMMAND_RELEASE,
                                  .epoch = epoch,
                                  .lease_ns = lease_ns,
                                  .done = refused,
                                  .user_data = user_data});
}

void
proxy_announce(Proxy *proxy)
{
    proxy_submit(proxy, (Command){.kind = COMMAND_ANNOUNCE});
}

unsigned
proxy_get_addresses(Proxy *proxy, ProxyAddress *ret_addresses)
{
    pthread_mutex_lock(&proxy->book.lock);

    const AddressTable *table = &proxy->book.table;
    unsigned n = table->n;

    for (unsigned i = 0; i < n; i++)
        ret_addresses[i] = table->entries[i].address;
    pthread_mutex_unlock(&proxy->book.lock);
    return n;
}

void
proxy_add_address(Proxy *proxy, const ProxyAddress *address)
{
    pthread_mutex_lock(&proxy->book.lock);
    address_table_add(&proxy->book.table, address);
    pthread_mutex_unlock(&proxy->book.lock);
}

void
proxy_get_stats(Proxy *proxy, ProxyStats *ret_stats)
{
    uint64_t hold_us[HISTOGRAM_BUCKETS] = {0};
    ProxyStats stats = {0};

    for (unsigned i = 0; i < proxy->n_nics; i++) {
        const Nic *nic = &proxy->nics[i];

        stats.held_frames += hold_queue_frames(nic->queue);
        stats.held_bytes += hold_queue_bytes(nic->queue);
        stats.held_bytes_peak += hold_queue_bytes_peak(nic->queue);
        stats.egress_frames += counter_get(&nic->egress_frames);
        stats.egress_bytes += counter_get(&nic->egress_bytes);
        stats.ingress_frames += counter_get(&nic->ingress_frames);
        stats.ingress_bytes += counter_get(&nic->ingress_bytes);
        stats.dropped_frames += counter_get(&nic->dropped);
        stats.lost_frames += counter_get(&nic->lost);
        histogram_sum(&nic->hold_us, hold_us);
    }
    proxy_add_lockstep_stats(proxy, &stats);
    stats.hold_us_p50 = histogram_percentile(hold_us, 50);
    stats.hold_us_p99 = histogram_percentile(hold_us, 99);
    *ret_stats = stats;
}
