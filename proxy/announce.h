/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* announce.h - frames that tell switches and neighbours where the guest is now */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { ANNOUNCE_FRAME_MAX = 86 };

/* Each builds one Ethernet frame and returns its length. All are broadcast or to all nodes. */

/** Reverse ARP request (RFC 903), as QEMU's own announcement: moves the switches' MAC tables. */
size_t announce_rarp(const uint8_t mac[static 6], uint8_t ret_frame[static ANNOUNCE_FRAME_MAX]);

/** Gratuitous ARP request (RFC 5227, 3: an announcement). */
size_t announce_arp(const uint8_t mac[static 6], const uint8_t ipv4[static 4],
                    uint8_t ret_frame[static ANNOUNCE_FRAME_MAX]);

/** Unsolicited neighbour advertisement with Override (RFC 4861, 7.2.6). The R flag is clear: it is
 * not for the addresses of a router, whose neighbours would drop their default route. */
size_t announce_na(const uint8_t mac[static 6], const uint8_t ipv6[static 16],
                   uint8_t ret_frame[static ANNOUNCE_FRAME_MAX]);
