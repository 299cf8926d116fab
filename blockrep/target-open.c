/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-open.c - a target made of its parts, or of files */
#include "target-open.h"

#include "store-nbd.h"

#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>

/* In the directory. */
#define HIDDEN_NAME "hidden"
#define ACTIVE_NAME "active"
#define RECORD_NAME "commit"

static Overlay *
restore(Store *store, const uint64_t *blocks, uint32_t n, const char *name, GError **error)
{
    g_autoptr(Overlay) overlay = overlay_new(store);

    if (overlay_restore(overlay, n, blocks) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "the commit record names a block of the %s overlay twice", name);
        return NULL;
    }
    return g_steal_pointer(&overlay);
}

Target *
target_assemble(Store *disk, Store *hidden, Store *active, Journal *journal, const DiskMeta *meta,
                const CommitRecord *record, GError **error)
{
    static const CommitRecord none = {0};
    const CommitRecord *with = record ? record : &none;
    g_autoptr(Overlay) hidden_overlay =
        restore(hidden, with->blocks, with->n_hidden, HIDDEN_NAME, error);
    g_autoptr(Overlay) active_overlay =
        restore(active, record ? record->blocks + record->n_hidden : NULL, with->n_active,
                ACTIVE_NAME, hidden_overlay ? error : NULL);

    g_assert((meta->commit[0] != '\0') == (record != NULL));
    if (!hidden_overlay || !active_overlay) {
        store_free(disk);
        journal_free(journal);
        return NULL;
    }
    return target_new(
        layers_new(disk, g_steal_pointer(&hidden_overlay), g_steal_pointer(&active_overlay)),
        journal, meta);
}

/* @path is removed if it is there and no metadata names it. */
static gboolean
load_record(const char *path, const DiskMeta *meta, CommitRecord *ret_record, GError **error)
{
    g_autofree char *data = NULL;
    g_auto(CommitRecord) record = {0};
    gsize length;

    if (!g_file_get_contents(path, &data, &length, error) ||
        !commit_record_parse(path, (const uint8_t *)data, length, meta->size_bytes, &record, error))
        return FALSE;
    if (!g_str_equal(record.sum, meta->commit)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "%s: is not the commit record that the disk's metadata names", path);
        return FALSE;
    }
    *ret_record = record;
    record.blocks = NULL;
    return TRUE;
}

static Target *
open_in_memory(Store *disk, Journal *journal, const DiskMeta *meta, uint64_t limit, GError **error)
{
    g_autoptr(Store) owned_disk = disk;
    g_autoptr(Journal) owned_journal = journal;
    g_autoptr(Store) hidden = NULL;
    g_autoptr(Store) active = NULL;

    if (meta->commit[0]) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                    "a failover commit is to be finished first, from the directory its overlays "
                    "are in");
        return NULL;
    }
    hidden = store_memory_new(limit, error);
    active = hidden ? store_memory_new(limit, error) : NULL;
    if (!active)
        return NULL;
    return target_assemble(g_steal_pointer(&owned_disk), g_steal_pointer(&hidden),
                           g_steal_pointer(&active), g_steal_pointer(&owned_journal), meta, NULL,
                           error);
}

/* A commit that was begun under a larger limit keeps its slots. */
static uint64_t
limit_with(uint64_t limit, const CommitRecord *record)
{
    uint64_t slots = MAX(record->n_hidden, record->n_active);

    return MAX(limit, slots * OVERLAY_BLOCK_BYTES);
}

static Target *
open_in_files(Store *disk, Journal *journal, const DiskMeta *meta, const TargetConfig *config,
              uint64_t limit, GError **error)
{
    g_autofree char *record_path = g_build_filename(config->directory, RECORD_NAME, NULL);
    g_autofree char *hidden_path = g_build_filename(config->directory, HIDDEN_NAME, NULL);
    g_autofree char *active_path = g_build_filename(config->directory, ACTIVE_NAME, NULL);
    g_autoptr(Store) owned_disk = disk;
    g_autoptr(Journal) owned_journal = journal;
    g_auto(CommitRecord) record = {0};
    bool resumes = meta->commit[0] != '\0';

    if (resumes && !load_record(record_path, meta, &record, error))
        return NULL;
    if (!resumes)
        (void)g_unlink(record_path); /* left by a crash after the commit's end */
    limit = limit_with(limit, &record);

    g_autoptr(Store) hidden = store_file_overlay(hidden_path, limit, resumes, error);
    g_autoptr(Store) active =
        hidden ? store_file_overlay(active_path, limit, resumes, error) : NULL;

    if (!active)
        return NULL;
    return target_assemble(g_steal_pointer(&owned_disk), g_steal_pointer(&hidden),
                           g_steal_pointer(&active), g_steal_pointer(&owned_journal), meta,
                           resumes ? &record : NULL, error);
}

static Target *
open_parts(Store *disk, Journal *journal, const DiskMeta *meta, const TargetConfig *config,
           uint64_t limit, GError **error)
{
    return config->directory ? open_in_files(disk, journal, meta, config, limit, error)
                             : open_in_memory(disk, journal, meta, limit, error);
}

Target *
target_open(const TargetConfig *config, GError **error)
{
    uint64_t limit = config->limit_bytes / OVERLAY_BLOCK_BYTES * OVERLAY_BLOCK_BYTES;
    DiskMeta meta;

    if (limit < OVERLAY_MIN_LIMIT_BYTES || limit > OVERLAY_MAX_LIMIT_BYTES) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "an overlay's limit is at least 256 KiB and at most 64 GiB");
        return NULL;
    }

    /* The disk first: its lock keeps another process from all that follows. */
    g_autoptr(Store) disk = store_open(config->disk, STORE_WRITE, error);

    if (!disk || !disk_meta_load(config->metadata, disk->size_bytes, &meta, error))
        return NULL;

    g_autoptr(DirtyMap) map =
        config->map ? dirty_map_open(config->map, disk->size_bytes, error) : NULL;

    if (config->map && !map)
        return NULL;

    g_autofree char *record_path =
        config->directory ? g_build_filename(config->directory, RECORD_NAME, NULL) : NULL;
    Journal *journal = journal_file_new(config->metadata, record_path);

    Target *target = open_parts(g_steal_pointer(&disk), journal, &meta, config, limit, error);

    if (target && map)
        target_take_map(target, g_steal_pointer(&map));
    return target;
}
