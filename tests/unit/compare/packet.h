/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* packet.h - builds frames for the tests of the comparison */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PACKET_MAX = 70 * 1024 };

/* Zeroes are good defaults: IPv4 10.0.0.1:80 > 10.0.0.2:4000, no VLAN, no vnet header. */
typedef struct Packet {
    bool ipv6;
    uint8_t vnet_hdr_len;
    bool csum_partial;
    uint8_t n_vlans;
    uint16_t vlans[2];
    uint8_t n_dest_options; /* IPv6 extension headers of 8 bytes */
    uint32_t src, dst;      /* last 32 bits of the address; 0: the default */
    uint8_t protocol;       /* 6, 17, 1 (58 for IPv6), or any */
    uint16_t sport, dport;
    uint8_t tcp_flags;
    uint32_t seq, ack;
    uint8_t n_tcp_options; /* words */
    bool has_scale;        /* the window scale option, one word more */
    uint8_t scale;
    bool has_window; /* 5000 otherwise */
    uint16_t window;
    uint16_t ip_id;
    uint8_t ttl;
    const void *payload;
    size_t len;
    /* One fragment of the datagram; whole if frag_len is 0. */
    size_t frag_off, frag_len;
} Packet;

/** Writes the frame to @buf (PACKET_MAX bytes), with right checksums. Return: its length. */
size_t packet_build(const Packet *packet, uint8_t *buf);

/** True if the TCP checksum of the IPv4 or IPv6 frame built by packet_build() is right. */
bool packet_tcp_checksum_ok(const uint8_t *frame, size_t len, size_t vnet_hdr_len);
