/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-layers.c - who sees what, what fails by which name, and many threads at once */
#include "layers-model.h"

#include "check-main.h"
#include "clock.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { BLOCK = 4096, BLOCKS = 300, SIZE = BLOCKS * BLOCK + 700, LIMIT = 64 * BLOCK };

static int
write_fill(World *world, Side side, uint64_t offset, uint64_t len, uint8_t fill, Fault *ret_fault)
{
    g_autofree uint8_t *data = g_malloc(len);

    memset(data, fill, len);
    *ret_fault = FAULT_NONE;
    return layers_write(world->layers, side, data, len, offset, ret_fault);
}

static int
byte_at(World *world, Side side, uint64_t offset)
{
    Fault fault;
    uint8_t byte;

    return layers_read(world->layers, side, &byte, 1, offset, &fault) < 0 ? -1 : byte;
}

static uint64_t
faults(World *world, Fault fault)
{
    LayersCounters counters;

    layers_counters(world->layers, &counters);
    return counters.faults[fault];
}

START_TEST(unit_two_views)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);

    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_TARGET, 5000, 10, 1), 0);
    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_ACTIVE, 4990, 15, 2), 0);
    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_TARGET, 4000, 3000, 3), 0);
    ck_assert_int_eq(world_op(world, OP_ZERO, SIDE_ACTIVE, 8000, 500, 0), 0);
    ck_assert_int_eq(world_op(world, OP_ZERO, SIDE_TARGET, SIZE - 300, 300, 1), 0);
    world_check(world);
    ck_assert_int_eq(world_op(world, OP_CHECKPOINT, 0, 0, 0, 0), 0);
    world_check(world);
}
END_TEST

/* The first write of an epoch to a block saves it, later ones do not. */
START_TEST(unit_saved_once_an_epoch)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    LayersCounters counters;
    Fault fault;

    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(write_fill(world, SIDE_TARGET, 3 * BLOCK, BLOCK, (uint8_t)i, &fault), 0);
    layers_counters(world->layers, &counters);
    ck_assert_uint_eq(counters.saved_bytes, BLOCK);
    ck_assert_int_eq(layers_checkpoint(world->layers, INT64_MAX), 0);
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, 3 * BLOCK + 1, 1, 9, &fault), 0);
    layers_counters(world->layers, &counters);
    ck_assert_uint_eq(counters.saved_bytes, 2 * BLOCK);
    ck_assert_uint_eq(counters.requests[SIDE_TARGET], 6);
}
END_TEST

/* Nobody reads below a block that SVM has written. */
START_TEST(unit_not_saved_where_active_has_it)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    LayersCounters counters;

    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_ACTIVE, 3 * BLOCK + 5, 10, 1), 0);
    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_TARGET, 2 * BLOCK, 4 * BLOCK, 2), 0);
    world_check(world);
    layers_counters(world->layers, &counters);
    ck_assert_uint_eq(counters.saved_bytes, 3 * BLOCK);
    ck_assert_uint_eq(overlay_used_bytes(layers_hidden(world->layers)), 3 * BLOCK);
    /* Of the next epoch active has nothing. */
    ck_assert_int_eq(world_op(world, OP_CHECKPOINT, 0, 0, 0, 0), 0);
    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_TARGET, 3 * BLOCK, BLOCK, 3), 0);
    world_check(world);
    layers_counters(world->layers, &counters);
    ck_assert_uint_eq(counters.saved_bytes, 4 * BLOCK);
}
END_TEST

START_TEST(unit_modes_refuse)
{
    static const struct {
        TargetMode mode;
        int target, active;
    } cases[] = {
        {TARGET_IDLE, -ESHUTDOWN, -ESHUTDOWN},
        {TARGET_SYNCING, 0, -ESHUTDOWN},
        {TARGET_MIRRORING, 0, 0},
        {TARGET_COMMITTING, -ESHUTDOWN, 0},
        {TARGET_LOCAL, -ESHUTDOWN, 0},
    };
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        ck_assert_int_eq(layers_switch(world->layers, cases[i].mode, true, INT64_MAX), 0);
        ck_assert_int_eq(write_fill(world, SIDE_TARGET, 0, 1, 1, &fault), cases[i].target);
        ck_assert_int_eq(fault, cases[i].target ? FAULT_REFUSED : FAULT_NONE);
        ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, 0, 1, 1, &fault), cases[i].active);
        ck_assert_int_eq(layers_trim(world->layers, SIDE_TARGET, 1, 0, &fault), cases[i].target);
        ck_assert_int_eq(layers_trim(world->layers, SIDE_ACTIVE, 1, 0, &fault), cases[i].active);
        ck_assert_int_eq(layers_flush(world->layers, SIDE_TARGET, &fault), 0);
        ck_assert_int_ge(byte_at(world, SIDE_ACTIVE, 0), 0);
        ck_assert_int_ge(byte_at(world, SIDE_TARGET, 0), 0);
    }
    ck_assert_int_eq(layers_stale(world->layers), FAULT_NONE);
}
END_TEST

