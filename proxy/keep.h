/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* keep.h - what the rewriters know, kept in files for the daemon that adopts the VM. Control
 * thread, while the proxy thread does not run, but for what says otherwise. */
#pragma once

#include "lockstep.h"

/** Makes both rewriters of @lockstep, with their files if @config says where; @adopted: with what
 * the daemon before has left, which makes this VM one that took over. Return: 0 or a negative
 * errno; a file that cannot be made or loaded is only told of, in @lockstep->kept. */
int keep_init(Lockstep *lockstep, const ProxyConfig *config, const RewriterConfig *rewriter,
              bool adopted);
void keep_clear(Lockstep *lockstep);
/** The VM was started. The proxy thread may run. */
void keep_set_vm(Lockstep *lockstep, const ProxyVm *vm);
