/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shadow.c - lock-stepping on the secondary, one NIC: the guest's output to the peer, the peer's
 * ingress copies to the guest
 *
 * Out: each frame is copied to the channel, through the rewriter, tagged with the guest's epoch.
 * The newest are also kept: at a takeover they leave first, since the primary may have died before
 * it released them, and without them each TCP connection would wait for a retransmission. A client
 * that has them already gets them twice, which networks do. They are kept in SVM's own numbers and
 * go through the rewriter when they leave: by then it knows what it could not when a SYN was sent.
 * The bound is small because more than a round trip's worth is of no use: at most KEPT_LAST_BYTES,
 * not older than KEPT_AGE_NS before the peer was last heard, nor than KEPT_SILENCE_NS in all. Until
 * then there is more, KEPT_BYTES: segments whose digests were not enough are sent again from there,
 * and a guest may be a congestion window ahead. A commit forgets all: it came from a state that has
 * been replaced.
 *
 * Where the guests cut a stream at places that do not fit, each end of a burst would have to be
 * asked for, and the client waits for the answer. So a request is taken for a sign: for a while
 * large frames go whole, and for longer the sooner it happens again.
 *
 * In: copies wait in the inbox, each with its epoch. The guest is given those of its own epoch
 * while it runs; those of the next wait for the commit, which forgets the older: the state that the
 * guest then loads has seen them. A full inbox stops the channel.
 */
#include <string.h>

#include "clock.h"
#include "digests.h"
#include "inherit.h"
#include "nic.h"

enum {
    KEPT_BYTES = 2 << 20,
    KEPT_LAST_BYTES = 256 * 1024, /* of them, that leave at a takeover */
    PUMP_SLICE = 64,              /* frames per turn */
    /* Large frames that go whole after a request for one: twice as many each time, up to a bound,
     * until as many digests as the first time have gone without one. */
    WHOLE_FIRST = 64,
    WHOLE_MAX = 4096,
};

static const int64_t KEPT_AGE_NS = 200 * NS_PER_MS;
static const int64_t KEPT_SILENCE_NS = 2 * NS_PER_S;

static bool
wants_digests(Nic *nic, size_t len)
{
    NicLockstep *ls = &nic->ls;

    if (!nic->lockstep->has_peer_key || len < DIGEST_PAYLOAD_MIN)
        return false;
    if (ls->whole_left > 0) {
        ls->whole_left--;
        return false;
    }
    if (++ls->digests_since >= WHOLE_FIRST)
        ls->whole_next = WHOLE_FIRST;
    return true;
}

/* To the peer, in PVM's numbers. @number: of the frame among those kept; @whole: no digests. */
static void
send_copy(Nic *nic, const uint8_t *frame, size_t len, uint64_t number, bool whole,
          bool inherited_syn)
{
    Lockstep *lockstep = nic->lockstep;
    uint8_t *slot = peer_stream_slot(&lockstep->peer);
    WireKind kind = WIRE_EGRESS;
    DigestInfo info;

    if (!nic_has_peer(nic)) {
        counter_add(&nic->ls.shadow_unsent, 1);
        return;
    }
    if (!whole && wants_digests(nic, len) &&
        digest_encode(&lockstep->peer_key, frame, len, slot, &info)) {
        kind = WIRE_DIGEST;
        len = info.frame_len;
    } else {
        memcpy(slot, frame, len);
    }
    if (!inherited_syn)
        rewriter_egress(lockstep->rewriter, slot, len, nic->batch_ns);
    if (kind == WIRE_DIGEST)
        len += digests_encode_tail(slot + len, &info, number);
    if (lockstep_loses(lockstep, PROXY_LOSE_REWRITER_EGRESS) ||
        lockstep_loses(lockstep, PROXY_LOSE_SECONDARY_EGRESS)) {
        peer_stream_skip(&lockstep->peer);
        return;
    }
    peer_stream_send(&lockstep->peer, kind, nic->index, lockstep->epoch, slot, len);
    counter_add(&nic->ls.shadow_frames, 1);
}

static void
keep_newest(Nic *nic, gsize bytes)
{
    while (hold_queue_bytes(nic->queue) > bytes && hold_queue_frames(nic->queue) > 1)
        hold_queue_drop_oldest(nic->queue);
}

void
shadow_take(Nic *nic, const uint8_t *frame, size_t len)
{
    /* Kept in SVM's own numbers. */
    const uint8_t *place = hold_queue_append(nic->queue, frame, len, nic->batch_ns);

    keep_newest(nic, MIN((gsize)KEPT_BYTES, nic->hold_max_bytes / 4));

    bool inherited_syn = inherit_note(nic->lockstep, place, len);

    send_copy(nic, place, len, hold_queue_last_sequence(nic->queue), false, inherited_syn);
}

