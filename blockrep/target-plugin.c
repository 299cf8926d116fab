/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* target-plugin.c - nbdkit plugin: the secondary's disk as exports `target` and `active`, and what
 * a primary wants to know of it as `changed` and `digest`
 *
 * nbdkit serves one set of sockets, all with every export. What crosses hosts is under TLS, and is
 * never `active`: a peer that is no UNIX socket does not get it. nbdkit takes several sockets by
 * socket activation: one TCP socket for the primary and one UNIX socket for the local QEMU.
 *
 * get_ready opens everything, so that what is wrong is said before nbdkit goes into the background;
 * threads start in after_fork.
 */
#include "plugin-parts.h"
#include "plugin-quit.h"
#include "target-control.h"
#include "target-exports.h"
#include "target-open.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum {
    PREFERRED_BYTES = OVERLAY_BLOCK_BYTES,
    MAX_EXTENTS = 1024,                   /* in one answer; clients ask on */
    MAX_EXTENTS_BYTES = 64 * 1024 * 1024, /* looked up for one answer */
};

/* nbdkit has one plugin instance in a process and gives its callbacks no pointer to it. */
typedef struct Plugin {
    char *disk, *metadata, *map, *directory, *control_path;
    gboolean in_memory;
    uint64_t limit_bytes;
    Target *target;
    DiskControl *control;
} Plugin;

static Plugin plugin = {.limit_bytes = TARGET_DEFAULT_LIMIT_BYTES};

/* --- Parameters --- */

static int
target_config(const char *key, const char *value)
{
    if (strcmp(key, "disk") == 0)
        return plugin_set_path(&plugin.disk, value);
    if (strcmp(key, "metadata") == 0)
        return plugin_set_path(&plugin.metadata, value);
    if (strcmp(key, "map") == 0)
        return plugin_set_path(&plugin.map, value);
    if (strcmp(key, "overlay-dir") == 0)
        return plugin_set_path(&plugin.directory, value);
    if (strcmp(key, "control") == 0)
        return plugin_set_path(&plugin.control_path, value);
    if (strcmp(key, "overlay") == 0 && strcmp(value, "memory") == 0) {
        plugin.in_memory = TRUE;
        return 0;
    }
    if (strcmp(key, "overlay-limit") == 0) {
        int64_t bytes = nbdkit_parse_size(value);

        plugin.limit_bytes = bytes < 0 ? 0 : (uint64_t)bytes;
        return bytes < 0 ? -1 : 0;
    }
    nbdkit_error("unknown parameter '%s=%s'", key, value);
    return -1;
}

static int
target_config_complete(void)
{
    if (!plugin.disk || !plugin.metadata || !plugin.control_path) {
        nbdkit_error("disk=, metadata= and control= are needed");
        return -1;
    }
    if ((plugin.directory != NULL) == plugin.in_memory) {
        nbdkit_error("either overlay-dir=DIRECTORY or overlay=memory is needed");
        return -1;
    }
    return 0;
}

#define target_config_help                                                                         \
    "disk=PATH          (required) Raw file or block device.\n"                                    \
    "metadata=PATH      (required) What must survive a crash; made if missing.\n"                  \
    "control=SOCKET     (required) Control socket for colod.\n"                                    \
    "map=PATH           Map of blocks that may differ from the peer's; made if missing.\n"         \
    "overlay-dir=DIR    Where the overlays are kept, or\n"                                         \
    "overlay=memory     in memory: a failover is durable only when it is done.\n"                  \
    "overlay-limit=SIZE Of each overlay (default 1G)."

/* --- Life --- */

static int
target_get_ready(void)
{
    TargetConfig config = {
        .disk = plugin.disk,
        .metadata = plugin.metadata,
        .map = plugin.map,
        .directory = plugin.directory,
        .limit_bytes = plugin.limit_bytes,
    };
    g_autoptr(GError) error = NULL;

    plugin.target = target_open(&config, &error);
    if (!plugin.target) {
        nbdkit_error("%s", error->message);
        return -1;
    }
    return 0;
}

static int
target_after_fork(void)
{
    g_autoptr(GError) error = NULL;
    sigset_t before;

    plugin_outlive_parent();
    plugin_block_signals(&before);
    target_start(plugin.target);
    plugin.control = target_control_new(plugin.control_path, plugin.target, &error);
    plugin_restore_signals(&before);
    if (!plugin.control) {
        nbdkit_error("%s", error->message);
        return -1;
    }
    return 0;
}

static void
target_cleanup(void)
{
    plugin_quit_done(); /* the clients are gone: what follows may take its time */
    if (plugin.target)
        target_stop(plugin.target);
    g_clear_pointer(&plugin.control, disk_control_free);
}

