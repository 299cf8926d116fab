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

/** Blocks SIGTERM, SIGINT and SIGUSR1 in the calling thread, which must be the only one, opens the
 * listening sockets and starts the shards. @config: copied; its strings are borrowed for this call.
 * Errors: G_IO_ERROR; the text names the address, or what is out of range.
 */
Front *front_new(const FrontConfig *config, GError **error);
/** Ends the shards and closes the sockets; what is held is dropped. NULL is fine. */
void front_free(Front *front);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Front, front_free)

/** Runs until SIGTERM or SIGINT: TRUE. @on_report is called for each SIGUSR1, in this thread.
 * Errors: G_IO_ERROR, the loop itself failed; what peers do never ends it.
 */
gboolean front_run(Front *front, void (*on_report)(Front *front, void *opaque), void *opaque,
                   GError **error);

/** Counters and recent divergences (colo-compare(1)). In the loop's thread; the caller owns it. */
struct json_object *front_report(Front *front);
