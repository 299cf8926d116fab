/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* frame.c - bounded parsing of Ethernet, VLAN, IPv4, IPv6, TCP, UDP and ICMP */
#include "frame.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"

enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_ARP = 0x0806,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_QINQ = 0x88a8,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_MIN = 0x0600, /* below: an 802.3 length */
    ETHER_BYTES = 14,
    IPV4_BYTES = 20, /* without options, as TCP's */
    TCP_BYTES = 20,
    MAX_VLAN_TAGS = 2,
    PROTO_HOP_BY_HOP = 0,
    PROTO_ICMP = 1,
    PROTO_TCP = 6,
    PROTO_UDP = 17,
    PROTO_ROUTING = 43,
    PROTO_FRAGMENT = 44,
    PROTO_ICMPV6 = 58,
    PROTO_DEST_OPTIONS = 60,
    VNET_F_NEEDS_CSUM = 1, /* virtio 1.2, 5.1.6 */
    ICMP_ECHO_REPLY = 0,
    ICMP_ECHO = 8,
    ICMPV6_ECHO = 128,
    ICMPV6_ECHO_REPLY = 129,
};

static const char *const class_names[] = {
    [FRAME_TCP] = "tcp",           [FRAME_UDP] = "udp",
    [FRAME_ICMP] = "icmp",         [FRAME_FRAGMENT] = "fragment",
    [FRAME_IP_OTHER] = "ip-other", [FRAME_ARP] = "arp",
    [FRAME_L2_OTHER] = "l2-other", [FRAME_MALFORMED] = "malformed",
};
static_assert(sizeof(class_names) / sizeof(class_names[0]) == FRAME_N_CLASSES,
              "a name for each class");

const char *
frame_class_name(FrameClass cls)
{
    return class_names[cls];
}

/* Parser: the frame being filled and the start of the buffer, to turn views into offsets. */
typedef struct Parser {
    const uint8_t *start;
    Frame *f;
    uint32_t vlans;
    const uint8_t *macs; /* 12 bytes, or NULL */
} Parser;

static void
key_finish(Parser *p, FrameClass cls, uint8_t protocol, uint16_t sport, uint16_t dport)
{
    p->f->cls = cls;
    p->f->protocol = protocol;
    p->f->key.w[4] = ((uint64_t)sport << 48) | ((uint64_t)dport << 32) |
                     ((uint64_t)protocol << 16) | ((uint64_t)cls << 8) | (p->f->ipv6 ? 1 : 0);
    p->f->key.w[5] = p->vlans;
}

static void
set_payload(Parser *p, View v)
{
    p->f->payload_off = (uint32_t)(v.data - p->start);
    p->f->payload_len = (uint32_t)v.len;
}

static void
key_from_macs(Parser *p, uint16_t ethertype)
{
    memset(&p->f->key, 0, sizeof(p->f->key));
    if (!p->macs)
        return;
    p->f->key.w[0] =
        ((uint64_t)be32_load(p->macs) << 32) | ((uint64_t)be16_load(p->macs + 4) << 16) | ethertype;
    p->f->key.w[1] =
        ((uint64_t)be32_load(p->macs + 6) << 32) | ((uint64_t)be16_load(p->macs + 10) << 16);
}

static void
malformed(Parser *p, View rest, const char *why)
{
    p->f->malformed_why = why;
    p->f->ipv6 = false;
    key_from_macs(p, 0);
    set_payload(p, rest);
    key_finish(p, FRAME_MALFORMED, 0, 0, 0);
}

static void
parse_tcp(Parser *p, View v)
{
    const View whole = v;
    const uint8_t *h;

    if (!view_take(&v, 20, &h)) {
        malformed(p, whole, "TCP header cut short");
        return;
    }
    size_t header_len = (size_t)(h[12] >> 4) * 4;

    if (header_len < 20 || header_len > whole.len) {
        malformed(p, whole, "TCP data offset out of range");
        return;
    }
    p->f->seq = be32_load(h + 4);
    p->f->ack = be32_load(h + 8);
    p->f->tcp_flags = h[13];
    (void)view_skip(&v, header_len - 20);
    set_payload(p, v);
    key_finish(p, FRAME_TCP, PROTO_TCP, be16_load(h), be16_load(h + 2));
}

