/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* journal-file.c - metadata and commit record in files */
#include "journal.h"

#include "file-replace.h"

#include <string.h>
#include <unistd.h>

typedef struct FileJournal {
    Journal base;
    char *meta_path, *record_path;
} FileJournal;

static gboolean
file_save_meta(Journal *journal, const DiskMeta *meta, GError **error)
{
    g_autofree char *text = disk_meta_format(meta);

    return file_replace(((FileJournal *)journal)->meta_path, text, strlen(text), error);
}

static gboolean
file_save_record(Journal *journal, GBytes *record, GError **error)
{
    gsize length;
    const void *data = g_bytes_get_data(record, &length);

    return file_replace(((FileJournal *)journal)->record_path, data, length, error);
}

static void
file_drop_record(Journal *journal)
{
    (void)unlink(((FileJournal *)journal)->record_path);
}

static void
file_free(Journal *journal)
{
    g_free(((FileJournal *)journal)->meta_path);
    g_free(((FileJournal *)journal)->record_path);
    g_free(journal);
}

static const JournalOps file_ops = {
    .save_meta = file_save_meta,
    .save_record = file_save_record,
    .drop_record = file_drop_record,
    .free = file_free,
};

Journal *
journal_file_new(const char *meta_path, const char *record_path)
{
    FileJournal *file = g_new0(FileJournal, 1);

    file->base.ops = &file_ops;
    file->meta_path = g_strdup(meta_path);
    file->record_path = g_strdup(record_path);
    return &file->base;
}
