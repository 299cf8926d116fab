/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* main.c - colod's command line */
#include "config.h"
#include "daemon.h"
#include "pair-fsm.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <glib-unix.h>

enum { EXIT_USAGE = 2 };

typedef struct Options {
    char *config_path, *run_dir, *state_dir;
    gboolean dump_fsm, check, version;
    char **names;
} Options;

typedef struct Running {
    GMainLoop *loop;
    Daemon *daemon;
} Running;

static void
options_clear(Options *options)
{
    g_free(options->config_path);
    g_free(options->run_dir);
    g_free(options->state_dir);
    g_strfreev(options->names);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

static gboolean
parse_options(Options *options, int *argc, char ***argv, GError **error)
{
    const GOptionEntry entries[] = {
        {"config", 'c', 0, G_OPTION_ARG_FILENAME, &options->config_path,
         "Configuration (default /etc/colod/NAME.conf)", "FILE"},
        {"run-dir", 0, 0, G_OPTION_ARG_FILENAME, &options->run_dir,
         "Folder of sockets (default /run/colod)", "DIR"},
        {"state-dir", 0, 0, G_OPTION_ARG_FILENAME, &options->state_dir,
         "Folder of what must survive a crash (default /var/lib/colod)", "DIR"},
        {"check", 0, 0, G_OPTION_ARG_NONE, &options->check, "Check the configuration and exit",
         NULL},
        {"dump-fsm", 0, 0, G_OPTION_ARG_NONE, &options->dump_fsm,
         "Print the state machine's rules as Markdown and exit", NULL},
        {"version", 0, 0, G_OPTION_ARG_NONE, &options->version, "Print the version and exit", NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_STRING_ARRAY, &options->names, NULL, "NAME"},
        G_OPTION_ENTRY_NULL,
    };
    g_autoptr(GOptionContext) context = g_option_context_new("- protects the virtual machine NAME");

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, argc, argv, error))
        return FALSE;
    if (!options->dump_fsm && !options->version &&
        (options->names == NULL || g_strv_length(options->names) != 1)) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED,
                    "exactly one VM name is needed; try colod --help");
        return FALSE;
    }
    return TRUE;
}

static void
on_shut_down(gpointer user_data)
{
    Running *running = user_data;

    g_main_loop_quit(running->loop);
}

static gboolean
on_signal(gpointer user_data)
{
    Running *running = user_data;

    (void)sd_notify(0, "STOPPING=1");
    daemon_shut_down(running->daemon, on_shut_down, running);
    return G_SOURCE_CONTINUE;
}

/* Where the kernel groups tasks by session (CONFIG_SCHED_AUTOGROUP, sched(7)) a nice value counts
 * among the tasks of one session only, and this one is ours alone: the group needs it too, or we
 * wait as long for a CPU as anybody. In a cgroup with the cpu controller CPUWeight= decides. */
static void
share_precedence(void)
{
    const int nice = getpriority(PRIO_PROCESS, 0);
    char text[16];
    int fd;

    if (nice >= 0 || getsid(0) != getpid())
        return;
    fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, text, (size_t)g_snprintf(text, sizeof(text), "%d", nice));
    (void)close(fd);
}

static int
run(Config *config, const Options *options)
{
    g_autofree char *run_dir =
        g_build_filename(options->run_dir ? options->run_dir : "/run/colod", config->vm_name, NULL);
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
    g_autoptr(GError) error = NULL;
    g_autoptr(Daemon) daemon = daemon_new(
        config, run_dir, options->state_dir ? options->state_dir : "/var/lib/colod", &error);
    Running running = {.loop = loop, .daemon = daemon};

    if (daemon == NULL) {
        g_printerr("colod: %s\n", error->message);
        return EXIT_FAILURE;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    g_unix_signal_add(SIGTERM, on_signal, &running);
    g_unix_signal_add(SIGINT, on_signal, &running);
    (void)sd_notify(0, "READY=1");
    g_main_loop_run(loop);
    return EXIT_SUCCESS;
}

int
main(int argc, char **argv)
{
    g_auto(Options) options = {0};
    g_autoptr(GError) error = NULL;

    if (!parse_options(&options, &argc, &argv, &error)) {
        g_printerr("colod: %s\n", error->message);
        return EXIT_USAGE;
    }
    if (options.version) {
        g_print("colod %s\n", COLOD_VERSION);
        return EXIT_SUCCESS;
    }
    if (options.dump_fsm) {
        g_autofree char *table = pair_fsm_to_markdown();

        g_print("%s", table);
        return EXIT_SUCCESS;
    }

    const char *name = options.names[0];
    g_autofree char *default_path = g_strdup_printf("/etc/colod/%s.conf", name);
    Config *config =
        config_load(name, options.config_path ? options.config_path : default_path, &error);

    if (config == NULL) {
        g_printerr("colod: %s\n", error->message);
        return EXIT_FAILURE;
    }
    if (options.check) {
        config_free(config);
        return EXIT_SUCCESS;
    }
    share_precedence();
    return run(config, &options);
}
