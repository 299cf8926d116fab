/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-gate-pair.c - both gates back to back between a fake PVM and a fake SVM */
#include "test-gate-bench.h"

#include "test-colo-recording.h"

/* Two ends in one log; the benches' own peers are not used. */
typedef struct Pair {
    Bench primary, secondary;
} Pair;

static void
open_end(Bench *bench, int channel_fd, gboolean primary, const GateConfig *config)
{
    g_autoptr(GIOStream) stream = bench_stream(channel_fd);
    int vm[2];

    *bench = (Bench){.vm_got = g_byte_array_new(),
                     .peer_got = g_byte_array_new(),
                     .peer_log = g_string_new(NULL),
                     .log = g_string_new(NULL),
                     .pass = TRUE};
    bench_socketpair(vm);
    bench->vm = vm[1];
    bench->vm_source = g_unix_fd_add(vm[1], G_IO_IN, bench_on_vm, bench);
    bench->gate =
        primary ? gate_primary_new(vm[0], stream, BENCH_GENERATION, config, &bench_handlers, bench)
                : gate_secondary_new(vm[0], stream, config, &bench_handlers, bench);
}

static void
open_pair(Pair *pair)
{
    int channel[2];

    bench_socketpair(channel);
    open_end(&pair->primary, channel[0], TRUE, &bench_config);
    open_end(&pair->secondary, channel[1], FALSE, &bench_config);
}

static void
close_pair(Pair *pair)
{
    bench_close(&pair->primary);
    bench_close(&pair->secondary);
}

/* @return_path: of QEMU 11; without it the return channel is raw from its first byte (QEMU 7.2). */
static void
arm_with(Pair *pair, gboolean return_path)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) back = g_byte_array_new();

    build_migration(stream);
    vm_say(&pair->primary, stream->data, stream->len);
    expect_bytes(pair->secondary.vm_got, stream->data, stream->len);
    if (return_path)
        build_return_head(back);
    build_be32(back, 0);
    vm_say(&pair->secondary, back->data, back->len);
    expect_bytes(pair->primary.vm_got, back->data, back->len);
    expect_text(pair->primary.log, "ram-done0 ?ready0 ready0 ");
    expect_text(pair->secondary.log, "ram-done0 ready0 armed0 ");
}

static void
arm(Pair *pair)
{
    arm_with(pair, TRUE);
}

/* One checkpoint of @pages and @tail_bytes; FALSE if a gate failed in it. */
static gboolean
checkpoint(Pair *pair, unsigned pages, unsigned tail_bytes)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    Bench *pvm = &pair->primary, *svm = &pair->secondary;

    build_checkpoint(stream, pages, tail_bytes);
    vm_say_message(pvm, 1);
    expect_message(svm->vm_got, 1);
    vm_say_message(svm, 2);
    expect_message(pvm->vm_got, 2);
    vm_say(pvm, stream->data + 4, stream->len - 4);
    WAIT(svm->vm_got->len >= stream->len - 4 || svm->failure);
    if (svm->failure)
        return FALSE;
    expect_bytes(svm->vm_got, stream->data + 4, stream->len - 4);
    vm_say(svm, "\0\0\0\5\0\0\0\6", 8);
    expect_bytes(pvm->vm_got, "\0\0\0\5\0\0\0\6", 8);
    return TRUE;
}

START_TEST(life_checkpoints)
{
    Pair pair;
    GateFigures p, s;

    open_pair(&pair);
    arm(&pair);
    for (unsigned epoch = 1; epoch <= 20; epoch++) {
        g_autofree char *primary_log =
            g_strdup_printf("?request%u ?mark%u committed%u loaded%u ", epoch, epoch, epoch, epoch);
        g_autofree char *secondary_log =
            g_strdup_printf("?quiesce%u ?reply%u ?commit%u committed%u loaded%u ", epoch, epoch,
                            epoch, epoch, epoch);

        ck_assert(checkpoint(&pair, (epoch * 37) % 300, 1 + epoch * epoch * 100));
        expect_text(pair.primary.log, primary_log);
        expect_text(pair.secondary.log, secondary_log);
    }
    gate_get_figures(pair.primary.gate, &p);
    gate_get_figures(pair.secondary.gate, &s);
    ck_assert_uint_eq(p.epoch, 20);
    ck_assert_uint_eq(p.bytes, s.bytes);
    ck_assert_uint_eq(p.pages, s.pages);
    ck_assert_uint_eq(p.pages, (20 * 37) % 300);
    close_pair(&pair);
}
END_TEST

