/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* verify.c - finds where two disks that should be equal differ, while the guest writes (pure)
 *
 * Theory of operation
 * ===================
 * First all chunks are compared in order, writes or not. Equal is equal: no write can make two
 * different blocks look alike. What differs may just be under way and becomes a suspect. In a
 * barrier nothing is under way, so a suspect that differs there is a difference; unless the guest,
 * which may run again before the release, has written it meanwhile: then it has moved, and the next
 * barrier is to tell.
 *
 * All is bounded: suspects (looking for more waits), chunks of a barrier, barriers for a chunk that
 * is written all the time, differences. verify_next() gives suspects in a barrier and the search
 * outside of it, so that a barrier is not held up by the search.
 */
#include "verify.h"

#include "clock.h"
#include "dirty-map.h"

#include <assert.h>
#include <string.h>

#define CHUNK ((uint64_t)DIRTY_CHUNK_BYTES)

enum { BURST_MS = 100 }; /* of the rate limit */

typedef struct Suspect {
    uint64_t chunk;
    unsigned rounds; /* barriers it was not settled in */
    bool asked;      /* in this barrier */
    bool moved;      /* written since the barrier began */
} Suspect;

typedef struct Step {
    bool is_used;
    bool is_recheck;
    unsigned barrier; /* of a recheck */
    uint64_t first;
    unsigned n;
} Step;

struct Verify {
    uint64_t size_bytes, n_chunks, next; /* chunk to be looked at next */
    uint64_t rate_bytes_s;
    int64_t not_before_ns;
    VerifyState state;
    int r;
    bool in_barrier;
    unsigned barrier;   /* counts them */
    unsigned rechecked; /* in this one */
    uint64_t done_bytes;
    Step steps[VERIFY_MAX_STEPS];
    unsigned n_suspects;
    Suspect suspects[VERIFY_MAX_SUSPECTS + VERIFY_MAX_STEPS * VERIFY_BATCH_CHUNKS]; /* by chunk */
    unsigned unsettled, n_differences;
    VerifyDifference listed[VERIFY_LISTED];
};

static const char *const state_names[] = {
    [VERIFY_RUNNING] = "running",
    [VERIFY_DONE] = "done",
    [VERIFY_CANCELLED] = "cancelled",
    [VERIFY_FAILED] = "failed",
};
static_assert(G_N_ELEMENTS(state_names) == VERIFY_STATE_COUNT, "a name for each state");

const char *
verify_state_name(VerifyState state)
{
    g_assert((unsigned)state < VERIFY_STATE_COUNT);
    return state_names[state];
}

Verify *
verify_new(uint64_t size_bytes, uint64_t rate_bytes_s, int64_t now_ns)
{
    Verify *verify = g_new0(Verify, 1);

    g_assert(size_bytes > 0 && size_bytes <= DIRTY_MAP_MAX_BYTES);
    verify->size_bytes = size_bytes;
    verify->n_chunks = (size_bytes + CHUNK - 1) / CHUNK;
    verify->rate_bytes_s = rate_bytes_s;
    verify->not_before_ns = now_ns;
    return verify;
}

void
verify_free(Verify *verify)
{
    g_free(verify);
}

static uint64_t
bytes_of(const Verify *verify, uint64_t first, uint64_t n)
{
    return MIN(n * CHUNK, verify->size_bytes - first * CHUNK);
}

static bool
is_idle(const Verify *verify)
{
    for (unsigned i = 0; i < VERIFY_MAX_STEPS; i++) {
        if (verify->steps[i].is_used)
            return false;
    }
    return true;
}

/* --- Suspects --- */

