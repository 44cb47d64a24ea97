/* ctl/main.c - rankservectl: starts, asks and examines; the table of its subcommands. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/suggest.h"
#include "common/version.h"
#include "ctl/ctl.h"

static int ctl_version(int argc, char **argv);
static int ctl_help(int argc, char **argv);

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    { "up", ctl_up, "start a service here: one MPI job and its HTTP gateway" },
    { "chat", ctl_chat, "talk to a running service in the terminal" },
    { "status", ctl_status, "how a running service is doing" },
    { "policy", ctl_policy, "change a running service's cache policy" },
    { "bench", ctl_bench, "measure a server: latencies and throughput under load" },
    { "sim", ctl_sim, "compare scheduling policies under virtual time" },
    { "pull", ctl_pull, "fetch the default model into the cache" },
    { "validate", ctl_validate, "check a service file and its settings" },
    { "render", ctl_render, "a service file as a Slurm script or Kubernetes manifests" },
    { "slurm", ctl_slurm, "submit, list, read and cancel services on a Slurm cluster" },
    { "inspect", ctl_inspect, "list a model file's parameters and tensors" },
    { "tokenize", ctl_tokenize, "text on standard input to token ids" },
    { "detokenize", ctl_detokenize, "token ids on standard input to text" },
    { "template", ctl_template, "render a chat request with a chat template" },
    { "version", ctl_version, "print the version" },
    { "help", ctl_help, "print this" },
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static int ctl_version(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("rankservectl %s\n", RANKSERVE_VERSION);
    return 0;
}

static int ctl_help(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("usage: rankservectl COMMAND [options]\n\n");
    for (int i = 0; i < COMMAND_COUNT; i++) {
        printf("  %-12s %s\n", commands[i].name, commands[i].help);
    }
    printf("\n`rankservectl COMMAND --help` explains one of them.\n");
    return 0;
}

int main(int argc, char **argv)
{
    log_name("ctl");
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        ctl_help(argc, argv);
        return 2;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    if (strcmp(name, "--version") == 0) name = "version";
    struct suggest s = { .wrong = name };
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, name) != 0) {
            suggest_offer(&s, commands[i].name);
            continue;
        }
        int code = commands[i].run(argc - 1, argv + 1);
        if (fflush(stdout) != 0 && code == 0) code = 1;
        return code;
    }
    char tail[128];
    die("unknown command '%.60s'%s", name, suggest_text(&s, "", tail, sizeof tail));
}
