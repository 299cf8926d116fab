/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-verify.c - two disks compared while one is written and the other follows
 *
 * The model: each chunk of a disk is four numbers. A write of the guest sets one, on its own disk
 * sooner or later, and comes out of a queue, in order, on the peer's. A barrier lets both end.
 */
#include "verify.h"

#include "check-main.h"
#include "clock.h"
#include "dirty-map.h"

#include <errno.h>
#include <string.h>

enum { CHUNK = DIRTY_CHUNK_BYTES, CHUNKS = 150, PARTS = 4, QUEUE = 64, TAIL = 1000 };
#define SIZE ((uint64_t)(CHUNKS - 1) * CHUNK + TAIL)

typedef struct Write {
    unsigned chunk, part;
    uint32_t value;
} Write;

typedef struct Compare {
    bool is_used, has_local, has_peer;
    VerifyStep step;
    uint8_t local[VERIFY_BATCH_CHUNKS][CHUNK_DIGEST_BYTES];
    uint8_t peer[VERIFY_BATCH_CHUNKS][CHUNK_DIGEST_BYTES];
} Compare;

typedef struct World {
    GRand *rand;
    Verify *verify;
    uint32_t local[CHUNKS][PARTS], peer[CHUNKS][PARTS], value;
    Write to_local[QUEUE], to_peer[QUEUE];
    unsigned n_local, n_peer;
    bool holds;
    bool differed[CHUNKS]; /* in the barrier that is now */
    bool found[CHUNKS];
    unsigned n_found;
    Compare compares[VERIFY_MAX_STEPS];
} World;

static unsigned
pick(World *world, unsigned n)
{
    return (unsigned)g_rand_int_range(world->rand, 0, (gint32)n);
}

static void
apply(uint32_t disk[CHUNKS][PARTS], Write writes[QUEUE], unsigned *n)
{
    disk[writes[0].chunk][writes[0].part] = writes[0].value;
    memmove(writes, writes + 1, --*n * sizeof(Write));
}

static void
guest_writes(World *world)
{
    Write write = {pick(world, 4) ? pick(world, CHUNKS) : pick(world, 3), pick(world, PARTS),
                   ++world->value};

    if (world->n_local == QUEUE || world->n_peer == QUEUE)
        return;
    verify_written(world->verify, (uint64_t)write.chunk * CHUNK + write.part, 1);
    world->to_local[world->n_local++] = write;
    world->to_peer[world->n_peer++] = write;
}

static void
begin_barrier(World *world)
{
    while (world->n_local > 0)
        apply(world->local, world->to_local, &world->n_local);
    while (world->n_peer > 0)
        apply(world->peer, world->to_peer, &world->n_peer);
    for (unsigned i = 0; i < CHUNKS; i++)
        world->differed[i] = memcmp(world->local[i], world->peer[i], sizeof(world->peer[i])) != 0;
    world->holds = true;
    verify_barrier(world->verify);
}

static void
end_barrier(World *world)
{
    /* Half of the owners wait for what is under way. */
    if (pick(world, 2) && verify_is_rechecking(world->verify))
        return;
    world->holds = false;
    verify_release(world->verify);
}

static void
read_side(uint32_t disk[CHUNKS][PARTS], const VerifyStep *step,
          uint8_t digests[][CHUNK_DIGEST_BYTES])
{
    for (unsigned i = 0; i < step->n_chunks; i++)
        chunk_digest(disk[step->offset / CHUNK + i], sizeof(disk[0]), digests[i]);
}

