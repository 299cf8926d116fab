/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* compare-bench.c - colo-compare and QEMU's object side by side on identical streams */
/*
 * For each load the same two streams of framed packets are built in memory, then each program gets
 * them over UNIX sockets: a thread per input writes as fast as it is read, the main thread reads
 * the output, checks that every packet comes once and in the order of its flow, and stops the clock
 * at the last. CPU time is the program's own (user and system), from its process clock, without
 * ours.
 *
 * Each load is run --rounds times with both in turn; of each program the round with the median of
 * the CPU time counts. The CPU ratio is that of pairs that came out: a packet that QEMU dropped was
 * not compared, and costs it next to nothing. The ratio over what was put in is printed as well,
 * and counts if nothing came out.
 *
 * On a host shared with others one run's times differ from the next's by a factor of two: two
 * builds of ours are only told apart in turn, over a dozen rounds, by the lower quartile.
 *
 * Exit status 1 if a limit is missed (with --qemu), 3 if ours lost, reordered or changed a packet.
 *
 * Usage: compare-bench --ours PATH [--qemu COMMAND] [--scale PERCENT] [--load PART-OF-NAME]
 *                      [--rounds N]
 */
#include <errno.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <json-c/json.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "packet.h"

enum {
    PRIMARY,
    SECONDARY,
    OUT,
    N_SOCKETS,
    STALL_MS = 4000, /* QEMU's own timeout is 3 s and its scan 1 s: later nothing comes any more */
    CONNECT_MS = 10000,
    WRITE_BYTES = 256 * 1024,
    NUMBER_AT_END = 4, /* each packet ends with its number */
    SMALL_PAYLOAD = 1000,
    MAX_ROUNDS = 9,
};
enum { EXIT_MISSED = 1, EXIT_USAGE = 2, EXIT_WRONG = 3 };

/* What is asked for, against QEMU. */
#define MIN_RATE_RATIO 5.0
#define MIN_CPU_RATIO_SMALL 10.0
#define MIN_CPU_RATIO_LARGE 6.0 /* where the kernel's copies dominate */

typedef struct Load {
    const char *name;
    uint8_t protocol;
    uint32_t payload;
    uint32_t flows;
    uint32_t packets;
    uint32_t reorder;  /* the secondary's packets are reversed in groups of this size */
    uint32_t delay_ms; /* the secondary starts this much later */
} Load;

static const Load loads[] = {
    {"tcp-1448B-1-flow", 6, 1448, 1, 100000, 0, 0},
    {"tcp-1448B-100-flows", 6, 1448, 100, 100000, 0, 0},
    {"tcp-64B-100-flows", 6, 10, 100, 300000, 0, 0},
    {"udp-64B-100-flows", 17, 22, 100, 300000, 0, 0},
    {"udp-1400B-1-flow-20000-packets", 17, 1400, 1, 20000, 0, 0},
    {"udp-1400B-1-flow-100000-packets", 17, 1400, 1, 100000, 0, 0},
    {"tcp-200B-20000-flows", 6, 146, 20000, 200000, 0, 0},
    {"tcp-64B-100000-flows", 6, 10, 100000, 600000, 0, 0},
    {"udp-64B-1-flow-reordered", 17, 22, 1, 20000, 64, 0},
    {"tcp-1448B-1-flow-secondary-late", 6, 1448, 1, 20000, 0, 100},
};

typedef struct Stream {
    uint8_t *bytes;
    size_t len;
    int fd;
    uint32_t delay_ms;
} Stream;

typedef struct Outcome {
    uint32_t received;
    uint32_t out_of_order;
    uint32_t corrupt;
    double seconds; /* to the last packet that came */
    double cpu_seconds;
} Outcome;

/* --- streams --- */

static void
append_packet(Stream *s, const Load *load, uint32_t number, uint32_t seq)
{
    static uint8_t payload[2048];
    uint32_t flow = number % load->flows;
    Packet p = {.protocol = load->protocol,
                .tcp_flags = 0x10,
                .seq = seq,
                .ack = 1,
                .dst = 0x0b000000 + flow / 1000,
                .dport = (uint16_t)(1000 + flow % 1000),
                .payload = payload,
                .len = load->payload};

    memset(payload, (int)(number * 7), load->payload);
    memcpy(payload + load->payload - NUMBER_AT_END, &number, NUMBER_AT_END);
    size_t len = packet_build(&p, s->bytes + s->len + 4);

    be32_store(s->bytes + s->len, (uint32_t)len);
    s->len += 4 + len;
}

