/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* gate-private.h - what both ends of the gate share: gate.c with gate-primary.c, gate-secondary.c
 */
#pragma once

#include "gate.h"

#include "colo-stream.h"

#include <stdbool.h>

/* The longest item of either direction that is passed on in one piece: a PONG. */
enum { GATE_ITEM_MAX_BYTES = 8 };

/* A message that has not wholly arrived, or waits to be passed on. */
typedef struct GateItem {
    uint8_t bytes[GATE_ITEM_MAX_BYTES];
    size_t len;
} GateItem;

/* What one end does. Called with the gate alive and not failed. */
typedef struct GateSide {
    /* @bytes: read from the local QEMU; the callee may change them. */
    void (*vm_bytes)(Gate *gate, uint8_t *bytes, size_t len);
    void (*peer_message)(Gate *gate, PeerMessageType type, View payload);
    void (*pass_point)(Gate *gate, GatePoint point);
    /* The peer is lost; true: not to be reported yet. */
    bool (*defer_peer_loss)(Gate *gate);
} GateSide;

/* A limit on the wait for something; GSource with a ready time, moved lazily. */
typedef struct GateDeadline {
    GSource *source;
    gint64 due_us;   /* g_get_monotonic_time(); -1: off */
    gint64 armed_us; /* the source's ready time, never later than due_us */
    const char *awaited;
    unsigned limit_ms;
    bool from_peer;
} GateDeadline;

typedef enum GateTimer {
    GATE_TIMER_MESSAGE,  /* the next message, or the next bytes */
    GATE_TIMER_TRANSFER, /* delta and tail in all */
    GATE_N_TIMERS,
} GateTimer;

struct Gate {
    const GateSide *side;
    GateHandlers handlers;
    gpointer user_data;
    GateConfig config;
    GMainContext *context;
    bool freed, failed;

    GateStep step;
    GateStep stall_step; /* IDLE: none */
    bool stalled;
    bool standing; /* at @point */
    GatePoint point;
    bool ready_seen; /* SVM's READY */
    bool armed;      /* primary: ARM sent; secondary: ARM came */
    guint64 epoch;   /* of the last COMMITTED */
    GateDeadline timers[GATE_N_TIMERS];

    int vm_fd;
    GSource *vm_source;
    gpointer vm_tag;
    GIOCondition vm_events;
    bool vm_reading;
    uint8_t *vm_buffer;
    GByteArray *vm_queue; /* [vm_queue_at, len) waits for the socket */
    size_t vm_queue_at;
    PeerChannel *channel; /* NULL: lost, or failed */

    ColoForward *forward;
    ColoReturn *back;
    GateItem forward_item, return_item;

    struct XXH3_state_s *hash; /* of the checkpoint's bytes behind VMSTATE_SEND */
    bool in_transfer;          /* VMSTATE_SEND came, the tail's end did not */
    bool tail_over;            /* it came, and END was not yet sent or verified */
    GateFigures figures, under_way;

    /* Primary. */
    guint64 generation;
    bool corrupt_next;
    bool vm_answered; /* early resume: PVM runs, the peer's LOADED has not come */

    /* Both, while they stand at GATE_POINT_STATE: read and not yet looked at. */
    GByteArray *unparsed;
    bool vm_held; /* primary: and QEMU is not read */

    /* Secondary. */
    GateLoad load;
    GByteArray *tail; /* VMSTATE_SIZE, its length, device state */
    bool holding;     /* what comes belongs to the tail */
    bool state_due;   /* initial migration: the next byte is device state */
    GError *peer_lost;
};

/** A gate without a side yet. @vm_fd is taken. */
Gate *gate_new(const GateSide *side, int vm_fd, GIOStream *channel_stream, const GateConfig *config,
               const GateHandlers *handlers, gpointer user_data);

/** Neither freed nor failed: to be asked after everything that may have called back. */
bool gate_is_live(const Gate *gate);

/** The epoch of the checkpoint under way. */
guint64 gate_next_epoch(const Gate *gate);

/** Fails for good and calls `failed`. */
void gate_fail(Gate *gate, GateError code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/** As gate_fail(), for what the peer did: a secondary in GATE_LOAD_LOADING finishes the load first.
 */
void gate_fail_peer(Gate *gate, GateError code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/** Fails with the loss of the peer that was deferred. */
void gate_report_peer_loss(Gate *gate);

/** Says that something happened. */
void gate_notify(Gate *gate, GateNotice notice, guint64 epoch);

/** Stops at @point and asks; the message deadline runs. */
void gate_stop_at(Gate *gate, GatePoint point, guint64 epoch, const char *awaited);

/** The same at GATE_POINT_STATE, which takes as long as disks do; @rest of what was read waits. */
void gate_stop_at_state(Gate *gate, View rest);

/** What waited there. */
GByteArray *gate_take_unparsed(Gate *gate);

/** The message of @step is here. True: the stall hook stops the gate, nothing is to be passed on.
 */
bool gate_is_caught(Gate *gate, GateStep step);

/** Starts, restarts (gate_await) and stops a limit. @awaited: static text for the error. */
void gate_await(Gate *gate, GateTimer timer, unsigned limit_ms, const char *awaited);
void gate_await_message(Gate *gate, const char *awaited);
/** The same for what the peer is to send. */
void gate_await_peer(Gate *gate, const char *awaited);
void gate_await_nothing(Gate *gate, GateTimer timer);

/** Bytes moved in the initial migration. */
void gate_initial_progress(Gate *gate);

/** To QEMU: at once as far as the socket takes it, the rest queued. May fail the gate. */
void gate_vm_write(Gate *gate, View bytes);
void gate_vm_set_reading(Gate *gate, bool reading);

/** To the peer; nothing if it is lost. */
void gate_send(Gate *gate, PeerMessageType type, View payload);
void gate_send_message(Gate *gate, PeerMessageType type, ColoMessage message);

/**
 * One step of a parser: what it consumed of @in and what that ended with. False: the gate failed.
 */
bool gate_parse_forward(Gate *gate, View *in, ColoForwardEvent *ret_event, View *ret_part);
bool gate_parse_return(Gate *gate, View *in, ColoReturnEvent *ret_event, View *ret_part);

void gate_item_add(GateItem *item, View part);
/** The item, which is then empty; valid until bytes are added. */
View gate_item_take(GateItem *item);

/** The hash of a checkpoint, from VMSTATE_SEND to the tail's end. */
void gate_transfer_begin(Gate *gate);
void gate_transfer_hash(Gate *gate, View part);
uint64_t gate_transfer_digest(const Gate *gate);

/** LOADED: the figures of this checkpoint are whole. */
void gate_figures_loaded(Gate *gate);
