/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* client.c - what the engine has to know of the other direction: where a client's stream ends */
/*
 * Theory of operation
 *
 * A flow is what the guest sends. That decides all but one thing: what an RST means that follows
 * the guest's FIN. Most often it is an answer to a straggler. A client acknowledges a repeated FIN
 * once more, say, and whether a guest answers that depends on what it still remembers: one that has
 * closed first keeps the connection for a minute (TIME-WAIT) and says nothing; one that was closed
 * on has forgotten it, and so has one with too many in TIME-WAIT: these say RST. Two equal guests
 * may close in either order and need not have as many in TIME-WAIT, so each such RST would wait for
 * its counterpart in vain, and cost a checkpoint: one every few thousand short connections, or
 * every few hundred.
 *
 * Such an RST means nothing to anybody if the connection was over before:
 * - the guest's FIN has left, so both guests have said the same up to there;
 * - the client has acknowledged it: an RST without an ack has the number that was acknowledged by
 *   what it answers, and that is the end of what the guest said;
 * - the client has said FIN, and all its data were acknowledged to it (its FIN need not be: a guest
 *   that closed first and forgot at once answers that with an RST).
 * The client has been told all there was and knows that its own data were taken. So the primary's
 * leaves, and the secondary's is forgotten, as if both had reset the connection before. All other
 * RSTs are compared: one that follows a FIN because client data came that nobody wants, say, or one
 * that takes back what the client has not acknowledged.
 *
 * The caller shows what goes to both guests (compare_note_client()); where it does not, as in
 * colo-compare and in replays, no connection is ever known to be over. A client can lie about its
 * end; what it gains is that an RST about its own connection is not compared.
 */
#include "engine.h"
#include "seq.h"

/* The flow of what the guest says, from a frame to the guest: both ends exchanged. */
static FlowKey
reversed(const FlowKey *key)
{
    FlowKey r = *key;
    const uint64_t ports = key->w[4] >> 32;

    if (frame_key_is_ipv6(key)) {
        r.w[0] = key->w[2];
        r.w[1] = key->w[3];
        r.w[2] = key->w[0];
        r.w[3] = key->w[1];
    } else {
        r.w[0] = key->w[0] << 32 | key->w[0] >> 32;
    }
    r.w[4] = (key->w[4] & UINT32_MAX) | (ports & UINT16_MAX) << 48 | (ports >> 16) << 32;
    return r;
}

void
compare_note_client(Compare *e, const uint8_t *bytes, uint32_t len, uint8_t vnet_hdr_len)
{
    Frame frame;

    frame_parse(bytes, len, vnet_hdr_len, &frame);
    if (frame.cls != FRAME_TCP || !(frame.tcp_flags & FRAME_TCP_FIN))
        return;

    FlowKey key = reversed(&frame.key);
    Flow *f = flow_table_find(e->flows, &key, flow_key_hash(e->flows, &key));

    if (!f)
        return;
    f->client_end = frame.seq + frame.payload_len + ((frame.tcp_flags & FRAME_TCP_SYN) != 0) + 1;
    f->has_client_end = true;
}

bool
client_is_done(const Flow *f)
{
    const uint16_t needed = FLOW_CLOSED | FLOW_HAS_P_ACK | FLOW_HAS_S_ACK;
    const uint32_t data_end = f->client_end - 1;

    return f->has_client_end && (f->flags & needed) == needed && seq_geq(f->p_ack, data_end) &&
           seq_geq(f->s_ack, data_end);
}
