/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* peer-hello.c - HELLO, WELCOME and REFUSED: their JSON, and whether they come from the peer */
#include "peer-hello.h"

#include <string.h>

enum {
    JSON_DEPTH_MAX = 16,   /* our messages have depth 3 */
    STRING_MAX_BYTES = 255 /* a name in a hello; DNS names end there too */
};

void
peer_hello_clear(PeerHello *hello)
{
    g_clear_pointer(&hello->vm, g_free);
    g_clear_pointer(&hello->uuid, g_free);
    g_clear_pointer(&hello->info.host, g_free);
    g_clear_pointer(&hello->info.software_version, g_free);
    g_clear_pointer(&hello->info.role, g_free);
}

/* JSON */

json_object *
peer_json_parse(View text, GError **error)
{
    json_tokener *tokener = json_tokener_new_ex(JSON_DEPTH_MAX);
    json_object *object = NULL;
    enum json_tokener_error problem = json_tokener_error_size;

    if (text.len <= PEER_JSON_MAX_BYTES) {
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
        object = json_tokener_parse_ex(tokener, (const char *)text.data, (int)text.len);
        problem = json_tokener_get_error(tokener);
        if (problem == json_tokener_success && json_tokener_get_parse_end(tokener) != text.len)
            problem = json_tokener_error_parse_unexpected;
    }
    json_tokener_free(tokener);
    if (problem == json_tokener_success && json_object_is_type(object, json_type_object))
        return object;
    if (object)
        json_object_put(object);
    g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL, "payload is not a JSON object: %s",
                problem == json_tokener_success ? "another type of value"
                                                : json_tokener_error_desc(problem));
    return NULL;
}

/* A string member, whole and of bounded length. */
static char *
take_string(json_object *object, const char *key, GError **error)
{
    json_object *member;

    if (json_object_object_get_ex(object, key, &member) &&
        json_object_is_type(member, json_type_string)) {
        const char *text = json_object_get_string(member);
        size_t len = (size_t)json_object_get_string_len(member);

        if (len <= STRING_MAX_BYTES && strlen(text) == len)
            return g_strndup(text, len);
    }
    g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                "'%s' is missing, not a string or longer than %d bytes", key, STRING_MAX_BYTES);
    return NULL;
}

static gboolean
take_number(json_object *object, const char *key, guint64 *ret_number, GError **error)
{
    g_autofree char *text = take_string(object, key, error);

    if (!text)
        return FALSE;
    if (!g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT64, ret_number, NULL)) {
        g_set_error(error, PEER_ERROR, PEER_ERROR_PROTOCOL,
                    "'%s' is not a decimal number of 64 bits", key);
        return FALSE;
    }
    return TRUE;
}

static gboolean
take_channel(json_object *object, PeerChannelKind *ret_channel, GError **error)
{
    g_autofree char *name = take_string(object, "channel", error);

    if (!name)
        return FALSE;
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
        if (strcmp(name, peer_channel_kind_name((PeerChannelKind)kind)) == 0) {
            *ret_channel = (PeerChannelKind)kind;
            return TRUE;
        }
    }
    g_set_error_literal(error, PEER_ERROR, PEER_ERROR_PROTOCOL, "'channel' is none that we know");
    return FALSE;
}

static gboolean
check_role(const char *role, GError **error)
{
    static const char *const roles[] = {"primary", "secondary", "none", NULL};

    if (g_strv_contains(roles, role))
        return TRUE;
    g_set_error_literal(error, PEER_ERROR, PEER_ERROR_PROTOCOL, "'role' is none that we know");
    return FALSE;
}

gboolean
peer_hello_parse(View text, PeerHello *ret_hello, GError **error)
{
    json_object *object = peer_json_parse(text, error);
    g_auto(PeerHello) hello = {0};

    if (!object)
        return FALSE;

    gboolean whole = take_channel(object, &hello.channel, error) &&
                     (hello.vm = take_string(object, "vm", error)) &&
                     (hello.uuid = take_string(object, "uuid", error)) &&
                     (hello.info.host = take_string(object, "host", error)) &&
                     (hello.info.role = take_string(object, "role", error)) &&
                     check_role(hello.info.role, error) &&
                     (hello.info.software_version = take_string(object, "software", error)) &&
                     take_number(object, "generation", &hello.info.generation, error) &&
                     take_number(object, "boot_id", &hello.info.boot_id, error) &&
                     take_number(object, "session", &hello.session, error);

    json_object_put(object);
    if (!whole)
        return FALSE;
    *ret_hello = hello;
    memset(&hello, 0, sizeof(hello)); /* the strings are the caller's now */
    return TRUE;
}

static void
put_string(json_object *object, const char *key, const char *value)
{
    json_object_object_add(object, key, json_object_new_string(value));
}

static void
put_number(json_object *object, const char *key, guint64 value)
{
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, value);

    put_string(object, key, text);
}

static char *
put_text(json_object *object)
{
    char *text = g_strdup(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));

    json_object_put(object);
    return text;
}

char *
peer_hello_format(const PeerHello *hello)
{
    json_object *object = json_object_new_object();

    put_string(object, "channel", peer_channel_kind_name(hello->channel));
    put_string(object, "vm", hello->vm);
    put_string(object, "uuid", hello->uuid);
    put_string(object, "host", hello->info.host);
    put_string(object, "role", hello->info.role);
    put_string(object, "software", hello->info.software_version);
    put_number(object, "generation", hello->info.generation);
    put_number(object, "boot_id", hello->info.boot_id);
    put_number(object, "session", hello->session);
    return put_text(object);
}

const char *
peer_hello_judge(const PeerHello *hello, const PeerLinkConfig *config, GError **error)
{
    const struct {
        const char *code, *what, *theirs, *ours;
    } claims[] = {
        {"vm", "VM", hello->vm, config->vm_name},
        {"uuid", "VM UUID", hello->uuid, config->vm_uuid},
        {"host", "host", hello->info.host, config->peer_host},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(claims); i++) {
        /* UUIDs are hexadecimal, host names DNS names: both without regard to case. */
        if (i == 0 ? strcmp(claims[i].theirs, claims[i].ours) == 0
                   : g_ascii_strcasecmp(claims[i].theirs, claims[i].ours) == 0)
            continue;

        g_autofree char *theirs = g_strescape(claims[i].theirs, NULL);

        g_set_error(error, PEER_ERROR, PEER_ERROR_IDENTITY, "peer's %s is '%s', expected '%s'",
                    claims[i].what, theirs, claims[i].ours);
        return claims[i].code;
    }
    return NULL;
}

char *
peer_refused_format(const char *code, const char *text)
{
    json_object *object = json_object_new_object();

    put_string(object, "code", code);
    put_string(object, "text", text);
    return put_text(object);
}

GError *
peer_refused_parse(View text)
{
    GError *error = NULL;
    json_object *object = peer_json_parse(text, &error);

    if (!object)
        return error;

    g_autofree char *code = take_string(object, "code", &error);
    g_autofree char *why = code ? take_string(object, "text", &error) : NULL;

    json_object_put(object);
    if (!why)
        return error;

    g_autofree char *shown_code = g_strescape(code, NULL);
    g_autofree char *shown_why = g_strescape(why, NULL);

    return g_error_new(PEER_ERROR, PEER_ERROR_REFUSED, "peer refused us (%s): %s", shown_code,
                       shown_why);
}
