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
    uint64_t deadline_ns;             /* of this state; 0: none                    */
    uint64_t status_seen_ns;          /* when rank 0's status file was first seen  */
    long long started;
    const char *url, *model;
    struct buf line;                  /* of the gateway's output, not yet complete */
};

static void enter(struct up *u, enum state state, unsigned seconds)
{
    u->state = state;
    u->deadline_ns = seconds ? clock_now_ns() + seconds * NS_PER_S : 0;
}

static void fail(struct up *u, const char *text)
{
    if (u->state == ENDED) return;
    fprintf(stderr, "rankservectl: %s\n", text);
    u->exit_code = 1;
    u->state = ENDED;
}

static void tell_endpoint(struct up *u)
{
    static const char *const words[] = { "starting", "live", "draining", "draining", "draining" };
    struct why why;
    if (endpoint_write(&u->config, u->url, u->model, words[u->state], u->started, &why) != OK) {
        fprintf(stderr, "rankservectl: %s\n", why.text);
    }
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

static void gateway_line(struct up *u, const char *line)
{
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

static void read_gateway(struct up *u)
{
    char piece[4096];
    struct child *g = &u->children[GATEWAY];
    ssize_t got = read(g->out, piece, sizeof piece);
    if (got < 0 && errno == EINTR) return;
    if (got <= 0) {
        close(g->out);
        g->out = -1;
        return;
    }
    for (ssize_t i = 0; i < got; i++) {
        if (piece[i] != '\n') {
            buf_char(&u->line, piece[i]);
            continue;
        }
        buf_add(&u->line, "", 0);
        gateway_line(u, u->line.data);
        buf_clear(&u->line);
    }
}

static void drain_job(struct up *u)
{
    child_signal(&u->children[JOB], SIGUSR1);
    enter(u, DRAIN_JOB, JOB_END_SECONDS_MAX);
}

static void on_stop(struct up *u)
{
    if (u->state == STARTING) {       /* nothing to drain; ranks may not take signals yet */
        fprintf(stderr, "stopped before the service was ready\n");
        u->state = ENDED;
    } else if (u->state == LIVE) {
        fprintf(stderr, "draining: running requests end first; once more stops at once\n");
        child_signal(&u->children[GATEWAY], SIGTERM);
        enter(u, DRAIN_GATEWAY, (unsigned)u->config.drain_timeout_s + GATEWAY_END_SECONDS_EXTRA);
        tell_endpoint(u);
    } else if (u->state != ENDED) {
        fail(u, "stopped at once, requests were cut off");
    }
}

static void job_ended(struct up *u)
{
    char said[400] = "", end[64], line[600];
    int code = run_dir_status(&u->config, said, sizeof said);
    if (u->state == DRAIN_JOB && code <= 0) {
        u->state = ENDED;
        return;
    }
    child_end_text(&u->children[JOB], end, sizeof end);
    if (*said) snprintf(line, sizeof line, "the job ended: %s", said);
    else snprintf(line, sizeof line, "the job ended without saying why (mpirun: %s)", end);
    fail(u, line);
}

static void gateway_ended(struct up *u)
{
    char end[64], line[160];
    struct child *g = &u->children[GATEWAY];
    if (u->state == DRAIN_GATEWAY && g->status == 0) {
        drain_job(u);
        return;
    }
    snprintf(line, sizeof line, "the gateway ended: %s", child_end_text(g, end, sizeof end));
    fail(u, line);
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
    char line[128];
    watch_status(u);
    if (u->state == ENDED || !u->deadline_ns || clock_now_ns() < u->deadline_ns) return;
    if (u->state == STARTING) {
        snprintf(line, sizeof line, "not ready after %d s", START_SECONDS_MAX);
    } else if (u->state == DRAIN_GATEWAY) {
        snprintf(line, sizeof line, "requests still ran %llu s after the stop; they were cut off",
                 (unsigned long long)u->config.drain_timeout_s);
    } else {
        snprintf(line, sizeof line, "the job did not end in %d s", JOB_END_SECONDS_MAX);
    }
    fail(u, line);
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
                                { .fd = u->children[GATEWAY].out, .events = POLLIN } };
        poll(fds, 2, TICK_MS);
        if (fds[1].revents) read_gateway(u);
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
    fprintf(stderr, "starting %s: %llu prefill, %llu decode, %llu both\n", c->model,
            (unsigned long long)c->prefill, (unsigned long long)c->decode,
            (unsigned long long)c->both);
    enter(u, STARTING, START_SECONDS_MAX);
    if (launch_job(c, &u->children[JOB], &why) != OK) fail(u, why.text);
    else if (launch_gateway(c, &u->children[GATEWAY], &why) != OK) fail(u, why.text);
    if (u->state != ENDED) tell_endpoint(u);
}

int ctl_up(int argc, char **argv)
{
    struct up u = { .started = time(NULL), .url = "", .model = "", .line.limit = 65536 };
    struct why why;
    if (config_load(&u.config, PROGRAM_CTL, argc, argv, NULL, &why) != OK) die("%s", why.text);
    if (launch_check(&why) != OK) die("%s", why.text);
    find_model(&u.config);
    int signals = open_signals();
    child_adopt();
    if (run_dir_make(&u.config, &u.run_dir_given, &why) != OK) die("%s", why.text);
    start_programs(&u);
    watch(&u, signals);
    child_kill_all();
    launch_clean();
    if (*u.config.endpoint_file) unlink(u.config.endpoint_file);
    run_dir_remove(&u.config, u.run_dir_given);
    if (u.exit_code == 0) fprintf(stderr, "stopped\n");
    return u.exit_code;
}
