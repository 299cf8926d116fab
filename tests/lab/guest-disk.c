/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-disk.c - what the lab's guest does with its disk, by order over TCP port 10
 *
 * Each connection has a process. One command a line, one answer a line, `ok ...` or `error REASON`:
 *
 *   put FILE N            appends record N to /disk/FILE (N is one more than it holds) and answers
 *                         when it is on the disk (fdatasync)
 *   check FILE            reads all records back: `ok COUNT`
 *   db MODE N             inserts row N into /disk/MODE.db in a transaction of its own, synchronous
 *                         FULL, journal mode MODE (wal or delete)
 *   db-check MODE         integrity check, and all rows: `ok COUNT`
 *   fill FILE KIB         writes so much of pseudo-random bytes, without a flush
 *   sync                  flushes everything
 *   unmount               the file system of /disk, for loads on the device
 *   load KIND BYTES THREADS MS SPAN_MIB SEED
 *                         requests of BYTES in the first SPAN_MIB of the device, which must not be
 *                         mounted: `ok COUNT US P50_US P99_US MAX_US` (guest-load.c). KIND:
 *                         randwrite, randsync (each flushed), write, randread, read
 *   blocks COUNT BYTES    writes so many from the front of the device on; answers before, so that
 *                         two guests say the same at the same time
 *   scatter COUNT BYTES   the same anywhere; answers when it is done
 *
 * A record tells its number and carries a checksum, so that one that is old, torn or at the wrong
 * place shows.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "guest-load.h"

enum {
    BUSY_MS = 10000,
    PORT = 10,
    LINE_BYTES = 256,
    NAME_BYTES = 32,
    RECORD_BYTES = 256,
    PIECE_BYTES = 64 * 1024
};

typedef struct Record {
    char head[24]; /* "record NUMBER\n", for a human reader */
    uint64_t number;
    uint8_t payload[RECORD_BYTES - 40];
    uint64_t sum;
} Record;

_Static_assert(sizeof(Record) == RECORD_BYTES, "no holes");

/* Of this connection. */
static struct {
    int fd; /* of the last file that was put to */
    char file[NAME_BYTES];
    uint64_t count;
    sqlite3 *db;
    char mode[NAME_BYTES];
} open_now = {.fd = -1};

