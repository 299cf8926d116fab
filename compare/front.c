/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* front.c - colo-compare's loop: packets from two sockets through the engine to a third */
/*
 * Theory of operation
 *
 * One thread polls four listening sockets and their peers. It reads a buffer full of the primary's
 * packets, then of the secondary's, gives them to the engine in batches and writes what was
 * released. With more than one shard the engines have threads of their own (shard.c), and this
 * thread only distributes packets: by a keyed hash of the addresses alone, so that fragments, which
 * have no ports, meet the rest of their flow.
 *
 * Back-pressure, never loss: a side is not read while the output queue or a shard's backlog is
 * above its limit; while the engine holds more than half of its memory and more of this side than
 * of the other (the one that is ahead waits, the other catches up); or while the engine refused its
 * next frame, until a checkpoint or the other side made room. The peer's send then blocks.
 *
 * Copies. Of what moves at speed the kernel's three are half the cost, so with one shard nothing is
 * copied here if the other side comes in time. The engine is lent the frames where they were read,
 * both sides' are compared there, and what matched leaves from there, the stretch of a buffer that
 * went through as one piece, headers and all. A port that is read again while much of its buffer is
 * still lent is read behind that; only when there is no room behind it, or little is left, the rest
 * is copied. A side that is AHEAD_BYTES ahead yields the turn for AHEAD_PATIENCE_NS to the other,
 * whose packets it waits for in any case; otherwise, with one processor for each writer, a side
 * often comes twice before the other does, and all of it is copied.
 *
 * Who is blocked may be needed: QEMU's main loop writes the primary's packets, reads the output and
 * makes checkpoints, and does one at a time. So back-pressure alone must not stop it for good. An
 * output queue that does not move for OUT_PATIENCE_NS grows up to the memory bound; once a
 * checkpoint was asked for, both sides are read up to the bound; and there the secondary's packets
 * are forgotten, as the commit would do.
 *
 * Checkpoints are asked for on the notify socket, in the protocol of QEMU's notify_dev:
 * DO_CHECKPOINT goes out on the first divergence, and again each second while no answer comes.
 * COLO_CHECKPOINT means that both VMs stand and the state is handed over: the engines commit, and
 * what is in the sockets by then is of the old epoch, so it passes or is forgotten. Without a
 * notify socket nobody makes checkpoints, and what diverged is held.
 */
#include "front.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clock.h"
#include "fd.h"
#include "framing.h"
#include "keyed-hash.h"
#include "notify.h"
#include "outqueue.h"
#include "port.h"
#include "shard.h"
#include "stats-json.h"

#define NOTIFY_AGAIN_NS NS_PER_S
#define OUT_PATIENCE_NS (20 * NS_PER_MS)
#define AHEAD_PATIENCE_NS (NS_PER_MS / 4)

enum {
    INPUT_BUFFER_BYTES = 512 * 1024,
    NOTIFY_BUFFER_BYTES = 4096,
    BATCH_FRAMES = 64,
    OUT_LIMIT_BYTES = 4 * 1024 * 1024,
    BACKLOG_LIMIT_BYTES = 2 * 1024 * 1024, /* of one shard */
    AHEAD_BYTES = 64 * 1024,               /* see runs_ahead() */
    /* A sender's socket holds about 220 KiB: it should empty in one read, and two fit a buffer. */
    READ_MIN_BYTES = 192 * 1024,
    LENT_FEW = 64,     /* frames that are copied sooner than left where they are */
    DRAIN_READS = 256, /* before a commit: bounds how long a busy peer can delay it */
    TICK_MS_MAX = 1000,
    SHARDS_MAX = 64,
};

enum { PORT_PRIMARY, PORT_SECONDARY, PORT_OUT, PORT_NOTIFY, N_PORTS };

struct Front {
    FrontConfig config;
    Port *ports[N_PORTS];
    OutQueue *out;
    Shard **shards;
    int n_shards; /* made so far */
    int signal_fd;
    int wake_fd;
    HashKey shard_key;
    bool refused[2]; /* the engine had no room for the side's next frame */
    bool out_blocked;
    int64_t ahead_until_ns[2]; /* till then a side that runs ahead leaves the other the turn */
    int64_t now_ns;            /* of this round of the loop */
    int64_t out_moved_ns;      /* when the output queue last was short, or became shorter */
    bool stop;
    bool report_wanted;
    uint64_t divergences_seen;
    bool checkpoint_wanted;
    int64_t notify_next_ns; /* when to say so (again) */
    uint64_t n_packets[2];
    uint64_t n_framing_errors;
    uint64_t n_notified;
};

