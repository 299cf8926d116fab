/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-target-plugin.c - the plugin's callbacks as nbdkit calls them, in many threads too */
#include "fake-nbdkit.h"

#include "check-main.h"
#include "chunk-digest.h"
#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

enum { BLOCK = 4096, SIZE = 200 * BLOCK + 100 };

struct nbdkit_plugin *plugin_init(void);

static char folder[64];
static struct nbdkit_plugin *plugin;

static char *
path_of(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

static int
configure(const char *key, const char *name)
{
    g_autofree char *path = path_of(name);

    return plugin->config(key, path);
}

/* A new disk, and the plugin as nbdkit has it when it begins to serve. */
static void
load(void)
{
    (void)g_strlcpy(folder, "/tmp/colod-test-plugin-XXXXXX", sizeof(folder));
    ck_assert_ptr_nonnull(g_mkdtemp(folder));

    g_autofree char *disk = path_of("disk");
    g_autofree char *overlays = path_of("overlays");

    ck_assert(g_file_set_contents(disk, "", 0, NULL));
    ck_assert_int_eq(truncate(disk, SIZE), 0);
    ck_assert_int_eq(g_mkdir(overlays, 0700), 0);
    plugin = plugin_init();
    ck_assert_int_eq(configure("disk", "disk"), 0);
    ck_assert_int_eq(configure("metadata", "meta"), 0);
    ck_assert_int_eq(configure("overlay-dir", "overlays"), 0);
    ck_assert_int_eq(configure("control", "control"), 0);
    ck_assert_int_eq(configure("map", "map"), 0);
    ck_assert_int_eq(plugin->config("overlay-limit", "400000"), 0);
    ck_assert_int_eq(plugin->config_complete(), 0);
    ck_assert_int_eq(plugin->get_ready(), 0);
    ck_assert_int_eq(plugin->after_fork(), 0);
}

static void
unload(void)
{
    static const char *const names[] = {
        "disk", "meta", "overlays/hidden", "overlays/active", "overlays", "control", "map"};

    plugin->cleanup();
    plugin->unload();
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = path_of(names[i]);

        (void)g_remove(path);
    }
    ck_assert_int_eq(g_rmdir(folder), 0);
}

/* A command over the control socket; the answer holds @part. */
static void
command(const char *text, const char *part)
{
    g_autofree char *path = path_of("control");
    auto_fd int fd = fd_unix_connect(path);
    char answer[4096];

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fcntl(fd, F_SETFL, 0), 0);
    ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    ck_assert_int_eq(send(fd, "\n", 1, MSG_NOSIGNAL), 1);

    ssize_t n = recv(fd, answer, sizeof(answer) - 1, 0); /* one line is one message */

    ck_assert_int_gt(n, 0);
    answer[n] = '\0';
    ck_assert_msg(strstr(answer, part) != NULL, "%s: %s", text, answer);
}

static void
start_mirror(void)
{
    command("{\"command\":\"sync\",\"arguments\":{\"generation\":1}}", "return");
    command("{\"command\":\"mirror\",\"arguments\":{\"generation\":1,\"epoch\":0}}", "return");
}

static void *
open_export(const char *name)
{
    fake_connection = (FakeConnection){.export_name = name, .is_local = true};
    return plugin->open(0);
}

START_TEST(life_requests)
{
    uint8_t out[BLOCK], in[BLOCK];
    struct nbdkit_extents extents = {.n = 0};

    load();
    start_mirror();

    void *target = open_export("target"), *active = open_export("active");

    memset(out, 'p', sizeof(out));
    ck_assert_int_eq(plugin->get_size(active), SIZE);
    ck_assert_int_eq(plugin->pwrite(target, out, BLOCK, 10, NBDKIT_FLAG_FUA), 0);
    ck_assert_int_eq(plugin->zero(active, 50, 20, NBDKIT_FLAG_MAY_TRIM), 0);
    ck_assert_int_eq(plugin->pread(target, in, BLOCK, 10, 0), 0);
    ck_assert_int_eq(memcmp(in, out, BLOCK), 0);
    ck_assert_int_eq(plugin->trim(target, BLOCK, 0, 0), 0);
    ck_assert_int_eq(plugin->trim(active, BLOCK, 0, NBDKIT_FLAG_FUA), 0);
    ck_assert_int_eq(plugin->pread(active, in, BLOCK, SIZE - BLOCK, 0), 0);
    ck_assert_int_eq(plugin->flush(target, 0), 0);
    ck_assert_int_eq(plugin->flush(active, 0), 0);
    ck_assert_int_eq(plugin->extents(active, SIZE, 0, 0, &extents), 0);
    ck_assert_uint_eq(extents.n, 2);
    ck_assert(extents.list[0].type == 0 && extents.list[0].length == 2 * BLOCK);
    ck_assert_uint_eq(extents.list[1].length, SIZE - 2 * BLOCK);
    extents.n = 0;
    ck_assert_int_eq(plugin->extents(active, SIZE, 0, NBDKIT_FLAG_REQ_ONE, &extents), 0);
    ck_assert_uint_eq(extents.n, 1);
    unload();
}
END_TEST

