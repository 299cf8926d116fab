/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-phases.c - what the self-test asks of the two QEMUs, phase by phase */
/*
 * Theory of operation
 *
 * Each reply and each event leads on to the next command or the next phase; deadlines, verdicts and
 * the end are selftest.c's. The phases stand here in the reverse of their order, each above the one
 * that leads into it.
 */
#include "selftest-private.h"

#include "clock.h"
#include "source.h"

#include <string.h>

#include <json-c/json.h>

enum {
    GUEST_POLL_MS = 20,
    STATUS_POLL_MS = 5,
    COMMAND_MS = 20000, /* beyond every phase: the phase's deadline is the one that counts */
};

/* Any value triggers a checkpoint at once; this one also keeps QEMU's timer from a second. */
static const int checkpoint_interval_ms = 600000;

static void
on_closed(G_GNUC_UNUSED QmpClient *client, const GError *reason, gpointer user_data)
{
    SelftestSide *side = user_data;

    selftest_break_soon(side->test,
                        g_strdup_printf("QMP of the %s: %s", side->name, reason->message));
}

/* Whether the reply to @command is no success and the test therefore over. The end of the
 * connection is no reply: on_closed() and selftest_on_gone() know better. */
static gboolean
reply_failed(SelftestSide *side, const char *command, SelftestVerdict verdict, const GError *error)
{
    Selftest *test = side->test;

    if (test->phase >= SELFTEST_PHASE_CLEANUP)
        return TRUE;
    if (!error)
        return FALSE;
    if (error->domain == QMP_ERROR && error->code != QMP_ERROR_COMMAND)
        return TRUE; /* the phase's deadline follows, or closed() */
    selftest_conclude(
        test, verdict,
        g_strdup_printf("QEMU (%s) refused %s: %s", side->name, command, error->message));
    return TRUE;
}

static void
send_command(SelftestSide *side, const char *command, json_object *arguments, QmpReplyFunc func)
{
    qmp_client_send(side->qmp, command, arguments, COMMAND_MS, func, side, NULL);
    json_object_put(arguments);
}

static const char *
get_text(json_object *object, const char *key)
{
    json_object *value;

    if (!json_object_is_type(object, json_type_object) ||
        !json_object_object_get_ex(object, key, &value) ||
        !json_object_is_type(value, json_type_string))
        return NULL;
    return json_object_get_string(value);
}

/* --- Phase CHECKPOINT --- */

static void
on_triggered(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    (void)reply_failed(user_data, "migrate-set-parameters x-checkpoint-delay", SELFTEST_FAILED,
                       error);
}

static void
trigger_checkpoint(Selftest *test)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "x-checkpoint-delay",
                           json_object_new_int(checkpoint_interval_ms));
    source_clear(&test->later);
    selftest_enter_phase(test, SELFTEST_PHASE_CHECKPOINT, SELFTEST_CHECKPOINT_MS);
    send_command(&test->primary, "migrate-set-parameters", arguments, on_triggered);
}

/* --- Phase ENTER --- */

static void on_migration(json_object *value, const GError *error, gpointer user_data);

static gboolean
on_poll_status(gpointer user_data)
{
    Selftest *test = user_data;

    source_clear(&test->later);
    send_command(&test->primary, "query-migrate", NULL, on_migration);
    return G_SOURCE_REMOVE;
}

static void
on_migration(json_object *value, const GError *error, gpointer user_data)
{
    SelftestSide *side = user_data;
    Selftest *test = side->test;
    const char *status = get_text(value, "status");
    const char *why = get_text(value, "error-desc");
    g_autofree char *words = selftest_vm_last_words(side->vm);

    if (reply_failed(side, "query-migrate", SELFTEST_FAILED, error) ||
        test->phase != SELFTEST_PHASE_ENTER)
        return;
    g_free(test->status);
    test->status = g_strdup(status);
    if (g_strcmp0(status, "completed") == 0)
        selftest_conclude(test, SELFTEST_NEVER_ENTERS,
                          g_strdup("QEMU never enters COLO, its migration completes instead"));
    else if (g_strcmp0(status, "failed") == 0 || g_strcmp0(status, "cancelled") == 0)
        selftest_conclude(test, SELFTEST_FAILED,
                          g_strdup_printf("The migration has %s: %s", status,
                                          why     ? why
                                          : words ? words
                                                  : "no reason given"));
    else if (g_strcmp0(status, "colo") == 0 && test->running && !test->broken_text)
        trigger_checkpoint(test);
    else
        selftest_set_timer(&test->later, STATUS_POLL_MS, on_poll_status, test);
}

