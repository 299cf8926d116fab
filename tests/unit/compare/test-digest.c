/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-digest.c - digests in place of the secondary's payload: equal streams leave, all else is
 * decided by the bytes */
#include <glib.h>
#include <string.h>

#include "bytes.h"
#include "check-main.h"
#include "digest.h"
#include "rig.h"

enum {
    ACK = 16,
    FIN = 1,
    SEQ = 1001,
    UNIT = 1448,
    STREAM = 256 * 1024,
    VNET = 10,
    MAX_SENT = 1024,
};

/* The secondary's host: what it sent, by number. */
typedef struct World {
    Rig *rig;
    DigestKey key;
    uint8_t *stream; /* of both, but for what a test changes */
    GPtrArray *sent; /* GBytes */
    GArray *wanted;  /* uint64_t, not answered yet */
    unsigned n_wanted;
} World;

/* The engine's opaque is the rig. */
static World *the_world;

static void
on_want(void *opaque, uint64_t cookie)
{
    ck_assert_ptr_eq(opaque, the_world->rig);
    g_array_append_val(the_world->wanted, cookie);
    the_world->n_wanted++;
}

static World *
world_new(const char *name, int64_t part_ns)
{
    World *world = g_new0(World, 1);
    CompareConfig config;

    compare_config_init(&config);
    config.memory_max_bytes = 8 * 1024 * 1024;
    config.flows_max = 4096;
    config.part_ns = part_ns;
    world->rig = rig_new(name, &config);
    world->rig->conn.vnet_hdr_len = VNET;
    for (unsigned i = 0; i < DIGEST_SECRET_BYTES; i++)
        world->key.secret[i] = (uint8_t)(i * 37 + 11);
    world->stream = g_malloc(STREAM);
    for (unsigned i = 0; i < STREAM; i++)
        world->stream[i] = (uint8_t)g_random_int();
    world->sent = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    world->wanted = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    the_world = world;
    compare_set_digests(world->rig->compare, &world->key, on_want);
    rig_handshake(world->rig, SEQ - 1, 500);
    return world;
}

static void
world_free(World *world)
{
    rig_free(world->rig);
    g_free(world->stream);
    g_ptr_array_unref(world->sent);
    g_array_unref(world->wanted);
    g_free(world);
}

static size_t
build(World *world, uint8_t flags, uint32_t from, uint32_t to, uint8_t *buf)
{
    Packet p = world->rig->conn;
    const uint16_t unit = UNIT;

    p.tcp_flags = flags;
    p.seq = SEQ + from;
    p.ack = 500;
    p.payload = world->stream + from;
    p.len = to - from;

    size_t len = packet_build(&p, buf);

    if (p.len > UNIT) {
        buf[1] = 1; /* GSO, TCP over IPv4 */
        memcpy(buf + 4, &unit, sizeof(unit));
    }
    return len;
}

static uint64_t
primary_says(World *world, uint8_t flags, uint32_t from, uint32_t to)
{
    g_autofree uint8_t *buf = g_malloc(PACKET_MAX);

    return rig_send_raw(world->rig, P, buf, build(world, flags, from, to, buf), VNET);
}

static int
submit(World *world, const uint8_t *bytes, size_t len, const DigestInfo *info, uint64_t cookie)
{
    /* Of the exact size, for AddressSanitizer. */
    g_autofree uint8_t *copy = g_memdup2(bytes, len);
    CompareFrame frame = {.bytes = copy,
                          .len = (uint32_t)len,
                          .vnet_hdr_len = VNET,
                          .epoch = world->rig->epoch,
                          .cookie = cookie,
                          .digest_len = info ? info->payload_len : 0,
                          .digest_unit = info ? info->unit : 0};

    return compare_submit(world->rig->compare, S, &frame, world->rig->now_ns);
}

/* True: it went as digests. */
static bool
secondary_says(World *world, uint8_t flags, uint32_t from, uint32_t to)
{
    g_autofree uint8_t *buf = g_malloc(PACKET_MAX);
    g_autofree uint8_t *out = g_malloc(PACKET_MAX);
    size_t len = build(world, flags, from, to, buf);
    uint64_t cookie = world->sent->len;
    DigestInfo info;
    bool digests = digest_encode(&world->key, buf, len, out, &info);

    g_ptr_array_add(world->sent, g_bytes_new(buf, len));
    if (digests)
        ck_assert_uint_lt(info.frame_len, len / 16);
    ck_assert_int_eq(digests ? submit(world, out, info.frame_len, &info, cookie)
                             : submit(world, buf, len, NULL, 0),
                     0);
    return digests;
}

