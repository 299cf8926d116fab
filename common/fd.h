/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fd.h - file descriptors with an owner */
#pragma once

#include <glib.h>

#include <stdbool.h>

/** Closes *@fd if it is >= 0 and sets it to -1. errno is kept. */
void fd_clear(int *fd);

/** Returns *@fd and leaves -1: hands ownership on. */
static inline int
fd_steal(int *fd)
{
    int stolen = *fd;

    *fd = -1;
    return stolen;
}

/** A descriptor that the scope owns. Initialise it: `auto_fd int fd = -1;` */
#define auto_fd __attribute__((cleanup(fd_clear)))

/** Sets O_NONBLOCK. Returns 0 or a negative errno. */
int fd_set_nonblocking(int fd);

/** Connects to or listens on a UNIX stream socket; non-blocking and close-on-exec.
 *
 * fd_unix_listen() removes a stale socket file first; the file's mode is 0600.
 * Return: a descriptor that the caller owns, or a negative errno (-ENAMETOOLONG: path too long for
 * sun_path).
 */
int fd_unix_connect(const char *path);
int fd_unix_listen(const char *path);
