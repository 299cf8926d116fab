/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nic.c - the data path of one NIC */
#include "nic.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "inherit.h"

enum {
    /* Frames per turn: commands are looked at in between. */
    READ_SLICE = 128,
    FLUSH_SLICE = 64,
    PUMP_SLICE = 64,
    /* More small frames than a full packet socket holds: a drain ends even if the guest runs. */
    DRAIN_MAX_FRAMES = 1 << 17,
};

/* A full ring of the guest tells nobody when it has room again. */
static const int64_t INGRESS_RETRY_FIRST_NS = 100 * NS_PER_US;
static const int64_t INGRESS_RETRY_LAST_NS = 5 * NS_PER_MS;
static const int64_t LOST_CHECK_NS = 100 * NS_PER_MS;

static void
tell_broken(Nic *nic, bool lan, int err)
{
    if (nic->told_broken)
        return;
    nic->told_broken = true;
    nic->news.broken = true;
    nic->news.broken_lan = lan;
    nic->news.broken_errno = err;
}

void
nic_fail_port(Nic *nic, int err)
{
    nic->port_broken = true;
    nic->port_readable = false;
    nic->ingress_len = 0;
    nic->ingress_stalled = false;
    nic->ls.mirrored = false;
    tell_broken(nic, false, err);
}

void
nic_fail_lan(Nic *nic, int err)
{
    nic->lan_broken = true;
    nic->lan_readable = false;
    nic->lan_blocked = false;
    tell_broken(nic, true, err);
}

static bool
frame_valid(const uint8_t *frame, size_t len)
{
    struct virtio_net_hdr header;

    if (len < PORT_VNET_BYTES + PORT_ETHERNET_BYTES || len > HOLD_QUEUE_FRAME_MAX)
        return false;
    memcpy(&header, frame, sizeof(header));

    size_t body = len - PORT_VNET_BYTES;

    if ((header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) &&
        (size_t)header.csum_start + header.csum_offset + 2 > body)
        return false;
    return header.gso_type == VIRTIO_NET_HDR_GSO_NONE || header.hdr_len <= body;
}

static void
learn(Nic *nic, const uint8_t *frame, size_t len)
{
    AddressSighting sighting;

    if (!address_parse(view_of(frame + PORT_VNET_BYTES, len - PORT_VNET_BYTES), nic->config.mac,
                       &sighting))
        return;

    AddressSighting *last = &nic->last_source[sighting.ipv6];

    if (!sighting.claimed && !sighting.router) {
        if (memcmp(last->bytes, sighting.bytes, sizeof(last->bytes)) == 0)
            return;
        *last = sighting;
    }
    pthread_mutex_lock(&nic->book->lock);
    address_table_learn(&nic->book->table, nic->index, &sighting);
    pthread_mutex_unlock(&nic->book->lock);
}

void
nic_enqueue(Nic *nic, const uint8_t *frame, size_t len, int64_t arrived_ns)
{
    uint8_t *place = hold_queue_append(nic->queue, frame, len, arrived_ns);

    if (nic_is_rewritten(nic))
        inherit_to_lan(nic->lockstep, place, len, nic->batch_ns);
}

static void
take_frame(gpointer user_data, const uint8_t *frame, size_t len)
{
    Nic *nic = user_data;

    if (!frame_valid(frame, len)) {
        counter_add(&nic->lost, 1);
        return;
    }
    learn(nic, frame, len);
    switch (nic->egress) {
    case PROXY_EGRESS_DROP:
        counter_add(&nic->dropped, 1);
        break;
    case PROXY_EGRESS_KEEP:
    case PROXY_EGRESS_HOLD:
    case PROXY_EGRESS_OPEN:
        nic_enqueue(nic, frame, len, nic->batch_ns);
        break;
    case PROXY_EGRESS_COMPARE:
        redirector_take(nic, frame, len);
        break;
    case PROXY_EGRESS_SHADOW:
        shadow_take(nic, frame, len);
        break;
    }
}

/* How many frames of the largest size can be taken. */
static unsigned
egress_room(const Nic *nic)
{
    unsigned room = hold_queue_room(nic->queue);

    if (nic->egress == PROXY_EGRESS_COMPARE)
        return redirector_wants(nic, COMPARE_PRIMARY) ? hold_queue_room(nic->ls.stage) : 0;
    if (nic->egress == PROXY_EGRESS_SHADOW && nic_has_peer(nic))
        return MIN(room, peer_stream_room(&nic->lockstep->peer));
    return room;
}

