/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* arbiter.c - who may go on: the claim for a generation
 *
 * Theory of operation
 * ===================
 * `manual` has no storage: it answers from an idle source. `file` works on a folder on shared
 * storage, and shared storage may hang for ever in any system call. So each call is a Job with a
 * detached thread of its own and two references, the thread's and the main thread's:
 *
 *   main thread                              worker thread
 *   job_start(): eventfd, deadline  ───────► blocking calls on the folder
 *   eventfd readable, or deadline   ◄─────── result under the mutex, eventfd written
 *   answer delivered, reference dropped      reference dropped, whenever that is
 *
 * At the deadline the job is abandoned: its result is not looked at, and the worker stops before
 * its next irreversible step (link) if it has not taken it yet. If it had, the claim may stand
 * although it was reported UNKNOWN; that is safe, as it only keeps others out and the owner's retry
 * is granted. Nothing waits for a worker, not even arbiter_free(). At most MAX_WORKERS threads hang
 * at a time; beyond that calls are answered UNKNOWN at once.
 *
 * (A thread each instead of GTask: its pool is shared with all of GIO, and ten hung calls would
 * stop that. A pthread mutex and an eventfd instead of GLib's: STYLE rule 8, TSan sees them.)
 *
 * The claim
 * =========
 * A claim for generation g is the file <vm>.<g, 20 digits>; its content is the owner's name and a
 * newline. Whoever creates it owns g:
 *
 *   1. look for the newest claim; newer than g: refused
 *   2. write the name to a temporary file, fsync
 *   3. link(2) it to the final name: atomic, fails if that exists, also on NFS
 *   4. read the final file: the owner there decides, whatever link returned (NFS may lose the
 *      answer of a link that worked; a file that names us may be of a crash before step 5)
 *   5. fsync the file and the folder: a claim that a power loss can undo is none
 *   6. look for the newest again: a newer one may have been made meanwhile
 *
 * The temporary file is removed on each way out; one of an earlier process (crash) by the next
 * claim. What else lies in the folder is not touched.
 */
#include "arbiter.h"

#include "config-keys.h"
#include "fd.h"
#include "source.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_WORKERS = 4,           /* threads that may hang in storage */
    MAX_ENTRIES = 100000,      /* of the folder; one claim a failover never gets there */
    GENERATION_DIGITS = 20,    /* UINT64_MAX has 20 */
    OWNER_FILE_MAX_BYTES = 80, /* a name of at most 63 bytes and a newline, and room to see more */
};

static_assert(sizeof(((ArbiterAnswer *)0)->owner) > CONFIG_HOST_MAX, "an owner fits");

typedef enum JobKind { JOB_CLAIM, JOB_QUERY, JOB_CHECK } JobKind;

typedef struct Result {
    ArbiterVerdict verdict;
    guint64 newest;
    char owner[CONFIG_HOST_MAX + 1];
    int check_errno; /* JOB_CHECK: 0, or why the folder cannot be used */
    char *text;
} Result;

/* Threads that have not ended. Outlives the arbiter, as they may. */
typedef struct Workers {
    atomic_uint refs;
    atomic_uint running;
} Workers;

typedef struct Job {
    atomic_uint refs;
    atomic_bool abandoned;
    Workers *workers;
    JobKind kind;
    char *folder, *vm_name, *host; /* copies: the worker may outlive the configuration */
    guint64 generation;

    pthread_mutex_t mutex;
    bool done;     /* under the mutex */
    Result result; /* the worker's until done, then the main thread's */
    int event_fd;  /* -1: no worker */

    /* Main thread only. */
    Arbiter *arbiter;
    ArbiterFunc func;
    gpointer user_data;
    GSource *ready, *deadline;
} Job;

struct Arbiter {
    ConfigArbiter type;
    char *folder, *vm_name, *host;
    unsigned timeout_ms;
    GMainContext *context;
    GPtrArray *jobs; /* under way; the main thread's reference of each */
    Workers *workers;
};

static void
workers_unref(Workers *workers)
{
    if (atomic_fetch_sub(&workers->refs, 1) == 1)
        g_free(workers);
}

static void
job_unref(Job *job)
{
    if (atomic_fetch_sub(&job->refs, 1) > 1)
        return;
    workers_unref(job->workers);
    pthread_mutex_destroy(&job->mutex);
    fd_clear(&job->event_fd);
    g_free(job->folder);
    g_free(job->vm_name);
    g_free(job->host);
    g_free(job->result.text);
    g_free(job);
}

