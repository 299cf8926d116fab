/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* journal-file.c - metadata and commit record in files */
#include "journal.h"

#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct FileJournal {
    Journal base;
    char *meta_path, *record_path;
} FileJournal;

static gboolean
fail(const char *path, const char *doing, GError **error)
{
    int saved_errno = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved_errno), "%s: cannot %s: %s", path,
                doing, g_strerror(saved_errno));
    return FALSE;
}

static gboolean
write_durably(int fd, const uint8_t *data, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);

        if (n < 0 && errno != EINTR)
            return FALSE;
        if (n > 0) {
            data += n;
            length -= (size_t)n;
        }
    }
    return fsync(fd) == 0;
}

static gboolean
sync_folder_of(const char *path)
{
    g_autofree char *folder = g_path_get_dirname(path);
    auto_fd int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd >= 0 && fsync(fd) == 0;
}

static gboolean
replace(const char *path, const void *data, size_t length, GError **error)
{
    g_autofree char *temporary = g_strconcat(path, ".new", NULL);
    auto_fd int fd =
        open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, (mode_t)0600);

    if (fd < 0)
        return fail(temporary, "create it", error);
    if (!write_durably(fd, data, length)) {
        (void)fail(temporary, "write it", error);
        (void)unlink(temporary); /* on a full file system its space is wanted */
        return FALSE;
    }
    if (rename(temporary, path) < 0)
        return fail(path, "replace it", error);
    if (!sync_folder_of(path))
        return fail(path, "make its folder durable", error);
    return TRUE;
}

static gboolean
file_save_meta(Journal *journal, const DiskMeta *meta, GError **error)
{
    g_autofree char *text = disk_meta_format(meta);

    return replace(((FileJournal *)journal)->meta_path, text, strlen(text), error);
}

static gboolean
file_save_record(Journal *journal, GBytes *record, GError **error)
{
    gsize length;
    const void *data = g_bytes_get_data(record, &length);

    return replace(((FileJournal *)journal)->record_path, data, length, error);
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
