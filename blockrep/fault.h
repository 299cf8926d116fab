/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fault.h - what can go wrong with a mirrored disk, by the names the state machine knows */
#pragma once

typedef enum Fault {
    FAULT_NONE,
    FAULT_REFUSED,         /* this mode does not take such requests */
    FAULT_STALE,           /* an earlier mirrored write failed: no later one may be applied */
    FAULT_HIDDEN_COPY,     /* the old block could not be saved */
    FAULT_HIDDEN_FULL,     /* no room for the old block */
    FAULT_SECONDARY_DISK,  /* a mirrored write, flush or read of the disk failed */
    FAULT_ACTIVE_DISK,     /* an access of the secondary's guest failed; the guest is told */
    FAULT_ACTIVE_FULL,     /* no room for a write of the secondary's guest; the guest is told */
    FAULT_EMPTYING,        /* the overlays could not be emptied in time */
    FAULT_FAILOVER_COMMIT, /* the overlays could not be written into the disk */
    FAULT_METADATA,        /* the metadata could not be saved */
    FAULT_FORWARDING,      /* the connection to the peer has ended, or it did not answer */
    FAULT_PRIMARY_DISK,    /* what the peer lacks cannot be read */
    FAULT_COUNT,
} Fault;

/** "none", "refused", "stale", "hidden-copy", ... */
const char *fault_name(Fault fault);
