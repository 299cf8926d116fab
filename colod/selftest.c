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
 * What the phases do stands in selftest-phases.c; here is how it begins, what goes wrong, and the
 * end.
 *
 * The first thing that goes wrong is the verdict; selftest_conclude() is the only way into CLEANUP,
 * and from there on nothing is listened to but the two processes. What only follows from a failure
 * waits a moment for the failure itself: the end of a QMP connection for the exit of the process
 * and its last words, COLO_EXIT (the secondary's comes first when the primary's migration
 * completes) for the status of the migration.
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
#include "selftest-private.h"

#include "clock.h"
#include "source.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

enum {
    CLEANUP_MS = 500,    /* SIGKILL to exit is some 5 ms */
    LAST_WORDS_MS = 500, /* from a consequence to its cause */
    SHELL_CANNOT_EXECUTE = 126,
    SHELL_NOT_FOUND = 127,
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

gboolean
selftest_uses_kvm(const Selftest *test)
{
    return g_str_has_prefix(test->result.accel, "kvm");
}

/* --- The end --- */

void
selftest_set_timer(GSource **source, unsigned timeout_ms, GSourceFunc func, Selftest *test)
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
    test->phase = SELFTEST_PHASE_DONE;
    test->func(&test->result, test->user_data);
    return G_SOURCE_REMOVE; /* the test may be gone */
}

static void
deliver_soon(Selftest *test)
{
    selftest_set_timer(&test->later, 0, on_deliver, test);
}

static gboolean
on_cleanup_deadline(gpointer user_data)
{
    deliver_soon(user_data);
    return G_SOURCE_REMOVE;
}

static gboolean
side_is_gone(const SelftestSide *side)
{
    return !side->vm || selftest_vm_is_gone(side->vm);
}

static void
clean_up(Selftest *test)
{
    source_clear(&test->later);
    for (SelftestSide *side = &test->primary;; side = &test->secondary) {
        g_clear_pointer(&side->qmp, qmp_client_unref);
        if (side->vm)
            selftest_vm_kill(side->vm);
        if (side == &test->secondary)
            break;
    }
    selftest_set_timer(&test->deadline, CLEANUP_MS, on_cleanup_deadline, test);
    if (side_is_gone(&test->primary) && side_is_gone(&test->secondary))
        deliver_soon(test);
}

