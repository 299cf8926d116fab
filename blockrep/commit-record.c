/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* commit-record.c - which blocks are in which slots of both overlays, for a commit after a crash */
#include "commit-record.h"

#include "bytes.h"

#include <gio/gio.h>
#include <string.h>

#define MAGIC "colodcmt"

enum {
    VERSION = 1,
    MAGIC_BYTES = 8,
    HEADER_BYTES = MAGIC_BYTES + 4 + 4 + 8 + 4 + 4,
    SUM_BYTES = 32,
};

#define MAX_SLOTS ((uint32_t)(OVERLAY_MAX_LIMIT_BYTES / OVERLAY_BLOCK_BYTES))

static void
append_be32(GByteArray *bytes, uint32_t value)
{
    uint8_t be[4];

    be32_store(be, value);
    g_byte_array_append(bytes, be, sizeof(be));
}

static void
append_be64(GByteArray *bytes, uint64_t value)
{
    uint8_t be[8];

    be64_store(be, value);
    g_byte_array_append(bytes, be, sizeof(be));
}

static void
append_blocks(GByteArray *bytes, Overlay *overlay, uint32_t n)
{
    for (uint32_t slot = 0; slot < n; slot++)
        append_be64(bytes, overlay_block_of(overlay, slot));
}

static void
checksum(const uint8_t *data, gsize length, uint8_t ret_raw[SUM_BYTES], char *ret_hex)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    gsize raw_len = SUM_BYTES;

    for (gsize done = 0; done < length;) { /* its length is a signed one */
        gssize piece = (gssize)MIN(length - done, (gsize)1 << 30);

        g_checksum_update(sum, data + done, piece);
        done += (gsize)piece;
    }
    /* The string first: asking for either closes the sum, and it keeps both. */
    g_strlcpy(ret_hex, g_checksum_get_string(sum), DISK_META_SUM_HEX + 1);
    g_checksum_get_digest(sum, ret_raw, &raw_len);
}

GBytes *
commit_record_build(uint64_t disk_bytes, Overlay *hidden, Overlay *active,
                    char ret_sum[DISK_META_SUM_HEX + 1])
{
    GByteArray *bytes = g_byte_array_new();
    uint32_t n_hidden = overlay_slots(hidden), n_active = overlay_slots(active);
    uint8_t raw[SUM_BYTES];

    g_byte_array_append(bytes, (const uint8_t *)MAGIC, MAGIC_BYTES);
    append_be32(bytes, VERSION);
    append_be32(bytes, OVERLAY_BLOCK_BYTES);
    append_be64(bytes, disk_bytes);
    append_be32(bytes, n_hidden);
    append_be32(bytes, n_active);
    append_blocks(bytes, hidden, n_hidden);
    append_blocks(bytes, active, n_active);
    checksum(bytes->data, bytes->len, raw, ret_sum);
    g_byte_array_append(bytes, raw, SUM_BYTES);
    return g_byte_array_free_to_bytes(bytes);
}

void
commit_record_clear(CommitRecord *record)
{
    g_clear_pointer(&record->blocks, g_free);
}

static gboolean
damaged(const char *name, const char *what, GError **error)
{
    g_set_error(
        error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
        "%s: %s; without it the failover that was begun cannot be finished: if another host "
        "has the data, remove record and metadata and sync this disk anew",
        name, what);
    return FALSE;
}

static gboolean
parse_header(const char *name, View *view, uint64_t disk_bytes, CommitRecord *record,
             GError **error)
{
    const uint8_t *magic;
    uint32_t version, block_bytes;
    uint64_t size;

    if (!view_take(view, MAGIC_BYTES, &magic) || memcmp(magic, MAGIC, MAGIC_BYTES) != 0)
        return damaged(name, "is no commit record", error);
    if (!view_get_be32(view, &version) || version != VERSION ||
        !view_get_be32(view, &block_bytes) || block_bytes != OVERLAY_BLOCK_BYTES)
        return damaged(name, "is of a version this colod does not know", error);
    if (!view_get_be64(view, &size) || size != disk_bytes)
        return damaged(name, "belongs to a disk of another size", error);
    if (!view_get_be32(view, &record->n_hidden) || !view_get_be32(view, &record->n_active) ||
        record->n_hidden > MAX_SLOTS || record->n_active > MAX_SLOTS ||
        view->len != ((uint64_t)record->n_hidden + record->n_active) * 8)
        return damaged(name, "is damaged (its length)", error);
    return TRUE;
}

gboolean
commit_record_parse(const char *name, const uint8_t *data, gsize length, uint64_t disk_bytes,
                    CommitRecord *ret_record, GError **error)
{
    g_auto(CommitRecord) record = {0};
    uint64_t end = (disk_bytes + OVERLAY_BLOCK_BYTES - 1) / OVERLAY_BLOCK_BYTES;
    uint8_t raw[SUM_BYTES];

    if (length < HEADER_BYTES + SUM_BYTES)
        return damaged(name, "is damaged (its length)", error);

    View view = view_of(data, length - SUM_BYTES);

    checksum(data, view.len, raw, record.sum);
    if (memcmp(raw, data + view.len, SUM_BYTES) != 0)
        return damaged(name, "is damaged (the checksum does not fit)", error);
    if (!parse_header(name, &view, disk_bytes, &record, error))
        return FALSE;

    size_t n = (size_t)record.n_hidden + record.n_active;

    record.blocks = g_new(uint64_t, n);
    for (size_t i = 0; i < n; i++) {
        /* parse_header() has compared the length. */
        if (!view_get_be64(&view, &record.blocks[i]))
            g_assert_not_reached();
        if (record.blocks[i] >= end && record.blocks[i] != OVERLAY_NO_BLOCK)
            return damaged(name, "names a block outside the disk", error);
    }
    *ret_record = record;
    record.blocks = NULL;
    return TRUE;
}
