/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * keep.c - what the rewriters know, kept in files for the daemon that adopts the VM
 *
 * Both layers (inherit.c) have a file each, from the start of the VM on, whatever its role: the
 * daemon of a secondary may die between the claim and the takeover, and then it is the next one
 * that opens the output (proxy.h: nothing is opened by itself). Which epoch a connection is of is
 * in the file; what the frames under way were is lost with the daemon, as by a network.
 *
 * A VM that was adopted is nobody's secondary: the one before had the right to go on. So what was
 * loaded is translated as after a takeover, and nothing is learned. If it becomes the primary of a
 * new pair, that is told as by the daemon that took over.
 */
#include "keep.h"

#include <glib/gstdio.h>
#include <stdarg.h>
#include <string.h>

#include "rewriter-load.h"

static const char *const suffixes[KEPT_LAYERS] = {"", "-inherited"};

G_GNUC_PRINTF(3, 4)
static void
tell(ProxyKept *kept, int error, const char *format, ...)
{
    va_list args;
    gsize at = strlen(kept->problem);

    va_start(args, format);
    if (at > 0)
        at += g_strlcpy(kept->problem + at, "; ", sizeof(kept->problem) - at);
    at = MIN(at, sizeof(kept->problem) - 1);
    (void)g_vsnprintf(kept->problem + at, sizeof(kept->problem) - at, format, args);
    va_end(args);
    if (error > 0) {
        (void)g_strlcat(kept->problem, ": ", sizeof(kept->problem));
        (void)g_strlcat(kept->problem, g_strerror(error), sizeof(kept->problem));
    }
}

static void
load(ProxyKept *kept, const char *path, const ProxyVm *vm, Rewriter *rewriter)
{
    RewriterLoad result;

    rewriter_load(path, vm, rewriter, &result);
    kept->loaded += result.loaded;
    kept->damaged += result.damaged;
    if (result.problem)
        tell(kept, result.error, "%s is ignored: %s", path, result.problem);
    if (result.damaged > 0)
        tell(kept, 0, "%s: %u connections are damaged and ignored", path, result.damaged);
    if (result.beyond_max > 0)
        tell(kept, 0, "%s: no room for %u connections", path, result.beyond_max);
}

/* Nothing in it is of use without a file that is written: then the next daemon would find an old
 * one. */
static void
publish(Lockstep *lockstep, unsigned layer, const char *path)
{
    int r = lockstep->stores[layer] ? rewriter_store_publish(lockstep->stores[layer]) : 0;

    if (r < 0)
        tell(&lockstep->kept, -r, "%s cannot take its place", path);
}

static int
init_layer(Lockstep *lockstep, unsigned layer, const ProxyConfig *config, RewriterConfig rewriter,
           bool adopted, Rewriter **ret_rewriter)
{
    g_autofree char *path = NULL;
    int r;

    if (config->connections_path)
        path = g_strconcat(config->connections_path, suffixes[layer], NULL);
    if (path) {
        r = rewriter_store_new(path, rewriter.connections_max, adopted ? &config->vm : NULL,
                               &lockstep->stores[layer]);
        if (r < 0)
            tell(&lockstep->kept, -r, "%s.new cannot be made", path);
    }
    rewriter.store = lockstep->stores[layer];
    r = rewriter_new(&rewriter, ret_rewriter);
    if (r < 0)
        return r;
    if (path && adopted)
        load(&lockstep->kept, path, &config->vm, *ret_rewriter);
    if (path)
        publish(lockstep, layer, path);
    return 0;
}

int
keep_init(Lockstep *lockstep, const ProxyConfig *config, const RewriterConfig *rewriter,
          bool adopted)
{
    int r = init_layer(lockstep, 0, config, *rewriter, adopted, &lockstep->rewriter);

    if (r == 0)
        r = init_layer(lockstep, 1, config, *rewriter, adopted, &lockstep->inherited);
    if (r < 0)
        return r;
    rewriter_takeover(lockstep->inherited); /* it learns nothing by itself */
    if (lockstep->kept.loaded > 0) {
        rewriter_takeover(lockstep->rewriter);
        lockstep->rewriting = true;
    }
    return 0;
}

void
keep_clear(Lockstep *lockstep)
{
    rewriter_free(lockstep->rewriter);
    rewriter_free(lockstep->inherited);
    lockstep->rewriter = lockstep->inherited = NULL;
    for (unsigned i = 0; i < KEPT_LAYERS; i++)
        rewriter_store_free(g_steal_pointer(&lockstep->stores[i]));
}

void
keep_set_vm(Lockstep *lockstep, const ProxyVm *vm)
{
    for (unsigned i = 0; i < KEPT_LAYERS; i++)
        if (lockstep->stores[i])
            rewriter_store_set_vm(lockstep->stores[i], vm);
}

void
proxy_forget_connections(const char *connections_path)
{
    for (unsigned i = 0; i < KEPT_LAYERS; i++) {
        g_autofree char *path = g_strconcat(connections_path, suffixes[i], NULL);

        (void)g_unlink(path);
    }
}
