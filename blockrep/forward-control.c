/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-control.c - the forwarder's commands on its control socket */
#include "forward-control.h"

#include "control-json.h"
#include "plugin-quit.h"

#include <assert.h>

typedef enum ForwardCommand {
    COMMAND_STATUS = DISK_COMMAND_STATUS,
    COMMAND_QUIT = DISK_COMMAND_QUIT,
    COMMAND_ALONE,
    COMMAND_CONNECT,
    COMMAND_SETTLED,
    COMMAND_FINISH,
    COMMAND_BARRIER,
    COMMAND_RELEASE,
    COMMAND_VERIFY,
    COMMAND_COUNT,
} ForwardCommand;

static const DiskCommand commands[] = {
    [COMMAND_STATUS] = {"status", 0, DISK_ARG_AFTER},
    [COMMAND_QUIT] = {"quit", 0, 0},
    [COMMAND_ALONE] = {"alone", DISK_ARG_GENERATION, DISK_ARG_FIRST},
    [COMMAND_CONNECT] = {"connect", DISK_ARG_HOST | DISK_ARG_GENERATION,
                         DISK_ARG_PORT | DISK_ARG_RATE_LIMIT},
    [COMMAND_SETTLED] = {"settled", 0, 0},
    [COMMAND_FINISH] = {"finish", 0, 0},
    [COMMAND_BARRIER] = {"barrier", DISK_ARG_EPOCH, 0},
    [COMMAND_RELEASE] = {"release", DISK_ARG_EPOCH, 0},
    [COMMAND_VERIFY] = {"verify", 0, 0},
};
static_assert(G_N_ELEMENTS(commands) == COMMAND_COUNT, "a line for each command");

const DiskCommandSet forward_commands = {.commands = commands, .n = COMMAND_COUNT};

/* --- Status --- */

static json_object *
meta_json(const DiskMeta *meta)
{
    json_object *object = json_object_new_object();

    add(object, "state", json_object_new_string(disk_state_name(meta->state)));
    add_number(object, "generation", meta->generation);
    add_number(object, "size_bytes", meta->size_bytes);
    return object;
}

static void
add_copy(json_object *object, const ForwardStatus *status)
{
    add(object, "synced", json_object_new_boolean(status->synced));
    add_number(object, "sync_ms", status->sync_ms);
    add_number(object, "left_bytes", status->left_bytes);
    add_number(object, "rate_bytes_s", status->rate_bytes_s);
    if (status->rate_bytes_s > 0)
        add_number(object, "eta_s", status->left_bytes / status->rate_bytes_s);
    add_number(object, "copied_bytes", status->copied_bytes);
    add_number(object, "sent_bytes", status->sent_bytes);
    add_number(object, "equal_bytes", status->equal_bytes);
}

static json_object *
hex_json(const uint8_t *digest)
{
    char text[2 * CHUNK_DIGEST_BYTES + 1];

    for (unsigned i = 0; i < CHUNK_DIGEST_BYTES; i++)
        (void)g_snprintf(text + 2 * (size_t)i, 3, "%02x", digest[i]);
    return json_object_new_string(text);
}

static json_object *
verify_json(const VerifyStatus *status)
{
    json_object *object = json_object_new_object(), *list = json_object_new_array();

    add(object, "state", json_object_new_string(verify_state_name(status->state)));
    if (status->state == VERIFY_FAILED)
        add(object, "failure", json_object_new_string(g_strerror(-status->r)));
    add_number(object, "done_bytes", status->done_bytes);
    add_number(object, "all_bytes", status->all_bytes);
    add_number(object, "suspects", status->suspects);
    add_number(object, "unsettled", status->unsettled);
    add_number(object, "differences", status->n_differences);
    add(object, "cut", json_object_new_boolean(status->is_cut));
    for (unsigned i = 0; i < status->n_listed; i++) {
        json_object *difference = json_object_new_object();

        add_number(difference, "offset", status->listed[i].offset);
        add_number(difference, "length", status->listed[i].len);
        add(difference, "local", hex_json(status->listed[i].local));
        add(difference, "peer", hex_json(status->listed[i].peer));
        json_object_array_add(list, difference);
    }
    add(object, "listed", list);
    return object;
}

