/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-client.h - asynchronous QMP client: greeting, out-of-band, deadlines, events, transcript
 *
 * Thread: a client belongs to the thread whose thread-default GMainContext it was made under. Every
 * function here is called from that thread, every callback runs in it, from the main loop and never
 * from within a call of the application. Nothing blocks.
 *
 * Life: callbacks may do anything, also drop the last reference. With the last reference the
 * connection is closed in silence: replies that are still open get their GDestroyNotify but not
 * their QmpReplyFunc, and closed() is not called. Who wants to hear the end calls
 * qmp_client_close() and keeps the reference until closed().
 */
#pragma once

#include "qmp-error.h"

#include <glib.h>

#include <stdint.h>

struct json_object;

/* In-band commands sent and not answered yet; more wait on our side. QEMU stops reading the socket
 * when eight are queued, and then a `yank` would not be read either (docs/interop/qmp-spec,
 * "Out-of-band execution"): stay well below. */
#define QMP_IN_FLIGHT_MAX 4

/* Bounds of what the application can have outstanding; beyond them a command fails at once with
 * QMP_ERROR_TOO_LARGE. */
#define QMP_PENDING_MAX 256
#define QMP_OUTGOING_BYTES_MAX ((size_t)4 << 20)

typedef struct QmpClient QmpClient;

/** The end of one command, called exactly once (but see Life above).
 *
 * @ret_value: what QEMU returned, borrowed for the call (json_object_get() keeps it); NULL on error
 * and for JSON null. @error: NULL on success; borrowed.
 */
typedef void (*QmpReplyFunc)(struct json_object *ret_value, const GError *error,
                             gpointer user_data);

/** What a connection reports besides replies. Each member may be NULL. */
typedef struct QmpClientHandlers {
    /** Negotiation is done; version, package and oob are known. At most once. */
    void (*ready)(QmpClient *client, gpointer user_data);

    /** An event, in the order QEMU sent them. @name, @data: borrowed; @data may be NULL.
     * @timestamp_us: QEMU's wall clock (not monotonic) in microseconds, -1 when it has none. */
    void (*event)(QmpClient *client, const char *name, struct json_object *data,
                  int64_t timestamp_us, gpointer user_data);

    /** The connection is over: exactly once, after every open reply failed with @reason (borrowed),
     * whose code is CONNECT, PROTOCOL, TOO_LARGE, TIMEOUT (greeting), COMMAND (qmp_capabilities was
     * refused) or CLOSED. */
    void (*closed)(QmpClient *client, const GError *reason, gpointer user_data);
} QmpClientHandlers;

/** Connects to QEMU's QMP socket.
 *
 * Returns at once. A socket that does not exist or does not listen yet is tried again until
 * @connect_timeout_ms is over, since QEMU creates it late; the greeting and qmp_capabilities (with
 * "oob" when offered) have to be done within the same time.
 *
 * @socket_path: UNIX stream socket; copied. @connect_timeout_ms: > 0, milliseconds. @handlers:
 * copied. @user_data: for the handlers; has to outlive the last reference.
 * Return: never NULL, one reference for the caller. Errors: through closed().
 * Source: QEMU docs/interop/qmp-spec, "Server Greeting", "Capabilities Negotiation".
 */
QmpClient *qmp_client_new(const char *socket_path, unsigned connect_timeout_ms,
                          const QmpClientHandlers *handlers, gpointer user_data);

/** As qmp_client_new() on a connected stream socket @fd, which the client owns from now on. */
QmpClient *qmp_client_new_fd(int fd, unsigned connect_timeout_ms, const QmpClientHandlers *handlers,
                             gpointer user_data);

QmpClient *qmp_client_ref(QmpClient *client);
void qmp_client_unref(QmpClient *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QmpClient, qmp_client_unref)

/** Records each line in and out, and why the connection ended, in the file @path.
 *
 * Appends "SECONDS.MICROSECONDS < LINE" ('<' from QEMU, '>' to QEMU, '!' the end), monotonic clock.
 * The file is made with mode 0600; at 16 MiB it becomes PATH.1 and a new one begins. Replaces an
 * earlier transcript. Called right after new(), it sees the greeting.
 * Return: FALSE with G_FILE_ERROR; an earlier transcript then goes on.
 */
gboolean qmp_client_set_transcript(QmpClient *client, const char *path, GError **error);

/** Sends a command; before ready() it waits for the negotiation.
 *
 * @command: its name; copied. @arguments: JSON object or NULL; a reference is taken, do not change
 * it afterwards. @timeout_ms: > 0, milliseconds from now until the reply, waiting included.
 * @func: may be NULL; never called from within this function. @destroy: for @user_data, after
 * @func; may be NULL. Return: the command's id, > 0. Errors, to @func: COMMAND, TIMEOUT (a reply
 * that comes later is ignored), CANCELLED, TOO_LARGE (a bound above), PROTOCOL (the text is not
 * UTF-8), or the end of the connection. Source: QEMU docs/interop/qmp-spec, "Issuing Commands".
 */
guint64 qmp_client_send(QmpClient *client, const char *command, struct json_object *arguments,
                        unsigned timeout_ms, QmpReplyFunc func, gpointer user_data,
                        GDestroyNotify destroy);

/** As qmp_client_send(), executed out of band: QEMU answers it in its monitor thread, also while
 * its main loop hangs, and it overtakes in-band commands on our side. In-band when oob was not
 * negotiated. QEMU refuses it (GenericError) for commands without 'allow-oob'.
 */
guint64 qmp_client_send_oob(QmpClient *client, const char *command, struct json_object *arguments,
                            unsigned timeout_ms, QmpReplyFunc func, gpointer user_data,
                            GDestroyNotify destroy);

/** Frees QEMU from a hung socket: `yank`, out of band.
 *
 * @instances: @n strings "migration", "chardev:ID" or "block-node:NODE-NAME"; copied. While QEMU
 * answers DeviceNotFound (it then has yanked none of them; an instance can appear late) the command
 * is sent again until @timeout_ms is over. The TIMEOUT then has qmp_error_class() "DeviceNotFound".
 * A string of another form: PROTOCOL. Everything else as in qmp_client_send().
 * Source: QEMU qapi/yank.json.
 */
guint64 qmp_client_yank(QmpClient *client, const char *const *instances, size_t n,
                        unsigned timeout_ms, QmpReplyFunc func, gpointer user_data,
                        GDestroyNotify destroy);

/** Gives the command @id up: its function is called soon, with QMP_ERROR_CANCELLED. QEMU executes
 * it nevertheless if it was sent already. An @id that is over is no error.
 */
void qmp_client_cancel(QmpClient *client, guint64 id);

/** Ends the connection. Replies and closed() follow from the main loop, with QMP_ERROR_CLOSED. A
 * second call does nothing; a command sent afterwards fails with QMP_ERROR_CLOSED.
 */
void qmp_client_close(QmpClient *client);

/** QEMU's version, "11.1.3". Borrowed; NULL before ready(). */
const char *qmp_client_version(const QmpClient *client);

/** The distributor's package string, "Debian 1:11.1.3+ds-1", "" if none. Borrowed; NULL before
 * ready(). */
const char *qmp_client_package(const QmpClient *client);

/** Whether out-of-band execution was negotiated; FALSE before ready(). */
gboolean qmp_client_has_oob(const QmpClient *client);

/** How many replies were ignored: to commands that timed out or were cancelled, with an unknown id,
 * or with none. For tests and metrics. */
guint64 qmp_client_ignored_replies(const QmpClient *client);
