/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-disk-rig.h - a daemon of which only the disks are real
 *
 * The state machine is the real one: an event steps it, as in daemon.c, and of the actions those
 * that are the disks' are done. Timers do not run: the test fires them.
 */
#pragma once

#include "daemon-disk-private.h"
#include "fake-disk.h"

#include <check.h>

enum { RIG_GENERATION = 4, RIG_EPOCH = 7 };

typedef struct Rig {
    Daemon daemon; /* first: the daemon's functions find the rig by it */
    Config config;
    GString *told;  /* "EVENT > STATE ACTION ...", "started", ...; taken by rig_take_told() */
    GSource *timer; /* the only one that is armed, or NULL */
    unsigned timer_ms;
    GSourceFunc timer_func;
    unsigned n_finish_shut_down;
} Rig;

/* The point at which the gate stands, and where it was let go on. */
struct Gate {
    GatePoint at;
    gboolean stands;
    unsigned n_passed;
};

struct ControlRequest {
    gboolean returned;
    char *error_class, *error_text;
};

struct Vm {
    int unused;
};

/** A daemon with @n_disks in @state, generation RIG_GENERATION. */
Rig *rig_new(unsigned n_disks, PairState state);
void rig_free(Rig *rig);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Rig, rig_free)

/** Puts it into another state, as a step does. */
void rig_enter(Rig *rig, PairState state);
Disk *rig_disk(Rig *rig, unsigned i);
/** Ends the oldest operation of each disk, the first one's with @problem (NULL: done). */
void rig_end_all(Rig *rig, const char *problem);
char *rig_take_told(Rig *rig);
/** Texts of the warnings since the start, one a line. */
char *rig_warnings(Rig *rig);
void rig_fire_timer(Rig *rig, unsigned expected_ms);

/* All that was asked, and told, since the last time. */
#define ASSERT_ASKED(expected)                                                                     \
    do {                                                                                           \
        g_autofree char *all_asked = fake_disk_take_asked();                                       \
        ck_assert_str_eq(all_asked, expected);                                                     \
    } while (0)

#define ASSERT_TOLD(rig, expected)                                                                 \
    do {                                                                                           \
        g_autofree char *all_told = rig_take_told(rig);                                            \
        ck_assert_str_eq(all_told, expected);                                                      \
    } while (0)

/* All warnings since the start. */
#define ASSERT_WARNED(rig, expected)                                                               \
    do {                                                                                           \
        g_autofree char *all_warnings = rig_warnings(rig);                                         \
        ck_assert_str_eq(all_warnings, expected);                                                  \
    } while (0)
