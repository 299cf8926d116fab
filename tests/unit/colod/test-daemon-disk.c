/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-daemon-disk.c - what disks are asked for at each step of the pair's life, and what their
 * answers and faults do to its protection
 */
#include "daemon-disk-rig.h"

#include "check-main.h"

#include <string.h>

/* ---- start and stop ---- */

START_TEST(unit_start_ends_with_the_last_disk)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_STARTING);
    Daemon *d = &rig->daemon;

    daemon_disks_start(d, FALSE);
    ASSERT_ASKED("disk0 start primary 4 first, disk1 start primary 4 first");
    ck_assert(daemon_disks_busy(d));
    fake_disk_end(rig_disk(rig, 1), NULL);
    ASSERT_TOLD(rig, "");
    fake_disk_end(rig_disk(rig, 0), NULL);
    ASSERT_TOLD(rig, "started");
    ck_assert(!daemon_disks_busy(d));

    daemon_disks_start(d, TRUE);
    ASSERT_ASKED("disk0 start secondary 4 first, disk1 start secondary 4 first");
    rig_end_all(rig, NULL);
    ASSERT_TOLD(rig, "started");
}
END_TEST

START_TEST(unit_a_vm_without_disks_waits_for_none)
{
    g_autoptr(Rig) rig = rig_new(0, PAIR_STARTING);
    struct Gate gate = {.at = GATE_POINT_COMMIT, .stands = TRUE};
    Daemon *d = &rig->daemon;

    ck_assert(!d->facts.has_disks);
    daemon_disks_start(d, FALSE);
    daemon_disks_adopt(d);
    ASSERT_TOLD(rig, "started, adopted");
    d->gate = &gate;
    daemon_disks_at_point(d, GATE_POINT_COMMIT, RIG_EPOCH);
    ck_assert_uint_eq(gate.n_passed, 0); /* the proxy's part */
    daemon_disks_proxy_ready(d);
    ck_assert_uint_eq(gate.n_passed, 1);
    daemon_disks_stop(d);
    ck_assert(!daemon_disks_busy(d));
    ck_assert(daemon_disks_whole(d) && daemon_disks_settled(d));
    ASSERT_ASKED("");
}
END_TEST

START_TEST(err_start_tells_the_first_problem)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_STARTING);

    daemon_disks_start(&rig->daemon, FALSE);
    fake_disk_end(rig_disk(rig, 0), "disk0: no file");
    ASSERT_TOLD(rig, ""); /* the other one is still at it */
    fake_disk_end(rig_disk(rig, 1), "disk1: no file either");
    ASSERT_TOLD(rig, "started: disk0: no file");
}
END_TEST

START_TEST(life_an_answer_to_an_older_state_is_void)
{
    g_autoptr(Rig) rig = rig_new(1, PAIR_STARTING);

    daemon_disks_start(&rig->daemon, FALSE);
    rig_enter(rig, PAIR_STOPPING); /* it missed the state's deadline */
    fake_disk_end(rig_disk(rig, 0), "disk0: not done in time");
    ASSERT_TOLD(rig, "");
    ASSERT_WARNED(rig, "disk0: not done in time\n");
    ck_assert(!daemon_disks_busy(&rig->daemon));
}
END_TEST

START_TEST(life_stop_keeps_a_shut_down_waiting)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_IDLE);

    daemon_disks_stop(&rig->daemon);
    ASSERT_ASKED("disk0 stop, disk1 stop");
    fake_disk_end(rig_disk(rig, 0), "disk0: it does not end");
    ck_assert(daemon_disks_busy(&rig->daemon));
    ck_assert_uint_eq(rig->n_finish_shut_down, 0);
    fake_disk_end(rig_disk(rig, 1), NULL);
    ck_assert(!daemon_disks_busy(&rig->daemon));
    ck_assert_uint_eq(rig->n_finish_shut_down, 1);
    ASSERT_WARNED(rig, "disk0: it does not end\n");
}
END_TEST

