/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-server-parse.h - one request line of the control socket (module-private: also fuzzed) */
#pragma once

#include <glib.h>
#include <json-c/json.h>

typedef struct ControlLine {
    json_object *id;        /* owned; NULL is JSON's null */
    const char *command;    /* inside `object`; NULL exactly if something is wrong */
    json_object *arguments; /* inside `object`; NULL: none given */
    json_object *object;    /* owned */
} ControlLine;

/**
 * Reads one line without its newline.
 *
 * Return: NULL, or what is wrong and where, newly allocated. @ret_line is valid either way (`id` is
 * set as soon as it is known, so that the error can be answered to it) and must be cleared.
 */
char *control_line_parse(const char *text, gsize length, ControlLine *ret_line);
void control_line_clear(ControlLine *line);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ControlLine, control_line_clear)
