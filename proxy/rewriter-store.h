/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-store.h - a rewriter's connections in a file, for the next daemon of the same VM */
#pragma once

#include <stdint.h>

#include "rewriter.h"

/*
 * RewriterStore: the file that is written. Theory of operation: rewriter-store.c; the format:
 * docs/PROTOCOL.md; it is read by rewriter-load.h. One store for one rewriter, which it outlives.
 * Used by the rewriter's thread, but for what says otherwise.
 */
typedef struct RewriterStore RewriterStore;

/* The life of a VM that a file belongs to. */
typedef struct RewriterVm {
    char boot_id[40]; /* of the host, as /proc/sys/kernel/random/boot_id has it; ends with NUL */
    uint64_t pid;     /* of QEMU; 0: of no VM, and never loaded */
    uint64_t start_ticks; /* field 22 of /proc/PID/stat */
} RewriterVm;

enum {
    REWRITER_STORE_VERSION = 1,
    REWRITER_STORE_HEADER_BYTES = 4096,
    REWRITER_SLOT_BYTES = 192,
    /* Places in the header. */
    REWRITER_STORE_AT_VERSION = 8,
    REWRITER_STORE_AT_SLOT_BYTES = 12,
    REWRITER_STORE_AT_SLOTS_MAX = 16,
    REWRITER_STORE_AT_GENERATION = 20,
    REWRITER_STORE_AT_BOOT_ID = 24,
    REWRITER_STORE_AT_START_TICKS = 64,
    REWRITER_STORE_AT_PID = 72,
    /* Behind a slot's two records: generation (32 bits), check (30), which record counts (2). */
    REWRITER_SLOT_AT_WORD = 184,
};
#define REWRITER_STORE_MAGIC "colo-rwr"

/** The check of a record in a slot. */
uint32_t rewriter_slot_check(const uint8_t *record);

/** Makes a file beside @path, as @path.new; rewriter_store_publish() puts it in its place.
 *
 * @slots_max: the rewriter's connections_max. @vm: NULL if it is not started yet.
 * Return: 0, or a negative errno of what could not be done.
 */
int rewriter_store_new(const char *path, uint32_t slots_max, const RewriterVm *vm,
                       RewriterStore **ret_store);
/** The file takes the place of the one before. Return: 0 or a negative errno. */
int rewriter_store_publish(RewriterStore *store);
/** Says which VM it is of, once. Any one thread. */
void rewriter_store_set_vm(RewriterStore *store, const RewriterVm *vm);
/** Leaves the file where it is, if it was published. NULL is allowed. */
void rewriter_store_free(RewriterStore *store);

/** Connection @index is @record now. At every moment the slot is what it was before or what it is
 * then. No system call, but when the file grows. */
void rewriter_store_put(RewriterStore *store, uint32_t index, uint32_t generation,
                        const RewriterRecord *record);
/** Connection @index is gone. */
void rewriter_store_drop(RewriterStore *store, uint32_t index);
/** What is of another generation is gone, at once. */
void rewriter_store_begin(RewriterStore *store, uint32_t generation);

/** How often a record found no room in the file system. */
uint64_t rewriter_store_unsaved(const RewriterStore *store);
