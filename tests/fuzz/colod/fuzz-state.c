/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-state.c - a state file, as it is and again with a checksum that fits */
#include "state-file.h"

#include "fd.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
load(const uint8_t *data, size_t size, const char *sum)
{
    auto_fd int fd = memfd_create("state", MFD_CLOEXEC);
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autoptr(GError) error = NULL;
    HostState state;

    g_assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    if (sum)
        g_assert(dprintf(fd, "sha256=%s\n", sum) > 0);
    if (host_state_load(path, &state, &error)) {
        g_assert(sum); /* nobody guesses a SHA-256 */
        g_assert(state.role <= STATE_ROLE_SECONDARY && state.qemu_pid >= 0);
    } else {
        g_assert(error);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *sum = g_compute_checksum_for_data(G_CHECKSUM_SHA256, data, size);

    load(data, size, NULL);
    load(data, size, sum);
    return 0;
}
