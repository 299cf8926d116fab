/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-colo-recording.h - migration streams recorded by record-stream.py */
#pragma once

#include <check.h>
#include <gio/gio.h>

/* The unpacked contents of a recording. */
static inline GByteArray *
build_from_recording(const char *path)
{
    g_autoptr(GFile) file = g_file_new_for_path(path);
    g_autoptr(GFileInputStream) packed = g_file_read(file, NULL, NULL);
    g_autoptr(GZlibDecompressor) unzip = g_zlib_decompressor_new(G_ZLIB_COMPRESSOR_FORMAT_GZIP);

    ck_assert_msg(packed != NULL, "%s", path);

    g_autoptr(GInputStream) in =
        g_converter_input_stream_new(G_INPUT_STREAM(packed), G_CONVERTER(unzip));
    GByteArray *out = g_byte_array_new();
    static guint8 piece[64 * 1024];
    gssize n;

    while ((n = g_input_stream_read(in, piece, sizeof(piece), NULL, NULL)) > 0)
        g_byte_array_append(out, piece, (guint)n);
    ck_assert_int_eq(n, 0);
    return out;
}
