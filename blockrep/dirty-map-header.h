/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dirty-map-header.h - the first bytes of a map's file */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The header is one sector, so that a crash leaves the old or the new one; the bits begin on a page
 * of their own. */
enum { MAP_HEADER_BYTES = 512, MAP_BITS_OFFSET = 4096, MAP_BOOT_ID_BYTES = 40 };

typedef struct MapHeader {
    uint64_t size_bytes;             /* of the disk */
    bool clean;                      /* no bit is wanting, whatever the host's crash cost */
    bool distrusted;                 /* bits are set for want of knowledge */
    char boot_id[MAP_BOOT_ID_BYTES]; /* of the host's life in which it was armed; "" if it is clean
                                      * since it was made */
} MapHeader;

void map_header_format(const MapHeader *header, uint8_t ret_bytes[MAP_HEADER_BYTES]);
/** NULL, or what is wrong, static text. */
const char *map_header_parse(const uint8_t bytes[MAP_HEADER_BYTES], MapHeader *ret_header);
/** All zeros: making the file was cut short. */
bool map_header_is_blank(const uint8_t bytes[MAP_HEADER_BYTES]);