/* --- construction --- */

static gboolean
open_ports(Front *f, GError **error)
{
    const struct {
        const char *name, *address;
        size_t buffer;
    } ports[N_PORTS] = {{"primary", f->config.primary, INPUT_BUFFER_BYTES},
                        {"secondary", f->config.secondary, INPUT_BUFFER_BYTES},
                        {"out", f->config.out, NOTIFY_BUFFER_BYTES},
                        {"notify", f->config.notify, NOTIFY_BUFFER_BYTES}};

    for (int i = 0; i < N_PORTS; i++) {
        if (!ports[i].address)
            continue;
        f->ports[i] = port_new(ports[i].name, ports[i].address, ports[i].buffer, error);
        if (!f->ports[i])
            return FALSE;
    }
    return TRUE;
}

static gboolean
fail_errno(int e, const char *what, GError **error)
{
    g_set_error(error, G_IO_ERROR, (int)g_io_error_from_errno(e), "%s: %s", what, g_strerror(e));
    return FALSE;
}

static gboolean
open_signals(Front *f, GError **error)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGUSR1);
    /* Before any thread is started: they inherit the mask. */
    int r = pthread_sigmask(SIG_BLOCK, &set, NULL);

    if (r != 0)
        return fail_errno(r, "signals", error);
    f->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (f->signal_fd < 0 || f->wake_fd < 0)
        return fail_errno(errno, "signals", error);
    return TRUE;
}

static gboolean
start_shards(Front *f, GError **error)
{
    CompareConfig config = f->config.engine;
    int wanted = f->config.shards;

    if (wanted < 1 || wanted > SHARDS_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "%d shards: allowed are 1 to %d", wanted, SHARDS_MAX);
        return FALSE;
    }
    f->shard_key = (HashKey){{config.hash_key[1], config.hash_key[0]}};
    f->out = outqueue_new(f->config.vnet_hdr);
    f->shards = g_new0(Shard *, wanted);
    for (; f->n_shards < wanted; f->n_shards++) {
        int r = shard_new(&config, f->out, wanted > 1 ? f->wake_fd : -1, f->config.notify != NULL,
                          &f->shards[f->n_shards]);

        if (r < 0)
            return fail_errno(-r, "engine", error);
    }
    return TRUE;
}

Front *
front_new(const FrontConfig *config, GError **error)
{
    Front *f = g_new0(Front, 1);

    f->config = *config;
    f->signal_fd = f->wake_fd = -1;
    if (open_signals(f, error) && open_ports(f, error) && start_shards(f, error))
        return f;
    front_free(f);
    return NULL;
}

void
front_free(Front *f)
{
    if (!f)
        return;
    for (int i = 0; i < f->n_shards; i++)
        shard_free(f->shards[i]);
    g_free(f->shards);
    outqueue_free(f->out);
    for (int i = 0; i < N_PORTS; i++)
        port_free(f->ports[i]);
    fd_clear(&f->signal_fd);
    fd_clear(&f->wake_fd);
    g_free(f);
}

/* --- packets --- */

static void
framing_error(Front *f, int port)
{
    f->n_framing_errors++;
    g_printerr("colo-compare: %s: not the expected framing (is --vnet-hdr right?); peer dropped\n",
               port_name(f->ports[port]));
    port_drop(f->ports[port]);
}

static Shard *
shard_of(const Front *f, const FramingPacket *packet)
{
    Frame frame;

    frame_parse(packet->bytes, packet->len, packet->vnet_hdr_len, &frame);
    return f->shards[keyed_hash(&f->shard_key, frame.key.w, 4) % (uint64_t)f->n_shards];
}

/* Gives the port's packets to the shards' threads. False: the stream is broken. */
static bool
distribute(Front *f, int port)
{
    Port *p = f->ports[port];
    FramingPacket packet;
    size_t len;
    size_t at = 0;
    const uint8_t *data = port_data(p, &len);
    int64_t n;

    while ((n = framing_next(data + at, len - at, f->config.vnet_hdr, &packet)) > 0) {
        if (!shard_add(shard_of(f, &packet), (CompareSide)port, &packet))
            abort(); /* see on_release() in shard.c */
        at += (size_t)n;
        f->n_packets[port]++;
    }
    port_consume(p, at);
    for (int i = 0; i < f->n_shards; i++)
        shard_send(f->shards[i]);
    return n == 0;
}

