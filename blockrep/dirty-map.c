/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dirty-map.c - which parts of this host's disk may differ from the peer's, kept over any crash
 *
 * Theory of operation
 * ===================
 * What must hold: a bit that reads as clear is right. Set ones may be wrong, that costs a copy.
 *
 * The death of a process costs nothing: bits are in the page cache, the header (boot id, flags) is
 * written by one pwrite() of less than a page. A crash of the host may cost bits that were not
 * flushed, and the disk's own unflushed blocks, which need not be the same. So the header says on
 * the medium whether the map is *armed* (not clean) and in which life of the host; armed in another
 * life means that all bits are set. Order at open: first the bits, then the header.
 *
 * Who only reads the map, or clears it, does not arm it: what the crash of a secondary's host costs
 * its disk is in the primary's map.
 *
 * Several openers. Byte 0 of the file, as an open-file-description lock, is held during open, arm
 * and close; byte 1 is held shared while it is open. Who closes and could hold byte 1 alone is the
 * last one and marks it clean, if it knows that it is armed and so has flushed the disk too. A
 * process that was killed has let go of its lock, and its bits are in the same pages that the last
 * one flushes.
 *
 * Space is allocated at open; a store into a page that has no room would be SIGBUS. Cutting
 * the file short while it is mapped is so too: it is ours alone.
 */
#include "dirty-map.h"
#include "dirty-map-header.h"

#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"
#define WORD_BITS UINT64_C(64)
#define CHUNK ((uint64_t)DIRTY_CHUNK_BYTES)

enum {
    LOCK_HEADER = 0, /* bytes of the file that are locked */
    LOCK_USERS = 1,
    LOCK_TRIES = 5000, /* a millisecond each: a holder flushes at most */
    LOCK_PAUSE_US = 1000,
    PAGE_BYTES = 4096,
    FILL_BYTES = 64 * 1024,
};

struct DirtyMap {
    char *path;
    int fd;
    _Atomic uint64_t *words;
    size_t mapped_bytes;
    uint64_t size_bytes, n_chunks, n_words;
    pthread_mutex_t mutex; /* the header */
    atomic_bool armed;
    atomic_bool distrusted;
    atomic_bool never_clean;
    atomic_int arm_result; /* negative errno of the last arming */
    char boot_id[MAP_BOOT_ID_BYTES];
};

/* --- Locks and header --- */

