/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-layers-random.c - a million random operations against the plain model
 *
 * COLO_TEST_SEED and COLO_TEST_OPS choose another run.
 */
#include "layers-model.h"

#include "check-main.h"

#ifndef DEFAULT_OPS
#define DEFAULT_OPS 1000000
#endif

enum {
    DISK_BYTES = 400 * 4096 + 1000, /* more than one look-up, and the last block is a part */
    SMALL_LIMIT = 150 * 4096,       /* fills up now and then */
    LARGE_LIMIT = 512 * 4096,       /* never does */
};

static guint64
from_environment(const char *name, guint64 otherwise)
{
    const char *text = g_getenv(name);

    return text ? g_ascii_strtoull(text, NULL, 10) : otherwise;
}

/* Mostly small and unaligned, some of whole blocks, few that span everything. */
static uint64_t
random_length(GRand *rand)
{
    switch (g_rand_int_range(rand, 0, 64)) {
    case 0:
        return (uint64_t)g_rand_int_range(rand, 0, 8) == 0 ? DISK_BYTES / 2 : 16 * 4096;
    case 1 ... 7:
        return 4096 * (uint64_t)g_rand_int_range(rand, 1, 6);
    case 8 ... 23:
        return 4096;
    default:
        return (uint64_t)g_rand_int_range(rand, 1, 2000);
    }
}

static WorldOp
random_op(GRand *rand)
{
    switch (g_rand_int_range(rand, 0, 1000)) {
    case 0 ... 9:
        return OP_CHECKPOINT;
    case 10 ... 19:
        return OP_FLUSH;
    case 20 ... 69:
        return OP_TRIM;
    case 70 ... 119:
        return OP_EXTENT;
    case 120 ... 219:
        return OP_ZERO;
    case 220 ... 599:
        return OP_WRITE;
    default:
        return OP_READ;
    }
}

static void
run(uint64_t limit_bytes, guint64 ops, guint32 seed)
{
    g_autoptr(World) world = world_new(DISK_BYTES, limit_bytes);
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    guint64 full = 0;

    g_print("seed %u, %" G_GUINT64_FORMAT " operations\n", seed, ops);
    for (guint64 i = 0; i < ops; i++) {
        WorldOp op = random_op(rand);
        uint64_t offset = (uint64_t)g_rand_int_range(rand, 0, DISK_BYTES);

        if (g_rand_boolean(rand))
            offset = offset / 4096 * 4096;
        full += world_op(world, op, g_rand_boolean(rand) ? SIDE_ACTIVE : SIDE_TARGET, offset,
                         random_length(rand), (uint8_t)g_rand_int(rand)) < 0;
        if (i % 4096 == 0)
            world_check(world);
    }
    world_check(world);
    ck_assert(limit_bytes == LARGE_LIMIT ? full == 0 : full > 0);
}

START_TEST(unit_random_operations)
{
    guint64 ops = from_environment("COLO_TEST_OPS", DEFAULT_OPS);
    guint32 seed = (guint32)from_environment("COLO_TEST_SEED", 20261126);

    run(LARGE_LIMIT, ops / 2, seed);
    run(SMALL_LIMIT, ops / 2, seed + 1);
}
END_TEST

CHECK_MAIN("layers-random", unit_random_operations)
