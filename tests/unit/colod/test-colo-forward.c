/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-colo-forward.c - colo-forward.c against recorded and built streams, whole, split and broken
 */
#include "colo-stream.h"

#include "check-main.h"
#include "test-colo-build.h"
#include "test-colo-recording.h"

#include <gio/gio.h>

enum { TAIL_MAX_BYTES = 1024 * 1024 };

/* What a stream came to. */
typedef struct Tally {
    GString *events; /* one letter an event */
    guint64 pages[8], bytes[8], tails[8];
    guint n_checkpoints;
} Tally;

static const char letters[] = {
    [COLO_FORWARD_NONE] = '-',     [COLO_FORWARD_DEVICE_STATE] = 'D', [COLO_FORWARD_REQUEST] = 'q',
    [COLO_FORWARD_SEND] = 's',     [COLO_FORWARD_RAM_END] = 'r',      [COLO_FORWARD_SIZE] = 'z',
    [COLO_FORWARD_TAIL_END] = 't',
};

static void
tally_clear(Tally *tally)
{
    if (tally->events)
        g_string_free(tally->events, TRUE);
    *tally = (Tally){0};
}

/* Feeds one piece; every call must make progress. */
static gboolean
feed(ColoForward *parser, View in, Tally *tally, GError **error)
{
    for (;;) {
        ColoForwardEvent event;
        size_t before = in.len;

        if (!colo_forward_parse(parser, &in, &event, error))
            return FALSE;
        if (event == COLO_FORWARD_NONE) {
            /* Not ck_assert(): this is called for each byte, and that marks a point each time. */
            if (in.len > 0)
                ck_abort_msg("bytes left");
            return TRUE;
        }
        ck_assert(in.len < before || event == COLO_FORWARD_TAIL_END);
        g_string_append_c(tally->events, letters[event]);
        if (event == COLO_FORWARD_TAIL_END) {
            guint n = tally->n_checkpoints++ % G_N_ELEMENTS(tally->pages);

            tally->pages[n] = colo_forward_pages(parser);
            tally->bytes[n] = colo_forward_bytes(parser);
            tally->tails[n] = colo_forward_tail_bytes(parser);
        }
    }
}

/* Feeds [from, to) in pieces of 1 .. @step_max bytes. */
static gboolean
feed_split(ColoForward *parser, const GByteArray *in, size_t from, size_t to, guint step_max,
           GRand *rand, Tally *tally, GError **error)
{
    while (from < to) {
        size_t step = step_max == 1 ? 1 : (size_t)g_rand_int_range(rand, 1, (gint32)step_max + 1);
        size_t len = MIN(step, to - from);

        if (!feed(parser, view_of(in->data + from, len), tally, error))
            return FALSE;
        from += len;
    }
    return TRUE;
}

static void
run(const GByteArray *in, size_t ready_at, guint step_max, guint32 seed, Tally *tally)
{
    g_autoptr(ColoForward) parser = colo_forward_new(TAIL_MAX_BYTES);
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    g_autoptr(GError) error = NULL;

    *tally = (Tally){.events = g_string_new(NULL)};
    ck_assert(feed_split(parser, in, 0, ready_at, step_max, rand, tally, &error));
    ck_assert(colo_forward_set_ready(parser, &error));
    ck_assert_uint_eq(colo_forward_bytes(parser), 0);
    ck_assert(feed_split(parser, in, ready_at, in->len, step_max, rand, tally, &error));
}

/* --- Recordings ------------------------------------------------------------------------------- */

/* Where READY was said: before the first REQUEST, SEND and RAM section in a row. */
static size_t
find_ready(const GByteArray *in)
{
    static const guint8 cycle[] = {0, 0, 0, 1, 0, 0, 0, 3, 3, 0, 0, 0, 1};
    const guint8 *at = memmem(in->data, in->len, cycle, sizeof(cycle));

    ck_assert_ptr_nonnull(at);
    return (size_t)(at - in->data);
}

static void
check_recording(const GByteArray *in, guint step_max, guint32 seed, const char *events,
                guint64 pages)
{
    size_t ready_at = find_ready(in);
    Tally tally;

    run(in, ready_at, step_max, seed, &tally);
    ck_assert_str_eq(tally.events->str, events);

    guint64 consumed = ready_at;

    for (guint i = 0; i < tally.n_checkpoints; i++) {
        ck_assert_uint_eq(tally.pages[i], pages);
        ck_assert_uint_gt(tally.tails[i], 12000);
        consumed += 8 + tally.bytes[i];
    }
    ck_assert_uint_eq(consumed, in->len);
    tally_clear(&tally);
}

