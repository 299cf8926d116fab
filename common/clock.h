/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clock.h - the monotonic clock, in one place so that tests can wrap it at link time */
#pragma once

#include <stdint.h>

#define NS_PER_US INT64_C(1000)
#define NS_PER_MS INT64_C(1000000)
#define NS_PER_S INT64_C(1000000000)

/** CLOCK_MONOTONIC in nanoseconds. Any thread; never fails. */
int64_t clock_now_ns(void);
