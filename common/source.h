/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* source.h - GSources with an owner */
#pragma once

#include <glib.h>

/** Ends *@source, if there is one, gives the reference back and sets it to NULL. */
static inline void
source_clear(GSource **source)
{
    if (*source)
        g_source_destroy(*source);
    g_clear_pointer(source, g_source_unref);
}
