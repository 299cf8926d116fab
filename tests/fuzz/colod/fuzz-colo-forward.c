/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-colo-forward.c - any split of a stream gives the same events, figures and error */
/*
 * Input: be16 seed of the split, be16 bytes of the stream before READY, then the stream.
 */
#include "colo-stream.h"

enum { TAIL_MAX_BYTES = 4096, STEP_MAX_BYTES = 40 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Run {
    ColoForward *parser;
    GString *events;
    size_t offset; /* in the stream */
    gboolean failed;
} Run;

static void
feed(Run *run, View in)
{
    while (!run->failed) {
        g_autoptr(GError) error = NULL;
        ColoForwardEvent event = COLO_FORWARD_NONE;
        size_t before = in.len;

        if (!colo_forward_parse(run->parser, &in, &event, &error)) {
            g_string_append_printf(run->events, "! %s", error->message);
            run->failed = TRUE;
            return;
        }
        g_assert(in.len <= before);
        run->offset += before - in.len;
        if (event == COLO_FORWARD_NONE) {
            g_assert(in.len == 0);
            return;
        }
        g_string_append_printf(run->events, "%d@%zu %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT ";",
                               (int)event, run->offset, colo_forward_pages(run->parser),
                               colo_forward_bytes(run->parser));
    }
}

/* @seed 0: whole. */
static void
feed_split(Run *run, View in, guint32 seed)
{
    while (in.len > 0) {
        size_t step = seed == 0 ? in.len : 1 + (seed >> 16) % STEP_MAX_BYTES;
        const uint8_t *bytes;

        seed = seed == 0 ? 0 : seed * 1103515245 + 12345;
        step = MIN(step, in.len);
        (void)view_take(&in, step, &bytes);
        feed(run, view_of(bytes, step));
    }
}

static char *
parse(View stream, size_t ready_at, guint32 seed)
{
    Run run = {.parser = colo_forward_new(TAIL_MAX_BYTES), .events = g_string_new(NULL)};
    View before = view_of(stream.data, MIN(ready_at, stream.len));

    (void)view_skip(&stream, before.len);
    feed_split(&run, before, seed);
    if (!run.failed && !colo_forward_set_ready(run.parser, NULL))
        g_string_append(run.events, "not ready;");
    feed_split(&run, stream, seed);
    colo_forward_free(run.parser);
    return g_string_free(run.events, FALSE);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    View in = view_of(data, size);
    uint16_t seed, ready_at;

    if (!view_get_be16(&in, &seed) || !view_get_be16(&in, &ready_at))
        return 0;

    g_autofree char *whole = parse(in, ready_at, 0);
    g_autofree char *split = parse(in, ready_at, (guint32)seed * 65537 + 1);

    g_assert_cmpstr(whole, ==, split);
    return 0;
}