/* The secondary's host sends the oldest that is wanted. */
static bool
answer(World *world)
{
    if (world->wanted->len == 0)
        return false;

    uint64_t cookie = g_array_index(world->wanted, uint64_t, 0);
    gsize len;
    const uint8_t *bytes = g_bytes_get_data(world->sent->pdata[cookie], &len);

    g_array_remove_index(world->wanted, 0);
    ck_assert_int_eq(submit(world, bytes, len, NULL, 0), 0);
    return true;
}

/* All that left, put together, is the stream up to @end. */
static void
expect_stream(World *world, uint32_t end)
{
    g_autofree uint8_t *got = g_malloc0(STREAM);

    for (guint i = 0; i < world->rig->released->len; i++) {
        const RigRelease *r = &g_array_index(world->rig->released, RigRelease, i);
        gsize len;
        const uint8_t *bytes = g_bytes_get_data(r->bytes, &len);
        Frame f;

        frame_parse(bytes, len, VNET, &f);
        if (f.payload_len)
            memcpy(got + (f.seq - SEQ), bytes + f.payload_off, f.payload_len);
    }
    ck_assert_mem_eq(got, world->stream, end);
}

START_TEST(unit_same_cuts_leave_without_a_question)
{
    World *world = world_new(__func__, 0);
    uint64_t first = primary_says(world, ACK, 0, 40 * UNIT);

    ck_assert(!rig_was_released(world->rig, first));
    ck_assert(secondary_says(world, ACK, 0, 40 * UNIT));
    ck_assert(rig_was_released(world->rig, first));
    ck_assert(secondary_says(world, ACK, 40 * UNIT, 60 * UNIT + 7));
    ck_assert(rig_was_released(world->rig, primary_says(world, ACK, 40 * UNIT, 60 * UNIT + 7)));
    ck_assert_uint_eq(compare_stats(world->rig->compare)->digests, 2);
    ck_assert_uint_eq(world->n_wanted, 0);
    expect_stream(world, 60 * UNIT + 7);
    world_free(world);
}
END_TEST

START_TEST(unit_other_cuts_on_the_same_grid_need_no_question)
{
    World *world = world_new(__func__, 0);
    uint64_t a = primary_says(world, ACK, 0, 10 * UNIT);
    uint64_t b = primary_says(world, ACK, 10 * UNIT, 45 * UNIT);

    ck_assert(secondary_says(world, ACK, 0, 30 * UNIT));
    ck_assert(rig_was_released(world->rig, a));
    ck_assert(!rig_was_released(world->rig, b));
    ck_assert(secondary_says(world, ACK, 30 * UNIT, 45 * UNIT));
    ck_assert(rig_was_released(world->rig, b));
    ck_assert_uint_eq(world->n_wanted, 0);
    world_free(world);
}
END_TEST

/* The secondary sent a short segment first: its units lie across the primary's segments. */
START_TEST(unit_a_unit_in_two_segments_is_put_together)
{
    World *world = world_new(__func__, 0);

    ck_assert(!secondary_says(world, ACK, 0, 100));
    ck_assert(secondary_says(world, ACK, 100, 30 * UNIT + 100));

    uint64_t a = primary_says(world, ACK, 0, 10 * UNIT);
    uint64_t b = primary_says(world, ACK, 10 * UNIT, 20 * UNIT);

    ck_assert(rig_was_released(world->rig, a));
    ck_assert(!rig_was_released(world->rig, b));

    uint64_t c = primary_says(world, ACK, 20 * UNIT, 30 * UNIT + 100);

    ck_assert(rig_was_released(world->rig, b));
    ck_assert(rig_was_released(world->rig, c));
    ck_assert_uint_eq(world->n_wanted, 0);
    expect_stream(world, 30 * UNIT + 100);
    world_free(world);
}
END_TEST

