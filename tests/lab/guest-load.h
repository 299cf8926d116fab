/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-load.h - load on the guest's disk, for measurements */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/** Carries out the arguments of the command `load` (guest-disk.c) and writes its answer. */
void guest_load(const char *arguments, char *answer, size_t size);

/** So many requests of @bytes, one after the other: from the device's front on, or @scattered. */
void guest_write_blocks(unsigned long long count, unsigned long long bytes, bool is_scattered,
                        char *answer, size_t size);
