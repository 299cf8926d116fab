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

typedef struct Rig {
    Rewriter *rewriter;
    SegmentStyle style;
    int64_t now_ns;
} Rig;

Rig rig_new(SegmentStyle style, uint32_t connections_max);
void rig_free(Rig *rig);

/** Sends @segment (style is the rig's) through and returns it as it came out.
 *
 * Fails if the checksum is wrong then, or if anything changed but seq (egress), ack (ingress),
 * checksum and options.
 */
Segment rig_out(Rig *rig, Segment segment);
Segment rig_in(Rig *rig, Segment segment);

const RewriterStats *rig_stats(const Rig *rig);

/** SVM's and the peer's numbers in what they say: offsets from their initial numbers. */
Segment svm_says(uint8_t flags, uint32_t at, uint32_t ack, size_t len);
Segment peer_says(uint8_t flags, uint32_t at, uint32_t ack, size_t len);

/** A handshake begun by the peer, or by SVM; asserts that it is translated. */
void rig_open_passive(Rig *rig);
void rig_open_active(Rig *rig);

/** Asserts that data of SVM's and an acknowledgement of the peer's are translated, or are not. */
void rig_assert_translated(Rig *rig);
void rig_assert_untouched(Rig *rig);

/** Runs @body for IPv4 and IPv6, whole and partial checksums, VLAN tags, options at odd places. */
void rig_each_style(void (*body)(Rig *rig));
