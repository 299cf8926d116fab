/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-gate-secondary.c - the secondary's gate between a fake SVM and a fake primary */
#include "test-gate-bench.h"

#define DATA PEER_MESSAGE_DATA_FORWARD

/* Initial migration, READY and ARM. */
static void
arm(Bench *bench)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();

    build_migration(stream);
    peer_say(bench, DATA, stream->data, stream->len);
    expect_bytes(bench->vm_got, stream->data, stream->len);
    expect_text(bench->log, "ram-done0 ");

    GByteArray *back = g_byte_array_new();

    build_return_head(back);
    build_be32(back, 0);
    vm_say(bench, back->data, back->len);
    expect_bytes(bench->peer_got, back->data, back->len);
    expect_text(bench->log, "ready0 ");
    ck_assert_int_eq(gate_load(bench->gate), GATE_LOAD_NEVER);
    g_byte_array_unref(back);
    peer_say_number(bench, PEER_MESSAGE_ARM, BENCH_GENERATION);
    expect_text(bench->log, "armed0 ");
    ck_assert_int_eq(gate_load(bench->gate), GATE_LOAD_CLEAN);
}

static void
say_good_end(Bench *bench, guint64 epoch)
{
    g_autoptr(GByteArray) covered = covered_new();

    peer_say_end(bench, epoch, covered->len, XXH3_64bits(covered->data, covered->len));
}

/* Brings an armed, idle gate to @step of checkpoint @epoch, checking all bytes on the way. */
static void
advance(Bench *bench, GateStep step, guint64 epoch)
{
    g_autoptr(GByteArray) delta = delta_new();
    g_autoptr(GByteArray) covered = covered_new();
    g_autoptr(GByteArray) tail = tail_new();
    g_autofree char *committed = g_strdup_printf("committed%" G_GUINT64_FORMAT " ", epoch);
    g_autofree char *quiesce = g_strdup_printf("?quiesce%" G_GUINT64_FORMAT " ", epoch);
    g_autofree char *reply = g_strdup_printf("?reply%" G_GUINT64_FORMAT " ", epoch);
    g_autofree char *commit = g_strdup_printf("?commit%" G_GUINT64_FORMAT " ", epoch);
    g_autofree char *sent = g_strdup_printf("COMMITTED%" G_GUINT64_FORMAT " ", epoch);

    ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_IDLE);
    if (step >= GATE_STEP_REQUEST) {
        peer_say_message(bench, DATA, 1);
        expect_text(bench->log, quiesce);
        expect_bytes(bench->vm_got, NULL, 0);
    }
    if (step >= GATE_STEP_REPLY) {
        gate_continue(bench->gate, GATE_POINT_QUIESCE);
        settle();
        expect_message(bench->vm_got, 1);
    }
    if (step >= GATE_STEP_SEND) {
        vm_say_message(bench, 2);
        expect_text(bench->log, reply);
        expect_bytes(bench->peer_got, NULL, 0);
        gate_continue(bench->gate, GATE_POINT_REPLY);
        settle();
        expect_message(bench->peer_got, 2);
    }
    if (step >= GATE_STEP_TRANSFER) {
        peer_say_message(bench, DATA, 3);
        expect_message(bench->vm_got, 3);
        peer_say(bench, DATA, covered->data, covered->len);
        expect_bytes(bench->vm_got, delta->data, delta->len);
    }
    if (step >= GATE_STEP_COMMIT) {
        say_good_end(bench, epoch);
        expect_text(bench->log, commit);
        expect_bytes(bench->vm_got, NULL, 0);
        ck_assert_int_eq(gate_load(bench->gate), GATE_LOAD_CLEAN);
    }
    if (step >= GATE_STEP_RELEASE) {
        gate_continue(bench->gate, GATE_POINT_COMMIT);
        settle();
        expect_text(bench->log, committed);
        expect_text(bench->peer_log, sent);
        expect_bytes(bench->vm_got, tail->data, tail->len);
    }
    if (step >= GATE_STEP_LOAD) {
        ck_assert_int_eq(gate_load(bench->gate), GATE_LOAD_LOADING);
        vm_say_message(bench, 5);
        expect_message(bench->peer_got, 5);
    }
    ck_assert_int_eq(gate_step(bench->gate), step);
}

