/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter-sec.c - floods, bounds, and frames that nobody should send */
#include "rewriter-rig.h"

#include "check-main.h"

#include <errno.h>
#include <glib.h>
#include <string.h>

#include "bytes.h"
#include "keyed-hash.h"
#include "packet.h"
#include "rewriter-table.h"

START_TEST(err_new_out_of_range)
{
    Rewriter *rewriter = NULL;
    RewriterConfig config = {0};

    ck_assert_int_eq(rewriter_new(&config, &rewriter), -EINVAL);
    config.connections_max = REWRITER_CONNECTIONS_LIMIT + 1;
    ck_assert_int_eq(rewriter_new(&config, &rewriter), -EINVAL);
    ck_assert_ptr_null(rewriter);
    config.connections_max = REWRITER_CONNECTIONS_LIMIT;
    ck_assert_int_eq(rewriter_new(&config, &rewriter), 0);
    rewriter_free(rewriter);
    rewriter_free(NULL);
}
END_TEST

START_TEST(sec_r3_full_table_is_never_wiped)
{
    enum { MAX = 1000 };
    RwRig rig = rw_new((SegmentStyle){0}, MAX);

    for (uint32_t n = 0; n < MAX; n++)
        rw_open_connection(&rig, n);
    for (uint32_t n = MAX; n < MAX + 10; n++)
        rw_open_connection(&rig, n);
    /* SYN and SYN-ACK of each were refused. */
    ck_assert_uint_eq(rw_stats(&rig)->untracked_full, 20);
    ck_assert_uint_eq(rw_stats(&rig)->connections_open, MAX);
    ck_assert_uint_eq(rw_stats(&rig)->evicted, 0);
    for (uint32_t n = 0; n < MAX + 10; n++)
        ck_assert_int_eq(rw_is_translated(&rig, n), n < MAX);

    /* One that closes makes room for one. */
    rw_out(&rig, rw_of_connection(500, svm_says(FIN | ACK, 11, 1, 0)));
    rw_in(&rig, rw_of_connection(500, peer_says(FIN | ACK, 1, 12, 0)));
    rw_open_connection(&rig, MAX + 20);
    rw_open_connection(&rig, MAX + 21);
    for (uint32_t n = 0; n < MAX + 22; n++)
        ck_assert_int_eq(rw_is_translated(&rig, n), (n < MAX && n != 500) || n == MAX + 20);
    ck_assert_uint_eq(rw_stats(&rig)->evicted, 1);

    /* After a commit all of it is free again, without a walk. */
    rewriter_commit(rig.rewriter);
    for (uint32_t n = 2 * MAX; n < 3 * MAX; n++)
        rw_open_connection(&rig, n);
    for (uint32_t n = 0; n < 3 * MAX; n++)
        ck_assert_int_eq(rw_is_translated(&rig, n), n >= 2 * MAX);
    ck_assert_uint_eq(rw_stats(&rig)->evicted, 1);
    rw_free(&rig);
}
END_TEST

/* What a commit has forgotten makes room before anything that is of use. */
START_TEST(sec_r3_forgotten_ones_go_first)
{
    enum { MAX = 20 };
    RwRig rig = rw_new((SegmentStyle){0}, MAX);

    for (uint32_t n = 0; n < MAX; n++)
        rw_open_connection(&rig, n);
    rewriter_commit(rig.rewriter);
    for (uint32_t n = MAX; n < 2 * MAX; n++)
        rw_in(&rig, rw_of_connection(n, peer_says(SYN, 0, 0, 0)));
    ck_assert_uint_eq(rw_stats(&rig)->connections, MAX);
    ck_assert_uint_eq(rw_stats(&rig)->evicted, 0);
    rewriter_commit(rig.rewriter);
    for (uint32_t n = 0; n < MAX; n++)
        rw_open_connection(&rig, n);
    ck_assert_uint_eq(rw_stats(&rig)->connections_open, MAX);
    ck_assert_uint_eq(rw_stats(&rig)->evicted, 0);
    rw_free(&rig);
}
END_TEST

#ifndef CONNECTIONS
#define CONNECTIONS 120000
#endif

/* Sanitized builds open a share of them. */
START_TEST(sec_more_than_100000_connections)
{
    enum { N = CONNECTIONS };
    RwRig rig = rw_new((SegmentStyle){0}, N);

    for (uint32_t n = 0; n < N; n++)
        rw_open_connection(&rig, n);
    for (uint32_t n = 0; n < N; n++)
        ck_assert(rw_is_translated(&rig, n));
    ck_assert_uint_eq(rw_stats(&rig)->connections_open, N);
    rw_free(&rig);
}
END_TEST

/* SYNs whose senders never come back take the place of each other, not of open connections, and
 * the oldest goes first. */
