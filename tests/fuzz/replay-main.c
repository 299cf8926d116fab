/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* replay-main.c - runs a fuzz target over the files named on the command line */
#include <glib.h>

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
main(int argc, char **argv)
{
    /* Always the empty input too, so that a target without seeds still runs. */
    (void)LLVMFuzzerTestOneInput((const uint8_t *)"", 0);

    for (int i = 1; i < argc; i++) {
        g_autofree char *contents = NULL;
        g_autoptr(GError) error = NULL;
        gsize length;

        if (!g_file_get_contents(argv[i], &contents, &length, &error)) {
            g_printerr("%s\n", error->message);
            return EXIT_FAILURE;
        }
        (void)LLVMFuzzerTestOneInput((const uint8_t *)contents, length);
    }
    g_print("%d seeds replayed\n", argc - 1);
    return EXIT_SUCCESS;
}
