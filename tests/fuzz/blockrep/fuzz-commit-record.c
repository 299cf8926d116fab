/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-commit-record.c - a commit record and the overlay it fills, with a checksum that fits */
#include "commit-record.h"
#include "fake-store.h"

#include <string.h>

enum { DISK_BYTES = 1 << 20, LIMIT = 64 * OVERLAY_BLOCK_BYTES, SUM_BYTES = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
parse(const uint8_t *data, size_t length)
{
    g_auto(CommitRecord) record = {0};
    g_autoptr(GError) error = NULL;

    if (!commit_record_parse("fuzz", data, length, DISK_BYTES, &record, &error)) {
        g_assert(error);
        return;
    }

    g_autoptr(Overlay) overlay = overlay_new(fake_store_base(fake_store_new(LIMIT, true, NULL)));

    if (overlay_restore(overlay, record.n_hidden, record.blocks) < 0)
        return;
    for (uint32_t slot = 0; slot < record.n_hidden; slot++)
        g_assert(overlay_block_of(overlay, slot) == record.blocks[slot]);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_autofree uint8_t *whole = g_malloc0(size + SUM_BYTES);
    gsize sum_len = SUM_BYTES;

    if (size > 0)
        memcpy(whole, data, size);
    parse(whole, size);
    g_checksum_update(sum, whole, (gssize)size);
    g_checksum_get_digest(sum, whole + size, &sum_len);
    parse(whole, size + SUM_BYTES);
    return 0;
}
