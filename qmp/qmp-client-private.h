/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-client-private.h - what qmp-client.c, qmp-command.c and qmp-wire.c share
 *
 * qmp-client.c owns the connection's life, qmp-command.c the commands in `pending`, qmp-wire.c the
 * bytes in and out. The theory of operation stands in qmp-client.c.
 */
#pragma once

#include "qmp-client.h"

#include "qmp-parse.h"
#include "qmp-transcript.h"

#include <stdbool.h>

typedef enum QmpClientState {
    QMP_CLIENT_CONNECTING,
    QMP_CLIENT_GREETING,
    QMP_CLIENT_NEGOTIATING,
    QMP_CLIENT_READY,
    QMP_CLIENT_CLOSING,
    QMP_CLIENT_CLOSED,
} QmpClientState;

struct QmpClient {
    unsigned refs; /* of the application */
    unsigned busy; /* loop callbacks on the stack; the memory lives while either is > 0 */

    GMainContext *context;
    QmpClientHandlers handlers;
    gpointer user_data;
    char *socket_path; /* NULL: made from a descriptor */
    unsigned connect_timeout_ms;

    QmpClientState state;
    int fd;
    int connect_errno;      /* of the last attempt */
    GSource *connect_timer; /* CONNECTING */
    GSource *deadline;      /* until READY */
    GSource *input;
    GSource *output;  /* while there is something to write */
    GSource *closing; /* CLOSING */
    GError *reason;   /* CLOSING, CLOSED */

    QmpSplitter *splitter;
    GByteArray *out;
    size_t out_done_bytes; /* written already */
    gboolean out_dead;     /* the peer does not read any more; its last words may still come */
    QmpTranscript *transcript;

    char *version;
    char *package;
    gboolean offers_oob;
    gboolean has_oob;

    guint64 next_id;
    guint64 negotiation_id;
    GQueue pending;                       /* commands, of qmp-command.c alone */
    guint64 in_flight[QMP_IN_FLIGHT_MAX]; /* ids of in-band commands QEMU has; 0 = free slot */
    guint64 ignored_replies;
};

/* --- qmp-client.c --------------------------------------------------------------------------- */

/** Attaches @source, which is taken. All sources have the same priority: in one turn of the loop
 * the input, attached first, goes before the deadlines, so an answer that has arrived beats the
 * deadline. */
GSource *qmp_client_attach(QmpClient *client, GSource *source, GSourceFunc func, gpointer data);

/** Holds the memory, not the connection, while a loop callback runs. */
typedef QmpClient QmpClientHold;
QmpClientHold *qmp_client_enter(QmpClient *client);
void qmp_client_leave(QmpClientHold *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QmpClientHold, qmp_client_leave)

/** The connection goes on; asked after each call into the application. */
bool qmp_client_is_live(const QmpClient *client);

/** Goes on to @state and says why in the debug log. */
void qmp_client_set_state(QmpClient *client, QmpClientState state, const char *why);

/** Ends the connection; takes @reason. The callbacks follow from the loop, so this may be called
 * from anywhere. */
void qmp_client_fail(QmpClient *client, GError *reason);

/* --- qmp-command.c -------------------------------------------------------------------------- */

/** A QMP request; a reference to @arguments (may be NULL) is taken. */
struct json_object *qmp_command_message_new(const char *command, struct json_object *arguments,
                                            guint64 id);

/** @message as a line without its end; borrowed until the next call for it. */
const char *qmp_command_message_text(struct json_object *message);

/** Sends what may be sent: everything out of band, then in-band while there are free slots. */
void qmp_client_pump(QmpClient *client);

/** A return or an error: to its command's function, or counted as ignored. */
void qmp_client_handle_reply(QmpClient *client, const QmpMessage *message);

/** The connection is over: ends what was sent before this call with its own verdict or the reason
 * of the end. Calls back. */
void qmp_client_end_commands(QmpClient *client);

/** Drops all commands without calling their functions. */
void qmp_client_drop_commands(QmpClient *client);

/* --- qmp-wire.c ----------------------------------------------------------------------------- */

/** Queues @message and writes it from the loop. */
void qmp_client_write(QmpClient *client, struct json_object *message);

/** Reads and handles what QEMU says from now on. */
void qmp_client_start_input(QmpClient *client);
