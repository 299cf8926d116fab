/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config-keys.c - the table of configuration keys and the reading of one value */
#include "config-keys.h"

#include "image.h"

#include <arpa/inet.h>
#include <assert.h>
#include <net/if.h>
#include <string.h>

#define MEMBER(field) .offset = offsetof(Config, field)
#define NIC_MEMBER(field) .offset = offsetof(ConfigNic, field)
#define DISK_MEMBER(field) .offset = offsetof(ConfigDisk, field)

static const char *const accels[] = {"tcg", "kvm", NULL};
static const char *const ports[] = {"tap", "stream", NULL};
static const char *const modes[] = {"buffered", "lockstep", NULL};
static const char *const policies[] = {"size", "full", "pass", NULL};
static const char *const roles[] = {"primary", "secondary", NULL};
static const char *const devices[] = {"virtio-blk-pci", "scsi-hd", "ide-hd", "nvme", NULL};
static const char *const caches[] = {"none", "writeback", NULL};
static const char *const overlays[] = {"files", "memory", NULL};
static const char *const arbiters[] = {"manual", "file", NULL};

static_assert(CONFIG_ROLE_PRIMARY == 0 && CONFIG_ROLE_SECONDARY == 1, "order of roles[]");
static_assert(CONFIG_ARBITER_MANUAL == 0 && CONFIG_ARBITER_FILE == 1, "order of arbiters[]");
static_assert(CONFIG_NETWORK_BUFFERED == 0 && CONFIG_NETWORK_LOCKSTEP == 1, "order of modes[]");
static_assert(CONFIG_POLICY_SIZE == 0 && CONFIG_POLICY_FULL == 1 && CONFIG_POLICY_PASS == 2,
              "order of policies[]");
static_assert(CONFIG_PORT_TAP == 0 && CONFIG_PORT_STREAM == 1, "order of ports[]");
static_assert(sizeof(ConfigRole) == sizeof(unsigned), "enums are stored as unsigned");

