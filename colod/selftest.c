/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest.c - proves within a second that a QEMU can do COLO, or says why it cannot */
/*
 * Theory of operation
 *
 * Two QEMUs without disk and guest, where only the firmware runs, on this host; the migration goes
 * over a UNIX socket straight from one to the other, without colod's gate: what fails here is QEMU.
 *
 *   phase        until                                            deadline passed means
 *   START        both answer on QMP, know x-colo and return-path, FAILED (KVM: KVM_UNUSABLE)
 *                and the secondary listens
 *   GUEST        KVM only: the vCPU has left the reset vector     KVM_UNUSABLE
 *   ENTER        query-migrate says `colo` and the primary runs   FAILED (KVM: KVM_UNUSABLE)
 *                again; `completed` means NEVER_ENTERS
 *   CHECKPOINT   STOP and RESUME of the primary after the trigger CHECKPOINT_HANGS
 *   CLEANUP      both processes are reaped                        the result goes out all the same
 *
 * The first thing that goes wrong is the verdict; conclude() is the only way into CLEANUP, and from
 * there on nothing is listened to but the two processes. What only follows from a failure waits a
 * moment for the failure itself: the end of a QMP connection for the exit of the process and its
 * last words, COLO_EXIT (the secondary's comes first when the primary's migration completes) for
 * the status of the migration.
 *
 * return-path: QEMU 11 refuses x-colo without it; the older ones take both and then break, since
 * they read the secondary's first COLO message as one of the return path. So it is set only where
 * QEMU insists, and the result says so for those who set up the real migration.
 *
 * RESUME on the primary comes after VMSTATE_LOADED, that is when the secondary runs again: it is
 * the end of the whole checkpoint. A primary that entered COLO runs (RESUME) only once the
 * secondary said READY; a trigger before that would be lost.
 *
 * KVM: that /dev/kvm can be opened proves nothing, a vCPU can hang in the kernel before its first
 * instruction. QEMU's monitor then hangs in the first command that needs the vCPU, or the
 * instruction pointer stays where it was: `info registers` finds both.
 */
#include "selftest.h"

#include "clock.h"
#include "qmp-client.h"
#include "selftest-cache.h"
#include "selftest-vm.h"
#include "source.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

enum {
    /* Two QEMUs need 0.1 s each to answer, on a loaded host much more. */
    START_MS = 5000,
    GUEST_MS = 2000,
    ENTER_MS = 4000, /* 32 MiB over a UNIX socket: 0.15 s */
    CHECKPOINT_MS = 2000,
    CLEANUP_MS = 500,    /* SIGKILL to exit is some 5 ms */
    LAST_WORDS_MS = 500, /* from a consequence to its cause */
    GUEST_POLL_MS = 20,
    STATUS_POLL_MS = 5,
    COMMAND_MS = 20000, /* beyond every phase: the phase's deadline is the one that counts */
    SHELL_CANNOT_EXECUTE = 126,
    SHELL_NOT_FOUND = 127,
};

/* Any value triggers a checkpoint at once; this one also keeps QEMU's timer from a second. */
static const int checkpoint_interval_ms = 600000;

typedef enum Phase {
    PHASE_START,
    PHASE_GUEST,
    PHASE_ENTER,
    PHASE_CHECKPOINT,
    PHASE_CLEANUP,
    PHASE_DONE,
} Phase;

typedef struct Side {
    Selftest *test;
    const char *name; /* "primary", "secondary" */
    char *qmp_path;
    SelftestVm *vm;
    QmpClient *qmp;
    gboolean prepared;
} Side;

struct Selftest {
    SelftestFunc func;
    gpointer user_data;
    SelftestResult result;
    char *cache_file;
    SelftestBuild *build; /* taken before the start: a build replaced meanwhile is not remembered */
    SelftestDir *dir;
    char *migration_uri;
    Side primary, secondary;
    Phase phase;
    gint64 started_ns;
    GSource *deadline; /* of the phase */
    GSource *later;    /* the next poll, or the delivery */
    char *status;      /* of the migration, as seen last */
    gboolean running;  /* the primary, since the migration was started */
    gint64 stopped_ns; /* STOP of the checkpoint; 0: not yet */
    char *broken_text; /* a failure whose cause may still show itself */
};

static const char *const verdict_names[] = {
    [SELFTEST_OK] = "ok",
    [SELFTEST_NO_QEMU] = "no-qemu",
    [SELFTEST_NO_CAPABILITY] = "no-capability",
    [SELFTEST_NEVER_ENTERS] = "never-enters",
    [SELFTEST_CHECKPOINT_HANGS] = "checkpoint-hangs",
    [SELFTEST_KVM_UNUSABLE] = "kvm-unusable",
    [SELFTEST_FAILED] = "failed",
};
static_assert(G_N_ELEMENTS(verdict_names) == SELFTEST_FAILED + 1, "a name for each verdict");

