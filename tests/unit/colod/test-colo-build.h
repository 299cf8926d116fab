/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-colo-build.h - builds migration streams as QEMU 11.1 writes them, for tests and fuzzers of
 * parsers and gate */
#pragma once

#include "bytes.h"

#include <glib.h>

#include <string.h>

enum { BUILD_RAM_ID = 1, BUILD_PAGE_BYTES = 4096 };

static inline void
build_bytes(GByteArray *out, const void *bytes, size_t len)
{
    g_byte_array_append(out, bytes, (guint)len);
}

static inline void
build_u8(GByteArray *out, uint8_t value)
{
    build_bytes(out, &value, 1);
}

static inline void
build_be16(GByteArray *out, uint16_t value)
{
    uint8_t bytes[2];

    be16_store(bytes, value);
    build_bytes(out, bytes, sizeof(bytes));
}

static inline void
build_be32(GByteArray *out, uint32_t value)
{
    uint8_t bytes[4];

    be32_store(bytes, value);
    build_bytes(out, bytes, sizeof(bytes));
}

static inline void
build_be64(GByteArray *out, uint64_t value)
{
    uint8_t bytes[8];

    be64_store(bytes, value);
    build_bytes(out, bytes, sizeof(bytes));
}

static inline void
build_name(GByteArray *out, const char *name)
{
    build_u8(out, (uint8_t)strlen(name));
    build_bytes(out, name, strlen(name));
}

/* "QEVM", CONFIGURATION, OPEN_RETURN_PATH, PING. */
static inline void
build_head(GByteArray *out)
{
    build_bytes(out, "QEVM\0\0\0\3", 8);
    build_u8(out, 0x07);
    build_be32(out, 14);
    build_bytes(out, "pc-i440fx-11.1", 14);
    build_bytes(out, "\x08\0\1\0\0", 5);
    build_bytes(out, "\x08\0\2\0\4\0\0\0\1", 9);
}

/* The rest of a RAM section: EOS, footer. */
static inline void
build_ram_foot(GByteArray *out)
{
    build_be64(out, 0x10);
    build_u8(out, 0x7e);
    build_be32(out, BUILD_RAM_ID);
}

static inline void
build_start_head(GByteArray *out)
{
    build_u8(out, 0x01);
    build_be32(out, BUILD_RAM_ID);
    build_name(out, "ram");
    build_be32(out, 0);
    build_be32(out, 4);
}

static inline void
build_start(GByteArray *out)
{
    build_start_head(out);
    build_be64(out, 0x30000 | 0x04);
    build_name(out, "pc.ram");
    build_be64(out, 0x20000);
    build_name(out, "pc.bios");
    build_be64(out, 0x10000);
    build_ram_foot(out);
}

static inline void
build_section(GByteArray *out, uint8_t type)
{
    build_u8(out, type);
    build_be32(out, BUILD_RAM_ID);
}

/* One page record. @name NULL: CONTINUE. @fill 0: a ZERO record. */
static inline void
build_page(GByteArray *out, const char *name, uint64_t addr, uint8_t fill)
{
    uint8_t page[BUILD_PAGE_BYTES];

    build_be64(out, addr | (fill ? 0x08 : 0x02) | (name ? 0 : 0x20));
    if (name)
        build_name(out, name);
    memset(page, fill, sizeof(page));
    build_bytes(out, page, fill ? sizeof(page) : 1);
}

/* Everything before READY: 3 pages, some device state. */
static inline void
build_migration(GByteArray *out)
{
    /* With what looks like messages within. */
    static const char opaque[] = "\x04 device state \0\0\0\1\0\0\0\3 vmdesc";

    build_head(out);
    build_start(out);
    build_section(out, 0x02);
    build_page(out, "pc.ram", 0x1000, 0x11);
    build_page(out, NULL, 0x2000, 0);
    build_ram_foot(out);
    build_bytes(out, "\x08\0\x0b\0\0", 5);
    build_section(out, 0x03);
    build_page(out, "pc.bios", 0x1000, 0x22);
    build_ram_foot(out);
    build_bytes(out, opaque, sizeof(opaque) - 1);
}

/* Where the initial migration's device state begins. */
static inline guint
build_state_at(const GByteArray *migration)
{
    static const char begin[] = "\x04 device state ";

    for (guint at = 0; at + sizeof(begin) - 1 <= migration->len; at++)
        if (memcmp(migration->data + at, begin, sizeof(begin) - 1) == 0)
            return at;
    g_assert_not_reached();
}

/* Everything of a checkpoint after VMSTATE_SEND up to the delta's EOF byte. */
static inline void
build_delta(GByteArray *out, unsigned pages)
{
    build_section(out, 0x03);
    for (unsigned i = 0; i < pages; i++)
        build_page(out, i % 3 == 0 ? "pc.ram" : NULL, i * (uint64_t)BUILD_PAGE_BYTES,
                   (uint8_t)(i % 7));
    build_ram_foot(out);
    build_u8(out, 0);
}

static inline void
build_tail(GByteArray *out, unsigned bytes)
{
    build_be32(out, 4);
    build_be64(out, bytes);
    for (unsigned i = 0; i < bytes; i++)
        build_u8(out, (uint8_t)(i * 31 + bytes));
}

/* A whole checkpoint's forward direction. */
static inline void
build_checkpoint(GByteArray *out, unsigned pages, unsigned tail_bytes)
{
    build_be32(out, 1);
    build_be32(out, 3);
    build_delta(out, pages);
    build_tail(out, tail_bytes);
}

/* PONG, SHUT. */
static inline void
build_return_head(GByteArray *out)
{
    build_bytes(out, "\0\2\0\4\0\0\0\1\0\1\0\4\0\0\0\0", 16);
}
