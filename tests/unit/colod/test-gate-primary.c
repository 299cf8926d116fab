/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-gate-primary.c - the primary's gate between a fake PVM and a fake secondary */
#include "test-gate-bench.h"

#define DATA PEER_MESSAGE_DATA_RETURN

/* Initial migration up to GATE_POINT_READY. */
static void
migrate(Bench *bench)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) back = g_byte_array_new();

    build_migration(stream);
    vm_say(bench, stream->data, stream->len);
    expect_bytes(bench->peer_got, stream->data, stream->len);
    expect_text(bench->log, "ram-done0 ");
    build_return_head(back);
    peer_say(bench, DATA, back->data, back->len);
    expect_bytes(bench->vm_got, back->data, back->len);
    peer_say_message(bench, DATA, 0);
}

static void
arm(Bench *bench)
{
    migrate(bench);
    expect_text(bench->log, "?ready0 ");
    expect_bytes(bench->vm_got, NULL, 0);
    expect_text(bench->peer_log, "");
    gate_continue(bench->gate, GATE_POINT_READY);
    settle();
    expect_text(bench->log, "ready0 ");
    expect_text(bench->peer_log, "ARM7 ");
    expect_message(bench->vm_got, 0);
}

static char *
end_text(guint64 epoch)
{
    g_autoptr(GByteArray) covered = covered_new();
    guint64 hash = XXH3_64bits(covered->data, covered->len);

    return g_strdup_printf("END%" G_GUINT64_FORMAT " (%u %016" G_GINT64_MODIFIER "x) ", epoch,
                           covered->len, hash);
}

/* Brings an armed, idle gate to @step of checkpoint @epoch, checking all bytes on the way. */
static void
advance(Bench *bench, GateStep step, guint64 epoch)
{
    g_autoptr(GByteArray) covered = covered_new();
    g_autofree char *end = end_text(epoch);

    ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_IDLE);
    if (step >= GATE_STEP_REQUEST) {
        vm_say_message(bench, 1);
        expect_callback(bench, "?request", epoch);
        expect_bytes(bench->peer_got, NULL, 0);
    }
    if (step >= GATE_STEP_REPLY) {
        gate_continue(bench->gate, GATE_POINT_REQUEST);
        settle();
        expect_message(bench->peer_got, 1);
    }
    if (step >= GATE_STEP_SEND) {
        peer_say_message(bench, DATA, 2);
        expect_message(bench->vm_got, 2);
    }
    if (step >= GATE_STEP_TRANSFER) {
        vm_say_message(bench, 3);
        expect_callback(bench, "?mark", epoch);
        ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_SEND);
        /* The stream flows on meanwhile. */
        vm_say(bench, covered->data, covered->len - 1);
        gate_continue(bench->gate, GATE_POINT_MARK);
        settle();
        expect_text(bench->peer_log, "");
    }
    if (step >= GATE_STEP_COMMIT) {
        vm_say(bench, covered->data + covered->len - 1, 1);
        expect_text(bench->peer_log, end);
    }
    if (step >= GATE_STEP_RELEASE) {
        expect_text(bench->log, "");
        peer_say_number(bench, PEER_MESSAGE_COMMITTED, epoch);
        expect_callback(bench, "committed", epoch);
    }
    if (step >= GATE_STEP_LOAD) {
        peer_say_message(bench, DATA, 5);
        expect_message(bench->vm_got, 5);
    }
    if (step >= GATE_STEP_COMMIT) {
        ck_assert_uint_eq(bench->peer_got->len, 4 + covered->len);
        ck_assert_int_eq(memcmp(bench->peer_got->data, "\0\0\0\3", 4), 0);
        ck_assert_int_eq(memcmp(bench->peer_got->data + 4, covered->data, covered->len), 0);
        g_byte_array_set_size(bench->peer_got, 0);
    }
    ck_assert_int_eq(gate_step(bench->gate), step);
}