/* --- The folder (worker thread) --- */

/* "<vm>.<20 digits>"; anything else is not ours to understand. */
static bool
parse_claim_name(const Job *job, const char *name, guint64 *ret_generation)
{
    size_t len = strlen(job->vm_name);

    if (strncmp(name, job->vm_name, len) != 0 || name[len] != '.')
        return false;
    name += len + 1;
    return strlen(name) == GENERATION_DIGITS && strspn(name, "0123456789") == GENERATION_DIGITS &&
           g_ascii_string_to_unsigned(name, 10, 1, G_MAXUINT64, ret_generation, NULL);
}

/* A temporary file of this VM and host, but of another process: nobody will use it any more. */
static bool
is_left_over(const Job *job, const char *name)
{
    g_autofree char *prefix = g_strdup_printf(".%s.%s.", job->vm_name, job->host);

    if (!g_str_has_prefix(name, prefix))
        return false;
    name += strlen(prefix);

    size_t digits = strspn(name, "0123456789");
    const char *rest = name + digits;

    if (digits == 0 || *rest != '-' || strspn(rest + 1, "0123456789abcdef") != 8 ||
        !g_str_equal(rest + 9, ".tmp"))
        return false;
    return g_ascii_strtoull(name, NULL, 10) != (guint64)getpid();
}

/* The newest claim, 0 if there is none. Return: 0 or a negative errno. */
static int
find_newest(const Job *job, guint64 *ret_newest)
{
    DIR *folder = opendir(job->folder);
    guint64 newest = 0, generation;
    unsigned n_entries = 0;
    struct dirent *entry;

    if (!folder)
        return -errno;
    while (errno = 0, (entry = readdir(folder)) != NULL) {
        if (++n_entries > MAX_ENTRIES) {
            closedir(folder);
            return -EFBIG;
        }
        if (parse_claim_name(job, entry->d_name, &generation))
            newest = MAX(newest, generation);
        else if (job->kind == JOB_CLAIM && is_left_over(job, entry->d_name))
            (void)unlinkat(dirfd(folder), entry->d_name, 0);
    }

    int status = -errno;

    closedir(folder);
    if (status == 0)
        *ret_newest = newest;
    return status;
}

static char *
claim_path(const Job *job, guint64 generation)
{
    return g_strdup_printf("%s/%s.%020" PRIu64, job->folder, job->vm_name, generation);
}

/* Somebody else may have put anything there: a name is all that is accepted. */
static void
parse_owner(const char *text, size_t length, char ret_owner[CONFIG_HOST_MAX + 1])
{
    size_t len = 0;

    while (len < length && (g_ascii_isalnum(text[len]) || text[len] == '-' || text[len] == '.'))
        len++;
    ret_owner[0] = '\0';
    if (len >= 1 && len <= CONFIG_HOST_MAX && len + 1 == length && text[len] == '\n') {
        memcpy(ret_owner, text, len);
        ret_owner[len] = '\0';
    }
}

/*
 * The owner of a claim: empty if the file holds no name. Return: 0 or a negative errno.
 *
 * @durable: fsync it too. Never blocks on a FIFO or device that lies there, never follows a link.
 */
static int
read_owner(const Job *job, guint64 generation, bool durable, char ret_owner[CONFIG_HOST_MAX + 1])
{
    g_autofree char *path = claim_path(job, generation);
    auto_fd int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    char text[OWNER_FILE_MAX_BYTES];
    struct stat st;

    if (fd < 0)
        return errno == ELOOP ? (ret_owner[0] = '\0', 0) : -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode)) {
        ret_owner[0] = '\0';
        return 0;
    }

    ssize_t n = read(fd, text, sizeof(text));

    if (n < 0 || (durable && fsync(fd) < 0))
        return -errno;
    parse_owner(text, (size_t)n, ret_owner);
    return 0;
}

