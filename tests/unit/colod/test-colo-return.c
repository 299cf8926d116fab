/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-colo-return.c - colo-return.c against recorded and built return channels */
#include "colo-stream.h"

#include "check-main.h"

#include <gio/gio.h>

static const char letters[] = {
    [COLO_RETURN_NONE] = '-',  [COLO_RETURN_PATH_MESSAGE] = 'p', [COLO_RETURN_READY] = 'R',
    [COLO_RETURN_REPLY] = 'y', [COLO_RETURN_RECEIVED] = 'v',     [COLO_RETURN_LOADED] = 'l',
};

/* Parses @in in pieces of @step bytes; the events as letters, then '!' and sets @error on failure.
 */
static char *
parse(const void *bytes, size_t len, size_t step, GError **error)
{
    g_autoptr(ColoReturn) parser = colo_return_new();
    GString *events = g_string_new(NULL);

    for (size_t at = 0; at < len; at += step) {
        View in = view_of((const uint8_t *)bytes + at, MIN(step, len - at));
        ColoReturnEvent event;

        do {
            if (!colo_return_parse(parser, &in, &event, error)) {
                g_autoptr(GError) again = NULL;

                in = view_of("", 0);
                ck_assert(!colo_return_parse(parser, &in, &event, &again));
                ck_assert(!error || g_strcmp0(again->message, (*error)->message) == 0);
                return g_string_free(g_string_append_c(events, '!'), FALSE);
            }
            if (event != COLO_RETURN_NONE)
                g_string_append_c(events, letters[event]);
        } while (event != COLO_RETURN_NONE);
        ck_assert_uint_eq(in.len, 0);
    }
    return g_string_free(events, FALSE);
}

static void
expect(const void *bytes, size_t len, const char *events)
{
    for (size_t step = 1; step <= len; step++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *got = parse(bytes, len, step, &error);

        ck_assert_str_eq(got, events);
        ck_assert_ptr_null(error);
    }
}

static void
expect_error(const void *bytes, size_t len, const char *events, ColoStreamError code,
             const char *text)
{
    for (size_t step = 1; step <= len; step++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *got = parse(bytes, len, step, &error);

        ck_assert_str_eq(got, events);
        ck_assert(g_error_matches(error, COLO_STREAM_ERROR, (gint)code));
        ck_assert_msg(strstr(error->message, text) != NULL, "%s", error->message);
    }
}

START_TEST(unit_recording)
{
    g_autofree char *packed = NULL;
    gsize packed_len;
    g_autoptr(GZlibDecompressor) unzip = g_zlib_decompressor_new(G_ZLIB_COMPRESSOR_FORMAT_GZIP);
    char out[256];
    gsize n_read, n_written;

    ck_assert(g_file_get_contents(TEST_DATA_DIR "/test-colo-qemu-11.1-return.gz", &packed,
                                  &packed_len, NULL));
    ck_assert_int_eq(g_converter_convert(G_CONVERTER(unzip), packed, packed_len, out, sizeof(out),
                                         G_CONVERTER_INPUT_AT_END, &n_read, &n_written, NULL),
                     G_CONVERTER_FINISHED);
    expect(out, n_written, "ppRyvlyvlyvlyvl");
}
END_TEST

/* QEMU 7.2 without capability return-path. */
START_TEST(unit_raw)
{
    expect("\0\0\0\0\0\0\0\2\0\0\0\5\0\0\0\6\0\0\0\2", 20, "Ryvly");
}
END_TEST

START_TEST(unit_return_path)
{
    /* PONG, SWITCHOVER_ACK, SHUT, READY */
    expect("\0\2\0\4\0\0\0\1\0\7\0\0\0\1\0\4\0\0\0\0\0\0\0\0", 24, "pppR");
    /* SHUT only */
    expect("\0\1\0\4\0\0\0\0\0\0\0\0\0\0\0\2", 16, "pRy");
}
END_TEST

START_TEST(err_return_path)
{
    expect_error("\0\3\0\x0c", 4, "!", COLO_STREAM_ERROR_RETURN_PATH, "type 3");
    expect_error("\xff\xff\xff\xff", 4, "!", COLO_STREAM_ERROR_RETURN_PATH, "(offset 0)");
    expect_error("\0\2\xff\xff", 4, "!", COLO_STREAM_ERROR_RETURN_PATH, "malformed");
    expect_error("\0\1\0\0", 4, "!", COLO_STREAM_ERROR_RETURN_PATH, "malformed");
    expect_error("\0\7\0\4", 4, "!", COLO_STREAM_ERROR_RETURN_PATH, "malformed");
    /* READY where SHUT must come first, and a raw channel that is none. */
    expect_error("\0\2\0\4\0\0\0\1\0\0\0\0", 12, "p!", COLO_STREAM_ERROR_RETURN_PATH, "(offset 8)");
    expect_error("\0\0\0\2", 4, "!", COLO_STREAM_ERROR_RETURN_PATH, "type 0");
}
END_TEST

START_TEST(err_load_failed)
{
    expect_error("\0\1\0\4\0\0\0\1", 8, "!", COLO_STREAM_ERROR_RETURN_PATH, "failed load");
}
END_TEST

START_TEST(err_order)
{
    expect_error("\0\0\0\0\0\0\0\5", 8, "R!", COLO_STREAM_ERROR_ORDER,
                 "VMSTATE_RECEIVED out of turn, CHECKPOINT_REPLY was due (offset 4)");
    expect_error("\0\0\0\0\0\0\0\0", 8, "R!", COLO_STREAM_ERROR_ORDER, "CHECKPOINT_READY");
    expect_error("\0\0\0\0\0\0\0\2\0\0\0\6", 12, "Ry!", COLO_STREAM_ERROR_ORDER, "VMSTATE_LOADED");
    expect_error("\0\0\0\0\0\0\0\2\0\0\0\5\0\0\0\2", 16, "Ryv!", COLO_STREAM_ERROR_ORDER,
                 "CHECKPOINT_REPLY");
}
END_TEST

START_TEST(err_message)
{
    expect_error("\0\0\0\0\0\0\0\x08", 8, "R!", COLO_STREAM_ERROR_MESSAGE, "0x00000008");
    expect_error("\0\1\0\4\0\0\0\0\x80\0\0\0", 12, "p!", COLO_STREAM_ERROR_MESSAGE, "0x80000000");
}
END_TEST

CHECK_MAIN("colo-return", unit_recording, unit_raw, unit_return_path, err_return_path,
           err_load_failed, err_order, err_message)
