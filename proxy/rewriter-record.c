/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-record.c - a translated connection as bytes */
#include "rewriter-record.h"

#include "frame.h"

void
rewriter_record_encode(uint8_t out[static REWRITER_RECORD_BYTES], const RewriterRecord *record)
{
    const RewriterConn *c = &record->conn;
    const uint32_t numbers[REWRITER_RECORD_NUMBERS] = {
        c->phase,      c->flags,       c->isn,      c->peer_isn, c->seq_off,   c->ts_off,
        c->tsval_last, c->refused_ack, c->pend_isn, c->pend_ack, c->pend_tsecr};

    for (unsigned i = 0; i < FRAME_KEY_WORDS; i++, out += 8)
        be64_store(out, record->key.w[i]);
    for (unsigned i = 0; i < REWRITER_RECORD_NUMBERS; i++, out += 4)
        be32_store(out, numbers[i]);
}

bool
rewriter_record_decode(View in, RewriterRecord *ret_record)
{
    uint32_t numbers[REWRITER_RECORD_NUMBERS];
    RewriterRecord record;

    for (unsigned i = 0; i < FRAME_KEY_WORDS; i++)
        if (!view_get_be64(&in, &record.key.w[i]))
            return false;
    for (unsigned i = 0; i < REWRITER_RECORD_NUMBERS; i++)
        if (!view_get_be32(&in, &numbers[i]))
            return false;
    if (in.len != 0 || numbers[0] >= REWRITER_N_PHASES || numbers[1] > UINT16_MAX ||
        frame_key_class(&record.key) != FRAME_TCP)
        return false;
    record.conn = (RewriterConn){.phase = (uint8_t)numbers[0],
                                 .flags = (uint16_t)numbers[1],
                                 .isn = numbers[2],
                                 .peer_isn = numbers[3],
                                 .seq_off = numbers[4],
                                 .ts_off = numbers[5],
                                 .tsval_last = numbers[6],
                                 .refused_ack = numbers[7],
                                 .pend_isn = numbers[8],
                                 .pend_ack = numbers[9],
                                 .pend_tsecr = numbers[10]};
    *ret_record = record;
    return true;
}
