/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-private.h - what proxy.c, proxy-lockstep.c (control thread), proxy-thread.c and
 * proxy-command.c (proxy thread) share */
#pragma once

#include <pthread.h>

#include "nic.h"
#include "proxy.h"

typedef enum CommandKind {
    COMMAND_EGRESS,
    COMMAND_INGRESS,
    COMMAND_MARK,
    COMMAND_RELEASE,
    COMMAND_ANNOUNCE,
    COMMAND_ATTACH,
    COMMAND_ATTACH_PEER,
    COMMAND_DETACH_PEER,
    COMMAND_PAUSE,
    COMMAND_COMMIT,
    COMMAND_LOSE,
} CommandKind;

/* Made and freed by the control thread, so that the proxy thread never allocates. */
typedef struct Command Command;
struct Command {
    Command *next;
    CommandKind kind;
    ProxyEgress egress;
    bool flowing;
    guint64 epoch;
    int64_t lease_ns;
    unsigned nic;
    Port *port;     /* COMMAND_ATTACH: owned until carried out */
    ProxyPeer peer; /* COMMAND_ATTACH_PEER: the same, if its close is set */
    guint64 serial; /* of the peer */
    /* COMMAND_EGRESS: to be used; afterwards, those to be freed. */
    Compare *engines[PROXY_MAX_NICS];
    ProxyLoss loss;
    unsigned n;
    bool notify; /* set by the proxy thread: @done is to run */
    ProxyDoneFunc done;
    gpointer user_data;
};

typedef struct CommandList {
    Command *head, *tail;
} CommandList;

static inline void
command_list_push(CommandList *list, Command *command)
{
    command->next = NULL;
    if (list->tail)
        list->tail->next = command;
    else
        list->head = command;
    list->tail = command;
}

static inline Command *
command_list_pop(CommandList *list)
{
    Command *command = list->head;

    if (command) {
        list->head = command->next;
        if (!list->head)
            list->tail = NULL;
    }
    return command;
}

/* What the control thread is to be told of the channel. */
typedef struct PeerNews {
    bool ended;
    PeerEnd end;
    guint64 serial; /* which peer it was */
} PeerNews;

struct Proxy {
    /* Set before the thread starts, constant from then on. */
    unsigned n_nics;
    bool has_lockstep, test_hooks;
    int wake_fd;  /* eventfd: control thread -> proxy thread */
    int reply_fd; /* eventfd: proxy thread -> control thread */
    int monitor_fd, epoll_fd;

    /* Both threads, under @lock. */
    pthread_mutex_t lock;
    CommandList todo;    /* control -> proxy */
    CommandList replies; /* proxy -> control */
    NicNews news[PROXY_MAX_NICS];
    PeerNews peer_news;
    bool quit;

    AddressBook book;  /* has its own lock */
    Lockstep lockstep; /* proxy thread, but for what says otherwise */

    /* Proxy thread only, once it runs (Counter and Histogram: also read elsewhere). */
    Nic nics[PROXY_MAX_NICS];
    CommandList finished; /* not yet in @replies */
    Command *leased;      /* the release whose frames are not all written yet */
    ProxyEgress egress;
    bool egress_allowed; /* not PROXY_EGRESS_DROP: announcing is allowed */
    unsigned announce_step;
    int64_t announce_next_ns; /* 0: none */
    Command *quiescing; /* ingress was stopped: until all has got there, or the time is over */
    int64_t quiesce_until_ns;
    guint64 peer_serial;
    bool peer_pending;   /* frames of the peer can be taken without waiting */
    PeerNews peer_ended; /* not yet in @peer_news */

    /* Control thread only. */
    unsigned refs;
    bool freed, running;
    pthread_t thread;
    GSource *source;
    ProxyHandlers handlers;
    gpointer user_data;
    int guest_fds[PROXY_MAX_NICS][PROXY_MAX_QUEUES];
    bool connected[PROXY_MAX_NICS];
    guint64 peers_attached;
};

/** Gives the proxy thread a command (copied). Control thread. */
void proxy_submit(Proxy *proxy, Command command);
void proxy_wake(Proxy *proxy);

/** Adds the figures of lock-stepping. Control thread. */
void proxy_add_lockstep_stats(Proxy *proxy, ProxyStats *stats);
/** Tells the handlers. Control thread. */
void proxy_tell_divergence(Proxy *proxy, const ProxyDivergence *what);
void proxy_tell_peer(Proxy *proxy, const PeerNews *news);

/* proxy-command.c: the proxy thread. */

/** Carries out a command; it goes to @finished, now or later. */
void proxy_run_command(Proxy *proxy, Command *command);
/** Looks whether the release under way is written, or its lease over. */
void proxy_check_lease(Proxy *proxy);
/** Looks whether ingress that was stopped has got to the guests. */
void proxy_check_quiesced(Proxy *proxy, int64_t now_ns);
/** When to look again; INT64_MAX: no need. */
int64_t proxy_quiesce_deadline_ns(const Proxy *proxy, int64_t now_ns);
/** The mode in force is one in which the channel is read. */
bool proxy_reads_peer(const Proxy *proxy);

typedef enum WatchKind { WATCH_WAKE, WATCH_MONITOR, WATCH_PORT, WATCH_LAN, WATCH_PEER } WatchKind;

int proxy_watch(Proxy *proxy, int operation, int fd, WatchKind kind, unsigned nic, uint32_t events);

/** The proxy thread's main function; @arg: the Proxy. */
void *proxy_thread_main(void *arg);

/** Registers the descriptors that exist; before the thread starts. Returns 0 or a negative errno.
 */
int proxy_thread_prepare(Proxy *proxy);
