/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-commands.c - what colod orders of the forwarder */
#include "forward-private.h"

#include "fd.h"

#include <gio/gio.h>
#include <string.h>
#include <unistd.h>

static gboolean
fail_timeout(const Forward *forward, const char *what, GError **error)
{
    g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_TIMEOUT, "%s%s", what,
                forward->stopping ? ": the forwarder stops" : " in time");
    return FALSE;
}

/* One command at a time. */
static gboolean
begin(Forward *forward, int64_t deadline_ns, GError **error)
{
    gboolean ok = TRUE;

    forward_lock(forward);
    while (ok && forward->busy)
        ok = forward_wait(forward, deadline_ns);
    if (ok && !forward->stopping)
        forward->busy = true;
    else
        ok = fail_timeout(forward, "another command did not end", error);
    forward_unlock(forward);
    return ok;
}

static void
end(Forward *forward)
{
    forward_lock(forward);
    forward->busy = false;
    (void)pthread_cond_broadcast(&forward->changed);
    forward_unlock(forward);
}

/* With the lock held. */
static gboolean
step(const Forward *forward, ForwardEvent event, const ForwardFacts *facts, GError **error)
{
    ForwardMode mode;
    const char *reason = forward_fsm_step(forward->mode, event, facts, &mode);

    if (!reason)
        return TRUE;
    g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_REFUSED,
                "%s (%s, generation %" G_GUINT64_FORMAT "%s%s)", reason,
                forward_mode_name(forward->mode), facts->generation,
                forward->fault != FAULT_NONE ? ", " : "",
                forward->fault != FAULT_NONE ? forward->fault_text : "");
    return FALSE;
}

static gboolean
save_meta(Forward *forward, uint64_t generation, GError **error)
{
    g_autoptr(GError) local = NULL;

    forward_lock(forward);

    DiskMeta meta = forward->meta;

    forward_unlock(forward);
    if (meta.generation == generation && meta.state == DISK_UPTODATE)
        return TRUE;
    meta.generation = generation;
    meta.state = DISK_UPTODATE;
    if (!forward->journal->ops->save_meta(forward->journal, &meta, &local)) {
        g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_FAILED, "%s: %s",
                    fault_name(FAULT_METADATA), local->message);
        return FALSE;
    }
    forward_lock(forward);
    forward->meta = meta;
    forward_unlock(forward);
    return TRUE;
}

/* --- alone --- */

/* While idle the metadata is the target's. */
static gboolean
load_meta(Forward *forward, GError **error)
{
    g_autoptr(GError) local = NULL;
    DiskMeta meta;

    if (!disk_meta_load(forward->meta_path, forward->size_bytes, &meta, &local)) {
        g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_FAILED, "%s: %s",
                    fault_name(FAULT_METADATA), local->message);
        return FALSE;
    }
    forward_lock(forward);
    if (forward->mode == FORWARD_IDLE)
        forward->meta = meta;
    forward_unlock(forward);
    return TRUE;
}

/* Does not wait for other commands: it is what ends those that wait for the peer. */
static gboolean
give_up(Forward *forward, uint64_t generation, gboolean first, GError **error)
{
    const uint64_t one = 1;

    forward_lock(forward);

    ForwardFacts facts = forward_facts(forward, generation, first);
    gboolean ok = step(forward, FORWARD_EVENT_ALONE, &facts, error);

    if (ok && forward->is_connected)
        forward_lose(forward, FAULT_NONE, "");
    if (ok && forward->is_connecting && write(forward->stop_fd, &one, sizeof(one)) < 0)
        g_assert_not_reached();
    forward_unlock(forward);
    return ok;
}

static gboolean
do_alone(Forward *forward, uint64_t generation, gboolean first, GError **error)
{
    /* Once more: another command may have been between. */
    if (!give_up(forward, generation, first, error))
        return FALSE;
    forward_link_stop(forward);
    if (!save_meta(forward, generation, error))
        return FALSE;

    int r = dirty_map_arm(forward->map);

    if (r < 0) {
        g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_FAILED, "%s: the map: %s",
                    fault_name(FAULT_METADATA), g_strerror(-r));
        return FALSE;
    }
    forward_lock(forward);
    forward->mode = FORWARD_ALONE;
    forward_changed(forward);
    forward_unlock(forward);
    return TRUE;
}

gboolean
forward_alone(Forward *forward, uint64_t generation, gboolean first, int64_t deadline_ns,
              GError **error)
{
    forward_lock(forward);

    bool is_idle = forward->mode == FORWARD_IDLE;

    forward_unlock(forward);
    if ((is_idle && !load_meta(forward, error)) || !give_up(forward, generation, first, error) ||
        !begin(forward, deadline_ns, error))
        return FALSE;

    gboolean ok = do_alone(forward, generation, first, error);

    end(forward);
    return ok;
}

