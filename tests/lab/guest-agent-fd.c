/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent-fd.c - descriptors that are watched: timers, ports, connections */
#define _GNU_SOURCE /* accept4 */

#include "guest-agent.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    MAX_FDS = 1000, /* below RLIMIT_NOFILE; a connection beyond is closed at once */
    EVENTS = 64,
    /* Of datagrams that wait while a busy host does not run this guest: what the kernel drops of
     * them looks as if it had been lost on its way. */
    DATAGRAMS_BYTES = 4 * 1024 * 1024,
};

typedef struct {
    FdRole role;
    Conn *conn; /* connections only */
} FdSlot;

static struct {
    int epoll_fd;
    FdSlot slots[MAX_FDS]; /* by descriptor */
} fds;

void
open_epoll(void)
{
    fds.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (fds.epoll_fd < 0) {
        die("epoll_create1");
    }
}

_Noreturn void
serve_all(void (*serve)(int fd, FdRole role))
{
    struct epoll_event events[EVENTS];

    for (;;) {
        int n = epoll_wait(fds.epoll_fd, events, EVENTS, -1);

        for (int i = 0; i < n; i++) {
            serve(events[i].data.fd, fds.slots[events[i].data.fd].role);
        }
    }
}

Conn *
conn_of(int fd)
{
    return fds.slots[fd].conn;
}

static int
watch(int fd, FdRole role, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (fd >= MAX_FDS) {
        errno = EMFILE;
        return -1;
    }
    if (epoll_ctl(fds.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        return -1;
    }
    fds.slots[fd].role = role;
    return 0;
}

/* Makes epoll report a connection when it can be written to, or else when it can be read from. */
void
watch_conn(int fd, bool for_writing)
{
    Conn *conn = fds.slots[fd].conn;
    const uint32_t events = for_writing ? EPOLLOUT : EPOLLIN;
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (conn->events == events) {
        return;
    }
    if (epoll_ctl(fds.epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0) {
        die("epoll_ctl");
    }
    conn->events = events;
}

void
close_conn(int fd)
{
    free(fds.slots[fd].conn);
    fds.slots[fd] = (FdSlot){.role = FD_FREE};
    close(fd);
}

int
make_timer(FdRole role)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    if (fd < 0 || watch(fd, role, EPOLLIN) < 0) {
        die("timer");
    }
    return fd;
}

/* first_ms 0 stops the timer; period_ms 0 lets it run once. */
void
set_timer(int fd, long first_ms, long period_ms)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = first_ms / 1000, .tv_nsec = first_ms % 1000 * 1000000},
        .it_interval = {.tv_sec = period_ms / 1000, .tv_nsec = period_ms % 1000 * 1000000},
    };

    if (timerfd_settime(fd, 0, &when, NULL) < 0) {
        die("timerfd_settime");
    }
}

uint64_t
read_timer(int fd)
{
    uint64_t expirations;

    return read(fd, &expirations, sizeof(expirations)) == sizeof(expirations) ? expirations : 0;
}

/* One socket for both IPv4 and IPv6. */
void
open_port(int type, uint16_t port, FdRole role)
{
    struct sockaddr_in6 address = {
        .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
    const int on = 1;
    const int off = 0;
    const int waiting_bytes = DATAGRAMS_BYTES;
    int fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        (type == SOCK_DGRAM &&
         setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &waiting_bytes, sizeof(waiting_bytes)) < 0) ||
        (type == SOCK_STREAM && listen(fd, SOMAXCONN) < 0) || watch(fd, role, EPOLLIN) < 0) {
        die("port");
    }
}

void
accept_all(int listen_fd, FdRole role)
{
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            return;
        }
        if (watch(fd, role, EPOLLIN) < 0) {
            close(fd);
            continue;
        }
        fds.slots[fd].conn = calloc(1, sizeof(Conn));
        if (fds.slots[fd].conn == NULL) {
            close_conn(fd);
            continue;
        }
        fds.slots[fd].conn->events = EPOLLIN;
    }
}
