/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* window.h - what a client may be told of the receive window: no more than both sides have */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

/** The window scale a SYN offers, 0 to 14; 0 if it offers none. */
uint8_t window_scale_of(const Held *syn);

/** Notes what @h, of the primary and with an ack, announces by itself.
 *
 * Called before FLOW_HAS_P_ACK is set for it. */
void window_note_primary(Flow *f, const Held *h);
/** The same for the secondary and FLOW_HAS_S_ACK. */
void window_note_secondary(Flow *f, const Held *h);
/** What @h, of the primary, announces is covered by a checkpoint: the secondary means it too.
 *
 * Called before FLOW_HAS_S_ACK is set for it. */
void window_note_stale(Flow *f, const Held *h);
/** The secondary has become the primary. */
void window_note_commit(Flow *f);

/** The window field with which @h may leave, its ack being @ack. Never more than its own. */
uint16_t window_allowed(const Compare *e, const Flow *f, const Held *h, uint32_t ack);
/** True if @h, an ack without data that could leave, better waits for the secondary to read. */
bool window_waits(const Compare *e, const Flow *f, const Held *h);
/** Notes that @h leaves with @ack and @window. */
void window_note_said(Flow *f, const Held *h, uint32_t ack, uint16_t window);
