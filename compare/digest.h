/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* digest.h - large TCP segments of the secondary without their payload: digests of it instead */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DIGEST_SECRET_BYTES = 192, /* XXH3's default length */
    DIGEST_BYTES = 16,         /* of one unit: XXH3-128, big endian */
    /* A unit is what the segment is cut into on the wire. */
    DIGEST_UNIT_MIN = 512,
    DIGEST_UNIT_MAX = 9216,
    DIGEST_PAYLOAD_MIN = 4096, /* below it the whole segment is as cheap */
};

/* Random, known to both hosts only. */
typedef struct DigestKey {
    uint8_t secret[DIGEST_SECRET_BYTES];
} DigestKey;

/* What digest_encode() made. */
typedef struct DigestInfo {
    size_t frame_len;     /* of headers and digests */
    uint32_t payload_len; /* of the segment they stand for */
    uint32_t unit;        /* each digest is of so many bytes of it, the last perhaps of less */
} DigestInfo;

/** Writes @frame (a virtio-net header of 10 bytes first) to @out with digests in place of its
 * payload; the IP length says how long the result is, checksums do not follow.
 *
 * @out: at least @len bytes, apart from @frame. Any thread.
 * Return: false if it is not a segment for which that is worth it; nothing was written then.
 */
bool digest_encode(const DigestKey *key, const uint8_t *frame, size_t len, uint8_t *out,
                   DigestInfo *ret_info);
