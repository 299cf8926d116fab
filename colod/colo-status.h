/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-status.h - status and events for the human reader */
#pragma once

#include <glib.h>
#include <json-c/json.h>

/*
 * All of them print what is there: any key may be missing or of another type. The text is safe for
 * a terminal, whatever the strings in @status hold. Return: newly allocated.
 */

/** The whole of `colo status`, several lines. */
char *colo_status_text(json_object *status);

/** What the comparison of a disk (of status' `disks`) has come to; NULL: there is none. */
char *colo_status_verify_state(json_object *disk);

/** The result of `colo verify`: a line per disk, and one per difference. */
char *colo_status_verify_text(json_object *status, gboolean *ret_equal);

/** Protection, role and generation in one line without newline: changes only when they do. */
char *colo_status_line(json_object *status);

/** One event in one line without newline. */
char *colo_event_line(json_object *event);

/** The whole of `colo explain`, several lines. */
char *colo_explain_text(json_object *explanation);