START_TEST(sec_half_open_flood)
{
    enum { MAX = 100, OPEN = 50, FLOOD = 5000 };
    RwRig rig = rw_new((SegmentStyle){0}, MAX);

    for (uint32_t n = 0; n < OPEN; n++)
        rw_open_connection(&rig, n);
    for (uint32_t n = 0; n < FLOOD; n++) {
        rw_in(&rig, rw_of_connection(10000 + n, peer_says(SYN, 0, 0, 0)));
        rw_out(&rig, rw_of_connection(10000 + n, svm_says(SYN | ACK, 0, 1, 0)));
        if (n % 20 == 0) /* a handshake in the middle of it, one that takes its time */
            rw_in(&rig, rw_of_connection(5000 + n, peer_says(SYN, 0, 0, 0)));
        if (n % 20 == 10) {
            uint32_t slow = 5000 + n - 10;

            rw_out(&rig, rw_of_connection(slow, svm_says(SYN | ACK, 0, 1, 0)));
            Segment ack = rw_in(&rig, rw_of_connection(slow, peer_says(ACK, 1, 1, 0)));

            ck_assert_uint_eq(ack.ack, SVM_ISN + 1);
            rw_out(&rig, rw_of_connection(slow, svm_says(RST, 1, 0, 0)));
        }
    }
    for (uint32_t n = 0; n < OPEN; n++)
        ck_assert(rw_is_translated(&rig, n));
    ck_assert_uint_eq(rw_stats(&rig)->untracked_full, 0);
    ck_assert_uint_eq(rw_stats(&rig)->connections, MAX);
    rw_free(&rig);
}
END_TEST

/* Acknowledgements of anything make connections LEARNED, not OPEN: only SVM does. */
START_TEST(sec_ack_flood_opens_nothing)
{
    enum { MAX = 100 };
    RwRig rig = rw_new((SegmentStyle){0}, MAX);

    for (uint32_t n = 0; n < 10 * MAX; n++) {
        rw_in(&rig, rw_of_connection(n, peer_says(SYN, 0, 0, 0)));
        rw_out(&rig, rw_of_connection(n, svm_says(SYN | ACK, 0, 1, 0)));
        rw_in(&rig, rw_of_connection(n, peer_says(ACK, 1, n, 0)));
    }
    ck_assert_uint_eq(rw_stats(&rig)->connections_open, 0);
    rw_open_connection(&rig, 20 * MAX);
    ck_assert(rw_is_translated(&rig, 20 * MAX));
    rw_free(&rig);
}
END_TEST

/* What collides under one key does not under another: the time of a lookup stays the same. Counted
 * in slots rather than time: many keys of one bucket under the key {0, 0}. */
START_TEST(sec_hash_flood)
{
    enum { WANTED = 2000, BITS = 13 };
    const uint64_t zero_key[2] = {0, 0}, other_key[2] = {0x123456789, 0xabcdef};
    RewriterTable *weak, *strong;
    static unsigned buckets[1 << BITS];
    unsigned n = 0, worst = 0;

    ck_assert_int_eq(rewriter_table_new(WANTED, zero_key, &weak), 0);
    ck_assert_int_eq(rewriter_table_new(WANTED, other_key, &strong), 0);
    memset(buckets, 0, sizeof(buckets));
    for (uint64_t i = 0; n < WANTED; i++) {
        FlowKey key = {.w = {i << 8, 0, 0, 0, (uint64_t)80 << 48}};

        if (rewriter_table_hash(weak, &key) & ((1 << BITS) - 1))
            continue;
        uint32_t hash = rewriter_table_hash(strong, &key);

        worst = MAX(worst, ++buckets[hash & ((1 << BITS) - 1)]);
        ck_assert_ptr_nonnull(rewriter_table_add(strong, &key, hash));
        ck_assert_ptr_nonnull(rewriter_table_find(strong, &key, hash));
        n++;
    }
    /* 2000 balls in 8192 bins: 10 in one would be a chance of 10^-9. */
    ck_assert_uint_lt(worst, 10);
    rewriter_table_free(weak);
    rewriter_table_free(strong);
}
END_TEST

/* The linker puts these in the place of the real ones (CMakeLists.txt). */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
static unsigned n_allocations;

void *
__wrap_malloc(size_t size)
{
    n_allocations++;
    return __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
    n_allocations++;
    return __real_calloc(n, size);
}

void *
__wrap_realloc(void *p, size_t size)
{
    n_allocations++;
    return __real_realloc(p, size);
}

START_TEST(sec_no_allocation_after_start)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    unsigned before = n_allocations;
    RwRig rig = rw_new((SegmentStyle){.n_nops = 2}, 100);
    unsigned started = n_allocations;

    ck_assert_uint_gt(started, before); /* so they are counted */
    for (uint32_t n = 0; n < 1000; n++) {
        const Segment handshake[] = {peer_says(SYN, 0, 0, 0), svm_says(SYN | ACK, 0, 1, 0),
                                     peer_says(ACK, 1, 1, 0), svm_says(ACK, 1, 1, 0)};

        for (unsigned i = 0; i < G_N_ELEMENTS(handshake); i++) {
            Segment s = rw_of_connection(n, handshake[i]);

            s.style = rig.style;
            s.egress = i % 2;
            size_t len = segment_build(&s, frame);
            unsigned passing = n_allocations;

            if (s.egress)
                rewriter_egress(rig.rewriter, frame, len, 1);
            else
                rewriter_ingress(rig.rewriter, frame, len, 1);
            if (n % 300 == 299)
                rewriter_commit(rig.rewriter);
            if (n == 990)
                rewriter_takeover(rig.rewriter);
            g_assert_cmpuint(n_allocations, ==, passing);
        }
    }
    ck_assert_uint_gt(rw_stats(&rig)->learned, 300);
    rw_free(&rig);
}
END_TEST

