/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* forward-fsm.c - what the forwarder does with the guest's writes, and which command may change
 * that (pure)
 *
 * The rule behind the rules: whoever calls its disk the truth has metadata that says so, of no
 * newer generation; and nothing of a later epoch goes out before the earlier one is wholly there.
 */
#include "forward-fsm.h"

#include <assert.h>
#include <glib.h>

static const char *const mode_names[] = {
    [FORWARD_IDLE] = "idle",
    [FORWARD_ALONE] = "alone",
    [FORWARD_SYNCING] = "syncing",
    [FORWARD_MIRRORING] = "mirroring",
};
static_assert(G_N_ELEMENTS(mode_names) == FORWARD_MODE_COUNT, "a name for each mode");

const char *
forward_mode_name(ForwardMode mode)
{
    g_assert((unsigned)mode < FORWARD_MODE_COUNT);
    return mode_names[mode];
}

static const char *
step_alone(const ForwardFacts *facts, ForwardMode *ret_mode)
{
    if (facts->asked_generation < facts->generation)
        return "the generation is older than the disk's";
    if (facts->committing)
        return "a failover's commit has to be finished first, by the target";
    if (!facts->up_to_date && !facts->never_used)
        return "the disk is not UpToDate: it is a mirror's, behind the primary's";
    if (!facts->up_to_date && !facts->first)
        return "the disk was never replicated: only the first primary may start from it";
    *ret_mode = FORWARD_ALONE;
    return NULL;
}

static const char *
step_connect(ForwardMode mode, const ForwardFacts *facts, ForwardMode *ret_mode)
{
    if (mode == FORWARD_IDLE)
        return "the disk is not the truth: alone comes first";
    if (mode != FORWARD_ALONE)
        return "there is a peer already: alone gives it up";
    if (facts->asked_generation < facts->generation)
        return "the generation is older than the disk's";
    *ret_mode = FORWARD_SYNCING;
    return NULL;
}

static const char *
step_finish(ForwardMode mode, const ForwardFacts *facts, ForwardMode *ret_mode)
{
    if (mode == FORWARD_MIRRORING && facts->holding) {
        *ret_mode = mode; /* asked again */
        return NULL;
    }
    if (mode != FORWARD_SYNCING)
        return "the disk is not being synced";
    *ret_mode = mode;
    return NULL;
}

static const char *
step_finished(ForwardMode mode, const ForwardFacts *facts, ForwardMode *ret_mode)
{
    if (mode != FORWARD_SYNCING || !facts->holding || !facts->drained)
        return "the sync is not at its end";
    *ret_mode = FORWARD_MIRRORING;
    return NULL;
}

/* What does not change the mode and needs a mirror. */
static const char *
step_mirrored(ForwardMode mode, ForwardMode *ret_mode)
{
    if (mode != FORWARD_MIRRORING)
        return "the disk is not being mirrored";
    *ret_mode = mode;
    return NULL;
}

static const char *
step_release(ForwardMode mode, const ForwardFacts *facts, ForwardMode *ret_mode)
{
    if (mode == FORWARD_MIRRORING && facts->holding && !facts->drained)
        return "the barrier is not through: the peer lacks writes of before it";
    return step_mirrored(mode, ret_mode);
}

static const char *
step_lost(ForwardMode mode, ForwardMode *ret_mode)
{
    if (mode != FORWARD_SYNCING && mode != FORWARD_MIRRORING)
        return "there is no peer to lose";
    *ret_mode = FORWARD_ALONE;
    return NULL;
}

const char *
forward_fsm_step(ForwardMode mode, ForwardEvent event, const ForwardFacts *facts,
                 ForwardMode *ret_mode)
{
    switch (event) {
    case FORWARD_EVENT_ALONE:
        return step_alone(facts, ret_mode);
    case FORWARD_EVENT_CONNECT:
        return step_connect(mode, facts, ret_mode);
    case FORWARD_EVENT_FINISH:
        return step_finish(mode, facts, ret_mode);
    case FORWARD_EVENT_FINISHED:
        return step_finished(mode, facts, ret_mode);
    case FORWARD_EVENT_BARRIER:
    case FORWARD_EVENT_VERIFY:
        return step_mirrored(mode, ret_mode);
    case FORWARD_EVENT_RELEASE:
        return step_release(mode, facts, ret_mode);
    case FORWARD_EVENT_LOST:
        return step_lost(mode, ret_mode);
    case FORWARD_EVENT_COUNT:
        break;
    }
    g_assert_not_reached();
}
