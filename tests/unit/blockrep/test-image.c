/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-image.c - images that are NBD exports: their URIs, their sizes, a store in one */
#include "image.h"
#include "store-nbd.h"

#include "clock.h"
#include "fake-nbd.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { SIZE = 1024 * 1024 };

static char folder[] = "/tmp/colod-test-image-XXXXXX";

START_TEST(unit_parse)
{
    static const struct {
        const char *image, *socket_path, *export_name;
    } good[] = {
        {"nbd+unix:///disk0?socket=/run/a.sock", "/run/a.sock", "disk0"},
        {"nbd+unix:///?socket=/a", "/a", ""},
        {"nbd+unix:////x/y?socket=/run/with%20space%26", "/run/with space&", "/x/y"},
        {"nbd+unix:///d%2fe?socket=/a", "/a", "d/e"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        g_auto(ImageNbd) nbd = {0};

        ck_assert(image_is_nbd(good[i].image));
        ck_assert_msg(image_nbd_parse(good[i].image, &nbd, &error), "%s: %s", good[i].image,
                      error ? error->message : "");
        ck_assert_str_eq(nbd.socket_path, good[i].socket_path);
        ck_assert_str_eq(nbd.export_name, good[i].export_name);
    }
    ck_assert(!image_is_nbd("/nbd:/a"));
    ck_assert(!image_is_nbd("/srv/nbd+unix.raw"));
}
END_TEST

START_TEST(sec_parse_refuses)
{
    g_autofree char *longer = g_strnfill(110, 'x');
    g_autofree char *long_socket = g_strconcat("nbd+unix:///d?socket=/", longer, NULL);
    g_autofree char *endless = g_strnfill(5000, 'x');
    g_autofree char *long_export = g_strconcat("nbd+unix:///", endless, "?socket=/a", NULL);
    const char *const bad[] = {"nbd:",
                               "nbd:/run/a.sock",
                               "nbd://host/d",
                               "nbds://host/d?socket=/a",
                               "nbd+vsock:///d?socket=/a",
                               "nbds+unix:///d?socket=/a",
                               "nbd+unix://host/d?socket=/a",
                               "nbd+unix:///d",
                               "nbd+unix:///d?socket=",
                               "nbd+unix:///d?socket=run/a",
                               "nbd+unix:///d?sock=/a",
                               "nbd+unix:///d?socket=/a&tls=/b",
                               "nbd+unix:///d?socket=/a#b",
                               "nbd+unix:d?socket=/a",
                               "nbd+unix:///%ff?socket=/a",
                               "nbd+unix:///d?socket=/%ff",
                               "nbd+unix:///d?socket=/%00",
                               "nbd+unix:///d%00?socket=/a",
                               "nbd+unix://u@/d?socket=/a",
                               long_socket,
                               long_export};

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_auto(ImageNbd) nbd = {0};

        ck_assert(image_is_nbd(bad[i]));
        ck_assert_msg(!image_nbd_parse(bad[i], &nbd, &error), "%s", bad[i]);
        ck_assert_ptr_nonnull(strstr(error->message, "write it as in nbd+unix:///EXPORT?socket="));
        ck_assert_ptr_null(nbd.socket_path);
    }
}
END_TEST

static int64_t
soon(void)
{
    return clock_now_ns() + 200 * NS_PER_MS;
}

static char *
uri_of(const char *export, const char *path)
{
    return g_strdup_printf("nbd+unix:///%s?socket=%s", export, path);
}

START_TEST(unit_size)
{
    g_autofree char *path = g_build_filename(folder, "size", NULL);
    g_autofree char *file = g_build_filename(folder, "file", NULL);
    g_autofree char *uri = uri_of("target", path);
    g_autofree char *other = uri_of("other", path);
    g_autoptr(GError) error = NULL;
    FakeNbd *fake;

    ck_assert_int_eq(image_size_bytes(uri, soon(), &error), -1); /* no server */
    g_clear_error(&error);
    fake = fake_nbd_new(path, SIZE);
    ck_assert_int_eq(image_size_bytes(uri, soon(), &error), SIZE);
    ck_assert_int_eq(image_size_bytes(other, soon(), &error), -1);
    ck_assert_ptr_nonnull(strstr(error->message, "export 'other'"));
    g_clear_error(&error);
    fake_nbd_free(fake);
    ck_assert(g_file_set_contents(file, "12345", 5, NULL));
    ck_assert_int_eq(image_size_bytes(file, soon(), &error), 5);
    ck_assert(g_file_set_contents(file, "", 0, NULL));
    ck_assert_int_eq(image_size_bytes(file, soon(), &error), -1);
    ck_assert_str_eq(error->message, "is empty");
}
END_TEST