static void
finish(Bench *bench, guint64 epoch)
{
    g_autofree char *loaded = g_strdup_printf("loaded%" G_GUINT64_FORMAT " ", epoch);

    vm_say_message(bench, 6);
    expect_message(bench->peer_got, 6);
    expect_text(bench->log, loaded);
    ck_assert_int_eq(gate_load(bench->gate), GATE_LOAD_CLEAN);
    ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_IDLE);
}

static const BenchSide side = {.primary = FALSE, .arm = arm, .advance = advance, .finish = finish};

START_TEST(life_checkpoints)
{
    bench_test_checkpoints(&side);
}
END_TEST

/* Byte by byte, with points passed from within their callback. */
START_TEST(life_split)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    bench.pass = TRUE;
    arm(&bench);
    build_checkpoint(stream, BENCH_PAGES, BENCH_TAIL_BYTES);
    for (guint i = 0; i < stream->len; i++) {
        peer_say(&bench, DATA, stream->data + i, 1);
        if (i == 3)
            for (guint j = 0; j < 4; j++)
                vm_say(&bench, &"\0\0\0\2"[j], 1);
    }
    ck_assert_uint_eq(bench.vm_got->len, stream->len - 12 - BENCH_TAIL_BYTES);
    say_good_end(&bench, 1);
    expect_bytes(bench.vm_got, stream->data, stream->len);
    vm_say(&bench, "\0\0\0\5\0\0\0\6", 8);
    expect_bytes(bench.peer_got, "\0\0\0\2\0\0\0\5\0\0\0\6", 12);
    expect_text(bench.log, "?quiesce1 ?reply1 ?commit1 committed1 loaded1 ");
    bench_close(&bench);
}
END_TEST

/* No byte of device state for SVM before the point, which its first byte brings about; what comes
 * meanwhile is kept. */
START_TEST(life_state_point)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    Bench bench;
    guint at;

    build_migration(stream);
    at = build_state_at(stream);
    bench_open(&bench, &side, &bench_config);
    bench.hold_state = TRUE;
    peer_say(&bench, DATA, stream->data, at);
    expect_text(bench.log, "ram-done0 ");
    expect_bytes(bench.vm_got, stream->data, at);
    for (guint i = at; i < stream->len; i++)
        peer_say(&bench, DATA, stream->data + i, 1);
    expect_text(bench.log, "?state0 ");
    expect_bytes(bench.vm_got, NULL, 0);
    gate_continue(bench.gate, GATE_POINT_STATE);
    settle();
    expect_bytes(bench.vm_got, stream->data + at, stream->len - at);
    vm_say_message(&bench, 0);
    expect_text(bench.log, "ready0 ");
    bench_close(&bench);
}
END_TEST

START_TEST(sec_state_point)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    GateConfig config = bench_config;
    Bench bench;

    build_migration(stream);
    /* SVM cannot be ready before it has its state. */
    bench_open(&bench, &side, &bench_config);
    bench.hold_state = TRUE;
    peer_say(&bench, DATA, stream->data, stream->len);
    vm_say_message(&bench, 0);
    expect_failure(&bench, GATE_ERROR_STREAM, "before the initial RAM was over");
    gate_continue(bench.gate, GATE_POINT_STATE);
    expect_bytes(bench.vm_got, stream->data, build_state_at(stream));
    bench_close(&bench);

    /* What is kept has a bound. */
    config.tail_max_bytes = 2000;
    bench_open(&bench, &side, &config);
    bench.hold_state = TRUE;
    peer_say(&bench, DATA, stream->data, stream->len);
    for (unsigned i = 0; i < 10 && !bench.failure; i++)
        peer_say(&bench, DATA, stream->data, MIN(stream->len, 1000u));
    expect_failure(&bench, GATE_ERROR_STREAM, "initial device state of more than 2000 bytes");
    bench_close(&bench);
}
END_TEST

