/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent.c - services of the lab's guest: echo, HTTP, console counter, memory dirtier. */

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

#define _GNU_SOURCE /* accept4 */

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    ECHO_PORT = 7,
    COMMAND_PORT = 9,
    NUMBERED_PORT = 11,
    HTTP_PORT = 80,
    PAGE_BYTES = 4096,
    MIB_BYTES = 1024 * 1024,
    MAX_FDS = 1000,         /* below RLIMIT_NOFILE; a connection beyond is closed at once */
    CONN_BYTES = 16 * 1024, /* received data of one connection */
    DATAGRAM_BYTES = 64 * 1024,
    DATAGRAM_BURST = 64, /* datagrams served before the other descriptors get their turn */
    LINE_BYTES = 256,    /* longest command and longest answer */
    EVENTS = 64,
    DIRTY_PERIOD_MS = 10,
    DIRTY_DEFAULT_MIB = 8,
    DIRTY_RESERVE_MIB = 6,    /* left to the kernel and to httpd */
    DIRTY_MAX_RATE = 1000000, /* pages per second, beyond what emulation can do */
    SHUTDOWN_DELAY_MS = 100,  /* lets the answer leave first */
    RANDOM_SEED_BYTES = 64,
    BLOB_SEED_BYTES = MIB_BYTES,
    BLOB_ROTATION_BYTES = 4096,
    BLOB_MIB = 64,
    BLOB_MAX_MIB = 1024 * 1024,
    NUMBERS_MAX = 1024 * 1024, /* of one run */
    /* Of datagrams that wait while a busy host does not run this guest: what the kernel drops of
     * them looks as if it had been lost on its way. */
    DATAGRAMS_BYTES = 4 * 1024 * 1024,
    HTTP_REQUEST_BYTES = 4096,
    HTTP_REPLY_BYTES = 512,      /* header, and the page if there is one */
    HTTP_TURN_BYTES = MIB_BYTES, /* sent to one connection before the others get their turn */
};

typedef enum {
    FD_FREE,
    FD_TICK,
    FD_DIRTY,
    FD_SHUTDOWN,
    FD_ECHO_LISTEN,
    FD_ECHO_UDP,
    FD_ECHO_CONN,
    FD_COMMAND_LISTEN,
    FD_COMMAND_UDP,
    FD_COMMAND_CONN,
    FD_NUMBERED_UDP,
    FD_HTTP_LISTEN,
    FD_HTTP_CONN,
} FdRole;

typedef struct {
    uint32_t events; /* that epoll watches for */
    size_t start;    /* first byte of data not sent yet; echo only */
    size_t end;      /* behind the last byte of data */
    char data[CONN_BYTES];

    /* HTTP only */
    bool keep_alive;
    size_t reply_start;
    size_t reply_end;
    uint64_t body_at; /* position in the blob */
    uint64_t body_end;
    char reply[HTTP_REPLY_BYTES];
} Conn;

typedef struct {
    FdRole role;
    Conn *conn; /* connections only */
} FdSlot;

/* The account of a run of numbered datagrams. */
typedef struct {
    uint64_t run;
    uint64_t next; /* behind the highest number that came */
    uint64_t got;  /* different ones */
    uint64_t twice;
    uint64_t late;   /* after a higher one */
    uint64_t digest; /* of all that came, in their order */
    uint8_t seen[NUMBERS_MAX / 8];
} Numbered;

static struct {
    int epoll_fd;
    int seed_fd;
    const char *seed;
    FdSlot slots[MAX_FDS]; /* by descriptor */
    char datagram[DATAGRAM_BYTES];
    uint64_t ticks;
    int dirty_fd;
    int shutdown_fd;
    int shutdown_how; /* argument of reboot(2) */
    char *dirty_memory;
    size_t dirty_pages;
    size_t dirty_next;
    uint64_t dirty_rate;  /* pages per second */
    uint64_t dirty_carry; /* in pages times milliseconds per second */
    uint64_t dirty_total;
    Numbered numbered;
} agent;

