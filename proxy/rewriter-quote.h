/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-quote.h - the TCP segment that an ICMP error quotes */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

/** @f: an ICMP or ICMPv6 message, parsed from @frame. True if it is an error that quotes a TCP
 * segment: *@ret_key is that segment's flow as its sender's frames have it, and its sequence number
 * is at *@ret_seq_at of @frame. Never looks behind the message.
 */
bool rewriter_quote_parse(const uint8_t *frame, const Frame *f, FlowKey *ret_key,
                          size_t *ret_seq_at);