START_TEST(err_server_that_says_nothing)
{
    g_autofree char *path = g_build_filename(folder, "silent", NULL);
    g_autofree char *uri = uri_of("target", path);
    g_autoptr(GError) error = NULL;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int64_t start_ns = clock_now_ns();

    (void)g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(listen(fd, 1), 0);
    ck_assert_int_eq(image_size_bytes(uri, start_ns + 100 * NS_PER_MS, &error), -1);
    ck_assert_ptr_nonnull(strstr(error->message, "does not answer in time"));
    ck_assert_int_lt(clock_now_ns() - start_ns, 2 * NS_PER_S);
    (void)close(fd);
}
END_TEST

START_TEST(life_store)
{
    g_autofree char *path = g_build_filename(folder, "store", NULL);
    g_autofree char *uri = uri_of("target", path);
    FakeNbd *fake = fake_nbd_new(path, SIZE);
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_open(uri, STORE_WRITE, &error);
    uint8_t out[10000], in[10000];
    uint64_t len;
    bool hole;

    ck_assert_msg(store != NULL, "%s", error ? error->message : "");
    ck_assert_uint_eq(store->size_bytes, SIZE);
    memset(out, 7, sizeof(out));
    ck_assert_int_eq(store_write(store, out, sizeof(out), 333), 0);
    fake_nbd_peek(fake, in, sizeof(in), 333);
    ck_assert_mem_eq(in, out, sizeof(in));
    ck_assert_int_eq(store_zero(store, 100, 333, false), 0);
    ck_assert_int_eq(store_zero(store, 100, 433, true), 0);
    memset(out, 0, 200);
    ck_assert_int_eq(store_read(store, in, sizeof(in), 333), 0);
    ck_assert_mem_eq(in, out, sizeof(in));
    ck_assert_int_eq(store_flush(store), 0);
    ck_assert_uint_eq(fake_nbd_counters(fake).flushes, 1);
    ck_assert_int_eq(store_extent(store, 10, 1000, &len, &hole), 0);
    ck_assert(len > 0 && len <= 1000 && !hole);
    ck_assert_int_eq(store_read(store, in, 2, SIZE - 1), -EINVAL);
    ck_assert_int_eq(store_write(store, in, 1, UINT64_MAX), -EINVAL);
    ck_assert_int_eq(store_zero(store, 1, SIZE, true), -EINVAL);
    ck_assert_int_eq(store_extent(store, SIZE, 1, &len, &hole), -EINVAL);
    fake_nbd_fail(fake, ENOSPC); /* NBD's number of it is the same */
    ck_assert_int_eq(store_write(store, out, 1, 0), -ENOSPC);
    ck_assert_int_eq(store_write(store, out, 1, 0), 0);
    g_clear_pointer(&store, store_free);
    fake_nbd_free(fake);
}
END_TEST

