/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-lockstep.c - lock-stepping end to end: two proxies, two guests, two clients */
#include "lockstep-world.h"

#include "check-main.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "frame-wire.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS, KINDS = 2 };

static const ProxyPortKind kinds[KINDS] = {PROXY_PORT_TAP, PROXY_PORT_STREAM};

static int
compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* --- unit --- */

START_TEST(unit_same_output_leaves_at_once)
{
    enum { N = 400 };
    static int64_t took[N];

    for (unsigned k = 0; k < KINDS; k++) {
        Pair pair;

        pair_init(&pair, kinds[k], PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
        for (guint32 i = 0; i < N; i++) {
            int64_t start_ns = clock_now_ns();

            /* The secondary's last, so that its way is what is measured. */
            both_send(&pair, i, 60 + i);
            ck_assert_int_eq(client_recv(&pair.p, WAIT), i);
            took[i] = clock_now_ns() - start_ns;
        }
        qsort(took, N, sizeof(took[0]), compare_ns);
        printf("added latency, %s port: p50 %.0f us, p99 %.0f us\n",
               kinds[k] == PROXY_PORT_TAP ? "tap" : "stream", (double)took[N / 2] / 1e3,
               (double)took[N * 99 / 100] / 1e3);
        WORLD_UNTIL(&pair.p, st.released[COMPARE_RELEASED_MATCHED] == N);
        ck_assert_uint_eq(pair.p.n_divergences, 0);
        ck_assert_uint_eq(world_stats(&pair.p).egress_frames, N);
        ck_assert_uint_eq(world_stats(&pair.s).egress_frames, 0);
        /* Nothing of the secondary's gets to its own LAN. */
        ck_assert_int_eq(client_recv(&pair.s, 0), -1);
        pair_clear(&pair);
    }
}
END_TEST

START_TEST(unit_ingress_gets_to_both_guests)
{
    for (unsigned k = 0; k < KINDS; k++) {
        Pair pair;

        pair_init(&pair, kinds[k], PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
        for (guint32 i = 0; i < 200; i++)
            client_send(&pair.p, i, 60 + i);
        /* What the secondary's own LAN says is not for its guest. */
        client_send(&pair.s, 99999, 60);
        for (guint32 i = 0; i < 200; i++) {
            ck_assert_int_eq(guest_recv(&pair.p, WAIT), i);
            ck_assert_int_eq(guest_recv(&pair.s, WAIT), i);
        }
        ck_assert_int_eq(guest_recv(&pair.s, 0), -1);
        ck_assert_uint_eq(world_stats(&pair.p).mirrored_frames, 200);
        ck_assert_uint_eq(world_stats(&pair.s).peer_gaps, 0);
        pair_clear(&pair);
    }
}
END_TEST

CHECK_MAIN("lockstep", unit_same_output_leaves_at_once, unit_ingress_gets_to_both_guests)
