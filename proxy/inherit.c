/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * inherit.c - translated connections, handed on to the next secondary
 *
 * After a takeover the connections that were opened since the last checkpoint keep other numbers
 * inside the guest than clients know. When that guest becomes the primary of a new pair, its next
 * secondary gets the guest's numbers with the memory; how clients see them it is told here, at the
 * arming: one record for each connection, on the frames channel. Of one whose handshake is still
 * under way it is told what there is, so that it can learn the numbers itself if it has taken over
 * when the handshake ends; if it ends before, the primary learns them and tells at once, ahead of
 * the frame that told (the secondary's guest has got that frame only if it knows). No others are
 * added as long as the pair lives: what is opened from then on is the secondary's own rewriter's to
 * know.
 *
 * So there are two layers, for connections of different age. @inherited knows those from before the
 * pair, in terms of PVM, and is used after a takeover only; @rewriter knows SVM's since the last
 * checkpoint, in terms of PVM. Outwards a frame passes @rewriter first, inwards last; what a layer
 * does not know passes it as it is. Copies that the primary mirrored are in terms of PVM already
 * and pass @rewriter only, also if they are still queued at the takeover. A SYN of SVM's on the
 * ports of an inherited connection is the end of that; before the takeover inherit_note() looks.
 */
#include "inherit.h"

#include <errno.h>
#include <string.h>

#include "rewriter-record.h"

enum {
    MESSAGE_BYTES =
        WIRE_VNET_BYTES + REWRITER_RECORD_BYTES, /* zeros where a virtio-net header is */
};

void
inherit_begin(Lockstep *lockstep)
{
    lockstep->legacy_due = lockstep->legacy_told = lockstep->rewriting;
    lockstep->legacy_layer = 0;
    lockstep->legacy_cursor = 0;
}

void
inherit_end(Lockstep *lockstep)
{
    lockstep->legacy_due = lockstep->legacy_told = false;
}

/* The older layer first: of two that know the same ports the newer counts. */
static bool
next_record(Lockstep *lockstep, RewriterRecord *ret_record)
{
    Rewriter *const layers[] = {lockstep->inherited, lockstep->rewriter};

    for (; lockstep->legacy_layer < G_N_ELEMENTS(layers); lockstep->legacy_layer++) {
        if (rewriter_export(layers[lockstep->legacy_layer], &lockstep->legacy_cursor, ret_record))
            return true;
        lockstep->legacy_cursor = 0;
    }
    return false;
}

static void
say(Lockstep *lockstep, const RewriterRecord *record)
{
    uint8_t message[MESSAGE_BYTES];

    memset(message, 0, WIRE_VNET_BYTES);
    rewriter_record_encode(message + WIRE_VNET_BYTES, record);
    peer_stream_send(&lockstep->peer, WIRE_CONNECTION, 0, lockstep->next_epoch, message,
                     sizeof(message));
}

void
inherit_send(Lockstep *lockstep)
{
    RewriterRecord record;

    while (lockstep->legacy_due && peer_stream_is_usable(&lockstep->peer) &&
           peer_stream_room(&lockstep->peer) > 0) {
        if (!next_record(lockstep, &record)) {
            lockstep->legacy_due = false;
            return;
        }
        say(lockstep, &record);
    }
}

/* The last frame may have ended a handshake. */
static void
say_learned(Lockstep *lockstep, const Rewriter *layer)
{
    RewriterRecord record;

    if (!lockstep->legacy_told || !rewriter_learned(layer, &record) ||
        !peer_stream_is_usable(&lockstep->peer))
        return;
    if (peer_stream_room(&lockstep->peer) > 0)
        say(lockstep, &record);
    else /* not for one from the LAN: those are read only if they can be mirrored */
        inherit_begin(lockstep);
}

bool
inherit_take(Lockstep *lockstep, const uint8_t *frame, size_t len)
{
    View in = view_of(frame, len);
    RewriterRecord record;

    if (!view_skip(&in, WIRE_VNET_BYTES) || !rewriter_record_decode(in, &record))
        return false;
    /* Full of open connections: this one ends with the next failover, as those beyond the
     * rewriter's limit do. */
    return rewriter_import(lockstep->inherited, &record) != -EINVAL;
}

static bool
has_inherited(const Lockstep *lockstep)
{
    return rewriter_stats(lockstep->inherited)->connections > 0;
}

bool
inherit_note(Lockstep *lockstep, const uint8_t *frame, size_t len)
{
    return has_inherited(lockstep) && rewriter_note_egress(lockstep->inherited, frame, len);
}

void
inherit_to_lan(Lockstep *lockstep, uint8_t *frame, size_t len, int64_t now_ns)
{
    rewriter_egress(lockstep->rewriter, frame, len, now_ns);
    say_learned(lockstep, lockstep->rewriter);
    if (!has_inherited(lockstep))
        return;
    rewriter_egress(lockstep->inherited, frame, len, now_ns);
    say_learned(lockstep, lockstep->inherited);
}

void
inherit_from_lan(Lockstep *lockstep, uint8_t *frame, size_t len, int64_t now_ns)
{
    if (has_inherited(lockstep)) {
        rewriter_ingress(lockstep->inherited, frame, len, now_ns);
        say_learned(lockstep, lockstep->inherited);
    }
    rewriter_ingress(lockstep->rewriter, frame, len, now_ns);
    say_learned(lockstep, lockstep->rewriter);
}
