/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-conn.h - one connection of the rewriter: a pure state machine */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/*
 * What is known of the connection on one 4-tuple. The contract of each phase:
 *
 * phase      SVM has said                    offset    SVM's segments    acks for SVM    may go
 * ---------  ------------------------------  --------  ----------------  --------------  ------
 * SILENT     nothing                         unknown   (forgets)         pass            yes
 * SYN_SENT   SYN                             unknown   pass              pass            yes
 * SYN_RCVD   SYN-ACK                         unknown   pass              pass            yes
 * LEARNED    SYN or SYN-ACK                  known     translated        translated      yes
 * OPEN       more                            known     translated        translated      closed
 * UNTRACKED  SYN or SYN-ACK, perhaps more    unknowable  pass            pass            yes
 *
 * "May go": may be evicted to make room for another. OPEN may once it is closed, that is after a
 * FIN of both sides or an RST of either; it is translated until it does go, since the last
 * acknowledgement and its repetitions come then. An RST that was not the end (SVM goes on speaking)
 * is taken back.
 *
 * Beside the phase, something may be *pending*: what the peer said, to PVM, of a connection that
 * SVM has not begun yet (SILENT, or the one before on the same ports is not alive any more): a SYN,
 * and the number it acknowledged after it; or a SYN-ACK. PVM's number is taken from it as soon
 * as SVM says its own.
 *
 * SVM's segments that are not SYNs say something where no offset is known, too: in SILENT that
 * SVM has this connection from the checkpoint, with PVM's numbers (so there is nothing to know); in
 * SYN_SENT, and in SYN_RCVD with payload or FIN, that what the peer acknowledges may be more
 * than the SYN (fast open, RFC 7413, or a frame that never came by here): the offset cannot be told
 * any more: UNTRACKED until the next commit.
 */
typedef enum RewriterPhase {
    REWRITER_SILENT,
    REWRITER_SYN_SENT,
    REWRITER_SYN_RCVD,
    REWRITER_LEARNED,
    REWRITER_OPEN,
    REWRITER_UNTRACKED,
    REWRITER_N_PHASES
} RewriterPhase;

enum {
    REWRITER_CONN_ACTIVE = 1 << 0, /* SVM began with a SYN without ACK */
    REWRITER_CONN_FIN_OUT = 1 << 1,
    REWRITER_CONN_FIN_IN = 1 << 2,
    REWRITER_CONN_RESET = 1 << 3,
    REWRITER_CONN_TSVAL = 1 << 4,   /* SVM sends timestamps: tsval_last is set */
    REWRITER_CONN_TS_OFF = 1 << 5,  /* ts_off is known */
    REWRITER_PEND_SYN = 1 << 6,     /* pend_isn is that of a SYN */
    REWRITER_PEND_SYN_ACK = 1 << 7, /* pend_isn, pend_ack and pend_tsecr are those of a SYN-ACK */
    REWRITER_PEND_ACK = 1 << 8,     /* with PEND_SYN: pend_ack, pend_tsecr are set */
    REWRITER_CONN_REFUSED = 1 << 9, /* in SYN_SENT: SVM has reset what acknowledged refused_ack */
};

/* Zeroes are a connection of which nothing is known. Numbers count only where the phase or a flag
 * says so; zero is a number like any other. */
typedef struct RewriterConn {
    uint8_t phase; /* RewriterPhase */
    uint16_t flags;
    uint32_t isn;      /* SVM's */
    uint32_t peer_isn; /* not in SILENT, and not in SYN_SENT */
    uint32_t seq_off;  /* PVM's minus SVM's */
    uint32_t ts_off;   /* the same */
    uint32_t tsval_last;
    uint32_t refused_ack;
    uint32_t pend_isn;
    uint32_t pend_ack;
    uint32_t pend_tsecr; /* 0: none, as in the option */
} RewriterConn;

/* What of a segment matters here. */
typedef struct RewriterSegment {
    bool egress;       /* SVM's */
    uint8_t tcp_flags; /* FRAME_TCP_* */
    bool has_payload;
    bool has_ts; /* tsval and tsecr are set */
    uint32_t seq;
    uint32_t ack;
    uint32_t tsval;
    uint32_t tsecr;
} RewriterSegment;

/* What a step asks for, and what happened. */
enum {
    REWRITER_TRANSLATE = 1 << 0, /* this segment, with the offsets as they are after the step */
    REWRITER_FORGET = 1 << 1,    /* nothing is known of the connection any more */
    REWRITER_DID_LEARN = 1 << 2,
    REWRITER_DID_REMEMBER = 1 << 3, /* the peer was early: pending */
    REWRITER_DID_GIVE_UP = 1 << 4,  /* it became UNTRACKED */
};

/** One segment. @alone: after a takeover, when no new connection is learned.
 *
 * Touches nothing but @conn. Return: the flags above; TRANSLATE only in LEARNED and OPEN.
 */
unsigned rewriter_conn_step(RewriterConn *conn, const RewriterSegment *segment, bool alone);

/** What of a connection another rewriter is to know. False: nothing; it passes as it is. */
bool rewriter_conn_export(const RewriterConn *conn, RewriterConn *ret_conn);
/** Whether rewriter_conn_export() can have said this. */
bool rewriter_conn_is_exported(const RewriterConn *conn);

/** True: seq_off is known. */
static inline bool
rewriter_conn_is_known(const RewriterConn *conn)
{
    return conn->phase == REWRITER_LEARNED || conn->phase == REWRITER_OPEN;
}

/** True: rewriter_conn_export() says something. */
static inline bool
rewriter_conn_exports(const RewriterConn *conn)
{
    return conn->phase != REWRITER_SILENT && conn->phase != REWRITER_UNTRACKED;
}

/** True: it says the same of both. Of handshakes it may say the same all the same. */
static inline bool
rewriter_conn_exports_same(const RewriterConn *before, const RewriterConn *after)
{
    if (!rewriter_conn_is_known(after))
        return !rewriter_conn_exports(before) && !rewriter_conn_exports(after);
    /* One branch: in the path of each segment. */
    return rewriter_conn_is_known(before) &&
           !((before->isn ^ after->isn) | (before->peer_isn ^ after->peer_isn) |
             (before->seq_off ^ after->seq_off) | (before->ts_off ^ after->ts_off) |
             ((before->flags ^ after->flags) & REWRITER_CONN_TS_OFF));
}

/** True: it must not be evicted. */
static inline bool
rewriter_conn_is_open(const RewriterConn *conn)
{
    const uint16_t fins = REWRITER_CONN_FIN_OUT | REWRITER_CONN_FIN_IN;

    return conn->phase == REWRITER_OPEN && !(conn->flags & REWRITER_CONN_RESET) &&
           (conn->flags & fins) != fins;
}
