/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rig.c - an engine under test: what went in, what came out, a capture of both */
#include "rig.h"

#include <pcap/pcap.h>
#include <string.h>

/* What is said to be lent is, in full, one of the frames that are. */
static bool
is_lent(const Rig *rig, const CompareRelease *release)
{
    for (guint i = 0; i < rig->lent[COMPARE_PRIMARY]->len; i++) {
        gsize len;
        const void *bytes =
            g_bytes_get_data(g_ptr_array_index(rig->lent[COMPARE_PRIMARY], i), &len);

        if (bytes == release->bytes)
            return len == release->len;
    }
    return false;
}

static void
on_release(void *opaque, const CompareRelease *release)
{
    Rig *rig = opaque;

    g_assert_true(release->lent == is_lent(rig, release));
    RigRelease r = {release->cookie, release->why, g_bytes_new(release->bytes, release->len)};

    g_array_append_val(rig->released, r);
}

static void
on_divergence(void *opaque, const CompareDivergence *d)
{
    Rig *rig = opaque;
    RigDivergence r = {.rule = d->rule,
                       .offset = d->offset,
                       .has_primary = d->primary_frame != NULL,
                       .has_secondary = d->secondary_frame != NULL,
                       .waited_ns = d->waited_ns};

    memcpy(r.primary_bytes, d->primary_bytes, 16);
    memcpy(r.secondary_bytes, d->secondary_bytes, 16);
    g_array_append_val(rig->divergences, r);
}

static void
clear_release(gpointer p)
{
    g_bytes_unref(((RigRelease *)p)->bytes);
}

static void
open_dumps(Rig *rig, const char *name)
{
    static const char *const sides[] = {"primary", "secondary"};
    const char *dir = g_getenv("COLO_TEST_PCAP_DIR");

    if (!dir)
        return;
    (void)g_mkdir_with_parents(dir, 0755);
    for (int i = 0; i < 2; i++) {
        /* Check puts "_fn" behind the name of a case. */
        int n = (int)strlen(name) - (g_str_has_suffix(name, "_fn") ? 3 : 0);
        g_autofree char *path = g_strdup_printf("%s/%.*s.%s.pcap", dir, n, name, sides[i]);
        pcap_t *dead = pcap_open_dead(DLT_EN10MB, PACKET_MAX);

        rig->dump[i] = pcap_dump_open(dead, path);
        pcap_close(dead);
    }
}

Rig *
rig_new(const char *name, const CompareConfig *config)
{
    Rig *rig = g_new0(Rig, 1);
    CompareConfig defaults;

    compare_config_init(&defaults);
    defaults.memory_max_bytes = 8 * 1024 * 1024;
    defaults.flows_max = 4096;
    defaults.hash_key[0] = 1;
    CompareOps ops = {on_release, on_divergence};

    rig->released = g_array_new(FALSE, TRUE, sizeof(RigRelease));
    g_array_set_clear_func(rig->released, clear_release);
    rig->divergences = g_array_new(FALSE, TRUE, sizeof(RigDivergence));
    for (int i = 0; i < 2; i++)
        rig->lent[i] = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    rig->conn.protocol = 6;
    rig->now_ns = 1000 * MS;
    g_assert_cmpint(compare_new(config ? config : &defaults, &ops, rig, &rig->compare), ==, 0);
    open_dumps(rig, name);
    return rig;
}

void
rig_free(Rig *rig)
{
    for (int i = 0; i < 2; i++) {
        if (rig->dump[i])
            pcap_dump_close(rig->dump[i]);
    }
    compare_free(rig->compare);
    for (int i = 0; i < 2; i++)
        g_ptr_array_unref(rig->lent[i]);
    g_array_unref(rig->released);
    g_array_unref(rig->divergences);
    g_free(rig);
}

static int
lend(Rig *rig, CompareSide side, const CompareFrame *frame)
{
    int error = 0;

    /* First, as it may be released at once. */
    g_ptr_array_add(rig->lent[side], g_bytes_new(frame->bytes, frame->len));
    CompareFrame lent = *frame;
    guint last = rig->lent[side]->len - 1;

    lent.bytes = g_bytes_get_data(g_ptr_array_index(rig->lent[side], last), NULL);
    if (compare_lend_batch(rig->compare, side, &lent, 1, rig->now_ns, &error) == 1)
        return 0;
    g_ptr_array_set_size(rig->lent[side], (int)last);
    return error;
}

