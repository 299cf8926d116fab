/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-journal.h - metadata and commit record in memory, with the power of fake-store.h */
#pragma once

#include "fake-store.h"
#include "journal.h"

typedef struct FakeJournal {
    Journal base;
    FakePower *power; /* NULL: always on */
    DiskMeta meta;    /* on the medium */
    GBytes *record;   /* owned; NULL: none */
    int fail_meta;    /* this many saves of metadata fail */
    int fail_record;
} FakeJournal;

FakeJournal *fake_journal_new(const DiskMeta *meta, FakePower *power);
/** What is on the medium after a crash. */
FakeJournal *fake_journal_after_crash(const FakeJournal *journal, FakePower *power);