#define NEW_QEMU "QEMU 11.1 or newer (Debian 13: `apt install -t trixie-backports qemu-system-x86`)"

static const char *const remedies[] = {
    [SELFTEST_OK] = NULL,
    [SELFTEST_NO_QEMU] = "Install " NEW_QEMU " or give the path of one",
    [SELFTEST_NO_CAPABILITY] = "Use a QEMU built with replication, " NEW_QEMU,
    [SELFTEST_NEVER_ENTERS] = "Install " NEW_QEMU,
    [SELFTEST_CHECKPOINT_HANGS] =
        "Install " NEW_QEMU "; with older ones the accelerator kvm may do",
    [SELFTEST_KVM_UNUSABLE] = "Check /dev/kvm and its permissions and, in a virtual machine, that "
                              "the host offers nested virtualisation, or use the accelerator tcg",
    [SELFTEST_FAILED] = "Use " NEW_QEMU "; if it is one, the host may be too busy: try again",
};
static_assert(G_N_ELEMENTS(remedies) == SELFTEST_FAILED + 1, "a remedy for each verdict");

const char *
selftest_verdict_name(SelftestVerdict verdict)
{
    g_assert((unsigned)verdict < G_N_ELEMENTS(verdict_names));
    return verdict_names[verdict];
}

static gboolean
uses_kvm(const Selftest *test)
{
    return g_str_has_prefix(test->result.accel, "kvm");
}

/* --- The end --- */

static void
set_timer(GSource **source, unsigned timeout_ms, GSourceFunc func, Selftest *test)
{
    source_clear(source);
    *source = timeout_ms ? g_timeout_source_new(timeout_ms) : g_idle_source_new();
    g_source_set_priority(*source, G_PRIORITY_DEFAULT);
    g_source_set_callback(*source, func, test, NULL);
    g_source_attach(*source, g_main_context_get_thread_default());
}

static gboolean
on_deliver(gpointer user_data)
{
    Selftest *test = user_data;

    source_clear(&test->later);
    source_clear(&test->deadline);
    if (test->dir)
        selftest_dir_remove(test->dir); /* the caller may keep the test, or end with it */
    test->phase = PHASE_DONE;
    test->func(&test->result, test->user_data);
    return G_SOURCE_REMOVE; /* the test may be gone */
}

static void
deliver_soon(Selftest *test)
{
    set_timer(&test->later, 0, on_deliver, test);
}

static gboolean
on_cleanup_deadline(gpointer user_data)
{
    deliver_soon(user_data);
    return G_SOURCE_REMOVE;
}

static gboolean
side_is_gone(const Side *side)
{
    return !side->vm || selftest_vm_is_gone(side->vm);
}

static void
clean_up(Selftest *test)
{
    source_clear(&test->later);
    for (Side *side = &test->primary;; side = &test->secondary) {
        g_clear_pointer(&side->qmp, qmp_client_unref);
        if (side->vm)
            selftest_vm_kill(side->vm);
        if (side == &test->secondary)
            break;
    }
    set_timer(&test->deadline, CLEANUP_MS, on_cleanup_deadline, test);
    if (side_is_gone(&test->primary) && side_is_gone(&test->secondary))
        deliver_soon(test);
}

/* Ends the test with @verdict and what is wrong, a sentence without its end; takes @what. */
static void
conclude(Selftest *test, SelftestVerdict verdict, char *what)
{
    SelftestResult *result = &test->result;

    g_assert(test->phase < PHASE_CLEANUP);
    test->phase = PHASE_CLEANUP;
    result->verdict = verdict;
    result->total_ms = (unsigned)((clock_now_ns() - test->started_ns) / NS_PER_MS);
    if (verdict == SELFTEST_OK) {
        result->text = what;
        if (test->cache_file && test->build)
            /* Not to be remembered costs a third of a second next time, and is nobody's failure. */
            (void)selftest_cache_store(test->cache_file, test->build, result, NULL);
    } else {
        g_autofree char *valid = g_utf8_make_valid(what, -1);

        result->text =
            g_strdup_printf("%s. %s.", g_strdelimit(valid, "\r\n", ' '), remedies[verdict]);
        g_free(what);
    }
    clean_up(test);
}