static int
sync_folder(const Job *job)
{
    auto_fd int fd = open(job->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd >= 0 && fsync(fd) == 0 ? 0 : -errno;
}

/* Steps 2 and 3. Return: 0, or a negative errno, which step 4 may overrule. */
static int
create_claim(Job *job)
{
    g_autofree char *path = claim_path(job, job->generation);
    g_autofree char *temporary = g_strdup_printf("%s/.%s.%s.%d-%08x.tmp", job->folder, job->vm_name,
                                                 job->host, (int)getpid(), g_random_int());
    auto_fd int fd =
        open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)0644);

    if (fd < 0)
        return -errno;

    bool ok = dprintf(fd, "%s\n", job->host) >= 0 && fsync(fd) == 0;

    if (ok && atomic_load(&job->abandoned)) {
        errno = ETIMEDOUT;
        ok = false;
    }
    ok = ok && link(temporary, path) == 0;

    int status = ok ? 0 : -errno;

    (void)unlink(temporary);
    return status;
}

/* --- The calls (worker thread) --- */

static void
set_unknown(Job *job, int status)
{
    job->result.verdict = ARBITER_UNKNOWN;
    job->result.text = g_strdup_printf(
        "the arbiter's folder %s cannot be used: %s; repair the storage, then try again",
        job->folder, status == -EFBIG ? "too many files in it" : g_strerror(-status));
}

static void
set_refused(Job *job, guint64 newest, const char *owner)
{
    job->result.verdict = ARBITER_REFUSED;
    job->result.newest = newest;
    g_strlcpy(job->result.owner, owner, sizeof(job->result.owner));
    job->result.text = g_strdup_printf("generation %" PRIu64 " belongs to %s", newest,
                                       *owner ? owner : "somebody whose name cannot be read");
}

static void
set_granted(Job *job, guint64 newest)
{
    job->result.verdict = ARBITER_GRANTED;
    job->result.newest = newest;
    g_strlcpy(job->result.owner, job->host, sizeof(job->result.owner));
    job->result.text = g_strdup_printf("generation %" PRIu64 " belongs to this host", newest);
}

/* True: @newest is newer than what we want, and the job is answered. */
static bool
refuse_if_newer(Job *job, guint64 newest)
{
    char owner[CONFIG_HOST_MAX + 1] = "";

    if (newest <= job->generation)
        return false;
    (void)read_owner(job, newest, false, owner); /* no name is no reason to go on */
    set_refused(job, newest, owner);
    return true;
}

static void
run_claim(Job *job)
{
    char owner[CONFIG_HOST_MAX + 1] = "";
    guint64 newest = 0;
    int created = 0;
    int status = find_newest(job, &newest);

    if (status < 0) {
        set_unknown(job, status);
        return;
    }
    if (refuse_if_newer(job, newest))
        return;
    if (newest < job->generation)
        created = create_claim(job);
    status = read_owner(job, job->generation, true, owner);
    if (status < 0) {
        /* Nobody has it: why could we not create it? */
        set_unknown(job, status == -ENOENT && created < 0 ? created : status);
        return;
    }
    if (!g_str_equal(owner, job->host)) {
        set_refused(job, job->generation, owner);
        return;
    }
    status = sync_folder(job);
    if (status == 0)
        status = find_newest(job, &newest);
    if (status < 0)
        set_unknown(job, status);
    else if (!refuse_if_newer(job, newest))
        set_granted(job, job->generation);
}

static void
run_query(Job *job)
{
    char owner[CONFIG_HOST_MAX + 1] = "";
    guint64 newest = 0;
    int status = find_newest(job, &newest);

    if (status == 0 && newest == 0) {
        job->result.verdict = ARBITER_UNKNOWN;
        job->result.text = g_strdup("no generation has been claimed yet");
        return;
    }
    if (status == 0)
        status = read_owner(job, newest, false, owner);
    if (status < 0)
        set_unknown(job, status);
    else if (g_str_equal(owner, job->host))
        set_granted(job, newest);
    else
        set_refused(job, newest, owner);
}

static void
run_check(Job *job)
{
    struct stat st;

    if (stat(job->folder, &st) < 0 ||
        faccessat(AT_FDCWD, job->folder, R_OK | W_OK | X_OK, AT_EACCESS) < 0)
        job->result.check_errno = errno;
    else if (!S_ISDIR(st.st_mode))
        job->result.check_errno = ENOTDIR;
}

