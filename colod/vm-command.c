/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vm-command.c - QEMU's command line from the configuration */
#include "vm.h"

#include <stdarg.h>

/* Numbers of the taps' descriptors inside QEMU: above the standard ones and those of systemd-run,
 * CONFIG_MAX_QUEUES of them for each NIC. */
enum { FIRST_TAP_FD = 20 };

int
vm_tap_fd_number(unsigned nic, unsigned queue)
{
    return FIRST_TAP_FD + (int)(nic * CONFIG_MAX_QUEUES + queue);
}

static void add(GPtrArray *argv, const char *option, const char *format, ...) G_GNUC_PRINTF(3, 4);

static void
add(GPtrArray *argv, const char *option, const char *format, ...)
{
    va_list args;

    g_ptr_array_add(argv, g_strdup(option));
    va_start(args, format);
    g_ptr_array_add(argv, g_strdup_vprintf(format, args));
    va_end(args);
}

static void
add_tap(GPtrArray *argv, const ConfigNic *nic, unsigned i)
{
    g_autoptr(GString) fds = g_string_new(nic->queues > 1 ? "fds=" : "fd=");

    for (unsigned queue = 0; queue < nic->queues; queue++)
        g_string_append_printf(fds, "%s%d", queue > 0 ? ":" : "", vm_tap_fd_number(i, queue));
    add(argv, "-netdev", "tap,id=%s,%s,vhost=off", nic->name, fds->str);
}

/* Options that only virtio-net has, each after a comma. Interrupts: one for each queue in each
 * direction, one for configuration and one for control. */
static char *
virtio_options(const ConfigNic *nic)
{
    if (!g_str_has_prefix(nic->model, "virtio-net"))
        return g_strdup("");
    if (nic->queues == 1)
        return g_strdup(",guest_announce=off");
    return g_strdup_printf(",guest_announce=off,mq=on,vectors=%u", 2 * nic->queues + 2);
}

static void
add_nic(GPtrArray *argv, const Config *config, unsigned i, const char *run_dir)
{
    const ConfigNic *nic = &config->nics[i];
    g_autofree char *options = virtio_options(nic);

    switch (nic->port) {
    case CONFIG_PORT_TAP:
        add_tap(argv, nic, i);
        break;
    case CONFIG_PORT_STREAM:
        add(argv, "-netdev", "stream,id=%s,server=on,addr.type=unix,addr.path=%s/%s.sock",
            nic->name, run_dir, nic->name);
        break;
    }
    /* No boot ROM: the guest boots from kernel or disk, and the ROM would have to be on both hosts.
     *
     * guest_announce=off: after each load of its state virtio-net has the guest announce its
     * addresses. In COLO that is after each checkpoint, on the secondary alone, and so a difference
     * that leads to the next one. After a takeover the proxy announces them. (The migration
     * parameter announce-rounds=0 would do too, but makes QEMU 11.1.3 crash at the second load.)
     */
    add(argv, "-device", "%s,id=dev-%s,netdev=%s,mac=%02x:%02x:%02x:%02x:%02x:%02x,romfile=%s",
        nic->model, nic->name, nic->name, nic->mac[0], nic->mac[1], nic->mac[2], nic->mac[3],
        nic->mac[4], nic->mac[5], options);
}

char **
vm_command_line(const Config *config, const char *run_dir, const GPtrArray *more, gboolean incoming)
{
    GPtrArray *argv = g_ptr_array_new();

    g_ptr_array_add(argv, g_strdup(config->qemu));
    add(argv, "-name", "guest=%s", config->vm_name);
    add(argv, "-uuid", "%s", config->uuid);
    add(argv, "-machine", "%s", config->machine);
    add(argv, "-accel", "%s", config->accel);
    if (config->cpu_model != NULL)
        add(argv, "-cpu", "%s", config->cpu_model);
    add(argv, "-smp", "%u", config->cpus);
    add(argv, "-m", "%uM", config->memory_mib);
    g_ptr_array_add(argv, g_strdup("-nodefaults"));
    g_ptr_array_add(argv, g_strdup("-no-user-config"));
    add(argv, "-display", "none");
    add(argv, "-chardev", "file,id=console0,path=%s/console.log,append=on", run_dir);
    add(argv, "-serial", "chardev:console0");
    add(argv, "-qmp", "unix:%s/qmp.sock,server=on,wait=off", run_dir);
    if (config->kernel != NULL)
        add(argv, "-kernel", "%s", config->kernel);
    if (config->initrd != NULL)
        add(argv, "-initrd", "%s", config->initrd);
    if (config->append != NULL)
        add(argv, "-append", "%s", config->append);
    for (unsigned i = 0; i < config->n_nics; i++)
        add_nic(argv, config, i, run_dir);
    for (guint i = 0; more != NULL && i < more->len; i++)
        g_ptr_array_add(argv, g_strdup(more->pdata[i]));
    for (char **arg = config->extra_args; *arg != NULL; arg++)
        g_ptr_array_add(argv, g_strdup(*arg));
    if (incoming)
        add(argv, "-incoming", "defer");
    else
        g_ptr_array_add(argv, g_strdup("-S"));
    g_ptr_array_add(argv, NULL);
    return (char **)g_ptr_array_free(argv, FALSE);
}
