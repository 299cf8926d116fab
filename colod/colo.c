/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* colo.c - the command line of colod: options and commands (colo(1)) */
#include "colo-commands.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_TIMEOUT_MS = 30 * 1000,
    MAX_TIMEOUT_S = 24 * 3600,
};

/* Options that only some commands have. */
enum {
    OPTION_JSON = 1 << 0,
    OPTION_WATCH = 1 << 1,
    OPTION_FOLLOW = 1 << 2,
    OPTION_AFTER = 1 << 3,
    OPTION_YES = 1 << 4,
    OPTION_QEMU = 1 << 5,
    OPTION_ACCEL = 1 << 6,
    OPTION_SAVE = 1 << 7,
};

/* getopt_long's values; letters are the short options. */
enum {
    LONG_JSON = 256,
    LONG_WATCH,
    LONG_FOLLOW,
    LONG_AFTER,
    LONG_QEMU,
    LONG_ACCEL,
    LONG_SAVE,
    LONG_SOCKET,
    LONG_TIMEOUT,
    LONG_VERSION,
};

static const struct option long_options[] = {
    {"name", required_argument, NULL, 'n'},
    {"socket", required_argument, NULL, LONG_SOCKET},
    {"timeout", required_argument, NULL, LONG_TIMEOUT},
    {"json", no_argument, NULL, LONG_JSON},
    {"watch", no_argument, NULL, LONG_WATCH},
    {"follow", no_argument, NULL, LONG_FOLLOW},
    {"after", required_argument, NULL, LONG_AFTER},
    {"yes", no_argument, NULL, 'y'},
    {"qemu", required_argument, NULL, LONG_QEMU},
    {"accel", required_argument, NULL, LONG_ACCEL},
    {"save", required_argument, NULL, LONG_SAVE},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, LONG_VERSION},
    {NULL, 0, NULL, 0},
};

typedef struct Command {
    const char *name;
    const char *usage; /* what follows the name */
    const char *summary;
    unsigned options;
    int n_args;
    int (*run)(const ColoOptions *options, char **args);
} Command;

static const Command commands[] = {
    {"status", "[--json] [--watch]", "whether the VM is protected, and figures",
     OPTION_JSON | OPTION_WATCH, 0, colo_run_status},
    {"events", "[--follow] [--after SEQ] [--json]", "what happened",
     OPTION_JSON | OPTION_FOLLOW | OPTION_AFTER, 0, colo_run_events},
    {"explain", "[--save DIR] [--json]", "why checkpoints happen, and what to change",
     OPTION_SAVE | OPTION_JSON, 0, colo_run_explain},
    {"checkpoint", "", "make one now and wait until it is committed", 0, 0, colo_run_checkpoint},
    {"verify", "", "compare the disks of both hosts while the guest runs", 0, 0, colo_run_verify},
    {"failover", "[--yes]", "let this host go on", OPTION_YES, 0, colo_run_failover},
    {"protect", "", "protect the VM", 0, 0, colo_run_protect},
    {"unprotect", "", "run the VM without protection", 0, 0, colo_run_unprotect},
    {"stop-vm", "", "stop the VM, and keep it stopped", 0, 0, colo_run_stop_vm},
    {"selftest", "[--qemu PATH] [--accel tcg|kvm] [--json]", "whether this QEMU can do COLO",
     OPTION_QEMU | OPTION_ACCEL | OPTION_JSON, 0, colo_run_selftest},
    {"test-stall", "STEP", "test hook: stall at a checkpoint's step, 1 to 7, or a state", 0, 1,
     colo_run_test_stall},
    {"test-corrupt", "", "test hook: corrupt the next checkpoint", 0, 0, colo_run_test_corrupt},
    {"test-lose", "PLACE", "test hook: lose the next frame at this place of the comparison", 0, 1,
     colo_run_test_lose},
};

static void
print_usage(FILE *file)
{
    (void)fprintf(file, "usage: colo [-n NAME] [--socket PATH] [--timeout SECONDS] COMMAND\n\n");
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        g_autofree char *head = g_strjoin(" ", commands[i].name, commands[i].usage, NULL);

        (void)fprintf(file, "  %-50s %s\n", head, commands[i].summary);
    }
    (void)fprintf(file, "\nSee colo(1).\n");
}

