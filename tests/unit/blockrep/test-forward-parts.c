/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-forward-parts.c - sets of chunks, and sectors written during a copy */
#include "chunk-set.h"
#include "sector-mask.h"

#include "check-main.h"

#include <string.h>

enum { CHUNKS = 200 };

START_TEST(unit_sets)
{
    g_autoptr(ChunkSet) set = chunk_set_new(CHUNKS * (uint64_t)CHUNK_BYTES - 1);
    g_autoptr(ChunkSet) other = chunk_set_new(CHUNKS * (uint64_t)CHUNK_BYTES - 1);

    ck_assert_uint_eq(chunk_set_next(set, 0), UINT64_MAX);
    chunk_set_add(set, CHUNK_BYTES - 1, 2);
    chunk_set_add(set, CHUNK_BYTES, 1);
    ck_assert_uint_eq(chunk_set_count(set), 2);
    chunk_set_add(set, 60 * CHUNK_BYTES, 10 * CHUNK_BYTES);
    ck_assert_uint_eq(chunk_set_next(set, 2 * CHUNK_BYTES), 60 * CHUNK_BYTES);
    chunk_set_remove(set, 61 * CHUNK_BYTES, 8 * CHUNK_BYTES);
    ck_assert_uint_eq(chunk_set_next(set, 61 * CHUNK_BYTES), 69 * CHUNK_BYTES);
    ck_assert_uint_eq(chunk_set_next(set, 70 * CHUNK_BYTES), UINT64_MAX);
    chunk_set_add(other, (CHUNKS - 1) * (uint64_t)CHUNK_BYTES, 1);
    chunk_set_add(other, 0, 1);
    chunk_set_merge(set, other);
    ck_assert_uint_eq(chunk_set_count(set), 5);
    ck_assert(chunk_set_has(set, CHUNKS * (uint64_t)CHUNK_BYTES - 2));
    chunk_set_clear(set);
    ck_assert_uint_eq(chunk_set_count(set), 0);
}
END_TEST

/* Random ranges against a byte for each chunk. */
START_TEST(unit_random_sets)
{
    g_autoptr(ChunkSet) set = chunk_set_new(CHUNKS * (uint64_t)CHUNK_BYTES);
    GRand *rand = g_rand_new_with_seed(1);
    bool model[CHUNKS] = {false};

    for (int i = 0; i < 20000; i++) {
        uint64_t first = (uint64_t)g_rand_int_range(rand, 0, CHUNKS);
        uint64_t n = 1 + (uint64_t)g_rand_int_range(rand, 0, (gint32)(CHUNKS - first));
        bool add = g_rand_boolean(rand);
        uint64_t count = 0;

        (add ? chunk_set_add : chunk_set_remove)(set, first * CHUNK_BYTES + 5, n * CHUNK_BYTES - 5);
        memset(model + first, add, n);
        for (uint64_t j = CHUNKS; j-- > 0;)
            count += model[j];
        ck_assert_uint_eq(chunk_set_count(set), count);
        for (first = 0; first < CHUNKS && !model[first];)
            first++;
        ck_assert_uint_eq(chunk_set_next(set, 0),
                          first == CHUNKS ? UINT64_MAX : first * CHUNK_BYTES);
    }
    g_rand_free(rand);
}
END_TEST

START_TEST(unit_masks)
{
    g_autoptr(SectorMask) mask = sector_mask_new(4);
    const uint64_t chunk = 7 * CHUNK_BYTES, end = chunk + CHUNK_BYTES;
    uint64_t len = 0;

    ck_assert_uint_eq(sector_mask_gap(mask, chunk, end, chunk, &len), chunk);
    ck_assert_uint_eq(len, CHUNK_BYTES);
    ck_assert(sector_mask_add(mask, chunk, 1024));
    ck_assert(sector_mask_add(mask, chunk + 4096, 512));
    ck_assert_uint_eq(sector_mask_gap(mask, chunk, end, chunk, &len), chunk + 1024);
    ck_assert_uint_eq(len, 3072);
    ck_assert_uint_eq(sector_mask_gap(mask, chunk, end, chunk + 4096, &len), chunk + 4608);
    ck_assert_uint_eq(len, CHUNK_BYTES - 4608);
    ck_assert_uint_eq(sector_mask_gap(mask, chunk, chunk + 4610, chunk + 4096, &len), chunk + 4608);
    ck_assert_uint_eq(len, 2);
    ck_assert(sector_mask_add(mask, chunk, CHUNK_BYTES));
    ck_assert_uint_eq(sector_mask_gap(mask, chunk, end, chunk, &len), UINT64_MAX);
    ck_assert_uint_eq(sector_mask_oldest(mask), chunk);
    sector_mask_drop(mask, chunk);
    ck_assert_uint_eq(sector_mask_count(mask), 0);
    ck_assert_uint_eq(sector_mask_oldest(mask), UINT64_MAX);
}
END_TEST

START_TEST(err_masks_are_few)
{
    g_autoptr(SectorMask) mask = sector_mask_new(4);

    ck_assert(!sector_mask_add(mask, 1, 512));
    ck_assert(!sector_mask_add(mask, 512, 511));
    for (int round = 0; round < 100; round++) {
        for (uint64_t i = 0; i < 4; i++)
            ck_assert(sector_mask_add(mask, i * 13 * CHUNK_BYTES, 512));
        ck_assert(!sector_mask_add(mask, 99 * CHUNK_BYTES, 512));
        ck_assert(sector_mask_add(mask, 13 * CHUNK_BYTES + 512, 512));
        ck_assert_uint_eq(sector_mask_oldest(mask), 0);
        sector_mask_drop(mask, 13 * CHUNK_BYTES);
        sector_mask_drop(mask, 12345 * (uint64_t)CHUNK_BYTES);
        ck_assert(sector_mask_add(mask, 99 * CHUNK_BYTES, 512));
        if (round % 2)
            sector_mask_clear(mask);
        for (uint64_t i = 0; i < 100; i++)
            sector_mask_drop(mask, i * CHUNK_BYTES);
        ck_assert_uint_eq(sector_mask_count(mask), 0);
    }
}
END_TEST

CHECK_MAIN("forward-parts", unit_sets, unit_random_sets, unit_masks, err_masks_are_few)
