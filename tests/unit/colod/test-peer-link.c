/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-peer-link.c - two links of a pair over the loopback: up, down, silent, replaced, refused */
#include "test-peer-world.h"

#ifdef __SANITIZE_THREAD__
enum { PUMP_BYTES = 5 * 1024 * 1024, ROUNDS = 100 }; /* it is thirty times slower */
#else
enum { PUMP_BYTES = 50 * 1024 * 1024, ROUNDS = 2000 };
#endif

/* Working links */

START_TEST(unit_peer_link_up)
{
    Side alpha, beta;

    pair_up(&alpha, &beta);
    ck_assert_str_eq(alpha.peer.host, "beta");
    ck_assert_str_eq(alpha.peer.role, "secondary");
    ck_assert_uint_eq(alpha.peer.generation, 7);
    ck_assert_str_eq(beta.peer.host, "alpha");
    ck_assert_str_eq(beta.peer.role, "primary");
    ck_assert(beta.peer.generation == G_MAXUINT64);
    ck_assert_str_eq(beta.peer.software_version, COLOD_VERSION);
    ck_assert(alpha.peer.boot_id && beta.peer.boot_id && alpha.peer.boot_id != beta.peer.boot_id);
    ck_assert_uint_eq(beta.n_refused, 0);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_peer_link_messages)
{
    Side alpha, beta;
    json_object *body = json_object_new_object();

    pair_up(&alpha, &beta);
    json_object_object_add(body, "reason", json_object_new_string("qu\"ote"));
    for (int i = 0; i < 100; i++)
        peer_link_send(alpha.link, PEER_MESSAGE_VM_DEAD, body);
    peer_link_send(beta.link, PEER_MESSAGE_PREPARED, NULL);
    json_object_put(body);
    WAIT_UNTIL(&alpha, &beta, beta.n_messages == 100 && alpha.n_messages == 1);
    ck_assert_int_eq(beta.last_type, PEER_MESSAGE_VM_DEAD);
    ck_assert_str_eq(beta.last_body, "{\"reason\":\"qu\\\"ote\"}");
    ck_assert_int_eq(alpha.last_type, PEER_MESSAGE_PREPARED);
    ck_assert_str_eq(alpha.last_body, "{}");
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_peer_link_heartbeats_confirm)
{
    Side alpha, beta;

    pair_up(&alpha, &beta);
    for (int i = 0; i < 3; i++) {
        int64_t now_ns = clock_now_ns();

        WAIT_UNTIL(&alpha, &beta,
                   peer_link_confirmed_ns(alpha.link) > now_ns &&
                       peer_link_confirmed_ns(beta.link) > now_ns);
        ck_assert_int_lt(peer_link_confirmed_ns(alpha.link), clock_now_ns());
    }
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_peer_link_streams_are_taken_once)
{
    Side alpha, beta;

    pair_init(&alpha, &beta);
    pair_start(&alpha, &beta);
    ck_assert(!peer_link_take_stream(alpha.link, PEER_CHANNEL_CHECKPOINT));
    peer_link_send(alpha.link, PEER_MESSAGE_STATE, NULL);
    WAIT_UNTIL(&alpha, &beta, alpha.n_up && beta.n_up);

    g_autoptr(GIOStream) stream = peer_link_take_stream(alpha.link, PEER_CHANNEL_CHECKPOINT);

    ck_assert(stream);
    ck_assert(!peer_link_take_stream(alpha.link, PEER_CHANNEL_CHECKPOINT));
    ck_assert(!peer_link_take_stream(alpha.link, PEER_CHANNEL_CONTROL));
    pair_clear(&alpha, &beta);
}
END_TEST

/* Bulk data over the checkpoint channel */

typedef struct Pump {
    PeerChannel *channel;
    size_t sent_bytes, goal_bytes, received_bytes;
    PeerMessageType type;
    unsigned n_closed, n_small;
    bool answer_small;
} Pump;

