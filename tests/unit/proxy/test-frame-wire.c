/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-frame-wire.c - FRAME messages: bytes, bounds, refusals */
#include "frame-wire.h"

#include "check-main.h"

#include <linux/virtio_net.h>
#include <string.h>

#include "bytes.h"

enum { FRAME_LEN = WIRE_VNET_BYTES + 60 };

static uint8_t message[WIRE_MESSAGE_MAX];

static size_t
encode(size_t len, WireKind kind)
{
    static uint8_t frame[HOLD_QUEUE_FRAME_MAX];
    const struct virtio_net_hdr header = {.flags = 1,
                                          .gso_type = 4,
                                          .hdr_len = 0x0102,
                                          .gso_size = 0x0304,
                                          .csum_start = 0x0506,
                                          .csum_offset = 0x0708};

    for (size_t i = 0; i < len; i++)
        frame[i] = (uint8_t)i;
    memcpy(frame, &header, sizeof(header));
    return wire_encode(message, &(WireFrame){.epoch = 0x1122334455667788,
                                             .sequence = 0x0a0b0c0d0e0f1011,
                                             .nic = 7,
                                             .kind = kind,
                                             .frame = frame,
                                             .len = len});
}

START_TEST(unit_bytes_on_the_wire)
{
    static const uint8_t want[WIRE_OVERHEAD_BYTES + WIRE_VNET_BYTES] = {
        1,    48,   0,    0,    0,    0,    0,    20 + 70, /* header */
        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,    /* epoch */
        0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11,    /* number */
        7,    2,    0,    0,                               /* NIC, kind */
        1,    4,    0x02, 0x01, 0x04, 0x03, 0x06, 0x05,    0x08, 0x07};

    ck_assert_uint_eq(encode(FRAME_LEN, WIRE_EGRESS), WIRE_OVERHEAD_BYTES + FRAME_LEN);
    ck_assert_mem_eq(message, want, sizeof(want));
    for (size_t i = WIRE_VNET_BYTES; i < FRAME_LEN; i++)
        ck_assert_uint_eq(message[WIRE_OVERHEAD_BYTES + i], i);
}
END_TEST

START_TEST(unit_round_trip_of_all_lengths)
{
    static const size_t lens[] = {WIRE_FRAME_MIN, FRAME_LEN, 1524, HOLD_QUEUE_FRAME_MAX};

    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        size_t n = encode(lens[i], WIRE_INGRESS), bytes = 0;
        struct virtio_net_hdr header;
        WireFrame frame;

        for (size_t cut = 0; cut < n; cut += 1 + cut / 7)
            ck_assert_int_eq(wire_decode(message, cut, &frame, &bytes), WIRE_SHORT);
        ck_assert_int_eq(wire_decode(message, n, &frame, &bytes), WIRE_OK);
        ck_assert_uint_eq(bytes, n);
        ck_assert_uint_eq(frame.epoch, 0x1122334455667788);
        ck_assert_uint_eq(frame.sequence, 0x0a0b0c0d0e0f1011);
        ck_assert_uint_eq(frame.nic, 7);
        ck_assert_int_eq(frame.kind, WIRE_INGRESS);
        ck_assert_uint_eq(frame.len, lens[i]);
        memcpy(&header, frame.frame, sizeof(header));
        ck_assert_uint_eq(header.hdr_len, 0x0102);
        ck_assert_uint_eq(header.csum_offset, 0x0708);
        ck_assert_uint_eq(frame.frame[lens[i] - 1], (uint8_t)(lens[i] - 1));
        wire_again(message, &frame, &bytes);
        ck_assert_uint_eq(bytes, n);
        ck_assert_uint_eq(frame.len, lens[i]);
    }
}
END_TEST

static WireResult
decode_with(size_t offset, uint8_t value)
{
    size_t n = encode(FRAME_LEN, WIRE_EGRESS), bytes;
    WireFrame frame;

    message[offset] = value;
    return wire_decode(message, n, &frame, &bytes);
}

static WireResult
decode_length(uint32_t length)
{
    WireFrame frame;
    size_t bytes;

    (void)encode(FRAME_LEN, WIRE_EGRESS);
    be32_store(message + 4, length);
    return wire_decode(message, sizeof(message), &frame, &bytes);
}

START_TEST(err_each_field_is_checked)
{
    ck_assert_int_eq(decode_with(0, 2), WIRE_BAD_VERSION);
    ck_assert_int_eq(decode_with(1, 47), WIRE_BAD_TYPE);
    ck_assert_int_eq(decode_with(2, 1), WIRE_BAD_RESERVED);
    ck_assert_int_eq(decode_with(3, 1), WIRE_BAD_RESERVED);
    ck_assert_int_eq(decode_with(25, 0), WIRE_BAD_KIND);
    ck_assert_int_eq(decode_with(25, WIRE_DIGEST + 1), WIRE_BAD_KIND);
    ck_assert_int_eq(decode_with(26, 1), WIRE_BAD_RESERVED);
    ck_assert_int_eq(decode_with(27, 1), WIRE_BAD_RESERVED);
    for (WireResult r = WIRE_BAD_VERSION; r < WIRE_N_RESULTS; r++)
        ck_assert_uint_gt(strlen(wire_result_text(r)), 0);
}
END_TEST

START_TEST(sec_length_is_bounded_before_it_is_waited_for)
{
    ck_assert_int_eq(decode_length(0), WIRE_BAD_LENGTH);
    ck_assert_int_eq(decode_length(WIRE_FIXED_BYTES + WIRE_FRAME_MIN - 1), WIRE_BAD_LENGTH);
    ck_assert_int_eq(decode_length(WIRE_FIXED_BYTES + WIRE_FRAME_MIN), WIRE_OK);
    ck_assert_int_eq(decode_length(WIRE_FIXED_BYTES + HOLD_QUEUE_FRAME_MAX), WIRE_OK);
    ck_assert_int_eq(decode_length(WIRE_FIXED_BYTES + HOLD_QUEUE_FRAME_MAX + 1), WIRE_BAD_LENGTH);
    ck_assert_int_eq(decode_length(UINT32_MAX), WIRE_BAD_LENGTH);
}
END_TEST

CHECK_MAIN("frame-wire", unit_bytes_on_the_wire, unit_round_trip_of_all_lengths,
           err_each_field_is_checked, sec_length_is_bounded_before_it_is_waited_for)
