/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-daemon-status.c - the one reason that a host gives for not being protected */
#include "daemon-disk-rig.h"

#include "check-main.h"

/* Not of a reason's business. */

gboolean
daemon_is_lockstep(G_GNUC_UNUSED const Daemon *d)
{
    return FALSE;
}

GateStep
gate_step(G_GNUC_UNUSED const Gate *gate)
{
    g_assert_not_reached();
}

const char *
gate_step_name(G_GNUC_UNUSED GateStep step)
{
    g_assert_not_reached();
}

gint64
vm_pid(G_GNUC_UNUSED const Vm *vm)
{
    g_assert_not_reached();
}

#define ASSERT_REASON(rig, expected)                                                               \
    do {                                                                                           \
        g_autofree char *reason = daemon_reason(&(rig)->daemon);                                   \
        ck_assert_str_eq(reason, expected);                                                        \
    } while (0)

static Rig *
alone(void)
{
    Rig *rig = rig_new(1, PAIR_ALONE);

    rig->config.peer_host = (char *)"host-b";
    rig->daemon.facts.wants_protection = TRUE;
    rig->daemon.facts.peer_up = FALSE;
    rig->daemon.selftest_done = rig->daemon.selftest_ok = TRUE;
    return rig;
}

START_TEST(unit_peer_is_away)
{
    g_autoptr(Rig) rig = alone();

    ASSERT_REASON(rig, "need secondary: host host-b is not connected");
    rig->daemon.state = PAIR_IDLE;
    ASSERT_REASON(rig, "VM not running: waiting for host host-b");
}
END_TEST

/* With a clock that is wrong two hosts may be up and yet never connect: that is why. */
START_TEST(unit_dates_of_the_peers_certificate)
{
    g_autoptr(Rig) rig = alone();

    rig->daemon.peer_dates = (char *)"not valid before tomorrow";
    ASSERT_REASON(rig, "need secondary: host host-b is not connected: not valid before tomorrow");
    rig->daemon.state = PAIR_IDLE;
    ASSERT_REASON(rig, "VM not running: waiting for host host-b: not valid before tomorrow");
    rig->daemon.facts.peer_up = TRUE;
    rig->daemon.state = PAIR_ALONE;
    ASSERT_REASON(rig, "need secondary: host host-b is boot");
}
END_TEST

START_TEST(unit_protected_needs_no_reason)
{
    g_autoptr(Rig) rig = rig_new(1, PAIR_PROTECTED);

    ASSERT_REASON(rig, "");
    rig->daemon.state = PAIR_STANDBY;
    ASSERT_REASON(rig, "");
}
END_TEST

CHECK_MAIN("daemon-status", unit_peer_is_away, unit_dates_of_the_peers_certificate,
           unit_protected_needs_no_reason)
