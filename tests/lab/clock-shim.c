/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clock-shim.c - for LD_PRELOAD: the wall clock of a host of the lab, which can jump
 *
 * All hosts of the lab share one kernel and so one wall clock. Programs with this library see it
 * plus the seconds that are in the file named by COLOD_LAB_CLOCK (8 bytes, the host's byte order),
 * which is mapped: a jump counts at once. Monotonic clocks are left alone, as they are where a wall
 * clock is set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_s;
static const int64_t none;
static int (*real_clock_gettime)(clockid_t clock, struct timespec *ret_time);

__attribute__((constructor)) static void
open_clock(void)
{
    const char *path = getenv("COLOD_LAB_CLOCK");
    const int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);

    if (fd >= 0)
        (void)close(fd);
    *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    offset_s = map == MAP_FAILED ? &none : map;
}

int
clock_gettime(clockid_t clock, struct timespec *ret_time)
{
    if (!real_clock_gettime)
        open_clock();

    const int result = real_clock_gettime(clock, ret_time);

    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        ret_time->tv_sec += *offset_s;
    return result;
}

int
gettimeofday(struct timeval *restrict ret_time, void *restrict zone)
{
    struct timespec now;

    (void)zone;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    ret_time->tv_sec = now.tv_sec;
    ret_time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t
time(time_t *ret_time)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (ret_time)
        *ret_time = now.tv_sec;
    return now.tv_sec;
}
