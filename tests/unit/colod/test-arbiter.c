/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-arbiter.c - claims: one winner, whatever crashes, races or hangs
 *
 * link(2) and faccessat(2) are wrapped at link time: a call can be made to hang until the test
 * releases it, to fail, or to be the last thing a process does.
 */
#include "arbiter.h"

#include "fd.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int __real_link(const char *from, const char *to);
int __wrap_link(const char *from, const char *to);
int __real_faccessat(int folder, const char *path, int mode, int flags);
int __wrap_faccessat(int folder, const char *path, int mode, int flags);

enum { AFTER_LINK_DIE = 1, BEFORE_LINK_DIE, LINK_LOSES_ANSWER, LINK_HANGS, CHECK_HANGS };
static atomic_int fault;
static int hang_fds[2]; /* a hanging call reads one byte; the test writes it */
static sem_t hang_entered, hang_returned;

static void
forget_hangs(void)
{
    ck_assert_int_eq(sem_init(&hang_entered, 0, 0), 0);
    ck_assert_int_eq(sem_init(&hang_returned, 0, 0), 0);
}

/* So many more posts. */
static void
wait_posts(sem_t *sem, int count)
{
    struct timespec end;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 20;
    while (count-- > 0)
        ck_assert_int_eq(sem_clockwait(sem, CLOCK_MONOTONIC, &end), 0);
}

static int
count_posts(sem_t *sem)
{
    int count;

    ck_assert_int_eq(sem_getvalue(sem, &count), 0);
    return count;
}

static void
hang(void)
{
    char byte;

    (void)sem_post(&hang_entered);
    ck_assert_int_eq(read(hang_fds[0], &byte, 1), 1);
}

int
__wrap_link(const char *from, const char *to)
{
    int mode = atomic_load(&fault);

    if (mode == BEFORE_LINK_DIE)
        _exit(0);
    if (mode == LINK_HANGS)
        hang();

    int status = __real_link(from, to);

    if (mode == AFTER_LINK_DIE)
        _exit(0);
    if (mode == LINK_HANGS)
        (void)sem_post(&hang_returned);
    if (mode == LINK_LOSES_ANSWER) {
        errno = EIO;
        return -1;
    }
    return status;
}

int
__wrap_faccessat(int folder, const char *path, int mode, int flags)
{
    if (atomic_load(&fault) == CHECK_HANGS) {
        hang();
        (void)sem_post(&hang_returned);
    }
    return __real_faccessat(folder, path, mode, flags);
}

/* --- Helpers --- */

typedef struct Folder {
    char *path;
} Folder;

static Folder
folder_new(void)
{
    return (Folder){.path = g_dir_make_tmp("colod-test-XXXXXX", NULL)};
}

static void
empty_folder(const Folder *folder)
{
    g_autoptr(GDir) dir = g_dir_open(folder->path, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(folder->path, name, NULL);

        if (g_unlink(path) < 0)
            g_rmdir(path);
    }
}

/* A worker that nobody waits for may still put its temporary file there. */
static void
folder_clear(Folder *folder)
{
    do
        empty_folder(folder);
    while (g_rmdir(folder->path) < 0 && errno == ENOTEMPTY);
    g_free(folder->path);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Folder, folder_clear)

static unsigned
count_files(const Folder *folder)
{
    g_autoptr(GDir) dir = g_dir_open(folder->path, 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir))
        n++;
    return n;
}

static void
put_file(const Folder *folder, const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(folder->path, name, NULL);

    ck_assert(g_file_set_contents(path, text, -1, NULL));
}

static Arbiter *
try_arbiter(char *path, const char *host, unsigned timeout_ms, GError **error)
{
    g_autofree char *host_copy = g_strdup(host);
    char vm_name[] = "web1";
    Config config = {
        .vm_name = vm_name,
        .host = host_copy,
        .arbiter = path ? CONFIG_ARBITER_FILE : CONFIG_ARBITER_MANUAL,
        .arbiter_path = path,
        .arbiter_timeout_ms = timeout_ms,
    };

    return arbiter_new(&config, error);
}

