/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* daemon-disk-life.c - the disks of the configuration, what is on them, and what is shown of them
 */
#include "daemon-disk-private.h"

enum { MIB_SHIFT = 20 };

/* ---- life ---- */

/* Beside a colod that runs from its build folder are the plugins of the same build. */
static char *
find_plugin_dir(void)
{
    g_autofree char *program = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = program ? g_path_get_dirname(program) : g_strdup(".");
    g_autofree char *beside = g_build_filename(dir, "..", "blockrep", NULL);
    g_autofree char *plugin = g_build_filename(beside, "nbdkit-colo-forward-plugin.so", NULL);

    return g_file_test(plugin, G_FILE_TEST_EXISTS) ? g_canonicalize_filename(beside, NULL) : NULL;
}

static Disk *
make_disk(Daemon *d, const ConfigDisk *config)
{
    const Config *c = d->config;
    const DiskConfig disk = {
        .name = config->name,
        .image = config->image,
        .device = config->device,
        .cache = config->cache,
        .run_dir = d->run_dir,
        .state_dir = d->disks->state_dir,
        .overlay_dir = config->overlay_dir,
        .overlays_in_memory = g_str_equal(config->overlay, "memory"),
        .nbdkit = d->disks->nbdkit,
        .plugin_dir = d->disks->plugin_dir,
        .listen_address = c->listen_address,
        .listen_port = (uint16_t)config->port,
        .peer_host = c->disk_host,
        .tls_ca = c->tls_ca,
        .tls_cert = c->tls_cert,
        .tls_key = c->tls_key,
        .overlay_limit_bytes = (uint64_t)config->overlay_limit_mib << MIB_SHIFT,
        .window_limit_bytes = (uint64_t)config->window_mib << MIB_SHIFT,
        .sync_rate_bytes_s = (uint64_t)config->sync_rate_mib << MIB_SHIFT,
        .timeout_ms = c->message_timeout_ms,
    };

    return disk_new(&disk, &daemon_disk_handlers, d);
}

void
daemon_disks_init(Daemon *d)
{
    Disks *disks = d->disks = g_new0(Disks, 1);

    disks->serial = ANY_SERIAL + 1;
    g_queue_init(&disks->groups);
    g_queue_init(&disks->verify_requests);
    disks->state_dir = g_path_get_dirname(d->state_path);
    disks->nbdkit = g_find_program_in_path("nbdkit");
    if (disks->nbdkit == NULL)
        disks->nbdkit = g_strdup("nbdkit");
    disks->plugin_dir = find_plugin_dir();
    for (unsigned i = 0; i < d->config->n_disks; i++)
        disks->slots[disks->n++].disk = make_disk(d, &d->config->disks[i]);
    d->facts.has_disks = disks->n > 0;
}

void
daemon_disks_free(Daemon *d)
{
    Disks *disks = g_steal_pointer(&d->disks);

    ControlRequest *request;

    if (disks == NULL)
        return;
    while ((request = g_queue_pop_head(&disks->verify_requests)) != NULL)
        control_request_fail(request, "failed", "colod ends");
    for (unsigned i = 0; i < disks->n; i++)
        disk_free(disks->slots[i].disk);
    g_queue_clear_full(&disks->groups, daemon_disk_group_free);
    daemon_clear_source(&disks->move_timer);
    daemon_clear_source(&disks->failover_timer);
    g_free(disks->state_dir);
    g_free(disks->nbdkit);
    g_free(disks->plugin_dir);
    g_free(disks->unfit);
    g_free(disks->problem);
    g_free(disks);
}

/* ---- who may start the VM ---- */

void
daemon_disks_refresh_facts(Daemon *d)
{
    guint64 generation = 0;

    g_clear_pointer(&d->disks->unfit, g_free);
    for (unsigned i = 0; i < d->disks->n; i++) {
        DiskStanding standing;

        disk_standing(d->disks->slots[i].disk, &standing);
        if (!(standing.exists &&
              (standing.up_to_date || standing.committing || standing.never_used)) &&
            d->disks->unfit == NULL)
            d->disks->unfit = g_strdup(standing.reason ? standing.reason : "disk not UpToDate");
        if (!standing.never_used)
            generation = MAX(generation, standing.generation);
        disk_standing_clear(&standing);
    }
    d->facts.disks_unfit = d->disks->unfit != NULL;
    d->facts.disk_generation = generation;
}

const char *
daemon_disks_unfit(const Daemon *d)
{
    return d->disks->unfit;
}

/* The detail is what failed last, and a fault here makes the peer's link fail next. */
void
daemon_disks_set_problem(Daemon *d, const char *text)
{
    char *copy = g_strdup(text);

    g_free(d->disks->problem);
    d->disks->problem = copy;
    if (copy != NULL)
        daemon_set_detail(d, "%s", copy);
}

const char *
daemon_disks_problem(const Daemon *d)
{
    return d->disks->problem;
}

gboolean
daemon_disks_want_checkpoint(const Daemon *d)
{
    return d->disks->wants_checkpoint;
}

gboolean
daemon_disks_busy(const Daemon *d)
{
    return d->disks != NULL && d->disks->groups.length > 0;
}

gboolean
daemon_disks_settled(const Daemon *d)
{
    for (unsigned i = 0; i < d->disks->n; i++) {
        if (d->disks->slots[i].away)
            return FALSE;
    }
    return TRUE;
}

/* ---- status ---- */

static json_object *
slot_status(const DiskSlot *slot)
{
    json_object *object = disk_status(slot->disk);
    json_object *standing_object = json_object_new_object();
    DiskStanding standing;
    const int percent = disk_sync_percent(slot->disk);

    disk_standing(slot->disk, &standing);
    json_object_object_add(
        standing_object, "fit",
        json_object_new_boolean(standing.up_to_date || standing.committing || standing.never_used));
    json_object_object_add(standing_object, "up_to_date",
                           json_object_new_boolean(standing.up_to_date));
    json_object_object_add(standing_object, "committing",
                           json_object_new_boolean(standing.committing));
    json_object_object_add(standing_object, "generation",
                           json_object_new_int64((int64_t)standing.generation));
    json_object_object_add(standing_object, "reason",
                           standing.reason ? json_object_new_string(standing.reason) : NULL);
    json_object_object_add(object, "standing", standing_object);
    if (percent >= 0)
        json_object_object_add(object, "sync_percent", json_object_new_int(percent));
    json_object_object_add(object, "local", json_object_new_boolean(!slot->away));
    disk_standing_clear(&standing);
    return object;
}

json_object *
daemon_disks_status(const Daemon *d)
{
    json_object *list = json_object_new_array();

    for (unsigned i = 0; i < d->disks->n; i++)
        json_object_array_add(list, slot_status(&d->disks->slots[i]));
    return list;
}