static void
finish(Bench *bench, guint64 epoch)
{
    peer_say_message(bench, DATA, 6);
    expect_message(bench->vm_got, 6);
    expect_callback(bench, "loaded", epoch);
    ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_IDLE);
}

static const BenchSide side = {.primary = TRUE, .arm = arm, .advance = advance, .finish = finish};

START_TEST(life_checkpoints)
{
    bench_test_checkpoints(&side);
}
END_TEST

/* END waits for the mark, however early the tail is out. */
START_TEST(life_mark_after_tail)
{
    g_autoptr(GByteArray) covered = covered_new();
    g_autofree char *end = end_text(1);
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    vm_say_message(&bench, 3);
    vm_say(&bench, covered->data, covered->len);
    ck_assert_uint_eq(bench.peer_got->len, 4 + covered->len);
    expect_text(bench.peer_log, "");
    ck_assert_int_eq(gate_step(bench.gate), GATE_STEP_SEND);
    gate_continue(bench.gate, GATE_POINT_MARK);
    settle();
    expect_text(bench.peer_log, end);
    ck_assert_int_eq(gate_step(bench.gate), GATE_STEP_COMMIT);
    bench_close(&bench);
}
END_TEST

/* The device state waits for its point, whether it was read with the RAM's end or not. */
START_TEST(life_state_point)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    guint at;

    build_migration(stream);
    at = build_state_at(stream);
    for (guint read = at; read <= stream->len; read += stream->len - at) {
        Bench bench;

        bench_open(&bench, &side, &bench_config);
        bench.hold_state = TRUE;
        vm_say(&bench, stream->data, read);
        if (read < stream->len)
            vm_say(&bench, stream->data + read, stream->len - read);
        expect_text(bench.log, "ram-done0 ?state0 ");
        ck_assert(gate_stands_at(bench.gate, GATE_POINT_STATE));
        expect_bytes(bench.peer_got, stream->data, at);
        gate_continue(bench.gate, GATE_POINT_STATE);
        settle();
        expect_bytes(bench.peer_got, stream->data + at, stream->len - at);
        peer_say_message(&bench, DATA, 0);
        expect_text(bench.log, "?ready0 ");
        bench_close(&bench);
    }
}
END_TEST

START_TEST(err_at_state_point)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    GateConfig config = bench_config;
    Bench bench;

    build_migration(stream);
    config.transfer_timeout_ms = 150;
    for (unsigned how = 0; how < 4; how++) {
        bench_open(&bench, &side, how == 0 ? &config : &bench_config);
        bench.hold_state = TRUE;
        vm_say(&bench, stream->data, stream->len);
        if (how == 0)
            WAIT(bench.failure);
        else if (how == 1)
            bench_close_vm(&bench);
        else if (how == 2)
            bench_close_peer(&bench);
        else
            peer_say_message(&bench, DATA, 0);
        settle();
        expect_failure(&bench,
                       how == 0   ? GATE_ERROR_DEADLINE
                       : how == 1 ? GATE_ERROR_VM_CLOSED
                       : how == 2 ? GATE_ERROR_PEER_CLOSED
                                  : GATE_ERROR_STREAM,
                       how == 0 ? "no go-ahead for the device state" : "initial migration");
        ck_assert(!gate_stands_at(bench.gate, GATE_POINT_STATE));
        /* An answer that comes late changes nothing. */
        gate_continue(bench.gate, GATE_POINT_STATE);
        expect_bytes(bench.peer_got, stream->data, build_state_at(stream));
        bench_close(&bench);
    }
}
END_TEST

/* One message for what one read returned. */
START_TEST(unit_one_message_per_read)
{
    g_autoptr(GByteArray) covered = covered_new();
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    bench.pass = TRUE;
    migrate(&bench);
    ck_assert_uint_eq(bench.n_data, 2); /* RAM, device state */
    vm_say_message(&bench, 1);
    peer_say_message(&bench, DATA, 2);
    vm_say_message(&bench, 3);
    bench.n_data = 0;
    vm_say(&bench, covered->data, covered->len);
    ck_assert_uint_eq(bench.n_data, 1);
    bench_close(&bench);
}
END_TEST

