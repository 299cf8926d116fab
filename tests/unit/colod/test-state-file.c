/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-state-file.c - the state file: round trip, and every kind of damage is refused */
#include "state-file.h"

#include "check-main.h"

#include <gio/gio.h>
#include <glib/gstdio.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Folder {
    char *path, *file;
} Folder;

static Folder
folder_new(void)
{
    Folder folder = {.path = g_dir_make_tmp("colod-test-XXXXXX", NULL)};

    folder.file = g_build_filename(folder.path, "state", NULL);
    return folder;
}

static void
folder_clear(Folder *folder)
{
    g_unlink(folder->file);
    ck_assert_msg(g_rmdir(folder->path) == 0, "something was left in the folder");
    g_free(folder->path);
    g_free(folder->file);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Folder, folder_clear)

static HostState
sample(void)
{
    HostState state;

    host_state_init(&state);
    state.generation = G_MAXUINT64;
    state.claiming = 7;
    state.role = STATE_ROLE_SECONDARY;
    state.protecting = true;
    state.qemu_pid = 4194304;
    state.qemu_start_ticks = 123456789;
    state.tap_fd[0] = 17;
    state.tap_fd[7] = 0;
    strcpy(state.boot_id, "6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11");
    return state;
}

static void
assert_equal(const HostState *a, const HostState *b)
{
    ck_assert_uint_eq(a->generation, b->generation);
    ck_assert_uint_eq(a->claiming, b->claiming);
    ck_assert_int_eq(a->role, b->role);
    ck_assert(a->protecting == b->protecting);
    ck_assert(a->unprotect == b->unprotect);
    ck_assert_int_eq(a->qemu_pid, b->qemu_pid);
    ck_assert_uint_eq(a->qemu_start_ticks, b->qemu_start_ticks);
    ck_assert_mem_eq(a->tap_fd, b->tap_fd, sizeof(a->tap_fd));
    ck_assert_str_eq(a->boot_id, b->boot_id);
}

static void
save(const char *path, const HostState *state)
{
    g_autoptr(GError) error = NULL;

    ck_assert_msg(host_state_save(path, state, &error), "%s", error ? error->message : "");
}

static void
assert_refused(const char *path, const char *text, gsize length, GIOErrorEnum code)
{
    g_autoptr(GError) error = NULL;
    HostState state = {.generation = 99};

    ck_assert(g_file_set_contents(path, text, (gssize)length, NULL));
    ck_assert_msg(!host_state_load(path, &state, &error), "accepted: %s", text);
    ck_assert_msg(g_error_matches(error, G_IO_ERROR, (int)code), "%s", error->message);
    ck_assert_msg(g_str_has_prefix(error->message, path), "%s", error->message);
    ck_assert_ptr_nonnull(strstr(error->message, "remove the file"));
    ck_assert_uint_eq(state.generation, 99);
}

/* @body with a checksum that fits. */
static char *
seal(const char *body)
{
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, body, -1);

    return g_strconcat(body, "sha256=", sum, "\n", NULL);
}

START_TEST(unit_round_trip)
{
    g_auto(Folder) folder = folder_new();
    HostState empty, loaded, state = sample();
    struct stat st;

    host_state_init(&empty);
    save(folder.file, &empty);
    ck_assert(host_state_load(folder.file, &loaded, NULL));
    assert_equal(&loaded, &empty);

    save(folder.file, &state);
    ck_assert(host_state_load(folder.file, &loaded, NULL));
    assert_equal(&loaded, &state);
    ck_assert(stat(folder.file, &st) == 0 && (st.st_mode & 0777) == 0600);
}
END_TEST

START_TEST(unit_missing_file_is_the_initial_state)
{
    HostState empty, loaded;

    host_state_init(&empty);
    ck_assert_int_eq(empty.tap_fd[3], -1);
    ck_assert(host_state_load("/nonexistent/state", &loaded, NULL));
    assert_equal(&loaded, &empty);
}
END_TEST

START_TEST(unit_role_names)
{
    ck_assert_str_eq(state_role_name(STATE_ROLE_NONE), "none");
    ck_assert_str_eq(state_role_name(STATE_ROLE_PRIMARY), "primary");
    ck_assert_str_eq(state_role_name(STATE_ROLE_SECONDARY), "secondary");
}
END_TEST

START_TEST(err_truncated_at_each_byte)
{
    g_auto(Folder) folder = folder_new();
    HostState state = sample();
    g_autofree char *text = NULL;
    gsize length;

    save(folder.file, &state);
    ck_assert(g_file_get_contents(folder.file, &text, &length, NULL));
    for (gsize cut = 0; cut < length; cut++)
        assert_refused(folder.file, text, cut, G_IO_ERROR_INVALID_DATA);
}
END_TEST

START_TEST(err_each_bit_flipped)
{
    g_auto(Folder) folder = folder_new();
    HostState state = sample();
    g_autofree char *text = NULL;
    gsize length;

    save(folder.file, &state);
    ck_assert(g_file_get_contents(folder.file, &text, &length, NULL));
    for (gsize i = 0; i < length; i++) {
        text[i] ^= (char)(1 << (i % 8));
        assert_refused(folder.file, text, length, G_IO_ERROR_INVALID_DATA);
        text[i] ^= (char)(1 << (i % 8));
    }
}
END_TEST

