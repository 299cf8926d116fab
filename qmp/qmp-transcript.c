/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-transcript.c - what was said on a QMP connection, in a file of bounded size */
#include "qmp-transcript.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <glib/gstdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"
#include "fd.h"

struct QmpTranscript {
    char *path;
    size_t bytes_max;
    size_t bytes; /* in the current file */
    int fd;       /* -1 after a write error */
};

/* Returns a descriptor or a negative errno. */
static int
transcript_open(const char *path, size_t *ret_bytes)
{
    auto_fd int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    /* A pipe or a device could block us, and could not be rotated. */
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    *ret_bytes = (size_t)st.st_size;
    return fd_steal(&fd);
}

QmpTranscript *
qmp_transcript_new(const char *path, size_t bytes_max, GError **error)
{
    size_t bytes = 0;
    int fd = transcript_open(path, &bytes);

    if (fd < 0) {
        g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(-fd),
                    "cannot open QMP transcript %s: %s", path, g_strerror(-fd));
        return NULL;
    }

    QmpTranscript *transcript = g_new0(QmpTranscript, 1);

    transcript->path = g_strdup(path);
    transcript->bytes_max = bytes_max;
    transcript->bytes = bytes;
    transcript->fd = fd;
    return transcript;
}

void
qmp_transcript_free(QmpTranscript *transcript)
{
    if (!transcript)
        return;
    fd_clear(&transcript->fd);
    g_free(transcript->path);
    g_free(transcript);
}

static void
transcript_give_up(QmpTranscript *transcript, int errnum)
{
    g_debug("qmp: transcript %s ends: %s", transcript->path, g_strerror(errnum));
    fd_clear(&transcript->fd);
}

static void
transcript_rotate(QmpTranscript *transcript)
{
    g_autofree char *old = g_strconcat(transcript->path, ".1", NULL);
    int fd;

    if (g_rename(transcript->path, old) < 0) {
        transcript_give_up(transcript, errno);
        return;
    }
    fd = transcript_open(transcript->path, &transcript->bytes);
    if (fd < 0) {
        transcript_give_up(transcript, -fd);
        return;
    }
    fd_clear(&transcript->fd);
    transcript->fd = fd;
}

void
qmp_transcript_line(QmpTranscript *transcript, char direction, View line)
{
    char stamp[48];
    int64_t now_us = clock_now_ns() / NS_PER_US;

    if (!transcript || transcript->fd < 0)
        return;
    g_snprintf(stamp, sizeof(stamp), "%" PRId64 ".%06d %c ", now_us / G_USEC_PER_SEC,
               (int)(now_us % G_USEC_PER_SEC), direction);

    size_t length = strlen(stamp) + line.len + 1;

    if (transcript->bytes && transcript->bytes + length > transcript->bytes_max)
        transcript_rotate(transcript);
    if (transcript->fd < 0)
        return;

    /* writev() only reads through these pointers. */
    const struct iovec parts[] = {
        {.iov_base = stamp, .iov_len = strlen(stamp)},
        {.iov_base = (void *)(uintptr_t)line.data, .iov_len = line.len},
        {.iov_base = (char[]){'\n'}, .iov_len = 1},
    };
    ssize_t written = writev(transcript->fd, parts, G_N_ELEMENTS(parts));

    if (written < 0)
        transcript_give_up(transcript, errno);
    else if ((size_t)written != length)
        transcript_give_up(transcript, ENOSPC);
    else
        transcript->bytes += length;
}
