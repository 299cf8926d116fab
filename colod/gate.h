/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* gate.h - the checkpoint tunnel's two ends and the gate they keep (docs/ARCHITECTURE.md, "Gate")
 */
#pragma once

#include "peer-channel.h"

#include <gio/gio.h>
#include <glib.h>

#include <stdbool.h>

#define GATE_ERROR (gate_error_quark())
GQuark gate_error_quark(void);

typedef enum GateError {
    GATE_ERROR_PEER_DEADLINE, /* the same, and it was the peer's to send */
    GATE_ERROR_DEADLINE, /* a message missed its deadline; the text names message, step and limit */
    GATE_ERROR_STREAM, /* QEMU's stream is not what it must be (COLO_STREAM_ERROR's text inside) */
    GATE_ERROR_VM_CLOSED,   /* the local QEMU closed its migration socket */
    GATE_ERROR_PEER_CLOSED, /* the checkpoint channel closed */
    GATE_ERROR_CHECKSUM,    /* END's epoch, length or checksum does not fit what arrived */
    GATE_ERROR_PROTOCOL,    /* the peer sent a checkpoint message out of turn */
} GateError;

/* Steps of a checkpoint as docs/ARCHITECTURE.md numbers them; for status, errors and the stall
 * hook. */
typedef enum GateStep {
    GATE_STEP_IDLE = 0,
    GATE_STEP_REQUEST = 1,  /* ingress is stopped, REQUEST not yet passed on */
    GATE_STEP_REPLY = 2,    /* REQUEST passed on, REPLY awaited */
    GATE_STEP_SEND = 3,     /* REPLY passed on: VMSTATE_SEND awaited, or queue being marked */
    GATE_STEP_TRANSFER = 4, /* RAM delta and tail under way; END not yet sent / verified */
    GATE_STEP_COMMIT = 5,   /* END sent / verified; COMMITTED not yet sent / seen */
    GATE_STEP_RELEASE = 6,  /* COMMITTED; RECEIVED awaited */
    GATE_STEP_LOAD = 7,     /* RECEIVED passed; LOADED awaited */
} GateStep;

const char *gate_step_name(GateStep step);

/*
 * Points where the gate stops and asks. It stays there, with the step's deadline running, until
 * gate_continue(): that is where network, disks and state machine hook in.
 */
typedef enum GatePoint {
    /* primary */
    GATE_POINT_READY,   /* READY is here and PVM does not run yet: start holding output, then go on
                         * (ARM   is sent, READY is passed on) */
    GATE_POINT_REQUEST, /* REQUEST is here: ingress must be stopped before it is passed on */
    GATE_POINT_MARK,    /* VMSTATE_SEND is here: drain PVM's port, mark the queue, disk barrier. The
                         * stream    flows on meanwhile; END waits */
    /* both, once, in the initial migration; PVM stands and has drained its disks */
    GATE_POINT_STATE, /* primary: RAM is over: make the disks equal, then the device state goes out;
                       * secondary: its first byte is here: divide the disks, then SVM gets it, and
                       * may run */
    /* secondary */
    GATE_POINT_QUIESCE, /* REQUEST is here: SVM must have taken what it was given before it stands
                         */
    GATE_POINT_REPLY,   /* REPLY is here: drain SVM's port */
    GATE_POINT_COMMIT, /* END verified: empty overlays, start the rewriter's epoch; then the tail is
                        * let through and COMMITTED sent */
    GATE_N_POINTS,
} GatePoint;

/* Things that happened; the gate does not wait. */
typedef enum GateNotice {
    GATE_NOTICE_RAM_DONE,  /* initial migration: RAM is over */
    GATE_NOTICE_READY,     /* secondary: SVM said READY; primary: READY was passed on */
    GATE_NOTICE_ARMED,     /* secondary: ARM came; SVM may be promoted from here on */
    GATE_NOTICE_ANSWERED,  /* primary with early_resume: END is out, PVM's QEMU was told to go on */
    GATE_NOTICE_COMMITTED, /* primary: COMMITTED(epoch) came; secondary: it was sent */
    GATE_NOTICE_LOADED,    /* LOADED of this epoch was passed on / seen */
    GATE_NOTICE_STALLED,   /* the stall hook caught the gate at the step of gate_set_stall() */
} GateNotice;

typedef struct Gate Gate;