static void
succeed(Selftest *test)
{
    gint64 now_ns = clock_now_ns();
    gint64 pause_us = (now_ns - test->stopped_ns) / NS_PER_US;

    test->result.checkpoint_us = (unsigned)pause_us;
    conclude(test, SELFTEST_OK,
             g_strdup_printf("one checkpoint in %.1f ms, self-test took %.2f s",
                             (double)pause_us / 1e3, (double)(now_ns - test->started_ns) / 1e9));
}

/* --- What goes wrong --- */

static gboolean
on_phase_deadline(gpointer user_data)
{
    Selftest *test = user_data;
    gboolean in_colo = g_strcmp0(test->status, "colo") == 0;
    SelftestVerdict failed = uses_kvm(test) ? SELFTEST_KVM_UNUSABLE : SELFTEST_FAILED;

    source_clear(&test->deadline);
    if (test->broken_text) {
        conclude(test, SELFTEST_FAILED, g_steal_pointer(&test->broken_text));
        return G_SOURCE_REMOVE;
    }
    switch (test->phase) {
    case PHASE_START:
        conclude(
            test, failed,
            g_strdup_printf("QEMU was not ready on its QMP socket within %d s", START_MS / 1000));
        break;
    case PHASE_GUEST:
        conclude(test, SELFTEST_KVM_UNUSABLE,
                 g_strdup_printf("KVM accepts the VM but its guest executed nothing within %d s",
                                 GUEST_MS / 1000));
        break;
    case PHASE_ENTER:
        conclude(test, in_colo ? SELFTEST_FAILED : failed,
                 g_strdup_printf("QEMU did not enter COLO within %d s, the migration is '%s'",
                                 ENTER_MS / 1000, test->status ? test->status : "not started"));
        break;
    case PHASE_CHECKPOINT:
        conclude(test, SELFTEST_CHECKPOINT_HANGS,
                 g_strdup_printf("QEMU enters COLO but its first checkpoint %s within %d s",
                                 test->stopped_ns ? "does not end" : "does not begin",
                                 CHECKPOINT_MS / 1000));
        break;
    case PHASE_CLEANUP:
    case PHASE_DONE:
        g_assert_not_reached();
    }
    return G_SOURCE_REMOVE;
}

static void
enter_phase(Selftest *test, Phase phase, unsigned deadline_ms)
{
    test->phase = phase;
    set_timer(&test->deadline, deadline_ms, on_phase_deadline, test);
}

/* A process that ended by itself, in any phase. */
static void
judge_exit(Side *side)
{
    Selftest *test = side->test;
    int code = selftest_vm_exit_code(side->vm);
    g_autofree char *words = selftest_vm_last_words(side->vm);
    g_autofree char *end = selftest_vm_describe_end(side->vm);
    SelftestVerdict verdict = SELFTEST_FAILED;

    if (test->phase == PHASE_START && (code == SHELL_CANNOT_EXECUTE || code == SHELL_NOT_FOUND))
        verdict = SELFTEST_NO_QEMU; /* by a shell wrapper, or a library is missing */
    else if (test->phase == PHASE_START && uses_kvm(test) && words && strcasestr(words, "kvm"))
        verdict = SELFTEST_KVM_UNUSABLE;
    conclude(test, verdict,
             words ? g_strdup_printf("QEMU (%s) %s: %s", side->name, end, words)
                   : g_strdup_printf("QEMU (%s) %s", side->name, end));
}

static void
on_gone(G_GNUC_UNUSED SelftestVm *vm, gpointer user_data)
{
    Side *side = user_data;
    Selftest *test = side->test;

    if (test->phase < PHASE_CLEANUP)
        judge_exit(side);
    else if (test->phase == PHASE_CLEANUP && side_is_gone(&test->primary) &&
             side_is_gone(&test->secondary))
        deliver_soon(test);
}

/* Takes @what, which is the verdict if nothing says more in the next moment. */
static void
break_soon(Selftest *test, char *what)
{
    if (test->phase >= PHASE_CLEANUP || test->broken_text) {
        g_free(what);
        return;
    }
    test->broken_text = what;
    set_timer(&test->deadline, LAST_WORDS_MS, on_phase_deadline, test);
}

static void
on_closed(G_GNUC_UNUSED QmpClient *client, const GError *reason, gpointer user_data)
{
    Side *side = user_data;

    break_soon(side->test, g_strdup_printf("QMP of the %s: %s", side->name, reason->message));
}

/* Whether the reply to @command is no success and the test therefore over. The end of the
 * connection is no reply: on_closed() and on_gone() know better. */