/* Collects up to BATCH_FRAMES packets. Return: how many; *@ret_sizes: what each occupies. */
static size_t
collect(const Front *f, const Port *p, CompareFrame *frames, size_t *ret_sizes, bool *ret_broken)
{
    size_t len;
    const uint8_t *data = port_data(p, &len);
    size_t count = 0;

    for (size_t at = 0; count < BATCH_FRAMES; count++) {
        FramingPacket packet;
        int64_t n = framing_next(data + at, len - at, f->config.vnet_hdr, &packet);

        *ret_broken = n < 0;
        if (n <= 0)
            break;
        frames[count] = (CompareFrame){
            .bytes = packet.bytes, .len = packet.len, .vnet_hdr_len = packet.vnet_hdr_len};
        ret_sizes[count] = (size_t)n;
        at += (size_t)n;
    }
    return count;
}

/* Runs the port's packets through the engine in this thread. False: the stream is broken. */
static bool
run_here(Front *f, int port, uint64_t epoch, int64_t now_ns)
{
    CompareFrame frames[BATCH_FRAMES];
    size_t sizes[BATCH_FRAMES];
    bool broken = false;
    size_t n;

    while ((n = collect(f, f->ports[port], frames, sizes, &broken)) > 0) {
        int error = 0;

        for (size_t i = 0; i < n; i++)
            frames[i].epoch = epoch;
        size_t taken = shard_run(f->shards[0], (CompareSide)port, frames, n, now_ns, &error);
        size_t bytes = 0;

        for (size_t i = 0; i < taken; i++)
            bytes += sizes[i];
        port_consume(f->ports[port], bytes);
        f->n_packets[port] += taken;
        f->refused[port] = taken < n;
        if (taken > 0)
            f->refused[!port] = false; /* it may have made room */
        if (taken < n)
            return true;
    }
    return !broken;
}

static uint64_t
epoch_here(const Front *f)
{
    return shard_epoch(f->shards[0]);
}

/* @epoch: of the packets; with threads it is always that of the shards. */
static void
work_off(Front *f, int port, uint64_t epoch, int64_t now_ns)
{
    bool good = f->n_shards == 1 ? run_here(f, port, epoch, now_ns) : distribute(f, port);

    if (!good)
        framing_error(f, port);
}

/* Reads a side's port. What is held or waits to be written may still lie in its buffer, and had
 * better be used from there. But where it is little it is copied, so that the next read finds the
 * same memory in the cache. */
static int64_t
read_side(Front *f, int side)
{
    Port *p = f->ports[side];

    if (f->n_shards > 1)
        return port_read(p); /* nothing is lent to a thread */
    if (shard_lent(f->shards[0], (CompareSide)side) > LENT_FEW && port_room(p) >= READ_MIN_BYTES)
        return port_read_on(p);
    shard_settle(f->shards[0], (CompareSide)side);
    if (side == PORT_PRIMARY && !outqueue_keep(f->out))
        abort(); /* see on_release() in shard.c */
    return port_read(p);
}

/* Reads the port until nothing is there or @max_reads. */
static void
read_port(Front *f, int port, int max_reads, uint64_t epoch, int64_t now_ns)
{
    Port *p = f->ports[port];

    if (f->refused[port])
        work_off(f, port, epoch, now_ns); /* or a hang-up would take it along */
    while (max_reads-- > 0 && port_fd(p) >= 0 && !f->refused[port]) {
        if (read_side(f, port) <= 0)
            return;
        work_off(f, port, epoch, now_ns);
    }
}

static bool
output_full(const Front *f)
{
    size_t bytes = outqueue_bytes(f->out);

    return bytes > f->config.engine.memory_max_bytes ||
           (bytes > OUT_LIMIT_BYTES && f->now_ns - f->out_moved_ns < OUT_PATIENCE_NS);
}

/* The other side may read; this one is ahead or the output is behind. */
static bool
paused(const Front *f, int side)
{
    size_t memory = f->config.engine.memory_max_bytes;
    size_t backlog_max = f->checkpoint_wanted ? memory : BACKLOG_LIMIT_BYTES;

    if (output_full(f) || f->refused[side])
        return true;
    for (int i = 0; i < f->n_shards; i++) {
        size_t bytes[2];
        size_t held = shard_held(f->shards[i], bytes);

        if (shard_backlog_bytes(f->shards[i]) > backlog_max)
            return true;
        if (held > memory / 2 && bytes[side] >= bytes[!side] && !f->checkpoint_wanted)
            return true;
    }
    return false;
}

