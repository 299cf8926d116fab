/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-daemon-disk-failover.c - what disks are asked for when the pair ends: failover, alone, the
 * move to the local image, and what a new colod finds
 */
#include "daemon-disk-rig.h"

#include "check-main.h"

enum { RETRY_MS = 1000, TRIES = 5, MOVE_RETRY_MS = 2000 }; /* as in daemon-disk.c */

/* A secondary that has won the claim. */
static Rig *
taking_over(unsigned n_disks)
{
    Rig *rig = rig_new(n_disks, PAIR_CLAIM_SECONDARY);

    daemon_event(&rig->daemon, PAIR_EVENT_CLAIM_GRANTED);
    ASSERT_TOLD(rig, "claim-granted > taking-over leave-colo");
    return rig;
}

/* ---- failover ---- */

START_TEST(unit_output_waits_for_the_failover_and_for_qemu)
{
    for (int disks_first = 0; disks_first < 2; disks_first++) {
        g_autoptr(Rig) rig = taking_over(2);
        Daemon *d = &rig->daemon;

        ASSERT_ASKED("disk0 failover 4, disk1 failover 4");
        ck_assert(!daemon_disks_settled(d));
        ck_assert(!daemon_disks_leaving(d));
        if (!disks_first) {
            daemon_disks_vm_left(d);
            ck_assert(daemon_disks_leaving(d)); /* what the state still waits for */
        }
        fake_disk_end(rig_disk(rig, 0), NULL);
        ASSERT_TOLD(rig, "");
        fake_disk_end(rig_disk(rig, 1), NULL);
        if (disks_first) {
            ASSERT_TOLD(rig, "");
            daemon_disks_vm_left(d);
        }
        ASSERT_TOLD(rig, "vm-running > alone open-output announce");
        ck_assert(!daemon_disks_leaving(d));
    }
}
END_TEST

START_TEST(unit_without_disks_only_qemu_is_waited_for)
{
    g_autoptr(Rig) rig = taking_over(0);

    ASSERT_TOLD(rig, "");
    daemon_disks_vm_left(&rig->daemon);
    ASSERT_TOLD(rig, "vm-running > alone open-output announce");
}
END_TEST

START_TEST(err_failover_is_ordered_again)
{
    g_autoptr(Rig) rig = taking_over(2);
    Daemon *d = &rig->daemon;

    daemon_disks_vm_left(d);
    ASSERT_ASKED("disk0 failover 4, disk1 failover 4");
    rig_end_all(rig, "disk0: the target does not run");
    ck_assert_str_eq(d->detail, "disk disk0: the target does not run");
    ASSERT_TOLD(rig, "");
    ASSERT_ASKED("");
    rig_fire_timer(rig, RETRY_MS);
    ASSERT_ASKED("disk0 failover 4, disk1 failover 4");
    rig_end_all(rig, NULL);
    ASSERT_TOLD(rig, "vm-running > alone open-output announce");
    ck_assert_ptr_null(d->disks->failover_timer);
}
END_TEST

START_TEST(err_failover_that_waiting_does_not_help)
{
    g_autoptr(Rig) rig = taking_over(1);

    daemon_disks_vm_left(&rig->daemon);
    for (int i = 1; i < TRIES; i++) {
        rig_end_all(rig, "disk0: the target does not run");
        ASSERT_TOLD(rig, "");
        rig_fire_timer(rig, RETRY_MS);
    }
    rig_end_all(rig, "disk0: the target does not run");
    ASSERT_TOLD(rig, "disk-fault > stopping drop-output kill-vm");
    ck_assert_ptr_null(rig->daemon.disks->failover_timer);
}
END_TEST

START_TEST(err_a_full_file_system_may_be_made_room_in)
{
    g_autoptr(Rig) rig = taking_over(1);

    daemon_disks_vm_left(&rig->daemon);
    for (int i = 0; i < 4 * TRIES; i++) {
        rig_end_all(rig, "failover-commit: disk0: No space left on device");
        ASSERT_TOLD(rig, "");
        rig_fire_timer(rig, RETRY_MS);
    }
    rig_end_all(rig, NULL);
    ASSERT_TOLD(rig, "vm-running > alone open-output announce");
}
END_TEST

