/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* checkpoint-policy.h - when the next checkpoint starts, and why. Pure: time and causes in. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* In the order of rank: of several that wait, the first is the one that is counted. */
typedef enum CheckpointCause {
    CAUSE_OPERATOR,
    CAUSE_HELD_BYTES, /* held output, or the engine's memory, came near its bound */
    CAUSE_OVERLAY,    /* what the guests wrote since the last came near its bound */
    CAUSE_LOST,       /* frames of the guest were lost before we saw them */
    CAUSE_DIVERGENCE, /* both guests spoke, and differ */
    CAUSE_TIMEOUT,    /* one guest spoke, and the other did not in time */
    CAUSE_INTERVAL,   /* the longest epoch is over */
    CAUSE_QEMU,       /* not asked for */
    N_CAUSES,
} CheckpointCause;

const char *checkpoint_cause_name(CheckpointCause cause);

enum { POLICY_BURST = 8 };

typedef struct CheckpointPolicyConfig {
    int64_t interval_ns; /* the longest epoch */
    int64_t spacing_ns;  /* the shortest one, whatever the cause but the operator's */
    /* Adaptive: POLICY_BURST checkpoints because of differences within burst_ns mean that comparing
     * does not pay. Epochs are then at most dense_interval_ns long, for calm_first_ns, and, each
     * time it happens again at once, twice as long up to calm_max_ns. burst_ns 0: never. */
    int64_t burst_ns;
    int64_t dense_interval_ns;
    int64_t calm_first_ns, calm_max_ns;
} CheckpointPolicyConfig;

/* Owned by one thread; all zero but for @config is a policy before its first epoch. */
typedef struct CheckpointPolicy {
    CheckpointPolicyConfig config;
    bool busy;        /* from checkpoint_policy_start() to checkpoint_policy_epoch() */
    int64_t epoch_ns; /* when the guest last began to run; 0: never */
    bool asked;
    CheckpointCause asked_cause; /* the first in rank of those asked for */
    int64_t burst[POLICY_BURST]; /* times of the last checkpoints because of differences */
    unsigned n_burst;            /* ever */
    int64_t dense_until_ns;      /* 0: not dense */
    int64_t calm_ns;             /* length of the dense time under way or last */
} CheckpointPolicy;

/** A checkpoint is wanted because of @cause. */
void checkpoint_policy_ask(CheckpointPolicy *policy, CheckpointCause cause);

/** When the next one is to start: INT64_MAX while one is under way, 0 for at once. */
int64_t checkpoint_policy_due_ns(const CheckpointPolicy *policy);

/** It starts now. Return: the cause to be counted. */
CheckpointCause checkpoint_policy_start(CheckpointPolicy *policy, int64_t now_ns);

/** The guest runs and another may be started: an epoch begins. */
void checkpoint_policy_epoch(CheckpointPolicy *policy, int64_t now_ns);

/** Protection begins or ends: nothing is asked for, no epoch runs. What was learned is kept. */
void checkpoint_policy_reset(CheckpointPolicy *policy);

/**
 * How long the guest stood, in µs. @by_qemu_us: between the times that QEMU gives with STOP and
 * RESUME, the nearest to the truth, but of a clock that an administrator may set meanwhile;
 * @by_us: between the moments when we heard of the two, by a clock that nobody sets.
 */
int64_t checkpoint_pause_us(int64_t by_qemu_us, int64_t by_us);

/** Dense epochs because of many differences. */
bool checkpoint_policy_is_dense(const CheckpointPolicy *policy, int64_t now_ns);
