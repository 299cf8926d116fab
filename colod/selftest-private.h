/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-private.h - what selftest.c and selftest-phases.c share: the test and its sides */
#pragma once

#include "selftest.h"

#include "qmp-client.h"
#include "selftest-cache.h"
#include "selftest-vm.h"

/* Deadlines of the phases. */
enum {
    /* Two QEMUs need 0.1 s each to answer, on a loaded host much more. */
    SELFTEST_START_MS = 5000,
    SELFTEST_GUEST_MS = 2000,
    SELFTEST_ENTER_MS = 4000, /* 32 MiB over a UNIX socket: 0.15 s */
    SELFTEST_CHECKPOINT_MS = 2000,
};

typedef enum SelftestPhase {
    SELFTEST_PHASE_START,
    SELFTEST_PHASE_GUEST,
    SELFTEST_PHASE_ENTER,
    SELFTEST_PHASE_CHECKPOINT,
    SELFTEST_PHASE_CLEANUP,
    SELFTEST_PHASE_DONE,
} SelftestPhase;

typedef struct SelftestSide {
    Selftest *test;
    const char *name; /* "primary", "secondary" */
    char *qmp_path;
    SelftestVm *vm;
    QmpClient *qmp;
    gboolean prepared;
} SelftestSide;

struct Selftest {
    SelftestFunc func;
    gpointer user_data;
    SelftestResult result;
    char *cache_file;
    SelftestBuild *build; /* taken before the start: a build replaced meanwhile is not remembered */
    SelftestDir *dir;
    char *migration_uri;
    SelftestSide primary, secondary;
    SelftestPhase phase;
    gint64 started_ns;
    GSource *deadline; /* of the phase */
    GSource *later;    /* the next poll, or the delivery */
    char *status;      /* of the migration, as seen last */
    gboolean running;  /* the primary, since the migration was started */
    gint64 stopped_ns; /* STOP of the checkpoint; 0: not yet */
    char *broken_text; /* a failure whose cause may still show itself */
};

gboolean selftest_uses_kvm(const Selftest *test);

/** Restarts the timer at @source; 0: as soon as the loop runs. */
void selftest_set_timer(GSource **source, unsigned timeout_ms, GSourceFunc func, Selftest *test);

/** Ends the test with @verdict and what is wrong, a sentence without its end; takes @what. */
void selftest_conclude(Selftest *test, SelftestVerdict verdict, char *what);

/** The checkpoint is over. */
void selftest_succeed(Selftest *test);

/** Takes @what, which is the verdict if nothing says more in the next moment. */
void selftest_break_soon(Selftest *test, char *what);

/** The deadline of the phase before no longer counts. */
void selftest_enter_phase(Selftest *test, SelftestPhase phase, unsigned deadline_ms);

/** A side's process has ended. */
void selftest_on_gone(SelftestVm *vm, gpointer user_data);

/* --- selftest-phases.c --- */

/** Starts a side's QEMU; the phases follow from what it says. */
gboolean selftest_side_start(SelftestSide *side, GError **error);