/* --- Breaks at each step ---------------------------------------------------------------------- */

static GateLoad
load_after(GateStep step, GateLoad loading)
{
    return step < GATE_STEP_RELEASE ? GATE_LOAD_CLEAN : loading;
}

START_TEST(err_vm_closed)
{
    for (GateStep step = GATE_STEP_IDLE; step <= GATE_STEP_LOAD; step++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, step);
        bench_close_vm(&bench);
        settle();
        expect_failure(&bench, GATE_ERROR_VM_CLOSED, gate_step_name(step));
        ck_assert_int_eq(gate_load(bench.gate), load_after(step, GATE_LOAD_BROKEN));
        bench_close(&bench);
    }
}
END_TEST

START_TEST(err_peer_closed)
{
    for (GateStep step = GATE_STEP_IDLE; step <= GATE_STEP_COMMIT; step++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, step);
        bench_close_peer(&bench);
        expect_failure(&bench, GATE_ERROR_PEER_CLOSED, gate_step_name(step));
        ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
        expect_bytes(bench.vm_got, NULL, 0);
        /* The owner's answer to the point comes late and changes nothing. */
        if (step == GATE_STEP_REQUEST)
            gate_continue(bench.gate, GATE_POINT_QUIESCE);
        if (step == GATE_STEP_COMMIT)
            gate_continue(bench.gate, GATE_POINT_COMMIT);
        settle();
        expect_bytes(bench.vm_got, NULL, 0);
        bench_close(&bench);
    }
}
END_TEST

/* After the commit point the load ends first, then the loss is told. */
START_TEST(life_peer_lost_while_loading)
{
    for (GateStep step = GATE_STEP_RELEASE; step <= GATE_STEP_LOAD; step++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, step);
        bench_close_peer(&bench);
        ck_assert_ptr_null(bench.failure);
        ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_LOADING);
        if (step == GATE_STEP_RELEASE)
            vm_say_message(&bench, 5);
        ck_assert_ptr_null(bench.failure);
        vm_say_message(&bench, 6);
        expect_text(bench.log, "loaded1 failed0 ");
        expect_failure(&bench, GATE_ERROR_PEER_CLOSED, gate_step_name(step));
        ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
        bench_close(&bench);
    }
}
END_TEST

/* The tail is larger than the socket: the rest is written although the peer is gone. */
START_TEST(life_peer_lost_with_tail_queued)
{
    enum { TAIL_BYTES = 1000 * 1000 };
    g_autoptr(GByteArray) covered = g_byte_array_new();
    g_autoptr(GByteArray) tail = g_byte_array_new();
    const int small = 4096;
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    build_delta(covered, 0);
    build_tail(covered, TAIL_BYTES);
    build_tail(tail, TAIL_BYTES);
    peer_say_message(&bench, DATA, 3);
    peer_say(&bench, DATA, covered->data, covered->len);
    g_byte_array_set_size(bench.vm_got, 0);
    /* SVM does not read for a while. */
    (void)setsockopt(bench.vm, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    g_source_remove(bench.vm_source);
    bench.vm_source = 0;
    peer_say_end(&bench, 1, covered->len, XXH3_64bits(covered->data, covered->len));
    gate_continue(bench.gate, GATE_POINT_COMMIT);
    settle();
    /* COMMITTED did not wait for it. */
    expect_text(bench.peer_log, "COMMITTED1 ");
    bench_close_peer(&bench);
    bench.vm_source = g_unix_fd_add(bench.vm, G_IO_IN, bench_on_vm, &bench);
    WAIT(bench.vm_got->len >= tail->len);
    expect_bytes(bench.vm_got, tail->data, tail->len);
    ck_assert_ptr_null(bench.failure);
    vm_say(&bench, "\0\0\0\5\0\0\0\6", 8);
    expect_failure(&bench, GATE_ERROR_PEER_CLOSED, "checkpoint 1");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
    bench_close(&bench);
}
END_TEST

START_TEST(err_vm_closed_after_peer_lost)
{
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_LOAD);
    bench_close_peer(&bench);
    bench_close_vm(&bench);
    settle();
    expect_text(bench.log, "failed0 ");
    expect_failure(&bench, GATE_ERROR_VM_CLOSED, "step load");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_BROKEN);
    bench_close(&bench);
}
END_TEST

