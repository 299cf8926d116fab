/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-config.c - the configuration file: every key, every refusal with file, line and remedy */
#include "config.h"
#include "config-keys.h"

#include "check-main.h"

#include <glib/gstdio.h>

#define MINIMAL                                                                                    \
    "[vm]\n"                                                                                       \
    "uuid=6F0B9E9C-2b6a-4f57-9d5e-0d9a3f6f2d11\n"                                                  \
    "memory-mib=128\n"                                                                             \
    "[host]\n"                                                                                     \
    "name=host-a\n"                                                                                \
    "initial-role=primary\n"                                                                       \
    "[peer]\n"                                                                                     \
    "name=host-b\n"                                                                                \
    "listen=192.0.2.1:7700\n"                                                                      \
    "address=[2001:db8::2]:7701\n"                                                                 \
    "tls-ca=/pki/ca.pem\n"                                                                         \
    "tls-cert=/pki/a.pem\n"                                                                        \
    "tls-key=/pki/a.key\n"

#define DISK0 "[disk0]\nimage=/srv/a.raw\n"
#define NIC0 "[nic0]\nmac=52:54:00:00:00:01\nbridge=br0\n"

static Config *
parse(const char *text, GError **error)
{
    return config_parse("web1", "web1.conf", text, strlen(text), error);
}

/* @text is refused with @code and a message that begins "web1.conf:LINE: " and holds @part. */
static void
assert_refused(const char *text, ConfigError code, unsigned line, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Config) config = parse(text, &error);
    g_autofree char *start = g_strdup_printf("web1.conf:%u: ", line);

    ck_assert_msg(!config, "accepted: %s", text);
    ck_assert_msg(g_error_matches(error, CONFIG_ERROR, (int)code), "%s", error->message);
    ck_assert_msg(g_str_has_prefix(error->message, start), "%s, not %s", error->message, start);
    ck_assert_msg(strstr(error->message, part) != NULL, "%s, not %s", error->message, part);
}

/* MINIMAL has 13 lines: @more begins on line 14. */
static void
assert_more_refused(const char *more, ConfigError code, unsigned line, const char *part)
{
    g_autofree char *text = g_strconcat(MINIMAL, more, NULL);

    assert_refused(text, code, line, part);
}

static Config *
parse_more(const char *more)
{
    g_autofree char *text = g_strconcat(MINIMAL, more, NULL);
    g_autoptr(GError) error = NULL;
    Config *config = parse(text, &error);

    ck_assert_msg(config != NULL, "%s", error ? error->message : "");
    return config;
}

/* A formatter takes dashes in it for subtractions, and blanks get into the name. */
START_TEST(unit_error_domain_has_a_name)
{
    ck_assert_str_eq(g_quark_to_string(CONFIG_ERROR), "colod_config_error_quark");
}
END_TEST

START_TEST(unit_defaults)
{
    g_autoptr(Config) config = parse_more("");

    ck_assert_str_eq(config->vm_name, "web1");
    ck_assert_str_eq(config->uuid, "6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11");
    ck_assert_str_eq(config->qemu, "/usr/bin/qemu-system-x86_64");
    ck_assert_str_eq(config->machine, "pc");
    ck_assert_str_eq(config->accel, "kvm");
    ck_assert_uint_eq(config->memory_mib, 128);
    ck_assert_uint_eq(config->cpus, 1);
    ck_assert_ptr_null(config->cpu_model);
    ck_assert_ptr_null(config->kernel);
    ck_assert_ptr_nonnull(config->extra_args);
    ck_assert_ptr_null(config->extra_args[0]);
    ck_assert_uint_eq(config->n_nics, 0);
    ck_assert_int_eq(config->network_mode, CONFIG_NETWORK_LOCKSTEP);
    ck_assert_uint_eq(config->hold_limit_mib, 64);
    ck_assert_uint_eq(config->compare_timeout_ms, 200);
    ck_assert_int_eq(config->other_frames, CONFIG_POLICY_SIZE);
    ck_assert(config->adaptive);
    ck_assert_uint_eq(config->interval_ms, 10000);
    ck_assert_uint_eq(config->spacing_ms, 10);
    ck_assert_uint_eq(config->message_timeout_ms, 2000);
    ck_assert_uint_eq(config->transfer_timeout_ms, 10000);
    ck_assert_uint_eq(config->migration_timeout_ms, 10000);
    ck_assert_uint_eq(config->tail_limit_mib, 64);
    ck_assert_int_eq(config->initial_role, CONFIG_ROLE_PRIMARY);
    ck_assert_str_eq(config->listen_address, "192.0.2.1");
    ck_assert_uint_eq(config->listen_port, 7700);
    ck_assert_str_eq(config->peer_address, "2001:db8::2");
    ck_assert_uint_eq(config->peer_port, 7701);
    ck_assert_uint_eq(config->heartbeat_ms, 100);
    ck_assert_uint_eq(config->heartbeat_limit_ms, 500);
    ck_assert_uint_eq(config->connect_timeout_ms, 3000);
    ck_assert_int_eq(config->arbiter, CONFIG_ARBITER_MANUAL);
    ck_assert_ptr_null(config->arbiter_path);
    ck_assert_uint_eq(config->arbiter_timeout_ms, 2000);
    ck_assert(!config->test_hooks);
}
END_TEST