static int
try_lock(int fd, short type, off_t byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

static int
lock_header(int fd)
{
    int r = -EAGAIN;

    for (int i = 0; i < LOCK_TRIES; i++) {
        r = try_lock(fd, F_WRLCK, LOCK_HEADER);
        if (r != -EAGAIN && r != -EACCES && r != -EINTR)
            return r;
        g_usleep(LOCK_PAUSE_US);
    }
    return r;
}

static void
unlock_header(int fd)
{
    (void)try_lock(fd, F_UNLCK, LOCK_HEADER);
}

/* With the header locked. */
static bool
is_alone(int fd)
{
    return try_lock(fd, F_WRLCK, LOCK_USERS) == 0;
}

static int
save_header(int fd, const MapHeader *header)
{
    uint8_t bytes[MAP_HEADER_BYTES];
    ssize_t n;

    map_header_format(header, bytes);
    do
        n = pwrite(fd, bytes, sizeof(bytes), 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    if (n != MAP_HEADER_BYTES)
        return -EIO;
    return fdatasync(fd) < 0 ? -errno : 0;
}

static int
load_header(int fd, MapHeader *ret_header)
{
    uint8_t bytes[MAP_HEADER_BYTES];
    ssize_t n = pread(fd, bytes, sizeof(bytes), 0);

    if (n < 0)
        return -errno;
    return n == MAP_HEADER_BYTES && !map_header_parse(bytes, ret_header) ? 0 : -EIO;
}

static bool
is_same(const MapHeader *a, const MapHeader *b)
{
    return a->clean == b->clean && a->distrusted == b->distrusted &&
           strcmp(a->boot_id, b->boot_id) == 0;
}

/* What arm, trust and close do to the header, other openers' changes kept. */
static int
change_header(DirtyMap *map, void (*change)(DirtyMap *map, MapHeader *header))
{
    MapHeader header = {0}, before;
    int r;

    (void)pthread_mutex_lock(&map->mutex); /* the file's lock does not keep threads apart */
    r = lock_header(map->fd);
    if (r == 0) {
        r = load_header(map->fd, &header);
        before = header;
        if (r == 0)
            change(map, &header);
        if (r == 0 && !is_same(&header, &before))
            r = save_header(map->fd, &header);
        unlock_header(map->fd);
    }
    (void)pthread_mutex_unlock(&map->mutex);
    return r;
}

/* --- Opening --- */

static gboolean
fail(const char *path, const char *doing, int r, GError **error)
{
    g_set_error(error, G_IO_ERROR, (gint)g_io_error_from_errno(-r), "%s: cannot %s: %s", path,
                doing, g_strerror(-r));
    return FALSE;
}

static gboolean
refuse(const char *path, const char *what, GError **error)
{
    g_set_error(
        error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
        "%s: %s; remove the file: a new one is made, and both disks are compared as a whole", path,
        what);
    return FALSE;
}

static gboolean
read_boot_id(char ret_boot_id[MAP_BOOT_ID_BYTES], GError **error)
{
    g_autofree char *text = NULL;

    if (!g_file_get_contents(BOOT_ID_PATH, &text, NULL, error))
        return FALSE;
    (void)g_strstrip(text);
    memset(ret_boot_id, 0, MAP_BOOT_ID_BYTES); /* all of it goes into the header's checksum */
    if (text[0] == '\0' || g_strlcpy(ret_boot_id, text, MAP_BOOT_ID_BYTES) >= MAP_BOOT_ID_BYTES)
        return refuse(BOOT_ID_PATH, "is no boot id", error);
    return TRUE;
}

static size_t
file_bytes(const DirtyMap *map)
{
    return MAP_BITS_OFFSET + (map->n_words * 8 + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* A file system that cannot allocate has what is written allocated, or copies on write and may
 * still be full then. */
static int
allocate(const DirtyMap *map)
{
    if (fallocate(map->fd, 0, 0, (off_t)file_bytes(map)) == 0 || errno == EOPNOTSUPP)
        return 0;
    return -errno;
}

static int
fill(const DirtyMap *map)
{
    static const uint8_t zeros[FILL_BYTES];

    for (size_t at = 0, n; at < file_bytes(map); at += n) {
        ssize_t written = pwrite(map->fd, zeros, MIN(file_bytes(map) - at, FILL_BYTES), (off_t)at);

        if (written < 0 && errno != EINTR)
            return -errno;
        n = written > 0 ? (size_t)written : 0;
    }
    return 0;
}

static gboolean
map_bits(DirtyMap *map, GError **error)
{
    size_t bytes = file_bytes(map) - MAP_BITS_OFFSET;
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map->fd, MAP_BITS_OFFSET);

    if (address == MAP_FAILED)
        return fail(map->path, "map it", -errno, error);
    map->words = address;
    map->mapped_bytes = bytes;
    return TRUE;
}

static void set_range(DirtyMap *map, uint64_t first, uint64_t end);

static int
flush_bits(const DirtyMap *map)
{
    return msync((void *)(uintptr_t)map->words, map->mapped_bytes, MS_SYNC) < 0 ? -errno : 0;
}

/* All bits, and only then the header: who dies in between leaves the old header. */
static gboolean
start_distrusted(DirtyMap *map, MapHeader *header, GError **error)
{
    set_range(map, 0, map->n_chunks);

    int r = flush_bits(map);

    if (r == 0) {
        *header = (MapHeader){.size_bytes = map->size_bytes, .clean = true, .distrusted = true};
        r = save_header(map->fd, header);
    }
    return r == 0 ? TRUE : fail(map->path, "write it", r, error);
}

/* With the header locked. An empty file, or one without a header, is one whose making ended early.
 */
static gboolean
make(DirtyMap *map, GError **error)
{
    MapHeader header;
    int r = ftruncate(map->fd, 0) < 0 ? -errno : allocate(map);

    if (r == 0)
        r = fill(map);
    if (r < 0) {
        (void)ftruncate(map->fd, 0); /* its space is wanted */
        return fail(map->path, "allocate it", r, error);
    }
    if (!map_bits(map, error) || !start_distrusted(map, &header, error))
        return FALSE;
    atomic_init(&map->distrusted, true);
    return TRUE;
}

static gboolean
check_fit(const DirtyMap *map, const MapHeader *header, off_t file_size, GError **error)
{
    if (header->size_bytes != map->size_bytes) {
        g_autofree char *what =
            g_strdup_printf("belongs to a disk of %" PRIu64 " bytes, and this one has %" PRIu64,
                            header->size_bytes, map->size_bytes);

        return refuse(map->path, what, error);
    }
    if ((uint64_t)file_size != file_bytes(map))
        return refuse(map->path, "is damaged (its length)", error);
    return TRUE;
}

/* With the header locked. @alone: nobody else has it open. */
static gboolean
take_over(DirtyMap *map, const uint8_t bytes[MAP_HEADER_BYTES], off_t file_size, bool alone,
          GError **error)
{
    MapHeader header;
    const char *problem = map_header_parse(bytes, &header);
    int r;

    if (problem)
        return refuse(map->path, problem, error);
    if (!check_fit(map, &header, file_size, error))
        return FALSE;
    r = allocate(map); /* a copy may have holes */
    if (r < 0)
        return fail(map->path, "allocate it", r, error);
    if (!map_bits(map, error))
        return FALSE;
    if (!header.clean && alone && strcmp(header.boot_id, map->boot_id) != 0 &&
        !start_distrusted(map, &header, error))
        return FALSE;
    atomic_init(&map->distrusted, header.distrusted);
    atomic_init(&map->armed, !header.clean);
    return TRUE;
}

static gboolean
open_locked(DirtyMap *map, GError **error)
{
    uint8_t bytes[MAP_HEADER_BYTES] = {0};
    bool alone = is_alone(map->fd);
    struct stat st;
    ssize_t n;
    int r =
        try_lock(map->fd, F_RDLCK, LOCK_USERS); /* byte 0 is held: it cannot fail but by a bug */

    if (r < 0)
        return fail(map->path, "lock it", r, error);
    if (fstat(map->fd, &st) < 0)
        return fail(map->path, "look at it", -errno, error);
    if (!S_ISREG(st.st_mode))
        return refuse(map->path, "is no file", error);
    n = pread(map->fd, bytes, sizeof(bytes), 0);
    if (n < 0)
        return fail(map->path, "read it", -errno, error);
    if (st.st_size == 0 || (n == MAP_HEADER_BYTES && map_header_is_blank(bytes))) {
        if (!alone)
            return refuse(map->path, "is in use and has no header", error);
        return make(map, error);
    }
    return take_over(map, bytes, st.st_size, alone, error);
}

static gboolean
open_file(DirtyMap *map, GError **error)
{
    map->fd = open(map->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, (mode_t)0600);
    if (map->fd < 0)
        return fail(map->path, "open it", -errno, error);

    int r = lock_header(map->fd);

    if (r < 0)
        return fail(map->path, "lock it", r, error);

    gboolean ok = open_locked(map, error);

    unlock_header(map->fd);
    return ok;
}

static void
close_map(DirtyMap *map)
{
    if (map->words)
        (void)munmap((void *)(uintptr_t)map->words, map->mapped_bytes);
    fd_clear(&map->fd);
    (void)pthread_mutex_destroy(&map->mutex);
    g_free(map->path);
    g_free(map);
}

DirtyMap *
dirty_map_open(const char *path, uint64_t size_bytes, GError **error)
{
    char boot_id[MAP_BOOT_ID_BYTES];

    if (size_bytes == 0 || size_bytes > DIRTY_MAP_MAX_BYTES) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "%s: a disk that has a map is not empty and has at most %" PRIu64 " bytes",
                    path, DIRTY_MAP_MAX_BYTES);
        return NULL;
    }
    if (!read_boot_id(boot_id, error))
        return NULL;

    DirtyMap *map = g_new0(DirtyMap, 1);

    map->path = g_strdup(path);
    map->fd = -1;
    map->size_bytes = size_bytes;
    map->n_chunks = (size_bytes + CHUNK - 1) / CHUNK;
    map->n_words = (map->n_chunks + WORD_BITS - 1) / WORD_BITS;
    memcpy(map->boot_id, boot_id, sizeof(boot_id));
    (void)pthread_mutex_init(&map->mutex, NULL);
    if (!open_file(map, error)) {
        close_map(map);
        return NULL;
    }
    return map;
}

static void
set_clean(DirtyMap *map, MapHeader *header)
{
    if (atomic_load(&map->armed) && !atomic_load(&map->never_clean) && is_alone(map->fd))
        header->clean = true;
}

void
dirty_map_free(DirtyMap *map)
{
    if (!map)
        return;
    /* A failure leaves the mark out: the next one to open it after a crash distrusts it. */
    if (flush_bits(map) == 0)
        (void)change_header(map, set_clean);
    close_map(map);
}

static void
set_distrusted(G_GNUC_UNUSED DirtyMap *map, MapHeader *header)
{
    header->distrusted = true;
}

/* Others that have it open may still mark it clean: then with all bits set. */
void
dirty_map_distrust(DirtyMap *map)
{
    atomic_store(&map->never_clean, true);
    set_range(map, 0, map->n_chunks);
    atomic_store(&map->distrusted, true);
    (void)change_header(map, set_distrusted); /* without it they are copied, not compared */
}

/* --- Arming --- */

static void
set_armed(DirtyMap *map, MapHeader *header)
{
    header->clean = false;
    memcpy(header->boot_id, map->boot_id, sizeof(header->boot_id));
}

int
dirty_map_arm(DirtyMap *map)
{
    if (atomic_load(&map->armed))
        return 0;

    int r = change_header(map, set_armed);

    atomic_store(&map->arm_result, r);
    if (r == 0)
        atomic_store(&map->armed, true);
    return r;
}

bool
dirty_map_is_armed(const DirtyMap *map)
{
    return atomic_load(&map->armed);
}

static void
set_trusted(G_GNUC_UNUSED DirtyMap *map, MapHeader *header)
{
    header->distrusted = false;
}

int
dirty_map_trust(DirtyMap *map)
{
    int r = change_header(map, set_trusted);

    if (r == 0)
        atomic_store(&map->distrusted, false);
    return r;
}

bool
dirty_map_was_distrusted(const DirtyMap *map)
{
    return atomic_load(&map->distrusted);
}

int
dirty_map_flush(DirtyMap *map)
{
    int r = flush_bits(map);

    return r < 0 ? r : atomic_load(&map->arm_result);
}

/* --- Bits --- */

/* Bits of word @w that are chunks of [@first, @end). */
static uint64_t
mask_of(uint64_t w, uint64_t first, uint64_t end)
{
    uint64_t mask = UINT64_MAX;

    if (first > w * WORD_BITS)
        mask &= UINT64_MAX << (first - w * WORD_BITS);
    if (end < (w + 1) * WORD_BITS)
        mask &= UINT64_MAX >> ((w + 1) * WORD_BITS - end);
    return mask;
}

static void
set_range(DirtyMap *map, uint64_t first, uint64_t end)
{
    for (uint64_t w = first / WORD_BITS; w * WORD_BITS < end; w++) {
        uint64_t mask = mask_of(w, first, end);

        /* Most writes go where others went: a load does not take the line from other cores. */
        if ((atomic_load(&map->words[w]) & mask) != mask)
            atomic_fetch_or(&map->words[w], mask);
    }
}

static void
check_range(const DirtyMap *map, uint64_t offset, uint64_t len)
{
    g_assert(offset <= map->size_bytes && len <= map->size_bytes - offset);
}

static uint64_t
chunk_behind(uint64_t offset)
{
    return offset / CHUNK + (offset % CHUNK > 0);
}

void
dirty_map_mark(DirtyMap *map, uint64_t offset, uint64_t len)
{
    check_range(map, offset, len);
    if (len == 0)
        return;
    (void)dirty_map_arm(map); /* dirty_map_flush() tells */
    set_range(map, offset / CHUNK, chunk_behind(offset + len));
}

void
dirty_map_mark_all(DirtyMap *map)
{
    dirty_map_mark(map, 0, map->size_bytes);
}

void
dirty_map_clear(DirtyMap *map, uint64_t offset, uint64_t len)
{
    check_range(map, offset, len);

    uint64_t first = chunk_behind(offset);
    uint64_t end = offset + len == map->size_bytes ? map->n_chunks : (offset + len) / CHUNK;

    for (uint64_t w = first / WORD_BITS; first < end && w * WORD_BITS < end; w++) {
        uint64_t mask = mask_of(w, first, end);

        if (atomic_load(&map->words[w]) & mask)
            atomic_fetch_and(&map->words[w], ~mask);
    }
}

/* The first chunk of [@from, @end) whose bit is @value; @end: none. */
static uint64_t
find(const DirtyMap *map, uint64_t from, uint64_t end, bool value)
{
    for (uint64_t w = from / WORD_BITS; from < end && w * WORD_BITS < end; w++) {
        uint64_t word = atomic_load(&map->words[w]);

        word = (value ? word : ~word) & mask_of(w, from, end);
        if (word)
            return w * WORD_BITS + (uint64_t)__builtin_ctzll(word);
    }
    return end;
}

bool
dirty_map_is_marked(const DirtyMap *map, uint64_t offset, uint64_t len)
{
    check_range(map, offset, len);
    if (len == 0)
        return false;

    uint64_t end = chunk_behind(offset + len);

    return find(map, offset / CHUNK, end, true) < end;
}

uint64_t
dirty_map_next(const DirtyMap *map, uint64_t from_offset, uint64_t *ret_len)
{
    uint64_t first = from_offset < map->size_bytes
                         ? find(map, from_offset / CHUNK, map->n_chunks, true)
                         : map->n_chunks;

    if (first == map->n_chunks)
        return UINT64_MAX;

    uint64_t limit = MIN(first + DIRTY_MAP_MAX_RUN_BYTES / CHUNK, map->n_chunks);
    uint64_t start = MAX(first * CHUNK, from_offset);

    *ret_len = MIN(find(map, first, limit, false) * CHUNK, map->size_bytes) - start;
    return start;
}

uint64_t
dirty_map_marked_bytes(const DirtyMap *map)
{
    uint64_t n = 0, missing = map->n_chunks * CHUNK - map->size_bytes; /* of the last chunk */

    for (uint64_t w = 0; w < map->n_words; w++)
        n += (uint64_t)__builtin_popcountll(atomic_load(&map->words[w]) &
                                            mask_of(w, 0, map->n_chunks));
    n *= CHUNK;
    return dirty_map_is_marked(map, map->size_bytes - 1, 1) ? n - MIN(n, missing) : n;
}

/* --- Bits as bytes --- */

uint64_t
dirty_map_n_bytes(const DirtyMap *map)
{
    return (map->n_chunks + 7) / 8;
}

uint64_t
dirty_map_size_bytes(const DirtyMap *map)
{
    return map->size_bytes;
}

void
dirty_map_read_bytes(const DirtyMap *map, void *buf, size_t len, uint64_t offset)
{
    uint8_t *to = buf;

    g_assert(offset <= dirty_map_n_bytes(map) && len <= dirty_map_n_bytes(map) - offset);
    for (size_t i = 0; i < len; i++) {
        uint64_t w = (offset + i) / 8;
        uint64_t word = atomic_load(&map->words[w]) & mask_of(w, 0, map->n_chunks);

        to[i] = (uint8_t)(word >> ((offset + i) % 8 * 8));
    }
}

void
dirty_map_merge_bytes(DirtyMap *map, const void *bits, size_t len, uint64_t offset)
{
    const uint8_t *from = bits;

    g_assert(offset <= dirty_map_n_bytes(map) && len <= dirty_map_n_bytes(map) - offset);
    for (size_t i = 0; i < len; i++) {
        uint64_t w = (offset + i) / 8;
        uint64_t word = (uint64_t)from[i] << ((offset + i) % 8 * 8) & mask_of(w, 0, map->n_chunks);

        if (word)
            atomic_fetch_or(&map->words[w], word);
    }
}
