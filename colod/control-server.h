/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-server.h - the JSON control socket (docs/PROTOCOL.md, "Control socket") */
#pragma once

#include "event-log.h"

#include <glib.h>
#include <json-c/json.h>

typedef struct ControlServer ControlServer;
/* One command under way. The handler owns it until it ends it with exactly one of the two calls
 * below. */
typedef struct ControlRequest ControlRequest;

typedef void (*ControlFunc)(ControlRequest *request, const char *command, json_object *arguments,
                            gpointer user_data);

/**
 * Listens on @path (mode 0600). Clients send one JSON object a line, {"id": any, "command": "...",
 * "arguments": {...}}; the answer is {"id", "return"} or {"id", "error": {"class", "text"}}.
 * `subscribe` with
 * {"after": seq} is answered by the server itself and then streams {"event": {...}} lines from
 * @log. At most 32 clients, 64 KiB a line, 1 MiB of unread output (then the client is dropped), 64
 * requests under way per client. Anything malformed gets an error that says what and where; the
 * connection stays usable unless the line was too long.
 */
ControlServer *control_server_new(const char *path, EventLog *log, ControlFunc func,
                                  gpointer user_data, GError **error);
void control_server_free(ControlServer *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ControlServer, control_server_free)

/** @value: reference taken; NULL for {}. A client that has gone is no error. */
void control_request_return(ControlRequest *request, json_object *value);
/** @error_class: "refused", "failed", "usage", "timeout". */
void control_request_fail(ControlRequest *request, const char *error_class, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
