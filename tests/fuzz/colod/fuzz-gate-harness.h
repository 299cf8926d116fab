/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-gate-harness.h - a real gate of either end, with books of what went in and what came out */
#pragma once

#include "gate-private.h"

enum {
    GENERATION = 7,
    N_POINTS = GATE_N_POINTS,
};

/* Where a checkpoint stands in `forward_in`: behind its messages; 0: not said yet. */
typedef struct Record {
    size_t request_at, send_at, ram_end_at, tail_end_at;
} Record;

/* What the forward direction said, by the harness's own parser. */
typedef struct Books {
    ColoForward *parser;
    bool broken;
    size_t state_at; /* where the initial device state begins in `forward_in`; 0: not said yet */
    GArray *records; /* Record: of checkpoint n at n - 1 */
} Books;

typedef struct Harness {
    bool primary;
    bool pass;  /* points are passed at once */
    bool early; /* primary: with early resume */
    Gate *gate;
    int vm;
    guint vm_source;
    PeerChannel *peer;
    size_t chunk; /* bytes are said in pieces of this; 0: whole */

    GByteArray *forward_in, *forward_out, *return_in, *return_out;
    Books books;

    bool standing;
    GatePoint point;
    guint64 passed[N_POINTS];
    bool end_fits;       /* secondary: the last END we said */
    bool arm_seen;       /* primary: ARM came out; secondary: notice ARMED */
    guint64 ends;        /* primary: END(n) came out */
    guint64 answered;    /* primary: told */
    guint64 commit_said; /* primary: COMMITTED(n) went in behind END(n) */
    guint64 committed;   /* primary: told; secondary: leave given */
    guint64 commit_seen; /* secondary: COMMITTED(n) came out */
    guint64 loaded;      /* told */
    unsigned failures;
    bool over; /* failed, and settled since */
    size_t over_forward, over_return;
} Harness;

/** A gate between a QEMU and a peer that say nothing yet. @pass: points are passed at once. */
void harness_init(Harness *h, bool primary, bool pass, bool early);
void harness_clear(Harness *h);

/** Says @bytes in pieces of h->chunk. @from_vm: QEMU does, else the peer in DATA. */
void harness_say(Harness *h, bool from_vm, View bytes);

/** Says what @build makes of @argument. @forward: towards SVM. */
void harness_say_built(Harness *h, bool forward, void (*build)(GByteArray *out, unsigned argument),
                       unsigned argument);

/** ARM, COMMITTED or END of the peer, with @n numbers as payload. */
void harness_say_peer_message(Harness *h, PeerMessageType type, const uint64_t *numbers, size_t n);

/** The owner passes the point at which the gate stands, if it does. */
void harness_pass(Harness *h);

/** QEMU goes. */
void harness_close_vm(Harness *h);

/** What was said of checkpoint @epoch. */
Record harness_record(const Harness *h, guint64 epoch);

/** The hash of a checkpoint of which all was said. */
uint64_t harness_covered_hash(const Harness *h, const Record *record);

/** Lets everything happen that can, then asserts what must hold. */
void harness_check(Harness *h);
