/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pcapng.c - what libpcap does not do: write pcapng with comments, tell interfaces apart */
#include "pcapng.h"

#include <byteswap.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK_SECTION = 0x0a0d0d0a,
    BLOCK_INTERFACE = 1,
    BLOCK_PACKET_OLD = 2,
    BLOCK_SIMPLE_PACKET = 3,
    BLOCK_ENHANCED_PACKET = 6,
    BYTE_ORDER_MAGIC = 0x1a2b3c4d,
    OPTION_COMMENT = 1,
    OPTION_IF_NAME = 2,
    OPTION_IF_TSRESOL = 9,
    LINKTYPE_ETHERNET = 1,
    BLOCK_MAX_BYTES = 16 * 1024 * 1024, /* what libpcap accepts as well */
};

struct PcapngWriter {
    FILE *file;
    int error;
};

static uint32_t
padded(uint32_t len)
{
    return (len + 3) & ~UINT32_C(3);
}

static void
put(PcapngWriter *w, const void *bytes, size_t len)
{
    if (!w->error && len && fwrite(bytes, 1, len, w->file) != len)
        w->error = errno ? -errno : -EIO;
}

static void
put_padded(PcapngWriter *w, const void *bytes, uint32_t len)
{
    static const uint8_t zeroes[4] = {0};

    put(w, bytes, len);
    put(w, zeroes, padded(len) - len);
}

static void
put_u32(PcapngWriter *w, uint32_t value)
{
    put(w, &value, sizeof(value)); /* the byte order is the writer's: the format says which */
}

static void
put_option(PcapngWriter *w, uint16_t code, const void *value, uint16_t len)
{
    const uint16_t head[2] = {code, len};

    put(w, head, sizeof(head));
    put_padded(w, value, len);
}

int
pcapng_writer_open(const char *path, PcapngWriter **ret_writer)
{
    PcapngWriter *w = calloc(1, sizeof(*w));
    const uint16_t version[2] = {1, 0};
    const int64_t unknown_length = -1;

    if (!w)
        return -ENOMEM;
    w->file = fopen(path, "wbe");
    if (!w->file) {
        int r = -errno;

        free(w);
        return r;
    }
    put_u32(w, BLOCK_SECTION);
    put_u32(w, 28);
    put_u32(w, BYTE_ORDER_MAGIC);
    put(w, version, sizeof(version));
    put(w, &unknown_length, sizeof(unknown_length));
    put_u32(w, 28);
    *ret_writer = w;
    return 0;
}

void
pcapng_writer_add_interface(PcapngWriter *w, const char *name)
{
    const uint16_t link[2] = {LINKTYPE_ETHERNET, 0};
    const uint8_t nanoseconds = 9;
    uint16_t name_len = (uint16_t)strnlen(name, 255);
    uint32_t len = 20 + 4 + padded(name_len) + 8 + 4;

    put_u32(w, BLOCK_INTERFACE);
    put_u32(w, len);
    put(w, link, sizeof(link));
    put_u32(w, 0); /* no snap length */
    put_option(w, OPTION_IF_NAME, name, name_len);
    put_option(w, OPTION_IF_TSRESOL, &nanoseconds, 1);
    put_option(w, 0, NULL, 0);
    put_u32(w, len);
}

void
pcapng_writer_add_packet(PcapngWriter *w, uint32_t interface, int64_t time_ns, const uint8_t *bytes,
                         uint32_t len, const char *comment)
{
    uint16_t comment_len = comment ? (uint16_t)strnlen(comment, 4096) : 0;
    uint32_t options = comment_len ? 4 + padded(comment_len) + 4 : 0;
    uint32_t total = 32 + padded(len) + options;

    put_u32(w, BLOCK_ENHANCED_PACKET);
    put_u32(w, total);
    put_u32(w, interface);
    put_u32(w, (uint32_t)((uint64_t)time_ns >> 32));
    put_u32(w, (uint32_t)time_ns);
    put_u32(w, len);
    put_u32(w, len);
    put_padded(w, bytes, len);
    if (comment_len) {
        put_option(w, OPTION_COMMENT, comment, comment_len);
        put_option(w, 0, NULL, 0);
    }
    put_u32(w, total);
}

int
pcapng_writer_close(PcapngWriter *w)
{
    int r = w->error;

    if (fclose(w->file) != 0 && !r)
        r = -errno;
    free(w);
    return r;
}

/* --- walking --- */

bool
pcapng_detect(FILE *file)
{
    uint32_t type = 0;
    bool yes = fread(&type, sizeof(type), 1, file) == 1 && type == BLOCK_SECTION;

    rewind(file);
    return yes;
}

static int
skip(FILE *file, uint32_t len)
{
    return len && fseek(file, (long)len, SEEK_CUR) < 0 ? -EBADMSG : 0;
}

/* A section header names the byte order of what follows. */
static int
read_section_order(FILE *file, uint32_t *len, bool *swapped)
{
    uint32_t magic;

    if (fread(&magic, sizeof(magic), 1, file) != 1)
        return -EBADMSG;
    if (magic != BYTE_ORDER_MAGIC && magic != bswap_32(BYTE_ORDER_MAGIC))
        return -EBADMSG;
    bool now_swapped = magic != BYTE_ORDER_MAGIC;

    if (now_swapped != *swapped)
        *len = bswap_32(*len);
    *swapped = now_swapped;
    return 0;
}

static bool
holds_packet(uint32_t type)
{
    return type == BLOCK_ENHANCED_PACKET || type == BLOCK_SIMPLE_PACKET || type == BLOCK_PACKET_OLD;
}

int
pcapng_next_interface(FILE *file, bool *swapped, uint32_t *ret_interface)
{
    for (;;) {
        uint32_t head[2];
        uint32_t word = 0;
        uint32_t read_bytes = sizeof(head);

        if (fread(head, sizeof(head), 1, file) != 1)
            return -ENODATA;
        uint32_t type = *swapped ? bswap_32(head[0]) : head[0];
        uint32_t len = *swapped ? bswap_32(head[1]) : head[1];

        if (head[0] == BLOCK_SECTION) { /* reads the same in both orders */
            if (read_section_order(file, &len, swapped) < 0)
                return -EBADMSG;
            read_bytes += sizeof(word);
        } else if (holds_packet(type)) {
            if (fread(&word, sizeof(word), 1, file) != 1)
                return -EBADMSG;
            read_bytes += sizeof(word);
            word = *swapped ? bswap_32(word) : word;
        }
        if (len % 4 || len < read_bytes + 4 || len > BLOCK_MAX_BYTES ||
            skip(file, len - read_bytes) < 0)
            return -EBADMSG;
        if (!holds_packet(type))
            continue;
        if (type == BLOCK_SIMPLE_PACKET)
            word = 0; /* it was the length; the interface is the first by definition */
        else if (type == BLOCK_PACKET_OLD)
            word = *swapped ? word >> 16 : word & 0xffff;
        *ret_interface = word;
        return 0;
    }
}
