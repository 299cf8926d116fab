/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-rewriter-store.c - a rewriter's connections go on in the next daemon's */
#include "rewriter-rig.h"

#include "check-main.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fd.h"
#include "flow-slots.h"
#include "rewriter-load.h"
#include "rewriter-record.h"

static const RewriterVm vm = {
    .boot_id = "11111111-2222-3333-4444-555555555555", .pid = 4711, .start_ticks = 1234567};

/* A daemon's rewriter and its file. */
typedef struct Daemon {
    char *dir, *path;
    RewriterStore *store;
    RwRig rig;
} Daemon;

static void
daemon_begin(Daemon *d, uint32_t connections_max)
{
    RewriterConfig config = {.connections_max = connections_max, .hash_key = {1, 2}};

    ck_assert_int_eq(rewriter_store_new(d->path, connections_max, &vm, &d->store), 0);
    config.store = d->store;
    ck_assert_int_eq(rewriter_new(&config, &d->rig.rewriter), 0);
}

static Daemon
daemon_new(SegmentStyle style, uint32_t connections_max)
{
    /* A tmpfs, as /run. */
    const char *tmp = g_access("/dev/shm", W_OK) == 0 ? "/dev/shm" : g_get_tmp_dir();
    Daemon d = {.dir = g_build_filename(tmp, "colod-store-XXXXXX", NULL)};

    ck_assert_ptr_nonnull(g_mkdtemp(d.dir));
    d.path = g_build_filename(d.dir, "connections", NULL);
    d.rig = (RwRig){.style = style, .now_ns = 1};
    daemon_begin(&d, connections_max);
    ck_assert_int_eq(rewriter_store_publish(d.store), 0);
    return d;
}

/* It is gone, without having been asked. */
static void
daemon_end(Daemon *d)
{
    rewriter_free(d->rig.rewriter);
    rewriter_store_free(d->store);
    d->rig.rewriter = NULL;
    d->store = NULL;
}

/* The next one, of a VM that goes on alone. */
static RewriterLoad
daemon_restart(Daemon *d, uint32_t connections_max)
{
    RewriterLoad load;

    daemon_end(d);
    daemon_begin(d, connections_max);
    rewriter_load(d->path, &vm, d->rig.rewriter, &load);
    ck_assert_int_eq(rewriter_store_publish(d->store), 0);
    rewriter_takeover(d->rig.rewriter);
    return load;
}

static void
daemon_clear(Daemon *d)
{
    g_autofree char *left = g_strconcat(d->path, ".new", NULL);

    daemon_end(d);
    ck_assert_int_ne(g_access(left, F_OK), 0);
    (void)g_unlink(d->path);
    ck_assert_int_eq(g_rmdir(d->dir), 0);
    g_free(d->path);
    g_free(d->dir);
}

/* What the file says to whoever comes next. */
static RewriterLoad
peek(const char *path, const RewriterVm *whose, uint32_t max, Rewriter **ret_rewriter)
{
    const RewriterConfig config = {.connections_max = max, .hash_key = {3, 4}};
    RewriterLoad load;

    g_assert_cmpint(rewriter_new(&config, ret_rewriter), ==, 0);
    rewriter_load(path, whose, *ret_rewriter, &load);
    return load;
}

static void
assert_file_has(const Daemon *d, uint32_t n)
{
    Rewriter *rewriter;
    RewriterLoad load = peek(d->path, &vm, 64, &rewriter);

    ck_assert_ptr_null(load.problem);
    ck_assert_uint_eq(load.loaded, n);
    ck_assert_uint_eq(load.damaged, 0);
    ck_assert_uint_eq(rewriter_stats(rewriter)->connections, n);
    rewriter_free(rewriter);
}

static const SegmentStyle styles[] = {
    {.n_nops = 2}, {.ipv6 = true, .n_vlans = 1, .n_nops = 2}, {.csum_partial = true}};

