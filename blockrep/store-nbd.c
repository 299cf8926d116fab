/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* store-nbd.c - a store in an NBD export of this host, as a rule qemu-storage-daemon's
 *
 * A few connections, each used by one thread at a time with libnbd's calls that wait; a single one
 * if the server does not say that a flush on one covers the others (can_multi_conn).
 *
 * A connection that is lost stays lost. The server may have ended with writes that were answered
 * and not flushed; a new connection would go on as if nothing had happened, and the mirror would
 * differ in silence. So what comes after it fails, the fault has a name, and the map has what must
 * be copied again.
 */
#include "store-nbd.h"

#include "clock.h"
#include "image.h"

#include <errno.h>
#include <gio/gio.h>
#include <libnbd.h>
#include <pthread.h>

enum {
    CONNECTIONS = 8, /* of a target: nbdkit serves 16 requests at once; most are in the cache */
    CONNECTIONS_READ = 2, /* of a forwarder, which has one thread that reads */
    CONNECT_S = 5,
    MAX_PIECE_BYTES = 32 * 1024 * 1024, /* what an NBD server always takes */
};

typedef struct NbdStore {
    Store base;
    pthread_mutex_t mutex;
    pthread_cond_t room;
    struct nbd_handle *handles[CONNECTIONS]; /* all */
    unsigned n_handles;
    struct nbd_handle *idle[CONNECTIONS];
    unsigned n_idle;
    bool can_zero, has_extents;
} NbdStore;

static NbdStore *
of(Store *store)
{
    return (NbdStore *)store;
}

/* --- Connections --- */

static struct nbd_handle *
take(NbdStore *nbd)
{
    struct nbd_handle *handle;

    (void)pthread_mutex_lock(&nbd->mutex);
    while (nbd->n_idle == 0)
        (void)pthread_cond_wait(&nbd->room, &nbd->mutex);
    handle = nbd->idle[--nbd->n_idle];
    (void)pthread_mutex_unlock(&nbd->mutex);
    return handle;
}

static void
give_back(NbdStore *nbd, struct nbd_handle *handle)
{
    (void)pthread_mutex_lock(&nbd->mutex);
    nbd->idle[nbd->n_idle++] = handle;
    (void)pthread_cond_signal(&nbd->room);
    (void)pthread_mutex_unlock(&nbd->mutex);
}

/* Of the call that this thread made last. */
static int
result(int r)
{
    int code = r < 0 ? nbd_get_errno() : 0;

    if (r >= 0)
        return 0;
    return code > 0 ? -code : -EIO;
}

/* --- Requests --- */

typedef enum Transfer { TRANSFER_READ, TRANSFER_WRITE } Transfer;

/* In pieces on one connection; a write only reads through the pointer. */
static int
transfer(NbdStore *nbd, uint8_t *buf, size_t len, uint64_t offset, Transfer how)
{
    struct nbd_handle *handle;
    int r = 0;

    if (!store_has(&nbd->base, len, offset))
        return -EINVAL;
    handle = take(nbd);
    while (len > 0 && r == 0) {
        size_t piece = MIN(len, MAX_PIECE_BYTES);

        r = result(how == TRANSFER_READ ? nbd_pread(handle, buf, piece, offset, 0)
                                        : nbd_pwrite(handle, buf, piece, offset, 0));
        buf += piece;
        offset += piece;
        len -= piece;
    }
    give_back(nbd, handle);
    return r;
}

static int
nbd_store_read(Store *store, void *buf, size_t len, uint64_t offset)
{
    return transfer(of(store), buf, len, offset, TRANSFER_READ);
}

static int
nbd_store_write(Store *store, const void *buf, size_t len, uint64_t offset)
{
    return transfer(of(store), (uint8_t *)(uintptr_t)buf, len, offset, TRANSFER_WRITE);
}

static int
zero_piece(const NbdStore *nbd, struct nbd_handle *handle, uint64_t len, uint64_t offset,
           bool unmap)
{
    static const uint8_t zeros[64 * 1024];
    int r = 0;

    if (nbd->can_zero)
        return result(nbd_zero(handle, len, offset, unmap ? 0 : (uint32_t)LIBNBD_CMD_FLAG_NO_HOLE));
    while (len > 0 && r == 0) {
        size_t piece = MIN(len, sizeof(zeros));

        r = result(nbd_pwrite(handle, zeros, piece, offset, 0));
        offset += piece;
        len -= piece;
    }
    return r;
}

static int
nbd_store_zero(Store *store, uint64_t len, uint64_t offset, bool unmap)
{
    struct nbd_handle *handle;
    int r = 0;

    if (!store_has(store, len, offset))
        return -EINVAL;
    handle = take(of(store));
    while (len > 0 && r == 0) {
        uint64_t piece = MIN(len, MAX_PIECE_BYTES);

        r = zero_piece(of(store), handle, piece, offset, unmap);
        offset += piece;
        len -= piece;
    }
    give_back(of(store), handle);
    return r;
}

static int
nbd_store_flush(Store *store)
{
    struct nbd_handle *handle = take(of(store));
    int r = result(nbd_flush(handle, 0));

    give_back(of(store), handle);
    return r;
}

/* --- Extents --- */

typedef struct Extent {
    uint64_t len;
    bool is_hole, is_known;
} Extent;

