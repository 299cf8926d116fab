/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-graph.c - a disk's nodes and device in QEMU; the move to the local image
 *
 * Who writes for itself has a quorum of two: NAME-local, a raw node whose file is the image
 * (NAME-file), and NAME-mirror, the forwarder. On a primary that is NAME, which the device stands
 * on. A secondary's NAME is a raw node over the target's export (NAME-target): its forwarder would
 * have nothing to do but to receive what it forgets. It is connected already, though, as
 * NAME-mirror. The move makes the quorum, NAME-quorum, and exchanges what NAME stands on by one
 * blockdev-reopen: QEMU lets the requests under way come to their end, holds new ones back, and no
 * device changes. (blockdev-add of an NBD node waits for its server in QEMU's main loop: so not
 * then.)
 *
 * No `yank` before it: both NBD nodes are UNIX sockets to processes of ours. One that does not
 * answer is killed (disk-process.c), and QEMU sends its requests again to the next; `yank` would
 * fail them to the guest instead, and does not end the wait for a reconnect either.
 */
#include "disk-private.h"

#include <string.h>

static json_object *
node(const Disk *disk, const char *driver, const char *suffix)
{
    json_object *object = json_object_new_object();
    g_autofree char *name = g_strconcat(disk->config.name, suffix, NULL);

    json_object_object_add(object, "driver", json_object_new_string(driver));
    json_object_object_add(object, "node-name", json_object_new_string(name));
    return object;
}

static void
add_string(json_object *object, const char *key, const char *value)
{
    json_object_object_add(object, key, json_object_new_string(value));
}

static void
add_name(json_object *object, const char *key, const Disk *disk, const char *suffix)
{
    g_autofree char *name = g_strconcat(disk->config.name, suffix, NULL);

    add_string(object, key, name);
}

static void
add_cache(json_object *object, const Disk *disk)
{
    json_object *cache = json_object_new_object();

    json_object_object_add(cache, "direct",
                           json_object_new_boolean(g_str_equal(disk->config.cache, "none")));
    json_object_object_add(object, "cache", cache);
}

/* QEMU must not guess whether it is a device. */
static bool
is_block_device(const Disk *disk)
{
    return g_file_test(disk->config.image, G_FILE_TEST_EXISTS) &&
           !g_file_test(disk->config.image, G_FILE_TEST_IS_REGULAR);
}

static json_object *
nbd_node_at(const Disk *disk, const char *suffix, const char *path, const char *export)
{
    json_object *object = node(disk, "nbd", suffix);
    json_object *server = json_object_new_object();

    add_string(server, "type", "unix");
    add_string(server, "path", path);
    json_object_object_add(object, "server", server);
    add_string(object, "export", export);
    add_string(object, "discard", "unmap");
    return object;
}

/* An export that ends is a disk that fails: whoever came in its place would lack what was not
 * flushed, so QEMU does not wait for it. */
static json_object *
file_node(const Disk *disk)
{
    json_object *object;

    if (disk->is_nbd)
        return nbd_node_at(disk, "-file", disk->nbd.socket_path, disk->nbd.export_name);
    object = node(disk, is_block_device(disk) ? "host_device" : "file", "-file");
    add_string(object, "filename", disk->config.image);
    add_string(object, "aio", g_str_equal(disk->config.cache, "none") ? "native" : "threads");
    add_string(object, "discard", "unmap");
    add_cache(object, disk);
    return object;
}

static json_object *
nbd_node(const Disk *disk, PluginKind kind, const char *suffix, const char *export)
{
    g_autofree char *path = disk_socket_path(disk, kind);
    json_object *object = nbd_node_at(disk, suffix, path, export);

    json_object_object_add(object, "reconnect-delay", json_object_new_int(RECONNECT_DELAY_S));
    return object;
}

static json_object *
raw_node(const Disk *disk, const char *suffix, const char *file_suffix)
{
    json_object *object = node(disk, "raw", suffix);

    add_name(object, "file", disk, file_suffix);
    add_string(object, "discard", "unmap");
    add_string(object, "detect-zeroes", "off");
    return object;
}

static json_object *
local_node(const Disk *disk)
{
    json_object *object = raw_node(disk, "-local", "-file");

    add_cache(object, disk);
    return object;
}

