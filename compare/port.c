/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* port.c - a listening socket with at most one peer, and what the peer sent */
#include "port.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fd.h"

enum { SOCKET_BUFFER_BYTES = 1024 * 1024 };

struct Port {
    char *name;
    char *unix_path; /* removed at the end; NULL for TCP */
    int listen_fd;
    int fd;
    uint8_t *buffer;
    size_t start, end, size;
};

static int
tcp_listen_on(const struct addrinfo *info)
{
    auto_fd int fd =
        socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, info->ai_protocol);
    int on = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, 4) < 0)
        return -errno;
    return fd_steal(&fd);
}

static int
tcp_listen(const char *address, GError **error)
{
    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                                   .ai_socktype = SOCK_STREAM};
    const char *colon = strrchr(address, ':');
    struct addrinfo *info;

    if (!colon) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "tcp:%s: expected ADDRESS:PORT",
                    address);
        return -EINVAL;
    }
    g_autofree char *host = g_strndup(address, (gsize)(colon - address));

    if (host[0] == '[' && g_str_has_suffix(host, "]")) {
        host[strlen(host) - 1] = 0;
        memmove(host, host + 1, strlen(host));
    }
    int r = getaddrinfo(host[0] ? host : NULL, colon + 1, &hints, &info);

    if (r != 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "tcp:%s: %s", address,
                    gai_strerror(r));
        return -EINVAL;
    }
    r = tcp_listen_on(info);
    freeaddrinfo(info);
    if (r < 0)
        g_set_error(error, G_IO_ERROR, (int)g_io_error_from_errno(-r), "tcp:%s: %s", address,
                    g_strerror(-r));
    return r;
}

static int
any_listen(Port *p, const char *address, GError **error)
{
    if (g_str_has_prefix(address, "tcp:"))
        return tcp_listen(address + 4, error);
    if (!g_str_has_prefix(address, "unix:")) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "%s: expected unix:PATH or tcp:ADDRESS:PORT", address);
        return -EINVAL;
    }
    int fd = fd_unix_listen(address + 5);

    if (fd < 0)
        g_set_error(error, G_IO_ERROR, (int)g_io_error_from_errno(-fd), "%s: %s", address,
                    g_strerror(-fd));
    else
        p->unix_path = g_strdup(address + 5);
    return fd;
}

Port *
port_new(const char *name, const char *address, size_t buffer_bytes, GError **error)
{
    Port *p = g_new0(Port, 1);

    p->fd = -1;
    p->name = g_strdup(name);
    p->size = buffer_bytes;
    p->buffer = g_malloc(buffer_bytes);
    p->listen_fd = any_listen(p, address, error);
    if (p->listen_fd >= 0)
        return p;
    p->listen_fd = -1;
    port_free(p);
    return NULL;
}

void
port_free(Port *p)
{
    if (!p)
        return;
    fd_clear(&p->fd);
    fd_clear(&p->listen_fd);
    if (p->unix_path)
        (void)unlink(p->unix_path);
    g_free(p->unix_path);
    g_free(p->buffer);
    g_free(p->name);
    g_free(p);
}

int
port_listen_fd(const Port *p)
{
    return p->listen_fd;
}

int
port_fd(const Port *p)
{
    return p->fd;
}

const char *
port_name(const Port *p)
{
    return p->name;
}

bool
port_accept(Port *p)
{
    int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int on = 1;
    int bytes = SOCKET_BUFFER_BYTES;

    if (fd < 0)
        return false; /* it went away again */
    port_drop(p);
    p->fd = fd;
    /* Best effort: UNIX sockets have no delay to switch off; the kernel may limit the buffer. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    return true;
}

void
port_drop(Port *p)
{
    fd_clear(&p->fd);
    p->start = p->end; /* what lies before may still be in use, see port_read_on() */
}

size_t
port_room(const Port *p)
{
    return p->size - p->end;
}

int64_t
port_read(Port *p)
{
    if (p->start > 0) {
        memmove(p->buffer, p->buffer + p->start, p->end - p->start);
        p->end -= p->start;
        p->start = 0;
    }
    return port_read_on(p);
}

int64_t
port_read_on(Port *p)
{
    if (p->end == p->size)
        return -ENOBUFS;
    ssize_t n = recv(p->fd, p->buffer + p->end, p->size - p->end, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return -EAGAIN;
    if (n <= 0) {
        port_drop(p);
        return 0;
    }
    p->end += (size_t)n;
    return n;
}

const uint8_t *
port_data(const Port *p, size_t *ret_len)
{
    *ret_len = p->end - p->start;
    return p->buffer + p->start;
}

void
port_consume(Port *p, size_t len)
{
    p->start += len;
}
