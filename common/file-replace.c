/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* file-replace.c - writes a small file so that a crash leaves the old or the new one */
#include "file-replace.h"

#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static gboolean
fail(const char *path, const char *doing, GError **error)
{
    int saved_errno = errno;

    g_set_error(error, G_IO_ERROR, (gint)g_io_error_from_errno(saved_errno), "%s: cannot %s: %s",
                path, doing, g_strerror(saved_errno));
    return FALSE;
}

static gboolean
write_durably(int fd, const uint8_t *data, gsize length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);

        if (n < 0 && errno != EINTR)
            return FALSE;
        if (n > 0) {
            data += n;
            length -= (gsize)n;
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

gboolean
file_replace(const char *path, const void *data, gsize length, GError **error)
{
    g_autofree char *temporary = g_strconcat(path, ".new", NULL);
    auto_fd int fd =
        open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, (mode_t)0600);

    if (fd < 0 || fchmod(fd, (mode_t)0600) < 0) /* one that was left behind keeps its mode */
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
