/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-compare.c - command line: the comparison engine behind QEMU's own filters */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "front.h"
#include "options.h"

enum { EXIT_USAGE = 2 };

typedef struct Arguments {
    char *primary, *secondary, *out, *notify;
    gboolean vnet_hdr;
    gboolean strict_announcements;
    gboolean version;
    int timeout_ms;
    int shards;
    int memory_mib;
    char *policy;
    char *stats_path;
} Arguments;

static void
arguments_clear(Arguments *a)
{
    g_free(a->primary);
    g_free(a->secondary);
    g_free(a->out);
    g_free(a->notify);
    g_free(a->policy);
    g_free(a->stats_path);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Arguments, arguments_clear)

static void
write_stats(Front *front, void *opaque)
{
    const char *path = opaque;
    struct json_object *o = front_report(front);
    const char *text =
        json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED);
    g_autoptr(GError) error = NULL;

    if (!path || !strcmp(path, "-")) {
        (void)puts(text);
        (void)fflush(stdout);
    } else if (!g_file_set_contents(path, text, -1, &error)) {
        g_printerr("colo-compare: %s\n", error->message);
    }
    json_object_put(o);
}

static gboolean
parse_arguments(int *argc, char ***argv, Arguments *a, GError **error)
{
    const GOptionEntry entries[] = {
        {"primary", 0, 0, G_OPTION_ARG_STRING, &a->primary, "Where the primary's packets come in",
         "ADDRESS"},
        {"secondary", 0, 0, G_OPTION_ARG_STRING, &a->secondary,
         "Where the secondary's packets come in", "ADDRESS"},
        {"out", 0, 0, G_OPTION_ARG_STRING, &a->out, "Where released packets go out", "ADDRESS"},
        {"notify", 0, 0, G_OPTION_ARG_STRING, &a->notify,
         "Where checkpoints are asked for and announced", "ADDRESS"},
        {"vnet-hdr", 0, 0, G_OPTION_ARG_NONE, &a->vnet_hdr,
         "Packets have a virtio-net header and its length", NULL},
        {"timeout-ms", 0, 0, G_OPTION_ARG_INT, &a->timeout_ms,
         "How long a packet may wait for the other side (10 to 10000, default 200)", "MS"},
        {"policy", 0, 0, G_OPTION_ARG_STRING, &a->policy,
         "full, size or pass, or a list of CLASS=POLICY", "POLICY"},
        {"strict-announcements", 0, 0, G_OPTION_ARG_NONE, &a->strict_announcements,
         "Announcements (gratuitous ARP and the like) of the secondary alone are divergences",
         NULL},
        {"memory-mib", 0, 0, G_OPTION_ARG_INT, &a->memory_mib,
         "Memory for held packets, per shard (default 64)", "MIB"},
        {"shards", 0, 0, G_OPTION_ARG_INT, &a->shards, "Threads to compare in (default 1)", "N"},
        {"stats-json", 0, 0, G_OPTION_ARG_FILENAME, &a->stats_path,
         "Write counters to FILE (- for standard output) on SIGUSR1 and at the end", "FILE"},
        {"version", 0, 0, G_OPTION_ARG_NONE, &a->version, "Print the version", NULL},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    g_option_context_set_summary(context, "Compares the packets of a primary and a secondary VM.\n"
                                          "ADDRESS: unix:PATH or tcp:ADDRESS:PORT, listened on.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, argc, argv, error))
        return FALSE;
    if (*argc > 1) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "unexpected argument: %s",
                    (*argv)[1]);
        return FALSE;
    }
    if (!a->version && (!a->primary || !a->secondary || !a->out)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "--primary, --secondary and --out are needed; see --help");
        return FALSE;
    }
    return TRUE;
}

static gboolean
fill_config(const Arguments *a, FrontConfig *config, GError **error)
{
    *config = (FrontConfig){.primary = a->primary,
                            .secondary = a->secondary,
                            .out = a->out,
                            .notify = a->notify,
                            .vnet_hdr = a->vnet_hdr,
                            .shards = a->shards};
    compare_config_init(&config->engine);
    if (a->memory_mib < 1 || a->memory_mib > 65536) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "memory of %d MiB: allowed are 1 to 65536", a->memory_mib);
        return FALSE;
    }
    config->engine.ignore_announcements = !a->strict_announcements;
    config->engine.memory_max_bytes = (size_t)a->memory_mib << 20;
    return options_set_timeout_ms(a->timeout_ms, &config->engine, error) &&
           (!a->policy || options_parse_policy(a->policy, &config->engine, error)) &&
           options_random_key(&config->engine, error);
}

static int
fail(const GError *error, int status)
{
    g_printerr("colo-compare: %s\n", error->message);
    return status;
}

int
main(int argc, char **argv)
{
    g_auto(Arguments) a = {.timeout_ms = COMPARE_TIMEOUT_MS_DEFAULT,
                           .shards = 1,
                           .memory_mib = COMPARE_MEMORY_MAX_DEFAULT >> 20};
    FrontConfig config;
    g_autoptr(GError) error = NULL;

    if (!parse_arguments(&argc, &argv, &a, &error))
        return fail(error, EXIT_USAGE);
    if (a.version) {
        puts("colo-compare " COLOD_VERSION);
        return EXIT_SUCCESS;
    }
    if (!fill_config(&a, &config, &error))
        return fail(error, EXIT_USAGE);
    g_autoptr(Front) front = front_new(&config, &error);

    if (!front)
        return fail(error, EXIT_FAILURE);
    gboolean ok = front_run(front, write_stats, a.stats_path, &error);

    if (a.stats_path)
        write_stats(front, a.stats_path);
    return ok ? EXIT_SUCCESS : fail(error, EXIT_FAILURE);
}
