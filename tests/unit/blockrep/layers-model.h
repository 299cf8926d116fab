/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layers-model.h - what a mirrored disk must do, in the plainest way, and a check against it */
#pragma once

#include "fake-store.h"
#include "layers.h"

/*
 * The model is two arrays: the disk, and what the secondary's guest sees. A mirrored write changes
 * the first, a guest's write the second, a checkpoint copies the first over the second.
 */
typedef struct World {
    FakeStore *disk, *hidden, *active;
    Layers *layers;
    uint64_t size_bytes;
    uint8_t *want_disk, *want_view;
    uint8_t *buf, *pattern; /* what is read; what is written, from the byte `fill` on */
} World;

typedef enum WorldOp {
    OP_READ,
    OP_WRITE,
    OP_ZERO,
    OP_TRIM,
    OP_FLUSH,
    OP_EXTENT,
    OP_CHECKPOINT,
    OP_COUNT,
} WorldOp;

/** Mirroring, with a disk of other bytes than zero. */
World *world_new(uint64_t size_bytes, uint64_t limit_bytes);
void world_free(World *world);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(World, world_free)

/**
 * One operation on both; aborts (g_error) where they differ. @fill: with which byte a write begins.
 * A full overlay is allowed: a mirrored write must then have changed nothing, one of the guest only
 * its own range.
 *
 * Return: 0 or the request's negative errno.
 */
int world_op(World *world, WorldOp op, Side side, uint64_t offset, uint64_t len, uint8_t fill);

/** All of both views. */
void world_check(World *world);
