/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* engine-bench.c - what one pair of frames costs in the engine alone, without sockets */
/*
 * Each load submits batches of 32 frames of the primary, then the same of the secondary, from rings
 * of frames built beforehand; addresses, ports and TCP numbers are stored into them as they go, so
 * that the frames' own memory is the same for any number of flows. Times are the
 * process's CPU time. For 1448 bytes the yardstick is measured on the same buffers in the same
 * order: one copy of the primary's payload, one memcmp() with the secondary's.
 *
 * Prints JSON with the limits that are asked for; exit status 1 if one is missed, 3 if frames were
 * lost, reordered or diverged.
 *
 * Usage: compare-engine-bench [PAIRS [PART-OF-A-LOAD'S-NAME]]
 */
#include <glib.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "compare.h"
#include "packet.h"

enum { BATCH = 32, SLOT = 2048, RING_FRAMES = 256, ROUNDS = 9, SMALL_PAYLOAD = 100 };
enum { EXIT_MISSED = 1, EXIT_WRONG = 3 };

/* What is asked for. */
#define MIN_SMALL_PAIRS_PER_S 4e6
#define MAX_TIMES_MEMCMP_AND_COPY 3.0
#define MAX_GROWTH 2.0
#define MAX_IDLE_FLOW_BYTES 256.0

typedef struct Load {
    const char *name;
    uint8_t protocol;
    uint32_t payload;
    uint32_t flows;
    uint32_t ahead; /* batches the primary runs ahead */
    bool reordered; /* the secondary's batches are backwards */
} Load;

typedef struct Bench {
    Compare *compare;
    uint64_t released;
    uint64_t out_of_order;
    uint64_t divergences;
    uint8_t *ring[2];
    uint32_t n_ring;
    uint32_t frame_len;
    uint32_t *seq[2]; /* by flow */
    uint64_t n_sent[2];
} Bench;

static void
on_release(void *opaque, const CompareRelease *release)
{
    Bench *b = opaque;

    b->out_of_order += release->cookie < b->released;
    b->released++;
}

static void
on_divergence(void *opaque, const CompareDivergence *divergence)
{
    Bench *b = opaque;
    (void)divergence;

    b->divergences++;
}

static int64_t
cpu_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
setup(Bench *b, const Load *load)
{
    static uint8_t payload[2048], frame[PACKET_MAX];
    CompareConfig config;
    CompareOps ops = {on_release, on_divergence};

    compare_config_init(&config);
    config.hash_key[0] = 42;
    *b = (Bench){0};
    if (compare_new(&config, &ops, b, &b->compare) < 0)
        abort();
    b->n_ring = RING_FRAMES;
    for (int side = 0; side < 2; side++) {
        b->ring[side] = g_malloc((gsize)b->n_ring * SLOT);
        b->seq[side] = g_new0(uint32_t, load->flows);
        for (uint32_t i = 0; i < b->n_ring; i++) {
            Packet p = {.protocol = load->protocol,
                        .tcp_flags = FRAME_TCP_ACK,
                        .ack = 1,
                        .payload = payload,
                        .len = load->payload};

            memcpy(payload, &i, sizeof(i));
            for (uint32_t k = 4; k < load->payload; k++)
                payload[k] = (uint8_t)(k * 131 + i);
            b->frame_len = (uint32_t)packet_build(&p, frame);
            memcpy(b->ring[side] + (size_t)i * SLOT, frame, b->frame_len);
        }
    }
}

static void
submit_batch(Bench *b, const Load *load, CompareSide side, int64_t now_ns, bool backwards)
{
    CompareFrame frames[BATCH];
    int error = 0;

    for (uint32_t i = 0; i < BATCH; i++) {
        uint64_t n = b->n_sent[side] + (backwards ? BATCH - 1 - i : i);
        uint32_t slot = (uint32_t)(n % b->n_ring);
        uint8_t *bytes = b->ring[side] + (size_t)slot * SLOT;

        uint32_t flow = (uint32_t)(n % load->flows);

        be32_store(bytes + 14 + 16, 0x0b000000 + flow / 1000);
        be16_store(bytes + 14 + 20 + 2, (uint16_t)(1000 + flow % 1000));
        if (load->protocol == 6) {
            be32_store(bytes + 14 + 20 + 4, b->seq[side][flow]);
            b->seq[side][flow] += load->payload;
        }
        frames[i] = (CompareFrame){.bytes = bytes, .len = b->frame_len, .cookie = n};
    }
    b->n_sent[side] += BATCH;
    if (compare_submit_batch(b->compare, side, frames, BATCH, now_ns, &error) != BATCH)
        abort();
}

