/* gateway/main.c - rankserve-gateway: starts, waits for a signal, drains.
 *
 * Standard output carries two lines for whoever started us: `listening URL` once the port is bound,
 * `ready URL` once a request can be served.  Everything else goes to the log.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "gateway/api.h"
#include "gateway/auth.h"
#include "gateway/call.h"
#include "gateway/guard.h"
#include "gateway/helpers.h"
#include "gateway/http.h"
#include "gateway/jobs.h"
#include "gateway/link_client.h"
#include "gateway/metrics.h"
#include "kv/shared_view.h"
#include "model/hparams.h"

extern char **environ;

static struct gateway gateway;
static struct http *server;

/* The job's launchers must not find themselves in our environment, nor in our children's. */
static void scrub_environment(void)
{
    static const char *const prefixes[] = { "OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_" };
    for (char **e = environ; *e;) {
        bool found = false;
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes && !found; i++) {
            found = strncmp(*e, prefixes[i], strlen(prefixes[i])) == 0;
        }
        const char *equals = strchr(*e, '=');
        if (!found || !equals) {
            e++;
            continue;
        }
        char *name = mem_text_n(*e, (size_t)(equals - *e));
        unsetenv(name);
        free(name);
        e = environ;
    }
}

static void leave(int code)
{
    fflush(NULL);
    if (code == EXIT_BUG) abort();
    _exit(code);                      /* other threads may be running */
}

static void name_model(struct gateway *gw)
{
    const char *name = gw->config.served_model_name;
    const char *slash = strrchr(gw->config.model, '/');
    if (!name[0]) name = slash ? slash + 1 : gw->config.model;
    snprintf(gw->model_name, sizeof gw->model_name, "%s", name);
    char *end = strrchr(gw->model_name, '.');
    if (name != gw->config.served_model_name && end && strcmp(end, ".gguf") == 0) *end = '\0';
}

static void open_template(struct gateway *gw)
{
    struct why why;
    struct gguf_text text;
    const char *path = gw->config.chat_template;
    if (path[0]) {
        FILE *in = fopen(path, "re");
        if (!in) die("--chat-template %s: cannot be read", path);
        char *own = mem_alloc(TEMPLATE_BYTES_MAX + 1);
        size_t bytes = fread(own, 1, TEMPLATE_BYTES_MAX + 1, in);
        fclose(in);
        if (bytes > TEMPLATE_BYTES_MAX) die("--chat-template %s: too large", path);
        if (template_open(&gw->chat, own, bytes, &why) != OK) {
            die("--chat-template %s: %s", path, why.text);
        }
        free(own);
    } else if (gguf_get_text(gw->file, "tokenizer.chat_template", &text) &&
               template_open(&gw->chat, text.data, text.bytes, &why) != OK) {
        log_warn("the model's chat template cannot be used: %s", why.text);
    }
}

static void open_model(struct gateway *gw)
{
    struct why why;
    if (!gw->config.model[0]) die("--model is missing");
    if (gguf_open(&gw->file, gw->config.model, &why) != OK) die("%s", why.text);
    if (tokenizer_open(&gw->tokenizer, gw->file, &why) != OK) {
        die("%s: %s", gw->config.model, why.text);
    }
    gw->context = gw->config.max_model_len ? (uint32_t)gw->config.max_model_len : 2048;
    if (gguf_tensor_count(gw->file)) {
        struct model *model;
        if (model_open(&model, gw->file, &why) != OK) die("%s: %s", gw->config.model, why.text);
        gw->digest = model->digest;
        gw->has_digest = true;
        if (!gw->config.max_model_len) gw->context = model->h.context;
        model_close(model);
    }
    if (gw->context > SEQ_TOKENS_MAX) gw->context = SEQ_TOKENS_MAX;
    gw->store = prefix_store_open(gw->tokenizer, PREFIX_STORE_BYTES_MAX);
    gw->guard = guard_open(gw->tokenizer, gw->store);
    open_template(gw);
    name_model(gw);
}

