/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fault.c - names of faults */
#include "fault.h"

#include <assert.h>
#include <glib.h>

static const char *const names[] = {
    [FAULT_NONE] = "none",
    [FAULT_REFUSED] = "refused",
    [FAULT_STALE] = "stale",
    [FAULT_HIDDEN_COPY] = "hidden-copy",
    [FAULT_HIDDEN_FULL] = "hidden-full",
    [FAULT_SECONDARY_DISK] = "secondary-disk",
    [FAULT_ACTIVE_DISK] = "active-disk",
    [FAULT_ACTIVE_FULL] = "active-full",
    [FAULT_EMPTYING] = "emptying",
    [FAULT_FAILOVER_COMMIT] = "failover-commit",
    [FAULT_METADATA] = "metadata",
    [FAULT_FORWARDING] = "forwarding",
    [FAULT_PRIMARY_DISK] = "primary-disk",
};
static_assert(G_N_ELEMENTS(names) == FAULT_COUNT, "a name for each fault");

const char *
fault_name(Fault fault)
{
    g_assert((unsigned)fault < FAULT_COUNT);
    return names[fault];
}