static Arbiter *
arbiter_for(const Folder *folder, const char *host)
{
    g_autoptr(GError) error = NULL;
    Arbiter *arbiter = try_arbiter(folder ? folder->path : NULL, host, 20000, &error);

    ck_assert_msg(arbiter != NULL, "%s", error ? error->message : "");
    return arbiter;
}

typedef struct Got {
    int n;
    ArbiterVerdict verdict;
    guint64 newest;
    char owner[64];
    char *text;
} Got;

static void
got_clear(Got *got)
{
    g_clear_pointer(&got->text, g_free);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Got, got_clear)

static void
on_answer(const ArbiterAnswer *answer, gpointer user_data)
{
    Got *got = user_data;

    got->n++;
    got->verdict = answer->verdict;
    got->newest = answer->newest;
    memcpy(got->owner, answer->owner, sizeof(got->owner));
    g_free(got->text);
    got->text = g_strdup(answer->text);
}

static void
wait_for(Got *got)
{
    while (got->n == 0)
        g_main_context_iteration(NULL, TRUE);
    ck_assert_int_eq(got->n, 1);
    ck_assert(got->text && *got->text);
}

static void
claim(Arbiter *arbiter, guint64 generation, gboolean operator_decides, Got *got)
{
    got_clear(got);
    *got = (Got){0};
    arbiter_claim(arbiter, generation, operator_decides, on_answer, got);
    ck_assert_int_eq(got->n, 0);
    wait_for(got);
}

static void
query(Arbiter *arbiter, Got *got)
{
    got_clear(got);
    *got = (Got){0};
    arbiter_query(arbiter, on_answer, got);
    ck_assert_int_eq(got->n, 0);
    wait_for(got);
}

#define assert_got(got, verdict_, newest_, owner_)                                                 \
    do {                                                                                           \
        ck_assert_msg((got).verdict == (verdict_), "%d: %s", (int)(got).verdict, (got).text);      \
        ck_assert_uint_eq((got).newest, newest_);                                                  \
        ck_assert_str_eq((got).owner, owner_);                                                     \
    } while (0)

/* --- manual --- */

START_TEST(unit_manual_is_the_operators)
{
    g_autoptr(Arbiter) arbiter = arbiter_for(NULL, "host-a");
    g_auto(Got) got = {0};

    claim(arbiter, 2, FALSE, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
    ck_assert_ptr_nonnull(strstr(got.text, "colo failover"));
    claim(arbiter, 2, TRUE, &got);
    assert_got(got, ARBITER_GRANTED, 2, "host-a");
    query(arbiter, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
}
END_TEST

/* --- file --- */

START_TEST(unit_file_first_come)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) a = arbiter_for(&folder, "host-a");
    g_autoptr(Arbiter) b = arbiter_for(&folder, "host-b");
    g_auto(Got) got = {0};

    query(a, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
    claim(a, 2, FALSE, &got);
    assert_got(got, ARBITER_GRANTED, 2, "host-a");
    claim(b, 2, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 2, "host-a");
    claim(b, 2, TRUE, &got);
    assert_got(got, ARBITER_REFUSED, 2, "host-a");
    query(a, &got);
    assert_got(got, ARBITER_GRANTED, 2, "host-a");
    query(b, &got);
    assert_got(got, ARBITER_REFUSED, 2, "host-a");

    /* Newer and older ones. */
    claim(b, 3, TRUE, &got);
    assert_got(got, ARBITER_GRANTED, 3, "host-b");
    claim(a, 2, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 3, "host-b");
    claim(a, 1, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 3, "host-b");
    claim(a, G_MAXUINT64, FALSE, &got);
    assert_got(got, ARBITER_GRANTED, G_MAXUINT64, "host-a");
    ck_assert_uint_eq(count_files(&folder), 3);
}
END_TEST

START_TEST(unit_file_name_and_content)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
    g_autofree char *path = g_build_filename(folder.path, "web1.00000000000000000007", NULL);
    g_autofree char *text = NULL;
    g_auto(Got) got = {0};

    claim(arbiter, 7, FALSE, &got);
    ck_assert(g_file_get_contents(path, &text, NULL, NULL));
    ck_assert_str_eq(text, "host-a\n");
}
END_TEST

