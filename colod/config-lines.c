/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config-lines.c - the lines of a configuration file: what is given where */
#include "config-lines.h"

#include <string.h>

enum { SHOWN_MAX = 64 }; /* characters of a name out of the file in a message */

struct ConfigLines {
    const char *file;
    GArray *array; /* ConfigLine */
};

static void
line_clear(gpointer data)
{
    ConfigLine *line = data;

    g_free(line->group);
    g_free(line->key);
}

const ConfigLine *
config_lines_find(const ConfigLines *lines, const char *group, const char *key)
{
    for (guint i = 0; i < lines->array->len; i++) {
        const ConfigLine *line = &g_array_index(lines->array, ConfigLine, i);

        if (g_strcmp0(line->group, group) == 0 && g_strcmp0(line->key, key) == 0)
            return line;
    }
    return NULL;
}

static gboolean
fail_at(const ConfigLines *lines, ConfigError code, unsigned number, const char *group,
        const char *key, const char *problem, GError **error)
{
    g_autoptr(GString) where = g_string_new(NULL);

    if (group)
        g_string_append_printf(where, " [%.*s]", SHOWN_MAX, group);
    if (key)
        g_string_append_printf(where, " %.*s", SHOWN_MAX, key);
    if (where->len > 0)
        g_string_append_c(where, ':');

    /* The cut at SHOWN_MAX may have split a character. */
    g_autofree char *shown = g_utf8_make_valid(where->str, (gssize)where->len);

    g_set_error(error, CONFIG_ERROR, code, "%s:%u:%s %s", lines->file, number, shown, problem);
    return FALSE;
}

gboolean
config_lines_fail(const ConfigLines *lines, ConfigError code, const char *group, const char *key,
                  const char *problem, GError **error)
{
    const ConfigLine *line = config_lines_find(lines, group, key);

    if (!line)
        line = config_lines_find(lines, group, NULL);
    return fail_at(lines, code, line ? line->number : 1, group, key, problem, error);
}

/* A problem of the text itself, for which there is one code. */
static gboolean
fail(const ConfigLines *lines, unsigned number, const char *group, const char *key,
     const char *problem, GError **error)
{
    return fail_at(lines, CONFIG_ERROR_FILE, number, group, key, problem, error);
}

static gboolean
scan_group(ConfigLines *lines, char *text, unsigned number, GError **error)
{
    size_t len = strlen(text);
    g_autofree char *group = NULL;
    g_autofree char *problem = NULL;

    if (len < 3 || text[len - 1] != ']')
        return fail(lines, number, NULL, NULL, "this is no group; write it as in [vm]", error);
    group = g_strndup(text + 1, len - 2);

    const ConfigLine *earlier = config_lines_find(lines, group, NULL);

    if (earlier) {
        problem = g_strdup_printf("is given twice, first on line %u; join the two groups",
                                  earlier->number);
        return fail(lines, number, group, NULL, problem, error);
    }

    ConfigLine line = {.group = g_steal_pointer(&group), .number = number};

    g_array_append_val(lines->array, line);
    return TRUE;
}

static gboolean
scan_key(ConfigLines *lines, const char *group, char *text, unsigned number, GError **error)
{
    char *equals = strchr(text, '=');
    g_autofree char *key = NULL;
    g_autofree char *problem = NULL;

    if (!equals || equals == text)
        return fail(lines, number, group, NULL,
                    "this line is neither a group nor `key=value`; write # before a comment",
                    error);
    if (!group)
        return fail(lines, number, NULL, NULL,
                    "this key stands before the first group; put it below its [group]", error);
    key = g_strchomp(g_strndup(text, (gsize)(equals - text)));

    const ConfigLine *earlier = config_lines_find(lines, group, key);

    if (earlier) {
        problem = g_strdup_printf("is given twice, first on line %u; remove one", earlier->number);
        return fail(lines, number, group, key, problem, error);
    }

    ConfigLine line = {.group = g_strdup(group), .key = g_steal_pointer(&key), .number = number};

    g_array_append_val(lines->array, line);
    return TRUE;
}

/* Bytes that no configuration has; what is left can be shown in messages as it is. */
static gboolean
check_bytes(const ConfigLines *lines, const char *text, gsize length, GError **error)
{
    const char *bad;
    unsigned number = 1;
    gboolean utf8 = g_utf8_validate(text, (gssize)length, &bad);

    for (const char *p = text; p < bad; p++) {
        if (*p == '\n')
            number++;
        else if (g_ascii_iscntrl(*p) && *p != '\t' && *p != '\r')
            return fail(lines, number, NULL, NULL, "holds a control character; remove it", error);
    }
    if (!utf8)
        return fail(lines, number, NULL, NULL,
                    "holds bytes that are no UTF-8; save the file as UTF-8 text", error);
    return TRUE;
}

static gboolean
scan(ConfigLines *lines, const char *text, gsize length, GError **error)
{
    if (!check_bytes(lines, text, length, error))
        return FALSE;

    g_autofree char *copy = g_strndup(text, length);
    g_auto(GStrv) texts = g_strsplit(copy, "\n", -1);
    g_autofree char *group = NULL;

    for (unsigned i = 0; texts[i]; i++) {
        char *line = g_strstrip(texts[i]);

        if (*line == '\0' || *line == '#')
            continue;
        if (*line != '[') {
            if (!scan_key(lines, group, line, i + 1, error))
                return FALSE;
            continue;
        }
        if (!scan_group(lines, line, i + 1, error))
            return FALSE;
        g_free(group);
        group = g_strndup(line + 1, strlen(line) - 2);
    }
    return TRUE;
}

ConfigLines *
config_lines_new(const char *file, const char *text, gsize length, GError **error)
{
    g_autoptr(ConfigLines) lines = g_new0(ConfigLines, 1);

    lines->file = file;
    lines->array = g_array_new(FALSE, FALSE, sizeof(ConfigLine));
    g_array_set_clear_func(lines->array, line_clear);
    return scan(lines, text, length, error) ? g_steal_pointer(&lines) : NULL;
}

void
config_lines_free(ConfigLines *lines)
{
    if (!lines)
        return;
    g_array_unref(lines->array);
    g_free(lines);
}

const ConfigLine *
config_lines_at(const ConfigLines *lines, unsigned index)
{
    return index < lines->array->len ? &g_array_index(lines->array, ConfigLine, index) : NULL;
}
