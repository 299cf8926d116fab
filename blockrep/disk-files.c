/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-files.c - what a disk has on this host: standing, sockets, certificates, command lines */
#include "disk-meta.h"
#include "disk-private.h"

#include "clock.h"
#include "fd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LISTEN_BACKLOG = 16, LAST_WORDS_BYTES = 2048 };

static const char *const plugin_names[] = {
    [PLUGIN_FORWARDER] = "colo-forward",
    [PLUGIN_TARGET] = "colo-target",
};
/* In file names. */
static const char *const short_names[] = {
    [PLUGIN_FORWARDER] = "mirror",
    [PLUGIN_TARGET] = "target",
};

/* --- Paths --- */

static char *
run_path(const Disk *disk, PluginKind kind, const char *suffix)
{
    return g_strdup_printf("%s/%s-%s%s", disk->config.run_dir, disk->config.name, short_names[kind],
                           suffix);
}

static char *
state_path(const Disk *disk, const char *suffix)
{
    return g_strdup_printf("%s/%s.%s", disk->config.state_dir, disk->config.name, suffix);
}

char *
disk_control_path(const Disk *disk, PluginKind kind)
{
    return run_path(disk, kind, ".ctl");
}

char *
disk_socket_path(const Disk *disk, PluginKind kind)
{
    return run_path(disk, kind, ".sock");
}

char *
disk_log_path(const Disk *disk, PluginKind kind)
{
    return run_path(disk, kind, ".log");
}

static char *
tls_dir(const Disk *disk)
{
    return g_strdup_printf("%s/%s-tls", disk->config.run_dir, disk->config.name);
}

/* Each disk's own: the names in it are fixed. */
static char *
overlay_dir(const Disk *disk)
{
    const char *parent =
        disk->config.overlay_dir ? disk->config.overlay_dir : disk->config.state_dir;

    return g_strdup_printf("%s/%s.overlays", parent, disk->config.name);
}

/* --- Standing --- */

/* An export is asked until it has answered once: whether its server lives shows when the disk is
 * used, and the loop must not wait for it each time. */
static int64_t
image_size(Disk *disk, GError **error)
{
    g_autoptr(GError) local = NULL;
    int64_t size = disk->size_bytes;

    if (size < 0)
        size = image_size_bytes(disk->config.image, clock_now_ns() + DISK_ASK_SIZE_MS * NS_PER_MS,
                                &local);
    if (size > 0 && disk->is_nbd)
        disk->size_bytes = size;
    if (size < 0)
        g_set_error(error, DISK_ERROR, DISK_ERROR_REFUSED, "%s: %s: %s", disk->config.name,
                    disk->config.image, local->message);
    return size;
}

static const char *
why_not(const DiskMeta *meta)
{
    if (meta->commit[0] || meta->state == DISK_UPTODATE)
        return NULL;
    if (meta->state == DISK_SYNCING)
        return "was being copied from the other host, and is a mixture";
    if (meta->generation == 0)
        return "was never replicated, and may hold nothing";
    return "is behind the other host's";
}

void
disk_standing(Disk *disk, DiskStanding *ret_standing)
{
    g_autofree char *path = state_path(disk, "meta");
    g_autoptr(GError) error = NULL;
    int64_t size = image_size(disk, &error);
    DiskStanding standing = {0};
    DiskMeta meta;

    if (size < 0 || !disk_meta_load(path, (uint64_t)size, &meta, &error)) {
        standing.reason = g_strdup(error->message);
        *ret_standing = standing;
        return;
    }

    const char *why = why_not(&meta);

    standing.exists = TRUE;
    standing.up_to_date = meta.state == DISK_UPTODATE && !meta.commit[0];
    standing.committing = meta.commit[0] != '\0';
    standing.never_used = meta.state == DISK_INCONSISTENT && meta.generation == 0;
    standing.generation = meta.generation;
    if (why)
        standing.reason = g_strdup_printf("%s: %s %s", disk->config.name, disk->config.image, why);
    *ret_standing = standing;
}

void
disk_standing_clear(DiskStanding *standing)
{
    g_clear_pointer(&standing->reason, g_free);
    *standing = (DiskStanding){0};
}

/* --- Before a start --- */

static gboolean
fail_errno(const char *what, int code, GError **error)
{
    g_set_error(error, DISK_ERROR, DISK_ERROR_PROCESS, "%s: %s", what, g_strerror(code));
    return FALSE;
}

static gboolean
link_file(const char *dir, const char *name, const char *file, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);

    if (g_unlink(path) < 0 && errno != ENOENT)
        return fail_errno(path, errno, error);
    return symlink(file, path) == 0 ? TRUE : fail_errno(path, errno, error);
}

/* nbdkit takes a folder in which the files have names of their own. */
static gboolean
prepare_tls(const Disk *disk, GError **error)
{
    const DiskConfig *config = &disk->config;
    g_autofree char *dir = tls_dir(disk);

    if (g_mkdir(dir, 0700) < 0 && errno != EEXIST)
        return fail_errno(dir, errno, error);
    return link_file(dir, "ca-cert.pem", config->tls_ca, error) &&
           link_file(dir, "server-cert.pem", config->tls_cert, error) &&
           link_file(dir, "server-key.pem", config->tls_key, error);
}

static socklen_t
numeric_address(const DiskConfig *config, struct sockaddr_storage *ret_address)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(config->listen_port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(config->listen_port)};

    if (inet_pton(AF_INET, config->listen_address, &v4.sin_addr) == 1) {
        memcpy(ret_address, &v4, sizeof(v4));
        return sizeof(v4);
    }
    if (inet_pton(AF_INET6, config->listen_address, &v6.sin6_addr) == 1) {
        memcpy(ret_address, &v6, sizeof(v6));
        return sizeof(v6);
    }
    return 0;
}