START_TEST(err_names_and_numbers)
{
    g_autofree uint8_t *data = g_malloc0(400000);

    load();

    void *target = open_export("target"), *active = open_export("active");

    ck_assert_int_eq(plugin->pwrite(target, data, 1, 0, 0), -1);
    ck_assert_int_eq(fake_nbdkit_errno(), ESHUTDOWN);
    start_mirror();
    ck_assert_int_eq(plugin->pwrite(active, data, 390000, 0, 0), 0);
    ck_assert_int_eq(plugin->pwrite(active, data, 390000, 400000, NBDKIT_FLAG_FUA), -1);
    ck_assert_int_eq(fake_nbdkit_errno(), ENOSPC);
    ck_assert_str_eq(fake_nbdkit_error(), "active: active-full: No space left on device");
    ck_assert_int_eq(plugin->zero(target, SIZE, 0, 0), -1);
    ck_assert_str_eq(fake_nbdkit_error(), "target: hidden-full: No space left on device");
    ck_assert_int_eq(plugin->flush(target, 0), -1);
    ck_assert_int_eq(fake_nbdkit_errno(), ENOSPC); /* what follows fails as the first did */
    ck_assert_int_eq(plugin->pread(target, data, 1, SIZE, 0), -1);
    ck_assert_int_eq(fake_nbdkit_errno(), EINVAL);
    unload();
}
END_TEST

START_TEST(sec_who_may_open_what)
{
    static const struct {
        FakeConnection connection;
        bool allowed;
    } cases[] = {
        {{"target", true, 0}, true},    {{"active", true, 0}, true},
        {{"target", false, 1}, true},   {{"target", false, 0}, false},
        {{"target", false, -1}, false}, {{"active", false, 1}, false},
        {{"", true, 0}, false},         {{"target ", true, 0}, false},
        {{NULL, true, 0}, false},       {{"changed", true, 0}, true},
        {{"changed", false, 1}, true},  {{"changed", false, 0}, false},
        {{"digest", true, 0}, true},    {{"digest", false, 1}, true},
        {{"digest", false, 0}, false},  {{"digest", false, -1}, false},
    };
    struct nbdkit_exports exports = {.n = 0};

    load();
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        fake_connection = cases[i].connection;
        ck_assert_int_eq(plugin->open(0) != NULL, cases[i].allowed);
    }
    ck_assert_int_eq(plugin->list_exports(0, 0, &exports), 0);
    ck_assert(exports.n == 4 && g_str_equal(exports.names[0], "target"));
    unload();
}
END_TEST

START_TEST(unit_changed_and_digest)
{
    enum { CHUNK = 65536, CHUNKS = SIZE / CHUNK + 1 };
    uint8_t digests[16 * CHUNKS], zeros[CHUNK] = {0}, want[16], bits[(CHUNKS + 7) / 8];
    uint32_t minimum, preferred, maximum;

    load();

    void *changed = open_export("changed"), *digest = open_export("digest");

    ck_assert_int_eq(plugin->get_size(changed), sizeof(bits));
    ck_assert_int_eq(plugin->get_size(digest), sizeof(digests));
    ck_assert(!plugin->can_write(changed) && !plugin->can_trim(digest) &&
              !plugin->can_zero(digest) && !plugin->can_flush(digest));
    ck_assert_int_eq(plugin->can_fua(digest), NBDKIT_FUA_NONE);
    ck_assert_int_eq(plugin->block_size(digest, &minimum, &preferred, &maximum), 0);
    ck_assert(minimum == 16 && preferred == 1024 && maximum == 1024);
    ck_assert_int_eq(plugin->pread(changed, bits, sizeof(bits), 0, 0), 0);
    ck_assert_uint_eq(bits[0], 0xff); /* a new map: nothing is known */
    ck_assert_int_eq(plugin->pread(digest, digests, sizeof(digests), 0, 0), 0);
    chunk_digest(zeros, CHUNK, want);
    ck_assert_int_eq(memcmp(digests, want, sizeof(want)), 0);
    chunk_digest(zeros, SIZE % CHUNK, want);
    ck_assert_int_eq(memcmp(digests + sizeof(digests) - 16, want, sizeof(want)), 0);
    start_mirror();
    ck_assert_int_eq(plugin->pread(changed, bits, sizeof(bits), 0, 0), 0);
    ck_assert_uint_eq(bits[0], 0);
    ck_assert_int_eq(plugin->pread(digest, digests, 1, sizeof(digests), 0), -1);
    ck_assert_int_eq(fake_nbdkit_errno(), EINVAL);
    unload();
}
END_TEST

/* Without a map there is nothing to read: said, and not listed. */
START_TEST(err_no_map)
{
    struct nbdkit_exports exports = {.n = 0};

    load();
    plugin->cleanup();
    plugin->unload();
    plugin = plugin_init();
    ck_assert_int_eq(configure("disk", "disk"), 0);
    ck_assert_int_eq(configure("metadata", "meta"), 0);
    ck_assert_int_eq(configure("overlay-dir", "overlays"), 0);
    ck_assert_int_eq(configure("control", "control"), 0);
    ck_assert_int_eq(plugin->get_ready(), 0);
    ck_assert_ptr_null(open_export("changed"));
    ck_assert_str_eq(fake_nbdkit_error(), "refused: export 'changed' needs a map (map=PATH)");
    ck_assert_ptr_nonnull(open_export("digest"));
    ck_assert_int_eq(plugin->list_exports(0, 0, &exports), 0);
    ck_assert_uint_eq(exports.n, 3);
    unload();
}
END_TEST

