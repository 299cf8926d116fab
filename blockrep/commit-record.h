/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* commit-record.h - which blocks are in which slots of both overlays, for a commit after a crash */
#pragma once

#include "disk-meta.h"
#include "overlay.h"

/*
 * Big endian: "colodcmt", be32 version 1, be32 block bytes, be64 disk bytes, be32 slots of hidden,
 * be32 slots of active, then a be64 block number for each slot of hidden and of active (all ones:
 * free), then the SHA-256 of everything before.
 */

/** @ret_sum: its checksum in hex, which the metadata is to name. */
GBytes *commit_record_build(uint64_t disk_bytes, Overlay *hidden, Overlay *active,
                            char ret_sum[DISK_META_SUM_HEX + 1]);

typedef struct CommitRecord {
    uint64_t *blocks; /* owned: n_hidden, then n_active */
    uint32_t n_hidden, n_active;
    char sum[DISK_META_SUM_HEX + 1];
} CommitRecord;

void commit_record_clear(CommitRecord *record);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CommitRecord, commit_record_clear)

/**
 * Reads a record. @name: for messages. Error: damaged, another version, a disk of another size, a
 * block outside the disk. That no block is there twice is for overlay_restore() to find.
 */
gboolean commit_record_parse(const char *name, const uint8_t *data, gsize length,
                             uint64_t disk_bytes, CommitRecord *ret_record, GError **error);
