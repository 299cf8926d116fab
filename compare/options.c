/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* options.c - what the command lines of colo-compare and colo-replay have in common */
#include "options.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "clock.h"

static const FrameClass policy_classes[] = {FRAME_IP_OTHER, FRAME_ARP, FRAME_L2_OTHER,
                                            FRAME_MALFORMED};

static gboolean
refuse(const char *text, GError **error)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                "policy \"%s\": expected full, size or pass, or a list of CLASS=POLICY with "
                "CLASS one of ip-other, arp, l2-other, malformed",
                text);
    return FALSE;
}

static gboolean
parse_item(const char *item, CompareConfig *config)
{
    g_auto(GStrv) parts = g_strsplit(item, "=", 2);
    ComparePolicy policy;

    if (!parts[0] || !compare_policy_parse(parts[1] ? parts[1] : parts[0], &policy))
        return FALSE;
    gboolean known = !parts[1];

    for (size_t i = 0; i < G_N_ELEMENTS(policy_classes); i++) {
        if (parts[1] && strcmp(parts[0], frame_class_name(policy_classes[i])) != 0)
            continue;
        config->policy[policy_classes[i]] = policy;
        known = TRUE;
    }
    return known;
}

gboolean
options_parse_policy(const char *text, CompareConfig *config, GError **error)
{
    g_auto(GStrv) items = g_strsplit(text, ",", -1);
    CompareConfig parsed = *config;

    if (!items[0])
        return refuse(text, error);
    for (char **item = items; *item; item++) {
        if (!parse_item(*item, &parsed))
            return refuse(text, error);
    }
    *config = parsed;
    return TRUE;
}

gboolean
options_set_timeout_ms(gint64 timeout_ms, CompareConfig *config, GError **error)
{
    if (timeout_ms < COMPARE_TIMEOUT_MS_MIN || timeout_ms > COMPARE_TIMEOUT_MS_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "timeout of %" G_GINT64_FORMAT " ms: allowed are %d to %d", timeout_ms,
                    COMPARE_TIMEOUT_MS_MIN, COMPARE_TIMEOUT_MS_MAX);
        return FALSE;
    }
    config->timeout_ns = timeout_ms * NS_PER_MS;
    return TRUE;
}

gboolean
options_random_key(CompareConfig *config, GError **error)
{
    if (getrandom(config->hash_key, sizeof(config->hash_key), 0) ==
        (ssize_t)sizeof(config->hash_key))
        return TRUE;
    g_set_error(error, G_IO_ERROR, (int)g_io_error_from_errno(errno), "random numbers: %s",
                g_strerror(errno));
    return FALSE;
}