START_TEST(life_failover_is_not_ordered_in_another_state)
{
    g_autoptr(Rig) rig = taking_over(1);
    Daemon *d = &rig->daemon;

    rig_end_all(rig, "disk0: no");
    ck_assert_ptr_nonnull(d->disks->failover_timer);
    rig_enter(rig, PAIR_STOPPING);
    ck_assert_ptr_null(d->disks->failover_timer);
    ck_assert(g_source_is_destroyed(rig->timer));
}
END_TEST

START_TEST(life_failover_tries_are_counted_anew)
{
    g_autoptr(Rig) rig = taking_over(1);
    Daemon *d = &rig->daemon;

    for (int i = 1; i < TRIES; i++) {
        rig_end_all(rig, "disk0: no");
        rig_fire_timer(rig, RETRY_MS);
    }
    rig_enter(rig, PAIR_CLAIM_SECONDARY);
    fake_disk_end(rig_disk(rig, 0), "disk0: late"); /* void */
    daemon_event(d, PAIR_EVENT_CLAIM_GRANTED);
    ASSERT_TOLD(rig, "claim-granted > taking-over leave-colo");
    rig_end_all(rig, "disk0: no");
    ASSERT_TOLD(rig, "");
    rig_fire_timer(rig, RETRY_MS);
}
END_TEST

/* ---- a primary without its secondary ---- */

START_TEST(unit_resuming_goes_on_alone)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_SYNCING);
    Daemon *d = &rig->daemon;

    daemon_disks_connect(d);
    rig_end_all(rig, NULL);
    rig_enter(rig, PAIR_CLAIM_PRIMARY);
    daemon_event(d, PAIR_EVENT_CLAIM_GRANTED);
    ASSERT_ASKED("disk0 connect 4, disk1 connect 4, disk0 alone 4, disk1 alone 4");
    daemon_disks_vm_left(d);
    ASSERT_TOLD(rig, "claim-granted > resuming leave-colo");
    rig_end_all(rig, NULL);
    ASSERT_TOLD(rig, "vm-running > alone open-output");
    ASSERT_ASKED(""); /* they know */
    ck_assert(daemon_disks_settled(d));
}
END_TEST

START_TEST(err_resuming_is_not_held_up)
{
    g_autoptr(Rig) rig = rig_new(1, PAIR_CLAIM_PRIMARY);
    Daemon *d = &rig->daemon;

    daemon_event(d, PAIR_EVENT_CLAIM_GRANTED);
    daemon_disks_vm_left(d);
    rig_end_all(rig, "disk0: metadata: No space left on device");
    ASSERT_TOLD(rig, "claim-granted > resuming leave-colo, vm-running > alone open-output");
    ASSERT_WARNED(rig, "going on alone: disk0: metadata: No space left on device\n");
}
END_TEST

START_TEST(unit_proving_leaves_the_disks_alone)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_PROVING);
    Daemon *d = &rig->daemon;

    daemon_disks_leave(d);
    ASSERT_ASKED(""); /* the claim is not won yet */
    daemon_disks_vm_left(d);
    ASSERT_TOLD(rig, "vm-running > claim-secondary claim");
    daemon_event(d, PAIR_EVENT_CLAIM_GRANTED);
    ASSERT_TOLD(rig, "claim-granted > taking-over leave-colo");
    ASSERT_ASKED("disk0 failover 4, disk1 failover 4");
    fake_disk_end(rig_disk(rig, 0), NULL);
    fake_disk_end(rig_disk(rig, 1), NULL);
    ASSERT_TOLD(rig, ""); /* QEMU leaves anew */
}
END_TEST

/* ---- to the local image ---- */

