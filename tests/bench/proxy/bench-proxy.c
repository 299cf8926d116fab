/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-proxy.c - frames per second through the proxy, and how long a mark takes
 *
 * The guest writes as fast as its tap takes it (one system call a frame, as QEMU does); nobody
 * reads at the client, whose tap drops what is beyond its queue.
 */
#include "proxy-world.h"

#include "check-main.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "clock.h"

enum { HOLD_BYTES = 256 << 20, FRAMES = 200000, MARKS = 5000 };

static double
rate(guint64 n, int64_t ns)
{
    return (double)n * 1e9 / (double)ns;
}

static void
wait_egress(World *w, guint64 frames)
{
    ProxyStats stats;

    do {
        g_usleep(100);
        proxy_get_stats(w->proxy, &stats);
    } while (stats.egress_frames + stats.lost_frames < frames);
}

static void
bench_open(size_t len)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, HOLD_BYTES);
    world_egress(&w, PROXY_EGRESS_OPEN);

    int64_t start = clock_now_ns();

    for (guint32 i = 0; i < FRAMES; i++)
        guest_send(&w, i, len);
    wait_egress(&w, FRAMES);

    int64_t ns = clock_now_ns() - start;
    ProxyStats stats;

    proxy_get_stats(w.proxy, &stats);
    printf("open %5zu B: %8.0f frames/s %6.0f MB/s, lost %" G_GUINT64_FORMAT "\n", len,
           rate(FRAMES, ns), rate(FRAMES * len, ns) / 1e6, stats.lost_frames);
    world_clear(&w);
}

static void
bench_hold(size_t len, guint32 frames)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, HOLD_BYTES);
    world_egress(&w, PROXY_EGRESS_HOLD);

    int64_t start = clock_now_ns();

    for (guint32 i = 0; i < frames; i++)
        guest_send(&w, i, len);
    world_mark(&w, 1);

    int64_t held = clock_now_ns();

    proxy_release(w.proxy, 1, 0, NULL, NULL);
    wait_egress(&w, frames);

    int64_t released = clock_now_ns();

    printf("hold %5zu B: %8.0f frames/s in, %8.0f frames/s %6.0f MB/s out\n", len,
           rate(frames, held - start), rate(frames, released - held),
           rate(frames * len, released - held) / 1e6);
    world_clear(&w);
}

static int
compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* From the command to its callback in the control thread's main loop. */
static void
bench_mark(guint32 frames_each)
{
    static int64_t took[MARKS];
    World w;

    world_init(&w, PROXY_PORT_TAP, HOLD_BYTES);
    world_egress(&w, PROXY_EGRESS_HOLD);
    for (guint64 i = 0; i < MARKS; i++) {
        for (guint32 j = 0; j < frames_each; j++)
            guest_send(&w, j, 1400);

        int64_t start = clock_now_ns();

        world_mark(&w, i + 1);
        took[i] = clock_now_ns() - start;
        proxy_release(w.proxy, i + 1, 0, NULL, NULL);
    }
    qsort(took, MARKS, sizeof(took[0]), compare_ns);
    printf("mark after %3u frames: p50 %.1f us, p99 %.1f us, max %.1f us\n", frames_each,
           (double)took[MARKS / 2] / 1e3, (double)took[MARKS * 99 / 100] / 1e3,
           (double)took[MARKS - 1] / 1e3);
    world_clear(&w);
}

/* A Check binary: the fake QEMU asserts. */
START_TEST(bench)
{
    bench_open(60);
    bench_open(1500);
    bench_open(60000);
    bench_hold(60, FRAMES);
    bench_hold(1500, FRAMES / 2);
    bench_hold(60000, 4000);
    bench_mark(0);
    bench_mark(20);
}
END_TEST

CHECK_MAIN("bench-proxy", bench)
