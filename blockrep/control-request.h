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

typedef enum DiskCommand {
    DISK_STATUS,
    DISK_SYNC,
    DISK_MIRROR,
    DISK_CHECKPOINT,
    DISK_BARRIER,
    DISK_FAILOVER,
    DISK_COMMAND_COUNT,
} DiskCommand;

typedef struct DiskRequest {
    json_object *id; /* owned; NULL is JSON's null */
    DiskCommand command;
    uint64_t generation, epoch;
    uint64_t after; /* status: wait for a change from this one; 0: answer at once */
    bool durable;   /* barrier: on the medium too; failover: answer when it cannot be undone */
    int64_t timeout_ms;
} DiskRequest;

/**
 * Reads a line without its newline.
 *
 * Return: NULL, or what is wrong, newly allocated. @ret_request is valid either way (`id` as soon
 * as it is known) and must be cleared.
 */
char *disk_request_parse(const char *text, gsize length, DiskRequest *ret_request);
void disk_request_clear(DiskRequest *request);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DiskRequest, disk_request_clear)
