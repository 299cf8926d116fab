/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* inherit.h - translated connections, handed on to the next secondary. Proxy thread only. */
#pragma once

#include "lockstep.h"

/** The primary of a new pair begins to say what its own takeovers left. */
void inherit_begin(Lockstep *lockstep);
/** It is none any more. */
void inherit_end(Lockstep *lockstep);
/** Says as much of it as there is room for; cheap if there is nothing. */
void inherit_send(Lockstep *lockstep);
/** The secondary is told of one. False: malformed. */
bool inherit_take(Lockstep *lockstep, const uint8_t *frame, size_t len);
/** The secondary's guest sent a frame. True: it is the SYN of an inherited connection, once more,
 * so both guests know it by the same number and it is none for the secondary's own rewriter. */
bool inherit_note(Lockstep *lockstep, const uint8_t *frame, size_t len);

/** Between the guest of a survivor and the LAN: everything that goes out and in. */
void inherit_to_lan(Lockstep *lockstep, uint8_t *frame, size_t len, int64_t now_ns);
void inherit_from_lan(Lockstep *lockstep, uint8_t *frame, size_t len, int64_t now_ns);
