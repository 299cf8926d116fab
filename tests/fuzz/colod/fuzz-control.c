/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-control.c - one request line of the control socket */
#include "control-server-parse.h"

#include <stddef.h>
#include <stdint.h>

enum { MAX_LINE_BYTES = 64 * 1024 }; /* control-server.c cuts before it parses */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_auto(ControlLine) line = {0};

    if (size > MAX_LINE_BYTES)
        return 0;

    g_autofree char *problem = control_line_parse((const char *)data, size, &line);

    g_assert((line.command == NULL) == (problem != NULL));
    if (line.command)
        g_assert(json_object_is_type(line.object, json_type_object));
    return 0;
}
