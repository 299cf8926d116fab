/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-meta.c - what a host must remember of a replicated disk over a crash
 *
 * Lines of key=value in a fixed order, the first names format and version, the last is the SHA-256
 * of everything before it. There is one way to write each state, so reading is strict: to write
 * what was read must give the same text.
 */
#include "disk-meta.h"

#include <assert.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#define META_MAGIC "colod-disk "
#define META_VERSION "1"
#define CHECKSUM_KEY "sha256="
#define NO_COMMIT "-"

enum { FILE_MAX_BYTES = 4096 }; /* the longest is some 350 bytes */

static const char *const state_names[] = {
    [DISK_INCONSISTENT] = "Inconsistent",
    [DISK_SYNCING] = "Syncing",
    [DISK_UPTODATE] = "UpToDate",
};
static_assert(G_N_ELEMENTS(state_names) == DISK_STATE_COUNT, "a name for each state");

const char *
disk_state_name(DiskState state)
{
    g_assert((unsigned)state < DISK_STATE_COUNT);
    return state_names[state];
}

void
disk_meta_init(DiskMeta *meta, uint64_t size_bytes)
{
    *meta = (DiskMeta){.size_bytes = size_bytes, .state = DISK_INCONSISTENT};
}

char *
disk_meta_format(const DiskMeta *meta)
{
    g_autofree char *body =
        g_strdup_printf(META_MAGIC META_VERSION "\n"
                                                "size=%" PRIu64 "\n"
                                                "generation=%" PRIu64 "\n"
                                                "state=%s\n"
                                                "epoch=%" PRIu64 "\n"
                                                "commit=%s\n",
                        meta->size_bytes, meta->generation, disk_state_name(meta->state),
                        meta->epoch, meta->commit[0] ? meta->commit : NO_COMMIT);
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, body, -1);

    return g_strconcat(body, CHECKSUM_KEY, sum, "\n", NULL);
}

/* --- Reading --- */

/* Takes the next line off *@cursor if it reads @key=...; the value, or NULL. */
static const char *
take_value(char **cursor, const char *key)
{
    char *end = strchr(*cursor, '\n');
    size_t key_len = strlen(key);

    if (!end || strncmp(*cursor, key, key_len) != 0 || (*cursor)[key_len] != '=')
        return NULL;

    char *value = *cursor + key_len + 1;

    *end = '\0';
    *cursor = end + 1;
    return value;
}

static bool
take_number(char **cursor, const char *key, uint64_t *ret_value)
{
    const char *text = take_value(cursor, key);
    guint64 value;

    if (!text || !g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT64, &value, NULL))
        return false;
    *ret_value = value;
    return true;
}

static bool
take_state(char **cursor, DiskState *ret_state)
{
    const char *text = take_value(cursor, "state");

    for (unsigned i = 0; text && i < DISK_STATE_COUNT; i++) {
        if (g_str_equal(text, state_names[i])) {
            *ret_state = (DiskState)i;
            return true;
        }
    }
    return false;
}

static bool
take_commit(char **cursor, DiskMeta *meta)
{
    const char *text = take_value(cursor, "commit");

    if (!text)
        return false;
    if (g_str_equal(text, NO_COMMIT))
        return true;
    if (strlen(text) != DISK_META_SUM_HEX || strspn(text, "0123456789abcdef") != DISK_META_SUM_HEX)
        return false;
    memcpy(meta->commit, text, DISK_META_SUM_HEX);
    return true;
}

/* A commit leads to UpToDate; before that the disk is a mixture. */
static bool
is_possible(const DiskMeta *meta)
{
    return meta->size_bytes > 0 && (meta->commit[0] == '\0' || meta->state == DISK_INCONSISTENT) &&
           (meta->state != DISK_UPTODATE || meta->generation > 0);
}

static gboolean
refuse(const char *name, GIOErrorEnum code, const char *what, GError **error)
{
    g_set_error(
        error, G_IO_ERROR, code,
        "%s: %s; what the disk is worth is not guessed: if another host has the data, remove "
        "the file and sync this disk anew",
        name, what);
    return FALSE;
}

gboolean
disk_meta_parse(const char *name, const char *text, gsize length, DiskMeta *ret_meta,
                GError **error)
{
    static const char first[] = META_MAGIC META_VERSION "\n";
    const size_t sum_len = strlen(CHECKSUM_KEY) + DISK_META_SUM_HEX + 1;
    DiskMeta meta = {0};

    if (length < strlen(META_MAGIC) || memcmp(text, META_MAGIC, strlen(META_MAGIC)) != 0 ||
        memchr(text, '\0', length))
        return refuse(name, G_IO_ERROR_INVALID_DATA, "is no metadata of a disk", error);
    if (length > FILE_MAX_BYTES || length < sum_len)
        return refuse(name, G_IO_ERROR_INVALID_DATA, "is damaged (its length)", error);

    g_autofree char *body = g_strndup(text, length - sum_len);
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, body, -1);
    g_autofree char *last = g_strconcat(CHECKSUM_KEY, sum, "\n", NULL);

    if (memcmp(text + length - sum_len, last, sum_len) != 0)
        return refuse(name, G_IO_ERROR_INVALID_DATA, "is damaged (the checksum does not fit)",
                      error);
    if (!g_str_has_prefix(body, first))
        return refuse(name, G_IO_ERROR_NOT_SUPPORTED, "is of a version this colod does not know",
                      error);

    char *cursor = body + strlen(first);

    if (!take_number(&cursor, "size", &meta.size_bytes) ||
        !take_number(&cursor, "generation", &meta.generation) ||
        !take_state(&cursor, &meta.state) || !take_number(&cursor, "epoch", &meta.epoch) ||
        !take_commit(&cursor, &meta) || *cursor != '\0' || !is_possible(&meta))
        return refuse(name, G_IO_ERROR_INVALID_DATA, "is damaged (a line is missing or malformed)",
                      error);

    g_autofree char *again = disk_meta_format(&meta); /* leading zeros and the like */

    if (strlen(again) != length || memcmp(again, text, length) != 0)
        return refuse(name, G_IO_ERROR_INVALID_DATA, "is damaged (written otherwise)", error);
    *ret_meta = meta;
    return TRUE;
}

gboolean
disk_meta_load(const char *path, uint64_t size_bytes, DiskMeta *ret_meta, GError **error)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) local = NULL;
    gsize length;
    DiskMeta meta;

    if (!g_file_get_contents(path, &text, &length, &local)) {
        if (g_error_matches(local, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
            disk_meta_init(ret_meta, size_bytes);
            return TRUE;
        }
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    if (!disk_meta_parse(path, text, length, &meta, error))
        return FALSE;
    if (meta.size_bytes != size_bytes) {
        g_autofree char *what =
            g_strdup_printf("belongs to a disk of %" PRIu64 " bytes, and this one has %" PRIu64,
                            meta.size_bytes, size_bytes);

        return refuse(path, G_IO_ERROR_INVALID_DATA, what, error);
    }
    *ret_meta = meta;
    return TRUE;
}
