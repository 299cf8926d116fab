/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-disk-meta.c - metadata and commit record: read as written, and nothing else */
#include "commit-record.h"
#include "fake-store.h"
#include "journal.h"
#include "target-open.h"

#include "check-folder.h"
#include "check-main.h"
#include "clock.h"

#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIZE = 1 << 20, LIMIT = 64 * OVERLAY_BLOCK_BYTES };

static char folder[] = "/tmp/colod-test-meta-XXXXXX";

static DiskMeta
some_meta(void)
{
    DiskMeta meta = {.size_bytes = SIZE,
                     .generation = UINT64_MAX,
                     .state = DISK_INCONSISTENT,
                     .epoch = 12345678901234567};

    memset(meta.commit, 'c', DISK_META_SUM_HEX);
    return meta;
}

START_TEST(unit_read_as_written)
{
    DiskMeta meta = some_meta(), got;

    for (int i = 0; i < DISK_STATE_COUNT; i++) {
        if (i > 0)
            meta = (DiskMeta){.size_bytes = SIZE, .generation = 1, .state = (DiskState)i};

        g_autofree char *text = disk_meta_format(&meta);

        ck_assert(disk_meta_parse("meta", text, strlen(text), &got, NULL));
        ck_assert_int_eq(memcmp(&got, &meta, sizeof(meta)), 0);
    }
}
END_TEST

/* Every byte changed, every length. */
START_TEST(sec_metadata_damaged)
{
    DiskMeta meta = some_meta(), got;
    g_autofree char *text = disk_meta_format(&meta);
    size_t length = strlen(text);

    for (size_t i = 0; i < length; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GError) cut = NULL;

        text[i] ^= 1;
        ck_assert(!disk_meta_parse("meta", text, length, &got, &error));
        ck_assert_ptr_nonnull(strstr(error->message, "meta: is "));
        text[i] ^= 1;
        ck_assert(!disk_meta_parse("meta", text, i, &got, &cut));
    }
}
END_TEST

/* With a checksum that fits, and yet wrong. */
static void
expect_refused(const char *body, const char *part)
{
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, body, -1);
    g_autofree char *text = g_strconcat(body, "sha256=", sum, "\n", NULL);
    g_autoptr(GError) error = NULL;
    DiskMeta got;

    ck_assert_msg(!disk_meta_parse("meta", text, strlen(text), &got, &error), "%s", text);
    ck_assert_msg(strstr(error->message, part) != NULL, "%s", error->message);
}

START_TEST(sec_metadata_of_strangers)
{
#define GOOD_HEAD "colod-disk 1\nsize=4096\ngeneration=1\n"
    expect_refused("colod-disk 2\nsize=4096\n", "version");
    expect_refused("colod-state 1\n", "no metadata");
    expect_refused(GOOD_HEAD "state=UpToDate\nepoch=1\n", "malformed");
    expect_refused(GOOD_HEAD "state=Fine\nepoch=1\ncommit=-\n", "malformed");
    expect_refused(GOOD_HEAD "state=UpToDate\nepoch=-1\ncommit=-\n", "malformed");
    expect_refused(GOOD_HEAD "state=UpToDate\nepoch=1\ncommit=zz\n", "malformed");
    expect_refused(GOOD_HEAD "state=UpToDate\nepoch=1\ncommit=-\nmore=1\n", "malformed");
    expect_refused(GOOD_HEAD "state=UpToDate\nepoch=01\ncommit=-\n", "otherwise");
    expect_refused("colod-disk 1\nsize=0\ngeneration=1\nstate=Syncing\nepoch=1\ncommit=-\n",
                   "malformed");
    expect_refused("colod-disk 1\nsize=4096\ngeneration=0\nstate=UpToDate\nepoch=1\ncommit=-\n",
                   "malformed");
    /* A disk cannot be UpToDate and have a commit to be carried out. */
    expect_refused(GOOD_HEAD "state=UpToDate\nepoch=1\ncommit="
                             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
                   "malformed");
}
END_TEST

static GBytes *
some_record(char sum[DISK_META_SUM_HEX + 1])
{
    static const uint64_t hidden_blocks[] = {7, OVERLAY_NO_BLOCK, 255}, active_blocks[] = {0};
    g_autoptr(Overlay) hidden = overlay_new(fake_store_base(fake_store_new(LIMIT, true, NULL)));
    g_autoptr(Overlay) active = overlay_new(fake_store_base(fake_store_new(LIMIT, true, NULL)));

    ck_assert_int_eq(overlay_restore(hidden, 3, hidden_blocks), 0);
    ck_assert_int_eq(overlay_restore(active, 1, active_blocks), 0);
    return commit_record_build(SIZE, hidden, active, sum);
}

