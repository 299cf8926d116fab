/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* selftest-cache.c - which QEMU builds have passed the self-test */
#include "selftest-cache.h"

#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <glib/gstdio.h>
#include <json-c/json.h>

enum {
    CACHE_VERSION = 1,
    CACHE_MAX_BYTES = 64 * 1024, /* an entry has some 500 bytes */
};

struct SelftestBuild {
    char *path; /* real path */
    char *accel;
    gint64 inode, size, mtime_ns, ctime_ns;
    gboolean is_script;
    char *boot_id;   /* "" if the kernel does not tell */
    gint64 tested_s; /* CLOCK_BOOTTIME: goes on while the host sleeps, knows no time zone */
};

static gint64
to_ns(struct timespec time)
{
    return (gint64)time.tv_sec * 1000000000 + time.tv_nsec;
}

static char *
read_boot_id(void)
{
    char *text = NULL;

    if (!g_file_get_contents("/proc/sys/kernel/random/boot_id", &text, NULL, NULL))
        return g_strdup("");
    return g_strchomp(text);
}

SelftestBuild *
selftest_build_identify(const char *path, const char *accel)
{
    auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    struct timespec now;
    char magic[2];
    char *real_path;

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        pread(fd, magic, sizeof(magic), 0) != (ssize_t)sizeof(magic) ||
        clock_gettime(CLOCK_BOOTTIME, &now) < 0)
        return NULL;
    real_path = realpath(path, NULL);
    if (!real_path)
        return NULL;

    SelftestBuild *build = g_new0(SelftestBuild, 1);

    build->path = g_strdup(real_path);
    build->accel = g_strdup(accel);
    build->inode = (gint64)st.st_ino;
    build->size = st.st_size;
    build->mtime_ns = to_ns(st.st_mtim);
    build->ctime_ns = to_ns(st.st_ctim);
    build->is_script = memcmp(magic, "#!", sizeof(magic)) == 0;
    build->boot_id = read_boot_id();
    build->tested_s = now.tv_sec;
    free(real_path);
    return build;
}

void
selftest_build_free(SelftestBuild *build)
{
    if (!build)
        return;
    g_free(build->path);
    g_free(build->accel);
    g_free(build->boot_id);
    g_free(build);
}

/* --- Reading --- */