START_TEST(life_raw_return_channel)
{
    Pair pair;

    open_pair(&pair);
    arm_with(&pair, FALSE);
    for (unsigned epoch = 1; epoch <= 3; epoch++)
        ck_assert(checkpoint(&pair, 10, 1000));
    ck_assert_ptr_null(pair.primary.failure);
    ck_assert_ptr_nonnull(strstr(pair.primary.log->str, "committed3 loaded3 "));
    close_pair(&pair);
}
END_TEST

/* Return-path messages have their place before READY; behind it they are no COLO messages. */
START_TEST(sec_raw_return_channel_changes_its_mind)
{
    g_autoptr(GByteArray) head = g_byte_array_new();
    Pair pair;

    open_pair(&pair);
    arm_with(&pair, FALSE);
    vm_say_message(&pair.primary, 1);
    build_return_head(head);
    vm_say(&pair.secondary, head->data, head->len);
    expect_failure(&pair.secondary, GATE_ERROR_STREAM, "SVM's return channel");
    expect_bytes(pair.primary.vm_got, NULL, 0);
    ck_assert_int_eq(gate_load(pair.secondary.gate), GATE_LOAD_CLEAN);
    close_pair(&pair);
}
END_TEST

START_TEST(life_large_checkpoint)
{
    Pair pair;

    open_pair(&pair);
    arm(&pair);
    ck_assert(checkpoint(&pair, 8000, 1000 * 1000));
    ck_assert_ptr_null(pair.primary.failure);
    close_pair(&pair);
}
END_TEST

START_TEST(sec_corrupted)
{
    Pair pair;

    open_pair(&pair);
    arm(&pair);
    ck_assert(checkpoint(&pair, 10, 1000));
    gate_corrupt_next(pair.primary.gate);
    g_string_truncate(pair.secondary.log, 0);
    ck_assert(!checkpoint(&pair, 10, 1000));
    expect_failure(&pair.secondary, GATE_ERROR_CHECKSUM, "checkpoint 2, step transfer");
    expect_text(pair.secondary.log, "?quiesce2 ?reply2 failed0 ");
    ck_assert_int_eq(gate_load(pair.secondary.gate), GATE_LOAD_CLEAN);
    /* SVM was given SEND and the delta, and not one byte of the tail. */
    g_autoptr(GByteArray) delta = g_byte_array_new();

    build_be32(delta, 3);
    build_delta(delta, 10);
    expect_bytes(pair.secondary.vm_got, delta->data, delta->len);
    settle();
    expect_failure(&pair.primary, GATE_ERROR_PEER_CLOSED, "checkpoint 2, step commit");
    close_pair(&pair);
}
END_TEST

/* A recording of two real QEMUs, through both gates. */
START_TEST(life_recording)
{
    static const char cycle[] = "\0\0\0\1\0\0\0\3\3\0\0\0\1";
    g_autoptr(GByteArray) stream =
        build_from_recording(TEST_DATA_DIR "/test-colo-qemu-11.1-forward.gz");
    const guint8 *at = memmem(stream->data, stream->len, cycle, sizeof(cycle) - 1);
    g_autoptr(GByteArray) back = g_byte_array_new();
    Pair pair;

    ck_assert_ptr_nonnull(at);
    open_pair(&pair);
    vm_say(&pair.primary, stream->data, (size_t)(at - stream->data));
    build_return_head(back);
    build_be32(back, 0);
    vm_say(&pair.secondary, back->data, back->len);
    for (guint n = 1; at != NULL; n++) {
        const guint8 *rest = at + 4, *end = stream->data + stream->len;

        at = memmem(rest, (size_t)(end - rest), cycle, sizeof(cycle) - 1);
        vm_say_message(&pair.primary, 1);
        vm_say_message(&pair.secondary, 2);
        vm_say(&pair.primary, rest, (size_t)((at ? at : end) - rest));
        vm_say(&pair.secondary, "\0\0\0\5\0\0\0\6", 8);
        ck_assert_ptr_null(pair.primary.failure);
        ck_assert_ptr_null(pair.secondary.failure);
        ck_assert_uint_eq(pair.secondary.vm_got->len,
                          at ? (size_t)(at - stream->data) : stream->len);
    }
    expect_bytes(pair.secondary.vm_got, stream->data, stream->len);
    ck_assert_ptr_nonnull(strstr(pair.secondary.log->str, "loaded4 "));
    close_pair(&pair);
}
END_TEST

CHECK_MAIN("gate-pair", life_checkpoints, life_raw_return_channel,
           sec_raw_return_channel_changes_its_mind, life_large_checkpoint, sec_corrupted,
           life_recording)