START_TEST(unit_outside_the_disk)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    uint8_t data[16] = {0};
    uint64_t len;
    bool hole;
    Fault fault;

    ck_assert_int_eq(layers_read(world->layers, SIDE_ACTIVE, data, 16, SIZE - 15, &fault), -EINVAL);
    ck_assert_int_eq(layers_write(world->layers, SIDE_TARGET, data, 16, UINT64_MAX - 3, &fault),
                     -EINVAL);
    ck_assert_int_eq(layers_zero(world->layers, SIDE_ACTIVE, UINT64_MAX, 16, true, &fault),
                     -EINVAL);
    ck_assert_int_eq(layers_trim(world->layers, SIDE_ACTIVE, 2, SIZE - 1, &fault), -EINVAL);
    ck_assert_int_eq(layers_extent(world->layers, SIDE_ACTIVE, 0, SIZE + 1, &len, &hole, &fault),
                     -EINVAL);
    ck_assert_int_eq(layers_stale(world->layers), FAULT_NONE);
}
END_TEST

/* Whatever fails before the disk is touched leaves it as it was, and ends mirroring. */
static void
expect_stale(World *world, Fault want)
{
    const int error = want == FAULT_HIDDEN_FULL ? -ENOSPC : -EIO; /* as the first one was */
    Fault fault;

    ck_assert_int_eq(layers_stale(world->layers), want);
    ck_assert_uint_eq(faults(world, want), 1);
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, 0, 1, 1, &fault), error);
    ck_assert_int_eq(fault, FAULT_STALE);
    ck_assert_int_eq(layers_flush(world->layers, SIDE_TARGET, &fault), error);
    ck_assert_int_eq(fault, FAULT_STALE);
    ck_assert_int_eq(layers_checkpoint(world->layers, INT64_MAX), error);
    /* SVM goes on. */
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, 0, 1, 1, &fault), 0);
    ck_assert_int_eq(layers_stale(world->layers), want);
}

START_TEST(err_hidden_copy_read)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    fake_store_fail_read(world->disk, 1, EIO);
    /* Two pieces of old blocks: the second cannot be read. */
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, BLOCK, 20 * BLOCK, 1, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_HIDDEN_COPY);
    world_check(world);
    expect_stale(world, FAULT_HIDDEN_COPY);
}
END_TEST

START_TEST(err_hidden_copy_write)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    fake_store_fail_write(world->hidden, 0, EIO);
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, BLOCK, BLOCK, 1, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_HIDDEN_COPY);
    world_check(world);
    expect_stale(world, FAULT_HIDDEN_COPY);
}
END_TEST

START_TEST(err_hidden_full_by_limit)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_TARGET, 0, LIMIT, 5), 0);
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, LIMIT, 1, 1, &fault), -ENOSPC);
    ck_assert_int_eq(fault, FAULT_HIDDEN_FULL);
    world_check(world);
    expect_stale(world, FAULT_HIDDEN_FULL);
}
END_TEST

START_TEST(err_hidden_full_by_file_system)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    fake_store_fail_write(world->hidden, 0, ENOSPC);
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, 7, 1, 1, &fault), -ENOSPC);
    ck_assert_int_eq(fault, FAULT_HIDDEN_FULL);
    world_check(world);
    expect_stale(world, FAULT_HIDDEN_FULL);
}
END_TEST

