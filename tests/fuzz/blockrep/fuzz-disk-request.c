/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-disk-request.c - a line of a disk's control socket */
#include "control-request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_auto(DiskRequest) request = {0};
    g_autofree char *line = g_memdup2(data, size);
    g_autofree char *problem = disk_request_parse(line ? line : "", size, &request);

    if (!problem) {
        g_assert(request.command < DISK_COMMAND_COUNT);
        g_assert(request.timeout_ms >= 0 && request.timeout_ms <= DISK_TIMEOUT_MAX_MS);
        g_assert(request.command != DISK_FAILOVER || request.generation > 0);
    }
    return 0;
}