START_TEST(unit_values)
{
    g_autoptr(Config) config =
        parse_more("# a comment\r\n\r\n" NIC0 "model = e1000 \nport=stream\ntap=t0\n"
                   "[nic1]\nmac=52:54:00:00:00:0A\nbridge=br1\nqueues=4\n"
                   "[arbiter]\ntype=file\npath=/srv/x\n[test]\nhooks=true\n"
                   "[checkpoint]\n  interval-ms = 5\t\n");
    const uint8_t mac[] = {0x52, 0x54, 0, 0, 0, 0x0a};

    ck_assert_uint_eq(config->n_nics, 2);
    ck_assert_str_eq(config->nics[0].name, "nic0");
    ck_assert_str_eq(config->nics[0].model, "e1000");
    ck_assert_str_eq(config->nics[0].tap, "t0");
    ck_assert_int_eq(config->nics[0].port, CONFIG_PORT_STREAM);
    ck_assert_uint_eq(config->nics[0].queues, 1);
    ck_assert_uint_eq(config->nics[1].queues, 4);
    ck_assert_str_eq(config->nics[1].name, "nic1");
    ck_assert_str_eq(config->nics[1].bridge, "br1");
    ck_assert_str_eq(config->nics[1].tap, "colo-web11");
    ck_assert_str_eq(config->nics[1].model, "virtio-net-pci");
    ck_assert_mem_eq(config->nics[1].mac, mac, sizeof(mac));
    ck_assert_int_eq(config->arbiter, CONFIG_ARBITER_FILE);
    ck_assert_str_eq(config->arbiter_path, "/srv/x");
    ck_assert(config->test_hooks);
    ck_assert_uint_eq(config->interval_ms, 5);
}
END_TEST

START_TEST(unit_interval_by_mode)
{
    g_autoptr(Config) lockstep = parse_more("[network]\nmode=lockstep\n");
    g_autoptr(Config) buffered = parse_more("[network]\nmode=buffered\n");
    g_autoptr(Config) short_epochs =
        parse_more("[network]\nmode=lockstep\n[checkpoint]\ninterval-ms=1000\n");

    ck_assert_int_eq(lockstep->network_mode, CONFIG_NETWORK_LOCKSTEP);
    ck_assert_uint_eq(lockstep->interval_ms, 10000);
    ck_assert_uint_eq(short_epochs->interval_ms, 1000);
    ck_assert_int_eq(buffered->network_mode, CONFIG_NETWORK_BUFFERED);
    ck_assert_uint_eq(buffered->interval_ms, 50);
}
END_TEST

START_TEST(unit_disks)
{
    g_autoptr(Config) config = parse_more(
        "[disk0]\nimage=/srv/a.raw\n"
        "[disk1]\nimage=/dev/vg/b\ndevice=scsi-hd\ncache=writeback\nport=9000\n"
        "overlay=memory\noverlay-limit-mib=2\nwindow-mib=5\nsync-rate-mib=4\noverlay-dir=/srv/o\n");

    ck_assert_uint_eq(config->n_disks, 2);
    ck_assert_str_eq(config->disks[0].name, "disk0");
    ck_assert_str_eq(config->disks[0].image, "/srv/a.raw");
    ck_assert_str_eq(config->disks[0].device, "virtio-blk-pci");
    ck_assert_str_eq(config->disks[0].cache, "none");
    ck_assert_uint_eq(config->disks[0].port, 7701);
    ck_assert_uint_eq(config->disks[0].overlay_limit_mib, 1024);
    ck_assert_uint_eq(config->disks[0].window_mib, 64);
    ck_assert_uint_eq(config->disks[0].sync_rate_mib, 0);
    ck_assert_str_eq(config->disks[0].overlay, "files");
    ck_assert_ptr_null(config->disks[0].overlay_dir);
    ck_assert_str_eq(config->disk_host, "2001:db8::2");
    ck_assert_str_eq(config->disks[1].device, "scsi-hd");
    ck_assert_str_eq(config->disks[1].cache, "writeback");
    ck_assert_uint_eq(config->disks[1].port, 9000);
    ck_assert_str_eq(config->disks[1].overlay, "memory");
    ck_assert_uint_eq(config->disks[1].overlay_limit_mib, 2);
    ck_assert_uint_eq(config->disks[1].window_mib, 5);
    ck_assert_uint_eq(config->disks[1].sync_rate_mib, 4);
    ck_assert_str_eq(config->disks[1].overlay_dir, "/srv/o");

    g_autoptr(Config) named = parse_more("disk-host=b.example.com\n");

    ck_assert_str_eq(named->disk_host, "b.example.com");
    ck_assert_uint_eq(named->n_disks, 0);
}
END_TEST

