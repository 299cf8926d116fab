/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-selftest.c - the self-test against a real QEMU, and against scripts that fail as QEMUs do */
#include "selftest-cache.h"
#include "selftest.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <glib/gstdio.h>
#include <json-c/json.h>

enum {
    WAIT_MS = 20000,   /* beyond all phases of a self-test */
    REAL_OK_MS = 5000, /* a second on an idle host; here others compile */
};

/* A test's folder with its scripts, their log and the cache, and what the callback was told. */
typedef struct World {
    char *dir, *log, *cache;
    Selftest *test;
    unsigned calls;
    SelftestVerdict verdict;
    char *version, *text;
    unsigned checkpoint_us, total_ms;
    gboolean from_cache, return_path;
    gboolean free_in_callback;
} World;

/* TMPDIR of this program alone, so that folders can be counted while other tests run. */
static char tmp_dir[] = "/tmp/test-selftest-XXXXXX";

static pid_t tmp_dir_owner; /* Check may run each test in a child */

static void
remove_tmp_dir(void)
{
    if (getpid() == tmp_dir_owner)
        (void)rmdir(tmp_dir); /* what a test left behind stays, to be seen */
}

/* Before GLib reads TMPDIR, which it does once. */
__attribute__((constructor)) static void
make_tmp_dir(void)
{
    tmp_dir_owner = getpid();
    if (!mkdtemp(tmp_dir) || setenv("TMPDIR", tmp_dir, 1) < 0 || atexit(remove_tmp_dir) != 0)
        abort();
}

static void
remove_tree(const char *path)
{
    const char *argv[] = {"rm", "-rf", path, NULL};

    ck_assert(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL,
                           NULL, NULL));
}

static void
world_setup(World *world)
{
    *world = (World){0};
    world->dir = g_build_filename(tmp_dir, "world-XXXXXX", NULL);
    ck_assert_ptr_nonnull(g_mkdtemp(world->dir));
    world->log = g_build_filename(world->dir, "starts", NULL);
    world->cache = g_build_filename(world->dir, "cache.json", NULL);
}

static void
world_teardown(World *world)
{
    g_clear_pointer(&world->test, selftest_free);
    remove_tree(world->dir);
    g_free(world->dir);
    g_free(world->log);
    g_free(world->cache);
    g_free(world->version);
    g_free(world->text);
}

/* --- What selftests leave --- */

static unsigned
count_temporary_folders(void)
{
    g_autoptr(GDir) listing = g_dir_open(g_get_tmp_dir(), 0, NULL);
    const char *name;
    unsigned n = 0;

    ck_assert_ptr_nonnull(listing);
    while ((name = g_dir_read_name(listing)))
        n += g_str_has_prefix(name, "colo-selftest-");
    return n;
}

/* The pids of the fakes that were started, 0-terminated. */
static unsigned
started_pids(const World *world, pid_t pids[16])
{
    g_autofree char *text = NULL;
    unsigned n = 0;

    if (!g_file_get_contents(world->log, &text, NULL, NULL))
        return 0;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (; lines[n] && *lines[n] && n < 15; n++)
        pids[n] = (pid_t)g_ascii_strtoll(lines[n], NULL, 10);
    return n;
}

static gboolean
all_gone(const World *world)
{
    pid_t pids[16];
    unsigned n = started_pids(world, pids);

    for (unsigned i = 0; i < n; i++)
        if (kill(pids[i], 0) == 0 || errno != ESRCH)
            return FALSE;
    return TRUE;
}