static void
pump_send(Pump *pump)
{
    static uint8_t block[PEER_DATA_MAX_BYTES];

    while (pump->sent_bytes < pump->goal_bytes && !peer_channel_is_congested(pump->channel)) {
        size_t len = MIN(sizeof(block), pump->goal_bytes - pump->sent_bytes);

        be64_store(block, pump->sent_bytes);
        peer_channel_send(pump->channel, pump->type, block, len);
        pump->sent_bytes += len;
    }
}

static void
on_pump_message(PeerChannel *channel, PeerMessageType type, View payload, gpointer user_data)
{
    Pump *pump = user_data;
    uint64_t offset;

    if (type == PEER_MESSAGE_COMMITTED || type == PEER_MESSAGE_ARM) {
        pump->n_small++;
        if (pump->answer_small)
            peer_channel_send(channel, PEER_MESSAGE_COMMITTED, payload.data, payload.len);
        return;
    }
    size_t len = payload.len;

    ck_assert(view_get_be64(&payload, &offset));
    ck_assert_uint_eq(offset, pump->received_bytes);
    pump->received_bytes += len;
}

static void
on_pump_drained(G_GNUC_UNUSED PeerChannel *channel, gpointer user_data)
{
    pump_send(user_data);
}

static void
on_pump_closed(G_GNUC_UNUSED PeerChannel *channel, const GError *reason, gpointer user_data)
{
    Pump *pump = user_data;

    ck_assert(reason);
    pump->n_closed++;
}

static const PeerChannelHandlers pump_handlers = {
    .message = on_pump_message, .drained = on_pump_drained, .closed = on_pump_closed};

static void
pump_init(Pump *pump, Side *side, PeerMessageType type, size_t goal_bytes)
{
    g_autoptr(GIOStream) stream = peer_link_take_stream(side->link, PEER_CHANNEL_CHECKPOINT);

    ck_assert(stream);
    *pump = (Pump){.type = type, .goal_bytes = goal_bytes};
    g_main_context_push_thread_default(side->context);
    pump->channel = peer_channel_new(stream, PEER_CHANNEL_CHECKPOINT, &pump_handlers, pump);
    g_main_context_pop_thread_default(side->context);
}

/* Both sides in one context, so that one thread does all the work and nothing waits for a tick. */
static void
pair_up_shared(Side *alpha, Side *beta)
{
    pair_init(alpha, beta);
    g_main_context_unref(beta->context);
    beta->context = g_main_context_ref(alpha->context);
    pair_start(alpha, beta);
    WAIT_UNTIL(alpha, NULL, alpha->n_up == 1 && beta->n_up == 1);
}

