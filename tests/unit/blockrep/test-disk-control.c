/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-disk-control.c - requests of the control socket, and its server with several clients */
#include "fake-journal.h"
#include "fake-nbdkit.h"
#include "target-control.h"
#include "target-open.h"

#include "check-main.h"
#include "fd.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- Requests --- */

static void
expect_problem(const char *line, const char *part)
{
    g_auto(DiskRequest) request = {0};
    g_autofree char *problem = disk_request_parse(&target_commands, line, strlen(line), &request);

    ck_assert_msg(problem != NULL, "%s", line);
    ck_assert_msg(strstr(problem, part) != NULL, "%s: %s", line, problem);
}

static void
expect_request(const char *line, const char *command)
{
    g_auto(DiskRequest) request = {0};
    g_autofree char *problem = disk_request_parse(&target_commands, line, strlen(line), &request);

    ck_assert_msg(problem == NULL, "%s: %s", line, problem);
    ck_assert_str_eq(target_commands.commands[request.command].name, command);
}

START_TEST(unit_requests)
{
    static const char line[] =
        "{\"id\": [7], \"command\": \"mirror\", \"arguments\": {\"generation\": "
        "9223372036854775806, \"epoch\": 0, \"timeout_ms\": 250}}";
    g_auto(DiskRequest) request = {0};

    ck_assert_ptr_null(disk_request_parse(&target_commands, line, strlen(line), &request));
    ck_assert_str_eq(target_commands.commands[request.command].name, "mirror");
    ck_assert(request.generation == 9223372036854775806 && request.epoch == 0);
    ck_assert_int_eq(request.timeout_ms, 250);
    ck_assert_str_eq(json_object_to_json_string(request.id), "[ 7 ]");
    expect_request("{\"command\": \"status\"}", "status");
    expect_request("{\"command\": \"status\", \"arguments\": {\"after\": 3}}", "status");
    expect_request("{\"command\": \"sync\", \"arguments\": {\"generation\": 3}}", "sync");
    expect_request("{\"command\": \"checkpoint\", \"arguments\": {\"epoch\": 3}}", "checkpoint");
    expect_request("{\"command\": \"barrier\", \"arguments\": {\"durable\": true}}", "barrier");
    expect_request("{\"command\": \"failover\", \"arguments\": {\"generation\": 3, \"until\": "
                   "\"begun\"}}",
                   "failover");
    expect_request("{\"command\": \"failover\", \"arguments\": {\"generation\": 3, \"until\": "
                   "\"committed\"}}",
                   "failover");
}
END_TEST

START_TEST(sec_requests_of_nonsense)
{
    expect_problem("", "ends inside");
    expect_problem("{", "ends inside");
    expect_problem("[]", "JSON object");
    expect_problem("{} {}", "at byte 3");
    expect_problem("{\"command\": 1}", "missing or unknown");
    expect_problem("{\"command\": \"stat\"}", "missing or unknown");
    expect_problem("{\"command\": \"status\", \"arguments\": 1}", "no object");
    expect_problem("{\"command\": \"sync\"}", "\"arguments\" is missing");
    expect_problem("{\"command\": \"sync\", \"arguments\": {}}", "lacks an argument");
    expect_problem("{\"command\": \"sync\", \"arguments\": {\"generation\": 0}}", "no value");
    expect_problem("{\"command\": \"sync\", \"arguments\": {\"generation\": -1}}", "no value");
    expect_problem("{\"command\": \"sync\", \"arguments\": {\"generation\": \"1\"}}", "no value");
    expect_problem("{\"command\": \"sync\", \"arguments\": {\"generation\": 99999999999999999999}}",
                   "no value");
    expect_problem("{\"command\": \"sync\", \"arguments\": {\"generation\": 1, \"epoch\": 1}}",
                   "takes no argument \"epoch\"");
    expect_problem("{\"command\": \"barrier\", \"arguments\": {\"durabel\": true}}",
                   "takes no argument \"durabel\"");
    expect_problem("{\"command\": \"barrier\", \"arguments\": {\"durable\": 1}}", "no value");
    expect_problem("{\"command\": \"failover\", \"arguments\": {\"generation\": 2, \"until\": "
                   "\"soon\"}}",
                   "no value");
    expect_problem("{\"command\": \"status\", \"arguments\": {\"timeout_ms\": 600001}}",
                   "no value");
    expect_problem("[[[[[[[[]]]]]]]]", "byte");
}
END_TEST

