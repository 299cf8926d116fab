/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-forward.c - the forwarder against a peer in the same process that keeps back, fails, ends
 *
 * "The guest" writes to the image and to the forwarder, as QEMU's quorum does.
 */
#include "fake-nbd.h"
#include "forward.h"

#include "check-main.h"
#include "chunk-set.h"
#include "clock.h"
#include "fd.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum {
    CHUNKS = 40,
    SIZE = CHUNKS * CHUNK_BYTES + 4096, /* the last chunk is short */
    WRITERS = 3,
    WRITES = 200,
    ROUNDS = 10,
};

typedef struct Rig {
    char folder[64];
    char *disk, *meta, *map, *socket;
    int fd;
    FakeNbd *peer;
    Forward *forward;
} Rig;

static int64_t
soon(void)
{
    return clock_now_ns() + 30 * NS_PER_S;
}

static void
rig_open(Rig *rig, int64_t timeout_ms)
{
    const ForwardConfig config = {
        .disk = rig->disk,
        .metadata = rig->meta,
        .map = rig->map,
        .run_dir = rig->folder,
        .limit_bytes = FORWARD_MIN_LIMIT_BYTES,
        .max_entries = 64,
        .request_timeout_ms = timeout_ms,
    };
    g_autoptr(GError) error = NULL;

    rig->forward = forward_new(&config, &error);
    ck_assert_msg(rig->forward != NULL, "%s", error ? error->message : "");
}

static void
rig_init(Rig *rig, int64_t timeout_ms)
{
    (void)g_strlcpy(rig->folder, "/tmp/colod-test-forward-XXXXXX", sizeof(rig->folder));
    ck_assert_ptr_nonnull(g_mkdtemp(rig->folder));
    rig->disk = g_build_filename(rig->folder, "disk", NULL);
    rig->meta = g_build_filename(rig->folder, "meta", NULL);
    rig->map = g_build_filename(rig->folder, "map", NULL);
    rig->socket = g_build_filename(rig->folder, "nbd", NULL);
    rig->fd = open(rig->disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_ge(rig->fd, 0);
    ck_assert_int_eq(ftruncate(rig->fd, SIZE), 0);
    rig->peer = fake_nbd_new(rig->socket, SIZE);
    rig_open(rig, timeout_ms);
}

static void
rig_clear(Rig *rig)
{
    char *paths[] = {rig->disk, rig->meta, rig->map, rig->socket};

    forward_free(rig->forward);
    fake_nbd_free(rig->peer);
    fd_clear(&rig->fd);
    for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++) {
        (void)g_unlink(paths[i]);
        g_free(paths[i]);
    }
    ck_assert_int_eq(g_rmdir(rig->folder), 0);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rig, rig_clear)

/* --- Steps --- */

static void
guest_writes(Rig *rig, uint8_t byte, uint64_t offset, uint64_t len)
{
    g_autofree uint8_t *data = g_malloc(len);

    memset(data, byte, len);
    ck_assert_int_eq(pwrite(rig->fd, data, len, (off_t)offset), (ssize_t)len);
    forward_change(rig->forward, FORWARD_WRITE, offset, len, data);
}

static void
must(gboolean ok, GError *error)
{
    ck_assert_msg(ok, "%s", error ? error->message : "");
}

#define MUST(call)                                                                                 \
    do {                                                                                           \
        GError *error = NULL;                                                                      \
                                                                                                   \
        must(call, error);                                                                         \
    } while (0)

static void
expect_refusal(gboolean ok, GError *error, ForwardError code, const char *part)
{
    ck_assert(!ok);
    ck_assert_msg(g_error_matches(error, FORWARD_ERROR, (gint)code), "%s", error->message);
    ck_assert_msg(strstr(error->message, part) != NULL, "%s", error->message);
    g_error_free(error);
}

#define EXPECT(code, part, call)                                                                   \
    do {                                                                                           \
        GError *error = NULL;                                                                      \
        gboolean ok = call;                                                                        \
                                                                                                   \
        expect_refusal(ok, error, code, part);                                                     \
    } while (0)

static ForwardStatus
status_of(Rig *rig)
{
    ForwardStatus status;

    forward_status(rig->forward, &status);
    return status;
}