START_TEST(unit_recording)
{
    g_autoptr(GByteArray) in =
        build_from_recording(TEST_DATA_DIR "/test-colo-qemu-11.1-forward.gz");
    const char *events = "Dqsrztqsrztqsrztqsrzt";

    check_recording(in, 1 << 30, 1, events, 32);
    check_recording(in, 1, 1, events, 32);
    for (guint32 seed = 0; seed < 40; seed++)
        check_recording(in, 1u << (1 + seed % 17), seed, events, 32);
}
END_TEST

START_TEST(unit_recording_validate_uuid)
{
    g_autoptr(GByteArray) in =
        build_from_recording(TEST_DATA_DIR "/test-colo-qemu-11.1-uuid-forward.gz");

    check_recording(in, 1 << 30, 1, "Dqsrzt", 32);
    check_recording(in, 1, 1, "Dqsrzt", 32);
}
END_TEST

/* --- Built streams ---------------------------------------------------------------------------- */

START_TEST(unit_every_split_in_two)
{
    g_autoptr(GByteArray) in = g_byte_array_new();
    g_autoptr(GError) error = NULL;

    build_migration(in);

    size_t ready_at = in->len;

    build_checkpoint(in, 2, 50);
    build_checkpoint(in, 0, 1);
    for (size_t cut = ready_at; cut <= in->len; cut++) {
        g_autoptr(ColoForward) parser = colo_forward_new(TAIL_MAX_BYTES);
        Tally tally = {.events = g_string_new(NULL)};

        ck_assert(feed(parser, view_of(in->data, ready_at), &tally, &error));
        ck_assert(colo_forward_set_ready(parser, &error));
        ck_assert(feed(parser, view_of(in->data + ready_at, cut - ready_at), &tally, &error));
        ck_assert(feed(parser, view_of(in->data + cut, in->len - cut), &tally, &error));
        ck_assert_str_eq(tally.events->str, "Dqsrztqsrzt");
        ck_assert_uint_eq(tally.pages[0], 2);
        ck_assert_uint_eq(tally.pages[1], 0);
        ck_assert_uint_eq(tally.tails[0], 50);
        ck_assert_uint_eq(tally.tails[1], 1);
        tally_clear(&tally);
    }
}
END_TEST

START_TEST(unit_boundaries_are_exact)
{
    g_autoptr(ColoForward) parser = colo_forward_new(TAIL_MAX_BYTES);
    g_autoptr(GByteArray) in = g_byte_array_new();
    Tally tally = {.events = g_string_new(NULL)};
    ColoForwardEvent event;

    build_migration(in);
    ck_assert(feed(parser, view_of(in->data, in->len), &tally, NULL));
    ck_assert(colo_forward_set_ready(parser, NULL));

    g_byte_array_set_size(in, 0);
    build_delta(in, 3);

    size_t delta_bytes = in->len;

    g_byte_array_set_size(in, 0);
    build_checkpoint(in, 3, 100);

    const size_t ends[] = {4, 8, 8 + delta_bytes, 8 + delta_bytes + 12, in->len};
    View v = view_of(in->data, in->len);

    for (size_t i = 0; i < G_N_ELEMENTS(ends); i++) {
        ck_assert(colo_forward_parse(parser, &v, &event, NULL));
        ck_assert_int_eq(event, COLO_FORWARD_REQUEST + (int)i);
        ck_assert_uint_eq((size_t)(v.data - in->data), ends[i]);
    }
    ck_assert_uint_eq(colo_forward_bytes(parser), delta_bytes + 12 + 100);
    /* The next REQUEST is not yet a new checkpoint's figure. */
    v = view_of(in->data, 4);
    ck_assert(colo_forward_parse(parser, &v, &event, NULL));
    ck_assert_int_eq(event, COLO_FORWARD_REQUEST);
    ck_assert_uint_eq(colo_forward_bytes(parser), delta_bytes + 12 + 100);
    ck_assert_uint_eq(colo_forward_pages(parser), 3);
    tally_clear(&tally);
}
END_TEST