START_TEST(unit_peer_link_bulk_both_ways)
{
    Side alpha, beta;
    Pump a, b;

    pair_up_shared(&alpha, &beta);
    pump_init(&a, &alpha, PEER_MESSAGE_DATA_FORWARD, PUMP_BYTES);
    pump_init(&b, &beta, PEER_MESSAGE_DATA_RETURN, PUMP_BYTES);

    int64_t start_ns = clock_now_ns();

    pump_send(&a);
    pump_send(&b);
    g_main_context_push_thread_default(alpha.context);
    while (a.received_bytes < PUMP_BYTES || b.received_bytes < PUMP_BYTES) {
        ck_assert(clock_now_ns() - start_ns < 60 * NS_PER_S);
        g_main_context_iteration(alpha.context, TRUE);
    }
    g_main_context_pop_thread_default(alpha.context);
    g_print("both ways: %.0f MB/s in all\n",
            2.0 * PUMP_BYTES / 1e6 / ((double)(clock_now_ns() - start_ns) / 1e9));
    ck_assert_uint_eq(alpha.n_down + beta.n_down, 0);
    peer_channel_free(a.channel);
    peer_channel_free(b.channel);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_peer_link_small_messages)
{
    Side alpha, beta;
    Pump a, b;
    uint8_t epoch[PEER_EPOCH_BYTES] = {0};

    pair_up_shared(&alpha, &beta);
    pump_init(&a, &alpha, PEER_MESSAGE_DATA_FORWARD, PUMP_BYTES);
    pump_init(&b, &beta, PEER_MESSAGE_DATA_RETURN, 0);
    b.answer_small = true;

    int64_t start_ns = clock_now_ns();

    g_main_context_push_thread_default(alpha.context);
    for (unsigned i = 0; i < ROUNDS; i++) {
        peer_channel_send(a.channel, PEER_MESSAGE_ARM, epoch, sizeof(epoch));
        while (a.n_small == i)
            g_main_context_iteration(alpha.context, TRUE);
    }
    g_print("small message one way: %.1f us\n",
            (double)(clock_now_ns() - start_ns) / 1e3 / 2 / ROUNDS);
    start_ns = clock_now_ns();
    pump_send(&a);
    while (b.received_bytes < PUMP_BYTES)
        g_main_context_iteration(alpha.context, TRUE);
    g_print("one way: %.0f MB/s\n", PUMP_BYTES / 1e6 / ((double)(clock_now_ns() - start_ns) / 1e9));
    /* A checkpoint of 1 MB and its answer. */
    start_ns = clock_now_ns();
    for (unsigned i = 0; i < ROUNDS / 20; i++) {
        a.goal_bytes += 1024 * 1024;
        pump_send(&a);
        peer_channel_send(a.channel, PEER_MESSAGE_ARM, epoch, sizeof(epoch));
        while (a.n_small == ROUNDS + i)
            g_main_context_iteration(alpha.context, TRUE);
    }
    g_main_context_pop_thread_default(alpha.context);
    g_print("1 MiB and an answer: %.2f ms\n",
            (double)(clock_now_ns() - start_ns) / 1e6 / (ROUNDS / 20.0));
    peer_channel_free(a.channel);
    peer_channel_free(b.channel);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_peer_link_taken_stream_ends_with_link)
{
    Side alpha, beta;
    Pump a, b;

    pair_up(&alpha, &beta);
    pump_init(&a, &alpha, PEER_MESSAGE_DATA_FORWARD, 0);
    pump_init(&b, &beta, PEER_MESSAGE_DATA_RETURN, 0);

    g_autoptr(GError) reason = g_error_new_literal(PEER_ERROR, PEER_ERROR_CLOSED, "test");

    peer_link_fail(beta.link, reason);
    WAIT_UNTIL(&alpha, &beta, a.n_closed && b.n_closed && alpha.n_down == 1);
    ck_assert_uint_eq(beta.n_down, 1);
    peer_channel_free(a.channel);
    peer_channel_free(b.channel);
    WAIT_UNTIL(&alpha, &beta, alpha.n_up == 2 && beta.n_up == 2);
    pair_clear(&alpha, &beta);
}
END_TEST

/* Going down and up again */

