/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-cache.h - which QEMU builds have passed the self-test
 *
 * A JSON file of at most SELFTEST_CACHE_MAX entries, replaced atomically. Only SELFTEST_OK is
 * remembered: what failed is tried again each time, since the cause may be mended elsewhere.
 *
 * A build is an executable (real path, inode, size, times of change) under an accelerator. Two
 * things are not in its stat data:
 *  - a script (#!) may run any other file: its result is good for SELFTEST_SCRIPT_TTL_S within the
 *    same boot of the host only;
 *  - KVM is the kernel's: its results are good within the same boot only.
 * A file that is damaged or of another version counts as empty.
 */
#pragma once

#include "selftest.h"

enum {
    SELFTEST_CACHE_MAX = 16,
    SELFTEST_SCRIPT_TTL_S = 600,
};

/* What identifies a build. */
typedef struct SelftestBuild SelftestBuild;

/** Looks at the executable @path now. NULL: it cannot be read; then nothing is cached. Caller frees
 * with selftest_build_free(). */
SelftestBuild *selftest_build_identify(const char *path, const char *accel);
void selftest_build_free(SelftestBuild *build);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SelftestBuild, selftest_build_free)

/** Fills version, package, text and figures of @result if @build passed before. FALSE: unknown;
 * @result is unchanged. */
gboolean selftest_cache_lookup(const char *file, const SelftestBuild *build,
                               SelftestResult *result);

/** Remembers @result, which is OK, for @build; the oldest entry goes when there are too many.
 * Return: FALSE with G_FILE_ERROR; the old file then stays. Not synced to disk: what a crash of the
 * host loses is tested again. */
gboolean selftest_cache_store(const char *file, const SelftestBuild *build,
                              const SelftestResult *result, GError **error);
