/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent-blob.c - the data that the guest serves, and splitmix64 */
#define _GNU_SOURCE /* memfd_create */

#include "guest-agent.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    BLOB_SEED_BYTES = MIB_BYTES,
    BLOB_ROTATION_BYTES = 4096,
};

static struct {
    int fd;
    const char *bytes;
} seed;

uint64_t
splitmix64_at(uint64_t index)
{
    uint64_t z = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void
make_seed(void)
{
    uint64_t *words;

    seed.fd = memfd_create("blob-seed", MFD_CLOEXEC);
    if (seed.fd < 0 || ftruncate(seed.fd, BLOB_SEED_BYTES) < 0) {
        die("seed");
    }
    words = mmap(NULL, BLOB_SEED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, seed.fd, 0);
    if (words == MAP_FAILED) {
        die("seed");
    }
    for (size_t i = 0; i < BLOB_SEED_BYTES / sizeof(uint64_t); i++) {
        words[i] = splitmix64_at(i);
    }
    seed.bytes = (const char *)words;
}

int
seed_file(void)
{
    return seed.fd;
}

size_t
find_in_seed(uint64_t at, uint64_t left, size_t *ret_run)
{
    const size_t offset = (at + at / MIB_BYTES * BLOB_ROTATION_BYTES) % BLOB_SEED_BYTES;
    const size_t to_seed_end = BLOB_SEED_BYTES - offset;
    const size_t to_mib_end = MIB_BYTES - at % MIB_BYTES;

    *ret_run = to_seed_end < to_mib_end ? to_seed_end : to_mib_end;
    if (*ret_run > left) {
        *ret_run = left;
    }
    return offset;
}

int
write_blob(uint64_t mib)
{
    const uint64_t total = mib * MIB_BYTES;

    make_seed();
    for (uint64_t at = 0; at < total;) {
        size_t run;
        const size_t offset = find_in_seed(at, total - at, &run);
        const ssize_t n = write(STDOUT_FILENO, seed.bytes + offset, run);

        if (n < 0) {
            perror("guest-agent: blob");
            return 1;
        }
        at += (uint64_t)n;
    }
    return 0;
}