static void
wait_mode(Rig *rig, ForwardMode mode)
{
    ForwardStatus status = status_of(rig);

    while (status.mode != mode) {
        ck_assert_int_lt(clock_now_ns(), soon());
        forward_wait_change(rig->forward, status.change, soon());
        status = status_of(rig);
    }
}

static void
begin_sync(Rig *rig, uint64_t generation)
{
    const ForwardConnect order = {.host = rig->socket, .generation = generation};

    MUST(forward_alone(rig->forward, generation, TRUE, soon(), &error));
    MUST(forward_connect(rig->forward, &order, soon(), &error));
}

static void
begin_mirror(Rig *rig)
{
    begin_sync(rig, 1);
    MUST(forward_finish(rig->forward, soon(), &error));
    MUST(forward_release(rig->forward, 0, soon(), &error));
    ck_assert_int_eq(status_of(rig).mode, FORWARD_MIRRORING);
}

static void
expect_equal(Rig *rig)
{
    g_autofree uint8_t *local = g_malloc(SIZE);
    g_autofree uint8_t *peer = g_malloc(SIZE);

    ck_assert_int_eq(pread(rig->fd, local, SIZE, 0), SIZE);
    fake_nbd_peek(rig->peer, peer, SIZE, 0);

    uint64_t at = 0;

    while (at < SIZE && local[at] == peer[at])
        at++;
    ck_assert_uint_eq(at, SIZE); /* else the first byte that differs */
    ck_assert_uint_eq(fake_nbd_counters(rig->peer).overlaps, 0);
}

/* --- Life --- */

START_TEST(life_sync_and_checkpoints)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    guest_writes(&rig, 'i', 0, 4096); /* idle: nobody hears of it */
    guest_writes(&rig, 'i', 5 * CHUNK_BYTES + 7, 3 * CHUNK_BYTES);
    begin_mirror(&rig);
    expect_equal(&rig);
    ck_assert_uint_eq(status_of(&rig).marked_bytes, 0);
    for (uint64_t epoch = 1; epoch <= 3; epoch++) {
        guest_writes(&rig, (uint8_t)epoch, epoch * 1000, 70000);
        guest_writes(&rig, (uint8_t)epoch, SIZE - 100, 100);
        forward_change(rig.forward, FORWARD_TRIM, CHUNK_BYTES * 20, CHUNK_BYTES, NULL);
        forward_change(rig.forward, FORWARD_ZERO, CHUNK_BYTES * 21, CHUNK_BYTES, NULL);
        forward_change(rig.forward, FORWARD_UNMAP, CHUNK_BYTES * 22, CHUNK_BYTES, NULL);
        MUST(forward_barrier(rig.forward, epoch, soon(), &error));
        expect_equal(&rig);
        MUST(forward_release(rig.forward, epoch, soon(), &error));
    }
    EXPECT(FORWARD_ERROR_REFUSED, "over", forward_barrier(rig.forward, 3, soon(), &error));
}
END_TEST

START_TEST(life_held_until_release)
{
    g_auto(Rig) rig = {0};
    uint8_t byte;

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    guest_writes(&rig, 'n', 0, 512);
    MUST(forward_barrier(rig.forward, 1, soon(), &error));
    guest_writes(&rig, 'm', 0, 512);
    ck_assert_uint_eq(status_of(&rig).queue.held_bytes, 512);
    EXPECT(FORWARD_ERROR_REFUSED, "no barrier", forward_release(rig.forward, 2, soon(), &error));
    fake_nbd_peek(rig.peer, &byte, 1, 0);
    ck_assert_int_eq(byte, 'n');
    MUST(forward_release(rig.forward, 1, soon(), &error));
    MUST(forward_barrier(rig.forward, 2, soon(), &error));
    expect_equal(&rig);
}
END_TEST

/* What is in flight, sent late and in any order. */
START_TEST(life_a_peer_that_is_late)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    fake_nbd_hold(rig.peer, true);
    for (unsigned i = 0; i < 8; i++)
        guest_writes(&rig, (uint8_t)('a' + i), i * 8192, 4096);
    fake_nbd_wait_kept(rig.peer, 1);
    for (unsigned i = 0; i < 8; i++)
        guest_writes(&rig, (uint8_t)('A' + i), i * 8192 + 100, 4096);
    EXPECT(FORWARD_ERROR_TIMEOUT, "in time",
           forward_barrier(rig.forward, 1, clock_now_ns() + 20 * NS_PER_MS, &error));
    fake_nbd_hold(rig.peer, false);
    MUST(forward_barrier(rig.forward, 1, soon(), &error));
    expect_equal(&rig);
}
END_TEST

