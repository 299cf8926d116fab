/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lockstep-world.c - two hosts in one process */
#include "lockstep-world.h"

#include <check.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
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
pair_join(Pair *pair)
{
    int fds[2];

    pair_sockets(fds);
    world_attach_fd(&pair->p, fds[0]);
    world_attach_fd(&pair->s, fds[1]);
    proxy_set_lease(pair->p.proxy, INT64_MAX);
    world_egress(&pair->s, PROXY_EGRESS_SHADOW);
    world_egress(&pair->p, PROXY_EGRESS_COMPARE);
    world_ingress(&pair->p, true);
}

void
pair_init(Pair *pair, ProxyPortKind port, unsigned timeout_ms, gsize hold_max_bytes)
{
    ProxyConfig base;

    *pair = (Pair){0};
    lockstep_config(&base, timeout_ms, hold_max_bytes);
    world_enter();
    world_open(&pair->p, 0, port, &base);
    world_open(&pair->s, 1, port, &base);
    pair_join(pair);
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

int
lone_init_plain(World *w, ProxyPortKind port)
{
    ProxyConfig base;

    pair_wire_sequence = 0;
    lockstep_config(&base, PAIR_TIMEOUT_MS, PAIR_HOLD_BYTES);
    return lone_init(w, port, &base);
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
world_quiesce(World *w)
{
    unsigned before = w->n_done;

    proxy_quiesce(w->proxy, world_done, w);
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
    world_quiesce(&pair->s);
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

guint64 pair_wire_sequence;

/* @number as the guest of World would send it. */
size_t
pair_encode(uint8_t *out, guint64 epoch, WireKind kind, guint8 nic, guint32 number, size_t len)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
    uint8_t frame[2000] = {0};
    uint8_t *ethernet = frame + WIRE_VNET_BYTES;

    memset(ethernet, (int)(number & 0xff), len);
    memset(ethernet, 0xff, 6);
    memcpy(ethernet + 6, mac, 6);
    be16_store(ethernet + 12, 0x88b5);
    be32_store(ethernet + 14, number);
    return wire_encode(out, &(WireFrame){.epoch = epoch,
                                         .sequence = ++pair_wire_sequence,
                                         .nic = nic,
                                         .kind = kind,
                                         .frame = frame,
                                         .len = WIRE_VNET_BYTES + len});
}

void
peer_says(int fd, guint64 epoch, guint32 number, size_t len)
{
    uint8_t message[4096];
    size_t n = pair_encode(message, epoch, WIRE_EGRESS, 0, number, len);

    ck_assert_int_eq(send(fd, message, n, MSG_NOSIGNAL), (ssize_t)n);
}

static bool
recv_whole(int fd, uint8_t *bytes, size_t len, void (*meanwhile)(gpointer), gpointer user_data)
{
    int64_t deadline_ns = clock_now_ns() + WORLD_DEADLINE_MS * NS_PER_MS;

    for (size_t got = 0; got < len;) {
        ssize_t n = recv(fd, bytes + got, len - got, MSG_DONTWAIT);

        if (n > 0)
            got += (size_t)n;
        else if (clock_now_ns() > deadline_ns || n == 0)
            return false;
        else if (meanwhile)
            meanwhile(user_data);
        else
            g_usleep(50);
    }
    return true;
}

/* The next numbered frame that was mirrored; whatever else the kernel sends on a bridge is skipped.
 * Returns its number. */
guint32
peer_next_copy(int fd, WireFrame *ret_frame, void (*meanwhile)(gpointer), gpointer user_data)
{
    static uint8_t bytes[WIRE_MESSAGE_MAX];
    size_t n;

    do {
        ck_assert(recv_whole(fd, bytes, WIRE_HEADER_BYTES, meanwhile, user_data));
        ck_assert(
            recv_whole(fd, bytes + WIRE_HEADER_BYTES, be32_load(bytes + 4), meanwhile, user_data));
        ck_assert_int_eq(wire_decode(bytes, sizeof(bytes), ret_frame, &n), WIRE_OK);
        ck_assert_uint_eq(ret_frame->sequence, ++pair_wire_sequence);
        ck_assert(ret_frame->kind == WIRE_INGRESS || ret_frame->kind == WIRE_DIGEST_KEY);
    } while (ret_frame->kind != WIRE_INGRESS ||
             be16_load(ret_frame->frame + WIRE_VNET_BYTES + 12) != 0x88b5);
    return be32_load(ret_frame->frame + WIRE_VNET_BYTES + 14);
}

void
world_checkpoint_alone(World *w, guint64 epoch)
{
    world_mark(w, epoch);
    proxy_release(w->proxy, epoch, 0, NULL, NULL);
    world_ingress(w, true); /* carried out after it */
}
