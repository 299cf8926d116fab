/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control.h - a disk's control socket (docs/PROTOCOL.md, "Disk control socket") */
#pragma once

#include "control-request.h"

typedef struct DiskControl DiskControl;

/* Commands of every plugin: its set begins with them. */
enum {
    DISK_COMMAND_STATUS,
    DISK_COMMAND_QUIT,
};

/* What a plugin does with requests: any of the control's threads, several at once. @user_data: its
 * own. What waits does so until @deadline_ns at most. */
typedef struct DiskService {
    const DiskCommandSet *set;
    json_object *(*status)(void *user_data);
    /* Until the status is another than @after. */
    void (*wait_change)(void *user_data, uint64_t after, int64_t deadline_ns);
    /* Ends the process, soon. */
    void (*quit)(void);
    /* One of its own commands; FALSE: @error. */
    gboolean (*order)(void *user_data, const DiskRequest *request, int64_t deadline_ns,
                      GError **error);
    GQuark (*error_domain)(void);
    int refused, timeout; /* codes in it; all others are "failed" */
} DiskService;

/**
 * Listens on @path (mode 0600) with threads of its own. @user_data must outlive it. At most 8
 * clients; one that does not read for 2 s is dropped.
 */
DiskControl *disk_control_new(const char *path, const DiskService *service, void *user_data,
                              GError **error);
/** After what ends the requests that wait. Removes the socket. */
void disk_control_free(DiskControl *control);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DiskControl, disk_control_free)
