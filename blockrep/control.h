/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control.h - a disk's control socket (docs/PROTOCOL.md, "Disk control socket") */
#pragma once

#include "target.h"

typedef struct DiskControl DiskControl;

/**
 * Listens on @path (mode 0600) with threads of its own. @target must outlive it. At most 8 clients;
 * one that does not read for 2 s is dropped.
 */
DiskControl *disk_control_new(const char *path, Target *target, GError **error);
/** After target_stop(), which ends what clients wait for. Removes the socket. */
void disk_control_free(DiskControl *control);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DiskControl, disk_control_free)
