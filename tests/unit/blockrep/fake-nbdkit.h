/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-nbdkit.h - what the plugin calls of nbdkit, so that its callbacks run in a sanitized test
 *
 * nbdkit itself is not built with sanitizers, and loading their runtime into it beforehand leaves a
 * lock of libc's in a wrong state.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The connection that open() is asked for. */
typedef struct FakeConnection {
    const char *export_name;
    bool is_local;
    int is_tls;
} FakeConnection;

extern FakeConnection fake_connection;

/* How often nbdkit was asked to end. */
extern atomic_uint fake_nbdkit_shutdowns;

/** What the last callback that failed in this thread said; "" : nothing. */
const char *fake_nbdkit_error(void);
/** The error number it set. */
int fake_nbdkit_errno(void);

/* The extents the last call added in this thread. */
typedef struct FakeExtent {
    uint64_t offset, length;
    uint32_t type;
} FakeExtent;

enum { FAKE_MAX_EXTENTS = 64 };

struct nbdkit_extents {
    FakeExtent list[FAKE_MAX_EXTENTS];
    unsigned n;
};

struct nbdkit_exports {
    const char *names[8];
    unsigned n;
};
