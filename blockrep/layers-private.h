/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers-private.h - what layers.c and layers-io.c share */
#pragma once

#include "layers.h"
#include "range-lock.h"

#include <pthread.h>
#include <stdatomic.h>

#define BLOCK UINT64_C(4096)
G_STATIC_ASSERT(BLOCK == OVERLAY_BLOCK_BYTES);

enum {
    FIND_BLOCKS = 256, /* looked up at once: 1 MiB; two arrays of it are on the stack */
    COPY_BLOCKS = 16,  /* copied at once: 64 KiB, a buffer on the stack */
};

/* What ended mirroring. In one piece: both are read while others write. */
typedef struct Stale {
    int16_t fault; /* Fault */
    int16_t error; /* a negative errno */
} Stale;

struct Layers {
    Store *disk;
    Overlay *hidden;
    Overlay *active;
    RangeLock *lock;
    DirtyMap *map;   /* or NULL */
    atomic_int mode; /* set under a hold on everything; TargetMode */
    _Atomic Stale stale;
    atomic_bool high_told;
    pthread_rwlock_t flush_lock; /* a survivor's flushes of the disk; its guest's share it */
    atomic_int unasked_error;    /* a negative errno of one that was not its guest's */
    void (*notify)(void *user_data);
    void *user_data;
    _Atomic uint64_t requests[2];
    _Atomic uint64_t saved_bytes;
    _Atomic uint64_t skipped_trims;
    _Atomic uint64_t faults[FAULT_COUNT];
};

/*
 * The layers themselves, each called with a hold on the range's blocks. @buf NULL: zeros.
 * io_read_view() and io_extent() need a shared hold, the others an exclusive one.
 */
int io_read_view(Layers *layers, void *buf, uint64_t len, uint64_t offset, Fault *ret_fault);
int io_extent(Layers *layers, uint64_t offset, uint64_t len, uint64_t *ret_len, bool *ret_hole);
int io_save_old(Layers *layers, uint64_t len, uint64_t offset, Fault *ret_fault);
int io_write_active(Layers *layers, const void *buf, uint64_t len, uint64_t offset,
                    Fault *ret_fault);
int io_write_through(Layers *layers, const void *buf, uint64_t len, uint64_t offset, bool unmap,
                     Fault *ret_fault);
int io_write_disk(Layers *layers, const void *buf, uint64_t len, uint64_t offset, bool unmap);
