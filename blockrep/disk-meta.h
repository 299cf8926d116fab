/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-meta.h - what a host must remember of a replicated disk over a crash */
#pragma once

#include <glib.h>
#include <stdint.h>

typedef enum DiskState {
    DISK_INCONSISTENT, /* a mirror's disk (behind the primary's), or of unknown origin */
    DISK_SYNCING,      /* being overwritten by the primary's */
    DISK_UPTODATE,     /* in `generation` no other disk has newer data */
    DISK_STATE_COUNT,
} DiskState;

const char *disk_state_name(DiskState state); /* "Inconsistent", "Syncing", "UpToDate" */

enum { DISK_META_SUM_HEX = 64 }; /* SHA-256 */

/* A value type: no pointers, copied by assignment. */
typedef struct DiskMeta {
    uint64_t size_bytes;
    uint64_t generation; /* newest generation that wrote this disk; 0: never replicated */
    DiskState state;
    uint64_t epoch;                     /* the overlays' when they were last begun or frozen */
    char commit[DISK_META_SUM_HEX + 1]; /* checksum of the commit record that is to be carried out
                                         * before anything else; empty: none */
} DiskMeta;

/** Generation 0, Inconsistent. */
void disk_meta_init(DiskMeta *meta, uint64_t size_bytes);

/**
 * Reads the text of a metadata file. @name: for messages. Anything that disk_meta_format() would
 * not write is an error: checksum, version, a line that is missing, out of order or malformed.
 */
gboolean disk_meta_parse(const char *name, const char *text, gsize length, DiskMeta *ret_meta,
                         GError **error);
char *disk_meta_format(const DiskMeta *meta);

/** A missing file gives disk_meta_init(). A damaged one, or one of a disk of another size, is an
 * error with the remedy. */
gboolean disk_meta_load(const char *path, uint64_t size_bytes, DiskMeta *ret_meta, GError **error);
