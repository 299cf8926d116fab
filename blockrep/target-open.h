/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-open.h - a target made of its parts, or of files */
#pragma once

#include "commit-record.h"
#include "target.h"

#define TARGET_DEFAULT_LIMIT_BYTES (UINT64_C(1) << 30)

typedef struct TargetConfig {
    const char *disk;      /* raw file or block device */
    const char *metadata;  /* small file, need not exist */
    const char *directory; /* of overlays and commit record; NULL: overlays in memory */
    const char *map;       /* of changed blocks, made if missing; NULL: none is kept */
    uint64_t limit_bytes;  /* of each overlay; cut to whole blocks */
} TargetConfig;

/**
 * Opens all and takes up where the metadata says the last process was. What is damaged, of another
 * disk, or in use by another process is an error and nothing is changed.
 */
Target *target_open(const TargetConfig *config, GError **error);

/**
 * The same of parts that are open, all taken, also on failure. @record: the one that @meta names,
 * or NULL if it names none.
 */
Target *target_assemble(Store *disk, Store *hidden, Store *active, Journal *journal,
                        const DiskMeta *meta, const CommitRecord *record, GError **error);
