/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-dirty-map.c - the map: bits, several openers, what a crash costs, what is refused */
#include "dirty-map.h"
#include "dirty-map-header.h"

#include "check-folder.h"
#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNK = DIRTY_CHUNK_BYTES, CHUNKS = 200, TAIL = 777 };
#define SIZE ((uint64_t)(CHUNKS - 1) * CHUNK + TAIL)

static char folder[] = "/tmp/colod-test-map-XXXXXX";
static char *path;

static DirtyMap *
open_map(void)
{
    g_autoptr(GError) error = NULL;
    DirtyMap *map = dirty_map_open(path, SIZE, &error);

    ck_assert_msg(map != NULL, "%s", error ? error->message : "");
    return map;
}

static DirtyMap *
new_map(void)
{
    (void)g_unlink(path);

    DirtyMap *map = open_map();

    dirty_map_clear(map, 0, SIZE);
    ck_assert_int_eq(dirty_map_trust(map), 0);
    return map;
}

static void
edit_header(void (*edit)(MapHeader *header))
{
    uint8_t bytes[MAP_HEADER_BYTES];
    MapHeader header;
    int fd = open(path, O_RDWR);

    ck_assert_int_eq(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    ck_assert_ptr_null(map_header_parse(bytes, &header));
    edit(&header);
    map_header_format(&header, bytes);
    ck_assert_int_eq(pwrite(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    (void)close(fd);
}

static void
set_other_boot(MapHeader *header)
{
    g_strlcpy(header->boot_id, "00000000-0000-0000-0000-000000000000", sizeof(header->boot_id));
}

static bool
header_is_clean(void)
{
    uint8_t bytes[MAP_HEADER_BYTES];
    MapHeader header;
    int fd = open(path, O_RDONLY);

    ck_assert_int_eq(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    (void)close(fd);
    ck_assert_ptr_null(map_header_parse(bytes, &header));
    return header.clean;
}

/* --- Bits --- */

START_TEST(unit_made_all_set)
{
    (void)g_unlink(path);

    g_autoptr(DirtyMap) map = open_map();
    uint64_t len = 0;

    ck_assert(dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), SIZE);
    ck_assert_uint_eq(dirty_map_next(map, 0, &len), 0);
    ck_assert_uint_eq(len, SIZE);
    ck_assert_uint_eq(dirty_map_next(map, SIZE - 1, &len), SIZE - 1);
    ck_assert_uint_eq(len, 1);
    ck_assert_uint_eq(dirty_map_next(map, SIZE, &len), UINT64_MAX);
    ck_assert_uint_eq(dirty_map_size_bytes(map), SIZE);
}
END_TEST

START_TEST(unit_whole_chunks_cleared)
{
    g_autoptr(DirtyMap) map = new_map();
    uint64_t len = 0;

    ck_assert_uint_eq(dirty_map_marked_bytes(map), 0);
    dirty_map_mark(map, 3 * CHUNK - 1, 2); /* chunks 2 and 3 */
    ck_assert_uint_eq(dirty_map_marked_bytes(map), 2 * CHUNK);
    dirty_map_clear(map, 2 * CHUNK + 1, 2 * CHUNK - 2); /* none wholly */
    ck_assert_uint_eq(dirty_map_marked_bytes(map), 2 * CHUNK);
    dirty_map_clear(map, 2 * CHUNK, 2 * CHUNK - 1);
    ck_assert_uint_eq(dirty_map_next(map, 0, &len), 3 * CHUNK);
    ck_assert_uint_eq(len, CHUNK);
    ck_assert(dirty_map_is_marked(map, 3 * CHUNK + 7, 1));
    ck_assert(!dirty_map_is_marked(map, 0, 3 * CHUNK));
    ck_assert(!dirty_map_is_marked(map, 3 * CHUNK, 0));
    dirty_map_mark(map, SIZE - 1, 1);
    ck_assert_uint_eq(dirty_map_marked_bytes(map), CHUNK + TAIL);
    dirty_map_clear(map, SIZE - TAIL, TAIL - 1);
    ck_assert(dirty_map_is_marked(map, SIZE - 1, 1));
    dirty_map_clear(map, SIZE - TAIL, TAIL); /* short, but the last */
    ck_assert(!dirty_map_is_marked(map, SIZE - 1, 1));
    dirty_map_mark(map, 5, 0);
    ck_assert_uint_eq(dirty_map_marked_bytes(map), CHUNK);
}
END_TEST

/* Against an array of bools. */
START_TEST(unit_random)
{
    g_autoptr(DirtyMap) map = new_map();
    bool model[CHUNKS] = {false};
    GRand *random = g_rand_new_with_seed(1);

    for (int i = 0; i < 20000; i++) {
        uint64_t offset = (uint64_t)g_rand_int(random) % (SIZE + 1);
        uint64_t len =
            (uint64_t)g_rand_int(random) % (SIZE - offset + 1) >> g_rand_int_range(random, 0, 24);
        uint64_t end = offset + len, run = 0;
        bool marks = g_rand_boolean(random);

        if (marks)
            dirty_map_mark(map, offset, len);
        else
            dirty_map_clear(map, offset, len);
        for (uint64_t c = 0; c < CHUNKS; c++) {
            uint64_t first = c * CHUNK, last = MIN(first + CHUNK, SIZE);

            if (marks && len > 0 && first < end && last > offset)
                model[c] = true;
            if (!marks && first >= offset && last <= end)
                model[c] = false;
        }

        uint64_t at = (uint64_t)g_rand_int(random) % SIZE, c = at / CHUNK;
        uint64_t got = dirty_map_next(map, at, &run);

        while (c < CHUNKS && !model[c])
            c++;
        ck_assert_uint_eq(got, c == CHUNKS ? UINT64_MAX : MAX(c * CHUNK, at));
        for (; c < CHUNKS && model[c]; c++)
            ;
        if (got != UINT64_MAX)
            ck_assert_uint_eq(got + run, MIN(c * CHUNK, SIZE));
    }
    g_rand_free(random);
}
END_TEST

START_TEST(unit_bytes_and_merge)
{
    g_autoptr(DirtyMap) map = new_map();
    uint8_t bits[CHUNKS / 8], ones[CHUNKS / 8];

    ck_assert_uint_eq(dirty_map_n_bytes(map), sizeof(bits));
    dirty_map_mark(map, 0, 1);
    dirty_map_mark(map, 9 * CHUNK, 1);
    dirty_map_mark(map, SIZE - 1, 1);
    dirty_map_read_bytes(map, bits, sizeof(bits), 0);
    ck_assert(bits[0] == 1 && bits[1] == 2 && bits[2] == 0 && bits[sizeof(bits) - 1] == 0x80);
    dirty_map_read_bytes(map, bits, 1, 1);
    ck_assert_uint_eq(bits[0], 2);
    bits[0] = 0x12;
    dirty_map_merge_bytes(map, bits, 1, 3);
    ck_assert(dirty_map_is_marked(map, 25 * CHUNK, 1) && dirty_map_is_marked(map, 28 * CHUNK, 1));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), 4 * CHUNK + TAIL);
    memset(ones, 0xff, sizeof(ones));
    dirty_map_merge_bytes(map, ones, sizeof(ones), 0);
    ck_assert_uint_eq(dirty_map_marked_bytes(map), SIZE);
}
END_TEST

/* Bits of bytes behind the disk's end are nobody's. */
START_TEST(unit_merge_behind_end)
{
    (void)g_unlink(path);

    g_autoptr(DirtyMap) map = dirty_map_open(path, 3 * CHUNK, NULL);
    uint8_t byte = 0xff;
    uint64_t len;

    dirty_map_clear(map, 0, 3 * CHUNK);
    dirty_map_merge_bytes(map, &byte, 1, 0);
    ck_assert_uint_eq(dirty_map_marked_bytes(map), 3 * CHUNK);
    dirty_map_read_bytes(map, &byte, 1, 0);
    ck_assert_uint_eq(byte, 7);
    ck_assert_uint_eq(dirty_map_next(map, CHUNK, &len), CHUNK);
    ck_assert_uint_eq(len, 2 * CHUNK);
}
END_TEST

START_TEST(unit_long_run_is_cut)
{
    (void)g_unlink(path);

    g_autoptr(DirtyMap) map = dirty_map_open(path, 5000 * (uint64_t)CHUNK, NULL);
    uint64_t len = 0;

    ck_assert_uint_eq(dirty_map_next(map, 10 * CHUNK, &len), 10 * CHUNK);
    ck_assert_uint_eq(len, DIRTY_MAP_MAX_RUN_BYTES);
}
END_TEST

/* --- Life --- */

START_TEST(life_kept_over_restart)
{
    DirtyMap *map = new_map();

    dirty_map_mark(map, 7 * CHUNK, 1);
    ck_assert(!header_is_clean());
    dirty_map_free(map);
    ck_assert(header_is_clean());
    map = open_map();
    ck_assert(!dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), CHUNK);
    dirty_map_free(map);
}
END_TEST