START_TEST(life_peer_link_fail_then_up)
{
    Side alpha, beta;
    g_autoptr(GError) reason = g_error_new_literal(PEER_ERROR, PEER_ERROR_CLOSED, "because");

    pair_up(&alpha, &beta);
    for (unsigned i = 1; i <= 4; i++) {
        peer_link_fail(i % 2 ? alpha.link : beta.link, reason);
        ck_assert_uint_eq(i % 2 ? alpha.n_down : beta.n_down, i);
        ck_assert_str_eq((i % 2 ? &alpha : &beta)->down_reason->message, "because");
        WAIT_UNTIL(&alpha, &beta, alpha.n_up == i + 1 && beta.n_up == i + 1);
    }
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(life_peer_link_either_starts_first)
{
    for (int first = 0; first < 2; first++) {
        Side sides[2];

        pair_init(&sides[0], &sides[1]);
        side_start(&sides[first]);
        for (int i = 0; i < 50; i++)
            tick(&sides[first]);
        side_start(&sides[!first]);
        WAIT_UNTIL(&sides[0], &sides[1], sides[0].n_up && sides[1].n_up);
        pair_clear(&sides[0], &sides[1]);
    }
}
END_TEST

START_TEST(life_peer_link_peer_ends)
{
    for (int gone = 0; gone < 2; gone++) {
        Side sides[2];
        Side *left = &sides[!gone];

        pair_up(&sides[0], &sides[1]);
        side_free_link(&sides[gone]);
        WAIT_UNTIL(left, &sides[gone], left->n_down == 1);
        ck_assert(g_error_matches(left->down_reason, PEER_ERROR, PEER_ERROR_CLOSED));
        ck_assert_uint_eq(sides[gone].n_down, 0);
        sides[gone].n_up = 0;
        side_start(&sides[gone]);
        WAIT_UNTIL(left, &sides[gone], left->n_up == 2 && sides[gone].n_up == 1);
        pair_clear(&sides[0], &sides[1]);
    }
}
END_TEST

START_TEST(life_peer_link_newer_control_replaces)
{
    Side alpha, beta, again;
    Pump old;

    /* alpha stands still with its sockets open, as after a cut; a new alpha comes. */
    pair_up(&alpha, &beta);
    pump_init(&old, &beta, PEER_MESSAGE_DATA_RETURN, 0);
    side_init(&again, "ca", "alpha", "beta");
    again.config.peer_port = beta.config.listen_port;
    side_start(&again);

    guint64 old_boot_id = beta.peer.boot_id;

    WAIT_UNTIL(&again, &beta, again.n_up == 1 && beta.n_up == 2);
    ck_assert(strstr(beta.down_reason->message, "replaced"));
    ck_assert(beta.peer.boot_id != old_boot_id);
    WAIT_UNTIL(&again, &beta, old.n_closed == 1);
    peer_channel_free(old.channel);
    side_free_link(&alpha);
    peer_link_send(beta.link, PEER_MESSAGE_STATE, NULL);
    WAIT_UNTIL(&again, &beta, again.n_messages == 1);
    side_clear(&again);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(life_peer_link_free_in_callbacks)
{
    for (int i = 0; i < 3; i++) {
        Side alpha, beta;

        pair_init(&alpha, &beta);
        alpha.free_in_up = i == 0;
        alpha.free_in_down = i == 1;
        alpha.fail_in_up = i == 1;
        beta.free_in_up = i == 2;
        pair_start(&alpha, &beta);
        WAIT_UNTIL(&alpha, &beta, !(i == 2 ? beta : alpha).link);
        pair_clear(&alpha, &beta);
    }
}
END_TEST

START_TEST(life_peer_link_free_when_replaced)
{
    Side alpha, beta, again;

    pair_up(&alpha, &beta);
    beta.free_in_down = true;
    side_init(&again, "ca", "alpha", "beta");
    again.config.peer_port = beta.config.listen_port;
    side_start(&again);
    WAIT_UNTIL(&again, &beta, !beta.link && again.n_refused);
    side_clear(&again);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(life_peer_link_free_in_refused)
{
    Side alpha, beta;

    pair_init(&alpha, &beta);
    alpha.free_in_refused = true;
    side_start(&alpha);
    WAIT_UNTIL(&alpha, NULL, !alpha.link);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(life_peer_link_free_while_setting_up)
{
    /* Cut the set-up at every stage: after each number of iterations. */
    for (int n = 0; n < 36; n += 3) {
        Side alpha, beta;

        pair_init(&alpha, &beta);
        pair_start(&alpha, &beta);
        for (int i = 0; i < n; i++) {
            side_run(&alpha);
            side_run(&beta);
            if (i % 4 == 0)
                tick(&alpha);
        }
        pair_clear(&alpha, &beta);
    }
}
END_TEST

/* Both are up; alpha has this heartbeat limit. */
static void
pair_join(Side *alpha, Side *beta, guint alpha_limit_ms)
{
    pair_init(alpha, beta);
    alpha->config.heartbeat_limit_ms = alpha_limit_ms;
    pair_start(alpha, beta);
    WAIT_UNTIL(alpha, beta, alpha->n_up && beta->n_up);
}

START_TEST(err_peer_link_silent)
{
    Side alpha, beta;

    pair_join(&alpha, &beta, 200);

    int64_t start_ns = clock_now_ns();

    WAIT_UNTIL(&alpha, NULL, alpha.n_down);
    ck_assert(g_error_matches(alpha.down_reason, PEER_ERROR, PEER_ERROR_SILENT));

    int64_t passed_ms = (clock_now_ns() - start_ns) / NS_PER_MS;

    /* beta's last heartbeat may be a period old at the start. */
    ck_assert_int_ge(passed_ms, 200 - 2 * HEARTBEAT_MS);
    ck_assert_int_le(passed_ms, 200 + 2 * HEARTBEAT_MS + 50);
    WAIT_UNTIL(&alpha, &beta, alpha.n_up == 2 && beta.n_up == 2);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(unit_peer_link_late_timer_is_no_silence)
{
    Side alpha, beta;

    /* alpha stands still for longer than its limit; beta's heartbeats lie in its socket. */
    pair_join(&alpha, &beta, 100);
    for (int round = 0; round < 5; round++) {
        int64_t until_ns = clock_now_ns() + 300 * NS_PER_MS;

        while (clock_now_ns() < until_ns)
            tick(&beta);
        for (int i = 0; i < 50; i++) {
            side_run(&alpha);
            tick(&beta);
        }
        expect_undisturbed(&alpha, &beta);
    }
    pair_clear(&alpha, &beta);
}
END_TEST

/* As guests of one machine that stops may; alpha is the first to run again. */
START_TEST(unit_peer_link_both_stood_still)
{
    Side alpha, beta;

    pair_join(&alpha, &beta, 100);
    for (int round = 0; round < 5; round++) {
        g_usleep(300 * 1000);
        for (int i = 0; i < 50; i++)
            side_run(&alpha);
        for (int i = 0; i < 50; i++) {
            tick(&beta);
            side_run(&alpha);
        }
        expect_undisturbed(&alpha, &beta);
    }
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(err_peer_link_control_garbage)
{
    static const struct {
        PeerMessageType type;
        uint8_t length;
        const char *payload, *text;
    } cases[] = {
        {PEER_MESSAGE_STATE, 4, "nope", "STATE: payload is not a JSON object"},
        {PEER_MESSAGE_STATE, 2, "[]", "another type"},
        {PEER_MESSAGE_STATE, 4, "{} x", "not a JSON object"},
        {PEER_MESSAGE_STATE, 1, "{", "not a JSON object"},
        {PEER_MESSAGE_STATE, 0, "", "not a JSON object"},
        {PEER_MESSAGE_STATE, 7, "{\"\xff\":1}", "not a JSON object"},
        {PEER_MESSAGE_HELLO, 2, "{}", "HELLO on an open link"},
        {PEER_MESSAGE_HEARTBEAT, 3, "abc", "too short"},
        {PEER_MESSAGE_HEARTBEAT, 16, "\0\0\0\0\0\0\0\1\x7f\0\0\0\0\0\0\0", "never sent"},
        {PEER_MESSAGE_HEARTBEAT, 16, "\xff\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0", "never sent"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Side alpha, beta;
        Fake fake;

        pair_init(&alpha, &beta);
        fake_init(&fake, &alpha);
        side_start(&beta);
        fake_up(&fake, &beta);
        peer_channel_send(fake.control, cases[i].type, cases[i].payload, cases[i].length);
        WAIT_UNTIL(&alpha, &beta, beta.n_down);
        ck_assert(g_error_matches(beta.down_reason, PEER_ERROR, PEER_ERROR_PROTOCOL));
        ck_assert_msg(strstr(beta.down_reason->message, cases[i].text), "%s",
                      beta.down_reason->message);
        fake_clear(&fake);
        pair_clear(&alpha, &beta);
    }
}
END_TEST

START_TEST(err_peer_link_setup_deadline)
{
    Side alpha, beta;
    Fake fake;

    pair_init(&alpha, &beta);
    beta.config.connect_timeout_ms = SHORT_TIMEOUT_MS;
    fake_init(&fake, &alpha);
    side_start(&beta);
    ck_assert(fake_open(&fake, &beta, PEER_CHANNEL_CONTROL));
    ck_assert(fake_open(&fake, &beta, PEER_CHANNEL_FRAMES));
    WAIT_UNTIL(&alpha, &beta, beta.n_refused);
    ck_assert(side_errors(&beta, PEER_ERROR_TIMEOUT));
    ck_assert(strstr(beta.refused->str, "all channels"));
    ck_assert_uint_eq(beta.n_up, 0);
    /* The session is over. */
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_CHECKPOINT));
    fake_clear(&fake);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(err_peer_link_session)
{
    Side alpha, beta;
    Fake fake;
    guint64 session;

    pair_init(&alpha, &beta);
    fake_init(&fake, &alpha);
    side_start(&beta);
    /* No session at all; a wrong one; of another start of the peer; a slot that is taken. */
    fake.session = 5;
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_FRAMES));
    ck_assert(g_error_matches(fake.reason, PEER_ERROR, PEER_ERROR_REFUSED));
    ck_assert(strstr(fake.reason->message, "(session)"));
    ck_assert(fake_open(&fake, &beta, PEER_CHANNEL_CONTROL));
    session = fake.session;
    fake.session++;
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_FRAMES));
    fake.session = session;
    fake.boot_id++;
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_FRAMES));
    fake.boot_id--;
    ck_assert(fake_open(&fake, &beta, PEER_CHANNEL_FRAMES));
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_FRAMES));
    ck_assert(fake_open(&fake, &beta, PEER_CHANNEL_CHECKPOINT));
    WAIT_UNTIL(&alpha, &beta, beta.n_up == 1);
    /* Nor when the link is up. */
    ck_assert(!fake_open(&fake, &beta, PEER_CHANNEL_CHECKPOINT));
    ck_assert_uint_eq(beta.n_down, 0);
    ck_assert(side_errors(&beta, PEER_ERROR_PROTOCOL));
    fake_clear(&fake);
    pair_clear(&alpha, &beta);
}
END_TEST

