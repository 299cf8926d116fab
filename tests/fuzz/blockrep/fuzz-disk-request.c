/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-disk-request.c - a line of a disk's control socket */
#include "control-request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* All arguments there are. */
static const DiskCommand commands[] = {
    {"status", 0, DISK_ARG_AFTER},
    {"mirror", DISK_ARG_GENERATION | DISK_ARG_EPOCH, 0},
    {"barrier", 0, DISK_ARG_DURABLE},
    {"failover", DISK_ARG_GENERATION, DISK_ARG_UNTIL},
    {"alone", DISK_ARG_GENERATION, DISK_ARG_FIRST},
    {"connect", DISK_ARG_GENERATION | DISK_ARG_HOST, DISK_ARG_PORT | DISK_ARG_RATE_LIMIT},
};
static const DiskCommandSet set = {.commands = commands, .n = G_N_ELEMENTS(commands)};

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_auto(DiskRequest) request = {0};
    g_autofree char *line = g_memdup2(data, size);
    g_autofree char *problem = disk_request_parse(&set, line ? line : "", size, &request);

    if (!problem) {
        g_assert(request.command < set.n);
        g_assert(request.timeout_ms >= 0 && request.timeout_ms <= DISK_TIMEOUT_MAX_MS);
        g_assert(!(commands[request.command].required & DISK_ARG_GENERATION) ||
                 request.generation > 0);
        g_assert(!(commands[request.command].required & DISK_ARG_HOST) || request.host[0]);
    }
    return 0;
}
