/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* disk-private.h - what the parts of disk.c share */
#pragma once

#include "disk-process.h"
#include "disk.h"
#include "image.h"

#include <stdbool.h>

typedef enum PluginKind { PLUGIN_FORWARDER, PLUGIN_TARGET, PLUGIN_COUNT } PluginKind;

/* How long QEMU waits for a plugin that is gone before the guest gets an error; a new one is there
 * long before, unless colod is gone too. A VM that is stopped meanwhile waits as long. */
enum { RECONNECT_DELAY_S = 10 };

/* One nbdkit. */
typedef struct Plugin {
    Disk *disk;
    PluginKind kind;
    DiskProcess *process;          /* NULL: none */
    bool ready;                    /* it serves */
    bool ending;                   /* its end was ordered: its death is no fault */
    int fds[DISK_PROCESS_MAX_FDS]; /* its listening sockets: kept, for the next process; or -1 */
    json_object *status;           /* the last, or NULL */
    char *fault;                   /* that was told last, or NULL */
    GSource *restart;
    unsigned restarts; /* since it last lived long */
    int64_t started_ns;
} Plugin;

enum {
    DISK_START_MS = 15000,  /* nbdkit's start on a loaded host; a commit's record is read */
    DISK_ASK_SIZE_MS = 500, /* for the size of an image that is an export on this host */
    DISK_END_MS = 3000,     /* after `quit`: the plugin cuts its clients off after one second */
};

typedef struct Op Op;
typedef void (*OpFunc)(Op *op);

/* A call of the daemon's that is under way. Replies hold references. */
struct Op {
    grefcount refs;
    Disk *disk; /* NULL: over */
    DiskDoneFunc done;
    gpointer user_data;
    GSource *timer; /* deadline, then the telling */
    GError *error;
    bool finished;
    OpFunc next; /* after the reply that is waited for */
    OpFunc after_alone, after_move;
    OpFunc poll;       /* at each change of a plugin, while nothing else is waited for */
    const Plugin *on;  /* whose reply it is: fails with it */
    bool ignore_error; /* of the next reply */
    DiskUrgency urgency;
    unsigned ask_ms; /* a plugin's time for one command */
    DiskRole role;
    uint64_t generation;
    bool first;
    QmpClient *qmp;
    int64_t change; /* of the status that is too old */
    unsigned connects;
};

struct Disk {
    DiskConfig config;
    const DiskHandlers *handlers;
    gpointer user_data;
    GMainContext *context;
    Plugin plugins[PLUGIN_COUNT];
    GQueue ops;  /* Op */
    bool is_nbd; /* the image is an export, which is asked for its size once */
    ImageNbd nbd;
    int64_t size_bytes;        /* of an export; -1: not known yet */
    bool running;              /* started or adopted: a death is a fault */
    uint64_t alone_generation; /* what the forwarder marks for; 0: it is idle */
    bool wants_synced;
    unsigned connects; /* so many were ordered */
    bool failed_over;  /* what SVM sees is the truth: the target must live until the move */
    bool committed_told;
    bool high_water_told;
};

/* --- disk-op.c --- */

Op *disk_op_new(Disk *disk, DiskDoneFunc done, gpointer user_data);
Op *disk_op_ref(Op *op);
void disk_op_unref(gpointer op);
/** Takes @error; NULL: done. It is told from the loop. */
void disk_op_finish(Op *op, GError *error);
/** Sets the deadline anew. */
void disk_op_arm(Op *op, unsigned ms);
/** Sends and goes on with @next, unless it fails. @arguments: taken. */
void disk_op_ask(Op *op, PluginKind kind, const char *command, json_object *arguments, OpFunc next);
/** Goes on with @poll now and at each change. */
void disk_op_poll(Op *op, OpFunc poll);
/** The same for QEMU. @arguments: taken. */
void disk_op_ask_qemu(Op *op, const char *command, json_object *arguments, OpFunc next);
/** Lets all operations that wait for a state look at it. */
void disk_changed(Disk *disk);
/** Ends those that wait for an answer of @plugin. */
void disk_fail_ops_on(const Plugin *plugin, const char *text);

/* --- disk-plugin.c --- */

bool disk_start_plugin(Plugin *plugin, GError **error);
/** One of an earlier life of colod; on_dead follows if there is none. */
void disk_find_plugin(Plugin *plugin);
void disk_end_plugin(Plugin *plugin);
/** Stops watching it. */
void disk_clear_process(Plugin *plugin);
void disk_close_sockets(Plugin *plugin);
/** What a target's status asks of the daemon. */
void disk_judge_target(Disk *disk, json_object *status);
/** NULL: not there, or no string. */
const char *disk_get_string(json_object *object, const char *key);
int64_t disk_get_number(json_object *object, const char *key);
const char *disk_commit_phase(json_object *status);

/* --- disk-files.c --- */

char *disk_control_path(const Disk *disk, PluginKind kind);
char *disk_socket_path(const Disk *disk, PluginKind kind);
char *disk_log_path(const Disk *disk, PluginKind kind);
/** nbdkit's command line. */
char **disk_plugin_command(const Disk *disk, PluginKind kind);
/** What must be there before it is started: sockets (into plugin->fds), folders, certificates. */
gboolean disk_plugin_prepare(Plugin *plugin, GError **error);
/** Its last words, " (...)", or "". */
char *disk_last_words(const Disk *disk, PluginKind kind);

/* --- disk-graph.c --- */

/** The local image is reopened as it is: QEMU lets what is under way come to its end first. */
void disk_graph_drain(Op *op, OpFunc next);
/** From NBD to the local image; QEMU is op->qmp. Then @next. */
void disk_graph_move(Op *op, OpFunc next);