static void
on_migrate(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    SelftestSide *side = user_data;

    if (!reply_failed(side, "migrate", SELFTEST_FAILED, error))
        selftest_set_timer(&side->test->later, STATUS_POLL_MS, on_poll_status, side->test);
}

static json_object *
migration_arguments(const Selftest *test)
{
    json_object *arguments = json_object_new_object();

    json_object_object_add(arguments, "uri", json_object_new_string(test->migration_uri));
    return arguments;
}

static void
start_migration(Selftest *test)
{
    selftest_enter_phase(test, SELFTEST_PHASE_ENTER, SELFTEST_ENTER_MS);
    send_command(&test->primary, "migrate", migration_arguments(test), on_migrate);
}

/* --- Phase GUEST --- */

static void on_registers(json_object *value, const GError *error, gpointer user_data);

static gboolean
on_poll_guest(gpointer user_data)
{
    Selftest *test = user_data;
    json_object *arguments = json_object_new_object();

    source_clear(&test->later);
    json_object_object_add(arguments, "command-line", json_object_new_string("info registers"));
    send_command(&test->primary, "human-monitor-command", arguments, on_registers);
    return G_SOURCE_REMOVE;
}

/* "EIP=0000fff0" or "RIP=…fff0" is the reset vector. A text of another form proves nothing either
 * way, and the migration will tell. */
static gboolean
stands_at_reset_vector(const char *registers)
{
    const char *ip = registers ? strstr(registers, "IP=") : NULL;

    return ip && g_ascii_strtoull(ip + strlen("IP="), NULL, 16) == 0xfff0;
}

static void
on_registers(json_object *value, const GError *error, gpointer user_data)
{
    SelftestSide *side = user_data;
    Selftest *test = side->test;
    const char *registers =
        json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;

    if (reply_failed(side, "info registers", SELFTEST_FAILED, error))
        return;
    if (stands_at_reset_vector(registers))
        selftest_set_timer(&test->later, GUEST_POLL_MS, on_poll_guest, test);
    else
        start_migration(test);
}

/* --- Phase START --- */

static void
side_prepared(SelftestSide *side)
{
    Selftest *test = side->test;

    side->prepared = TRUE;
    if (!test->primary.prepared || !test->secondary.prepared)
        return;
    if (selftest_uses_kvm(test)) {
        selftest_enter_phase(test, SELFTEST_PHASE_GUEST, SELFTEST_GUEST_MS);
        (void)on_poll_guest(test);
    } else {
        start_migration(test);
    }
}

static void
on_incoming(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    if (!reply_failed(user_data, "migrate-incoming", SELFTEST_FAILED, error))
        side_prepared(user_data);
}

/* The side has its capabilities. */
static void
side_enabled(SelftestSide *side)
{
    if (side == &side->test->secondary)
        send_command(side, "migrate-incoming", migration_arguments(side->test), on_incoming);
    else
        side_prepared(side);
}

static const char *const capabilities[] = {"x-colo", "return-path"};

/* Sets the first @n of the capabilities. */
static void
set_capabilities(SelftestSide *side, size_t n, QmpReplyFunc func)
{
    json_object *arguments = json_object_new_object();
    json_object *list = json_object_new_array();

    for (size_t i = 0; i < n; i++) {
        json_object *item = json_object_new_object();

        json_object_object_add(item, "capability", json_object_new_string(capabilities[i]));
        json_object_object_add(item, "state", json_object_new_boolean(TRUE));
        json_object_array_add(list, item);
    }
    json_object_object_add(arguments, "capabilities", list);
    send_command(side, "migrate-set-capabilities", arguments, func);
}

