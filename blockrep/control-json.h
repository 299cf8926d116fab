/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* control-json.h - what plugins build their status of */
#pragma once

#include <json-c/json.h>
#include <stdint.h>

/** @value: taken. */
static inline void
add(json_object *object, const char *key, json_object *value)
{
    json_object_object_add(object, key, value);
}

static inline void
add_number(json_object *object, const char *key, uint64_t value)
{
    add(object, key, json_object_new_uint64(value));
}
