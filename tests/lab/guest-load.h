/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* guest-load.h - load on the guest's disk, for measurements */
#pragma once

#include <stddef.h>

/** Carries out the arguments of the command `load` (guest-disk.c) and writes its answer. */
void guest_load(const char *arguments, char *answer, size_t size);
