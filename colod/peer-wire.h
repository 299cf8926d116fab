/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-wire.h - what the two colods of a pair say to each other (docs/PROTOCOL.md, "Peer link") */
#pragma once

#include "bytes.h"

#include <glib.h>

/*
 * Each message is an 8-byte header and a payload:
 *
 *   u8 version (PEER_WIRE_VERSION) | u8 type | be16 reserved, zero | be32 payload length
 *
 * Payloads of HELLO, WELCOME, REFUSED and the control messages other than HEARTBEAT are one JSON
 * object in UTF-8; those of HEARTBEAT and of the checkpoint and frames channels are binary, big
 * endian, field by field.
 */
enum {
    PEER_WIRE_VERSION = 1,
    PEER_HEADER_BYTES = 8,
    PEER_JSON_MAX_BYTES = 64 * 1024,  /* HELLO and control messages */
    PEER_DATA_MAX_BYTES = 128 * 1024, /* one DATA_FORWARD, DATA_RETURN or FRAME */
    PEER_HEARTBEAT_BYTES = 16,
    PEER_EPOCH_BYTES = 8, /* ARM, COMMITTED */
    PEER_END_BYTES = 24,
};

typedef enum PeerMessageType {
    /* First message of every channel, and its answer. */
    PEER_MESSAGE_HELLO = 1,
    PEER_MESSAGE_WELCOME = 2,
    PEER_MESSAGE_REFUSED = 3,
    /* Control channel. */
    PEER_MESSAGE_HEARTBEAT =
        16,                    /* be64 sent_ns, be64 echo_ns (both CLOCK_MONOTONIC of the pinger) */
    PEER_MESSAGE_STATE = 17,   /* {state, role, generation, ...}: sent on every change */
    PEER_MESSAGE_PREPARE = 18, /* primary: start an incoming VM */
    PEER_MESSAGE_PREPARED = 19,       /* secondary: the incoming VM waits for the stream */
    PEER_MESSAGE_PREPARE_FAILED = 20, /* secondary: {reason} */
    PEER_MESSAGE_VM_DEAD = 21,        /* {generation, reason}: my VM of this generation is gone */
    PEER_MESSAGE_DISCARD = 22,        /* primary: {generation, reason}: give your VM up */
    PEER_MESSAGE_HAND_OVER = 23, /* secondary: {generation}: an operator wants me to take over */
    PEER_MESSAGE_PROPOSE = 24,   /* {generation}: I want to start the VM in this generation */
    PEER_MESSAGE_CONSENT = 25,   /* {generation}: I run nothing and let you */
    /* Checkpoint channel. */
    PEER_MESSAGE_DATA_FORWARD = 32, /* bytes of the migration stream, primary to secondary */
    PEER_MESSAGE_DATA_RETURN = 33,  /* bytes of the return direction, secondary to primary */
    PEER_MESSAGE_ARM = 34,          /* be64 generation: from here on the secondary may take over */
    PEER_MESSAGE_END = 35,          /* be64 epoch, be64 length, be64 XXH3-64 of the checkpoint */
    PEER_MESSAGE_COMMITTED = 36,    /* be64 epoch */
    /* Frames channel. */
    PEER_MESSAGE_FRAME = 48, /* lock-stepping */
} PeerMessageType;

typedef enum PeerChannelKind {
    PEER_CHANNEL_CONTROL,
    PEER_CHANNEL_CHECKPOINT,
    PEER_CHANNEL_FRAMES,
    PEER_N_CHANNELS,
} PeerChannelKind;

/** "control", "checkpoint", "frames"; static. */
const char *peer_channel_kind_name(PeerChannelKind kind);

/** Name of a message type for logs; "unknown" for one we do not know; static. */
const char *peer_message_type_name(unsigned type);

typedef struct PeerHeader {
    PeerMessageType type;
    uint32_t length;
} PeerHeader;

/** Encodes a header; @length is the caller's own and within its type's bound. */
void peer_header_encode(uint8_t out[static PEER_HEADER_BYTES], PeerMessageType type,
                        uint32_t length);

/**
 * Decodes and checks a header: version, reserved bytes, a known type that may travel on @kind, and
 * a length within the bound of that type.
 *
 * Errors (domain PEER_ERROR): PEER_ERROR_VERSION, PEER_ERROR_PROTOCOL with type, length and bound
 * in the text. @ret_header is written on success only.
 */
gboolean peer_header_decode(const uint8_t in[static PEER_HEADER_BYTES], PeerChannelKind kind,
                            PeerHeader *ret_header, GError **error);

#define PEER_ERROR (peer_error_quark())
GQuark peer_error_quark(void);

typedef enum PeerError {
    PEER_ERROR_PROTOCOL, /* malformed, oversized, unexpected message */
    PEER_ERROR_VERSION,  /* the other side speaks another wire version */
    PEER_ERROR_REFUSED,  /* the other side refused our hello; its reason is in the message */
    PEER_ERROR_IDENTITY, /* certificate, VM name or UUID, host name do not fit */
    PEER_ERROR_DATES,    /* certificate is good but for its dates, by this host's clock */
    PEER_ERROR_TIMEOUT,  /* connect, handshake or hello took too long */
    PEER_ERROR_CLOSED,   /* end of file or reset */
    PEER_ERROR_OVERFLOW, /* the bounded output queue is full */
    PEER_ERROR_SILENT,   /* no heartbeat within the limit */
} PeerError;
