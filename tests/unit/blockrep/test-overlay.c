/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-overlay.c - blocks kept aside: found, full, given back, emptied, restored */
#include "overlay.h"

#include "check-main.h"
#include "fake-store.h"

#include <errno.h>
#include <string.h>

enum { SLOTS = 64, BLOCK = OVERLAY_BLOCK_BYTES };

static Overlay *
new_overlay(FakeStore **ret_store)
{
    *ret_store = fake_store_new(SLOTS * BLOCK, true, NULL);
    return overlay_new(fake_store_base(*ret_store));
}

static void
put_block(Overlay *overlay, uint64_t block, uint8_t fill)
{
    uint8_t data[BLOCK];
    uint32_t slot;

    memset(data, fill, sizeof(data));
    ck_assert_int_eq(overlay_reserve(overlay, 1, &slot), 0);
    ck_assert_int_eq(overlay_write(overlay, &slot, data, sizeof(data), 0), 0);
    overlay_publish(overlay, block, 1, &slot);
}

static int
fill_of(Overlay *overlay, uint64_t block)
{
    uint8_t byte;
    uint32_t slot;

    if (!overlay_find(overlay, block, 1, &slot))
        return -1;
    ck_assert_int_eq(overlay_read(overlay, &slot, &byte, 1, BLOCK - 1), 0);
    return byte;
}

START_TEST(unit_blocks_are_found)
{
    FakeStore *store;
    g_autoptr(Overlay) overlay = new_overlay(&store);
    const uint64_t blocks[] = {0, 1, 7, 8, 63, 1 << 20, UINT64_C(1) << 40};
    uint32_t slots[3];

    ck_assert(overlay_is_empty(overlay));
    for (unsigned i = 0; i < G_N_ELEMENTS(blocks); i++)
        put_block(overlay, blocks[i], (uint8_t)(i + 1));
    for (unsigned i = 0; i < G_N_ELEMENTS(blocks); i++)
        ck_assert_int_eq(fill_of(overlay, blocks[i]), (int)i + 1);
    ck_assert_int_eq(fill_of(overlay, 2), -1);
    ck_assert(overlay_find(overlay, 6, 3, slots));
    ck_assert(slots[0] == OVERLAY_NONE && slots[1] == 2 && slots[2] == 3);
    ck_assert_uint_eq(overlay_used_bytes(overlay), G_N_ELEMENTS(blocks) * BLOCK);
    ck_assert(!overlay_is_empty(overlay));
}
END_TEST

/* Every block there can be, and all slots: the table's worst case. */
START_TEST(unit_full_and_emptied)
{
    FakeStore *store;
    g_autoptr(Overlay) overlay = new_overlay(&store);
    uint32_t slot;

    for (int epoch = 1; epoch <= 3; epoch++) {
        for (unsigned i = 0; i < SLOTS; i++) {
            ck_assert_int_eq(overlay_is_high(overlay), i >= SLOTS / 4 * 3);
            put_block(overlay, i * 8191U * (unsigned)epoch, (uint8_t)(i + (unsigned)epoch));
        }
        for (unsigned i = 0; i < SLOTS; i++)
            ck_assert_int_eq(fill_of(overlay, i * 8191U * (unsigned)epoch), (int)i + epoch);
        ck_assert_int_eq(overlay_reserve(overlay, 1, &slot), -ENOSPC);
        overlay_empty(overlay);
        ck_assert_uint_eq(overlay_used_bytes(overlay), 0);
        ck_assert_int_eq(fill_of(overlay, 8191), -1);
    }
    ck_assert_uint_eq(overlay_peak_bytes(overlay), SLOTS * BLOCK);
    ck_assert_uint_eq(overlay_limit_bytes(overlay), SLOTS * BLOCK);
}
END_TEST

START_TEST(err_all_slots_or_none)
{
    FakeStore *store;
    g_autoptr(Overlay) overlay = new_overlay(&store);
    uint32_t slots[SLOTS];

    ck_assert_int_eq(overlay_reserve(overlay, SLOTS - 1, slots), 0);
    ck_assert_int_eq(overlay_reserve(overlay, 2, slots), -ENOSPC);
    ck_assert_int_eq(overlay_reserve(overlay, 1, slots), 0);
}
END_TEST

