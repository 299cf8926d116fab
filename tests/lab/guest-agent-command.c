/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent-command.c - commands (port 9): one a line, one line of answer */
#include "guest-agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>

enum {
    DIRTY_DEFAULT_MIB = 8,
    SHUTDOWN_DELAY_MS = 100, /* lets the answer leave first */
};

static struct {
    int timer_fd;
    int how; /* argument of reboot(2) */
} shutdown_order;

void
open_shutdown(void)
{
    shutdown_order.timer_fd = make_timer(FD_SHUTDOWN);
}

void
obey_shutdown(void)
{
    reboot(shutdown_order.how);
}

static const char *
shut_down(int how)
{
    shutdown_order.how = how;
    set_timer(shutdown_order.timer_fd, SHUTDOWN_DELAY_MS, 0);
    return NULL;
}

void
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
        const int n = snprintf(answer, LINE_BYTES, "ok ticks %llu ", (unsigned long long)ticks());

        print_dirtying(answer + n, LINE_BYTES - (size_t)n);
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

static bool
send_answer(int fd, const char *answer)
{
    char line[LINE_BYTES + 1];
    const int n = snprintf(line, sizeof(line), "%s\n", answer);

    return send(fd, line, (size_t)n, MSG_NOSIGNAL) == n;
}

void
serve_command_conn(int fd)
{
    Conn *conn = conn_of(fd);
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
