/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest.h - proves within a second that a QEMU can do COLO, or says why it cannot */
#pragma once

#include <glib.h>

typedef enum SelftestVerdict {
    SELFTEST_OK,
    SELFTEST_NO_QEMU,          /* cannot be executed */
    SELFTEST_NO_CAPABILITY,    /* x-colo or return-path unknown or refused */
    SELFTEST_NEVER_ENTERS,     /* the migration completes instead of entering COLO */
    SELFTEST_CHECKPOINT_HANGS, /* the first checkpoint does not end */
    SELFTEST_KVM_UNUSABLE,     /* KVM asked for; QEMU refuses it or the guest never runs */
    SELFTEST_FAILED,           /* anything else, see the text */
} SelftestVerdict;

/** "ok", "no-qemu", "no-capability", "never-enters", … as in JSON. Any thread. */
const char *selftest_verdict_name(SelftestVerdict verdict);

typedef struct SelftestResult {
    SelftestVerdict verdict;
    char *qemu;             /* the executable, as it was found; never NULL */
    char *version;          /* "11.1.3"; NULL when QEMU did not get as far */
    char *package;          /* the distributor's, "" if none; NULL as above */
    char *accel;            /* never NULL */
    char *text;             /* OK: the figures. Else what is wrong, and in a second sentence what
                             * to do. One line of valid UTF-8; never NULL */
    unsigned checkpoint_us; /* STOP to RESUME of the one checkpoint; OK only */
    unsigned total_ms;
    gboolean return_path; /* this QEMU takes x-colo only with the capability return-path; for the
                           * others it must stay off */
    gboolean from_cache;  /* remembered; the two figures are those of then */
} SelftestResult;

/** @result: borrowed, valid until selftest_free(), which may be called from here. */
typedef void (*SelftestFunc)(const SelftestResult *result, gpointer user_data);

typedef struct Selftest Selftest;

/**
 * Starts a self-test of @qemu under the accelerator @accel.
 *
 * @qemu: path, or a name to be looked up in PATH; may be a script that execs. @accel: what follows
 * QEMU's -accel, "tcg" or "kvm". @cache_file: what passed is remembered there by build (see
 * selftest-cache.h); NULL: no cache. @func: called exactly once, from the thread-default main
 * context of this call and never from within it: after 0.3 s usually, 14 s at the most.
 * Return: never NULL; selftest_free() it, at any time.
 * Thread: one that lives as long as the test, because the QEMUs die with the thread that made them
 * (prctl(2), PR_SET_PDEATHSIG).
 */
Selftest *selftest_start(const char *qemu, const char *accel, const char *cache_file,
                         SelftestFunc func, gpointer user_data);

/** Ends the test and kills its QEMUs; no callback. They are reaped from the main loop. NULL: no-op.
 */
void selftest_free(Selftest *test);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Selftest, selftest_free)

/**
 * `colo selftest`: runs one, without cache, and prints the result to standard output.
 *
 * @qemu: NULL for qemu-system-x86_64 in PATH. @accel: NULL for tcg. @json: as a JSON object.
 * Return: exit code, 0 for SELFTEST_OK, 1 for anything else. Runs a main loop of its own; SIGINT
 * and SIGTERM end it, cleaning up.
 */
int selftest_cli(const char *qemu, const char *accel, gboolean json);
