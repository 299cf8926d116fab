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

/* A VLAN tag changes the key's last word and where things are, nothing else: so the way by which
 * plain frames are parsed and the general one say the same. */
static void
check_tagged(const uint8_t *data, size_t size, size_t vnet, const Frame *f)
{
    enum { MACS_BYTES = 12, TAG_BYTES = 4 };
    static const uint8_t tag[TAG_BYTES] = {0x81, 0x00, 0x00, 0x05};
    size_t at = vnet + MACS_BYTES;
    Frame tagged;

    if (f->cls != FRAME_TCP || f->key.w[5] != 0)
        return;
    g_autofree uint8_t *copy = g_malloc(size + TAG_BYTES);

    memcpy(copy, data, at);
    memcpy(copy + at, tag, TAG_BYTES);
    memcpy(copy + at + TAG_BYTES, data + at, size - at);
    frame_parse(copy, size + TAG_BYTES, vnet, &tagged);
    if (memcmp(tagged.key.w, f->key.w, 5 * sizeof(f->key.w[0])) != 0 || tagged.cls != f->cls ||
        tagged.payload_off != f->payload_off + TAG_BYTES || tagged.payload_len != f->payload_len ||
        tagged.l4_off != f->l4_off + TAG_BYTES || tagged.seq != f->seq || tagged.ack != f->ack ||
        tagged.protocol != f->protocol || tagged.tcp_flags != f->tcp_flags ||
        tagged.csum_partial != f->csum_partial || tagged.ipv6 != f->ipv6)
        die("a tag changes the frame");
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
        check_tagged(data, size, vnet[i], &frame);
        if (frame.cls != FRAME_FRAGMENT)
            continue;
        frame_parse_reassembled(data + frame.payload_off, frame.payload_len, &frame, &again);
        check(&again, frame.payload_len);
        if (again.cls == FRAME_FRAGMENT)
            die("a fragment in a reassembled datagram");
    }
    return 0;
}
