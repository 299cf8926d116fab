/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* store-memory.c - a store in memory: address space is reserved, pages come when they are written
 */
#include "store.h"

#include <errno.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/mman.h>

typedef struct MemoryStore {
    Store base;
    uint8_t *data;
} MemoryStore;

static uint8_t *
at(Store *store, uint64_t offset)
{
    return ((MemoryStore *)store)->data + offset;
}

static int
memory_read(Store *store, void *buf, size_t len, uint64_t offset)
{
    if (!store_has(store, len, offset))
        return -EINVAL;
    memcpy(buf, at(store, offset), len);
    return 0;
}

static int
memory_write(Store *store, const void *buf, size_t len, uint64_t offset)
{
    if (!store_has(store, len, offset))
        return -EINVAL;
    memcpy(at(store, offset), buf, len);
    return 0;
}

static int
memory_zero(Store *store, uint64_t len, uint64_t offset, G_GNUC_UNUSED bool unmap)
{
    if (!store_has(store, len, offset))
        return -EINVAL;
    memset(at(store, offset), 0, len);
    return 0;
}

static int
memory_flush(G_GNUC_UNUSED Store *store)
{
    return 0;
}

static int
memory_extent(Store *store, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole)
{
    if (!store_has(store, len, offset))
        return -EINVAL;
    *ret_len = len;
    *ret_hole = false;
    return 0;
}

static int
memory_discard_all(Store *store)
{
    return madvise(at(store, 0), store->size_bytes, MADV_DONTNEED) < 0 ? -errno : 0;
}

static void
memory_free(Store *store)
{
    (void)munmap(at(store, 0), store->size_bytes);
    g_free(store);
}

static const StoreOps memory_ops = {
    .read = memory_read,
    .write = memory_write,
    .zero = memory_zero,
    .flush = memory_flush,
    .extent = memory_extent,
    .discard_all = memory_discard_all,
    .free = memory_free,
};

Store *
store_memory_new(uint64_t size_bytes, GError **error)
{
    void *data = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (data == MAP_FAILED) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE,
                    "no address space for an overlay of %" G_GUINT64_FORMAT " bytes", size_bytes);
        return NULL;
    }

    MemoryStore *memory = g_new0(MemoryStore, 1);

    memory->base = (Store){.ops = &memory_ops, .size_bytes = size_bytes, .durable = false};
    memory->data = data;
    return &memory->base;
}