/* One line per fact: clang-format would make four lines of each key. */
/* clang-format off */
const ConfigKey config_keys[] = {
    {"vm", "uuid", CONFIG_TYPE_UUID, MEMBER(uuid), .required = true,
     .doc = "the guest's UUID, the same on both hosts (uuidgen makes one)"},
    {"vm", "qemu", CONFIG_TYPE_PATH, MEMBER(qemu), .standard = "/usr/bin/qemu-system-x86_64",
     .doc = "the QEMU program"},
    {"vm", "machine", CONFIG_TYPE_STRING, MEMBER(machine), .standard = "pc",
     .doc = "QEMU's machine type (-M)"},
    {"vm", "accel", CONFIG_TYPE_CHOICE, MEMBER(accel), .standard = "kvm", .choices = accels,
     .doc = "the accelerator"},
    {"vm", "memory-mib", CONFIG_TYPE_UINT, MEMBER(memory_mib), .required = true,
     .min = 16, .max = 16 * 1024 * 1024, .doc = "the guest's memory in MiB"},
    {"vm", "cpus", CONFIG_TYPE_UINT, MEMBER(cpus), .standard = "1", .min = 1, .max = 255,
     .doc = "the number of virtual CPUs"},
    {"vm", "cpu-model", CONFIG_TYPE_STRING, MEMBER(cpu_model), .doc = "QEMU's CPU model (-cpu)"},
    {"vm", "kernel", CONFIG_TYPE_PATH, MEMBER(kernel), .doc = "the kernel to boot directly"},
    {"vm", "initrd", CONFIG_TYPE_PATH, MEMBER(initrd), .doc = "the kernel's initial RAM disk"},
    {"vm", "append", CONFIG_TYPE_STRING, MEMBER(append), .doc = "the kernel's command line"},
    {"vm", "extra-args", CONFIG_TYPE_LIST, MEMBER(extra_args),
     .doc = "further arguments for QEMU, separated by semicolons"},
    {"vm", "qmp-log", CONFIG_TYPE_BOOL, MEMBER(qmp_log), .standard = "false",
     .doc = "keep what colod and QEMU say to each other (qmp.log in the run directory)"},

    {CONFIG_GROUP_NIC, "mac", CONFIG_TYPE_MAC, NIC_MEMBER(mac), .required = true,
     .doc = "the guest's MAC address, the same on both hosts"},
    {CONFIG_GROUP_NIC, "bridge", CONFIG_TYPE_IFNAME, NIC_MEMBER(bridge), .required = true,
     .doc = "this host's LAN bridge"},
    {CONFIG_GROUP_NIC, "tap", CONFIG_TYPE_IFNAME, NIC_MEMBER(tap),
     .doc = "the name of colod's tap on the bridge"},
    {CONFIG_GROUP_NIC, "model", CONFIG_TYPE_STRING, NIC_MEMBER(model),
     .standard = "virtio-net-pci", .doc = "QEMU's NIC model"},
    {CONFIG_GROUP_NIC, "port", CONFIG_TYPE_ENUM, NIC_MEMBER(port), .standard = "tap",
     .choices = ports, .doc = "how QEMU is connected"},
    {CONFIG_GROUP_NIC, "queues", CONFIG_TYPE_UINT, NIC_MEMBER(queues), .standard = "1",
     .min = 1, .max = CONFIG_MAX_QUEUES,
     .doc = "the NIC's queues, the same on both hosts (virtio-net-pci on a tap)"},

    {CONFIG_GROUP_DISK, "image", CONFIG_TYPE_IMAGE, DISK_MEMBER(image), .required = true,
     .doc = "the raw file, block device or NBD export, of the same size on both hosts"},
    {CONFIG_GROUP_DISK, "device", CONFIG_TYPE_CHOICE, DISK_MEMBER(device),
     .standard = "virtio-blk-pci", .choices = devices, .doc = "QEMU's device model"},
    {CONFIG_GROUP_DISK, "cache", CONFIG_TYPE_CHOICE, DISK_MEMBER(cache), .standard = "none",
     .choices = caches, .doc = "whether QEMU uses this host's page cache"},
    {CONFIG_GROUP_DISK, "port", CONFIG_TYPE_UINT, DISK_MEMBER(port), .min = 1, .max = 65535,
     .doc = "the TCP port of the disk's replication, the same on both hosts"},
    {CONFIG_GROUP_DISK, "overlay", CONFIG_TYPE_CHOICE, DISK_MEMBER(overlay), .standard = "files",
     .choices = overlays, .doc = "where the secondary keeps what one epoch writes"},
    {CONFIG_GROUP_DISK, "overlay-limit-mib", CONFIG_TYPE_UINT, DISK_MEMBER(overlay_limit_mib),
     .standard = "1024", .min = 1, .max = 64 * 1024,
     .doc = "the bound of what one epoch may write to the disk in MiB"},
    {CONFIG_GROUP_DISK, "window-mib", CONFIG_TYPE_UINT, DISK_MEMBER(window_mib),
     .standard = "64", .min = 4, .max = 4096,
     .doc = "the bound of writes on their way to the peer in MiB"},
    {CONFIG_GROUP_DISK, "sync-rate-mib", CONFIG_TYPE_UINT, DISK_MEMBER(sync_rate_mib),
     .standard = "0", .min = 0, .max = 1024 * 1024,
     .doc = "the bound of the initial copy in MiB/s"},
    {CONFIG_GROUP_DISK, "overlay-dir", CONFIG_TYPE_PATH, DISK_MEMBER(overlay_dir),
     .doc = "the folder of the disk's overlays"},

    {"network", "mode", CONFIG_TYPE_ENUM, MEMBER(network_mode), .standard = "lockstep",
     .choices = modes, .doc = "when the guest's output may leave"},
    {"network", "hold-limit-mib", CONFIG_TYPE_UINT, MEMBER(hold_limit_mib), .standard = "64",
     .min = 1, .max = 4096, .doc = "the bound of held output per NIC in MiB"},
    {"network", "compare-timeout-ms", CONFIG_TYPE_UINT, MEMBER(compare_timeout_ms),
     .standard = "200", .min = 10, .max = 10000,
     .doc = "how long a frame of one guest may wait for the other guest's in ms"},
    {"network", "other-frames", CONFIG_TYPE_ENUM, MEMBER(other_frames), .standard = "size",
     .choices = policies, .doc = "how frames are compared that are no TCP, UDP or ICMP"},
    {"network", "adaptive", CONFIG_TYPE_BOOL, MEMBER(adaptive), .standard = "true",
     .doc = "whether epochs become short for a while when the guests differ often"},

    {"checkpoint", "interval-ms", CONFIG_TYPE_UINT, MEMBER(interval_ms),
     .min = 5, .max = 60000, .doc = "the longest time between two checkpoints in ms"},
    {"checkpoint", "spacing-ms", CONFIG_TYPE_UINT, MEMBER(spacing_ms), .standard = "10",
     .min = 0, .max = 1000, .doc = "the shortest time between two checkpoints in ms"},
    {"checkpoint", "message-timeout-ms", CONFIG_TYPE_UINT, MEMBER(message_timeout_ms),
     .standard = "2000", .min = 10, .max = 60000, .doc = "the deadline of each COLO message in ms"},
    {"checkpoint", "transfer-timeout-ms", CONFIG_TYPE_UINT, MEMBER(transfer_timeout_ms),
     .standard = "10000", .min = 10, .max = 600000,
     .doc = "the deadline of one checkpoint's transfer in ms"},
    {"checkpoint", "migration-timeout-ms", CONFIG_TYPE_UINT, MEMBER(migration_timeout_ms),
     .standard = "10000", .min = 10, .max = 600000,
     .doc = "the longest silence within the initial migration in ms"},
    {"checkpoint", "tail-limit-mib", CONFIG_TYPE_UINT, MEMBER(tail_limit_mib), .standard = "64",
     .min = 1, .max = 4096, .doc = "the bound of one checkpoint's device state in MiB"},

    {"host", "name", CONFIG_TYPE_HOST, MEMBER(host), .required = true,
     .doc = "this host's name, as in its certificate"},
    {"host", "initial-role", CONFIG_TYPE_ENUM, MEMBER(initial_role), .required = true,
     .choices = roles, .doc = "the role when the VM has never run"},

    {"peer", "name", CONFIG_TYPE_HOST, MEMBER(peer_host), .required = true,
     .doc = "the other host's name, as in its certificate"},
    {"peer", "listen", CONFIG_TYPE_ADDRESS, MEMBER(listen_address),
     .port_offset = offsetof(Config, listen_port), .required = true,
     .doc = "the address and port to listen on"},
    {"peer", "address", CONFIG_TYPE_ADDRESS, MEMBER(peer_address),
     .port_offset = offsetof(Config, peer_port), .required = true,
     .doc = "the other host's address and port"},
    {"peer", "disk-host", CONFIG_TYPE_PLACE, MEMBER(disk_host),
     .doc = "the other host's address or name for disks, as in its certificate"},
    {"peer", "tls-ca", CONFIG_TYPE_PATH, MEMBER(tls_ca), .required = true,
     .doc = "the CA's certificate, PEM (deploy/colo-pki makes it)"},
    {"peer", "tls-cert", CONFIG_TYPE_PATH, MEMBER(tls_cert), .required = true,
     .doc = "this host's certificate, PEM (deploy/colo-pki makes it)"},
    {"peer", "tls-key", CONFIG_TYPE_PATH, MEMBER(tls_key), .required = true,
     .doc = "this host's private key, PEM (deploy/colo-pki makes it)"},
    {"peer", "heartbeat-ms", CONFIG_TYPE_UINT, MEMBER(heartbeat_ms), .standard = "100",
     .min = 10, .max = 10000, .doc = "the time between two heartbeats in ms"},
    {"peer", "heartbeat-limit-ms", CONFIG_TYPE_UINT, MEMBER(heartbeat_limit_ms),
     .standard = "500", .min = 30, .max = 60000,
     .doc = "the silence after which the peer counts as gone in ms"},
    {"peer", "connect-timeout-ms", CONFIG_TYPE_UINT, MEMBER(connect_timeout_ms),
     .standard = "3000", .min = 10, .max = 60000,
     .doc = "the deadline of connect, TLS handshake and hello in ms"},

    {"arbiter", "type", CONFIG_TYPE_ENUM, MEMBER(arbiter), .standard = "manual",
     .choices = arbiters, .doc = "who decides which host goes on"},
    {"arbiter", "path", CONFIG_TYPE_PATH, MEMBER(arbiter_path),
     .doc = "the folder on shared storage that holds the claims"},
    {"arbiter", "timeout-ms", CONFIG_TYPE_UINT, MEMBER(arbiter_timeout_ms), .standard = "2000",
     .min = 10, .max = 60000, .doc = "the deadline of the arbiter's answer in ms"},

    {"test", "hooks", CONFIG_TYPE_BOOL, MEMBER(test_hooks), .standard = "false",
     .doc = "whether `colo test-stall` and `colo test-corrupt` work"},
};
/* clang-format on */
const size_t config_n_keys = G_N_ELEMENTS(config_keys);

