/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* port.h - a listening socket with at most one peer, and what the peer sent */
#pragma once

#include <gio/gio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Port: listens as long as it lives; peers come and go, the newest counts. One thread. */
typedef struct Port Port;

/** Listens on "unix:PATH" or "tcp:ADDRESS:PORT" (an IPv6 address in brackets). @buffer_bytes: how
 * much is read ahead. Error: names the address and what is wrong.
 */
Port *port_new(const char *name, const char *address, size_t buffer_bytes, GError **error);
/** Drops the peer and stops listening; a UNIX socket's file is removed. NULL is fine. */
void port_free(Port *port);

/** To be polled: a peer waits for port_accept(). */
int port_listen_fd(const Port *port);
/** -1: no peer. */
int port_fd(const Port *port);
/** As given to port_new(), for messages. */
const char *port_name(const Port *port);

/** A peer waits: takes it, dropping one that is there. Return: true if there is a new peer. */
bool port_accept(Port *port);
/** Drops the peer and what it sent but was not consumed. */
void port_drop(Port *port);

/** Reads once. Return: bytes read; 0 the peer is gone (dropped); -EAGAIN; -ENOBUFS buffer full. */
int64_t port_read(Port *port);
/** The same, but where port_data() gave what was consumed since the last port_read() nothing is
 * touched. */
int64_t port_read_on(Port *port);
/** Room for port_read_on(). */
size_t port_room(const Port *port);
/** What was read and not consumed; good until the next port_read(). */
const uint8_t *port_data(const Port *port, size_t *ret_len);
/** @len: at most what port_data() gave. */
void port_consume(Port *port, size_t len);
