/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-disk-answers.c - what a plugin answers on its control socket, in the daemon's client
 *
 * The first byte says how often connecting fails (two bits). Then steps, each a byte (the lower
 * three bits: what; the others: on which connection, or of which command) with an argument:
 *
 *   0 LENGTH BYTES   the plugin says BYTES
 *   1 LENGTH BYTES   it answers the last request: {"id":ITS_ID, BYTES}
 *   2                it closes the connection
 *   3 N              N * 50 ms pass
 *   4, 5             the daemon sends a command, in turn or at once
 *
 * Time and sockets are the fuzzer's (--wrap). Checked besides memory: each command is answered at
 * most once and forgotten exactly once, nothing comes after `closed`, and every status and every
 * error has what disk-client.h promises.
 */
#include "disk-client.h"
#include "disk.h"

#include "bytes.h"
#include "clock.h"
#include "fd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    PEERS_MAX = 8, /* more than the client may open */
    COMMANDS_MAX = 100,
    CONNECT_MS = 1000,
    SILENCE_MS = 300,
    TIMEOUT_MS = 500,
    STEP_MS = 50,
    SOON_MS = 5, /* a new attempt to connect */
    TURNS_MAX = 256,
};

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

typedef struct Command {
    unsigned n_replies, n_destroyed;
} Command;

static struct {
    int64_t now_ns;
    GSource *timer; /* the client's last one */
    unsigned refusals;
    int peers[PEERS_MAX];
    unsigned n_peers;
    Command commands[COMMANDS_MAX];
    unsigned n_commands, n_closed;
} world;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int64_t __wrap_clock_now_ns(void);
int __wrap_fd_unix_connect(const char *path);
GSource *__wrap_g_timeout_source_new(guint ms);
GSource *__real_g_timeout_source_new(guint ms);

/* ---- the world ---- */

int64_t
__wrap_clock_now_ns(void)
{
    return world.now_ns;
}

int
__wrap_fd_unix_connect(const char *path G_GNUC_UNUSED)
{
    int fds[2];

    if (world.refusals > 0) {
        world.refusals--;
        return -ENOENT;
    }
    MUST(world.n_peers < PEERS_MAX);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
    world.peers[world.n_peers++] = fds[1];
    return fds[0];
}

/* It fires at once, or when time passes. */
GSource *
__wrap_g_timeout_source_new(guint ms)
{
    g_clear_pointer(&world.timer, g_source_unref);
    world.timer = __real_g_timeout_source_new(ms <= SOON_MS ? 0 : G_MAXINT);
    return g_source_ref(world.timer);
}

static void
turn(void)
{
    for (int i = 0; i < TURNS_MAX && g_main_context_iteration(NULL, FALSE); i++)
        ;
}

static void
pass_time(unsigned ms)
{
    world.now_ns += ms * NS_PER_MS;
    if (world.timer != NULL && !g_source_is_destroyed(world.timer))
        g_source_set_ready_time(world.timer, 0);
}

/* ---- the daemon ---- */

static void
on_status(DiskClient *client G_GNUC_UNUSED, json_object *status, gpointer user_data G_GNUC_UNUSED)
{
    json_object *change = NULL;

    MUST(world.n_closed == 0);
    MUST(json_object_object_get_ex(status, "change", &change));
    MUST(json_object_is_type(change, json_type_int));
}

static void
on_closed(DiskClient *client G_GNUC_UNUSED, const GError *reason, gpointer user_data G_GNUC_UNUSED)
{
    MUST(world.n_closed++ == 0);
    MUST(reason->domain == DISK_ERROR && reason->message[0]);
}

static const DiskClientHandlers handlers = {.status = on_status, .closed = on_closed};

static void
on_reply(json_object *value, const GError *error, gpointer user_data)
{
    Command *command = user_data;

    MUST(command->n_replies++ == 0 && command->n_destroyed == 0);
    MUST((value == NULL) == (error != NULL));
    MUST(value == NULL || json_object_is_type(value, json_type_object));
    if (error != NULL) {
        MUST(error->domain == DISK_ERROR && error->message != NULL);
        MUST(error->code >= DISK_ERROR_REFUSED && error->code <= DISK_ERROR_TIMEOUT);
    }
}

