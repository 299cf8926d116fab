/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* engine-bench.c - what one pair of frames costs in the engine alone, without sockets */
/*
 * Each load submits batches of 32 frames of the primary, then the same of the secondary, from rings
 * of frames built beforehand. Addresses, ports and TCP numbers are stored into them as they go, so
 * that the frames' own memory is the same for any number of flows; that is done for a part of 256
 * pairs at a time and not measured, as it is no work of the engine's. For 1448 bytes the yardstick
 * is measured on the same buffers in the same order: one copy of the primary's payload, one
 * memcmp() with the secondary's.
 *
 * A shared machine changes its speed for seconds at a time (another guest on the same core, its
 * caches, its clock), and not for all work alike: code that is bound by instructions, as the engine
 * is, loses up to twice as much as copying does. One build gave 2.6 and 3.6 times the yardstick in
 * two runs when one was measured after the other. Hence
 * - engine and yardstick take turns part by part, a fraction of a millisecond each, so that
 *   whatever happens happens to both;
 * - loads take turns too, in rounds, so that a bad second does not hit all of one;
 * - eight parts are a slice, and the figure is that of the best tenth of all slices, for engine and
 *   yardstick in the same way: what they cost while nobody disturbs. A slice is long enough to have
 *   in it all that the engine does for a pair, so nothing of its own is left out. The median is
 *   printed beside it; where it is much higher the machine was busy.
 * Times are the thread's CPU time.
 *
 * Prints JSON with the limits that are asked for; exit status 1 if one is missed, 3 if frames were
 * lost, reordered or diverged.
 *
 * Usage: compare-engine-bench [PAIRS-PER-ROUND [PART-OF-A-LOAD'S-NAME]]
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

enum {
    BATCH = 32,
    SLOT = 2048,
    PART = 256, /* frames of a ring, each used once in a part */
    PARTS_PER_SLICE = 8,
    SLICE = PART * PARTS_PER_SLICE,
    ROUNDS = 9,
    SMALL_PAYLOAD = 100, /* those below have to reach a rate, others a multiple of the yardstick */
};
enum { EXIT_MISSED = 1, EXIT_WRONG = 3 };

/* What is asked for. */
#define MIN_SMALL_PAIRS_PER_S 4e6
#define MAX_TIMES_MEMCMP_AND_COPY 3.0
#define MAX_GROWTH 2.0
#define MAX_IDLE_FLOW_BYTES 256.0

/* Of the slices, sorted. */
#define MEDIAN 0.5
#define BEST_TENTH 0.1

typedef struct Load {
    const char *name;
    uint8_t protocol;
    uint32_t payload;
    uint32_t flows;
    uint32_t ahead; /* parts the primary runs ahead */
    bool reordered; /* the secondary's batches are backwards */
} Load;

