/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-status.c - status and events for the human reader */
#include "colo-status.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

/* --- Values, if they are there --- */

/* @path: keys with dots between them. NULL: not there, or null. */
static json_object *
at(json_object *object, const char *path)
{
    g_auto(GStrv) keys = g_strsplit(path, ".", -1);

    for (char **key = keys; *key && object; key++) {
        if (!json_object_is_type(object, json_type_object))
            return NULL;
        object = json_object_object_get(object, *key);
    }
    return object;
}

/* A copy that a terminal can be given. */
static char *
clean(const char *raw)
{
    char *text = g_utf8_make_valid(raw, -1);

    for (char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p))
            *p = ' ';
        else if ((guchar)p[0] == 0xc2 && (guchar)p[1] < 0xa0) /* C1 controls */
            p[0] = p[1] = ' ';
    }
    return text;
}

/* A string, or a number as text; NULL: not there or empty. */
static char *
text_at(json_object *object, const char *path)
{
    json_object *value = at(object, path);

    if (!value || json_object_is_type(value, json_type_object) ||
        json_object_is_type(value, json_type_array) || *json_object_get_string(value) == '\0')
        return NULL;
    return clean(json_object_get_string(value));
}

static gboolean
number_at(json_object *object, const char *path, int64_t *ret_value)
{
    json_object *value = at(object, path);

    if (!json_object_is_type(value, json_type_int) && !json_object_is_type(value, json_type_double))
        return FALSE;
    *ret_value = json_object_get_int64(value);
    return TRUE;
}

/* --- Building a row --- */

/* Appends to @row, with a comma before if it is not its first item. */
static void G_GNUC_PRINTF(2, 3) add(GString *row, const char *format, ...)
{
    va_list args;

    if (row->len > 0)
        g_string_append(row, ", ");
    va_start(args, format);
    g_string_append_vprintf(row, format, args);
    va_end(args);
}

static void
add_text(GString *row, json_object *object, const char *path, const char *before, const char *after)
{
    g_autofree char *text = text_at(object, path);

    if (text)
        add(row, "%s%s%s", before, text, after);
}

static char *
format_us(int64_t us)
{
    if (us < 1000)
        return g_strdup_printf("%" PRId64 " us", us);
    if (us < 1000 * 1000)
        return g_strdup_printf("%.1f ms", (double)us / 1e3);
    return g_strdup_printf("%.1f s", (double)us / 1e6);
}

static char *
format_bytes(int64_t bytes)
{
    if (bytes < 1024)
        return g_strdup_printf("%" PRId64 " B", bytes);
    if (bytes < 1024 * 1024)
        return g_strdup_printf("%.1f KiB", (double)bytes / 1024);
    return g_strdup_printf("%.1f MiB", (double)bytes / (1024 * 1024));
}

static void
add_us(GString *row, json_object *object, const char *path, const char *before)
{
    int64_t us;

    if (number_at(object, path, &us)) {
        g_autofree char *text = format_us(us);

        add(row, "%s %s", before, text);
    }
}

static void
add_ms(GString *row, json_object *object, const char *path, const char *before, const char *after)
{
    int64_t ms;

    if (number_at(object, path, &ms) && ms >= 0 && ms < G_MAXINT64 / 1000) {
        g_autofree char *text = format_us(ms * 1000);

        add(row, "%s%s%s", before, text, after);
    }
}

static void
add_bytes(GString *row, json_object *object, const char *path, const char *after)
{
    int64_t bytes;

    if (number_at(object, path, &bytes)) {
        g_autofree char *text = format_bytes(bytes);

        add(row, "%s%s", text, after);
    }
}

/* Moves @row into @text as one line, unless it is empty. */
static void
end_row(GString *text, const char *title, GString *row)
{
    if (row->len > 0)
        g_string_append_printf(text, "  %-12s %s\n", title, row->str);
    g_string_truncate(row, 0);
}

/* --- status --- */

static char *
protection(json_object *status)
{
    json_object *value = at(status, "protected");
    g_autofree char *reason = text_at(status, "reason");

    if (json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value))
        return g_strdup("Protected");
    return g_strdup_printf("Not protected: %s", reason ? reason : "no reason given");
}