START_TEST(err_initial_migration)
{
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    bench_close_peer(&bench);
    expect_failure(&bench, GATE_ERROR_PEER_CLOSED, "initial migration");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_NEVER);
    bench_close(&bench);

    bench_open(&bench, &side, &bench_config);
    bench_close_vm(&bench);
    settle();
    expect_failure(&bench, GATE_ERROR_VM_CLOSED, "initial migration");
    bench_close(&bench);

    bench_open(&bench, &side, &bench_config);
    peer_say(&bench, DATA, "garbage!", 8);
    expect_failure(&bench, GATE_ERROR_STREAM, "version 3");
    expect_bytes(bench.vm_got, NULL, 0);
    bench_close(&bench);

    bench_open(&bench, &side, &bench_config);
    vm_say_message(&bench, 0);
    expect_failure(&bench, GATE_ERROR_STREAM, "before the initial RAM was over");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_NEVER);
    bench_close(&bench);
}
END_TEST

/* --- Deadlines -------------------------------------------------------------------------------- */

static void
check_load(Bench *bench, GateStep step)
{
    ck_assert_int_eq(gate_load(bench->gate), load_after(step, GATE_LOAD_BROKEN));
    expect_bytes(bench->vm_got, NULL, 0);
}

START_TEST(err_deadlines)
{
    static const char *const awaited[] = {
        [GATE_STEP_REQUEST] = "no go-ahead for CHECKPOINT_REQUEST",
        [GATE_STEP_REPLY] = "no CHECKPOINT_REPLY from QEMU within 150 ms",
        [GATE_STEP_SEND] = "no VMSTATE_SEND from the peer within 150 ms",
        [GATE_STEP_TRANSFER] = "no more of the checkpoint from the peer within 150 ms",
        [GATE_STEP_COMMIT] = "no go-ahead for the commit",
        [GATE_STEP_RELEASE] = "no VMSTATE_RECEIVED from QEMU within 150 ms",
        [GATE_STEP_LOAD] = "no VMSTATE_LOADED from QEMU within 150 ms",
    };

    bench_test_deadlines(&side, GATE_STEP_REQUEST, awaited, check_load);
}
END_TEST

START_TEST(err_deadline_at_reply_point)
{
    GateConfig config = bench_config;
    Bench bench;

    config.message_timeout_ms = 150;
    bench_open_at(&bench, &side, &config, GATE_STEP_REPLY);
    vm_say_message(&bench, 2);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no go-ahead for CHECKPOINT_REPLY");
    expect_bytes(bench.peer_got, NULL, 0);
    bench_close(&bench);
}
END_TEST

START_TEST(err_deadline_of_arm_and_migration)
{
    GateConfig config = bench_config;
    Bench bench;

    config.migration_timeout_ms = 150;
    bench_open(&bench, &side, &config);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no byte of the initial migration within 150 ms");
    bench_close(&bench);

    g_autoptr(GByteArray) stream = g_byte_array_new();

    build_migration(stream);
    config = bench_config;
    config.message_timeout_ms = 150;
    bench_open(&bench, &side, &config);
    peer_say(&bench, DATA, stream->data, stream->len);
    vm_say_message(&bench, 0);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_PEER_DEADLINE, "no ARM from the peer within 150 ms");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_NEVER);
    bench_close(&bench);
}
END_TEST

static gboolean
trickle(gpointer user_data)
{
    static const uint8_t zero_page[] = {0, 0, 0, 0, 0, 0, 0, 0x22, 0};
    Bench *bench = user_data;

    peer_channel_send(bench->peer, DATA, zero_page, sizeof(zero_page));
    return G_SOURCE_CONTINUE;
}

