/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-target.c - a disk's life by commands, and each way a command can fail */
#include "fake-journal.h"
#include "target-open.h"

#include "check-main.h"
#include "clock.h"

#include <errno.h>
#include <string.h>

enum { BLOCK = 4096, SIZE = 100 * BLOCK, LIMIT = 64 * BLOCK };

typedef struct Rig {
    FakeStore *disk, *hidden, *active;
    FakeJournal *journal;
    Target *target;
} Rig;

static int64_t
soon(void)
{
    return clock_now_ns() + 5 * NS_PER_S;
}

static void
rig_init(Rig *rig, bool durable)
{
    DiskMeta meta;

    disk_meta_init(&meta, SIZE);
    rig->disk = fake_store_new(SIZE, true, NULL);
    rig->hidden = fake_store_new(LIMIT, durable, NULL);
    rig->active = fake_store_new(LIMIT, durable, NULL);
    rig->journal = fake_journal_new(&meta, NULL);
    rig->target =
        target_assemble(fake_store_base(rig->disk), fake_store_base(rig->hidden),
                        fake_store_base(rig->active), &rig->journal->base, &meta, NULL, NULL);
}

/* Mirroring in generation 1, epoch 5; block 0 written by both sides, 1 by SVM, 2 by the primary. */
static void
rig_mirroring(Rig *rig, bool durable)
{
    static const uint64_t primary[] = {0, 2}, svm[] = {0, 1};
    uint8_t data[BLOCK];
    Fault fault;

    rig_init(rig, durable);
    ck_assert(target_sync(rig->target, 1, soon(), NULL));
    ck_assert(target_mirror(rig->target, 1, 5, soon(), NULL));
    memset(data, 'p', sizeof(data));
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(layers_write(target_layers(rig->target), SIDE_TARGET, data, BLOCK,
                                      primary[i] * BLOCK, &fault),
                         0);
    memset(data, 's', sizeof(data));
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(layers_write(target_layers(rig->target), SIDE_ACTIVE, data, BLOCK,
                                      svm[i] * BLOCK, &fault),
                         0);
}

static void
rig_clear(Rig *rig)
{
    target_stop(rig->target);
    target_free(rig->target);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rig, rig_clear)

static TargetStatus
status_of(Rig *rig)
{
    TargetStatus status;

    target_status(rig->target, &status);
    return status;
}

static void
expect_error(GError **error, TargetError code, const char *part)
{
    ck_assert_ptr_nonnull(*error);
    ck_assert_msg(g_error_matches(*error, TARGET_ERROR, (gint)code), "%s", (*error)->message);
    ck_assert_msg(strstr((*error)->message, part) != NULL, "%s", (*error)->message);
    g_clear_error(error);
}

static void
expect_survivor(Rig *rig)
{
    const uint8_t *disk = fake_store_bytes(rig->disk);

    ck_assert(disk[0] == 's' && disk[BLOCK] == 's' && disk[2 * BLOCK] == 0);
    ck_assert_int_eq(status_of(rig).mode, TARGET_LOCAL);
    ck_assert_int_eq(rig->journal->meta.state, DISK_UPTODATE);
    ck_assert_uint_eq(rig->journal->meta.generation, 2);
    ck_assert_str_eq(rig->journal->meta.commit, "");
    ck_assert_ptr_null(rig->journal->record);
}

START_TEST(life_from_sync_to_survivor_and_back)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;

    rig_mirroring(&rig, true);
    ck_assert_int_eq(rig.journal->meta.state, DISK_INCONSISTENT);
    ck_assert(target_barrier(rig.target, TRUE, soon(), NULL));
    target_start(rig.target);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(target_wait_commit(rig.target, TRUE, soon(), NULL));
    ck_assert(target_wait_commit(rig.target, FALSE, soon(), NULL));
    expect_survivor(&rig);
    ck_assert(target_failover(rig.target, 2, soon(), NULL)); /* asked again */
    ck_assert(target_wait_commit(rig.target, FALSE, soon(), NULL));
    /* Of its own generation nobody overwrites it, of a newer one the other host does. */
    ck_assert(!target_sync(rig.target, 2, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "only a newer generation");
    ck_assert(target_sync(rig.target, 3, soon(), NULL));
    ck_assert_int_eq(rig.journal->meta.state, DISK_SYNCING);
    ck_assert(target_mirror(rig.target, 3, 0, soon(), NULL));
    ck_assert_int_eq(status_of(&rig).phase, COMMIT_NONE);
}
END_TEST