/* What the process before was told last it has marked, but nobody knows any more when: QEMU may not
 * have written it to the disk yet. */
static void
note_marked(Forward *forward)
{
    uint64_t len, at;

    forward_lock(forward);
    at = dirty_map_next(forward->map, 0, &len);
    for (; at != UINT64_MAX && len > 0; at = dirty_map_next(forward->map, at + len, &len))
        forward_note_recent(forward, at, len);
    forward_unlock(forward);
}

gboolean
forward_take_place(Forward *forward, uint64_t generation, int64_t deadline_ns, GError **error)
{
    if (!forward_alone(forward, generation, FALSE, deadline_ns, error))
        return FALSE;
    note_marked(forward);
    return TRUE;
}

/* --- connect --- */

NbdPeer *
forward_open_export(Forward *forward, const char *host, uint16_t port, const char *export_name,
                    int64_t deadline_ns, GError **error)
{
    const NbdPeerConfig config = {
        .host = host,
        .port = port,
        .export_name = export_name,
        .tls_ca = forward->tls_ca,
        .tls_cert = forward->tls_cert,
        .tls_key = forward->tls_key,
        .run_dir = forward->run_dir,
        .stop_fd = forward->stop_fd,
    };

    return nbd_peer_connect(&config, deadline_ns, error);
}

static bool
is_all_ones(const uint8_t *bits, uint64_t len)
{
    return bits[0] == 0xff && memcmp(bits, bits + 1, len - 1) == 0;
}

/* What the other host's disk has that ours may not: its map into ours. @ret_known: it says more
 * than "anything". */
static gboolean
merge_changed(Forward *forward, NbdPeer *changed, int64_t deadline_ns, bool *ret_known,
              GError **error)
{
    uint64_t n = dirty_map_n_bytes(forward->map), size = nbd_peer_size_bytes(changed);
    uint8_t buf[4096];

    *ret_known = false;
    if (size == 0) { /* it has none */
        dirty_map_mark_all(forward->map);
        return TRUE;
    }
    if (size != n) {
        g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_FAILED,
                    "the peer's map is not that of a disk of this size");
        return FALSE;
    }
    for (uint64_t at = 0; at < n; at += sizeof(buf)) {
        uint64_t len = MIN(n - at, sizeof(buf));

        if (nbd_peer_do(changed, NBD_PEER_READ, buf, len, at, deadline_ns, error) < 0)
            return FALSE;
        dirty_map_merge_bytes(forward->map, buf, len, at);
        /* The last byte has bits of no chunk. */
        *ret_known = *ret_known || !is_all_ones(buf, at + len < n ? len : MAX(len - 1, 1));
    }
    return TRUE;
}

/* With the lock held: a new copy, of what the map has. */
static void
prepare_copy(Forward *forward, uint64_t rate_limit)
{
    uint64_t len, at = dirty_map_next(forward->map, 0, &len);

    forward_queue_clear(forward->queue);
    forward_copy_reset(forward);
    chunk_set_clear(forward->confirmed);
    chunk_set_clear(forward->flushing);
    forward->settle = SETTLE_IDLE;
    chunk_set_clear(forward->lacking);
    for (; at != UINT64_MAX && len > 0; at = dirty_map_next(forward->map, at + len, &len))
        chunk_set_add(forward->lacking, at, len);
    chunk_set_clear(forward->delayed);
    forward_recent_into(forward, forward->delayed);
    forward->delayed_recent = true;
    forward->connected_ns = clock_now_ns();
    forward->synced_ns = 0;
    forward->delayed_until_ns = forward->connected_ns + SETTLED_NS;
    forward->rate_limit = rate_limit;
    forward->finishing = forward->synced = false;
}

static gboolean
start_sync(Forward *forward, NbdPeer *peer, const ForwardConnect *order, bool compare,
           GError **error)
{
    g_autoptr(NbdPeer) owned = peer;

    if (!save_meta(forward, order->generation, error))
        return FALSE;
    forward_lock(forward);

    ForwardFacts facts = forward_facts(forward, order->generation, false);
    gboolean ok = step(forward, FORWARD_EVENT_CONNECT, &facts, error);

    if (ok && forward->stopping)
        ok = fail_timeout(forward, "not connected", error);
    if (ok) {
        prepare_copy(forward, order->rate_limit_bytes_s);
        forward->compare = compare;
        g_free(forward->peer_host);
        forward->peer_host = g_strdup(order->host);
        forward->peer_port = order->port;
        forward->fault = FAULT_NONE;
        forward->fault_text[0] = '\0';
        forward->mode = FORWARD_SYNCING;
        forward_link_start(forward, g_steal_pointer(&owned));
        forward_changed(forward);
    }
    forward_unlock(forward);
    return ok;
}