START_TEST(life_freed_while_disks_work)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_PROTECTED);
    ControlRequest request = {0};

    daemon_disks_verify(&rig->daemon, &request);
    daemon_disks_stop(&rig->daemon);
    ck_assert(!request.returned);
    daemon_disks_free(&rig->daemon);
    ck_assert_str_eq(request.error_class, "failed");
    ck_assert_str_eq(request.error_text, "colod ends");
    ck_assert(!daemon_disks_busy(&rig->daemon));
    g_free(request.error_class);
    g_free(request.error_text);
}
END_TEST

START_TEST(unit_arguments_of_each_role)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_STARTING);
    g_autoptr(GPtrArray) primary = daemon_disks_arguments(&rig->daemon, FALSE);
    g_autoptr(GPtrArray) secondary = daemon_disks_arguments(&rig->daemon, TRUE);

    ck_assert_uint_eq(primary->len, 2);
    ck_assert_str_eq(primary->pdata[1], "disk1-primary");
    ck_assert_uint_eq(secondary->len, 2);
    ck_assert_str_eq(secondary->pdata[0], "disk0-secondary");
}
END_TEST

/* ---- copy ---- */

START_TEST(unit_synced_when_all_disks_are)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_PREPARING);
    Daemon *d = &rig->daemon;

    d->facts.has_disks = TRUE;
    daemon_event(d, PAIR_EVENT_PEER_PREPARED);
    ASSERT_TOLD(rig, "peer-prepared > syncing connect-disks");
    ASSERT_ASKED("disk0 connect 4, disk1 connect 4");
    rig_end_all(rig, NULL);
    fake_disk_synced(rig_disk(rig, 0));
    ASSERT_TOLD(rig, "");
    fake_disk_synced(rig_disk(rig, 1));
    ASSERT_TOLD(rig, "disks-synced > migrating start-migration");
}
END_TEST

START_TEST(unit_synced_is_asked_for_anew_at_each_connect)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_SYNCING);
    Daemon *d = &rig->daemon;

    daemon_disks_connect(d);
    rig_end_all(rig, NULL);
    fake_disk_synced(rig_disk(rig, 0));
    daemon_disks_connect(d);
    rig_end_all(rig, NULL);
    fake_disk_synced(rig_disk(rig, 1));
    ASSERT_TOLD(rig, "");
    fake_disk_synced(rig_disk(rig, 0));
    ASSERT_TOLD(rig, "disks-synced > migrating start-migration");
}
END_TEST

START_TEST(err_connect_ends_the_way_to_protection)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_SYNCING);
    Daemon *d = &rig->daemon;

    ck_assert(!d->streams_used);
    daemon_disks_connect(d);
    ck_assert(d->streams_used); /* the peer's VM has its end */
    ASSERT_ASKED("disk0 connect 4, disk1 connect 4");
    rig_end_all(rig, "disk0: refused");
    ASSERT_TOLD(rig, "disk-fault > alone send-discard retry-later");
    ck_assert_str_eq(d->detail, "disk disk0: refused");
    ASSERT_ASKED("disk0 alone 4, disk1 alone 4"); /* both forwarders, also the one that connected */
    rig_end_all(rig, NULL);
    daemon_disks_alone(d);
    ASSERT_ASKED(""); /* once */
    ASSERT_TOLD(rig, "");
}
END_TEST

START_TEST(unit_percent_is_that_of_the_slowest)
{
    g_autoptr(Rig) rig = rig_new(3, PAIR_SYNCING);

    ck_assert_int_eq(daemon_disks_sync_percent(&rig->daemon), -1);
    fake_disk(rig_disk(rig, 1))->sync_percent = 70;
    ck_assert_int_eq(daemon_disks_sync_percent(&rig->daemon), 70);
    fake_disk(rig_disk(rig, 2))->sync_percent = 0;
    ck_assert_int_eq(daemon_disks_sync_percent(&rig->daemon), 0);
}
END_TEST

/* ---- the gate's points ---- */

