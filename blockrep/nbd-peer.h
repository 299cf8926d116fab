/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* nbd-peer.h - one connection to an export of the other host's target, many requests at once */
#pragma once

#include "forward-queue.h"

/*
 * One thread. Nothing blocks longer than the deadlines (clock_now_ns()) given to it, except the
 * look-up of a host's name, which has those of the resolver: give numeric addresses.
 */
typedef struct NbdPeer NbdPeer;

typedef struct NbdPeerConfig {
    const char *host; /* address or name, by which the certificate goes; with a leading slash: a
                       * UNIX socket, without TLS */
    uint16_t port;
    const char *export_name;
    const char *tls_ca, *tls_cert, *tls_key; /* PEM files */
    const char *run_dir;                     /* for the folder that libnbd wants them in */
    int stop_fd;                             /* readable: give up */
} NbdPeerConfig;

enum { NBD_PEER_MAX_REQUESTS = 64 };

/** @error: what is wrong, with the remedy where there is one. */
NbdPeer *nbd_peer_connect(const NbdPeerConfig *config, int64_t deadline_ns, GError **error);
/** Requests under way are over, their callbacks are called (-ENOTCONN). */
void nbd_peer_free(NbdPeer *peer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdPeer, nbd_peer_free)

uint64_t nbd_peer_size_bytes(const NbdPeer *peer);
/** Can it be a mirror of a disk of @size_bytes? */
gboolean nbd_peer_check_target(const NbdPeer *peer, uint64_t size_bytes, GError **error);

typedef enum NbdPeerOp {
    NBD_PEER_READ,
    NBD_PEER_WRITE,
    NBD_PEER_ZERO,
    NBD_PEER_UNMAP,
    NBD_PEER_TRIM,
    NBD_PEER_FLUSH,
    NBD_PEER_OP_COUNT,
} NbdPeerOp;

/* @r: 0 or a negative errno; -ENOTCONN: the connection, anything else: the other side's answer. */
typedef void (*NbdPeerDone)(void *user_data, int r);

typedef struct NbdPeerRequest {
    NbdPeerOp op;
    void *buf; /* stays until it is done */
    uint64_t offset, len;
    int64_t deadline_ns;
    NbdPeerDone done; /* from nbd_peer_run(), nbd_peer_free() or nbd_peer_submit() */
    void *user_data;
} NbdPeerRequest;

/** False: NBD_PEER_MAX_REQUESTS are under way. */
bool nbd_peer_submit(NbdPeer *peer, const NbdPeerRequest *request);
unsigned nbd_peer_in_flight(const NbdPeer *peer);

/**
 * Waits until something happens on the connection or @wake_fd (-1: none), a request's deadline
 * passes, or @until_ns (INT64_MAX: none). FALSE: the connection is of no use any more.
 */
gboolean nbd_peer_run(NbdPeer *peer, int wake_fd, int64_t until_ns, GError **error);

/** One request to its end; others under way go on. Negative errno. */
int nbd_peer_do(NbdPeer *peer, NbdPeerOp op, void *buf, uint64_t len, uint64_t offset,
                int64_t deadline_ns, GError **error);