static uint64_t
mix(uint64_t state)
{
    state += UINT64_C(0x9E3779B97F4A7C15);
    state = (state ^ (state >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    state = (state ^ (state >> 27)) * UINT64_C(0x94D049BB133111EB);
    return state ^ (state >> 31);
}

static void
make_record(uint64_t number, Record *record)
{
    const uint8_t *bytes = (const uint8_t *)record;
    uint64_t sum = UINT64_C(0xcbf29ce484222325);

    memset(record, 0, sizeof(*record));
    snprintf(record->head, sizeof(record->head), "record %llu\n", (unsigned long long)number);
    record->number = number;
    for (size_t i = 0; i < sizeof(record->payload); i++)
        record->payload[i] = (uint8_t)(mix(number * 31 + i / 8) >> (i % 8 * 8));
    for (size_t i = 0; i < offsetof(Record, sum); i++)
        sum = (sum ^ bytes[i]) * UINT64_C(0x100000001b3);
    record->sum = sum;
}

/* --- Files --- */

static const char *
open_file(const char *name)
{
    char path[NAME_BYTES + 16];
    struct stat status;

    if (open_now.fd >= 0 && strcmp(open_now.file, name) == 0)
        return NULL;
    if (open_now.fd >= 0)
        close(open_now.fd);
    snprintf(path, sizeof(path), "/disk/%s", name);
    open_now.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (open_now.fd < 0 || fstat(open_now.fd, &status) < 0)
        return strerror(errno);
    snprintf(open_now.file, sizeof(open_now.file), "%s", name);
    /* A torn record at the end, of a guest that died, is written over. */
    open_now.count = (uint64_t)status.st_size / RECORD_BYTES;
    return NULL;
}

static void
put(const char *name, uint64_t number, char *answer)
{
    const char *problem = open_file(name);
    Record record;

    if (!problem && number != open_now.count + 1) {
        snprintf(answer, LINE_BYTES, "error %s holds %llu records", name,
                 (unsigned long long)open_now.count);
        return;
    }
    make_record(number, &record);
    if (!problem && (pwrite(open_now.fd, &record, sizeof(record),
                            (off_t)((number - 1) * RECORD_BYTES)) != RECORD_BYTES ||
                     fdatasync(open_now.fd) < 0))
        problem = strerror(errno);
    if (problem) {
        snprintf(answer, LINE_BYTES, "error %s: %s", name, problem);
        return;
    }
    open_now.count = number;
    snprintf(answer, LINE_BYTES, "ok %llu", (unsigned long long)number);
}

static void
check(const char *name, char *answer)
{
    char path[NAME_BYTES + 16];
    uint64_t number = 0;
    Record have, want;
    ssize_t n = 0;
    int fd;

    snprintf(path, sizeof(path), "/disk/%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (n = read(fd, &have, sizeof(have))) == RECORD_BYTES) {
        make_record(++number, &want);
        if (memcmp(&have, &want, sizeof(have)) == 0)
            continue;
        snprintf(answer, LINE_BYTES, "error %s: record %llu is wrong (says %llu)", name,
                 (unsigned long long)number, (unsigned long long)have.number);
        close(fd);
        return;
    }
    if (fd < 0 || n < 0)
        snprintf(answer, LINE_BYTES, "error %s: %s", name, strerror(errno));
    else
        snprintf(answer, LINE_BYTES, "ok %llu", (unsigned long long)number);
    if (fd >= 0)
        close(fd);
}

static void
fill(const char *name, uint64_t kib, char *answer)
{
    static uint64_t words[PIECE_BYTES / 8], serial;
    char path[NAME_BYTES + 16];
    int fd;

    snprintf(path, sizeof(path), "/disk/%s", name);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    for (uint64_t done = 0; fd >= 0 && done < kib * 1024; done += PIECE_BYTES) {
        for (size_t i = 0; i < PIECE_BYTES / 8; i++)
            words[i] = mix(serial++);
        if (write(fd, words, PIECE_BYTES) != PIECE_BYTES) {
            snprintf(answer, LINE_BYTES, "error %s: %s", name, strerror(errno));
            close(fd);
            return;
        }
    }
    if (fd < 0) {
        snprintf(answer, LINE_BYTES, "error %s: %s", name, strerror(errno));
        return;
    }
    close(fd);
    snprintf(answer, LINE_BYTES, "ok %llu", (unsigned long long)kib);
}

static void
unmount(char *answer)
{
    if (umount("/disk") < 0)
        snprintf(answer, LINE_BYTES, "error /disk: %s", strerror(errno));
    else
        snprintf(answer, LINE_BYTES, "ok");
}

/* --- Data base --- */

static const char *
open_db(const char *mode)
{
    char path[NAME_BYTES + 16], pragma[96];

    if (open_now.db && strcmp(open_now.mode, mode) == 0)
        return NULL;
    if (open_now.db)
        sqlite3_close(open_now.db);
    open_now.db = NULL;
    snprintf(path, sizeof(path), "/disk/%s.db", mode);
    snprintf(pragma, sizeof(pragma), "PRAGMA journal_mode=%s; PRAGMA synchronous=FULL;", mode);
    if (sqlite3_open(path, &open_now.db) != SQLITE_OK ||
        sqlite3_busy_timeout(open_now.db, BUSY_MS) != SQLITE_OK ||
        sqlite3_exec(open_now.db, pragma, NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_exec(open_now.db,
                     "CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT);",
                     NULL, NULL, NULL) != SQLITE_OK)
        return sqlite3_errmsg(open_now.db);
    snprintf(open_now.mode, sizeof(open_now.mode), "%s", mode);
    return NULL;
}

static void
insert(const char *mode, uint64_t number, char *answer)
{
    const char *problem = open_db(mode);
    char sql[128];

    snprintf(sql, sizeof(sql), "INSERT INTO rows VALUES (%llu, 'row %llu %016llx');",
             (unsigned long long)number, (unsigned long long)number,
             (unsigned long long)mix(number));
    if (!problem && sqlite3_exec(open_now.db, sql, NULL, NULL, NULL) != SQLITE_OK)
        problem = sqlite3_errmsg(open_now.db);
    if (problem)
        snprintf(answer, LINE_BYTES, "error %s: %.200s", mode, problem);
    else
        snprintf(answer, LINE_BYTES, "ok %llu", (unsigned long long)number);
}

static int
keep_text(void *user_data, int n, char **values, char **names)
{
    (void)names;
    if (n > 0 && values[0])
        snprintf(user_data, LINE_BYTES, "%.200s", values[0]);
    return 0;
}

static int
check_row(void *user_data, int n, char **values, char **names)
{
    uint64_t *count = user_data;
    char want[64];

    (void)names;
    ++*count;
    snprintf(want, sizeof(want), "row %llu %016llx", (unsigned long long)*count,
             (unsigned long long)mix(*count));
    return n != 2 || !values[1] || strcmp(values[1], want) != 0;
}

static void
check_db(const char *mode, char *answer)
{
    const char *problem = open_db(mode);
    char verdict[LINE_BYTES] = "";
    uint64_t count = 0;

    if (!problem &&
        sqlite3_exec(open_now.db, "PRAGMA integrity_check;", keep_text, verdict, NULL) != SQLITE_OK)
        problem = sqlite3_errmsg(open_now.db);
    else if (!problem && strcmp(verdict, "ok") != 0)
        problem = verdict;
    else if (!problem && sqlite3_exec(open_now.db, "SELECT * FROM rows ORDER BY number;", check_row,
                                      &count, NULL) != SQLITE_OK)
        problem = sqlite3_errcode(open_now.db) == SQLITE_ABORT ? "a row is missing or wrong"
                                                               : sqlite3_errmsg(open_now.db);
    if (problem)
        snprintf(answer, LINE_BYTES, "error %s: %.100s (row %llu)", mode, problem,
                 (unsigned long long)count);
    else
        snprintf(answer, LINE_BYTES, "ok %llu", (unsigned long long)count);
}

/* --- Commands --- */

static void
run_command(const char *line, char *answer)
{
    char name[NAME_BYTES];
    unsigned long long number, bytes;

    if (sscanf(line, "put %31[a-z0-9] %llu", name, &number) == 2) {
        put(name, number, answer);
    } else if (sscanf(line, "check %31[a-z0-9]", name) == 1) {
        check(name, answer);
    } else if (sscanf(line, "db %31[a-z] %llu", name, &number) == 2) {
        insert(name, number, answer);
    } else if (sscanf(line, "db-check %31[a-z]", name) == 1) {
        check_db(name, answer);
    } else if (sscanf(line, "fill %31[a-z0-9] %llu", name, &number) == 2) {
        fill(name, number, answer);
    } else if (strcmp(line, "unmount") == 0) {
        unmount(answer);
    } else if (sscanf(line, "blocks %llu %llu", &number, &bytes) == 2) {
        if (fork() == 0) {
            guest_write_blocks(number, bytes, false, answer, LINE_BYTES - 1);
            _exit(0);
        }
        snprintf(answer, LINE_BYTES, "ok");
    } else if (sscanf(line, "scatter %llu %llu", &number, &bytes) == 2) {
        guest_write_blocks(number, bytes, true, answer, LINE_BYTES - 1);
    } else if (strncmp(line, "load ", 5) == 0) {
        guest_load(line + 5, answer, LINE_BYTES - 1);
    } else if (strcmp(line, "sync") == 0) {
        sync();
        snprintf(answer, LINE_BYTES, "ok");
    } else {
        snprintf(answer, LINE_BYTES, "error unknown command");
    }
}

static _Noreturn void
serve(int fd)
{
    FILE *in = fdopen(fd, "r");
    char line[LINE_BYTES], answer[LINE_BYTES];

    while (in && fgets(line, sizeof(line), in)) {
        size_t len;

        line[strcspn(line, "\r\n")] = '\0';
        run_command(line, answer);
        len = strlen(answer);
        answer[len] = '\n';
        if (send(fd, answer, len + 1, MSG_NOSIGNAL) < 0)
            break;
    }
    if (in && ferror(in))
        fprintf(stderr, "oracle: guest-disk cannot read an order: %m\n");
    _exit(0);
}

int
main(void)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
    int listen_fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    signal(SIGCHLD, SIG_IGN);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(listen_fd, 16) < 0) {
        perror("guest-disk");
        return 1;
    }
    for (;;) {
        int fd = accept(listen_fd, NULL, NULL);

        if (fd < 0)
            continue;
        if (fork() == 0) {
            close(listen_fd);
            serve(fd);
        }
        close(fd);
    }
}
