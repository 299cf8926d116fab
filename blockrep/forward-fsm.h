/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-fsm.h - what the forwarder does with the guest's writes, and which command may change
 * that (pure)
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/*
 * | mode      | a write of the guest                                                  |
 * | idle      | acknowledged, forgotten: the target keeps it                          |
 * | alone     | marked in the map, acknowledged                                       |
 * | syncing   | marked, acknowledged; queued as well if the peer has the rest of it   |
 * | mirroring | marked, queued, acknowledged                                          |
 */
typedef enum ForwardMode {
    FORWARD_IDLE,
    FORWARD_ALONE,
    FORWARD_SYNCING,
    FORWARD_MIRRORING,
    FORWARD_MODE_COUNT,
} ForwardMode;

typedef enum ForwardEvent {
    FORWARD_EVENT_ALONE,   /* this host's disk is the truth, and no peer's is */
    FORWARD_EVENT_CONNECT, /* the peer's disk is to become equal */
    FORWARD_EVENT_FINISH,  /* the guest stands: what is left is to be copied */
    FORWARD_EVENT_FINISHED,
    FORWARD_EVENT_BARRIER,
    FORWARD_EVENT_RELEASE,
    FORWARD_EVENT_VERIFY,
    FORWARD_EVENT_LOST, /* the connection, or a write on the other side */
    FORWARD_EVENT_COUNT,
} ForwardEvent;

typedef struct ForwardFacts {
    uint64_t generation;       /* the disk's */
    uint64_t asked_generation; /* alone, connect */
    bool first;                /* alone: also a disk that was never replicated */
    bool never_used;           /* the metadata has never been written */
    bool up_to_date;           /* the metadata says so */
    bool committing;           /* a failover's commit has to be finished */
    bool holding;              /* since a barrier or finish */
    bool drained;              /* nothing but what is held is unconfirmed */
} ForwardFacts;

const char *forward_mode_name(ForwardMode mode); /* "idle", "alone", ... */

/**
 * The mode after @event, or why the event is refused. Touches nothing.
 *
 * Return: NULL, @ret_mode is set (it may be the same); or the reason, static text.
 */
const char *forward_fsm_step(ForwardMode mode, ForwardEvent event, const ForwardFacts *facts,
                             ForwardMode *ret_mode);
