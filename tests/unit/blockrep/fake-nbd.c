/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-nbd.c - an NBD server in the test's process: a thread that accepts, one per connection */
#include "fake-nbd.h"

#include "chunk-digest.h"
#include "chunk-set.h"
#include "fd.h"

#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md */
#define OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define REPLY_MAGIC UINT64_C(0x3e889045565a9)
enum {
    REQUEST_MAGIC = 0x25609513,
    SIMPLE_REPLY_MAGIC = 0x67446698,
    OPT_GO = 7,
    REP_ACK = 1,
    REP_INFO = 3,
    CMD_READ = 0,
    CMD_WRITE = 1,
    CMD_DISC = 2,
    CMD_FLUSH = 3,
    CMD_TRIM = 4,
    CMD_ZERO = 6,
    MAX_CONNECTIONS = 16,
    MAX_KEPT = 64,
};
#define REP_ERR_UNSUP UINT32_C(0x80000001)

typedef struct Connection {
    FakeNbd *fake;
    int fd;
    pthread_t thread;
    int export; /* index in export_names */
} Connection;

typedef struct Change {
    Connection *connection;
    uint64_t cookie, offset, len;
    uint8_t *data; /* NULL: zeros */
} Change;

struct FakeNbd {
    char *path;
    int listen_fd;
    pthread_t thread;
    pthread_mutex_t mutex; /* all below, and what is sent */
    pthread_cond_t changed;
    uint64_t size_bytes, later_size_bytes;
    unsigned first_flags, later_flags;
    uint8_t *disk, *bits;
    bool hold, stopping;
    uint32_t fail;
    Change kept[MAX_KEPT];
    unsigned n_kept;
    Connection connections[MAX_CONNECTIONS];
    FakeNbdCounters counters;
};

static const char *const export_names[] = {"target", "changed", "digest"};

/* --- Bytes --- */

static bool
receive(int fd, void *data, size_t len)
{
    return recv(fd, data, len, MSG_WAITALL) == (ssize_t)len;
}

static void
transmit(int fd, const void *data, size_t len)
{
    (void)!send(fd, data, len, MSG_NOSIGNAL);
}

static void
put(uint8_t *to, uint64_t value, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        to[i] = (uint8_t)(value >> 8 * (n - 1 - i));
}

static uint64_t
get(const uint8_t *from, unsigned n)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < n; i++)
        value = value << 8 | from[i];
    return value;
}

/* --- Handshake --- */