/* Returns CPU nanoseconds per pair. */
static double
run(Bench *b, const Load *load, uint64_t pairs)
{
    uint64_t batches = pairs / BATCH;
    int64_t start = cpu_ns();

    for (uint64_t i = 0; i < batches + load->ahead; i++) {
        if (i < batches)
            submit_batch(b, load, COMPARE_PRIMARY, 1000, false);
        if (i >= load->ahead)
            submit_batch(b, load, COMPARE_SECONDARY, 1000, load->reordered);
    }
    return (double)(cpu_ns() - start) / (double)(batches * BATCH);
}

/* One copy and one memcmp() of the same bytes in the same order, per pair, with as much between the
 * two as the primary is ahead. */
static double
yardstick(const Bench *b, const Load *load, uint64_t pairs)
{
    uint64_t held_frames = (uint64_t)(load->ahead + 1) * BATCH;
    uint64_t end = pairs / BATCH * BATCH;
    uint8_t *held = g_malloc(held_frames * SLOT);
    uint32_t header = b->frame_len - load->payload;
    volatile int different = 0;

    memset(held, 0, held_frames * SLOT); /* page faults are not what is measured */
    int64_t start = cpu_ns();

    for (uint64_t n = 0; n < end + (uint64_t)load->ahead * BATCH; n += BATCH) {
        for (uint64_t i = n; i < n + BATCH && i < end; i++)
            memcpy(held + i % held_frames * SLOT, b->ring[0] + i % b->n_ring * SLOT + header,
                   load->payload);
        if (n < (uint64_t)load->ahead * BATCH)
            continue;
        for (uint64_t i = n - (uint64_t)load->ahead * BATCH, last = i + BATCH; i < last; i++)
            different += memcmp(held + i % held_frames * SLOT,
                                b->ring[1] + i % b->n_ring * SLOT + header, load->payload) != 0;
    }
    double ns = (double)(cpu_ns() - start) / (double)end;

    if (different)
        g_printerr("the two rings differ\n");
    g_free(held);
    return ns;
}

