/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* event-log.h - the ring of events behind `colo events`, and the structured log */
#pragma once

#include <glib.h>
#include <json-c/json.h>

typedef struct EventLog EventLog;

enum { EVENT_LOG_RING = 1024 };

typedef enum EventLevel { EVENT_INFO, EVENT_WARNING, EVENT_ERROR } EventLevel;

typedef void (*EventLogFunc)(json_object *event /* borrowed */, gpointer user_data);

/** @vm_name: copied, a field of every record. */
EventLog *event_log_new(const char *vm_name);
void event_log_free(EventLog *log);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EventLog, event_log_free)

/**
 * Records an event and logs it (g_log_structured: journald under systemd, else one line on stderr
 * with time stamp, level, event and text).
 *
 * @name: lower-case words with dashes, stable: scripts match it. The JSON of an event has `seq`,
 * `time` (ISO 8601, UTC, microseconds), `monotonic_us`, `level`, `event`, `text`.
 */
void event_log_add(EventLog *log, EventLevel level, const char *name, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/** New array of all events with seq > @after, oldest first. */
json_object *event_log_list(const EventLog *log, guint64 after);

/** Called for each new event; NULL removes it. One subscriber: the control server fans out. */
void event_log_set_func(EventLog *log, EventLogFunc func, gpointer user_data);