static gboolean
reply_failed(Side *side, const char *command, SelftestVerdict verdict, const GError *error)
{
    Selftest *test = side->test;

    if (test->phase >= PHASE_CLEANUP)
        return TRUE;
    if (!error)
        return FALSE;
    if (error->domain == QMP_ERROR && error->code != QMP_ERROR_COMMAND)
        return TRUE; /* the phase's deadline follows, or closed() */
    conclude(test, verdict,
             g_strdup_printf("QEMU (%s) refused %s: %s", side->name, command, error->message));
    return TRUE;
}

static void
send_command(Side *side, const char *command, json_object *arguments, QmpReplyFunc func)
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
    enter_phase(test, PHASE_CHECKPOINT, CHECKPOINT_MS);
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
    Side *side = user_data;
    Selftest *test = side->test;
    const char *status = get_text(value, "status");
    const char *why = get_text(value, "error-desc");
    g_autofree char *words = selftest_vm_last_words(side->vm);

    if (reply_failed(side, "query-migrate", SELFTEST_FAILED, error) || test->phase != PHASE_ENTER)
        return;
    g_free(test->status);
    test->status = g_strdup(status);
    if (g_strcmp0(status, "completed") == 0)
        conclude(test, SELFTEST_NEVER_ENTERS,
                 g_strdup("QEMU never enters COLO, its migration completes instead"));
    else if (g_strcmp0(status, "failed") == 0 || g_strcmp0(status, "cancelled") == 0)
        conclude(test, SELFTEST_FAILED,
                 g_strdup_printf("The migration has %s: %s", status,
                                 why     ? why
                                 : words ? words
                                         : "no reason given"));
    else if (g_strcmp0(status, "colo") == 0 && test->running && !test->broken_text)
        trigger_checkpoint(test);
    else
        set_timer(&test->later, STATUS_POLL_MS, on_poll_status, test);
}

static void
on_migrate(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    Side *side = user_data;

    if (!reply_failed(side, "migrate", SELFTEST_FAILED, error))
        set_timer(&side->test->later, STATUS_POLL_MS, on_poll_status, side->test);
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
    enter_phase(test, PHASE_ENTER, ENTER_MS);
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
    Side *side = user_data;
    Selftest *test = side->test;
    const char *registers =
        json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;

    if (reply_failed(side, "info registers", SELFTEST_FAILED, error))
        return;
    if (stands_at_reset_vector(registers))
        set_timer(&test->later, GUEST_POLL_MS, on_poll_guest, test);
    else
        start_migration(test);
}

/* --- Phase START --- */

static void
side_prepared(Side *side)
{
    Selftest *test = side->test;

    side->prepared = TRUE;
    if (!test->primary.prepared || !test->secondary.prepared)
        return;
    if (uses_kvm(test)) {
        enter_phase(test, PHASE_GUEST, GUEST_MS);
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
side_enabled(Side *side)
{
    if (side == &side->test->secondary)
        send_command(side, "migrate-incoming", migration_arguments(side->test), on_incoming);
    else
        side_prepared(side);
}

static const char *const capabilities[] = {"x-colo", "return-path"};

/* Sets the first @n of the capabilities. */
static void
set_capabilities(Side *side, size_t n, QmpReplyFunc func)
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
    Side *side = user_data;

    if (reply_failed(side, "the capabilities x-colo and return-path", SELFTEST_NO_CAPABILITY,
                     error))
        return;
    side->test->result.return_path = TRUE;
    side_enabled(side);
}

static void
on_colo_set(G_GNUC_UNUSED json_object *value, const GError *error, gpointer user_data)
{
    Side *side = user_data;

    if (side->test->phase < PHASE_CLEANUP && g_error_matches(error, QMP_ERROR, QMP_ERROR_COMMAND))
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
    Side *side = user_data;

    if (reply_failed(side, "query-migrate-capabilities", SELFTEST_NO_CAPABILITY, error))
        return;
    for (size_t i = 0; i < G_N_ELEMENTS(capabilities); i++) {
        if (list_has(value, capabilities[i]))
            continue;
        conclude(
            side->test, SELFTEST_NO_CAPABILITY,
            g_strdup_printf("QEMU does not know the migration capability %s", capabilities[i]));
        return;
    }
    set_capabilities(side, 1, on_colo_set);
}

static void
on_ready(QmpClient *client, gpointer user_data)
{
    Side *side = user_data;
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
    Side *side = user_data;
    Selftest *test = side->test;
    const char *reason = get_text(data, "reason");

    if (test->phase >= PHASE_CLEANUP || test->broken_text)
        return;
    if (g_str_equal(name, "COLO_EXIT")) {
        break_soon(test, g_strdup_printf("QEMU (%s) left COLO by itself, reason '%s'", side->name,
                                         reason ? reason : "none given"));
        return;
    }
    if (side != &test->primary)
        return;
    if (g_str_equal(name, "STOP")) {
        test->running = FALSE;
        if (test->phase == PHASE_CHECKPOINT)
            test->stopped_ns = clock_now_ns();
    } else if (g_str_equal(name, "RESUME")) {
        test->running = test->phase >= PHASE_ENTER;
        if (test->phase == PHASE_CHECKPOINT && test->stopped_ns)
            succeed(test);
    }
}

static gboolean
side_start(Side *side, GError **error)
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

    side->vm = selftest_vm_start(argv, test->dir, on_gone, side, error);
    if (!side->vm)
        return FALSE;
    /* The phase's deadline comes first and knows what to say. */
    side->qmp = qmp_client_new(side->qmp_path, START_MS + 1000, &handlers, side);
    return TRUE;
}

