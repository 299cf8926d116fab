/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-wire.c - header of the peer link: every rule of docs/PROTOCOL.md, one error per class
 */
#include "check-main.h"
#include "peer-wire.h"

static const struct {
    PeerMessageType type;
    const char *name;
    PeerChannelKind kind;
    uint32_t max_bytes;
} known[] = {
    {PEER_MESSAGE_HEARTBEAT, "HEARTBEAT", PEER_CHANNEL_CONTROL, PEER_HEARTBEAT_BYTES},
    {PEER_MESSAGE_STATE, "STATE", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_PREPARE, "PREPARE", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_PREPARED, "PREPARED", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_PREPARE_FAILED, "PREPARE_FAILED", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_VM_DEAD, "VM_DEAD", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_DISCARD, "DISCARD", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_HAND_OVER, "HAND_OVER", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_PROPOSE, "PROPOSE", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_CONSENT, "CONSENT", PEER_CHANNEL_CONTROL, PEER_JSON_MAX_BYTES},
    {PEER_MESSAGE_DATA_FORWARD, "DATA_FORWARD", PEER_CHANNEL_CHECKPOINT, PEER_DATA_MAX_BYTES},
    {PEER_MESSAGE_DATA_RETURN, "DATA_RETURN", PEER_CHANNEL_CHECKPOINT, PEER_DATA_MAX_BYTES},
    {PEER_MESSAGE_ARM, "ARM", PEER_CHANNEL_CHECKPOINT, PEER_EPOCH_BYTES},
    {PEER_MESSAGE_END, "END", PEER_CHANNEL_CHECKPOINT, PEER_END_BYTES},
    {PEER_MESSAGE_COMMITTED, "COMMITTED", PEER_CHANNEL_CHECKPOINT, PEER_EPOCH_BYTES},
    {PEER_MESSAGE_FRAME, "FRAME", PEER_CHANNEL_FRAMES, PEER_DATA_MAX_BYTES},
};

/* Decoding of @bytes must fail with @code, say @text and leave the output alone. */
static void
expect_error(const uint8_t bytes[static PEER_HEADER_BYTES], PeerChannelKind kind, PeerError code,
             const char *text)
{
    PeerHeader header = {.type = PEER_MESSAGE_END, .length = 77};
    g_autoptr(GError) error = NULL;

    ck_assert(!peer_header_decode(bytes, kind, &header, &error));
    ck_assert(g_error_matches(error, PEER_ERROR, (int)code));
    ck_assert_msg(strstr(error->message, text), "'%s' in '%s'", text, error->message);
    ck_assert(header.type == PEER_MESSAGE_END && header.length == 77);
}

START_TEST(unit_peer_header_bytes)
{
    uint8_t bytes[PEER_HEADER_BYTES];
    const uint8_t expected[] = {1, 32, 0, 0, 0, 2, 0, 0};

    peer_header_encode(bytes, PEER_MESSAGE_DATA_FORWARD, PEER_DATA_MAX_BYTES);
    ck_assert_mem_eq(bytes, expected, sizeof(bytes));
}
END_TEST

START_TEST(unit_peer_header_every_type_on_every_channel)
{
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
            uint8_t bytes[PEER_HEADER_BYTES];
            PeerHeader header;
            g_autoptr(GError) error = NULL;

            peer_header_encode(bytes, known[i].type, known[i].max_bytes);
            if ((PeerChannelKind)kind != known[i].kind) {
                expect_error(bytes, (PeerChannelKind)kind, PEER_ERROR_PROTOCOL, known[i].name);
                continue;
            }
            ck_assert(peer_header_decode(bytes, known[i].kind, &header, &error));
            ck_assert_int_eq(header.type, known[i].type);
            ck_assert_uint_eq(header.length, known[i].max_bytes);
        }
        ck_assert_str_eq(peer_message_type_name(known[i].type), known[i].name);
    }
}
END_TEST

START_TEST(unit_peer_header_hello_on_all_channels)
{
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
        for (unsigned type = PEER_MESSAGE_HELLO; type <= PEER_MESSAGE_REFUSED; type++) {
            uint8_t bytes[PEER_HEADER_BYTES];
            PeerHeader header;

            peer_header_encode(bytes, (PeerMessageType)type, 0);
            ck_assert(peer_header_decode(bytes, (PeerChannelKind)kind, &header, NULL));
        }
    }
}
END_TEST

START_TEST(unit_peer_names)
{
    ck_assert_str_eq(peer_channel_kind_name(PEER_CHANNEL_CONTROL), "control");
    ck_assert_str_eq(peer_channel_kind_name(PEER_CHANNEL_CHECKPOINT), "checkpoint");
    ck_assert_str_eq(peer_channel_kind_name(PEER_CHANNEL_FRAMES), "frames");
    ck_assert_str_eq(peer_message_type_name(1), "HELLO");
    ck_assert_str_eq(peer_message_type_name(200), "unknown");
}
END_TEST

START_TEST(err_peer_header_version)
{
    expect_error((const uint8_t[]){2, 17, 0, 0, 0, 0, 0, 2}, PEER_CHANNEL_CONTROL,
                 PEER_ERROR_VERSION, "version 2");
    expect_error((const uint8_t[]){0, 17, 0, 0, 0, 0, 0, 2}, PEER_CHANNEL_CONTROL,
                 PEER_ERROR_VERSION, "version 0");
}
END_TEST

START_TEST(err_peer_header_reserved)
{
    expect_error((const uint8_t[]){1, 17, 0, 1, 0, 0, 0, 2}, PEER_CHANNEL_CONTROL,
                 PEER_ERROR_PROTOCOL, "0x0001");
    expect_error((const uint8_t[]){1, 17, 128, 0, 0, 0, 0, 2}, PEER_CHANNEL_CONTROL,
                 PEER_ERROR_PROTOCOL, "reserved");
}
END_TEST

START_TEST(err_peer_header_unknown_type)
{
    static const uint8_t types[] = {0, 4, 15, 26, 31, 37, 47, 49, 255};

    for (size_t i = 0; i < sizeof(types); i++)
        for (int kind = 0; kind < PEER_N_CHANNELS; kind++)
            expect_error((const uint8_t[]){1, types[i], 0, 0, 0, 0, 0, 0}, (PeerChannelKind)kind,
                         PEER_ERROR_PROTOCOL, "unknown type");
}
END_TEST

START_TEST(err_peer_header_length)
{
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        uint8_t bytes[PEER_HEADER_BYTES];

        peer_header_encode(bytes, known[i].type, 0);
        be32_store(bytes + 4, known[i].max_bytes + 1);
        expect_error(bytes, known[i].kind, PEER_ERROR_PROTOCOL, "longer than its bound");
        be32_store(bytes + 4, UINT32_MAX);
        expect_error(bytes, known[i].kind, PEER_ERROR_PROTOCOL, "4294967295");
    }
}
END_TEST

CHECK_MAIN("peer-wire", unit_peer_header_bytes, unit_peer_header_every_type_on_every_channel,
           unit_peer_header_hello_on_all_channels, unit_peer_names, err_peer_header_version,
           err_peer_header_reserved, err_peer_header_unknown_type, err_peer_header_length)
