/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-exports.h - what a primary reads of a target to know what to copy: `changed`, `digest` */
#pragma once

#include "chunk-digest.h"
#include "target.h"

/* Of one request: 4 MiB of the disk are read for it. */
enum { DIGEST_MAX_CHUNKS = 64 };

/*
 * Any thread; 0 or a negative errno, then *@ret_fault says by name what failed. Ranges outside an
 * export are -EINVAL.
 */

/** The map's bytes (dirty_map_read_bytes()); 0 without a map. */
uint64_t export_changed_size(Target *target);
int export_changed_read(Target *target, void *buf, size_t len, uint64_t offset, Fault *ret_fault);

/** A digest for each 64 KiB of the disk, whatever the secondary's guest sees. At most
 * DIGEST_MAX_CHUNKS may be touched by a request (-EINVAL). */
uint64_t export_digest_size(Target *target);
int export_digest_read(Target *target, void *buf, size_t len, uint64_t offset, Fault *ret_fault);