/* Pairs of length and flags; the first is what was asked for. */
static int
on_extent(void *user_data, const char *context, G_GNUC_UNUSED uint64_t offset, uint32_t *entries,
          size_t n_entries, G_GNUC_UNUSED int *error)
{
    Extent *extent = user_data;

    if (n_entries >= 2 && entries[0] > 0 && g_str_equal(context, LIBNBD_CONTEXT_BASE_ALLOCATION)) {
        extent->len = entries[0];
        extent->is_hole = entries[1] & LIBNBD_STATE_ZERO;
        extent->is_known = true;
    }
    return 0;
}

static int
nbd_store_extent(Store *store, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole)
{
    Extent extent = {0};

    if (!store_has(store, len, offset))
        return -EINVAL;
    if (of(store)->has_extents) {
        struct nbd_handle *handle = take(of(store));

        (void)nbd_block_status(handle, MIN(len, MAX_PIECE_BYTES), offset,
                               (nbd_extent_callback){.callback = on_extent, .user_data = &extent},
                               LIBNBD_CMD_FLAG_REQ_ONE);
        give_back(of(store), handle);
    }
    /* What is not known is data. */
    *ret_len = extent.is_known ? MIN(extent.len, len) : len;
    *ret_hole = extent.is_known && extent.is_hole;
    return 0;
}

/* --- Life --- */

/* Of overlays, which are never here. */
static int
nbd_store_discard_all(G_GNUC_UNUSED Store *store)
{
    return -EOPNOTSUPP;
}

static void
nbd_store_free(Store *store)
{
    NbdStore *nbd = of(store);

    for (unsigned i = 0; i < nbd->n_handles; i++) {
        (void)nbd_aio_disconnect(nbd->handles[i], 0);
        nbd_close(nbd->handles[i]);
    }
    (void)pthread_cond_destroy(&nbd->room);
    (void)pthread_mutex_destroy(&nbd->mutex);
    g_free(nbd);
}

static const StoreOps nbd_ops = {
    .read = nbd_store_read,
    .write = nbd_store_write,
    .zero = nbd_store_zero,
    .flush = nbd_store_flush,
    .extent = nbd_store_extent,
    .discard_all = nbd_store_discard_all,
    .free = nbd_store_free,
};

/* NULL: it can be a disk. */
static const char *
why_not(struct nbd_handle *handle)
{
    if (nbd_is_read_only(handle) != 0)
        return "is read-only: export it writable";
    if (nbd_can_flush(handle) != 1)
        return "cannot flush";
    /* 0: it does not say, then any is fine. */
    if (nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM) > 1)
        return "takes only blocks: export it without cache.direct";
    return NULL;
}

/* What the export can be asked for besides; block status only if the context was negotiated. */
static void
look_at(NbdStore *nbd, struct nbd_handle *handle, int64_t size)
{
    nbd->base.size_bytes = (uint64_t)size;
    nbd->can_zero = nbd_can_zero(handle) == 1;
    nbd->has_extents = nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
}

/* Another size, or something else that it can: another server has taken the socket over. */
static bool
is_as_first(const NbdStore *nbd, struct nbd_handle *handle, int64_t size)
{
    NbdStore other = {0};

    look_at(&other, handle, size);
    return other.base.size_bytes == nbd->base.size_bytes && other.can_zero == nbd->can_zero &&
           other.has_extents == nbd->has_extents && nbd_can_multi_conn(handle) == 1;
}

/* Each connection is checked before it is used. */
static gboolean
check(NbdStore *nbd, struct nbd_handle *handle, const char *image, GError **error)
{
    const char *reason = why_not(handle);
    int64_t size = nbd_get_size(handle);

    if (!reason && size <= 0)
        reason = "is empty";
    if (!reason && nbd->n_handles == 0)
        look_at(nbd, handle, size);
    else if (!reason && !is_as_first(nbd, handle, size))
        reason = "is not the same for each connection";
    if (reason)
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED, "%s: the export %s", image,
                    reason);
    return reason == NULL;
}

static gboolean
connect_all(NbdStore *nbd, const char *image, StoreAccess access, GError **error)
{
    const int64_t deadline_ns = clock_now_ns() + CONNECT_S * NS_PER_S;
    g_auto(ImageNbd) place = {0};
    unsigned n = 1;

    if (!image_nbd_parse(image, &place, error))
        return FALSE;
    while (nbd->n_handles < n) {
        struct nbd_handle *handle = image_nbd_connect(&place, deadline_ns, error);

        if (!handle)
            return FALSE;
        if (!check(nbd, handle, image, error)) {
            nbd_close(handle);
            return FALSE;
        }
        nbd->idle[nbd->n_idle++] = nbd->handles[nbd->n_handles++] = handle;
        if (nbd_can_multi_conn(handle) == 1)
            n = access == STORE_READ ? CONNECTIONS_READ : CONNECTIONS;
    }
    return TRUE;
}

static Store *
open_nbd(const char *image, StoreAccess access, GError **error)
{
    NbdStore *nbd = g_new0(NbdStore, 1);

    nbd->base = (Store){.ops = &nbd_ops, .durable = true};
    (void)pthread_mutex_init(&nbd->mutex, NULL);
    (void)pthread_cond_init(&nbd->room, NULL);
    if (connect_all(nbd, image, access, error))
        return &nbd->base;
    nbd_store_free(&nbd->base);
    return NULL;
}

Store *
store_open(const char *image, StoreAccess access, GError **error)
{
    if (image_is_nbd(image))
        return open_nbd(image, access, error);
    return access == STORE_READ ? store_file_open_readonly(image, error)
                                : store_file_open(image, error);
}