#define wait_until(condition)                                                                      \
    ({                                                                                             \
        gint64 end_us_ = g_get_monotonic_time() + WAIT_MS * G_TIME_SPAN_MILLISECOND;               \
        while (!(condition)) {                                                                     \
            ck_assert_msg(g_get_monotonic_time() < end_us_, "deadline: %s", #condition);           \
            if (!g_main_context_iteration(NULL, FALSE))                                            \
                g_usleep(1000);                                                                    \
        }                                                                                          \
    })

/* --- Running one --- */

static void
on_result(const SelftestResult *result, gpointer user_data)
{
    World *world = user_data;

    world->calls++;
    ck_assert_uint_eq(count_temporary_folders(), 0);
    ck_assert_ptr_nonnull(result->qemu);
    ck_assert_ptr_nonnull(result->accel);
    ck_assert_ptr_nonnull(result->text);
    ck_assert_ptr_null(strchr(result->text, '\n'));
    ck_assert(g_utf8_validate(result->text, -1, NULL));
    world->verdict = result->verdict;
    g_free(world->version);
    g_free(world->text);
    world->version = g_strdup(result->version);
    world->text = g_strdup(result->text);
    world->checkpoint_us = result->checkpoint_us;
    world->total_ms = result->total_ms;
    world->from_cache = result->from_cache;
    world->return_path = result->return_path;
    if (world->free_in_callback)
        g_clear_pointer(&world->test, selftest_free);
}

static void
run(World *world, const char *qemu, const char *accel, const char *cache)
{
    unsigned folders = count_temporary_folders();

    world->calls = 0;
    world->test = selftest_start(qemu, accel, cache, on_result, world);
    ck_assert_uint_eq(world->calls, 0); /* never from within */
    wait_until(world->calls > 0);
    ck_assert_uint_eq(world->calls, 1);
    /* The result comes when all is cleaned up. */
    ck_assert(all_gone(world));
    if (world->test)
        g_clear_pointer(&world->test, selftest_free);
    ck_assert_uint_le(count_temporary_folders(), folders);
    while (g_main_context_iteration(NULL, FALSE))
        ;
    ck_assert_uint_eq(world->calls, 1);
}

/* A wrapper that execs the fake in @mode. */
static char *
make_fake(World *world, const char *mode)
{
    char *path = g_build_filename(world->dir, mode, NULL);
    g_autofree char *script = g_strdup_printf("#!/bin/sh\nexec python3 '%s' '%s' '%s' \"$@\"\n",
                                              FAKE_QEMU, mode, world->log);

    ck_assert(g_file_set_contents(path, script, -1, NULL));
    ck_assert_int_eq(chmod(path, 0755), 0);
    return path;
}

static void
run_fake(World *world, const char *mode, const char *accel)
{
    g_autofree char *qemu = make_fake(world, mode);

    run(world, qemu, accel, NULL);
}

static void
check_fake(const char *mode, const char *accel, SelftestVerdict verdict, const char *text_part)
{
    World world;

    world_setup(&world);
    run_fake(&world, mode, accel);
    ck_assert_msg(world.verdict == verdict, "%s: %s: %s", mode,
                  selftest_verdict_name(world.verdict), world.text);
    ck_assert_msg(strstr(world.text, text_part), "%s: '%s' not in: %s", mode, text_part,
                  world.text);
    world_teardown(&world);
}

/* Aborts, and so fails, when there is no QEMU to be tested with. */
static char *
real_qemu(void)
{
    const char *argv[] = {QEMU_ROOT, NULL};
    g_autoptr(GError) error = NULL;
    char *path = NULL;
    int status;

    ck_assert_msg(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &path, NULL,
                               &status, &error),
                  "%s: %s", QEMU_ROOT, error ? error->message : "");
    ck_assert_msg(g_spawn_check_wait_status(status, &error), "%s: %s", QEMU_ROOT,
                  error ? error->message : "");
    return g_strstrip(path);
}

/* --- Cases --- */

START_TEST(unit_real_qemu_passes)
{
    g_autofree char *qemu = real_qemu();
    World world;

    world_setup(&world);
    run(&world, qemu, "tcg", world.cache);
    ck_assert_msg(world.verdict == SELFTEST_OK, "%s", world.text);
    ck_assert_ptr_nonnull(world.version);
    ck_assert_uint_gt(world.checkpoint_us, 0);
    ck_assert_uint_le(world.checkpoint_us, world.total_ms * 1000);
    ck_assert_uint_lt(world.total_ms, REAL_OK_MS);
    ck_assert(!world.from_cache);
    run(&world, qemu, "tcg", world.cache);
    ck_assert(world.from_cache);
    ck_assert_int_eq(world.verdict, SELFTEST_OK);
    world_teardown(&world);
}
END_TEST

