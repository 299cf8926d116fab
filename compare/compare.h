/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* compare.h - the comparison engine: frames and time in, releases and divergences out */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "digest.h"
#include "frame.h"

/*
 * Compare: one engine. No I/O, no clock, no thread of its own; the same calls give the same
 * callbacks. Each object is used from one thread at a time. Callbacks run inside the call that
 * causes them and must not call back into the same engine.
 *
 * After compare_new() it allocates only from its own bounded memory.
 */
typedef struct Compare Compare;

typedef enum CompareSide { COMPARE_PRIMARY, COMPARE_SECONDARY } CompareSide;

/* What happens to classes of frames that have no rule of their own (DESIGN, Comparison rules). */
typedef enum ComparePolicy {
    COMPARE_POLICY_SIZE, /* equal length within the flow is enough: COLO's classic rule */
    COMPARE_POLICY_FULL, /* equal payload */
    COMPARE_POLICY_PASS, /* the primary's leaves at once, the secondary's is forgotten */
} ComparePolicy;

/* What the secondary's sequence numbers are when they get here. */
typedef enum CompareIsn {
    /* A rewriter on the secondary translates all but the SYN, as it cannot know the primary's
     * initial number yet: the number of a SYN is not compared. Ours and QEMU's work so. */
    COMPARE_ISN_REWRITTEN,
    COMPARE_ISN_LEARN, /* nobody translates: the engine learns the offset from the two SYNs */
    COMPARE_ISN_EXACT, /* the numbers must be equal, those of SYNs too */
} CompareIsn;

/* Why a divergence was reported. Each asks for a checkpoint. */
typedef enum CompareRule {
    COMPARE_RULE_PAYLOAD,           /* different bytes at the same stream offset */
    COMPARE_RULE_SYN,               /* SYN against none, or a number that may not differ */
    COMPARE_RULE_FIN,               /* the stream ends at different offsets */
    COMPARE_RULE_RST,               /* one side reset, the other went on */
    COMPARE_RULE_TIMEOUT_PRIMARY,   /* a frame of the primary waited too long */
    COMPARE_RULE_TIMEOUT_SECONDARY, /* a frame of the secondary waited too long */
    COMPARE_RULE_FRAGMENT,          /* fragments that overlap with different bytes, or too many */
    COMPARE_RULE_REORDER,           /* out of order further than a real stack does */
    COMPARE_RULE_MEMORY,            /* the memory bound was reached */
    COMPARE_RULE_FLOWS,             /* the flow table is full of flows that hold frames */
    COMPARE_N_RULES
} CompareRule;

const char *compare_rule_name(CompareRule rule);
const char *compare_policy_name(ComparePolicy policy);
/** Return: true and *@ret_policy if @name is "size", "full" or "pass". */
bool compare_policy_parse(const char *name, ComparePolicy *ret_policy);

typedef struct CompareConfig {
    int64_t timeout_ns; /* an unmatched frame may wait this long */
    /* A TCP segment of the primary of which the secondary has sent a part only leaves up to there
     * after this; 0: never. Two equal guests do not cut a stream alike, and what the secondary is
     * still to send may be waiting for the ack of what it has sent (Nagle's algorithm, its
     * congestion window), which nobody can give before it has left. With this a cookie may come
     * back more than once: with COMPARE_RELEASED_PART, and in the end with the rest. */
    int64_t part_ns;
    int64_t flow_idle_ns;    /* a flow unused this long is forgotten */
    int64_t flow_closed_ns;  /* the same after FIN or RST, or before the handshake is done */
    size_t memory_max_bytes; /* of held frames; see slab.h for the smallest */
    uint32_t flows_max;      /* rounded up to a power of two */
    CompareIsn isn;
    /* Announcements (gratuitous ARP, RARP, unsolicited neighbour advertisements, MLD and IGMP
     * reports) that only the secondary sends are no divergence. A guest's virtio-net announces
     * itself after each load of its state, so they come with every checkpoint. */
    bool ignore_announcements;
    /* No segment of the primary announces more of a receive window than the secondary has (see
     * window.c). Off where nothing is sent, as in a replay. */
    bool window_gating;
    ComparePolicy policy[FRAME_N_CLASSES]; /* only IP_OTHER, ARP, L2_OTHER and MALFORMED count */
    uint64_t hash_key[2];                  /* random, from getrandom(2), except in tests */
} CompareConfig;

