/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-replay.c - divergence records and their formats; colo-replay as a program */
#include <glib.h>
#include <glib/gstdio.h>
#include <json-c/json.h>
#include <pcap/pcap.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check-main.h"
#include "options.h"
#include "packet.h"
#include "record.h"

enum { ACK = 16 };

static char *dir;

static char *
in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

typedef struct Writer {
    pcap_dumper_t *dump;
    int64_t now_us;
} Writer;

static Writer
writer_open(const char *name)
{
    g_autofree char *path = in_dir(name);
    pcap_t *dead = pcap_open_dead(DLT_EN10MB, PACKET_MAX);
    Writer w = {pcap_dump_open(dead, path), 1000000};

    pcap_close(dead);
    return w;
}

static void
writer_put(Writer *w, const Packet *packet)
{
    static uint8_t buf[PACKET_MAX];
    size_t len = packet_build(packet, buf);
    struct pcap_pkthdr h = {.ts = {w->now_us / 1000000, w->now_us % 1000000},
                            .caplen = (uint32_t)len,
                            .len = (uint32_t)len};

    w->now_us += 1000;
    pcap_dump((u_char *)w->dump, &h, buf);
}

static void
writer_udp(Writer *w, const char *text)
{
    writer_put(w, &(Packet){.protocol = 17, .payload = text, .len = strlen(text)});
}

static void
writer_ack(Writer *w, uint16_t window)
{
    writer_put(w, &(Packet){.protocol = 6,
                            .tcp_flags = FRAME_TCP_ACK,
                            .seq = 1,
                            .ack = 1000,
                            .has_window = true,
                            .window = window});
}

/* Runs colo-replay in the directory. */
static int
replay(const char *const *arguments, char **ret_out, char **ret_err)
{
    const char *argv[12] = {g_getenv("COLO_REPLAY")};
    int status = -1;

    for (int i = 0; arguments[i]; i++)
        argv[i + 1] = arguments[i];
    ck_assert(
        g_spawn_sync(dir, (char **)argv, NULL, 0, NULL, NULL, ret_out, ret_err, &status, NULL));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static struct json_object *
replay_json(int expected, const char *a, const char *b, const char *option, const char *value)
{
    g_autofree char *out = NULL;
    const char *arguments[] = {"--json",         a,   b ? b : option, b ? option : value,
                               b ? value : NULL, NULL};

    ck_assert_int_eq(replay(arguments, &out, NULL), expected);
    struct json_object *o = json_tokener_parse(out);

    ck_assert_ptr_nonnull(o);
    return o;
}

static int64_t
int_of(struct json_object *o, const char *key)
{
    struct json_object *v = NULL;

    ck_assert_msg(json_object_object_get_ex(o, key, &v), "no %s", key);
    return json_object_get_int64(v);
}

static void
write_two_captures(void)
{
    Writer p = writer_open("p.pcap");
    Writer s = writer_open("s.pcap");

    writer_udp(&p, "same");
    writer_udp(&s, "same");
    writer_udp(&p, "answer 41");
    writer_udp(&s, "answer 42");
    p.now_us += 1000000;
    writer_udp(&p, "left over");
    pcap_dump_close(p.dump);
    pcap_dump_close(s.dump);
}

START_TEST(unit_json_has_what_is_promised)
{
    write_two_captures();
    struct json_object *o = replay_json(1, "p.pcap", "s.pcap", NULL, NULL);
    struct json_object *list;
    static const char *const keys[] = {"time", "flow", "proto", "rule", "offset"};

    ck_assert_int_eq(int_of(o, "primary_frames"), 3);
    ck_assert_int_eq(int_of(o, "secondary_frames"), 2);
    ck_assert_int_eq(int_of(o, "released"), 3);
    ck_assert_int_eq(int_of(o, "checkpoints"), 2);
    ck_assert_int_eq(int_of(o, "flows"), 1);
    ck_assert(json_object_object_get_ex(o, "divergences", &list));
    ck_assert_uint_eq(json_object_array_length(list), 2);
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++)
        ck_assert(json_object_object_get_ex(json_object_array_get_idx(list, 0), keys[i], NULL));
    ck_assert_int_eq(int_of(json_object_array_get_idx(list, 0), "offset"), 8);
    json_object_put(o);
}
END_TEST