static void
die(const char *what)
{
    printf("colod-guest: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

/* Deterministic data */

static uint64_t
splitmix64_at(uint64_t index)
{
    uint64_t z = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Makes the blob's seed, as a memory file and mapped. */
static void
make_seed(void)
{
    uint64_t *words;

    agent.seed_fd = memfd_create("blob-seed", MFD_CLOEXEC);
    if (agent.seed_fd < 0 || ftruncate(agent.seed_fd, BLOB_SEED_BYTES) < 0) {
        die("seed");
    }
    words = mmap(NULL, BLOB_SEED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, agent.seed_fd, 0);
    if (words == MAP_FAILED) {
        die("seed");
    }
    for (size_t i = 0; i < BLOB_SEED_BYTES / sizeof(uint64_t); i++) {
        words[i] = splitmix64_at(i);
    }
    agent.seed = (const char *)words;
}

/* Returns where in the seed byte AT of the blob is, and how many of the LEFT bytes follow it there.
 */
static size_t
find_in_seed(uint64_t at, uint64_t left, size_t *ret_run)
{
    const size_t offset = (at + at / MIB_BYTES * BLOB_ROTATION_BYTES) % BLOB_SEED_BYTES;
    const size_t to_seed_end = BLOB_SEED_BYTES - offset;
    const size_t to_mib_end = MIB_BYTES - at % MIB_BYTES;

    *ret_run = to_seed_end < to_mib_end ? to_seed_end : to_mib_end;
    if (*ret_run > left) {
        *ret_run = left;
    }
    return offset;
}

static int
write_blob(uint64_t mib)
{
    const uint64_t total = mib * MIB_BYTES;

    make_seed();
    for (uint64_t at = 0; at < total;) {
        size_t run;
        const size_t offset = find_in_seed(at, total - at, &run);
        const ssize_t n = write(STDOUT_FILENO, agent.seed + offset, run);

        if (n < 0) {
            perror("guest-agent: blob");
            return 1;
        }
        at += (uint64_t)n;
    }
    return 0;
}

/* Descriptors */

static int
watch(int fd, FdRole role, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (fd >= MAX_FDS) {
        errno = EMFILE;
        return -1;
    }
    if (epoll_ctl(agent.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        return -1;
    }
    agent.slots[fd].role = role;
    return 0;
}

/* Makes epoll report a connection when it can be written to, or else when it can be read from. */
static void
watch_conn(int fd, bool for_writing)
{
    Conn *conn = agent.slots[fd].conn;
    const uint32_t events = for_writing ? EPOLLOUT : EPOLLIN;
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (conn->events == events) {
        return;
    }
    if (epoll_ctl(agent.epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0) {
        die("epoll_ctl");
    }
    conn->events = events;
}

static void
close_conn(int fd)
{
    free(agent.slots[fd].conn);
    agent.slots[fd] = (FdSlot){.role = FD_FREE};
    close(fd);
}

static int
make_timer(FdRole role)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    if (fd < 0 || watch(fd, role, EPOLLIN) < 0) {
        die("timer");
    }
    return fd;
}

/* first_ms 0 stops the timer; period_ms 0 lets it run once. */
static void
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

static uint64_t
read_timer(int fd)
{
    uint64_t expirations;

    return read(fd, &expirations, sizeof(expirations)) == sizeof(expirations) ? expirations : 0;
}

/* One socket for both IPv4 and IPv6. */
static void
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

/* Memory dirtier */

static void
stop_dirtying(void)
{
    set_timer(agent.dirty_fd, 0, 0);
    if (agent.dirty_memory != NULL) {
        munmap(agent.dirty_memory, agent.dirty_pages * PAGE_BYTES);
    }
    agent.dirty_memory = NULL;
    agent.dirty_pages = 0;
    agent.dirty_next = 0;
    agent.dirty_carry = 0;
    agent.dirty_rate = 0;
}

/* Returns NULL, or why it cannot be done. */
static const char *
start_dirtying(uint64_t rate, uint64_t mib)
{
    struct sysinfo info;
    char *memory;

    if (rate > DIRTY_MAX_RATE) {
        return "the rate is above 1000000 pages per second";
    }
    stop_dirtying();
    if (rate == 0) {
        return NULL;
    }
    /* Running out of memory would kill this process and with it the guest. */
    if (sysinfo(&info) < 0 ||
        mib + DIRTY_RESERVE_MIB > (uint64_t)info.freeram * info.mem_unit / MIB_BYTES) {
        return "not so much memory is free";
    }
    memory =
        mmap(NULL, mib * MIB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return "out of memory";
    }
    agent.dirty_memory = memory;
    agent.dirty_pages = mib * MIB_BYTES / PAGE_BYTES;
    agent.dirty_rate = rate;
    set_timer(agent.dirty_fd, DIRTY_PERIOD_MS, DIRTY_PERIOD_MS);
    return NULL;
}

static void
dirty_some(void)
{
    uint64_t pages;

    agent.dirty_carry += read_timer(agent.dirty_fd) * DIRTY_PERIOD_MS * agent.dirty_rate;
    pages = agent.dirty_carry / 1000;
    agent.dirty_carry %= 1000;
    /* After a stall nothing is made up for: each page needs to be written once at most. */
    if (pages > agent.dirty_pages) {
        pages = agent.dirty_pages;
    }
    for (uint64_t i = 0; i < pages; i++) {
        agent.dirty_total++;
        memcpy(agent.dirty_memory + agent.dirty_next * PAGE_BYTES, &agent.dirty_total,
               sizeof(agent.dirty_total));
        agent.dirty_next = (agent.dirty_next + 1) % agent.dirty_pages;
    }
}

/* Numbered datagrams */

static bool
was_seen(uint64_t number)
{
    return agent.numbered.seen[number / 8] >> (number % 8) & 1;
}

static void
account_for(uint64_t run, uint64_t number)
{
    Numbered *n = &agent.numbered;
    const char *what;
    bool again;

    if (run != n->run) {
        memset(n, 0, sizeof(*n));
        n->run = run;
    }
    again = was_seen(number);
    what = again ? "twice" : number < n->next ? "late" : "missing before";
    n->digest = splitmix64_at(n->digest ^ number);
    n->seen[number / 8] |= (uint8_t)(1 << number % 8);
    n->got += !again;
    n->twice += again;
    n->late += !again && number < n->next;
    if (number != n->next) {
        printf("numbered: run %llu %s %llu, expected %llu\n", (unsigned long long)run, what,
               (unsigned long long)number, (unsigned long long)n->next);
    }
    if (number >= n->next) {
        n->next = number + 1;
    }
}

static int
print_account(char *text, size_t bytes)
{
    const Numbered *n = &agent.numbered;

    return snprintf(
        text, bytes, "run %llu next %llu got %llu missing %llu twice %llu late %llu digest %016llx",
        (unsigned long long)n->run, (unsigned long long)n->next, (unsigned long long)n->got,
        (unsigned long long)(n->next - n->got), (unsigned long long)n->twice,
        (unsigned long long)n->late, (unsigned long long)n->digest);
}

/* The first numbers at or after AT that did not come, to TEXT. */
static void
print_hole(uint64_t at, char *text, size_t bytes)
{
    const uint64_t next = agent.numbered.next;
    uint64_t first = at;
    uint64_t end;

    while (first < next && was_seen(first)) {
        first++;
    }
    for (end = first; end < next && !was_seen(end); end++) {
    }
    if (first < next) {
        snprintf(text, bytes, "ok %llu %llu", (unsigned long long)first, (unsigned long long)end);
    } else {
        snprintf(text, bytes, "ok none");
    }
}

/* Writes the answer to TEXT and returns its length. */
static int
serve_numbered(char *text, size_t bytes)
{
    unsigned long long run;
    unsigned long long number;
    char account[LINE_BYTES];

    if (sscanf(text, "%llu %llu", &run, &number) != 2 || number >= NUMBERS_MAX) {
        return snprintf(text, bytes, "error RUN NUMBER is wanted\n");
    }
    account_for(run, number);
    print_account(account, sizeof(account));
    return snprintf(text, bytes, "number %llu %s\n", number, account);
}

/* Commands */

static const char *
shut_down(int how)
{
    agent.shutdown_how = how;
    set_timer(agent.shutdown_fd, SHUTDOWN_DELAY_MS, 0);
    return NULL;
}

/* Obeys one line and writes one line, without a newline, to ANSWER of LINE_BYTES. */
static void
run_command(const char *line, char *answer)
{
    unsigned long long rate;
    unsigned long long mib = DIRTY_DEFAULT_MIB;
    unsigned long long number;
    const char *refusal = NULL;
    struct timespec now;

    if (sscanf(line, "dirty %llu %llu", &rate, &mib) >= 1) {
        refusal = mib < 1 || mib > 1024 ? "MIB must be 1 to 1024" : start_dirtying(rate, mib);
    } else if (strcmp(line, "status") == 0) {
        snprintf(answer, LINE_BYTES, "ok ticks %llu dirty %llu %zu pages %llu",
                 (unsigned long long)agent.ticks, (unsigned long long)agent.dirty_rate,
                 agent.dirty_pages * PAGE_BYTES / MIB_BYTES, (unsigned long long)agent.dirty_total);
        return;
    } else if (strcmp(line, "now") == 0) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        snprintf(answer, LINE_BYTES, "ok %lld%09ld", (long long)now.tv_sec, now.tv_nsec);
        return;
    } else if (strcmp(line, "numbered") == 0) {
        memcpy(answer, "ok ", 3);
        print_account(answer + 3, LINE_BYTES - 3);
        return;
    } else if (sscanf(line, "hole %llu", &number) == 1) {
        print_hole(number, answer, LINE_BYTES);
        return;
    } else if (strcmp(line, "reboot") == 0) {
        refusal = shut_down(RB_AUTOBOOT);
    } else if (strcmp(line, "poweroff") == 0) {
        refusal = shut_down(RB_POWER_OFF);
    } else {
        refusal =
            "commands are: dirty RATE [MIB], status, now, numbered, hole NUMBER, reboot, poweroff";
    }
    snprintf(answer, LINE_BYTES, refusal != NULL ? "error %s" : "ok", refusal);
}

/* Datagrams */

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

/* Connections */

static void
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
        agent.slots[fd].conn = calloc(1, sizeof(Conn));
        if (agent.slots[fd].conn == NULL) {
            close_conn(fd);
            continue;
        }
        agent.slots[fd].conn->events = EPOLLIN;
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
    Conn *conn = agent.slots[fd].conn;

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

static bool
send_answer(int fd, const char *answer)
{
    char line[LINE_BYTES + 1];
    const int n = snprintf(line, sizeof(line), "%s\n", answer);

    return send(fd, line, (size_t)n, MSG_NOSIGNAL) == n;
}

static void
serve_command_conn(int fd)
{
    Conn *conn = agent.slots[fd].conn;
    char answer[LINE_BYTES];
    char *newline;
    ssize_t n = recv(fd, conn->data + conn->end, LINE_BYTES - 1 - conn->end, 0);

    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) {
            close_conn(fd);
        }
        return;
    }
    conn->end += (size_t)n;
    conn->data[conn->end] = '\0';
    while ((newline = strchr(conn->data, '\n')) != NULL) {
        *newline = '\0';
        conn->data[strcspn(conn->data, "\r")] = '\0';
        run_command(conn->data, answer);
        if (!send_answer(fd, answer)) {
            close_conn(fd);
            return;
        }
        conn->end -= (size_t)(newline + 1 - conn->data);
        memmove(conn->data, newline + 1, conn->end + 1);
    }
    if (conn->end == LINE_BYTES - 1) {
        send_answer(fd, "error the line is too long");
        close_conn(fd);
    }
}

/* HTTP */

typedef enum {
    HTTP_DONE,
    HTTP_WAIT,
    HTTP_GONE,
} HttpResult;

static const char index_html[] = "<!DOCTYPE html>\n"
                                 "<title>colod guest</title>\n"
                                 "<p>This is the guest of the colod lab.</p>\n";

static void
reply_with(Conn *conn, const char *status, const char *type, uint64_t body_bytes, const char *text)
{
    const int n = snprintf(conn->reply, sizeof(conn->reply),
                           "HTTP/1.1 %s\r\n"
                           "Content-Type: %s\r\n"
                           "Content-Length: %llu\r\n"
                           "Connection: %s\r\n"
                           "\r\n%s",
                           status, type, (unsigned long long)body_bytes,
                           conn->keep_alive ? "keep-alive" : "close", text);

    conn->reply_start = 0;
    conn->reply_end = (size_t)n;
}

static void
reply_with_blob(Conn *conn, uint64_t mib)
{
    reply_with(conn, "200 OK", "application/octet-stream", mib * MIB_BYTES, "");
    conn->body_at = 0;
    conn->body_end = mib * MIB_BYTES;
}

/* HEAD is the request up to and with its empty line, as a string. */
static void
answer_request(Conn *conn, const char *head)
{
    char path[LINE_BYTES];
    unsigned long long mib;
    int minor;
    int length = 0;

    if (sscanf(head, "GET %255s HTTP/1.%d\r\n", path, &minor) != 2) {
        conn->keep_alive = false;
        reply_with(conn, "400 Bad Request", "text/plain", 0, "");
        return;
    }
    conn->keep_alive = minor >= 1 && strcasestr(head, "\r\nConnection: close\r\n") == NULL;
    if (strcmp(path, "/") == 0 || strcmp(path, "/index.html") == 0) {
        reply_with(conn, "200 OK", "text/html", sizeof(index_html) - 1, index_html);
    } else if (strcmp(path, "/blob") == 0) {
        reply_with_blob(conn, BLOB_MIB);
    } else if (strcmp(path, "/blob.small") == 0) {
        reply_with_blob(conn, 1);
    } else if (sscanf(path, "/blob/%llu%n", &mib, &length) == 1 && path[length] == '\0' &&
               mib <= BLOB_MAX_MIB) {
        reply_with_blob(conn, mib);
    } else {
        reply_with(conn, "404 Not Found", "text/plain", 0, "");
    }
}

/* Takes the next complete request out of the buffer and prepares its reply. */
static bool
take_request(Conn *conn)
{
    char *end;
    char saved;

    conn->data[conn->end] = '\0';
    end = strstr(conn->data, "\r\n\r\n");
    if (end == NULL) {
        return false;
    }
    end += strlen("\r\n\r\n");
    saved = *end;
    *end = '\0';
    answer_request(conn, conn->data);
    *end = saved;
    conn->end -= (size_t)(end - conn->data);
    memmove(conn->data, end, conn->end);
    return true;
}

static HttpResult
send_reply(int fd, Conn *conn)
{
    uint64_t turn_end = conn->body_at + HTTP_TURN_BYTES;

    while (conn->reply_start < conn->reply_end) {
        const int more = conn->body_at < conn->body_end ? MSG_MORE : 0;
        const ssize_t n = send(fd, conn->reply + conn->reply_start,
                               conn->reply_end - conn->reply_start, MSG_NOSIGNAL | more);

        if (n < 0) {
            return errno == EAGAIN ? HTTP_WAIT : HTTP_GONE;
        }
        conn->reply_start += (size_t)n;
    }
    if (turn_end > conn->body_end) {
        turn_end = conn->body_end;
    }
    while (conn->body_at < turn_end) {
        size_t run;
        off_t offset = (off_t)find_in_seed(conn->body_at, conn->body_end - conn->body_at, &run);
        const ssize_t n = sendfile(fd, agent.seed_fd, &offset, run);

        if (n < 0) {
            return errno == EAGAIN ? HTTP_WAIT : HTTP_GONE;
        }
        conn->body_at += (uint64_t)n;
    }
    return conn->body_at < conn->body_end ? HTTP_WAIT : HTTP_DONE;
}

/* Returns false if the connection is to be closed. */
static bool
receive_request(int fd, Conn *conn)
{
    const ssize_t n = recv(fd, conn->data + conn->end, HTTP_REQUEST_BYTES - conn->end, 0);

    if (n <= 0) {
        return n < 0 && errno == EAGAIN;
    }
    conn->end += (size_t)n;
    return true;
}

static void
serve_http_conn(int fd)
{
    Conn *conn = agent.slots[fd].conn;

    if (conn->events == EPOLLIN && !receive_request(fd, conn)) {
        close_conn(fd);
        return;
    }
    for (;;) {
        const HttpResult result = send_reply(fd, conn);

        if (result == HTTP_WAIT) {
            watch_conn(fd, true);
            return;
        }
        if (result == HTTP_GONE || (conn->reply_end > 0 && !conn->keep_alive)) {
            close_conn(fd);
            return;
        }
        if (!take_request(conn)) {
            break;
        }
    }
    if (conn->end == HTTP_REQUEST_BYTES) { /* longer than any request that is understood */
        close_conn(fd);
        return;
    }
    watch_conn(fd, false);
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
serve(int fd)
{
    switch (agent.slots[fd].role) {
    case FD_FREE: /* closed earlier in the same round */
        break;
    case FD_TICK:
        tick(fd);
        break;
    case FD_DIRTY:
        dirty_some();
        break;
    case FD_SHUTDOWN:
        reboot(agent.shutdown_how);
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
        serve_datagrams(fd, agent.slots[fd].role);
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
    struct epoll_event events[EVENTS];
    int tick_fd;

    setvbuf(stdout, NULL, _IOLBF, 0);
    make_seed();
    signal(SIGCHLD, SIG_IGN); /* process 1 inherits httpd's children; nobody waits for them */
    agent.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (agent.epoll_fd < 0) {
        die("epoll_create1");
    }
    tick_fd = make_timer(FD_TICK);
    agent.dirty_fd = make_timer(FD_DIRTY);
    agent.shutdown_fd = make_timer(FD_SHUTDOWN);
    open_port(SOCK_STREAM, ECHO_PORT, FD_ECHO_LISTEN);
    open_port(SOCK_DGRAM, ECHO_PORT, FD_ECHO_UDP);
    open_port(SOCK_STREAM, COMMAND_PORT, FD_COMMAND_LISTEN);
    open_port(SOCK_DGRAM, COMMAND_PORT, FD_COMMAND_UDP);
    open_port(SOCK_DGRAM, NUMBERED_PORT, FD_NUMBERED_UDP);
    open_port(SOCK_STREAM, HTTP_PORT, FD_HTTP_LISTEN);
    printf("colod-guest ready\n");
    set_timer(tick_fd, 1000, 1000);
    for (;;) {
        int n = epoll_wait(agent.epoll_fd, events, EVENTS, -1);

        for (int i = 0; i < n; i++) {
            serve(events[i].data.fd);
        }
    }
}

int
main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "blob") == 0) {
        return write_blob(strtoull(argv[2], NULL, 10));
    }
    if (argc == 2 && strcmp(argv[1], "index") == 0) {
        return fputs(index_html, stdout) < 0;
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
