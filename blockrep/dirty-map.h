/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dirty-map.h - which parts of this host's disk may differ from the peer's, kept over any crash */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why 64 KiB: a map of 1 TiB is 2 MiB, and a chunk is copied in one request. */
enum { DIRTY_CHUNK_BYTES = 64 * 1024 };
#define DIRTY_MAP_MAX_BYTES (UINT64_C(1) << 50) /* of the disk: a map of 2 GiB */
/* Longest run that dirty_map_next() looks for: its cost must not grow with what is marked. */
#define DIRTY_MAP_MAX_RUN_BYTES (UINT64_C(1024) * DIRTY_CHUNK_BYTES)

/*
 * A bit per chunk, in a file that is mapped and shared: what is marked survives the death of the
 * process at once. Several processes of one host may have it open. All calls: any thread, several
 * at once; a mark or clear is atomic in each chunk. Ranges are inside the disk. The last chunk of a
 * disk may be short.
 */
typedef struct DirtyMap DirtyMap;

/**
 * Opens the map of a disk of @size_bytes; made if missing, all set. Bits that a crash of the host
 * may have cost are not trusted: all are set, see dirty_map_was_distrusted().
 *
 * A file that is damaged, of another version or of a disk of another size is an error with the
 * remedy; its space is allocated here, so that a full file system is an error here and not later.
 */
DirtyMap *dirty_map_open(const char *path, uint64_t size_bytes, GError **error);

/**
 * Flushes. The last one to close it, if it has armed it, marks it closed cleanly: after that a
 * crash of the host costs nothing. So who has armed it flushes the disk before, or says that it
 * could not: dirty_map_distrust().
 */
void dirty_map_free(DirtyMap *map);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DirtyMap, dirty_map_free)

/** The disk may have lost what it was given: all bits are set, for want of knowledge, and this
 * opener will not mark it closed cleanly. Blocks. */
void dirty_map_distrust(DirtyMap *map);

/**
 * The disk is about to change without the map knowing first: makes it stable that the map is in
 * use. The first dirty_map_mark() does so too, which is right only if the change comes after it. A
 * map that was never armed (a mirror's) stays trusted over a crash. Blocks; negative errno.
 */
int dirty_map_arm(DirtyMap *map);
/** Was it armed by this opener, or found so? */
bool dirty_map_is_armed(const DirtyMap *map);

void dirty_map_mark(DirtyMap *map, uint64_t offset, uint64_t len);
void dirty_map_mark_all(DirtyMap *map);
/** Whole chunks inside the range only. The peer has their content on its medium. */
void dirty_map_clear(DirtyMap *map, uint64_t offset, uint64_t len);
/** Any chunk of the range? */
bool dirty_map_is_marked(const DirtyMap *map, uint64_t offset, uint64_t len);
/**
 * The first marked run that ends behind @from_offset, cut to begin there or later.
 *
 * @ret_len: bytes, at most DIRTY_MAP_MAX_RUN_BYTES, up to the disk's end. Return: its offset, or
 * UINT64_MAX: none.
 */
uint64_t dirty_map_next(const DirtyMap *map, uint64_t from_offset, uint64_t *ret_len);
uint64_t dirty_map_marked_bytes(const DirtyMap *map);

/** Makes marks and clears stable. Blocks; negative errno, also of an arming that failed. */
int dirty_map_flush(DirtyMap *map);

/**
 * Bits are set for want of knowledge (made anew, or after a crash of the host) rather than for
 * writes: comparing before copying is worth while. Kept over restarts, until dirty_map_trust().
 */
bool dirty_map_was_distrusted(const DirtyMap *map);
/** All that was set for want of knowledge has been looked at. Blocks. */
int dirty_map_trust(DirtyMap *map);

/*
 * The bits as bytes: bit i of byte n is chunk 8 n + i (export `changed`). Ranges are inside
 * dirty_map_n_bytes(). Bits behind the disk's end read as 0 and are ignored when merged.
 */
uint64_t dirty_map_n_bytes(const DirtyMap *map);
void dirty_map_read_bytes(const DirtyMap *map, void *buf, size_t len, uint64_t offset);
/** Marks what is set in @bits too. Does not arm: the peer's map still has it after a crash. */
void dirty_map_merge_bytes(DirtyMap *map, const void *bits, size_t len, uint64_t offset);

uint64_t dirty_map_size_bytes(const DirtyMap *map); /* of the disk */