/* A killed process marks and says nothing at its end. */
static void
mark_and_die(uint64_t chunk)
{
    pid_t pid = fork();

    if (pid == 0) {
        DirtyMap *map = dirty_map_open(path, SIZE, NULL);

        if (map)
            dirty_map_mark(map, chunk * CHUNK, 1);
        (void)kill(getpid(), SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

START_TEST(life_process_killed)
{
    dirty_map_free(new_map());
    mark_and_die(5);
    ck_assert(!header_is_clean());

    g_autoptr(DirtyMap) map = open_map();

    ck_assert(!dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), CHUNK);
}
END_TEST

START_TEST(life_host_crashed)
{
    dirty_map_free(new_map());
    mark_and_die(5);
    edit_header(set_other_boot);

    DirtyMap *map = open_map();

    ck_assert(dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), SIZE);
    dirty_map_free(map);
    map = open_map(); /* still not known, until somebody has looked at all of it */
    ck_assert(dirty_map_was_distrusted(map));
    dirty_map_clear(map, 0, SIZE);
    ck_assert_int_eq(dirty_map_trust(map), 0);
    dirty_map_free(map);
    map = open_map();
    ck_assert(!dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), 0);
    dirty_map_free(map);
}
END_TEST

/* Who only reads and clears does not risk the bits. */
START_TEST(life_host_crashed_unarmed)
{
    DirtyMap *map = new_map();

    dirty_map_mark(map, 4 * CHUNK, 1);
    dirty_map_free(map);
    edit_header(set_other_boot);
    map = open_map();
    ck_assert(!dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), CHUNK);
    dirty_map_clear(map, 0, SIZE);
    ck_assert(header_is_clean());
    ck_assert_int_eq(dirty_map_arm(map), 0);
    ck_assert(!header_is_clean());
    dirty_map_free(map);
}
END_TEST

