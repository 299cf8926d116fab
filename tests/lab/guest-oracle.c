/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-oracle.c - a memory pattern that tells whether it is intact, and HTTP bodies that say which
 * they are
 *
 * Theory of operation
 *
 * TCP port 12, commands, one a line, one line of answer, `ok ...` or `error REASON`:
 *
 *   start MIB RATE    makes a pattern of so many MiB (1 to 64) and rewrites RATE of its pages each
 *                     second, one after the other, until `stop` or another `start`; the mark is 0
 *   mark N            reads the whole pattern; if it is right and the mark is N - 1, the mark
 *                     becomes N: `ok N`
 *   check             reads the whole pattern: `ok mark N pages N`
 *   turn              `ok TURN NEXT`: how often it has been rewritten, and which page is next
 *   break PAGE        spoils one word of that page (for the test of the test)
 *   stop              frees it
 *
 * What a page holds follows from its number and its turn alone. The writer goes through the pages
 * in their order, so from (turn, next) every word of all pages is known: a page of another moment
 * shows as well as a wrong bit. Each page is also checked right before it is written over. Whoever
 * finds something wrong says so on the console at once, where it stays said when this replica's
 * memory is replaced by the other's.
 *
 * Two replicas write by their own clocks, so `turn` is answered differently: a divergence on
 * purpose. The other answers are the same on both if both are right.
 *
 * TCP port 81, HTTP with keep-alive: GET /body/NUMBER/BYTES gives so many bytes (up to 16 MiB),
 * which begin with "body NUMBER BYTES\n" and go on with the words of NUMBER. The header X-Sum has
 * FNV-1a (64 bits, by words) of them all.
 *
 * One process for the pattern; one for HTTP, and of that one for each connection.
 */
#define _GNU_SOURCE /* accept4 */

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    COMMAND_PORT = 12,
    HTTP_PORT = 81,
    LINE_BYTES = 256,
    HEAD_BYTES = 2048, /* of an HTTP request */
    MAX_CONNS = 8,
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    MIB_BYTES = 1024 * 1024,
    PATTERN_MAX_MIB = 64,
    RESERVE_MIB = 8, /* left to everybody else */
    MAX_RATE = 100000,
    PERIOD_MS = 10,
    BODY_MAX_BYTES = 16 * MIB_BYTES,
    PIECE_BYTES = 64 * 1024,
};

static struct {
    uint64_t *words;
    uint64_t pages;
    uint64_t turn; /* of the pages before next; those from next on have the turn before */
    uint64_t next;
    uint64_t rate;  /* pages per second */
    uint64_t carry; /* in pages times milliseconds per second */
    uint64_t mark;
    int timer_fd;
} pattern;