START_TEST(err_peer_link_wrong_direction)
{
    Side alpha, beta;
    Fake fake;

    /* beta, who is to accept, connects to alpha. */
    pair_init(&alpha, &beta);
    fake_init(&fake, &beta);
    side_start(&alpha);
    ck_assert(!fake_open(&fake, &alpha, PEER_CHANNEL_CONTROL));
    ck_assert(strstr(fake.reason->message, "(protocol)"));
    ck_assert(strstr(fake.reason->message, "sorts first"));
    fake_clear(&fake);
    pair_clear(&alpha, &beta);
}
END_TEST

/* beta refuses alpha's hello with @code, and alpha hears why. */
static void
expect_hello_refused(Side *alpha, Side *beta, const char *code)
{
    g_autofree char *text = g_strdup_printf("peer refused us (%s)", code);

    pair_start(alpha, beta);
    WAIT_UNTIL(alpha, beta, strstr(alpha->refused->str, text) && beta->n_refused);
    ck_assert(side_errors(alpha, PEER_ERROR_REFUSED));
    ck_assert(side_errors(beta, PEER_ERROR_IDENTITY));
    ck_assert_uint_eq(alpha->n_up + beta->n_up, 0);
    /* alpha has tried again many times and each side still has said it once. */
    for (int i = 0; i < 100; i++) {
        side_run(alpha);
        side_run(beta);
        tick(alpha);
    }
    ck_assert_uint_eq(beta->n_refused, 1);
    pair_clear(alpha, beta);
}

