/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-request.c - one line of a disk's control socket
 *
 * Strict: an argument that a command does not know is refused, not ignored, because a misspelt
 * `durable` would be a promise that nobody keeps.
 */
#include "control-request.h"

#include <string.h>

enum { MAX_DEPTH = 4, MAX_HOST = 253 /* of a DNS name; a socket's path is shorter */ };

void
disk_request_clear(DiskRequest *request)
{
    json_object_put(request->id);
    g_free(request->host);
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
take_until(json_object *value, DiskRequest *request)
{
    const char *text =
        json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";

    request->begun = g_str_equal(text, "begun");
    request->durable = g_str_equal(text, "durable");
    return request->begun || request->durable || g_str_equal(text, "committed");
}

static bool
take_host(json_object *value, char **ret_host)
{
    const char *text = json_object_get_string(value);

    if (!json_object_is_type(value, json_type_string) || text[0] == '\0' ||
        strlen(text) > MAX_HOST || strlen(text) != (size_t)json_object_get_string_len(value))
        return false;
    g_free(*ret_host); /* a key that comes twice */
    *ret_host = g_strdup(text);
    return true;
}

static bool
take_port(json_object *value, uint16_t *ret_port)
{
    uint64_t number = 0;

    if (!take_number(value, UINT16_MAX, &number) || number == 0)
        return false;
    *ret_port = (uint16_t)number;
    return true;
}

static bool
take_timeout(json_object *value, int64_t *ret_ms)
{
    uint64_t number = 0;

    if (!take_number(value, DISK_TIMEOUT_MAX_MS, &number))
        return false;
    *ret_ms = (int64_t)number;
    return true;
}

static const struct {
    const char *key;
    DiskArgument argument;
} arguments_by_name[] = {
    {"generation", DISK_ARG_GENERATION},
    {"epoch", DISK_ARG_EPOCH},
    {"after", DISK_ARG_AFTER},
    {"durable", DISK_ARG_DURABLE},
    {"until", DISK_ARG_UNTIL},
    {"timeout_ms", DISK_ARG_TIMEOUT},
    {"first", DISK_ARG_FIRST},
    {"host", DISK_ARG_HOST},
    {"port", DISK_ARG_PORT},
    {"rate_limit", DISK_ARG_RATE_LIMIT},
};

/* False: @value cannot be used. */
static bool
take_argument(DiskRequest *request, DiskArgument argument, json_object *value)
{
    switch (argument) {
    case DISK_ARG_GENERATION:
        return take_number(value, UINT64_MAX, &request->generation) && request->generation > 0;
    case DISK_ARG_EPOCH:
        return take_number(value, UINT64_MAX, &request->epoch);
    case DISK_ARG_AFTER:
        return take_number(value, UINT64_MAX, &request->after);
    case DISK_ARG_DURABLE:
        return take_bool(value, &request->durable);
    case DISK_ARG_UNTIL:
        return take_until(value, request);
    case DISK_ARG_TIMEOUT:
        return take_timeout(value, &request->timeout_ms);
    case DISK_ARG_FIRST:
        return take_bool(value, &request->first);
    case DISK_ARG_HOST:
        return take_host(value, &request->host);
    case DISK_ARG_PORT:
        return take_port(value, &request->port);
    case DISK_ARG_RATE_LIMIT:
        return take_number(value, UINT64_MAX, &request->rate_limit);
    }
    g_assert_not_reached();
}

/* 0: there is none of this name. */
static unsigned
find_argument(const char *key)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(arguments_by_name); i++) {
        if (g_str_equal(key, arguments_by_name[i].key))
            return arguments_by_name[i].argument;
    }
    return 0;
}

static char *
parse_arguments(const DiskCommand *command, json_object *arguments, DiskRequest *request)
{
    unsigned given = 0, allowed = command->required | command->optional | DISK_ARG_TIMEOUT;

    json_object_object_foreach(arguments, key, value)
    {
        unsigned bit = find_argument(key);

        if (!(bit & allowed))
            return g_strdup_printf("\"%s\" takes no argument \"%.32s\"", command->name, key);
        if (!take_argument(request, (DiskArgument)bit, value))
            return g_strdup_printf("\"%s\" of \"%s\" has no value it can have", key, command->name);
        given |= bit;
    }
    if ((given & command->required) != command->required)
        return g_strdup_printf("\"%s\" lacks an argument", command->name);
    return NULL;
}

static bool
take_command(const DiskCommandSet *set, json_object *object, unsigned *ret_command)
{
    json_object *value = json_object_object_get(object, "command");

    for (unsigned i = 0; json_object_is_type(value, json_type_string) && i < set->n; i++) {
        if (g_str_equal(json_object_get_string(value), set->commands[i].name)) {
            *ret_command = i;
            return true;
        }
    }
    return false;
}

char *
disk_request_parse(const DiskCommandSet *set, const char *text, gsize length,
                   DiskRequest *ret_request)
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
        if (!take_command(set, object, &ret_request->command))
            problem = g_strdup("\"command\" is missing or unknown");
        else if (arguments && !json_object_is_type(arguments, json_type_object))
            problem = g_strdup("\"arguments\" is no object");
        else if (arguments)
            problem = parse_arguments(&set->commands[ret_request->command], arguments, ret_request);
        else if (set->commands[ret_request->command].required)
            problem = g_strdup("\"arguments\" is missing");
    }
    json_object_put(object);
    return problem;
}
