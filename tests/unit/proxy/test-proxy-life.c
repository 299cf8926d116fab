/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-proxy-life.c - beginning and end of a proxy, what it announces, what breaks under it */
#include "proxy-world.h"

#include "check-main.h"

#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "fd.h"
#include "link.h"

enum { MIB = 1 << 20, WAIT = WORLD_DEADLINE_MS };

START_TEST(err_qemu_gone_is_told_once_after_its_last_frames)
{
    static const ProxyPortKind kinds[] = {PROXY_PORT_TAP, PROXY_PORT_STREAM};

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        World w;

        world_init(&w, kinds[i], MIB);
        world_egress(&w, PROXY_EGRESS_OPEN);
        guest_send_range(&w, 1, 3);
        fd_clear(&w.guest_fd);
        world_until(&w.n_broken, 1);
        client_expect(&w, 1, 3);
        world_egress(&w, PROXY_EGRESS_HOLD);
        world_ingress(&w, true);
        world_mark(&w, 1);
        ck_assert_uint_eq(w.n_broken, 1);
        world_clear(&w);
    }
}
END_TEST

START_TEST(err_lan_tap_or_bridge_deleted)
{
    static const char *const links[] = {"lan0", "br0"};

    for (unsigned i = 0; i < G_N_ELEMENTS(links); i++) {
        World w;

        world_init(&w, PROXY_PORT_TAP, MIB);
        world_egress(&w, PROXY_EGRESS_OPEN);
        world_delete_link(links[i]);
        world_until(&w.n_broken, 1);
        ck_assert_ptr_nonnull(strstr(w.broken_text, "LAN tap"));
        guest_send_range(&w, 1, 3);
        world_egress(&w, PROXY_EGRESS_DROP);
        ck_assert_uint_eq(w.n_broken, 1);
        ck_assert_uint_eq(world_stats(&w).lost_frames, 3);
        world_clear(&w);
    }
}
END_TEST

START_TEST(life_adoption_after_the_first_proxy_is_gone)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    world_egress(&w, PROXY_EGRESS_OPEN);
    guest_send_range(&w, 1, 3);
    client_expect(&w, 1, 3);
    proxy_free(w.proxy);
    w.proxy = NULL;
    /* While nobody is there the guest reaches nobody. */
    guest_send_range(&w, 4, 5);

    auto_fd int copy = fcntl(w.guest_fd, F_DUPFD_CLOEXEC, 0);

    w.proxy = world_proxy(&w, PROXY_PORT_TAP, MIB, copy);
    fd_clear(&copy);
    ck_assert_int_eq(proxy_take_guest_fd(w.proxy, 0, 0), -1);
    world_egress(&w, PROXY_EGRESS_HOLD);
    world_ingress(&w, true);
    guest_send_range(&w, 6, 8);
    client_send(&w, 100, 60);
    ck_assert_int_eq(guest_recv(&w, WAIT), 100);
    world_mark(&w, 1);
    ck_assert_int_eq(client_recv(&w, 0), -1);
    proxy_release(w.proxy, 1, 0, NULL, NULL);
    client_expect(&w, 6, 8);
    world_clear(&w);
}
END_TEST

START_TEST(err_setup_errors_name_the_cause)
{
    static const struct {
        const char *bridge, *lan_tap, *text;
        gsize hold;
    } cases[] = {
        {"missing", "lan0", "missing", MIB},
        {"nobridge", "lan0", "is it a bridge", MIB},
        {"lo", "a-name-that-is-too-long", "a-name-that-is-too-long", MIB},
        {"lo", "lan0", "bound", 1000},
    };

    world_enter();

    auto_fd int no_bridge = link_open_tap("nobridge", NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        ProxyConfig config = {.n_nics = 1, .hold_max_bytes = cases[i].hold};
        g_autoptr(GError) error = NULL;

        config.nics[0] = (ProxyNic){.name = "nic0",
                                    .port = PROXY_PORT_TAP,
                                    .bridge = cases[i].bridge,
                                    .lan_tap = cases[i].lan_tap};
        ck_assert_ptr_null(proxy_new(&config, NULL, NULL, NULL, &error));
        ck_assert(g_error_matches(error, PROXY_ERROR, PROXY_ERROR_SETUP));
        ck_assert_msg(strstr(error->message, cases[i].text) != NULL, "%s", error->message);
        ck_assert_uint_eq(if_nametoindex("lan0"), 0);
    }
}
END_TEST

static void
never(Proxy *proxy, gpointer world)
{
    (void)proxy;
    (void)world;
    ck_abort_msg("called after proxy_free()");
}