/* The map of the other host counts, and what it has not is not copied. */
START_TEST(life_only_what_is_marked_is_copied)
{
    static const uint8_t other[CHUNK_BYTES] = {1, 2, 3};
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    fake_nbd_cut(rig.peer);
    wait_mode(&rig, FORWARD_ALONE);
    ck_assert_int_eq(status_of(&rig).fault, FAULT_FORWARDING);
    guest_writes(&rig, 'x', 3 * CHUNK_BYTES, 4096);
    fake_nbd_set_changed(rig.peer, 1 << 2, 1);
    fake_nbd_fill(rig.peer, other, CHUNK_BYTES, 10 * CHUNK_BYTES);
    begin_sync(&rig, 2);
    MUST(forward_finish(rig.forward, soon(), &error));
    ck_assert_uint_eq(status_of(&rig).copied_bytes, 2 * CHUNK_BYTES);
    expect_equal(&rig);
}
END_TEST

typedef struct Writer {
    Rig *rig;
    unsigned first; /* its chunks: every WRITERS-th */
    pthread_t thread;
} Writer;

static void *
run_writer(void *user_data)
{
    Writer *writer = user_data;
    GRand *rand = g_rand_new_with_seed(writer->first);

    for (unsigned i = 0; i < WRITES; i++) {
        uint64_t chunk =
            writer->first + WRITERS * (uint64_t)g_rand_int_range(rand, 0, CHUNKS / WRITERS);
        uint64_t sector = (uint64_t)g_rand_int_range(rand, 0, 120);

        guest_writes(writer->rig, (uint8_t)i, chunk * CHUNK_BYTES + sector * 512,
                     512 * (uint64_t)g_rand_int_range(rand, 1, 8) - (i % 16 == 0));
    }
    g_rand_free(rand);
    return NULL;
}

static void
write_from_threads(Rig *rig, Writer *writers)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (Writer){.rig = rig, .first = i};
        ck_assert_int_eq(pthread_create(&writers[i].thread, NULL, run_writer, &writers[i]), 0);
    }
}

static void
join(Writer *writers)
{
    for (unsigned i = 0; i < WRITERS; i++)
        (void)pthread_join(writers[i].thread, NULL);
}

/* Parts of sectors too; copies and writes of the same chunks meet. */
START_TEST(life_sync_under_writes)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        g_auto(Rig) rig = {0};
        Writer writers[WRITERS];

        rig_init(&rig, 20000);
        guest_writes(&rig, 'o', 0, SIZE);
        MUST(forward_alone(rig.forward, 1, TRUE, soon(), &error));
        write_from_threads(&rig, writers);
        begin_sync(&rig, 1);
        join(writers);
        MUST(forward_finish(rig.forward, soon(), &error));
        expect_equal(&rig);
        MUST(forward_release(rig.forward, 0, soon(), &error));
        write_from_threads(&rig, writers);
        join(writers);
        MUST(forward_barrier(rig.forward, 1, soon(), &error));
        expect_equal(&rig);
    }
}
END_TEST

/* What is sent together does not wait for a barrier. */
START_TEST(life_sent_without_a_barrier)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    fake_nbd_hold(rig.peer, true);
    for (unsigned i = 1; i <= 3; i++) {
        guest_writes(&rig, (uint8_t)i, i * CHUNK_BYTES, 4096);
        fake_nbd_wait_kept(rig.peer, i);
    }
    fake_nbd_hold(rig.peer, false);
    MUST(forward_barrier(rig.forward, 1, soon(), &error));
    expect_equal(&rig);
}
END_TEST

static void
wait_synced(Rig *rig)
{
    ForwardStatus status = status_of(rig);
    int64_t deadline_ns = soon();

    while (!status.synced) {
        ck_assert_int_lt(clock_now_ns(), deadline_ns);
        forward_wait_change(rig->forward, status.change, deadline_ns);
        status = status_of(rig);
    }
}

