/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* stats-json.c - an engine's counters as JSON */
#include "stats-json.h"

static void
add_int(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static struct json_object *
rules_json(const CompareStats *stats)
{
    struct json_object *rules = json_object_new_object();

    for (int i = 0; i < COMPARE_N_RULES; i++)
        add_int(rules, compare_rule_name((CompareRule)i), stats->divergences[i]);
    return rules;
}

void
stats_add_json(const CompareStats *stats, struct json_object *object)
{
    add_int(object, "released_matched", stats->released[COMPARE_RELEASED_MATCHED]);
    add_int(object, "released_ack_lowered", stats->released[COMPARE_RELEASED_ACK_LOWERED]);
    add_int(object, "windows_lowered", stats->windows_lowered);
    add_int(object, "released_by_policy", stats->released[COMPARE_RELEASED_PASSED]);
    add_int(object, "released_by_checkpoint", stats->released[COMPARE_RELEASED_COMMITTED]);
    json_object_object_add(object, "divergences", rules_json(stats));
    add_int(object, "secondary_announcements", stats->announcements);
    add_int(object, "checkpoints", stats->checkpoints);
    add_int(object, "flows", stats->flows);
    add_int(object, "flows_created", stats->flows_created);
    add_int(object, "flows_expired", stats->flows_expired);
    add_int(object, "flows_evicted", stats->flows_evicted);
    add_int(object, "held_bytes", stats->held_bytes);
    add_int(object, "held_bytes_max", stats->held_bytes_max);
    add_int(object, "hold_ns_total", stats->hold_ns_total);
    add_int(object, "hold_ns_max", (uint64_t)stats->hold_ns_max);
}

struct json_object *
stats_side_json(const CompareStats *stats, CompareSide side)
{
    struct json_object *o = json_object_new_object();

    add_int(o, "bytes", stats->bytes[side]);
    add_int(o, "held", stats->held_frames[side]);
    add_int(o, "stale", stats->stale[side]);
    for (int c = 0; c < FRAME_N_CLASSES; c++)
        add_int(o, frame_class_name((FrameClass)c), stats->classes[side][c]);
    return o;
}