/* The array of entries, owned by the caller; an empty one when there is no usable file. */
static json_object *
load_entries(const char *file)
{
    g_autofree char *text = NULL;
    struct stat st;
    json_object *root = NULL, *version, *entries;

    if (stat(file, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= CACHE_MAX_BYTES &&
        g_file_get_contents(file, &text, NULL, NULL))
        root = json_tokener_parse(text);
    if (json_object_is_type(root, json_type_object) &&
        json_object_object_get_ex(root, "version", &version) &&
        json_object_get_int(version) == CACHE_VERSION &&
        json_object_object_get_ex(root, "builds", &entries) &&
        json_object_is_type(entries, json_type_array))
        entries = json_object_get(entries);
    else
        entries = json_object_new_array();
    json_object_put(root);
    return entries;
}

static const char *
get_text(json_object *entry, const char *key)
{
    json_object *value;

    if (!json_object_object_get_ex(entry, key, &value) ||
        !json_object_is_type(value, json_type_string))
        return NULL;
    return json_object_get_string(value);
}

static gint64
get_number(json_object *entry, const char *key)
{
    json_object *value;

    if (!json_object_object_get_ex(entry, key, &value) ||
        !json_object_is_type(value, json_type_int))
        return -1;
    return json_object_get_int64(value);
}

static gboolean
get_flag(json_object *entry, const char *key)
{
    json_object *value;

    return json_object_object_get_ex(entry, key, &value) && json_object_get_boolean(value);
}

/* Whether @entry speaks of the same file and accelerator, of whatever content. */
static gboolean
same_place(json_object *entry, const SelftestBuild *build)
{
    return json_object_is_type(entry, json_type_object) &&
           g_strcmp0(get_text(entry, "qemu"), build->path) == 0 &&
           g_strcmp0(get_text(entry, "accel"), build->accel) == 0;
}

static gboolean
same_boot(json_object *entry, const SelftestBuild *build)
{
    return *build->boot_id && g_strcmp0(get_text(entry, "boot_id"), build->boot_id) == 0;
}

static gboolean
still_good(json_object *entry, const SelftestBuild *build)
{
    gint64 tested_s = get_number(entry, "tested_boottime_s");

    if (get_number(entry, "inode") != build->inode || get_number(entry, "size") != build->size ||
        get_number(entry, "mtime_ns") != build->mtime_ns ||
        get_number(entry, "ctime_ns") != build->ctime_ns)
        return FALSE;
    if (g_str_has_prefix(build->accel, "kvm") && !same_boot(entry, build))
        return FALSE;
    if (!build->is_script)
        return TRUE;
    return same_boot(entry, build) && tested_s <= build->tested_s &&
           tested_s >= build->tested_s - SELFTEST_SCRIPT_TTL_S;
}

gboolean
selftest_cache_lookup(const char *file, const SelftestBuild *build, SelftestResult *result)
{
    json_object *entries = load_entries(file);
    gboolean found = FALSE;

    for (size_t i = 0; i < json_object_array_length(entries) && !found; i++) {
        json_object *entry = json_object_array_get_idx(entries, i);
        gint64 checkpoint_us, total_ms;

        if (!same_place(entry, build) || !still_good(entry, build))
            continue;
        checkpoint_us = get_number(entry, "checkpoint_us");
        total_ms = get_number(entry, "total_ms");
        if (checkpoint_us < 0 || checkpoint_us > G_MAXINT || total_ms < 0 || total_ms > G_MAXINT ||
            !get_text(entry, "version") || !get_text(entry, "package") || !get_text(entry, "text"))
            continue;
        result->version = g_strdup(get_text(entry, "version"));
        result->package = g_strdup(get_text(entry, "package"));
        result->text = g_strdup(get_text(entry, "text"));
        result->return_path = get_flag(entry, "return_path");
        result->checkpoint_us = (unsigned)checkpoint_us;
        result->total_ms = (unsigned)total_ms;
        found = TRUE;
    }
    json_object_put(entries);
    return found;
}

/* --- Writing --- */

static json_object *
make_entry(const SelftestBuild *build, const SelftestResult *result)
{
    json_object *entry = json_object_new_object();

    json_object_object_add(entry, "qemu", json_object_new_string(build->path));
    json_object_object_add(entry, "accel", json_object_new_string(build->accel));
    json_object_object_add(entry, "inode", json_object_new_int64(build->inode));
    json_object_object_add(entry, "size", json_object_new_int64(build->size));
    json_object_object_add(entry, "mtime_ns", json_object_new_int64(build->mtime_ns));
    json_object_object_add(entry, "ctime_ns", json_object_new_int64(build->ctime_ns));
    json_object_object_add(entry, "boot_id", json_object_new_string(build->boot_id));
    json_object_object_add(entry, "tested_boottime_s", json_object_new_int64(build->tested_s));
    json_object_object_add(entry, "version", json_object_new_string(result->version));
    json_object_object_add(entry, "package", json_object_new_string(result->package));
    json_object_object_add(entry, "text", json_object_new_string(result->text));
    json_object_object_add(entry, "return_path", json_object_new_boolean(result->return_path));
    json_object_object_add(entry, "checkpoint_us",
                           json_object_new_int64((gint64)result->checkpoint_us));
    json_object_object_add(entry, "total_ms", json_object_new_int64((gint64)result->total_ms));
    return entry;
}

static gboolean
fail_errno(const char *file, GError **error)
{
    int saved_errno = errno;

    g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(saved_errno),
                "%s: cannot write it: %s", file, g_strerror(saved_errno));
    return FALSE;
}

static gboolean
replace_file(const char *file, const char *text, GError **error)
{
    g_autofree char *temporary = g_strconcat(file, ".XXXXXX", NULL);
    auto_fd int fd = g_mkstemp_full(temporary, O_WRONLY | O_CLOEXEC, 0600);
    size_t len = strlen(text);

    if (fd < 0)
        return fail_errno(file, error);
    /* A short write to a file is a full disk. */
    if (write(fd, text, len) != (ssize_t)len || rename(temporary, file) < 0) {
        (void)fail_errno(file, error);
        (void)g_unlink(temporary);
        return FALSE;
    }
    return TRUE;
}

gboolean
selftest_cache_store(const char *file, const SelftestBuild *build, const SelftestResult *result,
                     GError **error)
{
    json_object *old = load_entries(file);
    json_object *kept = json_object_new_array();
    json_object *root = json_object_new_object();
    size_t n_old = json_object_array_length(old);

    /* The newest are at the end. */
    for (size_t i = n_old >= SELFTEST_CACHE_MAX ? n_old - (SELFTEST_CACHE_MAX - 1) : 0; i < n_old;
         i++) {
        json_object *entry = json_object_array_get_idx(old, i);

        if (!same_place(entry, build))
            json_object_array_add(kept, json_object_get(entry));
    }
    json_object_array_add(kept, make_entry(build, result));
    json_object_object_add(root, "version", json_object_new_int(CACHE_VERSION));
    json_object_object_add(root, "builds", kept);

    gboolean stored =
        replace_file(file, json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY), error);

    json_object_put(root);
    json_object_put(old);
    return stored;
}
