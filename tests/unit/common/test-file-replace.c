/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-file-replace.c - the old file or the new one, and why not */
#include "file-replace.h"

#include "check-main.h"

#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/colod-test-replace-XXXXXX";

static char *
path_of(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

static void
expect_content(const char *path, const char *want)
{
    g_autofree char *text = NULL;

    ck_assert(g_file_get_contents(path, &text, NULL, NULL));
    ck_assert_str_eq(text, want);
}

START_TEST(unit_made_and_replaced)
{
    g_autofree char *path = path_of("file");
    g_autofree char *temporary = path_of("file.new");
    struct stat st;

    ck_assert(file_replace(path, "one", 3, NULL));
    ck_assert(file_replace(path, "", 0, NULL));
    expect_content(path, "");
    ck_assert(g_file_set_contents(temporary, "left by a crash", -1, NULL));
    ck_assert(file_replace(path, "two", 3, NULL));
    expect_content(path, "two");
    ck_assert(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    ck_assert_int_ne(access(temporary, F_OK), 0);
    (void)g_unlink(path);
}
END_TEST

START_TEST(err_no_folder)
{
    g_autofree char *path = path_of("nowhere/file");
    g_autoptr(GError) error = NULL;

    ck_assert(!file_replace(path, "x", 1, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND));
    ck_assert_ptr_nonnull(strstr(error->message, "nowhere/file.new: cannot create it"));
}
END_TEST

START_TEST(err_a_folder_is_in_its_place)
{
    g_autofree char *path = path_of("folder");
    g_autofree char *temporary = path_of("folder.new");
    g_autoptr(GError) error = NULL;

    ck_assert_int_eq(g_mkdir(path, 0700), 0);
    ck_assert(!file_replace(path, "x", 1, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "folder: cannot replace it"));
    (void)g_unlink(temporary);
    (void)g_rmdir(path);
}
END_TEST

START_TEST(sec_links_are_not_followed)
{
    g_autofree char *path = path_of("file");
    g_autofree char *temporary = path_of("file.new");
    g_autofree char *victim = path_of("victim");

    ck_assert_int_eq(symlink(victim, temporary), 0);
    ck_assert(!file_replace(path, "x", 1, NULL));
    ck_assert_int_ne(access(victim, F_OK), 0);
    (void)g_unlink(temporary);
}
END_TEST

/* The old one stays, and what was begun is not in the way. */
START_TEST(err_file_system_full)
{
    g_autofree char *mount_point = path_of("small");
    g_autofree char *path = path_of("small/file");
    g_autofree char *temporary = path_of("small/file.new");
    g_autofree char *large = g_malloc0(200000);
    g_autoptr(GError) error = NULL;

    ck_assert_int_eq(g_mkdir(mount_point, 0700), 0);
    if (mount("tmpfs", mount_point, "tmpfs", 0, "size=64k") < 0) {
        (void)g_rmdir(mount_point);
        return; /* needs root */
    }
    ck_assert(file_replace(path, "old", 3, NULL));
    ck_assert(!file_replace(path, large, 200000, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE));
    expect_content(path, "old");
    ck_assert_int_ne(access(temporary, F_OK), 0);
    ck_assert_int_eq(umount(mount_point), 0);
    (void)g_rmdir(mount_point);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {unit_made_and_replaced, err_no_folder,
                                  err_a_folder_is_in_its_place, sec_links_are_not_followed,
                                  err_file_system_full};

    if (!g_mkdtemp(folder))
        return EXIT_FAILURE;

    int status = check_run("file-replace", tests, G_N_ELEMENTS(tests));

    (void)g_rmdir(folder);
    return status;
}
