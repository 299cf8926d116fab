/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-loop-watch.c - a main loop that stands still is told, with the reason */
#include "loop-watch.h"

#include "check-main.h"

#include <time.h>

enum { LIMIT_MS = 50, STOP_MS = 200, TURNS = 2000 };

typedef struct Seen {
    LoopStop stop;
    unsigned n;
} Seen;

static void
on_stop(const LoopStop *stop, gpointer user_data)
{
    Seen *seen = user_data;

    seen->stop = *stop;
    seen->n++;
}

/* Busy hosts may make the loop stand before @stand does; that counts too, and comes first. */
static LoopStop
watched(void (*stand)(void))
{
    Seen seen = {0};
    g_autoptr(LoopWatch) watch = loop_watch_new(LIMIT_MS, on_stop, &seen);

    g_main_context_iteration(NULL, TRUE);
    seen.n = 0;
    stand();
    for (unsigned i = 0; seen.n == 0 && i < TURNS; i++)
        g_main_context_iteration(NULL, TRUE);
    ck_assert_uint_ge(seen.n, 1);
    return seen.stop;
}

static void
sleeping(void)
{
    g_usleep(STOP_MS * 1000);
}

static void
computing(void)
{
    clock_t end = clock() + (clock_t)STOP_MS * CLOCKS_PER_SEC / 1000;

    while (clock() < end)
        ;
}

START_TEST(unit_a_call_that_blocks)
{
    LoopStop stop = watched(sleeping);

    ck_assert_uint_ge(stop.ms, STOP_MS);
    ck_assert_uint_le(stop.running_ms, STOP_MS / 4);
}
END_TEST

START_TEST(unit_a_long_computation)
{
    LoopStop stop = watched(computing);

    ck_assert_uint_ge(stop.ms, STOP_MS);
    ck_assert_uint_ge(stop.running_ms, STOP_MS * 3 / 4);
    ck_assert_uint_le(stop.running_ms + stop.waiting_ms, stop.ms + LIMIT_MS);
}
END_TEST

START_TEST(unit_schedstat)
{
    uint64_t running, waiting;

    ck_assert(loop_watch_parse("123456789 42 7\n", &running, &waiting));
    ck_assert(running == 123456789 && waiting == 42);
}
END_TEST

START_TEST(sec_schedstat_of_nonsense)
{
    static const char *const texts[] = {
        "", "\n", "1 2", "-1 2 3", "1  3", "a b c", "99999999999999999999999 1 1"};
    uint64_t running, waiting;

    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        running = waiting = 1;
        ck_assert_msg(!loop_watch_parse(texts[i], &running, &waiting), "%s", texts[i]);
        ck_assert(running == 0 && waiting == 0);
    }
}
END_TEST

CHECK_MAIN("loop-watch", unit_a_call_that_blocks, unit_a_long_computation, unit_schedstat,
           sec_schedstat_of_nonsense)