static void
check_found(World *world)
{
    VerifyStatus status;

    verify_status(world->verify, &status);
    for (; world->n_found < status.n_differences; world->n_found++) {
        const VerifyDifference *found = &status.listed[world->n_found];
        uint64_t chunk = found->offset / CHUNK;

        ck_assert_uint_eq(found->offset % CHUNK, 0);
        ck_assert_uint_eq(found->len, chunk == CHUNKS - 1 ? TAIL : CHUNK);
        ck_assert_msg(world->holds && world->differed[chunk], "chunk %u is equal", (unsigned)chunk);
        ck_assert(!world->found[chunk]);
        ck_assert_int_ne(memcmp(found->local, found->peer, CHUNK_DIGEST_BYTES), 0);
        world->found[chunk] = true;
    }
}

/* A step's digests are read at two moments, and handed over at a third. */
static void
go_on_comparing(World *world)
{
    Compare *compare = &world->compares[pick(world, VERIFY_MAX_STEPS)];

    if (!compare->is_used)
        return;
    if (!compare->has_local && pick(world, 2)) {
        read_side(world->local, &compare->step, compare->local);
        compare->has_local = true;
    } else if (!compare->has_peer) {
        read_side(world->peer, &compare->step, compare->peer);
        compare->has_peer = true;
    } else if (compare->has_local) {
        verify_done(world->verify, compare->step.id, 0, compare->local[0], compare->peer[0]);
        compare->is_used = false;
        check_found(world);
    }
}

static void
ask_for_steps(World *world)
{
    VerifyStep step;
    int64_t when_ns;

    if (!verify_next(world->verify, 0, &step, &when_ns))
        return;
    ck_assert(!world->compares[step.id].is_used);
    ck_assert(step.n_chunks > 0 && step.n_chunks <= VERIFY_BATCH_CHUNKS);
    ck_assert(step.offset + step.len <= SIZE);
    world->compares[step.id] = (Compare){.is_used = true, .step = step};
}

static void
one_event(World *world)
{
    switch (pick(world, 8)) {
    case 0:
        guest_writes(world);
        break;
    case 1:
        if (world->n_local > 0)
            apply(world->local, world->to_local, &world->n_local);
        break;
    case 2:
        if (world->n_peer > 0 && !world->holds)
            apply(world->peer, world->to_peer, &world->n_peer);
        break;
    case 3:
        if (pick(world, 20) == 0 && !world->holds)
            begin_barrier(world);
        else if (pick(world, 20) == 0 && world->holds)
            end_barrier(world);
        break;
    case 4:
        ask_for_steps(world);
        break;
    default:
        go_on_comparing(world);
        break;
    }
}

static VerifyState
state_of(const World *world)
{
    VerifyStatus status;

    verify_status(world->verify, &status);
    return status.state;
}

static void
run_world(guint32 seed)
{
    World *world = g_new0(World, 1);
    bool was_wrong[CHUNKS] = {false};
    unsigned n_wrong;

    world->rand = g_rand_new_with_seed(seed);
    world->verify = verify_new(SIZE, 0, 0);
    n_wrong = pick(world, VERIFY_LISTED + 1);
    for (unsigned i = 0; i < n_wrong; i++)
        world->peer[pick(world, CHUNKS)][pick(world, PARTS)] = 0x80000000;
    for (unsigned i = 0; i < CHUNKS; i++)
        was_wrong[i] = memcmp(world->local[i], world->peer[i], sizeof(world->peer[i])) != 0;
    for (int i = 0; i < 1000000 && state_of(world) == VERIFY_RUNNING; i++)
        one_event(world);

    VerifyStatus status;

    verify_status(world->verify, &status);
    ck_assert_int_eq(status.state, VERIFY_DONE);
    ck_assert_uint_eq(status.done_bytes, SIZE);
    if (!world->holds)
        begin_barrier(world);
    /* What is wrong and was so all the time has been found. */
    for (unsigned i = 0; i < CHUNKS; i++)
        ck_assert_msg(!was_wrong[i] || !world->differed[i] || world->found[i] ||
                          status.unsettled > 0,
                      "seed %u: chunk %u was not found", seed, i);
    verify_free(world->verify);
    g_rand_free(world->rand);
    g_free(world);
}

