/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter.h - the secondary's TCP numbers in the primary's terms, and back */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"
#include "rewriter-conn.h"

/*
 * Rewriter: between the secondary VM (SVM) and everybody else. Peers on the network know only the
 * sequence numbers and timestamps that the primary VM (PVM) chose; SVM has chosen others for each
 * connection that was opened since the last checkpoint. No I/O, no clock, no thread, no allocation
 * after rewriter_new(); the same calls give the same changes. Each object is used from one thread
 * at a time. One for all NICs of a VM: a connection may come in by one and leave by another.
 * Theory of operation: rewriter.c; the states of a connection: rewriter-conn.h.
 */
typedef struct Rewriter Rewriter;
typedef struct RewriterStore RewriterStore;

typedef struct RewriterConfig {
    uint32_t connections_max; /* 1…REWRITER_CONNECTIONS_LIMIT; 144 bytes each, used as they come */
    uint64_t hash_key[2];     /* random, from getrandom(2), except in tests */
    RewriterStore *store;     /* borrowed, of as many slots; NULL: connections die with us */
} RewriterConfig;

enum {
    REWRITER_CONNECTIONS_DEFAULT = 1 << 18,
    REWRITER_CONNECTIONS_LIMIT = 1 << 22,
};

/* Counters since rewriter_new(); [0] egress, [1] ingress where there are two. */
typedef struct RewriterStats {
    uint64_t tcp_frames[2];
    uint64_t translated[2];
    uint64_t icmp_translated; /* ingress ICMP errors about a translated connection */
    uint64_t fragments;       /* of TCP: passed as they were */
    uint64_t learned;         /* offsets learned */
    uint64_t early;           /* what the peer said to PVM's numbers before SVM had said its own */
    uint64_t untracked_full;  /* SYNs that found the table full: not translated */
    uint64_t untracked_ambiguous; /* connections whose offset cannot be known: not translated */
    int64_t untracked_last_ns;    /* when one of the two last happened */
    uint64_t evicted;             /* closed or half-open connections that made room for another */
    uint64_t forgotten;           /* connections forgotten by a commit */
    uint64_t unsaved;             /* records that the store had no room for */
    uint32_t connections;         /* known now */
    uint32_t connections_open;    /* of these: neither half-open nor closed */
} RewriterStats;

/** Creates a rewriter that learns, as on a secondary right after a checkpoint.
 *
 * Return: 0, or a negative errno: -EINVAL (connections_max out of range), -ENOMEM.
 */
int rewriter_new(const RewriterConfig *config, Rewriter **ret_rewriter);
/** NULL is allowed. */
void rewriter_free(Rewriter *rewriter);

/** A frame that SVM sent, on its way to the peer's comparison or, after a takeover, to the LAN.
 *
 * A frame is a 10-byte struct virtio_net_hdr (host order), then Ethernet with up to two VLAN tags;
 * GSO up to 64 KiB and partial checksums are understood. It is changed in place, never in length.
 * Nothing in it is trusted; what cannot be parsed passes as it is.
 */
void rewriter_egress(Rewriter *rewriter, uint8_t *frame, size_t len, int64_t now_ns);

/** A frame for SVM: the primary's copy or, after a takeover, from the LAN. As above. */
void rewriter_ingress(Rewriter *rewriter, uint8_t *frame, size_t len, int64_t now_ns);

/** A checkpoint was committed: SVM now is PVM, numbers included, and all offsets are forgotten.
 *
 * Call it between the last frame of the old SVM and the first of the new one. Costs the same
 * whatever is known. After a takeover it makes the rewriter learn again.
 */
void rewriter_commit(Rewriter *rewriter);

/** PVM is gone, SVM serves alone: known connections are translated until they close, new ones pass.
 *
 * If SVM becomes the primary of a new pair the rewriter stays on the LAN's side: the new secondary
 * and the comparison see SVM's own numbers.
 */
void rewriter_takeover(Rewriter *rewriter);

/*
 * A survivor's connections with numbers of its own are to survive the next failover as well: the
 * new secondary gets the numbers inside with the memory, and from here how clients see them; of
 * one whose handshake is under way, what may yet tell.
 */
typedef struct RewriterRecord {
    FlowKey key; /* as the guest sends */
    RewriterConn conn;
} RewriterRecord;

/** The next connection that is translated or may come to be, from *@cursor on (0 to begin with).
 * False: no more. */
bool rewriter_export(Rewriter *rewriter, uint32_t *cursor, RewriterRecord *ret_record);
/** The connection of which the last frame told the numbers. False: it told none. */
bool rewriter_learned(const Rewriter *rewriter, RewriterRecord *ret_record);
/** Knows a connection as another rewriter does. Return: 0, -EINVAL for what rewriter_export() never
 * says, or -ENOBUFS if all known are open. */
int rewriter_import(Rewriter *rewriter, const RewriterRecord *record);
/** A frame of the guest's that is not to be changed: a SYN with another number ends the connection
 * on its ports. Return: whether it is the SYN, once more, of a connection that is known. */
bool rewriter_note_egress(Rewriter *rewriter, const uint8_t *frame, size_t len);

/** Kept current; lives as long as @rewriter. */
const RewriterStats *rewriter_stats(const Rewriter *rewriter);