/* Much of this one's waits for the other already: if the other goes first, what is held is used
 * from where it was read and stays in the cache. */
static bool
runs_ahead(const Front *f, int side)
{
    size_t sum[2] = {0, 0};

    for (int i = 0; i < f->n_shards; i++) {
        size_t bytes[2];

        (void)shard_held(f->shards[i], bytes);
        sum[0] += bytes[0];
        sum[1] += bytes[1];
    }
    return sum[side] > AHEAD_BYTES && sum[side] > sum[!side];
}

/* It was read a moment ago and cannot be compared before the other comes, which most likely is on
 * its way. */
static bool
yields(const Front *f, int side, int64_t now_ns)
{
    return f->n_shards == 1 && now_ns < f->ahead_until_ns[side] && runs_ahead(f, side);
}

static void
write_out(Front *f)
{
    Port *p = f->ports[PORT_OUT];
    size_t before = outqueue_bytes(f->out);

    f->out_blocked = false;
    if (before <= OUT_LIMIT_BYTES)
        f->out_moved_ns = f->now_ns;
    if (port_fd(p) < 0)
        return;
    int r = outqueue_write(f->out, port_fd(p));

    if (outqueue_bytes(f->out) < before)
        f->out_moved_ns = f->now_ns;

    f->out_blocked = r == -EAGAIN;
    if (r < 0 && r != -EAGAIN) {
        outqueue_rewind(f->out);
        port_drop(p);
    }
}

/* --- notify --- */

/* A peer that does not even take these few bytes is as good as gone. */
static void
tell(Front *f, const char *text)
{
    Port *p = f->ports[PORT_NOTIFY];

    if (notify_send(port_fd(p), text) < 0)
        port_drop(p);
    else
        f->n_notified++;
}

static void
notify_if_wanted(Front *f, int64_t now_ns)
{
    uint64_t n = 0;

    for (int i = 0; i < f->n_shards; i++)
        n += shard_divergences(f->shards[i]);
    if (n != f->divergences_seen && !f->checkpoint_wanted) {
        f->checkpoint_wanted = true;
        f->notify_next_ns = now_ns;
    }
    f->divergences_seen = n;
    if (!f->checkpoint_wanted || now_ns < f->notify_next_ns || !f->ports[PORT_NOTIFY] ||
        port_fd(f->ports[PORT_NOTIFY]) < 0)
        return;
    f->notify_next_ns = now_ns + NOTIFY_AGAIN_NS;
    tell(f, NOTIFY_TEXT_DO_CHECKPOINT);
}

static void
checkpoint(Front *f, int64_t now_ns)
{
    uint64_t old = epoch_here(f);

    /* What the peers sent before this message is of the old epoch. An engine in this thread commits
     * first, so that nothing is refused: the rest are late frames. Threads get it before the commit
     * and find by its epoch that it is late. */
    if (f->n_shards == 1)
        shard_commit(f->shards[0], now_ns);
    read_port(f, PORT_PRIMARY, DRAIN_READS, old, now_ns);
    read_port(f, PORT_SECONDARY, DRAIN_READS, old, now_ns);
    if (f->n_shards == 1)
        shard_tick(f->shards[0], now_ns); /* those leave with the rest, not at the next wake-up */
    for (int i = 0; i < f->n_shards && f->n_shards > 1; i++)
        shard_commit(f->shards[i], now_ns);
    f->refused[0] = f->refused[1] = false;
    f->checkpoint_wanted = false;
    f->divergences_seen = 0;
    for (int i = 0; i < f->n_shards; i++)
        f->divergences_seen += shard_divergences(f->shards[i]);
}

static void
obey(Front *f, const FramingPacket *packet, int64_t now_ns)
{
    switch (notify_kind(packet)) {
    case NOTIFY_INIT:
        tell(f, NOTIFY_TEXT_INITIALISED);
        return;
    case NOTIFY_CHECKPOINT:
        checkpoint(f, now_ns);
        return;
    case NOTIFY_UNKNOWN:
        g_printerr("colo-compare: notify: unknown instruction of %u bytes ignored\n", packet->len);
        return;
    }
}