static uint64_t
mix(uint64_t state)
{
    state += UINT64_C(0x9E3779B97F4A7C15);
    state = (state ^ (state >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    state = (state ^ (state >> 27)) * UINT64_C(0x94D049BB133111EB);
    return state ^ (state >> 31);
}

/* The words of anything are BASE, BASE + STEP, ...: one addition each, which an emulated CPU can
 * afford. */
static const uint64_t STEP = UINT64_C(0xD1B54A32D192ED03);

/* --- Pattern --- */

static uint64_t
page_base(uint64_t page, uint64_t turn)
{
    return mix(mix(turn) ^ page);
}

static void
write_page(uint64_t page, uint64_t turn)
{
    uint64_t *words = pattern.words + page * PAGE_WORDS;
    uint64_t word = page_base(page, turn);

    for (size_t i = 0; i < PAGE_WORDS; i++, word += STEP)
        words[i] = word;
}

/* Also tells it on the console. */
static bool
page_is_right(uint64_t page)
{
    const uint64_t *words = pattern.words + page * PAGE_WORDS;
    const uint64_t turn = page < pattern.next ? pattern.turn : pattern.turn - 1;
    uint64_t word = page_base(page, turn);

    for (size_t i = 0; i < PAGE_WORDS; i++, word += STEP) {
        if (words[i] == word)
            continue;
        printf("oracle: page %llu of turn %llu is wrong at word %zu: %016llx, expected %016llx\n",
               (unsigned long long)page, (unsigned long long)turn, i, (unsigned long long)words[i],
               (unsigned long long)word);
        return false;
    }
    return true;
}

static uint64_t
count_wrong_pages(void)
{
    uint64_t wrong = 0;

    for (uint64_t page = 0; page < pattern.pages; page++)
        wrong += !page_is_right(page);
    return wrong;
}

static void
set_timer(bool on)
{
    const struct timespec period = {.tv_nsec = on ? PERIOD_MS * 1000000L : 0};
    const struct itimerspec when = {.it_value = period, .it_interval = period};

    timerfd_settime(pattern.timer_fd, 0, &when, NULL);
}

static void
stop_pattern(void)
{
    set_timer(false);
    if (pattern.words)
        munmap(pattern.words, pattern.pages * PAGE_BYTES);
    pattern.words = NULL;
    pattern.pages = pattern.next = pattern.turn = pattern.carry = pattern.mark = 0;
}

/* Returns NULL, or why it cannot be done. */
static const char *
start_pattern(uint64_t mib, uint64_t rate)
{
    struct sysinfo info;

    if (mib < 1 || mib > PATTERN_MAX_MIB || rate > MAX_RATE)
        return "MIB must be 1 to 64, RATE at most 100000";
    stop_pattern();
    if (sysinfo(&info) < 0 ||
        mib + RESERVE_MIB > (uint64_t)info.freeram * info.mem_unit / MIB_BYTES)
        return "not so much memory is free";
    pattern.words =
        mmap(NULL, mib * MIB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pattern.words == MAP_FAILED) {
        pattern.words = NULL;
        return strerror(errno);
    }
    pattern.pages = mib * MIB_BYTES / PAGE_BYTES;
    pattern.rate = rate;
    pattern.turn = 1;
    for (uint64_t page = 0; page < pattern.pages; page++)
        write_page(page, 0);
    set_timer(rate > 0);
    return NULL;
}

static void
rewrite_some(void)
{
    uint64_t expirations = 0, pages;

    if (read(pattern.timer_fd, &expirations, sizeof(expirations)) < 0)
        return;
    pattern.carry += expirations * PERIOD_MS * pattern.rate;
    pages = pattern.carry / 1000;
    pattern.carry %= 1000;
    /* After a stall nothing is made up for. */
    if (pages > pattern.pages)
        pages = pattern.pages;
    for (; pages > 0; pages--) {
        page_is_right(pattern.next);
        write_page(pattern.next, pattern.turn);
        if (++pattern.next == pattern.pages) {
            pattern.next = 0;
            pattern.turn++;
        }
    }
}

/* --- Commands --- */

/* new_mark: 0 if the mark is only told. */
static void
check_pattern(uint64_t new_mark, char *answer)
{
    uint64_t wrong;

    if (!pattern.words) {
        snprintf(answer, LINE_BYTES, "error there is no pattern");
        return;
    }
    wrong = count_wrong_pages();
    if (wrong) {
        snprintf(answer, LINE_BYTES, "error %llu of %llu pages are wrong",
                 (unsigned long long)wrong, (unsigned long long)pattern.pages);
    } else if (new_mark && new_mark != pattern.mark + 1) {
        snprintf(answer, LINE_BYTES, "error the mark is %llu", (unsigned long long)pattern.mark);
    } else if (new_mark) {
        pattern.mark = new_mark;
        snprintf(answer, LINE_BYTES, "ok %llu", (unsigned long long)new_mark);
    } else {
        snprintf(answer, LINE_BYTES, "ok mark %llu pages %llu", (unsigned long long)pattern.mark,
                 (unsigned long long)pattern.pages);
    }
}

static void
run_command(const char *line, char *answer)
{
    unsigned long long a, b;
    const char *refusal = NULL;

    if (sscanf(line, "start %llu %llu", &a, &b) == 2) {
        refusal = start_pattern(a, b);
    } else if (sscanf(line, "mark %llu", &a) == 1) {
        check_pattern(a, answer);
        return;
    } else if (strcmp(line, "check") == 0) {
        check_pattern(0, answer);
        return;
    } else if (strcmp(line, "turn") == 0) {
        snprintf(answer, LINE_BYTES, "ok %llu %llu", (unsigned long long)pattern.turn,
                 (unsigned long long)pattern.next);
        return;
    } else if (sscanf(line, "break %llu", &a) == 1) {
        if (a < pattern.pages)
            pattern.words[a * PAGE_WORDS + PAGE_WORDS / 2] ^= 1;
        else
            refusal = "there is no such page";
    } else if (strcmp(line, "stop") == 0) {
        stop_pattern();
    } else {
        refusal = "commands are: start MIB RATE, mark N, check, turn, break PAGE, stop";
    }
    snprintf(answer, LINE_BYTES, refusal ? "error %s" : "ok", refusal);
}

/* --- Sockets --- */

static int
open_port(uint16_t port)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0) {
        perror("guest-oracle");
        exit(1);
    }
    return fd;
}

typedef struct Conn {
    size_t used;
    char data[LINE_BYTES];
} Conn;

/* False if the connection is to be closed. */
static bool
serve_commands(int fd, Conn *conn)
{
    char answer[LINE_BYTES];
    char *newline;
    const ssize_t n = recv(fd, conn->data + conn->used, sizeof(conn->data) - 1 - conn->used, 0);

    if (n <= 0)
        return false;
    conn->used += (size_t)n;
    conn->data[conn->used] = '\0';
    while ((newline = strchr(conn->data, '\n')) != NULL) {
        size_t len;

        *newline = '\0';
        run_command(conn->data, answer);
        len = strlen(answer);
        answer[len++] = '\n';
        if (send(fd, answer, len, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)len)
            return false;
        conn->used -= (size_t)(newline + 1 - conn->data);
        memmove(conn->data, newline + 1, conn->used + 1);
    }
    return conn->used < sizeof(conn->data) - 1;
}

