/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* replay.c - runs two captures through an engine as the output of the two sides */
/*
 * Theory of operation
 *
 * The packets of both captures are taken in order of their time stamps (the primary's first where
 * they are equal) and time moves to each stamp, stopping at every deadline of the engine on the
 * way. A divergence is answered with a checkpoint at once, as if it took no time: the engine's
 * epoch moves on. What it would have cost is for the caller to say from the number of them.
 */
#include "replay.h"

#include <errno.h>
#include <string.h>

#include "capture.h"
#include "clock.h"
#include "record.h"

enum { PROGRESS_EVERY = 1 << 16 };

/* A stream of packets of one or both sides, one packet ahead. */
typedef struct Source {
    Capture *capture;
    const CapturePacket *packet; /* NULL: at the end */
    int64_t start_ns;
} Source;

typedef struct Replay {
    const ReplayOptions *options;
    Compare *compare;
    ReplayResult *result;
    Source sources[2];
    unsigned n_sources;
    int64_t first_ns;
    int64_t now_ns; /* since the first packet */
    bool checkpoint_wanted;
    GError *write_error;
} Replay;

static void
on_release(void *opaque, const CompareRelease *release)
{
    (void)opaque;
    (void)release;
}

static void
write_divergence(Replay *r, const CompareDivergence *d)
{
    g_autofree char *path = g_strdup_printf("%s/divergence-%06" G_GUINT64_FORMAT ".pcapng",
                                            r->options->write_dir, r->result->n_divergences);
    CompareDivergence absolute = *d;
    PcapngWriter *writer;
    int e = pcapng_writer_open(path, &writer);

    absolute.time_ns += r->first_ns;
    if (e == 0) {
        pcapng_writer_add_interface(writer, "primary");
        pcapng_writer_add_interface(writer, "secondary");
        divergence_write_pcapng(&absolute, writer);
        e = pcapng_writer_close(writer);
    }
    if (e < 0 && !r->write_error)
        g_set_error(&r->write_error, G_IO_ERROR, g_io_error_from_errno(-e), "%s: %s", path,
                    g_strerror(-e));
}

static void
on_divergence(void *opaque, const CompareDivergence *d)
{
    Replay *r = opaque;
    char text[RECORD_TEXT_MAX];

    r->checkpoint_wanted = true;
    r->result->n_divergences++;
    json_object_array_add(r->result->divergences, divergence_to_json(d));
    divergence_format(d, text);
    if (r->options->on_divergence)
        r->options->on_divergence(r->options->opaque, d, text);
    if (r->options->write_dir)
        write_divergence(r, d);
}

static void
checkpoint_if_wanted(Replay *r)
{
    if (!r->checkpoint_wanted)
        return;
    r->checkpoint_wanted = false;
    r->result->n_checkpoints++;
    (void)compare_commit(r->compare, compare_epoch(r->compare) + 1, r->now_ns);
}

static void
move_time(Replay *r, int64_t to_ns)
{
    int64_t deadline;

    while ((deadline = compare_next_deadline_ns(r->compare)) < to_ns) {
        r->now_ns = MAX(deadline, r->now_ns);
        compare_tick(r->compare, r->now_ns);
        checkpoint_if_wanted(r);
    }
    r->now_ns = MAX(to_ns, r->now_ns);
    compare_tick(r->compare, r->now_ns);
    checkpoint_if_wanted(r);
}

static gboolean
submit(Replay *r, CompareSide side, const CapturePacket *packet, GError **error)
{
    CompareFrame frame = {.bytes = packet->bytes, .len = packet->len};
    int e;

    do {
        frame.epoch = compare_epoch(r->compare);
        e = compare_submit(r->compare, side, &frame, r->now_ns);
        checkpoint_if_wanted(r);
    } while (e == -ENOBUFS); /* the bound asked for the checkpoint that makes room */
    if (e == 0)
        return TRUE;
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                "%s: packet %" G_GUINT64_FORMAT ": %u bytes are more than a frame can have",
                side == COMPARE_SECONDARY && r->options->secondary_path ? r->options->secondary_path
                                                                        : r->options->primary_path,
                packet->number, packet->len);
    return FALSE;
}

static gboolean
source_advance(Source *s, GError **error)
{
    return capture_next(s->capture, &s->packet, error);
}

