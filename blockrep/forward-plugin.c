/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-plugin.c - nbdkit plugin: what a guest writes, on its way to the other host
 *
 * The guest's QEMU has it beside its local image in a quorum and reads from the image alone, so
 * there is nothing to read here. UNIX sockets only: nothing else has business with it.
 */
#include "forward-control.h"
#include "plugin-parts.h"
#include "plugin-quit.h"

#include "clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum {
    PREFERRED_BYTES = 4096,
    MAX_TIMEOUT_MS = 600 * 1000,
};

/* nbdkit has one plugin instance in a process and gives its callbacks no pointer to it. */
typedef struct Plugin {
    char *disk, *metadata, *map, *control_path, *tls_ca, *tls_cert, *tls_key;
    uint64_t limit_bytes, alone_generation;
    int64_t timeout_ms;
    Forward *forward;
    DiskControl *control;
} Plugin;

static const Plugin nothing = {.limit_bytes = FORWARD_DEFAULT_LIMIT_BYTES,
                               .timeout_ms = FORWARD_DEFAULT_TIMEOUT_MS};
static Plugin plugin = {.limit_bytes = FORWARD_DEFAULT_LIMIT_BYTES,
                        .timeout_ms = FORWARD_DEFAULT_TIMEOUT_MS};

/* --- Parameters --- */

static int
set_limit(const char *value)
{
    int64_t bytes = nbdkit_parse_size(value);

    if (bytes < 0)
        return -1;
    if (bytes < FORWARD_MIN_LIMIT_BYTES) {
        nbdkit_error("window-limit=%s: at least 4 MiB are needed", value);
        return -1;
    }
    plugin.limit_bytes = (uint64_t)bytes;
    return 0;
}

static int
set_timeout(const char *value)
{
    unsigned ms;

    if (nbdkit_parse_unsigned("timeout-ms", value, &ms) < 0)
        return -1;
    if (ms == 0 || ms > MAX_TIMEOUT_MS) {
        nbdkit_error("timeout-ms=%s: 1 to 600000", value);
        return -1;
    }
    plugin.timeout_ms = ms;
    return 0;
}

static int
set_alone(const char *value)
{
    if (nbdkit_parse_uint64_t("alone", value, &plugin.alone_generation) < 0)
        return -1;
    if (plugin.alone_generation == 0) {
        nbdkit_error("alone=0: a generation is at least 1");
        return -1;
    }
    return 0;
}

static int
forward_config(const char *key, const char *value)
{
    const struct {
        const char *key;
        char **path;
    } paths[] = {
        {"disk", &plugin.disk},       {"metadata", &plugin.metadata},
        {"map", &plugin.map},         {"control", &plugin.control_path},
        {"tls-ca", &plugin.tls_ca},   {"tls-cert", &plugin.tls_cert},
        {"tls-key", &plugin.tls_key},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(paths); i++) {
        if (strcmp(key, paths[i].key) == 0)
            return plugin_set_path(paths[i].path, value);
    }
    if (strcmp(key, "window-limit") == 0)
        return set_limit(value);
    if (strcmp(key, "timeout-ms") == 0)
        return set_timeout(value);
    if (strcmp(key, "alone") == 0)
        return set_alone(value);
    nbdkit_error("unknown parameter '%s=%s'", key, value);
    return -1;
}

static int
forward_config_complete(void)
{
    if (!plugin.disk || !plugin.metadata || !plugin.map || !plugin.control_path) {
        nbdkit_error("disk=, metadata=, map= and control= are needed");
        return -1;
    }
    if (!plugin.tls_ca != !plugin.tls_cert || !plugin.tls_cert != !plugin.tls_key) {
        nbdkit_error("tls-ca=, tls-cert= and tls-key= are given together");
        return -1;
    }
    return 0;
}

#define forward_config_help                                                                        \
    "disk=PATH          (required) Raw file or block device.\n"                                    \
    "metadata=PATH      (required) What must survive a crash; made if missing.\n"                  \
    "map=PATH           (required) What the other host may lack; made if missing.\n"               \
    "control=SOCKET     (required) Control socket for colod.\n"                                    \
    "tls-ca=FILE        Certificates for peers that are no UNIX sockets: of the CA,\n"             \
    "tls-cert=FILE      of this host,\n"                                                           \
    "tls-key=FILE       and its key.\n"                                                            \
    "alone=GENERATION   Marks from the first request on: for a process that takes another's "      \
    "place.\n"                                                                                     \
    "window-limit=SIZE  Of what is not confirmed yet (default 64M).\n"                             \
    "timeout-ms=N       Of a request at the peer (default 5000)."

/* --- Life --- */

static int
forward_get_ready(void)
{
    g_autofree char *run_dir = g_path_get_dirname(plugin.control_path);
    const ForwardConfig config = {
        .disk = plugin.disk,
        .metadata = plugin.metadata,
        .map = plugin.map,
        .run_dir = run_dir,
        .tls_ca = plugin.tls_ca,
        .tls_cert = plugin.tls_cert,
        .tls_key = plugin.tls_key,
        .limit_bytes = plugin.limit_bytes,
        .max_entries = FORWARD_DEFAULT_ENTRIES,
        .request_timeout_ms = plugin.timeout_ms,
    };
    g_autoptr(GError) error = NULL;

    plugin.forward = forward_new(&config, &error);
    if (!plugin.forward) {
        nbdkit_error("%s", error->message);
        return -1;
    }
    return 0;
}

/* Before the first request: what an idle forwarder acknowledges is forgotten. */
static gboolean
start_alone(GError **error)
{
    return plugin.alone_generation == 0 ||
           forward_take_place(plugin.forward, plugin.alone_generation,
                              clock_now_ns() + plugin.timeout_ms * NS_PER_MS, error);
}