START_TEST(unit_message_names)
{
    ck_assert_str_eq(colo_message_name(COLO_MESSAGE_CHECKPOINT_READY), "CHECKPOINT_READY");
    ck_assert_str_eq(colo_message_name(COLO_MESSAGE_VMSTATE_LOADED), "VMSTATE_LOADED");
    ck_assert_str_eq(colo_message_name(7), "unknown");
    ck_assert_str_eq(colo_message_name(UINT32_MAX), "unknown");
}
END_TEST

/* --- Errors ------------------------------------------------------------------------------------
 */

/* Feeds @in byte by byte and whole: both must fail alike, at once, and for ever. */
static void
expect_error(const GByteArray *in, size_t ready_at, ColoStreamError code, const char *text)
{
    g_autofree char *first = NULL;

    for (guint step_max = 1; step_max <= 2; step_max++) {
        g_autoptr(ColoForward) parser = colo_forward_new(TAIL_MAX_BYTES);
        g_autoptr(GRand) rand = g_rand_new_with_seed(7);
        g_autoptr(GError) error = NULL;
        g_autoptr(GError) again = NULL;
        Tally tally = {.events = g_string_new(NULL)};
        guint step = step_max == 1 ? 1 : 1 << 20;

        gboolean ok = feed_split(parser, in, 0, MIN(ready_at, in->len), step, rand, &tally, &error);

        if (ok && ready_at < in->len) {
            ck_assert(colo_forward_set_ready(parser, &error));
            ok = feed_split(parser, in, ready_at, in->len, step, rand, &tally, &error);
        }
        ck_assert(!ok);
        ck_assert_msg(g_error_matches(error, COLO_STREAM_ERROR, (gint)code), "%s", error->message);
        ck_assert_msg(strstr(error->message, text) != NULL, "%s: %s", text, error->message);
        ck_assert_ptr_nonnull(strstr(error->message, "(offset "));

        View more = view_of("\0\0\0\1", 4);
        ColoForwardEvent event = COLO_FORWARD_SIZE;

        ck_assert(!colo_forward_parse(parser, &more, &event, &again));
        ck_assert_str_eq(again->message, error->message);
        ck_assert_int_eq(event, COLO_FORWARD_SIZE);
        if (first)
            ck_assert_str_eq(first, error->message);
        else
            first = g_strdup(error->message);
        tally_clear(&tally);
    }
}

static void
expect_early_error(GByteArray *in, ColoStreamError code, const char *text)
{
    expect_error(in, G_MAXSIZE, code, text);
    g_byte_array_set_size(in, 0);
}

START_TEST(err_magic)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_bytes(in, "QEVM\0\0\0\2", 8);
    expect_early_error(in, COLO_STREAM_ERROR_MAGIC, "(offset 0)");
    build_bytes(in, "GET / HTTP/1.1", 14);
    expect_early_error(in, COLO_STREAM_ERROR_MAGIC, "version 3");
}
END_TEST

START_TEST(err_configuration)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_bytes(in, "QEVM\0\0\0\3\1", 9);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x01 where CONFIGURATION");
    build_bytes(in, "QEVM\0\0\0\3\7\0\0\0\0", 13);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "machine name of 0 bytes (offset 9)");
    build_bytes(in, "QEVM\0\0\0\3\7\xff\xff\xff\xff", 13);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "machine name of 4294967295 bytes");
}
END_TEST

START_TEST(err_subsection)
{
    g_autoptr(GByteArray) in = g_byte_array_new();
    const char head[] = "QEVM\0\0\0\3\7\0\0\0\2pc\5";

    build_bytes(in, head, sizeof(head) - 1);
    build_u8(in, 0);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "subsection name of 0 bytes");
    build_bytes(in, head, sizeof(head) - 1);
    build_u8(in, 65);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "subsection name of 65 bytes");
    build_bytes(in, head, sizeof(head) - 1);
    build_name(in, "configuration/capabilities");
    build_be32(in, 1);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "configuration/capabilities");
    /* A subsection anywhere else. */
    build_head(in);
    build_u8(in, 5);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x05 before the RAM");
}
END_TEST

START_TEST(err_command)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_head(in);
    build_bytes(in, "\x08\0\x08\0\4\xff\xff\xff\xff", 9); /* PACKAGED */
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "command 8");
    build_head(in);
    build_bytes(in, "\x08\0\2\xff\xff", 5);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "command 2 with 65535 bytes");
}
END_TEST