static void
parse_udp(Parser *p, View v)
{
    const View whole = v;
    const uint8_t *h;

    if (!view_take(&v, 8, &h)) {
        malformed(p, whole, "UDP header cut short");
        return;
    }
    size_t udp_len = be16_load(h + 4);

    /* 0 stands for "longer than 65535" in a jumbogram and in segmentation offload. */
    if (udp_len && (udp_len < 8 || udp_len > whole.len)) {
        malformed(p, whole, "UDP length out of range");
        return;
    }
    if (udp_len)
        v.len = udp_len - 8;
    set_payload(p, v);
    key_finish(p, FRAME_UDP, PROTO_UDP, be16_load(h), be16_load(h + 2));
}

static bool
icmp_is_echo(uint8_t protocol, uint8_t type)
{
    if (protocol == PROTO_ICMP)
        return type == ICMP_ECHO || type == ICMP_ECHO_REPLY;
    return type == ICMPV6_ECHO || type == ICMPV6_ECHO_REPLY;
}

static void
parse_icmp(Parser *p, View v, uint8_t protocol)
{
    const View whole = v;
    const uint8_t *h;
    uint16_t identifier = 0;

    if (!view_take(&v, 4, &h)) {
        malformed(p, whole, "ICMP header cut short");
        return;
    }
    if (icmp_is_echo(protocol, h[0]) && !view_get_be16(&v, &identifier)) {
        malformed(p, whole, "ICMP echo cut short");
        return;
    }
    set_payload(p, whole);
    key_finish(p, FRAME_ICMP, protocol, be16_load(h), identifier);
}

static void
parse_l4(Parser *p, View v, uint8_t protocol)
{
    p->f->l4_off = (uint32_t)(v.data - p->start);
    switch (protocol) {
    case PROTO_TCP:
        parse_tcp(p, v);
        break;
    case PROTO_UDP:
        parse_udp(p, v);
        break;
    case PROTO_ICMP:
    case PROTO_ICMPV6:
        parse_icmp(p, v, protocol);
        break;
    default:
        set_payload(p, v);
        key_finish(p, FRAME_IP_OTHER, protocol, 0, 0);
        break;
    }
}

static void
fragment(Parser *p, View v, uint8_t protocol, uint32_t id, uint16_t off_bytes, bool more)
{
    p->f->frag_id = id;
    p->f->frag_off_bytes = off_bytes;
    p->f->frag_more = more;
    set_payload(p, v);
    key_finish(p, FRAME_FRAGMENT, protocol, 0, 0);
}

static void
parse_ipv4(Parser *p, View v)
{
    const View whole = v;
    const uint8_t *h;

    if (!view_take(&v, 20, &h) || h[0] >> 4 != 4) {
        malformed(p, whole, "IPv4 header cut short or of a wrong version");
        return;
    }
    size_t header_len = (size_t)(h[0] & 0xf) * 4;
    size_t total_len = be16_load(h + 2);

    if (!total_len)
        total_len = whole.len; /* segmentation offload may leave it to the hardware */
    if (header_len < 20 || header_len > total_len || total_len > whole.len) {
        malformed(p, whole, "IPv4 lengths out of range");
        return;
    }
    (void)view_skip(&v, header_len - 20);
    v.len = total_len - header_len; /* cuts Ethernet padding */
    p->f->key.w[0] = be64_load(h + 12);

    uint16_t flags_off = be16_load(h + 6);

    if (flags_off & 0x3fff)
        fragment(p, v, h[9], be16_load(h + 4), (uint16_t)((flags_off & 0x1fff) * 8),
                 flags_off & 0x2000);
    else
        parse_l4(p, v, h[9]);
}

static bool
is_ext_header(uint8_t protocol)
{
    return protocol == PROTO_HOP_BY_HOP || protocol == PROTO_ROUTING ||
           protocol == PROTO_DEST_OPTIONS;
}

/* Walks RFC 8200 extension headers up to the upper layer or a fragment header. */
static void
parse_ipv6_payload(Parser *p, View v, uint8_t protocol)
{
    const View whole = v;
    const uint8_t *h;

    for (int i = 0; is_ext_header(protocol); i++) {
        if (i == FRAME_MAX_EXT_HEADERS || !view_take(&v, 8, &h) ||
            !view_skip(&v, (size_t)h[1] * 8)) {
            malformed(p, whole, "IPv6 extension headers cut short or too many");
            return;
        }
        protocol = h[0];
    }
    if (protocol != PROTO_FRAGMENT) {
        parse_l4(p, v, protocol);
        return;
    }
    if (!view_take(&v, 8, &h)) {
        malformed(p, whole, "IPv6 fragment header cut short");
        return;
    }
    uint16_t off_flags = be16_load(h + 2);

    if (off_flags & 0xfff9)
        fragment(p, v, h[0], be32_load(h + 4), off_flags & 0xfff8, off_flags & 1);
    else if (h[0] == PROTO_FRAGMENT || is_ext_header(h[0]))
        malformed(p, whole, "IPv6 headers after an atomic fragment"); /* no recursion on input */
    else
        parse_l4(p, v, h[0]); /* atomic fragment, RFC 6946 */
}