static int
forward_after_fork(void)
{
    g_autoptr(GError) error = NULL;
    sigset_t before;

    plugin_outlive_parent();
    plugin_block_signals(&before);
    if (start_alone(&error))
        plugin.control = forward_control_new(plugin.control_path, plugin.forward, &error);
    plugin_restore_signals(&before);
    if (!plugin.control) {
        nbdkit_error("%s", error->message);
        return -1;
    }
    return 0;
}

static void
forward_cleanup(void)
{
    plugin_quit_done(); /* the clients are gone: what follows may take its time */
    if (plugin.forward)
        forward_stop(plugin.forward);
    g_clear_pointer(&plugin.control, disk_control_free);
}

static void
forward_unload(void)
{
    char **paths[] = {&plugin.disk,   &plugin.metadata, &plugin.map,    &plugin.control_path,
                      &plugin.tls_ca, &plugin.tls_cert, &plugin.tls_key};

    forward_cleanup(); /* nbdkit that ends before it served does without */
    g_clear_pointer(&plugin.forward, forward_free);
    plugin_quit_done();
    for (size_t i = 0; i < G_N_ELEMENTS(paths); i++)
        free(*paths[i]);
    plugin = nothing;
}

/* --- Connections --- */

static void *
forward_open(G_GNUC_UNUSED int readonly)
{
    bool is_known;

    if (!plugin_peer_is_local(&is_known)) {
        if (is_known)
            nbdkit_error("refused: the forwarder is for UNIX sockets only");
        return NULL;
    }
    return &plugin;
}

static int64_t
forward_get_size(G_GNUC_UNUSED void *handle)
{
    return (int64_t)forward_size_bytes(plugin.forward);
}

static int
forward_block_size(G_GNUC_UNUSED void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
    *minimum = 1;
    *preferred = PREFERRED_BYTES;
    *maximum = PLUGIN_MAX_REQUEST_BYTES;
    return 0;
}

static int
forward_can_fua(G_GNUC_UNUSED void *handle)
{
    return NBDKIT_FUA_NATIVE;
}

static int
forward_can_cache(G_GNUC_UNUSED void *handle)
{
    return NBDKIT_CACHE_NATIVE;
}

/* --- Requests --- */

static int
forward_pread(G_GNUC_UNUSED void *handle, G_GNUC_UNUSED void *buf, G_GNUC_UNUSED uint32_t count,
              G_GNUC_UNUSED uint64_t offset, G_GNUC_UNUSED uint32_t flags)
{
    nbdkit_error("nothing can be read here: the guest reads from the local image");
    nbdkit_set_error(EIO);
    return -1;
}

/* FUA and flush promise what the surviving host can keep, and that is decided at the checkpoint:
 * docs/block.md, "The forwarder". */
static int
forward_pwrite(G_GNUC_UNUSED void *handle, const void *buf, uint32_t count, uint64_t offset,
               G_GNUC_UNUSED uint32_t flags)
{
    forward_change(plugin.forward, FORWARD_WRITE, offset, count, buf);
    return 0;
}

static int
forward_zero(G_GNUC_UNUSED void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    ForwardKind kind = flags & NBDKIT_FLAG_MAY_TRIM ? FORWARD_UNMAP : FORWARD_ZERO;

    forward_change(plugin.forward, kind, offset, count, NULL);
    return 0;
}

static int
forward_trim(G_GNUC_UNUSED void *handle, uint32_t count, uint64_t offset,
             G_GNUC_UNUSED uint32_t flags)
{
    forward_change(plugin.forward, FORWARD_TRIM, offset, count, NULL);
    return 0;
}

static int
forward_flush(G_GNUC_UNUSED void *handle, G_GNUC_UNUSED uint32_t flags)
{
    return 0;
}

static int
forward_cache(G_GNUC_UNUSED void *handle, G_GNUC_UNUSED uint32_t count,
              G_GNUC_UNUSED uint64_t offset, G_GNUC_UNUSED uint32_t flags)
{
    return 0;
}

/* All is data, for all we know. */
static int
forward_extents(G_GNUC_UNUSED void *handle, uint32_t count, uint64_t offset,
                G_GNUC_UNUSED uint32_t flags, struct nbdkit_extents *extents)
{
    return nbdkit_add_extent(extents, offset, count, 0);
}

static struct nbdkit_plugin nbdkit_description = {
    .name = "colo-forward",
    .longname = "colod: disk of a primary",
    .version = COLOD_VERSION,
    .description = "What the guest writes, on its way to the other host; what that lacks is "
                   "remembered",
    .magic_config_key = "disk",
    .config = forward_config,
    .config_complete = forward_config_complete,
    .config_help = forward_config_help,
    .get_ready = forward_get_ready,
    .after_fork = forward_after_fork,
    .cleanup = forward_cleanup,
    .unload = forward_unload,
    .open = forward_open,
    .get_size = forward_get_size,
    .block_size = forward_block_size,
    .can_write = plugin_yes,
    .can_flush = plugin_yes,
    .can_trim = plugin_yes,
    .can_zero = plugin_yes,
    .can_fast_zero = plugin_yes,
    .can_fua = forward_can_fua,
    .can_cache = forward_can_cache,
    .can_multi_conn = plugin_yes, /* all connections share one window */
    .can_extents = plugin_yes,
    .is_rotational = plugin_no,
    .pread = forward_pread,
    .pwrite = forward_pwrite,
    .zero = forward_zero,
    .trim = forward_trim,
    .flush = forward_flush,
    .cache = forward_cache,
    .extents = forward_extents,
    .errno_is_preserved = 0,
};

/* The macro defines it without a prototype. */
extern struct nbdkit_plugin *plugin_init(void);

NBDKIT_REGISTER_PLUGIN(nbdkit_description)
