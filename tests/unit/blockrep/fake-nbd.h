/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-nbd.h - an NBD server in the test's process, as a target that does what the test wants
 *
 * UNIX socket, exports `target`, `changed` and `digest`. Changes can be kept back and are then
 * carried out in reverse order, which no client may notice: two at once that overlap are counted.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct FakeNbd FakeNbd;

/** @path: of the socket. All of `changed` is 0. */
FakeNbd *fake_nbd_new(const char *path, uint64_t size_bytes);
void fake_nbd_free(FakeNbd *fake);

/** What the first connection and the later ones are told; flags: of the transmission. */
void fake_nbd_offer(FakeNbd *fake, unsigned first_flags, unsigned later_flags,
                    uint64_t later_size_bytes);
enum {
    FAKE_NBD_READ_ONLY = 2,
    FAKE_NBD_FLUSH = 4,
    FAKE_NBD_ZERO = 0x40,
    FAKE_NBD_MULTI_CONN = 0x100,
    FAKE_NBD_FLAGS = 1 | 4 | 8 | 0x20 | 0x40
}; /* flags, flush, FUA, trim, write-zeroes */

/** While true, changes are neither carried out nor answered. */
void fake_nbd_hold(FakeNbd *fake, bool hold);
/** Waits until @n are kept back. */
void fake_nbd_wait_kept(FakeNbd *fake, unsigned n);
/** The next change or flush is answered with this error of NBD's. */
void fake_nbd_fail(FakeNbd *fake, uint32_t nbd_error);
/** Ends all connections. */
void fake_nbd_cut(FakeNbd *fake);

/** Sets and reads the disk, or `changed` (one bit a chunk). */
void fake_nbd_fill(FakeNbd *fake, const void *data, size_t len, uint64_t offset);
void fake_nbd_peek(FakeNbd *fake, void *data, size_t len, uint64_t offset);
void fake_nbd_set_changed(FakeNbd *fake, uint8_t byte, uint64_t offset);

typedef struct FakeNbdCounters {
    unsigned changes, flushes, overlaps, connections;
} FakeNbdCounters;

FakeNbdCounters fake_nbd_counters(FakeNbd *fake);
