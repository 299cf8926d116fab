/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-replay.c - command line: compares two captures as lock-stepping would have */
#include <stdio.h>
#include <stdlib.h>

#include "clock.h"
#include "options.h"
#include "replay.h"

enum { EXIT_SAME = 0, EXIT_DIVERGED = 1, EXIT_BAD_INPUT = 2, PAUSE_MS_DEFAULT = 10 };

typedef struct Arguments {
    gboolean json;
    gboolean no_seq_rewrite;
    gboolean progress;
    gboolean align;
    gboolean version;
    int timeout_ms;
    int pause_ms;
    char *policy;
    char *write_dir;
    char **paths;
} Arguments;

static void
arguments_clear(Arguments *a)
{
    g_free(a->policy);
    g_free(a->write_dir);
    g_strfreev(a->paths);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Arguments, arguments_clear)

static void
print_divergence(void *opaque, const CompareDivergence *d, const char *text)
{
    (void)opaque;
    (void)d;
    (void)puts(text);
}

static uint64_t
released(const CompareStats *s)
{
    uint64_t n = 0;

    for (int i = 0; i < COMPARE_N_WHYS; i++)
        n += s->released[i];
    return n;
}

static double
paused_percent(const ReplayResult *r, int pause_ms)
{
    int64_t pause_ns = (int64_t)r->n_checkpoints * pause_ms * NS_PER_MS;

    return r->duration_ns + pause_ns > 0
               ? 100.0 * (double)pause_ns / (double)(r->duration_ns + pause_ns)
               : 0;
}

static double
mean_hold_ms(const CompareStats *s)
{
    return released(s) ? (double)s->hold_ns_total / (double)released(s) / (double)NS_PER_MS : 0;
}

static void
print_table(const ReplayResult *r, const Arguments *a)
{
    const CompareStats *s = &r->stats;

    printf("%-28s %14s %14s\n", "", "primary", "secondary");
    printf("%-28s %14" G_GUINT64_FORMAT " %14" G_GUINT64_FORMAT "\n", "frames", s->frames[0],
           s->frames[1]);
    printf("%-28s %14" G_GUINT64_FORMAT " %14" G_GUINT64_FORMAT "\n", "bytes", s->bytes[0],
           s->bytes[1]);
    for (int c = 0; c < FRAME_N_CLASSES; c++) {
        if (s->classes[0][c] || s->classes[1][c])
            printf("  %-26s %14" G_GUINT64_FORMAT " %14" G_GUINT64_FORMAT "\n",
                   frame_class_name((FrameClass)c), s->classes[0][c], s->classes[1][c]);
    }
    printf("%-28s %14" G_GUINT64_FORMAT "\n", "flows", s->flows_created);
    printf("%-28s %14" G_GUINT64_FORMAT "\n", "released, same output",
           s->released[COMPARE_RELEASED_MATCHED]);
    printf("%-28s %14" G_GUINT64_FORMAT "\n", "released, ack lowered",
           s->released[COMPARE_RELEASED_ACK_LOWERED]);
    printf("%-28s %14" G_GUINT64_FORMAT "\n", "released by policy",
           s->released[COMPARE_RELEASED_PASSED]);
    printf("%-28s %14" G_GUINT64_FORMAT "\n", "released by a checkpoint",
           s->released[COMPARE_RELEASED_COMMITTED]);
    printf("%-28s %14" G_GUINT64_FORMAT "\n", "divergences", r->n_divergences);
    printf("%-28s %14.3f ms mean %.3f ms max\n", "held before release", mean_hold_ms(s),
           (double)s->hold_ns_max / (double)NS_PER_MS);
    printf("%-28s %14" G_GUINT64_FORMAT " in %.3f s; at %d ms each: %.1f ms, %.2f %% of the time\n",
           "checkpoints", r->n_checkpoints, (double)r->duration_ns / (double)NS_PER_S, a->pause_ms,
           (double)r->n_checkpoints * a->pause_ms, paused_percent(r, a->pause_ms));
}

