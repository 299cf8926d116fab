/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config.c - the configuration of one VM: reading, checking
 *
 * Theory of operation: GKeyFile reads the values, but it merges groups that are given twice, takes
 * the last of two equal keys and knows no line numbers. So the text is scanned line by line first
 * (config-lines.c): that refuses what GKeyFile would pass in silence and remembers the line of each
 * key. Then every line must be in the table (config-keys.c), every key of the table is read, from
 * the file or from its default, and last come the rules that tie keys to each other.
 */
#include "config.h"
#include "config-keys.h"
#include "config-lines.h"

#include "fd.h"
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

enum {
    FILE_MAX_BYTES = 1024 * 1024, /* a configuration has some 2 KiB; more is the wrong file */
    SHOWN_MAX = 64,               /* characters of a wrong VM name in a message */
    IDE_DISKS_MAX = 4,            /* two channels of two */
    HEARTBEATS_PER_LIMIT = 3,     /* one lost heartbeat must not look like a dead host */
};

G_DEFINE_QUARK(colod_config_error_quark, config_error)

typedef struct Parse {
    ConfigLines *lines;
    GKeyFile *key_file;
    Config *config;
} Parse;

static void
parse_clear(Parse *parse)
{
    g_clear_pointer(&parse->key_file, g_key_file_free);
    g_clear_pointer(&parse->lines, config_lines_free);
    g_clear_pointer(&parse->config, config_free);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Parse, parse_clear)

static gboolean
fail(const Parse *parse, ConfigError code, const char *group, const char *key, const char *problem,
     GError **error)
{
    return config_lines_fail(parse->lines, code, group, key, problem, error);
}

static bool
is_given(const Parse *parse, const char *group, const char *key)
{
    return config_lines_find(parse->lines, group, key) != NULL;
}

/* --- Names --- */

/* Whether @group is @prefix and a digit below @n. */
static bool
is_numbered(const char *group, const char *prefix, int n)
{
    const char *digit = group + strlen(prefix);

    return g_str_has_prefix(group, prefix) && *digit >= '0' && *digit < '0' + n && !digit[1];
}

/* The table's name of a group: "nic" for nic0 .. nic7. NULL: no such group. */
static const char *
table_group(const char *group)
{
    if (g_str_has_prefix(group, CONFIG_GROUP_NIC))
        return is_numbered(group, CONFIG_GROUP_NIC, CONFIG_MAX_NICS) ? CONFIG_GROUP_NIC : NULL;
    if (g_str_has_prefix(group, CONFIG_GROUP_DISK))
        return is_numbered(group, CONFIG_GROUP_DISK, CONFIG_MAX_DISKS) ? CONFIG_GROUP_DISK : NULL;
    for (size_t i = 0; i < config_n_keys; i++) {
        if (g_str_equal(config_keys[i].group, group))
            return config_keys[i].group;
    }
    return NULL;
}

