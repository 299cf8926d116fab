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

/** Makes in @scratch (FRAME_MAX_BYTES) a segment of the payload of @h from the number @from up to
 * @to, with @ack and @window, its lengths and checksums; FIN only if @to is behind it.
 *
 * @h has no SYN and is not reassembled. Return: its length in bytes.
 */
uint32_t patch_part(const Held *h, uint8_t *scratch, uint32_t from, uint32_t to, uint32_t ack,
                    uint16_t window);
