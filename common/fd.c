/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fd.c - file descriptors with an owner */
#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { LISTEN_BACKLOG = 16 };

void
fd_clear(int *fd)
{
    int saved_errno = errno;

    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
    errno = saved_errno;
}

int
fd_set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

static int
unix_socket(const char *path, struct sockaddr_un *ret_address)
{
    const size_t len = strlen(path);

    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (len >= sizeof(ret_address->sun_path))
        return -ENAMETOOLONG;
    memcpy(ret_address->sun_path, path, len + 1);

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    return fd < 0 ? -errno : fd;
}

int
fd_unix_connect(const char *path)
{
    struct sockaddr_un address;
    auto_fd int fd = unix_socket(path, &address);

    if (fd < 0)
        return fd_steal(&fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    return fd_steal(&fd);
}

int
fd_unix_listen(const char *path)
{
    struct sockaddr_un address;
    auto_fd int fd = unix_socket(path, &address);

    if (fd < 0)
        return fd_steal(&fd);
    if (unlink(path) < 0 && errno != ENOENT)
        return -errno;
    /* fchmod() before bind() sets the mode the file is born with: no moment of wider access. */
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, LISTEN_BACKLOG) < 0)
        return -errno;
    return fd_steal(&fd);
}