/* --- The server --- */

typedef struct Rig {
    char folder[64];
    char *path;
    FakeStore *disk;
    Target *target;
    DiskControl *control;
} Rig;

static void
rig_init(Rig *rig)
{
    const uint64_t size = 64 * OVERLAY_BLOCK_BYTES;
    DiskMeta meta;

    (void)g_strlcpy(rig->folder, "/tmp/colod-test-control-XXXXXX", sizeof(rig->folder));
    ck_assert_ptr_nonnull(g_mkdtemp(rig->folder));
    rig->path = g_build_filename(rig->folder, "control", NULL);
    disk_meta_init(&meta, size);
    rig->disk = fake_store_new(size, true, NULL);
    rig->target = target_assemble(fake_store_base(rig->disk),
                                  fake_store_base(fake_store_new(size, true, NULL)),
                                  fake_store_base(fake_store_new(size, true, NULL)),
                                  &fake_journal_new(&meta, NULL)->base, &meta, NULL, NULL);
    target_start(rig->target);
    rig->control = target_control_new(rig->path, rig->target, NULL);
    ck_assert_ptr_nonnull(rig->control);
}

static void
rig_clear(Rig *rig)
{
    target_stop(rig->target);
    disk_control_free(rig->control);
    target_free(rig->target);
    ck_assert_int_eq(access(rig->path, F_OK), -1);
    (void)rmdir(rig->folder);
    g_free(rig->path);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rig, rig_clear)

static int
connect_to(const Rig *rig)
{
    struct timeval limit = {.tv_sec = 10};
    int fd = fd_unix_connect(rig->path);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fcntl(fd, F_SETFL, 0), 0);
    ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    return fd;
}

/* One line, without its newline; empty at the end. */
static char *
read_line(int fd)
{
    GString *line = g_string_new(NULL);
    char byte;

    while (recv(fd, &byte, 1, 0) == 1 && byte != '\n')
        g_string_append_c(line, byte);
    return g_string_free(line, FALSE);
}

static void
send_text(int fd, const char *text)
{
    ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void
expect_line(int fd, const char *part)
{
    g_autofree char *line = read_line(fd);

    ck_assert_msg(strstr(line, part) != NULL, "%s: %s", part, line);
}

static void
ask(int fd, const char *text, const char *part)
{
    send_text(fd, text);
    send_text(fd, "\n");
    expect_line(fd, part);
}

START_TEST(life_commands)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig);

    auto_fd int fd = connect_to(&rig);

    ask(fd, "{\"id\":1,\"command\":\"status\"}", "\"mode\":\"idle\"");
    ask(fd, "{\"command\":\"sync\",\"arguments\":{\"generation\":1}}", "\"return\":{}");
    ask(fd, "{\"command\":\"mirror\",\"arguments\":{\"generation\":1,\"epoch\":4}}", "return");
    ask(fd, "{\"command\":\"barrier\"}", "return");
    ask(fd, "{\"command\":\"checkpoint\",\"arguments\":{\"epoch\":5}}", "return");
    ask(fd, "{\"id\":\"x\",\"command\":\"checkpoint\",\"arguments\":{\"epoch\":4}}",
        "{\"id\":\"x\",\"error\":{\"class\":\"refused\",\"text\":\"the epoch is over (mirroring, ");
    ask(fd, "{\"command\":\"failover\",\"arguments\":{\"generation\":2,\"until\":\"durable\"}}",
        "return");
    ask(fd, "{\"command\":\"failover\",\"arguments\":{\"generation\":2}}", "return");
    ask(fd, "{\"command\":\"status\"}", "\"state\":\"UpToDate\",\"startable\":true");
}
END_TEST

