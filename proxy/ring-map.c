/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ring-map.c - memory mapped twice in a row, and a ring of bytes in it */
#include "ring-map.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fd.h"

enum { POPULATE_BYTES = 1 << 20 };

uint8_t *
ring_map_new(size_t bytes)
{
    auto_fd int fd = memfd_create("colod-ring", MFD_CLOEXEC);

    /* fallocate(): too little memory is an error now, not a SIGBUS in the middle of a checkpoint.
     */
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fallocate(fd, 0, 0, (off_t)bytes) < 0)
        return NULL;

    void *space = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (space == MAP_FAILED)
        return NULL;
    for (unsigned i = 0; i < 2; i++) {
        void *want = (uint8_t *)space + i * bytes;

        if (mmap(want, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
            MAP_FAILED) {
            int saved_errno = errno;

            (void)munmap(space, 2 * bytes);
            errno = saved_errno;
            return NULL;
        }
    }
    return space;
}

void
ring_map_populate(uint8_t *map, size_t bytes)
{
    /* In pieces: whoever maps or unmaps memory in another thread waits for one of them only. An
     * older kernel does not know it (EINVAL): then the first frames find their pages themselves. */
    for (size_t at = 0; at < 2 * bytes; at += POPULATE_BYTES)
        (void)madvise(map + at, 2 * bytes - at < POPULATE_BYTES ? 2 * bytes - at : POPULATE_BYTES,
                      MADV_POPULATE_WRITE);
}

void
ring_map_free(uint8_t *map, size_t bytes)
{
    if (map)
        (void)munmap(map, 2 * bytes);
}

int
byte_ring_init(ByteRing *ring, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    bytes = (bytes + page - 1) / page * page;

    uint8_t *map = ring_map_new(bytes);

    if (!map)
        return -errno;
    ring_map_populate(map, bytes);
    *ring = (ByteRing){.map = map, .bytes = bytes};
    return 0;
}

void
byte_ring_clear(ByteRing *ring)
{
    ring_map_free(ring->map, ring->bytes);
    *ring = (ByteRing){0};
}
