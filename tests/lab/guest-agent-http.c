/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-agent-http.c - HTTP (port 80): GET, without any header that tells the time */
#define _GNU_SOURCE /* strcasestr */

#include "guest-agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

enum {
    BLOB_MIB = 64,
    BLOB_MAX_MIB = 1024 * 1024,
    HTTP_REQUEST_BYTES = 4096,
    HTTP_TURN_BYTES = MIB_BYTES, /* sent to one connection before the others get their turn */
};

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
        const ssize_t n = sendfile(fd, seed_file(), &offset, run);

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

void
serve_http_conn(int fd)
{
    Conn *conn = conn_of(fd);

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

int
write_index(void)
{
    return fputs(index_html, stdout) < 0;
}
