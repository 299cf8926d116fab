/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-gate-early.c - early resume: PVM runs on behind END, while the peer still commits */
#include "test-gate-bench.h"

#define DATA PEER_MESSAGE_DATA_RETURN

static const BenchSide primary = {.primary = TRUE};

/* RECEIVED and LOADED, as PVM's QEMU is given them. */
static const char answers[] = "\0\0\0\5\0\0\0\6";
enum { ANSWERS_BYTES = sizeof(answers) - 1 };

static void
open_armed(Bench *bench, unsigned message_timeout_ms)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autoptr(GByteArray) back = g_byte_array_new();
    GateConfig config = bench_config;

    config.early_resume = true;
    config.message_timeout_ms = message_timeout_ms;
    bench_open(bench, &primary, &config);
    bench->pass = TRUE;
    build_migration(stream);
    build_return_head(back);
    build_be32(back, 0);
    vm_say(bench, stream->data, stream->len);
    peer_say(bench, DATA, back->data, back->len);
    expect_text(bench->log, "ram-done0 ?ready0 ready0 ");
    g_byte_array_set_size(bench->vm_got, 0);
    g_byte_array_set_size(bench->peer_got, 0);
    g_string_truncate(bench->peer_log, 0);
}

/* Checkpoint @epoch up to END; PVM's QEMU has been given all it waits for. */
static void
run_to_end(Bench *bench, guint64 epoch)
{
    g_autoptr(GByteArray) covered = g_byte_array_new();
    g_autofree char *log = g_strdup_printf("?request%" G_GUINT64_FORMAT " ?mark%" G_GUINT64_FORMAT
                                           " answered%" G_GUINT64_FORMAT " ",
                                           epoch, epoch, epoch);

    build_delta(covered, BENCH_PAGES);
    build_tail(covered, BENCH_TAIL_BYTES);
    vm_say_message(bench, 1);
    peer_say_message(bench, DATA, 2);
    expect_message(bench->vm_got, 2);
    vm_say_message(bench, 3);
    vm_say(bench, covered->data, covered->len);
    expect_bytes(bench->vm_got, answers, ANSWERS_BYTES);
    expect_text(bench->log, log);
    ck_assert_ptr_nonnull(strstr(bench->peer_log->str, "END"));
    g_string_truncate(bench->peer_log, 0);
    g_byte_array_set_size(bench->peer_got, 0);
    ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_COMMIT);
}

static void
commit(Bench *bench, guint64 epoch)
{
    g_autofree char *log = g_strdup_printf(
        "committed%" G_GUINT64_FORMAT " loaded%" G_GUINT64_FORMAT " ", epoch, epoch);

    peer_say_number(bench, PEER_MESSAGE_COMMITTED, epoch);
    peer_say(bench, DATA, answers, ANSWERS_BYTES);
    expect_text(bench->log, log);
    ck_assert_int_eq(gate_step(bench->gate), GATE_STEP_IDLE);
}

/* The peer's own RECEIVED and LOADED end the checkpoint and do not reach QEMU a second time. */
START_TEST(life_checkpoints)
{
    Bench bench;

    open_armed(&bench, BENCH_WAIT_MS);
    for (guint64 epoch = 1; epoch <= 4; epoch++) {
        run_to_end(&bench, epoch);
        commit(&bench, epoch);
        expect_bytes(bench.vm_got, NULL, 0);
    }
    ck_assert_ptr_null(bench.failure);
    bench_close(&bench);
}
END_TEST

/* QEMU wants the next checkpoint before this one is over: it waits, and is not refused. */
START_TEST(life_next_request_waits)
{
    Bench bench;

    open_armed(&bench, BENCH_WAIT_MS);
    run_to_end(&bench, 1);
    vm_say_message(&bench, 1);
    expect_text(bench.log, "");
    expect_bytes(bench.peer_got, NULL, 0);
    peer_say_number(&bench, PEER_MESSAGE_COMMITTED, 1);
    expect_text(bench.log, "committed1 ");
    peer_say(&bench, DATA, answers, ANSWERS_BYTES);
    expect_text(bench.log, "loaded1 ?request2 ");
    expect_message(bench.peer_got, 1);
    bench_close(&bench);
}
END_TEST

/* The mark comes first: PVM must not run before what it has said is told from what it will say. */
START_TEST(unit_not_before_the_mark)
{
    g_autoptr(GByteArray) covered = g_byte_array_new();
    Bench bench;

    open_armed(&bench, BENCH_WAIT_MS);
    build_delta(covered, BENCH_PAGES);
    build_tail(covered, BENCH_TAIL_BYTES);
    vm_say_message(&bench, 1);
    peer_say_message(&bench, DATA, 2);
    expect_message(bench.vm_got, 2);
    bench.pass = FALSE;
    vm_say_message(&bench, 3);
    vm_say(&bench, covered->data, covered->len);
    expect_bytes(bench.vm_got, NULL, 0);
    gate_continue(bench.gate, GATE_POINT_MARK);
    settle();
    expect_bytes(bench.vm_got, answers, ANSWERS_BYTES);
    bench_close(&bench);
}
END_TEST

/* Lost before COMMITTED: the failure names the step, and nothing was released. */
START_TEST(err_peer_closed)
{
    Bench bench;

    open_armed(&bench, BENCH_WAIT_MS);
    run_to_end(&bench, 1);
    bench_close_peer(&bench);
    expect_failure(&bench, GATE_ERROR_PEER_CLOSED, "checkpoint 1, step commit");
    expect_text(bench.log, "failed0 ");
    bench_close(&bench);
}
END_TEST

/* QEMU's death is noticed although nothing is read from it. */
START_TEST(err_vm_closed)
{
    Bench bench;

    open_armed(&bench, BENCH_WAIT_MS);
    run_to_end(&bench, 1);
    bench_close_vm(&bench);
    settle();
    expect_failure(&bench, GATE_ERROR_VM_CLOSED, "checkpoint 1, step commit");
    bench_close(&bench);
}
END_TEST

START_TEST(err_deadline)
{
    Bench bench;

    open_armed(&bench, 150);
    run_to_end(&bench, 1);
    WAIT(bench.failure);
    expect_failure(&bench, GATE_ERROR_PEER_DEADLINE, "no COMMITTED from the peer within 150 ms");
    bench_close(&bench);
}
END_TEST

CHECK_MAIN("gate-early", life_checkpoints, life_next_request_waits, unit_not_before_the_mark,
           err_peer_closed, err_vm_closed, err_deadline)