START_TEST(unit_random)
{
    for (guint32 seed = 1; seed <= 100; seed++)
        run_world(seed);
}
END_TEST

/* --- One thing at a time --- */

static const uint8_t same[VERIFY_BATCH_CHUNKS * CHUNK_DIGEST_BYTES];
static uint8_t other[VERIFY_BATCH_CHUNKS * CHUNK_DIGEST_BYTES];

/* The search, with every chunk of [0, @n_wrong) wrong. */
static void
search(Verify *verify, unsigned n_wrong)
{
    VerifyStep step;
    int64_t when_ns;

    while (verify_next(verify, 0, &step, &when_ns)) {
        uint64_t first = step.offset / CHUNK;

        memset(other, 0, sizeof(other));
        for (unsigned i = 0; i < step.n_chunks; i++)
            other[(size_t)i * CHUNK_DIGEST_BYTES] = first + i < n_wrong;
        verify_done(verify, step.id, 0, same, other);
    }
}

static VerifyStatus
status_of(const Verify *verify)
{
    VerifyStatus status;

    verify_status(verify, &status);
    return status;
}

START_TEST(unit_under_way_is_no_difference)
{
    g_autoptr(Verify) verify = verify_new(SIZE, 0, 0);
    VerifyStep step;
    int64_t when_ns;

    search(verify, 1);
    ck_assert_uint_eq(status_of(verify).suspects, 1);
    ck_assert_int_eq(status_of(verify).state, VERIFY_RUNNING);
    ck_assert(!verify_next(verify, 0, &step, &when_ns));
    verify_barrier(verify);
    ck_assert(verify_is_rechecking(verify));
    ck_assert(verify_next(verify, 0, &step, &when_ns));
    ck_assert(step.offset == 0 && step.n_chunks == 1 && step.len == CHUNK);
    verify_done(verify, step.id, 0, same, same);
    ck_assert(!verify_is_rechecking(verify));
    ck_assert_int_eq(status_of(verify).state, VERIFY_DONE);
    ck_assert_uint_eq(status_of(verify).n_differences, 0);
}
END_TEST

START_TEST(unit_written_meanwhile_is_no_difference)
{
    g_autoptr(Verify) verify = verify_new(SIZE, 0, 0);
    VerifyStep step;
    int64_t when_ns;

    search(verify, 1);
    verify_barrier(verify);
    ck_assert(verify_next(verify, 0, &step, &when_ns));
    verify_written(verify, CHUNK - 1, 5);
    memset(other, 1, sizeof(other));
    verify_done(verify, step.id, 0, same, other);
    verify_release(verify);
    ck_assert_uint_eq(status_of(verify).suspects, 1);
    verify_barrier(verify);
    ck_assert(verify_next(verify, 0, &step, &when_ns));
    verify_release(verify); /* before the answer: it may be of a later time */
    verify_done(verify, step.id, 0, same, other);
    ck_assert_uint_eq(status_of(verify).n_differences, 0);
    verify_barrier(verify);
    ck_assert(verify_next(verify, 0, &step, &when_ns));
    verify_done(verify, step.id, 0, same, other);
    ck_assert_int_eq(status_of(verify).state, VERIFY_DONE);
    ck_assert_uint_eq(status_of(verify).n_differences, 1);
}
END_TEST

START_TEST(unit_a_chunk_that_never_rests)
{
    g_autoptr(Verify) verify = verify_new(SIZE, 0, 0);

    search(verify, 1);
    for (int i = 0; i < VERIFY_MAX_ROUNDS; i++) {
        ck_assert_int_eq(status_of(verify).state, VERIFY_RUNNING);
        verify_barrier(verify);
        verify_written(verify, 0, 1);
        verify_release(verify);
    }
    ck_assert_int_eq(status_of(verify).state, VERIFY_DONE);
    ck_assert_uint_eq(status_of(verify).unsettled, 1);
}
END_TEST