static void
parse_ipv6(Parser *p, View v)
{
    const View whole = v;
    const uint8_t *h;

    if (!view_take(&v, 40, &h) || h[0] >> 4 != 6) {
        malformed(p, whole, "IPv6 header cut short or of a wrong version");
        return;
    }
    size_t payload_len = be16_load(h + 4);

    if (payload_len > v.len) {
        malformed(p, whole, "IPv6 payload length out of range");
        return;
    }
    if (payload_len) /* 0: jumbogram or segmentation offload; take the frame's */
        v.len = payload_len;
    p->f->ipv6 = true;
    for (int i = 0; i < 4; i++)
        p->f->key.w[i] = be64_load(h + 8 + 8 * i);
    parse_ipv6_payload(p, v, h[6]);
}

static void
parse_other(Parser *p, View v, uint16_t ethertype)
{
    key_from_macs(p, ethertype);
    set_payload(p, v);
    key_finish(p, ethertype == ETHERTYPE_ARP ? FRAME_ARP : FRAME_L2_OTHER, 0, 0, 0);
}

static void
parse_ethernet(Parser *p, View v)
{
    const View whole = v;
    uint16_t ethertype;

    if (!view_take(&v, 12, &p->macs) || !view_get_be16(&v, &ethertype)) {
        p->macs = NULL;
        malformed(p, whole, "Ethernet header cut short");
        return;
    }
    for (int tags = 0; ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ; tags++) {
        uint16_t tci;

        if (tags == MAX_VLAN_TAGS || !view_get_be16(&v, &tci) || !view_get_be16(&v, &ethertype)) {
            malformed(p, whole, "VLAN tags cut short or more than two");
            return;
        }
        /* + 1 << 12: VLAN 0 (priority tag) is not the same as no tag. */
        p->vlans = (p->vlans << 16) | 0x1000 | (tci & 0xfff);
    }
    if (ethertype == ETHERTYPE_IPV4)
        parse_ipv4(p, v);
    else if (ethertype == ETHERTYPE_IPV6)
        parse_ipv6(p, v);
    else
        parse_other(p, v, ethertype);
}

/* Field by field: compilers clear a struct of this size with a string instruction, which costs
 * more than the rest of the parser. */
static void
frame_clear(Frame *f)
{
    for (int i = 0; i < FRAME_KEY_WORDS; i++)
        f->key.w[i] = 0;
    f->payload_off = f->payload_len = f->l4_off = 0;
    f->seq = f->ack = f->frag_id = 0;
    f->frag_off_bytes = 0;
    f->frag_more = false;
    f->protocol = f->tcp_flags = 0;
    f->csum_partial = f->ipv6 = false;
    f->malformed_why = NULL;
}

/* Most frames by far are TCP over IPv4 without tags or IP options. Their headers are taken at once,
 * in a third of the instructions. False: not such a frame, or something is wrong with it, and the
 * general way finds out what; where both do, they say the same (test-frame.c, fuzz-frame.c).
 * *@ret_frame then is not written. */
static bool
parse_plain_tcp(const uint8_t *bytes, size_t len, size_t vnet_hdr_len, Frame *ret_frame)
{
    const uint32_t l4_off = (uint32_t)vnet_hdr_len + ETHER_BYTES + IPV4_BYTES;
    const uint8_t *vnet = NULL, *ether = NULL;
    View v = view_of(bytes, len);

    if ((vnet_hdr_len && !view_take(&v, vnet_hdr_len, &vnet)) ||
        !view_take(&v, ETHER_BYTES + IPV4_BYTES + TCP_BYTES, &ether))
        return false;

    const uint8_t *ip = ether + ETHER_BYTES, *tcp = ip + IPV4_BYTES;
    uint32_t ip_len = be16_load(ip + 2);
    uint32_t tcp_header = (uint32_t)(tcp[12] >> 4) * 4;

    /* The ethertype, version 4 and five words of header; no fragment. */
    if (be32_load(ether + 12) >> 8 != 0x080045 || ip[9] != PROTO_TCP ||
        (be16_load(ip + 6) & 0x3fff) || tcp_header < TCP_BYTES ||
        ip_len < IPV4_BYTES + tcp_header || ip_len > v.len + IPV4_BYTES + TCP_BYTES)
        return false;
    frame_clear(ret_frame);
    ret_frame->key.w[0] = be64_load(ip + 12);
    ret_frame->key.w[4] =
        ((uint64_t)be32_load(tcp) << 32) | (PROTO_TCP << 16) | ((uint64_t)FRAME_TCP << 8);
    ret_frame->cls = FRAME_TCP;
    ret_frame->payload_off = l4_off + tcp_header;
    ret_frame->payload_len = ip_len - IPV4_BYTES - tcp_header;
    ret_frame->l4_off = l4_off;
    ret_frame->seq = be32_load(tcp + 4);
    ret_frame->ack = be32_load(tcp + 8);
    ret_frame->protocol = PROTO_TCP;
    ret_frame->tcp_flags = tcp[13];
    ret_frame->csum_partial = vnet && (vnet[0] & VNET_F_NEEDS_CSUM);
    return true;
}