/* Never silent, and yet without end. */
START_TEST(sec_transfer_without_end)
{
    GateConfig config = bench_config;
    g_autoptr(GByteArray) start = g_byte_array_new();
    Bench bench;

    config.transfer_timeout_ms = 150;
    config.message_timeout_ms = 10000;
    bench_open_at(&bench, &side, &config, GATE_STEP_SEND);
    peer_say_message(&bench, DATA, 3);
    build_section(start, 0x03);
    peer_say(&bench, DATA, start->data, start->len);

    guint source = g_timeout_add(5, trickle, &bench);

    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_PEER_DEADLINE,
                   "no end of the checkpoint's transfer within 150 ms");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
    g_source_remove(source);
    bench_close(&bench);
}
END_TEST

/* --- What does not fit ------------------------------------------------------------------------ */

static void
expect_end_refused(guint64 epoch, gint64 length_off, guint64 hash_xor, size_t cut_bytes,
                   gssize flip_at)
{
    g_autoptr(GByteArray) covered = covered_new();
    Bench bench;
    guint64 hash = XXH3_64bits(covered->data, covered->len);
    guint64 length = covered->len;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    peer_say_message(&bench, DATA, 3);
    if (flip_at >= 0)
        covered->data[flip_at] ^= 0x10;
    peer_say(&bench, DATA, covered->data, covered->len - cut_bytes);
    g_byte_array_set_size(bench.vm_got, 0);
    peer_say_end(&bench, epoch, length + (guint64)length_off, hash ^ hash_xor);
    expect_failure(&bench, GATE_ERROR_CHECKSUM, "checkpoint 1, step transfer: END says epoch");
    expect_text(bench.log, "failed0 ");
    expect_bytes(bench.vm_got, NULL, 0);
    expect_text(bench.peer_log, "closed ");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
    bench_close(&bench);
}

START_TEST(sec_end_does_not_fit)
{
    g_autoptr(GByteArray) covered = covered_new();

    expect_end_refused(0, 0, 0, 0, -1);
    expect_end_refused(2, 0, 0, 0, -1);
    expect_end_refused(1, 1, 0, 0, -1);
    expect_end_refused(1, -1, 0, 0, -1);
    expect_end_refused(1, 0, 1, 0, -1);
    expect_end_refused(1, 0, UINT64_MAX, 0, -1);
    /* END before the tail's last byte, or before the delta's end. */
    expect_end_refused(1, 0, 0, 1, -1);
    expect_end_refused(1, 0, 0, BENCH_TAIL_BYTES + 12 + 3, -1);
    /* One bit of a page, of the device state. */
    expect_end_refused(1, 0, 0, 0, 500);
    expect_end_refused(1, 0, 0, 0, (gssize)covered->len - 1);
}
END_TEST

/* @code after @type with @len bytes at @step. The gate must have passed nothing to SVM. */
static void
expect_refused_at(GateStep step, PeerMessageType type, size_t len, GateError code)
{
    static const uint8_t bytes[PEER_END_BYTES];
    Bench bench;

    bench_open_at(&bench, &side, NULL, step);
    peer_say(&bench, type, bytes, len);
    if (step >= GATE_STEP_RELEASE) {
        /* The load ends first. */
        ck_assert_ptr_null(bench.failure);
        vm_say(&bench, step == GATE_STEP_RELEASE ? "\0\0\0\5\0\0\0\6" : "\0\0\0\6",
               step == GATE_STEP_RELEASE ? 8 : 4);
    }
    expect_failure(&bench, code, "out of turn");
    expect_bytes(bench.vm_got, NULL, 0);
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
    bench_close(&bench);
}

START_TEST(sec_out_of_turn)
{
    for (GateStep step = GATE_STEP_IDLE; step <= GATE_STEP_LOAD; step++) {
        expect_refused_at(step, PEER_MESSAGE_ARM, 8, GATE_ERROR_PROTOCOL);
        if (step != GATE_STEP_TRANSFER)
            expect_refused_at(step, PEER_MESSAGE_END, PEER_END_BYTES, GATE_ERROR_PROTOCOL);
        /* In TRANSFER advance() has sent all of the tail. */
        if (step != GATE_STEP_IDLE && step != GATE_STEP_SEND)
            expect_refused_at(step, DATA, 1, GATE_ERROR_PROTOCOL);
    }
    expect_refused_at(GATE_STEP_IDLE, DATA, 4, GATE_ERROR_STREAM);
    expect_refused_at(GATE_STEP_SEND, DATA, 4, GATE_ERROR_STREAM);
}
END_TEST