START_TEST(err_disks_that_do_not_go_together)
{
    assert_more_refused("[disk0]\n", CONFIG_ERROR_VALUE, 14,
                        "[disk0] image: is missing; add image=");
    assert_more_refused("[disk0]\nimage=nbd://host/disk\n", CONFIG_ERROR_VALUE, 15,
                        "write it as in nbd+unix:///EXPORT?socket=/PATH");
    assert_more_refused("[disk0]\nimage=disk.raw\n", CONFIG_ERROR_VALUE, 15, "no absolute path");
    assert_more_refused("[disk8]\nimage=/a\n", CONFIG_ERROR_UNKNOWN, 14,
                        "number the disks from disk0 to disk7");
    assert_more_refused("[disk0]\nimage=/a\noverlay=ram\n", CONFIG_ERROR_VALUE, 16,
                        "[disk0] overlay: ");
    assert_more_refused("[disk1]\nimage=/a\n", CONFIG_ERROR_VALUE, 14, "without gaps");
    assert_more_refused("[disk0]\nimage=/a\n[disk1]\nimage=/a\n", CONFIG_ERROR_VALUE, 17,
                        "[disk1] image: another disk");
    assert_more_refused("[disk0]\nimage=/a\n[disk1]\nimage=/b\nport=7701\n", CONFIG_ERROR_VALUE, 18,
                        "[disk1] port: 7701 is another disk's; give each its own");
    assert_more_refused("[disk0]\nimage=/a\nport=7700\n", CONFIG_ERROR_VALUE, 16,
                        "[disk0] port: 7700 is [peer] listen's");
    assert_more_refused("[disk0]\nimage=/0\ndevice=ide-hd\n[disk1]\nimage=/1\ndevice=ide-hd\n"
                        "[disk2]\nimage=/2\ndevice=ide-hd\n[disk3]\nimage=/3\ndevice=ide-hd\n"
                        "[disk4]\nimage=/4\ndevice=ide-hd\n",
                        CONFIG_ERROR_VALUE, 28, "four IDE disks at most; use virtio-blk-pci");
}
END_TEST

START_TEST(unit_extra_args_and_kernel)
{
    g_autofree char *text = g_strconcat(
        "[vm]\nextra-args=-serial;file:/x\\;y;-name;a b;\nkernel=/k\nappend=console=ttyS0 a;b\n"
        "qmp-log=true\n",
        strchr(MINIMAL, '\n') + 1, NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(Config) config = parse(text, &error);

    ck_assert_msg(config != NULL, "%s", error ? error->message : "");
    ck_assert_uint_eq(g_strv_length(config->extra_args), 4);
    ck_assert_str_eq(config->extra_args[1], "file:/x;y");
    ck_assert_str_eq(config->extra_args[3], "a b");
    ck_assert_str_eq(config->append, "console=ttyS0 a;b");
    ck_assert(config->qmp_log);
}
END_TEST

START_TEST(unit_default_tap_keeps_the_number_when_cut)
{
    g_autoptr(Config) config =
        config_parse("a-very-long-name-of-a-vm", "f", MINIMAL NIC0, strlen(MINIMAL NIC0), NULL);

    ck_assert_str_eq(config->nics[0].tap, "colo-a-very-lo0");
    ck_assert_uint_eq(strlen(config->nics[0].tap), 15);
}
END_TEST

START_TEST(unit_sample_loads_and_names_every_key)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Config) config = config_load("web1", SAMPLE_FILE, &error);
    g_autofree char *text = NULL;

    ck_assert_msg(config != NULL, "%s", error ? error->message : "");
    ck_assert(g_file_get_contents(SAMPLE_FILE, &text, NULL, NULL));

    /* Without the # before keys and groups it must load too: its examples are values one can use.
     */
    g_autoptr(GRegex) commented = g_regex_new("^#([a-z-]+=|\\[)", G_REGEX_MULTILINE, 0, NULL);
    g_autofree char *all = g_regex_replace(commented, text, -1, 0, "\\1", 0, NULL);
    g_autofree char *named = g_strdup(all);
    char *placeholder = strstr(named, "colo-NAME0");

    ck_assert_ptr_nonnull(placeholder);

    g_autoptr(Config) full = config_parse("web1", "sample", named, strlen(named), &error);

    ck_assert_msg(full != NULL, "%s", error ? error->message : "");
    for (size_t i = 0; i < config_n_keys; i++) {
        const ConfigKey *key = &config_keys[i];
        g_autofree char *pattern = g_strdup_printf("^%s=", key->key);

        ck_assert_msg(g_regex_match_simple(pattern, all, G_REGEX_MULTILINE, 0), "%s", key->key);
        if (key->standard) {
            g_autofree char *shown = g_strdup_printf("\n#%s=%s\n", key->key, key->standard);

            ck_assert_msg(strstr(text, shown) != NULL, "default of %s in the sample", key->key);
        }
    }
}
END_TEST

