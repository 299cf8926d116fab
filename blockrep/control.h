/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control.h - a disk's control socket (docs/PROTOCOL.md, "Disk control socket") */
#pragma once

#include "control-request.h"

typedef struct DiskControl DiskControl;

/* What a plugin does with requests: any of the control's threads, several at once. */
typedef struct DiskService {
    const DiskCommandSet *set;
    /* What is returned, the caller's; or NULL and @error. Blocks until @deadline_ns at most. */
    json_object *(*carry_out)(void *user_data, const DiskRequest *request, int64_t deadline_ns,
                              GError **error);
    /* "refused", "timeout" or "failed" */
    const char *(*error_class)(const GError *error);
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
