/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-vm.c - QEMU's command line, and processes that outlive us */
#include "vm.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fd.h"
#include "process.h"

enum { DEADLINE_MS = 10000, PASSED_FD = 33 };

/* ---- command line ---- */

static Config
sample_config(void)
{
    static char *no_args[] = {NULL};

    return (Config){
        .vm_name = (char *)"web",
        .uuid = (char *)"3d0d7f3e-9a51-4a4e-8c33-1f0b8b3b7a10",
        .qemu = (char *)"/usr/bin/qemu-system-x86_64",
        .machine = (char *)"pc",
        .accel = (char *)"tcg",
        .memory_mib = 128,
        .cpus = 2,
        .kernel = (char *)"/boot/vmlinuz",
        .append = (char *)"console=ttyS0",
        .extra_args = no_args,
        .n_nics = 2,
        .nics = {{.name = (char *)"nic0",
                  .mac = {0x52, 0x54, 0, 1, 2, 3},
                  .model = (char *)"virtio-net-pci",
                  .port = CONFIG_PORT_TAP,
                  .queues = 1},
                 {.name = (char *)"nic1",
                  .mac = {0x52, 0x54, 0, 1, 2, 4},
                  .model = (char *)"e1000",
                  .port = CONFIG_PORT_STREAM,
                  .queues = 1}},
    };
}

static gboolean
has_pair(char **argv, const char *option, const char *value)
{
    for (char **arg = argv; arg[0] != NULL && arg[1] != NULL; arg++) {
        if (g_str_equal(arg[0], option) && g_str_equal(arg[1], value))
            return TRUE;
    }
    return FALSE;
}

START_TEST(unit_command_line_says_what_the_configuration_says)
{
    Config config = sample_config();
    g_auto(GStrv) argv = vm_command_line(&config, "/run/colod/web", NULL, FALSE);

    ck_assert_str_eq(argv[0], "/usr/bin/qemu-system-x86_64");
    ck_assert(has_pair(argv, "-m", "128M"));
    ck_assert(has_pair(argv, "-smp", "2"));
    ck_assert(has_pair(argv, "-kernel", "/boot/vmlinuz"));
    ck_assert(has_pair(argv, "-append", "console=ttyS0"));
    ck_assert(has_pair(argv, "-netdev", "tap,id=nic0,fd=20,vhost=off"));
    ck_assert(has_pair(argv, "-device",
                       "virtio-net-pci,id=dev-nic0,netdev=nic0,mac=52:54:00:01:02:03,romfile=,"
                       "guest_announce=off"));
    ck_assert(
        has_pair(argv, "-netdev",
                 "stream,id=nic1,server=on,addr.type=unix,addr.path=/run/colod/web/nic1.sock"));
    ck_assert(g_strv_contains((const char *const *)argv, "-S"));
    ck_assert(!g_strv_contains((const char *const *)argv, "-initrd"));
    ck_assert(!g_strv_contains((const char *const *)argv, "-incoming"));
}
END_TEST

START_TEST(unit_more_arguments_come_before_those_of_the_configuration)
{
    static char *extra[] = {(char *)"-rtc", (char *)"base=utc", NULL};
    Config config = sample_config();
    g_autoptr(GPtrArray) more = g_ptr_array_new();

    config.extra_args = extra;
    g_ptr_array_add(more, (gpointer) "-device");
    g_ptr_array_add(more, (gpointer) "x,drive=disk0");

    g_auto(GStrv) argv = vm_command_line(&config, "/run/colod/web", more, TRUE);

    ck_assert(has_pair(argv, "-device", "x,drive=disk0"));
    ck_assert(has_pair(argv, "x,drive=disk0", "-rtc"));
}
END_TEST

START_TEST(unit_queues_are_one_tap_with_several_descriptors)
{
    Config config = sample_config();

    config.nics[0].queues = 3;
    config.nics[1] = config.nics[0];
    config.nics[1].name = (char *)"nic1";

    g_auto(GStrv) argv = vm_command_line(&config, "/run/colod/web", NULL, FALSE);

    ck_assert(has_pair(argv, "-netdev", "tap,id=nic0,fds=20:21:22,vhost=off"));
    ck_assert(has_pair(argv, "-netdev", "tap,id=nic1,fds=28:29:30,vhost=off"));
    ck_assert(has_pair(argv, "-device",
                       "virtio-net-pci,id=dev-nic0,netdev=nic0,mac=52:54:00:01:02:03,romfile=,"
                       "guest_announce=off,mq=on,vectors=8"));
}
END_TEST

