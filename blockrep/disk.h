/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk.h - one disk of this host's VM, as the daemon sees it: its nbdkits, its nodes in QEMU
 *
 * The daemon says what the pair does; this knows which process and which node it takes. All calls
 * and callbacks: the thread whose main context was current at disk_new(). Nothing blocks. Each
 * operation ends within the deadline given to it; its callback comes once, never from within the
 * call, and not after disk_free().
 */
#pragma once

#include "qmp-client.h"

#include <glib.h>
#include <json-c/json.h>
#include <stdint.h>

typedef struct Disk Disk;

#define DISK_ERROR (disk_error_quark())
GQuark disk_error_quark(void);

typedef enum DiskError {
    DISK_ERROR_REFUSED, /* this disk must not be used so; the text says why and what to do */
    DISK_ERROR_PROCESS, /* nbdkit did not start, or is gone */
    DISK_ERROR_FAILED,  /* tried; the text begins with the name of the fault */
    DISK_ERROR_TIMEOUT,
    DISK_ERROR_QMP,
} DiskError;

/* Borrowed strings must outlive the disk. Paths are absolute. What is asked of
 * an image that is an export blocks for half a second at most, and only until it was answered. */
typedef struct DiskConfig {
    const char *name;            /* "disk0": names sockets, nodes, files */
    const char *image;           /* of the same size on both hosts: image.h */
    const char *device;          /* QEMU's device model: virtio-blk-pci, scsi-hd, ide-hd, nvme */
    const char *cache;           /* "none" or "writeback": of the local image in QEMU */
    const char *run_dir;         /* sockets */
    const char *state_dir;       /* metadata, map */
    const char *overlay_dir;     /* overlays, commit record; NULL: state_dir */
    gboolean overlays_in_memory; /* then a crash in a failover's commit loses the disk */
    const char *nbdkit;          /* the program */
    const char *plugin_dir;      /* of our plugins; NULL: nbdkit's own */
    const char *listen_address;  /* of the target, numeric */
    uint16_t listen_port;        /* the same on both hosts */
    const char *peer_host;       /* address, or name, by which the other host's certificate goes */
    const char *tls_ca, *tls_cert, *tls_key;
    uint64_t overlay_limit_bytes, window_limit_bytes;
    uint64_t sync_rate_bytes_s; /* 0: no limit */
    unsigned timeout_ms;        /* of each operation that takes no argument for it */
} DiskConfig;

/* None of these may free the disk; a DiskDoneFunc may. */
typedef struct DiskHandlers {
    /* What ends protection, once per fault: @name from docs/block.md, "Errors". */
    void (*fault)(Disk *disk, const char *name, const char *text, gpointer user_data);
    /* The copy has so little left that the guest may be migrated. Once per disk_connect(). */
    void (*synced)(Disk *disk, gpointer user_data);
    /* An overlay is at its high-water mark: a checkpoint is wanted. Once an epoch. */
    void (*high_water)(Disk *disk, gpointer user_data);
    /* The failover's commit is done: disk_move_local() may be called. */
    void (*committed)(Disk *disk, gpointer user_data);
} DiskHandlers;

/* @error NULL: done. */
typedef void (*DiskDoneFunc)(Disk *disk, const GError *error, gpointer user_data);

typedef enum DiskRole { DISK_PRIMARY, DISK_SECONDARY } DiskRole;

/** @config is copied, its strings and @handlers are borrowed. Starts nothing. */
Disk *disk_new(const DiskConfig *config, const DiskHandlers *handlers, gpointer user_data);
/** Stops watching; the processes go on (they outlive colod as QEMU does). NULL is fine. */
void disk_free(Disk *disk);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Disk, disk_free)

/* What the metadata on this host says, without any process: for elections and `status`. */
typedef struct DiskStanding {
    gboolean exists;     /* the image can be opened, and the metadata read */
    gboolean up_to_date; /* in `generation` no other disk has newer data */
    gboolean never_used; /* never replicated: may start on the host that is to be primary first */
    gboolean committing; /* a failover's commit has to be finished: the target does that */
    uint64_t generation;
    char *reason; /* why the VM must not start from it, or NULL; owned */
} DiskStanding;
/** Reads the metadata anew. The caller clears @ret_standing. */
void disk_standing(Disk *disk, DiskStanding *ret_standing);
void disk_standing_clear(DiskStanding *standing);

/**
 * Before QEMU starts. PRIMARY: the forwarder, mode alone, metadata of @generation. @first: also
 * from a disk that was never replicated. SECONDARY: the forwarder, idle, and the target, ready to
 * be synced by a primary of @generation. Left-over processes of an earlier life are ended first.
 */
void disk_start(Disk *disk, DiskRole role, uint64_t generation, gboolean first, DiskDoneFunc done,
                gpointer user_data);
/** Finds the processes of a VM that outlived colod. */
void disk_adopt(Disk *disk, DiskDoneFunc done, gpointer user_data);
/** QEMU is gone: ends both processes. A commit under way goes on at the next disk_start(). */
void disk_stop(Disk *disk, DiskDoneFunc done, gpointer user_data);

/** Adds QEMU's arguments of this disk. */
void disk_add_arguments(const Disk *disk, DiskRole role, GPtrArray *argv);

/* Primary. */
/** The peer's target waits. Done: its exports fit; the copy goes on until `synced`. */
void disk_connect(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data);
/**
 * Connected. QEMU is told to finish what is under way, and the forwarder when it has: then the
 * image has all that the guest was told before, and the copy need not wait some seconds for that.
 * If it fails, it does.
 */
void disk_settle(Disk *disk, QmpClient *qmp);
/** PVM stands at the end of the initial migration. Done: both disks are equal. */
void disk_finish(Disk *disk, DiskDoneFunc done, gpointer user_data);
/** PVM stands at checkpoint @epoch. Done: the target has every write PVM was acknowledged. */
void disk_barrier(Disk *disk, uint64_t epoch, DiskDoneFunc done, gpointer user_data);
/** Epoch is committed (0: the pair is armed). */
void disk_release(Disk *disk, uint64_t epoch);
/** Goes on without the peer, as @generation. The guest is never held up. */
void disk_alone(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data);
/** Compares with the other host's; the result is in disk_status(). */
void disk_verify(Disk *disk, DiskDoneFunc done, gpointer user_data);

/* Secondary. */
/** The copy is complete: the disk is that of @generation, and SVM may start. */
void disk_mirror(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data);
/** SVM stands at the commit point of @epoch. Done: it sees what the primary has mirrored. */
void disk_checkpoint(Disk *disk, uint64_t epoch, DiskDoneFunc done, gpointer user_data);
/** What SVM sees becomes the truth of @generation. Done: a crash cannot undo it. */
void disk_failover(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data);
/** After `committed`, the guest running or not: from NBD to the local image; the target ends, the
 * forwarder is alone as @generation. */
void disk_move_local(Disk *disk, QmpClient *qmp, uint64_t generation, DiskDoneFunc done,
                     gpointer user_data);

/** The newest known, half a second old at most: an object for `colo status`; the caller's. */
json_object *disk_status(const Disk *disk);
/** 0 to 100 while a copy runs, else -1. */
int disk_sync_percent(const Disk *disk);
const char *disk_name(const Disk *disk);