static void
on_both_set(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    SelftestSide *side = user_data;

    if (reply_failed(side, "the capabilities x-colo and return-path", SELFTEST_NO_CAPABILITY,
                     error))
        return;
    side->test->result.return_path = TRUE;
    side_enabled(side);
}

static void
on_colo_set(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    SelftestSide *side = user_data;

    if (side->test->phase < SELFTEST_PHASE_CLEANUP &&
        g_error_matches(error, QMP_ERROR, QMP_ERROR_COMMAND))
        set_capabilities(side, G_N_ELEMENTS(capabilities), on_both_set);
    else if (!reply_failed(side, "the capability x-colo", SELFTEST_NO_CAPABILITY, error))
        side_enabled(side);
}

static gboolean
list_has(json_object *list, const char *capability)
{
    if (!json_object_is_type(list, json_type_array))
        return FALSE;
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (g_strcmp0(get_text(json_object_array_get_idx(list, i), "capability"), capability) == 0)
            return TRUE;
    return FALSE;
}

static void
on_capabilities_listed(json_object *value, const GError *error, gpointer user_data)
{
    SelftestSide *side = user_data;

    if (reply_failed(side, "query-migrate-capabilities", SELFTEST_NO_CAPABILITY, error))
        return;
    for (size_t i = 0; i < G_N_ELEMENTS(capabilities); i++) {
        if (list_has(value, capabilities[i]))
            continue;
        selftest_conclude(
            side->test, SELFTEST_NO_CAPABILITY,
            g_strdup_printf("QEMU does not know the migration capability %s", capabilities[i]));
        return;
    }
    set_capabilities(side, 1, on_colo_set);
}

static void
on_ready(QmpClient *client, gpointer user_data)
{
    SelftestSide *side = user_data;
    SelftestResult *result = &side->test->result;

    if (!result->version) {
        result->version = g_strdup(qmp_client_version(client));
        result->package = g_strdup(qmp_client_package(client));
    }
    send_command(side, "query-migrate-capabilities", NULL, on_capabilities_listed);
}

static void
on_event(G_GNUC_UNUSED QmpClient *client, const char *name, json_object *data,
         G_GNUC_UNUSED int64_t timestamp_us, gpointer user_data)
{
    SelftestSide *side = user_data;
    Selftest *test = side->test;
    const char *reason = get_text(data, "reason");

    if (test->phase >= SELFTEST_PHASE_CLEANUP || test->broken_text)
        return;
    if (g_str_equal(name, "COLO_EXIT")) {
        selftest_break_soon(test, g_strdup_printf("QEMU (%s) left COLO by itself, reason '%s'",
                                                  side->name, reason ? reason : "none given"));
        return;
    }
    if (side != &test->primary)
        return;
    if (g_str_equal(name, "STOP")) {
        test->running = FALSE;
        if (test->phase == SELFTEST_PHASE_CHECKPOINT)
            test->stopped_ns = clock_now_ns();
    } else if (g_str_equal(name, "RESUME")) {
        test->running = test->phase >= SELFTEST_PHASE_ENTER;
        if (test->phase == SELFTEST_PHASE_CHECKPOINT && test->stopped_ns)
            selftest_succeed(test);
    }
}

gboolean
selftest_side_start(SelftestSide *side, GError **error)
{
    static const QmpClientHandlers handlers = {
        .ready = on_ready,
        .event = on_event,
        .closed = on_closed,
    };
    Selftest *test = side->test;
    g_autofree char *qmp = g_strdup_printf("unix:%s,server=on,wait=off", side->qmp_path);
    gboolean is_secondary = side == &test->secondary;
    const char *const argv[] = {
        test->result.qemu,
        "-no-user-config",
        "-nodefaults",
        "-M",
        "pc",
        "-m",
        "32",
        "-display",
        "none",
        "-accel",
        test->result.accel,
        "-qmp",
        qmp,
        is_secondary ? "-incoming" : NULL,
        "defer",
        NULL,
    };

    side->vm = selftest_vm_start(argv, test->dir, selftest_on_gone, side, error);
    if (!side->vm)
        return FALSE;
    /* The phase's deadline comes first and knows what to say. */
    side->qmp = qmp_client_new(side->qmp_path, SELFTEST_START_MS + 1000, &handlers, side);
    return TRUE;
}
