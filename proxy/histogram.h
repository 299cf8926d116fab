/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* histogram.h - recent durations in log-linear buckets: percentiles without allocation or sorting
 */
#pragma once

#include <stdint.h>

#include "counter.h"

/*
 * Bucket width is 1 µs below 8 µs, then at most 1/8 of the value. Two generations of up to
 * HISTOGRAM_GENERATION values each: a percentile is over the last one to two generations.
 * One thread adds, any thread asks (and may see a value more or less).
 */
enum {
    HISTOGRAM_SUB_BITS = 3,
    HISTOGRAM_BUCKETS = (32 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS,
    HISTOGRAM_GENERATION = 8192,
};

typedef struct Histogram {
    Counter buckets[2][HISTOGRAM_BUCKETS];
    unsigned current; /* the adding thread's: index of the generation being filled */
    unsigned n;
} Histogram;

/** Values above UINT32_MAX µs count as that. */
void histogram_add(Histogram *histogram, uint64_t us);

/** Adds @from's buckets to @counts, to merge several histograms. */
void histogram_sum(const Histogram *from, uint64_t counts[static HISTOGRAM_BUCKETS]);

/** The upper end of the bucket that has the @percent-th value; 0 if there are none. */
uint64_t histogram_percentile(const uint64_t counts[static HISTOGRAM_BUCKETS], unsigned percent);
