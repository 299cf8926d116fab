/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent.c - services of the lab's guest: echo, HTTP, console counter, memory dirtier */

/*
 * Theory of operation
 *
 * The image's /init script sets up the system and then execs this program, which so is the guest's
 * process 1: if it dies the guest panics, which no test can overlook. It is one static binary
 * without threads and without forks; a single epoll loop serves everything.
 *
 * Port 7, TCP and UDP: echo. A TCP connection that cannot take its echo is not read from, so that
 * memory stays bounded and back-pressure reaches the client.
 *
 * Port 9, TCP and UDP: commands, one a line (one a datagram), one line of answer each, which is
 * "ok ..." or "error REASON":
 *
 *   dirty RATE [MIB]  write to RATE pages per second, cyclically over MIB MiB (default 8), from a
 *                     10 ms timer, the remainder carried over; "dirty 0" stops and frees them
 *   status            "ok ticks N dirty RATE MIB pages TOTAL"
 *   now               "ok NANOSECONDS", the guest's monotonic clock: two replicas answer
 *                     differently, a divergence on purpose
 *   numbered          what the datagrams of port 11 came to: "ok run R next N got N missing N twice
 *                     N late N digest HEX"
 *   hole NUMBER       "ok FIRST END", the first numbers at or after that one that did not come, or
 *                     "ok none"
 *   reboot, poweroff  "ok", and it happens 100 ms later
 *
 * Port 11, UDP: numbered datagrams, "RUN NUMBER" and whatever else. Numbers of a run begin with 0;
 * a datagram of another run than the last one's begins a new account. The answer says what
 * `numbered` says, and the number: two replicas that were not given the same datagrams, each once
 * and in the same order, since one was made the copy of the other, do not give the same answers.
 * What is missing, comes twice or late is told on the console at once, which stays where it was
 * said when the memory of this replica is replaced by the other's.
 *
 * Port 80: HTTP, GET only, with keep-alive and without any header that tells the time:
 *
 *   /, /index.html    a small constant page
 *   /blob             64 MiB of deterministic data
 *   /blob.small       its first MiB
 *   /blob/N           its first N MiB, up to 1048576
 *
 * Console: "colod-guest ready" once all listen, then "tick N" each second.
 *
 * The blob takes 1 MiB of memory however much of it is served: the seed, whose 64-bit
 * little-endian word i (from 0) is output i + 1 of splitmix64 started at state 0. MiB number b of
 * the blob is the seed rotated left by b * 4096 bytes: byte p of the blob is byte
 * (p + (p >> 20) * 4096) mod 1 MiB of the seed. It is sent with sendfile(2), which costs an
 * emulated CPU least.
 *
 * The same binary runs on the host when the image is built, to compute what a client must get:
 *
 *   guest-agent blob MIB    writes the blob
 *   guest-agent index       writes index.html
 */

#include "guest-agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    ECHO_PORT = 7,
    COMMAND_PORT = 9,
    NUMBERED_PORT = 11,
    HTTP_PORT = 80,
    CONSOLE_LEVEL = 8, /* what klogctl() is asked to set: syslog(2) */
    DATAGRAM_BYTES = 64 * 1024,
    DATAGRAM_BURST = 64, /* datagrams served before the other descriptors get their turn */
    RANDOM_SEED_BYTES = 64,
};

static struct {
    char datagram[DATAGRAM_BYTES];
    uint64_t ticks;
} agent;

