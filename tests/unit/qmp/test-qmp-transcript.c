/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-qmp-transcript.c - the transcript file: format, mode, rotation */
#include "qmp-transcript.h"

#include "check-main.h"

#include <glib/gstdio.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Fixture {
    char *dir, *path, *old;
} Fixture;

static Fixture
fixture_new(void)
{
    Fixture f = {.dir = g_dir_make_tmp("colod-test-XXXXXX", NULL)};

    f.path = g_build_filename(f.dir, "qmp.log", NULL);
    f.old = g_strconcat(f.path, ".1", NULL);
    return f;
}

static void
fixture_clear(Fixture *f)
{
    g_unlink(f->path);
    g_unlink(f->old);
    g_rmdir(f->dir);
    g_free(f->dir);
    g_free(f->path);
    g_free(f->old);
}

static char *
contents(const char *path)
{
    char *text = NULL;

    ck_assert(g_file_get_contents(path, &text, NULL, NULL));
    return text;
}

START_TEST(unit_line_has_stamp_direction_text)
{
    Fixture f = fixture_new();
    struct stat st;

    for (int i = 0; i < 2; i++) {
        g_autoptr(QmpTranscript) t = qmp_transcript_new(f.path, QMP_TRANSCRIPT_BYTES_MAX, NULL);

        qmp_transcript_line(t, QMP_TRANSCRIPT_OUT, view_of("{}", 2));
    }

    g_autofree char *text = contents(f.path);

    ck_assert(g_regex_match_simple("^(\\d+\\.\\d{6} > \\{\\}\\n){2}$", text, 0, 0));
    ck_assert(stat(f.path, &st) == 0 && (st.st_mode & 0777) == 0600);
    qmp_transcript_line(NULL, QMP_TRANSCRIPT_OUT, view_of("{}", 2));
    fixture_clear(&f);
}
END_TEST

START_TEST(unit_rotates_once_and_stays_bounded)
{
    Fixture f = fixture_new();
    g_autoptr(QmpTranscript) t = qmp_transcript_new(f.path, 200, NULL);
    struct stat st;

    for (int i = 0; i < 100; i++) {
        g_autofree char *line = g_strdup_printf("line %d", i);

        qmp_transcript_line(t, QMP_TRANSCRIPT_IN, view_of(line, strlen(line)));
        ck_assert(stat(f.path, &st) == 0 && st.st_size <= 200);
    }

    g_autofree char *text = contents(f.path);
    g_autofree char *old = contents(f.old);

    ck_assert_ptr_nonnull(strstr(text, "line 99\n"));
    ck_assert(strlen(old) <= 200 && strlen(old) > 100);
    fixture_clear(&f);
}
END_TEST

START_TEST(err_unusable_path)
{
    Fixture f = fixture_new();
    g_autoptr(GError) missing = NULL, device = NULL, link = NULL;

    ck_assert_ptr_null(qmp_transcript_new("/nonexistent/x", 200, &missing));
    ck_assert(g_error_matches(missing, G_FILE_ERROR, G_FILE_ERROR_NOENT));
    ck_assert_ptr_null(qmp_transcript_new("/dev/null", 200, &device));
    ck_assert(g_error_matches(device, G_FILE_ERROR, G_FILE_ERROR_INVAL));
    ck_assert(symlink("/dev/null", f.path) == 0);
    ck_assert_ptr_null(qmp_transcript_new(f.path, 200, &link));
    ck_assert(g_error_matches(link, G_FILE_ERROR, G_FILE_ERROR_LOOP));
    fixture_clear(&f);
}
END_TEST

START_TEST(err_failed_rotation_silences_it)
{
    Fixture f = fixture_new();
    g_autoptr(QmpTranscript) t = qmp_transcript_new(f.path, 100, NULL);
    g_autofree char *line = g_strnfill(90, 'x');

    ck_assert(g_mkdir(f.old, 0700) == 0);
    for (int i = 0; i < 3; i++)
        qmp_transcript_line(t, QMP_TRANSCRIPT_IN, view_of(line, strlen(line)));

    g_autofree char *text = contents(f.path);

    ck_assert_uint_lt(strlen(text), 120);
    g_rmdir(f.old);
    fixture_clear(&f);
}
END_TEST

CHECK_MAIN("qmp-transcript", unit_line_has_stamp_direction_text,
           unit_rotates_once_and_stays_bounded, err_unusable_path, err_failed_rotation_silences_it)
