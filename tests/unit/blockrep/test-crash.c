/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-crash.c - the power fails at every change of a failover commit, and in the ones after that
 *
 * A guest writes one number to all sectors of a block and counts it up. After any number of crashes
 * each sector must hold a number between the last one that was flushed and the last one written.
 */
#include "fake-journal.h"
#include "target-open.h"

#include "check-main.h"
#include "clock.h"

#include <string.h>

#ifndef RUNS
#define RUNS 150
#endif

enum {
    BLOCK = 4096,
    SECTOR = 512,
    BLOCKS = 60,
    SIZE = BLOCKS * BLOCK, /* whole blocks: the numbers are per block */
    LIMIT = 64 * BLOCK,
    GENERATION = 2,
};

typedef struct Machine {
    FakePower power;
    FakeStore *disk, *hidden, *active;
    FakeJournal *journal;
    Target *target; /* NULL: what was found could not be taken up, which only a lost failover may */
} Machine;

/* What the guest knows. */
typedef struct Guest {
    uint32_t written[BLOCKS];  /* newest that may be there */
    uint32_t answered[BLOCKS]; /* newest that is there unless the power fails */
    uint32_t flushed[BLOCKS];  /* newest that is there for good */
    GRand *rand;
} Guest;

static void
fill_block(uint8_t block[BLOCK], uint32_t number)
{
    for (unsigned i = 0; i < BLOCK; i += sizeof(number))
        memcpy(block + i, &number, sizeof(number));
}

static bool
write_number(Machine *machine, Side side, uint64_t block, uint32_t number)
{
    uint8_t data[BLOCK];
    Fault fault;

    fill_block(data, number);
    return layers_write(target_layers(machine->target), side, data, BLOCK, block * BLOCK, &fault) ==
           0;
}

static void
guest_write(Machine *machine, Guest *guest)
{
    uint64_t block = (uint64_t)g_rand_int_range(guest->rand, 0, BLOCKS);

    guest->written[block]++; /* also if it fails */
    if (write_number(machine, SIDE_ACTIVE, block, guest->written[block]))
        guest->answered[block] = guest->written[block];
}

static void
guest_flush(Machine *machine, Guest *guest)
{
    Fault fault;

    if (target_flush(machine->target, SIDE_ACTIVE, &fault) == 0)
        memcpy(guest->flushed, guest->answered, sizeof(guest->flushed));
}

/* --- A machine, before and after a crash --- */

static void
machine_assemble(Machine *machine)
{
    g_auto(CommitRecord) record = {0};
    const DiskMeta *meta = &machine->journal->meta;
    g_autoptr(GError) error = NULL;
    gsize length = 0;
    const uint8_t *data =
        machine->journal->record ? g_bytes_get_data(machine->journal->record, &length) : NULL;

    if (meta->commit[0]) {
        ck_assert_msg(commit_record_parse("record", data, length, SIZE, &record, &error), "%s",
                      error ? error->message : "");
        ck_assert_str_eq(record.sum, meta->commit);
    }
    machine->target =
        target_assemble(fake_store_base(machine->disk), fake_store_base(machine->hidden),
                        fake_store_base(machine->active), &machine->journal->base, meta,
                        meta->commit[0] ? &record : NULL, &error);
    ck_assert_msg(machine->target != NULL, "%s", error ? error->message : "");
}

static void
machine_free(Machine *machine)
{
    target_free(machine->target);
    fake_power_clear(&machine->power);
    g_free(machine);
}

static Machine *
machine_after_crash(Machine *old, long left, guint32 seed)
{
    Machine *machine = g_new0(Machine, 1);

    fake_power_init(&machine->power, left, seed);
    machine->disk = fake_store_after_crash(old->disk, &machine->power);
    machine->hidden = fake_store_after_crash(old->hidden, &machine->power);
    machine->active = fake_store_after_crash(old->active, &machine->power);
    machine->journal = fake_journal_after_crash(old->journal, &machine->power);
    machine_free(old);
    machine_assemble(machine);
    return machine;
}

/* A mirror in the middle of an epoch: both sides have written. The numbers of the primary are of
 * another kind and must all be gone in the end. */
static Machine *
machine_new(Guest *guest, guint32 seed)
{
    Machine *machine = g_new0(Machine, 1);
    DiskMeta meta;

    disk_meta_init(&meta, SIZE);
    fake_power_init(&machine->power, 0, seed);
    machine->disk = fake_store_new(SIZE, true, &machine->power);
    machine->hidden = fake_store_new(LIMIT, true, &machine->power);
    machine->active = fake_store_new(LIMIT, true, &machine->power);
    machine->journal = fake_journal_new(&meta, &machine->power);
    machine_assemble(machine);
    *guest = (Guest){.rand = g_rand_new_with_seed(seed)};
    ck_assert(target_sync(machine->target, GENERATION - 1, INT64_MAX, NULL));
    ck_assert(target_mirror(machine->target, GENERATION - 1, 1, INT64_MAX, NULL));
    for (int i = 0; i < 60; i++) {
        guest_write(machine, guest);
        ck_assert(write_number(machine, SIDE_TARGET,
                               (uint64_t)g_rand_int_range(guest->rand, 0, BLOCKS),
                               UINT32_C(0x80000000) + (uint32_t)i));
    }
    return machine;
}

static bool
is_durable(const Machine *machine)
{
    return machine->journal->meta.commit[0] || machine->journal->meta.state == DISK_UPTODATE;
}