static void
on_destroy(gpointer user_data)
{
    Command *command = user_data;

    MUST(command->n_destroyed++ == 0);
}

static void
send_command(DiskClient *client, DiskUrgency urgency, unsigned which)
{
    static const char *const names[] = {"barrier", "release", "alone", "verify"};

    if (world.n_commands == COMMANDS_MAX)
        return;
    disk_client_send(client, names[which % G_N_ELEMENTS(names)], NULL, urgency, TIMEOUT_MS,
                     on_reply, &world.commands[world.n_commands], on_destroy);
    MUST(world.commands[world.n_commands].n_replies == 0); /* never from within */
    world.n_commands++;
}

/* ---- the plugin ---- */

/* The id of the last request on the connection; 0: there is none. */
static unsigned long long
read_requests(int fd)
{
    char buffer[16384];
    const ssize_t n = recv(fd, buffer, sizeof(buffer) - 1, 0);
    unsigned long long id = 0;

    if (n <= 0)
        return 0;
    buffer[n] = '\0';
    for (const char *at = buffer; (at = strstr(at, "{\"id\":")) != NULL; at++) {
        unsigned long long found = strtoull(at + strlen("{\"id\":"), NULL, 10);

        id = found > 0 ? found : id;
    }
    return id;
}

static void
say(int fd, View bytes)
{
    if (fd >= 0 && bytes.len > 0)
        (void)send(fd, bytes.data, bytes.len, MSG_NOSIGNAL);
}

static void
answer(int fd, View bytes)
{
    g_autofree char *text = g_strndup((const char *)bytes.data, bytes.len);
    g_autofree char *line = NULL;

    if (fd < 0)
        return;
    line = g_strdup_printf("{\"id\":%llu,%s}\n", read_requests(fd), text);
    say(fd, view_of(line, strlen(line)));
}

static bool
take_bytes(View *input, View *ret_bytes)
{
    const uint8_t *bytes = NULL;
    uint8_t length = 0;
    size_t n;

    if (!view_get_u8(input, &length))
        return false;
    n = MIN(length, input->len);
    if (!view_take(input, n, &bytes))
        return false;
    *ret_bytes = view_of(bytes, n);
    return true;
}

static bool
take_step(DiskClient *client, View *input)
{
    uint8_t step = 0, argument = 0;
    View bytes = {0};
    int *fd;

    if (!view_get_u8(input, &step))
        return false;
    fd = world.n_peers > 0 ? &world.peers[(step >> 3) % world.n_peers] : NULL;
    switch (step & 7) {
    case 0:
        if (take_bytes(input, &bytes) && fd != NULL)
            say(*fd, bytes);
        break;
    case 1:
        if (take_bytes(input, &bytes) && fd != NULL)
            answer(*fd, bytes);
        break;
    case 2:
        if (fd != NULL)
            fd_clear(fd);
        break;
    case 3:
        if (view_get_u8(input, &argument))
            pass_time(argument * STEP_MS);
        break;
    case 4:
    case 5:
        send_command(client, (step & 7) == 4 ? DISK_IN_TURN : DISK_AT_ONCE, step >> 3);
        break;
    default:
        break;
    }
    turn();
    return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    View input = view_of(data, size);
    DiskClient *client;
    uint8_t first = 0;

    memset(&world, 0, sizeof(world));
    world.now_ns = NS_PER_S;
    (void)view_get_u8(&input, &first);
    world.refusals = first & 3;
    client = disk_client_new("control", CONNECT_MS, SILENCE_MS, &handlers, NULL);
    turn();
    while (take_step(client, &input))
        ;
    disk_client_free(client);
    turn();
    for (unsigned i = 0; i < world.n_commands; i++)
        MUST(world.commands[i].n_destroyed == 1);
    for (unsigned i = 0; i < world.n_peers; i++)
        fd_clear(&world.peers[i]);
    g_clear_pointer(&world.timer, g_source_unref);
    return 0;
}
