/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-slab.c - bounded memory: the bound holds, chunks change hands, nothing overlaps */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "check-main.h"
#include "slab.h"

START_TEST(unit_bound_is_kept_and_given_back)
{
    Slab *slab;
    void *objects[10000];
    size_t n = 0;

    ck_assert_int_eq(slab_new(1024 * 1024, &slab), 0);
    while (n < 10000 && (objects[n] = slab_alloc(slab, 200)))
        n++;
    ck_assert_uint_eq(n, 1024 * 1024 / 256);
    ck_assert_uint_le(slab_used_bytes(slab), 1024 * 1024);
    for (size_t i = 0; i < n; i++)
        slab_release(slab, objects[i]);
    ck_assert_uint_eq(slab_used_bytes(slab), 0);
    slab_free_all(slab);
}
END_TEST

START_TEST(unit_chunks_serve_other_sizes_after_a_flood)
{
    Slab *slab;
    void *objects[10000];

    ck_assert_int_eq(slab_new(1024 * 1024, &slab), 0);
    for (int round = 0; round < 3; round++) {
        static const size_t sizes[] = {100, SLAB_MAX_OBJECT_BYTES, 1600};
        size_t n = 0;

        while (n < 10000 && (objects[n] = slab_alloc(slab, sizes[round]))) {
            memset(objects[n], 0x5a, sizes[round]);
            n++;
        }
        ck_assert_uint_ge(n * sizes[round], 1024 * 1024 / 2);
        for (size_t i = 0; i < n; i++)
            slab_release(slab, objects[i]);
    }
    slab_free_all(slab);
}
END_TEST

#ifndef STEPS /* sanitized builds do a share of them */
#define STEPS 20000
#endif

START_TEST(unit_objects_do_not_overlap)
{
    Slab *slab;
    struct {
        uint8_t *p;
        size_t size;
        uint8_t fill;
    } live[256] = {0};
    uint32_t seed = 1;

    ck_assert_int_eq(slab_new(8 * 1024 * 1024, &slab), 0);
    for (int i = 0; i < STEPS; i++) {
        seed = seed * 1103515245 + 12345;
        int k = (seed >> 16) % 256;

        if (live[k].p) {
            for (size_t b = 0; b < live[k].size; b += 61)
                ck_assert_uint_eq(live[k].p[b], live[k].fill);
            slab_release(slab, live[k].p);
        }
        live[k].size = (seed >> 8) % 3000 + 1;
        live[k].fill = (uint8_t)i;
        live[k].p = slab_alloc(slab, live[k].size);
        ck_assert_ptr_nonnull(live[k].p);
        ck_assert_uint_eq((uintptr_t)live[k].p % 64, 0);
        memset(live[k].p, live[k].fill, live[k].size);
    }
    slab_free_all(slab);
}
END_TEST

START_TEST(err_bound_too_small_or_object_too_large)
{
    Slab *slab;

    ck_assert_int_eq(slab_new(SLAB_MIN_BOUND_BYTES - 1, &slab), -EINVAL);
    ck_assert_int_eq(slab_new(SLAB_MIN_BOUND_BYTES, &slab), 0);
    ck_assert_ptr_null(slab_alloc(slab, SLAB_MAX_OBJECT_BYTES + 1));
    slab_free_all(slab);
}
END_TEST

CHECK_MAIN("slab", unit_bound_is_kept_and_given_back, unit_chunks_serve_other_sizes_after_a_flood,
           unit_objects_do_not_overlap, err_bound_too_small_or_object_too_large)