/* FALSE: an error of libnbd's side, which becomes one of ours. */
static gboolean
translate(GError *from, GError **error)
{
    g_set_error(error, FORWARD_ERROR,
                g_error_matches(from, G_IO_ERROR, G_IO_ERROR_TIMED_OUT) ? FORWARD_ERROR_TIMEOUT
                                                                        : FORWARD_ERROR_FAILED,
                "%s: %s", fault_name(FAULT_FORWARDING), from->message);
    g_error_free(from);
    return FALSE;
}

static gboolean
do_connect(Forward *forward, const ForwardConnect *order, int64_t deadline_ns, GError **error)
{
    const char *host = order->host;
    uint16_t port = order->port;
    GError *local = NULL;
    bool is_known = false;
    g_autoptr(NbdPeer) changed = NULL;
    g_autoptr(NbdPeer) peer =
        forward_open_export(forward, host, port, "target", deadline_ns, &local);

    if (!peer || !nbd_peer_check_target(peer, forward->size_bytes, &local) ||
        !(changed = forward_open_export(forward, host, port, "changed", deadline_ns, &local)) ||
        !merge_changed(forward, changed, deadline_ns, &is_known, &local))
        return translate(local, error);

    bool compare = !is_known || dirty_map_was_distrusted(forward->map);

    return start_sync(forward, g_steal_pointer(&peer), order, compare, error);
}

/* May it be tried? Then who gives up can interrupt it from here on. */
static gboolean
begin_connect(Forward *forward, uint64_t generation, GError **error)
{
    uint64_t count;

    forward_lock(forward);

    ForwardFacts facts = forward_facts(forward, generation, false);
    gboolean ok = step(forward, FORWARD_EVENT_CONNECT, &facts, error);

    forward_unlock(forward);
    if (!ok)
        return FALSE;
    forward_link_stop(forward);
    forward_lock(forward);
    (void)!read(forward->stop_fd, &count, sizeof(count)); /* an eventfd: empty from here on */
    forward->is_connecting = true;
    forward_unlock(forward);
    return TRUE;
}

gboolean
forward_connect(Forward *forward, const ForwardConnect *order, int64_t deadline_ns, GError **error)
{
    if (!begin(forward, deadline_ns, error))
        return FALSE;

    gboolean ok = begin_connect(forward, order->generation, error) &&
                  do_connect(forward, order, deadline_ns, error);

    forward_lock(forward);
    forward->is_connecting = false;
    forward_unlock(forward);
    end(forward);
    return ok;
}

void
forward_settled(Forward *forward)
{
    forward_lock(forward);
    if (forward->mode == FORWARD_SYNCING && forward->delayed_recent) {
        chunk_set_clear(forward->delayed);
        (void)pthread_cond_broadcast(&forward->changed);
    }
    forward_unlock(forward);
}

/* --- finish, barrier, release --- */

/* With the lock held: what the wait was for cannot come any more. */
static gboolean
fail_lost(const Forward *forward, GError **error)
{
    g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_FAILED, "%s",
                forward->fault != FAULT_NONE ? forward->fault_text : "the peer was given up");
    return FALSE;
}

static bool
is_finished(const Forward *forward)
{
    return chunk_set_count(forward->lacking) == 0 && forward_queue_is_drained(forward->queue) &&
           chunk_set_count(forward->confirmed) == 0 && forward->settle == SETTLE_IDLE;
}

static gboolean
do_finish(Forward *forward, int64_t deadline_ns, GError **error)
{
    ForwardFacts facts = forward_facts(forward, 0, false);

    if (!step(forward, FORWARD_EVENT_FINISH, &facts, error))
        return FALSE;
    if (forward->mode == FORWARD_MIRRORING)
        return TRUE;
    forward_queue_hold(forward->queue);
    forward->is_barrier = false;
    forward->finishing = true;
    chunk_set_clear(forward->delayed); /* QEMU has drained: all is on the disk */
    (void)pthread_cond_broadcast(&forward->changed);
    forward_wake(forward);
    while (forward->mode == FORWARD_SYNCING && !is_finished(forward)) {
        if (!forward_wait(forward, deadline_ns))
            return fail_timeout(forward, "the copy did not come to its end", error);
    }
    if (forward->mode != FORWARD_SYNCING)
        return fail_lost(forward, error);
    facts = forward_facts(forward, 0, false);
    if (!step(forward, FORWARD_EVENT_FINISHED, &facts, error))
        return FALSE;
    forward->mode = FORWARD_MIRRORING;
    forward_changed(forward);
    sector_mask_clear(forward->mask);
    return TRUE;
}

