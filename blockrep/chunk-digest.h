/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-digest.h - what both hosts compare instead of a chunk's bytes */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* It tells equal from different between two hosts that trust each other; against somebody who
 * chooses the bytes it proves nothing. */
enum { CHUNK_DIGEST_BYTES = 16 };

/** XXH3-128, canonical (big endian). */
void chunk_digest(const void *data, size_t len, uint8_t ret_digest[CHUNK_DIGEST_BYTES]);