START_TEST(life_retry_after_crash_is_granted_again)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
    g_auto(Got) got = {0};

    for (int i = 0; i < 3; i++) {
        claim(arbiter, 2, FALSE, &got);
        assert_got(got, ARBITER_GRANTED, 2, "host-a");
    }
    ck_assert_uint_eq(count_files(&folder), 1);
}
END_TEST

/* Made by the first test, before there is a thread: TSan does not follow forks of several. */
static Folder crashed_before_link, crashed_after_link;

static void
claim_in_child(const Folder *folder, const char *host, int child_fault)
{
    pid_t pid = fork();
    int status;

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        g_autoptr(Arbiter) arbiter = arbiter_for(folder, host);
        Got got = {0};

        atomic_store(&fault, child_fault);
        claim(arbiter, 2, FALSE, &got);
        _exit(1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}

START_TEST(life_processes_die_in_the_middle_of_a_claim)
{
    crashed_before_link = folder_new();
    crashed_after_link = folder_new();
    claim_in_child(&crashed_before_link, "host-a", BEFORE_LINK_DIE);
    claim_in_child(&crashed_after_link, "host-a", AFTER_LINK_DIE);
}
END_TEST

START_TEST(life_crash_before_link_leaves_nothing_claimed)
{
    g_auto(Folder) folder = crashed_before_link;
    g_autoptr(Arbiter) a = arbiter_for(&folder, "host-a");
    g_autoptr(Arbiter) b = arbiter_for(&folder, "host-b");
    g_auto(Got) got = {0};

    ck_assert_uint_eq(count_files(&folder), 1); /* the temporary file */
    query(b, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
    claim(b, 2, FALSE, &got);
    assert_got(got, ARBITER_GRANTED, 2, "host-b");
    ck_assert_uint_eq(count_files(&folder), 2); /* not b's to remove */
    claim(a, 2, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 2, "host-b");
    ck_assert_uint_eq(count_files(&folder), 1);
}
END_TEST

START_TEST(life_crash_after_link_keeps_the_claim)
{
    g_auto(Folder) folder = crashed_after_link;
    g_autoptr(Arbiter) a = arbiter_for(&folder, "host-a");
    g_autoptr(Arbiter) b = arbiter_for(&folder, "host-b");
    g_auto(Got) got = {0};

    claim(b, 2, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 2, "host-a");
    claim(a, 2, FALSE, &got);
    assert_got(got, ARBITER_GRANTED, 2, "host-a");
    ck_assert_uint_eq(count_files(&folder), 1);
}
END_TEST

START_TEST(err_link_worked_but_its_answer_was_lost)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
    g_auto(Got) got = {0};

    atomic_store(&fault, LINK_LOSES_ANSWER);
    claim(arbiter, 2, FALSE, &got);
    atomic_store(&fault, 0);
    assert_got(got, ARBITER_GRANTED, 2, "host-a");
}
END_TEST

START_TEST(err_path_missing_or_no_folder)
{
    g_auto(Folder) folder = folder_new();
    g_autofree char *missing = g_build_filename(folder.path, "missing", NULL);
    g_autoptr(GError) error = NULL;

    ck_assert_ptr_null(try_arbiter(missing, "host-a", 20000, &error));
    ck_assert(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOENT));
    ck_assert_msg(strstr(error->message, missing) && strstr(error->message, "must be a folder"),
                  "%s", error->message);
    g_clear_error(&error);
    put_file(&folder, "missing", "a file");
    ck_assert(g_chmod(missing, 0700) == 0);
    ck_assert_ptr_null(try_arbiter(missing, "host-a", 20000, &error));
    ck_assert(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOTDIR));
}
END_TEST

