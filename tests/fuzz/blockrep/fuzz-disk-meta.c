/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-disk-meta.c - the metadata of a disk: bytes as they are, and with a checksum that fits */
#include "disk-meta.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
parse(const char *text, size_t length)
{
    g_autoptr(GError) error = NULL;
    DiskMeta meta;

    if (!disk_meta_parse("fuzz", text, length, &meta, &error)) {
        g_assert(error);
        return;
    }

    g_autofree char *again = disk_meta_format(&meta);

    if (strlen(again) != length || memcmp(again, text, length) != 0)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *copy = g_memdup2(data, size);
    g_autofree char *body = g_strndup((const char *)data, size);
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, body, -1);
    g_autofree char *text = g_strconcat(body, "sha256=", sum, "\n", NULL);

    parse(copy, size);
    parse(text, strlen(text));
    return 0;
}
