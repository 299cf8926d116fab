/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-error.h - the errors of a QMP connection, and QEMU's own error class inside them */
#pragma once

#include <glib.h>

#define QMP_ERROR (qmp_error_quark())

typedef enum QmpError {
    QMP_ERROR_CONNECT,   /* nobody listened on the socket until the deadline */
    QMP_ERROR_PROTOCOL,  /* the other side does not speak QMP; the message quotes what it said */
    QMP_ERROR_TOO_LARGE, /* a named bound was hit: incoming message or outgoing queue */
    QMP_ERROR_TIMEOUT,   /* no answer within the deadline */
    QMP_ERROR_CANCELLED, /* qmp_client_cancel() */
    QMP_ERROR_CLOSED,    /* the connection is gone, by QEMU or by qmp_client_close() */
    QMP_ERROR_COMMAND,   /* QEMU answered "error"; the message is "class: desc" */
} QmpError;

GQuark qmp_error_quark(void);

/** QEMU's error class of @error.
 *
 * Return: e.g. "CommandNotFound", "DeviceNotFound", "GenericError", for QMP_ERROR_COMMAND and for
 * the QMP_ERROR_TIMEOUT of a command that was retried after such an answer; NULL for every other
 * error, also of other domains. Lives as long as @error. Any thread.
 * Source: QEMU docs/interop/qmp-spec, "Error".
 */
const char *qmp_error_class(const GError *error);

/** A QMP_ERROR of @code that carries QEMU's class.
 *
 * @error_class: copied. @message: complete text, copied.
 * Return: owned by the caller. Any thread.
 */
GError *qmp_error_new_with_class(QmpError code, const char *error_class, const char *message);

/** The error for QEMU's answer {"error": {"class": @error_class, "desc": @desc}}.
 *
 * Return: QMP_ERROR_COMMAND "class: desc", owned by the caller. Any thread.
 */
GError *qmp_error_new_command(const char *error_class, const char *desc);
