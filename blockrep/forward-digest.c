/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-digest.c - both hosts' chunks compared by digest: for the copy, and to verify
 *
 * The copy's thread does both, over a connection of its own that lasts as long as it is needed.
 *
 * The copy may leave out a chunk whose digest at the peer was, at any time since the connection
 * began, that of what was read here: the guest's writes since then go to the peer anyway, so those
 * that are in one of the two already change nothing in the other.
 */
#include "forward-private.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CHUNKS = 64 /* that the target takes in one request */ };

struct Digests {
    NbdPeer *peer;
    uint64_t first, n; /* chunks whose digests are here */
    uint8_t digests[MAX_CHUNKS * CHUNK_DIGEST_BYTES];
};

Digests *
digests_new(void)
{
    return g_new0(Digests, 1);
}

void
digests_free(Digests *digests)
{
    if (!digests)
        return;
    nbd_peer_free(digests->peer);
    g_free(digests);
}

void
digests_close(Digests *digests)
{
    digests->n = 0;
    g_clear_pointer(&digests->peer, nbd_peer_free);
}

static int
fetch(Forward *forward, Digests *digests, uint64_t first, uint64_t n, uint8_t *ret_digests)
{
    int64_t deadline_ns = clock_now_ns() + forward->request_timeout_ns;
    g_autoptr(GError) error = NULL;
    int r = -ENOTCONN;

    if (!digests->peer)
        digests->peer = forward_open_export(forward, forward->peer_host, forward->peer_port,
                                            "digest", deadline_ns, &error);
    if (digests->peer)
        r = nbd_peer_do(digests->peer, NBD_PEER_READ, ret_digests, n * CHUNK_DIGEST_BYTES,
                        first * CHUNK_DIGEST_BYTES, deadline_ns, &error);
    if (r < 0)
        digests_close(digests);
    return r;
}

bool
digests_equal(Forward *forward, Digests *digests, const CopyJob *job)
{
    uint64_t chunk = job->chunk / CHUNK_BYTES;
    uint8_t local[CHUNK_DIGEST_BYTES];

    if (chunk < digests->first || chunk - digests->first >= digests->n) {
        uint64_t n = MIN(job->n_following + 1, MAX_CHUNKS);

        digests->n = 0;
        if (fetch(forward, digests, chunk, n, digests->digests) < 0)
            return false; /* then it is copied */
        digests->first = chunk;
        digests->n = n;
    }
    chunk_digest(job->buf, job->len, local);
    return memcmp(local, digests->digests + (chunk - digests->first) * CHUNK_DIGEST_BYTES,
                  CHUNK_DIGEST_BYTES) == 0;
}

/* --- Verify --- */

static int
digest_local(Forward *forward, const VerifyStep *step, uint8_t *buf, uint8_t *ret_digests)
{
    uint64_t end = step->offset + step->len;

    for (uint64_t at = step->offset; at < end; at += CHUNK_BYTES) {
        uint64_t len = MIN(CHUNK_BYTES, end - at);
        int r = forward_read_disk(forward, buf, len, at);

        if (r < 0)
            return r;
        chunk_digest(buf, len,
                     ret_digests + (at - step->offset) / CHUNK_BYTES * CHUNK_DIGEST_BYTES);
    }
    return 0;
}

/* Without the lock. */
static int
compare(Forward *forward, Digests *digests, const VerifyStep *step, uint8_t *local, uint8_t *peer)
{
    uint8_t *buf = g_malloc(CHUNK_BYTES);
    int r = digest_local(forward, step, buf, local);

    g_free(buf);
    if (r < 0)
        return r;
    return fetch(forward, digests, step->offset / CHUNK_BYTES, step->n_chunks, peer);
}

bool
forward_verify_some(Forward *forward, Digests *digests, int64_t *ret_when_ns)
{
    uint8_t local[VERIFY_BATCH_CHUNKS * CHUNK_DIGEST_BYTES], peer[sizeof(local)];
    VerifyStatus status;
    VerifyStep step;

    if (!forward->is_verifying || !verify_next(forward->verify, clock_now_ns(), &step, ret_when_ns))
        return false;
    forward_unlock(forward);

    int r = compare(forward, digests, &step, local, peer);

    forward_lock(forward);
    verify_done(forward->verify, step.id, r, local, peer);
    verify_status(forward->verify, &status);
    (void)pthread_cond_broadcast(&forward->changed); /* a barrier may wait for it */
    if (status.state == VERIFY_RUNNING)
        return true;
    forward->is_verifying = false;
    digests_close(digests);
    forward_changed(forward);
    return true;
}
