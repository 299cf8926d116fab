/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-store.c - stores in files and in memory */
#include "store.h"

#include "check-folder.h"
#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIZE = 1024 * 1024 + 100 };

static char folder[] = "/tmp/colod-test-store-XXXXXX";

static char *
new_disk(void)
{
    char *path = g_build_filename(folder, "disk", NULL);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, SIZE), 0);
    (void)close(fd);
    return path;
}

/* What every store does. */
static void
check_store(Store *store)
{
    uint8_t out[10000], in[10000];

    for (size_t i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 31 + 1);
    ck_assert_int_eq(store_write(store, out, sizeof(out), store->size_bytes - sizeof(out)), 0);
    ck_assert_int_eq(store_read(store, in, sizeof(in), store->size_bytes - sizeof(in)), 0);
    ck_assert_int_eq(memcmp(in, out, sizeof(in)), 0);
    for (int unmap = 0; unmap < 2; unmap++) {
        ck_assert_int_eq(store_write(store, out, sizeof(out), 50), 0);
        ck_assert_int_eq(store_zero(store, 9000, 55, unmap), 0);
        ck_assert_int_eq(store_read(store, in, sizeof(in), 50), 0);
        ck_assert_int_eq(memcmp(in, out, 5), 0);
        ck_assert(in[5] == 0 && memcmp(in + 5, in + 6, 8999) == 0);
        ck_assert_int_eq(memcmp(in + 9005, out + 9005, 995), 0);
    }
    ck_assert_int_eq(store_zero(store, 300000, 70001, false), 0); /* more than is written by hand */
    ck_assert_int_eq(store_flush(store), 0);
}

static void
check_bounds(Store *store)
{
    uint8_t byte = 0;
    uint64_t len;
    bool hole;

    ck_assert_int_eq(store_read(store, &byte, 1, store->size_bytes), -EINVAL);
    ck_assert_int_eq(store_write(store, &byte, 1, UINT64_MAX), -EINVAL);
    ck_assert_int_eq(store_zero(store, UINT64_MAX, 1, true), -EINVAL);
    ck_assert_int_eq(store_extent(store, 1, store->size_bytes, &len, &hole), -EINVAL);
}

START_TEST(unit_memory)
{
    g_autoptr(Store) store = store_memory_new(SIZE, NULL);
    uint64_t len;
    bool hole;

    check_store(store);
    check_bounds(store);
    ck_assert(!store->durable);
    ck_assert_int_eq(store_extent(store, 5, 100, &len, &hole), 0);
    ck_assert(len == 100 && !hole);
    ck_assert_int_eq(store_discard_all(store), 0);
}
END_TEST

START_TEST(unit_file)
{
    g_autofree char *path = new_disk();
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_file_open(path, &error);

    ck_assert_ptr_nonnull(store);
    ck_assert_uint_eq(store->size_bytes, SIZE);
    ck_assert(store->durable);
    check_store(store);
    check_bounds(store);
}
END_TEST

START_TEST(unit_holes)
{
    g_autofree char *path = new_disk();
    g_autoptr(Store) store = store_file_open(path, NULL);
    uint8_t data[4096] = {1};
    uint64_t len;
    bool hole;

    ck_assert_int_eq(store_write(store, data, sizeof(data), 65536), 0);
    ck_assert_int_eq(store_extent(store, 10, SIZE - 10, &len, &hole), 0);
    ck_assert(hole && len <= 65526);
    ck_assert_int_eq(store_extent(store, 65536, 100, &len, &hole), 0);
    ck_assert(!hole && len == 100);
    ck_assert_int_eq(store_extent(store, 65536, SIZE - 65536, &len, &hole), 0);
    ck_assert(!hole && len >= 4096 && len < 1000000);
    ck_assert_int_eq(store_extent(store, SIZE - 50, 50, &len, &hole), 0);
    ck_assert(hole && len == 50);
}
END_TEST

START_TEST(unit_overlay_kept_or_new)
{
    g_autofree char *path = g_build_filename(folder, "overlay", NULL);
    g_autoptr(GError) error = NULL;
    uint8_t byte = 9;
    struct stat st;

    ck_assert_ptr_null(store_file_overlay(path, 1 << 20, true, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND));
    for (int i = 0; i < 3; i++) {
        g_autoptr(Store) store = store_file_overlay(path, 1 << 20, i == 1, NULL);

        ck_assert_ptr_nonnull(store);
        if (i == 0)
            ck_assert_int_eq(store_write(store, &byte, 1, 5000), 0);
        ck_assert_int_eq(store_read(store, &byte, 1, 5000), 0);
        ck_assert_int_eq(byte, i < 2 ? 9 : 0);
        if (i == 1) {
            ck_assert_int_eq(store_discard_all(store), 0);
            ck_assert_int_eq(stat(path, &st), 0);
            ck_assert(st.st_blocks == 0 && st.st_size == 1 << 20);
            ck_assert_int_eq(store_write(store, &byte, 1, 5000), 0);
        }
    }
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(st.st_mode & 0777, 0600);
}
END_TEST

START_TEST(err_a_file_that_gets_shorter)
{
    g_autofree char *path = new_disk();
    g_autoptr(Store) store = store_file_open(path, NULL);
    uint8_t data[100];

    ck_assert_int_eq(truncate(path, 1000), 0);
    ck_assert_int_eq(store_read(store, data, sizeof(data), 950), -EIO);
}
END_TEST

START_TEST(err_what_is_no_disk)
{
    g_autofree char *missing = g_build_filename(folder, "missing", NULL);
    g_autofree char *empty = g_build_filename(folder, "empty", NULL);
    const char *paths[] = {missing, empty, folder, "/dev/null"};
    const int codes[] = {G_IO_ERROR_NOT_FOUND, G_IO_ERROR_NOT_SUPPORTED, G_IO_ERROR_IS_DIRECTORY,
                         G_IO_ERROR_NOT_SUPPORTED};

    ck_assert(g_file_set_contents(empty, "", 0, NULL));
    for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++) {
        g_autoptr(GError) error = NULL;

        ck_assert_ptr_null(store_file_open(paths[i], &error));
        ck_assert_msg(g_error_matches(error, G_IO_ERROR, codes[i]), "%s", error->message);
    }
}
END_TEST

START_TEST(err_a_disk_in_use)
{
    g_autofree char *path = new_disk();
    g_autoptr(Store) store = store_file_open(path, NULL);
    g_autoptr(GError) error = NULL;

    ck_assert_ptr_null(store_file_open(path, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY));
}
END_TEST

/* An overlay's path that is a link leads nowhere good. */
START_TEST(sec_links_are_not_followed)
{
    g_autofree char *path = g_build_filename(folder, "link", NULL);
    g_autofree char *disk = new_disk();
    g_autoptr(GError) error = NULL;

    ck_assert_int_eq(symlink(disk, path), 0);
    ck_assert_ptr_null(store_file_overlay(path, 1 << 20, false, &error));
    ck_assert_ptr_nonnull(error);
}
END_TEST

static int
run_all(void)
{
    const TTest *const tests[] = {
        unit_memory,
        unit_file,
        unit_holes,
        unit_overlay_kept_or_new,
        err_a_file_that_gets_shorter,
        err_what_is_no_disk,
        err_a_disk_in_use,
        sec_links_are_not_followed,
    };

    return check_run("store", tests, G_N_ELEMENTS(tests));
}

int
main(void)
{
    static const char *const files[] = {"disk", "overlay", "empty", "link", NULL};

    return check_run_in_folder(folder, files, run_all);
}