START_TEST(life_checkpoints)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;
    uint8_t byte;
    Fault fault;

    rig_mirroring(&rig, true);
    ck_assert(target_checkpoint(rig.target, 6, soon(), NULL));
    ck_assert_uint_eq(status_of(&rig).used_bytes[SIDE_ACTIVE], 0);
    ck_assert_int_eq(layers_read(target_layers(rig.target), SIDE_ACTIVE, &byte, 1, 0, &fault), 0);
    ck_assert_int_eq(byte, 'p');
    ck_assert(target_checkpoint(rig.target, 6, soon(), NULL));
    ck_assert(!target_checkpoint(rig.target, 5, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "epoch");
    ck_assert_uint_eq(status_of(&rig).meta.epoch, 6);
}
END_TEST

START_TEST(err_commands_out_of_order)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;

    rig_init(&rig, true);
    ck_assert(!target_mirror(rig.target, 0, 0, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "not being synced (idle, generation 0");
    ck_assert(!target_checkpoint(rig.target, 1, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "not being mirrored");
    ck_assert(!target_barrier(rig.target, FALSE, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "takes no mirrored writes");
    ck_assert(!target_failover(rig.target, 1, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "nothing to fail over to");
    ck_assert(!target_wait_commit(rig.target, FALSE, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "no commit was begun");
    ck_assert(target_sync(rig.target, 4, soon(), NULL));
    ck_assert(!target_mirror(rig.target, 5, 0, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "not the one the disk was synced in");
    ck_assert(!target_sync(rig.target, 3, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "older");
}
END_TEST

START_TEST(err_metadata_cannot_be_saved)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;

    rig_init(&rig, true);
    rig.journal->fail_meta = 1;
    ck_assert(!target_sync(rig.target, 1, soon(), &error));
    expect_error(&error, TARGET_ERROR_FAILED, "metadata: ");
    ck_assert_int_eq(status_of(&rig).mode, TARGET_IDLE);
    ck_assert(target_sync(rig.target, 1, soon(), NULL));
    rig.journal->fail_meta = 1;
    ck_assert(!target_mirror(rig.target, 1, 0, soon(), &error));
    expect_error(&error, TARGET_ERROR_FAILED, "metadata: ");
    ck_assert_int_eq(status_of(&rig).mode, TARGET_SYNCING);
    ck_assert_uint_eq(status_of(&rig).counters.faults[FAULT_METADATA], 2);
}
END_TEST

/* A lost write: no barrier, no checkpoint, but a failover; a new sync forgets it. */
START_TEST(err_a_lost_write)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;
    Fault fault;
    uint64_t change;

    rig_mirroring(&rig, true);
    change = status_of(&rig).change;
    fake_store_fail_write(rig.disk, 0, EIO);
    ck_assert_int_eq(layers_zero(target_layers(rig.target), SIDE_TARGET, BLOCK, 0, true, &fault),
                     -EIO);
    target_wait_change(rig.target, change, soon());
    ck_assert_int_eq(status_of(&rig).stale, FAULT_SECONDARY_DISK);
    ck_assert(!target_barrier(rig.target, FALSE, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "secondary-disk");
    ck_assert(!target_checkpoint(rig.target, 6, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "secondary-disk");
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(target_commit(rig.target, NULL));
    expect_survivor(&rig);
    ck_assert_int_eq(status_of(&rig).stale, FAULT_NONE);
}
END_TEST

START_TEST(err_barrier_flush)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;

    rig_mirroring(&rig, true);
    fake_store_fail_flush(rig.disk, 0, EIO);
    ck_assert(!target_barrier(rig.target, TRUE, soon(), &error));
    expect_error(&error, TARGET_ERROR_REFUSED, "secondary-disk");
    ck_assert(target_sync(rig.target, 1, soon(), NULL));
    ck_assert(target_barrier(rig.target, TRUE, soon(), NULL));
}
END_TEST

/* Each step of a commit fails once; given again it gets through. */
START_TEST(err_commit_fails_and_is_given_again)
{
    for (int step = 0; step < 6; step++) {
        g_auto(Rig) rig = {0};
        g_autoptr(GError) error = NULL;

        rig_mirroring(&rig, true);
        if (step == 0)
            fake_store_fail_flush(rig.hidden, 0, ENOSPC);
        else if (step == 1)
            rig.journal->fail_record = 1;
        else if (step == 2)
            rig.journal->fail_meta = 1;
        else if (step == 3)
            fake_store_fail_read(rig.active, 0, EIO);
        else if (step == 4)
            fake_store_fail_write(rig.disk, 0, EIO);
        else
            fake_store_fail_flush(rig.disk, 0, EIO);
        target_start(rig.target);
        ck_assert(target_failover(rig.target, 2, soon(), NULL));
        ck_assert(!target_wait_commit(rig.target, FALSE, soon(), &error));
        expect_error(&error, TARGET_ERROR_FAILED, "failover-commit: ");
        ck_assert_int_eq(status_of(&rig).phase, COMMIT_FAILED);
        ck_assert_uint_eq(status_of(&rig).counters.faults[FAULT_FAILOVER_COMMIT], 1);
        ck_assert_int_eq(target_wait_commit(rig.target, TRUE, soon(), NULL), step > 2);
        ck_assert(target_failover(rig.target, 2, soon(), NULL));
        ck_assert(target_wait_commit(rig.target, FALSE, soon(), &error));
        expect_survivor(&rig);
        ck_assert_str_eq(status_of(&rig).failure, "");
    }
}
END_TEST

/* SVM's disk goes on while a commit has failed; only its flush cannot be answered. */
START_TEST(err_guest_of_a_failed_commit)
{
    g_auto(Rig) rig = {0};
    uint8_t byte = 'x';
    Fault fault = FAULT_NONE;

    rig_mirroring(&rig, true);
    rig.journal->fail_record = 1;
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(!target_commit(rig.target, NULL));
    ck_assert_int_eq(layers_write(target_layers(rig.target), SIDE_ACTIVE, &byte, 1, 5, &fault), 0);
    ck_assert_int_eq(target_flush(rig.target, SIDE_ACTIVE, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_FAILOVER_COMMIT);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(target_commit(rig.target, NULL));
    ck_assert_int_eq(target_flush(rig.target, SIDE_ACTIVE, &fault), 0);
    ck_assert_int_eq(fake_store_bytes(rig.disk)[5], 'x');
}
END_TEST

/* The commit's own flush may be the one that hears of what the guest has written: it is the guest
 * who must not be told that it is stable. */
START_TEST(err_a_flush_of_the_commit)
{
    g_auto(Rig) rig = {0};
    uint8_t byte = 'x';
    Fault fault = FAULT_NONE;

    rig_mirroring(&rig, true);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert_int_eq(
        layers_write(target_layers(rig.target), SIDE_ACTIVE, &byte, 1, 9 * BLOCK, &fault), 0);
    fake_store_fail_flush(rig.disk, 0, EIO);
    ck_assert(!target_commit(rig.target, NULL));
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(target_commit(rig.target, NULL));
    expect_survivor(&rig);
    ck_assert_int_eq(target_flush(rig.target, SIDE_ACTIVE, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_ACTIVE_DISK);
    ck_assert_int_eq(target_flush(rig.target, SIDE_ACTIVE, &fault), 0);
}
END_TEST

/* Overlays in memory: nothing is durable before the end, and nothing says it is. */
START_TEST(unit_commit_from_memory)
{
    g_auto(Rig) rig = {0};

    rig_mirroring(&rig, false);
    ck_assert(!status_of(&rig).durable_overlays);
    fake_store_shut(rig.disk);
    target_start(rig.target);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    while (fake_store_waiting(rig.disk) == 0)
        g_thread_yield();
    ck_assert(!target_wait_commit(rig.target, TRUE, clock_now_ns() + 5 * NS_PER_MS, NULL));
    ck_assert_int_eq(rig.journal->meta.state, DISK_INCONSISTENT);
    ck_assert_str_eq(rig.journal->meta.commit, "");
    fake_store_open(rig.disk);
    ck_assert(target_wait_commit(rig.target, TRUE, soon(), NULL));
    ck_assert_int_eq(status_of(&rig).phase, COMMIT_DONE);
    expect_survivor(&rig);
}
END_TEST

/* Blocks of hidden that active has too are not written twice. */
START_TEST(unit_commit_writes_a_block_once)
{
    g_auto(Rig) rig = {0};

    rig_mirroring(&rig, true);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    fake_store_fail_write(rig.disk, 2, EIO); /* the third: block 2, then 0 and 1 in one piece */
    ck_assert(target_commit(rig.target, NULL));
    expect_survivor(&rig);
    ck_assert_uint_eq(status_of(&rig).commit_all_blocks, 4);
    ck_assert_uint_eq(status_of(&rig).commit_done_blocks, 4);
}
END_TEST

START_TEST(err_deadlines)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;

    rig_mirroring(&rig, true);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(!target_wait_commit(rig.target, FALSE, clock_now_ns() + NS_PER_MS, &error));
    expect_error(&error, TARGET_ERROR_TIMEOUT, "under way (begun)");
    target_wait_change(rig.target, status_of(&rig).change, clock_now_ns() + NS_PER_MS);
    target_stop(rig.target);
    ck_assert(!target_checkpoint(rig.target, 9, soon(), &error));
    expect_error(&error, TARGET_ERROR_TIMEOUT, "stops");
}
END_TEST

/* A disk that was stopped in the middle of a commit goes on with it. */
START_TEST(life_commit_over_a_restart)
{
    Rig rig = {0};
    g_auto(Rig) next = {0};
    g_auto(CommitRecord) record = {0};
    g_autoptr(GError) error = NULL;
    gsize length;

    rig_mirroring(&rig, true);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    fake_store_fail_write(rig.disk, 1, EIO);
    ck_assert(!target_commit(rig.target, NULL));

    const uint8_t *data = g_bytes_get_data(rig.journal->record, &length);

    ck_assert(commit_record_parse("record", data, length, SIZE, &record, NULL));
    next.disk = fake_store_new(SIZE, true, NULL);
    next.hidden = fake_store_new(LIMIT, true, NULL);
    next.active = fake_store_new(LIMIT, true, NULL);
    memcpy(fake_store_bytes(next.disk), fake_store_bytes(rig.disk), SIZE);
    memcpy(fake_store_bytes(next.hidden), fake_store_bytes(rig.hidden), LIMIT);
    memcpy(fake_store_bytes(next.active), fake_store_bytes(rig.active), LIMIT);
    next.journal = fake_journal_after_crash(rig.journal, NULL);
    next.target = target_assemble(fake_store_base(next.disk), fake_store_base(next.hidden),
                                  fake_store_base(next.active), &next.journal->base,
                                  &next.journal->meta, &record, &error);
    ck_assert_ptr_nonnull(next.target);
    rig_clear(&rig);
    ck_assert_int_eq(status_of(&next).mode, TARGET_COMMITTING);
    target_start(next.target);
    ck_assert(target_wait_commit(next.target, FALSE, soon(), NULL));
    expect_survivor(&next);
}
END_TEST

START_TEST(sec_a_record_that_names_a_block_twice)
{
    uint64_t blocks[] = {3, 3};
    CommitRecord record = {.blocks = blocks, .n_active = 2};
    g_autoptr(GError) error = NULL;
    DiskMeta meta;

    disk_meta_init(&meta, SIZE);
    memset(meta.commit, 'a', DISK_META_SUM_HEX);
    ck_assert_ptr_null(target_assemble(fake_store_base(fake_store_new(SIZE, true, NULL)),
                                       fake_store_base(fake_store_new(LIMIT, true, NULL)),
                                       fake_store_base(fake_store_new(LIMIT, true, NULL)),
                                       &fake_journal_new(&meta, NULL)->base, &meta, &record,
                                       &error));
    ck_assert_ptr_nonnull(strstr(error->message, "active overlay twice"));
}
END_TEST

CHECK_MAIN("target", life_from_sync_to_survivor_and_back, life_checkpoints,
           err_commands_out_of_order, err_metadata_cannot_be_saved, err_a_lost_write,
           err_barrier_flush, err_commit_fails_and_is_given_again, err_guest_of_a_failed_commit,
           err_a_flush_of_the_commit, unit_commit_from_memory, unit_commit_writes_a_block_once,
           err_deadlines, life_commit_over_a_restart, sec_a_record_that_names_a_block_twice)
