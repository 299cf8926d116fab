/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* segment.h - TCP segments as the tests of the rewriter state them, to frames and back */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum {
    FIN = FRAME_TCP_FIN,
    SYN = FRAME_TCP_SYN,
    RST = FRAME_TCP_RST,
    ACK = FRAME_TCP_ACK,
    SEGMENT_VNET_BYTES = 10,
    SEGMENT_SACKS_MAX = 4,
    SEGMENT_FRAME_MAX = FRAME_MAX_BYTES,
};

/* How it is wrapped: the same for all segments of a case. */
typedef struct SegmentStyle {
    bool ipv6;
    bool csum_partial;
    uint8_t n_vlans;
    bool priority_tag; /* the innermost is VLAN 0 */
    uint8_t n_dest_options;
    uint8_t n_nops; /* before the other options: odd numbers put them at odd places */
} SegmentStyle;

/* Zeroes: no options, no payload. The guest is 10.0.0.1:80 or fd00::1, the peer 10.0.0.2:4000. */
typedef struct Segment {
    SegmentStyle style;
    bool egress;
    uint16_t guest_port, peer_port; /* 0: 80, 4000 */
    uint32_t peer;                  /* last 32 bits of the peer's address; 0: the default */
    uint8_t flags;
    uint32_t seq, ack;
    bool has_ts;
    uint32_t tsval, tsecr;
    uint8_t n_sacks;
    uint32_t sacks[2 * SEGMENT_SACKS_MAX];
    const uint8_t *payload; /* NULL: zeroes */
    size_t len;
} Segment;

/** Writes a frame with right checksums to @buf (SEGMENT_FRAME_MAX). Return: its length. */
size_t segment_build(const Segment *segment, uint8_t *buf);

/** Reads the numbers of @frame, as built from @segment, back into *@segment. */
void segment_read(const uint8_t *frame, size_t len, Segment *segment);

/** True if the TCP checksum of @frame, computed anew, is right, or that of the pseudo-header under
 * NEEDS_CSUM. */
bool segment_checksum_ok(const uint8_t *frame, size_t len);
