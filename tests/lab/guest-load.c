/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-load.c - load on the guest's disk, for measurements
 *
 * Past the guest's page cache and any file system: on the device, which must not be mounted. Each
 * thread has one request under way, so as many threads are a queue so deep. Times are the guest's;
 * while a guest stands its clock stands too.
 */
#define _GNU_SOURCE /* O_DIRECT */
#include "guest-load.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEVICE "/dev/vda"
#define NS_PER_S INT64_C(1000000000)

enum {
    MAX_THREADS = 64,
    MAX_REQUEST = 1 << 20,
    ALIGNMENT = 4096,
    STEPS = 16, /* of the histogram, in each power of two of nanoseconds */
    BUCKETS = 40 * STEPS,
    THREAD_STACK = 128 * 1024,
};

typedef struct Load {
    bool is_read, is_random, is_flushed;
    int fd;
    uint64_t request_bytes, n_places, seed;
    int64_t end_ns;
    unsigned n_threads;
} Load;

typedef struct Worker {
    const Load *load;
    unsigned number;
    uint64_t count, state;
    int problem; /* errno */
    int64_t max_ns;
    uint32_t times[BUCKETS];
    uint8_t *buf;
    pthread_t thread;
} Worker;

static int64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static uint64_t
next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* --- Times --- */

static unsigned
bucket_of(int64_t ns)
{
    uint64_t value = ns < STEPS ? STEPS : (uint64_t)ns;
    unsigned power = 63U - (unsigned)__builtin_clzll(value);
    unsigned bucket = power * STEPS + (unsigned)((value >> (power - 4)) & (STEPS - 1));

    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static uint64_t
bucket_start_ns(unsigned bucket)
{
    unsigned power = bucket / STEPS;

    return (UINT64_C(1) << power) + ((uint64_t)(bucket % STEPS) << (power - 4));
}

static uint64_t
percentile_us(const uint32_t *times, uint64_t count, unsigned percent)
{
    uint64_t before = 0, wanted = count * percent / 100;

    for (unsigned i = 0; i < BUCKETS; i++) {
        before += times[i];
        if (before > wanted)
            return bucket_start_ns(i) / 1000;
    }
    return 0;
}

/* --- Requests --- */

static off_t
next_place(Worker *worker)
{
    const Load *load = worker->load;
    uint64_t in_line = worker->count * load->n_threads + worker->number;
    uint64_t place = load->is_random ? next_random(&worker->state) : in_line;

    return (off_t)(place % load->n_places * load->request_bytes);
}

/* 0 or errno. */
static int
request(Worker *worker)
{
    const Load *load = worker->load;
    off_t offset = next_place(worker);
    ssize_t n;

    if (load->is_read) {
        n = pread(load->fd, worker->buf, load->request_bytes, offset);
    } else {
        ((uint64_t *)worker->buf)[0] = next_random(&worker->state); /* no two are alike */
        n = pwrite(load->fd, worker->buf, load->request_bytes, offset);
    }
    if (n != (ssize_t)load->request_bytes)
        return n < 0 ? errno : EIO;
    return load->is_flushed && fdatasync(load->fd) < 0 ? errno : 0;
}

static void *
work(void *user_data)
{
    Worker *worker = user_data;
    int64_t before = now_ns();

    while (before < worker->load->end_ns && worker->problem == 0) {
        worker->problem = request(worker);

        int64_t after = now_ns(), took = after - before;

        worker->times[bucket_of(took)]++;
        worker->max_ns = took > worker->max_ns ? took : worker->max_ns;
        worker->count++;
        before = after;
    }
    return NULL;
}

static void
prepare(Worker *worker, const Load *load, unsigned number)
{
    memset(worker, 0, sizeof(*worker));
    worker->load = load;
    worker->number = number;
    worker->state = (load->seed * MAX_THREADS + number + 1) * UINT64_C(0x9E3779B97F4A7C15);
    if (posix_memalign((void **)&worker->buf, ALIGNMENT, MAX_REQUEST) != 0)
        abort();
    for (uint64_t i = 0; i < load->request_bytes / 8; i++)
        ((uint64_t *)worker->buf)[i] = next_random(&worker->state);
}

static void
start(Worker *worker)
{
    pthread_attr_t attr;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, THREAD_STACK);
    if (pthread_create(&worker->thread, &attr, work, worker) != 0)
        abort();
    pthread_attr_destroy(&attr);
}

/* --- The commands --- */