typedef struct Bench {
    const Load *load;
    Compare *compare;
    uint64_t released;
    uint64_t out_of_order;
    uint64_t divergences;
    uint8_t *ring[2];
    CompareFrame frames[2][PART]; /* the next part, in the order in which it is submitted */
    uint32_t frame_len;
    uint32_t *seq[2]; /* by flow */
    uint64_t n_sent[2];
    uint8_t *held; /* the yardstick's copies */
    uint64_t n_held;
    uint64_t n_copied, n_compared;
    uint64_t n_different;
    GArray *engine_ns, *stick_ns; /* double, per pair: each slice */
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

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static bool
has_yardstick(const Load *load)
{
    return load->payload >= SMALL_PAYLOAD;
}

/* --- the engine --- */

static void
build_ring(Bench *b, int side)
{
    static uint8_t payload[2048], frame[PACKET_MAX];

    b->ring[side] = g_malloc((gsize)PART * SLOT);
    for (uint32_t i = 0; i < PART; i++) {
        Packet p = {.protocol = b->load->protocol,
                    .tcp_flags = FRAME_TCP_ACK,
                    .ack = 1,
                    .payload = payload,
                    .len = b->load->payload};

        memcpy(payload, &i, sizeof(i));
        for (uint32_t k = 4; k < b->load->payload; k++)
            payload[k] = (uint8_t)(k * 131 + i);
        b->frame_len = (uint32_t)packet_build(&p, frame);
        memcpy(b->ring[side] + (size_t)i * SLOT, frame, b->frame_len);
    }
}

static Bench *
bench_new(const Load *load)
{
    CompareConfig config;
    CompareOps ops = {on_release, on_divergence};
    Bench *b = g_new0(Bench, 1);

    b->load = load;
    compare_config_init(&config);
    config.hash_key[0] = 42;
    if (compare_new(&config, &ops, b, &b->compare) < 0)
        abort();
    for (int side = 0; side < 2; side++) {
        build_ring(b, side);
        b->seq[side] = g_new0(uint32_t, load->flows);
    }
    b->engine_ns = g_array_new(FALSE, FALSE, sizeof(double));
    b->stick_ns = g_array_new(FALSE, FALSE, sizeof(double));
    return b;
}

static void
bench_free(Bench *b)
{
    compare_free(b->compare);
    for (int side = 0; side < 2; side++) {
        g_free(b->ring[side]);
        g_free(b->seq[side]);
    }
    g_free(b->held);
    g_array_free(b->engine_ns, TRUE);
    g_array_free(b->stick_ns, TRUE);
    g_free(b);
}

/* Makes the next part of @side ready. */
static void
prepare(Bench *b, CompareSide side)
{
    const Load *load = b->load;
    bool backwards = load->reordered && side == COMPARE_SECONDARY;

    for (uint32_t i = 0; i < PART; i++) {
        uint64_t n = b->n_sent[side]++;
        uint8_t *bytes = b->ring[side] + n % PART * SLOT;
        uint32_t flow = (uint32_t)(n % load->flows);
        uint32_t place = backwards ? i / BATCH * BATCH + BATCH - 1 - i % BATCH : i;

        be32_store(bytes + 14 + 16, 0x0b000000 + flow / 1000);
        be16_store(bytes + 14 + 20 + 2, (uint16_t)(1000 + flow % 1000));
        if (load->protocol == 6) {
            be32_store(bytes + 14 + 20 + 4, b->seq[side][flow]);
            b->seq[side][flow] += load->payload;
        }
        b->frames[side][place] = (CompareFrame){.bytes = bytes, .len = b->frame_len, .cookie = n};
    }
}

static void
submit(Bench *b, CompareSide side, uint32_t first)
{
    int error = 0;

    if (compare_submit_batch(b->compare, side, &b->frames[side][first], BATCH, 1000, &error) !=
        BATCH)
        abort();
}

/* Return: CPU nanoseconds of a part of both sides. */
static int64_t
engine_part(Bench *b)
{
    prepare(b, COMPARE_PRIMARY);
    prepare(b, COMPARE_SECONDARY);

    int64_t start = cpu_ns();

    for (uint32_t i = 0; i < PART; i += BATCH) {
        submit(b, COMPARE_PRIMARY, i);
        submit(b, COMPARE_SECONDARY, i);
    }
    return cpu_ns() - start;
}

/* As many parts of one side as the primary runs ahead: at the beginning its own, at the end the
 * secondary's. */
static void
run_ahead(Bench *b, CompareSide side)
{
    for (uint32_t part = 0; part < b->load->ahead; part++) {
        prepare(b, side);
        for (uint32_t i = 0; i < PART; i += BATCH)
            submit(b, side, i);
    }
}

/* --- the yardstick --- */

static const uint8_t *
ring_payload(const Bench *b, int side, uint64_t n)
{
    return b->ring[side] + n % PART * SLOT + (b->frame_len - b->load->payload);
}

static void
copy_batch(Bench *b)
{
    for (uint64_t end = b->n_copied + BATCH; b->n_copied < end; b->n_copied++)
        memcpy(b->held + b->n_copied % b->n_held * SLOT, ring_payload(b, 0, b->n_copied),
               b->load->payload);
}

static void
compare_batch(Bench *b)
{
    for (uint64_t end = b->n_compared + BATCH; b->n_compared < end; b->n_compared++)
        b->n_different += memcmp(b->held + b->n_compared % b->n_held * SLOT,
                                 ring_payload(b, 1, b->n_compared), b->load->payload) != 0;
}

/* One copy and one memcmp() of the same bytes in the same order, per pair, with as much between the
 * two as the primary is ahead. */
static int64_t
stick_part(Bench *b)
{
    int64_t start = cpu_ns();

    for (uint32_t i = 0; i < PART; i += BATCH) {
        copy_batch(b);
        compare_batch(b);
    }
    return cpu_ns() - start;
}

static void
stick_setup(Bench *b)
{
    b->n_held = (uint64_t)b->load->ahead * PART + BATCH;
    b->held = g_malloc(b->n_held * SLOT);
    memset(b->held, 0, b->n_held * SLOT); /* page faults are not what is measured */
    while (b->n_copied < (uint64_t)b->load->ahead * PART)
        copy_batch(b);
}

/* --- slices --- */

static void
run_slices(Bench *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        int64_t engine = 0, stick = 0;

        for (int part = 0; part < PARTS_PER_SLICE; part++) {
            engine += engine_part(b);
            if (b->held)
                stick += stick_part(b);
        }
        double engine_ns = (double)engine / SLICE, stick_ns = (double)stick / SLICE;

        g_array_append_val(b->engine_ns, engine_ns);
        g_array_append_val(b->stick_ns, stick_ns);
    }
}

