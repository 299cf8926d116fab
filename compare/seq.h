/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* seq.h - TCP sequence numbers modulo 2^32 (RFC 9293, 3.4); never compare them with < */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Right for numbers that are less than 2^31 apart, as all of one window are. */

static inline bool
seq_lt(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static inline bool
seq_leq(uint32_t a, uint32_t b)
{
    return !seq_lt(b, a);
}

static inline bool
seq_gt(uint32_t a, uint32_t b)
{
    return seq_lt(b, a);
}

static inline bool
seq_geq(uint32_t a, uint32_t b)
{
    return !seq_lt(a, b);
}

static inline uint32_t
seq_min(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? a : b;
}

static inline uint32_t
seq_max(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? b : a;
}
