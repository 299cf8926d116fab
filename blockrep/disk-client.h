/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-client.h - asynchronous client of a plugin's control socket (docs/PROTOCOL.md)
 *
 * Thread: the one whose main context was current at disk_client_new(). Nothing blocks; no callback
 * comes from within a call, and none after disk_client_free(). A callback may free the client.
 */
#pragma once

#include <glib.h>
#include <json-c/json.h>
#include <sys/types.h>

typedef struct DiskClient DiskClient;

typedef struct DiskClientHandlers {
    /* A new status; the first one says that the plugin serves. @status: borrowed. */
    void (*status)(DiskClient *client, json_object *status, gpointer user_data);
    /* It does not answer, or not as it should: the client is of no use any more. Once; after it
     * all open replies fail with @reason (DISK_ERROR). */
    void (*closed)(DiskClient *client, const GError *reason, gpointer user_data);
} DiskClientHandlers;

/** @value: what was returned, borrowed; NULL with an @error (DISK_ERROR). At most once. */
typedef void (*DiskReplyFunc)(json_object *value, const GError *error, gpointer user_data);

/**
 * Connects to @path, again and again until somebody listens or @connect_ms is over; then watches
 * the status. @silence_ms: how long the plugin may be without an answer before it counts as hung.
 * @handlers: must outlive the client.
 */
DiskClient *disk_client_new(const char *path, unsigned connect_ms, unsigned silence_ms,
                            const DiskClientHandlers *handlers, gpointer user_data);
/** Open replies are forgotten. NULL is fine. */
void disk_client_free(DiskClient *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DiskClient, disk_client_free)

typedef enum DiskUrgency {
    DISK_IN_TURN, /* after those before it have been answered */
    DISK_AT_ONCE, /* does not wait for them: what ends or replaces them */
} DiskUrgency;

/**
 * Sends a command. @arguments: taken; NULL: none. @timeout_ms: the plugin is told, and must
 * answer by then. @func: NULL if nobody cares. @destroy: of @user_data, after @func or when the
 * client is freed first; may be NULL.
 */
void disk_client_send(DiskClient *client, const char *command, json_object *arguments,
                      DiskUrgency urgency, unsigned timeout_ms, DiskReplyFunc func,
                      gpointer user_data, GDestroyNotify destroy);

/** The process that listens (SO_PEERCRED); 0 before the first status. */
pid_t disk_client_pid(const DiskClient *client);

/** Of the socket; owned by the client. */
const char *disk_client_path(const DiskClient *client);
