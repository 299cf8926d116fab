/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* check-folder.h - for Check binaries whose cases share a temporary folder */
#pragma once

#include <glib.h>
#include <glib/gstdio.h>
#include <stdlib.h>

/** @folder: a template, as of g_mkdtemp(). @run_all: runs the cases. Then @files (up to NULL) of
 * the folder and the folder are removed. Returns what main() returns. */
static inline int
check_run_in_folder(char *folder, const char *const *files, int (*run_all)(void))
{
    int status;

    if (!g_mkdtemp(folder))
        return EXIT_FAILURE;
    status = run_all();
    for (; *files; files++) {
        g_autofree char *path = g_build_filename(folder, *files, NULL);

        (void)g_unlink(path);
    }
    (void)g_rmdir(folder);
    return status;
}
