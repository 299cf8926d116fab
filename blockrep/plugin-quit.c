/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* plugin-quit.c - the process ends by order of the control socket
 *
 * nbdkit waits for its clients to leave, and a client whose host has died never leaves. So the
 * process is ended a moment later anyway, which does no more harm than a crash of it.
 */
#include "plugin-quit.h"

#include "clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

enum { LEAVE_MS = 1000 };

/* nbdkit has one plugin instance in a process. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_changed = PTHREAD_COND_INITIALIZER;
static pthread_t thread;
static bool has_thread, is_done;

static void *
run(void *user_data)
{
    struct timespec until;
    int r = 0;

    (void)user_data;
    (void)clock_gettime(CLOCK_REALTIME, &until); /* what a static condition waits by */
    until.tv_sec += LEAVE_MS / 1000;
    (void)pthread_mutex_lock(&mutex);
    while (!is_done && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&done_changed, &mutex, &until);

    bool cut = !is_done;

    (void)pthread_mutex_unlock(&mutex);
    if (cut)
        _exit(0);
    return NULL;
}

void
plugin_quit(void)
{
    (void)pthread_mutex_lock(&mutex);
    if (!has_thread)
        has_thread = pthread_create(&thread, NULL, run, NULL) == 0;
    (void)pthread_mutex_unlock(&mutex);
    nbdkit_shutdown();
}

void
plugin_quit_done(void)
{
    (void)pthread_mutex_lock(&mutex);
    is_done = true;
    (void)pthread_cond_signal(&done_changed);
    (void)pthread_mutex_unlock(&mutex);
    if (has_thread)
        (void)pthread_join(thread, NULL);
    has_thread = is_done = false; /* nobody else is left */
}

void
plugin_outlive_parent(void)
{
    /* nbdkit 1.32 in the foreground asks for SIGTERM at its parent's death, also without
     * --exit-with-parent. It cannot fail for these arguments. */
    (void)prctl(PR_SET_PDEATHSIG, 0);
}