START_TEST(err_section_order)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_head(in);
    build_section(in, 0x02);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x02 before the RAM");
    build_head(in);
    build_u8(in, 0x04);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x04 before the RAM");
    build_head(in);
    build_start(in);
    build_u8(in, 0x04);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x04 within the RAM");
    build_head(in);
    build_start(in);
    build_start(in);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x01 within the RAM");
    build_head(in);
    build_start(in);
    build_section(in, 0x03);
    build_ram_foot(in);
    build_u8(in, 0x00);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section 0x00 after the RAM");
}
END_TEST

START_TEST(err_section_head)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_head(in);
    build_u8(in, 0x01);
    build_be32(in, 1);
    build_u8(in, 0);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "section name of 0 bytes");
    build_head(in);
    build_u8(in, 0x01);
    build_be32(in, 1);
    build_name(in, "vfio");
    build_be64(in, 1);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "not \"ram\"");
    build_head(in);
    build_start(in);
    build_u8(in, 0x02);
    build_be32(in, 9);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "section id 9 where the RAM's 1");
    build_head(in);
    build_start(in);
    build_section(in, 0x02);
    build_be64(in, 0x10);
    build_bytes(in, "\x7e\0\0\0\2", 5);
    expect_early_error(in, COLO_STREAM_ERROR_SECTION, "no footer");
}
END_TEST

START_TEST(err_mem_size)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_head(in);
    build_start_head(in);
    build_be64(in, 0x04);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "MEM_SIZE of no RAM");
    build_head(in);
    build_start_head(in);
    build_be64(in, 0x10);
    expect_early_error(in, COLO_STREAM_ERROR_FLAGS, "page flags 0x010");
    build_head(in);
    build_start_head(in);
    build_be64(in, 0x1004);
    build_name(in, "");
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "block name of 0 bytes");
    build_head(in);
    build_start_head(in);
    build_be64(in, 0x1004);
    build_name(in, "pc.ram");
    build_be64(in, UINT64_MAX);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE,
                       "a block of 18446744073709551615 bytes with 4096");
    build_head(in);
    build_start_head(in);
    build_be64(in, 0x1004);
    build_name(in, "pc.ram");
    build_be64(in, 0);
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "a block of 0 bytes");
    build_head(in);
    build_start(in);
    build_section(in, 0x02);
    build_be64(in, 0x1004);
    expect_early_error(in, COLO_STREAM_ERROR_FLAGS, "MEM_SIZE out of place");
}
END_TEST

START_TEST(err_page_flags)
{
    g_autoptr(GByteArray) in = g_byte_array_new();
    static const unsigned flags[] = {0x00,  0x01,  0x0a, 0x18,  0x40,  0x48,
                                     0x100, 0x200, 0x80, 0x800, 0x1010 /* EOS with an address */};

    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        build_head(in);
        build_start(in);
        build_section(in, 0x02);
        build_be64(in, flags[i]);
        expect_early_error(in, COLO_STREAM_ERROR_FLAGS, "page flags");
    }
    build_head(in);
    build_start(in);
    build_section(in, 0x02);
    build_be64(in, 0x28);
    expect_early_error(in, COLO_STREAM_ERROR_FLAGS, "page flags 0x028 out of place");
    build_head(in);
    build_start(in);
    build_section(in, 0x02);
    build_be64(in, 0x08);
    build_name(in, "");
    expect_early_error(in, COLO_STREAM_ERROR_SIZE, "block name of 0 bytes");
    build_head(in);
    build_start_head(in);
    build_be64(in, 0x08);
    expect_early_error(in, COLO_STREAM_ERROR_FLAGS, "page flags 0x008 out of place");
}
END_TEST

START_TEST(err_ready_too_early)
{
    g_autoptr(ColoForward) parser = colo_forward_new(TAIL_MAX_BYTES);
    g_autoptr(GByteArray) in = g_byte_array_new();
    Tally tally = {.events = g_string_new(NULL)};
    g_autoptr(GError) error = NULL;

    ck_assert(!colo_forward_set_ready(parser, &error));
    ck_assert(g_error_matches(error, COLO_STREAM_ERROR, COLO_STREAM_ERROR_ORDER));
    g_clear_error(&error);
    build_head(in);
    build_start(in);
    build_section(in, 0x03);
    build_ram_foot(in);
    ck_assert(feed(parser, view_of(in->data, in->len), &tally, &error));
    ck_assert_str_eq(tally.events->str, "D");
    ck_assert(!colo_forward_set_ready(parser, NULL));
    build_u8(in, 0x04);
    ck_assert(feed(parser, view_of(in->data + in->len - 1, 1), &tally, &error));
    ck_assert(colo_forward_set_ready(parser, &error));
    ck_assert(!colo_forward_set_ready(parser, NULL));
    tally_clear(&tally);
}
END_TEST

