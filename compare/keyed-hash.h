/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* keyed-hash.h - SipHash-1-3 over whole words: flow hashes that the network cannot predict */
#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * SipHash (Aumasson, Bernstein) with one compression and three finalisation rounds, the variant
 * Linux, Rust and Python use for hash tables. Whoever chooses addresses and ports does not know the
 * key, so cannot make flows collide.
 */
typedef struct HashKey {
    uint64_t k[2];
} HashKey;

static inline uint64_t
hash_rotl(uint64_t x, unsigned bits)
{
    return (x << bits) | (x >> (64 - bits));
}

static inline void
hash_round(uint64_t v[static 4])
{
    v[0] += v[1];
    v[1] = hash_rotl(v[1], 13) ^ v[0];
    v[0] = hash_rotl(v[0], 32);
    v[2] += v[3];
    v[3] = hash_rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = hash_rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = hash_rotl(v[1], 17) ^ v[2];
    v[2] = hash_rotl(v[2], 32);
}

static inline uint64_t
keyed_hash(const HashKey *key, const uint64_t *words, size_t n_words)
{
    uint64_t v[4] = {
        key->k[0] ^ UINT64_C(0x736f6d6570736575), key->k[1] ^ UINT64_C(0x646f72616e646f6d),
        key->k[0] ^ UINT64_C(0x6c7967656e657261), key->k[1] ^ UINT64_C(0x7465646279746573)};
    uint64_t last = (uint64_t)(n_words * 8) << 56;

    for (size_t i = 0; i < n_words; i++) {
        v[3] ^= words[i];
        hash_round(v);
        v[0] ^= words[i];
    }
    v[3] ^= last;
    hash_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    hash_round(v);
    hash_round(v);
    hash_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
