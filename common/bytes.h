/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bytes.h - bounded reading and writing of untrusted bytes, big endian */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * View: the rest of a buffer that somebody else filled.
 *
 * All reading of input goes through view_take() or the getters: they check the length, advance, and
 * on short data return false, leave the view as it was and write no output. A View borrows the
 * bytes; the caller keeps them alive.
 */
typedef struct View {
    const uint8_t *data;
    size_t len;
} View;

static inline View
view_of(const void *data, size_t len)
{
    return (View){.data = data, .len = len};
}

/** Takes the next @len bytes as a pointer into the view. False: fewer are left. */
static inline bool
view_take(View *v, size_t len, const uint8_t **ret_bytes)
{
    if (len > v->len)
        return false;
    *ret_bytes = v->data;
    v->data += len;
    v->len -= len;
    return true;
}

/** As view_take(), for bytes that nobody wants. */
static inline bool
view_skip(View *v, size_t len)
{
    const uint8_t *ignored;

    return view_take(v, len, &ignored);
}

/* Of memory that is known to be there; for input use the getters below. */

static inline uint16_t
be16_load(const uint8_t p[static 2])
{
    return (uint16_t)((p[0] << 8) | p[1]);
}

static inline uint32_t
be32_load(const uint8_t p[static 4])
{
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | p[3];
}

static inline uint64_t
be64_load(const uint8_t p[static 8])
{
    return ((uint64_t)be32_load(p) << 32) | be32_load(p + 4);
}

static inline void
be16_store(uint8_t p[static 2], uint16_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void
be32_store(uint8_t p[static 4], uint32_t value)
{
    be16_store(p, (uint16_t)(value >> 16));
    be16_store(p + 2, (uint16_t)value);
}

static inline void
be64_store(uint8_t p[static 8], uint64_t value)
{
    be32_store(p, (uint32_t)(value >> 32));
    be32_store(p + 4, (uint32_t)value);
}

/* Each takes one number from the front of the view. False: too few bytes are left. */

static inline bool
view_get_u8(View *v, uint8_t *ret_value)
{
    const uint8_t *p;

    if (!view_take(v, 1, &p))
        return false;
    *ret_value = *p;
    return true;
}

static inline bool
view_get_be16(View *v, uint16_t *ret_value)
{
    const uint8_t *p;

    if (!view_take(v, 2, &p))
        return false;
    *ret_value = be16_load(p);
    return true;
}

static inline bool
view_get_be32(View *v, uint32_t *ret_value)
{
    const uint8_t *p;

    if (!view_take(v, 4, &p))
        return false;
    *ret_value = be32_load(p);
    return true;
}

static inline bool
view_get_be64(View *v, uint64_t *ret_value)
{
    const uint8_t *p;

    if (!view_take(v, 8, &p))
        return false;
    *ret_value = be64_load(p);
    return true;
}