void
shadow_resend(Nic *nic, uint64_t number)
{
    NicLockstep *ls = &nic->ls;
    HeldFrame frame;

    /* Requests for frames that were on their way at the first one are no new sign. */
    if (ls->whole_left == 0) {
        ls->whole_left = MAX(ls->whole_next, (unsigned)WHOLE_FIRST);
        ls->whole_next = MIN(2 * ls->whole_left, (unsigned)WHOLE_MAX);
        ls->digests_since = 0;
    }
    /* If it is not kept any more, or belongs to an epoch that is over, nobody can help: the
     * comparison's timeout does. */
    if (hold_queue_find(nic->queue, number, &frame) && peer_stream_room(&nic->lockstep->peer) > 0)
        send_copy(nic, frame.data, frame.len, number, true, false);
    else
        counter_add(&nic->ls.shadow_unsent, 1);
}

bool
shadow_take_peer(Nic *nic, const WireFrame *frame)
{
    if (frame->epoch < nic->lockstep->epoch) {
        counter_add(&nic->ls.forgotten, 1);
        return true;
    }
    if (hold_queue_room(nic->ls.inbox) == 0)
        return false;
    if (lockstep_loses(nic->lockstep, PROXY_LOSE_SECONDARY_INGRESS))
        return true;
    (void)hold_queue_append(nic->ls.inbox, frame->frame, frame->len, (int64_t)frame->epoch);
    hold_queue_release_all(nic->ls.inbox);
    return true;
}

/* QEMU has the beginning of the first frame of the inbox. */
static bool
is_under_way(const Nic *nic)
{
    return nic->port && nic->port->partial && nic->ls.inbox_rewritten;
}

/* The first of the inbox, if the guest may have it now. */
static bool
peek_due(const Nic *nic, HeldFrame *ret_frame)
{
    const Lockstep *lockstep = nic->lockstep;

    if (!nic->port || nic->port_broken || nic->ingress_stalled ||
        !hold_queue_peek(nic->ls.inbox, ret_frame))
        return false;
    if (nic->egress != PROXY_EGRESS_SHADOW || is_under_way(nic))
        return true;
    return !lockstep->paused && ret_frame->stamp <= (int64_t)lockstep->epoch;
}

bool
shadow_has_due(const Nic *nic)
{
    HeldFrame frame;

    return nic->lockstep && peek_due(nic, &frame);
}

static void
pop_inbox(Nic *nic)
{
    hold_queue_pop(nic->ls.inbox);
    nic->ls.inbox_rewritten = false;
}

void
shadow_pump(Nic *nic, int64_t now_ns)
{
    HeldFrame frame;

    for (unsigned i = 0; i < PUMP_SLICE && peek_due(nic, &frame); i++) {
        if (frame.stamp < (int64_t)nic->lockstep->epoch && !is_under_way(nic)) {
            pop_inbox(nic);
            counter_add(&nic->ls.forgotten, 1);
            continue;
        }
        if (!nic->ls.inbox_rewritten) {
            rewriter_ingress(nic->lockstep->rewriter, frame.data, frame.len, now_ns);
            nic->ls.inbox_rewritten = true;
            if (lockstep_loses(nic->lockstep, PROXY_LOSE_REWRITER_INGRESS)) {
                pop_inbox(nic);
                continue;
            }
        }
        if (!nic_give(nic, frame.data, frame.len, now_ns))
            return;
        pop_inbox(nic);
    }
}

void
shadow_commit(Nic *nic)
{
    /* The guest stands: what it may still have said came from the state that goes. */
    nic->egress = PROXY_EGRESS_DROP;
    nic_drain(nic);
    nic->egress = PROXY_EGRESS_SHADOW;
    (void)hold_queue_drop_all(nic->queue);

    /* A frame whose beginning QEMU has is given whole, or it would take the next for its end; the
     * older ones behind it are forgotten when they become the first. */
    if (is_under_way(nic))
        counter_add(&nic->ls.duplicates, 1);
    if (nic->port && !nic->port_broken && !nic->port->ops->is_idle(nic->port))
        counter_add(&nic->ls.duplicates, 1);
}

static void
translate(const HeldFrame *frame, gpointer data)
{
    Nic *nic = data;

    inherit_to_lan(nic->lockstep, frame->data, frame->len, nic->batch_ns);
}

void
shadow_takeover(Nic *nic, int64_t now_ns)
{
    const PeerStream *peer = &nic->lockstep->peer;
    int64_t heard_ns = peer->heard_ns > 0 ? peer->heard_ns : now_ns;
    int64_t oldest_ns = MAX(MIN(heard_ns, now_ns) - KEPT_AGE_NS, now_ns - KEPT_SILENCE_NS);
    HeldFrame frame;

    keep_newest(nic, KEPT_LAST_BYTES);
    while (hold_queue_peek_oldest(nic->queue, &frame) && frame.stamp < oldest_ns)
        hold_queue_drop_oldest(nic->queue);
    nic->batch_ns = now_ns;
    /* Only now: of a connection that was being opened the rewriter knows more than it did then. */
    hold_queue_foreach(nic->queue, translate, nic);
}

void
shadow_drop(Nic *nic)
{
    HeldFrame frame;

    while (!is_under_way(nic) && hold_queue_peek(nic->ls.inbox, &frame))
        pop_inbox(nic);
}
