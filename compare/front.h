/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* front.h - colo-compare's loop: packets from two sockets through the engine to a third */
#pragma once

#include <gio/gio.h>
#include <json-c/json.h>

#include "compare.h"

typedef struct FrontConfig {
    CompareConfig engine;
    const char *primary; /* addresses, as port.h */
    const char *secondary;
    const char *out;
    const char *notify; /* or NULL */
    gboolean vnet_hdr;
    int shards;
} FrontConfig;

/* Front: sockets, shards and the loop. One thread, apart from those of the shards. */
typedef struct Front Front;

Front *front_new(const FrontConfig *config, GError **error);
void front_free(Front *front);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Front, front_free)

/** Runs until SIGTERM or SIGINT. @on_report is called for each SIGUSR1. */
gboolean front_run(Front *front, void (*on_report)(Front *front, void *opaque), void *opaque,
                   GError **error);

/** Counters and recent divergences. The caller owns the object. */
struct json_object *front_report(Front *front);