/* --- Breaks and deadlines at each step ---------------------------------------------------------
 */

START_TEST(err_vm_closed)
{
    for (GateStep step = GATE_STEP_IDLE; step <= GATE_STEP_LOAD; step++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, step);
        bench_close_vm(&bench);
        settle();
        expect_failure(&bench, GATE_ERROR_VM_CLOSED, gate_step_name(step));
        expect_text(bench.log, "failed0 ");
        expect_text(bench.peer_log, "closed ");
        bench_close(&bench);
    }
}
END_TEST

START_TEST(err_peer_closed)
{
    for (GateStep step = GATE_STEP_IDLE; step <= GATE_STEP_LOAD; step++) {
        Bench bench;

        bench_open_at(&bench, &side, NULL, step);
        bench_close_peer(&bench);
        expect_failure(&bench, GATE_ERROR_PEER_CLOSED, gate_step_name(step));
        expect_text(bench.log, "failed0 ");
        expect_bytes(bench.vm_got, NULL, 0);
        /* QEMU's socket stays open until the gate is freed. */
        ck_assert_uint_ne(bench.vm_source, 0);
        if (step == GATE_STEP_REQUEST)
            gate_continue(bench.gate, GATE_POINT_REQUEST);
        gate_free(g_steal_pointer(&bench.gate));
        settle();
        ck_assert_uint_eq(bench.vm_source, 0);
        bench_close(&bench);
    }
}
END_TEST

/* COMMITTED that the peer sent before it died counts. */
START_TEST(life_committed_then_closed)
{
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_COMMIT);
    peer_channel_send(bench.peer, PEER_MESSAGE_COMMITTED, "\0\0\0\0\0\0\0\1", 8);
    bench_close_peer(&bench);
    expect_text(bench.log, "committed1 failed0 ");
    expect_failure(&bench, GATE_ERROR_PEER_CLOSED, "checkpoint 1, step release");
    bench_close(&bench);
}
END_TEST

START_TEST(err_deadlines)
{
    static const char *const awaited[] = {
        [GATE_STEP_REQUEST] = "no go-ahead for CHECKPOINT_REQUEST",
        [GATE_STEP_REPLY] = "no CHECKPOINT_REPLY from the peer within 150 ms",
        [GATE_STEP_SEND] = "no VMSTATE_SEND from QEMU within 150 ms",
        [GATE_STEP_TRANSFER] = "no more of the checkpoint from QEMU within 150 ms",
        [GATE_STEP_COMMIT] = "no COMMITTED from the peer within 150 ms",
        [GATE_STEP_RELEASE] = "no VMSTATE_RECEIVED from the peer within 150 ms",
        [GATE_STEP_LOAD] = "no VMSTATE_LOADED from the peer within 150 ms",
    };

    bench_test_deadlines(&side, GATE_STEP_REQUEST, awaited, NULL);
}
END_TEST

START_TEST(err_deadline_of_expected_request)
{
    GateConfig config = bench_config;
    Bench bench;

    config.message_timeout_ms = 150;
    bench_open(&bench, &side, &config);
    gate_expect_request(bench.gate); /* nothing yet */
    arm(&bench);
    gate_expect_request(bench.gate);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no CHECKPOINT_REQUEST within 150 ms");
    gate_expect_request(bench.gate); /* nothing any more */
    bench_close(&bench);
}
END_TEST

