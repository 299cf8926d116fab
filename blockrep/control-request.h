/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-request.h - one line of a disk's control socket (docs/PROTOCOL.md, "Disk control socket")
 */
#pragma once

#include <glib.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    DISK_LINE_MAX_BYTES = 4096,
    DISK_TIMEOUT_DEFAULT_MS = 5000,
    DISK_TIMEOUT_MAX_MS = 600 * 1000,
};

/* What a command may be given. `timeout_ms` is every command's. */
typedef enum DiskArgument {
    DISK_ARG_GENERATION = 1 << 0,
    DISK_ARG_EPOCH = 1 << 1,
    DISK_ARG_AFTER = 1 << 2,
    DISK_ARG_DURABLE = 1 << 3,
    DISK_ARG_UNTIL = 1 << 4,
    DISK_ARG_TIMEOUT = 1 << 5,
    DISK_ARG_FIRST = 1 << 6,
    DISK_ARG_HOST = 1 << 7,
    DISK_ARG_PORT = 1 << 8,
    DISK_ARG_RATE_LIMIT = 1 << 9,
} DiskArgument;

/* Of one plugin; both parts are of DiskArgument. */
typedef struct DiskCommand {
    const char *name;
    unsigned required, optional;
} DiskCommand;

typedef struct DiskCommandSet {
    const DiskCommand *commands;
    unsigned n;
} DiskCommandSet;

typedef struct DiskRequest {
    json_object *id;  /* owned; NULL is JSON's null */
    unsigned command; /* index in the set */
    uint64_t generation, epoch;
    uint64_t after; /* status: wait for a change from this one; 0: answer at once */
    bool begun;     /* failover: answer when SVM's view is what counts */
    bool durable;   /* barrier: on the medium too; failover: answer when it cannot be undone */
    bool first;     /* alone: the disk was never replicated, and this host is to be primary */
    char *host;     /* connect; owned */
    uint16_t port;
    uint64_t rate_limit; /* connect: bytes/s, 0: none */
    int64_t timeout_ms;
} DiskRequest;

/**
 * Reads a line without its newline: a command of @set.
 *
 * Return: NULL, or what is wrong, newly allocated. @ret_request is valid either way (`id` as soon
 * as it is known) and must be cleared.
 */
char *disk_request_parse(const DiskCommandSet *set, const char *text, gsize length,
                         DiskRequest *ret_request);
void disk_request_clear(DiskRequest *request);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DiskRequest, disk_request_clear)
