/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers-model.c - what a mirrored disk must do, in the plainest way, and a check against it */
#include "layers-model.h"

#include "clock.h"

#include <errno.h>
#include <string.h>

/* 0 to 250 over and over: a prime period, so that no two blocks are alike. Piece by piece, because
 * a fuzzer pays for each turn of a loop. */
static uint8_t *
new_pattern(uint64_t len)
{
    uint8_t period[251], *pattern = g_malloc(len);

    for (unsigned i = 0; i < sizeof(period); i++)
        period[i] = (uint8_t)i;
    for (uint64_t at = 0; at < len; at += sizeof(period))
        memcpy(pattern + at, period, MIN(sizeof(period), len - at));
    return pattern;
}

World *
world_new(uint64_t size_bytes, uint64_t limit_bytes)
{
    World *world = g_new0(World, 1);

    world->size_bytes = size_bytes;
    world->disk = fake_store_new(size_bytes, true, NULL);
    world->hidden = fake_store_new(limit_bytes, true, NULL);
    world->active = fake_store_new(limit_bytes, true, NULL);
    world->layers =
        layers_new(fake_store_base(world->disk), overlay_new(fake_store_base(world->hidden)),
                   overlay_new(fake_store_base(world->active)));
    world->want_disk = g_malloc(size_bytes);
    world->want_view = g_malloc(size_bytes);
    world->buf = g_malloc(size_bytes);
    world->pattern = new_pattern(size_bytes + UINT8_MAX);
    for (uint64_t at = 0; at < size_bytes; at += OVERLAY_BLOCK_BYTES)
        memset(world->want_disk + at, at / 8192 % 3 == 0 ? 0 : (int)(at / 4096 % 255) + 1,
               MIN(OVERLAY_BLOCK_BYTES, size_bytes - at));
    memcpy(fake_store_bytes(world->disk), world->want_disk, size_bytes);
    memcpy(world->want_view, world->want_disk, size_bytes);
    (void)layers_switch(world->layers, TARGET_MIRRORING, true, INT64_MAX);
    return world;
}

void
world_free(World *world)
{
    layers_free(world->layers);
    g_free(world->want_disk);
    g_free(world->want_view);
    g_free(world->buf);
    g_free(world->pattern);
    g_free(world);
}

static void
expect_equal(const World *world, const uint8_t *want, uint64_t offset, uint64_t len,
             const char *what)
{
    if (memcmp(world->buf, want + offset, len) == 0)
        return;
    for (uint64_t i = 0; i < len; i++) {
        if (world->buf[i] != want[offset + i])
            g_error("%s: byte %" G_GUINT64_FORMAT " is %02x, not %02x", what, offset + i,
                    world->buf[i], want[offset + i]);
    }
}

static uint8_t *
want_of(World *world, Side side)
{
    return side == SIDE_TARGET ? world->want_disk : world->want_view;
}

static void
read_and_compare(World *world, Side side, uint64_t offset, uint64_t len)
{
    Fault fault = FAULT_NONE;
    int r = layers_read(world->layers, side, world->buf, len, offset, &fault);

    if (r < 0)
        g_error("read of %s failed: %s", side ? "active" : "target", fault_name(fault));
    expect_equal(world, want_of(world, side), offset, len, side ? "active" : "target");
}

/* What a failed write may leave: on target nothing, on active its own range. */
static int
after_failure(World *world, Side side, uint64_t offset, uint64_t len, Fault fault)
{
    if (fault != FAULT_STALE && fault != (side ? FAULT_ACTIVE_FULL : FAULT_HIDDEN_FULL))
        g_error("a change failed by %s", fault_name(fault));
    if (side == SIDE_ACTIVE) {
        Fault read_fault;

        if (layers_read(world->layers, side, world->want_view + offset, len, offset, &read_fault) <
            0)
            g_error("read after a full overlay failed");
    }
    return fault == FAULT_STALE ? -EIO : -ENOSPC;
}

static int
change(World *world, WorldOp op, Side side, uint64_t offset, uint64_t len, uint8_t fill)
{
    uint8_t *want = want_of(world, side) + offset;
    Fault fault = FAULT_NONE;
    int r;

    if (op == OP_WRITE) {
        r = layers_write(world->layers, side, world->pattern + fill, len, offset, &fault);
        if (r == 0)
            memcpy(want, world->pattern + fill, len);
    } else {
        r = layers_zero(world->layers, side, len, offset, fill & 1, &fault);
        if (r == 0)
            memset(want, 0, len);
    }
    return r < 0 ? after_failure(world, side, offset, len, fault) : 0;
}

/* Open what it reads as, but the other side sees none of it. */
static int
trim(World *world, Side side, uint64_t offset, uint64_t len)
{
    Fault fault = FAULT_NONE;
    int r = layers_trim(world->layers, side, len, offset, &fault);

    if (r < 0)
        return after_failure(world, side, offset, len, fault);
    if (layers_read(world->layers, side, want_of(world, side) + offset, len, offset, &fault) < 0)
        g_error("read after trim failed");
    return 0;
}

static void
check_extents(World *world, Side side, uint64_t offset, uint64_t len)
{
    while (len > 0) {
        uint64_t n = 0;
        bool hole = false;
        Fault fault = FAULT_NONE;
        int r = layers_extent(world->layers, side, offset, len, &n, &hole, &fault);

        if (r < 0 || n == 0 || n > len)
            g_error("extents: %d, %" G_GUINT64_FORMAT " bytes", r, n);

        const uint8_t *want = want_of(world, side) + offset;

        if (hole && (want[0] != 0 || memcmp(want, want + 1, n - 1) != 0))
            g_error("data in a hole at %" G_GUINT64_FORMAT, offset);
        offset += n;
        len -= n;
    }
}

static int
checkpoint(World *world)
{
    if (layers_stale(world->layers) != FAULT_NONE)
        layers_clear_stale(world->layers); /* as a new sync would */
    memcpy(world->want_view, world->want_disk, world->size_bytes);
    return layers_switch(world->layers, TARGET_MIRRORING, true, INT64_MAX);
}

int
world_op(World *world, WorldOp op, Side side, uint64_t offset, uint64_t len, uint8_t fill)
{
    Fault fault = FAULT_NONE;

    offset %= world->size_bytes;
    len = MIN(len, world->size_bytes - offset);
    switch (op) {
    case OP_READ:
        read_and_compare(world, side, offset, len);
        return 0;
    case OP_WRITE:
    case OP_ZERO:
        return change(world, op, side, offset, len, fill);
    case OP_TRIM:
        return trim(world, side, offset, len);
    case OP_FLUSH:
        return layers_flush(world->layers, side, &fault);
    case OP_EXTENT:
        check_extents(world, side, offset, len);
        return 0;
    case OP_CHECKPOINT:
        return checkpoint(world);
    case OP_COUNT:
        break;
    }
    g_assert_not_reached();
}

void
world_check(World *world)
{
    read_and_compare(world, SIDE_TARGET, 0, world->size_bytes);
    read_and_compare(world, SIDE_ACTIVE, 0, world->size_bytes);
}
