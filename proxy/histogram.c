/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* histogram.c - recent durations in log-linear buckets */
#include "histogram.h"

enum { SUB = 1 << HISTOGRAM_SUB_BITS };

static unsigned
bucket_of(uint64_t us)
{
    if (us < SUB)
        return (unsigned)us;
    if (us > UINT32_MAX)
        us = UINT32_MAX;

    unsigned shift = (63U - (unsigned)__builtin_clzll(us)) - HISTOGRAM_SUB_BITS;

    /* us >> shift is in [SUB, 2 * SUB). */
    return ((shift + 1) << HISTOGRAM_SUB_BITS) + ((unsigned)(us >> shift) - SUB);
}

static uint64_t
bucket_last(unsigned bucket)
{
    if (bucket < SUB)
        return bucket;

    unsigned shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    uint64_t first = (uint64_t)(SUB + (bucket & (SUB - 1))) << shift;

    return first + (UINT64_C(1) << shift) - 1;
}

void
histogram_add(Histogram *histogram, uint64_t us)
{
    if (histogram->n == HISTOGRAM_GENERATION) {
        histogram->n = 0;
        histogram->current ^= 1;
        for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
            counter_set(&histogram->buckets[histogram->current][i], 0);
    }
    histogram->n++;
    counter_add(&histogram->buckets[histogram->current][bucket_of(us)], 1);
}

void
histogram_sum(const Histogram *from, uint64_t counts[static HISTOGRAM_BUCKETS])
{
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        counts[i] += counter_get(&from->buckets[0][i]) + counter_get(&from->buckets[1][i]);
}

uint64_t
histogram_percentile(const uint64_t counts[static HISTOGRAM_BUCKETS], unsigned percent)
{
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        total += counts[i];

    uint64_t rank = (total * percent + 99) / 100;

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += counts[i];
        if (seen > 0 && seen >= rank)
            return bucket_last(i);
    }
    return 0;
}