static void
add_vm(GString *text, GString *row, json_object *status)
{
    g_autofree char *host = text_at(status, "host");
    g_autofree char *on = host ? g_strconcat(" on ", host, NULL) : g_strdup("");

    add_text(row, status, "vm", "", on);
    add_text(row, status, "role", "", "");
    add_text(row, status, "generation", "generation ", "");
    add_text(row, status, "state", "", "");
    end_row(text, "VM", row);
}

static void
add_peer(GString *text, GString *row, json_object *status)
{
    json_object *connected = at(status, "peer.connected");

    add_text(row, status, "peer.name", "", "");
    if (json_object_is_type(connected, json_type_boolean))
        add(row, "%s", json_object_get_boolean(connected) ? "connected" : "not connected");
    add_text(row, status, "peer.state", "", "");
    add_text(row, status, "peer.generation", "generation ", "");
    add_text(row, status, "peer.software", "colod ", "");
    end_row(text, "Peer", row);
}

static void
add_qemu(GString *text, GString *row, json_object *status)
{
    add_text(row, status, "qemu.version", "", "");
    add_text(row, status, "qemu.pid", "pid ", "");
    add_text(row, status, "qemu.path", "", "");
    end_row(text, "QEMU", row);
}

static void
add_causes(GString *row, json_object *causes)
{
    if (!json_object_is_type(causes, json_type_object))
        return;
    json_object_object_foreach(causes, key, value)
    {
        g_autofree char *name = clean(key);

        if (json_object_is_type(value, json_type_int))
            add(row, "%s %" PRId64, name, json_object_get_int64(value));
    }
}

static void
add_checkpoint(GString *text, GString *row, json_object *status)
{
    add_text(row, status, "checkpoint.count", "", "");
    add_ms(row, status, "checkpoint.interval_ms", "every ", "");
    add_ms(row, status, "checkpoint.since_commit_ms", "last ", " ago");
    add_text(row, status, "checkpoint.step", "step ", "");
    end_row(text, "Checkpoints", row);
    add_us(row, status, "checkpoint.pause_us.last", "last");
    add_us(row, status, "checkpoint.pause_us.p50", "p50");
    add_us(row, status, "checkpoint.pause_us.p99", "p99");
    end_row(text, "  pause", row);
    add_us(row, status, "checkpoint.commit_us.last", "last");
    add_us(row, status, "checkpoint.commit_us.p50", "p50");
    add_us(row, status, "checkpoint.commit_us.p99", "p99");
    end_row(text, "  commit", row);
    add_bytes(row, status, "checkpoint.bytes_last", "");
    add_text(row, status, "checkpoint.pages_last", "", " pages");
    end_row(text, "  last", row);
    add_causes(row, at(status, "checkpoint.by_cause"));
    end_row(text, "  by cause", row);
}

static bool
true_at(json_object *object, const char *path)
{
    json_object *value = at(object, path);

    return json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value);
}

/* A lock-stepping pair only. */
static void
add_compare(GString *text, GString *row, json_object *status)
{
    add_text(row, status, "network.compare.released.matched", "", " frames matched");
    add_text(row, status, "network.compare.released.ack_lowered", "", " with a lower ack");
    add_text(row, status, "network.compare.released.committed", "", " by checkpoints");
    add_us(row, status, "network.compare.lag_us", "lag");
    if (true_at(status, "network.compare.dense"))
        add(row, "short epochs: the guests differ often (colo explain)");
    end_row(text, "  compared", row);
}

static void
add_network(GString *text, GString *row, json_object *status)
{
    int64_t lost;

    add_text(row, status, "network.mode", "", "");
    add_text(row, status, "network.egress", "output ", "");
    add_text(row, status, "network.held_frames", "", " frames held");
    add_bytes(row, status, "network.held_bytes", "");
    if (number_at(status, "network.lost_frames", &lost) && lost > 0)
        add(row, "%" PRId64 " frames lost", lost);
    end_row(text, "Network", row);
    add_us(row, status, "network.hold_us.p50", "p50");
    add_us(row, status, "network.hold_us.p99", "p99");
    end_row(text, "  held for", row);
    add_compare(text, row, status);
}

