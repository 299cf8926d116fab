/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-wire.c - the header of a peer message and what may travel on which channel */
#include "peer-wire.h"

#include <assert.h>

G_DEFINE_QUARK(colod_peer_error_quark, peer_error)

enum {
    ON_CONTROL = 1u << PEER_CHANNEL_CONTROL,
    ON_CHECKPOINT = 1u << PEER_CHANNEL_CHECKPOINT,
    ON_FRAMES = 1u << PEER_CHANNEL_FRAMES,
    ON_ALL = ON_CONTROL | ON_CHECKPOINT | ON_FRAMES,
};

static const char *const channel_names[] = {
    [PEER_CHANNEL_CONTROL] = "control",
    [PEER_CHANNEL_CHECKPOINT] = "checkpoint",
    [PEER_CHANNEL_FRAMES] = "frames",
};

static_assert(G_N_ELEMENTS(channel_names) == PEER_N_CHANNELS, "a channel without a name");

/* The table of docs/PROTOCOL.md, "Peer link". */
static const struct MessageRule {
    const char *name;
    PeerMessageType type;
    unsigned channels;
    uint32_t max_bytes;
} message_rules[] = {
    {"HELLO", PEER_MESSAGE_HELLO, ON_ALL, PEER_JSON_MAX_BYTES},
    {"WELCOME", PEER_MESSAGE_WELCOME, ON_ALL, PEER_JSON_MAX_BYTES},
    {"REFUSED", PEER_MESSAGE_REFUSED, ON_ALL, PEER_JSON_MAX_BYTES},
    {"HEARTBEAT", PEER_MESSAGE_HEARTBEAT, ON_CONTROL, PEER_HEARTBEAT_BYTES},
    {"STATE", PEER_MESSAGE_STATE, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"PREPARE", PEER_MESSAGE_PREPARE, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"PREPARED", PEER_MESSAGE_PREPARED, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"PREPARE_FAILED", PEER_MESSAGE_PREPARE_FAILED, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"VM_DEAD", PEER_MESSAGE_VM_DEAD, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"DISCARD", PEER_MESSAGE_DISCARD, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"HAND_OVER", PEER_MESSAGE_HAND_OVER, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"PROPOSE", PEER_MESSAGE_PROPOSE, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"CONSENT", PEER_MESSAGE_CONSENT, ON_CONTROL, PEER_JSON_MAX_BYTES},
    {"DATA_FORWARD", PEER_MESSAGE_DATA_FORWARD, ON_CHECKPOINT, PEER_DATA_MAX_BYTES},
    {"DATA_RETURN", PEER_MESSAGE_DATA_RETURN, ON_CHECKPOINT, PEER_DATA_MAX_BYTES},
    {"ARM", PEER_MESSAGE_ARM, ON_CHECKPOINT, PEER_EPOCH_BYTES},
    {"END", PEER_MESSAGE_END, ON_CHECKPOINT, PEER_END_BYTES},
    {"COMMITTED", PEER_MESSAGE_COMMITTED, ON_CHECKPOINT, PEER_EPOCH_BYTES},
    {"FRAME", PEER_MESSAGE_FRAME, ON_FRAMES, PEER_DATA_MAX_BYTES},
};

static const struct MessageRule *
find_rule(unsigned type)
{
    for (size_t i = 0; i < G_N_ELEMENTS(message_rules); i++)
        if ((unsigned)message_rules[i].type == type)
            return &message_rules[i];
    return NULL;
}

const char *
peer_channel_kind_name(PeerChannelKind kind)
{
    g_assert((unsigned)kind < PEER_N_CHANNELS);
    return channel_names[kind];
}

const char *
peer_message_type_name(unsigned type)
{
    const struct MessageRule *rule = find_rule(type);

    return rule ? rule->name : "unknown";
}

void
peer_header_encode(uint8_t out[static PEER_HEADER_BYTES], PeerMessageType type, uint32_t length)
{
    const struct MessageRule *rule = find_rule((unsigned)type);

    g_assert(rule && length <= rule->max_bytes);
    out[0] = PEER_WIRE_VERSION;
    out[1] = (uint8_t)type;
    be16_store(out + 2, 0);
    be32_store(out + 4, length);
}

/* Whether a message of @type and @length may travel on @kind. */
static gboolean
check_rule(unsigned type, uint32_t length, PeerChannelKind kind, GError **error)
{
    const struct MessageRule *rule = find_rule(type);

    if (!rule) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                    "message of unknown type %u (length %" G_GUINT32_FORMAT ") on the %s channel",
                    type, length, peer_channel_kind_name(kind));
        return FALSE;
    }
    if (!(rule->channels & (1u << kind))) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                    "message %s (type %u, length %" G_GUINT32_FORMAT
                    ") does not belong on the %s channel",
                    rule->name, type, length, peer_channel_kind_name(kind));
        return FALSE;
    }
    if (length > rule->max_bytes) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                    "message %s (type %u) of %" G_GUINT32_FORMAT
                    " bytes is longer than its bound of %" G_GUINT32_FORMAT,
                    rule->name, type, length, rule->max_bytes);
        return FALSE;
    }
    return TRUE;
}

gboolean
peer_header_decode(const uint8_t in[static PEER_HEADER_BYTES], PeerChannelKind kind,
                   PeerHeader *ret_header, GError **error)
{
    View view = view_of(in, PEER_HEADER_BYTES);
    uint8_t version, type;
    uint16_t reserved;
    uint32_t length;
    bool whole = view_get_u8(&view, &version) && view_get_u8(&view, &type) &&
                 view_get_be16(&view, &reserved) && view_get_be32(&view, &length);

    g_assert(whole);
    if (version != PEER_WIRE_VERSION) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_VERSION,
                    "peer speaks wire version %u, this is version %d", version, PEER_WIRE_VERSION);
        return FALSE;
    }
    if (reserved) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                    "reserved bytes of a message of type %u (length %" G_GUINT32_FORMAT
                    ") are 0x%04x, not zero",
                    type, length, reserved);
        return FALSE;
    }
    if (!check_rule(type, length, kind, error))
        return FALSE;
    *ret_header = (PeerHeader){.type = (PeerMessageType)type, .length = length};
    return TRUE;
}