START_TEST(life_not_clean_when_told)
{
    DirtyMap *map = new_map();

    dirty_map_mark(map, 0, 1);
    dirty_map_distrust(map);
    dirty_map_free(map);
    ck_assert(!header_is_clean());
}
END_TEST

/* What the disk could not flush it has lost, crash or not, and nobody knows of which chunks. */
START_TEST(life_distrusted_is_all_set)
{
    DirtyMap *map = new_map(), *second = open_map();

    dirty_map_mark(map, 0, 1);
    dirty_map_mark(second, 0, 1);
    dirty_map_distrust(map);
    dirty_map_free(map);
    dirty_map_free(second); /* whose flush has gone well */
    map = open_map();
    ck_assert(dirty_map_was_distrusted(map));
    ck_assert_uint_eq(dirty_map_marked_bytes(map), SIZE);
    dirty_map_free(map);
}
END_TEST

START_TEST(life_two_openers)
{
    DirtyMap *first = new_map(), *second = open_map();

    dirty_map_mark(first, 1 * CHUNK, 1);
    dirty_map_mark(second, 2 * CHUNK, 1);
    ck_assert_uint_eq(dirty_map_marked_bytes(first), 2 * CHUNK);
    dirty_map_free(first);
    ck_assert(!header_is_clean()); /* the second still marks */
    dirty_map_mark(second, 3 * CHUNK, 1);
    dirty_map_free(second);
    ck_assert(header_is_clean());
    first = open_map();
    ck_assert_uint_eq(dirty_map_marked_bytes(first), 3 * CHUNK);
    dirty_map_free(first);
}
END_TEST