START_TEST(unit_real_qemu_kvm_is_decided)
{
    g_autofree char *qemu = real_qemu();
    World world;

    world_setup(&world);
    run(&world, qemu, "kvm", NULL);
    /* Whether this host has KVM is not ours to say; that there is an answer, and which, is. */
    ck_assert_msg(world.verdict == SELFTEST_OK || world.verdict == SELFTEST_KVM_UNUSABLE ||
                      world.verdict == SELFTEST_CHECKPOINT_HANGS,
                  "%s: %s", selftest_verdict_name(world.verdict), world.text);
    world_teardown(&world);
}
END_TEST

START_TEST(unit_cli_exit_codes)
{
    g_autofree char *qemu = real_qemu();

    ck_assert_int_eq(selftest_cli(qemu, NULL, FALSE), 0);
    ck_assert_int_eq(selftest_cli(qemu, "tcg", TRUE), 0);
    ck_assert_int_eq(selftest_cli("/nonexistent/qemu", NULL, FALSE), 1);
    ck_assert_int_eq(selftest_cli("/nonexistent/qemu", NULL, TRUE), 1);
}
END_TEST

START_TEST(unit_return_path_only_where_wanted)
{
    World world;

    world_setup(&world);
    run_fake(&world, "old", "tcg");
    ck_assert_int_eq(world.verdict, SELFTEST_OK);
    ck_assert(!world.return_path);
    run_fake(&world, "ok", "tcg");
    ck_assert_int_eq(world.verdict, SELFTEST_OK);
    ck_assert(world.return_path);
    world_teardown(&world);
}
END_TEST

START_TEST(err_no_qemu)
{
    World world;

    world_setup(&world);
    run(&world, "/nonexistent/qemu", "tcg", world.cache);
    ck_assert_int_eq(world.verdict, SELFTEST_NO_QEMU);
    ck_assert_ptr_nonnull(strstr(world.text, "does not exist"));
    run(&world, "no-such-program-anywhere", "tcg", NULL);
    ck_assert_int_eq(world.verdict, SELFTEST_NO_QEMU);
    ck_assert_ptr_nonnull(strstr(world.text, "PATH"));
    ck_assert(g_file_set_contents(world.cache, "data", -1, NULL));
    run(&world, world.cache, "tcg", NULL);
    ck_assert_int_eq(world.verdict, SELFTEST_NO_QEMU);
    ck_assert_ptr_nonnull(strstr(world.text, "not executable"));
    run(&world, world.dir, "tcg", NULL);
    ck_assert_int_eq(world.verdict, SELFTEST_NO_QEMU);
    world_teardown(&world);
}
END_TEST

START_TEST(err_interpreter_is_missing)
{
    World world;

    world_setup(&world);
    g_autofree char *qemu = g_build_filename(world.dir, "qemu", NULL);

    ck_assert(g_file_set_contents(qemu, "#!/nonexistent/sh\n", -1, NULL));
    ck_assert_int_eq(chmod(qemu, 0755), 0);
    run(&world, qemu, "tcg", world.cache);
    ck_assert_int_eq(world.verdict, SELFTEST_NO_QEMU);
    ck_assert(!g_file_test(world.cache, G_FILE_TEST_EXISTS));
    world_teardown(&world);
}
END_TEST

START_TEST(err_exits_at_once)
{
    check_fake("exits", "tcg", SELFTEST_FAILED, "exited with status 1: -M pc:  [31munsupported");
    check_fake("no-library", "tcg", SELFTEST_NO_QEMU, "libfoo");
    check_fake("floods", "tcg", SELFTEST_FAILED, ": last words after the flood.");
}
END_TEST

START_TEST(err_no_capability)
{
    check_fake("no-capability", "tcg", SELFTEST_NO_CAPABILITY, "x-colo");
    check_fake("no-replication", "tcg", SELFTEST_NO_CAPABILITY, "without replication module");
}
END_TEST

START_TEST(err_never_enters)
{
    check_fake("completes", "tcg", SELFTEST_NEVER_ENTERS, "completes");
    check_fake("stays-active", "tcg", SELFTEST_FAILED, "'active'");
    check_fake("stays-stopped", "tcg", SELFTEST_FAILED, "'colo'");
    check_fake("fails", "tcg", SELFTEST_FAILED, "the fake does not like it");
}
END_TEST

