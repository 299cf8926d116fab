/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* proxy-private.h - what proxy.c (control thread) and proxy-thread.c share */
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
    Port *port;  /* COMMAND_ATTACH: owned until carried out */
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

struct Proxy {
    /* Set before the thread starts, constant from then on. */
    unsigned n_nics;
    int wake_fd;  /* eventfd: control thread -> proxy thread */
    int reply_fd; /* eventfd: proxy thread -> control thread */
    int monitor_fd, epoll_fd;

    /* Both threads, under @lock. */
    pthread_mutex_t lock;
    CommandList todo;    /* control -> proxy */
    CommandList replies; /* proxy -> control */
    NicNews news[PROXY_MAX_NICS];
    bool quit;

    AddressBook book; /* has its own lock */

    /* Proxy thread only, once it runs (Counter and Histogram: also read elsewhere). */
    Nic nics[PROXY_MAX_NICS];
    CommandList finished; /* not yet in @replies */
    Command *leased;      /* the release whose frames are not all written yet */
    bool egress_allowed;  /* not PROXY_EGRESS_DROP: announcing is allowed */
    unsigned announce_step;
    int64_t announce_next_ns; /* 0: none */

    /* Control thread only. */
    unsigned refs;
    bool freed, running;
    pthread_t thread;
    GSource *source;
    ProxyHandlers handlers;
    gpointer user_data;
    int guest_fds[PROXY_MAX_NICS];
    bool connected[PROXY_MAX_NICS];
};

/** The proxy thread's main function; @arg: the Proxy. */
void *proxy_thread_main(void *arg);

/** Registers the descriptors that exist; before the thread starts. Returns 0 or a negative errno.
 */
int proxy_thread_prepare(Proxy *proxy);
