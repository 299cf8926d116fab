/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-control.h - the target's commands on its control socket */
#pragma once

#include "control.h"
#include "target.h"

extern const DiskCommandSet target_commands;

/** @target must outlive it; free it after target_stop(), which ends what clients wait for. */
DiskControl *target_control_new(const char *path, Target *target, GError **error);
