/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* store-file.c - a store in a raw file or on a block device
 *
 * Page cache I/O, as nbdkit's file plugin does: the mirror has no need of O_DIRECT, and what the
 * disk and its overlays share most is the cache. pread() and pwrite() carry their offset, and
 * lseek(SEEK_DATA) is given one, so nothing here needs a lock.
 */
#include "store.h"

#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ZERO_PIECE_BYTES = 64 * 1024 };

typedef struct FileStore {
    Store base;
    int fd;
    bool is_device;
} FileStore;

static int
fd_of(Store *store)
{
    return ((FileStore *)store)->fd;
}

static int
file_read(Store *store, void *buf, size_t len, uint64_t offset)
{
    uint8_t *to = buf;

    if (!store_has(store, len, offset))
        return -EINVAL;
    while (len > 0) {
        ssize_t n = pread(fd_of(store), to, len, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) /* somebody has cut the file short */
            return -EIO;
        to += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int
file_write(Store *store, const void *buf, size_t len, uint64_t offset)
{
    const uint8_t *from = buf;

    if (!store_has(store, len, offset))
        return -EINVAL;
    while (len > 0) {
        ssize_t n = pwrite(fd_of(store), from, len, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        from += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int
write_zeros(Store *store, uint64_t len, uint64_t offset)
{
    static const uint8_t zeros[ZERO_PIECE_BYTES];

    while (len > 0) {
        size_t piece = MIN(len, sizeof(zeros));
        int r = file_write(store, zeros, piece, offset);

        if (r < 0)
            return r;
        len -= piece;
        offset += piece;
    }
    return 0;
}

/* A file system or device that cannot do it says so; then zeros are written. Devices want whole
 * sectors and say -EINVAL for less. */
static int
file_zero(Store *store, uint64_t len, uint64_t offset, bool unmap)
{
    int how = FALLOC_FL_KEEP_SIZE | (unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

    if (!store_has(store, len, offset))
        return -EINVAL;
    /* Short ranges are cheaper to write than to have a transaction of the file system for. */
    if (len == 0 || (!unmap && len <= ZERO_PIECE_BYTES))
        return write_zeros(store, len, offset);
    if (fallocate(fd_of(store), how, (off_t)offset, (off_t)len) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENODEV)
        return -errno;
    return write_zeros(store, len, offset);
}

static void
file_prefetch(Store *store, uint64_t offset, uint64_t len)
{
    (void)posix_fadvise(fd_of(store), (off_t)offset, (off_t)len, POSIX_FADV_WILLNEED);
}

static void
file_forget(Store *store)
{
    (void)posix_fadvise(fd_of(store), 0, 0, POSIX_FADV_DONTNEED);
}

static int
file_flush(Store *store)
{
    return fdatasync(fd_of(store)) < 0 ? -errno : 0;
}

static int
file_extent(Store *store, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole)
{
    if (!store_has(store, len, offset))
        return -EINVAL;

    off_t data = ((FileStore *)store)->is_device ? (off_t)offset
                                                 : lseek(fd_of(store), (off_t)offset, SEEK_DATA);

    if (data < 0 && errno == ENXIO) /* holes up to the end */
        data = (off_t)(offset + len);
    else if (data < 0) /* a file system that does not know */
        data = (off_t)offset;
    if ((uint64_t)data > offset) {
        *ret_len = MIN((uint64_t)data - offset, len);
        *ret_hole = true;
        return 0;
    }

    off_t hole =
        ((FileStore *)store)->is_device ? -1 : lseek(fd_of(store), (off_t)offset, SEEK_HOLE);

    *ret_len = hole > (off_t)offset ? MIN((uint64_t)hole - offset, len) : len;
    *ret_hole = false;
    return 0;
}

static int
file_discard_all(Store *store)
{
    if (ftruncate(fd_of(store), 0) < 0 || ftruncate(fd_of(store), (off_t)store->size_bytes) < 0)
        return -errno;
    return 0;
}

static void
file_free(Store *store)
{
    fd_clear(&((FileStore *)store)->fd);
    g_free(store);
}

static const StoreOps file_ops = {
    .read = file_read,
    .write = file_write,
    .zero = file_zero,
    .flush = file_flush,
    .extent = file_extent,
    .prefetch = file_prefetch,
    .forget = file_forget,
    .discard_all = file_discard_all,
    .free = file_free,
};

static Store *
fail(const char *path, const char *doing, GError **error)
{
    int saved_errno = errno;

    g_set_error(error, G_IO_ERROR, (gint)g_io_error_from_errno(saved_errno), "%s: cannot %s: %s",
                path, doing, g_strerror(saved_errno));
    return NULL;
}

static Store *
store_of(int fd, uint64_t size_bytes, bool is_device)
{
    FileStore *file = g_new0(FileStore, 1);

    file->base = (Store){.ops = &file_ops, .size_bytes = size_bytes, .durable = true};
    file->fd = fd;
    file->is_device = is_device;
    return &file->base;
}

/* The size of what is open; 0: @error is set. */
static uint64_t
size_of(int fd, const char *path, bool *ret_is_device, GError **error)
{
    struct stat st;
    uint64_t size = 0;

    if (fstat(fd, &st) < 0) {
        (void)fail(path, "look at it", error);
        return 0;
    }
    *ret_is_device = S_ISBLK(st.st_mode);
    if (S_ISREG(st.st_mode))
        size = (uint64_t)st.st_size;
    else if (*ret_is_device && ioctl(fd, BLKGETSIZE64, &size) < 0) {
        (void)fail(path, "ask for its size", error);
        return 0;
    }
    if (size > 0 && size <= INT64_MAX)
        return size;
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                "%s: a disk is a raw file or a block device, and not empty", path);
    return 0;
}

/* The kernel does not read ahead by itself: it would do that in pieces of the page cache as large
 * as what it reads, and each small write of the guest into such a piece then costs several times as
 * much. Who reads in a line says so with store_prefetch(). */
static void
do_not_read_ahead(int fd)
{
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* advice */
}

Store *
store_file_open(const char *path, GError **error)
{
    auto_fd int fd = open(path, O_RDWR | O_CLOEXEC);
    bool is_device;

    if (fd < 0)
        return fail(path, "open it", error);

    uint64_t size = size_of(fd, path, &is_device, error);

    if (size == 0)
        return NULL;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK)
            return fail(path, "lock it", error);
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY, "%s: another process uses it", path);
        return NULL;
    }
    do_not_read_ahead(fd);
    return store_of(fd_steal(&fd), size, is_device);
}

Store *
store_file_open_readonly(const char *path, GError **error)
{
    auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool is_device;

    if (fd < 0)
        return fail(path, "open it", error);

    uint64_t size = size_of(fd, path, &is_device, error);

    if (size == 0)
        return NULL;
    do_not_read_ahead(fd);
    return store_of(fd_steal(&fd), size, is_device);
}

Store *
store_file_overlay(const char *path, uint64_t size_bytes, bool keep, GError **error)
{
    int how = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (keep ? 0 : O_CREAT | O_TRUNC);
    auto_fd int fd = open(path, how, (mode_t)0600);

    g_assert(size_bytes <= INT64_MAX);
    if (fd < 0)
        return fail(path, keep ? "open it" : "create it", error);
    if (ftruncate(fd, (off_t)size_bytes) < 0)
        return fail(path, "give it its size", error);
    return store_of(fd_steal(&fd), size_bytes, false);
}