/* What was written shortly before is not waited for any longer when it is known to be there. */
START_TEST(life_settled)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    MUST(forward_alone(rig.forward, 1, TRUE, soon(), &error));
    guest_writes(&rig, 'o', 0, SIZE);
    begin_sync(&rig, 1);
    ck_assert_uint_eq(status_of(&rig).left_bytes, (CHUNKS + 1) * CHUNK_BYTES);
    forward_settled(rig.forward);
    wait_synced(&rig);
    ck_assert_uint_lt(status_of(&rig).sync_ms, 4000); /* without it 5 s */
    MUST(forward_finish(rig.forward, soon(), &error));
    expect_equal(&rig);
}
END_TEST

/* A part of a sector, written since the connection began, may not be there yet. */
START_TEST(life_settled_is_of_before)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    MUST(forward_alone(rig.forward, 1, TRUE, soon(), &error));
    guest_writes(&rig, 'o', 0, SIZE);
    begin_sync(&rig, 1);
    guest_writes(&rig, 'p', CHUNK_BYTES + 7, 100);
    forward_settled(rig.forward);
    ck_assert_uint_eq(status_of(&rig).left_bytes, (CHUNKS + 1) * CHUNK_BYTES);
    ck_assert(!status_of(&rig).synced);
    MUST(forward_finish(rig.forward, soon(), &error));
    expect_equal(&rig);
}
END_TEST

/* A forwarder that takes another's place does not know what that one was told last, and so how
 * long QEMU has been at it. */
START_TEST(life_settled_after_a_restart)
{
    ForwardConnect to = {.generation = 1};
    g_auto(Rig) rig = {0};
    uint8_t data[4096];

    rig_init(&rig, 20000);
    to.host = rig.socket;
    begin_mirror(&rig);
    memset(data, 'l', sizeof(data));
    forward_change(rig.forward, FORWARD_WRITE, 3 * CHUNK_BYTES, sizeof(data), data);
    forward_free(rig.forward);
    rig_open(&rig, 20000);
    MUST(forward_take_place(rig.forward, 1, soon(), &error));
    MUST(forward_connect(rig.forward, &to, soon(), &error));
    wait_synced(&rig);
    ck_assert_uint_eq(status_of(&rig).left_bytes, CHUNK_BYTES);
    ck_assert_int_eq(pwrite(rig.fd, data, sizeof(data), 3 * CHUNK_BYTES), sizeof(data));
    forward_settled(rig.forward);
    MUST(forward_finish(rig.forward, soon(), &error));
    expect_equal(&rig);
}
END_TEST

/* --- Errors --- */

START_TEST(err_the_peer_refuses)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    fake_nbd_fail(rig.peer, 28 /* ENOSPC */);
    guest_writes(&rig, 'x', 0, 512);
    wait_mode(&rig, FORWARD_ALONE);
    ck_assert_int_eq(status_of(&rig).fault, FAULT_SECONDARY_DISK);
    ck_assert_uint_eq(status_of(&rig).marked_bytes, CHUNK_BYTES);
    EXPECT(FORWARD_ERROR_REFUSED, "secondary-disk",
           forward_barrier(rig.forward, 1, soon(), &error));
}
END_TEST

START_TEST(err_no_answer)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 100);
    begin_mirror(&rig);
    fake_nbd_hold(rig.peer, true);
    guest_writes(&rig, 'x', 0, 512);
    EXPECT(FORWARD_ERROR_FAILED, "forwarding", forward_barrier(rig.forward, 1, soon(), &error));
    ck_assert_int_eq(status_of(&rig).mode, FORWARD_ALONE);
}
END_TEST

/* Who waits for room in the window is let through when the peer is lost. */
START_TEST(err_a_full_window)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 200);
    begin_mirror(&rig);
    fake_nbd_hold(rig.peer, true);
    for (unsigned i = 0; i < 3; i++)
        guest_writes(&rig, (uint8_t)i, 0, SIZE); /* more than the window; merged once it is in it */
    for (unsigned i = 0; i < 80; i++)
        guest_writes(&rig, (uint8_t)i, i * 8192, 512);
    wait_mode(&rig, FORWARD_ALONE);
    ck_assert_uint_gt(status_of(&rig).marked_bytes, (CHUNKS - 1) * CHUNK_BYTES);
}
END_TEST