START_TEST(unit_record_read_as_written)
{
    char sum[DISK_META_SUM_HEX + 1];
    g_autoptr(GBytes) bytes = some_record(sum);
    g_auto(CommitRecord) record = {0};
    gsize length;
    const uint8_t *data = g_bytes_get_data(bytes, &length);

    ck_assert(commit_record_parse("record", data, length, SIZE, &record, NULL));
    ck_assert_str_eq(record.sum, sum);
    ck_assert(record.n_hidden == 3 && record.n_active == 1);
    ck_assert(record.blocks[0] == 7 && record.blocks[1] == OVERLAY_NO_BLOCK &&
              record.blocks[2] == 255 && record.blocks[3] == 0);
}
END_TEST

START_TEST(sec_record_damaged)
{
    char sum[DISK_META_SUM_HEX + 1];
    g_autoptr(GBytes) bytes = some_record(sum);
    g_auto(CommitRecord) record = {0};
    gsize length;
    g_autofree uint8_t *data = g_memdup2(g_bytes_get_data(bytes, &length), g_bytes_get_size(bytes));

    for (gsize i = 0; i < length; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GError) cut = NULL;

        data[i] ^= 0x80;
        ck_assert(!commit_record_parse("record", data, length, SIZE, &record, &error));
        data[i] ^= 0x80;
        ck_assert(!commit_record_parse("record", data, i, SIZE, &record, &cut));
    }
}
END_TEST

/* @at: a byte of the record is changed and the checksum made to fit. */
static void
expect_record_refused(size_t at, uint8_t value, uint64_t disk_bytes, const char *part)
{
    char sum[DISK_META_SUM_HEX + 1];
    g_autoptr(GBytes) bytes = some_record(sum);
    g_auto(CommitRecord) record = {0};
    g_autoptr(GChecksum) again = g_checksum_new(G_CHECKSUM_SHA256);
    g_autoptr(GError) error = NULL;
    gsize length, sum_len = 32;
    g_autofree uint8_t *data = g_memdup2(g_bytes_get_data(bytes, &length), g_bytes_get_size(bytes));

    data[at] = value;
    g_checksum_update(again, data, (gssize)(length - sum_len));
    g_checksum_get_digest(again, data + length - sum_len, &sum_len);
    ck_assert(!commit_record_parse("record", data, length, disk_bytes, &record, &error));
    ck_assert_msg(strstr(error->message, part) != NULL, "%s", error->message);
}

START_TEST(sec_records_of_strangers)
{
    expect_record_refused(0, 'x', SIZE, "no commit record");
    expect_record_refused(11, 2, SIZE, "version");
    expect_record_refused(14, 0x20, SIZE, "version"); /* 8 KiB blocks */
    expect_record_refused(0, 'c', SIZE * 2, "another size");
    expect_record_refused(27, 4, SIZE, "length"); /* slots of hidden */
    expect_record_refused(24, 0x80, SIZE, "length");
    expect_record_refused(38, 1, SIZE, "outside"); /* block 263 of 256 */
}
END_TEST

/* --- Files --- */