/* A disk that is wholly other: bounded suspects, bounded barriers, and an end. */
START_TEST(unit_all_is_bounded)
{
    g_autoptr(Verify) verify = verify_new(5000 * (uint64_t)CHUNK, 0, 0);
    unsigned barriers = 0;

    while (status_of(verify).state == VERIFY_RUNNING) {
        VerifyStep step;
        int64_t when_ns;
        unsigned n = 0;

        search(verify, 5000);
        ck_assert_uint_le(status_of(verify).suspects, VERIFY_MAX_SUSPECTS + 64);
        verify_barrier(verify);
        memset(other, 1, sizeof(other));
        for (; verify_next(verify, 0, &step, &when_ns); n++)
            verify_done(verify, step.id, 0, same, other);
        ck_assert_uint_le(n, VERIFY_RECHECK_CHUNKS);
        verify_release(verify);
        ck_assert_uint_lt(++barriers, 100);
    }
    ck_assert_uint_eq(status_of(verify).n_differences, VERIFY_MAX_DIFFERENCES);
    ck_assert(status_of(verify).is_cut);
    ck_assert_uint_eq(status_of(verify).n_listed, VERIFY_LISTED);
}
END_TEST

START_TEST(unit_rate)
{
    enum { STEP = VERIFY_BATCH_CHUNKS * CHUNK };
    g_autoptr(Verify) verify = verify_new(100 * (uint64_t)STEP, STEP * 10, NS_PER_S);
    VerifyStep step;
    int64_t now_ns = NS_PER_S, when_ns;
    unsigned n = 0;

    while (status_of(verify).state == VERIFY_RUNNING) {
        if (verify_next(verify, now_ns, &step, &when_ns)) {
            verify_done(verify, step.id, 0, same, same);
            n++;
        } else {
            ck_assert(when_ns > now_ns && when_ns <= now_ns + NS_PER_S);
            now_ns = when_ns;
        }
    }
    ck_assert_uint_eq(n, 100);
    ck_assert_int_ge(now_ns, NS_PER_S + 97 * NS_PER_S / 10); /* two steps in the first moment */
    ck_assert_int_le(now_ns, NS_PER_S + 100 * NS_PER_S / 10);
}
END_TEST

START_TEST(err_a_side_cannot_be_read)
{
    g_autoptr(Verify) verify = verify_new(SIZE, 0, 0);
    VerifyStep first, second;
    int64_t when_ns;

    ck_assert(verify_next(verify, 0, &first, &when_ns));
    ck_assert(verify_next(verify, 0, &second, &when_ns));
    verify_done(verify, first.id, -EIO, NULL, NULL);
    ck_assert_int_eq(status_of(verify).state, VERIFY_FAILED);
    ck_assert_int_eq(status_of(verify).r, -EIO);
    verify_done(verify, second.id, 0, same, same);
    ck_assert(!verify_next(verify, 0, &first, &when_ns));
    verify_cancel(verify);
    ck_assert_int_eq(status_of(verify).state, VERIFY_FAILED);
}
END_TEST

START_TEST(unit_cancel)
{
    g_autoptr(Verify) verify = verify_new(SIZE, 0, 0);
    VerifyStep step;
    int64_t when_ns;

    ck_assert(verify_next(verify, 0, &step, &when_ns));
    verify_cancel(verify);
    verify_done(verify, step.id, 0, same, same);
    verify_barrier(verify);
    ck_assert(!verify_is_rechecking(verify) && !verify_next(verify, 0, &step, &when_ns));
    verify_release(verify);
    ck_assert_str_eq(verify_state_name(status_of(verify).state), "cancelled");
}
END_TEST

CHECK_MAIN("verify", unit_random, unit_under_way_is_no_difference,
           unit_written_meanwhile_is_no_difference, unit_a_chunk_that_never_rests,
           unit_all_is_bounded, unit_rate, err_a_side_cannot_be_read, unit_cancel)