/* --- what goes on --- */

static void
each_style(void (*body)(Daemon *d))
{
    for (size_t i = 0; i < G_N_ELEMENTS(styles); i++) {
        Daemon d = daemon_new(styles[i], 16);

        body(&d);
        daemon_clear(&d);
    }
}

static void
open_one_way(Daemon *d, bool active, bool takeover)
{
    if (active)
        rw_open_active(&d->rig);
    else
        rw_open_passive(&d->rig);
    if (takeover)
        rewriter_takeover(d->rig.rewriter);
    for (int i = 0; i < 3; i++) { /* any number of times */
        ck_assert_uint_eq(daemon_restart(d, 16).loaded, 1);
        rw_assert_translated(&d->rig);
    }
}

static void
passive(Daemon *d)
{
    open_one_way(d, false, true);
}

static void
passive_before_the_takeover(Daemon *d)
{
    open_one_way(d, false, false);
}

static void
active(Daemon *d)
{
    open_one_way(d, true, true);
}

/* The last acknowledgement of the handshake comes to the next daemon. */
static void
half_open(Daemon *d)
{
    rw_in(&d->rig, peer_says(SYN, 0, 0, 0));
    rw_out(&d->rig, svm_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(daemon_restart(d, 16).loaded, 1);
    rw_out(&d->rig, svm_says(SYN | ACK, 0, 1, 0));
    ck_assert_uint_eq(rw_in(&d->rig, peer_says(ACK, 1, 1, 0)).ack, SVM_ISN + 1);
    rw_assert_translated(&d->rig);
    ck_assert_uint_eq(daemon_restart(d, 16).loaded, 1);
    rw_assert_translated(&d->rig);
}

static void
closing(Daemon *d)
{
    rw_open_passive(&d->rig);
    rewriter_takeover(d->rig.rewriter);
    rw_out(&d->rig, svm_says(FIN | ACK, 1, 1, 0));
    rw_in(&d->rig, peer_says(FIN | ACK, 1, 2, 0));
    ck_assert_uint_eq(daemon_restart(d, 16).loaded, 1);
    /* Repeated, as the last acknowledgement got lost with the daemon. */
    ck_assert_uint_eq(rw_in(&d->rig, peer_says(FIN | ACK, 1, 2, 0)).ack, SVM_ISN + 2);
    ck_assert_uint_eq(rw_out(&d->rig, svm_says(ACK, 2, 2, 0)).seq, PVM_ISN + 2);
    /* The next one on the same ports has nothing of it. */
    Segment syn_ack = svm_says(SYN | ACK, 5000, 1, 0);

    ck_assert_uint_eq(rw_out(&d->rig, syn_ack).seq, syn_ack.seq);
    assert_file_has(d, 0);
    ck_assert_uint_eq(daemon_restart(d, 16).loaded, 0);
}

START_TEST(life_connections_go_on)
{
    each_style(passive);
    each_style(passive_before_the_takeover);
    each_style(active);
    each_style(half_open);
    each_style(closing);
}
END_TEST

static void
commit(Daemon *d)
{
    rw_open_passive(&d->rig);
    assert_file_has(d, 1);
    rewriter_commit(d->rig.rewriter);
    assert_file_has(d, 0);
    rw_open_passive(&d->rig);
    assert_file_has(d, 1);
    ck_assert_uint_eq(daemon_restart(d, 16).loaded, 1);
    rw_assert_translated(&d->rig);
}

START_TEST(life_a_commit_leaves_nothing)
{
    each_style(commit);
}
END_TEST

#ifndef CONNECTIONS
#define CONNECTIONS 120000
#endif

/* Sanitized builds open a share of them. */
START_TEST(sec_more_than_100000_connections)
{
    enum { N = CONNECTIONS };
    Daemon d = daemon_new((SegmentStyle){0}, N);

    for (uint32_t n = 0; n < N; n++)
        rw_open_connection(&d.rig, n);
    ck_assert_uint_eq(rw_stats(&d.rig)->unsaved, 0);
    RewriterLoad load = daemon_restart(&d, N);

    ck_assert_uint_eq(load.loaded, N);
    ck_assert_uint_eq(load.damaged + load.beyond_max, 0);
    for (uint32_t n = 0; n < N; n++)
        g_assert_true(rw_is_translated(&d.rig, n));
    daemon_clear(&d);
}
END_TEST

/* Who takes another's place takes its slot: nothing of the one before is left, even if there is
 * nothing to be saved yet of the new one. */
START_TEST(unit_evicted_ones_are_not_loaded)
{
    enum { MAX = 4 };
    Daemon d = daemon_new((SegmentStyle){0}, MAX);

    for (uint32_t n = 0; n < MAX; n++)
        rw_open_connection(&d.rig, n);
    rw_out(&d.rig, rw_of_connection(0, svm_says(RST, 1, 0, 0)));
    rw_in(&d.rig, rw_of_connection(MAX, peer_says(SYN, 0, 0, 0)));
    ck_assert_uint_eq(rw_stats(&d.rig)->evicted, 1);
    assert_file_has(&d, MAX - 1);
    ck_assert_uint_eq(daemon_restart(&d, MAX).loaded, MAX - 1);
    for (uint32_t n = 0; n <= MAX; n++)
        ck_assert_int_eq(rw_is_translated(&d.rig, n), n > 0 && n < MAX);
    daemon_clear(&d);
}
END_TEST

static GBytes *
contents(const Daemon *d)
{
    char *bytes = NULL;
    gsize len = 0;

    ck_assert(g_file_get_contents(d->path, &bytes, &len, NULL));
    return g_bytes_new_take(bytes, len);
}

/* An open connection's segments write nothing. */
START_TEST(unit_the_steady_state_writes_nothing)
{
    Daemon d = daemon_new((SegmentStyle){.n_nops = 2}, 16);

    rw_open_passive(&d.rig);
    rw_assert_translated(&d.rig);
    g_autoptr(GBytes) before = contents(&d);

    for (uint32_t i = 0; i < 100; i++) {
        rw_out(&d.rig, svm_says(ACK, 1 + i, 1 + i, 100));
        rw_in(&d.rig, peer_says(ACK, 1 + i, 1 + i, 100));
    }
    g_autoptr(GBytes) after = contents(&d);

    ck_assert(g_bytes_equal(before, after));
    daemon_clear(&d);
}
END_TEST

/* --- the file always says what rewriter_export() does --- */

static int
compare_records(gconstpointer a, gconstpointer b)
{
    return memcmp(a, b, REWRITER_RECORD_BYTES);
}

/* All that it exports, in an order of the bytes. */
static GByteArray *
exports_of(Rewriter *rewriter)
{
    GByteArray *all = g_byte_array_new();
    RewriterRecord record;
    uint32_t cursor = 0;

    while (rewriter_export(rewriter, &cursor, &record)) {
        uint8_t bytes[REWRITER_RECORD_BYTES];

        rewriter_record_encode(bytes, &record);
        g_byte_array_append(all, bytes, sizeof(bytes));
    }
    if (all->len > 0)
        qsort(all->data, all->len / REWRITER_RECORD_BYTES, REWRITER_RECORD_BYTES, compare_records);
    return all;
}

static void
random_step(RwRig *rig, GRand *rand)
{
    static const uint8_t flags[] = {SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST, RST | ACK};
    static const uint32_t bases[] = {0, 0x10000000, 0x70000000};
    uint32_t ts = (uint32_t)g_rand_int_range(rand, 1, 1000);
    Segment s = {
        .flags = flags[g_rand_int_range(rand, 0, G_N_ELEMENTS(flags))],
        .seq = bases[g_rand_int_range(rand, 0, 3)] + (uint32_t)g_rand_int_range(rand, 0, 3),
        .ack = bases[g_rand_int_range(rand, 0, 3)] + (uint32_t)g_rand_int_range(rand, 0, 3),
        .has_ts = true,
        .tsval = ts,
        .tsecr = (uint32_t)g_rand_int_range(rand, 0, 2000),
        .len = g_rand_boolean(rand) ? 10 : 0,
        .peer_port = (uint16_t)(4000 + g_rand_int_range(rand, 0, 6))};

    if (g_rand_int_range(rand, 0, 200) == 0)
        rewriter_commit(rig->rewriter);
    if (g_rand_int_range(rand, 0, 200) == 0)
        rewriter_takeover(rig->rewriter);
    if (g_rand_boolean(rand))
        rw_out(rig, s);
    else
        rw_in(rig, s);
}

#ifndef STEPS
#define STEPS 20000
#endif

START_TEST(unit_the_file_is_what_is_exported)
{
    GRand *rand = g_rand_new_with_seed(7);
    Daemon d = daemon_new((SegmentStyle){.n_nops = 2}, 5);
    uint32_t most = 0;

    for (uint32_t i = 0; i < STEPS; i++) {
        Rewriter *other;

        random_step(&d.rig, rand);
        RewriterLoad load = peek(d.path, &vm, 5, &other);
        GByteArray *ours = exports_of(d.rig.rewriter), *theirs = exports_of(other);

        g_assert_null(load.problem);
        g_assert_cmpuint(load.damaged + load.beyond_max, ==, 0);
        g_assert_cmpmem(ours->data, ours->len, theirs->data, theirs->len);
        most = MAX(most, load.loaded);
        g_byte_array_unref(ours);
        g_byte_array_unref(theirs);
        rewriter_free(other);
    }
    ck_assert_uint_ge(most, 4);
    g_rand_free(rand);
    daemon_clear(&d);
}
END_TEST

/* --- killed --- */

static RewriterRecord
record_of(uint32_t n)
{
    RewriterRecord record = {.conn = {.phase = REWRITER_OPEN,
                                      .flags = REWRITER_CONN_TS_OFF,
                                      .isn = n,
                                      .peer_isn = n + 1,
                                      .seq_off = n + 2,
                                      .ts_off = n + 3}};

    record.key.w[0] = ((uint64_t)n << 32) | 0x0a000002;
    record.key.w[4] = ((uint64_t)80 << 48) | ((uint64_t)n << 32) | (6 << 16) | (FRAME_TCP << 8);
    return record;
}

enum { NOTHING = 0, KILLED_SLOT = 3 };

/* The number of the record in the file, NOTHING for none; no other is whole. */
static uint32_t
record_in_file(const char *path)
{
    Rewriter *rewriter;
    RewriterLoad load = peek(path, &vm, 8, &rewriter);
    RewriterRecord record, expected;
    uint32_t cursor = 0, n = NOTHING;

    g_assert_null(load.problem);
    g_assert_cmpuint(load.damaged, ==, 0);
    g_assert_cmpuint(load.loaded, <=, 1);
    if (rewriter_export(rewriter, &cursor, &record)) {
        n = record.conn.isn;
        expected = record_of(n);
        g_assert_true(flow_key_equal(&record.key, &expected.key));
        g_assert_true(record.conn.phase == expected.conn.phase &&
                      record.conn.flags == expected.conn.flags &&
                      record.conn.peer_isn == expected.conn.peer_isn &&
                      record.conn.seq_off == expected.conn.seq_off &&
                      record.conn.ts_off == expected.conn.ts_off);
    }
    rewriter_free(rewriter);
    return n;
}

typedef struct StoreStep {
    enum { PUT, DROP, BEGIN } kind;
    uint32_t number, generation;
    uint32_t before, after; /* what a reader finds */
} StoreStep;

static void
do_step(RewriterStore *store, const StoreStep *step)
{
    RewriterRecord record = record_of(step->number);

    switch (step->kind) {
    case PUT:
        rewriter_store_put(store, KILLED_SLOT, step->generation, &record);
        break;
    case DROP:
        rewriter_store_drop(store, KILLED_SLOT);
        break;
    case BEGIN:
        rewriter_store_begin(store, step->generation);
        break;
    }
}

/* A child does it instruction by instruction. Return: how many; 0: it cannot be traced here. */
static unsigned
trace_step(RewriterStore *store, const char *path, const StoreStep *step)
{
    unsigned n = 0;
    bool is_after = false;
    int status;
    pid_t child = fork();

    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(1);
        (void)raise(SIGSTOP);
        do_step(store, step);
        (void)raise(SIGSTOP);
        _exit(0);
    }
    ck_assert_int_gt(child, 0);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    if (WIFEXITED(status))
        return 0;
    for (;; n++) {
        uint32_t found = record_in_file(path);

        g_assert_true(found == step->after || (!is_after && found == step->before));
        is_after = found == step->after;
        g_assert_cmpint(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL), ==, 0);
        g_assert_cmpint(waitpid(child, &status, 0), ==, child);
        g_assert_true(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP)
            break;
    }
    ck_assert_uint_eq(record_in_file(path), step->after);
    (void)kill(child, SIGKILL);
    (void)waitpid(child, &status, 0);
    return n;
}

