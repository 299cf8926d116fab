/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* image.h - what the configuration calls a disk's image: a path, or an NBD export
 *
 * A path is a raw file or a block device. An export, "nbd+unix:///EXPORT?socket=PATH", is some
 * other program's, as a rule qemu-storage-daemon's, which knows other formats. It is on this host
 * and behind a UNIX socket: what crosses hosts is ours to protect.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct nbd_handle; /* libnbd's */

typedef struct ImageNbd {
    char *socket_path, *export_name;
} ImageNbd;

void image_nbd_clear(ImageNbd *nbd);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ImageNbd, image_nbd_clear)

/** Is it (meant as) an export? Else it is a path. */
bool image_is_nbd(const char *image);

/** The parts of an export's URI; @error: what is wrong with it, and how one is written. */
gboolean image_nbd_parse(const char *image, ImageNbd *ret_nbd, GError **error);

/**
 * A new connection, the caller's (nbd_close()), on which libnbd's calls may be used that wait for
 * the server. Blocks until the deadline (clock_now_ns()) at the latest.
 */
struct nbd_handle *image_nbd_connect(const ImageNbd *nbd, int64_t deadline_ns, GError **error);

/** In bytes, more than 0; or -1. Of an export: asks the server, and blocks until the deadline. */
int64_t image_size_bytes(const char *image, int64_t deadline_ns, GError **error);
