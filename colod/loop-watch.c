/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* loop-watch.c - tells when the main loop stood still, and what it waited for
 *
 * A main loop that stands still sends no heartbeats, and the peer takes the host for dead. Whoever
 * reads the events afterwards has to know which it was: a busy host (it waited for a CPU), a bug of
 * ours (it computed), or a call that blocks, as of a disk that does not answer.
 */
#include "loop-watch.h"

#include "clock.h"
#include "source.h"

enum { WAKE_UPS_PER_LIMIT = 5 };

typedef struct Moment {
    int64_t now_ns;
    uint64_t running_ns, waiting_ns; /* of this thread, ever */
} Moment;

struct LoopWatch {
    GSource *source;
    unsigned limit_ms;
    Moment last;
    LoopWatchFunc func;
    gpointer user_data;
};

gboolean
loop_watch_parse(const char *text, uint64_t *ret_running_ns, uint64_t *ret_waiting_ns)
{
    g_auto(GStrv) fields = g_strsplit(text, " ", 3);
    guint64 numbers[2] = {0};
    gboolean ok = g_strv_length(fields) == 3;

    for (unsigned i = 0; ok && i < G_N_ELEMENTS(numbers); i++)
        ok = g_ascii_string_to_unsigned(fields[i], 10, 0, G_MAXUINT64, &numbers[i], NULL);
    *ret_running_ns = ok ? numbers[0] : 0;
    *ret_waiting_ns = ok ? numbers[1] : 0;
    return ok;
}

/* Where the kernel has no schedstat both times are 0: all of a stop then looks like sleep. */
static Moment
look(void)
{
    g_autofree char *text = NULL;
    Moment moment = {.now_ns = clock_now_ns()};

    if (g_file_get_contents("/proc/thread-self/schedstat", &text, NULL, NULL))
        (void)loop_watch_parse(text, &moment.running_ns, &moment.waiting_ns);
    return moment;
}

static gboolean
on_wake_up(gpointer user_data)
{
    LoopWatch *watch = user_data;
    const Moment before = watch->last;

    watch->last = look();

    const LoopStop stop = {
        .ms = (unsigned)((watch->last.now_ns - before.now_ns) / NS_PER_MS),
        .running_ms = (unsigned)((watch->last.running_ns - before.running_ns) / NS_PER_MS),
        .waiting_ms = (unsigned)((watch->last.waiting_ns - before.waiting_ns) / NS_PER_MS),
    };

    if (stop.ms >= watch->limit_ms)
        watch->func(&stop, watch->user_data);
    return G_SOURCE_CONTINUE;
}

LoopWatch *
loop_watch_new(unsigned limit_ms, LoopWatchFunc func, gpointer user_data)
{
    LoopWatch *watch = g_new0(LoopWatch, 1);

    watch->limit_ms = limit_ms;
    watch->func = func;
    watch->user_data = user_data;
    watch->last = look();
    source_set_timeout(&watch->source, g_main_context_get_thread_default(),
                       MAX(limit_ms / WAKE_UPS_PER_LIMIT, 1), on_wake_up, watch);
    return watch;
}

void
loop_watch_free(LoopWatch *watch)
{
    if (watch == NULL)
        return;
    source_clear(&watch->source);
    g_free(watch);
}
