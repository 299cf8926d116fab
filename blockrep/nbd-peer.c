/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nbd-peer.c - one connection to an export of the other host's target, many requests at once
 *
 * libnbd's asynchronous calls under our own poll(), because a request needs a deadline and the
 * owner's thread has other things to wait for. A request without an answer in time ends the whole
 * connection: what the other side does with it later cannot be known, so nothing may follow it.
 *
 * TLS is required on everything but UNIX sockets. libnbd checks the server's certificate against
 * the host it was given (an address against the certificate's addresses).
 */
#include "nbd-peer.h"

#include "clock.h"

#include <assert.h>
#include <errno.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <libnbd.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_MINIMUM_BLOCK = 1, /* guests' ranges are forwarded as they are */
    /* libnbd sends a TLS record, at most 16 KiB, for each call. So many of them go out before we
     * look what else there is; one that finds no room in the socket is sent again later. */
    RECORDS_AT_ONCE = 4,
};

typedef struct Under {
    NbdPeer *peer;
    NbdPeerDone done;
    void *user_data;
    int64_t deadline_ns;
    bool is_used;
} Under;

struct NbdPeer {
    struct nbd_handle *nbd;
    uint64_t size_bytes;
    int stop_fd;
    unsigned in_flight;
    Under under[NBD_PEER_MAX_REQUESTS];
};

/* --- TLS files --- */

/* libnbd takes a folder with these names. */
static const char *const tls_names[] = {"ca-cert.pem", "client-cert.pem", "client-key.pem"};

static void
remove_tls_folder(char *folder)
{
    for (unsigned i = 0; folder && i < G_N_ELEMENTS(tls_names); i++) {
        g_autofree char *path = g_build_filename(folder, tls_names[i], NULL);

        (void)g_unlink(path);
    }
    if (folder)
        (void)g_rmdir(folder);
    g_free(folder);
}

typedef char TlsFolder;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsFolder, remove_tls_folder)

static char *
make_tls_folder(const NbdPeerConfig *config, GError **error)
{
    const char *const files[] = {config->tls_ca, config->tls_cert, config->tls_key};
    g_autoptr(TlsFolder) folder = g_build_filename(config->run_dir, "colod-tls-XXXXXX", NULL);

    if (!g_mkdtemp(folder)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s: cannot make a folder in it: %s",
                    config->run_dir, g_strerror(errno));
        return NULL;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = g_build_filename(folder, tls_names[i], NULL);

        if (access(files[i], R_OK) < 0 || symlink(files[i], path) < 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s: cannot be used: %s", files[i],
                        g_strerror(errno));
            return NULL;
        }
    }
    return g_steal_pointer(&folder);
}

/* --- Connecting --- */

static gboolean
fail(GError **error, const char *doing)
{
    const char *text = nbd_get_error();

    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s: %s", doing, text ? text : "no reason");
    return FALSE;
}

static gboolean
begin_tcp(NbdPeer *peer, const NbdPeerConfig *config, const char *tls_folder, GError **error)
{
    g_autofree char *port = g_strdup_printf("%u", config->port);

    if (nbd_set_tls(peer->nbd, LIBNBD_TLS_REQUIRE) < 0 ||
        nbd_set_tls_certificates(peer->nbd, tls_folder) < 0 ||
        nbd_set_tls_verify_peer(peer->nbd, true) < 0 ||
        nbd_aio_connect_tcp(peer->nbd, config->host, port) < 0)
        return fail(error, config->host);
    return TRUE;
}

static void
send_some(struct nbd_handle *nbd)
{
    for (int i = 0; i < RECORDS_AT_ONCE; i++) {
        if (nbd_aio_notify_write(nbd) < 0 ||
            !(nbd_aio_get_direction(nbd) & LIBNBD_AIO_DIRECTION_WRITE))
            return;
    }
}

/* One turn of the state machine. 1: something was done; 0: a time or @wake_fd; -1: stop. */
static int
turn(NbdPeer *peer, int wake_fd, int64_t until_ns)
{
    unsigned direction = nbd_aio_get_direction(peer->nbd);
    struct pollfd fds[3] = {{.fd = nbd_aio_get_fd(peer->nbd)},
                            {.fd = wake_fd, .events = POLLIN},
                            {.fd = peer->stop_fd, .events = POLLIN}};
    int64_t left_ns = until_ns == INT64_MAX ? INT64_MAX : MAX(until_ns - clock_now_ns(), 0);
    struct timespec timeout = {.tv_sec = left_ns / NS_PER_S, .tv_nsec = left_ns % NS_PER_S};

    fds[0].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    if (ppoll(fds, 3, until_ns == INT64_MAX ? NULL : &timeout, NULL) <= 0)
        return 0;
    if (fds[2].revents)
        return -1;
    /* Both at once only one after the other: the first may have changed what is wanted. */
    if (direction & LIBNBD_AIO_DIRECTION_READ && fds[0].revents & (POLLIN | POLLHUP | POLLERR))
        (void)nbd_aio_notify_read(peer->nbd);
    else if (fds[0].revents)
        send_some(peer->nbd);
    return fds[0].revents ? 1 : 0;
}

