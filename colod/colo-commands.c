/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-commands.c - what each command of `colo` does */
#include "colo-commands.h"

#include "clock.h"
#include "colo-client.h"
#include "colo-status.h"
#include "selftest.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    CONNECT_TIMEOUT_MS = 2000,
    WATCH_MS = 1000,
    VERIFY_POLL_MS = 200,
    /* colod is asked to give up a little before we do, so that its reason is what is shown. */
    ANSWER_MARGIN_MS = 500,
    STEP_MAX = 7, /* of a checkpoint, docs/ARCHITECTURE.md */
};

static const char default_run_folder[] = "/run/colod";

/* One line, whatever the text holds. Always COLO_EXIT_FAILED. */
static int
report(const GError *error)
{
    g_assert(error);

    g_autofree char *line = g_utf8_make_valid(error->message, -1);

    for (char *p = line; *p; p++) {
        if (g_ascii_iscntrl(*p))
            *p = ' ';
    }
    (void)fprintf(stderr, "colo: %s\n", line);
    return COLO_EXIT_FAILED;
}

static int64_t
deadline_in(gint64 ms)
{
    return clock_now_ns() + ms * NS_PER_MS;
}

static ColoClient *
open_client(const ColoOptions *options, GError **error)
{
    const char *environment = g_getenv("COLO_SOCKET");
    const char *run_folder = g_getenv("COLO_RUN_DIR");
    g_autofree char *path = NULL;

    if (options->socket)
        path = g_strdup(options->socket);
    else if (environment && *environment && !options->name)
        path = g_strdup(environment);
    else
        path = colo_client_find_socket(run_folder && *run_folder ? run_folder : default_run_folder,
                                       options->name, error);
    if (!path)
        return NULL;
    return colo_client_connect(path, deadline_in(MIN(options->timeout_ms, CONNECT_TIMEOUT_MS)),
                               error);
}

/* Connects, calls, prints nothing. @arguments: taken. */
static json_object *
call(const ColoOptions *options, const char *command, json_object *arguments, GError **error)
{
    g_autoptr(ColoClient) client = open_client(options, error);

    if (client)
        return colo_client_call(client, command, arguments, deadline_in(options->timeout_ms),
                                error);
    json_object_put(arguments);
    return NULL;
}

/* A command whose answer is only that it is done. */
static int
call_and_say(const ColoOptions *options, const char *command, json_object *arguments,
             const char *done)
{
    g_autoptr(GError) error = NULL;
    json_object *value = call(options, command, arguments, &error);

    if (!value)
        return report(error);
    json_object_put(value);
    (void)puts(done);
    return COLO_EXIT_DONE;
}

static json_object *
with_timeout(const ColoOptions *options)
{
    json_object *arguments = json_object_new_object();
    gint64 margin = MIN(ANSWER_MARGIN_MS, options->timeout_ms / 10);

    json_object_object_add(arguments, "timeout_ms",
                           json_object_new_int64(options->timeout_ms - margin));
    return arguments;
}

static const char *
to_json(json_object *object, int flags)
{
    return json_object_to_json_string_ext(object, flags | JSON_C_TO_STRING_NOSLASHESCAPE);
}

/* --- status --- */

static void
print_status(const ColoOptions *options, json_object *status)
{
    if (options->json) {
        (void)puts(to_json(status, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
        return;
    }

    g_autofree char *text = colo_status_text(status);

    (void)fputs(text, stdout);
}

/* The picture of this second; a colod that is away is part of it. */
static char *
watched(const ColoOptions *options, ColoClient **client, gboolean terminal)
{
    g_autoptr(GError) error = NULL;
    json_object *status = NULL;

    if (!*client)
        *client = open_client(options, &error);
    if (*client)
        status =
            colo_client_call(*client, "status", NULL, deadline_in(options->timeout_ms), &error);
    if (!status) {
        g_assert(error);
        g_clear_pointer(client, colo_client_free);
        return options->json ? g_strdup("") : g_strdup_printf("Not known: %s\n", error->message);
    }

    g_autofree char *line = NULL;
    char *text;

    if (options->json) {
        text = g_strconcat(to_json(status, JSON_C_TO_STRING_PLAIN), "\n", NULL);
    } else if (terminal) {
        text = colo_status_text(status);
    } else {
        line = colo_status_line(status);
        text = g_strconcat(line, "\n", NULL);
    }
    json_object_put(status);
    return text;
}

static void
print_stamped(const char *text)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(now, "%Y-%m-%dT%H:%M:%SZ");

    (void)printf("%s %s", time, text);
}

static int
watch_status(const ColoOptions *options)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(ColoClient) client = open_client(options, &error);
    g_autofree char *last = g_strdup("");
    gboolean terminal = isatty(STDOUT_FILENO) && !options->json;

    if (!client)
        return report(error);
    for (;;) {
        g_autofree char *text = watched(options, &client, terminal);

        if (!g_str_equal(text, last)) {
            if (terminal)
                (void)printf("\033[H\033[J%s", text); /* home, erase below */
            else if (options->json)
                (void)fputs(text, stdout);
            else
                print_stamped(text);
            if (fflush(stdout) != 0)
                return COLO_EXIT_FAILED;
        }
        g_free(last);
        last = g_steal_pointer(&text);
        (void)poll(NULL, 0, WATCH_MS);
    }
}