static Stream
build_stream(const Load *load, bool secondary)
{
    g_autofree uint32_t *seq = g_new0(uint32_t, load->flows);
    Stream s = {.bytes = g_malloc((gsize)load->packets * (load->payload + 64)), .fd = -1};
    uint32_t group = secondary && load->reorder ? load->reorder : 1;

    for (uint32_t start = 0; start < load->packets; start += group) {
        uint32_t n = MIN(group, load->packets - start);

        for (uint32_t i = 0; i < n; i++) {
            uint32_t number = start + (n - 1 - i);
            uint32_t *at = &seq[number % load->flows];

            append_packet(&s, load, number, 1000 + *at);
            *at += load->payload;
        }
    }
    s.delay_ms = secondary ? load->delay_ms : 0;
    return s;
}

static void *
write_stream(void *opaque)
{
    Stream *s = opaque;

    (void)poll(NULL, 0, (int)s->delay_ms);
    for (size_t at = 0; at < s->len;) {
        ssize_t n = send(s->fd, s->bytes + at, MIN(WRITE_BYTES, s->len - at), MSG_NOSIGNAL);

        if (n <= 0)
            break; /* the program went away: what is missing shows at the output */
        at += (size_t)n;
    }
    return NULL;
}

/* --- programs --- */

typedef struct Program {
    const char *name;
    GPid pid;
    char *dir;
    int fd[N_SOCKETS];
} Program;

static const char *const names[N_SOCKETS] = {"primary", "secondary", "out"};

static int
connect_to(const char *dir, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int64_t deadline = g_get_monotonic_time() + CONNECT_MS * 1000;

    g_snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", dir, name);
    while (g_get_monotonic_time() < deadline) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        (void)close(fd);
        (void)poll(NULL, 0, 5);
    }
    g_printerr("%s: nobody listens\n", address.sun_path);
    exit(EXIT_FAILURE);
}

static char *
command_of(const Program *p, const char *ours, const char *qemu)
{
    if (ours)
        return g_strdup_printf("%s --primary unix:%s/primary --secondary unix:%s/secondary "
                               "--out unix:%s/out --timeout-ms 10000",
                               ours, p->dir, p->dir, p->dir);
    return g_strdup_printf(
        "%s -M none -nodefaults -display none -object iothread,id=io "
        "-chardev socket,id=p,path=%s/primary,server=on,wait=off "
        "-chardev socket,id=s,path=%s/secondary,server=on,wait=off "
        "-chardev socket,id=o,path=%s/out,server=on,wait=off "
        "-object colo-compare,id=c,primary_in=p,secondary_in=s,outdev=o,iothread=io",
        qemu, p->dir, p->dir, p->dir);
}

static void
program_start(Program *p, const char *ours, const char *qemu)
{
    g_autofree char *command = NULL;
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;

    p->dir = g_dir_make_tmp("compare-bench-XXXXXX", NULL);
    command = command_of(p, ours, qemu);
    if (!g_shell_parse_argv(command, NULL, &argv, &error) ||
        !g_spawn_async(NULL, argv, NULL,
                       G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_SEARCH_PATH | G_SPAWN_STDERR_TO_DEV_NULL,
                       NULL, NULL, &p->pid, &error)) {
        g_printerr("%s\n", error->message);
        exit(EXIT_FAILURE);
    }
    for (int i = 0; i < N_SOCKETS; i++)
        p->fd[i] = connect_to(p->dir, names[i]);
    (void)poll(NULL, 0, 100); /* so that start-up is not part of the CPU time */
}

static void
program_stop(Program *p)
{
    for (int i = 0; i < N_SOCKETS; i++)
        (void)close(p->fd[i]);
    (void)kill(p->pid, SIGTERM);
    for (int i = 0; i < 300 && waitpid(p->pid, NULL, WNOHANG) == 0; i++)
        (void)poll(NULL, 0, 10);
    (void)kill(p->pid, SIGKILL); /* if it has not ended; the number cannot have been taken again */
    (void)waitpid(p->pid, NULL, WNOHANG);
    for (int i = 0; i < N_SOCKETS; i++) {
        g_autofree char *path = g_build_filename(p->dir, names[i], NULL);

        (void)g_unlink(path);
    }
    (void)g_rmdir(p->dir);
    g_free(p->dir);
}