/* One process of two is killed: the clean end of the other covers both if it has armed the map, and
 * so knows that the disk is to be flushed. */
START_TEST(life_other_opener_killed)
{
    DirtyMap *map = new_map();

    ck_assert(!dirty_map_is_armed(map));
    mark_and_die(9);
    ck_assert(!header_is_clean());
    ck_assert(dirty_map_is_marked(map, 9 * CHUNK, 1));
    dirty_map_free(map);
    ck_assert(!header_is_clean());
    map = open_map();
    ck_assert(dirty_map_is_armed(map));
    dirty_map_free(map);
    ck_assert(header_is_clean());
}
END_TEST

static void
blank(void (*how)(int fd))
{
    int fd = open(path, O_RDWR);
    uint8_t zeros[MAP_HEADER_BYTES] = {0};

    if (how)
        how(fd);
    else
        ck_assert_int_eq(pwrite(fd, zeros, sizeof(zeros), 0), sizeof(zeros));
    (void)close(fd);
}

static void
cut_all(int fd)
{
    ck_assert_int_eq(ftruncate(fd, 0), 0);
}

START_TEST(life_making_cut_short)
{
    for (int i = 0; i < 2; i++) {
        dirty_map_free(new_map());
        blank(i ? cut_all : NULL);

        g_autoptr(DirtyMap) map = open_map();

        ck_assert(dirty_map_was_distrusted(map));
        ck_assert_uint_eq(dirty_map_marked_bytes(map), SIZE);
    }
}
END_TEST

/* --- Threads and processes --- */

enum { MARKERS = 4, ROUNDS = 2000 };

typedef struct Marker {
    DirtyMap *map;
    unsigned number;
} Marker;

/* Each has chunks of its own in the same words; what it marked last must be there. */
static void *
run_marker(void *user_data)
{
    Marker *marker = user_data;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t offset = (uint64_t)((i * MARKERS + marker->number) % CHUNKS) * CHUNK;
        uint64_t len = MIN((uint64_t)CHUNK, SIZE - offset), run;

        dirty_map_mark(marker->map, offset, 1);
        if (!dirty_map_is_marked(marker->map, offset, 1) ||
            dirty_map_next(marker->map, offset, &run) != offset)
            return marker;
        if (i < ROUNDS - CHUNKS / MARKERS)
            dirty_map_clear(marker->map, offset, len);
    }
    return NULL;
}

START_TEST(life_threads_and_processes)
{
    DirtyMap *map = new_map();
    pthread_t threads[MARKERS];
    Marker markers[MARKERS];
    pid_t pid = fork();
    int status;

    if (pid == 0) { /* no threads here: TSan does not like them after fork() */
        DirtyMap *other = dirty_map_open(path, SIZE, NULL);
        Marker marker = {other, 0};
        bool ok = other && run_marker(&marker) == NULL;

        dirty_map_free(other);
        _exit(ok ? 0 : 1);
    }
    for (unsigned i = 1; i < MARKERS; i++) {
        markers[i] = (Marker){map, i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, run_marker, &markers[i]), 0);
    }
    for (unsigned i = 1; i < MARKERS; i++) {
        void *failed;

        (void)pthread_join(threads[i], &failed);
        ck_assert_ptr_null(failed);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    ck_assert_uint_eq(dirty_map_marked_bytes(map), SIZE);
    dirty_map_free(map);
}
END_TEST