START_TEST(err_peer_link_wrong_vm_name)
{
    Side alpha, beta;

    pair_init(&alpha, &beta);
    alpha.config.vm_name = "vm2";
    expect_hello_refused(&alpha, &beta, "vm");
}
END_TEST

START_TEST(err_peer_link_wrong_vm_uuid)
{
    Side alpha, beta;

    pair_init(&alpha, &beta);
    beta.config.vm_uuid = "00000000-0c5f-4e0f-9d49-5a2b8d3f7c11";
    expect_hello_refused(&alpha, &beta, "uuid");
}
END_TEST

START_TEST(err_peer_link_new_fails)
{
    static const struct {
        int file;
        const char *path, *text;
    } cases[] = {
        {0, "ca/alpha/nothing", "nothing"},      {1, "ca/alpha/nothing", "nothing"},
        {2, "ca/alpha/nothing", "nothing"},      {2, "ca/beta/beta-key.pem", "do not fit"},
        {0, "other/ca/ca.pem", "not signed by"}, {0, "ca/alpha/alpha-key.pem", "alpha-key.pem"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Side alpha, beta;
        g_autoptr(GError) error = NULL;

        pair_init(&alpha, &beta);
        g_free(alpha.files[cases[i].file]);
        alpha.files[cases[i].file] = g_build_filename(pki, cases[i].path, NULL);
        alpha.config.ca_file = alpha.files[0];
        alpha.config.cert_file = alpha.files[1];
        alpha.config.key_file = alpha.files[2];
        ck_assert(!peer_link_new(&alpha.config, &side_handlers, &alpha, &error));
        ck_assert_msg(strstr(error->message, cases[i].text), "%s", error->message);
        pair_clear(&alpha, &beta);
    }
}
END_TEST

START_TEST(err_peer_link_config)
{
    Side alpha, beta;
    GError *error = NULL;

    pair_init(&alpha, &beta);
    side_start(&beta);
    alpha.config.listen_port = beta.config.listen_port;
    ck_assert(!peer_link_new(&alpha.config, &side_handlers, &alpha, &error));
    ck_assert(g_error_matches(error, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE));
    ck_assert(strstr(error->message, peer_world_address));
    g_clear_error(&error);
    alpha.config.listen_address = "localhost";
    ck_assert(!peer_link_new(&alpha.config, &side_handlers, &alpha, &error));
    ck_assert(strstr(error->message, "numeric"));
    g_clear_error(&error);
    alpha.config.peer_host = "alpha";
    ck_assert(!peer_link_new(&alpha.config, &side_handlers, &alpha, &error));
    ck_assert(strstr(error->message, "same name"));
    g_clear_error(&error);
    alpha.config.peer_host = "beta";
    alpha.config.host = "alfa";
    ck_assert(!peer_link_new(&alpha.config, &side_handlers, &alpha, &error));
    ck_assert(strstr(error->message, "'alfa'"));
    g_clear_error(&error);
    pair_clear(&alpha, &beta);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        unit_peer_link_up,
        unit_peer_link_messages,
        unit_peer_link_heartbeats_confirm,
        unit_peer_link_streams_are_taken_once,
        unit_peer_link_bulk_both_ways,
        unit_peer_link_small_messages,
        unit_peer_link_taken_stream_ends_with_link,
        unit_peer_link_late_timer_is_no_silence,
        unit_peer_link_both_stood_still,
        life_peer_link_fail_then_up,
        life_peer_link_either_starts_first,
        life_peer_link_peer_ends,
        life_peer_link_newer_control_replaces,
        life_peer_link_free_in_callbacks,
        life_peer_link_free_when_replaced,
        life_peer_link_free_in_refused,
        life_peer_link_free_while_setting_up,
        err_peer_link_silent,
        err_peer_link_control_garbage,
        err_peer_link_setup_deadline,
        err_peer_link_session,
        err_peer_link_wrong_direction,
        err_peer_link_wrong_vm_name,
        err_peer_link_wrong_vm_uuid,
        err_peer_link_new_fails,
        err_peer_link_config,
    };

    return peer_world_run("peer-link", tests, G_N_ELEMENTS(tests));
}