START_TEST(err_checkpoint_hangs)
{
    check_fake("hangs", "tcg", SELFTEST_CHECKPOINT_HANGS, "does not end");
    check_fake("hangs-before", "tcg", SELFTEST_CHECKPOINT_HANGS, "does not begin");
}
END_TEST

START_TEST(err_checkpoint_fails)
{
    check_fake("crashes", "tcg", SELFTEST_FAILED, "killed by signal 6");
    check_fake("leaves-colo", "tcg", SELFTEST_FAILED, "left COLO");
}
END_TEST

START_TEST(err_kvm_unusable)
{
    check_fake("no-kvm", "kvm", SELFTEST_KVM_UNUSABLE, "failed to initialize kvm");
    check_fake("guest-stuck", "kvm", SELFTEST_KVM_UNUSABLE, "executed nothing");
    check_fake("stays-active", "kvm", SELFTEST_KVM_UNUSABLE, "'active'");
    check_fake("ok", "kvm", SELFTEST_OK, "one checkpoint in");
}
END_TEST

START_TEST(err_qmp_is_silent_or_strange)
{
    check_fake("silent", "tcg", SELFTEST_FAILED, "not ready");
    check_fake("not-qmp", "tcg", SELFTEST_FAILED, "QMP of the");
    check_fake("drops", "tcg", SELFTEST_FAILED, "QMP of the primary");
}
END_TEST

/* Starts a self-test of a QEMU that says nothing, and goes on until both processes run. */
static void
start_hanging(World *world)
{
    g_autofree char *qemu = make_fake(world, "silent");
    pid_t pids[16];

    world->test = selftest_start(qemu, "tcg", NULL, on_result, world);
    wait_until(started_pids(world, pids) == 2);
}

START_TEST(life_free_in_the_middle)
{
    unsigned folders = count_temporary_folders();
    World world;

    world_setup(&world);
    start_hanging(&world);
    ck_assert_uint_gt(count_temporary_folders(), folders);
    g_clear_pointer(&world.test, selftest_free);
    ck_assert_uint_eq(count_temporary_folders(), folders);
    wait_until(all_gone(&world));
    ck_assert_uint_eq(world.calls, 0);
    world_teardown(&world);
}
END_TEST

START_TEST(life_free_at_once)
{
    unsigned folders = count_temporary_folders();
    World world;

    world_setup(&world);
    g_autofree char *qemu = make_fake(&world, "ok");

    for (int turns = 0; turns < 20; turns++) {
        world.test = selftest_start(qemu, "tcg", world.cache, on_result, &world);
        for (int i = 0; i < turns; i++) {
            g_main_context_iteration(NULL, FALSE);
            g_usleep(2000); /* no wait: later each time, so that it is freed at another point */
        }
        g_clear_pointer(&world.test, selftest_free);
        if (world.calls > 0)
            break; /* it got to its end: all of them were tried */
        (void)g_unlink(world.log);
    }
    /* Pids that were never logged are seen by their folders alone. */
    wait_until(all_gone(&world) && count_temporary_folders() == folders);
    world_teardown(&world);
}
END_TEST

START_TEST(life_free_in_the_callback)
{
    World world;

    world_setup(&world);
    world.free_in_callback = TRUE;
    run_fake(&world, "ok", "tcg");
    ck_assert_int_eq(world.verdict, SELFTEST_OK);
    run(&world, "/nonexistent/qemu", "tcg", NULL);
    world_teardown(&world);
}
END_TEST

START_TEST(life_qemus_die_with_us)
{
    World world;
    int status;

    world_setup(&world);
    pid_t child = fork();

    ck_assert_int_ge(child, 0);
    if (child == 0) {
        start_hanging(&world);
        (void)kill(getpid(), SIGKILL);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status));

    pid_t pids[16];

    ck_assert_uint_eq(started_pids(&world, pids), 2);
    wait_until(all_gone(&world));
    /* Nobody was left to remove it. */
    g_autofree char *clean = g_strdup_printf("rm -rf '%s'/colo-selftest-??????", g_get_tmp_dir());

    ck_assert_int_eq(system(clean), 0);
    world_teardown(&world);
}
END_TEST

/* --- Cache --- */

static unsigned
count_starts(const World *world)
{
    pid_t pids[16];

    return started_pids(world, pids);
}