bool
nic_wants_port_input(const Nic *nic)
{
    return nic->port && !nic->port_broken && egress_room(nic) > 0;
}

static void
check_high(Nic *nic)
{
    guint64 bytes = hold_queue_bytes(nic->queue);

    if (nic->told_high || (nic->egress != PROXY_EGRESS_HOLD && nic->egress != PROXY_EGRESS_COMPARE))
        return;
    if (nic->egress == PROXY_EGRESS_COMPARE)
        bytes = redirector_held_bytes(nic);
    if (bytes < nic->hold_max_bytes / 4 * 3)
        return;
    nic->told_high = true;
    nic->news.hold_high = true;
}

/* Returns how many frames came. */
static unsigned
read_some(Nic *nic)
{
    if (!nic_wants_port_input(nic))
        return 0;
    nic->batch_ns = clock_now_ns();

    const HoldQueue *buffers = nic->egress == PROXY_EGRESS_COMPARE ? nic->ls.stage : nic->queue;
    int n = nic->port->ops->read(nic->port, buffers, MIN(egress_room(nic), READ_SLICE), take_frame,
                                 nic);

    nic->lost_due = true;
    nic->port_readable = n > 0 && !nic->port->drained;
    if (n < 0)
        nic_fail_port(nic, -n);
    if (nic->egress == PROXY_EGRESS_OPEN)
        hold_queue_release_all(nic->queue);
    if (nic->egress == PROXY_EGRESS_COMPARE)
        redirector_feed(nic);
    check_high(nic);
    return n > 0 ? (unsigned)n : 0;
}

/* What was read before, but could not be taken. */
static void
read_stage(Nic *nic)
{
    nic->batch_ns = clock_now_ns();
    if (nic->egress == PROXY_EGRESS_COMPARE) {
        redirector_feed(nic);
        return;
    }
    redirector_unstage(nic);
    if (nic->egress == PROXY_EGRESS_OPEN)
        hold_queue_release_all(nic->queue);
}

void
nic_read(Nic *nic)
{
    if (nic->lockstep && hold_queue_frames(nic->ls.stage) > 0)
        read_stage(nic);
    if (nic->port_readable)
        (void)read_some(nic);
}

static bool
peer_is_full(const Nic *nic)
{
    return nic_has_peer(nic) && peer_stream_room(&nic->lockstep->peer) == 0;
}

void
nic_drain(Nic *nic)
{
    for (unsigned done = 0; done < DRAIN_MAX_FRAMES;) {
        unsigned n = read_some(nic);

        if (n == 0 && nic->egress == PROXY_EGRESS_SHADOW && peer_is_full(nic)) {
            peer_stream_flush(&nic->lockstep->peer);
            n = read_some(nic);
        }
        if (n == 0)
            break;
        done += n;
        if (nic->egress == PROXY_EGRESS_OPEN)
            while (nic_has_released(nic) && !nic->lan_blocked)
                nic_flush(nic);
    }
}

bool
nic_has_released(const Nic *nic)
{
    HeldFrame frame;

    return hold_queue_peek(nic->queue, &frame);
}

/* 0: written or lost for good, -EAGAIN: the LAN tap does not take it now. */
static int
write_lan(Nic *nic, const HeldFrame *frame)
{
    if (!nic->lan_broken) {
        ssize_t n;

        do
            n = write(nic->lan_fd, frame->data, frame->len);
        while (n < 0 && errno == EINTR);

        if (n >= 0) {
            counter_add(&nic->egress_frames, 1);
            counter_add(&nic->egress_bytes, frame->len - PORT_VNET_BYTES);
            return 0;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM)
            return -EAGAIN;
        if (errno == EBADFD)
            nic_fail_lan(nic, ENODEV);
    }
    /* A frame that the kernel refuses (EINVAL: offloads that make no sense), an interface that was
     * set down (EIO) or is gone: waiting would only stop what comes after it. */
    counter_add(&nic->lost, 1);
    return 0;
}

/* The lease, read anew for each frame: a host that stood still in the middle of a slice has none
 * any more. And a peer that has closed its end may have taken over: whatever the lease says, as
 * this host may have stood still, shorter than it lasts. That is looked at once a slice (@first),
 * and behind the lease: what the peer said before its end may just have renewed it. */