/* --- disks --- */

static void
add_overlay(GString *row, json_object *disk, const char *name, const char *path)
{
    g_autofree char *used_path = g_strconcat(path, ".used_bytes", NULL);
    g_autofree char *limit_path = g_strconcat(path, ".limit_bytes", NULL);
    int64_t used, limit;

    if (!number_at(disk, used_path, &used) || !number_at(disk, limit_path, &limit))
        return;

    g_autofree char *used_text = format_bytes(used);
    g_autofree char *limit_text = format_bytes(limit);

    add(row, "%s %s of %s", name, used_text, limit_text);
}

static void
add_copy(GString *row, json_object *disk)
{
    int64_t rate;

    if (!at(disk, "sync_percent"))
        return;
    add_text(row, disk, "sync_percent", "", " % copied");
    add_bytes(row, disk, "forwarder.left_bytes", " left");
    if (number_at(disk, "forwarder.rate_bytes_s", &rate) && rate > 0)
        add_bytes(row, disk, "forwarder.rate_bytes_s", "/s");
    add_text(row, disk, "forwarder.eta_s", "", " s to go");
}

static void
add_disk(GString *text, GString *row, json_object *disk)
{
    g_autofree char *name = text_at(disk, "name");
    g_autofree char *verify = colo_status_verify_state(disk);
    g_autofree char *target = text_at(disk, "target.mode");
    int64_t backlog;

    /* A mirror's standing is that of a disk which must not be started from: as it should be. */
    if (g_strcmp0(target, "mirroring") == 0)
        add(row, "mirror of the other host's");
    else if (true_at(disk, "standing.committing"))
        add(row, "committing a failover");
    else
        add(row, "%s", true_at(disk, "standing.up_to_date") ? "UpToDate" : "not UpToDate");
    add_text(row, disk, "standing.generation", "generation ", "");
    add_text(row, disk, "forwarder.mode", "forwarder ", "");
    if (target)
        add(row, "target %s", target);
    else
        add_text(row, disk, "standing.reason", "", "");
    end_row(text, name ? name : "disk", row);
    add_copy(row, disk);
    end_row(text, "  copy", row);
    if (number_at(disk, "forwarder.queued_bytes", &backlog) && backlog > 0)
        add_bytes(row, disk, "forwarder.queued_bytes", " on their way");
    add_overlay(row, disk, "hidden", "target.hidden");
    add_overlay(row, disk, "active", "target.active");
    if (verify)
        add(row, "comparison %s", verify);
    end_row(text, "  use", row);
}

static void
add_disks(GString *text, GString *row, json_object *status)
{
    json_object *disks = at(status, "disks");

    for (size_t i = 0;
         json_object_is_type(disks, json_type_array) && i < json_object_array_length(disks); i++)
        add_disk(text, row, json_object_array_get_idx(disks, i));
}

char *
colo_status_verify_state(json_object *disk)
{
    return text_at(disk, "forwarder.verify.state");
}

static gboolean
add_verified(GString *text, json_object *disk)
{
    g_autofree char *name = text_at(disk, "name");
    g_autofree char *state = colo_status_verify_state(disk);
    json_object *list = at(disk, "forwarder.verify.listed");
    int64_t differences = 0, unsettled = 0, all = 0;
    const gboolean counted = number_at(disk, "forwarder.verify.differences", &differences) &&
                             number_at(disk, "forwarder.verify.unsettled", &unsettled) &&
                             number_at(disk, "forwarder.verify.all_bytes", &all);
    const gboolean done = counted && g_strcmp0(state, "done") == 0;
    g_autofree char *size = format_bytes(all);

    if (done && differences == 0 && unsettled == 0)
        g_string_append_printf(text, "%s: equal, %s\n", name, size);
    else if (done)
        g_string_append_printf(text, "%s: %" PRId64 " differences, %" PRId64 " undecided, in %s\n",
                               name, differences, unsettled, size);
    else
        g_string_append_printf(text, "%s: %s\n", name, state ? state : "not compared");
    for (size_t i = 0;
         json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
        json_object *difference = json_object_array_get_idx(list, i);
        g_autofree char *offset = text_at(difference, "offset");
        g_autofree char *length = text_at(difference, "length");

        g_string_append_printf(text, "  offset %s, length %s\n", offset ? offset : "?",
                               length ? length : "?");
    }
    return done && differences == 0 && unsettled == 0;
}