static void
accept_command_conn(int listen_fd, struct pollfd *fds, Conn *conns)
{
    const int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

    for (size_t i = 0; fd >= 0 && i < MAX_CONNS; i++) {
        if (fds[i].fd >= 0)
            continue;
        fds[i] = (struct pollfd){.fd = fd, .events = POLLIN};
        conns[i].used = 0;
        return;
    }
    if (fd >= 0)
        close(fd);
}

static _Noreturn void
run_pattern(void)
{
    struct pollfd fds[MAX_CONNS + 2];
    Conn conns[MAX_CONNS];
    const int listen_fd = open_port(COMMAND_PORT);

    pattern.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    for (size_t i = 0; i < MAX_CONNS; i++)
        fds[i].fd = -1;
    fds[MAX_CONNS] = (struct pollfd){.fd = listen_fd, .events = POLLIN};
    fds[MAX_CONNS + 1] = (struct pollfd){.fd = pattern.timer_fd, .events = POLLIN};
    for (;;) {
        if (poll(fds, MAX_CONNS + 2, -1) < 0)
            continue;
        if (fds[MAX_CONNS + 1].revents)
            rewrite_some();
        for (size_t i = 0; i < MAX_CONNS; i++) {
            if (fds[i].fd >= 0 && fds[i].revents && !serve_commands(fds[i].fd, &conns[i])) {
                close(fds[i].fd);
                fds[i].fd = -1;
            }
        }
        if (fds[MAX_CONNS].revents)
            accept_command_conn(listen_fd, fds, conns);
    }
}

/* --- HTTP --- */

static bool
send_all(int fd, const void *data, size_t size, int flags)
{
    const char *bytes = data;

    while (size > 0) {
        const ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL | flags);

        if (n < 0)
            return false;
        bytes += n;
        size -= (size_t)n;
    }
    return true;
}

/* The whole body, with its end filled up to a word. */
static void
make_body(uint64_t *body, uint64_t number, size_t bytes, uint64_t *ret_sum)
{
    char head[64];
    const size_t words = (bytes + 7) / 8;
    uint64_t word = mix(number);
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    size_t head_bytes;

    for (size_t i = 0; i < words; i++, word += STEP)
        body[i] = word;
    head_bytes =
        (size_t)snprintf(head, sizeof(head), "body %llu %zu\n", (unsigned long long)number, bytes);
    memcpy(body, head, head_bytes < bytes ? head_bytes : bytes);
    if (bytes % 8)
        memset((char *)body + bytes, 0, 8 - bytes % 8);
    for (size_t i = 0; i < words; i++)
        sum = (sum ^ body[i]) * UINT64_C(0x100000001b3);
    *ret_sum = sum;
}

static bool
answer_request(int fd, const char *head, uint64_t *body)
{
    unsigned long long number;
    size_t bytes;
    uint64_t sum;
    char reply[256];
    int n;

    if (sscanf(head, "GET /body/%llu/%zu HTTP/1.1\r\n", &number, &bytes) != 2 ||
        bytes > BODY_MAX_BYTES) {
        static const char refusal[] =
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

        send_all(fd, refusal, sizeof(refusal) - 1, 0);
        return false;
    }
    make_body(body, number, bytes, &sum);
    n = snprintf(
        reply, sizeof(reply),
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %zu\r\n"
        "X-Sum: %016llx\r\n\r\n",
        bytes, (unsigned long long)sum);
    return send_all(fd, reply, (size_t)n, MSG_MORE) && send_all(fd, body, bytes, 0);
}

/* Of one connection. */
static _Noreturn void
serve_http(int fd)
{
    char head[HEAD_BYTES];
    size_t used = 0;
    uint64_t *body = mmap(NULL, BODY_MAX_BYTES + 8, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    while (body != MAP_FAILED && used < sizeof(head) - 1) {
        const ssize_t n = recv(fd, head + used, sizeof(head) - 1 - used, 0);
        char *end;

        if (n <= 0)
            break;
        used += (size_t)n;
        head[used] = '\0';
        while ((end = strstr(head, "\r\n\r\n")) != NULL) {
            *end = '\0';
            end += 4;
            if (!answer_request(fd, head, body))
                _exit(0);
            used -= (size_t)(end - head);
            memmove(head, end, used + 1);
        }
    }
    _exit(0);
}

static _Noreturn void
run_http(void)
{
    const int listen_fd = open_port(HTTP_PORT);

    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        const int fd = accept(listen_fd, NULL, NULL);

        if (fd < 0)
            continue;
        if (fork() == 0) {
            close(listen_fd);
            serve_http(fd);
        }
        close(fd);
    }
}

int
main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (fork() == 0)
        run_http();
    run_pattern();
}