/* Killed at any instruction: what was before, or what is then, and nothing between. */
START_TEST(life_killed_at_any_instruction)
{
    static const StoreStep steps[] = {
        {PUT, 7, 0, NOTHING, 7},   {PUT, 8, 0, 7, 8},         {PUT, 9, 0, 8, 9},
        {DROP, 0, 0, 9, NOTHING},  {PUT, 10, 0, NOTHING, 10}, {BEGIN, 0, 1, 10, NOTHING},
        {PUT, 11, 1, NOTHING, 11}, {PUT, 12, 1, 11, 12},
    };
    Daemon d = daemon_new((SegmentStyle){0}, 8);
    unsigned n_steps = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        unsigned n = trace_step(d.store, d.path, &steps[i]);

        if (n == 0) {
            printf("skipped: ptrace(2) is not allowed here\n");
            break;
        }
        n_steps += n;
    }
    ck_assert(n_steps == 0 || n_steps > 100);
    daemon_clear(&d);
}
END_TEST

#ifndef KILLS
#define KILLS 200
#endif

/* Killed at any time, in the middle of many connections: each one that is found is as it was once.
 */
START_TEST(life_killed_at_any_time)
{
    enum { SLOTS = 3000 };
    Daemon d = daemon_new((SegmentStyle){0}, SLOTS);
    GRand *rand = g_rand_new_with_seed(11);
    uint32_t most = 0;

    for (unsigned i = 0; i < KILLS; i++) {
        pid_t child = fork();
        int status;

        if (child == 0) {
            for (uint32_t n = 1;; n = n * 1664525 + 1013904223) {
                RewriterRecord record = record_of(n);

                rewriter_store_put(d.store, n % SLOTS, 0, &record);
                rewriter_store_drop(d.store, (n >> 8) % SLOTS);
            }
        }
        ck_assert_int_gt(child, 0);
        g_usleep((gulong)g_rand_int_range(rand, 100, 3000));
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        ck_assert_int_eq(waitpid(child, &status, 0), child);

        Rewriter *rewriter;
        RewriterLoad load = peek(d.path, &vm, SLOTS, &rewriter);
        RewriterRecord record;
        uint32_t cursor = 0;

        ck_assert_ptr_null(load.problem);
        ck_assert_uint_eq(load.damaged + load.beyond_max, 0);
        most = MAX(most, load.loaded);
        while (rewriter_export(rewriter, &cursor, &record)) {
            RewriterRecord expected = record_of(record.conn.isn);

            g_assert_true(flow_key_equal(&record.key, &expected.key));
            g_assert_cmpuint(record.conn.seq_off, ==, expected.conn.seq_off);
            g_assert_cmpuint(record.conn.ts_off, ==, expected.conn.ts_off);
        }
        rewriter_free(rewriter);
    }
    ck_assert_uint_gt(most, SLOTS / 4);
    g_rand_free(rand);
    daemon_clear(&d);
}
END_TEST