/* Where @chunk is, or would be. */
static unsigned
place_of(const Verify *verify, uint64_t chunk)
{
    unsigned low = 0, high = verify->n_suspects;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (verify->suspects[middle].chunk < chunk)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static Suspect *
find_suspect(Verify *verify, uint64_t chunk)
{
    unsigned i = place_of(verify, chunk);

    return i < verify->n_suspects && verify->suspects[i].chunk == chunk ? &verify->suspects[i]
                                                                        : NULL;
}

static void
add_suspect(Verify *verify, uint64_t chunk)
{
    unsigned i = place_of(verify, chunk);

    g_assert(verify->n_suspects < G_N_ELEMENTS(verify->suspects));
    memmove(&verify->suspects[i + 1], &verify->suspects[i],
            (verify->n_suspects - i) * sizeof(Suspect));
    /* Found in the middle of a barrier, it waits for the next: it may have been written in this. */
    verify->suspects[i] = (Suspect){.chunk = chunk, .moved = verify->in_barrier};
    verify->n_suspects++;
}

static void
remove_suspect(Verify *verify, const Suspect *suspect)
{
    unsigned i = (unsigned)(suspect - verify->suspects);

    verify->n_suspects--;
    memmove(&verify->suspects[i], &verify->suspects[i + 1],
            (verify->n_suspects - i) * sizeof(Suspect));
}

/* --- What comes next --- */

static bool
begin_step(Verify *verify, bool is_recheck, uint64_t first, unsigned n, VerifyStep *ret_step)
{
    for (unsigned i = 0; i < VERIFY_MAX_STEPS; i++) {
        if (verify->steps[i].is_used)
            continue;
        verify->steps[i] = (Step){.is_used = true,
                                  .is_recheck = is_recheck,
                                  .barrier = verify->barrier,
                                  .first = first,
                                  .n = n};
        *ret_step = (VerifyStep){
            .id = i, .n_chunks = n, .offset = first * CHUNK, .len = bytes_of(verify, first, n)};
        return true;
    }
    return false;
}

static bool
is_wanted(const Verify *verify, const Suspect *suspect)
{
    return !suspect->asked && !suspect->moved && verify->rechecked < VERIFY_RECHECK_CHUNKS;
}

static bool
next_recheck(Verify *verify, VerifyStep *ret_step)
{
    for (unsigned i = 0; i < verify->n_suspects; i++) {
        Suspect *suspect = &verify->suspects[i];

        if (!is_wanted(verify, suspect))
            continue;
        if (!begin_step(verify, true, suspect->chunk, 1, ret_step))
            return false;
        suspect->asked = true;
        verify->rechecked++;
        return true;
    }
    return false;
}

/* What a step costs is paid before the next one: not more than a burst is saved up. */
static void
pay(Verify *verify, uint64_t bytes, int64_t now_ns)
{
    if (verify->rate_bytes_s == 0)
        return;
    verify->not_before_ns =
        MAX(verify->not_before_ns, now_ns - BURST_MS * NS_PER_MS) +
        (int64_t)((double)bytes * (double)NS_PER_S / (double)verify->rate_bytes_s);
}

bool
verify_next(Verify *verify, int64_t now_ns, VerifyStep *ret_step, int64_t *ret_when_ns)
{
    *ret_when_ns = INT64_MAX;
    if (verify->state != VERIFY_RUNNING)
        return false;
    if (verify->in_barrier)
        return next_recheck(verify, ret_step);
    if (verify->next == verify->n_chunks || verify->n_suspects >= VERIFY_MAX_SUSPECTS)
        return false;
    if (now_ns < verify->not_before_ns) {
        *ret_when_ns = verify->not_before_ns;
        return false;
    }

    unsigned n = (unsigned)MIN(verify->n_chunks - verify->next, VERIFY_BATCH_CHUNKS);

    if (!begin_step(verify, false, verify->next, n, ret_step))
        return false;
    verify->next += n;
    pay(verify, ret_step->len, now_ns);
    return true;
}

/* --- What comes of it --- */

static void
note_difference(Verify *verify, uint64_t chunk, const uint8_t *local, const uint8_t *peer)
{
    if (verify->n_differences < VERIFY_LISTED) {
        VerifyDifference *difference = &verify->listed[verify->n_differences];

        difference->offset = chunk * CHUNK;
        difference->len = bytes_of(verify, chunk, 1);
        memcpy(difference->local, local, CHUNK_DIGEST_BYTES);
        memcpy(difference->peer, peer, CHUNK_DIGEST_BYTES);
    }
    verify->n_differences++;
}

static void
take_recheck(Verify *verify, const Step *step, bool is_equal, const uint8_t *local,
             const uint8_t *peer)
{
    const Suspect *suspect = find_suspect(verify, step->first);

    if (!suspect) /* let go meanwhile */
        return;
    if (is_equal) {
        remove_suspect(verify, suspect);
        return;
    }
    if (!verify->in_barrier || step->barrier != verify->barrier || suspect->moved)
        return; /* of a time at which it may differ */
    note_difference(verify, step->first, local, peer);
    remove_suspect(verify, suspect);
}

static void
take_chunk(Verify *verify, const Step *step, uint64_t chunk, const uint8_t *local,
           const uint8_t *peer)
{
    bool is_equal = memcmp(local, peer, CHUNK_DIGEST_BYTES) == 0;

    if (step->is_recheck)
        take_recheck(verify, step, is_equal, local, peer);
    else if (!is_equal)
        add_suspect(verify, chunk);
}

static void
end_if_through(Verify *verify)
{
    if (verify->state != VERIFY_RUNNING)
        return;
    if (verify->n_differences >= VERIFY_MAX_DIFFERENCES ||
        (verify->next == verify->n_chunks && verify->n_suspects == 0 && is_idle(verify)))
        verify->state = VERIFY_DONE;
}

void
verify_done(Verify *verify, unsigned id, int r, const uint8_t *local, const uint8_t *peer)
{
    g_assert(id < VERIFY_MAX_STEPS && verify->steps[id].is_used);

    Step step = verify->steps[id];

    verify->steps[id].is_used = false;
    if (verify->state != VERIFY_RUNNING)
        return;
    if (r < 0) {
        verify->state = VERIFY_FAILED;
        verify->r = r;
        return;
    }
    for (unsigned i = 0; i < step.n; i++)
        take_chunk(verify, &step, step.first + i, local + (size_t)i * CHUNK_DIGEST_BYTES,
                   peer + (size_t)i * CHUNK_DIGEST_BYTES);
    if (!step.is_recheck)
        verify->done_bytes += bytes_of(verify, step.first, step.n);
    end_if_through(verify);
}

/* --- Barriers and writes --- */

void
verify_barrier(Verify *verify)
{
    verify->in_barrier = true;
    verify->barrier++;
    verify->rechecked = 0;
    for (unsigned i = 0; i < verify->n_suspects; i++)
        verify->suspects[i].asked = verify->suspects[i].moved = false;
}

bool
verify_is_rechecking(const Verify *verify)
{
    if (verify->state != VERIFY_RUNNING || !verify->in_barrier)
        return false;
    for (unsigned i = 0; i < VERIFY_MAX_STEPS; i++) {
        if (verify->steps[i].is_used && verify->steps[i].is_recheck)
            return true;
    }
    for (unsigned i = 0; i < verify->n_suspects; i++) {
        if (is_wanted(verify, &verify->suspects[i]))
            return true;
    }
    return false;
}

/* Only those count a round that were to be looked at: with many suspects a barrier does not get to
 * all of them. */
void
verify_release(Verify *verify)
{
    unsigned kept = 0;

    verify->in_barrier = false;
    for (unsigned i = 0; i < verify->n_suspects; i++) {
        Suspect suspect = verify->suspects[i];

        suspect.rounds += suspect.asked || suspect.moved;
        if (suspect.rounds >= VERIFY_MAX_ROUNDS)
            verify->unsettled++;
        else
            verify->suspects[kept++] = suspect;
    }
    verify->n_suspects = kept;
    end_if_through(verify);
}

void
verify_written(Verify *verify, uint64_t offset, uint64_t len)
{
    if (!verify->in_barrier || len == 0)
        return;
    for (unsigned i = place_of(verify, offset / CHUNK);
         i < verify->n_suspects && verify->suspects[i].chunk * CHUNK < offset + len; i++)
        verify->suspects[i].moved = true;
}

void
verify_cancel(Verify *verify)
{
    if (verify->state == VERIFY_RUNNING)
        verify->state = VERIFY_CANCELLED;
}

void
verify_status(const Verify *verify, VerifyStatus *ret_status)
{
    *ret_status = (VerifyStatus){
        .state = verify->state,
        .r = verify->r,
        .done_bytes = verify->done_bytes,
        .all_bytes = verify->size_bytes,
        .suspects = verify->n_suspects,
        .unsettled = verify->unsettled,
        .n_differences = verify->n_differences,
        .is_cut = verify->n_differences >= VERIFY_MAX_DIFFERENCES,
        .n_listed = MIN(verify->n_differences, VERIFY_LISTED),
    };
    memcpy(ret_status->listed, verify->listed, sizeof(verify->listed));
}
