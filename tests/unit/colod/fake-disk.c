/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-disk.c - disks without processes */
#include "fake-disk.h"

#include <check.h>

typedef struct Operation {
    DiskDoneFunc done;
    gpointer user_data;
} Operation;

struct Disk {
    FakeDisk fake; /* first: what the test sees of it */
    char *name;
    const DiskHandlers *handlers;
    gpointer user_data;
    GQueue open; /* Operation */
};

static GString *asked;

G_DEFINE_QUARK(colod_disk_error_quark, disk_error)

/* ---- the test's side ---- */

FakeDisk *
fake_disk(Disk *disk)
{
    return &disk->fake;
}

char *
fake_disk_take_asked(void)
{
    return asked ? g_string_free(g_steal_pointer(&asked), FALSE) : g_strdup("");
}

void
fake_disk_end(Disk *disk, const char *problem)
{
    g_autofree Operation *operation = g_queue_pop_head(&disk->open);
    g_autoptr(GError) error =
        problem ? g_error_new_literal(DISK_ERROR, DISK_ERROR_FAILED, problem) : NULL;

    ck_assert_msg(operation != NULL, "%s was asked for nothing", disk->name);
    operation->done(disk, error, operation->user_data);
}

unsigned
fake_disk_n_open(const Disk *disk)
{
    return disk->open.length;
}

void
fake_disk_fault(Disk *disk, const char *name, const char *text)
{
    disk->handlers->fault(disk, name, text, disk->user_data);
}

void
fake_disk_synced(Disk *disk)
{
    disk->handlers->synced(disk, disk->user_data);
}

void
fake_disk_high_water(Disk *disk)
{
    disk->handlers->high_water(disk, disk->user_data);
}

void
fake_disk_committed(Disk *disk)
{
    disk->handlers->committed(disk, disk->user_data);
}

/* ---- the daemon's side ---- */

static void G_GNUC_PRINTF(4, 5)
    ask(Disk *disk, DiskDoneFunc done, gpointer user_data, const char *format, ...)
{
    va_list args;

    if (asked == NULL)
        asked = g_string_new(NULL);
    g_string_append_printf(asked, "%s%s ", asked->len > 0 ? ", " : "", disk->name);
    va_start(args, format);
    g_string_append_vprintf(asked, format, args);
    va_end(args);
    if (done != NULL) {
        Operation *operation = g_new0(Operation, 1);

        operation->done = done;
        operation->user_data = user_data;
        g_queue_push_tail(&disk->open, operation);
    }
}

Disk *
disk_new(const DiskConfig *config, const DiskHandlers *handlers, gpointer user_data)
{
    Disk *disk = g_new0(Disk, 1);

    disk->fake.sync_percent = -1;
    disk->fake.standing = (DiskStanding){.exists = TRUE, .up_to_date = TRUE};
    disk->name = g_strdup(config->name);
    disk->handlers = handlers;
    disk->user_data = user_data;
    g_queue_init(&disk->open);
    return disk;
}

void
disk_free(Disk *disk)
{
    g_queue_clear_full(&disk->open, g_free);
    g_free(disk->name);
    g_free(disk);
}

void
disk_standing(Disk *disk, DiskStanding *ret_standing)
{
    *ret_standing = disk->fake.standing;
    ret_standing->reason = g_strdup(disk->fake.standing.reason);
}

void
disk_standing_clear(DiskStanding *standing)
{
    g_clear_pointer(&standing->reason, g_free);
}

void
disk_start(Disk *disk, DiskRole role, uint64_t generation, gboolean first, DiskDoneFunc done,
           gpointer user_data)
{
    ask(disk, done, user_data, "start %s %d%s", role == DISK_PRIMARY ? "primary" : "secondary",
        (int)generation, first ? " first" : "");
}

void
disk_adopt(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "adopt");
}

void
disk_stop(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "stop");
}

void
disk_add_arguments(const Disk *disk, DiskRole role, GPtrArray *argv)
{
    g_ptr_array_add(
        argv, g_strdup_printf("%s-%s", disk->name, role == DISK_PRIMARY ? "primary" : "secondary"));
}

void
disk_connect(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "connect %d", (int)generation);
}

void
disk_settle(Disk *disk, QmpClient *qmp G_GNUC_UNUSED)
{
    ask(disk, NULL, NULL, "settle");
}

void
disk_finish(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "finish");
}

void
disk_barrier(Disk *disk, uint64_t epoch, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "barrier %d", (int)epoch);
}

void
disk_release(Disk *disk, uint64_t epoch)
{
    ask(disk, NULL, NULL, "release %d", (int)epoch);
}

void
disk_alone(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "alone %d", (int)generation);
}

void
disk_verify(Disk *disk, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "verify");
}

void
disk_mirror(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "mirror %d", (int)generation);
}

void
disk_checkpoint(Disk *disk, uint64_t epoch, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "checkpoint %d", (int)epoch);
}

void
disk_failover(Disk *disk, uint64_t generation, DiskDoneFunc done, gpointer user_data)
{
    ask(disk, done, user_data, "failover %d", (int)generation);
}

void
disk_move_local(Disk *disk, QmpClient *qmp G_GNUC_UNUSED, uint64_t generation, DiskDoneFunc done,
                gpointer user_data)
{
    ask(disk, done, user_data, "move %d", (int)generation);
}

json_object *
disk_status(const Disk *disk)
{
    json_object *status = json_object_new_object(), *target = NULL;

    json_object_object_add(status, "name", json_object_new_string(disk->name));
    if (disk->fake.target_mode != NULL) {
        target = json_object_new_object();
        json_object_object_add(target, "mode", json_object_new_string(disk->fake.target_mode));
    }
    json_object_object_add(status, "target", target);
    return status;
}

int
disk_sync_percent(const Disk *disk)
{
    return disk->fake.sync_percent;
}

const char *
disk_name(const Disk *disk)
{
    return disk->name;
}
