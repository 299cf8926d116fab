/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-target-map.c - what a target puts down as changed, and what a primary reads of it */
#include "fake-journal.h"
#include "target-exports.h"
#include "target-open.h"

#include "check-folder.h"
#include "check-main.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = DIRTY_CHUNK_BYTES, CHUNKS = 80, TAIL = 4321, LIMIT = 64 * 4096 };
#define SIZE ((uint64_t)(CHUNKS - 1) * CHUNK + TAIL)

static char folder[] = "/tmp/colod-test-target-map-XXXXXX";
static char *path;

typedef struct Rig {
    FakeStore *disk;
    FakeJournal *journal;
    Target *target;
    DirtyMap *map;
} Rig;

static int64_t
soon(void)
{
    return clock_now_ns() + 5 * NS_PER_S;
}

static void
rig_init(Rig *rig, bool durable)
{
    DiskMeta meta;

    (void)g_unlink(path);
    disk_meta_init(&meta, SIZE);
    rig->disk = fake_store_new(SIZE, true, NULL);
    rig->journal = fake_journal_new(&meta, NULL);
    rig->target = target_assemble(fake_store_base(rig->disk),
                                  fake_store_base(fake_store_new(LIMIT, durable, NULL)),
                                  fake_store_base(fake_store_new(LIMIT, durable, NULL)),
                                  &rig->journal->base, &meta, NULL, NULL);
    rig->map = dirty_map_open(path, SIZE, NULL);
    ck_assert_ptr_nonnull(rig->map);
    target_take_map(rig->target, rig->map);
}

static int
write_at(Rig *rig, Side side, uint64_t offset, uint8_t byte)
{
    Fault fault;

    return layers_write(target_layers(rig->target), side, &byte, 1, offset, &fault);
}

/* SVM has written in chunk 3, the primary in 7 and in the last. */
static void
rig_mirroring(Rig *rig, bool durable)
{
    rig_init(rig, durable);
    ck_assert(target_sync(rig->target, 1, soon(), NULL));
    ck_assert(dirty_map_was_distrusted(rig->map));
    ck_assert_uint_eq(dirty_map_marked_bytes(rig->map), SIZE);
    ck_assert(target_mirror(rig->target, 1, 0, soon(), NULL));
    ck_assert_int_eq(write_at(rig, SIDE_ACTIVE, 3 * CHUNK + 5, 's'), 0);
    ck_assert_int_eq(write_at(rig, SIDE_TARGET, 7 * CHUNK, 'p'), 0);
    ck_assert_int_eq(write_at(rig, SIDE_TARGET, SIZE - 1, 'p'), 0);
}

static void
rig_clear(Rig *rig)
{
    target_stop(rig->target);
    target_free(rig->target);
    (void)g_unlink(path);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rig, rig_clear)

/* These chunks and no others. */
static void
expect_marked(const Rig *rig, const uint64_t *chunks, size_t n)
{
    size_t i = 0;

    for (uint64_t chunk = 0; chunk < CHUNKS; chunk++) {
        bool wanted = i < n && chunks[i] == chunk;

        ck_assert_msg(dirty_map_is_marked(rig->map, chunk * CHUNK, 1) == wanted, "chunk %u",
                      (unsigned)chunk);
        i += wanted;
    }
}

