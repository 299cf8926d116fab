/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-disk.h - disks without processes: they note what is asked, and end when the test says so
 *
 * Instead of blockrep/disk.c, at link time. As there, no callback comes from within a call.
 */
#pragma once

#include "disk.h"

typedef struct FakeDisk {
    const char *target_mode; /* what the target's status says; NULL: there is no target */
    int sync_percent;
    DiskStanding standing; /* `reason`: borrowed */
} FakeDisk;

/** What @disk is to say; everything zero but sync_percent, -1, and standing.exists, up_to_date. */
FakeDisk *fake_disk(Disk *disk);
/** What was asked of all disks since the last call, in its order: "disk0 barrier 7, ...". */
char *fake_disk_take_asked(void);
/** Ends the oldest open operation of @disk. @problem NULL: done. */
void fake_disk_end(Disk *disk, const char *problem);
/** Operations of @disk that were asked for and not ended. */
unsigned fake_disk_n_open(const Disk *disk);

/* What a disk reports. */
void fake_disk_fault(Disk *disk, const char *name, const char *text);
void fake_disk_synced(Disk *disk);
void fake_disk_high_water(Disk *disk);
void fake_disk_committed(Disk *disk);