START_TEST(err_deadline_at_ready_and_mark)
{
    GateConfig config = bench_config;
    Bench bench;

    config.message_timeout_ms = 150;
    bench_open(&bench, &side, &config);
    migrate(&bench);
    WAIT(bench.failure);
    settle();
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no go-ahead for CHECKPOINT_READY");
    expect_bytes(bench.vm_got, NULL, 0);
    expect_text(bench.peer_log, "closed ");
    bench_close(&bench);

    bench_open_at(&bench, &side, &config, GATE_STEP_SEND);
    vm_say_message(&bench, 3);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no mark of the held output");
    bench_close(&bench);
}
END_TEST

START_TEST(err_deadline_of_transfer_and_migration)
{
    g_autoptr(GByteArray) covered = covered_new();
    GateConfig config = bench_config;
    Bench bench;

    /* Wholly sent, but the mark never comes. */
    config.transfer_timeout_ms = 150;
    bench_open_at(&bench, &side, &config, GATE_STEP_SEND);
    vm_say_message(&bench, 3);
    vm_say(&bench, covered->data, covered->len);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no end of the checkpoint's transfer");
    bench_close(&bench);

    config = bench_config;
    config.migration_timeout_ms = 150;
    bench_open(&bench, &side, &config);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no byte of the initial migration within 150 ms");
    bench_close(&bench);
}
END_TEST

/* An idle gate waits without limit: none of the limits of a checkpoint is left over. */
START_TEST(unit_idle_has_no_deadline)
{
    GateConfig config = bench_config;
    gboolean waited = FALSE;
    Bench bench;

    config.message_timeout_ms = config.transfer_timeout_ms = config.migration_timeout_ms = 200;
    bench_open_at(&bench, &side, &config, GATE_STEP_LOAD);
    finish(&bench, 1);

    guint id = g_timeout_add(450, bench_expire, &waited);

    while (!waited)
        g_main_context_iteration(NULL, TRUE);
    g_source_remove(id);
    ck_assert_ptr_null(bench.failure);
    advance(&bench, GATE_STEP_LOAD, 2);
    bench_close(&bench);
}
END_TEST

/* --- What does not fit -------------------------------------------------------------------------
 */

START_TEST(sec_peer_out_of_turn)
{
    for (GateStep step = GATE_STEP_IDLE; step <= GATE_STEP_LOAD; step++) {
        gboolean reply_due =
            step == GATE_STEP_REPLY || step == GATE_STEP_RELEASE || step == GATE_STEP_LOAD;
        Bench bench;

        bench_open_at(&bench, &side, NULL, step);
        peer_say_number(&bench, PEER_MESSAGE_COMMITTED, step == GATE_STEP_COMMIT ? 2 : 1);
        expect_failure(&bench, GATE_ERROR_PROTOCOL, "out of turn");
        expect_text(bench.log, "failed0 ");
        bench_close(&bench);

        bench_open_at(&bench, &side, NULL, step);
        peer_say_message(&bench, DATA, 0);
        expect_failure(&bench, reply_due ? GATE_ERROR_STREAM : GATE_ERROR_PROTOCOL, "out of turn");
        expect_bytes(bench.vm_got, NULL, 0);
        bench_close(&bench);
    }
}
END_TEST

START_TEST(sec_not_for_a_primary)
{
    static const uint8_t zeros[PEER_END_BYTES];
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    peer_say_number(&bench, PEER_MESSAGE_ARM, 1);
    expect_failure(&bench, GATE_ERROR_PROTOCOL, "ARM is not for a primary");
    bench_close(&bench);
    bench_open(&bench, &side, &bench_config);
    peer_say(&bench, PEER_MESSAGE_END, zeros, sizeof(zeros));
    expect_failure(&bench, GATE_ERROR_PROTOCOL, "END is not for a primary");
    bench_close(&bench);
}
END_TEST

