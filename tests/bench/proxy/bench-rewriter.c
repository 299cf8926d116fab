/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench-rewriter.c - what one frame costs in the rewriter */
/*
 * For each number of connections: all are opened, then frames of connections in a random order go
 * through, in turns a full segment of the guest's (timestamps) and an acknowledgement of the peer's
 * (timestamps and two SACK blocks). Addresses and ports are stored into one frame of each kind as
 * they go; what that costs without the rewriter is measured as well and taken off. Times are CPU
 * time, the best of several rounds. IPv4, whole checksums (under NEEDS_CSUM it is less).
 *
 * With FILE the connections are also kept there, as colod does (on a tmpfs: /dev/shm/…); what
 * loading them again takes is then measured as well.
 *
 * Usage: bench-rewriter [FRAMES [FILE]]
 */
#include <glib.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "rewriter-load.h"
#include "segment.h"

enum { ROUNDS = 7, DEFAULT_FRAMES = 2000000, PORTS = 50000 };

typedef struct Template {
    uint8_t bytes[2048];
    size_t len;
    bool egress;
} Template;

static int64_t
cpu_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static Template
template_of(Segment s)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    Template t = {.egress = s.egress};

    s.style.n_nops = 2;
    t.len = segment_build(&s, frame);
    g_assert_cmpuint(t.len, <=, sizeof(t.bytes));
    memcpy(t.bytes, frame, t.len);
    return t;
}

/* The peer of connection @n: last two bytes of its address, and its port. */
static inline void
address(Template *t, uint32_t n)
{
    const size_t ip = 10 + 14;

    be16_store(t->bytes + ip + (t->egress ? 18 : 14), (uint16_t)(n / PORTS));
    be16_store(t->bytes + ip + 20 + (t->egress ? 2 : 0), (uint16_t)(1024 + n % PORTS));
}

static void
pass(Rewriter *rewriter, Template *t, uint32_t n)
{
    address(t, n);
    if (!rewriter)
        return;
    if (t->egress)
        rewriter_egress(rewriter, t->bytes, t->len, 0);
    else
        rewriter_ingress(rewriter, t->bytes, t->len, 0);
}

static void
open_all(Rewriter *rewriter, uint32_t n_connections)
{
    const Segment segments[] = {
        {.flags = SYN, .seq = 1000, .has_ts = true, .tsval = 1},
        {.egress = true, .flags = SYN | ACK, .seq = 5000, .ack = 1001, .has_ts = true, .tsval = 9},
        {.flags = ACK, .seq = 1001, .ack = 90001, .has_ts = true, .tsval = 1, .tsecr = 99},
        {.egress = true, .flags = ACK, .seq = 5001, .ack = 1001, .has_ts = true, .tsval = 9},
    };

    for (uint32_t n = 0; n < n_connections; n++) {
        for (size_t i = 0; i < G_N_ELEMENTS(segments); i++) {
            static Template templates[G_N_ELEMENTS(segments)];

            if (!templates[i].len)
                templates[i] = template_of(segments[i]);
            Template t = templates[i]; /* they are changed on the way */

            pass(rewriter, &t, n);
        }
    }
}

static double
round_ns(Rewriter *rewriter, const uint32_t *order, uint32_t n_connections, uint32_t n_frames)
{
    Template data = template_of((Segment){.egress = true,
                                          .flags = ACK,
                                          .seq = 5001,
                                          .ack = 1001,
                                          .has_ts = true,
                                          .tsval = 9,
                                          .len = 1448});
    Template ack = template_of((Segment){.flags = ACK,
                                         .seq = 1001,
                                         .ack = 90001,
                                         .has_ts = true,
                                         .tsval = 1,
                                         .tsecr = 99,
                                         .n_sacks = 2,
                                         .sacks = {92000, 93000, 94000, 95000}});
    int64_t start = cpu_ns();

    for (uint32_t i = 0, at = 0; i < n_frames; i += 2) {
        pass(rewriter, &data, order[at]);
        pass(rewriter, &ack, order[at]);
        if (++at == n_connections)
            at = 0;
    }
    return (double)(cpu_ns() - start) / n_frames;
}

static uint32_t *
random_order(uint32_t n)
{
    GRand *rand = g_rand_new_with_seed(1);
    uint32_t *order = g_new(uint32_t, n);

    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = (uint32_t)g_rand_int_range(rand, 0, (gint32)i + 1);
        uint32_t t = order[i];

        order[i] = order[j];
        order[j] = t;
    }
    g_rand_free(rand);
    return order;
}

static const RewriterVm vm = {.boot_id = "bench", .pid = 1, .start_ticks = 1};

static double
load_ms(const char *path, uint32_t n_connections)
{
    const RewriterConfig config = {.connections_max = REWRITER_CONNECTIONS_DEFAULT,
                                   .hash_key = {3, 4}};
    Rewriter *rewriter = NULL;
    RewriterLoad load;
    int64_t start;

    if (!path)
        return 0;
    g_assert_cmpint(rewriter_new(&config, &rewriter), ==, 0);
    start = cpu_ns();
    rewriter_load(path, &vm, rewriter, &load);
    g_assert_cmpuint(load.loaded, ==, n_connections);
    rewriter_free(rewriter);
    return (double)(cpu_ns() - start) / 1e6;
}

static void
measure(uint32_t n_connections, uint32_t n_frames, const char *path, bool last)
{
    RewriterConfig config = {.connections_max = REWRITER_CONNECTIONS_DEFAULT, .hash_key = {1, 2}};
    g_autofree uint32_t *order = random_order(n_connections);
    Rewriter *rewriter = NULL;
    double best = 1e9, empty = 1e9;

    if (path) {
        g_assert_cmpint(rewriter_store_new(path, config.connections_max, &vm, &config.store), ==,
                        0);
        g_assert_cmpint(rewriter_store_publish(config.store), ==, 0);
    }
    g_assert_cmpint(rewriter_new(&config, &rewriter), ==, 0);
    int64_t start = cpu_ns();

    open_all(rewriter, n_connections);
    double open_ns = (double)(cpu_ns() - start) / n_connections;

    for (int i = 0; i < ROUNDS; i++) {
        best = MIN(best, round_ns(rewriter, order, n_connections, n_frames));
        empty = MIN(empty, round_ns(NULL, order, n_connections, n_frames));
    }
    const RewriterStats *stats = rewriter_stats(rewriter);
    double ms = load_ms(path, n_connections);

    g_assert_cmpuint(stats->connections_open, ==, n_connections);
    g_assert_cmpuint(stats->translated[0] + stats->translated[1], >=, (uint64_t)n_frames * ROUNDS);
    start = cpu_ns();
    rewriter_commit(rewriter);
    printf("  {\"connections\": %u, \"ns_per_frame\": %.1f, \"ns_of_the_bench_itself\": %.1f, "
           "\"ns_per_opening\": %.0f, \"ns_commit\": %d, \"ms_load\": %.1f}%s\n",
           n_connections, best - empty, empty, open_ns, (int)(cpu_ns() - start), ms,
           last ? "" : ",");
    rewriter_free(rewriter);
    rewriter_store_free(config.store);
    if (path)
        (void)unlink(path);
}

int
main(int argc, char **argv)
{
    uint32_t n_frames = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : DEFAULT_FRAMES;
    const char *path = argc > 2 ? argv[2] : NULL;

    printf("[\n");
    measure(1, n_frames, path, false);
    measure(1000, n_frames, path, false);
    measure(100000, n_frames, path, true);
    printf("]\n");
    return EXIT_SUCCESS;
}
