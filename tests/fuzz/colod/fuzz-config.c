/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-config.c - a configuration: loaded, or refused with file and line */
#include "config-keys.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Config) config = config_parse("web1", "f", (const char *)data, size, &error);

    g_assert((config == NULL) == (error != NULL));
    if (config) {
        g_assert(config->n_nics <= CONFIG_MAX_NICS && config->extra_args && config->host);
        g_assert(config->n_disks <= CONFIG_MAX_DISKS && config->disk_host);
        g_assert(config->heartbeat_limit_ms >= 3 * config->heartbeat_ms);
    } else {
        g_assert(g_str_has_prefix(error->message, "f:"));
        g_assert(g_utf8_validate(error->message, -1, NULL) && !strchr(error->message, '\033'));
    }
    return 0;
}