/* Slots that could not be written are used again, in their order, and are no blocks meanwhile. */
START_TEST(err_slots_given_back)
{
    FakeStore *store;
    g_autoptr(Overlay) overlay = new_overlay(&store);
    uint32_t first[3], again[4];

    put_block(overlay, 5, 1);
    ck_assert_int_eq(overlay_reserve(overlay, 3, first), 0);
    overlay_unreserve(overlay, 3, first);
    ck_assert_uint_eq(overlay_used_bytes(overlay), BLOCK);
    ck_assert_uint_eq(overlay_slots(overlay), 4);
    ck_assert_uint_eq(overlay_block_of(overlay, 0), 5);
    for (uint32_t slot = 1; slot < 4; slot++)
        ck_assert(overlay_block_of(overlay, slot) == OVERLAY_NO_BLOCK);
    ck_assert_int_eq(overlay_reserve(overlay, 4, again), 0);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_uint_eq(again[i], i + 1);
}
END_TEST

/* A transfer goes through slots wherever they are. */
START_TEST(unit_transfers_over_slots)
{
    FakeStore *store;
    g_autoptr(Overlay) overlay = new_overlay(&store);
    const uint32_t slots[] = {9, 10, 3, 40, 41, 42};
    const size_t skip = 100, len = 6 * BLOCK - 300;
    g_autofree uint8_t *out = g_malloc(len), *in = g_malloc(len);

    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)(i * 13 + i / 4096);
    ck_assert_int_eq(overlay_write(overlay, slots, out, len, skip), 0);
    ck_assert_int_eq(overlay_read(overlay, slots, in, len, skip), 0);
    ck_assert_int_eq(memcmp(in, out, len), 0);
    ck_assert_int_eq(fake_store_bytes(store)[3 * BLOCK], out[2 * BLOCK - skip]);
    ck_assert_int_eq(overlay_zero(overlay, &slots[1], BLOCK + 10, 0), 0);
    ck_assert_int_eq(fake_store_bytes(store)[10 * BLOCK], 0);
    ck_assert_int_eq(fake_store_bytes(store)[3 * BLOCK + 9], 0);
    ck_assert_int_eq(fake_store_bytes(store)[3 * BLOCK + 10], out[2 * BLOCK - skip + 10]);
    fake_store_fail_read(store, 2, EIO);
    ck_assert_int_eq(overlay_read(overlay, slots, in, len, skip), -EIO);
}
END_TEST

START_TEST(life_restored_as_it_was)
{
    FakeStore *store;
    g_autoptr(Overlay) overlay = new_overlay(&store);
    const uint64_t blocks[] = {100, OVERLAY_NO_BLOCK, 3, 99};
    uint32_t slot;

    memset(fake_store_bytes(store) + 2 * BLOCK, 7, BLOCK);
    ck_assert_int_eq(overlay_restore(overlay, 4, blocks), 0);
    ck_assert_int_eq(fill_of(overlay, 3), 7);
    ck_assert_uint_eq(overlay_used_bytes(overlay), 3 * BLOCK);
    ck_assert_uint_eq(overlay_slots(overlay), 4);
    ck_assert_int_eq(overlay_reserve(overlay, 1, &slot), 0);
    ck_assert_uint_eq(slot, 1);
}
END_TEST

START_TEST(sec_restored_from_nonsense)
{
    static const uint64_t twice[] = {4, 5, 4};
    static const uint64_t strange[] = {4, UINT64_C(1) << 63};
    uint64_t many[SLOTS + 1];
    FakeStore *store;

    for (uint64_t i = 0; i <= SLOTS; i++)
        many[i] = i;
    for (int i = 0; i < 3; i++) {
        g_autoptr(Overlay) overlay = new_overlay(&store);

        ck_assert_int_eq(overlay_restore(overlay,
                                         i == 0   ? G_N_ELEMENTS(twice)
                                         : i == 1 ? G_N_ELEMENTS(strange)
                                                  : G_N_ELEMENTS(many),
                                         i == 0   ? twice
                                         : i == 1 ? strange
                                                  : many),
                         -EINVAL);
    }
}
END_TEST

CHECK_MAIN("overlay", unit_blocks_are_found, unit_full_and_emptied, err_all_slots_or_none,
           err_slots_given_back, unit_transfers_over_slots, life_restored_as_it_was,
           sec_restored_from_nonsense)
