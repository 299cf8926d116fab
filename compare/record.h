/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* record.h - divergences kept for whoever asks why: a bounded ring, as text, JSON and pcapng */
#pragma once

#include <json-c/json.h>
#include <stdint.h>

#include "compare.h"
#include "pcapng.h"

/* One divergence that owns what it points to: @d's flow and frames are copies. */
typedef struct DivergenceRecord {
    CompareDivergence d;
    FlowKey flow;
    uint64_t number; /* counts from 1 */
} DivergenceRecord;

enum { RECORD_TEXT_MAX = 512 };

/** One line without a newline; @record may be any CompareDivergence, e.g. in its callback. */
void divergence_format(const CompareDivergence *d, char buf[static RECORD_TEXT_MAX]);

/** An object with time (seconds), flow, proto, rule, offset, epoch, waited_ms and the first bytes
 * that differ, as hex. The caller owns it.
 */
struct json_object *divergence_to_json(const CompareDivergence *d);

/** Writes both frames, without their virtio-net headers, to interface 0 and 1 of @writer; the
 * line of divergence_format() is the comment of the first.
 */
void divergence_write_pcapng(const CompareDivergence *d, PcapngWriter *writer);

/* DivergenceRing: the last divergences. All memory is taken at construction. One thread. */
typedef struct DivergenceRing DivergenceRing;

/** Return: a ring of the last @n_max divergences, or NULL. */
DivergenceRing *divergence_ring_new(uint32_t n_max);
void divergence_ring_free(DivergenceRing *ring);
void divergence_ring_add(DivergenceRing *ring, const CompareDivergence *d);
uint32_t divergence_ring_count(const DivergenceRing *ring);
/** @index 0 is the oldest kept; NULL beyond the last. */
const DivergenceRecord *divergence_ring_get(const DivergenceRing *ring, uint32_t index);