int
colo_run_status(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    g_autoptr(GError) error = NULL;

    if (options->watch)
        return watch_status(options);

    json_object *status = call(options, "status", NULL, &error);

    if (!status)
        return report(error);
    print_status(options, status);
    json_object_put(status);
    return COLO_EXIT_DONE;
}

/* --- events --- */

static void
print_event(const ColoOptions *options, json_object *event)
{
    if (options->json) {
        (void)puts(to_json(event, JSON_C_TO_STRING_PLAIN));
        return;
    }

    g_autofree char *line = colo_event_line(event);

    (void)puts(line);
}

static json_object *
with_after(const ColoOptions *options)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "after", json_object_new_uint64(options->after));
    return arguments;
}

static int
follow_events(const ColoOptions *options)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(ColoClient) client = open_client(options, &error);
    json_object *value = NULL;

    if (client)
        value = colo_client_call(client, "subscribe", with_after(options),
                                 deadline_in(options->timeout_ms), &error);
    if (!value)
        return report(error);
    json_object_put(value);
    for (;;) {
        json_object *event = colo_client_next_event(client, &error);

        if (!event)
            return report(error);
        print_event(options, event);
        json_object_put(event);
        if (fflush(stdout) != 0)
            return COLO_EXIT_FAILED;
    }
}

int
colo_run_events(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    g_autoptr(GError) error = NULL;

    if (options->follow)
        return follow_events(options);

    json_object *value = call(options, "events", with_after(options), &error);
    json_object *list = json_object_object_get(value, "events");

    if (!value)
        return report(error);
    for (size_t i = 0;
         json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++)
        print_event(options, json_object_array_get_idx(list, i));
    json_object_put(value);
    return COLO_EXIT_DONE;
}

/* --- explain --- */

