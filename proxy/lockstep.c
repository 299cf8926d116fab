/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lockstep.c - what lock-stepping adds to a proxy: set-up, the channel's frames to the NICs
 * (theory of operation: docs/lockstep.md) */
#include "lockstep.h"

#include <errno.h>
#include <sys/random.h>

#include "digests.h"
#include "inherit.h"
#include "keep.h"
#include "nic.h"

enum {
    BATCH = 32,
    DISPATCH_SLICE = 256, /* frames per turn: commands are looked at in between */
};

int
lockstep_init(Lockstep *lockstep, const ProxyConfig *config, bool adopted)
{
    uint64_t random[4];
    RewriterConfig rewriter = {.connections_max = config->rewriter_connections_max};

    if (getrandom(random, sizeof(random), 0) != sizeof(random) ||
        getrandom(&lockstep->digest_key, sizeof(DigestKey), 0) != sizeof(DigestKey))
        return -EIO;
    if (rewriter.connections_max == 0)
        rewriter.connections_max = REWRITER_CONNECTIONS_DEFAULT;
    lockstep->compare = config->compare;
    lockstep->compare.memory_max_bytes = config->hold_max_bytes;
    for (unsigned i = 0; i < 2; i++) {
        lockstep->compare.hash_key[i] = random[i];
        rewriter.hash_key[i] = random[2 + i];
    }
    pthread_mutex_init(&lockstep->book.lock, NULL);
    lockstep->book.ring = divergence_ring_new(LOCKSTEP_RECORDS);
    if (!lockstep->book.ring)
        return -ENOMEM;

    int r = keep_init(lockstep, config, &rewriter, adopted);

    return r < 0 ? r : peer_stream_init(&lockstep->peer);
}

void
lockstep_clear(Lockstep *lockstep)
{
    peer_stream_clear(&lockstep->peer);
    keep_clear(lockstep);
    divergence_ring_free(lockstep->book.ring);
    lockstep->book.ring = NULL;
    pthread_mutex_destroy(&lockstep->book.lock);
}

int
nic_lockstep_init(Nic *nic, Lockstep *lockstep)
{
    nic->lockstep = lockstep;
    nic->ls.stage = hold_queue_new(LOCKSTEP_STAGE_BYTES);
    if (nic->ls.stage)
        nic->ls.inbox = hold_queue_new(LOCKSTEP_INBOX_BYTES);
    return nic->ls.inbox ? 0 : -errno;
}

void
nic_lockstep_clear(Nic *nic)
{
    compare_free(nic->ls.engine);
    hold_queue_free(nic->ls.stage);
    hold_queue_free(nic->ls.inbox);
    nic->ls = (NicLockstep){0};
}

Compare *
lockstep_new_engine(const Lockstep *lockstep, const CompareOps *ops, Nic *nic)
{
    Compare *engine = NULL;
    int r = compare_new(&lockstep->compare, ops, nic, &engine);

    if (r < 0)
        g_error("no memory for the comparison of %s: %s", nic->config.name, g_strerror(-r));
    return engine;
}

bool
lockstep_loses(Lockstep *lockstep, ProxyLoss which)
{
    if (G_LIKELY(!lockstep->losing) || lockstep->lose[which] == 0)
        return false;
    lockstep->lose[which]--;
    lockstep->losing = false;
    for (unsigned i = 0; i < PROXY_N_LOSSES; i++)
        lockstep->losing |= lockstep->lose[i] > 0;
    counter_add(&lockstep->test_lost, 1);
    return true;
}

/* NULL, or what is wrong with it. */
static const char *
objection(const Lockstep *lockstep, const WireFrame *frame, unsigned n_nics, bool secondary)
{
    if (frame->nic >= n_nics)
        return "a frame of a NIC that is not there";
    if ((frame->kind == WIRE_EGRESS || frame->kind == WIRE_DIGEST) == secondary)
        return "a frame of the other direction";
    /* The next epoch begins on one side before it does on the other; the one after it cannot. */
    if (frame->epoch > lockstep->epoch + 1)
        return "a frame of an epoch that is too far ahead";
    return NULL;
}

