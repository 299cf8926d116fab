/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rig.h - an engine under test: what went in, what came out, a capture of both */
#pragma once

#include <glib.h>

#include "compare.h"
#include "packet.h"

#define MS INT64_C(1000000)
#define P COMPARE_PRIMARY
#define S COMPARE_SECONDARY

typedef struct RigRelease {
    uint64_t cookie;
    CompareWhy why;
    GBytes *bytes;
} RigRelease;

typedef struct RigDivergence {
    CompareRule rule;
    uint32_t offset;
    uint8_t primary_bytes[16], secondary_bytes[16];
    bool has_primary, has_secondary;
    int64_t waited_ns;
} RigDivergence;

typedef struct Rig Rig;
struct Rig {
    Compare *compare;
    int64_t now_ns;
    uint64_t epoch;       /* for the frames sent next */
    uint64_t next_cookie; /* of the primary's frames: 1, 2, … */
    int last_result;
    GArray *released;    /* RigRelease */
    GArray *divergences; /* RigDivergence */
    Packet conn;         /* what all packets of rig_tcp() have in common */
    void *dump[2];
    bool lending;       /* frames are submitted by compare_lend_batch() */
    GPtrArray *lent[2]; /* GBytes: those frames, until rig_settle() */
};

/** @name: of the test; with COLO_TEST_PCAP_DIR set, NAME.primary.pcap and NAME.secondary.pcap are
 * written there. @config may be NULL. */
Rig *rig_new(const char *name, const CompareConfig *config);
void rig_free(Rig *rig);

/** Submits; returns the cookie (primary) or 0. */
uint64_t rig_send(Rig *rig, CompareSide side, const Packet *packet);
uint64_t rig_send_raw(Rig *rig, CompareSide side, const void *bytes, size_t len, uint8_t vnet);

/** One TCP segment of rig->conn. @text may be NULL. */
uint64_t rig_tcp(Rig *rig, CompareSide side, uint8_t flags, uint32_t seq, uint32_t ack,
                 const char *text);
uint64_t rig_udp(Rig *rig, CompareSide side, const char *text);

/** SYN-ACK of both sides: primary's numbers start at @isn, its ack is @ack; all released. */
void rig_handshake(Rig *rig, uint32_t isn, uint32_t ack);

/** compare_settle(); the memory of what was lent is given back, so that each later use is seen. */
void rig_settle(Rig *rig, CompareSide side);

/** Moves time and ticks. */
void rig_wait(Rig *rig, int64_t ns);
/** begin and commit of the next epoch; later frames are of it. */
void rig_checkpoint(Rig *rig);

bool rig_was_released(const Rig *rig, uint64_t cookie);
const RigRelease *rig_release_of(const Rig *rig, uint64_t cookie);
/** All primary frames sent so far are out, in order, each once. */
bool rig_all_released_in_order(const Rig *rig);
size_t rig_n_divergences(const Rig *rig);
/** The last one's rule; -1: none. */
int rig_last_rule(const Rig *rig);