static gboolean
wait_connected(NbdPeer *peer, int64_t deadline_ns, GError **error)
{
    while (nbd_aio_is_connecting(peer->nbd) == 1) {
        int r = turn(peer, -1, deadline_ns);

        if (r < 0 || clock_now_ns() >= deadline_ns) {
            g_set_error(error, G_IO_ERROR, r < 0 ? G_IO_ERROR_CANCELLED : G_IO_ERROR_TIMED_OUT,
                        r < 0 ? "given up" : "no connection in time");
            return FALSE;
        }
    }
    if (nbd_aio_is_ready(peer->nbd) != 1)
        return fail(error, "no connection");
    return TRUE;
}

static gboolean
begin(NbdPeer *peer, const NbdPeerConfig *config, const char *tls_folder, GError **error)
{
    if (nbd_set_export_name(peer->nbd, config->export_name) < 0)
        return fail(error, config->export_name);
    if (tls_folder)
        return begin_tcp(peer, config, tls_folder, error);
    if (nbd_aio_connect_unix(peer->nbd, config->host) < 0)
        return fail(error, config->host);
    return TRUE;
}

NbdPeer *
nbd_peer_connect(const NbdPeerConfig *config, int64_t deadline_ns, GError **error)
{
    bool is_local = config->host[0] == '/';
    g_autoptr(TlsFolder) folder = NULL;
    g_autoptr(NbdPeer) peer = g_new0(NbdPeer, 1);
    int64_t size;

    if (!is_local && (!config->tls_ca || !config->tls_cert || !config->tls_key)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "a peer that is no UNIX socket is reached with TLS only: tls-ca=, tls-cert= "
                    "and tls-key= are needed");
        return NULL;
    }
    if (!is_local && !(folder = make_tls_folder(config, error)))
        return NULL;
    peer->stop_fd = config->stop_fd;
    peer->nbd = nbd_create();
    if (!peer->nbd) {
        (void)fail(error, "libnbd");
        return NULL;
    }
    if (!begin(peer, config, folder, error) || !wait_connected(peer, deadline_ns, error))
        return NULL;
    if (!is_local && nbd_get_tls_negotiated(peer->nbd) != 1) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "the connection has no TLS");
        return NULL;
    }
    size = nbd_get_size(peer->nbd);
    if (size < 0) {
        (void)fail(error, "size of the export");
        return NULL;
    }
    peer->size_bytes = (uint64_t)size;
    return g_steal_pointer(&peer);
}

void
nbd_peer_free(NbdPeer *peer)
{
    if (!peer)
        return;
    if (peer->nbd)
        nbd_close(peer->nbd);
    /* libnbd forgets commands without calling back when a handle is closed. */
    for (unsigned i = 0; i < NBD_PEER_MAX_REQUESTS; i++) {
        if (peer->under[i].is_used)
            peer->under[i].done(peer->under[i].user_data, -ENOTCONN);
    }
    g_free(peer);
}

uint64_t
nbd_peer_size_bytes(const NbdPeer *peer)
{
    return peer->size_bytes;
}

gboolean
nbd_peer_check_target(const NbdPeer *peer, uint64_t size_bytes, GError **error)
{
    const struct {
        int (*can)(struct nbd_handle *nbd);
        const char *what;
    } needed[] = {{nbd_can_flush, "flush"},
                  {nbd_can_zero, "write-zeroes"},
                  {nbd_can_trim, "trim"},
                  {nbd_can_fua, "FUA"}};

    if (peer->size_bytes != size_bytes) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                    "the peer's disk has %" G_GUINT64_FORMAT " bytes, this one %" G_GUINT64_FORMAT
                    ": make both the same size",
                    peer->size_bytes, size_bytes);
        return FALSE;
    }
    if (nbd_is_read_only(peer->nbd) != 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "the peer's export is read-only");
        return FALSE;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(needed); i++) {
        if (needed[i].can(peer->nbd) != 1) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                        "the peer's export cannot %s: is it "
                        "the export of nbdkit-colo-target-plugin?",
                        needed[i].what);
            return FALSE;
        }
    }
    /* 0: it does not say, then any is fine. */
    if (nbd_get_block_size(peer->nbd, LIBNBD_SIZE_MINIMUM) > MAX_MINIMUM_BLOCK) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "the peer's export takes only blocks");
        return FALSE;
    }
    return TRUE;
}

