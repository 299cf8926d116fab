/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* checkpoint-policy.c - when the next checkpoint starts, and why
 *
 * An epoch ends when it has lasted interval_ns, or earlier for a cause that was asked for, but not
 * before it has lasted spacing_ns: a guest that gets no time to run makes no progress, and a
 * second divergence right behind a checkpoint most often is the rest of the first. Only the
 * operator does not wait.
 *
 * Dense time. Each checkpoint because of a difference costs what a timed one costs, and the frame
 * that differed has waited longer than in a buffered network. When they come so fast that
 * checkpoints at the buffered interval would be as few, comparing no longer pays; epochs are then
 * short for a while, which bounds how long any frame waits. What matches still leaves at once.
 */
#include "checkpoint-policy.h"

#include <assert.h>
#include <stddef.h>

enum { MAX_LAG_US = 2000000 }; /* behind QEMU we are less, or the peer would take us for dead */

#define MIN_NS(a, b) ((a) < (b) ? (a) : (b))

const char *
checkpoint_cause_name(CheckpointCause cause)
{
    static const char *const names[] = {
        [CAUSE_OPERATOR] = "operator",     [CAUSE_HELD_BYTES] = "held-bytes",
        [CAUSE_OVERLAY] = "overlay",       [CAUSE_LOST] = "lost-frames",
        [CAUSE_DIVERGENCE] = "divergence", [CAUSE_TIMEOUT] = "compare-timeout",
        [CAUSE_INTERVAL] = "interval",     [CAUSE_QEMU] = "qemu",
    };

    static_assert(sizeof(names) / sizeof(names[0]) == N_CAUSES, "a cause has no name");
    return (unsigned)cause < N_CAUSES ? names[cause] : "unknown";
}

void
checkpoint_policy_ask(CheckpointPolicy *policy, CheckpointCause cause)
{
    if (!policy->asked || cause < policy->asked_cause)
        policy->asked_cause = cause;
    policy->asked = true;
}

bool
checkpoint_policy_is_dense(const CheckpointPolicy *policy, int64_t now_ns)
{
    return policy->dense_until_ns != 0 && now_ns < policy->dense_until_ns;
}

int64_t
checkpoint_policy_due_ns(const CheckpointPolicy *policy)
{
    const CheckpointPolicyConfig *config = &policy->config;
    int64_t interval_ns = config->interval_ns;

    if (policy->busy || policy->epoch_ns == 0)
        return INT64_MAX;
    if (policy->asked && policy->asked_cause == CAUSE_OPERATOR)
        return 0;
    if (policy->asked)
        return policy->epoch_ns + config->spacing_ns;
    if (checkpoint_policy_is_dense(policy, policy->epoch_ns))
        interval_ns = MIN_NS(interval_ns, config->dense_interval_ns);
    return policy->epoch_ns + interval_ns;
}

static bool
is_difference(CheckpointCause cause)
{
    return cause == CAUSE_DIVERGENCE || cause == CAUSE_TIMEOUT;
}

static void
begin_dense(CheckpointPolicy *policy, int64_t now_ns)
{
    const CheckpointPolicyConfig *config = &policy->config;
    /* Soon after the last time it was no accident: longer now. */
    const bool again = policy->calm_ns != 0 && now_ns - policy->dense_until_ns < policy->calm_ns;

    policy->calm_ns =
        again ? MIN_NS(policy->calm_ns * 2, config->calm_max_ns) : config->calm_first_ns;
    policy->dense_until_ns = now_ns + policy->calm_ns;
    policy->n_burst = 0;
}

static void
note_difference(CheckpointPolicy *policy, int64_t now_ns)
{
    /* The oldest of the last POLICY_BURST, this one included. */
    const unsigned slot = policy->n_burst++ % POLICY_BURST;
    int64_t oldest_ns;

    policy->burst[slot] = now_ns;
    if (policy->n_burst < POLICY_BURST)
        return;
    oldest_ns = policy->burst[policy->n_burst % POLICY_BURST];
    if (now_ns - oldest_ns <= policy->config.burst_ns)
        begin_dense(policy, now_ns);
}

CheckpointCause
checkpoint_policy_start(CheckpointPolicy *policy, int64_t now_ns)
{
    const CheckpointCause cause = policy->asked ? policy->asked_cause : CAUSE_INTERVAL;

    policy->busy = true;
    policy->asked = false;
    if (policy->config.burst_ns != 0 && is_difference(cause) &&
        !checkpoint_policy_is_dense(policy, now_ns))
        note_difference(policy, now_ns);
    return cause;
}

void
checkpoint_policy_epoch(CheckpointPolicy *policy, int64_t now_ns)
{
    policy->busy = false;
    policy->epoch_ns = now_ns;
}

int64_t
checkpoint_pause_us(int64_t by_qemu_us, int64_t by_us)
{
    const bool was_set =
        by_qemu_us < 0 || by_qemu_us - by_us > MAX_LAG_US || by_us - by_qemu_us > MAX_LAG_US;

    return was_set ? by_us : by_qemu_us;
}

void
checkpoint_policy_reset(CheckpointPolicy *policy)
{
    policy->busy = policy->asked = false;
    policy->epoch_ns = 0;
}
