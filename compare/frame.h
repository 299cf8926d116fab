/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* frame.h - what the comparison has to know of one Ethernet frame */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FRAME_KEY_WORDS = 6,
    FRAME_MAX_EXT_HEADERS = 8,  /* IPv6: more than a stack ever sends; bounds the walk */
    FRAME_MAX_BYTES = 69 * 1024 /* 64 KiB of IP, Ethernet with two tags, vnet header */
};

typedef enum FrameClass {
    FRAME_TCP,
    FRAME_UDP,
    FRAME_ICMP, /* ICMP and ICMPv6 */
    FRAME_FRAGMENT,
    FRAME_IP_OTHER,
    FRAME_ARP,
    FRAME_L2_OTHER, /* unknown ethertypes, 802.3 length frames, RARP */
    FRAME_MALFORMED,
    FRAME_N_CLASSES
} FrameClass;

enum {
    FRAME_TCP_FIN = 0x01,
    FRAME_TCP_SYN = 0x02,
    FRAME_TCP_RST = 0x04,
    FRAME_TCP_ACK = 0x10,
    FRAME_TCP_URG = 0x20,
};

/*
 * FlowKey: what makes two frames belong to one flow, as whole words so that hashing and equality
 * need no byte loop. IPv4: w[0] = source, destination. IPv6: w[0..1] source, w[2..3] destination.
 * Other: w[0..1] = MAC addresses and ethertype. w[4] = ports, protocol, class, address family.
 * w[5] = the VLAN ids. ICMP has type and code in place of the source port and the echo identifier
 * in place of the destination port.
 */
typedef struct FlowKey {
    uint64_t w[FRAME_KEY_WORDS];
} FlowKey;

/*
 * Frame: result of frame_parse(). Offsets count from the first byte given to it.
 * The payload is what is compared: after the TCP or UDP header, the whole ICMP message, what
 * follows the IP headers for other protocols and fragments, what follows the ethertype otherwise.
 */
typedef struct Frame {
    FlowKey key;
    FrameClass cls;
    uint32_t payload_off;
    uint32_t payload_len;
    uint32_t l4_off;
    uint32_t seq; /* TCP, host order */
    uint32_t ack;
    uint32_t frag_id; /* FRAME_FRAGMENT only, as are the next three */
    uint16_t frag_off_bytes;
    bool frag_more;
    uint8_t protocol; /* of the upper layer, IP only */
    uint8_t tcp_flags;
    bool csum_partial; /* vnet header says NEEDS_CSUM: the sum covers the pseudo header only */
    bool ipv6;
    const char *malformed_why; /* static text; NULL unless FRAME_MALFORMED */
} Frame;

/** Parses @len bytes: @vnet_hdr_len bytes of virtio-net header (0: none), then Ethernet.
 *
 * Never fails: what cannot be parsed is FRAME_MALFORMED, with a reason. Any thread.
 */
void frame_parse(const uint8_t *bytes, size_t len, size_t vnet_hdr_len, Frame *ret_frame);

/** Parses the reassembled @payload of a datagram whose fragments were @fragment.
 *
 * Addresses and VLANs are taken from @fragment; offsets count from @payload.
 */
void frame_parse_reassembled(const uint8_t *payload, size_t len, const Frame *fragment,
                             Frame *ret_frame);

/** Name of a class as used in text and JSON: "tcp", "udp", … */
const char *frame_class_name(FrameClass cls);

/** Writes "10.0.0.1:80 > 10.0.0.2:4000 tcp" into @buf; always terminated, cut if too short. */
void frame_key_format(const FlowKey *key, char *buf, size_t size);

static inline FrameClass
frame_key_class(const FlowKey *key)
{
    return (FrameClass)((key->w[4] >> 8) & 0xff);
}

static inline bool
frame_key_is_ipv6(const FlowKey *key)
{
    return key->w[4] & 1;
}

static inline uint8_t
frame_key_protocol(const FlowKey *key)
{
    return (uint8_t)(key->w[4] >> 16);
}

/** Source and destination port of a TCP or UDP flow, host order. */
static inline void
frame_key_ports(const FlowKey *key, uint16_t ret_ports[static 2])
{
    ret_ports[0] = (uint16_t)(key->w[4] >> 48);
    ret_ports[1] = (uint16_t)(key->w[4] >> 32);
}