START_TEST(unit_exit_status_and_table)
{
    g_autofree char *out = NULL;

    write_two_captures();
    ck_assert_int_eq(replay((const char *[]){"p.pcap", "p.pcap", NULL}, &out, NULL), 0);
    ck_assert_ptr_nonnull(strstr(out, "released, same output"));
    ck_assert_int_eq(replay((const char *[]){"p.pcap", "s.pcap", NULL}, NULL, NULL), 1);
    ck_assert_int_eq(replay((const char *[]){"--version", NULL}, NULL, NULL), 0);
    ck_assert_int_eq(replay((const char *[]){NULL}, NULL, NULL), 2);
    ck_assert_int_eq(replay((const char *[]){"p.pcap", "p.pcap", "p.pcap", NULL}, NULL, NULL), 2);
    ck_assert_int_eq(
        replay((const char *[]){"--timeout-ms", "5", "p.pcap", "p.pcap", NULL}, NULL, NULL), 2);
    ck_assert_int_eq(
        replay((const char *[]){"--policy", "arp=none", "p.pcap", "p.pcap", NULL}, NULL, NULL), 2);
}
END_TEST

/* Nobody obeys a window of a recording, so no frame waits for the other side's. */
START_TEST(unit_windows_are_not_compared)
{
    Writer s = writer_open("s.pcap");
    Writer p = writer_open("p.pcap");

    writer_ack(&s, 0);
    p.now_us += 1000;
    writer_ack(&p, 500);
    p.now_us += 1000000;
    writer_ack(&p, 600);
    pcap_dump_close(p.dump);
    pcap_dump_close(s.dump);
    struct json_object *o = replay_json(0, "p.pcap", "s.pcap", NULL, NULL);
    struct json_object *hold = NULL;

    ck_assert_int_eq(int_of(o, "released_matched"), 2);
    ck_assert(json_object_object_get_ex(o, "hold_ms_max", &hold));
    ck_assert(json_object_get_double(hold) < 1);
    json_object_put(o);
}
END_TEST

START_TEST(unit_written_divergences_can_be_replayed)
{
    g_autofree char *path = in_dir("why/divergence-000001.pcapng");
    g_autofree char *contents = NULL;
    gsize len;

    write_two_captures();
    json_object_put(replay_json(1, "p.pcap", "s.pcap", "--write", "why"));
    /* One pcapng with two interfaces: the same divergence again. */
    struct json_object *o = replay_json(1, "why/divergence-000001.pcapng", NULL, NULL, NULL);

    ck_assert_int_eq(int_of(o, "primary_frames"), 1);
    ck_assert_int_eq(int_of(o, "secondary_frames"), 1);
    json_object_put(o);
    ck_assert(g_file_get_contents(path, &contents, &len, NULL));
    ck_assert_ptr_nonnull(memmem(contents, len, "timeout-primary", 15)); /* the comment */
}
END_TEST

START_TEST(err_bad_input_names_file_packet_and_fault)
{
    g_autofree char *path = in_dir("bad.pcap");
    g_autofree char *contents = NULL;
    g_autofree char *e1 = NULL, *e2 = NULL, *e3 = NULL, *e4 = NULL;
    gsize len;

    write_two_captures();
    ck_assert_int_eq(replay((const char *[]){"none.pcap", "p.pcap", NULL}, NULL, &e1), 2);
    ck_assert_ptr_nonnull(strstr(e1, "none.pcap: No such file"));

    ck_assert(g_file_set_contents(path, "this is no capture at all", -1, NULL));
    ck_assert_int_eq(replay((const char *[]){"p.pcap", "bad.pcap", NULL}, NULL, &e2), 2);
    ck_assert_ptr_nonnull(strstr(e2, "bad.pcap: "));

    g_autofree char *good = in_dir("p.pcap");
    ck_assert(g_file_get_contents(good, &contents, &len, NULL));
    ck_assert(g_file_set_contents(path, contents, (gssize)len - 5, NULL));
    ck_assert_int_eq(replay((const char *[]){"p.pcap", "bad.pcap", NULL}, NULL, &e3), 2);
    ck_assert_ptr_nonnull(strstr(e3, "bad.pcap: packet 3: "));

    contents[24 + 12]++; /* the first packet was longer than what was captured of it */
    ck_assert(g_file_set_contents(path, contents, (gssize)len, NULL));
    ck_assert_int_eq(replay((const char *[]){"bad.pcap", "p.pcap", NULL}, NULL, &e4), 2);
    ck_assert_ptr_nonnull(strstr(e4, "bad.pcap: packet 1: only"));
}
END_TEST

START_TEST(unit_captures_of_different_days_can_be_aligned)
{
    Writer p = writer_open("p.pcap");
    Writer s = writer_open("s.pcap");

    s.now_us += INT64_C(86400) * 1000000;
    writer_udp(&p, "x");
    writer_udp(&s, "x");
    pcap_dump_close(p.dump);
    pcap_dump_close(s.dump);
    json_object_put(replay_json(1, "p.pcap", "s.pcap", NULL, NULL));
    json_object_put(replay_json(0, "p.pcap", "s.pcap", "--align", NULL));
}
END_TEST