START_TEST(unit_bytes_that_end_within_a_unit_are_asked_for_after_a_while)
{
    World *world = world_new(__func__, 10 * MS);

    ck_assert(!secondary_says(world, ACK, 0, 100));
    ck_assert(secondary_says(world, ACK, 100, 30 * UNIT + 100));

    uint64_t a = primary_says(world, ACK, 0, 3 * UNIT);

    ck_assert(!rig_was_released(world->rig, a));
    ck_assert_uint_eq(world->n_wanted, 0);
    rig_wait(world->rig, 10 * MS);
    ck_assert_uint_eq(world->n_wanted, 1);
    ck_assert(answer(world));
    ck_assert(rig_was_released(world->rig, a));
    ck_assert(rig_was_released(world->rig, primary_says(world, ACK, 3 * UNIT, 30 * UNIT + 100)));
    ck_assert_uint_eq(rig_n_divergences(world->rig), 0);
    expect_stream(world, 30 * UNIT + 100);
    world_free(world);
}
END_TEST

/* A burst of the primary's ends where the secondary's goes on: what is missing is about to come. */
START_TEST(unit_a_short_segment_within_a_unit_is_no_reason_to_ask)
{
    World *world = world_new(__func__, 10 * MS);

    ck_assert(secondary_says(world, ACK, 0, 30 * UNIT));

    uint64_t a = primary_says(world, ACK, 0, 3 * UNIT + 100);

    ck_assert(!rig_was_released(world->rig, a));
    rig_wait(world->rig, 9 * MS);
    ck_assert(rig_was_released(world->rig, primary_says(world, ACK, 3 * UNIT + 100, 30 * UNIT)));
    ck_assert(rig_was_released(world->rig, a));
    rig_wait(world->rig, 10 * MS);
    ck_assert_uint_eq(world->n_wanted, 0);
    expect_stream(world, 30 * UNIT);
    world_free(world);
}
END_TEST

/* What was asked for may turn out not to be needed. */
START_TEST(unit_digests_go_on_while_the_whole_is_under_way)
{
    World *world = world_new(__func__, 10 * MS);

    ck_assert(secondary_says(world, ACK, 0, 30 * UNIT));

    uint64_t a = primary_says(world, ACK, 0, 3 * UNIT + 100);

    rig_wait(world->rig, 10 * MS);
    ck_assert_uint_eq(world->n_wanted, 1);

    uint64_t b = primary_says(world, ACK, 3 * UNIT + 100, 30 * UNIT);

    ck_assert(rig_was_released(world->rig, a));
    ck_assert(rig_was_released(world->rig, b));
    ck_assert(answer(world));
    ck_assert_uint_eq(compare_stats(world->rig->compare)->held_frames[S], 0);
    ck_assert_uint_eq(rig_n_divergences(world->rig), 0);
    world_free(world);
}
END_TEST

/* Repeated meanwhile: whole, as all are for a while, and in front of what was asked for. */
START_TEST(unit_the_whole_comes_behind_a_repetition)
{
    World *world = world_new(__func__, 10 * MS);

    ck_assert(!secondary_says(world, ACK, 0, 100));
    ck_assert(secondary_says(world, ACK, 100, 30 * UNIT + 100));

    uint64_t a = primary_says(world, ACK, 0, 3 * UNIT);

    rig_wait(world->rig, 10 * MS);
    ck_assert_uint_eq(world->n_wanted, 1);

    g_autofree uint8_t *buf = g_malloc(PACKET_MAX);
    size_t len = build(world, ACK, 0, 4 * UNIT, buf);

    ck_assert_int_eq(submit(world, buf, len, NULL, 0), 0);
    ck_assert(rig_was_released(world->rig, a));
    ck_assert(answer(world));

    uint64_t b = primary_says(world, ACK, 3 * UNIT, 30 * UNIT + 100);

    ck_assert(rig_was_released(world->rig, b));
    ck_assert_uint_eq(compare_stats(world->rig->compare)->held_frames[S], 0);
    world_free(world);
}
END_TEST

START_TEST(err_another_byte_is_found_at_its_place)
{
    World *world = world_new(__func__, 0);
    uint64_t a = primary_says(world, ACK, 0, 40 * UNIT);
    const uint32_t at = 17 * UNIT + 5;

    world->stream[at] ^= 1;
    ck_assert(secondary_says(world, ACK, 0, 40 * UNIT));
    ck_assert_uint_eq(rig_n_divergences(world->rig), 0); /* a digest proves nothing of the kind */
    ck_assert_uint_eq(world->n_wanted, 1);
    ck_assert(answer(world));
    ck_assert_int_eq(rig_last_rule(world->rig), COMPARE_RULE_PAYLOAD);

    const RigDivergence *d = &g_array_index(world->rig->divergences, RigDivergence, 0);

    ck_assert_uint_eq(d->offset, at);
    ck_assert_uint_eq(d->secondary_bytes[0], world->stream[at]);
    ck_assert_uint_eq(d->primary_bytes[0] ^ 1, world->stream[at]);
    ck_assert(!rig_was_released(world->rig, a));
    world_free(world);
}
END_TEST