START_TEST(unit_every_key_has_a_default_that_is_valid)
{
    for (size_t i = 0; i < config_n_keys; i++) {
        const ConfigKey *key = &config_keys[i];

        ck_assert(key->doc && *key->doc);
        ck_assert(!(key->required && key->standard));
        ck_assert(key->type != CONFIG_TYPE_UINT || key->min < key->max);
        ck_assert_ptr_eq(config_key_find(key->group, key->key), key);
    }
}
END_TEST

START_TEST(unit_every_key_is_in_the_man_page)
{
    g_autofree char *page = NULL;

    ck_assert_msg(g_file_get_contents(MAN_PAGE, &page, NULL, NULL), "%s", MAN_PAGE);
    for (size_t i = 0; i < config_n_keys; i++) {
        const ConfigKey *key = &config_keys[i];
        g_auto(GStrv) parts = g_strsplit(key->key, "-", -1);
        g_autofree char *roff = g_strjoinv("\\-", parts);
        g_autofree char *item = g_strdup_printf("\n.B %s\n", roff);
        g_autofree char *title = g_strdup_printf("\n.SH [%s", key->group);
        const char *section = strstr(page, title);
        const char *found = section ? strstr(section, item) : NULL;
        const char *next = section ? strstr(section + 1, "\n.SH ") : NULL;

        ck_assert_msg(found && found < next, "%s is not documented", key->key);
        if (key->standard) {
            g_autofree char *entry = g_strndup(found, strcspn(found + 1, "\n") + 600);
            g_auto(GStrv) words = g_strsplit(key->standard, "-", -1);
            g_autofree char *standard = g_strjoinv("\\-", words);

            ck_assert_msg(strstr(entry, standard) != NULL, "default of %s", key->key);
        }
    }
}
END_TEST

/* "memory\\-mib" -> "memory-mib" */
static char *
without_roff(const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, "\\", -1);

    return g_strjoinv("", parts);
}

/* And the other way round: what the page has among a group's keys is a key. */
START_TEST(unit_man_page_documents_nothing_else)
{
    g_autofree char *page = NULL;
    const char *group = NULL;
    size_t n = 0;

    ck_assert_msg(g_file_get_contents(MAN_PAGE, &page, NULL, NULL), "%s", MAN_PAGE);

    g_auto(GStrv) lines = g_strsplit(page, "\n", -1);

    for (char **line = lines; *line; line++) {
        if (g_str_has_prefix(*line, ".SH")) {
            group = NULL;
            for (size_t i = 0; i < config_n_keys && !group; i++) {
                g_autofree char *title = g_strdup_printf(".SH [%s", config_keys[i].group);

                if (g_str_has_prefix(*line, title))
                    group = config_keys[i].group;
            }
        } else if (group && g_str_equal(*line, ".TP") && g_str_has_prefix(line[1], ".B ")) {
            g_autofree char *name = without_roff(line[1] + 3);

            ck_assert_msg(config_key_find(group, name) != NULL, "[%s] %s is no key", group, name);
            n++;
        }
    }
    ck_assert_uint_eq(n, config_n_keys);
}
END_TEST

START_TEST(err_file_missing_too_large_or_a_folder)
{
    g_autoptr(GError) error = NULL;

    ck_assert_ptr_null(config_load("web1", "/nonexistent/web1.conf", &error));
    ck_assert(g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_FILE));
    ck_assert_ptr_nonnull(strstr(error->message, "/nonexistent/web1.conf:1: cannot be read"));
    g_clear_error(&error);

    ck_assert_ptr_null(config_load("web1", "/", &error));
    ck_assert(g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_FILE));
    g_clear_error(&error);

    ck_assert_ptr_null(config_load("web1", "/dev/zero", &error));
    ck_assert_ptr_nonnull(strstr(error->message, "is over 1048576 bytes"));
}
END_TEST

