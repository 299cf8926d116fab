/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-world.h - what the tests of the peer link share: two sides, strangers, a fake peer */
/*
 * alpha sorts first and connects; beta accepts. Each has a main context of its own, so that a test
 * can hold one of them still. Certificates are made by deploy/colo-pki when the binary starts.
 */
#pragma once

#include "check-main.h"
#include "clock.h"
#include "fd.h"
#include "peer-greeting.h"
#include "peer-hello.h"
#include "peer-link.h"
#include "peer-tls.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum {
    DEADLINE_MS = 20000,
    CONNECT_TIMEOUT_MS = 5000,
    HEARTBEAT_MS = 20,
    HEARTBEAT_LIMIT_MS = 2000, /* sanitizers are slow; tests of silence set their own */
    RETRY_MS = 20,
};

/* Where a test waits for a deadline; an honest peer must still get through TLS in it. */
#ifdef __SANITIZE_THREAD__
enum { SHORT_TIMEOUT_MS = 6000 };
#else
enum { SHORT_TIMEOUT_MS = 1000 };
#endif

#define UUID "4ab1d5e2-0c5f-4e0f-9d49-5a2b8d3f7c11"

/* Directory of certificates: AUTHORITY/HOST/ of the authorities ca, other, expired, future,
 * server-only. */
extern char *pki;

/* A loopback address that no other process of the test run uses. */
extern char *peer_world_address;

/* A link and what it told us. */
typedef struct Side {
    PeerLink *link;
    PeerLinkConfig config;
    GMainContext *context;
    char *files[3];
    unsigned n_up, n_down, n_messages;
    GError *down_reason;
    GString *refused; /* "<code> <who>: <text>\n" each */
    unsigned n_refused;
    PeerInfo peer; /* copied at up() */
    PeerMessageType last_type;
    char *last_body;
    bool free_in_up, free_in_down, fail_in_up, free_in_refused;
} Side;

extern const PeerLinkHandlers side_handlers; /* their user_data is the Side */

/* A client in a thread of its own, with blocking calls: TLS, then @bytes, then it reads on. */
typedef struct Stranger {
    pthread_t thread;
    uint16_t port;
    const char *cert_file, *key_file; /* NULL: no certificate */
    GByteArray *send;
    GByteArray *received;
    atomic_bool done;
} Stranger;

/* A peer that greets by the rules and then does what a test wants: alpha, as the caller sees it. */
typedef struct Fake {
    Side *side; /* alpha's configuration and context, without a link */
    PeerTls *tls;
    guint64 session, boot_id;
    GIOStream *streams[PEER_N_CHANNELS];
    unsigned n_agreed, n_failed;
    GError *reason;
    PeerChannel *control;
} Fake;

/* Runs @a and @b (may be NULL) until @condition holds. */
#define WAIT_UNTIL(a, b, condition)                                                                \
    do {                                                                                           \
        int64_t wait_deadline_ns = clock_now_ns() + DEADLINE_MS * NS_PER_MS;                       \
        Side *wait_b = (b);                                                                        \
                                                                                                   \
        while (!(condition)) {                                                                     \
            ck_assert_msg(clock_now_ns() < wait_deadline_ns, "deadline: %s; refused: %s",          \
                          #condition, (a)->refused->str);                                          \
            side_run(a);                                                                           \
            if (wait_b)                                                                            \
                side_run(wait_b);                                                                  \
            if (!(condition))                                                                      \
                tick(a);                                                                           \
        }                                                                                          \
    } while (0)

void side_free_link(Side *side);
void side_init(Side *side, const char *authority, const char *host, const char *peer_host);
void side_start(Side *side);
void side_run(Side *side);
int side_errors(Side *side, PeerError code);
void tick(Side *side);
void side_clear(Side *side);
void pair_init(Side *alpha, Side *beta);
void pair_start(Side *alpha, Side *beta);
void pair_up(Side *alpha, Side *beta);
void pair_clear(Side *alpha, Side *beta);
void expect_undisturbed(Side *alpha, Side *beta);
void stranger_start(Stranger *stranger, const Side *target, const char *cert_file,
                    const char *key_file);
void stranger_clear(Stranger *stranger);
void stranger_say(Stranger *stranger, PeerMessageType type, const char *json);
bool stranger_heard(const Stranger *stranger, const char *text);
char *hello_json(PeerChannelKind channel, guint64 session);
int plain_connect(const Side *target);
int plain_connect_from(const Side *target, const char *source);
bool is_cut(int fd);
void fake_init(Fake *fake, Side *side);
bool fake_open(Fake *fake, Side *target, PeerChannelKind kind);
void fake_up(Fake *fake, Side *target);
void fake_clear(Fake *fake);

/** Makes the certificates, runs @tests; what main() returns. */
int peer_world_run(const char *name, const TTest *const *tests, size_t n_tests);