static bool
parse(const char *arguments, Load *load, unsigned *ret_ms, uint64_t *ret_span_bytes)
{
    unsigned long long bytes, seed;
    unsigned threads, ms, span_mib;
    char kind[16];

    if (sscanf(arguments, "%15[a-z] %llu %u %u %u %llu", kind, &bytes, &threads, &ms, &span_mib,
               &seed) != 6)
        return false;
    *load = (Load){
        .is_read = strcmp(kind, "randread") == 0 || strcmp(kind, "read") == 0,
        .is_random = strncmp(kind, "rand", 4) == 0,
        .is_flushed = strcmp(kind, "randsync") == 0,
        .request_bytes = bytes,
        .seed = seed,
        .n_threads = threads,
    };
    *ret_ms = ms;
    *ret_span_bytes = (uint64_t)span_mib << 20;
    return (load->is_read || load->is_flushed || strcmp(kind, "randwrite") == 0 ||
            strcmp(kind, "write") == 0) &&
           bytes >= ALIGNMENT && bytes <= MAX_REQUEST && bytes % ALIGNMENT == 0 && threads > 0 &&
           threads <= MAX_THREADS && *ret_span_bytes >= bytes;
}

static void
report(Worker *workers, const Load *load, int64_t start_ns, char *answer, size_t size)
{
    static uint32_t times[BUCKETS];
    int64_t took_ns = now_ns() - start_ns, max_ns = 0;
    uint64_t count = 0;
    int problem = 0;

    memset(times, 0, sizeof(times));
    for (unsigned i = 0; i < load->n_threads; i++) {
        count += workers[i].count;
        problem = problem ? problem : workers[i].problem;
        max_ns = workers[i].max_ns > max_ns ? workers[i].max_ns : max_ns;
        for (unsigned k = 0; k < BUCKETS; k++)
            times[k] += workers[i].times[k];
    }
    if (problem)
        snprintf(answer, size, "error %s", strerror(problem));
    else
        snprintf(answer, size, "ok %llu %lld %llu %llu %lld", (unsigned long long)count,
                 (long long)(took_ns / 1000), (unsigned long long)percentile_us(times, count, 50),
                 (unsigned long long)percentile_us(times, count, 99), (long long)(max_ns / 1000));
}

/* O_EXCL: not while it is mounted. Negative: the answer says why. */
static int
open_device(bool is_read, uint64_t span_bytes, char *answer, size_t size)
{
    int fd = open(DEVICE, (is_read ? O_RDONLY : O_RDWR | O_EXCL) | O_DIRECT | O_CLOEXEC);

    if (fd >= 0 && (uint64_t)lseek(fd, 0, SEEK_END) >= span_bytes)
        return fd;
    snprintf(answer, size, "error %s: %s", DEVICE, fd < 0 ? strerror(errno) : "too small");
    if (fd >= 0)
        close(fd);
    return -1;
}

void
guest_load(const char *arguments, char *answer, size_t size)
{
    static Worker workers[MAX_THREADS];
    uint64_t span_bytes;
    unsigned ms;
    Load load;

    if (!parse(arguments, &load, &ms, &span_bytes)) {
        snprintf(answer, size, "error what load is '%.100s'?", arguments);
        return;
    }
    load.fd = open_device(load.is_read, span_bytes, answer, size);
    if (load.fd < 0)
        return;
    load.n_places = span_bytes / load.request_bytes;

    int64_t start_ns = now_ns();

    load.end_ns = start_ns + ms * INT64_C(1000000);
    for (unsigned i = 0; i < load.n_threads; i++) {
        prepare(&workers[i], &load, i);
        start(&workers[i]);
    }
    for (unsigned i = 0; i < load.n_threads; i++) {
        pthread_join(workers[i].thread, NULL);
        free(workers[i].buf);
    }
    report(workers, &load, start_ns, answer, size);
    close(load.fd);
}

void
guest_write_blocks(unsigned long long count, unsigned long long bytes, bool is_scattered,
                   char *answer, size_t size)
{
    static Worker worker;
    Load load = {.is_random = is_scattered, .request_bytes = bytes, .n_threads = 1};

    if (bytes < ALIGNMENT || bytes > MAX_REQUEST || bytes % ALIGNMENT != 0) {
        snprintf(answer, size, "error requests of %llu bytes", bytes);
        return;
    }
    load.fd = open_device(false, bytes, answer, size);
    if (load.fd < 0)
        return;
    load.n_places = (uint64_t)lseek(load.fd, 0, SEEK_END) / bytes;
    prepare(&worker, &load, 0);
    while (worker.count < count && worker.problem == 0) {
        worker.problem = request(&worker);
        worker.count++;
    }
    free(worker.buf);
    close(load.fd);
    if (worker.problem)
        snprintf(answer, size, "error %s", strerror(worker.problem));
    else
        snprintf(answer, size, "ok");
}