int
colo_run_explain(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    g_autoptr(GError) error = NULL;
    json_object *arguments = json_object_new_object();
    g_autofree char *text = NULL;

    /* colod writes the files, and has another working directory. */
    if (options->save) {
        g_autofree char *dir = g_canonicalize_filename(options->save, NULL);

        json_object_object_add(arguments, "save", json_object_new_string(dir));
    }

    json_object *value = call(options, "explain", arguments, &error);

    if (!value)
        return report(error);
    if (options->json) {
        (void)puts(to_json(value, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    } else {
        text = colo_explain_text(value);
        (void)fputs(text, stdout);
    }
    json_object_put(value);
    return COLO_EXIT_DONE;
}

/* --- Orders --- */

int
colo_run_checkpoint(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    g_autoptr(GError) error = NULL;
    json_object *value = call(options, "checkpoint", with_timeout(options), &error);
    json_object *epoch = json_object_object_get(value, "epoch");

    if (!value)
        return report(error);
    (void)printf("checkpoint %s committed\n",
                 epoch ? json_object_get_string(epoch) : "(no number)");
    json_object_put(value);
    return COLO_EXIT_DONE;
}

/* --- verify --- */

/* Whether all disks are through; -1: the answer is not what it must be. */
static int
verify_is_over(json_object *status)
{
    json_object *disks = json_object_object_get(status, "disks");

    if (!json_object_is_type(disks, json_type_array))
        return -1;
    for (size_t i = 0; i < json_object_array_length(disks); i++) {
        g_autofree char *state = colo_status_verify_state(json_object_array_get_idx(disks, i));

        if (!state || g_str_equal(state, "running"))
            return state ? 0 : -1;
    }
    return 1;
}

static json_object *
wait_verified(const ColoOptions *options, int64_t deadline_ns, GError **error)
{
    for (;;) {
        json_object *status = call(options, "status", NULL, error);
        int over = status ? verify_is_over(status) : 0;

        if (!status || over > 0)
            return status;
        json_object_put(status);
        if (over < 0 || clock_now_ns() > deadline_ns) {
            g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_ANSWER,
                        over < 0 ? "the comparison has ended before its end"
                                 : "not through in time; `colo status` shows how far it is");
            return NULL;
        }
        (void)poll(NULL, 0, VERIFY_POLL_MS);
    }
}

int
colo_run_verify(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    const int64_t deadline_ns = deadline_in(options->timeout_ms);
    g_autoptr(GError) error = NULL;
    json_object *begun = call(options, "verify", NULL, &error);
    json_object *status = begun ? wait_verified(options, deadline_ns, &error) : NULL;
    gboolean equal = FALSE;

    if (begun)
        json_object_put(begun);
    if (!status)
        return report(error);

    g_autofree char *text = colo_status_verify_text(status, &equal);

    (void)fputs(text, stdout);
    json_object_put(status);
    return equal ? COLO_EXIT_DONE : COLO_EXIT_FAILED;
}

/* Asks at the terminal. Without one, only --yes says yes. */
static gboolean
confirm(const ColoOptions *options, GError **error)
{
    char answer[16] = "";

    if (options->yes)
        return TRUE;
    if (!isatty(STDIN_FILENO)) {
        g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_ANSWER,
                    "failover: nobody to ask; make sure that the other host does not run the VM, "
                    "then add --yes");
        return FALSE;
    }
    (void)fprintf(stderr, "This host will run the VM, without the other host's consent.\n"
                          "If the other host may still run it, switch that off first.\n"
                          "Go on? Type yes: ");
    if (fgets(answer, sizeof(answer), stdin) && g_str_equal(g_strstrip(answer), "yes"))
        return TRUE;
    g_set_error(error, COLO_CLIENT_ERROR, COLO_CLIENT_ERROR_ANSWER,
                "failover: not confirmed; nothing was done");
    return FALSE;
}

int
colo_run_failover(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    g_autoptr(GError) error = NULL;

    if (!confirm(options, &error))
        return report(error);
    return call_and_say(options, "failover", with_timeout(options), "this host runs the VM");
}

int
colo_run_protect(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    return call_and_say(options, "protect", NULL,
                        "protection is on; `colo status` tells when it is reached");
}

int
colo_run_unprotect(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    return call_and_say(options, "unprotect", NULL, "protection is off until `colo protect`");
}

int
colo_run_stop_vm(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    return call_and_say(options, "stop-vm", NULL, "the VM is stopped");
}

int
colo_run_test_stall(const ColoOptions *options, char **args)
{
    json_object *arguments = json_object_new_object();
    guint64 step;

    if (g_ascii_isalpha(args[0][0])) {
        json_object_object_add(arguments, "state", json_object_new_string(args[0]));
        return call_and_say(options, "test-stall", arguments, "colod will stand still there");
    }
    if (!g_ascii_string_to_unsigned(args[0], 10, 1, STEP_MAX, &step, NULL)) {
        json_object_put(arguments);
        (void)fprintf(stderr, "colo: test-stall: STEP is a number from 1 to %d, or a state\n",
                      STEP_MAX);
        return COLO_EXIT_USAGE;
    }
    json_object_object_add(arguments, "step", json_object_new_uint64(step));
    return call_and_say(options, "test-stall", arguments, "the next checkpoint will stall");
}

int
colo_run_test_corrupt(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    return call_and_say(options, "test-corrupt", NULL, "the next checkpoint will be corrupted");
}

int
colo_run_test_lose(const ColoOptions *options, char **args)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "place", json_object_new_string(args[0]));
    return call_and_say(options, "test-lose", arguments, "the next frame there will be lost");
}

int
colo_run_selftest(const ColoOptions *options, G_GNUC_UNUSED char **args)
{
    return selftest_cli(options->qemu, options->accel, options->json);
}