START_TEST(unit_cache_hit_and_miss)
{
    World world;
    struct stat st;

    world_setup(&world);
    g_autofree char *qemu = make_fake(&world, "ok");
    g_autofree char *link = g_build_filename(world.dir, "link", NULL);

    run(&world, qemu, "tcg", world.cache);
    ck_assert(!world.from_cache);
    ck_assert_uint_eq(count_starts(&world), 2);
    ck_assert_int_eq(stat(world.cache, &st), 0);
    ck_assert_int_eq(st.st_mode & 0777, 0600);

    unsigned checkpoint_us = world.checkpoint_us;

    ck_assert_int_eq(symlink(qemu, link), 0);
    run(&world, link, "tcg", world.cache);
    ck_assert(world.from_cache);
    ck_assert_int_eq(world.verdict, SELFTEST_OK);
    ck_assert_str_eq(world.version, "11.1.3");
    ck_assert(world.return_path);
    ck_assert_uint_eq(world.checkpoint_us, checkpoint_us);
    ck_assert_uint_eq(count_starts(&world), 2);

    run(&world, qemu, "tcg,thread=single", world.cache); /* another accelerator */
    ck_assert(!world.from_cache);
    ck_assert_uint_eq(count_starts(&world), 4);

    g_free(make_fake(&world, "ok")); /* the same content in another file */
    run(&world, qemu, "tcg", world.cache);
    ck_assert(!world.from_cache);
    ck_assert_uint_eq(count_starts(&world), 6);
    run(&world, qemu, "tcg", world.cache);
    ck_assert(world.from_cache);
    world_teardown(&world);
}
END_TEST

START_TEST(unit_cache_forgets_failures)
{
    World world;

    world_setup(&world);
    g_autofree char *qemu = make_fake(&world, "completes");

    run(&world, qemu, "tcg", world.cache);
    run(&world, qemu, "tcg", world.cache);
    ck_assert_int_eq(world.verdict, SELFTEST_NEVER_ENTERS);
    ck_assert(!world.from_cache);
    ck_assert_uint_eq(count_starts(&world), 4);
    ck_assert(!g_file_test(world.cache, G_FILE_TEST_EXISTS));
    world_teardown(&world);
}
END_TEST

/* A result that was stored for @path, changed in the file by @change, is looked up. */
static gboolean
lookup_after(World *world, const char *path, const char *accel, const char *key,
             json_object *change)
{
    g_autoptr(SelftestBuild) build = selftest_build_identify(path, accel);
    SelftestResult stored = {.version = "1", .package = "", .text = "t", .checkpoint_us = 7};
    SelftestResult found = {0};

    ck_assert_ptr_nonnull(build);
    ck_assert(selftest_cache_store(world->cache, build, &stored, NULL));

    json_object *root = json_object_from_file(world->cache), *builds;

    ck_assert(json_object_object_get_ex(root, "builds", &builds));
    json_object *last = json_object_array_get_idx(builds, json_object_array_length(builds) - 1);

    json_object_object_add(last, key, change);
    ck_assert_int_eq(json_object_to_file(world->cache, root), 0);
    json_object_put(root);

    gboolean hit = selftest_cache_lookup(world->cache, build, &found);

    ck_assert(hit ? found.checkpoint_us == 7 : found.text == NULL);
    g_free(found.version);
    g_free(found.package);
    g_free(found.text);
    return hit;
}

static gint64
boottime_s(void)
{
    struct timespec now;

    ck_assert_int_eq(clock_gettime(CLOCK_BOOTTIME, &now), 0);
    return now.tv_sec;
}