START_TEST(err_folder_goes_away)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
    g_auto(Got) got = {0};

    g_rmdir(folder.path);
    claim(arbiter, 2, TRUE, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
    ck_assert_ptr_nonnull(strstr(got.text, folder.path));
    query(arbiter, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
    ck_assert(g_mkdir(folder.path, 0700) == 0);
    claim(arbiter, 2, FALSE, &got);
    assert_got(got, ARBITER_GRANTED, 2, "host-a");
}
END_TEST

/* Root may write everywhere: the checks run in a child without privileges. */
static int
without_privileges(const Folder *folder)
{
    g_autoptr(GError) error = NULL;

    if (geteuid() == 0 && setuid(65534) < 0)
        return 2;
    ck_assert(!try_arbiter(folder->path, "host-a", 20000, &error));
    if (!g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_ACCES))
        return 3;
    return 0;
}

START_TEST(err_permission_denied)
{
    g_auto(Folder) folder = folder_new();
    int status;

    ck_assert(g_chmod(folder.path, 0555) == 0);

    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        _exit(without_privileges(&folder));
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}
END_TEST

static guint
count_threads(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    guint n = 0;

    while (g_dir_read_name(dir))
        n++;
    return n;
}

/* The main loop stood still (a busy or a frozen host) while the folder answered in time. */
START_TEST(life_answered_while_the_loop_stood_still)
{
    enum { TIMEOUT_MS = 200 };
    g_auto(Folder) folder = folder_new();
    const guint threads = count_threads();
    g_autoptr(Arbiter) a = try_arbiter(folder.path, "host-a", TIMEOUT_MS, NULL);
    const gint64 end_us = g_get_monotonic_time() + G_USEC_PER_SEC * 20;
    const gint64 late_us = g_get_monotonic_time() + 2 * TIMEOUT_MS * 1000;
    g_auto(Got) got = {0};

    arbiter_claim(a, 1, FALSE, on_answer, &got);
    while (count_threads() > threads || g_get_monotonic_time() < late_us)
        ck_assert_int_lt(g_get_monotonic_time(), end_us);
    wait_for(&got);
    ck_assert_int_eq(got.verdict, ARBITER_GRANTED);
}
END_TEST

START_TEST(life_hanging_storage_is_unknown_at_the_deadline)
{
    g_auto(Folder) folder = folder_new();
    g_auto(Got) first = {0}, second = {0}, busy = {0}, again = {0};
    Arbiter *arbiter = try_arbiter(folder.path, "host-a", 500, NULL);
    Got more[2] = {0};

    ck_assert_ptr_nonnull(arbiter);
    atomic_store(&fault, LINK_HANGS);
    forget_hangs();
    claim(arbiter, 2, FALSE, &first);
    assert_got(first, ARBITER_UNKNOWN, 0, "");
    ck_assert_ptr_nonnull(strstr(first.text, "did not answer within 500 ms"));
    claim(arbiter, 3, FALSE, &second);
    assert_got(second, ARBITER_UNKNOWN, 0, "");

    /* Hung threads are bounded, and a full house is an answer too. */
    claim(arbiter, 4, FALSE, &more[0]);
    claim(arbiter, 5, FALSE, &more[1]);
    wait_posts(&hang_entered, 4); /* one that is given up before does not enter */
    claim(arbiter, 6, FALSE, &busy);
    assert_got(busy, ARBITER_UNKNOWN, 0, "");
    ck_assert_ptr_nonnull(strstr(busy.text, g_strerror(EBUSY)));

    arbiter_free(arbiter); /* does not wait */
    ck_assert_int_eq(count_posts(&hang_returned), 0);
    ck_assert_int_eq(write(hang_fds[1], "xxxx", 4), 4);
    wait_posts(&hang_returned, 4);
    atomic_store(&fault, 0);

    /* link(2) had been entered: the claim came to stand after all, and its owner gets it. */
    g_autoptr(Arbiter) back = arbiter_for(&folder, "host-a");

    claim(back, 5, FALSE, &again);
    assert_got(again, ARBITER_GRANTED, 5, "host-a");
    got_clear(&more[0]);
    got_clear(&more[1]);
}
END_TEST