void
frame_parse(const uint8_t *bytes, size_t len, size_t vnet_hdr_len, Frame *ret_frame)
{
    Parser p = {.start = bytes, .f = ret_frame};
    View v = view_of(bytes, len);
    const uint8_t *vnet;

    if (parse_plain_tcp(bytes, len, vnet_hdr_len, ret_frame))
        return;
    frame_clear(ret_frame);
    if (vnet_hdr_len) {
        if (!view_take(&v, vnet_hdr_len, &vnet)) {
            malformed(&p, v, "virtio-net header cut short");
            return;
        }
        ret_frame->csum_partial = vnet[0] & VNET_F_NEEDS_CSUM;
    }
    parse_ethernet(&p, v);
}

void
frame_parse_reassembled(const uint8_t *payload, size_t len, const Frame *first, Frame *ret_frame)
{
    Parser p = {.start = payload, .f = ret_frame, .vlans = (uint32_t)first->key.w[5]};
    View v = view_of(payload, len);

    *ret_frame = (Frame){.key = first->key, .ipv6 = first->ipv6};
    if (!first->ipv6)
        parse_l4(&p, v, first->protocol);
    else if (first->protocol == PROTO_FRAGMENT)
        malformed(&p, v, "IPv6 fragment header within a fragment");
    else
        parse_ipv6_payload(&p, v, first->protocol);
    /* A fragment header behind extension headers of the reassembled part: not a second round. */
    if (ret_frame->cls == FRAME_FRAGMENT)
        malformed(&p, v, "IPv6 fragment header within a fragment");
}

static void
format_ip(const FlowKey *key, char *src, char *dst, size_t size)
{
    uint8_t bytes[32];

    if (frame_key_is_ipv6(key)) {
        for (int i = 0; i < 4; i++)
            be64_store(bytes + 8 * i, key->w[i]);
        inet_ntop(AF_INET6, bytes, src, (socklen_t)size);
        inet_ntop(AF_INET6, bytes + 16, dst, (socklen_t)size);
    } else {
        be64_store(bytes, key->w[0]);
        inet_ntop(AF_INET, bytes, src, (socklen_t)size);
        inet_ntop(AF_INET, bytes + 4, dst, (socklen_t)size);
    }
}

void
frame_key_format(const FlowKey *key, char *buf, size_t size)
{
    FrameClass cls = frame_key_class(key);
    unsigned sport = (unsigned)(key->w[4] >> 48);
    unsigned dport = (unsigned)(key->w[4] >> 32) & 0xffff;
    const char *open = frame_key_is_ipv6(key) ? "[" : "";
    const char *close = frame_key_is_ipv6(key) ? "]" : "";
    char src[INET6_ADDRSTRLEN] = "";
    char dst[INET6_ADDRSTRLEN] = "";

    if (cls == FRAME_ARP || cls == FRAME_L2_OTHER || cls == FRAME_MALFORMED) {
        (void)snprintf(buf, size, "%012llx > %012llx type 0x%04x %s",
                       (unsigned long long)(key->w[1] >> 16), (unsigned long long)(key->w[0] >> 16),
                       (unsigned)(key->w[0] & 0xffff), frame_class_name(cls));
        return;
    }
    format_ip(key, src, dst, sizeof(src));
    if (cls == FRAME_TCP || cls == FRAME_UDP)
        (void)snprintf(buf, size, "%s%s%s:%u > %s%s%s:%u %s", open, src, close, sport, open, dst,
                       close, dport, frame_class_name(cls));
    else if (cls == FRAME_ICMP)
        (void)snprintf(buf, size, "%s > %s icmp type %u id %u", src, dst, sport >> 8, dport);
    else
        (void)snprintf(buf, size, "%s > %s %s protocol %u", src, dst, frame_class_name(cls),
                       (unsigned)frame_key_protocol(key));
}