START_TEST(unit_cache_limits)
{
    const char *binary = "/bin/sh";
    World world;

    world_setup(&world);
    g_autofree char *script = make_fake(&world, "ok");
    gint64 now = boottime_s();

#define AGED(path, accel, age)                                                                     \
    lookup_after(&world, path, accel, "tested_boottime_s", json_object_new_int64(now - (age)))
#define OTHER_BOOT(path, accel)                                                                    \
    lookup_after(&world, path, accel, "boot_id", json_object_new_string("other"))

    ck_assert(AGED(script, "tcg", SELFTEST_SCRIPT_TTL_S - 60));
    ck_assert(!AGED(script, "tcg", SELFTEST_SCRIPT_TTL_S + 60));
    ck_assert(!AGED(script, "tcg", -3600));
    ck_assert(!OTHER_BOOT(script, "tcg"));
    ck_assert(AGED(binary, "tcg", 1000000));
    ck_assert(OTHER_BOOT(binary, "tcg"));
    ck_assert(AGED(binary, "kvm", 1000000));
    ck_assert(!OTHER_BOOT(binary, "kvm"));
    ck_assert(!lookup_after(&world, binary, "tcg", "size", json_object_new_int(5)));
    ck_assert(!lookup_after(&world, binary, "tcg", "inode", json_object_new_int(5)));
    ck_assert(!lookup_after(&world, binary, "tcg", "mtime_ns", json_object_new_int(5)));
    world_teardown(&world);
}
END_TEST

START_TEST(unit_cache_is_bounded)
{
    SelftestResult stored = {.version = "1", .package = "", .text = "t"};
    World world;

    world_setup(&world);
    for (int i = 0; i < SELFTEST_CACHE_MAX + 5; i++) {
        g_autofree char *accel = g_strdup_printf("accel%d", i);
        g_autoptr(SelftestBuild) build = selftest_build_identify("/bin/sh", accel);

        ck_assert(selftest_cache_store(world.cache, build, &stored, NULL));
    }
    json_object *root = json_object_from_file(world.cache), *builds;

    ck_assert(json_object_object_get_ex(root, "builds", &builds));
    ck_assert_uint_eq(json_object_array_length(builds), SELFTEST_CACHE_MAX);
    json_object_put(root);

    g_autoptr(SelftestBuild) oldest = selftest_build_identify("/bin/sh", "accel4");

    ck_assert(!selftest_cache_lookup(world.cache, oldest, &(SelftestResult){0}));
    world_teardown(&world);
}
END_TEST

START_TEST(sec_cache_is_damaged)
{
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "null",
        "{\"version\": 2, \"builds\": []}",
        "{\"version\": 1, \"builds\": {}}",
        "{\"version\": 1, \"builds\": [null, 3, [], {}]}",
        "{\"version\": 1, \"builds\": [{\"qemu\": \"/bin/sh\", \"accel\": 3}]}",
    };
    g_autoptr(SelftestBuild) build = selftest_build_identify("/bin/sh", "tcg");
    SelftestResult stored = {.version = "1", .package = "", .text = "t"};
    World world;

    world_setup(&world);
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        SelftestResult found = {0};

        ck_assert(g_file_set_contents(world.cache, texts[i], -1, NULL));
        ck_assert(!selftest_cache_lookup(world.cache, build, &found));
        ck_assert(selftest_cache_store(world.cache, build, &stored, NULL));
        ck_assert(selftest_cache_lookup(world.cache, build, &found));
        g_free(found.version);
        g_free(found.package);
        g_free(found.text);
    }
    ck_assert(!lookup_after(&world, "/bin/sh", "tcg", "version", json_object_new_int(3)));
    ck_assert(!lookup_after(&world, "/bin/sh", "tcg", "checkpoint_us", json_object_new_int(-5)));
    world_teardown(&world);
}
END_TEST

START_TEST(err_cache_cannot_be_written)
{
    World world;

    world_setup(&world);
    g_autofree char *qemu = make_fake(&world, "ok");

    run(&world, qemu, "tcg", "/nonexistent/folder/cache.json");
    ck_assert_int_eq(world.verdict, SELFTEST_OK);
    world_teardown(&world);
}
END_TEST

CHECK_MAIN("selftest", unit_real_qemu_passes, unit_real_qemu_kvm_is_decided, unit_cli_exit_codes,
           unit_return_path_only_where_wanted, err_no_qemu, err_interpreter_is_missing,
           err_exits_at_once, err_no_capability, err_never_enters, err_checkpoint_hangs,
           err_checkpoint_fails, err_kvm_unusable, err_qmp_is_silent_or_strange,
           life_free_in_the_middle, life_free_at_once, life_free_in_the_callback,
           life_qemus_die_with_us, unit_cache_hit_and_miss, unit_cache_forgets_failures,
           unit_cache_limits, unit_cache_is_bounded, sec_cache_is_damaged,
           err_cache_cannot_be_written)