START_TEST(err_lost_while_syncing)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    guest_writes(&rig, 'x', 0, SIZE);
    fake_nbd_hold(rig.peer, true);
    begin_sync(&rig, 1);
    fake_nbd_wait_kept(rig.peer, 1);
    fake_nbd_cut(rig.peer);
    wait_mode(&rig, FORWARD_ALONE);
    EXPECT(FORWARD_ERROR_REFUSED, "not being synced", forward_finish(rig.forward, soon(), &error));
    ck_assert_uint_gt(status_of(&rig).marked_bytes, SIZE - 1);
}
END_TEST

static void *
give_up(void *user_data)
{
    Rig *rig = user_data;

    MUST(forward_alone(rig->forward, 2, FALSE, soon(), &error));
    return NULL;
}

START_TEST(life_alone_interrupts)
{
    g_auto(Rig) rig = {0};
    pthread_t thread;

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    fake_nbd_hold(rig.peer, true);
    guest_writes(&rig, 'x', 0, 512);
    fake_nbd_wait_kept(rig.peer, 1);
    ck_assert_int_eq(pthread_create(&thread, NULL, give_up, &rig), 0);

    GError *error = NULL;

    ck_assert(!forward_barrier(rig.forward, 1, soon(), &error));
    g_error_free(error);
    (void)pthread_join(thread, NULL);
    ck_assert_uint_eq(status_of(&rig).meta.generation, 2);
    ck_assert_int_eq(status_of(&rig).fault, FAULT_NONE);
}
END_TEST

START_TEST(err_no_such_peer)
{
    const ForwardConnect nobody = {.host = "/nonexistent/socket", .generation = 1};
    const ForwardConnect plain = {.host = "127.0.0.1", .port = 1, .generation = 1};
    g_auto(Rig) rig = {0};

    rig_init(&rig, 20000);
    EXPECT(FORWARD_ERROR_REFUSED, "alone comes first",
           forward_connect(rig.forward, &nobody, soon(), &error));
    EXPECT(FORWARD_ERROR_REFUSED, "never replicated",
           forward_alone(rig.forward, 1, FALSE, soon(), &error));
    MUST(forward_alone(rig.forward, 1, TRUE, soon(), &error));
    EXPECT(FORWARD_ERROR_FAILED, "forwarding",
           forward_connect(rig.forward, &nobody, soon(), &error));
    EXPECT(FORWARD_ERROR_FAILED, "TLS only", forward_connect(rig.forward, &plain, soon(), &error));
    ck_assert_int_eq(status_of(&rig).mode, FORWARD_ALONE);
}
END_TEST

/* --- Verify --- */

START_TEST(life_verify)
{
    g_auto(Rig) rig = {0};
    ForwardStatus status;
    uint64_t epoch = 0;

    rig_init(&rig, 20000);
    begin_mirror(&rig);
    fake_nbd_fill(rig.peer, "!", 1, 7 * CHUNK_BYTES + 1);
    MUST(forward_verify(rig.forward, soon(), &error));
    do {
        epoch++;
        guest_writes(&rig, (uint8_t)epoch, 9 * CHUNK_BYTES, 4096);
        MUST(forward_barrier(rig.forward, epoch, soon(), &error));
        MUST(forward_release(rig.forward, epoch, soon(), &error));
        status = status_of(&rig);
    } while (status.verify.state == VERIFY_RUNNING && epoch < 100000);
    ck_assert_int_eq(status.verify.state, VERIFY_DONE);
    ck_assert_uint_eq(status.verify.n_differences, 1);
    ck_assert_uint_eq(status.verify.listed[0].offset, 7 * CHUNK_BYTES);
}
END_TEST

CHECK_MAIN("forward", life_sync_and_checkpoints, life_held_until_release, life_a_peer_that_is_late,
           life_only_what_is_marked_is_copied, life_sync_under_writes, life_sent_without_a_barrier,
           life_settled, life_settled_is_of_before, life_settled_after_a_restart,
           err_the_peer_refuses, err_no_answer, err_a_full_window, err_lost_while_syncing,
           life_alone_interrupts, err_no_such_peer, life_verify)
