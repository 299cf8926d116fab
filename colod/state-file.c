/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* state-file.c - what a host must remember of its VM over a crash of colod or of the host
 *
 * The file is text, one key=value a line, in a fixed order; the first line names format and
 * version, the last is the SHA-256 of everything before it. There is one way to write each state,
 * so reading is strict: a line that is missing, out of order or written otherwise is damage.
 */
#include "state-file.h"

#include "fd.h"
#include "file-replace.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define STATE_MAGIC "colod-state "
#define STATE_VERSION "1"
#define CHECKSUM_KEY "sha256="
#define BOOT_ID_CHARACTERS "0123456789abcdefABCDEF-"

enum {
    FILE_MAX_BYTES = 4096,    /* the longest state is some 400 bytes */
    CHECKSUM_HEX_BYTES = 64,  /* SHA-256 */
    TAP_FD_MAX = 1024 * 1024, /* fs.nr_open's default: no descriptor is above it */
    PID_MAX_LIMIT = 4194304,  /* the kernel's PID_MAX_LIMIT */
};

static const char *const role_names[] = {
    [STATE_ROLE_NONE] = "none",
    [STATE_ROLE_PRIMARY] = "primary",
    [STATE_ROLE_SECONDARY] = "secondary",
};

const char *
state_role_name(StateRole role)
{
    g_assert((unsigned)role < G_N_ELEMENTS(role_names));
    return role_names[role];
}

void
host_state_init(HostState *state)
{
    *state = (HostState){0};
    for (unsigned i = 0; i < STATE_MAX_NICS; i++)
        state->tap_fd[i] = -1;
}

/* --- Reading --- */

/* Takes the next line off *@cursor if it reads @key=...; the value, or NULL. */
static char *
take_value(char **cursor, const char *key)
{
    char *end = strchr(*cursor, '\n');
    size_t key_len = strlen(key);

    if (!end || strncmp(*cursor, key, key_len) != 0 || (*cursor)[key_len] != '=')
        return NULL;

    char *value = *cursor + key_len + 1;

    *end = '\0';
    *cursor = end + 1;
    return value;
}

static bool
take_number(char **cursor, const char *key, guint64 max, guint64 *ret_value)
{
    const char *text = take_value(cursor, key);

    return text && g_ascii_string_to_unsigned(text, 10, 0, max, ret_value, NULL);
}

static bool
take_bool(char **cursor, const char *key, bool *ret_value)
{
    guint64 value;

    if (!take_number(cursor, key, 1, &value))
        return false;
    *ret_value = value == 1;
    return true;
}

static bool
take_role(char **cursor, StateRole *ret_role)
{
    const char *text = take_value(cursor, "role");

    for (unsigned i = 0; text && i < G_N_ELEMENTS(role_names); i++) {
        if (g_str_equal(text, role_names[i])) {
            *ret_role = (StateRole)i;
            return true;
        }
    }
    return false;
}

static bool
take_tap_fds(char **cursor, int ret_fds[STATE_MAX_NICS])
{
    const char *text = take_value(cursor, "tap-fds");
    g_auto(GStrv) items = text ? g_strsplit(text, ",", STATE_MAX_NICS + 1) : NULL;

    if (!items || g_strv_length(items) != STATE_MAX_NICS)
        return false;
    for (unsigned i = 0; i < STATE_MAX_NICS; i++) {
        gint64 value;

        if (!g_ascii_string_to_signed(items[i], 10, -1, TAP_FD_MAX, &value, NULL))
            return false;
        ret_fds[i] = (int)value;
    }
    return true;
}

static bool
boot_id_is_valid(const char *text, size_t size)
{
    return memchr(text, '\0', size) && strspn(text, BOOT_ID_CHARACTERS) == strlen(text);
}

static bool
take_boot_id(char **cursor, HostState *state)
{
    const char *text = take_value(cursor, "boot-id");

    if (!text || strlen(text) >= sizeof(state->boot_id) ||
        !boot_id_is_valid(text, strlen(text) + 1))
        return false;
    g_strlcpy(state->boot_id, text, sizeof(state->boot_id));
    return true;
}

/* @cursor: the lines between the first and the checksum. */
static bool
parse_body(char *cursor, HostState *ret_state)
{
    HostState state;
    guint64 pid = 0;

    host_state_init(&state);
    if (!take_number(&cursor, "generation", G_MAXUINT64, &state.generation) ||
        !take_number(&cursor, "claiming", G_MAXUINT64, &state.claiming) ||
        !take_role(&cursor, &state.role) || !take_bool(&cursor, "protecting", &state.protecting) ||
        !take_bool(&cursor, "unprotect", &state.unprotect) ||
        !take_number(&cursor, "qemu-pid", PID_MAX_LIMIT, &pid) ||
        !take_number(&cursor, "qemu-start-ticks", G_MAXUINT64, &state.qemu_start_ticks) ||
        !take_tap_fds(&cursor, state.tap_fd) || !take_boot_id(&cursor, &state) || *cursor != '\0')
        return false;
    state.qemu_pid = (gint64)pid;
    *ret_state = state;
    return true;
}