/* Callbacks run in the main context current in gate_*_new(); the gate may be freed from each. */
typedef struct GateHandlers {
    void (*point)(Gate *gate, GatePoint point, guint64 epoch, gpointer user_data);
    void (*notice)(Gate *gate, GateNotice notice, guint64 epoch, gpointer user_data);
    /* Once. From here on nothing passes any more, and what was held of an uncommitted checkpoint
     * has been dropped. GATE_ERROR_PEER_CLOSED on a secondary in GATE_LOAD_LOADING is not reported
     * before the load ended: `notice` LOADED first, then this. The migration socket is still open:
     * gate_free() closes it, which is what makes QEMU notice. */
    void (*failed)(Gate *gate, const GError *reason, gpointer user_data);
} GateHandlers;

typedef struct GateConfig {
    unsigned message_timeout_ms; /* each COLO message, and each silence within a transfer */
    unsigned peer_margin_ms; /* added where the peer is to send: the end nearer to a fault sees it
                                first */
    unsigned transfer_timeout_ms;  /* RAM delta and tail of one checkpoint, in all */
    unsigned migration_timeout_ms; /* silence within the initial migration */
    guint64 tail_max_bytes;        /* device state held in memory */
    /* Primary: PVM runs on as soon as its state is out, while the peer still commits and loads it.
     * Only where all that PVM says and writes from then on waits for the next checkpoint. */
    bool early_resume;
} GateConfig;

/**
 * Primary end. @vm_fd: the accepted migration socket of PVM's QEMU (taken). @channel_stream: the
 * checkpoint channel (referenced). @generation goes into ARM.
 */
Gate *gate_primary_new(int vm_fd, GIOStream *channel_stream, guint64 generation,
                       const GateConfig *config, const GateHandlers *handlers, gpointer user_data);

/** Secondary end. @vm_fd: connected to SVM's incoming migration socket (taken). */
Gate *gate_secondary_new(int vm_fd, GIOStream *channel_stream, const GateConfig *config,
                         const GateHandlers *handlers, gpointer user_data);

/** Closes both sides without callbacks. NULL is fine. */
void gate_free(Gate *gate);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Gate, gate_free)

/**
 * Passes the point the gate stands at. Asserts that it stands at @point: a caller's bug. What
 * follows happens before it returns, callbacks included; nothing happens if the gate has failed.
 */
void gate_continue(Gate *gate, GatePoint point);

/** Whether gate_continue() of @point is due: false also for a gate that has failed or stalled. */
bool gate_stands_at(const Gate *gate, GatePoint point);

/**
 * Primary: a checkpoint was triggered over QMP; REQUEST is due within message_timeout_ms. Without
 * this call an idle gate waits for REQUEST without a deadline (a secondary always does, heartbeats
 * watch the link).
 */
void gate_expect_request(Gate *gate);

/**
 * The peer is known to be lost, by other means than its channel: nothing more is taken from it.
 * `failed` with GATE_ERROR_PEER_CLOSED follows: from within this call, or, on a secondary in
 * GATE_LOAD_LOADING, when the load has ended. No-op on a gate that has failed.
 */
void gate_detach_peer(Gate *gate);

GateStep gate_step(const Gate *gate);

/* Whether SVM's own state is whole. */
typedef enum GateLoad {
    GATE_LOAD_NEVER,   /* never armed: this VM must not be promoted */
    GATE_LOAD_CLEAN,   /* SVM runs or is stopped in a state of its own; nothing of a newer epoch has
                          reached it */
    GATE_LOAD_LOADING, /* a committed tail was let through and LOADED has not come */
    GATE_LOAD_BROKEN,  /* LOADED did not come: this VM must not be promoted */
} GateLoad;
GateLoad gate_load(const Gate *gate);

/* Figures of the last whole checkpoint. */
typedef struct GateFigures {
    guint64 epoch; /* of the last COMMITTED; 0 before the first */
    guint64 bytes, pages;
    gint64 request_ns, committed_ns, loaded_ns; /* CLOCK_MONOTONIC */
} GateFigures;
void gate_get_figures(const Gate *gate, GateFigures *ret_figures);

/** Test hook: the gate stops for good when it reaches @step (after its message arrived, before it
 * is passed on) and says GATE_NOTICE_STALLED. Its own deadlines are off from then on. */
void gate_set_stall(Gate *gate, GateStep step);

/** Test hook: flips one bit of the next checkpoint's bytes on their way out, after the checksum. */
void gate_corrupt_next(Gate *gate);
