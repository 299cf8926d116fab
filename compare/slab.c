/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* slab.c - size classes in aligned chunks of one reserved arena */
/*
 * Theory of operation
 *
 * The arena is cut into chunks of 256 KiB, aligned to their size, so that an object's chunk is
 * found by masking its address. A chunk serves one size class while it has objects in use, and
 * returns to the pool when the last is released: a flood of small frames cannot keep memory from
 * large ones once it has passed. Chunks with room are on their class's list. Alloc and release are
 * O(1). The arena is larger than the bound by two chunks per class, so that the byte bound, not the
 * cutting into chunks, is what callers normally meet; both say NULL.
 */
#include "slab.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#define SLAB_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SLAB_ASAN 1
#endif
#endif
#ifdef SLAB_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum {
    CHUNK_BYTES = 256 * 1024,
    HUGE_MIN_BYTES = 32 * 1024 * 1024,
    ALIGN = 64,
    MAX_UNITS = SLAB_MAX_OBJECT_BYTES / ALIGN,
};

/* Chosen for Ethernet: bare TCP segments, full frames of 1514 bytes, then doubling up to GSO. */
static const uint32_t class_bytes[] = {192,  256,  320,  448,  640,   896,   1280,
                                       1728, 2304, 4608, 9216, 18432, 36864, SLAB_MAX_OBJECT_BYTES};
enum { N_CLASSES = sizeof(class_bytes) / sizeof(class_bytes[0]) };

typedef struct FreeObject {
    struct FreeObject *next;
} FreeObject;

typedef struct Chunk {
    struct Chunk *prev, *next; /* class's list of chunks with room, or the pool */
    FreeObject *free;
    uint32_t bump; /* offset of the first byte never handed out */
    uint32_t n_used;
    uint8_t size_class;
    bool listed;
} Chunk;
static_assert(sizeof(Chunk) <= ALIGN, "the header takes one unit of a chunk");

struct Slab {
    uint8_t *map;
    size_t map_bytes;
    uint8_t *next_chunk; /* chunks from here to end were never used */
    uint8_t *end;
    Chunk *pool;
    Chunk *partial[N_CLASSES];
    size_t bound_bytes;
    size_t used_bytes;
    uint8_t class_of_units[MAX_UNITS + 1];
};

static void
fill_class_table(Slab *slab)
{
    uint8_t c = 0;

    for (size_t units = 0; units <= MAX_UNITS; units++) {
        while (units * ALIGN > class_bytes[c])
            c++;
        slab->class_of_units[units] = c;
    }
}

int
slab_new(size_t bound_bytes, Slab **ret_slab)
{
    if (bound_bytes < SLAB_MIN_BOUND_BYTES || bound_bytes > SIZE_MAX / 4)
        return -EINVAL;

    Slab *slab = calloc(1, sizeof(*slab));
    if (!slab)
        return -ENOMEM;
    size_t n_chunks = bound_bytes / CHUNK_BYTES + 2 * N_CLASSES + 1;

    slab->map_bytes = (n_chunks + 1) * CHUNK_BYTES;
    slab->map = mmap(NULL, slab->map_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab->map == MAP_FAILED) {
        free(slab);
        return -ENOMEM;
    }
    /* Best effort: a side that gets ahead touches much of it for the first time, and a fault for
     * each 4 KiB then costs more than the comparison. */
    if (bound_bytes >= HUGE_MIN_BYTES)
        (void)madvise(slab->map, slab->map_bytes, MADV_HUGEPAGE);
    uintptr_t misaligned = (uintptr_t)slab->map % CHUNK_BYTES;

    slab->next_chunk = slab->map + (misaligned ? CHUNK_BYTES - misaligned : 0);
    slab->end = slab->next_chunk + n_chunks * CHUNK_BYTES;
    slab->bound_bytes = bound_bytes;
    fill_class_table(slab);
    *ret_slab = slab;
    return 0;
}

void
slab_free_all(Slab *slab)
{
    if (!slab)
        return;
    ASAN_UNPOISON_MEMORY_REGION(slab->map, slab->map_bytes);
    (void)munmap(slab->map, slab->map_bytes);
    free(slab);
}

static void
list_push(Slab *slab, Chunk *chunk)
{
    Chunk **head = &slab->partial[chunk->size_class];

    chunk->prev = NULL;
    chunk->next = *head;
    if (*head)
        (*head)->prev = chunk;
    *head = chunk;
    chunk->listed = true;
}

static void
list_remove(Slab *slab, Chunk *chunk)
{
    if (chunk->prev)
        chunk->prev->next = chunk->next;
    else
        slab->partial[chunk->size_class] = chunk->next;
    if (chunk->next)
        chunk->next->prev = chunk->prev;
    chunk->listed = false;
}

static Chunk *
chunk_take(Slab *slab, uint8_t size_class)
{
    Chunk *chunk = slab->pool;

    if (chunk) {
        slab->pool = chunk->next;
    } else {
        if (slab->next_chunk == slab->end)
            return NULL;
        chunk = (Chunk *)(void *)slab->next_chunk;
        slab->next_chunk += CHUNK_BYTES;
        ASAN_POISON_MEMORY_REGION((uint8_t *)chunk + ALIGN, CHUNK_BYTES - ALIGN);
    }
    *chunk = (Chunk){.bump = ALIGN, .size_class = size_class};
    list_push(slab, chunk);
    return chunk;
}

static bool
chunk_full(const Chunk *chunk)
{
    return !chunk->free && chunk->bump + class_bytes[chunk->size_class] > CHUNK_BYTES;
}

void *
slab_alloc(Slab *slab, size_t size)
{
    if (size > SLAB_MAX_OBJECT_BYTES)
        return NULL;
    uint8_t c = slab->class_of_units[(size + ALIGN - 1) / ALIGN];

    if (class_bytes[c] > slab->bound_bytes - slab->used_bytes)
        return NULL;

    Chunk *chunk = slab->partial[c];
    if (!chunk && !(chunk = chunk_take(slab, c)))
        return NULL;

    void *object = chunk->free;
    if (object) {
        ASAN_UNPOISON_MEMORY_REGION(object, class_bytes[c]);
        chunk->free = chunk->free->next;
    } else {
        object = (uint8_t *)chunk + chunk->bump;
        ASAN_UNPOISON_MEMORY_REGION(object, class_bytes[c]);
        chunk->bump += class_bytes[c];
    }
    chunk->n_used++;
    slab->used_bytes += class_bytes[c];
    if (chunk_full(chunk))
        list_remove(slab, chunk);
    return object;
}

void
slab_release(Slab *slab, void *object)
{
    Chunk *chunk = (Chunk *)((uintptr_t)object & ~(uintptr_t)(CHUNK_BYTES - 1));
    FreeObject *free_object = object;

    free_object->next = chunk->free;
    chunk->free = free_object;
    ASAN_POISON_MEMORY_REGION(object, class_bytes[chunk->size_class]);
    slab->used_bytes -= class_bytes[chunk->size_class];
    chunk->n_used--;
    if (!chunk->listed)
        list_push(slab, chunk);
    /* The last chunk of a class stays with it: a single frame going in and out is the common case.
     */
    if (!chunk->n_used && (chunk->prev || chunk->next)) {
        list_remove(slab, chunk);
        chunk->next = slab->pool;
        slab->pool = chunk;
    }
}

size_t
slab_used_bytes(const Slab *slab)
{
    return slab->used_bytes;
}