const ConfigKey *
config_key_find(const char *group, const char *key)
{
    for (size_t i = 0; i < config_n_keys; i++) {
        if (g_str_equal(config_keys[i].group, group) && g_str_equal(config_keys[i].key, key))
            return &config_keys[i];
    }
    return NULL;
}

unsigned
config_distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    size_t len_a = strlen(a), len_b = strlen(b);
    unsigned row[MAX + 1];

    if (len_a > MAX || len_b > MAX)
        return G_MAXUINT;
    for (size_t j = 0; j <= len_b; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= len_a; i++) {
        unsigned diagonal = row[0];

        row[0] = (unsigned)i;
        for (size_t j = 1; j <= len_b; j++) {
            unsigned changed = diagonal + (a[i - 1] != b[j - 1]);

            diagonal = row[j];
            row[j] = MIN(changed, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[len_b];
}

char *
config_check_text(const char *text)
{
    if (!*text)
        return g_strdup("is empty; give a value, or leave the key out");
    for (const char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p))
            return g_strdup("holds a control character; remove it");
    }
    return NULL;
}

static char *
put_string(void *field, const char *text)
{
    char **target = field;

    g_free(*target);
    *target = g_strdup(text);
    return NULL;
}

static char *
parse_path(const char *text, void *field)
{
    if (!g_path_is_absolute(text))
        return g_strdup_printf("'%s' is no absolute path; write it from the root, as in /etc/...",
                               text);
    return put_string(field, text);
}