START_TEST(err_vm_name)
{
    const char *const bad[] = {"", "a b", "a/b", "..", "123456789012345678901234567890123", NULL};

    for (unsigned i = 0; bad[i]; i++) {
        g_autoptr(GError) error = NULL;

        ck_assert_ptr_null(config_parse(bad[i], "f", MINIMAL, strlen(MINIMAL), &error));
        ck_assert(g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_VALUE));
    }
}
END_TEST

START_TEST(err_not_a_key_file)
{
    assert_refused("memory\n" MINIMAL, CONFIG_ERROR_FILE, 1, "neither a group nor `key=value`");
    assert_refused("uuid=1\n" MINIMAL, CONFIG_ERROR_FILE, 1, "before the first group");
    assert_more_refused("=5\n", CONFIG_ERROR_FILE, 14, "[peer]: this line is neither");
    assert_more_refused("[test\n", CONFIG_ERROR_FILE, 14, "no group");
    assert_more_refused("[]\n", CONFIG_ERROR_FILE, 14, "no group");
    assert_more_refused("\n\n[vm]\n", CONFIG_ERROR_FILE, 16,
                        "[vm]: is given twice, first on line 1");
    assert_more_refused("name=c\n", CONFIG_ERROR_FILE, 14,
                        "[peer] name: is given twice, first on line 8; remove one");
}
END_TEST

START_TEST(err_unknown_names_suggest_the_nearest)
{
    assert_more_refused("heartbeat=5\n", CONFIG_ERROR_UNKNOWN, 14,
                        "[peer] heartbeat: unknown key; did you mean 'heartbeat-ms'?");
    assert_more_refused("[checkpiont]\n", CONFIG_ERROR_UNKNOWN, 14, "did you mean [checkpoint]?");
    assert_more_refused("[qwertyuiop]\n", CONFIG_ERROR_UNKNOWN, 14, "use vm, nic0, disk0, network");
    assert_more_refused("[network]\ninterval-ms=5\n", CONFIG_ERROR_UNKNOWN, 15,
                        "move it to [checkpoint]");
    assert_more_refused("mac=5\n", CONFIG_ERROR_UNKNOWN, 14, "move it to [nic0]");
    assert_more_refused("[nic8]\n", CONFIG_ERROR_UNKNOWN, 14, "number the NICs from nic0 to nic7");
    assert_more_refused("[nic00]\n", CONFIG_ERROR_UNKNOWN, 14, "number the NICs");
    assert_more_refused("name[de]=x\n", CONFIG_ERROR_UNKNOWN, 14, "unknown key");
    assert_more_refused("zzzzzzzzzzzz=x\n", CONFIG_ERROR_UNKNOWN, 14, "colod.conf(5)");
}
END_TEST

START_TEST(err_missing)
{
    g_autofree char *no_uuid = g_strconcat("\n[vm]\nmemory-mib=5\n", NULL);

    assert_refused(no_uuid, CONFIG_ERROR_VALUE, 2, "[vm] uuid: is missing; add uuid=...");
    assert_refused("", CONFIG_ERROR_VALUE, 1, "[vm] uuid: is missing");
    assert_more_refused(NIC0 "queues=2\nport=stream\n", CONFIG_ERROR_VALUE, 17,
                        "a stream has one queue only; use port=tap");
    assert_more_refused(NIC0 "queues=2\nmodel=e1000\n", CONFIG_ERROR_VALUE, 17,
                        "'e1000' has one queue only; use model=virtio-net-pci");
    assert_more_refused("[nic0]\nbridge=b\n", CONFIG_ERROR_VALUE, 14, "[nic0] mac: is missing");
    assert_more_refused("[nic0]\nmac=52:54:00:00:00:01\n", CONFIG_ERROR_VALUE, 14,
                        "[nic0] bridge: is missing");
    assert_more_refused("[arbiter]\ntype=file\n", CONFIG_ERROR_VALUE, 14,
                        "[arbiter] path: is missing");
}
END_TEST