/* The key (or, @group NULL, the group) of the table that @name is most like; NULL: like none. */
static const char *
nearest(const char *group, const char *name)
{
    const char *best = NULL;
    unsigned best_distance = (unsigned)strlen(name) / 3 + 2;

    for (size_t i = 0; i < config_n_keys; i++) {
        const ConfigKey *key = &config_keys[i];

        if (group && !g_str_equal(key->group, group))
            continue;

        const char *candidate = group ? key->key : key->group;
        unsigned distance = config_distance(name, candidate);

        if (distance < best_distance) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

static gboolean
refuse_group(const Parse *parse, const ConfigLine *line, GError **error)
{
    g_autofree char *problem = NULL;
    const char *like = nearest(NULL, line->group);

    if (g_str_has_prefix(line->group, "nic"))
        problem = g_strdup_printf("is no NIC group; number the NICs from nic0 to nic%d",
                                  CONFIG_MAX_NICS - 1);
    else if (g_str_has_prefix(line->group, CONFIG_GROUP_DISK))
        problem = g_strdup_printf("is no disk group; number the disks from disk0 to disk%d",
                                  CONFIG_MAX_DISKS - 1);
    else if (like)
        problem = g_strdup_printf("unknown group; did you mean [%s]?", like);
    else
        problem =
            g_strdup("unknown group; use vm, nic0, disk0, network, checkpoint, host, peer, arbiter "
                     "or test");
    return fail(parse, CONFIG_ERROR_UNKNOWN, line->group, NULL, problem, error);
}

static gboolean
refuse_key(const Parse *parse, const ConfigLine *line, const char *group, GError **error)
{
    g_autofree char *problem = NULL;
    const char *like = nearest(group, line->key);
    const ConfigKey *elsewhere = NULL;

    for (size_t i = 0; i < config_n_keys && !elsewhere; i++) {
        if (g_str_equal(config_keys[i].key, line->key))
            elsewhere = &config_keys[i];
    }
    if (elsewhere)
        problem = g_strdup_printf("unknown key here; move it to [%s%s]", elsewhere->group,
                                  g_str_equal(elsewhere->group, CONFIG_GROUP_NIC) ? "0" : "");
    else if (like)
        problem = g_strdup_printf("unknown key; did you mean '%s'?", like);
    else
        problem = g_strdup("unknown key; remove it, colod.conf(5) lists all keys");
    return fail(parse, CONFIG_ERROR_UNKNOWN, line->group, line->key, problem, error);
}

static gboolean
check_names(const Parse *parse, GError **error)
{
    const ConfigLine *line;

    for (unsigned i = 0; (line = config_lines_at(parse->lines, i)); i++) {
        const char *group = table_group(line->group);

        if (!group)
            return refuse_group(parse, line, error);
        if (line->key && !config_key_find(group, line->key))
            return refuse_key(parse, line, group, error);
    }
    return TRUE;
}

/* --- Values --- */

static gboolean
read_list(const Parse *parse, const ConfigKey *key, char ***field, GError **error)
{
    g_autoptr(GError) cause = NULL;
    g_auto(GStrv) list =
        g_key_file_get_string_list(parse->key_file, key->group, key->key, NULL, &cause);

    if (!list || cause)
        return fail(parse, CONFIG_ERROR_VALUE, key->group, key->key,
                    "cannot be read as a list; write a backslash as \\\\", error);
    for (char **item = list; *item; item++) {
        g_autofree char *problem = config_check_text(*item);

        if (problem)
            return fail(parse, CONFIG_ERROR_VALUE, key->group, key->key, problem, error);
    }
    g_strfreev(*field);
    *field = g_steal_pointer(&list);
    return TRUE;
}

static gboolean
read_key(const Parse *parse, const ConfigKey *key, const char *group, void *target, GError **error)
{
    g_autofree char *text = NULL;
    g_autofree char *problem = NULL;
    g_autoptr(GError) cause = NULL;

    if (!is_given(parse, group, key->key)) {
        if (key->required)
            problem = g_strdup_printf("is missing; add %s=..., %s", key->key, key->doc);
        else if (key->standard)
            problem = config_key_parse(key, key->standard, target);
    } else if (key->type == CONFIG_TYPE_LIST) {
        return read_list(parse, key, (char ***)(void *)((char *)target + key->offset), error);
    } else {
        text = g_key_file_get_string(parse->key_file, group, key->key, &cause);
        if (!text || cause) /* GLib returns both for an unknown escape */
            problem = g_strdup("has an unknown escape; write a backslash as \\\\");
        else
            problem = config_key_parse(key, g_strchomp(text), target);
    }
    return problem ? fail(parse, CONFIG_ERROR_VALUE, group, key->key, problem, error) : TRUE;
}

/* LAN tap's default name. The number must survive the cut: it tells the VM's NICs apart. */
static char *
default_tap(const char *vm_name, unsigned index)
{
    enum { AROUND = sizeof("colo-N") - 1 };

    return g_strdup_printf("colo-%.*s%u", IFNAMSIZ - 1 - AROUND, vm_name, index);
}

static gboolean
check_queues(const Parse *parse, const char *group, const ConfigNic *nic, GError **error)
{
    g_autofree char *problem = NULL;

    if (nic->queues == 1)
        return TRUE;
    if (nic->port != CONFIG_PORT_TAP)
        return fail(parse, CONFIG_ERROR_VALUE, group, "queues",
                    "a stream has one queue only; use port=tap, or remove it", error);
    if (g_str_has_prefix(nic->model, "virtio-net-pci"))
        return TRUE;
    problem = g_strdup_printf("'%s' has one queue only; use model=virtio-net-pci, or remove it",
                              nic->model);
    return fail(parse, CONFIG_ERROR_VALUE, group, "queues", problem, error);
}

static gboolean
read_nic(const Parse *parse, const char *group, GError **error)
{
    Config *config = parse->config;
    unsigned index = config->n_nics;
    ConfigNic *nic = &config->nics[index];

    config->n_nics++; /* from here on config_free() frees it */
    nic->name = g_strdup(group);
    for (size_t i = 0; i < config_n_keys; i++) {
        if (g_str_equal(config_keys[i].group, CONFIG_GROUP_NIC) &&
            !read_key(parse, &config_keys[i], group, nic, error))
            return FALSE;
    }
    if (!nic->tap)
        nic->tap = default_tap(config->vm_name, index);
    if (!check_queues(parse, group, nic, error))
        return FALSE;

    for (unsigned i = 0; i < index; i++) {
        if (memcmp(config->nics[i].mac, nic->mac, sizeof(nic->mac)) == 0)
            return fail(parse, CONFIG_ERROR_VALUE, group, "mac",
                        "another NIC has this address; give each its own", error);
        if (g_str_equal(config->nics[i].tap, nic->tap))
            return fail(parse, CONFIG_ERROR_VALUE, group, "tap",
                        "another NIC has a tap of this name; give each its own", error);
    }
    return TRUE;
}

static gboolean
read_nics(const Parse *parse, GError **error)
{
    for (unsigned i = 0; i < CONFIG_MAX_NICS; i++) {
        char group[] = {'n', 'i', 'c', (char)('0' + i), '\0'};

        if (!is_given(parse, group, NULL))
            continue;
        if (i != parse->config->n_nics)
            return fail(parse, CONFIG_ERROR_VALUE, group, NULL,
                        "a NIC before it is missing; number the NICs from nic0 without gaps",
                        error);
        if (!read_nic(parse, group, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean
check_disk(const Parse *parse, const char *group, unsigned index, GError **error)
{
    const ConfigDisk *disks = parse->config->disks;
    unsigned n_ide = g_str_equal(disks[index].device, "ide-hd");
    g_autofree char *problem = NULL;

    for (unsigned i = 0; i < index; i++) {
        if (g_str_equal(disks[i].image, disks[index].image))
            return fail(parse, CONFIG_ERROR_VALUE, group, "image",
                        "another disk has this image; give each its own", error);
        if (disks[i].port == disks[index].port)
            problem = g_strdup_printf("%u is another disk's; give each its own", disks[i].port);
        n_ide += g_str_equal(disks[i].device, "ide-hd");
    }
    if (problem || disks[index].port == parse->config->listen_port) {
        if (!problem)
            problem = g_strdup_printf("%u is [peer] listen's; give another", disks[index].port);
        return fail(parse, CONFIG_ERROR_VALUE, group, "port", problem, error);
    }
    if (n_ide > IDE_DISKS_MAX)
        return fail(parse, CONFIG_ERROR_VALUE, group, "device",
                    "a machine has four IDE disks at most; use virtio-blk-pci", error);
    return TRUE;
}

static gboolean
read_disk(const Parse *parse, const char *group, GError **error)
{
    Config *config = parse->config;
    unsigned index = config->n_disks;
    ConfigDisk *disk = &config->disks[index];

    config->n_disks++; /* from here on config_free() frees it */
    disk->name = g_strdup(group);
    for (size_t i = 0; i < config_n_keys; i++) {
        if (g_str_equal(config_keys[i].group, CONFIG_GROUP_DISK) &&
            !read_key(parse, &config_keys[i], group, disk, error))
            return FALSE;
    }
    if (disk->port == 0)
        disk->port = config->listen_port + 1 + index;
    if (disk->port > G_MAXUINT16)
        return fail(parse, CONFIG_ERROR_VALUE, group, "port",
                    "is missing, and there is none after [peer] listen's; add port=...", error);
    return check_disk(parse, group, index, error);
}

static gboolean
read_disks(const Parse *parse, GError **error)
{
    for (unsigned i = 0; i < CONFIG_MAX_DISKS; i++) {
        g_autofree char *group = g_strdup_printf(CONFIG_GROUP_DISK "%u", i);

        if (!is_given(parse, group, NULL))
            continue;
        if (i != parse->config->n_disks)
            return fail(parse, CONFIG_ERROR_VALUE, group, NULL,
                        "a disk before it is missing; number the disks from disk0 without gaps",
                        error);
        if (!read_disk(parse, group, error))
            return FALSE;
    }
    return TRUE;
}

/* --- Rules between keys --- */

/* Options with which QEMU would not be the VM that colod thinks it started. */
static gboolean
check_extra_args(const Parse *parse, GError **error)
{
    static const char *const ours[] = {"incoming", "daemonize", "S", "loadvm", NULL};

    for (char **arg = parse->config->extra_args; *arg; arg++) {
        const char *name = *arg;

        if (*name++ != '-')
            continue;
        if (*name == '-')
            name++;
        if (g_strv_contains(ours, name)) {
            g_autofree char *problem =
                g_strdup_printf("'%s' is for colod to decide; remove it", *arg);

            return fail(parse, CONFIG_ERROR_VALUE, "vm", "extra-args", problem, error);
        }
    }
    return TRUE;
}

static gboolean
check_boot(const Parse *parse, GError **error)
{
    const Config *config = parse->config;

    if (config->initrd && !config->kernel)
        return fail(parse, CONFIG_ERROR_VALUE, "vm", "initrd",
                    "needs a kernel; add kernel=..., or remove it", error);
    if (config->append && !config->kernel)
        return fail(parse, CONFIG_ERROR_VALUE, "vm", "append",
                    "needs a kernel; add kernel=..., or remove it", error);
    return check_extra_args(parse, error);
}

static gboolean
check_peer(const Parse *parse, GError **error)
{
    const Config *config = parse->config;
    g_autofree char *problem = NULL;

    if (g_ascii_strcasecmp(config->host, config->peer_host) == 0)
        return fail(parse, CONFIG_ERROR_VALUE, "peer", "name",
                    "is this host's own name; give the other host's", error);
    if (config->listen_port == config->peer_port &&
        g_strcmp0(config->listen_address, config->peer_address) == 0)
        return fail(parse, CONFIG_ERROR_VALUE, "peer", "address",
                    "is what this host listens on; give the other host's", error);
    if (config->heartbeat_limit_ms < HEARTBEATS_PER_LIMIT * config->heartbeat_ms) {
        problem = g_strdup_printf("%u is less than %d heartbeats; use at least %u, or a smaller "
                                  "heartbeat-ms",
                                  config->heartbeat_limit_ms, HEARTBEATS_PER_LIMIT,
                                  HEARTBEATS_PER_LIMIT * config->heartbeat_ms);
        return fail(parse, CONFIG_ERROR_VALUE, "peer", "heartbeat-limit-ms", problem, error);
    }
    return TRUE;
}

static gboolean
check_arbiter(const Parse *parse, GError **error)
{
    if (parse->config->arbiter == CONFIG_ARBITER_FILE && !parse->config->arbiter_path)
        return fail(parse, CONFIG_ERROR_VALUE, "arbiter", "path",
                    "is missing; type=file needs the folder on shared storage", error);
    return TRUE;
}

/* A buffered network waits for each checkpoint, a lock-stepping one only for those it needs. */
static void
choose_interval(Config *config)
{
    enum { BUFFERED_MS = 50, LOCKSTEP_MS = 10000 };

    if (config->interval_ms == 0)
        config->interval_ms =
            config->network_mode == CONFIG_NETWORK_LOCKSTEP ? LOCKSTEP_MS : BUFFERED_MS;
}

static gboolean
read_all(const Parse *parse, GError **error)
{
    for (size_t i = 0; i < config_n_keys; i++) {
        const ConfigKey *key = &config_keys[i];

        if (!g_str_equal(key->group, CONFIG_GROUP_NIC) &&
            !g_str_equal(key->group, CONFIG_GROUP_DISK) &&
            !read_key(parse, key, key->group, parse->config, error))
            return FALSE;
    }
    choose_interval(parse->config);
    if (!parse->config->disk_host)
        parse->config->disk_host = g_strdup(parse->config->peer_address);
    return read_nics(parse, error) && read_disks(parse, error) && check_boot(parse, error) &&
           check_peer(parse, error) && check_arbiter(parse, error);
}

/* --- Public --- */

static gboolean
check_vm_name(const char *vm_name, GError **error)
{
    size_t len = strlen(vm_name);

    if (len >= 1 && len <= 32 &&
        strspn(vm_name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == len)
        return TRUE;
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_VALUE,
                "'%.*s' is no VM name; use 1 to 32 letters, digits, hyphens and underscores",
                SHOWN_MAX, vm_name);
    return FALSE;
}

Config *
config_parse(const char *vm_name, const char *file, const char *text, gsize length, GError **error)
{
    g_auto(Parse) parse = {0};

    if (!check_vm_name(vm_name, error))
        return NULL;
    parse.key_file = g_key_file_new();
    parse.config = g_new0(Config, 1);
    parse.config->vm_name = g_strdup(vm_name);
    parse.config->extra_args = g_new0(char *, 1);

    parse.lines = config_lines_new(file, text, length, error);
    if (!parse.lines || !check_names(&parse, error))
        return NULL;

    g_autoptr(GError) cause = NULL;

    if (!g_key_file_load_from_data(parse.key_file, text, length, G_KEY_FILE_NONE, &cause)) {
        fail(&parse, CONFIG_ERROR_FILE, NULL, NULL, cause->message, error);
        return NULL;
    }
    if (!read_all(&parse, error))
        return NULL;
    return g_steal_pointer(&parse.config);
}

Config *
config_load(const char *vm_name, const char *path, GError **error)
{
    auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    g_autofree char *text = g_malloc(FILE_MAX_BYTES + 1);
    size_t length = 0;
    ssize_t n = fd < 0 ? -1 : 0;

    while (fd >= 0 && length <= FILE_MAX_BYTES &&
           (n = read(fd, text + length, FILE_MAX_BYTES + 1 - length)) > 0)
        length += (size_t)n;
    if (n < 0) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                    "%s:1: cannot be read: %s; make the file from colod.conf.sample", path,
                    g_strerror(errno));
        return NULL;
    }
    if (length > FILE_MAX_BYTES) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                    "%s:1: is over %d bytes; this is no configuration of colod", path,
                    FILE_MAX_BYTES);
        return NULL;
    }
    return config_parse(vm_name, path, text, length, error);
}

void
config_free(Config *config)
{
    if (!config)
        return;
    for (unsigned i = 0; i < config->n_nics; i++) {
        g_free(config->nics[i].name);
        g_free(config->nics[i].bridge);
        g_free(config->nics[i].tap);
        g_free(config->nics[i].model);
    }
    for (unsigned i = 0; i < config->n_disks; i++) {
        g_free(config->disks[i].name);
        g_free(config->disks[i].image);
        g_free(config->disks[i].device);
        g_free(config->disks[i].cache);
        g_free(config->disks[i].overlay);
        g_free(config->disks[i].overlay_dir);
    }
    g_free(config->vm_name);
    g_free(config->uuid);
    g_free(config->qemu);
    g_free(config->machine);
    g_free(config->accel);
    g_free(config->cpu_model);
    g_free(config->kernel);
    g_free(config->initrd);
    g_free(config->append);
    g_strfreev(config->extra_args);
    g_free(config->host);
    g_free(config->peer_host);
    g_free(config->listen_address);
    g_free(config->peer_address);
    g_free(config->disk_host);
    g_free(config->tls_ca);
    g_free(config->tls_cert);
    g_free(config->tls_key);
    g_free(config->arbiter_path);
    g_free(config);
}
