/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent-dirty.c - writes to memory at a rate */
#include "guest-agent.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

enum {
    PAGE_BYTES = 4096,
    DIRTY_PERIOD_MS = 10,
    DIRTY_RESERVE_MIB = 6,    /* left to the kernel and to httpd */
    DIRTY_MAX_RATE = 1000000, /* pages per second, beyond what emulation can do */
};

static struct {
    int timer_fd;
    char *memory;
    size_t pages;
    size_t next;
    uint64_t rate;  /* pages per second */
    uint64_t carry; /* in pages times milliseconds per second */
    uint64_t total;
} dirty;

void
open_dirtier(void)
{
    dirty.timer_fd = make_timer(FD_DIRTY);
}

static void
stop_dirtying(void)
{
    set_timer(dirty.timer_fd, 0, 0);
    if (dirty.memory != NULL) {
        munmap(dirty.memory, dirty.pages * PAGE_BYTES);
    }
    dirty.memory = NULL;
    dirty.pages = 0;
    dirty.next = 0;
    dirty.carry = 0;
    dirty.rate = 0;
}

const char *
start_dirtying(uint64_t rate, uint64_t mib)
{
    struct sysinfo info;
    char *memory;

    if (rate > DIRTY_MAX_RATE) {
        return "the rate is above 1000000 pages per second";
    }
    stop_dirtying();
    if (rate == 0) {
        return NULL;
    }
    /* Running out of memory would kill this process and with it the guest. */
    if (sysinfo(&info) < 0 ||
        mib + DIRTY_RESERVE_MIB > (uint64_t)info.freeram * info.mem_unit / MIB_BYTES) {
        return "not so much memory is free";
    }
    memory =
        mmap(NULL, mib * MIB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return "out of memory";
    }
    dirty.memory = memory;
    dirty.pages = mib * MIB_BYTES / PAGE_BYTES;
    dirty.rate = rate;
    set_timer(dirty.timer_fd, DIRTY_PERIOD_MS, DIRTY_PERIOD_MS);
    return NULL;
}

void
dirty_some(void)
{
    uint64_t pages;

    dirty.carry += read_timer(dirty.timer_fd) * DIRTY_PERIOD_MS * dirty.rate;
    pages = dirty.carry / 1000;
    dirty.carry %= 1000;
    /* After a stall nothing is made up for: each page needs to be written once at most. */
    if (pages > dirty.pages) {
        pages = dirty.pages;
    }
    for (uint64_t i = 0; i < pages; i++) {
        dirty.total++;
        memcpy(dirty.memory + dirty.next * PAGE_BYTES, &dirty.total, sizeof(dirty.total));
        dirty.next = (dirty.next + 1) % dirty.pages;
    }
}

int
print_dirtying(char *text, size_t bytes)
{
    return snprintf(text, bytes, "dirty %llu %zu pages %llu", (unsigned long long)dirty.rate,
                    dirty.pages * PAGE_BYTES / MIB_BYTES, (unsigned long long)dirty.total);
}
