/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-vm.c - a throw-away QEMU process, and the private folder of its sockets */
/*
 * Theory of operation
 *
 * A QEMU of the self-test must never outlive it. The kernel kills it when the thread that made it
 * ends (PR_SET_PDEATHSIG), so that this holds when colod is killed too; everything else goes by
 * pidfd, which cannot hit another process that got the same pid.
 *
 * Killing does not wait: a vCPU can hang in the kernel, out of reach of SIGKILL, and colod's loop
 * must go on. Who frees a process that still runs leaves it to its exit source, which reaps it,
 * drops its reference of the folder and then frees it.
 */
#include "selftest-vm.h"

#include "fd.h"
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <glib-unix.h>
#include <glib/gstdio.h>

enum {
    STDERR_KEEP_BYTES = 2048, /* QEMU's last line is wanted, with room for a long one */
    LAST_WORDS_MAX_BYTES = 300,
};

/* --- Folder --- */

struct SelftestDir {
    char *path;
};

SelftestDir *
selftest_dir_new(GError **error)
{
    g_autofree char *path = g_dir_make_tmp("colo-selftest-XXXXXX", error);

    if (!path)
        return NULL;

    SelftestDir *dir = g_rc_box_new0(SelftestDir);

    dir->path = g_steal_pointer(&path);
    return dir;
}

SelftestDir *
selftest_dir_ref(SelftestDir *dir)
{
    return g_rc_box_acquire(dir);
}

const char *
selftest_dir_path(const SelftestDir *dir)
{
    return dir->path;
}

void
selftest_dir_remove(const SelftestDir *dir)
{
    g_autoptr(GDir) listing = g_dir_open(dir->path, 0, NULL);
    const char *name;

    while (listing && (name = g_dir_read_name(listing))) {
        g_autofree char *path = g_build_filename(dir->path, name, NULL);

        (void)g_unlink(path);
    }
    (void)g_rmdir(dir->path);
}

static void
dir_release(gpointer box)
{
    SelftestDir *dir = box;

    selftest_dir_remove(dir);
    g_free(dir->path);
}

void
selftest_dir_unref(SelftestDir *dir)
{
    g_rc_box_release_full(dir, dir_release);
}

/* --- Process --- */

struct SelftestVm {
    int pidfd;
    GSource *exit_source; /* until it is reaped */
    int stderr_fd;
    GSource *stderr_source;
    GString *stderr_tail;
    SelftestDir *dir;
    siginfo_t end; /* si_code 0: still running */
    gboolean abandoned;
    SelftestVmGoneFunc gone;
    gpointer user_data;
};

static GSource *
watch_fd(int fd, GIOCondition condition, GUnixFDSourceFunc func, gpointer user_data)
{
    GSource *source = g_unix_fd_source_new(fd, condition);

    g_source_set_callback(source, G_SOURCE_FUNC(func), user_data, NULL);
    g_source_attach(source, g_main_context_get_thread_default());
    return source;
}

static void
vm_destroy(SelftestVm *vm)
{
    source_clear(&vm->exit_source);
    source_clear(&vm->stderr_source);
    fd_clear(&vm->pidfd);
    fd_clear(&vm->stderr_fd);
    g_string_free(vm->stderr_tail, TRUE);
    g_clear_pointer(&vm->dir, selftest_dir_unref);
    g_free(vm);
}

/* Reads what is there; also of a flood only the end is kept. False: nothing more will come. */
static gboolean
read_stderr(SelftestVm *vm)
{
    char buffer[4096];
    ssize_t n;

    while (vm->stderr_fd >= 0) {
        n = read(vm->stderr_fd, buffer, sizeof(buffer));
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        if (n == 0)
            return FALSE;
        g_string_append_len(vm->stderr_tail, buffer, n);
        if (vm->stderr_tail->len > STDERR_KEEP_BYTES)
            g_string_erase(vm->stderr_tail, 0, (gssize)(vm->stderr_tail->len - STDERR_KEEP_BYTES));
        if ((size_t)n < sizeof(buffer))
            return TRUE;
    }
    return FALSE;
}

static gboolean
on_stderr(G_GNUC_UNUSED gint fd, G_GNUC_UNUSED GIOCondition condition, gpointer user_data)
{
    SelftestVm *vm = user_data;

    if (read_stderr(vm))
        return G_SOURCE_CONTINUE;
    source_clear(&vm->stderr_source);
    return G_SOURCE_REMOVE;
}