START_TEST(err_numbers_out_of_range)
{
    const char *const bad[] = {
        "", "4", "60001", "-5", "5.0", "0x10", "5s", "1e3 ms", "18446744073709551617", NULL};

    for (unsigned i = 0; bad[i]; i++) {
        g_autofree char *more = g_strdup_printf("[checkpoint]\ninterval-ms=%s\n", bad[i]);

        assert_more_refused(more, CONFIG_ERROR_VALUE, 15, "[checkpoint] interval-ms: ");
    }
    for (size_t i = 0; i < config_n_keys; i++) {
        const ConfigKey *key = &config_keys[i];
        Config scratch = {0};
        g_autofree char *low = g_strdup_printf("%u", key->min - 1);
        g_autofree char *high = g_strdup_printf("%u", key->max + 1);
        g_autofree char *most = g_strdup_printf("%u", key->max);

        if (key->type != CONFIG_TYPE_UINT)
            continue;

        g_autofree char *below = config_key_parse(key, low, &scratch);
        g_autofree char *above = config_key_parse(key, high, &scratch);

        ck_assert_ptr_nonnull(below);
        ck_assert_ptr_nonnull(above);
        ck_assert_ptr_null(config_key_parse(key, most, &scratch));
    }
}
END_TEST

START_TEST(err_malformed_values)
{
    static const struct {
        const char *group, *key, *value, *part;
    } rows[] = {
        {"vm", "uuid", "42", "uuidgen"},
        {"vm", "qemu", "qemu", "no absolute path"},
        {"vm", "accel", "xen", "use tcg or kvm"},
        {"vm", "machine", "", "is empty"},
        {"vm", "append", "a\\qb", "write a backslash as"},
        {"nic0", "mac", "53:54:00:00:00:01", "no unicast MAC"},
        {"nic0", "mac", "00:00:00:00:00:00", "no unicast MAC"},
        {"nic0", "mac", "52:54:00:00:00", "six pairs"},
        {"nic0", "mac", "52:54:00:00:00:0g", "six pairs"},
        {"nic0", "mac", "52-54-00-00-00-01", "six pairs"},
        {"nic0", "bridge", "a/b", "no interface name"},
        {"nic0", "bridge", "..", "no interface name"},
        {"nic0", "bridge", "br%d", "no interface name"},
        {"nic0", "tap", "sixteen-letters-", "no interface name"},
        {"nic0", "port", "vhost", "use tap or stream"},
        {"nic0", "queues", "0", "use 1 to 8"},
        {"nic0", "queues", "9", "use 1 to 8"},
        {"disk0", "image", "a.raw", "no absolute path"},
        {"disk0", "device", "floppy", "use virtio-blk-pci or scsi-hd"},
        {"disk0", "cache", "unsafe", "use none or writeback"},
        {"disk0", "port", "0", "use 1 to 65535"},
        {"peer", "disk-host", "a_b", "no host name"},
        {"network", "mode", "fast", "use buffered or lockstep"},
        {"network", "compare-timeout-ms", "9", "use 10 to 10000"},
        {"network", "other-frames", "none", "use size or full or pass"},
        {"network", "adaptive", "yes", "neither true nor false"},
        {"checkpoint", "spacing-ms", "-1", "use 0 to 1000"},
        {"host", "name", "-a", "no host name"},
        {"host", "name", "a_b", "no host name"},
        {"host", "name", "a..b", "no host name"},
        {"host", "initial-role", "both", "use primary or secondary"},
        {"peer", "listen", "192.0.2.1", "no numeric address with port"},
        {"peer", "listen", "host-a:7700", "no numeric address"},
        {"peer", "listen", "2001:db8::1:7700", "no numeric address"},
        {"peer", "listen", "[192.0.2.1]:7700", "no numeric address"},
        {"peer", "listen", "]:7700", "no numeric address"},
        {"peer", "listen", "[]:7700", "no numeric address"},
        {"peer", "listen", "[:7700", "no numeric address"},
        {"peer", "listen", "192.0.2.1:0", "no numeric address"},
        {"peer", "listen", "192.0.2.1:65536", "no numeric address"},
        {"test", "hooks", "yes", "neither true nor false"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GKeyFile) file = g_key_file_new();
        g_autoptr(GError) error = NULL;
        g_autofree char *where = g_strdup_printf("[%s] %s: ", rows[i].group, rows[i].key);

        ck_assert(g_key_file_load_from_data(file, MINIMAL NIC0 DISK0, (gsize)-1, 0, NULL));
        g_key_file_set_value(file, rows[i].group, rows[i].key, rows[i].value);

        g_autofree char *text = g_key_file_to_data(file, NULL, NULL);

        ck_assert_ptr_null(parse(text, &error));
        ck_assert_msg(g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_VALUE), "%s",
                      error->message);
        ck_assert_msg(strstr(error->message, where) && strstr(error->message, rows[i].part),
                      "%s, not %s", error->message, rows[i].part);
    }
}
END_TEST