START_TEST(life_free_while_under_way_drops_the_answer)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) other = arbiter_for(&folder, "host-b");
    g_auto(Got) got = {0}, later = {0};

    for (int i = 0; i < 2; i++) {
        Arbiter *arbiter = arbiter_for(i ? &folder : NULL, "host-a");

        arbiter_claim(arbiter, 2, TRUE, on_answer, &got);
        arbiter_query(arbiter, on_answer, &got);
        arbiter_free(arbiter);
    }
    query(other, &later);
    while (g_main_context_iteration(NULL, FALSE))
        continue;
    ck_assert_int_eq(got.n, 0);
}
END_TEST

static void
free_arbiter(G_GNUC_UNUSED const ArbiterAnswer *answer, gpointer user_data)
{
    g_clear_pointer((Arbiter **)user_data, arbiter_free);
}

START_TEST(life_freed_by_its_callback)
{
    g_auto(Folder) folder = folder_new();

    for (int i = 0; i < 2; i++) {
        Arbiter *arbiter = arbiter_for(i ? &folder : NULL, "host-a");

        arbiter_claim(arbiter, 2, FALSE, free_arbiter, &arbiter);
        arbiter_query(arbiter, free_arbiter, &arbiter);
        while (arbiter)
            g_main_context_iteration(NULL, TRUE);
    }
}
END_TEST

START_TEST(life_folder_hangs_at_start)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = NULL;

    atomic_store(&fault, CHECK_HANGS);
    forget_hangs();
    arbiter = try_arbiter(folder.path, "host-a", 20, NULL);
    atomic_store(&fault, 0);
    ck_assert_int_eq(write(hang_fds[1], "x", 1), 1);
    wait_posts(&hang_returned, 1);
    ck_assert_ptr_nonnull(arbiter);
}
END_TEST

START_TEST(sec_foreign_files_are_ignored)
{
    static const char *const names[] = {
        "web1.1",
        "web1.000000000000000000x7",
        "web1.000000000000000000099",
        "web1.99999999999999999999", /* above UINT64_MAX */
        "web1.00000000000000000000",
        "web1.00000000000000000009.tmp",
        "web12.00000000000000000009",
        "web.00000000000000000009",
        ".web1.host-b.1-0123abcd.tmp",
        ".web1.host-a.5.1-0123abcd.tmp",
        ".web1.host-a.1-0123abcd.tmp.x",
        ".web1.host-a.1-0123abcdef.tmp",
    };

    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
    g_auto(Got) got = {0};

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        put_file(&folder, names[i], "host-b\n");
    query(arbiter, &got);
    assert_got(got, ARBITER_UNKNOWN, 0, "");
    claim(arbiter, 1, FALSE, &got);
    assert_got(got, ARBITER_GRANTED, 1, "host-a");
    ck_assert_uint_eq(count_files(&folder), G_N_ELEMENTS(names) + 1);
}
END_TEST

START_TEST(sec_foreign_content_is_nobody_and_never_us)
{
    g_autofree char *huge = g_strnfill(1000000, 'a');
    g_autofree char *long_name = g_strnfill(64, 'a');
    g_autofree char *long_line = g_strconcat(long_name, "\n", NULL);
    const char *const texts[] = {"",          "\n",           "host-a", "host-a\nhost-b\n",
                                 " host-a\n", "host-a\033\n", huge,     long_line,
                                 "../x\n"};

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_auto(Folder) folder = folder_new();
        g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
        g_auto(Got) got = {0};

        put_file(&folder, "web1.00000000000000000002", texts[i]);
        claim(arbiter, 2, FALSE, &got);
        assert_got(got, ARBITER_REFUSED, 2, "");
        query(arbiter, &got);
        assert_got(got, ARBITER_REFUSED, 2, "");
    }
}
END_TEST

