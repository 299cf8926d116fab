/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-bytes.c - the bounded view refuses short data and leaves everything as it was */
#include "bytes.h"

#include "check-main.h"

START_TEST(unit_getters_read_big_endian_and_advance)
{
    static const uint8_t bytes[] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,
                                    0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f};
    View v = view_of(bytes, sizeof(bytes));
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;

    ck_assert(view_get_u8(&v, &u8) && u8 == 0x01);
    ck_assert(view_get_be16(&v, &u16) && u16 == 0x0203);
    ck_assert(view_get_be32(&v, &u32) && u32 == 0x04050607);
    ck_assert(view_get_be64(&v, &u64) && u64 == 0x08090a0b0c0d0e0f);
    ck_assert_uint_eq(v.len, 0);
}
END_TEST

START_TEST(err_short_data_changes_nothing)
{
    static const uint8_t bytes[] = {1, 2, 3};
    View v = view_of(bytes, sizeof(bytes));
    uint32_t u32 = 77;
    const uint8_t *p = NULL;

    ck_assert(!view_get_be32(&v, &u32));
    ck_assert(!view_take(&v, SIZE_MAX, &p));
    ck_assert_uint_eq(u32, 77);
    ck_assert_ptr_null(p);
    ck_assert_uint_eq(v.len, 3);
    ck_assert_ptr_eq(v.data, bytes);
}
END_TEST

START_TEST(unit_store_is_the_inverse_of_load)
{
    uint8_t bytes[8];

    be64_store(bytes, UINT64_C(0x0123456789abcdef));
    ck_assert_uint_eq(bytes[0], 0x01);
    ck_assert(be64_load(bytes) == UINT64_C(0x0123456789abcdef));
    be32_store(bytes, 0xdeadbeef);
    ck_assert_uint_eq(be32_load(bytes), 0xdeadbeef);
    be16_store(bytes, 0xbeef);
    ck_assert_uint_eq(be16_load(bytes), 0xbeef);
}
END_TEST

CHECK_MAIN("bytes", unit_getters_read_big_endian_and_advance, err_short_data_changes_nothing,
           unit_store_is_the_inverse_of_load)
