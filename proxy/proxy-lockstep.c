/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-lockstep.c - the control thread's side of lock-stepping */
#include <string.h>

#include "clock.h"
#include "proxy-private.h"

void
proxy_attach_peer(Proxy *proxy, const ProxyPeer *peer)
{
    g_assert(proxy->has_lockstep);
    proxy_submit(
        proxy,
        (Command){.kind = COMMAND_ATTACH_PEER, .peer = *peer, .serial = ++proxy->peers_attached});
}

void
proxy_detach_peer(Proxy *proxy, ProxyDoneFunc done, gpointer user_data)
{
    /* News of it that are on their way are of no more use. */
    proxy->peers_attached++;
    proxy_submit(proxy,
                 (Command){.kind = COMMAND_DETACH_PEER, .done = done, .user_data = user_data});
}

void
proxy_set_lease(Proxy *proxy, int64_t until_ns)
{
    atomic_store_explicit(&proxy->lockstep.lease_until_ns, until_ns, memory_order_relaxed);
    /* Output may be waiting for it. */
    proxy_wake(proxy);
}

void
proxy_quiesce(Proxy *proxy, ProxyDoneFunc done, gpointer user_data)
{
    proxy_submit(proxy, (Command){.kind = COMMAND_QUIESCE, .done = done, .user_data = user_data});
}

void
proxy_pause(Proxy *proxy, ProxyDoneFunc done, gpointer user_data)
{
    proxy_submit(proxy, (Command){.kind = COMMAND_PAUSE, .done = done, .user_data = user_data});
}

void
proxy_commit(Proxy *proxy, guint64 epoch, ProxyDoneFunc done, gpointer user_data)
{
    proxy_submit(
        proxy,
        (Command){.kind = COMMAND_COMMIT, .epoch = epoch, .done = done, .user_data = user_data});
}

void
proxy_test_lose(Proxy *proxy, ProxyLoss which, unsigned n)
{
    if (proxy->has_lockstep && proxy->test_hooks)
        proxy_submit(proxy, (Command){.kind = COMMAND_LOSE, .loss = which, .n = n});
}

void
proxy_tell_divergence(Proxy *proxy, const ProxyDivergence *what)
{
    if (proxy->handlers.divergence && !proxy->freed)
        proxy->handlers.divergence(proxy, what, proxy->user_data);
}

void
proxy_tell_peer(Proxy *proxy, const PeerNews *news)
{
    if (!news->ended || news->serial != proxy->peers_attached || !proxy->handlers.peer_lost ||
        proxy->freed)
        return;

    g_autoptr(GError) reason =
        news->end.err
            ? g_error_new(PROXY_ERROR, PROXY_ERROR_PEER, "frames channel: %s (%s)", news->end.text,
                          g_strerror(news->end.err))
            : g_error_new(PROXY_ERROR, PROXY_ERROR_PEER, "frames channel: %s", news->end.text);

    proxy->handlers.peer_lost(proxy, reason, proxy->user_data);
}

/* A copy that owns its frames, in @buffer of two frames. */
static void
copy_record(const DivergenceRecord *from, uint8_t *buffer, DivergenceRecord *ret_record)
{
    *ret_record = *from;
    if (from->d.flow)
        ret_record->d.flow = &ret_record->flow;
    if (from->d.primary_frame)
        ret_record->d.primary_frame = memcpy(buffer, from->d.primary_frame, from->d.primary_len);
    if (from->d.secondary_frame)
        ret_record->d.secondary_frame =
            memcpy(buffer + FRAME_MAX_BYTES, from->d.secondary_frame, from->d.secondary_len);
}

/* The oldest with a higher number than @after. */
static bool
next_record(DivergenceBook *book, uint64_t after, uint8_t *buffer, DivergenceRecord *ret_record)
{
    const DivergenceRecord *record = NULL;

    pthread_mutex_lock(&book->lock);
    for (uint32_t i = 0; (record = divergence_ring_get(book->ring, i)); i++)
        if (record->number > after)
            break;
    if (record)
        copy_record(record, buffer, ret_record);
    pthread_mutex_unlock(&book->lock);
    return record != NULL;
}

void
proxy_foreach_divergence(Proxy *proxy,
                         void (*func)(const DivergenceRecord *record, gpointer user_data),
                         gpointer user_data)
{
    DivergenceRecord record;
    uint64_t number = 0;

    if (!proxy->has_lockstep)
        return;

    g_autofree uint8_t *buffer = g_malloc((gsize)2 * FRAME_MAX_BYTES);

    /* The lock is not held while @func works; those that come meanwhile, at most a ring full, come
     * too. */
    for (unsigned i = 0; i < 2 * LOCKSTEP_RECORDS; i++) {
        if (!next_record(&proxy->lockstep.book, number, buffer, &record))
            return;
        number = record.number;
        func(&record, user_data);
    }
}

static void
add_nic(const NicLockstep *ls, int64_t now_ns, ProxyStats *stats)
{
    int64_t oldest_ns = (int64_t)counter_get(&ls->oldest_ns);

    stats->mirrored_frames += counter_get(&ls->mirrored_frames);
    stats->mirrored_bytes += counter_get(&ls->mirrored_bytes);
    stats->unmirrored_frames += counter_get(&ls->unmirrored);
    stats->engine_refused += counter_get(&ls->refusals);
    stats->windows_lowered += counter_get(&ls->windows_lowered);
    stats->digests += counter_get(&ls->digests);
    stats->digests_wanted += counter_get(&ls->wanted);
    stats->engine_bytes += counter_get(&ls->engine_bytes);
    stats->lease_waits += counter_get(&ls->lease_waits);
    stats->shadow_frames += counter_get(&ls->shadow_frames);
    stats->shadow_unsent += counter_get(&ls->shadow_unsent);
    stats->ingress_queued_bytes += hold_queue_bytes(ls->inbox);
    stats->ingress_forgotten += counter_get(&ls->forgotten);
    stats->ingress_duplicates += counter_get(&ls->duplicates);
    for (unsigned side = 0; side < 2; side++) {
        stats->compared_frames[side] += counter_get(&ls->compared[side]);
        stats->stale[side] += counter_get(&ls->stale[side]);
        stats->engine_frames[side] += counter_get(&ls->engine_frames[side]);
    }
    for (unsigned i = 0; i < COMPARE_N_WHYS; i++)
        stats->released[i] += counter_get(&ls->released[i]);
    for (unsigned i = 0; i < COMPARE_N_RULES; i++)
        stats->divergences[i] += counter_get(&ls->divergences[i]);
    if (oldest_ns > 0 && now_ns > oldest_ns)
        stats->lag_us = MAX(stats->lag_us, (guint64)((now_ns - oldest_ns) / NS_PER_US));
}

void
proxy_add_lockstep_stats(Proxy *proxy, ProxyStats *stats)
{
    const Lockstep *lockstep = &proxy->lockstep;
    int64_t now_ns = clock_now_ns();

    if (!proxy->has_lockstep)
        return;
    for (unsigned i = 0; i < proxy->n_nics; i++)
        add_nic(&proxy->nics[i].ls, now_ns, stats);
    stats->peer_queue_bytes = counter_get(&lockstep->peer.queue_bytes);
    stats->peer_gaps = counter_get(&lockstep->peer.gaps);
    stats->peer_ignored = counter_get(&lockstep->ignored);
    stats->rewriter_connections = counter_get(&lockstep->connections);
    stats->rewriter_untracked = counter_get(&lockstep->untracked);
    stats->rewriter_unsaved = counter_get(&lockstep->unsaved);
    stats->test_lost = counter_get(&lockstep->test_lost);
}