static void
target_unload(void)
{
    target_cleanup(); /* nbdkit that ends before it served does without */
    g_clear_pointer(&plugin.target, target_free);
    plugin_quit_done();
    free(plugin.disk);
    free(plugin.metadata);
    free(plugin.map);
    free(plugin.directory);
    free(plugin.control_path);
    plugin = (Plugin){.limit_bytes = TARGET_DEFAULT_LIMIT_BYTES};
}

/* --- Connections --- */

typedef enum ExportKind { EXPORT_DISK, EXPORT_CHANGED, EXPORT_DIGEST } ExportKind;

/* A handle is one of these. */
typedef struct Export {
    const char *name, *description;
    ExportKind kind;
    Side side;      /* of a disk */
    bool is_remote; /* the other host may have it, under TLS */
} Export;

static const Export exports_there_are[] = {
    {"target", "the primary's writes", EXPORT_DISK, SIDE_TARGET, true},
    {"active", "the secondary guest's disk", EXPORT_DISK, SIDE_ACTIVE, false},
    {"changed", "a bit for each 64 KiB that may differ", EXPORT_CHANGED, SIDE_TARGET, true},
    {"digest", "a digest of each 64 KiB of the disk", EXPORT_DIGEST, SIDE_TARGET, true},
};

static const Export *
export_of(const void *handle)
{
    return handle;
}

static Side
side_of(const void *handle)
{
    return export_of(handle)->side;
}

static bool
is_there(const Export *export)
{
    return export->kind != EXPORT_CHANGED || target_map(plugin.target);
}

/* NULL: this peer may have it. */
static const char *
why_not(const Export *export)
{
    bool is_known;

    if (!is_there(export))
        return "needs a map (map=PATH)";
    if (plugin_peer_is_local(&is_known))
        return NULL;
    if (!export->is_remote)
        return "is for UNIX sockets only";
    return nbdkit_is_tls() == 1 ? NULL : "needs TLS on all but UNIX sockets";
}

static void *
target_open_handle(G_GNUC_UNUSED int readonly)
{
    const char *name = nbdkit_export_name();

    for (size_t i = 0; name && i < G_N_ELEMENTS(exports_there_are); i++) {
        const Export *export = &exports_there_are[i];
        const char *reason;

        if (strcmp(name, export->name) != 0)
            continue;
        reason = why_not(export);
        if (reason) {
            nbdkit_error("refused: export '%s' %s", name, reason);
            return NULL;
        }
        return (void *)(uintptr_t) export; /* nbdkit only hands it back */
    }
    nbdkit_error("refused: no export '%s'; there are 'target', 'active', 'changed' and 'digest'",
                 name ? name : "");
    return NULL;
}

static int
target_list_exports(G_GNUC_UNUSED int readonly, G_GNUC_UNUSED int default_only,
                    struct nbdkit_exports *exports)
{
    for (size_t i = 0; i < G_N_ELEMENTS(exports_there_are); i++) {
        const Export *export = &exports_there_are[i];

        if (is_there(export) && nbdkit_add_export(exports, export->name, export->description) < 0)
            return -1;
    }
    return 0;
}

static int64_t
target_get_size(void *handle)
{
    switch (export_of(handle)->kind) {
    case EXPORT_DISK:
        return (int64_t)layers_disk(target_layers(plugin.target))->size_bytes;
    case EXPORT_CHANGED:
        return (int64_t)export_changed_size(plugin.target);
    case EXPORT_DIGEST:
        return (int64_t)export_digest_size(plugin.target);
    }
    g_assert_not_reached();
}

static int
target_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    *minimum = 1;
    *preferred = PREFERRED_BYTES;
    *maximum = PLUGIN_MAX_REQUEST_BYTES;
    if (export_of(handle)->kind == EXPORT_DIGEST) {
        *minimum = CHUNK_DIGEST_BYTES;
        *preferred = *maximum = DIGEST_MAX_CHUNKS * CHUNK_DIGEST_BYTES;
    }
    return 0;
}

/* Of everything that changes a disk. */
static int
target_is_disk(void *handle)
{
    return export_of(handle)->kind == EXPORT_DISK;
}

static int
target_can_fua(void *handle)
{
    return target_is_disk(handle) ? NBDKIT_FUA_NATIVE : NBDKIT_FUA_NONE;
}

/* --- Requests --- */

/* An NBD error has no room for a name: the log has it, and status counts it. What follows from an
 * earlier error would flood the log. */