void
selftest_conclude(Selftest *test, SelftestVerdict verdict, char *what)
{
    SelftestResult *result = &test->result;

    g_assert(test->phase < SELFTEST_PHASE_CLEANUP);
    test->phase = SELFTEST_PHASE_CLEANUP;
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

void
selftest_succeed(Selftest *test)
{
    gint64 now_ns = clock_now_ns();
    gint64 pause_us = (now_ns - test->stopped_ns) / NS_PER_US;

    test->result.checkpoint_us = (unsigned)pause_us;
    selftest_conclude(test, SELFTEST_OK,
                      g_strdup_printf("one checkpoint in %.1f ms, self-test took %.2f s",
                                      (double)pause_us / 1e3,
                                      (double)(now_ns - test->started_ns) / 1e9));
}

/* --- What goes wrong --- */

static gboolean
on_phase_deadline(gpointer user_data)
{
    Selftest *test = user_data;
    gboolean in_colo = g_strcmp0(test->status, "colo") == 0;
    SelftestVerdict failed = selftest_uses_kvm(test) ? SELFTEST_KVM_UNUSABLE : SELFTEST_FAILED;

    source_clear(&test->deadline);
    if (test->broken_text) {
        selftest_conclude(test, SELFTEST_FAILED, g_steal_pointer(&test->broken_text));
        return G_SOURCE_REMOVE;
    }
    switch (test->phase) {
    case SELFTEST_PHASE_START:
        selftest_conclude(test, failed,
                          g_strdup_printf("QEMU was not ready on its QMP socket within %d s",
                                          SELFTEST_START_MS / 1000));
        break;
    case SELFTEST_PHASE_GUEST:
        selftest_conclude(
            test, SELFTEST_KVM_UNUSABLE,
            g_strdup_printf("KVM accepts the VM but its guest executed nothing within %d s",
                            SELFTEST_GUEST_MS / 1000));
        break;
    case SELFTEST_PHASE_ENTER:
        selftest_conclude(
            test, in_colo ? SELFTEST_FAILED : failed,
            g_strdup_printf("QEMU did not enter COLO within %d s, the migration is '%s'",
                            SELFTEST_ENTER_MS / 1000, test->status ? test->status : "not started"));
        break;
    case SELFTEST_PHASE_CHECKPOINT:
        selftest_conclude(
            test, SELFTEST_CHECKPOINT_HANGS,
            g_strdup_printf("QEMU enters COLO but its first checkpoint %s within %d s",
                            test->stopped_ns ? "does not end" : "does not begin",
                            SELFTEST_CHECKPOINT_MS / 1000));
        break;
    case SELFTEST_PHASE_CLEANUP:
    case SELFTEST_PHASE_DONE:
        g_assert_not_reached();
    }
    return G_SOURCE_REMOVE;
}

void
selftest_enter_phase(Selftest *test, SelftestPhase phase, unsigned deadline_ms)
{
    test->phase = phase;
    selftest_set_timer(&test->deadline, deadline_ms, on_phase_deadline, test);
}

/* A process that ended by itself, in any phase. */
static void
judge_exit(SelftestSide *side)
{
    Selftest *test = side->test;
    int code = selftest_vm_exit_code(side->vm);
    g_autofree char *words = selftest_vm_last_words(side->vm);
    g_autofree char *end = selftest_vm_describe_end(side->vm);
    SelftestVerdict verdict = SELFTEST_FAILED;

    if (test->phase == SELFTEST_PHASE_START &&
        (code == SHELL_CANNOT_EXECUTE || code == SHELL_NOT_FOUND))
        verdict = SELFTEST_NO_QEMU; /* by a shell wrapper, or a library is missing */
    else if (test->phase == SELFTEST_PHASE_START && selftest_uses_kvm(test) && words &&
             strcasestr(words, "kvm"))
        verdict = SELFTEST_KVM_UNUSABLE;
    selftest_conclude(test, verdict,
                      words ? g_strdup_printf("QEMU (%s) %s: %s", side->name, end, words)
                            : g_strdup_printf("QEMU (%s) %s", side->name, end));
}

void
selftest_on_gone(G_GNUC_UNUSED SelftestVm *vm, gpointer user_data)
{
    SelftestSide *side = user_data;
    Selftest *test = side->test;

    if (test->phase < SELFTEST_PHASE_CLEANUP)
        judge_exit(side);
    else if (test->phase == SELFTEST_PHASE_CLEANUP && side_is_gone(&test->primary) &&
             side_is_gone(&test->secondary))
        deliver_soon(test);
}

void
selftest_break_soon(Selftest *test, char *what)
{
    if (test->phase >= SELFTEST_PHASE_CLEANUP || test->broken_text) {
        g_free(what);
        return;
    }
    test->broken_text = what;
    selftest_set_timer(&test->deadline, LAST_WORDS_MS, on_phase_deadline, test);
}

/* --- Public --- */

static void
side_init(SelftestSide *side, Selftest *test, const char *name)
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
        selftest_conclude(
            test, SELFTEST_FAILED,
            g_strdup_printf("No temporary folder for the sockets: %s", error->message));
        return;
    }
    test->migration_uri = g_strdup_printf("unix:%s/migration", selftest_dir_path(test->dir));
    side_init(&test->primary, test, "primary");
    side_init(&test->secondary, test, "secondary");
    selftest_enter_phase(test, SELFTEST_PHASE_START, SELFTEST_START_MS);
    if (!selftest_side_start(&test->primary, &error) ||
        !selftest_side_start(&test->secondary, &error))
        selftest_conclude(
            test, error->domain == G_SPAWN_ERROR ? SELFTEST_NO_QEMU : SELFTEST_FAILED,
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
        selftest_conclude(test, SELFTEST_NO_QEMU, g_strdup_printf("%s is not in PATH", qemu));
    else if (access(qemu, F_OK) < 0)
        selftest_conclude(test, SELFTEST_NO_QEMU, g_strdup_printf("%s does not exist", qemu));
    else
        selftest_conclude(test, SELFTEST_NO_QEMU, g_strdup_printf("%s is not executable", qemu));
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
        test->phase = SELFTEST_PHASE_CLEANUP;
        deliver_soon(test);
        return test;
    }
    start_vms(test);
    return test;
}

static void
side_clear(SelftestSide *side)
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
