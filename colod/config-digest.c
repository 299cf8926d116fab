/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config-digest.c - the digest of what both hosts must give the guest alike */
#include "config.h"

#include "clock.h"
#include "fd.h"
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Of an image that is another program's export; at the start of colod only. */
#define IMAGE_TIMEOUT_NS (2 * NS_PER_S)

/* Each field with its name and length, so that no two configurations give the same bytes. */
static void
digest_text(GChecksum *sum, const char *name, const char *value)
{
    g_autofree char *head = g_strdup_printf("%s=%zd:", name, value ? (gssize)strlen(value) : -1);

    g_checksum_update(sum, (const guchar *)head, -1);
    if (value)
        g_checksum_update(sum, (const guchar *)value, -1);
}

static void
digest_uint(GChecksum *sum, const char *name, unsigned value)
{
    g_autofree char *text = g_strdup_printf("%u", value);

    digest_text(sum, name, text);
}

/* The digest of the file's content stands for the file: its path may differ between hosts. */
static gboolean
digest_file(GChecksum *sum, const char *name, const char *path, GError **error)
{
    g_autoptr(GChecksum) content = g_checksum_new(G_CHECKSUM_SHA256);
    g_autofree guchar *buffer = g_malloc(65536);
    auto_fd int fd = -1;
    ssize_t n = 0;

    if (path) {
        fd = open(path, O_RDONLY | O_CLOEXEC);
        while (fd >= 0 && (n = read(fd, buffer, 65536)) > 0)
            g_checksum_update(content, buffer, n);
        if (fd < 0 || n < 0) {
            g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                        "[vm] %s: %s cannot be read: %s; correct the path", name, path,
                        g_strerror(errno));
            return FALSE;
        }
    }
    digest_text(sum, name, path ? g_checksum_get_string(content) : NULL);
    return TRUE;
}

/* The guest sees the size. */
static gboolean
digest_disk(GChecksum *sum, const ConfigDisk *disk, GError **error)
{
    g_autoptr(GError) local = NULL;
    int64_t size = image_size_bytes(disk->image, clock_now_ns() + IMAGE_TIMEOUT_NS, &local);
    g_autofree char *text = g_strdup_printf("%lld", (long long)size);

    if (size < 0) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                    "[%s] image: %s cannot be opened: %s; make it, of the same size on both hosts",
                    disk->name, disk->image, local->message);
        return FALSE;
    }
    digest_text(sum, "device", disk->device);
    digest_text(sum, "size", text);
    return TRUE;
}

/* virtio-net offers offload if its port has a vnet header; QEMU loads no state that had it where
 * there is none ("saved image requires vnet_hdr=on"). */
static bool
lacks_offload(const ConfigNic *nic)
{
    return nic->port == CONFIG_PORT_STREAM && g_str_has_prefix(nic->model, "virtio-net");
}

char *
config_guest_digest(const Config *config, GError **error)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);

    digest_text(sum, "uuid", config->uuid);
    digest_text(sum, "machine", config->machine);
    digest_text(sum, "cpu-model", config->cpu_model);
    digest_uint(sum, "cpus", config->cpus);
    digest_uint(sum, "memory-mib", config->memory_mib);
    digest_uint(sum, "network-mode", config->network_mode);
    digest_uint(sum, "nics", config->n_nics);
    for (unsigned i = 0; i < config->n_nics; i++) {
        digest_text(sum, "model", config->nics[i].model);
        if (lacks_offload(&config->nics[i]))
            digest_text(sum, "offload", "none");
        digest_uint(sum, "queues", config->nics[i].queues);
        digest_text(sum, "mac", "");
        g_checksum_update(sum, config->nics[i].mac, sizeof(config->nics[i].mac));
    }
    digest_uint(sum, "disks", config->n_disks);
    for (unsigned i = 0; i < config->n_disks; i++) {
        if (!digest_disk(sum, &config->disks[i], error))
            return NULL;
    }
    digest_text(sum, "append", config->append);
    digest_uint(sum, "extra-args", g_strv_length(config->extra_args));
    for (char **arg = config->extra_args; *arg; arg++)
        digest_text(sum, "arg", *arg);
    if (!digest_file(sum, "kernel", config->kernel, error) ||
        !digest_file(sum, "initrd", config->initrd, error))
        return NULL;
    return g_strdup(g_checksum_get_string(sum));
}