#define EXPECT_MARKED(rig, ...)                                                                    \
    expect_marked(rig, (const uint64_t[]){__VA_ARGS__},                                            \
                  sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

/* A mirror marks nothing, so that the crash of its host does not cost a whole comparison. */
START_TEST(unit_mirror_clears_and_does_not_mark)
{
    g_auto(Rig) rig = {0};

    rig_mirroring(&rig, true);
    expect_marked(&rig, NULL, 0);
    ck_assert(!dirty_map_is_armed(rig.map) && !dirty_map_was_distrusted(rig.map));
    ck_assert(target_checkpoint(rig.target, 1, soon(), NULL));
    expect_marked(&rig, NULL, 0);
}
END_TEST

START_TEST(life_marks_of_a_survivor)
{
    for (int durable = 0; durable < 2; durable++) {
        g_auto(Rig) rig = {0};
        Layers *layers;
        Fault fault;

        rig_mirroring(&rig, durable);
        layers = target_layers(rig.target);
        ck_assert(target_failover(rig.target, 2, soon(), NULL));
        ck_assert_int_eq(write_at(&rig, SIDE_ACTIVE, 9 * CHUNK, 's'), 0); /* committing */
        ck_assert(dirty_map_is_marked(rig.map, 9 * CHUNK, 1));
        ck_assert(target_commit(rig.target, NULL));
        EXPECT_MARKED(&rig, 3, 7, 9, CHUNKS - 1);
        ck_assert_int_eq(layers_zero(layers, SIDE_ACTIVE, 2, 12 * CHUNK - 1, true, &fault), 0);
        ck_assert_int_eq(layers_trim(layers, SIDE_ACTIVE, 10, 14 * CHUNK, &fault), 0);
        EXPECT_MARKED(&rig, 3, 7, 9, 11, 12, 14, CHUNKS - 1);
        /* The other host is primary again and has copied them. */
        ck_assert(target_sync(rig.target, 3, soon(), NULL));
        EXPECT_MARKED(&rig, 3, 7, 9, 11, 12, 14, CHUNKS - 1);
        ck_assert(target_mirror(rig.target, 3, 0, soon(), NULL));
        expect_marked(&rig, NULL, 0);
    }
}
END_TEST

/* A failover that crashes before it is in the metadata has marked all the same. */
START_TEST(life_marked_before_it_is_durable)
{
    g_auto(Rig) rig = {0};

    rig_mirroring(&rig, true);
    rig.journal->fail_meta = 1;
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(!target_commit(rig.target, NULL));
    ck_assert_str_eq(rig.journal->meta.commit, "");
    EXPECT_MARKED(&rig, 3, 7, CHUNKS - 1);
    ck_assert(dirty_map_is_armed(rig.map));
}
END_TEST

static void
damage_header(uint8_t byte)
{
    int fd = open(path, O_WRONLY);

    ck_assert_int_eq(pwrite(fd, &byte, 1, 0), 1);
    (void)close(fd);
}

/* It cannot be said on the medium that the map is in use: no failover is called durable. */
START_TEST(err_map_cannot_be_armed)
{
    g_auto(Rig) rig = {0};
    g_autoptr(GError) error = NULL;

    rig_mirroring(&rig, true);
    damage_header('X');
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert_int_eq(write_at(&rig, SIDE_ACTIVE, 0, 's'), 0); /* the guest goes on */
    ck_assert(!target_commit(rig.target, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "failover-commit: the map of changed blocks"));
    ck_assert_int_eq(rig.journal->meta.state, DISK_INCONSISTENT);
    damage_header('c');
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(target_commit(rig.target, NULL));
    EXPECT_MARKED(&rig, 0, 3, 7, CHUNKS - 1);
}
END_TEST

/* Clean on the medium only with the disk. */
START_TEST(life_closed_cleanly)
{
    for (int fails = 0; fails < 2; fails++) {
        Rig rig = {0};

        rig_mirroring(&rig, true);
        ck_assert(target_failover(rig.target, 2, soon(), NULL));
        ck_assert(target_commit(rig.target, NULL));
        if (fails)
            fake_store_fail_flush(rig.disk, 0, EIO);
        target_stop(rig.target);
        target_free(rig.target);

        DirtyMap *map = dirty_map_open(path, SIZE, NULL);

        ck_assert_int_eq(dirty_map_is_armed(map), fails);
        dirty_map_free(map);
    }
}
END_TEST

/* --- Exports --- */

static void
expect_digest(const Rig *rig, uint64_t chunk, const uint8_t got[CHUNK_DIGEST_BYTES])
{
    uint8_t want[CHUNK_DIGEST_BYTES];

    chunk_digest(fake_store_bytes(rig->disk) + chunk * CHUNK, MIN(CHUNK, SIZE - chunk * CHUNK),
                 want);
    ck_assert_int_eq(memcmp(got, want, sizeof(want)), 0);
}

START_TEST(unit_digest_is_of_the_disk)
{
    g_auto(Rig) rig = {0};
    uint8_t all[CHUNKS][CHUNK_DIGEST_BYTES], part[20];
    size_t half = sizeof(all) / 2;
    Fault fault;

    rig_mirroring(&rig, true);
    ck_assert_uint_eq(export_digest_size(rig.target), sizeof(all));
    ck_assert_int_eq(export_digest_read(rig.target, all, half, 0, &fault), 0);
    ck_assert_int_eq(export_digest_read(rig.target, all[CHUNKS / 2], half, half, &fault), 0);
    for (uint64_t chunk = 0; chunk < CHUNKS; chunk++)
        expect_digest(&rig, chunk, all[chunk]);
    ck_assert_int_eq(memcmp(all[3], all[0], 16), 0); /* SVM's write is not on the disk */
    ck_assert_int_ne(memcmp(all[7], all[0], 16), 0);
    ck_assert_int_eq(export_digest_read(rig.target, part, 20, 7 * 16 + 13, &fault), 0);
    ck_assert_int_eq(memcmp(part, all[7] + 13, 20), 0);
}
END_TEST

START_TEST(err_digest)
{
    enum { MAX = DIGEST_MAX_CHUNKS * CHUNK_DIGEST_BYTES };
    g_auto(Rig) rig = {0};
    uint8_t buf[MAX + 16];
    uint64_t size;
    Fault fault = FAULT_NONE;

    rig_mirroring(&rig, true);
    size = export_digest_size(rig.target);
    ck_assert_int_eq(export_digest_read(rig.target, buf, MAX, 16, &fault), 0);
    ck_assert_int_eq(export_digest_read(rig.target, buf, MAX + 1, 0, &fault), -EINVAL);
    ck_assert_int_eq(fault, FAULT_REFUSED);
    ck_assert_int_eq(export_digest_read(rig.target, buf, MAX, 1, &fault), -EINVAL);
    ck_assert_int_eq(export_digest_read(rig.target, buf, 1, size, &fault), -EINVAL);
    ck_assert_int_eq(export_digest_read(rig.target, buf, 1, UINT64_MAX, &fault), -EINVAL);
    ck_assert_int_eq(export_digest_read(rig.target, buf, 0, size, &fault), 0);
    fake_store_fail_read(rig.disk, 1, EIO);
    ck_assert_int_eq(export_digest_read(rig.target, buf, 64, 0, &fault), -EIO);
    ck_assert_int_eq(fault, FAULT_SECONDARY_DISK);
    ck_assert_int_eq(layers_stale(target_layers(rig.target)), FAULT_NONE); /* nothing is lost */
}
END_TEST

START_TEST(unit_changed)
{
    g_auto(Rig) rig = {0};
    uint8_t bits[CHUNKS / 8], byte;
    Fault fault = FAULT_NONE;

    rig_mirroring(&rig, true);
    ck_assert(target_failover(rig.target, 2, soon(), NULL));
    ck_assert(target_commit(rig.target, NULL));
    ck_assert_uint_eq(export_changed_size(rig.target), sizeof(bits));
    ck_assert_int_eq(export_changed_read(rig.target, bits, sizeof(bits), 0, &fault), 0);
    ck_assert(bits[0] == 0x88 && bits[1] == 0 && bits[CHUNKS / 8 - 1] == 0x80);
    ck_assert_int_eq(export_changed_read(rig.target, &byte, 1, CHUNKS / 8 - 1, &fault), 0);
    ck_assert_uint_eq(byte, 0x80);
    ck_assert_int_eq(export_changed_read(rig.target, &byte, 1, CHUNKS / 8, &fault), -EINVAL);
    ck_assert_int_eq(export_changed_read(rig.target, bits, 2, UINT64_MAX, &fault), -EINVAL);
    ck_assert_int_eq(fault, FAULT_REFUSED);
}
END_TEST

static int
run_all(void)
{
    const TTest *const tests[] = {
        unit_mirror_clears_and_does_not_mark,
        life_marks_of_a_survivor,
        life_marked_before_it_is_durable,
        err_map_cannot_be_armed,
        life_closed_cleanly,
        unit_digest_is_of_the_disk,
        err_digest,
        unit_changed,
    };

    path = g_build_filename(folder, "map", NULL);

    int status = check_run("target-map", tests, G_N_ELEMENTS(tests));

    g_free(path);
    return status;
}

int
main(void)
{
    static const char *const files[] = {"map", NULL};

    return check_run_in_folder(folder, files, run_all);
}
