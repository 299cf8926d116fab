/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cli-server.c - a real control server with canned answers, for test_cli.py
 *
 * cli-server SOCKET STATUS-FILE: prints "ready" when it listens and ends with its standard input.
 */
#include "control-server.h"

#include <glib-unix.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct Server {
    GMainLoop *loop;
    EventLog *log;
    const char *status_file;
} Server;

static void
return_status(const Server *server, ControlRequest *request)
{
    json_object *status = json_object_from_file(server->status_file);

    if (status)
        control_request_return(request, status);
    else
        control_request_fail(request, "failed", "no status file");
}

static void
return_events(const Server *server, ControlRequest *request, json_object *arguments)
{
    json_object *value = json_object_new_object();
    json_object *after = json_object_object_get(arguments, "after");

    json_object_object_add(value, "events",
                           event_log_list(server->log, json_object_get_uint64(after)));
    control_request_return(request, value);
}

static void
return_epoch(ControlRequest *request, json_object *arguments)
{
    json_object *value = json_object_new_object();

    /* The CLI says how long it will wait, a little less than it does. */
    json_object_object_add(value, "epoch",
                           json_object_get(json_object_object_get(arguments, "timeout_ms")));
    control_request_return(request, value);
}

/* What the guests differed in, and the folder that was asked for in place of a count. */
static void
return_explanation(ControlRequest *request, json_object *arguments)
{
    json_object *value = json_tokener_parse(
        "{\"mode\": \"lockstep\", \"dense\": true, \"window_s\": 60,"
        " \"causes\": {\"divergence\": 12, \"interval\": 3},"
        " \"differences\": [{\"what\": \"tcp port 443\", \"rule\": \"payload\", \"count\": 12,"
        " \"last_s\": 1.5, \"flow\": \"a > b tcp\", \"advice\": \"end TLS elsewhere\"}]}");
    json_object *save = json_object_object_get(arguments, "save");

    if (save)
        json_object_object_add(value, "saved", json_object_get(save));
    control_request_return(request, value);
}

static void
handle(ControlRequest *request, const char *command, json_object *arguments, gpointer user_data)
{
    Server *server = user_data;

    if (g_str_equal(command, "status"))
        return_status(server, request);
    else if (g_str_equal(command, "explain"))
        return_explanation(request, arguments);
    else if (g_str_equal(command, "events"))
        return_events(server, request, arguments);
    else if (g_str_equal(command, "checkpoint"))
        return_epoch(request, arguments);
    else if (g_str_equal(command, "failover"))
        control_request_fail(request, "refused", "the peer runs the VM;\n\033[2Jstop it there");
    else if (g_str_equal(command, "unprotect"))
        return; /* never answered: leaked on purpose, the process is about to end */
    else if (g_str_equal(command, "stop-vm"))
        _exit(0);
    else if (g_str_equal(command, "test-stall"))
        control_request_fail(request, "refused", "stall %s", json_object_to_json_string(arguments));
    else {
        event_log_add(server->log, EVENT_WARNING, command, "came in");
        control_request_return(request, NULL);
    }
}

static gboolean
input_ended(G_GNUC_UNUSED int fd, G_GNUC_UNUSED GIOCondition condition, gpointer user_data)
{
    g_main_loop_quit(user_data);
    return G_SOURCE_REMOVE;
}

int
main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);

    if (argc != 3)
        return EXIT_FAILURE;

    g_autoptr(EventLog) log = event_log_new("web1");
    Server server = {.loop = loop, .log = log, .status_file = argv[2]};
    g_autoptr(ControlServer) control = control_server_new(argv[1], log, handle, &server, &error);

    if (!control) {
        (void)fprintf(stderr, "%s\n", error->message);
        return EXIT_FAILURE;
    }
    event_log_add(log, EVENT_INFO, "first", "text of the first");
    event_log_add(log, EVENT_ERROR, "second", "text of the second");
    (void)g_unix_fd_add(STDIN_FILENO, G_IO_HUP, input_ended, loop);
    (void)puts("ready");
    (void)fflush(stdout);
    g_main_loop_run(loop);
    return EXIT_SUCCESS;
}