static bool
may_leave(Nic *nic, int64_t now_ns, bool first)
{
    const bool may = nic->egress != PROXY_EGRESS_COMPARE ||
                     (lockstep_has_lease(nic->lockstep, now_ns) &&
                      (!first || peer_stream_is_open(&nic->lockstep->peer)));

    if (!may && !nic->ls.lease_wait)
        counter_add(&nic->ls.lease_waits, 1);
    nic->ls.lease_wait = !may;
    return may;
}

void
nic_flush(Nic *nic)
{
    HeldFrame frame;

    if (nic->lan_blocked)
        return;
    for (unsigned i = 0; i < FLUSH_SLICE && hold_queue_peek(nic->queue, &frame); i++) {
        int64_t now_ns = clock_now_ns();

        if (!may_leave(nic, now_ns, i == 0))
            return;
        if (write_lan(nic, &frame) < 0) {
            nic->lan_blocked = true;
            return;
        }
        histogram_add(&nic->hold_us, (uint64_t)MAX(now_ns - frame.stamp, 0) / NS_PER_US);
        hold_queue_pop(nic->queue);
    }
}

/* Nothing of what the guest says reaches the LAN. */
static bool
is_quiet(ProxyEgress egress)
{
    return egress == PROXY_EGRESS_DROP || egress == PROXY_EGRESS_KEEP ||
           egress == PROXY_EGRESS_SHADOW;
}

/* While the VM is quiet its LAN tap is emptied: at a failover the guest must not be fed what was
 * flooded to the bridge's ports hours ago. */
static bool
discards_ingress(const Nic *nic)
{
    return !nic->ingress_on && is_quiet(nic->egress) &&
           !(nic->port && nic->port->partial && nic->ingress_len > 0);
}

/* The peer has, or can be given, a copy of the next frame. */
static bool
can_mirror(const Nic *nic)
{
    return nic->egress != PROXY_EGRESS_COMPARE || nic->ls.mirrored || !peer_is_full(nic);
}

bool
nic_wants_lan_input(const Nic *nic)
{
    if (nic->lan_broken)
        return false;
    return discards_ingress(nic) || (nic->ingress_on && nic->port && !nic->port_broken &&
                                     !nic->ingress_stalled && can_mirror(nic));
}

/* Makes sure that a frame is under way. False: none is there. */
static bool
next_ingress(Nic *nic, int64_t now_ns)
{
    while (nic->ingress_len == 0) {
        ssize_t n = read(nic->lan_fd, nic->ingress, HOLD_QUEUE_FRAME_MAX);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EBADFD)
            nic_fail_lan(nic, ENODEV);
        if (n < 0) {
            nic->lan_readable = false;
            return false;
        }
        if (n < PORT_VNET_BYTES + PORT_ETHERNET_BYTES) {
            counter_add(&nic->lost, 1);
            continue;
        }
        nic->ingress_len = (size_t)n;
        nic->ls.mirrored = false;
        if (nic_is_rewritten(nic))
            inherit_from_lan(nic->lockstep, nic->ingress, nic->ingress_len, now_ns);
    }
    return true;
}

static void
stall_ingress(Nic *nic, int64_t now_ns)
{
    nic->ingress_stalled = true;
    if (nic->port->ops->write_polls) {
        nic->ingress_retry_ns = INT64_MAX;
        return;
    }
    nic->ingress_retry_ns = now_ns + nic->ingress_backoff_ns;
    nic->ingress_backoff_ns = MIN(nic->ingress_backoff_ns * 2, INGRESS_RETRY_LAST_NS);
}

bool
nic_give(Nic *nic, const uint8_t *frame, size_t len, int64_t now_ns)
{
    int r = nic->port->ops->write(nic->port, frame, len);

    if (r == -EAGAIN) {
        stall_ingress(nic, now_ns);
        return false;
    }
    if (r == -EPIPE) {
        nic_fail_port(nic, EPIPE);
        return false;
    }
    if (r < 0) {
        counter_add(&nic->lost, 1);
    } else {
        counter_add(&nic->ingress_frames, 1);
        counter_add(&nic->ingress_bytes, len - PORT_VNET_BYTES);
    }
    nic->ingress_backoff_ns = INGRESS_RETRY_FIRST_NS;
    nic->ingress_given_ns = now_ns;
    return true;
}