/* A map that is of no use is found before nbdkit serves. */
START_TEST(err_map_damaged)
{
    load();
    plugin->cleanup();
    plugin->unload();

    g_autofree char *map = path_of("map");

    ck_assert(g_file_set_contents(map, "nonsense", -1, NULL));
    plugin = plugin_init();
    ck_assert_int_eq(configure("disk", "disk"), 0);
    ck_assert_int_eq(configure("metadata", "meta"), 0);
    ck_assert_int_eq(configure("overlay-dir", "overlays"), 0);
    ck_assert_int_eq(configure("control", "control"), 0);
    ck_assert_int_eq(configure("map", "map"), 0);
    ck_assert_int_eq(plugin->get_ready(), -1);
    ck_assert_ptr_nonnull(strstr(fake_nbdkit_error(), "is no map of a disk; remove the file"));
    unload();
}
END_TEST

START_TEST(err_parameters)
{
    static const char *const good[] = {"disk", "metadata", "control", "overlay-dir"};

    plugin = plugin_init();
    ck_assert_int_eq(plugin->config("colour", "red"), -1);
    ck_assert_int_eq(plugin->config("overlay", "disk"), -1);
    ck_assert_int_eq(plugin->config("overlay-limit", "much"), -1);
    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        ck_assert_int_eq(plugin->config_complete(), -1);
        ck_assert_int_eq(plugin->config(good[i], "/nowhere/x"), 0);
    }
    ck_assert_int_eq(plugin->config_complete(), 0);
    ck_assert_int_eq(plugin->get_ready(), -1);
    ck_assert_ptr_nonnull(strstr(fake_nbdkit_error(), "limit"));
    ck_assert_int_eq(plugin->config("overlay-limit", "400000"), 0);
    ck_assert_int_eq(plugin->get_ready(), -1);
    ck_assert_ptr_nonnull(strstr(fake_nbdkit_error(), "/nowhere/x: cannot open it"));
    ck_assert_int_eq(plugin->config("overlay", "memory"), 0);
    ck_assert_int_eq(plugin->config_complete(), -1);
    plugin->unload();
}
END_TEST

enum { THREADS = 4, ROUNDS = 800 };

typedef struct Job {
    pthread_t thread;
    void *handle;
    unsigned seed;
    int failed;
} Job;

/* Each thread has every fourth block and knows what it wrote there; after the failover the disk
 * must have what `active` was given. */
static void *
work(void *data)
{
    Job *job = data;
    unsigned number = job->seed;
    uint8_t out[BLOCK], in[BLOCK];
    struct nbdkit_extents extents;

    for (int i = 0; i < ROUNDS; i++) {
        uint64_t offset = ((uint64_t)(rand_r(&job->seed) % 20) * THREADS + number) * BLOCK;
        uint32_t flags = rand_r(&job->seed) % 16 ? 0 : NBDKIT_FLAG_FUA;

        memset(out, rand_r(&job->seed) % 256, sizeof(out));
        extents.n = 0;
        job->failed += plugin->pwrite(job->handle, out, BLOCK, offset, flags) < 0;
        job->failed += plugin->pread(job->handle, in, BLOCK, offset, 0) < 0;
        job->failed += memcmp(in, out, BLOCK) != 0;
        job->failed += plugin->extents(job->handle, 8 * BLOCK, offset, 0, &extents) < 0;
    }
    return NULL;
}

START_TEST(life_threads_over_a_failover)
{
    Job jobs[THREADS];
    uint8_t byte = 'p';

    load();
    start_mirror();

    void *target = open_export("target"), *active = open_export("active");

    for (unsigned i = 0; i < 80; i++)
        ck_assert_int_eq(plugin->pwrite(target, &byte, 1, i * BLOCK, 0), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        jobs[i] = (Job){.handle = active, .seed = i};
        ck_assert_int_eq(pthread_create(&jobs[i].thread, NULL, work, &jobs[i]), 0);
    }
    command("{\"command\":\"failover\",\"arguments\":{\"generation\":2,\"until\":\"durable\"}}",
            "return");
    command("{\"command\":\"failover\",\"arguments\":{\"generation\":2}}", "return");
    for (unsigned i = 0; i < THREADS; i++) {
        (void)pthread_join(jobs[i].thread, NULL);
        ck_assert_int_eq(jobs[i].failed, 0);
    }
    command("{\"command\":\"status\"}", "UpToDate");
    unload();
}
END_TEST

CHECK_MAIN("target-plugin", life_requests, err_names_and_numbers, sec_who_may_open_what,
           unit_changed_and_digest, err_no_map, err_map_damaged, err_parameters,
           life_threads_over_a_failover)
