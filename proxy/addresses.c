/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* addresses.c - which IP addresses the guest uses, learned from the frames it sends */
#include "addresses.h"

enum {
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_IPV6 = 0x86dd,

    ARP_ETHERNET = 1,
    ARP_REQUEST = 1,
    ARP_REPLY = 2,

    NEXT_HEADER_ICMPV6 = 58,
    ND_HOP_LIMIT = 255,
    ND_ROUTER_ADVERTISEMENT = 134,
    ND_NEIGHBOUR_SOLICITATION = 135,
    ND_NEIGHBOUR_ADVERTISEMENT = 136,
    ND_ROUTER_FLAG = 0x80,
};

static bool
usable_ipv4(const uint8_t ip[static 4])
{
    /* Not "this network", loopback, multicast, reserved or broadcast. */
    return ip[0] != 0 && ip[0] != 127 && ip[0] < 224;
}

static bool
usable_ipv6(const uint8_t ip[static 16])
{
    static const uint8_t reserved[15] = {0};

    /* Not multicast, :: or ::1. */
    return ip[0] != 0xff && !(memcmp(ip, reserved, sizeof(reserved)) == 0 && ip[15] <= 1);
}

static bool
found(AddressSighting *sighting, bool ipv6, const uint8_t *ip, bool claimed)
{
    if (!(ipv6 ? usable_ipv6(ip) : usable_ipv4(ip)))
        return false;
    sighting->has_address = true;
    sighting->ipv6 = ipv6;
    sighting->claimed = claimed;
    memcpy(sighting->bytes, ip, ipv6 ? 16 : 4);
    return true;
}

static bool
parse_arp(View v, const uint8_t mac[static 6], AddressSighting *sighting)
{
    uint16_t hardware, protocol, operation;
    uint8_t hardware_len, protocol_len;
    const uint8_t *sender_mac, *sender_ip;

    if (!view_get_be16(&v, &hardware) || hardware != ARP_ETHERNET ||
        !view_get_be16(&v, &protocol) || protocol != TYPE_IPV4 || !view_get_u8(&v, &hardware_len) ||
        hardware_len != 6 || !view_get_u8(&v, &protocol_len) || protocol_len != 4 ||
        !view_get_be16(&v, &operation) || (operation != ARP_REQUEST && operation != ARP_REPLY) ||
        !view_take(&v, 6, &sender_mac) || !view_take(&v, 4, &sender_ip) ||
        memcmp(sender_mac, mac, 6) != 0)
        return false;
    return found(sighting, false, sender_ip, true);
}

static bool
parse_ipv4(View v, AddressSighting *sighting)
{
    const uint8_t *header;

    if (!view_take(&v, 20, &header) || header[0] >> 4 != 4 || (header[0] & 15) < 5)
        return false;
    return found(sighting, false, header + 12, false);
}

/* @v: behind the IPv6 header. */
static bool
parse_nd(View v, const uint8_t *source, AddressSighting *sighting)
{
    const uint8_t *head, *target;

    /* Type, code, checksum; then the solicitation's reserved word, the advertisement's flags. */
    if (!view_take(&v, 8, &head) || head[1] != 0)
        return false;

    switch (head[0]) {
    case ND_ROUTER_ADVERTISEMENT:
        sighting->router = true;
        (void)found(sighting, true, source, true);
        return true;
    case ND_NEIGHBOUR_SOLICITATION:
        /* From "::" it asks whether an address is free: no claim yet. */
        return found(sighting, true, source, true);
    case ND_NEIGHBOUR_ADVERTISEMENT:
        if (!view_take(&v, 16, &target))
            return false;
        sighting->router = (head[4] & ND_ROUTER_FLAG) != 0;
        return found(sighting, true, target, true);
    default:
        return false;
    }
}

static bool
parse_ipv6(View v, AddressSighting *sighting)
{
    const uint8_t *header;

    if (!view_take(&v, 40, &header) || header[0] >> 4 != 6)
        return false;

    const uint8_t *source = header + 8;

    if (header[6] == NEXT_HEADER_ICMPV6 && header[7] == ND_HOP_LIMIT &&
        parse_nd(v, source, sighting))
        return true;
    *sighting = (AddressSighting){0};
    return found(sighting, true, source, false);
}

