/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* digests.h - on the frames channel: SVM's large segments as digests. Proxy thread only. */
#pragma once

#include "lockstep.h"

enum {
    DIGESTS_TAIL_BYTES = 16,
    DIGESTS_WANT_BYTES = WIRE_FRAME_MIN + 8,
};

/** Primary: tells the peer the key, if it is due and there is room. */
void digests_send_key(Lockstep *lockstep);
/** Secondary: the key from its message. False: malformed. */
bool digests_decode_key(const WireFrame *message, DigestKey *ret_key);

/** What follows the digests of the frame with @number at @out. Return: its length. */
size_t digests_encode_tail(uint8_t *out, const DigestInfo *info, uint64_t number);
/** A frame of the peer's, whole or as digests, for the engine. Digests that make no sense come out
 * as something that the engine takes for lost. */
CompareFrame digests_decode(const WireFrame *message);

/** The request for the frame with @number. */
void digests_encode_want(uint8_t out[static DIGESTS_WANT_BYTES], uint64_t number);
/** False: malformed. */
bool digests_decode_want(const WireFrame *message, uint64_t *ret_number);