START_TEST(err_unknown_version)
{
    g_auto(Folder) folder = folder_new();
    g_autofree char *text = seal("colod-state 2\nwhatever=1\n");

    assert_refused(folder.file, text, strlen(text), G_IO_ERROR_NOT_SUPPORTED);
}
END_TEST

#define HEAD "colod-state 1\ngeneration=1\nclaiming=0\nrole=none\nprotecting=0\nunprotect=0\n"

/* The checksum fits, the content does not: another program wrote it. */
START_TEST(err_lines_malformed)
{
    static const char *const bodies[] = {
        "colod-state 1\n",
        HEAD "qemu-pid=1\nqemu-start-ticks=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1\nboot-id=\n",
        HEAD "qemu-pid=1\nqemu-start-ticks=1\ntap-fds=-2,-1,-1,-1,-1,-1,-1,-1\nboot-id=\n",
        HEAD "qemu-pid=1\nqemu-start-ticks=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1,-1,-1\nboot-id=\n",
        HEAD "qemu-pid=-1\nqemu-start-ticks=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1,-1\nboot-id=\n",
        HEAD "qemu-pid=1\nqemu-start-ticks=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1,-1\nboot-id=x\n",
        HEAD "qemu-pid=1\nqemu-start-ticks=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1,-1\nboot-id="
             "0123456789012345678901234567890123456789\n",
        HEAD "qemu-pid=1\nqemu-start-ticks=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1,-1\nboot-id=\nmore=1\n",
        HEAD "qemu-start-ticks=1\nqemu-pid=1\ntap-fds=-1,-1,-1,-1,-1,-1,-1,-1\nboot-id=\n",
        "colod-state 1\ngeneration=18446744073709551616\nclaiming=0\n",
        "colod-state 1\ngeneration=1\nclaiming=0\nrole=both\n",
        "colod-state 1\ngeneration=1\nclaiming=0\nrole=none\nprotecting=2\n",
    };

    g_auto(Folder) folder = folder_new();

    for (size_t i = 0; i < G_N_ELEMENTS(bodies); i++) {
        g_autofree char *text = seal(bodies[i]);

        assert_refused(folder.file, text, strlen(text), G_IO_ERROR_INVALID_DATA);
    }

    g_autofree char *good = seal(HEAD "qemu-pid=1\nqemu-start-ticks=1\n"
                                      "tap-fds=-1,-1,-1,-1,-1,-1,-1,-1\nboot-id=\n");
    HostState state;

    ck_assert(g_file_set_contents(folder.file, good, -1, NULL));
    ck_assert(host_state_load(folder.file, &state, NULL));
}
END_TEST

START_TEST(err_cannot_be_read_or_written)
{
    g_auto(Folder) folder = folder_new();
    g_autoptr(GError) error = NULL;
    HostState state = sample();

    ck_assert(!host_state_load("/", &state, &error));
    ck_assert(error->domain == G_IO_ERROR);
    g_clear_error(&error);
    ck_assert(!host_state_save("/nonexistent/state", &state, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND));
    g_clear_error(&error);
    /* A folder in the way of the rename: the state that was there stays, nothing is half done. */
    ck_assert(g_mkdir(folder.file, 0700) == 0);
    ck_assert(!host_state_save(folder.file, &state, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "replace it"));
    g_rmdir(folder.file);
    save(folder.file, &state);
}
END_TEST

START_TEST(life_crash_between_write_and_rename_keeps_the_old_state)
{
    g_auto(Folder) folder = folder_new();
    g_autofree char *temporary = g_strconcat(folder.file, ".new", NULL);
    HostState state = sample(), loaded;

    save(folder.file, &state);
    ck_assert(g_file_set_contents(temporary, "colod-state 1\ngener", -1, NULL));
    ck_assert(host_state_load(folder.file, &loaded, NULL));
    assert_equal(&loaded, &state);
    state.generation = 5;
    save(folder.file, &state);
    ck_assert(host_state_load(folder.file, &loaded, NULL));
    ck_assert_uint_eq(loaded.generation, 5);
}
END_TEST

START_TEST(sec_huge_file_and_link_in_the_way)
{
    g_auto(Folder) folder = folder_new();
    g_autofree char *temporary = g_strconcat(folder.file, ".new", NULL);
    g_autofree char *huge = g_strnfill(1000000, 'x');
    g_autofree char *named = g_strconcat("colod-state 1\n", huge, NULL);
    HostState state = sample();

    assert_refused(folder.file, named, strlen(named), G_IO_ERROR_INVALID_DATA);
    ck_assert(symlink("/dev/null", temporary) == 0);
    ck_assert(!host_state_save(folder.file, &state, NULL));
    g_unlink(temporary);
}
END_TEST

CHECK_MAIN("state-file", unit_round_trip, unit_missing_file_is_the_initial_state, unit_role_names,
           err_truncated_at_each_byte, err_each_bit_flipped, err_unknown_version,
           err_lines_malformed, err_cannot_be_read_or_written,
           life_crash_between_write_and_rename_keeps_the_old_state,
           sec_huge_file_and_link_in_the_way)