static char *
path_of(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

static void
make_disk(const char *path)
{
    ck_assert(g_file_set_contents(path, "", 0, NULL));
    ck_assert_int_eq(truncate(path, SIZE), 0);
}

START_TEST(unit_files_are_replaced_whole)
{
    g_autofree char *meta_path = path_of("meta");
    g_autofree char *record_path = path_of("commit");
    g_autofree char *left = path_of("meta.new");
    g_autoptr(Journal) journal = journal_file_new(meta_path, record_path);
    g_autoptr(GBytes) bytes = g_bytes_new_static("abc", 3);
    DiskMeta meta = some_meta(), got;
    struct stat st;

    ck_assert(disk_meta_load(meta_path, SIZE, &got, NULL));
    ck_assert(got.generation == 0 && got.state == DISK_INCONSISTENT && got.size_bytes == SIZE);
    ck_assert(journal->ops->save_meta(journal, &meta, NULL));
    ck_assert(disk_meta_load(meta_path, SIZE, &got, NULL));
    ck_assert_int_eq(memcmp(&got, &meta, sizeof(meta)), 0);
    ck_assert_int_eq(g_access(left, F_OK), -1);
    ck_assert(journal->ops->save_record(journal, bytes, NULL));
    ck_assert_int_eq(stat(record_path, &st), 0);
    ck_assert(st.st_size == 3 && (st.st_mode & 0777) == 0600);
    journal->ops->drop_record(journal);
    ck_assert_int_eq(stat(record_path, &st), -1);
}
END_TEST

START_TEST(err_metadata_of_another_size_or_folder)
{
    g_autofree char *meta_path = path_of("meta");
    g_autofree char *nowhere = path_of("no-such-folder/meta");
    g_autoptr(Journal) journal = journal_file_new(nowhere, nowhere);
    g_autoptr(Journal) good = journal_file_new(meta_path, nowhere);
    g_autoptr(GError) size = NULL;
    g_autoptr(GError) save = NULL;
    g_autoptr(GError) load = NULL;
    DiskMeta meta = some_meta(), got;

    ck_assert(good->ops->save_meta(good, &meta, NULL));
    ck_assert(!disk_meta_load(meta_path, SIZE + 1, &got, &size));
    ck_assert_ptr_nonnull(strstr(size->message, "belongs to a disk of 1048576 bytes"));
    ck_assert(!journal->ops->save_meta(journal, &meta, &save));
    ck_assert_ptr_nonnull(strstr(save->message, "cannot create it"));
    ck_assert(!disk_meta_load(folder, SIZE, &got, &load));
}
END_TEST

static Target *
open_target(const char *directory, uint64_t limit, GError **error)
{
    g_autofree char *disk = path_of("disk");
    g_autofree char *meta = path_of("target-meta");
    TargetConfig config = {
        .disk = disk, .metadata = meta, .directory = directory, .limit_bytes = limit};

    return target_open(&config, error);
}

static int64_t
soon(void)
{
    return clock_now_ns() + 10 * NS_PER_S;
}

/* A commit that was stopped is found in the files and carried out, also with another limit. */
START_TEST(life_target_of_files)
{
    g_autofree char *disk_path = path_of("disk");
    g_autofree char *disk = NULL;
    g_autoptr(GError) error = NULL;
    uint8_t byte = 's';
    Fault fault;

    make_disk(disk_path);

    Target *target = open_target(folder, LIMIT * 2, &error);

    ck_assert_msg(target != NULL, "%s", error ? error->message : "");
    ck_assert(target_sync(target, 1, soon(), NULL));
    ck_assert(target_mirror(target, 1, 1, soon(), NULL));
    for (uint64_t i = 0; i < 70; i++)
        ck_assert_int_eq(
            layers_write(target_layers(target), SIDE_ACTIVE, &byte, 1, i * 8192, &fault), 0);
    ck_assert(target_failover(target, 2, soon(), NULL));
    target_stop(target);
    ck_assert(!target_commit(target, NULL)); /* durable, then told to stop */
    target_free(target);

    ck_assert_ptr_null(open_target(NULL, LIMIT, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "to be finished first"));
    target = open_target(folder, LIMIT, NULL);
    ck_assert_ptr_nonnull(target);
    target_start(target);
    ck_assert(target_wait_commit(target, FALSE, soon(), NULL));
    target_stop(target);
    target_free(target);
    ck_assert(g_file_get_contents(disk_path, &disk, NULL, NULL));
    for (size_t i = 0; i < 70; i++)
        ck_assert_int_eq(disk[i * 8192], 's');

    target = open_target(NULL, LIMIT, NULL);
    ck_assert_ptr_nonnull(target);
    ck_assert_int_eq(layers_mode(target_layers(target)), TARGET_LOCAL);
    target_free(target);
}
END_TEST

START_TEST(err_commit_record_missing_or_exchanged)
{
    g_autofree char *disk_path = path_of("disk");
    g_autofree char *meta_path = path_of("target-meta");
    g_autofree char *record_path = path_of("commit");
    g_autoptr(Journal) journal = journal_file_new(meta_path, record_path);
    g_autoptr(GError) missing = NULL;
    g_autoptr(GError) exchanged = NULL;
    char sum[DISK_META_SUM_HEX + 1];
    g_autoptr(GBytes) record = some_record(sum);
    DiskMeta meta = some_meta();

    make_disk(disk_path);
    ck_assert(journal->ops->save_meta(journal, &meta, NULL));
    (void)g_unlink(record_path);
    ck_assert_ptr_null(open_target(folder, LIMIT, &missing));
    ck_assert(journal->ops->save_record(journal, record, NULL));
    ck_assert_ptr_null(open_target(folder, LIMIT, &exchanged));
    ck_assert_ptr_nonnull(strstr(exchanged->message, "not the commit record"));
}
END_TEST

START_TEST(err_limits)
{
    g_autofree char *disk_path = path_of("disk");
    g_autofree char *meta_path = path_of("target-meta");

    make_disk(disk_path);
    (void)g_unlink(meta_path);
    for (int i = 0; i < 2; i++) {
        g_autoptr(GError) error = NULL;

        ck_assert_ptr_null(open_target(folder, i ? 4096 : UINT64_MAX, &error));
        ck_assert_ptr_nonnull(strstr(error->message, "limit"));
    }
}
END_TEST

static int
run_all(void)
{
    const TTest *const tests[] = {
        unit_read_as_written,
        sec_metadata_damaged,
        sec_metadata_of_strangers,
        unit_record_read_as_written,
        sec_record_damaged,
        sec_records_of_strangers,
        unit_files_are_replaced_whole,
        err_metadata_of_another_size_or_folder,
        life_target_of_files,
        err_commit_record_missing_or_exchanged,
        err_limits,
    };

    return check_run("disk-meta", tests, G_N_ELEMENTS(tests));
}

int
main(void)
{
    static const char *const files[] = {"meta",   "commit", "disk", "target-meta",
                                        "hidden", "active", NULL};

    return check_run_in_folder(folder, files, run_all);
}