static size_t
resident_bytes(void)
{
    g_autofree char *text = NULL;
    unsigned long pages = 0;

    if (g_file_get_contents("/proc/self/statm", &text, NULL, NULL))
        (void)sscanf(text, "%*u %lu", &pages);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void
teardown(Bench *b)
{
    compare_free(b->compare);
    for (int side = 0; side < 2; side++) {
        g_free(b->ring[side]);
        g_free(b->seq[side]);
    }
}

typedef struct Result {
    double ns; /* per pair */
    double times_memcmp_and_copy;
    bool wrong;
} Result;

static struct json_object *
one_load(const Load *load, uint64_t pairs, Result *ret_result)
{
    struct json_object *o = json_object_new_object();
    Bench b;
    double best = 1e9;
    double stick = 1e9;

    setup(&b, load);
    for (int round = 0; round < ROUNDS; round++) {
        double ns = run(&b, load, pairs);

        best = MIN(best, ns);
        if (load->payload > 1000) {
            double s = yardstick(&b, load, pairs);

            stick = MIN(stick, s);
        }
    }
    const CompareStats *stats = compare_stats(b.compare);

    json_object_object_add(o, "load", json_object_new_string(load->name));
    json_object_object_add(o, "ns_per_pair", json_object_new_double(best));
    json_object_object_add(o, "pairs_per_s_per_core", json_object_new_int64((int64_t)(1e9 / best)));
    json_object_object_add(o, "lost", json_object_new_int64((int64_t)(b.n_sent[0] - b.released)));
    json_object_object_add(o, "out_of_order", json_object_new_int64((int64_t)b.out_of_order));
    json_object_object_add(o, "divergences", json_object_new_int64((int64_t)b.divergences));
    json_object_object_add(o, "held_bytes_max",
                           json_object_new_int64((int64_t)stats->held_bytes_max));
    if (load->payload > 1000) {
        json_object_object_add(o, "memcmp_and_copy_ns", json_object_new_double(stick));
        json_object_object_add(o, "times_memcmp_and_copy", json_object_new_double(best / stick));
    }
    *ret_result = (Result){.ns = best,
                           .times_memcmp_and_copy = load->payload > 1000 ? best / stick : 0,
                           .wrong = b.n_sent[0] != b.released || b.divergences ||
                                    (b.out_of_order && load->flows == 1)};
    teardown(&b);
    return o;
}

/* Memory an idle flow costs: resident growth over flows of which nothing is held. As many as nearly
 * fill the table, so that the rounding to huge pages of 2 MiB is little to each. */
static double
idle_flow_bytes(void)
{
    static const Load load = {"idle", 6, 10, 250000, 0, false};
    Bench b;

    setup(&b, &load);
    size_t before = resident_bytes();

    (void)run(&b, &load, load.flows);
    size_t after = resident_bytes();
    double per_flow = (double)(after - before) / compare_stats(b.compare)->flows;

    teardown(&b);
    return per_flow;
}

/* Adds the limit to @list. Return: whether it is kept. */
static bool
limit(struct json_object *list, const char *name, double value, double bound, bool at_least)
{
    struct json_object *o = json_object_new_object();
    bool kept = at_least ? value >= bound : value <= bound;

    json_object_object_add(o, "what", json_object_new_string(name));
    json_object_object_add(o, "value", json_object_new_double(value));
    json_object_object_add(o, at_least ? "at_least" : "at_most", json_object_new_double(bound));
    json_object_object_add(o, "kept", json_object_new_boolean(kept));
    json_object_array_add(list, o);
    return kept;
}

static const Load loads[] = {
    {"tcp-64B-1-flow", 6, 10, 1, 0, false},
    {"tcp-64B-100-flows", 6, 10, 100, 0, false},
    {"tcp-64B-10000-flows", 6, 10, 10000, 0, false},
    {"tcp-64B-100000-flows", 6, 10, 100000, 0, false},
    {"tcp-1448B-1-flow", 6, 1448, 1, 0, false},
    {"tcp-1448B-100-flows", 6, 1448, 100, 0, false},
    {"udp-64B-100-flows", 17, 22, 100, 0, false},
    {"udp-64B-1-flow-reordered", 17, 22, 1, 0, true},
    {"udp-1400B-1-flow-ahead-16384", 17, 1400, 1, 512, false},
    {"tcp-1448B-1-flow-ahead-16384", 6, 1448, 1, 512, false},
};

enum { LOAD_ONE_FLOW = 0, LOAD_100000_FLOWS = 3 };

static bool
check_limits(struct json_object *list, const Result *results, double idle)
{
    double growth = results[LOAD_100000_FLOWS].ns / results[LOAD_ONE_FLOW].ns;
    bool kept = limit(list, "cost of 100,000 flows against 1", growth, MAX_GROWTH, false);

    kept &= limit(list, "bytes of an idle flow", idle, MAX_IDLE_FLOW_BYTES, false);
    for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
        g_autofree char *stick = g_strdup_printf("%s, times memcmp and copy", loads[i].name);
        g_autofree char *rate = g_strdup_printf("%s, pairs/s", loads[i].name);

        if (loads[i].payload < SMALL_PAYLOAD)
            kept &= limit(list, rate, 1e9 / results[i].ns, MIN_SMALL_PAIRS_PER_S, true);
        else
            kept &= limit(list, stick, results[i].times_memcmp_and_copy, MAX_TIMES_MEMCMP_AND_COPY,
                          false);
    }
    return kept;
}

int
main(int argc, char **argv)
{
    uint64_t pairs = argc > 1 ? g_ascii_strtoull(argv[1], NULL, 10) : 500000;
    struct json_object *root = json_object_new_object();
    struct json_object *list = json_object_new_array();
    struct json_object *limits = json_object_new_array();
    Result results[G_N_ELEMENTS(loads)] = {0};
    double idle = idle_flow_bytes();
    int status = EXIT_SUCCESS;

    for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
        if (argc > 2 && !strstr(loads[i].name, argv[2]))
            continue;
        json_object_array_add(list, one_load(&loads[i], pairs, &results[i]));
        if (results[i].wrong)
            status = EXIT_WRONG;
    }
    json_object_object_add(root, "engine", list);
    if (argc <= 2 && !check_limits(limits, results, idle) && !status)
        status = EXIT_MISSED;
    json_object_object_add(root, "limits", limits);
    puts(json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(root);
    return status;
}