static const struct {
    PairState state;
    GatePoint point;
    gboolean proxy; /* has a part of its own */
    const char *asked, *on_failure;
} gate_rows[] = {
    {PAIR_MIGRATING, GATE_POINT_STATE, FALSE, "disk0 finish, disk1 finish",
     "disk-fault > resuming leave-colo send-discard retry-later"},
    {PAIR_INCOMING, GATE_POINT_STATE, FALSE, "disk0 mirror 4, disk1 mirror 4",
     "disk-fault > stopping close-gate kill-vm"},
    {PAIR_PROTECTED, GATE_POINT_MARK, TRUE, "disk0 barrier 7, disk1 barrier 7",
     "disk-fault > claim-primary claim send-discard"},
    {PAIR_STANDBY, GATE_POINT_COMMIT, TRUE, "disk0 checkpoint 7, disk1 checkpoint 7",
     "disk-fault > stopping close-gate kill-vm"},
};

START_TEST(unit_gate_passes_when_proxy_and_disks_are_through)
{
    for (gsize i = 0; i < G_N_ELEMENTS(gate_rows); i++) {
        for (int disks_first = 0; disks_first < 2; disks_first++) {
            g_autoptr(Rig) rig = rig_new(2, gate_rows[i].state);
            struct Gate gate = {.at = gate_rows[i].point, .stands = TRUE};

            rig->daemon.gate = &gate;
            daemon_disks_at_point(&rig->daemon, gate_rows[i].point, RIG_EPOCH);
            ASSERT_ASKED(gate_rows[i].asked);
            if (gate_rows[i].proxy && !disks_first)
                daemon_disks_proxy_ready(&rig->daemon);
            fake_disk_end(rig_disk(rig, 1), NULL);
            ck_assert_uint_eq(gate.n_passed, 0);
            fake_disk_end(rig_disk(rig, 0), NULL);
            if (gate_rows[i].proxy && disks_first) {
                ck_assert_uint_eq(gate.n_passed, 0);
                daemon_disks_proxy_ready(&rig->daemon);
            }
            ck_assert_uint_eq(gate.n_passed, 1);
            ASSERT_TOLD(rig, "");
        }
    }
}
END_TEST

START_TEST(err_gate_stands_and_protection_ends)
{
    for (gsize i = 0; i < G_N_ELEMENTS(gate_rows); i++) {
        g_autoptr(Rig) rig = rig_new(2, gate_rows[i].state);
        struct Gate gate = {.at = gate_rows[i].point, .stands = TRUE};

        rig->daemon.gate = &gate;
        daemon_disks_at_point(&rig->daemon, gate_rows[i].point, RIG_EPOCH);
        rig_end_all(rig, "disk0: not done in time");
        ASSERT_TOLD(rig, gate_rows[i].on_failure);
        ck_assert_str_eq(rig->daemon.detail, "disk disk0: not done in time");
        ASSERT_WARNED(rig, "disk0: not done in time\n");
        daemon_disks_proxy_ready(&rig->daemon);
        ck_assert_uint_eq(gate.n_passed, 0);
    }
}
END_TEST

START_TEST(life_an_answer_to_an_older_epoch_passes_nothing)
{
    g_autoptr(Rig) rig = rig_new(1, PAIR_PROTECTED);
    struct Gate gate = {.at = GATE_POINT_MARK, .stands = TRUE};
    Daemon *d = &rig->daemon;

    d->gate = &gate;
    daemon_disks_at_point(d, GATE_POINT_MARK, RIG_EPOCH);
    daemon_disks_at_point(d, GATE_POINT_MARK, RIG_EPOCH + 1);
    daemon_disks_proxy_ready(d);
    fake_disk_end(rig_disk(rig, 0), NULL); /* of RIG_EPOCH */
    ck_assert_uint_eq(gate.n_passed, 0);
    fake_disk_end(rig_disk(rig, 0), NULL);
    ck_assert_uint_eq(gate.n_passed, 1);
}
END_TEST

