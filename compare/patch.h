/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* patch.h - changes what a TCP segment acknowledges and announces on its way out */
#pragma once

#include <stdint.h>

#include "held.h"

/** Puts @ack and @window into the TCP header of @h, with the checksum that goes with them.
 *
 * @scratch: FRAME_MAX_BYTES, used if @h borrows its bytes. @h must not be reassembled.
 * Return: the bytes to send: those of @h itself, or @scratch.
 */
const uint8_t *patch_tcp(Held *h, uint8_t *scratch, uint32_t ack, uint16_t window);

/** The window field of a TCP segment, as it came. */
uint16_t patch_window_field(const Held *h);