enum {
    COMPARE_TIMEOUT_MS_DEFAULT = 200,
    COMPARE_TIMEOUT_MS_MIN = 10,
    COMPARE_TIMEOUT_MS_MAX = 10000,
    COMPARE_FLOWS_MAX_DEFAULT = 1 << 18,
    COMPARE_MEMORY_MAX_DEFAULT = 64 * 1024 * 1024,
};

/** Fills in the defaults; hash_key is left zero for the caller. */
void compare_config_init(CompareConfig *config);

typedef struct CompareFrame {
    const uint8_t *bytes; /* virtio-net header, if any, and the Ethernet frame */
    uint32_t len;
    uint8_t vnet_hdr_len; /* 0, 10 or 12 */
    uint64_t epoch;       /* the epoch it was produced in; see compare_commit() */
    uint64_t cookie;      /* given back on release, or to CompareWantFunc */
    /* Of the secondary, from digest_encode(): how many bytes of payload the digests stand for, and
     * each of them. 0: @bytes is the frame itself. */
    uint32_t digest_len;
    uint32_t digest_unit;
} CompareFrame;

typedef enum CompareWhy {
    COMPARE_RELEASED_MATCHED,     /* the window may have been lowered */
    COMPARE_RELEASED_ACK_LOWERED, /* matched; the ack was lowered, perhaps the window too */
    COMPARE_RELEASED_PASSED,      /* by policy */
    COMPARE_RELEASED_COMMITTED,   /* covered by a checkpoint */
    COMPARE_RELEASED_PART,        /* the first bytes of one that is still held */
    COMPARE_N_WHYS
} CompareWhy;

typedef struct CompareRelease {
    const uint8_t *bytes; /* as submitted, or with ack or window lowered; for the callback only */
    uint32_t len;
    uint8_t vnet_hdr_len;
    uint64_t cookie;
    CompareWhy why;
    int64_t held_ns; /* 0: it left in the call that submitted it */
    bool lent;       /* bytes are where compare_lend_batch() got them, until compare_settle() */
} CompareRelease;

typedef struct CompareDivergence {
    CompareRule rule;
    int64_t time_ns;   /* as given to the call that found it */
    int64_t waited_ns; /* how long the older of the two frames had been held */
    uint64_t epoch;
    const FlowKey *flow; /* NULL: not of one flow (memory bound) */
    /* Of the first difference. TCP: in the stream after the SYN if that was seen, else from the
     * first byte compared; others: in the payload. */
    uint32_t offset;
    uint8_t primary_bytes[16]; /* from the first difference on */
    uint8_t secondary_bytes[16];
    uint8_t n_primary_bytes;
    uint8_t n_secondary_bytes;
    /* The frames; either may be NULL with length 0. Borrowed for the callback. For fragments, the
     * first of them. */
    const uint8_t *primary_frame;
    const uint8_t *secondary_frame;
    uint32_t primary_len;
    uint32_t secondary_len;
    uint8_t primary_vnet_hdr_len;
    uint8_t secondary_vnet_hdr_len;
} CompareDivergence;

typedef struct CompareOps {
    /** One frame of the primary may leave. In arrival order within a flow. */
    void (*release)(void *opaque, const CompareRelease *release);
    /** A checkpoint is needed. At most once per flow and epoch, and once per bound and epoch. */
    void (*divergence)(void *opaque, const CompareDivergence *divergence);
} CompareOps;

/** Creates an engine in epoch 0.
 *
 * Return: 0, or a negative errno: -EINVAL for a timeout outside COMPARE_TIMEOUT_MS_MIN…MAX or a
 * memory or flow bound out of range, -ENOMEM.
 */
int compare_new(const CompareConfig *config, const CompareOps *ops, void *opaque,
                Compare **ret_compare);
/** Frees the engine; frames still held are forgotten, not released. NULL is allowed. */
void compare_free(Compare *compare);

/** The whole of the secondary's segment with this cookie is needed; it is submitted like any other
 * (digest.c). Asked for at most once; if it does not come it is as good as lost. */
typedef void (*CompareWantFunc)(void *opaque, uint64_t cookie);

/** From now on digests of the secondary are understood; without it they are as good as lost. */
void compare_set_digests(Compare *compare, const DigestKey *key, CompareWantFunc want);

