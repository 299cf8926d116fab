/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-rewriter-load.c - any file where the connections of the daemon before should be */
/*
 * Input: the first 80 bytes of a header (the rest are zeros); a byte; slots. Bit 0 of the byte: the
 * checks are made right, so that the records themselves are looked at. What was loaded must be
 * what rewriter_export() may say, within the bound, and survive frames.
 */
#include <glib.h>

#include <string.h>

#include "rewriter-load.h"
#include "rewriter-record.h"
#include "segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 80, CONNECTIONS = 3, SLOTS_MAX = 64 };

static const RewriterVm vm = {.boot_id = "boot", .pid = 1, .start_ticks = 2};

static void
check_header(const uint8_t *head, uint32_t *ret_generation)
{
    g_autofree uint8_t *header = g_malloc0(REWRITER_STORE_HEADER_BYTES);
    uint32_t generation = 0;

    memcpy(header, head, HEADER);
    const char *problem =
        rewriter_load_header(view_of(header, REWRITER_STORE_HEADER_BYTES), &vm, &generation);

    g_assert_true(problem || memcmp(head, REWRITER_STORE_MAGIC, 8) == 0);
    g_assert_nonnull(
        rewriter_load_header(view_of(header, REWRITER_STORE_HEADER_BYTES - 1), &vm, &generation));
    *ret_generation = problem ? 0 : generation;
}

static void
make_checks_right(uint8_t *slots, size_t n)
{
    for (uint8_t *slot = slots; n > 0; n--, slot += REWRITER_SLOT_BYTES) {
        uint8_t *at = slot + REWRITER_SLOT_AT_WORD;
        uint64_t word = be64_load(at);
        const uint8_t *record = slot + ((word & 3) == 2 ? REWRITER_RECORD_BYTES : 0);

        word &= ~(UINT64_C(0x3fffffff) << 2);
        be64_store(at, word | (uint64_t)rewriter_slot_check(record) << 2);
    }
}

static void
check_loaded(Rewriter *rewriter, const RewriterLoad *load)
{
    RewriterRecord record;
    uint32_t cursor = 0, n = 0;

    while (rewriter_export(rewriter, &cursor, &record)) {
        g_assert_true(rewriter_conn_is_exported(&record.conn));
        g_assert_true(frame_key_class(&record.key) == FRAME_TCP);
        n++;
    }
    g_assert_cmpuint(n, <=, CONNECTIONS);
    g_assert_cmpuint(n, <=, load->loaded);
    g_assert_cmpuint(n, ==, rewriter_stats(rewriter)->connections);
}

static void
send_frames(Rewriter *rewriter)
{
    static uint8_t frame[SEGMENT_FRAME_MAX];
    static const uint8_t flags[] = {SYN, SYN | ACK, ACK, FIN | ACK, RST};

    for (size_t i = 0; i < 2 * G_N_ELEMENTS(flags); i++) {
        Segment s = {.egress = i % 2, .flags = flags[i / 2], .has_ts = true, .peer_port = 4000};
        size_t len = segment_build(&s, frame);

        if (s.egress)
            rewriter_egress(rewriter, frame, len, 1);
        else
            rewriter_ingress(rewriter, frame, len, 1);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const RewriterConfig config = {.connections_max = CONNECTIONS, .hash_key = {1, 2}};
    RewriterLoad load = {0};
    Rewriter *rewriter;
    uint32_t generation;

    if (size < HEADER + 1 || size > HEADER + 1 + SLOTS_MAX * REWRITER_SLOT_BYTES)
        return 0;
    check_header(data, &generation);

    bool right = data[HEADER] & 1;
    size_t len = size - HEADER - 1;
    /* Exactly as long as it is, so that a sanitizer sees what lies behind. */
    g_autofree uint8_t *slots = g_memdup2(data + HEADER + 1, len);

    if (right)
        make_checks_right(slots, len / REWRITER_SLOT_BYTES);
    g_assert_cmpint(rewriter_new(&config, &rewriter), ==, 0);
    rewriter_load_slots(view_of(slots, len), generation, rewriter, &load);
    g_assert_cmpuint(load.loaded + load.damaged + load.beyond_max, <=, len / REWRITER_SLOT_BYTES);
    rewriter_takeover(rewriter);
    check_loaded(rewriter, &load);
    send_frames(rewriter);
    rewriter_free(rewriter);
    return 0;
}