/* A request that waits holds its client up and nobody else. */
START_TEST(life_a_client_that_waits)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig);

    auto_fd int waiting = connect_to(&rig);
    auto_fd int other = connect_to(&rig);

    /* Changes are counted from 1. */
    send_text(waiting, "{\"command\":\"status\",\"arguments\":{\"after\":1}}\n");
    ask(other, "{\"command\":\"sync\",\"arguments\":{\"generation\":1}}", "return");
    expect_line(waiting, "\"change\":");
    ask(other, "{\"command\":\"status\",\"arguments\":{\"after\":99,\"timeout_ms\":0}}", "change");
}
END_TEST

static void *
write_one_byte(void *data)
{
    Rig *rig = data;
    Fault fault;

    (void)layers_write(target_layers(rig->target), SIDE_TARGET, "x", 1, 0, &fault);
    return NULL;
}

START_TEST(err_a_deadline)
{
    g_auto(Rig) rig = {0};
    pthread_t thread;

    rig_init(&rig);

    auto_fd int fd = connect_to(&rig);

    ask(fd, "{\"command\":\"sync\",\"arguments\":{\"generation\":1}}", "return");
    fake_store_shut(rig.disk);
    ck_assert_int_eq(pthread_create(&thread, NULL, write_one_byte, &rig), 0);
    while (fake_store_waiting(rig.disk) == 0)
        g_thread_yield();
    ask(fd, "{\"command\":\"barrier\",\"arguments\":{\"timeout_ms\":5}}", "\"class\":\"timeout\"");
    fake_store_open(rig.disk);
    (void)pthread_join(thread, NULL);
    ask(fd, "{\"command\":\"barrier\"}", "return");
}
END_TEST

START_TEST(sec_garbage_and_crowds)
{
    g_auto(Rig) rig = {0};
    g_autofree char *endless = g_strnfill(DISK_LINE_MAX_BYTES + 1, 'x');
    int fds[8];

    rig_init(&rig);
    for (int i = 0; i < 8; i++) {
        fds[i] = connect_to(&rig);
        ask(fds[i], "\n\nnonsense", "\"class\":\"usage\"");
    }

    auto_fd int ninth = connect_to(&rig);

    expect_line(ninth, "8 clients");
    expect_line(ninth, "");
    send_text(fds[0], endless);
    expect_line(fds[0], "at most 4096 bytes");
    expect_line(fds[0], "");
    for (int i = 0; i < 8; i++)
        fd_clear(&fds[i]);

    auto_fd int again = connect_to(&rig);

    ask(again, "{\"command\":\"status\"}", "\"mode\"");
}
END_TEST

/* A client for each command, one after the other: whose thread has not seen the last one's end yet
 * does not refuse the next. */
START_TEST(life_a_client_for_each_command)
{
    g_auto(Rig) rig = {0};

    rig_init(&rig);
    for (int i = 0; i < 400; i++) {
        auto_fd int fd = connect_to(&rig);

        ask(fd, "{\"command\":\"status\"}", "\"mode\"");
    }
}
END_TEST

/* The server ends while clients wait, and while one is connected and silent. */
START_TEST(life_stop_under_clients)
{
    Rig rig = {0};

    rig_init(&rig);

    auto_fd int silent = connect_to(&rig);
    auto_fd int waiting = connect_to(&rig);

    ask(waiting, "{\"command\":\"status\"}", "return");
    send_text(waiting,
              "{\"command\":\"status\",\"arguments\":{\"after\":1,\"timeout_ms\":60000}}\n");
    rig_clear(&rig);
    expect_line(silent, "");
}
END_TEST

CHECK_MAIN("disk-control", unit_requests, sec_requests_of_nonsense, life_commands,
           life_a_client_that_waits, err_a_deadline, sec_garbage_and_crowds,
           life_a_client_for_each_command, life_stop_under_clients)
