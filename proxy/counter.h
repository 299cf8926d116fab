/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* counter.h - a statistic that one thread writes and any thread reads */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint64_t Counter;

static inline uint64_t
counter_get(const Counter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static inline void
counter_set(Counter *counter, uint64_t value)
{
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

/** Only the writing thread: no locked instruction is needed. */
static inline void
counter_add(Counter *counter, uint64_t n)
{
    counter_set(counter, counter_get(counter) + n);
}