/* READY before the initial RAM is over, and READY twice. */
START_TEST(sec_ready)
{
    Bench bench;

    bench_open(&bench, &side, &bench_config);
    peer_say_message(&bench, DATA, 0);
    expect_failure(&bench, GATE_ERROR_STREAM, "before the initial RAM was over");
    bench_close(&bench);
    bench_open(&bench, &side, &bench_config);
    migrate(&bench);
    peer_say_message(&bench, DATA, 0);
    expect_failure(&bench, GATE_ERROR_PROTOCOL, "out of turn");
    expect_text(bench.peer_log, "closed ");
    bench_close(&bench);
}
END_TEST

START_TEST(sec_vm_out_of_turn)
{
    static const GateStep steps[] = {GATE_STEP_REQUEST, GATE_STEP_REPLY, GATE_STEP_COMMIT,
                                     GATE_STEP_RELEASE, GATE_STEP_LOAD};
    Bench bench;

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        bench_open_at(&bench, &side, NULL, steps[i]);
        vm_say_message(&bench, 3);
        expect_failure(&bench, GATE_ERROR_STREAM, "PVM's QEMU sent 4 bytes out of turn");
        expect_bytes(bench.peer_got, NULL, 0);
        bench_close(&bench);
    }
    bench_open(&bench, &side, &bench_config);
    arm(&bench);
    vm_say_message(&bench, 9);
    expect_failure(&bench, GATE_ERROR_STREAM, "0x00000009 is no COLO message");
    bench_close(&bench);
}
END_TEST

/* --- Hooks, freeing, congestion ----------------------------------------------------------------
 */

/* The far side of a whole checkpoint, blindly. */
static void
play_checkpoint(Bench *bench)
{
    g_autoptr(GByteArray) covered = covered_new();

    vm_say_message(bench, 1);
    peer_say_message(bench, DATA, 2);
    vm_say_message(bench, 3);
    vm_say(bench, covered->data, covered->len);
    peer_say_number(bench, PEER_MESSAGE_COMMITTED, 1);
    peer_say_message(bench, DATA, 5);
    peer_say_message(bench, DATA, 6);
}

START_TEST(unit_stall)
{
    static const char *const logs[] = {
        [GATE_STEP_REQUEST] = "stalled1 ",
        [GATE_STEP_REPLY] = "?request1 stalled1 ",
        [GATE_STEP_SEND] = "?request1 stalled1 ",
        [GATE_STEP_TRANSFER] = "?request1 ?mark1 stalled1 ",
        [GATE_STEP_COMMIT] = "?request1 ?mark1 stalled1 ",
        [GATE_STEP_RELEASE] = "?request1 ?mark1 committed1 stalled1 ",
        [GATE_STEP_LOAD] = "?request1 ?mark1 committed1 stalled1 ",
    };

    for (GateStep step = GATE_STEP_REQUEST; step <= GATE_STEP_LOAD; step++) {
        GateConfig config = bench_config;
        Bench bench;

        config.message_timeout_ms = 200;
        bench_open(&bench, &side, &config);
        arm(&bench);
        gate_set_stall(bench.gate, step);
        bench.pass = TRUE;
        play_checkpoint(&bench);
        expect_text(bench.log, logs[step]);
        ck_assert_int_eq(gate_step(bench.gate), step);
        ck_assert_uint_eq(bench.vm_got->len, step <= GATE_STEP_REPLY     ? 0
                                             : step <= GATE_STEP_RELEASE ? 4
                                                                         : 8);
        ck_assert(strstr(bench.peer_log->str, "END") == NULL || step > GATE_STEP_TRANSFER);
        bench_close_vm(&bench);
        settle();
        expect_failure(&bench, GATE_ERROR_VM_CLOSED, "");
        bench_close(&bench);
    }
}
END_TEST

