/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-commands.h - what each command of `colo` does */
#pragma once

#include <glib.h>

enum { COLO_EXIT_DONE = 0, COLO_EXIT_FAILED = 1, COLO_EXIT_USAGE = 2 };

typedef struct ColoOptions {
    const char *name;   /* -n; NULL: the only VM */
    const char *socket; /* --socket; NULL: from the name */
    gint64 timeout_ms;
    gboolean json, watch, follow, yes;
    guint64 after;
    const char *qemu, *accel; /* selftest; NULL: its defaults */
    const char *save;         /* explain; NULL: nothing is written */
} ColoOptions;

/* @args: the command's arguments, as many as the table in colo.c says. Return: exit code; a failure
 * has been reported on stderr. */
int colo_run_status(const ColoOptions *options, char **args);
int colo_run_events(const ColoOptions *options, char **args);
int colo_run_explain(const ColoOptions *options, char **args);
int colo_run_checkpoint(const ColoOptions *options, char **args);
int colo_run_verify(const ColoOptions *options, char **args);
int colo_run_failover(const ColoOptions *options, char **args);
int colo_run_protect(const ColoOptions *options, char **args);
int colo_run_unprotect(const ColoOptions *options, char **args);
int colo_run_stop_vm(const ColoOptions *options, char **args);
int colo_run_selftest(const ColoOptions *options, char **args);
int colo_run_test_stall(const ColoOptions *options, char **args);
int colo_run_test_corrupt(const ColoOptions *options, char **args);
int colo_run_test_lose(const ColoOptions *options, char **args);