/* Size and flags are looked at before anything is used, of each connection. */
START_TEST(err_exports_that_do_not_fit)
{
    static const struct {
        unsigned first, later;
        uint64_t later_size;
        const char *want; /* NULL: it fits */
    } cases[] = {
        {FAKE_NBD_FLAGS | FAKE_NBD_READ_ONLY, 0, 0, "is read-only"},
        {FAKE_NBD_FLAGS & ~FAKE_NBD_FLUSH, 0, 0, "cannot flush"},
        {FAKE_NBD_FLAGS & ~FAKE_NBD_ZERO, 0, 0, NULL},
        {FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN, FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN, SIZE, NULL},
        {FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN, FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN, SIZE / 2,
         "is not the same for each connection"},
        {FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN, FAKE_NBD_FLAGS, SIZE,
         "is not the same for each connection"},
        {FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN,
         (FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN) & ~FAKE_NBD_ZERO, SIZE,
         "is not the same for each connection"},
        {FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN,
         FAKE_NBD_FLAGS | FAKE_NBD_MULTI_CONN | FAKE_NBD_READ_ONLY, SIZE, "is read-only"},
    };
    g_autofree char *path = g_build_filename(folder, "offer", NULL);
    g_autofree char *uri = uri_of("target", path);

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        FakeNbd *fake = fake_nbd_new(path, SIZE);
        g_autoptr(GError) error = NULL;
        uint8_t byte = 1;

        fake_nbd_offer(fake, cases[i].first, cases[i].later, cases[i].later_size);

        Store *store = store_open(uri, STORE_WRITE, &error);

        ck_assert_msg(!store == (cases[i].want != NULL), "case %u", i);
        ck_assert_msg(store || strstr(error->message, cases[i].want), "case %u: %s", i,
                      error ? error->message : "");
        if (store) {
            ck_assert_int_eq(store_write(store, &byte, 1, 7), 0);
            ck_assert_int_eq(store_zero(store, 8, 0, false), 0);
            fake_nbd_peek(fake, &byte, 1, 7);
            ck_assert_int_eq(byte, 0);
        }
        store_free(store);
        fake_nbd_free(fake);
    }
}
END_TEST

START_TEST(err_lost_connection_stays_lost)
{
    g_autofree char *path = g_build_filename(folder, "lost", NULL);
    g_autofree char *uri = uri_of("target", path);
    FakeNbd *fake = fake_nbd_new(path, SIZE);
    g_autoptr(Store) store = store_open(uri, STORE_WRITE, NULL);
    uint8_t byte = 1;

    ck_assert_int_eq(store_write(store, &byte, 1, 0), 0);
    fake_nbd_cut(fake);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_lt(store_write(store, &byte, 1, 0), 0);
        ck_assert_int_lt(store_read(store, &byte, 1, 0), 0);
        ck_assert_int_lt(store_flush(store), 0);
    }
    ck_assert_uint_eq(fake_nbd_counters(fake).connections, 1);
    g_clear_pointer(&store, store_free);
    fake_nbd_free(fake);
}
END_TEST

START_TEST(unit_store_of_a_path)
{
    g_autofree char *path = g_build_filename(folder, "raw", NULL);
    g_autoptr(GError) error = NULL;
    uint8_t byte = 0;

    ck_assert(g_file_set_contents(path, "abc", 3, NULL));

    g_autoptr(Store) writer = store_open(path, STORE_WRITE, &error);
    g_autoptr(Store) reader = store_open(path, STORE_READ, &error);

    ck_assert(writer && reader);
    ck_assert_ptr_null(store_open(path, STORE_WRITE, &error)); /* locked */
    ck_assert_int_eq(store_write(writer, "x", 1, 1), 0);
    ck_assert_int_eq(store_read(reader, &byte, 1, 1), 0);
    ck_assert_int_eq(byte, 'x');
    ck_assert_int_eq(store_flush(reader), 0);
    ck_assert_int_eq(store_write(reader, "y", 1, 1), -EBADF);
}
END_TEST

static int
run(void)
{
    const TTest *const tests[] = {
        unit_parse,
        sec_parse_refuses,
        unit_size,
        err_server_that_says_nothing,
        life_store,
        err_exports_that_do_not_fit,
        err_lost_connection_stays_lost,
        unit_store_of_a_path,
    };

    return check_run("image", tests, G_N_ELEMENTS(tests));
}

int
main(void)
{
    static const char *const names[] = {"size", "file", "silent", "store", "offer", "lost", "raw"};
    int result;

    if (!g_mkdtemp(folder))
        return EXIT_FAILURE;
    result = run();
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(folder, names[i], NULL);

        (void)g_unlink(path);
    }
    (void)g_rmdir(folder);
    return result;
}