START_TEST(err_without_an_answer_it_is_a_timeout)
{
    World *world = world_new(__func__, 0);
    uint64_t a = primary_says(world, ACK, 0, 40 * UNIT);

    world->stream[5] ^= 1;
    ck_assert(secondary_says(world, ACK, 0, 40 * UNIT));
    rig_wait(world->rig, 200 * MS);
    ck_assert_uint_eq(rig_n_divergences(world->rig), 1);
    ck_assert(!rig_was_released(world->rig, a));
    rig_checkpoint(world->rig);
    ck_assert(rig_was_released(world->rig, a));
    world_free(world);
}
END_TEST

START_TEST(err_the_stream_ends_within_a_unit_on_one_side)
{
    World *world = world_new(__func__, 10 * MS);
    uint64_t a = primary_says(world, ACK | FIN, 0, 10 * UNIT + 7);

    ck_assert(secondary_says(world, ACK, 0, 20 * UNIT));
    ck_assert_uint_eq(world->n_wanted, 1);
    ck_assert(answer(world));
    ck_assert_int_eq(rig_last_rule(world->rig), COMPARE_RULE_FIN);
    ck_assert(!rig_was_released(world->rig, a));
    world_free(world);
}
END_TEST

START_TEST(unit_what_waits_for_its_epoch_is_compared_then)
{
    World *world = world_new(__func__, 0);

    world->rig->epoch = 1;
    ck_assert(secondary_says(world, ACK, 0, 40 * UNIT));

    uint64_t a = primary_says(world, ACK, 0, 40 * UNIT);

    ck_assert(!rig_was_released(world->rig, a));
    ck_assert_int_eq(compare_commit(world->rig->compare, 1, world->rig->now_ns), 0);
    ck_assert(rig_was_released(world->rig, a));
    ck_assert_uint_eq(world->n_wanted, 0);
    world_free(world);
}
END_TEST

static void
expect_lost(World *world, const uint8_t *bytes, size_t len, DigestInfo info)
{
    const CompareStats *stats = compare_stats(world->rig->compare);
    uint32_t held = stats->held_frames[S];

    ck_assert_int_eq(submit(world, bytes, len, &info, 0), 0);
    stats = compare_stats(world->rig->compare);
    ck_assert_uint_eq(stats->held_frames[S], held);
}

START_TEST(sec_digests_that_make_no_sense_are_lost)
{
    World *world = world_new(__func__, 0);
    g_autofree uint8_t *buf = g_malloc(PACKET_MAX);
    g_autofree uint8_t *out = g_malloc(PACKET_MAX);
    DigestInfo info, bad;
    size_t len = build(world, ACK, 0, 40 * UNIT, buf);

    ck_assert(digest_encode(&world->key, buf, len, out, &info));
    for (unsigned i = 0; i < 8; i++) {
        bad = info;
        switch (i) {
        case 0:
            bad.unit = DIGEST_UNIT_MIN - 1;
            break;
        case 1:
            bad.unit = UINT32_MAX;
            break;
        case 2:
            bad.payload_len = 0;
            break;
        case 3:
            bad.payload_len = UINT32_MAX;
            break;
        case 4:
            bad.payload_len += UNIT;
            break;
        case 5:
            bad.payload_len -= UNIT;
            break;
        case 6:
            bad.unit++;
            bad.payload_len = 41 * UNIT;
            break;
        case 7:
            out[VNET + 14 + 20 + 13] |= FIN;
            break;
        }
        expect_lost(world, out, info.frame_len, bad);
    }
    out[VNET + 14 + 20 + 13] = ACK;
    expect_lost(world, out, info.frame_len - 1, info);
    expect_lost(world, out, 20, info);
    expect_lost(world, out, 0, info);
    world_free(world);
}
END_TEST

START_TEST(sec_another_key_matches_nothing)
{
    World *world = world_new(__func__, 0);
    uint64_t a = primary_says(world, ACK, 0, 40 * UNIT);

    world->key.secret[100] ^= 1;
    ck_assert(secondary_says(world, ACK, 0, 40 * UNIT));
    ck_assert(!rig_was_released(world->rig, a));
    ck_assert_uint_eq(world->n_wanted, 1);
    ck_assert(answer(world));
    ck_assert(rig_was_released(world->rig, a));
    world_free(world);
}
END_TEST