/* Alone after a failover; nothing is committed. */
static Rig *
taken_over(unsigned n_disks)
{
    static struct Vm vm;
    Rig *rig = taking_over(n_disks);

    rig->daemon.vm = &vm;
    daemon_disks_vm_left(&rig->daemon);
    rig_end_all(rig, NULL);
    ASSERT_TOLD(rig, "vm-running > alone open-output announce");
    g_free(fake_disk_take_asked());
    return rig;
}

START_TEST(unit_a_committed_disk_moves)
{
    g_autoptr(Rig) rig = taken_over(2);
    Daemon *d = &rig->daemon;

    ASSERT_ASKED("");
    fake_disk_committed(rig_disk(rig, 1));
    ASSERT_ASKED("disk1 move 4");
    daemon_disks_move(d);
    ASSERT_ASKED(""); /* it is at it */
    fake_disk_end(rig_disk(rig, 1), NULL);
    ck_assert(!daemon_disks_settled(d));
    ASSERT_TOLD(rig, "");
    fake_disk_committed(rig_disk(rig, 0));
    fake_disk_end(rig_disk(rig, 0), NULL);
    ck_assert(daemon_disks_settled(d));
    ASSERT_TOLD(rig, "retry"); /* the next protection waited for that */
    ASSERT_ASKED("disk0 move 4");
    daemon_disks_move(d);
    ASSERT_ASKED("");
}
END_TEST

START_TEST(unit_committed_before_the_guest_runs)
{
    static struct Vm vm;
    g_autoptr(Rig) rig = taking_over(1);
    Daemon *d = &rig->daemon;

    d->vm = &vm;
    g_free(fake_disk_take_asked());
    rig_end_all(rig, NULL);
    fake_disk_committed(rig_disk(rig, 0));
    ASSERT_ASKED(""); /* not in TAKING_OVER */
    daemon_disks_vm_left(d);
    ASSERT_ASKED("disk0 move 4");
    ASSERT_TOLD(rig, "vm-running > alone open-output announce");
}
END_TEST

START_TEST(err_move_is_tried_again)
{
    g_autoptr(Rig) rig = taken_over(2);
    Daemon *d = &rig->daemon;

    fake_disk_committed(rig_disk(rig, 0));
    fake_disk_committed(rig_disk(rig, 1));
    ASSERT_ASKED("disk0 move 4, disk1 move 4");
    fake_disk_end(rig_disk(rig, 0), "disk0: QEMU: busy");
    fake_disk_end(rig_disk(rig, 1), "disk1: QEMU: busy");
    ASSERT_ASKED("");
    ck_assert(!daemon_disks_settled(d));
    rig_fire_timer(rig, MOVE_RETRY_MS); /* one for both */
    ASSERT_ASKED("disk0 move 4, disk1 move 4");
    rig_end_all(rig, NULL);
    ck_assert(daemon_disks_settled(d));
    ASSERT_WARNED(rig, "moving to the local image: disk0: QEMU: busy\n"
                       "moving to the local image: disk1: QEMU: busy\n");
}
END_TEST

START_TEST(life_the_vm_ends_while_a_disk_moves)
{
    g_autoptr(Rig) rig = taken_over(1);
    Daemon *d = &rig->daemon;

    fake_disk_committed(rig_disk(rig, 0));
    d->vm = NULL;
    rig_enter(rig, PAIR_IDLE);
    daemon_disks_stop(d);
    ASSERT_ASKED("disk0 move 4, disk0 stop");
    fake_disk_end(rig_disk(rig, 0), "disk0: QEMU: gone"); /* the move */
    ck_assert_ptr_null(d->disks->move_timer);
    fake_disk_end(rig_disk(rig, 0), NULL);
    ck_assert(daemon_disks_settled(d));
    ASSERT_TOLD(rig, "");
}
END_TEST

