/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-cli.c - `colo selftest` */
#include "selftest.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <glib-unix.h>
#include <json-c/json.h>

static const char default_qemu[] = "qemu-system-x86_64";
static const char default_accel[] = "tcg";

typedef struct Cli {
    GMainLoop *loop;
    gboolean json;
    int exit_code;
} Cli;

static void
add_text(json_object *object, const char *key, const char *text)
{
    json_object_object_add(object, key, text ? json_object_new_string(text) : NULL);
}

static void
print_json(const SelftestResult *result)
{
    json_object *object = json_object_new_object();

    add_text(object, "verdict", selftest_verdict_name(result->verdict));
    add_text(object, "qemu", result->qemu);
    add_text(object, "version", result->version);
    add_text(object, "package", result->package);
    add_text(object, "accel", result->accel);
    add_text(object, "text", result->text);
    json_object_object_add(object, "return_path", json_object_new_boolean(result->return_path));
    json_object_object_add(object, "checkpoint_us",
                           json_object_new_int64((gint64)result->checkpoint_us));
    json_object_object_add(object, "total_ms", json_object_new_int64((gint64)result->total_ms));
    (void)puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
                                                          JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(object);
}

static void
print_text(const SelftestResult *result)
{
    g_autoptr(GString) who = g_string_new(result->version ? "QEMU " : result->qemu);

    if (result->version)
        g_string_append(who, result->version);
    if (result->package && *result->package)
        g_string_append_printf(who, " (%s)", result->package);
    (void)printf("%s: %s, %s: %s\n", result->verdict == SELFTEST_OK ? "OK" : "NOT OK", who->str,
                 result->accel, result->text);
}

static void
on_result(const SelftestResult *result, gpointer user_data)
{
    Cli *cli = user_data;

    if (cli->json)
        print_json(result);
    else
        print_text(result);
    cli->exit_code = result->verdict == SELFTEST_OK ? EXIT_SUCCESS : EXIT_FAILURE;
    g_main_loop_quit(cli->loop);
}

static gboolean
on_signal(gpointer user_data)
{
    Cli *cli = user_data;

    (void)fputs("interrupted\n", stderr);
    g_main_loop_quit(cli->loop);
    return G_SOURCE_REMOVE;
}

static GSource *
watch_signal(GMainContext *context, int signum, Cli *cli)
{
    GSource *source = g_unix_signal_source_new(signum);

    g_source_set_callback(source, on_signal, cli, NULL);
    g_source_attach(source, context);
    return source;
}

int
selftest_cli(const char *qemu, const char *accel, gboolean json)
{
    g_autoptr(GMainContext) context = g_main_context_new();
    g_autoptr(GMainLoop) loop = g_main_loop_new(context, FALSE);
    Cli cli = {.loop = loop, .json = json, .exit_code = EXIT_FAILURE};

    g_main_context_push_thread_default(context);

    GSource *sources[] = {watch_signal(context, SIGINT, &cli),
                          watch_signal(context, SIGTERM, &cli)};
    Selftest *test = selftest_start(qemu ? qemu : default_qemu, accel ? accel : default_accel, NULL,
                                    on_result, &cli);

    g_main_loop_run(loop);
    selftest_free(test);
    for (size_t i = 0; i < G_N_ELEMENTS(sources); i++) {
        g_source_destroy(sources[i]);
        g_source_unref(sources[i]);
    }
    while (g_main_context_iteration(context, FALSE))
        ;
    g_main_context_pop_thread_default(context);
    return cli.exit_code;
}
