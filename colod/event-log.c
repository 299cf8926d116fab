/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* event-log.c - the ring of events behind `colo events`, and the structured log
 *
 * Main thread only. Texts may quote a peer or QEMU, and end up in terminals and in line-based logs:
 * control characters are replaced and the length is bounded when an event is recorded, so that
 * nobody downstream has to.
 */
#include "event-log.h"

#include "clock.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* With it a whole ring in JSON stays below the control server's bound of unread output. */
enum { TEXT_MAX_BYTES = 512 };

struct EventLog {
    char *vm_name;
    json_object *ring[EVENT_LOG_RING]; /* event seq is at [(seq - 1) % EVENT_LOG_RING] */
    guint64 last_seq;                  /* 0: none yet; the first event is 1 */
    EventLogFunc func;
    gpointer user_data;
};

static const struct {
    const char *name;
    const char *priority; /* syslog(3), journald's PRIORITY */
} levels[] = {
    [EVENT_INFO] = {"info", "6"},
    [EVENT_WARNING] = {"warning", "4"},
    [EVENT_ERROR] = {"error", "3"},
};
static_assert(G_N_ELEMENTS(levels) == EVENT_ERROR + 1, "a row for each level");

EventLog *
event_log_new(const char *vm_name)
{
    EventLog *log = g_new0(EventLog, 1);

    log->vm_name = g_strdup(vm_name);
    return log;
}

void
event_log_free(EventLog *log)
{
    if (!log)
        return;
    for (unsigned i = 0; i < EVENT_LOG_RING; i++)
        json_object_put(log->ring[i]);
    g_free(log->vm_name);
    g_free(log);
}

/* Takes @raw; valid UTF-8 on one line, at most TEXT_MAX_BYTES. */
static char *
clean_text(char *raw)
{
    if (strlen(raw) > TEXT_MAX_BYTES)
        memcpy(raw + TEXT_MAX_BYTES - strlen("..."), "...", sizeof("..."));

    char *text = g_utf8_make_valid(raw, -1);

    for (char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p))
            *p = ' ';
        else if ((guchar)p[0] == 0xc2 && (guchar)p[1] < 0xa0) /* C1 controls: CSI is one byte */
            p[0] = p[1] = ' ';
    }
    g_free(raw);
    return text;
}

static void
log_to_journal(const EventLog *log, EventLevel level, const char *name, const char *text)
{
    const GLogField fields[] = {
        {"MESSAGE", text, -1},         {"PRIORITY", levels[level].priority, -1},
        {"COLO_VM", log->vm_name, -1}, {"COLO_EVENT", name, -1},
        {"GLIB_DOMAIN", "colod", -1},
    };

    /* To GLib all are messages: its own levels above would abort under G_DEBUG=fatal-…, and an
     * error of the pair is no bug of the program. */
    g_log_structured_array(G_LOG_LEVEL_MESSAGE, fields, G_N_ELEMENTS(fields));
}

/* GLib's default writer drops G_LOG_LEVEL_INFO outside the journal, so the line is ours. */
static void
log_line(const EventLog *log, EventLevel level, const char *time, const char *name,
         const char *text)
{
    (void)fprintf(stderr, "%s %s %s: %s: %s\n", time, levels[level].name, log->vm_name, name, text);
}

static json_object *
make_event(guint64 seq, const char *time, EventLevel level, const char *name, const char *text)
{
    json_object *event = json_object_new_object();

    json_object_object_add(event, "seq", json_object_new_uint64(seq));
    json_object_object_add(event, "time", json_object_new_string(time));
    json_object_object_add(event, "monotonic_us",
                           json_object_new_int64(clock_now_ns() / NS_PER_US));
    json_object_object_add(event, "level", json_object_new_string(levels[level].name));
    json_object_object_add(event, "event", json_object_new_string(name));
    json_object_object_add(event, "text", json_object_new_string(text));
    return event;
}

void
event_log_add(EventLog *log, EventLevel level, const char *name, const char *format, ...)
{
    va_list args;

    g_assert((unsigned)level < G_N_ELEMENTS(levels));
    va_start(args, format);
    g_autofree char *text = clean_text(g_strdup_vprintf(format, args));
    va_end(args);

    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(now, "%Y-%m-%dT%H:%M:%S.%fZ");
    json_object *event = make_event(log->last_seq + 1, time, level, name, text);
    json_object **slot = &log->ring[log->last_seq % EVENT_LOG_RING];

    json_object_put(*slot);
    *slot = json_object_get(event);
    log->last_seq++;

    if (g_log_writer_is_journald(fileno(stderr)))
        log_to_journal(log, level, name, text);
    else
        log_line(log, level, time, name, text);
    if (log->func)
        log->func(event, log->user_data);
    json_object_put(event);
}

json_object *
event_log_list(const EventLog *log, guint64 after)
{
    json_object *list = json_object_new_array();
    guint64 dropped = log->last_seq > EVENT_LOG_RING ? log->last_seq - EVENT_LOG_RING : 0;

    for (guint64 seq = MAX(after, dropped); seq < log->last_seq; seq++)
        json_object_array_add(list, json_object_get(log->ring[seq % EVENT_LOG_RING]));
    return list;
}

void
event_log_set_func(EventLog *log, EventLogFunc func, gpointer user_data)
{
    log->func = func;
    log->user_data = user_data;
}
