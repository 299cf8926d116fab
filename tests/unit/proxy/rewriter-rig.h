/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-rig.h - a rewriter, and segments through it */
#pragma once

#include "rewriter.h"
#include "segment.h"

/* What the peer of most cases knows: SVM's numbers and what PVM's are beyond them. */
enum {
    SVM_ISN = 0x10000000,
    PEER_ISN = 0x70000000,
    SVM_TS = 1000,
    PEER_TS = 500000,
};
#define SEQ_OFF UINT32_C(0xf3456789) /* more than fits in front of the wrap */
#define TS_OFF UINT32_C(0x00012345)
#define PVM_ISN (SVM_ISN + SEQ_OFF)

typedef struct RwRig {
    Rewriter *rewriter;
    SegmentStyle style;
    int64_t now_ns;
} RwRig;

RwRig rw_new(SegmentStyle style, uint32_t connections_max);
void rw_free(RwRig *rig);

/** Sends @segment (style is the rig's) through and returns it as it came out.
 *
 * Fails if the checksum is wrong then, or if anything changed but seq (egress), ack (ingress),
 * checksum and options.
 */
Segment rw_out(RwRig *rig, Segment segment);
Segment rw_in(RwRig *rig, Segment segment);

const RewriterStats *rw_stats(const RwRig *rig);

/** SVM's and the peer's numbers in what they say: offsets from their initial numbers. */
Segment svm_says(uint8_t flags, uint32_t at, uint32_t ack, size_t len);
Segment peer_says(uint8_t flags, uint32_t at, uint32_t ack, size_t len);

/** A handshake begun by the peer, or by SVM; asserts that it is translated. */
void rw_open_passive(RwRig *rig);
void rw_open_active(RwRig *rig);

/** @s on connection @n of many, which has its own peer address and port. */
Segment rw_of_connection(uint32_t n, Segment s);
/** Its handshake, begun by the peer. */
void rw_open_connection(RwRig *rig, uint32_t n);
/** Whether data of SVM's on it leave in PVM's numbers. */
bool rw_is_translated(RwRig *rig, uint32_t n);

/** Asserts that data of SVM's and an acknowledgement of the peer's are translated, or are not. */
void rw_assert_translated(RwRig *rig);
void rw_assert_untouched(RwRig *rig);

/** Runs @body for IPv4 and IPv6, whole and partial checksums, VLAN tags, options at odd places. */
void rw_each_style(void (*body)(RwRig *rig));