/* Serves the messages in the buffer. False: the stream is broken. */
static bool
serve_notify(Front *f, int64_t now_ns)
{
    Port *p = f->ports[PORT_NOTIFY];
    FramingPacket packet;
    int64_t n = 0;

    while (port_fd(p) >= 0) {
        size_t len;
        const uint8_t *data = port_data(p, &len);

        n = notify_next(data, len, f->config.vnet_hdr, &packet);
        if (n <= 0)
            break;
        port_consume(p, (size_t)n);
        obey(f, &packet, now_ns);
    }
    return n >= 0;
}

/* Until nothing is there: what is in the buffer does not wake poll(). */
static void
read_notify(Front *f, int64_t now_ns)
{
    Port *p = f->ports[PORT_NOTIFY];
    int64_t n;

    while ((n = port_read(p)) > 0 && serve_notify(f, now_ns) && port_fd(p) >= 0)
        continue;
    if (port_fd(p) >= 0 && n != -EAGAIN) /* broken, or longer than the buffer */
        framing_error(f, PORT_NOTIFY);
}

/* The output's peer does not send; reading tells when it leaves. */
static void
read_out(Front *f)
{
    Port *p = f->ports[PORT_OUT];
    size_t len;

    (void)port_read(p);
    if (port_fd(p) < 0) {
        outqueue_rewind(f->out);
        return;
    }
    (void)port_data(p, &len);
    port_consume(p, len);
}

/* --- loop --- */

static void
read_signals(Front *f)
{
    struct signalfd_siginfo info;

    while (read(f->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGUSR1)
            f->report_wanted = true;
        else
            f->stop = true;
    }
}

static struct timespec
poll_timeout(const Front *f, int64_t now_ns)
{
    int64_t until_ns = now_ns + TICK_MS_MAX * NS_PER_MS;

    if (f->n_shards == 1 && shard_next_deadline_ns(f->shards[0]) < until_ns)
        until_ns = shard_next_deadline_ns(f->shards[0]);
    if (f->checkpoint_wanted && f->notify_next_ns < until_ns)
        until_ns = f->notify_next_ns;
    if (outqueue_bytes(f->out) > OUT_LIMIT_BYTES && now_ns - f->out_moved_ns < OUT_PATIENCE_NS)
        until_ns = MIN(until_ns, f->out_moved_ns + OUT_PATIENCE_NS);
    for (int side = 0; side < 2; side++) {
        if (yields(f, side, now_ns))
            until_ns = MIN(until_ns, f->ahead_until_ns[side]);
    }
    int64_t wait_ns = MAX(until_ns - now_ns, 0);

    return (struct timespec){.tv_sec = wait_ns / NS_PER_S, .tv_nsec = wait_ns % NS_PER_S};
}

static short
events_of(const Front *f, int port, int64_t now_ns)
{
    if (port == PORT_OUT)
        return (short)(POLLIN | (f->out_blocked ? POLLOUT : 0));
    if (port == PORT_NOTIFY)
        return POLLIN;
    return paused(f, port) || yields(f, port, now_ns) ? 0 : POLLIN;
}

/* Fills @fds: signals, wake-ups, then for each port the listening socket and the peer. */
static void
prepare_poll(const Front *f, struct pollfd *fds, int64_t now_ns)
{
    fds[0] = (struct pollfd){.fd = f->signal_fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = f->wake_fd, .events = POLLIN};
    for (int i = 0; i < N_PORTS; i++) {
        struct pollfd *two = fds + 2 + 2 * i;
        short events = f->ports[i] ? events_of(f, i, now_ns) : 0;

        /* A new peer waits until what the old one sent is worked off. */
        bool accepts = f->ports[i] && (events || port_fd(f->ports[i]) < 0);

        two[0] =
            (struct pollfd){.fd = accepts ? port_listen_fd(f->ports[i]) : -1, .events = POLLIN};
        /* A paused side is not polled at all: its hang-up comes after its data. */
        two[1] = (struct pollfd){.fd = events ? port_fd(f->ports[i]) : -1, .events = events};
    }
}

static void
accept_peers(Front *f, const struct pollfd *fds, int64_t now_ns)
{
    for (int i = 0; i < N_PORTS; i++) {
        if (!fds[2 + 2 * i].revents || !f->ports[i])
            continue;
        if (i <= PORT_SECONDARY && port_fd(f->ports[i]) >= 0) {
            read_port(f, i, DRAIN_READS, epoch_here(f), now_ns);
            if (f->refused[i])
                continue;
        }
        if (i == PORT_OUT)
            outqueue_rewind(f->out);
        if (port_accept(f->ports[i]) && i == PORT_NOTIFY)
            f->notify_next_ns = 0; /* what the last one was told, this one was not */
    }
}