START_TEST(err_secondary_disk)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;
    uint8_t byte;

    fake_store_fail_read(world->disk, 0, EIO);
    ck_assert_int_eq(layers_read(world->layers, SIDE_TARGET, &byte, 1, 0, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_SECONDARY_DISK);
    ck_assert_int_eq(layers_stale(world->layers), FAULT_NONE); /* nothing is lost by a read */
    fake_store_fail_write(world->disk, 0, EIO);
    ck_assert_int_eq(write_fill(world, SIDE_TARGET, BLOCK, BLOCK, 1, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_SECONDARY_DISK);
    /* The block may be anything now, but SVM sees the old one. */
    memset(fake_store_bytes(world->disk) + BLOCK, 0xee, BLOCK);
    memset(world->want_disk + BLOCK, 0xee, BLOCK);
    world_check(world);
    ck_assert_int_eq(layers_stale(world->layers), FAULT_SECONDARY_DISK);
}
END_TEST

START_TEST(err_secondary_disk_flush)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    fake_store_fail_flush(world->disk, 0, EIO);
    ck_assert_int_eq(layers_flush(world->layers, SIDE_TARGET, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_SECONDARY_DISK);
    expect_stale(world, FAULT_SECONDARY_DISK);
}
END_TEST

START_TEST(err_active_disk)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;
    uint8_t byte;

    fake_store_fail_write(world->active, 0, EIO);
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, 0, BLOCK, 1, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_ACTIVE_DISK);
    world_check(world); /* nothing of it was published */
    fake_store_fail_read(world->disk, 0, EIO);
    ck_assert_int_eq(layers_read(world->layers, SIDE_ACTIVE, &byte, 1, 0, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_ACTIVE_DISK);
    fake_store_fail_read(world->disk, 0, EIO); /* filling a part up */
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, 10, 10, 1, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_ACTIVE_DISK);
    ck_assert_int_eq(layers_stale(world->layers), FAULT_NONE);
    ck_assert_uint_eq(faults(world, FAULT_ACTIVE_DISK), 3);
    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_TARGET, 0, 100, 5), 0);
    world_check(world);
}
END_TEST

START_TEST(err_active_full)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_ACTIVE, 0, LIMIT, 5), 0);
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, LIMIT, BLOCK, 1, &fault), -ENOSPC);
    ck_assert_int_eq(fault, FAULT_ACTIVE_FULL);
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, LIMIT + 1, 1, 1, &fault), -ENOSPC);
    ck_assert_int_eq(fault, FAULT_ACTIVE_FULL);
    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_ACTIVE, 100, BLOCK, 6), 0); /* has slots */
    world_check(world);
    ck_assert_int_eq(layers_checkpoint(world->layers, INT64_MAX), 0);
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, LIMIT, BLOCK, 1, &fault), 0);
}
END_TEST

START_TEST(err_active_full_by_file_system)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    fake_store_fail_write(world->active, 0, ENOSPC);
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, 5, 5, 1, &fault), -ENOSPC);
    ck_assert_int_eq(fault, FAULT_ACTIVE_FULL);
    world_check(world);
    /* Its slot was given back. */
    ck_assert_uint_eq(overlay_used_bytes(layers_active(world->layers)), 0);
}
END_TEST

static void
count_notice(void *user_data)
{
    (*(int *)user_data)++;
}

START_TEST(unit_high_water_is_told_once_an_epoch)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    int notices = 0;
    Fault fault;

    layers_set_notify(world->layers, count_notice, &notices);
    for (int epoch = 1; epoch <= 2; epoch++) {
        ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_ACTIVE, 0, LIMIT / 4 * 3 - BLOCK, 5), 0);
        ck_assert_int_eq(notices, epoch - 1);
        ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, LIMIT, 1, 1, &fault), 0);
        ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, LIMIT + BLOCK, 1, 1, &fault), 0);
        ck_assert_int_eq(notices, epoch);
        ck_assert_int_eq(layers_checkpoint(world->layers, INT64_MAX), 0);
    }
}
END_TEST

/* A mirrored trim yields to writes: it takes at most half of hidden. */
START_TEST(unit_trims_leave_room)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    LayersCounters counters;
    Fault fault;
    int before = byte_at(world, SIDE_TARGET, 40 * BLOCK);

    ck_assert_int_eq(world_op(world, OP_TRIM, SIDE_TARGET, 0, LIMIT / 2 - BLOCK, 0), 0);
    ck_assert_int_eq(byte_at(world, SIDE_TARGET, BLOCK * 3), 0);
    ck_assert_int_eq(layers_trim(world->layers, SIDE_TARGET, BLOCK, 40 * BLOCK, &fault), 0);
    ck_assert_int_eq(byte_at(world, SIDE_TARGET, 40 * BLOCK), before);
    layers_counters(world->layers, &counters);
    ck_assert_uint_eq(counters.skipped_trims, 1);
    world_check(world);
}
END_TEST

START_TEST(unit_flush_of_svm_waits_for_nothing)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Fault fault;

    fake_store_fail_flush(world->disk, 0, EIO);
    fake_store_fail_flush(world->active, 0, EIO);
    ck_assert_int_eq(layers_flush(world->layers, SIDE_ACTIVE, &fault), 0);
    ck_assert_int_eq(layers_switch(world->layers, TARGET_COMMITTING, false, INT64_MAX), 0);
    ck_assert_int_eq(layers_flush(world->layers, SIDE_ACTIVE, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_ACTIVE_DISK);
}
END_TEST

/* --- Threads --- */