/* A daemon that dies while it loads leaves the file it was loading. */
START_TEST(life_killed_while_loading)
{
    Daemon d = daemon_new((SegmentStyle){0}, 16);
    RewriterStore *unborn;
    g_autofree char *left = g_strconcat(d.path, ".new", NULL);

    for (uint32_t n = 0; n < 10; n++)
        rw_open_connection(&d.rig, n);
    ck_assert_int_eq(rewriter_store_new(d.path, 16, &vm, &unborn), 0);
    assert_file_has(&d, 10);
    /* It is not freed either: its file stays beside. */
    ck_assert_int_eq(g_access(left, F_OK), 0);
    ck_assert_uint_eq(daemon_restart(&d, 16).loaded, 10);
    for (uint32_t n = 0; n < 10; n++)
        ck_assert(rw_is_translated(&d.rig, n));
    rewriter_store_free(unborn);
    daemon_clear(&d);
}
END_TEST

/* --- whose it is --- */

static void
assert_refused(const char *path, const RewriterVm *whose, const char *text)
{
    Rewriter *rewriter;
    RewriterLoad load = peek(path, whose, 16, &rewriter);

    ck_assert_ptr_nonnull(load.problem);
    ck_assert_msg(strstr(load.problem, text) != NULL, "%s", load.problem);
    ck_assert_uint_eq(load.loaded + load.damaged + load.beyond_max, 0);
    ck_assert_uint_eq(rewriter_stats(rewriter)->connections, 0);
    rewriter_free(rewriter);
}

