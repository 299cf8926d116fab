/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config-lines.h - the lines of a configuration file: what is given where (module-private) */
#pragma once

#include "config.h"

/* One `key=value` or `[group]` (key NULL) of the text. */
typedef struct ConfigLine {
    char *group;
    char *key;
    unsigned number;
} ConfigLine;

typedef struct ConfigLines ConfigLines;

/** Scans @text, the content of @file (for messages; borrowed).
 *
 * Errors: CONFIG_ERROR_FILE, with the line: bytes that are no text, a line that is neither group
 * nor key, a key before the first group, a group or key given twice.
 */
ConfigLines *config_lines_new(const char *file, const char *text, gsize length, GError **error);
void config_lines_free(ConfigLines *lines);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ConfigLines, config_lines_free)

/** The @index-th, in the order of the file; NULL: there are no more. */
const ConfigLine *config_lines_at(const ConfigLines *lines, unsigned index);

/** Where @key of @group (NULL: the group itself) stands; NULL: it is not given. */
const ConfigLine *config_lines_find(const ConfigLines *lines, const char *group, const char *key);

/** Sets "FILE:LINE: [GROUP] KEY: @problem". @key (NULL: the group) may be missing: then the line is
 * its group's, or if that is missing too or NULL the first. Always FALSE.
 */
gboolean config_lines_fail(const ConfigLines *lines, ConfigError code, const char *group,
                           const char *key, const char *problem, GError **error);
