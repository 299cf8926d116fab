/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* file-replace.h - writes a small file so that a crash leaves the old or the new one */
#pragma once

#include <glib.h>

/**
 * Written beside as @path.new (mode 0600), flushed, renamed, its folder flushed. Blocks. On
 * failure @path is as it was, except if only the folder could not be flushed.
 */
gboolean file_replace(const char *path, const void *data, gsize length, GError **error);