static void
add_int(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static void
print_json(const ReplayResult *r, const Arguments *a)
{
    const CompareStats *s = &r->stats;
    struct json_object *o = json_object_new_object();

    add_int(o, "primary_frames", s->frames[0]);
    add_int(o, "secondary_frames", s->frames[1]);
    add_int(o, "flows", s->flows_created);
    add_int(o, "released", released(s));
    add_int(o, "released_matched", s->released[COMPARE_RELEASED_MATCHED]);
    add_int(o, "released_ack_lowered", s->released[COMPARE_RELEASED_ACK_LOWERED]);
    add_int(o, "released_by_policy", s->released[COMPARE_RELEASED_PASSED]);
    add_int(o, "released_by_checkpoint", s->released[COMPARE_RELEASED_COMMITTED]);
    add_int(o, "checkpoints", r->n_checkpoints);
    json_object_object_add(o, "duration_s",
                           json_object_new_double((double)r->duration_ns / (double)NS_PER_S));
    json_object_object_add(o, "hold_ms_mean", json_object_new_double(mean_hold_ms(s)));
    json_object_object_add(o, "hold_ms_max",
                           json_object_new_double((double)s->hold_ns_max / (double)NS_PER_MS));
    json_object_object_add(o, "paused_percent",
                           json_object_new_double(paused_percent(r, a->pause_ms)));
    json_object_object_add(o, "divergences", json_object_get(r->divergences));
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(o);
}

static gboolean
parse_arguments(int *argc, char ***argv, Arguments *a, GError **error)
{
    const GOptionEntry entries[] = {
        {"json", 0, 0, G_OPTION_ARG_NONE, &a->json, "Print JSON instead of a table", NULL},
        {"timeout-ms", 0, 0, G_OPTION_ARG_INT, &a->timeout_ms,
         "How long a frame may wait for the other side (10 to 10000, default 200)", "MS"},
        {"policy", 0, 0, G_OPTION_ARG_STRING, &a->policy,
         "full, size or pass, or a list of CLASS=POLICY", "POLICY"},
        {"no-seq-rewrite", 0, 0, G_OPTION_ARG_NONE, &a->no_seq_rewrite,
         "Compare TCP sequence numbers as they are", NULL},
        {"align", 0, 0, G_OPTION_ARG_NONE, &a->align, "Let both captures start at the same time",
         NULL},
        {"write", 0, 0, G_OPTION_ARG_FILENAME, &a->write_dir,
         "Write each divergence to a pcapng file in DIR", "DIR"},
        {"pause-ms", 0, 0, G_OPTION_ARG_INT, &a->pause_ms,
         "What a checkpoint is taken to cost (default 10)", "MS"},
        {"speed", 0, 0, G_OPTION_ARG_NONE, &a->progress, "Show progress on stderr", NULL},
        {"version", 0, 0, G_OPTION_ARG_NONE, &a->version, "Print the version", NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &a->paths, NULL, NULL},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
    g_autoptr(GOptionContext) context = g_option_context_new("PRIMARY [SECONDARY]");

    g_option_context_set_summary(
        context, "Compares two captures as the output of the two sides of a protected VM.\n"
                 "PRIMARY alone: a pcapng file with two interfaces, the primary's first.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, argc, argv, error))
        return FALSE;
    guint n = a->paths ? g_strv_length(a->paths) : 0;

    if (!a->version && (n < 1 || n > 2)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "expected one or two captures, got %u; see --help", n);
        return FALSE;
    }
    return TRUE;
}

static gboolean
fill_options(const Arguments *a, ReplayOptions *o, GError **error)
{
    compare_config_init(&o->config);
    o->config.isn = a->no_seq_rewrite ? COMPARE_ISN_EXACT : COMPARE_ISN_LEARN;
    o->config.window_gating = false; /* nothing is sent, so nobody obeys a window */
    o->primary_path = a->paths[0];
    o->secondary_path = a->paths[1];
    o->write_dir = a->write_dir;
    o->progress = a->progress;
    o->align = a->align;
    o->on_divergence = a->json ? NULL : print_divergence;
    if (a->write_dir && g_mkdir_with_parents(a->write_dir, 0755) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s: cannot create", a->write_dir);
        return FALSE;
    }
    return options_set_timeout_ms(a->timeout_ms, &o->config, error) &&
           (!a->policy || options_parse_policy(a->policy, &o->config, error)) &&
           options_random_key(&o->config, error);
}

static int
fail(const GError *error)
{
    g_printerr("colo-replay: %s\n", error->message);
    return EXIT_BAD_INPUT;
}

int
main(int argc, char **argv)
{
    g_auto(Arguments) a = {.timeout_ms = COMPARE_TIMEOUT_MS_DEFAULT, .pause_ms = PAUSE_MS_DEFAULT};
    ReplayOptions options = {0};
    ReplayResult result;
    g_autoptr(GError) error = NULL;

    if (!parse_arguments(&argc, &argv, &a, &error))
        return fail(error);
    if (a.version) {
        puts("colo-replay " COLOD_VERSION);
        return EXIT_SAME;
    }
    if (!fill_options(&a, &options, &error) || !replay_run(&options, &result, &error))
        return fail(error);
    if (a.json)
        print_json(&result, &a);
    else
        print_table(&result, &a);
    int status = result.n_divergences ? EXIT_DIVERGED : EXIT_SAME;

    replay_result_clear(&result);
    return status;
}