START_TEST(unit_incoming_waits_for_the_stream)
{
    static char *extra[] = {(char *)"-rtc", (char *)"base=utc", NULL};
    Config config = sample_config();

    config.extra_args = extra;

    g_auto(GStrv) argv = vm_command_line(&config, "/run/colod/web", NULL, TRUE);

    ck_assert(has_pair(argv, "-incoming", "defer"));
    ck_assert(has_pair(argv, "-rtc", "base=utc"));
    ck_assert(!g_strv_contains((const char *const *)argv, "-S"));
}
END_TEST

/* ---- /proc ---- */

START_TEST(unit_start_ticks_are_field_22)
{
    ck_assert_uint_eq(
        process_parse_start_ticks("7 (q) S 1 7 7 0 -1 4194304 1 0 0 0 1 2 3 4 20 0 1 0 4711 99"),
        4711);
}
END_TEST

START_TEST(unit_a_zombie_is_no_process)
{
    ck_assert_uint_eq(
        process_parse_start_ticks("7 (q) Z 1 7 7 0 -1 4194304 1 0 0 0 1 2 3 4 20 0 1 0 4711 99"),
        0);
    ck_assert_uint_eq(
        process_parse_start_ticks("7 (q) X 1 7 7 0 -1 4194304 1 0 0 0 1 2 3 4 20 0 1 0 4711 99"),
        0);
}
END_TEST