/* Looks at the next frames, as far as they are of one NIC; @ends: how many bytes to and with each.
 */
static unsigned
peek_run(Lockstep *lockstep, unsigned n_nics, bool secondary, WireFrame *frames, size_t *ends)
{
    size_t offset = 0, bytes;
    unsigned n = 0;

    while (n < BATCH && peer_stream_peek(&lockstep->peer, offset, &frames[n], &bytes)) {
        const char *text = objection(lockstep, &frames[n], n_nics, secondary);

        if (text && n > 0)
            break; /* what is in front of it counts */
        if (text) {
            peer_stream_fail(&lockstep->peer, 0, text);
            peer_stream_consume(&lockstep->peer, lockstep->peer.in.len);
            return 0;
        }
        if (n > 0 && frames[n].nic != frames[0].nic)
            break;
        offset += bytes;
        ends[n++] = offset;
    }
    return n;
}

/* SHADOW. False: it has to wait. */
static bool
take_one(Lockstep *lockstep, Nic *nic, const WireFrame *frame)
{
    const char *text = NULL;
    uint64_t number;

    switch (frame->kind) {
    case WIRE_CONNECTION:
        if (!inherit_take(lockstep, frame->frame, frame->len))
            text = "a malformed record of a connection";
        break;
    case WIRE_DIGEST_KEY:
        lockstep->has_peer_key = digests_decode_key(frame, &lockstep->peer_key);
        if (!lockstep->has_peer_key)
            text = "a malformed key of digests";
        break;
    case WIRE_WANT:
        if (digests_decode_want(frame, &number))
            shadow_resend(nic, number);
        else
            text = "a malformed request for a frame";
        break;
    case WIRE_INGRESS:
    case WIRE_EGRESS: /* refused before, as the next */
    case WIRE_DIGEST:
        return shadow_take_peer(nic, frame);
    }
    if (text)
        peer_stream_fail(&lockstep->peer, 0, text);
    return true;
}

static size_t
take_run(Lockstep *lockstep, Nic *nic, const WireFrame *frames, size_t n, int64_t now_ns)
{
    size_t taken = 0;

    if (nic->egress == PROXY_EGRESS_COMPARE)
        return redirector_take_peer(nic, frames, n, now_ns);
    if (nic->egress == PROXY_EGRESS_SHADOW) {
        while (taken < n && take_one(lockstep, nic, &frames[taken]))
            taken++;
        return taken;
    }
    counter_add(&lockstep->ignored, n);
    return n;
}

bool
lockstep_dispatch(Lockstep *lockstep, Nic *nics, unsigned n_nics, int64_t now_ns)
{
    const bool secondary = nics[0].egress == PROXY_EGRESS_SHADOW;
    WireFrame frames[BATCH];
    size_t ends[BATCH];

    for (size_t done = 0; done < DISPATCH_SLICE;) {
        unsigned n = peek_run(lockstep, n_nics, secondary, frames, ends);

        if (n == 0)
            return false;

        size_t taken = take_run(lockstep, &nics[frames[0].nic], frames, n, now_ns);

        if (taken > 0)
            peer_stream_consume(&lockstep->peer, ends[taken - 1]);
        if (taken < n)
            return false;
        done += taken;
    }
    return true;
}

void
lockstep_publish(Lockstep *lockstep)
{
    if (!lockstep->rewriter)
        return;

    const RewriterStats *stats = rewriter_stats(lockstep->rewriter);

    counter_set(&lockstep->connections, stats->connections);
    counter_set(&lockstep->untracked, stats->untracked_full + stats->untracked_ambiguous);
    counter_set(&lockstep->unsaved, stats->unsaved + rewriter_stats(lockstep->inherited)->unsaved);
}