/* False: there is none, or it must wait. */
static bool
pump_one(Nic *nic, int64_t now_ns)
{
    if (!next_ingress(nic, now_ns))
        return false;
    if (!discards_ingress(nic) &&
        (!redirector_mirror(nic) || !nic_give(nic, nic->ingress, nic->ingress_len, now_ns)))
        return false;
    nic->ingress_len = 0;
    return true;
}

void
nic_pump(Nic *nic, int64_t now_ns)
{
    if (nic->ingress_stalled && now_ns >= nic->ingress_retry_ns) {
        nic->ingress_stalled = false;
        nic->lan_readable = true;
    }
    /* What the peer mirrored before a takeover comes before what the LAN has. */
    if (nic->lockstep) {
        shadow_pump(nic, now_ns);
        if (!discards_ingress(nic) && hold_queue_frames(nic->ls.inbox) > 0)
            return;
    }
    for (unsigned i = 0; i < PUMP_SLICE && nic->lan_readable && nic_wants_lan_input(nic); i++)
        if (!pump_one(nic, now_ns))
            return;
}

void
nic_check_lost(Nic *nic, int64_t now_ns)
{
    if (!nic->lost_due || !nic->port || now_ns < nic->lost_next_ns)
        return;

    guint64 lost = nic->port->ops->take_lost(nic->port);

    /* While the queue is full nothing is read: that is when frames get lost. */
    nic->lost_due = !nic->port_broken && hold_queue_room(nic->queue) == 0;
    nic->lost_next_ns = now_ns + LOST_CHECK_NS;
    counter_add(&nic->lost, lost);
    nic->news.lost += lost;
}

/* What a mode has beside the hold queue; returns the engine that is not needed any more. */
static Compare *
leave_egress(Nic *nic, ProxyEgress next)
{
    switch (nic->egress) {
    case PROXY_EGRESS_COMPARE:
        return redirector_end(nic, next, clock_now_ns());
    case PROXY_EGRESS_SHADOW:
        if (is_quiet(next))
            shadow_drop(nic);
        else
            shadow_takeover(nic, clock_now_ns());
        break;
    case PROXY_EGRESS_DROP:
    case PROXY_EGRESS_KEEP:
    case PROXY_EGRESS_HOLD:
    case PROXY_EGRESS_OPEN:
        break;
    }
    return NULL;
}

/* The stage too: what the queue had no room for when a comparison ended is still in it. */
static void
drop_output(Nic *nic)
{
    counter_add(&nic->dropped, hold_queue_drop_all(nic->queue));
    if (nic->lockstep)
        counter_add(&nic->dropped, hold_queue_drop_all(nic->ls.stage));
}

void
nic_set_egress(Nic *nic, ProxyEgress egress, Compare **engine)
{
    /* Within one pair: what is held waits for its commit. */
    const bool stays_held = (nic->egress == PROXY_EGRESS_HOLD && egress == PROXY_EGRESS_COMPARE) ||
                            (nic->egress == PROXY_EGRESS_COMPARE && egress == PROXY_EGRESS_HOLD);

    if (egress == nic->egress && egress != PROXY_EGRESS_KEEP)
        return;

    Compare *ended = leave_egress(nic, egress);

    if (is_quiet(egress))
        drop_output(nic);
    else if (!stays_held)
        hold_queue_release_all(nic->queue);
    else if (egress == PROXY_EGRESS_HOLD)
        hold_queue_unrelease(nic->queue); /* the lease under which it might leave ends here */
    nic->egress = egress;
    nic->told_high = false;
    nic->port_readable = true;
    nic->lan_readable = true;
    if (egress == PROXY_EGRESS_COMPARE) {
        nic->ls.held_before = hold_queue_has_held(nic->queue);
        nic->ls.held_last = hold_queue_last_sequence(nic->queue);
        redirector_begin(nic, *engine, clock_now_ns());
        *engine = NULL;
    }
    if (ended)
        *engine = ended;
}

void
nic_release(Nic *nic, guint64 epoch)
{
    hold_queue_release(nic->queue, epoch);
    nic->told_high = false;
    nic->port_readable = true;
}

bool
nic_is_runnable(const Nic *nic)
{
    return (nic->port_readable && nic_wants_port_input(nic)) ||
           (nic_has_released(nic) && !nic->lan_blocked && !nic->ls.lease_wait) ||
           (nic->lan_readable && nic_wants_lan_input(nic)) || shadow_has_due(nic);
}