char *
colo_status_verify_text(json_object *status, gboolean *ret_equal)
{
    GString *text = g_string_new(NULL);
    json_object *disks = at(status, "disks");
    const size_t n =
        json_object_is_type(disks, json_type_array) ? json_object_array_length(disks) : 0;

    *ret_equal = n > 0;
    for (size_t i = 0; i < n; i++)
        *ret_equal &= add_verified(text, json_object_array_get_idx(disks, i));
    return g_string_free(text, FALSE);
}

char *
colo_status_text(json_object *status)
{
    g_autofree char *first = protection(status);
    GString *text = g_string_new(first);
    g_autoptr(GString) row = g_string_new(NULL);

    g_string_append_c(text, '\n');
    add_vm(text, row, status);
    add_peer(text, row, status);
    add_qemu(text, row, status);
    add_checkpoint(text, row, status);
    add_network(text, row, status);
    add_disks(text, row, status);
    return g_string_free(text, FALSE);
}

char *
colo_status_line(json_object *status)
{
    g_autofree char *first = protection(status);
    g_autoptr(GString) row = g_string_new(NULL);

    add_text(row, status, "vm", "", "");
    add_text(row, status, "host", "", "");
    add_text(row, status, "role", "", "");
    add_text(row, status, "generation", "generation ", "");
    add_text(row, status, "state", "", "");
    return g_strdup_printf("%s (%s)", first, row->str);
}

char *
colo_event_line(json_object *event)
{
    static const char *const keys[] = {"seq", "time", "level", "event"};
    GString *line = g_string_new(NULL);
    g_autofree char *text = text_at(event, "text");

    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        g_autofree char *value = text_at(event, keys[i]);

        g_string_append_printf(line, "%s%s", i ? " " : "", value ? value : "-");
    }
    g_string_append_printf(line, ": %s", text ? text : "");
    return g_string_free(line, FALSE);
}

/* --- explain --- */

static void
add_difference(GString *text, GString *row, json_object *difference)
{
    g_autofree char *name = text_at(difference, "what");
    g_autofree char *hint = text_at(difference, "advice");
    int64_t seconds;

    add_text(row, difference, "rule", "", "");
    add_text(row, difference, "count", "", " times");
    if (number_at(difference, "last_s", &seconds))
        add(row, "last %" PRId64 " s ago", seconds);
    add_text(row, difference, "flow", "such as ", "");
    g_string_append_printf(text, "  %-12s %s\n", name ? name : "-", row->str);
    g_string_truncate(row, 0);
    if (hint)
        g_string_append_printf(text, "    what to change: %s\n", hint);
}

char *
colo_explain_text(json_object *explanation)
{
    GString *text = g_string_new(NULL);
    g_autoptr(GString) row = g_string_new(NULL);
    json_object *list = at(explanation, "differences");
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;

    add_text(row, explanation, "mode", "", "");
    if (true_at(explanation, "dense"))
        add(row, "short epochs: the guests differ often");
    end_row(text, "Network", row);
    add_causes(row, at(explanation, "causes"));
    end_row(text, "Checkpoints", row);
    add_text(row, explanation, "window_s", "in the last ", " s");
    end_row(text, "  counted", row);
    if (n > 0)
        g_string_append(text, "\nWhere the guests differed, of the last that are kept:\n");
    else
        g_string_append(text, "\nThe guests have not differed.\n");
    for (size_t i = 0; i < n; i++)
        add_difference(text, row, json_object_array_get_idx(list, i));
    add_text(row, explanation, "saved", "", " captures written");
    if (row->len)
        g_string_append_printf(text, "\n%s\n", row->str);
    return g_string_free(text, FALSE);
}