bool
address_parse(View frame, const uint8_t mac[static 6], AddressSighting *ret_sighting)
{
    AddressSighting sighting = {0};
    const uint8_t *source_mac;
    uint16_t type;
    bool ok;

    if (!view_skip(&frame, 6) || !view_take(&frame, 6, &source_mac) ||
        memcmp(source_mac, mac, 6) != 0 || !view_get_be16(&frame, &type))
        return false;

    /* Addresses inside a VLAN must not be announced outside of it: tagged frames show nothing. */
    if (type == TYPE_ARP)
        ok = parse_arp(frame, mac, &sighting);
    else if (type == TYPE_IPV4)
        ok = parse_ipv4(frame, &sighting);
    else if (type == TYPE_IPV6)
        ok = parse_ipv6(frame, &sighting);
    else
        return false;
    if (ok)
        *ret_sighting = sighting;
    return ok;
}

static AddressEntry *
find(AddressTable *table, const ProxyAddress *address)
{
    for (unsigned i = 0; i < table->n; i++) {
        const ProxyAddress *known = &table->entries[i].address;

        if (known->nic == address->nic && known->ipv6 == address->ipv6 &&
            memcmp(known->bytes, address->bytes, address->ipv6 ? 16 : 4) == 0)
            return &table->entries[i];
    }
    return NULL;
}

static bool
knows_claimed(const AddressTable *table, const ProxyAddress *like)
{
    for (unsigned i = 0; i < table->n; i++) {
        const AddressEntry *entry = &table->entries[i];

        if (entry->claimed && entry->address.nic == like->nic && entry->address.ipv6 == like->ipv6)
            return true;
    }
    return false;
}

static void
forget_unclaimed(AddressTable *table, const ProxyAddress *like)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < table->n; i++) {
        const AddressEntry entry = table->entries[i];

        if (entry.claimed || entry.address.nic != like->nic || entry.address.ipv6 != like->ipv6)
            table->entries[kept++] = entry;
    }
    table->n = kept;
}

static AddressEntry *
new_entry(AddressTable *table)
{
    if (table->n < PROXY_MAX_ADDRESSES)
        return &table->entries[table->n++];

    AddressEntry *oldest = &table->entries[0];

    for (unsigned i = 1; i < table->n; i++) {
        if (table->entries[i].seen < oldest->seen)
            oldest = &table->entries[i];
    }
    return oldest;
}

static void
enter(AddressTable *table, const ProxyAddress *address, bool claimed)
{
    if (!claimed && knows_claimed(table, address))
        return;
    if (claimed) {
        AddressEntry *known = find(table, address);

        if (known)
            known->claimed = true;
        forget_unclaimed(table, address);
    }

    AddressEntry *entry = find(table, address);

    if (!entry) {
        entry = new_entry(table);
        *entry = (AddressEntry){.address = *address, .claimed = claimed};
    }
    entry->seen = ++table->clock;
}

void
address_table_learn(AddressTable *table, unsigned nic, const AddressSighting *sighting)
{
    ProxyAddress address = {.nic = nic, .ipv6 = sighting->ipv6};

    g_assert(nic < PROXY_MAX_NICS);
    if (sighting->router)
        table->router[nic] = true;
    if (!sighting->has_address)
        return;
    memcpy(address.bytes, sighting->bytes, sighting->ipv6 ? 16 : 4);
    enter(table, &address, sighting->claimed);
}

void
address_table_add(AddressTable *table, const ProxyAddress *address)
{
    ProxyAddress copy = {.nic = address->nic, .ipv6 = address->ipv6};

    /* It comes from the peer: refuse, do not assert. */
    if (address->nic >= PROXY_MAX_NICS ||
        !(address->ipv6 ? usable_ipv6(address->bytes) : usable_ipv4(address->bytes)))
        return;
    memcpy(copy.bytes, address->bytes, address->ipv6 ? 16 : 4);
    enter(table, &copy, true);
}