START_TEST(life_stop_ends_the_timer_of_a_move)
{
    g_autoptr(Rig) rig = taken_over(1);
    Daemon *d = &rig->daemon;

    fake_disk_committed(rig_disk(rig, 0));
    fake_disk_end(rig_disk(rig, 0), "disk0: QEMU: busy");
    ck_assert_ptr_nonnull(d->disks->move_timer);
    daemon_disks_stop(d);
    ck_assert_ptr_null(d->disks->move_timer);
    ck_assert(g_source_is_destroyed(rig->timer));
}
END_TEST

/* ---- a new colod finds QEMU running ---- */

START_TEST(unit_adopt)
{
    g_autoptr(Rig) rig = rig_new(2, PAIR_ADOPTING);
    Daemon *d = &rig->daemon;

    d->facts.role_primary = TRUE;
    fake_disk(rig_disk(rig, 1))->target_mode = "committing";
    daemon_disks_adopt(d);
    ASSERT_ASKED("disk0 adopt, disk1 adopt");
    rig_end_all(rig, NULL);
    ASSERT_ASKED(""); /* that failover is under way */
    ASSERT_TOLD(rig, "adopted");
    ck_assert(d->disks->slots[1].away && !d->disks->slots[0].away);
}
END_TEST

START_TEST(unit_adopt_orders_the_failover_of_a_claim_that_was_won)
{
    g_autoptr(Rig) rig = rig_new(3, PAIR_ADOPTING);
    Daemon *d = &rig->daemon;

    d->facts.role_primary = TRUE;
    fake_disk(rig_disk(rig, 0))->target_mode = "committing";
    fake_disk(rig_disk(rig, 1))->target_mode = "mirroring";
    fake_disk(rig_disk(rig, 2))->target_mode = "mirroring";
    daemon_disks_adopt(d);
    ASSERT_ASKED("disk0 adopt, disk1 adopt, disk2 adopt");
    rig_end_all(rig, NULL);
    ASSERT_ASKED("disk1 failover 4, disk2 failover 4");
    fake_disk_end(rig_disk(rig, 2), NULL);
    ASSERT_TOLD(rig, "");
    fake_disk_end(rig_disk(rig, 1), NULL);
    ASSERT_TOLD(rig, "adopted");
}
END_TEST

START_TEST(err_adopt)
{
    static const struct {
        gboolean role_primary;
        const char *adopt_problem, *failover_problem, *told;
    } rows[] = {
        {FALSE, NULL, NULL, "adopted"}, /* a secondary's: it stays one */
        {TRUE, "disk0: gone", NULL, "adopted: disk0: gone"},
        {TRUE, NULL, "disk0: full", "adopted: disk0: full"},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(Rig) rig = rig_new(1, PAIR_ADOPTING);

        rig->daemon.facts.role_primary = rows[i].role_primary;
        fake_disk(rig_disk(rig, 0))->target_mode = "mirroring";
        daemon_disks_adopt(&rig->daemon);
        rig_end_all(rig, rows[i].adopt_problem);
        ck_assert_uint_eq(fake_disk_n_open(rig_disk(rig, 0)), rows[i].failover_problem != NULL);
        if (rows[i].failover_problem != NULL)
            rig_end_all(rig, rows[i].failover_problem);
        ASSERT_TOLD(rig, rows[i].told);
    }
}
END_TEST

CHECK_MAIN("daemon-disk-failover", unit_output_waits_for_the_failover_and_for_qemu,
           unit_without_disks_only_qemu_is_waited_for, err_failover_is_ordered_again,
           err_failover_that_waiting_does_not_help, err_a_full_file_system_may_be_made_room_in,
           life_failover_is_not_ordered_in_another_state, life_failover_tries_are_counted_anew,
           unit_resuming_goes_on_alone, err_resuming_is_not_held_up,
           unit_proving_leaves_the_disks_alone, unit_a_committed_disk_moves,
           unit_committed_before_the_guest_runs, err_move_is_tried_again,
           life_the_vm_ends_while_a_disk_moves, life_stop_ends_the_timer_of_a_move, unit_adopt,
           unit_adopt_orders_the_failover_of_a_claim_that_was_won, err_adopt)
