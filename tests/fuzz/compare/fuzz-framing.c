/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-framing.c - QEMU's framing, notify messages, and the walk over pcapng blocks */
#include <glib.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "frame.h"
#include "framing.h"
#include "notify.h"
#include "pcapng.h"

/* abort(), which libFuzzer catches; g_error() raises SIGTRAP, which it does not. */
#define die(...)                                                                                   \
    do {                                                                                           \
        g_printerr(__VA_ARGS__);                                                                   \
        abort();                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef int64_t (*TakeNext)(const uint8_t *bytes, size_t len, bool vnet_hdr,
                            FramingPacket *ret_packet);

static void
walk_packets(TakeNext next, const uint8_t *data, size_t size, bool vnet_hdr)
{
    FramingPacket packet;
    size_t at = 0;
    int64_t n;

    while ((n = next(data + at, size - at, vnet_hdr, &packet)) > 0) {
        if ((size_t)n > size - at || packet.bytes < data + at ||
            packet.bytes + packet.len != data + at + n || packet.vnet_hdr_len > packet.len)
            die("packet out of bounds");
        (void)notify_kind(&packet);
        at += (size_t)n;
    }
}

static void
walk_blocks(const uint8_t *data, size_t size)
{
    FILE *file = size ? fmemopen((void *)data, size, "rb") : NULL;
    bool swapped = false;
    uint32_t interface;

    if (!file)
        return;
    (void)pcapng_detect(file);
    while (pcapng_next_interface(file, &swapped, &interface) == 0)
        continue;
    (void)fclose(file);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    walk_packets(framing_next, data, size, false);
    walk_packets(framing_next, data, size, true);
    walk_packets(notify_next, data, size, true);
    walk_blocks(data, size);
    return 0;
}
