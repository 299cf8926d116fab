/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* store.h - a range of bytes that can be read and written: a disk, an overlay, a test's fake */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * All calls: any thread, several at once; whole or not at all as far as the caller is told (a short
 * transfer is continued); 0 or a negative errno. Offsets are in bytes and are the caller's to keep
 * inside the store: outside it a store answers -EINVAL.
 */
typedef struct Store Store;

typedef struct StoreOps {
    int (*read)(Store *store, void *buf, size_t len, uint64_t offset);
    int (*write)(Store *store, const void *buf, size_t len, uint64_t offset);
    /* Makes the range read as zeros; @unmap: its space may be given back. */
    int (*zero)(Store *store, uint64_t len, uint64_t offset, bool unmap);
    /* What was written before this call began survives a crash of the host. */
    int (*flush)(Store *store);
    /* How far from @offset, at most @len, the store is all hole (reads as zeros) or all data. */
    int (*extent)(Store *store, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole);
    /* The range will be read soon, in pieces. NULL: it is as quick without. */
    void (*prefetch)(Store *store, uint64_t offset, uint64_t len);
    /* Nothing will be read for a while: a cache may forget it. NULL: there is none. */
    void (*forget)(Store *store);
    /* Gives all space back; the content is undefined afterwards. */
    int (*discard_all)(Store *store);
    void (*free)(Store *store);
} StoreOps;

struct Store {
    const StoreOps *ops;
    uint64_t size_bytes;
    bool durable; /* false: the content ends with the process */
};

/* The operations, as StoreOps says; those that may be missing do nothing then. */

static inline int
store_read(Store *store, void *buf, size_t len, uint64_t offset)
{
    return store->ops->read(store, buf, len, offset);
}

static inline int
store_write(Store *store, const void *buf, size_t len, uint64_t offset)
{
    return store->ops->write(store, buf, len, offset);
}

static inline int
store_zero(Store *store, uint64_t len, uint64_t offset, bool unmap)
{
    return store->ops->zero(store, len, offset, unmap);
}

static inline int
store_flush(Store *store)
{
    return store->ops->flush(store);
}

static inline int
store_extent(Store *store, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole)
{
    return store->ops->extent(store, offset, len, ret_len, ret_hole);
}

static inline void
store_prefetch(Store *store, uint64_t offset, uint64_t len)
{
    if (store->ops->prefetch)
        store->ops->prefetch(store, offset, len);
}

static inline void
store_forget(Store *store)
{
    if (store->ops->forget)
        store->ops->forget(store);
}

static inline int
store_discard_all(Store *store)
{
    return store->ops->discard_all(store);
}

static inline void
store_free(Store *store)
{
    if (store)
        store->ops->free(store);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Store, store_free)

/** Is the range inside the store? Written so that no sum can overflow. */
static inline bool
store_has(const Store *store, uint64_t len, uint64_t offset)
{
    return offset <= store->size_bytes && len <= store->size_bytes - offset;
}

/**
 * An existing raw file or block device. It is locked against another process of ours.
 * Errors: what open(2) says; G_IO_ERROR_BUSY: another process has it; G_IO_ERROR_NOT_SUPPORTED:
 * neither file nor block device, or of no size.
 */
Store *store_file_open(const char *path, GError **error);

/** The same, to read, beside whoever has it. */
Store *store_file_open_readonly(const char *path, GError **error);

/**
 * A sparse file of our own of @size_bytes, made anew and empty: @keep false; or as it was found:
 * @keep true (then it must exist).
 */
Store *store_file_overlay(const char *path, uint64_t size_bytes, bool keep, GError **error);

/** Memory, reserved but not touched. Not durable. NULL and @error: no address space. */
Store *store_memory_new(uint64_t size_bytes, GError **error);
