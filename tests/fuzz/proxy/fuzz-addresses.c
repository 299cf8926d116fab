/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-addresses.c - frames of a hostile guest: be16 length, frame, be16 length, frame, ... */
#include "addresses.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    AddressTable table = {0};
    View v = view_of(data, size);
    uint16_t len;
    const uint8_t *frame;
    AddressSighting sighting;

    while (view_get_be16(&v, &len)) {
        size_t taken = MIN(len, v.len);

        (void)view_take(&v, taken, &frame);
        if (address_parse(view_of(frame, taken), mac, &sighting))
            address_table_learn(&table, len % PROXY_MAX_NICS, &sighting);
        g_assert(table.n <= PROXY_MAX_ADDRESSES);
    }
    return 0;
}
