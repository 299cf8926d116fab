/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* slab.h - bounded memory for frames of any size, without malloc in the packet path */
#pragma once

#include <stddef.h>

typedef struct Slab Slab;

enum {
    SLAB_MAX_OBJECT_BYTES = 72 * 1024,
    SLAB_MIN_BOUND_BYTES = 256 * 1024,
};

/** Creates a slab that hands out at most @bound_bytes at a time.
 *
 * Address space is reserved at once and touched only as it is used. One thread at a time.
 * Return: 0, or a negative errno (-EINVAL: bound below SLAB_MIN_BOUND_BYTES; -ENOMEM).
 */
int slab_new(size_t bound_bytes, Slab **ret_slab);
void slab_free_all(Slab *slab);

/** Returns @size bytes, uninitialised, aligned to 64; NULL when the bound is reached. */
void *slab_alloc(Slab *slab, size_t size);
void slab_release(Slab *slab, void *object);

/** Sum of the sizes handed out, rounded up to their size classes. */
size_t slab_used_bytes(const Slab *slab);
