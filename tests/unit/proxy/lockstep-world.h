/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lockstep-world.h - two hosts in one process: a proxy, a guest, a bridge and a client on each */
#pragma once

#include "frame-wire.h"
#include "proxy-world.h"

/*
 * The guests are the test: it says what each of them sends. Both speak in the numbered frames of
 * proxy-world.h, which are compared in full. The frames channel is a socketpair.
 */
typedef struct Pair {
    World p, s; /* primary, secondary */
    guint64 epoch;
} Pair;

enum { PAIR_TIMEOUT_MS = 200, PAIR_HOLD_BYTES = 8 << 20 };

/** Two proxies, attached to each other, armed: epoch 0, lease without limit, ingress flowing. */
void pair_init(Pair *pair, ProxyPortKind port, unsigned timeout_ms, gsize hold_max_bytes);
void pair_clear(Pair *pair);

/** Only the primary, in COMPARE and ingress flowing; the test is its peer. @base:
 * lockstep_config(), changed as the test likes. Returns the test's end of the channel. */
int lone_init(World *w, ProxyPortKind port, ProxyConfig *base);
/** As pair_init() would configure it; the test's messages are counted from the first. */
int lone_init_plain(World *w, ProxyPortKind port);
/** What pair_init() uses. */
void lockstep_config(ProxyConfig *base, unsigned timeout_ms, gsize hold_max_bytes);

/** The steps of a checkpoint, as the two control threads take them. */
void pair_begin_checkpoint(Pair *pair);
void pair_end_checkpoint(Pair *pair);
void pair_checkpoint(Pair *pair);

/** The socketpair's ends, for tests that are one of the peers: attaches @fd (taken). */
void world_attach_fd(World *w, int fd);
void pair_sockets(int fds[2]);
/** Both are open: a channel between them, and they are a protected pair. */
void pair_join(Pair *pair);

/** Both guests send the same. */
void both_send(Pair *pair, guint32 number, size_t len);
void world_quiesce(World *w);
void world_pause(World *w);
void world_commit(World *w, guint64 epoch);

/* Where the test is the peer. */

/** The number that the test's last message had; both directions use it. */
extern guint64 pair_wire_sequence;
/** A message with the numbered frame that a World's guest would send. Returns its length. */
size_t pair_encode(guint8 *out, guint64 epoch, WireKind kind, guint8 nic, guint32 number,
                   size_t len);
void peer_says(int fd, guint64 epoch, guint32 number, size_t len);
/** The next numbered frame that was mirrored; what else the kernel sends on a bridge is skipped.
 * Calls @meanwhile (or NULL) while it waits. Returns the number. */
guint32 peer_next_copy(int fd, WireFrame *ret_frame, void (*meanwhile)(gpointer),
                       gpointer user_data);
/** A checkpoint without the secondary's part. */
void world_checkpoint_alone(World *w, guint64 epoch);

/** Runs the main loop until @condition of the proxy's statistics holds. */
#define WORLD_UNTIL(w, condition)                                                                  \
    do {                                                                                           \
        int64_t until_deadline_ns = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;                \
        ProxyStats st = world_stats(w);                                                            \
                                                                                                   \
        while (!(condition)) {                                                                     \
            ck_assert_msg(clock_now_ns() < until_deadline_ns, "deadline: %s", #condition);         \
            while (g_main_context_iteration(NULL, FALSE))                                          \
                ;                                                                                  \
            g_usleep(100);                                                                         \
            st = world_stats(w);                                                                   \
        }                                                                                          \
    } while (0)