static uint64_t
n_chunks(const FakeNbd *fake)
{
    return (fake->size_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
}

static uint64_t
export_size(const FakeNbd *fake, int export)
{
    switch (export) {
    case 0:
        return fake->size_bytes;
    case 1:
        return (n_chunks(fake) + 7) / 8;
    default:
        return n_chunks(fake) * CHUNK_DIGEST_BYTES;
    }
}

static void
answer_option(int fd, uint32_t option, uint32_t type, const void *data, uint32_t len)
{
    uint8_t head[20];

    put(head, REPLY_MAGIC, 8);
    put(head + 8, option, 4);
    put(head + 12, type, 4);
    put(head + 16, len, 4);
    transmit(fd, head, sizeof(head));
    transmit(fd, data, len);
}

static bool
take_export(Connection *connection, const uint8_t *data, uint32_t len)
{
    FakeNbd *fake = connection->fake;
    bool is_later = fake->later_size_bytes > 0 && connection != fake->connections;
    uint32_t name_len = len >= 4 ? (uint32_t)get(data, 4) : UINT32_MAX;
    uint8_t info[12] = {0};

    for (int i = 0; i < (int)G_N_ELEMENTS(export_names); i++) {
        if (name_len == strlen(export_names[i]) && len >= 4 + name_len &&
            memcmp(data + 4, export_names[i], name_len) == 0) {
            connection->export = i;
            put(info + 2, is_later ? fake->later_size_bytes : export_size(fake, i), 8);
            put(info + 10, is_later ? fake->later_flags : fake->first_flags, 2);
            answer_option(connection->fd, OPT_GO, REP_INFO, info, sizeof(info));
            answer_option(connection->fd, OPT_GO, REP_ACK, NULL, 0);
            return true;
        }
    }
    return false;
}

static bool
shake_hands(Connection *connection)
{
    static const uint8_t greeting[] = "NBDMAGICIHAVEOPT\0\1"; /* fixed newstyle */
    uint8_t head[16], data[4096], flags[4];

    transmit(connection->fd, greeting, 18);
    if (!receive(connection->fd, flags, 4))
        return false;
    while (receive(connection->fd, head, sizeof(head)) && get(head, 8) == OPTION_MAGIC) {
        uint32_t option = (uint32_t)get(head + 8, 4), len = (uint32_t)get(head + 12, 4);

        if (len > sizeof(data) || (len > 0 && !receive(connection->fd, data, len)))
            return false;
        if (option == OPT_GO)
            return take_export(connection, data, len);
        answer_option(connection->fd, option, REP_ERR_UNSUP, NULL, 0);
    }
    return false;
}

/* --- Requests, with the lock held --- */

static void
reply(const Connection *connection, uint64_t cookie, uint32_t error, const void *data, size_t len)
{
    uint8_t head[16];

    put(head, SIMPLE_REPLY_MAGIC, 4);
    put(head + 4, error, 4);
    put(head + 8, cookie, 8);
    transmit(connection->fd, head, sizeof(head));
    if (error == 0)
        transmit(connection->fd, data, len);
}

static void
read_export(const Connection *connection, uint8_t *to, uint64_t len, uint64_t offset)
{
    const FakeNbd *fake = connection->fake;

    if (connection->export == 0)
        memcpy(to, fake->disk + offset, len);
    else if (connection->export == 1)
        memcpy(to, fake->bits + offset, len);
    for (uint64_t i = 0; connection->export == 2 && i < len; i += CHUNK_DIGEST_BYTES) {
        uint64_t at = (offset + i) / CHUNK_DIGEST_BYTES * CHUNK_BYTES;

        chunk_digest(fake->disk + at, MIN(CHUNK_BYTES, fake->size_bytes - at), to + i);
    }
}

static void
carry_out(FakeNbd *fake, Change *change)
{
    if (change->data)
        memcpy(fake->disk + change->offset, change->data, change->len);
    else
        memset(fake->disk + change->offset, 0, change->len);
    reply(change->connection, change->cookie, 0, NULL, 0);
    g_clear_pointer(&change->data, g_free);
    fake->counters.changes++;
}

static void
take_change(FakeNbd *fake, Change *change)
{
    for (unsigned i = 0; i < fake->n_kept; i++) {
        const Change *other = &fake->kept[i];

        if (other->offset < change->offset + change->len &&
            change->offset < other->offset + other->len)
            fake->counters.overlaps++;
    }
    if (fake->hold && fake->n_kept < MAX_KEPT)
        fake->kept[fake->n_kept++] = *change;
    else
        carry_out(fake, change);
}

static void
serve(Connection *connection, unsigned command, const Change *change)
{
    FakeNbd *fake = connection->fake;
    Change copy = *change;

    if (fake->fail != 0 && command != CMD_READ) {
        reply(connection, change->cookie, fake->fail, NULL, 0);
        fake->fail = 0;
        g_free(copy.data);
    } else if (command == CMD_READ) {
        uint8_t *data = g_malloc(change->len);

        read_export(connection, data, change->len, change->offset);
        reply(connection, change->cookie, 0, data, change->len);
        g_free(data);
    } else if (command == CMD_FLUSH) {
        fake->counters.flushes++;
        reply(connection, change->cookie, 0, NULL, 0);
    } else {
        take_change(fake, &copy);
    }
    (void)pthread_cond_broadcast(&fake->changed);
}

static bool
take_request(Connection *connection)
{
    uint8_t head[28];

    if (!receive(connection->fd, head, sizeof(head)) || get(head, 4) != REQUEST_MAGIC)
        return false;

    unsigned command = (unsigned)get(head + 6, 2);
    Change change = {.connection = connection,
                     .cookie = get(head + 8, 8),
                     .offset = get(head + 16, 8),
                     .len = get(head + 24, 4)};
    uint64_t size = export_size(connection->fake, connection->export);

    ck_assert(command == CMD_READ || connection->export == 0 || command == CMD_DISC);
    ck_assert(change.offset <= size && change.len <= size - change.offset);
    if (command == CMD_DISC)
        return false;
    if (command == CMD_WRITE) {
        change.data = g_malloc(change.len);
        if (!receive(connection->fd, change.data, change.len)) {
            g_free(change.data);
            return false;
        }
    }
    (void)pthread_mutex_lock(&connection->fake->mutex);
    serve(connection, command, &change);
    (void)pthread_mutex_unlock(&connection->fake->mutex);
    return true;
}

static void *
run_connection(void *user_data)
{
    Connection *connection = user_data;

    if (shake_hands(connection)) {
        while (take_request(connection))
            ;
    }
    (void)shutdown(connection->fd, SHUT_RDWR);
    return NULL;
}

static void *
run_accept(void *user_data)
{
    FakeNbd *fake = user_data;
    int fd;

    while ((fd = accept(fake->listen_fd, NULL, NULL)) >= 0) {
        (void)pthread_mutex_lock(&fake->mutex);
        ck_assert(fake->counters.connections < MAX_CONNECTIONS);

        Connection *connection = &fake->connections[fake->counters.connections++];

        connection->fake = fake;
        connection->fd = fd;
        ck_assert_int_eq(pthread_create(&connection->thread, NULL, run_connection, connection), 0);
        (void)pthread_mutex_unlock(&fake->mutex);
    }
    return NULL;
}

/* --- For the test --- */

FakeNbd *
fake_nbd_new(const char *path, uint64_t size_bytes)
{
    FakeNbd *fake = g_new0(FakeNbd, 1);

    fake->path = g_strdup(path);
    fake->size_bytes = size_bytes;
    fake->first_flags = FAKE_NBD_FLAGS;
    fake->disk = g_malloc0(size_bytes);
    fake->bits = g_malloc0(n_chunks(fake) / 8 + 1);
    (void)pthread_mutex_init(&fake->mutex, NULL);
    (void)pthread_cond_init(&fake->changed, NULL);
    fake->listen_fd = fd_unix_listen(path);
    ck_assert_int_ge(fake->listen_fd, 0);
    ck_assert_int_eq(fcntl(fake->listen_fd, F_SETFL, 0), 0);
    ck_assert_int_eq(pthread_create(&fake->thread, NULL, run_accept, fake), 0);
    return fake;
}

void
fake_nbd_offer(FakeNbd *fake, unsigned first_flags, unsigned later_flags, uint64_t later_size_bytes)
{
    fake->first_flags = first_flags;
    fake->later_flags = later_flags;
    fake->later_size_bytes = later_size_bytes;
}

void
fake_nbd_free(FakeNbd *fake)
{
    (void)shutdown(fake->listen_fd, SHUT_RDWR);
    (void)pthread_join(fake->thread, NULL);
    fake_nbd_cut(fake);
    for (unsigned i = 0; i < fake->counters.connections; i++) {
        (void)pthread_join(fake->connections[i].thread, NULL);
        fd_clear(&fake->connections[i].fd);
    }
    for (unsigned i = 0; i < fake->n_kept; i++)
        g_free(fake->kept[i].data);
    fd_clear(&fake->listen_fd);
    (void)unlink(fake->path);
    (void)pthread_cond_destroy(&fake->changed);
    (void)pthread_mutex_destroy(&fake->mutex);
    g_free(fake->path);
    g_free(fake->disk);
    g_free(fake->bits);
    g_free(fake);
}

void
fake_nbd_hold(FakeNbd *fake, bool hold)
{
    (void)pthread_mutex_lock(&fake->mutex);
    fake->hold = hold;
    while (!hold && fake->n_kept > 0)
        carry_out(fake, &fake->kept[--fake->n_kept]);
    (void)pthread_mutex_unlock(&fake->mutex);
}

void
fake_nbd_wait_kept(FakeNbd *fake, unsigned n)
{
    (void)pthread_mutex_lock(&fake->mutex);
    while (fake->n_kept < n)
        (void)pthread_cond_wait(&fake->changed, &fake->mutex); /* the test's time limit ends it */
    (void)pthread_mutex_unlock(&fake->mutex);
}

void
fake_nbd_fail(FakeNbd *fake, uint32_t nbd_error)
{
    (void)pthread_mutex_lock(&fake->mutex);
    fake->fail = nbd_error;
    (void)pthread_mutex_unlock(&fake->mutex);
}

void
fake_nbd_cut(FakeNbd *fake)
{
    (void)pthread_mutex_lock(&fake->mutex);
    for (unsigned i = 0; i < fake->counters.connections; i++)
        (void)shutdown(fake->connections[i].fd, SHUT_RDWR);
    (void)pthread_mutex_unlock(&fake->mutex);
}

void
fake_nbd_fill(FakeNbd *fake, const void *data, size_t len, uint64_t offset)
{
    (void)pthread_mutex_lock(&fake->mutex);
    memcpy(fake->disk + offset, data, len);
    (void)pthread_mutex_unlock(&fake->mutex);
}

void
fake_nbd_peek(FakeNbd *fake, void *data, size_t len, uint64_t offset)
{
    (void)pthread_mutex_lock(&fake->mutex);
    memcpy(data, fake->disk + offset, len);
    (void)pthread_mutex_unlock(&fake->mutex);
}

void
fake_nbd_set_changed(FakeNbd *fake, uint8_t byte, uint64_t offset)
{
    (void)pthread_mutex_lock(&fake->mutex);
    fake->bits[offset] = byte;
    (void)pthread_mutex_unlock(&fake->mutex);
}

FakeNbdCounters
fake_nbd_counters(FakeNbd *fake)
{
    (void)pthread_mutex_lock(&fake->mutex);

    FakeNbdCounters counters = fake->counters;

    (void)pthread_mutex_unlock(&fake->mutex);
    return counters;
}