START_TEST(err_another_vm)
{
    Daemon d = daemon_new((SegmentStyle){0}, 16);
    RewriterVm others[] = {vm, vm, vm, vm, {.pid = 0}};

    rw_open_passive(&d.rig);
    assert_file_has(&d, 1);
    others[0].pid++;
    others[1].start_ticks++;
    others[2].boot_id[0]++;
    others[3].boot_id[39] = 'x';
    for (size_t i = 0; i < G_N_ELEMENTS(others); i++)
        assert_refused(d.path, &others[i], "of another VM");
    assert_file_has(&d, 1);
    daemon_clear(&d);
}
END_TEST

START_TEST(err_a_vm_that_was_not_started)
{
    const RewriterVm nobody = {.pid = 0};
    Daemon d = daemon_new((SegmentStyle){0}, 16);
    RewriterStore *store;

    rw_open_passive(&d.rig);
    ck_assert_int_eq(rewriter_store_new(d.path, 16, NULL, &store), 0);
    /* It takes the place of the one of the VM before. */
    ck_assert_int_eq(rewriter_store_publish(store), 0);
    assert_refused(d.path, &vm, "of another VM");
    assert_refused(d.path, &nobody, "of another VM");
    rewriter_store_set_vm(store, &vm);
    assert_file_has(&d, 0);
    rewriter_store_free(store);
    daemon_clear(&d);
}
END_TEST