static char *
parse_image(const char *text, void *field)
{
    g_autoptr(GError) error = NULL;
    g_auto(ImageNbd) nbd = {0};

    if (!image_is_nbd(text))
        return parse_path(text, field);
    if (!image_nbd_parse(text, &nbd, &error))
        return g_strdup_printf("'%s': %s", text, error->message);
    return put_string(field, text);
}

static char *
parse_uuid(const char *text, void *field)
{
    g_autofree char *lower = g_ascii_strdown(text, -1);

    if (!g_uuid_string_is_valid(lower))
        return g_strdup_printf("'%s' is no UUID; make one with uuidgen", text);
    return put_string(field, lower);
}

/* RFC 1123 label: letters, digits and inner hyphens, at most 63. */
static bool
label_is_valid(const char *label)
{
    size_t len = strlen(label);

    if (len < 1 || len > 63 || label[0] == '-' || label[len - 1] == '-')
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!g_ascii_isalnum(label[i]) && label[i] != '-')
            return false;
    }
    return true;
}

static char *
parse_host(const char *text, void *field)
{
    g_auto(GStrv) labels = g_strsplit(text, ".", -1);
    bool valid = strlen(text) <= CONFIG_HOST_MAX;

    for (char **label = labels; valid && *label; label++)
        valid = label_is_valid(*label);
    if (!valid)
        return g_strdup_printf("'%s' is no host name; use letters, digits and inner hyphens, at "
                               "most %d characters, as in host-a",
                               text, CONFIG_HOST_MAX);
    return put_string(field, text);
}

/* libnbd connects to it and wants it in the certificate: an address as an IP SAN. */
static char *
parse_place(const char *text, void *field)
{
    uint8_t binary[16];

    if (inet_pton(AF_INET, text, binary) == 1 || inet_pton(AF_INET6, text, binary) == 1)
        return put_string(field, text);
    return parse_host(text, field);
}

/* The kernel's dev_valid_name(), plus '%': some of its interfaces take a name as a pattern. */
static char *
parse_ifname(const char *text, void *field)
{
    size_t len = strlen(text);
    bool valid = len < IFNAMSIZ && !g_str_equal(text, ".") && !g_str_equal(text, "..");

    for (size_t i = 0; valid && i < len; i++)
        valid = g_ascii_isgraph(text[i]) && !strchr("/:%", text[i]);
    if (!valid)
        return g_strdup_printf("'%s' is no interface name; use at most %d letters, digits and "
                               "hyphens, as in br0",
                               text, IFNAMSIZ - 1);
    return put_string(field, text);
}

static char *
list_of_choices(const ConfigKey *key)
{
    return g_strjoinv(" or ", (char **)key->choices);
}

static char *
parse_choice(const ConfigKey *key, const char *text, void *field)
{
    for (unsigned i = 0; key->choices[i]; i++) {
        if (!g_str_equal(text, key->choices[i]))
            continue;
        if (key->type == CONFIG_TYPE_CHOICE)
            return put_string(field, text);
        memcpy(field, &i, sizeof(i));
        return NULL;
    }

    g_autofree char *choices = list_of_choices(key);

    return g_strdup_printf("'%s' is not known; use %s", text, choices);
}

