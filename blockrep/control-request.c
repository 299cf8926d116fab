/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-request.c - one line of a disk's control socket
 *
 * Strict: an argument that a command does not know is refused, not ignored, because a misspelt
 * `durable` would be a promise that nobody keeps.
 */
#include "control-request.h"

#include <assert.h>
#include <string.h>

enum { MAX_DEPTH = 4 };

/* Arguments of a command. */
enum {
    ARG_GENERATION = 1,
    ARG_EPOCH = 2,
    ARG_AFTER = 4,
    ARG_DURABLE = 8,
    ARG_UNTIL = 16,
    ARG_TIMEOUT = 32,
};

static const struct {
    const char *name;
    unsigned required, optional;
} commands[] = {
    [DISK_STATUS] = {"status", 0, ARG_AFTER},
    [DISK_SYNC] = {"sync", ARG_GENERATION, 0},
    [DISK_MIRROR] = {"mirror", ARG_GENERATION | ARG_EPOCH, 0},
    [DISK_CHECKPOINT] = {"checkpoint", ARG_EPOCH, 0},
    [DISK_BARRIER] = {"barrier", 0, ARG_DURABLE},
    [DISK_FAILOVER] = {"failover", ARG_GENERATION, ARG_UNTIL},
};
static_assert(G_N_ELEMENTS(commands) == DISK_COMMAND_COUNT, "a line for each command");

void
disk_request_clear(DiskRequest *request)
{
    json_object_put(request->id);
    *request = (DiskRequest){0};
}

static json_object *
parse_json(const char *text, gsize length, char **ret_problem)
{
    json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);

    g_assert(tokener);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);

    json_object *object = json_tokener_parse_ex(tokener, text, (int)length);
    enum json_tokener_error code = json_tokener_get_error(tokener);
    size_t end = json_tokener_get_parse_end(tokener);

    if (code == json_tokener_continue)
        *ret_problem = g_strdup("the line ends inside the JSON object");
    else if (code != json_tokener_success)
        *ret_problem = g_strdup_printf("at byte %zu: %s", end, json_tokener_error_desc(code));
    else if (end != length)
        *ret_problem = g_strdup_printf("at byte %zu: something follows the JSON object", end);
    else if (!json_object_is_type(object, json_type_object))
        *ret_problem = g_strdup("a request is a JSON object");
    json_tokener_free(tokener);
    return object;
}

static bool
take_number(json_object *value, uint64_t max, uint64_t *ret_number)
{
    if (!json_object_is_type(value, json_type_int))
        return false;

    int64_t number = json_object_get_int64(value);

    /* json-c answers the largest number for all that are larger. */
    if (number < 0 || number == INT64_MAX || (uint64_t)number > max)
        return false;
    *ret_number = (uint64_t)number;
    return true;
}

static bool
take_bool(json_object *value, bool *ret_bool)
{
    if (!json_object_is_type(value, json_type_boolean))
        return false;
    *ret_bool = json_object_get_boolean(value);
    return true;
}

static bool
take_until(json_object *value, bool *ret_durable)
{
    const char *text =
        json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";

    *ret_durable = g_str_equal(text, "durable");
    return *ret_durable || g_str_equal(text, "committed");
}

/* The bit of argument @key, 0: unknown; *@ret_good: its value can be used. */
static unsigned
take_argument(DiskRequest *request, const char *key, json_object *value, bool *ret_good)
{
    uint64_t number = 0;

    if (g_str_equal(key, "generation")) {
        *ret_good = take_number(value, UINT64_MAX, &request->generation) && request->generation > 0;
        return ARG_GENERATION;
    }
    if (g_str_equal(key, "epoch")) {
        *ret_good = take_number(value, UINT64_MAX, &request->epoch);
        return ARG_EPOCH;
    }
    if (g_str_equal(key, "after")) {
        *ret_good = take_number(value, UINT64_MAX, &request->after);
        return ARG_AFTER;
    }
    if (g_str_equal(key, "durable")) {
        *ret_good = take_bool(value, &request->durable);
        return ARG_DURABLE;
    }
    if (g_str_equal(key, "until")) {
        *ret_good = take_until(value, &request->durable);
        return ARG_UNTIL;
    }
    if (g_str_equal(key, "timeout_ms")) {
        *ret_good = take_number(value, DISK_TIMEOUT_MAX_MS, &number);
        request->timeout_ms = (int64_t)number;
        return ARG_TIMEOUT;
    }
    return 0;
}

static char *
parse_arguments(json_object *arguments, DiskRequest *request)
{
    unsigned given = 0, required = commands[request->command].required;
    const char *name = commands[request->command].name;

    json_object_object_foreach(arguments, key, value)
    {
        bool good = false;
        unsigned bit = take_argument(request, key, value, &good);

        if (bit == 0 || !(bit & (required | commands[request->command].optional | ARG_TIMEOUT)))
            return g_strdup_printf("\"%s\" takes no argument \"%.32s\"", name, key);
        if (!good)
            return g_strdup_printf("\"%s\" of \"%s\" has no value it can have", key, name);
        given |= bit;
    }
    if ((given & required) != required)
        return g_strdup_printf("\"%s\" lacks an argument", name);
    return NULL;
}

static bool
take_command(json_object *object, DiskCommand *ret_command)
{
    json_object *value = json_object_object_get(object, "command");

    for (unsigned i = 0; json_object_is_type(value, json_type_string) && i < DISK_COMMAND_COUNT;
         i++) {
        if (g_str_equal(json_object_get_string(value), commands[i].name)) {
            *ret_command = (DiskCommand)i;
            return true;
        }
    }
    return false;
}

char *
disk_request_parse(const char *text, gsize length, DiskRequest *ret_request)
{
    char *problem = NULL;

    *ret_request = (DiskRequest){.timeout_ms = DISK_TIMEOUT_DEFAULT_MS};
    if (length > DISK_LINE_MAX_BYTES)
        return g_strdup("a line is at most 4096 bytes long");
    if (memchr(text, '\0', length))
        return g_strdup("a zero byte is no JSON");

    json_object *object = parse_json(text, length, &problem);

    if (!problem) {
        json_object *arguments = json_object_object_get(object, "arguments");

        ret_request->id = json_object_get(json_object_object_get(object, "id"));
        if (!take_command(object, &ret_request->command))
            problem = g_strdup("\"command\" is missing or unknown");
        else if (arguments && !json_object_is_type(arguments, json_type_object))
            problem = g_strdup("\"arguments\" is no object");
        else if (arguments || commands[ret_request->command].required)
            problem = arguments ? parse_arguments(arguments, ret_request)
                                : g_strdup("\"arguments\" is missing");
    }
    json_object_put(object);
    return problem;
}
