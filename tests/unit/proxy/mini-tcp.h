/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* mini-tcp.h - just enough TCP for a property test: both opens, go-back-N, FIN, RST, SACK, PAWS */
#pragma once

#include "segment.h"

enum { MINI_MSS = 500, MINI_WINDOW = 2000, MINI_RTO_MS = 60, MINI_RTO_MAX_MS = 500 };

typedef enum MiniState {
    MINI_CLOSED, /* listens */
    MINI_SYN_SENT,
    MINI_SYN_RCVD,
    MINI_OPEN,
    MINI_DONE, /* closed by FINs or RST; still answers, as in TIME-WAIT */
} MiniState;

/* What the application does: the same on all sides of a pair. */
typedef struct MiniApp {
    uint32_t total;      /* bytes to send */
    uint32_t abort_at;   /* resets the connection having received that many; 0: never */
    bool fin_after_peer; /* closes only after the other has */
} MiniApp;

/*
 * MiniTcp: one end of one connection, the @inc'th on its ports. All but isn and irs is in
 * positions: 0 the SYN, 1…total the bytes, then the FIN.
 */
typedef struct MiniTcp {
    MiniState state;
    bool guest;
    uint32_t inc;
    MiniApp app;
    uint32_t isn, irs;
    bool has_irs, fin_received, reset, aborted;
    uint32_t una, nxt, max; /* max: highest nxt so far */
    uint32_t rcv;
    uint32_t ts_off, ts_recent;
    int64_t rto_at;
    int64_t rto_ms;
} MiniTcp;

typedef struct MiniOps {
    void (*emit)(void *opaque, MiniTcp *tcp, const Segment *segment);
    /* A new connection @inc begins at @tcp: sets isn, ts_off and app. False: not taken. */
    bool (*begin)(void *opaque, MiniTcp *tcp, uint32_t inc);
    void *opaque;
} MiniOps;

/** Byte at @position of what guest or peer say on connection @inc. */
uint8_t mini_content(uint32_t inc, bool guest, uint32_t position);

void mini_open(MiniTcp *tcp, uint32_t inc, int64_t now_ms, const MiniOps *ops);
/** @inc: of @segment. Fails the test if payload is not what it should be. */
void mini_input(MiniTcp *tcp, const Segment *segment, uint32_t inc, int64_t now_ms,
                const MiniOps *ops);
void mini_timer(MiniTcp *tcp, int64_t now_ms, const MiniOps *ops);