START_TEST(err_keys_that_do_not_go_together)
{
    assert_more_refused("heartbeat-ms=200\nheartbeat-limit-ms=599\n", CONFIG_ERROR_VALUE, 15,
                        "use at least 600");
    assert_more_refused("heartbeat-ms=200\n", CONFIG_ERROR_VALUE, 7, "heartbeat-limit-ms: 500");
    assert_more_refused(NIC0 "[nic2]\nmac=52:54:00:00:00:02\nbridge=b\n", CONFIG_ERROR_VALUE, 17,
                        "without gaps");
    assert_more_refused(NIC0 "[nic1]\nmac=52:54:00:00:00:01\nbridge=b\n", CONFIG_ERROR_VALUE, 18,
                        "[nic1] mac: another NIC");
    assert_more_refused(NIC0 "tap=x\n[nic1]\nmac=52:54:00:00:00:02\nbridge=b\ntap=x\n",
                        CONFIG_ERROR_VALUE, 21, "[nic1] tap: another NIC");
    assert_refused("[vm]\ninitrd=/x\nuuid=6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11\nmemory-mib=99\n"
                   "[host]\nname=A\ninitial-role=primary\n[peer]\nname=b\nlisten=1.2.3.4:5\n"
                   "address=1.2.3.4:6\ntls-ca=/a\ntls-cert=/b\ntls-key=/c\n",
                   CONFIG_ERROR_VALUE, 2, "needs a kernel");
    assert_refused("[vm]\nextra-args=-m;-incoming;x\nuuid=6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11\n"
                   "memory-mib=99\n[host]\nname=A\ninitial-role=primary\n[peer]\nname=b\n"
                   "listen=1.2.3.4:5\naddress=1.2.3.4:6\ntls-ca=/a\ntls-cert=/b\ntls-key=/c\n",
                   CONFIG_ERROR_VALUE, 2, "'-incoming' is for colod to decide");
    assert_refused("[vm]\nuuid=6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11\nmemory-mib=99\n"
                   "[host]\nname=A\ninitial-role=primary\n[peer]\nname=a\nlisten=1.2.3.4:5\n"
                   "address=1.2.3.4:5\ntls-ca=/a\ntls-cert=/b\ntls-key=/c\n",
                   CONFIG_ERROR_VALUE, 8, "this host's own name");
    assert_refused("[vm]\nuuid=6f0b9e9c-2b6a-4f57-9d5e-0d9a3f6f2d11\nmemory-mib=99\n"
                   "[host]\nname=A\ninitial-role=primary\n[peer]\nname=b\nlisten=1.2.3.4:5\n"
                   "address=1.2.3.4:5\ntls-ca=/a\ntls-cert=/b\ntls-key=/c\n",
                   CONFIG_ERROR_VALUE, 10, "what this host listens on");
}
END_TEST

START_TEST(sec_bytes_that_would_reach_terminal_or_log)
{
    static const char nul[] = "[vm]\nuuid=a\0b\n";
    g_autoptr(GError) error = NULL;
    g_autofree char *long_key = g_strnfill(100000, 'x');
    g_autofree char *more = g_strconcat(long_key, "=1\n", NULL);

    assert_more_refused("x=\033[2J\n", CONFIG_ERROR_FILE, 14, "control character");
    assert_more_refused("x=\xff\n", CONFIG_ERROR_FILE, 14, "no UTF-8");
    ck_assert_ptr_null(config_parse("web1", "web1.conf", nul, sizeof(nul) - 1, &error));
    ck_assert_str_eq(error->message,
                     "web1.conf:2: holds bytes that are no UTF-8; save the file as UTF-8 text");
    g_clear_error(&error);

    g_autofree char *text = g_strconcat(MINIMAL, more, NULL);

    ck_assert_ptr_null(parse(text, &error));
    ck_assert_uint_lt(strlen(error->message), 200);
    g_clear_error(&error);

    /* An escape must not bring in what the scan refused. */
    g_autofree char *escaped = g_strconcat("[vm]\nappend=a\\nb\n", strchr(MINIMAL, '\n') + 1, NULL);

    assert_refused(escaped, CONFIG_ERROR_VALUE, 2, "control character");
}
END_TEST

static char *
digest(const char *kernel, const char *vm_more, const char *more)
{
    g_autofree char *text =
        g_strconcat("[vm]\nkernel=", kernel, "\n", vm_more, strchr(MINIMAL, '\n') + 1, more, NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(Config) config = parse(text, &error);

    ck_assert_msg(config != NULL, "%s", error ? error->message : "");

    char *result = config_guest_digest(config, &error);

    ck_assert(result || g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_FILE));
    return result;
}

/* A virtio NIC on a stream has no offload, and QEMU refuses to load it where there was some. Other
 * models never have it. */