static void *
worker_main(void *data)
{
    Job *job = data;
    Workers *workers = job->workers;

    atomic_fetch_add(&workers->refs, 1); /* the job may go first */
    switch (job->kind) {
    case JOB_CLAIM:
        run_claim(job);
        break;
    case JOB_QUERY:
        run_query(job);
        break;
    case JOB_CHECK:
        run_check(job);
        break;
    }
    pthread_mutex_lock(&job->mutex);
    job->done = true;
    pthread_mutex_unlock(&job->mutex);
    /* The counter cannot be full and nobody else writes: this does not fail. */
    (void)eventfd_write(job->event_fd, 1);
    job_unref(job);
    atomic_fetch_sub(&workers->running, 1);
    workers_unref(workers);
    return NULL;
}

/* --- Jobs (main thread) --- */

static Job *
job_new(Arbiter *arbiter, JobKind kind, guint64 generation)
{
    Job *job = g_new0(Job, 1);

    atomic_init(&job->refs, 1);
    atomic_init(&job->abandoned, false);
    atomic_fetch_add(&arbiter->workers->refs, 1);
    job->workers = arbiter->workers;
    job->kind = kind;
    job->folder = g_strdup(arbiter->folder);
    job->vm_name = g_strdup(arbiter->vm_name);
    job->host = g_strdup(arbiter->host);
    job->generation = generation;
    pthread_mutex_init(&job->mutex, NULL);
    job->event_fd = -1;
    job->arbiter = arbiter;
    return job;
}

/* Starts the worker. Signals are the main thread's. Return: 0 or a negative errno. */
static int
job_start_worker(Job *job)
{
    sigset_t all, old;
    pthread_t thread;

    if (atomic_load(&job->workers->running) >= MAX_WORKERS)
        return -EBUSY;
    job->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->event_fd < 0)
        return -errno;
    atomic_fetch_add(&job->workers->running, 1);
    atomic_fetch_add(&job->refs, 1);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);

    int status = -pthread_create(&thread, NULL, worker_main, job);

    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status == 0) {
        pthread_detach(thread);
        return 0;
    }
    atomic_fetch_sub(&job->workers->running, 1);
    atomic_fetch_sub(&job->refs, 1);
    fd_clear(&job->event_fd);
    return status;
}

static bool
job_is_done(Job *job)
{
    pthread_mutex_lock(&job->mutex);

    bool done = job->done;

    pthread_mutex_unlock(&job->mutex);
    return done;
}

/* The main thread has no more use of the job; its worker may have. */
static void
job_release(gpointer data)
{
    Job *job = data;

    atomic_store(&job->abandoned, true);
    source_clear(&job->ready);
    source_clear(&job->deadline);
    job_unref(job);
}

/* Ends the job with @answer. @job is the caller's reference afterwards, to be released. */
static void
job_answer(Job *job, const ArbiterAnswer *answer)
{
    /* The callback may free the arbiter: nothing of it is touched from here on. */
    guint index = 0;
    gboolean found = g_ptr_array_find(job->arbiter->jobs, job, &index);

    g_assert(found);
    g_ptr_array_steal_index_fast(job->arbiter->jobs, index);
    source_clear(&job->ready);
    source_clear(&job->deadline);
    job->func(answer, job->user_data);
    job_release(job);
}

static gboolean
job_finished(gpointer user_data)
{
    Job *job = user_data;
    ArbiterAnswer answer = {
        .verdict = job->result.verdict,
        .newest = job->result.newest,
        .text = job->result.text,
    };

    g_strlcpy(answer.owner, job->result.owner, sizeof(answer.owner));
    job_answer(job, &answer);
    return G_SOURCE_REMOVE;
}

static gboolean
job_event(G_GNUC_UNUSED int fd, G_GNUC_UNUSED GIOCondition condition, gpointer user_data)
{
    g_assert(job_is_done(user_data));
    return job_finished(user_data);
}

static gboolean
job_missed_deadline(gpointer user_data)
{
    Job *job = user_data;

    /* If the loop stood still both sources are due, and a claim that was won counts. */
    if (job_is_done(job))
        return job_finished(job);

    g_autofree char *text =
        g_strdup_printf("the arbiter's folder %s did not answer within %u ms; repair the storage, "
                        "then try again",
                        job->folder, job->arbiter->timeout_ms);
    ArbiterAnswer answer = {.verdict = ARBITER_UNKNOWN, .text = text};

    atomic_store(&job->abandoned, true);
    job_answer(job, &answer);
    return G_SOURCE_REMOVE;
}

