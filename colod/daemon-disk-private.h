/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-disk-private.h - what daemon-disk.c and daemon-disk-life.c share */
#pragma once

#include "daemon-private.h"
#include "disk.h"

enum { ANY_SERIAL = 0 };

typedef struct DiskSlot {
    Disk *disk;
    gboolean synced;    /* since the last connect */
    gboolean away;      /* QEMU reads it through the target, as after a failover */
    gboolean committed; /* it may move */
    gboolean moving;
} DiskSlot;

struct Disks {
    DiskSlot slots[CONFIG_MAX_DISKS];
    unsigned n;
    char *state_dir, *nbdkit, *plugin_dir;
    GQueue groups;          /* Group */
    GQueue verify_requests; /* ControlRequest */
    guint serial;
    char *unfit;   /* why the VM must not start from the disks here, or NULL */
    char *problem; /* the fault because of which the pair is not protected, or NULL */
    gboolean connected;
    gboolean wants_checkpoint; /* secondary: said with the next STATE */
    GSource *move_timer;

    /* RESUMING, TAKING_OVER */
    gboolean vm_left, disks_left;
    unsigned failover_tries;
    GSource *failover_timer;

    /* The gate's point: what is still to come of proxy and disks. */
    gboolean proxy_ready, disks_ready;
    gint64 began_ns; /* of a checkpoint; 0: it is another point */
};

extern const DiskHandlers daemon_disk_handlers;

/* Of Disks.groups. */
void daemon_disk_group_free(gpointer data);

#define EACH(d, disk_variable, ...)                                                                \
    do {                                                                                           \
        for (unsigned each_i = 0; each_i < (d)->disks->n; each_i++) {                              \
            Disk *disk_variable = (d)->disks->slots[each_i].disk;                                  \
                                                                                                   \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)