static int
report(const void *handle, int r, Fault fault)
{
    if (r == 0)
        return 0;
    if (fault == FAULT_STALE || fault == FAULT_REFUSED)
        nbdkit_debug("%s: %s: %s", export_of(handle)->name, fault_name(fault), g_strerror(-r));
    else
        nbdkit_error("%s: %s: %s", export_of(handle)->name, fault_name(fault), g_strerror(-r));
    switch (-r) {
    case ENOSPC:
    case EDQUOT:
    case ESHUTDOWN:
    case EINVAL:
        nbdkit_set_error(-r);
        break;
    default: /* NBD knows few more, and clients treat unknown ones as EINVAL */
        nbdkit_set_error(EIO);
        break;
    }
    return -1;
}

static int
target_pread(void *handle, void *buf, uint32_t count, uint64_t offset, G_GNUC_UNUSED uint32_t flags)
{
    Fault fault = FAULT_NONE;
    int r = -EINVAL;

    switch (export_of(handle)->kind) {
    case EXPORT_DISK:
        r = layers_read(target_layers(plugin.target), side_of(handle), buf, count, offset, &fault);
        break;
    case EXPORT_CHANGED:
        r = export_changed_read(plugin.target, buf, count, offset, &fault);
        break;
    case EXPORT_DIGEST:
        r = export_digest_read(plugin.target, buf, count, offset, &fault);
        break;
    }
    return report(handle, r, fault);
}

/* With FUA, after a request that has come to its end. */
static int
finish_change(void *handle, int r, Fault fault, uint32_t flags)
{
    if (r == 0 && flags & NBDKIT_FLAG_FUA)
        r = target_flush(plugin.target, side_of(handle), &fault);
    return report(handle, r, fault);
}

static int
target_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    Fault fault = FAULT_NONE;
    int r = layers_write(target_layers(plugin.target), side_of(handle), buf, count, offset, &fault);

    return finish_change(handle, r, fault, flags);
}

static int
target_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    Fault fault = FAULT_NONE;
    int r = layers_zero(target_layers(plugin.target), side_of(handle), count, offset,
                        flags & NBDKIT_FLAG_MAY_TRIM, &fault);

    return finish_change(handle, r, fault, flags);
}

static int
target_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    Fault fault = FAULT_NONE;
    int r = layers_trim(target_layers(plugin.target), side_of(handle), count, offset, &fault);

    return finish_change(handle, r, fault, flags);
}

static int
target_flush_request(void *handle, G_GNUC_UNUSED uint32_t flags)
{
    Fault fault = FAULT_NONE;
    int r = target_flush(plugin.target, side_of(handle), &fault);

    return report(handle, r, fault);
}

static int
target_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents)
{
    uint64_t end = offset + MIN(count, MAX_EXTENTS_BYTES);

    for (int i = 0; i < MAX_EXTENTS && offset < end; i++) {
        Fault fault = FAULT_NONE;
        uint64_t length = 0;
        bool hole = false;
        int r = layers_extent(target_layers(plugin.target), side_of(handle), offset, end - offset,
                              &length, &hole, &fault);

        if (r < 0)
            return report(handle, r, fault);
        if (nbdkit_add_extent(extents, offset, length,
                              hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) < 0)
            return -1;
        if (flags & NBDKIT_FLAG_REQ_ONE)
            break;
        offset += length;
    }
    return 0;
}

static struct nbdkit_plugin nbdkit_description = {
    .name = "colo-target",
    .longname = "colod: disk of a secondary",
    .version = COLOD_VERSION,
    .description = "What the primary writes and what the secondary's guest sees, apart until a "
                   "checkpoint or a failover",
    .magic_config_key = "disk",
    .config = target_config,
    .config_complete = target_config_complete,
    .config_help = target_config_help,
    .get_ready = target_get_ready,
    .after_fork = target_after_fork,
    .cleanup = target_cleanup,
    .unload = target_unload,
    .list_exports = target_list_exports,
    .open = target_open_handle,
    .get_size = target_get_size,
    .block_size = target_block_size,
    .can_write = target_is_disk,
    .can_flush = target_is_disk,
    .can_trim = target_is_disk,
    .can_zero = target_is_disk,
    .can_fast_zero = plugin_no, /* the old blocks are saved first */
    .can_fua = target_can_fua,
    .can_multi_conn = plugin_yes, /* all connections share one target */
    .can_extents = target_is_disk,
    .is_rotational = plugin_no,
    .pread = target_pread,
    .pwrite = target_pwrite,
    .zero = target_zero,
    .trim = target_trim,
    .flush = target_flush_request,
    .extents = target_extents,
    .errno_is_preserved = 0,
};

/* The macro defines it without a prototype. */
extern struct nbdkit_plugin *plugin_init(void);

NBDKIT_REGISTER_PLUGIN(nbdkit_description)