static int
listen_tcp(const DiskConfig *config, GError **error)
{
    struct sockaddr_storage address;
    socklen_t length = numeric_address(config, &address);
    auto_fd int fd = -1;
    int one = 1;

    if (length > 0)
        fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    else
        errno = EAFNOSUPPORT;
    /* As in the peer's listener: the port must be free again at once after a crash. */
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_PROCESS, "%s: cannot listen on %s port %u: %s",
                    config->name, config->listen_address, config->listen_port, g_strerror(errno));
        return -1;
    }
    return fd_steal(&fd);
}

static int
listen_unix(const Disk *disk, PluginKind kind, GError **error)
{
    g_autofree char *path = disk_socket_path(disk, kind);
    auto_fd int fd = fd_unix_listen(path);
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);

    /* nbdkit polls and then accepts: with a non-blocking socket a client that is gone in between
     * would be an error. */
    if (fd < 0 || flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        (void)fail_errno(path, fd < 0 ? -fd : errno, error);
        fd = MAX(fd, -1);
        return -1;
    }
    return fd_steal(&fd);
}

gboolean
disk_plugin_prepare(Plugin *plugin, GError **error)
{
    Disk *disk = plugin->disk;
    g_autofree char *overlays = overlay_dir(disk);

    if (image_size(disk, error) < 0)
        return FALSE;
    if (plugin->kind == PLUGIN_TARGET) {
        if (!prepare_tls(disk, error))
            return FALSE;
        if (!disk->config.overlays_in_memory && g_mkdir(overlays, 0700) < 0 && errno != EEXIST)
            return fail_errno(overlays, errno, error);
    }
    if (plugin->fds[0] < 0)
        plugin->fds[0] = listen_unix(disk, plugin->kind, error);
    if (plugin->fds[0] < 0)
        return FALSE;
    if (plugin->kind == PLUGIN_TARGET && plugin->fds[1] < 0)
        plugin->fds[1] = listen_tcp(&disk->config, error);
    return plugin->kind != PLUGIN_TARGET || plugin->fds[1] >= 0;
}

/* --- nbdkit's command line --- */

static void add(GPtrArray *argv, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void
add(GPtrArray *argv, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_ptr_array_add(argv, g_strdup_vprintf(format, args));
    va_end(args);
}

static void
add_target(const Disk *disk, GPtrArray *argv)
{
    g_autofree char *overlays = overlay_dir(disk);

    if (disk->config.overlays_in_memory)
        add(argv, "overlay=memory");
    else
        add(argv, "overlay-dir=%s", overlays);
    add(argv, "overlay-limit=%" PRIu64, disk->config.overlay_limit_bytes);
}

static void
add_forwarder(const Disk *disk, GPtrArray *argv)
{
    const DiskConfig *config = &disk->config;

    add(argv, "window-limit=%" PRIu64, config->window_limit_bytes);
    add(argv, "timeout-ms=%u", config->timeout_ms);
    add(argv, "tls-ca=%s", config->tls_ca);
    add(argv, "tls-cert=%s", config->tls_cert);
    add(argv, "tls-key=%s", config->tls_key);
    /* Of a process that takes another's place: QEMU waits for it. */
    if (disk->running && disk->alone_generation > 0)
        add(argv, "alone=%" PRIu64, disk->alone_generation);
}

char **
disk_plugin_command(const Disk *disk, PluginKind kind)
{
    GPtrArray *argv = g_ptr_array_new();
    g_autofree char *meta = state_path(disk, "meta");
    g_autofree char *map = state_path(disk, "map");
    g_autofree char *control = disk_control_path(disk, kind);
    g_autofree char *tls = tls_dir(disk);

    add(argv, "%s", disk->config.nbdkit);
    add(argv, "-f"); /* its parent is us, and its log is a file */
    if (kind == PLUGIN_TARGET) {
        add(argv, "--tls=on"); /* the plugin refuses TCP without */
        add(argv, "--tls-certificates=%s", tls);
        add(argv, "--tls-verify-peer");
    } else {
        add(argv, "--threads=1"); /* one client, answered at once: no hand-over between threads */
    }
    if (disk->config.plugin_dir)
        add(argv, "%s/nbdkit-%s-plugin.so", disk->config.plugin_dir, plugin_names[kind]);
    else
        add(argv, "%s", plugin_names[kind]);
    add(argv, "map=%s", map);
    add(argv, "disk=%s", disk->config.image);
    add(argv, "metadata=%s", meta);
    add(argv, "control=%s", control);
    if (kind == PLUGIN_TARGET)
        add_target(disk, argv);
    else
        add_forwarder(disk, argv);
    g_ptr_array_add(argv, NULL);
    return (char **)g_ptr_array_free(argv, FALSE);
}

char *
disk_last_words(const Disk *disk, PluginKind kind)
{
    g_autofree char *path = disk_log_path(disk, kind);
    auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    char buffer[LAST_WORDS_BYTES + 1];
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    ssize_t n = fd < 0 ? 0
                       : pread(fd, buffer, LAST_WORDS_BYTES,
                               size > LAST_WORDS_BYTES ? size - LAST_WORDS_BYTES : 0);

    buffer[MAX(n, 0)] = '\0';

    const char *line = g_strrstr(g_strchomp(buffer), "\n");
    g_autofree char *valid = g_utf8_make_valid(line ? line + 1 : buffer, -1);

    return *valid ? g_strdup_printf(" (%s)", valid) : g_strdup("");
}