/* --- Refused --- */

static void
refused_as(uint64_t size, const char *text)
{
    g_autoptr(GError) error = NULL;

    ck_assert_ptr_null(dirty_map_open(path, size, &error));
    ck_assert_ptr_nonnull(error);
    ck_assert_msg(strstr(error->message, text) != NULL, "%s", error->message);
}

START_TEST(err_other_size)
{
    dirty_map_free(new_map());
    refused_as(SIZE + 1, "belongs to a disk of");
    refused_as(SIZE + 1, "remove the file");
    refused_as(0, "not empty");
    refused_as(DIRTY_MAP_MAX_BYTES + 1, "at most");
}
END_TEST

START_TEST(err_damaged)
{
    for (off_t at = 0; at < MAP_HEADER_BYTES; at++) {
        uint8_t byte;
        int fd;

        if (at % 50 == 0)
            dirty_map_free(new_map());
        fd = open(path, O_RDWR);
        ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
        byte ^= 0x40;
        ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
        refused_as(SIZE, "remove the file");
        byte ^= 0x40;
        ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
        (void)close(fd);
    }
    dirty_map_free(open_map());
}
END_TEST

START_TEST(err_truncated)
{
    dirty_map_free(new_map());
    ck_assert_int_eq(truncate(path, 4096), 0);
    refused_as(SIZE, "its length");
    ck_assert_int_eq(truncate(path, 100), 0);
    refused_as(SIZE, "is damaged");
}
END_TEST

START_TEST(err_no_file)
{
    g_autoptr(GError) error = NULL;

    (void)g_unlink(path);
    ck_assert_int_eq(symlink("/dev/null", path), 0);
    ck_assert_ptr_null(dirty_map_open(path, SIZE, &error));
    ck_assert_ptr_nonnull(error);
    (void)g_unlink(path);
    g_clear_error(&error);
    ck_assert_ptr_null(dirty_map_open("/nonexistent/map", SIZE, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "/nonexistent/map: cannot open it"));
}
END_TEST

/* Found when it is opened, not by SIGBUS at the first mark. */
START_TEST(err_file_system_full)
{
    g_autofree char *mount_point = g_build_filename(folder, "small", NULL);
    g_autofree char *small = g_build_filename(mount_point, "map", NULL);
    g_autoptr(GError) error = NULL;

    ck_assert_int_eq(g_mkdir(mount_point, 0700), 0);
    if (mount("tmpfs", mount_point, "tmpfs", 0, "size=64k") < 0) {
        (void)g_rmdir(mount_point);
        return; /* needs root */
    }
    ck_assert_ptr_null(dirty_map_open(small, UINT64_C(1) << 40, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE));

    struct stat st;

    ck_assert(stat(small, &st) == 0 && st.st_size == 0);
    ck_assert_int_eq(umount(mount_point), 0);
    (void)g_rmdir(mount_point);
}
END_TEST

static int
run_all(void)
{
    const TTest *const tests[] = {
        unit_made_all_set,
        unit_whole_chunks_cleared,
        unit_random,
        unit_bytes_and_merge,
        unit_merge_behind_end,
        unit_long_run_is_cut,
        life_kept_over_restart,
        life_process_killed,
        life_host_crashed,
        life_host_crashed_unarmed,
        life_not_clean_when_told,
        life_distrusted_is_all_set,
        life_two_openers,
        life_other_opener_killed,
        life_making_cut_short,
        life_threads_and_processes,
        err_other_size,
        err_damaged,
        err_truncated,
        err_no_file,
        err_file_system_full,
    };

    path = g_build_filename(folder, "map", NULL);

    int status = check_run("dirty-map", tests, G_N_ELEMENTS(tests));

    g_free(path);
    return status;
}

int
main(void)
{
    static const char *const files[] = {"map", NULL};

    return check_run_in_folder(folder, files, run_all);
}