START_TEST(sec_not_for_a_secondary)
{
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    peer_say_number(&bench, PEER_MESSAGE_COMMITTED, 1);
    expect_failure(&bench, GATE_ERROR_PROTOCOL, "COMMITTED is not for a secondary");
    bench_close(&bench);
    bench_open(&bench, &side, &bench_config);
    peer_say_number(&bench, PEER_MESSAGE_ARM, 1);
    expect_failure(&bench, GATE_ERROR_PROTOCOL, "ARM out of turn");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_NEVER);
    bench_close(&bench);
}
END_TEST

/* Bytes of the stream between READY and ARM. */
START_TEST(sec_data_before_arm)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    build_migration(stream);
    peer_say(&bench, DATA, stream->data, stream->len);
    vm_say_message(&bench, 0);
    g_byte_array_set_size(bench.vm_got, 0);
    peer_say_message(&bench, DATA, 1);
    expect_failure(&bench, GATE_ERROR_PROTOCOL, "out of turn");
    expect_bytes(bench.vm_got, NULL, 0);
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_NEVER);
    bench_close(&bench);
}
END_TEST

START_TEST(sec_vm_out_of_turn)
{
    static const GateStep steps[] = {GATE_STEP_IDLE, GATE_STEP_SEND, GATE_STEP_TRANSFER,
                                     GATE_STEP_COMMIT};

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, steps[i]);
        vm_say_message(&bench, 5);
        expect_failure(&bench, GATE_ERROR_STREAM, "out of turn");
        ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
        bench_close(&bench);
    }
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_RELEASE);
    vm_say_message(&bench, 6);
    expect_failure(&bench, GATE_ERROR_STREAM, "VMSTATE_LOADED out of turn");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_BROKEN);
    bench_close(&bench);
}
END_TEST

START_TEST(sec_vmstate_size_huge)
{
    g_autoptr(GByteArray) covered = delta_new();
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    peer_say_message(&bench, DATA, 3);
    build_be32(covered, 4);
    build_be64(covered, UINT64_MAX);
    peer_say(&bench, DATA, covered->data, covered->len);
    expect_failure(&bench, GATE_ERROR_STREAM, "VMSTATE_SIZE 18446744073709551615");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
    bench_close(&bench);
}
END_TEST

/* --- Hooks, freeing, congestion ----------------------------------------------------------------
 */

START_TEST(unit_stall)
{
    for (GateStep step = GATE_STEP_REQUEST; step <= GATE_STEP_LOAD; step++) {
        GateConfig config = bench_config;
        g_autoptr(GByteArray) covered = covered_new();
        Bench bench;

        config.message_timeout_ms = 200;
        bench_open(&bench, &side, &config);
        arm(&bench);
        gate_set_stall(bench.gate, step);
        bench.pass = TRUE;
        peer_say_message(&bench, DATA, 1);
        vm_say_message(&bench, 2);
        peer_say_message(&bench, DATA, 3);
        peer_say(&bench, DATA, covered->data, covered->len);
        say_good_end(&bench, 1);
        if (step >= GATE_STEP_RELEASE)
            vm_say(&bench, "\0\0\0\5\0\0\0\6", 8);
        ck_assert_msg(strstr(bench.log->str, "stalled1 ") != NULL, "%d: %s", step, bench.log->str);
        ck_assert_str_eq(strstr(bench.log->str, "stalled1 "), "stalled1 ");
        ck_assert(strstr(bench.log->str, "?commit") == NULL || step > GATE_STEP_COMMIT);
        /* SVM's load ended, told or not. */
        ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
        ck_assert_ptr_null(bench.failure);
        bench_close_peer(&bench);
        expect_failure(&bench, GATE_ERROR_PEER_CLOSED, "");
        bench_close(&bench);
    }
}
END_TEST

