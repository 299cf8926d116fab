/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* addresses.h - which IP addresses the guest uses, learned from the frames it sends */
#pragma once

#include "bytes.h"
#include "proxy.h"

/* What one frame shows about its sender. */
typedef struct AddressSighting {
    bool has_address;
    bool ipv6;
    /* From ARP or ND: the guest claims it. Else from a packet's source, which a guest that forwards
     * sets to other hosts' addresses too. */
    bool claimed;
    bool router; /* an IPv6 router: router advertisement, or an advertisement with the R flag */
    uint8_t bytes[16];
} AddressSighting;

/** Parses an Ethernet frame (no virtio-net header) sent by the guest with MAC @mac. Untrusted.
 *
 * False: it shows nothing (short, malformed, VLAN-tagged, foreign source MAC, no usable address).
 * Sources: RFC 826, RFC 5227 (a probe claims nothing), RFC 4861 (hop limit 255, 7.1.1, 7.1.2). */
bool address_parse(View frame, const uint8_t mac[static 6], AddressSighting *ret_sighting);

typedef struct AddressEntry {
    ProxyAddress address;
    bool claimed;
    uint64_t seen; /* the table's clock: the entry least recently seen gives way */
} AddressEntry;

/* All zero is an empty table. Pure; the owner locks. */
typedef struct AddressTable {
    AddressEntry entries[PROXY_MAX_ADDRESSES];
    unsigned n;
    uint64_t clock;
    bool router[PROXY_MAX_NICS];
} AddressTable;

/** Enters a sighting. As soon as a claimed address of a NIC and family is known, those only seen as
 * a source are forgotten and no longer entered. */
void address_table_learn(AddressTable *table, unsigned nic, const AddressSighting *sighting);

/** Enters an address from elsewhere as a claimed one. */
void address_table_add(AddressTable *table, const ProxyAddress *address);
