/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-nbdkit.c - what the plugin calls of nbdkit, so that its callbacks run in a sanitized test */
#include "fake-nbdkit.h"

#include <errno.h>
#include <glib.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

FakeConnection fake_connection;
atomic_uint fake_nbdkit_shutdowns;

static __thread char error_text[512];
static __thread int error_number;

const char *
fake_nbdkit_error(void)
{
    return error_text;
}

int
fake_nbdkit_errno(void)
{
    return error_number;
}

void
nbdkit_error(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(error_text, sizeof(error_text), format, arguments);
    va_end(arguments);
}

void
nbdkit_debug(G_GNUC_UNUSED const char *format, ...)
{
}

void
nbdkit_set_error(int error)
{
    error_number = error;
}

char *
nbdkit_absolute_path(const char *path)
{
    return strdup(path); /* the plugin frees it with free() */
}

int64_t
nbdkit_parse_size(const char *text)
{
    return g_ascii_isdigit(text[0]) ? strtoll(text, NULL, 10) : -1;
}

const char *
nbdkit_export_name(void)
{
    return fake_connection.export_name;
}

int
nbdkit_is_tls(void)
{
    return fake_connection.is_tls;
}

int
nbdkit_peer_name(struct sockaddr *address, socklen_t *length)
{
    if (*length < sizeof(*address))
        return -1;
    address->sa_family = fake_connection.is_local ? AF_UNIX : AF_INET6;
    *length = sizeof(*address);
    return 0;
}

void
nbdkit_shutdown(void)
{
    (void)atomic_fetch_add(&fake_nbdkit_shutdowns, 1);
}

int
nbdkit_add_export(struct nbdkit_exports *exports, const char *name,
                  G_GNUC_UNUSED const char *description)
{
    if (exports->n == G_N_ELEMENTS(exports->names))
        return -1;
    exports->names[exports->n++] = name;
    return 0;
}

int
nbdkit_add_extent(struct nbdkit_extents *extents, uint64_t offset, uint64_t length, uint32_t type)
{
    if (extents->n == FAKE_MAX_EXTENTS)
        return -1;
    extents->list[extents->n++] = (FakeExtent){.offset = offset, .length = length, .type = type};
    return 0;
}
