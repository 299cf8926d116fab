/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clock.c - the monotonic clock */
#include "clock.h"

#include <time.h>

int64_t
clock_now_ns(void)
{
    struct timespec ts;

    /* Cannot fail for CLOCK_MONOTONIC with a valid pointer (clock_gettime(2)). */
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}
