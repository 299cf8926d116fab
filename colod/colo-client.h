/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo-client.h - the CLI's end of the control socket: blocking calls, each with a deadline */
#pragma once

#include <glib.h>
#include <json-c/json.h>

#include <stdint.h>

typedef struct ColoClient ColoClient;

#define COLO_CLIENT_ERROR (colo_client_error_quark())
GQuark colo_client_error_quark(void);

typedef enum ColoClientError {
    COLO_CLIENT_ERROR_FIND,     /* no or several VMs, and no name given */
    COLO_CLIENT_ERROR_CONNECT,  /* nobody listens, or we may not */
    COLO_CLIENT_ERROR_DEADLINE, /* no answer in time */
    COLO_CLIENT_ERROR_CLOSED,   /* the connection ended */
    COLO_CLIENT_ERROR_PROTOCOL, /* what came is no answer */
    COLO_CLIENT_ERROR_ANSWER,   /* colod answered with an error: its text */
} ColoClientError;

/**
 * The control socket of the VM @vm_name under @run_folder; @vm_name NULL: of the only VM that has
 * one there.
 */
char *colo_client_find_socket(const char *run_folder, const char *vm_name, GError **error);

/** @deadline_ns here and below: CLOCK_MONOTONIC. */
ColoClient *colo_client_connect(const char *path, int64_t deadline_ns, GError **error);
void colo_client_free(ColoClient *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ColoClient, colo_client_free)

/**
 * Sends a command and waits for its answer.
 *
 * @arguments: reference taken; NULL for none. Return: the "return" value, owned by the caller.
 */
json_object *colo_client_call(ColoClient *client, const char *command, json_object *arguments,
                              int64_t deadline_ns, GError **error);

/** Waits, without limit, for the next event after a `subscribe`. Return: owned by the caller. */
json_object *colo_client_next_event(ColoClient *client, GError **error);