gboolean
forward_finish(Forward *forward, int64_t deadline_ns, GError **error)
{
    if (!begin(forward, deadline_ns, error))
        return FALSE;
    forward_lock(forward);

    bool was_syncing = forward->mode == FORWARD_SYNCING;
    gboolean ok = do_finish(forward, deadline_ns, error);

    forward_unlock(forward);
    if (ok && was_syncing)
        (void)dirty_map_trust(forward->map); /* else it is compared once more, another time */
    end(forward);
    return ok;
}

static gboolean
refuse(GError **error, const char *text)
{
    g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_REFUSED, "%s", text);
    return FALSE;
}

/* What differed is looked at while nothing is under way; few chunks, and only if there are any. */
static void
recheck(Forward *forward, int64_t deadline_ns)
{
    verify_barrier(forward->verify);
    (void)pthread_cond_broadcast(&forward->changed);
    while (forward->is_verifying && verify_is_rechecking(forward->verify) &&
           forward->mode == FORWARD_MIRRORING && forward_wait(forward, deadline_ns))
        ;
}

static gboolean
do_barrier(Forward *forward, uint64_t epoch, int64_t deadline_ns, GError **error)
{
    ForwardFacts facts = forward_facts(forward, 0, false);

    if (!step(forward, FORWARD_EVENT_BARRIER, &facts, error))
        return FALSE;
    if (facts.holding && !(forward->is_barrier && forward->epoch == epoch))
        return refuse(error, "what an earlier barrier or finish holds was not released");
    if (!facts.holding && epoch <= forward->epoch)
        return refuse(error, "the epoch is over");
    forward_queue_hold(forward->queue);
    forward->is_barrier = true;
    forward->epoch = epoch;
    forward_wake(forward);
    while (forward->mode == FORWARD_MIRRORING && !forward_queue_is_drained(forward->queue)) {
        if (!forward_wait(forward, deadline_ns))
            return fail_timeout(forward, "forwarding: the peer did not confirm everything", error);
    }
    if (forward->mode == FORWARD_MIRRORING && forward->is_verifying)
        recheck(forward, deadline_ns);
    if (forward->mode != FORWARD_MIRRORING)
        return fail_lost(forward, error);
    if (clock_now_ns() - forward->settled_ns >= SETTLE_EVERY_NS && forward_settle(forward))
        forward->settle = SETTLE_BARRIER;
    return TRUE;
}

gboolean
forward_barrier(Forward *forward, uint64_t epoch, int64_t deadline_ns, GError **error)
{
    if (!begin(forward, deadline_ns, error))
        return FALSE;
    forward_lock(forward);

    gboolean ok = do_barrier(forward, epoch, deadline_ns, error);

    forward_unlock(forward);
    end(forward);
    return ok;
}

static gboolean
do_release(Forward *forward, uint64_t epoch, GError **error)
{
    ForwardFacts facts = forward_facts(forward, 0, false);

    if (!step(forward, FORWARD_EVENT_RELEASE, &facts, error))
        return FALSE;
    if (!facts.holding && epoch <= forward->epoch)
        return TRUE; /* asked again */
    if (!facts.holding || (forward->is_barrier && epoch != forward->epoch))
        return refuse(error, "there was no barrier of this epoch");
    if (!forward->is_barrier)
        forward->epoch = epoch;
    forward_queue_release(forward->queue);
    if (forward->is_verifying)
        verify_release(forward->verify);
    if (forward->settle == SETTLE_BARRIER)
        forward->settle = SETTLE_WANTED;
    (void)pthread_cond_broadcast(&forward->room);
    forward_wake(forward);
    return TRUE;
}

gboolean
forward_release(Forward *forward, uint64_t epoch, int64_t deadline_ns, GError **error)
{
    if (!begin(forward, deadline_ns, error))
        return FALSE;
    forward_lock(forward);

    gboolean ok = do_release(forward, epoch, error);

    forward_unlock(forward);
    end(forward);
    return ok;
}

/* --- verify --- */

static gboolean
do_verify(Forward *forward, GError **error)
{
    ForwardFacts facts = forward_facts(forward, 0, false);

    if (!step(forward, FORWARD_EVENT_VERIFY, &facts, error))
        return FALSE;
    if (forward->is_verifying)
        return refuse(error, "a verification is under way");
    verify_free(forward->verify);
    forward->verify = verify_new(forward->size_bytes, forward->rate_limit, clock_now_ns());
    forward->is_verifying = true;
    forward_changed(forward);
    return TRUE;
}

gboolean
forward_verify(Forward *forward, int64_t deadline_ns, GError **error)
{
    if (!begin(forward, deadline_ns, error))
        return FALSE;
    forward_lock(forward);

    gboolean ok = do_verify(forward, error);

    forward_unlock(forward);
    end(forward);
    return ok;
}
