/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * redirector.c - lock-stepping on the primary, one NIC: mirror, comparison, release
 *
 * What the guest sends is read into the stage, a short queue, and given to the engine from there in
 * batches; the peer's frames come straight from the channel's ring. What the engine releases is
 * appended to the hold queue, all of which may leave (nic_flush(), while the lease lasts).
 *
 * Each NIC has an engine of its own. Flows are told apart by addresses and ports alone, and two
 * NICs may be in networks that use the same ones; a NIC that runs full then stops itself only; and
 * the order of release is that of one queue.
 *
 * Bounds. The hold queue must have room for whatever the engine may release, at once if a commit
 * says so. The engine's bookkeeping of a frame is larger than the queue's, so it is enough that
 * both together stay below the queue's size by the largest frame; that is looked at before each
 * batch. Above half of the bound the side that is ahead waits: its frames stay where they are, in
 * the guest's socket or in the channel, until the other side has caught up. What that cannot
 * resolve a timeout does, and at the latest the checkpoint that the timeout, or the filling, asks
 * for.
 */
#include <string.h>

#include "clock.h"
#include "digests.h"
#include "inherit.h"
#include "nic.h"

enum {
    BATCH = 32,
    /* The largest frame in the hold queue, with bookkeeping. */
    SLACK_BYTES = HOLD_QUEUE_FRAME_MAX + 64,
    ENTRY_BYTES = 32, /* bookkeeping of the queue for a frame, at most */
};

uint64_t
redirector_held_bytes(const Nic *nic)
{
    return hold_queue_bytes(nic->queue) + compare_stats(nic->ls.engine)->held_bytes;
}

static bool
has_room(const Nic *nic, uint64_t bytes)
{
    return redirector_held_bytes(nic) + bytes + SLACK_BYTES <= nic->hold_max_bytes;
}

bool
redirector_wants(const Nic *nic, CompareSide side)
{
    const CompareStats *stats = compare_stats(nic->ls.engine);

    if (!has_room(nic, 0))
        return false;
    return redirector_held_bytes(nic) <= nic->hold_max_bytes / 2 ||
           stats->held_bytes_side[side] <= stats->held_bytes_side[!side];
}

/* A bound keeps a frame waiting where it is: only a checkpoint is sure to end that. */
static void
ask_for_room(Nic *nic)
{
    if (nic->told_high)
        return;
    nic->told_high = true;
    nic->news.hold_high = true;
}

static void
on_release(void *opaque, const CompareRelease *release)
{
    Nic *nic = opaque;

    if (lockstep_loses(nic->lockstep, PROXY_LOSE_RELEASE))
        return;

    uint8_t *place = hold_queue_append(nic->queue, release->bytes, release->len,
                                       nic->batch_ns - release->held_ns);

    if (nic_is_rewritten(nic))
        inherit_to_lan(nic->lockstep, place, release->len, nic->batch_ns);
    if (!nic->ls.held_before)
        hold_queue_release_all(nic->queue);
}

static void
on_divergence(void *opaque, const CompareDivergence *d)
{
    Nic *nic = opaque;
    DivergenceBook *book = &nic->lockstep->book;
    ProxyDivergence *news = &nic->news.divergence;

    pthread_mutex_lock(&book->lock);
    divergence_ring_add(book->ring, d);
    pthread_mutex_unlock(&book->lock);

    if (news->count++ > 0)
        return;
    news->nic = nic->index;
    news->rule = d->rule;
    news->has_flow = d->flow != NULL;
    if (d->flow)
        news->flow = *d->flow;
    news->offset = d->offset;
    news->time_ns = d->time_ns;
    news->waited_ns = d->waited_ns;
    news->epoch = d->epoch;
}

void
redirector_want(void *opaque, uint64_t cookie)
{
    Nic *nic = opaque;
    PeerStream *peer = &nic->lockstep->peer;
    uint8_t message[DIGESTS_WANT_BYTES];

    /* As good as lost: the comparison's timeout heals it. */
    if (!nic_has_peer(nic) || peer_stream_room(peer) == 0)
        return;
    digests_encode_want(message, cookie);
    peer_stream_send(peer, WIRE_WANT, nic->index, nic->lockstep->next_epoch, message,
                     sizeof(message));
}

const CompareOps redirector_ops = {.release = on_release, .divergence = on_divergence};