START_TEST(unit_digest_covers_the_offload_of_a_nic)
{
    g_autofree char *tap = digest("/dev/null", "", NIC0 "port=tap\n");
    g_autofree char *stream = digest("/dev/null", "", NIC0 "port=stream\n");
    g_autofree char *e1000_tap = digest("/dev/null", "", NIC0 "model=e1000\nport=tap\n");
    g_autofree char *e1000_stream = digest("/dev/null", "", NIC0 "model=e1000\nport=stream\n");

    ck_assert_str_ne(tap, stream);
    ck_assert_str_eq(e1000_tap, e1000_stream);
}
END_TEST

START_TEST(unit_digest_covers_what_the_guest_sees)
{
    g_autofree char *folder = g_dir_make_tmp("colod-test-XXXXXX", NULL);
    g_autofree char *k1 = g_build_filename(folder, "k1", NULL);
    g_autofree char *k2 = g_build_filename(folder, "k2", NULL);
    g_autofree char *other = g_build_filename(folder, "other", NULL);

    ck_assert(g_file_set_contents(k1, "kernel", -1, NULL));
    ck_assert(g_file_set_contents(k2, "kernel", -1, NULL));
    ck_assert(g_file_set_contents(other, "kernek", -1, NULL));

    g_autofree char *base = digest(k1, "", NIC0);
    g_autofree char *elsewhere = digest(k2, "accel=tcg\nqemu=/q\n", NIC0 "tap=x\n");

    ck_assert_uint_eq(strlen(base), 64);
    ck_assert_str_eq(base, elsewhere);

    const char *const vm_more[] = {
        "machine=q35\n",      "cpus=2\n", "cpu-model=max\n", "extra-args=-a\n", "append=a\n",
        "initrd=/dev/null\n", NULL};

    for (unsigned i = 0; vm_more[i]; i++) {
        g_autofree char *changed = digest(k1, vm_more[i], NIC0);

        ck_assert_msg(!g_str_equal(base, changed), "%s", vm_more[i]);
    }
    g_autofree char *kernel = digest(other, "", NIC0);
    g_autofree char *model = digest(k1, "", NIC0 "model=e1000\n");
    g_autofree char *queues = digest(k1, "", NIC0 "queues=2\n");
    g_autofree char *no_nic = digest(k1, "", "");
    g_autofree char *missing = digest("/nonexistent", "", "");
    g_autofree char *no_disk = digest(k1, "", NIC0 "[disk0]\nimage=/nonexistent\n");
    g_autofree char *disk1_text = g_strdup_printf(NIC0 "[disk0]\nimage=%s\n", k1);
    g_autofree char *disk2_text = g_strdup_printf(NIC0 "[disk0]\nimage=%s\nport=9\n", other);
    g_autofree char *scsi_text = g_strdup_printf("%sdevice=scsi-hd\n", disk1_text);
    g_autofree char *larger_text = g_strdup_printf(NIC0 "[disk0]\nimage=%s\n", SAMPLE_FILE);
    g_autofree char *disk1 = digest(k1, "", disk1_text);
    g_autofree char *disk2 = digest(k1, "", disk2_text);
    g_autofree char *scsi = digest(k1, "", scsi_text);
    g_autofree char *larger = digest(k1, "", larger_text);

    ck_assert_str_ne(base, kernel);
    ck_assert_str_ne(base, model);
    ck_assert_str_ne(base, queues);
    ck_assert_str_ne(base, no_nic);
    ck_assert_ptr_null(missing);
    ck_assert_ptr_null(no_disk);
    ck_assert_str_ne(base, disk1);
    ck_assert_str_eq(disk1, disk2); /* of the same size; path and port may differ */
    ck_assert_str_ne(disk1, scsi);
    ck_assert_str_ne(disk1, larger);
    g_unlink(k1);
    g_unlink(k2);
    g_unlink(other);
    g_rmdir(folder);
}
END_TEST

CHECK_MAIN("config", unit_error_domain_has_a_name, unit_defaults, unit_values,
           unit_interval_by_mode, unit_disks, unit_extra_args_and_kernel,
           unit_default_tap_keeps_the_number_when_cut, unit_sample_loads_and_names_every_key,
           unit_every_key_has_a_default_that_is_valid, unit_every_key_is_in_the_man_page,
           unit_man_page_documents_nothing_else, err_file_missing_too_large_or_a_folder,
           err_vm_name, err_not_a_key_file, err_unknown_names_suggest_the_nearest, err_missing,
           err_numbers_out_of_range, err_malformed_values, err_keys_that_do_not_go_together,
           err_disks_that_do_not_go_together, sec_bytes_that_would_reach_terminal_or_log,
           unit_digest_covers_what_the_guest_sees, unit_digest_covers_the_offload_of_a_nic)