static CompareDivergence
some_divergence(const FlowKey *key, const uint8_t *frame, uint32_t len)
{
    return (CompareDivergence){.rule = COMPARE_RULE_PAYLOAD,
                               .time_ns = 1500000000,
                               .waited_ns = 2000000,
                               .flow = key,
                               .offset = 6,
                               .primary_bytes = "gh",
                               .n_primary_bytes = 2,
                               .primary_frame = frame,
                               .primary_len = len};
}

START_TEST(unit_ring_keeps_the_last_and_owns_them)
{
    DivergenceRing *ring = divergence_ring_new(3);
    uint8_t frame[4] = "abc";
    FlowKey key = {{0}};
    CompareDivergence d = some_divergence(&key, frame, 4);

    for (uint32_t i = 0; i < 5; i++) {
        d.offset = i;
        divergence_ring_add(ring, &d);
    }
    frame[0] = 'X';
    ck_assert_uint_eq(divergence_ring_count(ring), 3);
    ck_assert_uint_eq(divergence_ring_get(ring, 0)->d.offset, 2);
    ck_assert_uint_eq(divergence_ring_get(ring, 2)->number, 5);
    ck_assert_str_eq((const char *)divergence_ring_get(ring, 1)->d.primary_frame, "abc");
    ck_assert_ptr_null(divergence_ring_get(ring, 3));
    divergence_ring_free(ring);
    ck_assert_ptr_null(divergence_ring_new(0));
}
END_TEST

START_TEST(unit_text_and_json_of_a_divergence)
{
    static uint8_t buf[PACKET_MAX];
    char text[RECORD_TEXT_MAX];
    Frame f;
    size_t len = packet_build(&(Packet){.protocol = 6, .tcp_flags = ACK}, buf);

    frame_parse(buf, len, 0, &f);
    CompareDivergence d = some_divergence(&f.key, buf, (uint32_t)len);

    divergence_format(&d, text);
    ck_assert_str_eq(text,
                     "1.500000 payload 10.0.0.1:80 > 10.0.0.2:4000 tcp offset 6 waited 2.000 ms "
                     "epoch 0 primary 6768 secondary -");
    struct json_object *o = divergence_to_json(&d);

    ck_assert_int_eq(int_of(o, "offset"), 6);
    json_object_put(o);
    d.flow = NULL; /* a bound: of no flow */
    d.rule = COMPARE_RULE_MEMORY;
    divergence_format(&d, text);
    ck_assert_ptr_nonnull(strstr(text, "memory - offset"));
    json_object_put(divergence_to_json(&d));
}
END_TEST

START_TEST(unit_policy_option)
{
    CompareConfig c;

    compare_config_init(&c);
    ck_assert(options_parse_policy("arp=full,ip-other=pass", &c, NULL));
    ck_assert_int_eq(c.policy[FRAME_ARP], COMPARE_POLICY_FULL);
    ck_assert_int_eq(c.policy[FRAME_IP_OTHER], COMPARE_POLICY_PASS);
    ck_assert_int_eq(c.policy[FRAME_L2_OTHER], COMPARE_POLICY_SIZE);
    ck_assert(options_parse_policy("full", &c, NULL));
    ck_assert_int_eq(c.policy[FRAME_MALFORMED], COMPARE_POLICY_FULL);
    ck_assert(!options_parse_policy("", &c, NULL));
    ck_assert(!options_parse_policy("tcp=pass", &c, NULL));
    ck_assert(!options_parse_policy("arp=size,", &c, NULL));
}
END_TEST

static void
remove_tree(const char *path)
{
    g_autoptr(GDir) d = g_dir_open(path, 0, NULL);
    const char *name;

    while (d && (name = g_dir_read_name(d))) {
        g_autofree char *child = g_build_filename(path, name, NULL);

        if (g_file_test(child, G_FILE_TEST_IS_DIR))
            remove_tree(child);
        else
            (void)g_unlink(child);
    }
    (void)g_rmdir(path);
}

int
main(void)
{
    const TTest *const tests[] = {unit_json_has_what_is_promised,
                                  unit_exit_status_and_table,
                                  unit_windows_are_not_compared,
                                  unit_written_divergences_can_be_replayed,
                                  err_bad_input_names_file_packet_and_fault,
                                  unit_captures_of_different_days_can_be_aligned,
                                  unit_ring_keeps_the_last_and_owns_them,
                                  unit_text_and_json_of_a_divergence,
                                  unit_policy_option};

    dir = g_dir_make_tmp("colo-replay-XXXXXX", NULL);
    int status = check_run("compare-replay", tests, G_N_ELEMENTS(tests));

    remove_tree(dir);
    g_free(dir);
    return status;
}