void
rig_settle(Rig *rig, CompareSide side)
{
    compare_settle(rig->compare, side);
    g_assert_cmpuint(compare_lent(rig->compare, side), ==, 0);
    g_ptr_array_set_size(rig->lent[side], 0);
}

uint64_t
rig_send_raw(Rig *rig, CompareSide side, const void *bytes, size_t len, uint8_t vnet)
{
    /* A buffer of the exact size: an over-read is seen by AddressSanitizer. */
    g_autofree uint8_t *copy = g_memdup2(bytes, len);
    CompareFrame frame = {.bytes = copy,
                          .len = (uint32_t)len,
                          .vnet_hdr_len = vnet,
                          .epoch = rig->epoch,
                          .cookie = side == COMPARE_PRIMARY ? rig->next_cookie + 1 : 0};

    rig->last_result = rig->lending ? lend(rig, side, &frame)
                                    : compare_submit(rig->compare, side, &frame, rig->now_ns);
    if (rig->last_result == 0 && side == COMPARE_PRIMARY)
        rig->next_cookie++;
    if (rig->dump[side] && len > vnet) {
        struct pcap_pkthdr h = {.ts = {.tv_sec = rig->now_ns / (1000 * MS),
                                       .tv_usec = rig->now_ns % (1000 * MS) / 1000},
                                .caplen = (uint32_t)(len - vnet),
                                .len = (uint32_t)(len - vnet)};

        pcap_dump(rig->dump[side], &h, copy + vnet);
    }
    return frame.cookie;
}

uint64_t
rig_send(Rig *rig, CompareSide side, const Packet *packet)
{
    static uint8_t buf[PACKET_MAX];
    size_t len = packet_build(packet, buf);

    return rig_send_raw(rig, side, buf, len, packet->vnet_hdr_len);
}

uint64_t
rig_tcp(Rig *rig, CompareSide side, uint8_t flags, uint32_t seq, uint32_t ack, const char *text)
{
    Packet p = rig->conn;

    p.tcp_flags = flags;
    p.seq = seq;
    p.ack = ack;
    p.payload = text;
    p.len = text ? strlen(text) : 0;
    return rig_send(rig, side, &p);
}

uint64_t
rig_udp(Rig *rig, CompareSide side, const char *text)
{
    Packet p = rig->conn;

    p.protocol = 17;
    p.payload = text;
    p.len = strlen(text);
    return rig_send(rig, side, &p);
}

void
rig_handshake(Rig *rig, uint32_t isn, uint32_t ack)
{
    (void)rig_tcp(rig, COMPARE_PRIMARY, FRAME_TCP_SYN | FRAME_TCP_ACK, isn, ack, NULL);
    (void)rig_tcp(rig, COMPARE_SECONDARY, FRAME_TCP_SYN | FRAME_TCP_ACK, isn + 777, ack, NULL);
    g_assert_true(rig_all_released_in_order(rig));
}

void
rig_wait(Rig *rig, int64_t ns)
{
    rig->now_ns += ns;
    compare_tick(rig->compare, rig->now_ns);
}

void
rig_checkpoint(Rig *rig)
{
    rig->epoch++;
    g_assert_cmpint(compare_begin_checkpoint(rig->compare, rig->epoch), ==, 0);
    g_assert_cmpint(compare_commit(rig->compare, rig->epoch, rig->now_ns), ==, 0);
}

const RigRelease *
rig_release_of(const Rig *rig, uint64_t cookie)
{
    for (guint i = 0; i < rig->released->len; i++) {
        const RigRelease *r = &g_array_index(rig->released, RigRelease, i);

        if (r->cookie == cookie)
            return r;
    }
    return NULL;
}

bool
rig_was_released(const Rig *rig, uint64_t cookie)
{
    return rig_release_of(rig, cookie) != NULL;
}

bool
rig_all_released_in_order(const Rig *rig)
{
    if (rig->released->len != rig->next_cookie)
        return false;
    for (guint i = 0; i < rig->released->len; i++) {
        if (g_array_index(rig->released, RigRelease, i).cookie != i + 1)
            return false;
    }
    return true;
}

size_t
rig_n_divergences(const Rig *rig)
{
    return rig->divergences->len;
}

int
rig_last_rule(const Rig *rig)
{
    guint n = rig->divergences->len;

    return n ? (int)g_array_index(rig->divergences, RigDivergence, n - 1).rule : -1;
}
