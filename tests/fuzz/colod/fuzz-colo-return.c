/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-colo-return.c - any split of a return channel gives the same events and error */
/*
 * Input: u8 size of the pieces, then the channel.
 */
#include "colo-stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *
parse(View channel, size_t step)
{
    g_autoptr(ColoReturn) parser = colo_return_new();
    GString *events = g_string_new(NULL);

    while (channel.len > 0) {
        g_autoptr(GError) error = NULL;
        const uint8_t *bytes = NULL;
        size_t len = MIN(step, channel.len);

        (void)view_take(&channel, len, &bytes);

        View in = view_of(bytes, len);
        ColoReturnEvent event;

        do {
            if (!colo_return_parse(parser, &in, &event, &error)) {
                g_string_append_printf(events, "! %s", error->message);
                return g_string_free(events, FALSE);
            }
            if (event != COLO_RETURN_NONE)
                g_string_append_printf(events, "%d;", (int)event);
        } while (event != COLO_RETURN_NONE);
        g_assert(in.len == 0);
    }
    return g_string_free(events, FALSE);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    View in = view_of(data, size);
    uint8_t step;

    if (!view_get_u8(&in, &step))
        return 0;

    g_autofree char *whole = parse(in, in.len);
    g_autofree char *split = parse(in, 1 + (size_t)step);

    g_assert_cmpstr(whole, ==, split);
    return 0;
}
