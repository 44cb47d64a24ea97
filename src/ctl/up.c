/* ctl/up.c - rankservectl up: one MPI job and its gateway on this machine, in the foreground.
 *
 *   STARTING -> LIVE -> DRAIN_GATEWAY -> DRAIN_JOB -> end
 *
 * `ready URL` is the only line on standard output.  SIGTERM, SIGINT or SIGHUP drains: the gateway
 * first (it ends when its last request is answered), then the job; a second one ends all at once.
 * Always true: when this program ends, so has everything it started.
 * Elsewhere: how programs are started (launch.c), the run directory (run_dir.c).
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/config_table.h"
#include "ctl/child.h"
#include "ctl/ctl.h"
#include "ctl/endpoint.h"
#include "ctl/launch.h"
#include "ctl/pull.h"
#include "ctl/run_dir.h"

enum { GATEWAY, JOB, CHILD_COUNT };
enum {
    START_SECONDS_MAX = 900,          /* a large model from a slow disk */
    JOB_END_SECONDS_MAX = 10,         /* from the drain signal to the end */
    GATEWAY_END_SECONDS_EXTRA = 5,
    TICK_MS = 1000,
};
enum state { STARTING, LIVE, DRAIN_GATEWAY, DRAIN_JOB, ENDED };

struct up {
    struct config config;
    bool run_dir_given;
    struct child children[CHILD_COUNT];
    enum state state;
    int exit_code;
    struct why why;                   /* of a failure                             */
    uint64_t deadline_ns;             /* of this state; 0: none                   */
    uint64_t status_seen_ns;          /* when rank 0's status file was first seen */
    long long started;
    const char *url, *model;
};

static void enter(struct up *u, enum state state, unsigned seconds)
{
    u->state = state;
    u->deadline_ns = seconds ? clock_now_ns() + seconds * NS_PER_S : 0;
}

/* Said when all has ended: the last line is why. */
static void __attribute__((format(printf, 2, 3))) fail(struct up *u, const char *fmt, ...)
{
    if (u->state == ENDED) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(u->why.text, sizeof u->why.text, fmt, ap);
    va_end(ap);
    u->exit_code = 1;
    u->state = ENDED;
}

static void tell_endpoint(struct up *u)
{
    static const char *const words[] = { "starting", "live", "draining", "draining", "draining" };
    struct why why;
    enum err e = endpoint_write(&u->config, u->url, u->model, words[u->state], u->started, &why);
    if (e == OK) return;
    if (u->state == STARTING) fail(u, "--endpoint-file %s", why.text);
    else fprintf(stderr, "rankservectl: --endpoint-file %s\n", why.text);
}

static void greet(struct up *u)
{
    struct why why;
    struct endpoint at;
    endpoint_find(&at, u->url, NULL, *u->config.api_key_file ? u->config.api_key_file : NULL);
    const char *model = endpoint_model(&at, &why);
    if (model) u->model = model;
    tell_endpoint(u);
    printf("ready %s\n", u->url);
    fflush(stdout);
    fprintf(stderr, "\n  curl %s/v1/chat/completions -H 'Content-Type: application/json' \\\n%s"
            "    -d '{\"model\": \"%s\", \"messages\": [{\"role\": \"user\", \"content\": "
            "\"Say hello.\"}]}'\n\n  Ctrl-C stops the service.\n\n",
            u->url, at.api_key ? "    -H \"Authorization: Bearer $KEY\" \\\n" : "", u->model);
}

static void gateway_line(void *context, const char *line)
{
    struct up *u = context;
    if (strncmp(line, "listening ", 10) == 0) {
        u->url = config_keep(line + 10, strlen(line + 10));
        tell_endpoint(u);
    } else if (strncmp(line, "ready ", 6) == 0 && u->state == STARTING) {
        u->url = config_keep(line + 6, strlen(line + 6));
        enter(u, LIVE, 0);
        greet(u);
    } else {
        fprintf(stderr, "%s\n", line);
    }
}

/* The log of the ranks, without what Open MPI says of deaths that we have seen ourselves. */
static void job_line(void *context, const char *line)
{
    static const char *const noise[] = {
        "PMIX ERROR: BAD-PARAM", "PMIX ERROR: UNREACHABLE", "PMIX ERROR: LOST-CONNECTION",
        "MPI communication peer process has unexpectedly disconnected",
    };
    (void)context;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++) {
        if (strstr(line, noise[i])) return;
    }
    fprintf(stderr, "%s\n", line);
}

static void read_children(struct up *u)
{
    child_read(&u->children[JOB], job_line, u);
    child_read(&u->children[GATEWAY], gateway_line, u);
}

static void drain_job(struct up *u)
{
    bool told = *u->config.link_listen;
    if (!told) child_signal(&u->children[JOB], SIGUSR1);
    enter(u, DRAIN_JOB, JOB_END_SECONDS_MAX + (told ? (unsigned)u->config.drain_timeout_s : 0));
}

static void on_stop(struct up *u)
{
    if (u->state == STARTING) {       /* nothing to drain; ranks may not take signals yet */
        fprintf(stderr, "stopped before the service was ready\n");
        u->state = ENDED;
    } else if (u->state == LIVE) {
        fprintf(stderr, "draining: running requests end first; once more stops at once\n");
        child_signal(&u->children[GATEWAY], SIGTERM);
        /* Other gateways' requests end at their own pace, from now on. */
        if (*u->config.link_listen) child_signal(&u->children[JOB], SIGUSR1);
        enter(u, DRAIN_GATEWAY, (unsigned)u->config.drain_timeout_s + GATEWAY_END_SECONDS_EXTRA);
        tell_endpoint(u);
    } else if (u->state != ENDED) {
        fail(u, "stopped at once, requests were cut off");
    }
}