static void
check_disk(Machine *machine, const Guest *guest)
{
    const uint8_t *disk = fake_store_bytes(machine->disk);

    ck_assert_int_eq(machine->journal->meta.state, DISK_UPTODATE);
    ck_assert_uint_eq(machine->journal->meta.generation, GENERATION);
    for (unsigned at = 0; at < SIZE; at += SECTOR) {
        uint32_t number;

        memcpy(&number, disk + at, sizeof(number));
        ck_assert_msg(guest->flushed[at / BLOCK] <= number && number <= guest->written[at / BLOCK],
                      "sector %u has %u, not %u to %u", at / SECTOR, number,
                      guest->flushed[at / BLOCK], guest->written[at / BLOCK]);
    }
}

/* From the moment the failover is durable, all that SVM had written counts as flushed. */
static void
note_durable(Guest *guest)
{
    memcpy(guest->flushed, guest->written, sizeof(guest->flushed));
}

/* --- Without a guest: every single change --- */

static long
changes_of_a_commit(guint32 seed)
{
    Guest guest;
    Machine *machine = machine_new(&guest, seed);
    long before = machine->power.changes;

    note_durable(&guest);
    ck_assert(target_failover(machine->target, GENERATION, INT64_MAX, NULL));
    ck_assert(target_commit(machine->target, NULL));
    check_disk(machine, &guest);

    long changes = machine->power.changes - before;

    machine_free(machine);
    g_rand_free(guest.rand);
    return changes;
}

/* The power fails at change @at, and in the next lives at random ones, until a life gets through.
 */
static void
crash_at(guint32 seed, long at, int *ret_lost)
{
    Guest guest;
    Machine *machine = machine_new(&guest, seed);

    note_durable(&guest);
    machine->power.left = at;
    ck_assert(target_failover(machine->target, GENERATION, INT64_MAX, NULL));
    (void)target_commit(machine->target, NULL);
    for (int life = 0; fake_power_is_off(&machine->power); life++) {
        long left = life < 3 ? g_rand_int_range(guest.rand, 1, 40) : 0;

        machine = machine_after_crash(machine, left, seed + (guint32)at * 8 + (guint32)life);
        if (!is_durable(machine)) {
            /* Never durable, so never promised: found as a mirror's disk. */
            ck_assert_int_eq(machine->journal->meta.state, DISK_INCONSISTENT);
            (*ret_lost)++;
            break;
        }
        if (machine->journal->meta.commit[0])
            (void)target_commit(machine->target, NULL);
    }
    if (is_durable(machine))
        check_disk(machine, &guest);
    machine_free(machine);
    g_rand_free(guest.rand);
}

START_TEST(life_crash_at_every_change)
{
    for (guint32 seed = 1; seed <= (RUNS + 49) / 50; seed++) {
        long changes = changes_of_a_commit(seed);
        int lost = 0;

        ck_assert_int_gt(changes, 30);
        for (long at = 1; at <= changes; at++)
            crash_at(seed, at, &lost);
        /* Two flushes, the record, the metadata: only these may come too early. */
        ck_assert_int_le(lost, 4);
        ck_assert_int_ge(lost, 3);
    }
}
END_TEST

/* --- With a guest that goes on writing --- */

typedef struct Life {
    Machine *machine;
    pthread_t thread;
} Life;

static void *
run_commit(void *data)
{
    Life *life = data;

    (void)target_commit(life->machine->target, NULL);
    return NULL;
}

/* The guest works until the power fails or the commit is through. */
static void
live(Machine *machine, Guest *guest)
{
    Life life = {.machine = machine};
    TargetStatus status = {0};

    ck_assert_int_eq(pthread_create(&life.thread, NULL, run_commit, &life), 0);
    while (!fake_power_is_off(&machine->power) && status.phase != COMMIT_DONE) {
        for (int i = g_rand_int_range(guest->rand, 0, 6); i > 0; i--)
            guest_write(machine, guest);
        if (g_rand_int_range(guest->rand, 0, 4) == 0)
            guest_flush(machine, guest);
        target_status(machine->target, &status);
    }
    (void)pthread_join(life.thread, NULL);
}

static void
crash_with_guest(guint32 seed, int *ret_durable)
{
    Guest guest;
    Machine *machine = machine_new(&guest, seed);

    machine->power.left = 5 + (long)seed;
    ck_assert(target_failover(machine->target, GENERATION, INT64_MAX, NULL));
    live(machine, &guest);
    for (int n = 0; fake_power_is_off(&machine->power); n++) {
        long left = n < 3 ? g_rand_int_range(guest.rand, 1, 300) : 0;

        machine = machine_after_crash(machine, left, seed * 16 + (guint32)n);
        memcpy(guest.answered, guest.flushed, sizeof(guest.answered));
        if (!is_durable(machine))
            break;
        if (machine->journal->meta.commit[0])
            live(machine, &guest);
    }
    *ret_durable += is_durable(machine);
    if (is_durable(machine)) {
        check_disk(machine, &guest);
    } else {
        /* Then no flush can have been answered. */
        for (int i = 0; i < BLOCKS; i++)
            ck_assert_uint_eq(guest.flushed[i], 0);
    }
    machine_free(machine);
    g_rand_free(guest.rand);
}

START_TEST(life_crash_under_a_writing_guest)
{
    int durable = 0;

    for (guint32 seed = 1; seed <= RUNS; seed++)
        crash_with_guest(seed * (300 / RUNS), &durable);
    ck_assert_int_gt(durable, RUNS / 2); /* else too little was tried */
    g_print("%d of %d failovers were durable when the power failed\n", durable, RUNS);
}
END_TEST

CHECK_MAIN("crash", life_crash_at_every_change, life_crash_under_a_writing_guest)