static void open_view(struct gateway *gw)
{
    struct why why;
    uint8_t secret[SECRET_BYTES];
    const struct config *c = &gw->config;
    if (*c->kv_secret_file) {
        if (link_secret_read(c->kv_secret_file, secret, &why) != OK) die("%s", why.text);
        gw->kv_secret = link_kv_secret(secret);
    }
    if (!*c->redis || !*c->jobs) return; /* one job: nothing to choose */
    struct shared_view_config s = shared_view_settings(c);
    if (shared_view_open(&gw->view, &s, &why) != OK) die("%s", why.text);
}

static void close_model(struct gateway *gw)
{
    template_close(gw->chat);
    guard_close(gw->guard);
    prefix_store_close(gw->store);
    tokenizer_close(gw->tokenizer);
    gguf_close(gw->file);
    auth_close(gw->auth);
    metrics_close(gw->metrics);
}

static uint64_t server_wait_ms(void)
{
    return http_wait_ms(server);
}

static void server_turn(void)
{
    http_turn(server);
}

static void server_tick(void)
{
    http_tick(server);
}

static void on_ready(void)
{
    printf("ready %s\n", http_url(server));
    fflush(stdout);
}

static uint64_t calls_open(struct gateway *gw)
{
    pthread_mutex_lock(&gw->lock);
    uint64_t open = gw->calls_open;
    pthread_mutex_unlock(&gw->lock);
    return open;
}

/* Waits until no call is open, or the time is over, or a second signal comes. */
static void wait_calls(struct gateway *gw, const sigset_t *signals, uint64_t ns)
{
    uint64_t until = clock_now_ns() + ns;
    struct timespec step = { .tv_nsec = 20000000 };
    while (calls_open(gw) && clock_now_ns() < until) {
        if (sigtimedwait(signals, NULL, &step) > 0) return;
    }
}

static void drain(struct gateway *gw, const sigset_t *signals)
{
    pthread_mutex_lock(&gw->lock);
    gw->draining = true;
    uint64_t open = gw->calls_open;
    pthread_mutex_unlock(&gw->lock);
    log_info("draining calls=%llu", (unsigned long long)open);
    wait_calls(gw, signals, gw->config.drain_timeout_s * NS_PER_S);
    pthread_mutex_lock(&gw->lock);
    call_abort_all(gw);
    pthread_mutex_unlock(&gw->lock);
    wait_calls(gw, signals, NS_PER_S);
    if (calls_open(gw)) leave(0);     /* clients that take nothing: their sockets die with us */
}

static void raise_limits(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv)
{
    struct gateway *gw = &gateway;
    struct why why;
    fatal_hook = leave;
    log_name("gateway");
    scrub_environment();
    if (config_load(&gw->config, PROGRAM_GATEWAY, argc, argv, NULL, &why) != OK) {
        die("%s", why.text);
    }
    if (*gw->config.jobs && *gw->config.link) die("--jobs and --link: only one of them");
    log_set_level(gw->config.log_level);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    raise_limits();
    api_start();

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread: only sigwait sees them */
    signal(SIGPIPE, SIG_IGN);

    pthread_mutex_init(&gw->lock, NULL);
    gw->started = time(NULL);
    gw->metrics = metrics_open();
    if (auth_open(&gw->auth, gw->config.api_key_file, &why) != OK) die("%s", why.text);
    if (http_bind(&server, gw, &why) != OK) die("%s", why.text);
    open_model(gw);
    open_view(gw);
    gw->helpers = helpers_start();
    if (http_start(server, &why) != OK) die("%s", why.text);
    link_client_start(gw, &call_link_owner, &(struct link_thread){
        .fd = http_fd(server), .wait_ms = server_wait_ms, .turn = server_turn,
        .tick = server_tick, .ready = on_ready });
    struct jobs *jobs = *gw->config.jobs ? jobs_start(gw, &why) : NULL;
    if (*gw->config.jobs && !jobs) die("%s", why.text);
    printf("listening %s\n", http_url(server));
    fflush(stdout);

    int received = 0;
    while (sigwait(&signals, &received) != 0) continue;
    drain(gw, &signals);
    link_client_stop(gw->link);
    /* One hangs in a file system, or asks a name server: nothing else waits. */
    if ((jobs && !jobs_stop(jobs)) || !helpers_stop(gw->helpers)) leave(0);
    http_stop(server);
    link_client_close(gw->link);
    shared_view_close(gw->view);
    free(server);
    close_model(gw);
    return 0;
}
