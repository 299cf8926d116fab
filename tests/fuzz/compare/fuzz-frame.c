/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-frame.c - the frame parser keeps every offset within the frame */
#include <glib.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

/* abort(), which libFuzzer catches; g_error() raises SIGTRAP, which it does not. */
#define die(...)                                                                                   \
    do {                                                                                           \
        g_printerr(__VA_ARGS__);                                                                   \
        abort();                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check(const Frame *f, size_t len)
{
    char text[160];

    if (f->payload_off > len || f->payload_len > len - f->payload_off)
        die("payload %u + %u of %zu", f->payload_off, f->payload_len, len);
    if (f->cls == FRAME_TCP && (f->l4_off > len || len - f->l4_off < 20))
        die("TCP header at %u of %zu", f->l4_off, len);
    if ((f->cls == FRAME_MALFORMED) != (f->malformed_why != NULL))
        die("malformed without a reason, or a reason without");
    frame_key_format(&f->key, text, sizeof(text));
    if (frame_key_class(&f->key) != f->cls || strlen(text) >= sizeof(text))
        die("key");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t vnet[] = {0, 10, 12, 255};
    Frame frame;
    Frame again;

    for (size_t i = 0; i < G_N_ELEMENTS(vnet); i++) {
        frame_parse(data, size, vnet[i], &frame);
        check(&frame, size);
        if (frame.cls != FRAME_FRAGMENT)
            continue;
        frame_parse_reassembled(data + frame.payload_off, frame.payload_len, &frame, &again);
        check(&again, frame.payload_len);
        if (again.cls == FRAME_FRAGMENT)
            die("a fragment in a reassembled datagram");
    }
    return 0;
}
