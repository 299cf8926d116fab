/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* plugin-parts.c - what both plugins do alike */
#include "plugin-parts.h"

#include "image.h"

#include <glib.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

int
plugin_set_path(char **path, const char *value)
{
    char *absolute = image_is_nbd(value) ? strdup(value) : nbdkit_absolute_path(value);

    free(*path);
    *path = absolute;
    return absolute ? 0 : -1;
}

void
plugin_block_signals(sigset_t *ret_before)
{
    sigset_t all;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, ret_before);
}

void
plugin_restore_signals(const sigset_t *before)
{
    (void)pthread_sigmask(SIG_SETMASK, before, NULL);
}

bool
plugin_peer_is_local(bool *ret_known)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    *ret_known = nbdkit_peer_name((struct sockaddr *)&address, &length) >= 0;
    return *ret_known && address.ss_family == AF_UNIX;
}

int
plugin_yes(G_GNUC_UNUSED void *handle)
{
    return 1;
}

int
plugin_no(G_GNUC_UNUSED void *handle)
{
    return 0;
}