/* Ours, until its watch has reaped it. */
START_TEST(unit_a_child_that_ended_does_not_exist)
{
    pid_t pid = fork();
    siginfo_t info;
    guint64 ticks;

    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        (void)pause();

    g_autofree char *path = g_strdup_printf("/proc/%d/stat", pid);
    g_autofree char *stat = NULL;

    ck_assert(g_file_get_contents(path, &stat, NULL, NULL));
    ticks = process_parse_start_ticks(stat);
    ck_assert(process_exists(pid, ticks));
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    ck_assert_int_eq(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    ck_assert(!process_exists(pid, ticks));
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}
END_TEST

START_TEST(sec_a_process_name_cannot_shift_the_fields)
{
    ck_assert_uint_eq(process_parse_start_ticks(
                          "7 (a) S 1) S 1 7 7 0 -1 4194304 1 0 0 0 1 2 3 4 20 0 1 0 4711 99"),
                      4711);
    ck_assert_uint_eq(process_parse_start_ticks("7 (q"), 0);
    ck_assert_uint_eq(process_parse_start_ticks("7 (q) S 1"), 0);
    ck_assert_uint_eq(process_parse_start_ticks(""), 0);
}
END_TEST

/* ---- processes ---- */

typedef struct Seen {
    char *how;
} Seen;

static void
on_dead(const char *how, gpointer user_data)
{
    Seen *seen = user_data;

    ck_assert_ptr_null(seen->how);
    seen->how = g_strdup(how);
}

static gboolean
on_deadline(gpointer user_data)
{
    *(gboolean *)user_data = TRUE;
    return G_SOURCE_REMOVE;
}

static void
wait_for_death(const Seen *seen)
{
    gboolean late = FALSE;
    guint timer = g_timeout_add(DEADLINE_MS, on_deadline, &late);

    while (seen->how == NULL && !late)
        g_main_context_iteration(NULL, TRUE);
    ck_assert(!late);
    g_source_remove(timer);
}

static Process *
spawn(const char *script, const int *fd, Seen *seen)
{
    const char *argv[] = {"sh", "-c", script, NULL};
    const int number = PASSED_FD;
    g_autoptr(GError) error = NULL;
    Process *process =
        process_spawn(argv, NULL, fd, &number, fd ? 1 : 0, "/dev/null", on_dead, seen, &error);

    ck_assert_msg(process != NULL, "%s", error ? error->message : "");
    return process;
}

/* Until it sleeps it is a copy of us. */
static void
wait_for_program(gint64 pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/comm", pid);
    const gint64 deadline_us = g_get_monotonic_time() + DEADLINE_MS * 1000LL;
    g_autofree char *name = NULL;

    while (!name || !g_str_equal(name, "sleep\n")) {
        ck_assert_int_lt(g_get_monotonic_time(), deadline_us);
        g_clear_pointer(&name, g_free);
        ck_assert(g_file_get_contents(path, &name, NULL, NULL));
    }
}

START_TEST(life_exit_status_and_signal_are_told)
{
    Seen ended = {0}, killed = {0};
    g_autoptr(Process) a = spawn("exit 3", NULL, &ended);
    g_autoptr(Process) b = spawn("exec sleep 60", NULL, &killed);

    wait_for_death(&ended);
    ck_assert_str_eq(ended.how, "exited with status 3");
    process_kill(b);
    wait_for_death(&killed);
    ck_assert(g_str_has_prefix(killed.how, "killed by signal 9"));
    /* A second time, on a process that is gone. */
    process_kill(b);
    g_free(ended.how);
    g_free(killed.how);
}
END_TEST

START_TEST(life_a_process_is_found_again_with_its_descriptor)
{
    Seen first = {0}, second = {0};
    auto_fd int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    Process *process = spawn("exec sleep 60", &null_fd, &first);
    const gint64 pid = process_pid(process);
    const guint64 ticks = process_start_ticks(process);
    g_autoptr(GError) error = NULL;
    struct stat ours, theirs;

    wait_for_program(pid);
    ck_assert(process_exists(pid, ticks));
    ck_assert(!process_exists(pid, ticks + 1));
    process_free(process); /* stops watching; the process lives on */

    g_autoptr(Process) again = process_adopt(pid, ticks, on_dead, &second, &error);
    ck_assert_msg(again != NULL, "%s", error ? error->message : "");

    auto_fd int copy = process_copy_fd(again, PASSED_FD);
    ck_assert_int_ge(copy, 0);
    ck_assert(fstat(copy, &theirs) == 0 && fstat(null_fd, &ours) == 0);
    ck_assert(ours.st_rdev == theirs.st_rdev);
    ck_assert_int_eq(process_copy_fd(again, PASSED_FD + 1), -EBADF);

    process_kill(again);
    wait_for_death(&second);
    ck_assert_ptr_null(first.how);
    g_free(second.how);
}
END_TEST

/* An ordinary user may not lower a nice value, and so has none to pass on. */
START_TEST(life_our_precedence_is_not_passed_on)
{
    Seen seen = {0};
    auto_fd int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const int nice = geteuid() == 0 ? -10 : 0;

    ck_assert_int_eq(setpriority(PRIO_PROCESS, 0, nice), 0);

    g_autoptr(Process) process = spawn("exec sleep 60", &null_fd, &seen);
    const pid_t pid = (pid_t)process_pid(process);

    wait_for_program(pid);
    ck_assert_int_eq(getpriority(PRIO_PROCESS, 0), nice);
    ck_assert_int_eq(getpriority(PRIO_PROCESS, (id_t)pid), 0);
    process_kill(process);
    wait_for_death(&seen);
    g_free(seen.how);
}
END_TEST

START_TEST(sec_another_process_with_that_pid_is_not_adopted)
{
    Seen seen = {0};
    g_autoptr(GError) error = NULL;

    ck_assert_ptr_null(process_adopt(getpid(), 1, on_dead, &seen, &error));
    ck_assert(g_error_matches(error, PROCESS_ERROR, PROCESS_ERROR_ADOPT));
}
END_TEST

/* A copy of true(1) that nobody can open, and so not run, as long as we hold the lease on it. */
static int
hold_program(const char *path)
{
    g_autofree char *program = NULL;
    gsize size;
    int fd;

    ck_assert(g_file_get_contents("/bin/true", &program, &size, NULL));
    ck_assert(g_file_set_contents_full(path, program, (gssize)size, G_FILE_SET_CONTENTS_NONE, 0700,
                                       NULL));
    fd = open(path, O_RDONLY | O_CLOEXEC);
    (void)signal(SIGIO, SIG_IGN); /* that is how we would be told that somebody wants it */
    ck_assert_int_eq(fcntl(fd, F_SETLEASE, F_WRLCK), 0);
    return fd;
}

/* colod sends no heartbeats while it is in here. */
START_TEST(life_a_program_that_is_not_loaded_holds_nobody_up)
{
    g_autofree char *folder = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(folder, "program", NULL);
    const char *argv[] = {path, NULL};
    g_autoptr(GError) error = NULL;
    int lease = hold_program(path);
    Seen seen = {0};
    g_autoptr(Process) process =
        process_spawn(argv, NULL, NULL, NULL, 0, "/dev/null", on_dead, &seen, &error);

    ck_assert_msg(process != NULL, "%s", error ? error->message : "");
    ck_assert_ptr_null(seen.how);
    ck_assert_int_eq(fcntl(lease, F_SETLEASE, F_UNLCK), 0); /* the child has a copy of @lease */
    (void)close(lease);
    wait_for_death(&seen);
    ck_assert_str_eq(seen.how, "exited with status 0");
    g_free(seen.how);
    ck_assert(g_unlink(path) == 0 && g_rmdir(folder) == 0);
}
END_TEST

static char *
output_of(const char *const *argv, const int *fds, const int *numbers, gsize n_fds,
          const char *how_it_ends)
{
    g_autofree char *folder = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    g_autofree char *log = g_build_filename(folder, "log", NULL);
    g_autoptr(GError) error = NULL;
    char *text = NULL;
    Seen seen = {0};
    g_autoptr(Process) process =
        process_spawn(argv, NULL, fds, numbers, n_fds, log, on_dead, &seen, &error);

    ck_assert_msg(process != NULL, "%s", error ? error->message : "");
    wait_for_death(&seen);
    ck_assert_str_eq(seen.how, how_it_ends);
    g_free(seen.how);
    ck_assert(g_file_get_contents(log, &text, NULL, NULL));
    ck_assert(g_unlink(log) == 0 && g_rmdir(folder) == 0);
    return text;
}

/* Each has the number that the other one shall get; a third one is nobody's business. */
START_TEST(unit_descriptors_may_exchange_their_numbers)
{
    static const char script[] =
        "cat /proc/self/fd/40 /proc/self/fd/41; ls /proc/self/fd | tr '\\n' ' '";
    const char *argv[] = {"sh", "-c", script, NULL};
    const int fds[] = {40, 41}, numbers[] = {41, 40};
    g_autofree char *text = NULL;

    for (int i = 0; i < 3; i++) {
        g_autofree char *path = NULL;
        auto_fd int file = g_file_open_tmp("colod-test-XXXXXX", &path, NULL);

        ck_assert_int_eq(g_unlink(path), 0);
        ck_assert_int_eq(write(file, i == 0 ? "0" : "1", 1), 1);
        ck_assert_int_eq(lseek(file, 0, SEEK_SET), 0);
        ck_assert_int_eq(dup2(file, 40 + i), 40 + i);
    }
    text = output_of(argv, fds, numbers, G_N_ELEMENTS(fds), "exited with status 0");
    ck_assert_str_eq(text, "100 1 2 3 40 41 "); /* 3: the folder that ls reads */
}
END_TEST

START_TEST(err_no_program_of_this_machine)
{
    g_autofree char *folder = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(folder, "program", NULL);
    const char *argv[] = {path, NULL};
    g_autofree char *text = NULL;

    ck_assert(
        g_file_set_contents_full(path, "what is this", -1, G_FILE_SET_CONTENTS_NONE, 0700, NULL));
    text = output_of(argv, NULL, NULL, 0, "exited with status 127");
    ck_assert_ptr_nonnull(strstr(text, "the program cannot be run"));
    ck_assert(g_unlink(path) == 0 && g_rmdir(folder) == 0);
}
END_TEST

START_TEST(err_program_missing)
{
    const char *argv[] = {"/nonexistent/qemu", NULL};
    g_autoptr(GError) error = NULL;
    Seen seen = {0};

    ck_assert_ptr_null(
        process_spawn(argv, NULL, NULL, NULL, 0, "/dev/null", on_dead, &seen, &error));
    ck_assert(g_error_matches(error, PROCESS_ERROR, PROCESS_ERROR_START));
    ck_assert_ptr_nonnull(strstr(error->message, "/nonexistent/qemu"));
}
END_TEST

CHECK_MAIN("vm", unit_command_line_says_what_the_configuration_says,
           unit_more_arguments_come_before_those_of_the_configuration,
           unit_queues_are_one_tap_with_several_descriptors, unit_incoming_waits_for_the_stream,
           unit_start_ticks_are_field_22, unit_a_zombie_is_no_process,
           unit_a_child_that_ended_does_not_exist, sec_a_process_name_cannot_shift_the_fields,
           life_exit_status_and_signal_are_told, life_a_process_is_found_again_with_its_descriptor,
           life_our_precedence_is_not_passed_on, life_a_program_that_is_not_loaded_holds_nobody_up,
           unit_descriptors_may_exchange_their_numbers, err_no_program_of_this_machine,
           sec_another_process_with_that_pid_is_not_adopted, err_program_missing)