/* --- Requests --- */

static void
end(Under *under, int r)
{
    under->is_used = false;
    under->peer->in_flight--;
    under->done(under->user_data, r);
}

/* libnbd calls it once for each command, also when the connection dies. */
static int
completed(void *user_data, int *error)
{
    Under *under = user_data;

    if (under->is_used)
        end(under, -*error);
    return 1; /* forget the command */
}

static int64_t
issue(NbdPeer *peer, const NbdPeerRequest *request, nbd_completion_callback callback)
{
    switch (request->op) {
    case NBD_PEER_READ:
        return nbd_aio_pread(peer->nbd, request->buf, request->len, request->offset, callback, 0);
    case NBD_PEER_WRITE:
        return nbd_aio_pwrite(peer->nbd, request->buf, request->len, request->offset, callback, 0);
    case NBD_PEER_ZERO:
        return nbd_aio_zero(peer->nbd, request->len, request->offset, callback,
                            LIBNBD_CMD_FLAG_NO_HOLE);
    case NBD_PEER_UNMAP:
        return nbd_aio_zero(peer->nbd, request->len, request->offset, callback, 0);
    case NBD_PEER_TRIM:
        return nbd_aio_trim(peer->nbd, request->len, request->offset, callback, 0);
    case NBD_PEER_FLUSH:
        return nbd_aio_flush(peer->nbd, callback, 0);
    case NBD_PEER_OP_COUNT:
        break;
    }
    g_assert_not_reached();
}

bool
nbd_peer_submit(NbdPeer *peer, const NbdPeerRequest *request)
{
    Under *under = peer->under;

    if (peer->in_flight == NBD_PEER_MAX_REQUESTS)
        return false;
    while (under->is_used)
        under++;
    *under = (Under){.peer = peer,
                     .done = request->done,
                     .user_data = request->user_data,
                     .deadline_ns = request->deadline_ns,
                     .is_used = true};
    peer->in_flight++;
    if (issue(peer, request, (nbd_completion_callback){.callback = completed, .user_data = under}) <
            0 &&
        under->is_used)
        end(under, -ENOTCONN); /* never sent */
    return true;
}

unsigned
nbd_peer_in_flight(const NbdPeer *peer)
{
    return peer->in_flight;
}

static int64_t
first_deadline(const NbdPeer *peer)
{
    int64_t first_ns = INT64_MAX;

    for (unsigned i = 0; peer->in_flight > 0 && i < NBD_PEER_MAX_REQUESTS; i++) {
        if (peer->under[i].is_used)
            first_ns = MIN(first_ns, peer->under[i].deadline_ns);
    }
    return first_ns;
}

gboolean
nbd_peer_run(NbdPeer *peer, int wake_fd, int64_t until_ns, GError **error)
{
    int64_t deadline_ns = first_deadline(peer);
    int r = turn(peer, wake_fd, MIN(deadline_ns, until_ns));

    if (r < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_CANCELLED, "given up");
        return FALSE;
    }
    if (nbd_aio_is_dead(peer->nbd) == 1)
        return fail(error, "the connection has ended");
    if (nbd_aio_is_closed(peer->nbd) == 1) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_CLOSED, "the peer has closed the connection");
        return FALSE;
    }
    if (clock_now_ns() >= first_deadline(peer)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT, "the peer did not answer in time");
        return FALSE;
    }
    return TRUE;
}

static void
set_result(void *user_data, int r)
{
    *(int *)user_data = r;
}

int
nbd_peer_do(NbdPeer *peer, NbdPeerOp op, void *buf, uint64_t len, uint64_t offset,
            int64_t deadline_ns, GError **error)
{
    int r = 1;
    const NbdPeerRequest request = {.op = op,
                                    .buf = buf,
                                    .len = len,
                                    .offset = offset,
                                    .deadline_ns = deadline_ns,
                                    .done = set_result,
                                    .user_data = &r};

    if (!nbd_peer_submit(peer, &request)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY, "too many requests at once");
        return -EBUSY;
    }
    while (r > 0) {
        if (!nbd_peer_run(peer, -1, INT64_MAX, error)) {
            /* It would write to this stack later. */
            for (unsigned i = 0; i < NBD_PEER_MAX_REQUESTS; i++) {
                if (peer->under[i].is_used && peer->under[i].user_data == &r)
                    end(&peer->under[i], -ENOTCONN);
            }
            return -ENOTCONN;
        }
    }
    if (r < 0)
        g_set_error(error, G_IO_ERROR, (gint)g_io_error_from_errno(-r), "the peer answers: %s",
                    g_strerror(-r));
    return r;
}