static void job_ended(struct up *u)
{
    char said[400] = "", end[64];
    int code = run_dir_status(&u->config, said, sizeof said);
    if (u->state == DRAIN_JOB && code <= 0) {
        u->state = ENDED;
        return;
    }
    /* Slurm signals ranks too: the job may have drained by itself; the gateway's answers go on. */
    if (u->state == DRAIN_GATEWAY && code == 0) return;
    child_end_text(&u->children[JOB], end, sizeof end);
    if (*said) fail(u, "the job ended: %s", said);
    else fail(u, "the job ended without saying why (mpirun: %s)", end);
    if (code > 0) u->exit_code = code;
}

static void gateway_ended(struct up *u)
{
    char end[64];
    struct child *g = &u->children[GATEWAY];
    if (u->state == DRAIN_GATEWAY && g->status == 0) {
        if (u->children[JOB].ended) u->state = ENDED;
        else drain_job(u);
        return;
    }
    fail(u, "the gateway ended: %s", child_end_text(g, end, sizeof end));
}

static void on_child(struct up *u)
{
    bool gateway = u->children[GATEWAY].ended, job = u->children[JOB].ended;
    child_reap(u->children, CHILD_COUNT);
    if (!job && u->children[JOB].ended) job_ended(u);
    if (!gateway && u->children[GATEWAY].ended && u->state != ENDED && u->state != DRAIN_JOB) {
        gateway_ended(u);
    }
}

/* mpirun can outlive its rank 0 for ever; rank 0's last word counts. */
static void watch_status(struct up *u)
{
    if (access(u->config.status_file, F_OK) < 0 || u->children[JOB].ended) return;
    uint64_t now = clock_now_ns();
    if (!u->status_seen_ns) u->status_seen_ns = now;
    if (now - u->status_seen_ns > 3 * NS_PER_S) job_ended(u);
}

static void on_time(struct up *u)
{
    watch_status(u);
    if (u->state == ENDED || !u->deadline_ns || clock_now_ns() < u->deadline_ns) return;
    if (u->state == STARTING) {
        fail(u, "not ready after %d s", START_SECONDS_MAX);
    } else if (u->state == DRAIN_GATEWAY) {
        fail(u, "requests still ran %llu s after the stop; they were cut off",
             (unsigned long long)u->config.drain_timeout_s);
    } else {
        fail(u, "the job did not end in %d s", JOB_END_SECONDS_MAX);
    }
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) die("signalfd: %s", strerror(errno));
    return fd;
}

static void watch(struct up *u, int signals)
{
    while (u->state != ENDED) {
        struct pollfd fds[] = { { .fd = signals, .events = POLLIN },
                                { .fd = u->children[GATEWAY].out, .events = POLLIN },
                                { .fd = u->children[JOB].out, .events = POLLIN } };
        poll(fds, 3, TICK_MS);
        read_children(u);
        struct signalfd_siginfo info;
        while (read(signals, &info, sizeof info) == sizeof info) {
            if (info.ssi_signo == SIGCHLD) on_child(u);
            else on_stop(u);
        }
        on_time(u);
    }
}

/* A file that is there, by its whole path: ranks may run elsewhere. */
static void find_model(struct config *c)
{
    struct buf path = { 0 };
    struct why why;
    if (strstr(c->model, "://")) {
        die("--model %s: only files and file:// can be served for now", c->model);
    }
    if (!*c->model) {
        if (pull_default_model(&path, &why) != OK) die("%s", why.text);
        c->model = config_keep(path.data, path.size);
        buf_release(&path);
    }
    char *whole = realpath(c->model, NULL);
    if (!whole || access(whole, R_OK) < 0) die("--model %s: %s", c->model, strerror(errno));
    c->model = config_keep(whole, strlen(whole));
    free(whole);
}

static void start_programs(struct up *u)
{
    struct why why;
    const struct config *c = &u->config;
    fprintf(stderr, "starting %s: %llu prefill, %llu decode, %llu both, %llu spares\n", c->model,
            (unsigned long long)c->prefill, (unsigned long long)c->decode,
            (unsigned long long)c->both, (unsigned long long)c->spares);
    enter(u, STARTING, START_SECONDS_MAX);
    if (launch_job(c, &u->children[JOB], &why) != OK) fail(u, "%s", why.text);
    else if (launch_gateway(c, &u->children[GATEWAY], &why) != OK) fail(u, "%s", why.text);
    if (u->state != ENDED) tell_endpoint(u);
}

int ctl_up(int argc, char **argv)
{
    struct up u = { .started = time(NULL), .url = "", .model = "",
                    .children = { { .out = -1 }, { .out = -1 } } };
    struct why why;
    if (config_load(&u.config, PROGRAM_CTL, argc, argv, NULL, &why) != OK) die("%s", why.text);
    if (launch_check(&why) != OK) die("%s", why.text);
    find_model(&u.config);
    int signals = open_signals();
    child_adopt();
    if (run_dir_make(&u.config, &u.run_dir_given, &why) != OK) die("%s", why.text);
    if (endpoint_open(&u.config, &why) != OK) fail(&u, "--endpoint-file %s", why.text);
    else start_programs(&u);
    watch(&u, signals);
    child_kill_all();
    launch_clean();
    read_children(&u);
    endpoint_close(&u.config);
    run_dir_remove(&u.config, u.run_dir_given);
    if (u.exit_code) fprintf(stderr, "rankservectl: %s\n", u.why.text);
    else fprintf(stderr, "stopped\n");
    return u.exit_code;
}
