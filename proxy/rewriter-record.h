/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-record.h - a translated connection as bytes: on the frames channel, and in the file that
 * a restarted daemon reads */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bytes.h"
#include "rewriter.h"

enum {
    REWRITER_RECORD_NUMBERS = 11,
    REWRITER_RECORD_BYTES = 8 * FRAME_KEY_WORDS + REWRITER_RECORD_NUMBERS * 4,
};

void rewriter_record_encode(uint8_t out[static REWRITER_RECORD_BYTES],
                            const RewriterRecord *record);
/** False: it is none. rewriter_import() judges what it says. */
bool rewriter_record_decode(View in, RewriterRecord *ret_record);
