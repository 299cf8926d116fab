/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-journal.c - metadata and commit record in memory, with the power of fake-store.h */
#include "fake-journal.h"

#include <gio/gio.h>

/* Renaming is all or nothing: who loses power in it finds the old file or the new one. */
static gboolean
may_save(FakeJournal *journal, int *fail, gboolean *ret_reported, GError **error)
{
    gboolean fails = *fail > 0 && (*fail)--;
    PowerState power = fails ? POWER_OFF : fake_power_change(journal->power);

    *ret_reported = power == POWER_ON;
    if (*ret_reported)
        return TRUE;
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "the journal failed");
    return power == POWER_FAILS && g_rand_boolean(journal->power->rand);
}

static gboolean
fake_save_meta(Journal *base, const DiskMeta *meta, GError **error)
{
    FakeJournal *journal = (FakeJournal *)base;
    gboolean reported;

    if (may_save(journal, &journal->fail_meta, &reported, error))
        journal->meta = *meta;
    return reported;
}

static gboolean
fake_save_record(Journal *base, GBytes *record, GError **error)
{
    FakeJournal *journal = (FakeJournal *)base;
    gboolean reported;

    if (may_save(journal, &journal->fail_record, &reported, error)) {
        g_clear_pointer(&journal->record, g_bytes_unref);
        journal->record = g_bytes_ref(record);
    }
    return reported;
}

static void
fake_drop_record(Journal *base)
{
    FakeJournal *journal = (FakeJournal *)base;

    if (fake_power_change(journal->power) == POWER_ON)
        g_clear_pointer(&journal->record, g_bytes_unref);
}

static void
fake_free(Journal *base)
{
    g_clear_pointer(&((FakeJournal *)base)->record, g_bytes_unref);
    g_free(base);
}

static const JournalOps fake_ops = {
    .save_meta = fake_save_meta,
    .save_record = fake_save_record,
    .drop_record = fake_drop_record,
    .free = fake_free,
};

FakeJournal *
fake_journal_new(const DiskMeta *meta, FakePower *power)
{
    FakeJournal *journal = g_new0(FakeJournal, 1);

    journal->base.ops = &fake_ops;
    journal->power = power;
    journal->meta = *meta;
    return journal;
}

FakeJournal *
fake_journal_after_crash(const FakeJournal *journal, FakePower *power)
{
    FakeJournal *after = fake_journal_new(&journal->meta, power);

    after->record = journal->record ? g_bytes_ref(journal->record) : NULL;
    return after;
}
