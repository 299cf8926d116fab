/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* announce.c - frames that tell switches and neighbours where the guest is now */
#include "announce.h"

#include <assert.h>
#include <string.h>

#include "bytes.h"

enum {
    ETHERNET_MIN = 60, /* without the frame check sequence */
    ETHERNET_HEADER = 14,
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_RARP = 0x8035,
    TYPE_IPV6 = 0x86dd,
    ARP_REQUEST = 1,
    RARP_REQUEST_REVERSE = 3,
    IPV6_HEADER = 40,
    ICMPV6 = 58,
    NA_BYTES = 32, /* header, target, target link-layer address option */
    NA_TYPE = 136,
    NA_OVERRIDE = 0x20,
    OPTION_TARGET_LINK_LAYER = 2,
};

static_assert(ETHERNET_HEADER + IPV6_HEADER + NA_BYTES == ANNOUNCE_FRAME_MAX, "the longest frame");

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static size_t
arp_like(uint16_t type, uint16_t operation, const uint8_t *mac, const uint8_t *ipv4,
         const uint8_t *target_mac, uint8_t *f)
{
    memset(f, 0, ETHERNET_MIN);
    memcpy(f, broadcast, 6);
    memcpy(f + 6, mac, 6);
    be16_store(f + 12, type);
    be16_store(f + 14, 1); /* Ethernet */
    be16_store(f + 16, TYPE_IPV4);
    f[18] = 6;
    f[19] = 4;
    be16_store(f + 20, operation);
    memcpy(f + 22, mac, 6);
    memcpy(f + 28, ipv4, 4);
    memcpy(f + 32, target_mac, 6);
    memcpy(f + 38, ipv4, 4);
    return ETHERNET_MIN;
}

size_t
announce_rarp(const uint8_t mac[static 6], uint8_t ret_frame[static ANNOUNCE_FRAME_MAX])
{
    static const uint8_t none[4] = {0};

    return arp_like(TYPE_RARP, RARP_REQUEST_REVERSE, mac, none, mac, ret_frame);
}

size_t
announce_arp(const uint8_t mac[static 6], const uint8_t ipv4[static 4],
             uint8_t ret_frame[static ANNOUNCE_FRAME_MAX])
{
    static const uint8_t none[6] = {0};

    return arp_like(TYPE_ARP, ARP_REQUEST, mac, ipv4, none, ret_frame);
}

static uint32_t
sum16(uint32_t sum, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i + 1 < len; i += 2)
        sum += be16_load(p + i);
    return sum;
}

size_t
announce_na(const uint8_t mac[static 6], const uint8_t ipv6[static 16],
            uint8_t ret_frame[static ANNOUNCE_FRAME_MAX])
{
    static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
    static const uint8_t all_nodes[16] = {0xff, 0x02, [15] = 1};
    uint8_t *ip = ret_frame + ETHERNET_HEADER, *na = ip + IPV6_HEADER;

    memset(ret_frame, 0, ANNOUNCE_FRAME_MAX);
    memcpy(ret_frame, all_nodes_mac, 6);
    memcpy(ret_frame + 6, mac, 6);
    be16_store(ret_frame + 12, TYPE_IPV6);

    ip[0] = 0x60;
    be16_store(ip + 4, NA_BYTES);
    ip[6] = ICMPV6;
    ip[7] = 255; /* receivers refuse anything else: it proves that no router passed it on */
    memcpy(ip + 8, ipv6, 16);
    memcpy(ip + 24, all_nodes, 16);

    na[0] = NA_TYPE;
    na[4] = NA_OVERRIDE;
    memcpy(na + 8, ipv6, 16);
    na[24] = OPTION_TARGET_LINK_LAYER;
    na[25] = 1; /* in units of 8 bytes */
    memcpy(na + 26, mac, 6);

    /* Pseudo-header (RFC 8200, 8.1): both addresses, length, next header. */
    uint32_t sum = sum16(NA_BYTES + ICMPV6, ip + 8, 32);

    sum = sum16(sum, na, NA_BYTES);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    be16_store(na + 2, (uint16_t)~sum);
    return ANNOUNCE_FRAME_MAX;
}