static int
compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The slice that @part of all are below. */
static double
quantile(GArray *samples, double part)
{
    g_array_sort(samples, compare_doubles);
    return g_array_index(samples, double, (guint)(part * samples->len));
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

typedef struct Result {
    double ns; /* per pair */
    double times_memcmp_and_copy;
    bool wrong;
} Result;

static void
add_times(struct json_object *o, Bench *b, Result *result)
{
    double stick = quantile(b->stick_ns, BEST_TENTH);

    result->ns = quantile(b->engine_ns, BEST_TENTH);
    json_object_object_add(o, "ns_per_pair", json_object_new_double(result->ns));
    json_object_object_add(o, "ns_per_pair_median",
                           json_object_new_double(quantile(b->engine_ns, MEDIAN)));
    json_object_object_add(o, "pairs_per_s_per_core",
                           json_object_new_int64((int64_t)(1e9 / result->ns)));
    if (!b->held)
        return;
    result->times_memcmp_and_copy = result->ns / stick;
    json_object_object_add(o, "memcmp_and_copy_ns", json_object_new_double(stick));
    json_object_object_add(o, "memcmp_and_copy_ns_median",
                           json_object_new_double(quantile(b->stick_ns, MEDIAN)));
    json_object_object_add(o, "times_memcmp_and_copy",
                           json_object_new_double(result->times_memcmp_and_copy));
}

static struct json_object *
result_of(Bench *b, Result *ret_result)
{
    struct json_object *o = json_object_new_object();
    const CompareStats *stats = compare_stats(b->compare);
    Result result = {.wrong = b->n_sent[0] != b->released || b->divergences || b->n_different ||
                              (b->out_of_order && b->load->flows == 1)};

    json_object_object_add(o, "load", json_object_new_string(b->load->name));
    add_times(o, b, &result);
    json_object_object_add(o, "lost", json_object_new_int64((int64_t)(b->n_sent[0] - b->released)));
    json_object_object_add(o, "out_of_order", json_object_new_int64((int64_t)b->out_of_order));
    json_object_object_add(o, "divergences", json_object_new_int64((int64_t)b->divergences));
    json_object_object_add(o, "held_bytes_max",
                           json_object_new_int64((int64_t)stats->held_bytes_max));
    *ret_result = result;
    return o;
}

/* Memory an idle flow costs: resident growth over flows of which nothing is held. As many as nearly
 * fill the table, so that the rounding to huge pages of 2 MiB is little to each. */
static double
idle_flow_bytes(void)
{
    static const Load load = {"idle", 6, 10, 250000, 0, false};
    Bench *b = bench_new(&load);
    size_t before = resident_bytes();

    while (b->n_sent[0] < load.flows)
        (void)engine_part(b);
    size_t after = resident_bytes();
    double per_flow = (double)(after - before) / compare_stats(b->compare)->flows;

    bench_free(b);
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
    {"udp-1400B-1-flow-ahead-16384", 17, 1400, 1, 64, false},
    {"tcp-1448B-1-flow-ahead-16384", 6, 1448, 1, 64, false},
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

        if (has_yardstick(&loads[i]))
            kept &= limit(list, stick, results[i].times_memcmp_and_copy, MAX_TIMES_MEMCMP_AND_COPY,
                          false);
        else
            kept &= limit(list, rate, 1e9 / results[i].ns, MIN_SMALL_PAIRS_PER_S, true);
    }
    return kept;
}

/* Runs those of all loads whose name has @part in it (NULL: all) in turn. */
static void
run_loads(Bench *benches[static G_N_ELEMENTS(loads)], uint64_t slices, const char *part)
{
    for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
        if (part && !strstr(loads[i].name, part))
            continue;
        benches[i] = bench_new(&loads[i]);
        if (has_yardstick(&loads[i]))
            stick_setup(benches[i]);
        run_ahead(benches[i], COMPARE_PRIMARY);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
            if (benches[i])
                run_slices(benches[i], slices);
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
        if (benches[i])
            run_ahead(benches[i], COMPARE_SECONDARY);
    }
}

int
main(int argc, char **argv)
{
    uint64_t pairs = argc > 1 ? g_ascii_strtoull(argv[1], NULL, 10) : 500000;
    const char *part = argc > 2 ? argv[2] : NULL;
    struct json_object *root = json_object_new_object();
    struct json_object *list = json_object_new_array();
    struct json_object *limits = json_object_new_array();
    Bench *benches[G_N_ELEMENTS(loads)] = {NULL};
    Result results[G_N_ELEMENTS(loads)] = {0};
    double idle = idle_flow_bytes();
    int status = EXIT_SUCCESS;

    run_loads(benches, MAX(pairs / SLICE, 1), part);
    for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
        if (!benches[i])
            continue;
        json_object_array_add(list, result_of(benches[i], &results[i]));
        if (results[i].wrong)
            status = EXIT_WRONG;
        bench_free(benches[i]);
    }
    json_object_object_add(root, "engine", list);
    if (!part && !check_limits(limits, results, idle) && !status)
        status = EXIT_MISSED;
    json_object_object_add(root, "limits", limits);
    puts(json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(root);
    return status;
}
