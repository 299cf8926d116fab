/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* journal.h - where metadata and commit record are kept */
#pragma once

#include "disk-meta.h"

typedef struct Journal Journal;

typedef struct JournalOps {
    /* Both: all or nothing, and stable on return. Block. */
    gboolean (*save_meta)(Journal *journal, const DiskMeta *meta, GError **error);
    gboolean (*save_record)(Journal *journal, GBytes *record, GError **error);
    /* No metadata names it any more. A record that stays behind does no harm. */
    void (*drop_record)(Journal *journal);
    void (*free)(Journal *journal);
} JournalOps;

struct Journal {
    const JournalOps *ops;
};

static inline void
journal_free(Journal *journal)
{
    if (journal)
        journal->ops->free(journal);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Journal, journal_free)

/** In two files, each written beside, flushed, renamed, its folder flushed. */
Journal *journal_file_new(const char *meta_path, const char *record_path);