START_TEST(life_the_gate_is_gone_when_the_answer_comes)
{
    g_autoptr(Rig) rig = rig_new(1, PAIR_PROTECTED);
    struct Gate gate = {.at = GATE_POINT_MARK, .stands = TRUE};
    Daemon *d = &rig->daemon;

    d->gate = &gate;
    daemon_disks_at_point(d, GATE_POINT_MARK, RIG_EPOCH);
    daemon_disks_proxy_ready(d);
    d->gate = NULL;
    fake_disk_end(rig_disk(rig, 0), NULL);
    d->gate = &gate;
    gate.stands = FALSE; /* it has failed */
    daemon_disks_pass(d);
    ck_assert_uint_eq(gate.n_passed, 0);
    ASSERT_TOLD(rig, "");
}
END_TEST

START_TEST(unit_release_is_not_waited_for)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_PROTECTED);

    daemon_disks_release(&rig->daemon, RIG_EPOCH);
    ASSERT_ASKED("disk0 release 7, disk1 release 7");
    ck_assert(!daemon_disks_busy(&rig->daemon));
}
END_TEST

/* ---- what disks report ---- */

START_TEST(err_faults)
{
    static const struct {
        PairState state;
        const char *name, *target_mode, *told;
    } rows[] = {
        {PAIR_SYNCING, "forwarding", NULL, "disk-fault > alone send-discard retry-later"},
        {PAIR_MIGRATING, "forwarding", NULL,
         "disk-fault > resuming leave-colo send-discard retry-later"},
        {PAIR_PROTECTED, "forwarding", NULL, "disk-fault > claim-primary claim send-discard"},
        {PAIR_PROTECTED, "primary-disk", NULL, "disk-fault > claim-primary claim send-discard"},
        /* A primary that does not replicate. */
        {PAIR_ALONE, "forwarding", NULL, ""},
        {PAIR_RESUMING, "forwarding", NULL, ""},
        {PAIR_CLAIM_PRIMARY, "forwarding", NULL, ""},
        /* The target lives: SVM's view is whole, and the primary notices by itself. */
        {PAIR_STANDBY, "secondary-disk", "mirroring", ""},
        {PAIR_INCOMING, "hidden-disk", "syncing", ""},
        /* It does not. */
        {PAIR_STANDBY, "secondary-disk", NULL, "disk-fault > stopping close-gate kill-vm"},
        {PAIR_INCOMING, "secondary-disk", NULL, "disk-fault > stopping close-gate kill-vm"},
        {PAIR_CLAIM_SECONDARY, "secondary-disk", NULL, "disk-fault > stopping close-gate kill-vm"},
        /* The forwarder of a secondary has nothing to do. */
        {PAIR_STANDBY, "forwarding", NULL, ""},
        /* The failover is ordered until it is durable. */
        {PAIR_TAKING_OVER, "secondary-disk", NULL, ""},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(Rig) rig = rig_new(2, rows[i].state);
        g_autofree char *text = g_strdup_printf("%s: disk1: no space", rows[i].name);
        g_autofree char *warning = g_strdup_printf("%s: %s\n", rows[i].name, text);
        g_autofree char *told = NULL;

        fake_disk(rig_disk(rig, 1))->target_mode = rows[i].target_mode;
        fake_disk_fault(rig_disk(rig, 1), rows[i].name, text);
        told = rig_take_told(rig);
        ck_assert_msg(g_str_equal(told, rows[i].told), "row %zu: %s", i, told);
        ASSERT_WARNED(rig, warning); /* in any case */
    }
}
END_TEST

START_TEST(err_fault_is_named_once_in_the_detail)
{
    g_autoptr(Rig) named = rig_new(1, PAIR_PROTECTED), unnamed = rig_new(1, PAIR_PROTECTED);

    fake_disk_fault(rig_disk(named, 0), "forwarding", "forwarding: disk0: reset");
    ck_assert_str_eq(named->daemon.detail, "disk forwarding: disk0: reset");
    fake_disk_fault(rig_disk(unnamed, 0), "forwarding", "disk0: nbdkit was killed");
    ck_assert_str_eq(unnamed->daemon.detail, "disk disk0: nbdkit was killed (forwarding)");
}
END_TEST

