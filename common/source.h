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

/** Ends *@source, if there is one, and has @function called in @context (NULL: the default one)
 * after @ms, again and again unless it returns G_SOURCE_REMOVE. The owner clears *@source.
 */
static inline void
source_set_timeout(GSource **source, GMainContext *context, unsigned ms, GSourceFunc function,
                   gpointer user_data)
{
    source_clear(source);
    *source = g_timeout_source_new(ms);
    g_source_set_callback(*source, function, user_data, NULL);
    g_source_attach(*source, context);
}