static json_object *
quorum_node(const Disk *disk, const char *suffix)
{
    json_object *object = node(disk, "quorum", suffix);
    json_object *children = json_object_new_array();
    g_autofree char *local = g_strconcat(disk->config.name, "-local", NULL);
    g_autofree char *mirror = g_strconcat(disk->config.name, "-mirror", NULL);

    json_object_object_add(object, "vote-threshold", json_object_new_int(2));
    add_string(object, "read-pattern", "fifo");
    json_object_array_add(children, json_object_new_string(local));
    json_object_array_add(children, json_object_new_string(mirror));
    json_object_object_add(object, "children", children);
    add_string(object, "discard", "unmap");
    return object;
}

static void
add_argument(GPtrArray *argv, const char *option, char *value)
{
    g_ptr_array_add(argv, g_strdup(option));
    g_ptr_array_add(argv, value);
}

static void
add_node(GPtrArray *argv, json_object *object)
{
    add_argument(argv, "-blockdev",
                 g_strdup(json_object_to_json_string_ext(
                     object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE)));
    json_object_put(object);
}

/* The same on both hosts and in both roles: the guest must not see a difference. An error goes to
 * the guest (QEMU's default is to stop the VM when there is no space, which would end COLO); nvme
 * knows nothing else. */
static void
add_device(const Disk *disk, GPtrArray *argv)
{
    const DiskConfig *config = &disk->config;
    const bool scsi = g_str_equal(config->device, "scsi-hd");

    if (scsi)
        add_argument(argv, "-device", g_strdup_printf("virtio-scsi-pci,id=scsi-%s", config->name));

    const char *errors = g_str_equal(config->device, "nvme") ? "" : ",werror=report,rerror=report";
    g_autofree char *bus = scsi ? g_strdup_printf(",bus=scsi-%s.0", config->name) : g_strdup("");

    add_argument(argv, "-device",
                 g_strdup_printf("%s,id=dev-%s,drive=%s,serial=%s%s%s", config->device,
                                 config->name, config->name, config->name, errors, bus));
}

void
disk_add_arguments(const Disk *disk, DiskRole role, GPtrArray *argv)
{
    switch (role) {
    case DISK_PRIMARY:
        add_node(argv, file_node(disk));
        add_node(argv, local_node(disk));
        add_node(argv, nbd_node(disk, PLUGIN_FORWARDER, "-mirror", ""));
        add_node(argv, quorum_node(disk, ""));
        break;
    case DISK_SECONDARY:
        add_node(argv, nbd_node(disk, PLUGIN_FORWARDER, "-mirror", ""));
        add_node(argv, nbd_node(disk, PLUGIN_TARGET, "-target", "active"));
        add_node(argv, raw_node(disk, "", "-target"));
        break;
    }
    add_device(disk, argv);
}

/* --- The move --- */

/* A move may be tried again: what had been done before is an error to QEMU, and none to us. What
 * tells is the reopen. */
static void
move_delete(Op *op)
{
    json_object *arguments = json_object_new_object();

    add_name(arguments, "node-name", op->disk, "-target");
    op->ignore_error = true;
    disk_op_ask_qemu(op, "blockdev-del", arguments, op->after_move);
}

static void
reopen(Op *op, json_object *with, OpFunc next)
{
    json_object *arguments = json_object_new_object();
    json_object *options = json_object_new_array();

    json_object_array_add(options, with);
    json_object_object_add(arguments, "options", options);
    op->ignore_error = false;
    disk_op_ask_qemu(op, "blockdev-reopen", arguments, next);
}

void
disk_graph_drain(Op *op, OpFunc next)
{
    reopen(op, local_node(op->disk), next);
}

static void
move_reopen(Op *op)
{
    reopen(op, raw_node(op->disk, "", "-quorum"), move_delete);
}

static void
move_add(Op *op, json_object *with, OpFunc next)
{
    op->ignore_error = true;
    disk_op_ask_qemu(op, "blockdev-add", with, next);
}

static void
move_add_quorum(Op *op)
{
    move_add(op, quorum_node(op->disk, "-quorum"), move_reopen);
}

static void
move_add_local(Op *op)
{
    move_add(op, local_node(op->disk), move_add_quorum);
}

void
disk_graph_move(Op *op, OpFunc next)
{
    op->after_move = next;
    move_add(op, file_node(op->disk), move_add_local);
}

/* --- Settling --- */

/* Of another connection it would say nothing. */
static void
settled(Op *op)
{
    if (op->connects == op->disk->connects)
        disk_op_ask(op, PLUGIN_FORWARDER, "settled", NULL, NULL);
    else
        disk_op_finish(op, NULL);
}

void
disk_settle(Disk *disk, QmpClient *qmp)
{
    Op *op = disk_op_new(disk, NULL, NULL);

    op->qmp = qmp_client_ref(qmp);
    op->connects = disk->connects;
    disk_graph_drain(op, settled);
}