START_TEST(life_stalled_while_loading_peer_lost)
{
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    arm(&bench);
    gate_set_stall(bench.gate, GATE_STEP_RELEASE);
    advance(&bench, GATE_STEP_RELEASE, 1);
    vm_say_message(&bench, 5);
    expect_text(bench.log, "stalled1 ");
    bench_close_peer(&bench);
    ck_assert_ptr_null(bench.failure);
    vm_say_message(&bench, 6);
    expect_text(bench.log, "loaded1 failed0 ");
    ck_assert_int_eq(gate_load(bench.gate), GATE_LOAD_CLEAN);
    bench_close(&bench);
}
END_TEST

START_TEST(life_free_in_callbacks)
{
    static const char *const names[] = {"ram-done", "ready",     "armed",  "?reply",
                                        "?commit",  "committed", "loaded", "failed"};

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GByteArray) stream = g_byte_array_new();
        g_autoptr(GByteArray) covered = covered_new();
        Bench bench;

        bench_open(&bench, &side, &bench_config);
        bench.pass = TRUE;
        bench.free_at = names[i];
        build_migration(stream);
        peer_say(&bench, DATA, stream->data, stream->len);
        vm_say_message(&bench, 0);
        peer_say_number(&bench, PEER_MESSAGE_ARM, 1);
        peer_say_message(&bench, DATA, 1);
        vm_say_message(&bench, 2);
        peer_say_message(&bench, DATA, 3);
        peer_say(&bench, DATA, covered->data, covered->len);
        say_good_end(&bench, 1);
        vm_say(&bench, "\0\0\0\5\0\0\0\6", 8);
        vm_say(&bench, "\0", 1);
        ck_assert_ptr_null(bench.gate);
        ck_assert_ptr_nonnull(strstr(bench.log->str, names[i]));
        bench_close(&bench);
    }
}
END_TEST

/* A loss that was deferred, reported and answered by freeing the gate. */
START_TEST(life_free_at_deferred_loss)
{
    static const char *const names[] = {"loaded", "failed"};

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, GATE_STEP_LOAD);
        bench.free_at = names[i];
        bench_close_peer(&bench);
        vm_say_message(&bench, 6);
        ck_assert_ptr_null(bench.gate);
        bench_close(&bench);
    }
}
END_TEST

/* SVM does not read: the gate stops reading the peer, and nothing is lost. */
START_TEST(life_vm_congested)
{
    enum { PAGES = 3000 };
    g_autoptr(GByteArray) delta = g_byte_array_new();
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    peer_say_message(&bench, DATA, 3);
    expect_message(bench.vm_got, 3);
    build_delta(delta, PAGES);
    g_source_remove(bench.vm_source);
    peer_say(&bench, DATA, delta->data, delta->len);
    /* Far more than the queue's mark, the sockets' buffers and one read. */
    ck_assert_uint_gt(delta->len, 8 * 1024 * 1024);
    ck_assert(peer_channel_is_congested(bench.peer));
    bench.vm_source = g_unix_fd_add(bench.vm, G_IO_IN, bench_on_vm, &bench);
    WAIT(bench.vm_got->len >= delta->len);
    expect_bytes(bench.vm_got, delta->data, delta->len);
    ck_assert_ptr_null(bench.failure);
    bench_close(&bench);
}
END_TEST

CHECK_MAIN("gate-secondary", life_checkpoints, life_split, life_state_point, sec_state_point,
           err_vm_closed, err_peer_closed, life_peer_lost_while_loading,
           life_peer_lost_with_tail_queued, err_vm_closed_after_peer_lost, err_initial_migration,
           err_deadlines, err_deadline_at_reply_point, err_deadline_of_arm_and_migration,
           sec_transfer_without_end, sec_end_does_not_fit, sec_out_of_turn, sec_not_for_a_secondary,
           sec_data_before_arm, sec_vm_out_of_turn, sec_vmstate_size_huge, unit_stall,
           life_stalled_while_loading_peer_lost, life_free_in_callbacks, life_free_at_deferred_loss,
           life_vm_congested)