static int G_GNUC_PRINTF(1, 2) usage_error(const char *format, ...)
{
    va_list args;

    (void)fprintf(stderr, "colo: ");
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fprintf(stderr, "; `colo --help` lists the commands\n");
    return COLO_EXIT_USAGE;
}

static const Command *
find_command(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (g_str_equal(commands[i].name, name))
            return &commands[i];
    }
    return NULL;
}

static gboolean
parse_timeout(const char *text, gint64 *ret_ms)
{
    char *end;
    double seconds = g_ascii_strtod(text, &end);

    if (end == text || *end || !isfinite(seconds) || seconds < 0.001 || seconds > MAX_TIMEOUT_S)
        return FALSE;
    *ret_ms = (gint64)(seconds * 1000);
    return TRUE;
}

/* The options that some commands do not have; 0: none of them. */
static unsigned
take_command_option(int option, ColoOptions *options)
{
    switch (option) {
    case LONG_JSON:
        options->json = TRUE;
        return OPTION_JSON;
    case LONG_WATCH:
        options->watch = TRUE;
        return OPTION_WATCH;
    case LONG_SAVE:
        options->save = optarg;
        return OPTION_SAVE;
    case LONG_FOLLOW:
        options->follow = TRUE;
        return OPTION_FOLLOW;
    case 'y':
        options->yes = TRUE;
        return OPTION_YES;
    case LONG_QEMU:
        options->qemu = optarg;
        return OPTION_QEMU;
    case LONG_ACCEL:
        options->accel = optarg;
        return OPTION_ACCEL;
    default:
        return 0;
    }
}

/* Return: -1 to go on, or an exit code. */
static int
take_option(int option, ColoOptions *options, unsigned *given)
{
    switch (option) {
    case 'n':
        if (strchr(optarg, '/') || !*optarg || *optarg == '.')
            return usage_error("'%s' is no name of a VM", optarg);
        options->name = optarg;
        return -1;
    case LONG_SOCKET:
        options->socket = optarg;
        return -1;
    case LONG_TIMEOUT:
        if (!parse_timeout(optarg, &options->timeout_ms))
            return usage_error("--timeout is a number of seconds up to %d", MAX_TIMEOUT_S);
        return -1;
    case LONG_AFTER:
        if (!g_ascii_string_to_unsigned(optarg, 10, 0, G_MAXINT64, &options->after, NULL))
            return usage_error("--after is the number of an event");
        *given |= OPTION_AFTER;
        return -1;
    case 'h':
        print_usage(stdout);
        return COLO_EXIT_DONE;
    case LONG_VERSION:
        (void)printf("colo %s\n", COLOD_VERSION);
        return COLO_EXIT_DONE;
    default:
        break;
    }

    unsigned taken = take_command_option(option, options);

    if (!taken)
        return usage_error("an option is unknown or lacks its argument");
    *given |= taken;
    return -1;
}

/* What a script never got to read is not done. Return: the exit code. */
static int
finish(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    (void)fprintf(stderr,
                  "colo: standard output cannot be written to; make room, or redirect it\n");
    return COLO_EXIT_FAILED;
}

int
main(int argc, char **argv)
{
    ColoOptions options = {.timeout_ms = DEFAULT_TIMEOUT_MS};
    unsigned given = 0;
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, "n:yh", long_options, NULL)) >= 0) {
        int code = take_option(option, &options, &given);

        if (code >= 0)
            return finish(code);
    }
    if (optind >= argc)
        return usage_error("no command was given");

    const Command *command = find_command(argv[optind]);

    if (!command)
        return usage_error("unknown command '%s'", argv[optind]);
    if (given & ~command->options)
        return usage_error("%s does not have one of these options", command->name);
    if (argc - optind - 1 != command->n_args)
        return usage_error("%s takes %d argument%s", command->name, command->n_args,
                           command->n_args == 1 ? "" : "s");
    if (options.accel && !g_str_equal(options.accel, "tcg") && !g_str_equal(options.accel, "kvm"))
        return usage_error("--accel is tcg or kvm");
    return finish(command->run(&options, argv + optind + 1));
}