START_TEST(err_no_file)
{
    Daemon d = daemon_new((SegmentStyle){0}, 16);
    g_autofree char *other = g_build_filename(d.dir, "other", NULL);
    RewriterStore *store = NULL;

    assert_refused(other, &vm, "there is none");
    assert_refused(d.dir, &vm, "it is no file");
    ck_assert_int_eq(symlink(d.path, other), 0);
    assert_refused(other, &vm, "it cannot be opened");
    (void)g_unlink(other);
    ck_assert_int_eq(mkfifo(other, 0600), 0);
    assert_refused(other, &vm, "it is no file"); /* and nobody waits for a writer */
    (void)g_unlink(other);

    g_autofree char *nowhere = g_build_filename(d.dir, "no", "folder", NULL);

    ck_assert_int_eq(rewriter_store_new(nowhere, 16, &vm, &store), -ENOENT);
    ck_assert_ptr_null(store);
    rewriter_store_free(NULL);
    daemon_clear(&d);
}
END_TEST

/* Without room connections are translated all the same; after the next commit it is tried again. */
START_TEST(err_no_room)
{
    enum { MAX = 3000, STEP = 1024 };
    Daemon d = daemon_new((SegmentStyle){0}, MAX);
    struct rlimit old, limit;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);

    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = REWRITER_STORE_HEADER_BYTES + STEP * REWRITER_SLOT_BYTES;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (uint32_t n = 0; n < STEP + 100; n++)
        rw_open_connection(&d.rig, n);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    (void)signal(SIGXFSZ, handler);
    for (uint32_t n = 0; n < STEP + 100; n++)
        ck_assert(rw_is_translated(&d.rig, n));
    ck_assert_uint_ge(rw_stats(&d.rig)->unsaved, 100);
    ck_assert_uint_eq(daemon_restart(&d, MAX).loaded, STEP);
    rewriter_commit(d.rig.rewriter);
    for (uint32_t n = 0; n < MAX; n++)
        rw_open_connection(&d.rig, n);
    ck_assert_uint_eq(rw_stats(&d.rig)->unsaved, 0);
    ck_assert_uint_eq(daemon_restart(&d, MAX).loaded, MAX);
    daemon_clear(&d);
}
END_TEST