/* Both sides are read before either is compared, so that what they have in common is compared and
 * sent where it was read, and copied nowhere. */
static void
handle_sides(Front *f, const bool *ready, int64_t now_ns)
{
    bool ahead[2] = {ready[0] && ready[1] && runs_ahead(f, 0),
                     ready[0] && ready[1] && runs_ahead(f, 1)};

    for (int side = 0; side < 2; side++) {
        if (ready[side] && f->refused[side])
            work_off(f, side, epoch_here(f), now_ns); /* or a hang-up would take it along */
    }
    for (int side = 0; side < 2; side++) {
        if (ready[side] && !ahead[side] && !f->refused[side]) {
            (void)read_side(f, side);
            f->ahead_until_ns[side] = now_ns + AHEAD_PATIENCE_NS;
        }
    }
    for (int side = 0; side < 2; side++) {
        if (ready[side] ? !ahead[side] && !f->refused[side] : !f->refused[side] && !paused(f, side))
            work_off(f, side, epoch_here(f), now_ns);
    }
}

static void
handle_ports(Front *f, const struct pollfd *fds, int64_t now_ns)
{
    bool ready[N_PORTS];

    for (int i = 0; i < N_PORTS; i++)
        ready[i] = fds[2 + 2 * i + 1].revents != 0;
    handle_sides(f, ready, now_ns);
    if (f->n_shards == 1)
        shard_tick(f->shards[0], now_ns);
    if (ready[PORT_OUT] && (fds[2 + 2 * PORT_OUT + 1].revents & ~POLLOUT))
        read_out(f);
    if (ready[PORT_NOTIFY])
        read_notify(f, now_ns);
    write_out(f);
}

gboolean
front_run(Front *f, void (*on_report)(Front *front, void *opaque), void *opaque, GError **error)
{
    while (!f->stop) {
        struct pollfd fds[2 + 2 * N_PORTS];
        uint64_t wakes;
        int64_t now_ns = clock_now_ns();
        struct timespec timeout = poll_timeout(f, now_ns);

        prepare_poll(f, fds, now_ns);
        if (ppoll(fds, 2 + 2 * N_PORTS, &timeout, NULL) < 0 && errno != EINTR)
            return fail_errno(errno, "poll", error);
        now_ns = clock_now_ns();

        if (fds[0].revents)
            read_signals(f);
        if (fds[1].revents && read(f->wake_fd, &wakes, sizeof(wakes)) < 0 && errno != EAGAIN)
            return fail_errno(errno, "eventfd", error);
        f->now_ns = now_ns;
        accept_peers(f, fds, now_ns);
        handle_ports(f, fds, now_ns);
        notify_if_wanted(f, now_ns);
        if (f->report_wanted)
            on_report(f, opaque);
        f->report_wanted = false;
    }
    return TRUE;
}

/* --- report --- */

static void
add_int(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static struct json_object *
report_side(const Front *f, const CompareStats *stats, int side)
{
    struct json_object *o = stats_side_json(stats, (CompareSide)side);

    json_object_object_add(o, "connected", json_object_new_boolean(port_fd(f->ports[side]) >= 0));
    add_int(o, "packets", f->n_packets[side]);
    return o;
}

struct json_object *
front_report(Front *f)
{
    struct json_object *o = json_object_new_object();
    struct json_object *recent = json_object_new_array();
    CompareStats stats = {0};
    uint64_t n_forgotten = 0;

    for (int i = 0; i < f->n_shards; i++)
        shard_report(f->shards[i], &stats, &n_forgotten, recent);
    json_object_object_add(o, "primary", report_side(f, &stats, PORT_PRIMARY));
    json_object_object_add(o, "secondary", report_side(f, &stats, PORT_SECONDARY));
    stats_add_json(&stats, o);
    add_int(o, "secondary_forgotten", n_forgotten);
    add_int(o, "notified", f->n_notified);
    add_int(o, "framing_errors", f->n_framing_errors);
    add_int(o, "out_queue_bytes", outqueue_bytes(f->out));
    add_int(o, "shards", (uint64_t)f->n_shards);
    json_object_object_add(o, "recent_divergences", recent);
    return o;
}