static void
assert_untouched(RwRig *rig, uint8_t *frame, size_t len)
{
    g_autofree uint8_t *before = g_memdup2(frame, len);

    rewriter_egress(rig->rewriter, frame, len, 1);
    ck_assert(!len || memcmp(before, frame, len) == 0);
    rewriter_ingress(rig->rewriter, frame, len, 1);
    ck_assert(!len || memcmp(before, frame, len) == 0);
}

START_TEST(sec_fragments_and_others_pass)
{
    static uint8_t frame[PACKET_MAX];
    static const uint8_t payload[3000] = {1};
    RwRig rig = rw_new((SegmentStyle){0}, 16);

    rw_open_passive(&rig);
    for (int i = 0; i < 2; i++) {
        Packet p = {.ipv6 = i,
                    .vnet_hdr_len = 10,
                    .protocol = 6,
                    .src = i ? 1 : 0x0a000001,
                    .dst = i ? 2 : 0x0a000002,
                    .tcp_flags = ACK,
                    .seq = SVM_ISN + 1,
                    .payload = payload,
                    .len = sizeof(payload),
                    .frag_off = 0,
                    .frag_len = 1400};

        assert_untouched(&rig, frame, packet_build(&p, frame));
        p.frag_off = 1400;
        assert_untouched(&rig, frame, packet_build(&p, frame));
        p.frag_len = 0;
        p.frag_off = 0;
        p.protocol = 17;
        assert_untouched(&rig, frame, packet_build(&p, frame));
    }
    ck_assert_uint_eq(rw_stats(&rig)->fragments, 8);
    rw_free(&rig);
}
END_TEST

/* Cut at every length: nothing is read or written behind the end (a copy of exactly that length, so
 * that a sanitizer sees it). */
START_TEST(sec_cut_short)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    SegmentStyle styles[] = {{.n_nops = 2}, {.ipv6 = true, .n_vlans = 2, .n_dest_options = 3}};

    for (size_t i = 0; i < G_N_ELEMENTS(styles); i++) {
        RwRig rig = rw_new(styles[i], 16);

        rw_open_passive(&rig);
        rw_assert_translated(&rig);
        Segment s = svm_says(ACK, 1, 1, 0);

        s.style = rig.style;
        s.egress = true;
        size_t whole = segment_build(&s, frame);

        for (size_t len = 0; len < whole; len++) {
            g_autofree uint8_t *cut = g_memdup2(frame, len);

            rewriter_egress(rig.rewriter, cut, len, 1);
            rewriter_ingress(rig.rewriter, cut, len, 1);
        }
        rw_free(&rig);
    }
}
END_TEST

/* Options that lie about their length are left alone, and what is behind them. */
START_TEST(sec_option_lengths)
{
    static const uint8_t cases[][12] = {
        {8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},   {8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
        {8, 11, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1},  {8, 255, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1},
        {5, 255, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1}, {5, 13, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1},
        {0, 1, 8, 10, 1, 1, 1, 1, 2, 2, 2, 2},  {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8},
        {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5, 2},   {254, 12, 8, 10, 1, 1, 1, 1, 2, 2, 2, 2},
        {5, 5, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1},   {5, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
    };
    static uint8_t frame[SEGMENT_FRAME_MAX];

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        RwRig rig = rw_new((SegmentStyle){.n_nops = 2, .csum_partial = true}, 16);

        rw_open_passive(&rig);
        Segment s = peer_says(ACK, 1, 1, 4);

        s.style = rig.style;
        size_t len = segment_build(&s, frame);
        uint8_t *options = frame + len - 4 - 12;

        memcpy(options, cases[i], 12);
        rewriter_ingress(rig.rewriter, frame, len, 1);
        ck_assert_mem_eq(options, cases[i], 12);
        ck_assert_uint_eq(be32_load(options - 12), SVM_ISN + 1);
        rw_free(&rig);
    }
}
END_TEST

CHECK_MAIN("rewriter-sec", err_new_out_of_range, sec_r3_full_table_is_never_wiped,
           sec_r3_forgotten_ones_go_first, sec_more_than_100000_connections, sec_half_open_flood,
           sec_ack_flood_opens_nothing, sec_hash_flood, sec_no_allocation_after_start,
           sec_fragments_and_others_pass, sec_cut_short, sec_option_lengths)