/* --- Public --- */

static void
side_init(Side *side, Selftest *test, const char *name)
{
    side->test = test;
    side->name = name;
    side->qmp_path = g_strdup_printf("%s/%s.qmp", selftest_dir_path(test->dir), name);
}

static void
start_vms(Selftest *test)
{
    g_autoptr(GError) error = NULL;

    test->dir = selftest_dir_new(&error);
    if (!test->dir) {
        conclude(test, SELFTEST_FAILED,
                 g_strdup_printf("No temporary folder for the sockets: %s", error->message));
        return;
    }
    test->migration_uri = g_strdup_printf("unix:%s/migration", selftest_dir_path(test->dir));
    side_init(&test->primary, test, "primary");
    side_init(&test->secondary, test, "secondary");
    enter_phase(test, PHASE_START, START_MS);
    if (!side_start(&test->primary, &error) || !side_start(&test->secondary, &error))
        conclude(test, error->domain == G_SPAWN_ERROR ? SELFTEST_NO_QEMU : SELFTEST_FAILED,
                 g_strdup_printf("%s cannot be started: %s", test->result.qemu, error->message));
}

/* What can be said without starting it. */
static gboolean
find_qemu(Selftest *test, const char *qemu)
{
    g_autofree char *found = g_find_program_in_path(qemu);

    test->result.qemu = g_strdup(found ? found : qemu);
    if (found)
        return TRUE;
    if (!strchr(qemu, '/'))
        conclude(test, SELFTEST_NO_QEMU, g_strdup_printf("%s is not in PATH", qemu));
    else if (access(qemu, F_OK) < 0)
        conclude(test, SELFTEST_NO_QEMU, g_strdup_printf("%s does not exist", qemu));
    else
        conclude(test, SELFTEST_NO_QEMU, g_strdup_printf("%s is not executable", qemu));
    return FALSE;
}

Selftest *
selftest_start(const char *qemu, const char *accel, const char *cache_file, SelftestFunc func,
               gpointer user_data)
{
    Selftest *test = g_new0(Selftest, 1);

    test->func = func;
    test->user_data = user_data;
    test->cache_file = g_strdup(cache_file);
    test->result.accel = g_strdup(accel);
    test->started_ns = clock_now_ns();
    if (!find_qemu(test, qemu))
        return test;
    if (cache_file)
        test->build = selftest_build_identify(test->result.qemu, accel);
    if (test->build && selftest_cache_lookup(cache_file, test->build, &test->result)) {
        test->result.from_cache = TRUE;
        test->phase = PHASE_CLEANUP;
        deliver_soon(test);
        return test;
    }
    start_vms(test);
    return test;
}

static void
side_clear(Side *side)
{
    g_clear_pointer(&side->qmp, qmp_client_unref);
    g_clear_pointer(&side->vm, selftest_vm_free);
    g_free(side->qmp_path);
}

void
selftest_free(Selftest *test)
{
    if (!test)
        return;
    source_clear(&test->deadline);
    source_clear(&test->later);
    side_clear(&test->primary);
    side_clear(&test->secondary);
    if (test->dir)
        selftest_dir_remove(test->dir);
    g_clear_pointer(&test->dir, selftest_dir_unref);
    g_clear_pointer(&test->build, selftest_build_free);
    g_free(test->result.qemu);
    g_free(test->result.version);
    g_free(test->result.package);
    g_free(test->result.accel);
    g_free(test->result.text);
    g_free(test->cache_file);
    g_free(test->migration_uri);
    g_free(test->status);
    g_free(test->broken_text);
    g_free(test);
}