void
die(const char *what)
{
    printf("colod-guest: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

uint64_t
ticks(void)
{
    return agent.ticks;
}

/* Echo, and datagrams of all ports */

static void
serve_datagrams(int fd, FdRole role)
{
    for (int i = 0; i < DATAGRAM_BURST; i++) {
        struct sockaddr_in6 peer;
        socklen_t peer_bytes = sizeof(peer);
        char answer[LINE_BYTES];
        ssize_t n = recvfrom(fd, agent.datagram, sizeof(agent.datagram) - 1, 0,
                             (struct sockaddr *)&peer, &peer_bytes);

        if (n < 0) {
            return;
        }
        agent.datagram[n] = '\0';
        if (role == FD_NUMBERED_UDP) {
            n = serve_numbered(agent.datagram, sizeof(agent.datagram));
        } else if (role == FD_COMMAND_UDP) {
            agent.datagram[strcspn(agent.datagram, "\r\n")] = '\0';
            run_command(agent.datagram, answer);
            n = snprintf(agent.datagram, sizeof(agent.datagram), "%s\n", answer);
        }
        /* A datagram that does not fit the send buffer is lost, as datagrams may be. */
        (void)sendto(fd, agent.datagram, (size_t)n, MSG_NOSIGNAL, (struct sockaddr *)&peer,
                     peer_bytes);
    }
}

/* Sends what the buffer holds. Returns false if the connection is gone. */
static bool
flush_conn(int fd, Conn *conn)
{
    while (conn->start < conn->end) {
        ssize_t n = send(fd, conn->data + conn->start, conn->end - conn->start, MSG_NOSIGNAL);

        if (n < 0) {
            return errno == EAGAIN;
        }
        conn->start += (size_t)n;
    }
    conn->start = 0;
    conn->end = 0;
    return true;
}

static void
serve_echo_conn(int fd)
{
    Conn *conn = conn_of(fd);

    if (conn->end == 0) {
        ssize_t n = recv(fd, conn->data, sizeof(conn->data), 0);

        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            close_conn(fd);
            return;
        }
        conn->end = n > 0 ? (size_t)n : 0;
    }
    if (!flush_conn(fd, conn)) {
        close_conn(fd);
        return;
    }
    watch_conn(fd, conn->end > 0);
}

/* Start and loop */

static void
tick(int fd)
{
    if (read_timer(fd) > 0) {
        agent.ticks++;
        printf("tick %llu\n", (unsigned long long)agent.ticks);
    }
}

static void
serve(int fd, FdRole role)
{
    switch (role) {
    case FD_FREE: /* closed earlier in the same round */
        break;
    case FD_TICK:
        tick(fd);
        break;
    case FD_DIRTY:
        dirty_some();
        break;
    case FD_SHUTDOWN:
        obey_shutdown();
        break;
    case FD_ECHO_LISTEN:
        accept_all(fd, FD_ECHO_CONN);
        break;
    case FD_COMMAND_LISTEN:
        accept_all(fd, FD_COMMAND_CONN);
        break;
    case FD_ECHO_UDP:
    case FD_COMMAND_UDP:
    case FD_NUMBERED_UDP:
        serve_datagrams(fd, role);
        break;
    case FD_ECHO_CONN:
        serve_echo_conn(fd);
        break;
    case FD_COMMAND_CONN:
        serve_command_conn(fd);
        break;
    case FD_HTTP_LISTEN:
        accept_all(fd, FD_HTTP_CONN);
        break;
    case FD_HTTP_CONN:
        serve_http_conn(fd);
        break;
    }
}

/*
 * An emulated guest without an RNG device gathers entropy slowly, and whoever asks early stalls.
 * Nothing here is secret, so the clock counts as entropy.
 */
static int
seed_random(void)
{
    struct {
        struct rand_pool_info info;
        uint64_t words[RANDOM_SEED_BYTES / sizeof(uint64_t)];
    } pool = {.info = {.entropy_count = RANDOM_SEED_BYTES * 8, .buf_size = RANDOM_SEED_BYTES}};
    struct timespec now;
    uint64_t seed;
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        return 1;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    seed = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    for (size_t i = 0; i < RANDOM_SEED_BYTES / sizeof(uint64_t); i++) {
        pool.words[i] = splitmix64_at(seed + i);
    }
    return ioctl(fd, RNDADDENTROPY, &pool) < 0;
}

static _Noreturn void
run(void)
{
    int tick_fd;

    setvbuf(stdout, NULL, _IOLBF, 0);
    make_seed();
    klogctl(CONSOLE_LEVEL, NULL,
            7);               /* a program that dies is told on the console, the boot is not */
    signal(SIGCHLD, SIG_IGN); /* process 1 inherits httpd's children; nobody waits for them */
    open_epoll();
    tick_fd = make_timer(FD_TICK);
    open_dirtier();
    open_shutdown();
    open_port(SOCK_STREAM, ECHO_PORT, FD_ECHO_LISTEN);
    open_port(SOCK_DGRAM, ECHO_PORT, FD_ECHO_UDP);
    open_port(SOCK_STREAM, COMMAND_PORT, FD_COMMAND_LISTEN);
    open_port(SOCK_DGRAM, COMMAND_PORT, FD_COMMAND_UDP);
    open_port(SOCK_DGRAM, NUMBERED_PORT, FD_NUMBERED_UDP);
    open_port(SOCK_STREAM, HTTP_PORT, FD_HTTP_LISTEN);
    printf("colod-guest ready\n");
    set_timer(tick_fd, 1000, 1000);
    serve_all(serve);
}

int
main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "blob") == 0) {
        return write_blob(strtoull(argv[2], NULL, 10));
    }
    if (argc == 2 && strcmp(argv[1], "index") == 0) {
        return write_index();
    }
    if (argc == 2 && strcmp(argv[1], "seed-random") == 0) {
        return seed_random();
    }
    if (argc == 2 && strcmp(argv[1], "run") == 0) {
        run();
    }
    fprintf(stderr, "usage: guest-agent run | seed-random | blob MIB | index\n");
    return 2;
}