/* --- hostile files --- */

static void
write_file(const char *path, const void *bytes, gsize len)
{
    /* Not g_file_set_contents(), which waits for the disk. */
    auto_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(write(fd, bytes, len), ==, (gssize)len);
}

START_TEST(sec_cut_short)
{
    Daemon d = daemon_new((SegmentStyle){0}, 16);
    g_autofree char *other = g_build_filename(d.dir, "other", NULL);

    for (uint32_t n = 0; n < 10; n++)
        rw_open_connection(&d.rig, n);
    g_autoptr(GBytes) whole = contents(&d);
    gsize len;
    const uint8_t *bytes = g_bytes_get_data(whole, &len);

    ck_assert_uint_eq(len, REWRITER_STORE_HEADER_BYTES + 16 * REWRITER_SLOT_BYTES);
    for (gsize cut = 0; cut < len; cut += cut < 200 || cut >= 4000 ? 1 : 100) {
        const bool fits = cut >= REWRITER_STORE_HEADER_BYTES &&
                          (cut - REWRITER_STORE_HEADER_BYTES) % REWRITER_SLOT_BYTES == 0;
        Rewriter *rewriter;

        write_file(other, bytes, cut);
        RewriterLoad load = peek(other, &vm, 16, &rewriter);

        g_assert_true(fits == !load.problem);
        g_assert_cmpuint(load.loaded, ==,
                         fits ? MIN(10, (cut - REWRITER_STORE_HEADER_BYTES) / REWRITER_SLOT_BYTES)
                              : 0);
        rewriter_free(rewriter);
    }
    (void)g_unlink(other);
    daemon_clear(&d);
}
END_TEST

