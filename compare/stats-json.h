/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* stats-json.h - an engine's counters as JSON */
#pragma once

#include <json-c/json.h>

#include "compare.h"

/** Adds the counters that are not of one side to @object. */
void stats_add_json(const CompareStats *stats, struct json_object *object);
/** The counters of one side. The caller owns the object. */
struct json_object *stats_side_json(const CompareStats *stats, CompareSide side);