/* Cuts the checksum line off @text if it fits what stands before it. */
static bool
take_checksum(char *text, size_t length)
{
    const size_t line_len = strlen(CHECKSUM_KEY) + CHECKSUM_HEX_BYTES + 1;

    if (length < line_len || text[length - 1] != '\n')
        return false;

    char *line = text + (length - line_len);
    g_autofree char *sum =
        g_compute_checksum_for_data(G_CHECKSUM_SHA256, (const guchar *)text, length - line_len);
    g_autofree char *wanted = g_strconcat(CHECKSUM_KEY, sum, "\n", NULL);

    if (!g_str_equal(line, wanted))
        return false;
    *line = '\0';
    return true;
}

static gboolean
refuse(const char *path, GIOErrorEnum code, const char *what, GError **error)
{
    g_set_error(error, G_IO_ERROR, code,
                "%s: %s; colod will not guess which generation this host has: once it is certain "
                "that the VM runs on the peer or nowhere, remove the file and start colod again",
                path, what);
    return FALSE;
}

static gboolean
parse_text(const char *path, char *text, size_t length, HostState *ret_state, GError **error)
{
    static const char first[] = STATE_MAGIC STATE_VERSION "\n";

    if (memchr(text, '\0', length) || !g_str_has_prefix(text, STATE_MAGIC))
        return refuse(path, G_IO_ERROR_INVALID_DATA, "is no state file of colod", error);
    if (!take_checksum(text, length))
        return refuse(path, G_IO_ERROR_INVALID_DATA, "is damaged (the checksum does not fit)",
                      error);
    if (!g_str_has_prefix(text, first))
        return refuse(path, G_IO_ERROR_NOT_SUPPORTED, "is of a version this colod does not know",
                      error);
    if (!parse_body(text + strlen(first), ret_state))
        return refuse(path, G_IO_ERROR_INVALID_DATA, "is damaged (a line is missing or malformed)",
                      error);
    return TRUE;
}

static gboolean
fail_errno(const char *path, const char *doing, GError **error)
{
    int saved_errno = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved_errno), "%s: cannot %s: %s", path,
                doing, g_strerror(saved_errno));
    return FALSE;
}

gboolean
host_state_load(const char *path, HostState *ret_state, GError **error)
{
    auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    char text[FILE_MAX_BYTES + 1];
    size_t length = 0;
    ssize_t n;

    if (fd < 0 && errno == ENOENT) {
        host_state_init(ret_state);
        return TRUE;
    }
    if (fd < 0)
        return fail_errno(path, "open it", error);
    while ((n = read(fd, text + length, FILE_MAX_BYTES - length)) > 0)
        length += (size_t)n;
    if (n < 0)
        return fail_errno(path, "read it", error);
    /* A file that fills the buffer has no checksum at its cut end, and so is damaged too. */
    text[length] = '\0';
    return parse_text(path, text, length, ret_state, error);
}

/* --- Writing --- */

static char *
format_state(const HostState *state)
{
    GString *text = g_string_new(STATE_MAGIC STATE_VERSION "\n");

    g_string_append_printf(text, "generation=%" PRIu64 "\n", state->generation);
    g_string_append_printf(text, "claiming=%" PRIu64 "\n", state->claiming);
    g_string_append_printf(text, "role=%s\n", state_role_name(state->role));
    g_string_append_printf(text, "protecting=%d\n", state->protecting);
    g_string_append_printf(text, "unprotect=%d\n", state->unprotect);
    g_string_append_printf(text, "qemu-pid=%" PRId64 "\n", state->qemu_pid);
    g_string_append_printf(text, "qemu-start-ticks=%" PRIu64 "\n", state->qemu_start_ticks);
    for (unsigned i = 0; i < STATE_MAX_NICS; i++)
        g_string_append_printf(text, "%s%d", i ? "," : "tap-fds=", state->tap_fd[i]);
    g_string_append_printf(text, "\nboot-id=%s\n", state->boot_id);

    g_autofree char *sum =
        g_compute_checksum_for_data(G_CHECKSUM_SHA256, (const guchar *)text->str, text->len);

    g_string_append_printf(text, CHECKSUM_KEY "%s\n", sum);
    return g_string_free(text, FALSE);
}

gboolean
host_state_save(const char *path, const HostState *state, GError **error)
{
    /* What could not be read again would be found out only when it is needed. */
    g_assert(boot_id_is_valid(state->boot_id, sizeof(state->boot_id)));
    g_assert(state->qemu_pid >= 0 && state->qemu_pid <= PID_MAX_LIMIT);
    for (unsigned i = 0; i < STATE_MAX_NICS; i++)
        g_assert(state->tap_fd[i] >= -1 && state->tap_fd[i] <= TAP_FD_MAX);

    g_autofree char *text = format_state(state);

    return file_replace(path, text, strlen(text), error);
}