static char *
parse_uint(const ConfigKey *key, const char *text, void *field)
{
    guint64 value;

    if (!g_ascii_string_to_unsigned(text, 10, key->min, key->max, &value, NULL))
        return g_strdup_printf("'%s' is no whole number in range; use %u to %u", text, key->min,
                               key->max);

    unsigned narrow = (unsigned)value;

    memcpy(field, &narrow, sizeof(narrow));
    return NULL;
}

static char *
parse_bool(const char *text, void *field)
{
    bool value = g_str_equal(text, "true");

    if (!value && !g_str_equal(text, "false"))
        return g_strdup_printf("'%s' is neither true nor false; use one of them", text);
    memcpy(field, &value, sizeof(value));
    return NULL;
}

static char *
parse_mac(const char *text, void *field)
{
    uint8_t mac[6];
    static const uint8_t zero[6];

    bool valid = strlen(text) == 17;

    for (unsigned i = 0; valid && i < 6; i++) {
        const char *p = text + 3 * i;

        valid = g_ascii_isxdigit(p[0]) && g_ascii_isxdigit(p[1]) && p[2] == (i < 5 ? ':' : '\0');
        mac[i] = (uint8_t)(g_ascii_xdigit_value(p[0]) * 16 + g_ascii_xdigit_value(p[1]));
    }
    if (!valid)
        return g_strdup_printf("'%s' is no MAC address; write six pairs of hex digits, as in "
                               "52:54:00:12:34:56",
                               text);
    if ((mac[0] & 1) || memcmp(mac, zero, sizeof(mac)) == 0)
        return g_strdup_printf("'%s' is no unicast MAC address; let it begin with an even pair, as "
                               "in 52:54:00:12:34:56",
                               text);
    memcpy(field, mac, sizeof(mac));
    return NULL;
}

/* ADDR:PORT or [V6]:PORT, numeric: a name server must not be needed to reach the peer. */
static char *
parse_address(const char *text, char **address_field, uint16_t *port_field)
{
    const char *colon = strrchr(text, ':');
    gboolean bracketed = text[0] == '[';
    guint64 port = 0;
    uint8_t binary[16];
    g_autofree char *address = NULL;

    if (colon && bracketed && colon > text && colon[-1] == ']')
        address = g_strndup(text + 1, (gsize)(colon - text) - 2);
    else if (colon && !bracketed)
        address = g_strndup(text, (gsize)(colon - text));

    if (!address || inet_pton(bracketed ? AF_INET6 : AF_INET, address, binary) != 1 ||
        !g_ascii_string_to_unsigned(colon + 1, 10, 1, G_MAXUINT16, &port, NULL))
        return g_strdup_printf("'%s' is no numeric address with port; write it as in "
                               "192.0.2.1:7700 or [2001:db8::1]:7700",
                               text);
    *port_field = (uint16_t)port;
    return put_string(address_field, address);
}

char *
config_key_parse(const ConfigKey *key, const char *text, void *target)
{
    void *field = (char *)target + key->offset;
    char *problem = config_check_text(text);

    if (problem)
        return problem;
    switch (key->type) {
    case CONFIG_TYPE_STRING:
        return put_string(field, text);
    case CONFIG_TYPE_PATH:
        return parse_path(text, field);
    case CONFIG_TYPE_IMAGE:
        return parse_image(text, field);
    case CONFIG_TYPE_UUID:
        return parse_uuid(text, field);
    case CONFIG_TYPE_HOST:
        return parse_host(text, field);
    case CONFIG_TYPE_PLACE:
        return parse_place(text, field);
    case CONFIG_TYPE_IFNAME:
        return parse_ifname(text, field);
    case CONFIG_TYPE_CHOICE:
    case CONFIG_TYPE_ENUM:
        return parse_choice(key, text, field);
    case CONFIG_TYPE_UINT:
        return parse_uint(key, text, field);
    case CONFIG_TYPE_BOOL:
        return parse_bool(text, field);
    case CONFIG_TYPE_MAC:
        return parse_mac(text, field);
    case CONFIG_TYPE_ADDRESS:
        return parse_address(text, field, (uint16_t *)(void *)((char *)target + key->port_offset));
    case CONFIG_TYPE_LIST:
        break; /* config.c splits it */
    }
    g_assert_not_reached();
}