void
redirector_take(Nic *nic, const uint8_t *frame, size_t len)
{
    if (lockstep_loses(nic->lockstep, PROXY_LOSE_PRIMARY_EGRESS))
        return;
    (void)hold_queue_append(nic->ls.stage, frame, len, nic->batch_ns);
    hold_queue_release_all(nic->ls.stage);
}

/* How many of the frames fit for certain. */
static unsigned
fitting(const Nic *nic, const CompareFrame *frames, unsigned n)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < n; i++) {
        bytes += frames[i].len + ENTRY_BYTES;
        if (!has_room(nic, bytes))
            return i;
    }
    return n;
}

static size_t
submit(Nic *nic, CompareSide side, const CompareFrame *frames, unsigned n)
{
    unsigned fit = fitting(nic, frames, n);
    int error = 0;
    size_t taken = compare_submit_batch(nic->ls.engine, side, frames, fit, nic->batch_ns, &error);

    nic->ls.touched = true;
    if (taken < n)
        ask_for_room(nic);
    return taken;
}

void
redirector_feed(Nic *nic)
{
    HeldFrame staged[BATCH];
    CompareFrame frames[BATCH];
    unsigned n;

    while ((n = hold_queue_peek_many(nic->ls.stage, staged, BATCH)) > 0) {
        for (unsigned i = 0; i < n; i++)
            frames[i] = (CompareFrame){.bytes = staged[i].data,
                                       .len = (uint32_t)staged[i].len,
                                       .vnet_hdr_len = PORT_VNET_BYTES,
                                       .epoch = nic->lockstep->next_epoch};

        size_t taken = submit(nic, COMPARE_PRIMARY, frames, n);

        for (size_t i = 0; i < taken; i++)
            hold_queue_pop(nic->ls.stage);
        if (taken < n)
            return;
    }
}

size_t
redirector_take_peer(Nic *nic, const WireFrame *frames, size_t n, int64_t now_ns)
{
    CompareFrame in[BATCH];
    unsigned n_in = 0;

    if (!redirector_wants(nic, COMPARE_SECONDARY)) {
        if (!has_room(nic, 0))
            ask_for_room(nic);
        return 0;
    }
    if (lockstep_loses(nic->lockstep, PROXY_LOSE_AT_ENGINE))
        return 1;
    if (nic->lockstep->losing)
        n = 1;
    nic->batch_ns = now_ns;
    for (; n_in < n && n_in < BATCH; n_in++)
        in[n_in] = digests_decode(&frames[n_in]);
    return submit(nic, COMPARE_SECONDARY, in, n_in);
}

void
redirector_tick(Nic *nic, int64_t now_ns)
{
    NicLockstep *ls = &nic->ls;

    if (!ls->engine || (now_ns < ls->tick_next_ns && now_ns < compare_next_deadline_ns(ls->engine)))
        return;
    nic->batch_ns = now_ns;
    compare_tick(ls->engine, now_ns);
    ls->touched = true;
    ls->tick_next_ns = now_ns + ls->tick_ns;
}

int64_t
redirector_deadline_ns(const Nic *nic)
{
    return nic->ls.engine ? compare_next_deadline_ns(nic->ls.engine) : INT64_MAX;
}

void
redirector_begin(Nic *nic, Compare *engine, int64_t now_ns)
{
    NicLockstep *ls = &nic->ls;

    ls->engine = engine;
    compare_set_digests(engine, &nic->lockstep->digest_key, redirector_want);
    ls->lease_wait = false;
    ls->touched = true;
    ls->tick_ns = nic->lockstep->compare.timeout_ns / 8;
    ls->tick_next_ns = 0;
    nic->batch_ns = now_ns;
    if (nic->lockstep->epoch > 0)
        (void)compare_commit(engine, nic->lockstep->epoch, now_ns);
}

/* What has not got to the engine leaves, or is held, behind what has. */
void
redirector_unstage(Nic *nic)
{
    HeldFrame frame;

    while (hold_queue_peek(nic->ls.stage, &frame) && hold_queue_room(nic->queue) > 0) {
        nic_enqueue(nic, frame.data, frame.len, frame.stamp);
        hold_queue_pop(nic->ls.stage);
    }
}

Compare *
redirector_end(Nic *nic, ProxyEgress next, int64_t now_ns)
{
    NicLockstep *ls = &nic->ls;
    Compare *engine = ls->engine;

    nic->batch_ns = now_ns;
    if (next == PROXY_EGRESS_OPEN || next == PROXY_EGRESS_HOLD) {
        ls->held_before = next == PROXY_EGRESS_HOLD;
        compare_flush(engine, now_ns);
        redirector_unstage(nic);
    } else {
        counter_add(&nic->dropped, compare_stats(engine)->held_frames[COMPARE_PRIMARY]);
    }
    redirector_publish(nic);
    ls->engine = NULL;
    ls->held_before = ls->lease_wait = false;
    return engine;
}

