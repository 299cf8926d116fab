/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* record.c - divergences kept for whoever asks why: a bounded ring, as text, JSON and pcapng */
#include "record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

struct DivergenceRing {
    uint32_t n_max;
    uint64_t n_added;
    DivergenceRecord *records;
    uint8_t *frames; /* two of FRAME_MAX_BYTES for each record */
};

/* --- formats --- */

static void
format_hex(const uint8_t *bytes, size_t n, char *buf)
{
    for (size_t i = 0; i < n; i++)
        (void)sprintf(buf + 2 * i, "%02x", bytes[i]);
    buf[2 * n] = 0;
}

static void
format_flow(const CompareDivergence *d, char *buf, size_t size)
{
    if (d->flow)
        frame_key_format(d->flow, buf, size);
    else
        (void)snprintf(buf, size, "-");
}

void
divergence_format(const CompareDivergence *d, char buf[static RECORD_TEXT_MAX])
{
    char flow[160];
    char primary[40];
    char secondary[40];

    format_flow(d, flow, sizeof(flow));
    format_hex(d->primary_bytes, d->n_primary_bytes, primary);
    format_hex(d->secondary_bytes, d->n_secondary_bytes, secondary);
    (void)snprintf(buf, RECORD_TEXT_MAX,
                   "%.6f %s %s offset %u waited %.3f ms epoch %llu primary %s secondary %s",
                   (double)d->time_ns / (double)NS_PER_S, compare_rule_name(d->rule), flow,
                   (unsigned)d->offset, (double)d->waited_ns / (double)NS_PER_MS,
                   (unsigned long long)d->epoch, d->primary_frame ? primary : "-",
                   d->secondary_frame ? secondary : "-");
}

static void
add_string(struct json_object *o, const char *key, const char *value)
{
    json_object_object_add(o, key, json_object_new_string(value));
}

struct json_object *
divergence_to_json(const CompareDivergence *d)
{
    struct json_object *o = json_object_new_object();
    char text[160];

    json_object_object_add(o, "time",
                           json_object_new_double((double)d->time_ns / (double)NS_PER_S));
    format_flow(d, text, sizeof(text));
    add_string(o, "flow", text);
    add_string(o, "proto", d->flow ? frame_class_name(frame_key_class(d->flow)) : "-");
    add_string(o, "rule", compare_rule_name(d->rule));
    json_object_object_add(o, "offset", json_object_new_int64(d->offset));
    json_object_object_add(o, "epoch", json_object_new_int64((int64_t)d->epoch));
    json_object_object_add(o, "waited_ms",
                           json_object_new_double((double)d->waited_ns / (double)NS_PER_MS));
    format_hex(d->primary_bytes, d->n_primary_bytes, text);
    add_string(o, "primary_bytes", text);
    format_hex(d->secondary_bytes, d->n_secondary_bytes, text);
    add_string(o, "secondary_bytes", text);
    return o;
}

void
divergence_write_pcapng(const CompareDivergence *d, PcapngWriter *writer)
{
    char comment[RECORD_TEXT_MAX];

    divergence_format(d, comment);
    if (d->primary_frame && d->primary_len >= d->primary_vnet_hdr_len)
        pcapng_writer_add_packet(writer, 0, d->time_ns, d->primary_frame + d->primary_vnet_hdr_len,
                                 d->primary_len - d->primary_vnet_hdr_len, comment);
    if (d->secondary_frame && d->secondary_len >= d->secondary_vnet_hdr_len)
        pcapng_writer_add_packet(
            writer, 1, d->time_ns, d->secondary_frame + d->secondary_vnet_hdr_len,
            d->secondary_len - d->secondary_vnet_hdr_len, d->primary_frame ? "secondary" : comment);
}

/* --- ring --- */

DivergenceRing *
divergence_ring_new(uint32_t n_max)
{
    DivergenceRing *ring = calloc(1, sizeof(*ring));

    if (!ring || !n_max) {
        free(ring);
        return NULL;
    }
    ring->n_max = n_max;
    ring->records = calloc(n_max, sizeof(*ring->records));
    /* Large and untouched until used: the kernel gives the pages as divergences come. */
    ring->frames = calloc(n_max, (size_t)2 * FRAME_MAX_BYTES);
    if (!ring->records || !ring->frames) {
        divergence_ring_free(ring);
        return NULL;
    }
    return ring;
}

void
divergence_ring_free(DivergenceRing *ring)
{
    if (!ring)
        return;
    free(ring->records);
    free(ring->frames);
    free(ring);
}

void
divergence_ring_add(DivergenceRing *ring, const CompareDivergence *d)
{
    uint32_t slot = (uint32_t)(ring->n_added++ % ring->n_max);
    DivergenceRecord *record = &ring->records[slot];
    uint8_t *primary = ring->frames + (size_t)slot * 2 * FRAME_MAX_BYTES;
    uint8_t *secondary = primary + FRAME_MAX_BYTES;

    record->d = *d;
    record->number = ring->n_added;
    if (d->flow) {
        record->flow = *d->flow;
        record->d.flow = &record->flow;
    }
    if (d->primary_frame)
        record->d.primary_frame = memcpy(primary, d->primary_frame, d->primary_len);
    if (d->secondary_frame)
        record->d.secondary_frame = memcpy(secondary, d->secondary_frame, d->secondary_len);
}

uint32_t
divergence_ring_count(const DivergenceRing *ring)
{
    return ring->n_added < ring->n_max ? (uint32_t)ring->n_added : ring->n_max;
}

const DivergenceRecord *
divergence_ring_get(const DivergenceRing *ring, uint32_t index)
{
    uint64_t first = ring->n_added - divergence_ring_count(ring);

    if (index >= divergence_ring_count(ring))
        return NULL;
    return &ring->records[(first + index) % ring->n_max];
}