START_TEST(err_a_mode_nobody_knows_is_no_target)
{
    g_autoptr(Rig) rig = rig_new(1, PAIR_STANDBY);

    fake_disk(rig_disk(rig, 0))->target_mode = "sleeping";
    ck_assert(!daemon_disks_whole(&rig->daemon));
    fake_disk_fault(rig_disk(rig, 0), "secondary-disk", "secondary-disk: x");
    ASSERT_TOLD(rig, "disk-fault > stopping close-gate kill-vm");
}
END_TEST

START_TEST(unit_high_water_asks_for_a_checkpoint)
{
    g_autoptr(Rig) primary = rig_new(1, PAIR_PROTECTED), secondary = rig_new(1, PAIR_STANDBY);
    g_autoptr(Rig) incoming = rig_new(1, PAIR_INCOMING);

    fake_disk_high_water(rig_disk(primary, 0));
    ASSERT_TOLD(primary, "checkpoint overlay");
    fake_disk_high_water(rig_disk(secondary, 0));
    ASSERT_TOLD(secondary, "send-state wants-checkpoint");
    ck_assert(!daemon_disks_want_checkpoint(&secondary->daemon)); /* that one STATE only */
    fake_disk_high_water(rig_disk(incoming, 0));
    ASSERT_TOLD(incoming, "");
}
END_TEST

START_TEST(unit_whole_when_all_targets_mirror)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_STANDBY);

    ck_assert(!daemon_disks_whole(&rig->daemon));
    fake_disk(rig_disk(rig, 0))->target_mode = "mirroring";
    fake_disk(rig_disk(rig, 1))->target_mode = "syncing";
    ck_assert(!daemon_disks_whole(&rig->daemon));
    fake_disk(rig_disk(rig, 1))->target_mode = "mirroring";
    ck_assert(daemon_disks_whole(&rig->daemon));
}
END_TEST

/* ---- who may start, verify, status ---- */

START_TEST(unit_facts_of_what_is_on_the_disks)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_IDLE);
    Daemon *d = &rig->daemon;

    fake_disk(rig_disk(rig, 0))->standing.generation = 3;
    fake_disk(rig_disk(rig, 1))->standing =
        (DiskStanding){.exists = TRUE, .never_used = TRUE, .generation = 9};
    daemon_disks_refresh_facts(d);
    ck_assert(!d->facts.disks_unfit);
    ck_assert_ptr_null(daemon_disks_unfit(d));
    ck_assert_uint_eq(d->facts.disk_generation, 3); /* what was never used says nothing */

    fake_disk(rig_disk(rig, 1))->standing =
        (DiskStanding){.exists = TRUE, .committing = TRUE, .generation = 5};
    daemon_disks_refresh_facts(d);
    ck_assert(!d->facts.disks_unfit);
    ck_assert_uint_eq(d->facts.disk_generation, 5);
}
END_TEST

START_TEST(err_disks_from_which_the_vm_must_not_start)
{
    g_autoptr(Rig) rig = rig_new(3, PAIR_IDLE);
    Daemon *d = &rig->daemon;

    fake_disk(rig_disk(rig, 1))->standing =
        (DiskStanding){.exists = FALSE, .up_to_date = TRUE, .reason = (char *)"disk1: no image"};
    fake_disk(rig_disk(rig, 2))->standing =
        (DiskStanding){.exists = TRUE, .reason = (char *)"disk2: Syncing"};
    daemon_disks_refresh_facts(d);
    ck_assert(d->facts.disks_unfit);
    ck_assert_str_eq(daemon_disks_unfit(d), "disk1: no image"); /* the first */
    fake_disk(rig_disk(rig, 1))->standing = (DiskStanding){.exists = TRUE};
    daemon_disks_refresh_facts(d);
    ck_assert_str_eq(daemon_disks_unfit(d), "disk not UpToDate");
    fake_disk(rig_disk(rig, 1))->standing.up_to_date = TRUE;
    fake_disk(rig_disk(rig, 2))->standing.up_to_date = TRUE;
    daemon_disks_refresh_facts(d);
    ck_assert(!d->facts.disks_unfit);
}
END_TEST