static gboolean
source_open(Source *s, const char *path, GError **error)
{
    s->capture = capture_open(path, error);
    if (!s->capture || !source_advance(s, error))
        return FALSE;
    s->start_ns = s->packet ? s->packet->time_ns : 0;
    return TRUE;
}

static int64_t
source_time(const Replay *r, const Source *s)
{
    int64_t start = r->options->align ? s->start_ns : r->first_ns;

    return s->packet->time_ns - start;
}

static Source *
next_source(Replay *r)
{
    Source *a = &r->sources[0];
    Source *b = &r->sources[1];

    if (r->n_sources == 1 || !b->packet)
        return a->packet ? a : NULL;
    if (!a->packet)
        return b;
    return source_time(r, b) < source_time(r, a) ? b : a;
}

static void
report_progress(Replay *r, uint64_t n)
{
    if (!r->options->progress || n % PROGRESS_EVERY)
        return;
    g_printerr("\r%3.0f %%  %" G_GUINT64_FORMAT " packets  %" G_GUINT64_FORMAT " divergences",
               100 * capture_progress(r->sources[0].capture), n, r->result->n_divergences);
}

static gboolean
side_of(const Replay *r, const Source *s, CompareSide *ret_side, GError **error)
{
    uint32_t index = r->n_sources == 2 ? (uint32_t)(s - r->sources) : s->packet->interface;

    if (index > 1) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "%s: packet %" G_GUINT64_FORMAT
                    ": interface %u; the file may have two, the primary's and the secondary's",
                    r->options->primary_path, s->packet->number, index);
        return FALSE;
    }
    *ret_side = (CompareSide)index;
    return TRUE;
}

static gboolean
run_packets(Replay *r, GError **error)
{
    Source *s;

    for (uint64_t n = 1; (s = next_source(r)); n++) {
        CompareSide side;

        if (!side_of(r, s, &side, error))
            return FALSE;
        move_time(r, source_time(r, s));
        if (!submit(r, side, s->packet, error) || !source_advance(s, error))
            return FALSE;
        report_progress(r, n);
    }
    r->result->duration_ns = r->now_ns;
    /* What is left timed out, all in one go: one checkpoint covers it. */
    r->now_ns += r->options->config.timeout_ns;
    compare_tick(r->compare, r->now_ns);
    checkpoint_if_wanted(r);
    return TRUE;
}

static gboolean
open_sources(Replay *r, GError **error)
{
    const ReplayOptions *o = r->options;

    r->n_sources = o->secondary_path ? 2 : 1;
    if (!source_open(&r->sources[0], o->primary_path, error) ||
        (o->secondary_path && !source_open(&r->sources[1], o->secondary_path, error)))
        return FALSE;
    r->first_ns = r->sources[0].start_ns;
    if (r->n_sources == 2 && r->sources[1].packet &&
        (!r->sources[0].packet || r->sources[1].start_ns < r->first_ns))
        r->first_ns = r->sources[1].start_ns;
    return TRUE;
}

static gboolean
create_engine(Replay *r, GError **error)
{
    static const CompareOps ops = {on_release, on_divergence};
    int e = compare_new(&r->options->config, &ops, r, &r->compare);

    if (e == 0)
        return TRUE;
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(-e), "engine: %s", g_strerror(-e));
    return FALSE;
}

gboolean
replay_run(const ReplayOptions *options, ReplayResult *ret_result, GError **error)
{
    ReplayResult result = {.divergences = json_object_new_array()};
    Replay r = {.options = options, .result = &result};
    gboolean ok = open_sources(&r, error) && create_engine(&r, error) && run_packets(&r, error);

    if (options->progress)
        g_printerr("\n");
    if (ok && r.write_error) {
        g_propagate_error(error, g_steal_pointer(&r.write_error));
        ok = FALSE;
    }
    if (r.compare)
        result.stats = *compare_stats(r.compare);
    g_clear_error(&r.write_error);
    compare_free(r.compare);
    for (int i = 0; i < 2; i++)
        capture_free(r.sources[i].capture);
    if (ok)
        *ret_result = result;
    else
        replay_result_clear(&result);
    return ok;
}

void
replay_result_clear(ReplayResult *result)
{
    json_object_put(result->divergences);
    result->divergences = NULL;
}