static double
cpu_seconds(GPid pid)
{
    clockid_t clock;
    struct timespec ts = {0};

    if (clock_getcpuclockid(pid, &clock) == 0)
        (void)clock_gettime(clock, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* --- measuring --- */

/* Checks the packets in @bytes. Return: what they occupied. */
static size_t
check_packets(const Load *load, const uint8_t *bytes, size_t len, uint32_t *next, Outcome *o)
{
    size_t at = 0;

    while (len - at >= 4 && len - at - 4 >= be32_load(bytes + at)) {
        uint32_t size = be32_load(bytes + at);
        uint32_t number;

        at += 4 + size;
        memcpy(&number, bytes + at - NUMBER_AT_END, NUMBER_AT_END);
        if (number >= load->packets) {
            o->corrupt++;
            continue;
        }
        uint32_t flow = number % load->flows;

        o->out_of_order += number < next[flow];
        next[flow] = number + 1;
        o->received++;
    }
    return at;
}

static void
receive(const Load *load, const Program *p, Outcome *o, int64_t *last_us)
{
    g_autofree uint32_t *next = g_new0(uint32_t, load->flows);
    size_t size = 4 * 1024 * 1024;
    g_autofree uint8_t *buf = g_malloc(size);
    size_t len = 0;

    while (o->received < load->packets) {
        struct pollfd fd = {.fd = p->fd[OUT], .events = POLLIN};

        if (poll(&fd, 1, STALL_MS) <= 0)
            return;
        ssize_t n = recv(p->fd[OUT], buf + len, size - len, 0);

        if (n <= 0)
            return;
        len += (size_t)n;
        size_t used = check_packets(load, buf, len, next, o);

        memmove(buf, buf + used, len - used);
        len -= used;
        *last_us = g_get_monotonic_time();
    }
}

static Outcome
measure(const Load *load, Stream streams[2], const char *ours, const char *qemu)
{
    Program p = {0};
    Outcome o = {0};
    pthread_t threads[2];

    program_start(&p, ours, qemu);
    double cpu = cpu_seconds(p.pid);
    int64_t start = g_get_monotonic_time();
    int64_t last = start;

    for (int i = 0; i < 2; i++) {
        streams[i].fd = p.fd[i];
        (void)pthread_create(&threads[i], NULL, write_stream, &streams[i]);
    }
    receive(load, &p, &o, &last);
    o.cpu_seconds = cpu_seconds(p.pid) - cpu;
    o.seconds = (double)(last - start) / 1e6 - load->delay_ms / 1e3;
    for (int i = 0; i < 2; i++)
        (void)shutdown(p.fd[i], SHUT_RDWR);
    for (int i = 0; i < 2; i++)
        (void)pthread_join(threads[i], NULL);
    program_stop(&p);
    return o;
}

static double
rate(const Outcome *o)
{
    return o->seconds > 0 ? o->received / o->seconds : 0;
}

static double
cpu_us_in(const Outcome *o, const Load *load)
{
    return o->cpu_seconds * 1e6 / load->packets;
}

static double
cpu_us_out(const Outcome *o)
{
    return o->received ? o->cpu_seconds * 1e6 / o->received : 0;
}

static struct json_object *
outcome_json(const Outcome *o, const Load *load)
{
    struct json_object *j = json_object_new_object();

    json_object_object_add(j, "packets_per_s", json_object_new_int64((int64_t)rate(o)));
    json_object_object_add(j, "cpu_us_per_pair", json_object_new_double(cpu_us_out(o)));
    json_object_object_add(j, "cpu_us_per_pair_in", json_object_new_double(cpu_us_in(o, load)));
    json_object_object_add(j, "lost", json_object_new_int64((int64_t)load->packets - o->received));
    json_object_object_add(j, "out_of_order", json_object_new_int64(o->out_of_order));
    json_object_object_add(j, "corrupt", json_object_new_int64(o->corrupt));
    return j;
}

static int
by_cpu(const void *a, const void *b)
{
    double x = cpu_us_out(a);
    double y = cpu_us_out(b);

    return (x > y) - (x < y);
}

typedef struct Totals {
    bool missed;
    bool wrong;
} Totals;

static double
ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static void
compare_with_qemu(struct json_object *j, const Load *load, const Outcome *a, const Outcome *b,
                  Totals *totals)
{
    double wanted = load->payload < SMALL_PAYLOAD ? MIN_CPU_RATIO_SMALL : MIN_CPU_RATIO_LARGE;
    double rates = ratio(rate(a), rate(b));
    double cpu = ratio(cpu_us_out(b), cpu_us_out(a));
    double cpu_in = ratio(cpu_us_in(b, load), cpu_us_in(a, load));
    /* Now and then nothing comes out of QEMU's: then only what was put in can be related. */
    bool nothing = b->received == 0 && a->received > 0;
    bool kept = (nothing || rates >= MIN_RATE_RATIO) && (nothing ? cpu_in : cpu) >= wanted;

    json_object_object_add(j, "qemu", outcome_json(b, load));
    json_object_object_add(j, "rate_ratio", json_object_new_double(rates));
    json_object_object_add(j, "rate_ratio_at_least", json_object_new_double(MIN_RATE_RATIO));
    json_object_object_add(j, "cpu_ratio", json_object_new_double(cpu));
    json_object_object_add(j, "cpu_ratio_at_least", json_object_new_double(wanted));
    json_object_object_add(j, "cpu_ratio_in", json_object_new_double(cpu_in));
    json_object_object_add(j, "kept", json_object_new_boolean(kept));
    totals->missed |= !kept;
}

static struct json_object *
run_load(const Load *load, const char *ours, const char *qemu, int rounds, Totals *totals)
{
    struct json_object *j = json_object_new_object();
    Stream streams[2] = {build_stream(load, false), build_stream(load, true)};
    Outcome a[MAX_ROUNDS], b[MAX_ROUNDS];

    for (int i = 0; i < rounds; i++) {
        a[i] = measure(load, streams, ours, NULL);
        totals->wrong |= a[i].received != load->packets || a[i].out_of_order || a[i].corrupt;
        if (qemu)
            b[i] = measure(load, streams, NULL, qemu);
    }
    qsort(a, (size_t)rounds, sizeof(a[0]), by_cpu);
    json_object_object_add(j, "load", json_object_new_string(load->name));
    json_object_object_add(j, "packets", json_object_new_int64(load->packets));
    json_object_object_add(j, "ours", outcome_json(&a[rounds / 2], load));
    if (qemu) {
        qsort(b, (size_t)rounds, sizeof(b[0]), by_cpu);
        compare_with_qemu(j, load, &a[rounds / 2], &b[rounds / 2], totals);
    }
    for (int i = 0; i < 2; i++)
        g_free(streams[i].bytes);
    return j;
}

int
main(int argc, char **argv)
{
    g_autofree char *ours = NULL;
    g_autofree char *qemu = NULL;
    g_autofree char *only = NULL;
    int scale = 100;
    int rounds = 3;
    Totals totals = {0};
    const GOptionEntry entries[] = {
        {"ours", 0, 0, G_OPTION_ARG_STRING, &ours, "colo-compare with options", "COMMAND"},
        {"qemu", 0, 0, G_OPTION_ARG_STRING, &qemu, "qemu-system-x86_64 with options", "COMMAND"},
        {"load", 0, 0, G_OPTION_ARG_STRING, &only, "Only loads with PART in their name", "PART"},
        {"scale", 0, 0, G_OPTION_ARG_INT, &scale, "Packets in percent of the usual", "PERCENT"},
        {"rounds", 0, 0, G_OPTION_ARG_INT, &rounds, "Runs of each (1 to 9, default 3)", "N"},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) error = NULL;
    struct json_object *list = json_object_new_array();

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || !ours || rounds < 1 ||
        rounds > MAX_ROUNDS) {
        g_printerr("compare-bench: %s\n",
                   error ? error->message : "--ours is needed, and 1 to 9 rounds");
        return EXIT_USAGE;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(loads); i++) {
        Load load = loads[i];

        if (only && !strstr(load.name, only))
            continue;
        load.packets = MAX(load.packets / 100 * (uint32_t)scale, 100);
        json_object_array_add(list, run_load(&load, ours, qemu, rounds, &totals));
    }
    puts(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(list);
    return totals.wrong ? EXIT_WRONG : totals.missed ? EXIT_MISSED : EXIT_SUCCESS;
}