START_TEST(unit_verify_outlives_a_checkpoint)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_PROTECTED);
    ControlRequest request = {0};

    daemon_disks_verify(&rig->daemon, &request);
    ASSERT_ASKED("disk0 verify, disk1 verify");
    rig->daemon.disks->serial++; /* as a point of the gate does */
    fake_disk_end(rig_disk(rig, 0), NULL);
    ck_assert(!request.returned);
    fake_disk_end(rig_disk(rig, 1), NULL);
    ck_assert(request.returned);
}
END_TEST

START_TEST(err_verify)
{
    static const struct {
        unsigned n_disks;
        PairState state;
        const char *class, *text;
    } rows[] = {
        {0, PAIR_PROTECTED, "refused", "the VM has no disks"},
        {1, PAIR_STANDBY, "refused", "disks are compared by a protected primary"},
        {1, PAIR_PROTECTED, "failed", "disk0: lost"},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(Rig) rig = rig_new(rows[i].n_disks, rows[i].state);
        ControlRequest request = {0};

        daemon_disks_verify(&rig->daemon, &request);
        if (g_str_equal(rows[i].class, "failed"))
            rig_end_all(rig, rows[i].text);
        ck_assert_str_eq(request.error_class, rows[i].class);
        ck_assert_str_eq(request.error_text, rows[i].text);
        ASSERT_TOLD(rig, ""); /* the pair goes on as it was */
        g_free(request.error_class);
        g_free(request.error_text);
    }
}
END_TEST

START_TEST(unit_status)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_SYNCING);
    json_object *status;

    fake_disk(rig_disk(rig, 0))->sync_percent = 12;
    fake_disk(rig_disk(rig, 0))->standing.generation = 3;
    fake_disk(rig_disk(rig, 1))->standing =
        (DiskStanding){.exists = TRUE, .reason = (char *)"Syncing"};
    status = daemon_disks_status(&rig->daemon);
    ck_assert_str_eq(json_object_to_json_string_ext(status, JSON_C_TO_STRING_PLAIN),
                     "[{\"name\":\"disk0\",\"target\":null,"
                     "\"standing\":{\"fit\":true,\"up_to_date\":true,\"committing\":false,"
                     "\"generation\":3,\"reason\":null},\"sync_percent\":12,\"local\":true},"
                     "{\"name\":\"disk1\",\"target\":null,"
                     "\"standing\":{\"fit\":false,\"up_to_date\":false,\"committing\":false,"
                     "\"generation\":0,\"reason\":\"Syncing\"},\"local\":true}]");
    json_object_put(status);
}
END_TEST

CHECK_MAIN("daemon-disk", unit_start_ends_with_the_last_disk,
           unit_a_vm_without_disks_waits_for_none, err_start_tells_the_first_problem,
           life_an_answer_to_an_older_state_is_void, life_stop_keeps_a_shut_down_waiting,
           life_freed_while_disks_work, unit_arguments_of_each_role, unit_synced_when_all_disks_are,
           unit_synced_is_asked_for_anew_at_each_connect, err_connect_ends_the_way_to_protection,
           unit_percent_is_that_of_the_slowest, unit_gate_passes_when_proxy_and_disks_are_through,
           err_gate_stands_and_protection_ends, life_an_answer_to_an_older_epoch_passes_nothing,
           life_the_gate_is_gone_when_the_answer_comes, unit_release_is_not_waited_for, err_faults,
           err_fault_is_named_once_in_the_detail, err_a_mode_nobody_knows_is_no_target,
           unit_high_water_asks_for_a_checkpoint, unit_whole_when_all_targets_mirror,
           unit_facts_of_what_is_on_the_disks, err_disks_from_which_the_vm_must_not_start,
           unit_verify_outlives_a_checkpoint, err_verify, unit_status)
