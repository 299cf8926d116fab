/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * digests.c - on the frames channel: SVM's large segments as digests
 *
 * What compare/digest.c is for. Three kinds of FRAME messages:
 *
 *   key     zeros (as many as a virtio-net header has) | the secret. From the primary, when it
 *           begins to compare. Until then, and on every new channel, SVM's frames go whole.
 *   digest  headers and digests | be32 payload length | be32 unit | be64 number of the frame
 *   want    zeros | be64 number | zeros. The secondary sends that frame whole, if it still keeps
 *           it; the number is the one among the frames it keeps.
 */
#include "digests.h"

#include <string.h>

#include "bytes.h"
#include "nic.h"

enum {
    KEY_BYTES = WIRE_VNET_BYTES + DIGEST_SECRET_BYTES,
    WANT_ZEROS = DIGESTS_WANT_BYTES - WIRE_VNET_BYTES - 8,
};

void
digests_send_key(Lockstep *lockstep)
{
    uint8_t message[KEY_BYTES] = {0};

    if (!lockstep->digest_key_due || !peer_stream_is_usable(&lockstep->peer) ||
        peer_stream_room(&lockstep->peer) == 0)
        return;
    lockstep->digest_key_due = false;
    memcpy(message + WIRE_VNET_BYTES, lockstep->digest_key.secret, DIGEST_SECRET_BYTES);
    peer_stream_send(&lockstep->peer, WIRE_DIGEST_KEY, 0, lockstep->next_epoch, message,
                     sizeof(message));
}

bool
digests_decode_key(const WireFrame *message, DigestKey *ret_key)
{
    View v = view_of(message->frame, message->len);
    const uint8_t *secret;

    if (!view_skip(&v, WIRE_VNET_BYTES) || !view_take(&v, DIGEST_SECRET_BYTES, &secret) ||
        v.len != 0)
        return false;
    memcpy(ret_key->secret, secret, DIGEST_SECRET_BYTES);
    return true;
}

size_t
digests_encode_tail(uint8_t *out, const DigestInfo *info, uint64_t number)
{
    be32_store(out, info->payload_len);
    be32_store(out + 4, info->unit);
    be64_store(out + 8, number);
    return DIGESTS_TAIL_BYTES;
}

CompareFrame
digests_decode(const WireFrame *message)
{
    CompareFrame frame = {.bytes = message->frame,
                          .len = (uint32_t)message->len,
                          .vnet_hdr_len = PORT_VNET_BYTES,
                          .epoch = message->epoch};

    if (message->kind != WIRE_DIGEST)
        return frame;
    frame.digest_unit = UINT32_MAX;

    View tail = view_of(message->frame, message->len);

    if (message->len < WIRE_FRAME_MIN + DIGESTS_TAIL_BYTES)
        return frame;
    (void)view_skip(&tail, message->len - DIGESTS_TAIL_BYTES);
    if (view_get_be32(&tail, &frame.digest_len) && view_get_be32(&tail, &frame.digest_unit) &&
        view_get_be64(&tail, &frame.cookie))
        frame.len -= DIGESTS_TAIL_BYTES;
    if (frame.digest_unit == 0)
        frame.digest_unit = UINT32_MAX;
    return frame;
}

void
digests_encode_want(uint8_t out[static DIGESTS_WANT_BYTES], uint64_t number)
{
    memset(out, 0, DIGESTS_WANT_BYTES);
    be64_store(out + WIRE_VNET_BYTES, number);
}

bool
digests_decode_want(const WireFrame *message, uint64_t *ret_number)
{
    static const uint8_t zeros[WANT_ZEROS];
    View v = view_of(message->frame, message->len);
    const uint8_t *rest;
    uint64_t number;

    if (!view_skip(&v, WIRE_VNET_BYTES) || !view_get_be64(&v, &number) ||
        !view_take(&v, WANT_ZEROS, &rest) || memcmp(rest, zeros, WANT_ZEROS) != 0 || v.len != 0)
        return false;
    *ret_number = number;
    return true;
}