START_TEST(life_free_with_commands_pending)
{
    for (unsigned round = 0; round < 20; round++) {
        World w;

        world_init(&w, PROXY_PORT_TAP, MIB);
        proxy_set_egress(w.proxy, PROXY_EGRESS_HOLD, never, &w);
        guest_send_range(&w, 1, 100);
        for (guint64 epoch = 1; epoch < 20; epoch++) {
            proxy_mark(w.proxy, epoch, never, &w);
            proxy_release(w.proxy, epoch, 1, never, &w);
        }
        proxy_announce(w.proxy);
        /* Sometimes the replies are already waiting. */
        for (int64_t end_ns = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;
             round % 2 && world_stats(&w).held_frames + world_stats(&w).dropped_frames < 100;) {
            ck_assert_int_lt(clock_now_ns(), end_ns);
            g_usleep(100);
        }
        g_clear_pointer(&w.proxy, proxy_free);
        while (g_main_context_iteration(NULL, FALSE))
            ;
        world_clear(&w);
    }
}
END_TEST

static void
free_it(Proxy *proxy, gpointer world)
{
    World *w = world;

    proxy_free(proxy);
    w->proxy = NULL;
    w->n_done++;
}

START_TEST(life_free_from_within_a_callback)
{
    World w;

    world_init(&w, PROXY_PORT_TAP, MIB);
    proxy_set_egress(w.proxy, PROXY_EGRESS_OPEN, free_it, &w);
    proxy_mark(w.proxy, 1, never, &w);
    world_until(&w.n_done, 1);
    while (g_main_context_iteration(NULL, FALSE))
        ;
    world_clear(&w);
}
END_TEST

/* Until there are @enough, or the time is over. */
static unsigned
count_announcements(World *w, uint16_t type, unsigned enough, unsigned ms)
{
    const int64_t until_ns = clock_now_ns() + ms * NS_PER_MS;
    uint8_t frame[2000];
    unsigned n = 0;

    while (n < enough && clock_now_ns() < until_ns) {
        ssize_t len = read(w->client_fd, frame, sizeof(frame));

        if (len > WORLD_TAP_HEADER + 14 && be16_load(frame + WORLD_TAP_HEADER + 12) == type)
            n++;
        else if (len < 0)
            g_usleep(1000);
    }
    return n;
}

/* The last of four comes 300 ms after the one before, 500 ms after the first; what shows that no
 * more comes lasts longer than that. */
START_TEST(unit_announces_four_times_and_never_while_dropping)
{
    enum { PAUSE_MS = 350, ALL_MS = 600, NONE = 1000 };
    World w;
    ProxyAddress address = {.bytes = {10, 77, 0, 2}}, got[PROXY_MAX_ADDRESSES];

    world_init(&w, PROXY_PORT_TAP, MIB);
    proxy_add_address(w.proxy, &address);
    ck_assert_uint_eq(proxy_get_addresses(w.proxy, got), 1);
    ck_assert_mem_eq(got[0].bytes, address.bytes, 4);
    proxy_announce(w.proxy);
    world_mark(&w, 1);
    ck_assert_uint_eq(count_announcements(&w, 0x0806, NONE, 20), 0);

    world_egress(&w, PROXY_EGRESS_HOLD);
    proxy_announce(w.proxy);
    ck_assert_uint_eq(count_announcements(&w, 0x0806, 4, WORLD_DEADLINE_MS), 4);
    ck_assert_uint_eq(count_announcements(&w, 0x0806, NONE, PAUSE_MS), 0);

    /* A host that is fenced meanwhile falls silent at once. */
    proxy_announce(w.proxy);
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_uint_le(count_announcements(&w, 0x8035, NONE, ALL_MS), 1);
    world_clear(&w);
}
END_TEST

START_TEST(unit_addresses_are_learned_while_dropping_too)
{
    World w;
    ProxyAddress got[PROXY_MAX_ADDRESSES];
    uint8_t arp[WORLD_TAP_HEADER + 60] = {0};
    uint8_t *f = arp + WORLD_TAP_HEADER;

    world_init(&w, PROXY_PORT_TAP, MIB);
    memcpy(f, (uint8_t[]){0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34,
                          0x56, 8,    6,    0,    1,    8,    0,    6,    4, 0,    1,
                          0x52, 0x54, 0,    0x12, 0x34, 0x56, 10,   77,   0, 9},
           32);
    ck_assert_int_eq(write(w.guest_fd, arp, sizeof(arp)), sizeof(arp));
    world_egress(&w, PROXY_EGRESS_DROP);
    ck_assert_uint_eq(proxy_get_addresses(w.proxy, got), 1);
    ck_assert_mem_eq(got[0].bytes, ((uint8_t[]){10, 77, 0, 9}), 4);
    world_clear(&w);
}
END_TEST

int
main(void)
{
    const TTest *const tests[] = {
        err_qemu_gone_is_told_once_after_its_last_frames,
        err_lan_tap_or_bridge_deleted,
        life_adoption_after_the_first_proxy_is_gone,
        err_setup_errors_name_the_cause,
        life_free_with_commands_pending,
        life_free_from_within_a_callback,
        unit_announces_four_times_and_never_while_dropping,
        unit_addresses_are_learned_while_dropping_too,
    };

    return check_run("proxy-life", tests, G_N_ELEMENTS(tests));
}
