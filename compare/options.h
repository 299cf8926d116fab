/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* options.h - what the command lines of colo-compare and colo-replay have in common */
#pragma once

#include <gio/gio.h>

#include "compare.h"

/** Applies "full", or a list like "arp=full,ip-other=size", to @config->policy.
 *
 * Classes: ip-other, arp, l2-other, malformed. Error: what is wrong and what is allowed.
 */
gboolean options_parse_policy(const char *text, CompareConfig *config, GError **error);

/** Sets @config->timeout_ns; the range is that of compare.h. */
gboolean options_set_timeout_ms(gint64 timeout_ms, CompareConfig *config, GError **error);

/** Fills @config->hash_key from the kernel's random numbers. */
gboolean options_random_key(CompareConfig *config, GError **error);
