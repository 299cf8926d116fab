/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* config.c - names of rules and policies, and the defaults of an engine */
#include "compare.h"

#include <assert.h>
#include <string.h>

#include "clock.h"

static const char *const rule_names[] = {
    [COMPARE_RULE_PAYLOAD] = "payload",
    [COMPARE_RULE_SYN] = "syn",
    [COMPARE_RULE_FIN] = "fin",
    [COMPARE_RULE_RST] = "rst",
    [COMPARE_RULE_TIMEOUT_PRIMARY] = "timeout-primary",
    [COMPARE_RULE_TIMEOUT_SECONDARY] = "timeout-secondary",
    [COMPARE_RULE_FRAGMENT] = "fragment",
    [COMPARE_RULE_REORDER] = "reorder",
    [COMPARE_RULE_MEMORY] = "memory",
    [COMPARE_RULE_FLOWS] = "flows",
};
static_assert(sizeof(rule_names) / sizeof(rule_names[0]) == COMPARE_N_RULES,
              "a name for each rule");

static const char *const policy_names[] = {
    [COMPARE_POLICY_SIZE] = "size",
    [COMPARE_POLICY_FULL] = "full",
    [COMPARE_POLICY_PASS] = "pass",
};

const char *
compare_rule_name(CompareRule rule)
{
    return rule_names[rule];
}

const char *
compare_policy_name(ComparePolicy policy)
{
    return policy_names[policy];
}

bool
compare_policy_parse(const char *name, ComparePolicy *ret_policy)
{
    for (size_t i = 0; i < sizeof(policy_names) / sizeof(policy_names[0]); i++) {
        if (!strcmp(name, policy_names[i])) {
            *ret_policy = (ComparePolicy)i;
            return true;
        }
    }
    return false;
}

void
compare_config_init(CompareConfig *config)
{
    *config = (CompareConfig){
        .timeout_ns = COMPARE_TIMEOUT_MS_DEFAULT * NS_PER_MS,
        .flow_idle_ns = 300 * NS_PER_S,
        .flow_closed_ns = 30 * NS_PER_S,
        .memory_max_bytes = COMPARE_MEMORY_MAX_DEFAULT,
        .flows_max = COMPARE_FLOWS_MAX_DEFAULT,
        .isn = COMPARE_ISN_REWRITTEN,
        .window_gating = true,
    };
}