static void
job_watch(Job *job, ArbiterFunc func, gpointer user_data)
{
    Arbiter *arbiter = job->arbiter;

    job->func = func;
    job->user_data = user_data;
    if (job->event_fd >= 0) {
        job->ready = g_unix_fd_source_new(job->event_fd, G_IO_IN);
        g_source_set_callback(job->ready, G_SOURCE_FUNC(job_event), job, NULL);
        job->deadline = g_timeout_source_new(arbiter->timeout_ms);
        g_source_set_callback(job->deadline, job_missed_deadline, job, NULL);
        g_source_attach(job->deadline, arbiter->context);
    } else {
        job->ready = g_idle_source_new();
        g_source_set_priority(job->ready, G_PRIORITY_DEFAULT);
        g_source_set_callback(job->ready, job_finished, job, NULL);
    }
    g_source_attach(job->ready, arbiter->context);
    g_ptr_array_add(arbiter->jobs, job);
}

/* --- Public --- */

static void
answer_by_hand(Job *job, gboolean operator_decides)
{
    if (operator_decides) {
        set_granted(job, job->generation);
        return;
    }
    job->result.verdict = ARBITER_UNKNOWN;
    job->result.text = g_strdup("an operator has to decide which host goes on: `colo failover`");
}

static void
run(Arbiter *arbiter, JobKind kind, guint64 generation, gboolean operator_decides, ArbiterFunc func,
    gpointer user_data)
{
    Job *job = job_new(arbiter, kind, generation);
    int status = 0;

    switch (arbiter->type) {
    case CONFIG_ARBITER_MANUAL:
        answer_by_hand(job, operator_decides);
        break;
    case CONFIG_ARBITER_FILE:
        status = job_start_worker(job);
        if (status < 0)
            set_unknown(job, status);
        break;
    }
    job_watch(job, func, user_data);
}

void
arbiter_claim(Arbiter *arbiter, guint64 generation, gboolean operator_decides, ArbiterFunc func,
              gpointer user_data)
{
    g_assert(generation > 0);
    run(arbiter, JOB_CLAIM, generation, operator_decides, func, user_data);
}

void
arbiter_query(Arbiter *arbiter, ArbiterFunc func, gpointer user_data)
{
    run(arbiter, JOB_QUERY, 0, FALSE, func, user_data);
}

/*
 * Whether the folder can be used. A folder that does not answer in time passes: that is the
 * storage's state of now, not the configuration's fault, and a daemon that adopts a running VM must
 * not stay down for it.
 */
static gboolean
check_folder(Arbiter *arbiter, GError **error)
{
    Job *job = job_new(arbiter, JOB_CHECK, 0);
    int check_errno = 0;

    if (job_start_worker(job) == 0) {
        struct pollfd answer = {.fd = job->event_fd, .events = POLLIN};

        (void)poll(&answer, 1, (int)arbiter->timeout_ms);
        if (job_is_done(job))
            check_errno = job->result.check_errno;
    }
    job_release(job);
    if (check_errno == 0)
        return TRUE;
    g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(check_errno),
                "[arbiter] path: %s: %s; it must be a folder on shared storage that this host may "
                "write",
                arbiter->folder, g_strerror(check_errno));
    return FALSE;
}

Arbiter *
arbiter_new(const Config *config, GError **error)
{
    g_autoptr(Arbiter) arbiter = g_new0(Arbiter, 1);

    arbiter->type = config->arbiter;
    arbiter->folder = g_strdup(config->arbiter_path);
    arbiter->vm_name = g_strdup(config->vm_name);
    arbiter->host = g_strdup(config->host);
    arbiter->timeout_ms = config->arbiter_timeout_ms;
    arbiter->context = g_main_context_ref_thread_default();
    arbiter->jobs = g_ptr_array_new_with_free_func(job_release);
    arbiter->workers = g_new0(Workers, 1);
    atomic_init(&arbiter->workers->refs, 1);
    if (arbiter->type == CONFIG_ARBITER_FILE && !check_folder(arbiter, error))
        return NULL;
    return g_steal_pointer(&arbiter);
}

void
arbiter_free(Arbiter *arbiter)
{
    if (!arbiter)
        return;
    g_ptr_array_unref(arbiter->jobs);
    workers_unref(arbiter->workers);
    g_main_context_unref(arbiter->context);
    g_free(arbiter->folder);
    g_free(arbiter->vm_name);
    g_free(arbiter->host);
    g_free(arbiter);
}