/* Any byte changed: the connection is found as it was, or not at all. */
START_TEST(sec_any_byte_changed)
{
    enum { SLOTS = 2 };
    Daemon d = daemon_new((SegmentStyle){0}, SLOTS);
    g_autofree char *other = g_build_filename(d.dir, "other", NULL);
    unsigned n_damaged = 0;

    for (uint32_t n = 0; n < SLOTS; n++)
        rw_open_connection(&d.rig, n);
    GByteArray *ours = exports_of(d.rig.rewriter);
    g_autoptr(GBytes) whole = contents(&d);
    gsize len;
    g_autofree uint8_t *bytes = g_memdup2(g_bytes_get_data(whole, &len), g_bytes_get_size(whole));

    for (gsize at = 0; at < len; at++) {
        Rewriter *rewriter;

        if (at == 80)
            at = REWRITER_STORE_HEADER_BYTES; /* between: nothing */
        bytes[at] ^= 0x41;
        write_file(other, bytes, len);
        bytes[at] ^= 0x41;
        RewriterLoad load = peek(other, &vm, SLOTS, &rewriter);
        GByteArray *theirs = exports_of(rewriter);

        for (guint i = 0; i < theirs->len; i += REWRITER_RECORD_BYTES)
            g_assert_true(memcmp(theirs->data + i, ours->data, REWRITER_RECORD_BYTES) == 0 ||
                          memcmp(theirs->data + i, ours->data + REWRITER_RECORD_BYTES,
                                 REWRITER_RECORD_BYTES) == 0);
        n_damaged += load.damaged;
        g_byte_array_unref(theirs);
        rewriter_free(rewriter);
    }
    /* All bytes of the records that count. */
    ck_assert_uint_ge(n_damaged, SLOTS * REWRITER_RECORD_BYTES);
    (void)g_unlink(other);
    g_byte_array_unref(ours);
    daemon_clear(&d);
}
END_TEST

/* A slot whose check is right and whose record is not. */
static void
assert_damaged(RewriterRecord record)
{
    uint8_t slot[REWRITER_SLOT_BYTES] = {0};
    const RewriterConfig config = {.connections_max = 4};
    RewriterLoad load = {0};
    Rewriter *rewriter;

    rewriter_record_encode(slot, &record);
    be64_store(slot + REWRITER_SLOT_AT_WORD, (uint64_t)rewriter_slot_check(slot) << 2 | 1);
    ck_assert_int_eq(rewriter_new(&config, &rewriter), 0);
    rewriter_load_slots(view_of(slot, sizeof(slot)), 0, rewriter, &load);
    ck_assert_uint_eq(load.damaged, 1);
    ck_assert_uint_eq(load.loaded, 0);
    rewriter_free(rewriter);
}

START_TEST(sec_records_that_nobody_wrote)
{
    RewriterRecord records[5];

    for (size_t i = 0; i < G_N_ELEMENTS(records); i++)
        records[i] = record_of(1);
    records[0].conn.phase = REWRITER_N_PHASES;
    records[1].conn.phase = 255;
    records[2].conn.flags = 0xffff;
    records[3].conn.phase = REWRITER_SILENT;
    records[4].key.w[4] = FRAME_UDP << 8;
    for (size_t i = 0; i < G_N_ELEMENTS(records); i++)
        assert_damaged(records[i]);
}
END_TEST

START_TEST(sec_more_than_fit)
{
    Daemon d = daemon_new((SegmentStyle){0}, 16);
    Rewriter *rewriter;

    for (uint32_t n = 0; n < 10; n++)
        rw_open_connection(&d.rig, n);
    RewriterLoad load = peek(d.path, &vm, 4, &rewriter);

    ck_assert_uint_eq(load.loaded, 4);
    ck_assert_uint_eq(load.beyond_max, 6);
    rewriter_free(rewriter);
    daemon_clear(&d);
}
END_TEST

CHECK_MAIN("rewriter-store", life_connections_go_on, life_a_commit_leaves_nothing,
           sec_more_than_100000_connections, unit_evicted_ones_are_not_loaded,
           unit_the_steady_state_writes_nothing, unit_the_file_is_what_is_exported,
           life_killed_at_any_instruction, life_killed_at_any_time, life_killed_while_loading,
           err_another_vm, err_a_vm_that_was_not_started, err_no_file, err_no_room, sec_cut_short,
           sec_any_byte_changed, sec_records_that_nobody_wrote, sec_more_than_fit)
