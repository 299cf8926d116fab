/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent.h - what the files of the guest's agent share
 *
 * One process, one thread: each file keeps its own state, and all are called from the loop.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MIB_BYTES = 1024 * 1024,
    CONN_BYTES = 16 * 1024, /* received data of one connection */
    LINE_BYTES = 256,       /* longest command and longest answer */
    HTTP_REPLY_BYTES = 512, /* header, and the page if there is one */
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

/* guest-agent.c */
_Noreturn void die(const char *what);
/* Seconds since the start, as the console has said them. */
uint64_t ticks(void);

/* guest-agent-blob.c */
uint64_t splitmix64_at(uint64_t index);
/* Makes the blob's seed, as a memory file and mapped. */
void make_seed(void);
int seed_file(void);
/* Returns where in the seed byte AT of the blob is, and how many of the LEFT bytes follow it there.
 */
size_t find_in_seed(uint64_t at, uint64_t left, size_t *ret_run);
/* To standard output; the exit status. */
int write_blob(uint64_t mib);

/* guest-agent-fd.c */
void open_epoll(void);
/* Calls SERVE for each descriptor that is ready, for ever. */
_Noreturn void serve_all(void (*serve)(int fd, FdRole role));
Conn *conn_of(int fd);
/* Makes epoll report a connection when it can be written to, or else when it can be read from. */
void watch_conn(int fd, bool for_writing);
void close_conn(int fd);
int make_timer(FdRole role);
/* first_ms 0 stops the timer; period_ms 0 lets it run once. */
void set_timer(int fd, long first_ms, long period_ms);
/* How often it has expired since. */
uint64_t read_timer(int fd);
/* One socket for both IPv4 and IPv6. */
void open_port(int type, uint16_t port, FdRole role);
void accept_all(int listen_fd, FdRole role);

/* guest-agent-dirty.c */
void open_dirtier(void);
/* Returns NULL, or why it cannot be done. */
const char *start_dirtying(uint64_t rate, uint64_t mib);
void dirty_some(void);
int print_dirtying(char *text, size_t bytes);

/* guest-agent-numbered.c */
int print_account(char *text, size_t bytes);
/* The first numbers at or after AT that did not come, to TEXT. */
void print_hole(uint64_t at, char *text, size_t bytes);
/* Writes the answer to TEXT and returns its length. */
int serve_numbered(char *text, size_t bytes);

/* guest-agent-command.c */
void open_shutdown(void);
void obey_shutdown(void);
/* Obeys one line and writes one line, without a newline, to ANSWER of LINE_BYTES. */
void run_command(const char *line, char *answer);
void serve_command_conn(int fd);

/* guest-agent-http.c */
void serve_http_conn(int fd);
/* To standard output; the exit status. */
int write_index(void);
