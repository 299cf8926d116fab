/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* image.c - what the configuration calls a disk's image: a path, or an NBD export */
#include "image.h"

#include "clock.h"
#include "fd.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <libnbd.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define SCHEME "nbd+unix"
#define AS_IN "nbd+unix:///EXPORT?socket=/PATH"

enum {
    SOCKET_PATH_MAX = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1,
    EXPORT_NAME_MAX = 4096, /* of the NBD protocol */
};

void
image_nbd_clear(ImageNbd *nbd)
{
    g_clear_pointer(&nbd->socket_path, g_free);
    g_clear_pointer(&nbd->export_name, g_free);
}

bool
image_is_nbd(const char *image)
{
    return g_str_has_prefix(image, "nbd:") || g_str_has_prefix(image, "nbd+") ||
           g_str_has_prefix(image, "nbds");
}

/* --- Parsing --- */

static const char *
check_parts(GUri *uri, const char *socket_path)
{
    const char *path = g_uri_get_path(uri), *host = g_uri_get_host(uri);

    if (!g_str_equal(g_uri_get_scheme(uri), SCHEME))
        return "an export is reached over a UNIX socket of this host";
    if ((host && *host) || g_uri_get_userinfo(uri) || g_uri_get_port(uri) >= 0 ||
        g_uri_get_fragment(uri))
        return "there is more in it than an export and a socket";
    if (path[0] != '/' || strlen(path + 1) > EXPORT_NAME_MAX || !g_utf8_validate(path, -1, NULL))
        return "the export's name is missing or too long";
    if (!socket_path || !g_path_is_absolute(socket_path) || strlen(socket_path) > SOCKET_PATH_MAX ||
        !g_utf8_validate(socket_path, -1, NULL))
        return "the socket is no absolute path, or longer than a socket's may be";
    return NULL;
}

gboolean
image_nbd_parse(const char *image, ImageNbd *ret_nbd, GError **error)
{
    g_autoptr(GUri) uri = g_uri_parse(image, G_URI_FLAGS_ENCODED_QUERY, NULL);
    const char *query = uri ? g_uri_get_query(uri) : NULL, *problem = "it is no URI";
    g_autoptr(GHashTable) params =
        query ? g_uri_parse_params(query, -1, "&", G_URI_PARAMS_NONE, NULL) : NULL;
    const char *socket_path = params ? g_hash_table_lookup(params, "socket") : NULL;

    if (uri)
        problem = check_parts(uri, socket_path);
    if (!problem && g_hash_table_size(params) > 1)
        problem = "there is more in it than an export and a socket";
    if (problem) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "%s; write it as in " AS_IN,
                    problem);
        return FALSE;
    }
    ret_nbd->socket_path = g_strdup(socket_path);
    ret_nbd->export_name = g_strdup(g_uri_get_path(uri) + 1);
    return TRUE;
}

/* --- Connecting --- */

static struct nbd_handle *
fail(struct nbd_handle *handle, const ImageNbd *nbd, GError **error)
{
    const char *text = nbd_get_error();

    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "export '%s' at %s: %s", nbd->export_name,
                nbd->socket_path, text ? text : "no connection");
    nbd_close(handle);
    return NULL;
}

struct nbd_handle *
image_nbd_connect(const ImageNbd *nbd, int64_t deadline_ns, GError **error)
{
    struct nbd_handle *handle = nbd_create();

    if (!handle || nbd_set_export_name(handle, nbd->export_name) < 0 ||
        nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_aio_connect_unix(handle, nbd->socket_path) < 0)
        return fail(handle, nbd, error);
    while (nbd_aio_is_connecting(handle) == 1) {
        int64_t left_ms = (deadline_ns - clock_now_ns()) / NS_PER_MS;

        if (left_ms > 0 && nbd_poll(handle, (int)MIN(left_ms, G_MAXINT)) >= 0)
            continue;
        if (left_ms > 0)
            break;
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT, "%s does not answer in time",
                    nbd->socket_path);
        nbd_close(handle);
        return NULL;
    }
    return nbd_aio_is_ready(handle) == 1 ? handle : fail(handle, nbd, error);
}

/* --- Size --- */

static int64_t
size_of_export(const char *image, int64_t deadline_ns, GError **error)
{
    g_auto(ImageNbd) nbd = {0};
    struct nbd_handle *handle;
    int64_t size;

    if (!image_nbd_parse(image, &nbd, error))
        return -1;
    handle = image_nbd_connect(&nbd, deadline_ns, error);
    if (!handle)
        return -1;
    size = nbd_get_size(handle);
    (void)nbd_aio_disconnect(handle, 0); /* said, and not waited for */
    nbd_close(handle);
    if (size <= 0)
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "export '%s' is empty", nbd.export_name);
    return size > 0 ? size : -1;
}

int64_t
image_size_bytes(const char *image, int64_t deadline_ns, GError **error)
{
    if (image_is_nbd(image))
        return size_of_export(image, deadline_ns, error);

    auto_fd int fd = open(image, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);

    if (size > 0)
        return size;
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s",
                size < 0 ? g_strerror(errno) : "is empty");
    return -1;
}