void
redirector_mark(Nic *nic, uint64_t epoch)
{
    (void)compare_begin_checkpoint(nic->ls.engine, epoch);
    if (nic->ls.held_before)
        hold_queue_mark(nic->queue, epoch);
    /* The guest has not taken it, so it is input of the new epoch: the peer gets it once more. */
    if (nic->ingress_len > 0 && nic->ls.mirrored) {
        nic->ls.mirrored = false;
        counter_add(&nic->ls.duplicates, 1);
    }
    /* Neither has it taken this, but what it is cannot be seen: the peer lacks it, at least until
     * it is asked for again. */
    if (nic->port && !nic->port_broken && !nic->port->ops->is_idle(nic->port))
        counter_add(&nic->ls.duplicates, 1);
}

void
redirector_release(Nic *nic, uint64_t epoch, int64_t now_ns)
{
    NicLockstep *ls = &nic->ls;

    nic->batch_ns = now_ns;
    (void)compare_commit(ls->engine, epoch, now_ns);
    ls->touched = true;
    if (ls->held_before) {
        hold_queue_release(nic->queue, epoch);
        ls->held_before = !hold_queue_is_released(nic->queue, ls->held_last);
        /* Behind the mark is what the engine has given out since, just now most of all. */
        if (!ls->held_before)
            hold_queue_release_all(nic->queue);
    }
    nic->told_high = false;
    nic->port_readable = true;
}

bool
redirector_mirror(Nic *nic)
{
    Lockstep *lockstep = nic->lockstep;

    if (nic->egress != PROXY_EGRESS_COMPARE || nic->ls.mirrored)
        return true;
    if (!nic_has_peer(nic)) {
        counter_add(&nic->ls.unmirrored, 1);
    } else if (peer_stream_room(&lockstep->peer) == 0) {
        return false;
    } else if (lockstep_loses(lockstep, PROXY_LOSE_MIRROR)) {
        peer_stream_skip(&lockstep->peer);
    } else {
        peer_stream_send(&lockstep->peer, WIRE_INGRESS, nic->index, lockstep->next_epoch,
                         nic->ingress, nic->ingress_len);
        counter_add(&nic->ls.mirrored_frames, 1);
        counter_add(&nic->ls.mirrored_bytes, nic->ingress_len - PORT_VNET_BYTES);
        /* Alone it leaves before PVM gets its own: SVM's way is the longer one. */
        if (!lockstep->mirrored_in_turn)
            peer_stream_flush(&lockstep->peer);
        lockstep->mirrored_in_turn = true;
    }
    /* In time: whatever either guest answers gets to the engine in a later turn. */
    compare_note_client(nic->ls.engine, nic->ingress, (uint32_t)nic->ingress_len, PORT_VNET_BYTES);
    nic->ls.mirrored = true;
    return true;
}

void
redirector_publish(Nic *nic)
{
    NicLockstep *ls = &nic->ls;

    if (!ls->touched || !ls->engine)
        return;

    const CompareStats *stats = compare_stats(ls->engine);
    int64_t oldest_ns = compare_oldest_ns(ls->engine);

    ls->touched = false;
    for (unsigned side = 0; side < 2; side++) {
        counter_set(&ls->compared[side], stats->frames[side]);
        counter_set(&ls->stale[side], stats->stale[side]);
        counter_set(&ls->engine_frames[side], stats->held_frames[side]);
    }
    for (unsigned i = 0; i < COMPARE_N_WHYS; i++)
        counter_set(&ls->released[i], stats->released[i]);
    for (unsigned i = 0; i < COMPARE_N_RULES; i++)
        counter_set(&ls->divergences[i], stats->divergences[i]);
    counter_set(&ls->refusals, stats->refused);
    counter_set(&ls->windows_lowered, stats->windows_lowered);
    counter_set(&ls->digests, stats->digests);
    counter_set(&ls->wanted, stats->wanted);
    counter_set(&ls->engine_bytes, stats->held_bytes);
    counter_set(&ls->oldest_ns, oldest_ns == INT64_MAX ? 0 : (uint64_t)oldest_ns);
}
