/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-quote.c - the TCP segment that an ICMP error quotes */
#include "rewriter-quote.h"

#include "bytes.h"

enum {
    ICMP_HEADER_BYTES = 8,
    ICMP_UNREACHABLE = 3,
    ICMP_SOURCE_QUENCH = 4,
    ICMP_TIME_EXCEEDED = 11,
    ICMP_PARAMETER_PROBLEM = 12,
    ICMPV6_UNREACHABLE = 1,
    ICMPV6_PARAMETER_PROBLEM = 4, /* between: too big, time exceeded */
    PROTO_TCP = 6,
    PROTO_HOP_BY_HOP = 0,
    PROTO_ROUTING = 43,
    PROTO_DEST_OPTIONS = 60,
};

static bool
is_error(bool ipv6, uint8_t type)
{
    if (ipv6)
        return type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER_PROBLEM;
    return type == ICMP_UNREACHABLE || type == ICMP_SOURCE_QUENCH || type == ICMP_TIME_EXCEEDED ||
           type == ICMP_PARAMETER_PROBLEM;
}

/* Leaves @v at the quoted TCP header. The quote may end 8 bytes into it. */
static bool
skip_ipv4(View *v, FlowKey *key)
{
    const uint8_t *h;

    if (!view_take(v, 20, &h) || h[0] >> 4 != 4 || (h[0] & 0xf) < 5 || h[9] != PROTO_TCP ||
        (be16_load(h + 6) & 0x1fff))
        return false;
    key->w[0] = be64_load(h + 12);
    return view_skip(v, ((size_t)(h[0] & 0xf) - 5) * 4);
}

static bool
skip_ipv6(View *v, FlowKey *key)
{
    const uint8_t *h;

    if (!view_take(v, 40, &h) || h[0] >> 4 != 6)
        return false;
    uint8_t protocol = h[6];

    for (int i = 0; i < 4; i++)
        key->w[i] = be64_load(h + 8 + 8 * i);
    for (int i = 0; protocol == PROTO_HOP_BY_HOP || protocol == PROTO_ROUTING ||
                    protocol == PROTO_DEST_OPTIONS;
         i++) {
        if (i == FRAME_MAX_EXT_HEADERS || !view_take(v, 8, &h) || !view_skip(v, (size_t)h[1] * 8))
            return false;
        protocol = h[0];
    }
    return protocol == PROTO_TCP;
}

bool
rewriter_quote_parse(const uint8_t *frame, const Frame *f, FlowKey *ret_key, size_t *ret_seq_at)
{
    View v = view_of(frame + f->payload_off, f->payload_len);
    FlowKey key = {.w = {0}};
    const uint8_t *icmp, *tcp;

    if (!view_take(&v, ICMP_HEADER_BYTES, &icmp) || !is_error(f->ipv6, icmp[0]))
        return false;
    if (!(f->ipv6 ? skip_ipv6(&v, &key) : skip_ipv4(&v, &key)) || !view_take(&v, 8, &tcp))
        return false;
    key.w[4] = ((uint64_t)be32_load(tcp) << 32) | ((uint64_t)PROTO_TCP << 16) |
               ((uint64_t)FRAME_TCP << 8) | f->ipv6; /* as in frame.h */
    key.w[5] = f->key.w[5];
    *ret_key = key;
    *ret_seq_at = (size_t)(tcp + 4 - frame);
    return true;
}