START_TEST(life_free_in_callbacks)
{
    static const char *const names[] = {"ram-done", "?ready",    "ready",  "?request",
                                        "?mark",    "committed", "loaded", "failed"};

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GByteArray) stream = g_byte_array_new();
        Bench bench;

        bench_open(&bench, &side, &bench_config);
        bench.pass = TRUE;
        bench.free_at = names[i];
        build_migration(stream);
        vm_say(&bench, stream->data, stream->len);
        peer_say_message(&bench, DATA, 0);
        play_checkpoint(&bench);
        vm_say_message(&bench, 9);
        ck_assert_ptr_null(bench.gate);
        ck_assert_ptr_nonnull(strstr(bench.log->str, names[i]));
        bench_close(&bench);
    }
}
END_TEST

static void
fill_vm(Bench *bench, const GByteArray *bytes, size_t *sent)
{
    for (;;) {
        ssize_t n =
            send(bench->vm, bytes->data + *sent, bytes->len - *sent, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n > 0)
            *sent += (size_t)n;
        settle();
        if (n <= 0)
            return;
    }
}

/* The peer does not read: QEMU is not read either, then it is PVM's deadline; nothing is lost. */
START_TEST(life_peer_congested)
{
    enum { PAGES = 4000 };
    g_autoptr(GByteArray) delta = g_byte_array_new();
    size_t sent = 0;
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    vm_say_message(&bench, 3);
    expect_message(bench.peer_got, 3);
    build_delta(delta, PAGES);
    peer_channel_set_reading(bench.peer, FALSE);
    fill_vm(&bench, delta, &sent);
    /* The channel's bound, the sockets and one read, but not all of it. */
    ck_assert_uint_lt(sent, 6 * 1024 * 1024);
    ck_assert_uint_lt(sent, delta->len);
    peer_channel_set_reading(bench.peer, TRUE);
    while (sent < delta->len) {
        settle();
        fill_vm(&bench, delta, &sent);
    }
    WAIT(bench.peer_got->len >= delta->len);
    expect_bytes(bench.peer_got, delta->data, delta->len);
    ck_assert_ptr_null(bench.failure);
    bench_close(&bench);
}
END_TEST

START_TEST(err_peer_does_not_read)
{
    enum { PAGES = 4000 };
    g_autoptr(GByteArray) delta = g_byte_array_new();
    GateConfig config = bench_config;
    size_t sent = 0;
    Bench bench;

    config.message_timeout_ms = 300;
    bench_open_at(&bench, &side, &config, GATE_STEP_SEND);
    bench.pass = TRUE;
    vm_say_message(&bench, 3);
    build_delta(delta, PAGES);
    peer_channel_set_reading(bench.peer, FALSE);
    fill_vm(&bench, delta, &sent);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_DEADLINE, "no more of the checkpoint from QEMU within");
    bench_close(&bench);
}
END_TEST

/* QEMU dies while the peer does not read: seen at once, and not in a busy loop. */
START_TEST(err_vm_closed_while_congested)
{
    enum { PAGES = 4000 };
    g_autoptr(GByteArray) delta = g_byte_array_new();
    size_t sent = 0;
    Bench bench;

    bench_open_at(&bench, &side, NULL, GATE_STEP_SEND);
    vm_say_message(&bench, 3);
    build_delta(delta, PAGES);
    peer_channel_set_reading(bench.peer, FALSE);
    fill_vm(&bench, delta, &sent);
    bench_close_vm(&bench);
    settle();
    expect_failure(&bench, GATE_ERROR_VM_CLOSED, "step send");
    bench_close(&bench);
}
END_TEST

CHECK_MAIN("gate-primary", life_checkpoints, life_mark_after_tail, life_state_point,
           err_at_state_point, unit_one_message_per_read, err_vm_closed, err_peer_closed,
           life_committed_then_closed, err_deadlines, err_deadline_of_expected_request,
           err_deadline_at_ready_and_mark, err_deadline_of_transfer_and_migration,
           unit_idle_has_no_deadline, sec_peer_out_of_turn, sec_not_for_a_primary, sec_ready,
           sec_vm_out_of_turn, unit_stall, life_free_in_callbacks, life_peer_congested,
           err_peer_does_not_read, err_vm_closed_while_congested)
