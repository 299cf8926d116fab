/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lockstep-world.c - two hosts in one process */
#include "lockstep-world.h"

#include <check.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"

static ssize_t
fd_read(gpointer opaque, void *bytes, size_t len)
{
    ssize_t n = recv(GPOINTER_TO_INT(opaque), bytes, len, MSG_DONTWAIT);

    return n < 0 ? -errno : n;
}

static ssize_t
fd_write(gpointer opaque, const void *bytes, size_t len)
{
    ssize_t n = send(GPOINTER_TO_INT(opaque), bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);

    return n < 0 ? -errno : n;
}

static void
fd_close(gpointer opaque)
{
    (void)close(GPOINTER_TO_INT(opaque));
}

void
world_attach_fd(World *w, int fd)
{
    const ProxyPeer peer = {.read = fd_read,
                            .write = fd_write,
                            .close = fd_close,
                            .fd = fd,
                            .opaque = GINT_TO_POINTER(fd)};

    proxy_attach_peer(w->proxy, &peer);
}

void
pair_sockets(int fds[2])
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
}

void
lockstep_config(ProxyConfig *base, unsigned timeout_ms, gsize hold_max_bytes)
{
    *base = (ProxyConfig){.hold_max_bytes = hold_max_bytes, .lockstep = true, .test_hooks = true};
    compare_config_init(&base->compare);
    base->compare.timeout_ns = timeout_ms * NS_PER_MS;
    base->compare.policy[FRAME_L2_OTHER] = COMPARE_POLICY_FULL;
    base->rewriter_connections_max = 1024;
}

void
pair_init(Pair *pair, ProxyPortKind port, unsigned timeout_ms, gsize hold_max_bytes)
{
    ProxyConfig base;
    int fds[2];

    *pair = (Pair){0};
    lockstep_config(&base, timeout_ms, hold_max_bytes);
    world_enter();
    world_open(&pair->p, 0, port, &base);
    world_open(&pair->s, 1, port, &base);
    pair_sockets(fds);
    world_attach_fd(&pair->p, fds[0]);
    world_attach_fd(&pair->s, fds[1]);
    proxy_set_lease(pair->p.proxy, INT64_MAX);
    world_egress(&pair->s, PROXY_EGRESS_SHADOW);
    world_egress(&pair->p, PROXY_EGRESS_COMPARE);
    world_ingress(&pair->p, true);
}

int
lone_init(World *w, ProxyPortKind port, ProxyConfig *base)
{
    int fds[2];

    world_enter();
    world_open(w, 0, port, base);
    pair_sockets(fds);
    world_attach_fd(w, fds[0]);
    proxy_set_lease(w->proxy, INT64_MAX);
    world_egress(w, PROXY_EGRESS_COMPARE);
    world_ingress(w, true);
    return fds[1];
}

void
pair_clear(Pair *pair)
{
    world_clear(&pair->p);
    world_clear(&pair->s);
}

void
world_pause(World *w)
{
    unsigned before = w->n_done;

    proxy_pause(w->proxy, world_done, w);
    world_until(&w->n_done, before + 1);
}

void
world_commit(World *w, guint64 epoch)
{
    unsigned before = w->n_done;

    proxy_commit(w->proxy, epoch, world_done, w);
    world_until(&w->n_done, before + 1);
}

void
pair_begin_checkpoint(Pair *pair)
{
    pair->epoch++;
    world_ingress(&pair->p, false);
    world_pause(&pair->s);
    world_mark(&pair->p, pair->epoch);
}

void
pair_end_checkpoint(Pair *pair)
{
    world_commit(&pair->s, pair->epoch);
    proxy_release(pair->p.proxy, pair->epoch, 0, NULL, NULL);
    world_ingress(&pair->p, true);
}

void
pair_checkpoint(Pair *pair)
{
    pair_begin_checkpoint(pair);
    pair_end_checkpoint(pair);
}

void
both_send(Pair *pair, guint32 number, size_t len)
{
    guest_send(&pair->p, number, len);
    guest_send(&pair->s, number, len);
}

ProxyStats
world_stats(const World *w)
{
    ProxyStats stats;

    proxy_get_stats(w->proxy, &stats);
    return stats;
}