static json_object *
status_json(void *user_data)
{
    json_object *object = json_object_new_object();
    ForwardStatus status;

    forward_status(user_data, &status);
    add(object, "mode", json_object_new_string(forward_mode_name(status.mode)));
    add(object, "fault", json_object_new_string(fault_name(status.fault)));
    if (status.fault != FAULT_NONE) {
        g_autofree char *valid = g_utf8_make_valid(status.fault_text, -1);

        add(object, "fault_text", json_object_new_string(valid));
    }
    add_copy(object, &status);
    add_number(object, "queued_bytes", status.queue.queued_bytes);
    add_number(object, "held_bytes", status.queue.held_bytes);
    add_number(object, "window_bytes", status.queue.used_bytes);
    add_number(object, "limit_bytes", status.queue.limit_bytes);
    add_number(object, "marked_bytes", status.marked_bytes);
    add(object, "holding", json_object_new_boolean(status.holding));
    add_number(object, "epoch", status.epoch);
    add(object, "meta", meta_json(&status.meta));
    if (status.has_verify)
        add(object, "verify", verify_json(&status.verify));
    add_number(object, "requests", status.requests);
    add_number(object, "sent_requests", status.sent_requests);
    add_number(object, "merged_requests", status.queue.merged);
    add_number(object, "flushes", status.flushes);
    add_number(object, "change", status.change);
    return object;
}

static void
wait_change(void *user_data, uint64_t after, int64_t deadline_ns)
{
    forward_wait_change(user_data, after, deadline_ns);
}

/* --- Commands --- */

static gboolean
connect_to(Forward *forward, const DiskRequest *request, int64_t deadline_ns, GError **error)
{
    if (request->port == 0 && request->host[0] != '/') {
        g_set_error(error, FORWARD_ERROR, FORWARD_ERROR_REFUSED,
                    "a host that is no UNIX socket needs a port");
        return FALSE;
    }

    const ForwardConnect connect_order = {
        .host = request->host,
        .port = request->port,
        .generation = request->generation,
        .rate_limit_bytes_s = request->rate_limit,
    };

    return forward_connect(forward, &connect_order, deadline_ns, error);
}

static gboolean
order(void *user_data, const DiskRequest *request, int64_t deadline_ns, GError **error)
{
    Forward *forward = user_data;

    switch ((ForwardCommand)request->command) {
    case COMMAND_ALONE:
        return forward_alone(forward, request->generation, request->first, deadline_ns, error);
    case COMMAND_CONNECT:
        return connect_to(forward, request, deadline_ns, error);
    case COMMAND_SETTLED:
        forward_settled(forward);
        return TRUE;
    case COMMAND_FINISH:
        return forward_finish(forward, deadline_ns, error);
    case COMMAND_BARRIER:
        return forward_barrier(forward, request->epoch, deadline_ns, error);
    case COMMAND_RELEASE:
        return forward_release(forward, request->epoch, deadline_ns, error);
    case COMMAND_VERIFY:
        return forward_verify(forward, deadline_ns, error);
    case COMMAND_STATUS:
    case COMMAND_QUIT:
    case COMMAND_COUNT:
        break;
    }
    g_assert_not_reached();
}

static const DiskService service = {
    .set = &forward_commands,
    .status = status_json,
    .wait_change = wait_change,
    .quit = plugin_quit,
    .order = order,
    .error_domain = forward_error_quark,
    .refused = FORWARD_ERROR_REFUSED,
    .timeout = FORWARD_ERROR_TIMEOUT,
};

DiskControl *
forward_control_new(const char *path, Forward *forward, GError **error)
{
    return disk_control_new(path, &service, forward, error);
}
