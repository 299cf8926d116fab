/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-flow-slots.c - the table behind flows and connections: found as long as in, and only then */
#include "check-main.h"
#include "flow-slots.h"

enum { ENTRIES = 64, STEPS = 5000, N_HASHES = 12 };

static const HashKey zero_key = {{0, 0}};

/* How often the entry is found. (No assertion per look: Check writes each of them down.) */
static unsigned
n_found(const FlowSlots *slots, uint32_t hash, uint32_t index)
{
    uint32_t at = hash, i;
    unsigned n = 0;

    while ((i = flow_slots_next(slots, hash, &at)) != FLOW_NONE)
        n += i == index;
    return n;
}

/* Few hashes, around the end of the table: long runs that wrap, with holes shifted back in them.
 * Some differ only above the table's size, so that they share a home. */
static uint32_t
hash_of(uint32_t n)
{
    return ((n % 3) << 20) + (n / 3 + 2 * ENTRIES - 2) % (2 * ENTRIES);
}

START_TEST(unit_entries_are_found_until_removed)
{
    FlowSlots slots;
    uint32_t hashes[ENTRIES] = {0}, random = 42;
    bool in[ENTRIES] = {false};

    ck_assert_int_eq(flow_slots_init(&slots, ENTRIES, &zero_key), 0);
    ck_assert_uint_eq(slots.mask + 1, 2 * ENTRIES);
    for (int step = 0; step < STEPS; step++) {
        random = random * 1664525 + 1013904223;

        uint32_t index = (random >> 16) % ENTRIES;

        if (in[index]) {
            flow_slots_remove(&slots, hashes[index], index);
        } else {
            hashes[index] = hash_of((random >> 8) % N_HASHES);
            flow_slots_insert(&slots, hashes[index], index);
        }
        in[index] = !in[index];
        unsigned wrong = 0;

        for (uint32_t i = 0; i < ENTRIES; i++)
            wrong += n_found(&slots, hashes[i], i) != in[i];
        ck_assert_msg(wrong == 0, "step %d, entry %u: %u wrong", step, index, wrong);
    }
    flow_slots_clear(&slots);
}
END_TEST

START_TEST(life_full_then_empty_and_cleared_twice)
{
    FlowSlots slots;

    ck_assert_int_eq(flow_slots_init(&slots, ENTRIES, &zero_key), 0);
    for (uint32_t i = 0; i < ENTRIES; i++)
        flow_slots_insert(&slots, 7, i);
    for (uint32_t i = 0; i < ENTRIES; i++) {
        ck_assert_uint_eq(n_found(&slots, 7, i), 1);
        flow_slots_remove(&slots, 7, i);
    }
    for (uint32_t i = 0; i <= slots.mask; i++)
        ck_assert_uint_eq(slots.words[i], 0);
    flow_slots_clear(&slots);
    flow_slots_clear(&slots);
}
END_TEST

START_TEST(unit_hash_depends_on_key_and_on_every_word)
{
    FlowSlots a = {.key = {{1, 2}}}, b = {.key = {{1, 3}}};
    FlowKey key = {.w = {1, 0, 0, 0, 5, 0}};
    uint32_t hash = flow_slots_hash(&a, &key);

    ck_assert_uint_ne(hash, flow_slots_hash(&b, &key));
    for (int i = 0; i < FRAME_KEY_WORDS; i++) {
        FlowKey other = key;

        other.w[i] ^= 1;
        ck_assert_uint_ne(hash, flow_slots_hash(&a, &other));
        ck_assert(!flow_key_equal(&key, &other));
    }
    ck_assert(flow_key_equal(&key, &key));
}
END_TEST

CHECK_MAIN("flow-slots", unit_entries_are_found_until_removed,
           life_full_then_empty_and_cleared_twice, unit_hash_depends_on_key_and_on_every_word)
