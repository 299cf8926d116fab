/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-fd.c - descriptors: ownership and UNIX sockets */
#include "fd.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <sys/stat.h>
#include <unistd.h>

START_TEST(life_auto_fd_closes_and_steal_keeps)
{
    int closed, kept;

    {
        auto_fd int a = open("/dev/null", O_RDONLY);
        auto_fd int b = open("/dev/null", O_RDONLY);

        closed = a;
        kept = fd_steal(&b);
    }
    ck_assert(fcntl(closed, F_GETFD) < 0 && errno == EBADF);
    ck_assert(fcntl(kept, F_GETFD) >= 0);
    close(kept);
}
END_TEST

START_TEST(unit_unix_listen_replaces_stale_socket_with_mode_0600)
{
    g_autofree char *dir = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "s", NULL);
    struct stat st;

    int first = fd_unix_listen(path);
    ck_assert_int_ge(first, 0);
    close(first);

    auto_fd int second = fd_unix_listen(path);
    ck_assert_int_ge(second, 0);
    ck_assert(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);

    auto_fd int client = fd_unix_connect(path);
    ck_assert_int_ge(client, 0);
    g_unlink(path);
    g_rmdir(dir);
}
END_TEST

START_TEST(err_unix_path_too_long_and_nobody_listening)
{
    g_autofree char *path = g_strnfill(200, 'x');

    ck_assert_int_eq(fd_unix_connect(path), -ENAMETOOLONG);
    ck_assert_int_eq(fd_unix_connect("/nonexistent/s"), -ENOENT);
}
END_TEST

CHECK_MAIN("fd", life_auto_fd_closes_and_steal_keeps,
           unit_unix_listen_replaces_stale_socket_with_mode_0600,
           err_unix_path_too_long_and_nobody_listening)
