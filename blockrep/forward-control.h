/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-control.h - the forwarder's commands on its control socket */
#pragma once

#include "control.h"
#include "forward.h"

extern const DiskCommandSet forward_commands;

/** @forward must outlive it; free it after forward_stop(), which ends what clients wait for. */
DiskControl *forward_control_new(const char *path, Forward *forward, GError **error);