/** Takes in one frame of @side at time @now_ns.
 *
 * The bytes are copied if they must be held. Time that goes backwards counts as standing still.
 * Return: 0; -EMSGSIZE if longer than FRAME_MAX_BYTES (caller's choice what to do with it);
 * -ENOBUFS if a bound is reached: nothing was taken, the bound was reported as a divergence, and
 * the caller submits the same frame again after the checkpoint (back-pressure, never loss).
 */
int compare_submit(Compare *compare, CompareSide side, const CompareFrame *frame, int64_t now_ns);

/** Like compare_submit() for @n frames, fetching the flows of later ones ahead of their turn.
 *
 * Return: the number taken. Less than @n: @frames[that number] got *@ret_error.
 */
size_t compare_submit_batch(Compare *compare, CompareSide side, const CompareFrame *frames,
                            size_t n, int64_t now_ns, int *ret_error);

/** The same, but the bytes are only lent: they stay valid and as they are until compare_settle().
 *
 * What is used up before then is never copied, on either side, and a frame that is released
 * unchanged can be sent from where it is (CompareRelease.lent). Room is taken as for a copy, so
 * the bounds are the same. compare_settle() must come before anything else is done with the bytes
 * of this side.
 */
size_t compare_lend_batch(Compare *compare, CompareSide side, const CompareFrame *frames, size_t n,
                          int64_t now_ns, int *ret_error);

/** Copies what is still held of this side's lent frames: the caller's memory is free again. */
void compare_settle(Compare *compare, CompareSide side);
/** How many frames that would copy. */
uint32_t compare_lent(const Compare *compare, CompareSide side);

/** Shows a frame on its way to both guests, before any answer to it is submitted. Optional: it
 * makes known when a connection is over, so that one guest's RST about it is no divergence
 * (client.c). */
void compare_note_client(Compare *compare, const uint8_t *bytes, uint32_t len,
                         uint8_t vnet_hdr_len);

/** Reports frames that waited too long, lets acks go that waited for a window, and forgets idle
 * flows. Call at least every timeout / 8. */
void compare_tick(Compare *compare, int64_t now_ns);

/** When compare_tick() has something to do next; INT64_MAX: nothing is held. */
int64_t compare_next_deadline_ns(const Compare *compare);
/** When the oldest held frame came that has not timed out; INT64_MAX: none, or a checkpoint is
 * under way. */
int64_t compare_oldest_ns(const Compare *compare);

/** Checkpoint @epoch is under way: all frames of older epochs are covered by it.
 *
 * Until the commit, matching frames of the old epoch still leave, nothing times out, and frames of
 * @epoch wait. Return: 0, or -EINVAL if @epoch is not newer than the current one.
 */
int compare_begin_checkpoint(Compare *compare, uint64_t epoch);

/** Checkpoint @epoch is committed: the secondary now is the primary of that moment.
 *
 * All held frames of the primary of older epochs are released in arrival order, those of the
 * secondary are forgotten; later ones of older epochs are treated alike as they come. Frames of
 * @epoch that came early are then compared. Return: 0, or -EINVAL if @epoch is not newer.
 */
int compare_commit(Compare *compare, uint64_t epoch, int64_t now_ns);

/** The comparison ends (failover): everything held of the primary is released. */
void compare_flush(Compare *compare, int64_t now_ns);

uint64_t compare_epoch(const Compare *compare);

typedef struct CompareStats {
    uint64_t frames[2]; /* submitted and taken, by side */
    uint64_t bytes[2];
    uint64_t released[COMPARE_N_WHYS];
    uint64_t divergences[COMPARE_N_RULES];
    uint64_t stale[2]; /* of an epoch already committed */
    uint64_t classes[2][FRAME_N_CLASSES];
    uint64_t refused; /* -ENOBUFS */
    uint64_t digests; /* segments of the secondary that came as digests */
    uint64_t wanted;  /* of them, those that were asked for whole */
    uint64_t windows_lowered;
    uint64_t announcements; /* of the secondary alone, ignored */
    uint64_t checkpoints;   /* committed */
    uint64_t reassembled[2];
    uint64_t flows_created;
    uint64_t flows_expired;
    uint64_t flows_evicted;
    uint32_t flows;              /* now */
    uint32_t held_frames[2];     /* now */
    uint64_t held_bytes;         /* now, memory */
    uint64_t held_bytes_side[2]; /* now, of frames */
    uint64_t held_bytes_max;
    uint64_t hold_ns_total; /* over released frames */
    int64_t hold_ns_max;
} CompareStats;

const CompareStats *compare_stats(const Compare *compare);