static gboolean
on_exit_fd(G_GNUC_UNUSED gint fd, G_GNUC_UNUSED GIOCondition condition, gpointer user_data)
{
    SelftestVm *vm = user_data;
    siginfo_t end = {0};

    if (waitid(P_PIDFD, (id_t)vm->pidfd, &end, WEXITED | WNOHANG) < 0) {
        if (errno == EINTR)
            return G_SOURCE_CONTINUE;
        end.si_code = CLD_EXITED; /* somebody else reaped it; how it ended is lost */
    }
    if (end.si_code == 0)
        return G_SOURCE_CONTINUE;
    vm->end = end;
    (void)read_stderr(vm);
    g_clear_pointer(&vm->dir, selftest_dir_unref);
    source_clear(&vm->exit_source);
    if (vm->abandoned)
        vm_destroy(vm);
    else
        vm->gone(vm, vm->user_data);
    return G_SOURCE_REMOVE;
}

/* Between fork and exec: async-signal-safe calls only. */
static void
set_up_child(gpointer user_data)
{
    const pid_t *parent = user_data;
    sigset_t none;

    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    /* The parent may be gone before the call: nobody would kill us then. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != *parent)
        _exit(127);
}

/* A process that cannot be watched is no use: kills it while its pid cannot have been reused. */
static void
give_up_child(GPid pid, const char *doing, GError **error)
{
    int saved_errno = errno;

    (void)kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(saved_errno), "%s: %s", doing,
                g_strerror(saved_errno));
}

SelftestVm *
selftest_vm_start(const char *const *argv, SelftestDir *dir, SelftestVmGoneFunc gone,
                  gpointer user_data, GError **error)
{
    pid_t parent = getpid();
    auto_fd int stderr_fd = -1;
    GPid pid;

    /* Since @argv is executed in a child of ours that we have to reap, no intermediate one. */
    if (!g_spawn_async_with_pipes(NULL, (char **)argv, NULL,
                                  G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL |
                                      G_SPAWN_CLOEXEC_PIPES,
                                  set_up_child, &parent, &pid, NULL, NULL, &stderr_fd, error))
        return NULL;

    auto_fd int pidfd = pidfd_open(pid, 0);

    if (pidfd < 0) {
        give_up_child(pid, "pidfd_open", error);
        return NULL;
    }
    if (fd_set_nonblocking(stderr_fd) < 0) {
        give_up_child(pid, "fcntl", error);
        return NULL;
    }

    SelftestVm *vm = g_new0(SelftestVm, 1);

    vm->gone = gone;
    vm->user_data = user_data;
    vm->dir = selftest_dir_ref(dir);
    vm->stderr_tail = g_string_new(NULL);
    vm->pidfd = fd_steal(&pidfd);
    vm->stderr_fd = fd_steal(&stderr_fd);
    vm->exit_source = watch_fd(vm->pidfd, G_IO_IN, on_exit_fd, vm);
    vm->stderr_source = watch_fd(vm->stderr_fd, G_IO_IN | G_IO_HUP | G_IO_ERR, on_stderr, vm);
    return vm;
}

void
selftest_vm_kill(SelftestVm *vm)
{
    if (!selftest_vm_is_gone(vm))
        (void)pidfd_send_signal(vm->pidfd, SIGKILL, NULL, 0);
}

void
selftest_vm_free(SelftestVm *vm)
{
    if (!vm)
        return;
    if (selftest_vm_is_gone(vm)) {
        vm_destroy(vm);
        return;
    }
    selftest_vm_kill(vm);
    source_clear(&vm->stderr_source);
    fd_clear(&vm->stderr_fd);
    vm->abandoned = TRUE;
}

gboolean
selftest_vm_is_gone(const SelftestVm *vm)
{
    return vm->end.si_code != 0;
}

int
selftest_vm_exit_code(const SelftestVm *vm)
{
    return vm->end.si_code == CLD_EXITED ? vm->end.si_status : -1;
}

char *
selftest_vm_describe_end(const SelftestVm *vm)
{
    if (vm->end.si_code == CLD_EXITED)
        return g_strdup_printf("exited with status %d", vm->end.si_status);
    return g_strdup_printf("was killed by signal %d (%s)", vm->end.si_status,
                           g_strsignal(vm->end.si_status));
}

char *
selftest_vm_last_words(SelftestVm *vm)
{
    (void)read_stderr(vm);

    g_autofree char *tail = g_utf8_make_valid(vm->stderr_tail->str, (gssize)vm->stderr_tail->len);
    char *line = g_strchomp(tail);
    char *newline = strrchr(line, '\n');

    if (newline)
        line = newline + 1;
    if (strlen(line) > LAST_WORDS_MAX_BYTES) {
        char *end = g_utf8_find_prev_char(line, line + LAST_WORDS_MAX_BYTES);

        *end = '\0';
    }
    for (char *p = line; *p; p = g_utf8_next_char(p))
        if (g_ascii_iscntrl(*p))
            *p = ' ';
    g_strstrip(line);
    return *line ? g_strdup(line) : NULL;
}