START_TEST(unit_what_is_not_worth_it_or_takes_part_in_the_rules_goes_whole)
{
    World *world = world_new(__func__, 0);

    ck_assert(!secondary_says(world, ACK, 0, 2 * UNIT));
    ck_assert(!secondary_says(world, ACK, 2 * UNIT, 2 * UNIT));
    ck_assert(!secondary_says(world, ACK | FIN, 2 * UNIT, 30 * UNIT));
    world_free(world);
}
END_TEST

/* How a guest cuts its stream: mostly whole units, now and then a short segment. */
static uint32_t
next_cut(GRand *rand, uint32_t from, uint32_t end)
{
    uint32_t len = (uint32_t)g_rand_int_range(rand, 1, 44) * UNIT;

    if (g_rand_int_range(rand, 0, 8) == 0)
        len = (uint32_t)g_rand_int_range(rand, 1, 4 * UNIT);
    return MIN(from + len, end);
}

/* The guests' host and the network, until both have said all. */
static void
run_streams(World *world, GRand *rand)
{
    uint32_t at[2] = {0, 0};

    for (unsigned step = 0; step < 100000 && (at[P] < STREAM || at[S] < STREAM); step++) {
        CompareSide side = g_rand_boolean(rand) ? P : S;
        uint32_t to = next_cut(rand, at[side], STREAM);

        if (g_rand_int_range(rand, 0, 3) == 0)
            (void)answer(world);
        if (g_rand_int_range(rand, 0, 10) == 0)
            rig_wait(world->rig, MS);
        if (at[side] == STREAM || at[side] > at[!side] + 100000)
            continue;
        if (side == P)
            (void)primary_says(world, ACK, at[P], to);
        else
            (void)secondary_says(world, ACK, at[S], to);
        /* Now and then a repetition, cut in another way. */
        if (side == S && g_rand_int_range(rand, 0, 12) == 0)
            (void)secondary_says(world, ACK, at[S] / 2, MIN(at[S] / 2 + 30 * UNIT, to));
        at[side] = to;
    }
    for (unsigned i = 0; i < 100 && !rig_all_released_in_order(world->rig); i++) {
        rig_wait(world->rig, MS);
        while (answer(world))
            continue;
    }
}

/* Whatever the cuts, the order of arrival and the answers: equal streams leave whole, in order,
 * without a divergence. */
START_TEST(property_equal_streams_leave_however_they_are_cut)
{
    uint64_t wanted = 0;

    for (guint32 seed = 1; seed <= 60; seed++) {
        GRand *rand = g_rand_new_with_seed(seed);
        World *world = world_new(__func__, 10 * MS);

        run_streams(world, rand);
        ck_assert_msg(rig_n_divergences(world->rig) == 0, "seed %u: rule %d", seed,
                      rig_last_rule(world->rig));
        expect_stream(world, STREAM);
        ck_assert_uint_eq(compare_stats(world->rig->compare)->held_frames[P], 0);
        ck_assert_uint_gt(compare_stats(world->rig->compare)->digests, 0);
        wanted += world->n_wanted;
        world_free(world);
        g_rand_free(rand);
    }
    ck_assert_uint_gt(wanted, 0); /* all of it was tried */
}
END_TEST

CHECK_MAIN("compare-digest", unit_same_cuts_leave_without_a_question,
           unit_other_cuts_on_the_same_grid_need_no_question,
           unit_a_unit_in_two_segments_is_put_together,
           unit_bytes_that_end_within_a_unit_are_asked_for_after_a_while,
           unit_a_short_segment_within_a_unit_is_no_reason_to_ask,
           unit_digests_go_on_while_the_whole_is_under_way,
           unit_the_whole_comes_behind_a_repetition, unit_what_waits_for_its_epoch_is_compared_then,
           unit_what_is_not_worth_it_or_takes_part_in_the_rules_goes_whole,
           property_equal_streams_leave_however_they_are_cut,
           err_another_byte_is_found_at_its_place, err_without_an_answer_it_is_a_timeout,
           err_the_stream_ends_within_a_unit_on_one_side, sec_digests_that_make_no_sense_are_lost,
           sec_another_key_matches_nothing)