START_TEST(sec_fifo_link_and_folder_in_the_way)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(Arbiter) arbiter = arbiter_for(&folder, "host-a");
    g_autofree char *fifo = g_build_filename(folder.path, "web1.00000000000000000002", NULL);
    g_autofree char *link_path = g_build_filename(folder.path, "web1.00000000000000000003", NULL);
    g_autofree char *dir = g_build_filename(folder.path, "web1.00000000000000000004", NULL);
    g_auto(Got) got = {0};

    put_file(&folder, "ours", "host-a\n");
    ck_assert(mkfifo(fifo, 0600) == 0);
    claim(arbiter, 2, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 2, "");
    ck_assert(symlink("ours", link_path) == 0);
    claim(arbiter, 3, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 3, "");
    ck_assert(g_mkdir(dir, 0700) == 0);
    claim(arbiter, 4, FALSE, &got);
    assert_got(got, ARBITER_REFUSED, 4, "");
}
END_TEST

/* --- The race --- */

enum { RACERS = 8, ROUNDS = 200 };

typedef struct Race {
    pthread_barrier_t barrier;
    unsigned char verdicts[ROUNDS][RACERS];
    char owners[ROUNDS][RACERS][64];
} Race;

static void
race(Race *shared, const Folder *folder, int self)
{
    g_autofree char *host = g_strdup_printf("host-%d", self);
    g_autoptr(Arbiter) arbiter = arbiter_for(folder, host);

    for (int round = 0; round < ROUNDS; round++) {
        g_auto(Got) got = {0};

        pthread_barrier_wait(&shared->barrier);
        claim(arbiter, (guint64)round + 1, FALSE, &got);
        shared->verdicts[round][self] = (unsigned char)got.verdict;
        memcpy(shared->owners[round][self], got.owner, sizeof(got.owner));
    }
}

START_TEST(life_eight_processes_claim_exactly_one_wins)
{
    g_auto(Folder) folder = folder_new();
    Race *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t attr;
    pid_t pids[RACERS];

    ck_assert(shared != MAP_FAILED);
    pthread_barrierattr_init(&attr);
    pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &attr, RACERS);
    for (int i = 0; i < RACERS; i++) {
        pids[i] = fork();
        ck_assert_int_ge(pids[i], 0);
        if (pids[i] == 0) {
            race(shared, &folder, i);
            _exit(0);
        }
    }
    for (int i = 0; i < RACERS; i++) {
        int status;

        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_int_eq(status, 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        int winner = -1;

        for (int i = 0; i < RACERS; i++) {
            if (shared->verdicts[round][i] == ARBITER_GRANTED) {
                ck_assert_int_eq(winner, -1);
                winner = i;
            } else {
                ck_assert_int_eq(shared->verdicts[round][i], ARBITER_REFUSED);
            }
        }
        ck_assert_int_ge(winner, 0);
        for (int i = 0; i < RACERS; i++)
            ck_assert_str_eq(shared->owners[round][i], shared->owners[round][winner]);
    }
    ck_assert_uint_eq(count_files(&folder), ROUNDS);
    munmap(shared, sizeof(*shared));
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        /* These fork, the others start threads. */
        life_processes_die_in_the_middle_of_a_claim,
        life_eight_processes_claim_exactly_one_wins,
        err_permission_denied,
        unit_manual_is_the_operators,
        unit_file_first_come,
        unit_file_name_and_content,
        life_retry_after_crash_is_granted_again,
        life_crash_before_link_leaves_nothing_claimed,
        life_crash_after_link_keeps_the_claim,
        err_link_worked_but_its_answer_was_lost,
        err_path_missing_or_no_folder,
        err_folder_goes_away,
        life_answered_while_the_loop_stood_still,
        life_hanging_storage_is_unknown_at_the_deadline,
        life_free_while_under_way_drops_the_answer,
        life_freed_by_its_callback,
        life_folder_hangs_at_start,
        sec_foreign_files_are_ignored,
        sec_foreign_content_is_nobody_and_never_us,
        sec_fifo_link_and_folder_in_the_way,
    };

    /* Tests share the folders that the first one made. */
    if (!g_setenv("CK_FORK", "no", TRUE) || pipe(hang_fds) < 0)
        return EXIT_FAILURE;
    return check_run("arbiter", tests, G_N_ELEMENTS(tests));
}
