/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-gate-bench.h - one gate between a fake QEMU and a fake peer, all in the default main context
 */
#pragma once

#include "fd.h"
#include "gate.h"

#include "check-main.h"
#include "test-colo-build.h"

#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <xxhash.h>

enum {
    BENCH_WAIT_MS = 20000, /* of the test itself, for a loaded machine under a sanitizer */
    BENCH_GENERATION = 7,
    BENCH_PAGES = 5,
    BENCH_TAIL_BYTES = 600,
};

typedef struct Bench {
    Gate *gate;
    int vm; /* the fake QEMU's end */
    guint vm_source;
    GByteArray *vm_got;
    PeerChannel *peer;
    GByteArray *peer_got; /* payloads of DATA */
    GString *peer_log;    /* other messages */
    guint n_data;
    GString *log;        /* callbacks */
    const char *free_at; /* a callback of this name frees the gate */
    gboolean pass;       /* points are passed at once */
    gboolean hold_state; /* GATE_POINT_STATE is told, and passed by the test; else it is passed */
    GError *failure;
} Bench;

/* What one end does to get through a checkpoint. */
typedef struct BenchSide {
    gboolean primary;
    /* From nothing to an armed, idle gate. */
    void (*arm)(Bench *bench);
    /* From there to @step of checkpoint @epoch, checking all bytes on the way. */
    void (*advance)(Bench *bench, GateStep step, guint64 epoch);
    /* From GATE_STEP_LOAD to the end of the checkpoint. */
    void (*finish)(Bench *bench, guint64 epoch);
} BenchSide;

/* Limits that no test reaches unless it sets its own. */
extern const GateConfig bench_config;

extern const GateHandlers bench_handlers; /* their user_data is the Bench */

#define WAIT(condition)                                                                            \
    do {                                                                                           \
        gboolean expired = FALSE;                                                                  \
        guint id = g_timeout_add(BENCH_WAIT_MS, bench_expire, &expired);                           \
                                                                                                   \
        while (!(condition) && !expired)                                                           \
            g_main_context_iteration(NULL, TRUE);                                                  \
        g_source_remove(id);                                                                       \
        ck_assert_msg(!expired, "waited too long for %s", #condition);                             \
    } while (0)

/** Everything that can happen without waiting happens: the sockets are local. */
void settle(void);
gboolean bench_expire(gpointer expired);

gboolean bench_on_vm(gint fd, GIOCondition condition, gpointer user_data);
GIOStream *bench_stream(int fd);
void bench_socketpair(int fds[2]);

/** A gate to which nobody has said anything. */
void bench_open(Bench *bench, const BenchSide *side, const GateConfig *config);

/** An armed gate at @step of checkpoint 1. @config: NULL for bench_config. */
void bench_open_at(Bench *bench, const BenchSide *side, const GateConfig *config, GateStep step);

void bench_close_vm(Bench *bench);

/** The fake peer goes. */
void bench_close_peer(Bench *bench);
void bench_close(Bench *bench);

/** The fake QEMU says @bytes, which the sockets must take at once. */
void vm_say(Bench *bench, const void *bytes, size_t len);
void vm_say_message(Bench *bench, uint32_t message);
void peer_say(Bench *bench, PeerMessageType type, const void *bytes, size_t len);
void peer_say_message(Bench *bench, PeerMessageType type, uint32_t message);
void peer_say_number(Bench *bench, PeerMessageType type, uint64_t number);
void peer_say_end(Bench *bench, uint64_t epoch, uint64_t length, uint64_t hash);

/** What came since the last call is exactly @bytes. */
void expect_bytes(GByteArray *got, const void *bytes, size_t len);
void expect_message(GByteArray *got, uint32_t message);
void expect_text(GString *log, const char *text);
/** The only callback since the last call. */
void expect_callback(Bench *bench, const char *name, guint64 epoch);
void expect_failure(Bench *bench, GateError code, const char *text);

/** Delta and tail of every checkpoint of these tests, and both: what the hash covers. */
GByteArray *delta_new(void);
GByteArray *tail_new(void);
GByteArray *covered_new(void);

/* --- Tests that are the same for both ends ---------------------------------------------------- */

/** Four whole checkpoints, their figures. */
void bench_test_checkpoints(const BenchSide *side);

/** At each step from @first on the gate fails when nothing more comes, and says what it missed.
 * @check: what else holds then; may be NULL. */
void bench_test_deadlines(const BenchSide *side, GateStep first, const char *const awaited[],
                          void (*check)(Bench *bench, GateStep step));
