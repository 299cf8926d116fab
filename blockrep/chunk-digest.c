/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chunk-digest.c - what both hosts compare instead of a chunk's bytes */
#include "chunk-digest.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

static_assert(sizeof(XXH128_canonical_t) == CHUNK_DIGEST_BYTES, "XXH3-128");

void
chunk_digest(const void *data, size_t len, uint8_t ret_digest[CHUNK_DIGEST_BYTES])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, len));
    memcpy(ret_digest, canonical.digest, CHUNK_DIGEST_BYTES);
}