typedef struct Job {
    World *world;
    pthread_t thread;
    uint64_t offset;
    int result;
} Job;

static void *
write_one_byte(void *data)
{
    Job *job = data;
    Fault fault;

    job->result = write_fill(job->world, SIDE_TARGET, job->offset, 1, 1, &fault);
    return NULL;
}

/* A request that hangs in the disk: a checkpoint gives up in time and has changed nothing. */
START_TEST(err_checkpoint_behind_a_hanging_disk)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Job job = {.world = world};
    Fault fault;

    ck_assert_int_eq(world_op(world, OP_WRITE, SIDE_ACTIVE, 20 * BLOCK, 10, 4), 0);
    fake_store_shut(world->disk);
    ck_assert_int_eq(pthread_create(&job.thread, NULL, write_one_byte, &job), 0);
    while (fake_store_waiting(world->disk) == 0)
        g_thread_yield();
    ck_assert_int_eq(layers_checkpoint(world->layers, clock_now_ns() + 10 * NS_PER_MS), -ETIMEDOUT);
    ck_assert_int_eq(layers_drain(world->layers, clock_now_ns() + 10 * NS_PER_MS), -ETIMEDOUT);
    ck_assert_uint_eq(overlay_used_bytes(layers_active(world->layers)), BLOCK);
    ck_assert_int_eq(write_fill(world, SIDE_ACTIVE, 20 * BLOCK, 4, 4, &fault), 0);
    fake_store_open(world->disk);
    (void)pthread_join(job.thread, NULL);
    ck_assert_int_eq(job.result, 0);
    ck_assert_int_eq(layers_checkpoint(world->layers, clock_now_ns() + NS_PER_S), 0);
}
END_TEST

enum { THREADS = 4, ROUNDS = 3000, SHARED_BLOCKS = 24 };

/* Blocks are written as a whole, with one byte all through: a reader that sees two has seen a write
 * half done, or a block between being saved and written. */
static void *
hammer(void *data)
{
    Job *job = data;
    unsigned seed = (unsigned)job->offset;
    uint8_t block[BLOCK];
    Fault fault;

    for (int i = 0; i < ROUNDS && job->result == 0; i++) {
        uint64_t offset = (uint64_t)(rand_r(&seed) % SHARED_BLOCKS) * BLOCK;
        Side side = rand_r(&seed) % 2 ? SIDE_ACTIVE : SIDE_TARGET;

        if (rand_r(&seed) % 50 == 0) {
            job->result = layers_checkpoint(job->world->layers, INT64_MAX);
        } else if (rand_r(&seed) % 2) {
            memset(block, rand_r(&seed) % 256, sizeof(block));
            job->result = layers_write(job->world->layers, side, block, BLOCK, offset, &fault);
        } else {
            job->result = layers_read(job->world->layers, side, block, BLOCK, offset, &fault);
            if (memcmp(block, block + 1, BLOCK - 1) != 0)
                job->result = -EBADMSG;
        }
    }
    return NULL;
}

START_TEST(life_many_threads)
{
    g_autoptr(World) world = world_new(SIZE, LIMIT);
    Job jobs[THREADS];
    Fault fault;

    ck_assert_int_eq(write_fill(world, SIDE_TARGET, 0, SHARED_BLOCKS * BLOCK, 0, &fault), 0);
    ck_assert_int_eq(layers_checkpoint(world->layers, INT64_MAX), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        jobs[i] = (Job){.world = world, .offset = i + 1};
        ck_assert_int_eq(pthread_create(&jobs[i].thread, NULL, hammer, &jobs[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        (void)pthread_join(jobs[i].thread, NULL);
        ck_assert_int_eq(jobs[i].result, 0);
    }
    ck_assert_int_eq(layers_checkpoint(world->layers, INT64_MAX), 0);
    for (uint64_t offset = 0; offset < SHARED_BLOCKS * BLOCK; offset += BLOCK)
        ck_assert_int_eq(byte_at(world, SIDE_ACTIVE, offset), byte_at(world, SIDE_TARGET, offset));
}
END_TEST

CHECK_MAIN("layers", unit_two_views, unit_saved_once_an_epoch, unit_not_saved_where_active_has_it,
           unit_modes_refuse, unit_outside_the_disk, err_hidden_copy_read, err_hidden_copy_write,
           err_hidden_full_by_limit, err_hidden_full_by_file_system, err_secondary_disk,
           err_secondary_disk_flush, err_active_disk, err_active_full,
           err_active_full_by_file_system, unit_high_water_is_told_once_an_epoch,
           unit_trims_leave_room, unit_flush_of_svm_waits_for_nothing,
           err_checkpoint_behind_a_hanging_disk, life_many_threads)