static void
expect_cycle_error(const char *bytes, size_t len, ColoStreamError code, const char *text)
{
    g_autoptr(GByteArray) in = g_byte_array_new();

    build_migration(in);

    size_t ready_at = in->len;

    build_bytes(in, bytes, len);
    expect_error(in, ready_at, code, text);
}

START_TEST(err_messages)
{
    expect_cycle_error("\0\0\0\7", 4, COLO_STREAM_ERROR_MESSAGE, "0x00000007 is no COLO message");
    expect_cycle_error("\xff\xff\xff\xff", 4, COLO_STREAM_ERROR_MESSAGE, "0xffffffff");
    expect_cycle_error("\0\0\0\3", 4, COLO_STREAM_ERROR_ORDER,
                       "VMSTATE_SEND out of turn, CHECKPOINT_REQUEST was due");
    expect_cycle_error("\0\0\0\1\0\0\0\1", 8, COLO_STREAM_ERROR_ORDER,
                       "CHECKPOINT_REQUEST out of turn, VMSTATE_SEND was due");
    expect_cycle_error("\0\0\0\1\0\0\0\3\4", 9, COLO_STREAM_ERROR_SECTION,
                       "section 0x04 where the RAM delta");
    expect_cycle_error("\0\0\0\1\0\0\0\3\3\0\0\0\2", 13, COLO_STREAM_ERROR_SECTION, "section id 2");
    expect_cycle_error("\0\0\0\1\0\0\0\3\3\0\0\0\1\0\0\0\0\0\0\0\x10\x7e\0\0\0\1\4", 27,
                       COLO_STREAM_ERROR_SECTION, "section 0x04 behind the RAM delta");
    expect_cycle_error("\0\0\0\1\0\0\0\3\3\0\0\0\1\0\0\0\0\0\0\0\x10\x7e\0\0\0\1\0\0\0\0\1", 31,
                       COLO_STREAM_ERROR_ORDER, "VMSTATE_SIZE was due");
}
END_TEST

START_TEST(sec_vmstate_size_limits)
{
    static const uint64_t sizes[] = {0, TAIL_MAX_BYTES + 1, UINT64_MAX, UINT64_MAX - 12};

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(GByteArray) in = g_byte_array_new();

        build_migration(in);

        size_t ready_at = in->len;

        build_be32(in, 1);
        build_be32(in, 3);
        build_delta(in, 1);
        build_be32(in, 4);
        build_be64(in, sizes[i]);
        expect_error(in, ready_at, COLO_STREAM_ERROR_SIZE, "VMSTATE_SIZE");
    }
}
END_TEST

START_TEST(sec_longest_names)
{
    g_autoptr(GByteArray) in = g_byte_array_new();
    g_autofree char *name = g_strnfill(255, 'x');
    Tally tally;

    build_head(in);
    build_start_head(in);
    build_be64(in, 0x1004);
    build_name(in, name);
    build_be64(in, 0x1000);
    build_ram_foot(in);
    build_section(in, 0x03);
    build_page(in, name, 0, 1);
    build_ram_foot(in);
    build_u8(in, 0x04);

    size_t ready_at = in->len;

    build_checkpoint(in, 1, TAIL_MAX_BYTES);
    for (guint step_max = 1; step_max < 1000; step_max += 300) {
        run(in, ready_at, step_max, step_max, &tally);
        ck_assert_str_eq(tally.events->str, "Dqsrzt");
        ck_assert_uint_eq(tally.tails[0], TAIL_MAX_BYTES);
        tally_clear(&tally);
    }
}
END_TEST

CHECK_MAIN("colo-forward", unit_recording, unit_recording_validate_uuid, unit_every_split_in_two,
           unit_boundaries_are_exact, unit_message_names, err_magic, err_configuration,
           err_subsection, err_command, err_section_order, err_section_head, err_mem_size,
           err_page_flags, err_ready_too_early, err_messages, sec_vmstate_size_limits,
           sec_longest_names)
