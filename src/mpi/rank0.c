/* mpi/rank0.c - rank 0's loop: who is alive, what they say, when and how the job ends. */
#include "mpi/rank0.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

#define START_NS (600 * NS_PER_S)     /* until every worker is up */
#define LEAVE_NS (2 * NS_PER_S)       /* for the last messages    */

enum { CODE_FAILED = 1, CODE_ALL_LOST = 3 };

void rank0_over(struct rank0 *z, int code, const char *fmt, ...)
{
    if (z->over) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(z->over_why, sizeof z->over_why, fmt, ap);
    va_end(ap);
    z->over = true;
    z->over_code = code;
}

/* `text` with what JSON wants escaped. */
static void add_json_text(struct buf *b, const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') buf_char(b, '\\');
        if ((unsigned char)*text >= ' ') buf_char(b, *text);
    }
}

void rank0_status_file(const struct config *c, int code, const char *why)
{
    if (!c->status_file || !c->status_file[0]) return;
    struct buf name = { 0 }, text = { 0 };
    buf_print(&name, "%s.%d.tmp", c->status_file, (int)getpid());
    buf_print(&text, "{\"code\":%d,\"why\":\"", code);
    add_json_text(&text, why);
    buf_text(&text, "\"}\n");
    int fd = open(name.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool written = fd >= 0 && write(fd, text.data, text.size) == (ssize_t)text.size;
    if (fd >= 0) close(fd);
    if (!written || rename(name.data, c->status_file) != 0)
        log_error("cannot write the status file %s: %s", c->status_file, strerror(errno));
    buf_release(&name);
    buf_release(&text);
}

/* -- workers ---------------------------------------------------------------------------------- */

static void anybody_check(struct rank0 *z)
{
    struct sched_stats s;
    sched_stats(z->sched, &s);
    if (z->state == JOB_STARTING) {
        rank0_over(z, CODE_FAILED, "a worker was lost during start");
    } else if (s.prefill_alive + s.decode_alive == 0) {
        rank0_over(z, CODE_ALL_LOST, "no worker is left");
    }
}

/* From now on requests are placed on it. */
static void employ(struct rank0 *z, int rank, enum role role)
{
    struct peer_worker *w = &z->workers[rank];
    w->spare = false;
    w->role = role;
    act_event(z, (struct sched_event){
        .type = EV_WORKER_UP, .worker = rank, .role = role, .blocks = w->about.blocks_total,
        .seqs = w->about.max_num_seqs, .max_tokens = w->about.max_model_len });
}

static void replace_with_spare(struct rank0 *z, int lost)
{
    for (int i = 1; i < z->job->size; i++) {
        if (!z->workers[i].alive || !z->workers[i].up || !z->workers[i].spare) continue;
        log_info("spare worker=%d takes the place of worker=%d", i, lost);
        employ(z, i, z->workers[lost].role);
        roles_tell(z, i);
        return;
    }
}

static void keep_counters(struct rank0 *z, const struct msg_stats *s)
{
    z->past.prompt += s->prompt_tokens;
    z->past.cached += s->prompt_tokens_cached;
    z->past.output += s->output_tokens;
    z->past.preemptions += s->preemptions;
    z->past.kv += s->kv_bytes_sent;
    z->past.lanes += s->kv_bytes_lanes;
    z->past.step_ns += s->step_ns_sum;
    z->past.stale += s->stale_refused;
    z->past.wakeups += s->wakeups;
}

void rank0_lost(struct rank0 *z, int rank, const char *how)
{
    struct peer_worker *w = &z->workers[rank];
    if (!w->alive) return;
    w->alive = false;
    z->rank_lost = true;
    z->workers_lost++;
    keep_counters(z, &w->stats);
    log_error("lost worker=%d role=%s how=\"%s\"", rank,
              w->spare ? "spare" : role_name(w->role), how);
    index_lost(z, rank);
    port_abandon(z->port, rank);
    struct msg_rank m = { .rank = rank };
    for (int i = 1; i < z->job->size; i++)
        if (z->workers[i].alive) port_send_copy(z->port, i, &m, MSG_LOST, sizeof m);
    if (z->over) return;
    act_event(z, (struct sched_event){ .type = EV_WORKER_LOST, .worker = rank });
    if (!w->spare) replace_with_spare(z, rank);
    act_step(z);
    anybody_check(z);
    links_state(z);
}

static void live(struct rank0 *z)
{
    for (int i = 1; i < z->job->size; i++)
        if (!z->workers[i].up) return;
    index_open(z);
    z->state = z->draining ? JOB_DRAINING : JOB_LIVE;
    links_listen(z);
    log_info("live workers=%d hosts=%d seconds=%.2f", z->job->size - 1, z->job->host_count,
             (double)(clock_now_ns() - z->job->started_ns) / 1e9);
}

/* A lane needs the same library at both ends; without, KV goes by MPI, if that may be. */
static void compare_lanes(struct rank0 *z, int from)
{
    int mine = z->workers[from].about.lanes_version;
    for (int i = 1; i < z->job->size; i++) {
        int its = z->workers[i].about.lanes_version;
        if (!z->workers[i].up || its == mine) continue;
        if (strcmp(z->job->config.kv_connector, "nccl") == 0)
            rank0_over(z, CODE_FAILED, "kv-connector nccl: rank %d has NCCL %d.%d.%d, rank %d has"
                       " %d.%d.%d: all must have the same", i, its / 10000, its / 100 % 100,
                       its % 100, from, mine / 10000, mine / 100 % 100, mine % 100);
        else
            log_warn("rank=%d nccl=%d rank=%d nccl=%d: their KV goes by MPI", i, its, from, mine);
        return;
    }
}

static void on_up(struct rank0 *z, int from, const struct msg_up *m)
{
    struct peer_worker *w = &z->workers[from];
    if (w->up) return;
    w->up = true;
    w->about = *m;
    if (z->max_model_len == 0 || m->max_model_len < z->max_model_len)
        z->max_model_len = m->max_model_len;
    compare_lanes(z, from);
    policy_tell(z, from);
    if (!w->spare) employ(z, from, job_role_of(z->job, from));
    live(z);
}

static void on_gone(struct rank0 *z, int from, const struct msg_req *m)
{
    act_event(z, (struct sched_event){ .type = EV_GONE, .req = m->req, .worker = from });
}

static void on_refuse(struct rank0 *z, int from, const struct msg_refuse *m)
{
    act_event(z, (struct sched_event){ .type = EV_REFUSED, .req = m->req, .worker = from,
                                       .err = (enum err)m->err });
}

static void on_stats(struct rank0 *z, int from, const struct msg_stats *m)
{
    z->workers[from].stats = *m;
    index_on_stats(z, from, m);
    rates_learn_link(z, m->link_peer, m->link_bytes_s);
    rates_learn(z, from);
}

static void on_fatal(struct rank0 *z, int from, const struct msg_fatal *m)
{
    rank0_over(z, CODE_FAILED, "rank %d: %s", from, m->text);
}

/* What somebody waits for goes out before the books are kept. */
static void answer(struct rank0 *z)
{
    if (z->over) return;
    if (z->event_count) act_step(z);
    links_turn(z);
}

static bool dispatch(struct rank0 *z, int from, const void *data, size_t bytes)
{
    const struct msg_up *up = msg_as_up(data, bytes);
    const struct msg_tokens *tokens = msg_as_tokens(data, bytes);
    const struct msg_refuse *no = msg_as_refuse(data, bytes);
    const struct msg_req *req = msg_as_req(data, bytes);
    const struct msg_stats *stats = msg_as_stats(data, bytes);
    const struct msg_fatal *fatal = msg_as_fatal(data, bytes);
    const struct msg_blocks *blocks = msg_as_blocks(data, bytes);
    switch (msg_type_of(data, bytes)) {
    case MSG_UP: return up && (on_up(z, from, up), true);
    case MSG_TOKENS: return tokens && (requests_on_tokens(z, from, tokens), true);
    case MSG_SCORES: return tokens && (requests_on_scores(z, tokens), true);
    case MSG_REFUSE: return no && (on_refuse(z, from, no), true);
    case MSG_GONE: return req && (on_gone(z, from, req), true);
    case MSG_STATS: return stats && (on_stats(z, from, stats), true);
    case MSG_FATAL: return fatal && (on_fatal(z, from, fatal), true);
    case MSG_READY: return msg_as_ready(data, bytes) != NULL; /* the scheduler needs none */
    case MSG_BLOCKS: return blocks && (answer(z), index_on_blocks(z, from, blocks), true);
    default: return false;
    }
}

static void on_message(void *ctx, int from, const void *data, size_t bytes)
{
    struct rank0 *z = ctx;
    if (dispatch(z, from, data, bytes)) return;
    z->stale++;
    log_warn("refused message from=%d type=%s bytes=%zu", from,
             msg_type_name(msg_type_of(data, bytes)), bytes);
}

static void on_ended(void *ctx, int rank)
{
    rank0_lost(ctx, rank, "its connection ended");
}

/* Of the process's main thread, which would answer us; 0: who knows. */
static char process_state(int32_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = pid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end && name_end[1] == ' ' ? name_end[2] : 0;
}

/* It could run if it were given a processor, or a page of memory: late, but not hung. */
static bool is_starved(const struct rank0 *z, int rank)
{
    if (z->job->host_of[rank] != z->job->host_of[0]) return false;
    char state = process_state(z->workers[rank].about.pid);
    return state == 'R' || state == 'D';
}

static uint32_t ticks_allowed(const struct rank0 *z)
{
    int alive = 0;
    for (int i = 1; i < z->job->size; i++) alive += z->workers[i].alive;
    return alive > 1 ? TICKS_SILENT_MAX : TICKS_SILENT_LAST_MAX;
}

/* Every TICK_NS: asks each worker for a sign of life, and counts those that gave none since. */
static void tick(struct rank0 *z, uint64_t now_ns)
{
    for (int i = 1; i < z->job->size; i++) {
        struct peer_worker *w = &z->workers[i];
        if (!w->alive || !w->up) continue;
        uint64_t heard = port_heard_ns(z->port, i);
        if (heard != w->heard_ns) w->silent_ticks = w->starved_ticks = 0;
        else if (is_starved(z, i)) w->starved_ticks++;
        else w->silent_ticks++;
        w->heard_ns = heard;
        if (w->silent_ticks >= ticks_allowed(z) ||
            w->silent_ticks + w->starved_ticks >= TICKS_SILENT_LAST_MAX) {
            rank0_lost(z, i, "silent");
            continue;
        }
        struct msg_ping m = { .sent_ns = now_ns };
        port_send_copy(z->port, i, &m, MSG_PING, sizeof m);
    }
    links_tick(z, now_ns);
    if (z->state == JOB_STARTING && now_ns - z->job->started_ns > START_NS)
        rank0_over(z, CODE_FAILED, "not every worker came up in %d s", (int)(START_NS / NS_PER_S));
}

/* -- ending ----------------------------------------------------------------------------------- */

static void drain(struct rank0 *z)
{
    if (z->draining) return;
    z->draining = true;
    if (z->state == JOB_LIVE) z->state = JOB_DRAINING;
    z->drain_end_ns = clock_now_ns() + z->job->config.drain_timeout_s * NS_PER_S;
    act_event(z, (struct sched_event){ .type = EV_DRAIN });
    links_state(z);
    log_info("draining timeout_s=%llu", (unsigned long long)z->job->config.drain_timeout_s);
}

static void on_signal(struct watch *w, uint32_t events)
{
    (void)events;
    struct rank0 *z = w->ctx;
    struct signalfd_siginfo s;
    while (read(w->fd, &s, sizeof s) == sizeof s) {
        if (++z->signal_count == 1) drain(z);
        else if (clock_now_ns() - z->signal_ns > NS_PER_S) /* one signal may come twice */
            rank0_over(z, CODE_FAILED, "stopped by a second signal");
        z->signal_ns = clock_now_ns();
    }
}

static void drain_check(struct rank0 *z, uint64_t now_ns)
{
    if (!z->draining || z->over) return;
    if (sched_idle(z->sched)) rank0_over(z, 0, "drained");
    else if (now_ns > z->drain_end_ns) rank0_over(z, CODE_FAILED, "drain timed out");
}

static void end_all(struct rank0 *z)
{
    for (int i = 0; i < REQ_COUNT_MAX; i++) {
        struct request *r = &z->requests[i];
        if (r->used && !r->answered) act_end(z, r, LINK_WORKER_LOST, FINISH_ERROR, 0);
    }
}

_Noreturn static void leave(struct rank0 *z)
{
    end_all(z);
    lines_write(z);
    if (z->over_code) log_error("over code=%d why=\"%s\"", z->over_code, z->over_why);
    else log_info("over code=0 why=\"%s\"", z->over_why);
    struct msg_exit m = { .code = z->over_code };
    for (int i = 1; i < z->job->size; i++)
        if (z->workers[i].alive) port_send_copy(z->port, i, &m, MSG_EXIT, sizeof m);
    uint64_t end = clock_now_ns() + LEAVE_NS;
    links_turn(z);
    while (clock_now_ns() < end && !(port_sent_all(z->port) && links_sent_all(z))) {
        loop_wait(z->loop, NS_PER_MS);
        port_poll(z->port);
        links_turn(z);
    }
    links_close(z);
    shared_view_close(z->view);
    rank0_status_file(&z->job->config, z->over_code, z->over_why);
    if (z->over_code == 0 && !z->rank_lost) job_leave_together(0);
    job_leave_alone(z->over_code);
}

/* -- the loop --------------------------------------------------------------------------------- */

static void open_signals(struct rank0 *z)
{
    sigset_t set; /* blocked since main() began */
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    z->signals = (struct watch){ .fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK),
                                 .call = on_signal, .ctx = z };
    if (z->signals.fd < 0) die("signalfd: %s", strerror(errno));
    loop_add(z->loop, &z->signals, EPOLLIN);
}

static void open_sched(struct rank0 *z)
{
    const struct config *c = &z->job->config;
    struct sched_config s = {
        .rank_count = (uint32_t)z->job->size,
        .queue_max = (uint32_t)(c->max_queue < REQ_COUNT_MAX ? c->max_queue : REQ_COUNT_MAX),
        .block_tokens = (uint32_t)c->block_size, .seed = c->seed,
        .pull = true, .emitted = z->emitted,
        .switch_interval_ns = c->enable_pd_role_switch ? c->pd_role_switch_interval_ms * NS_PER_MS
                                                       : 0,
    };
    struct why why;
    if (policy_start(z, &s, &why)) rank0_over(z, CODE_FAILED, "%s", why.text);
    z->sched = sched_init(mem_alloc(sched_bytes(&s)), &s);
}

static void open_all(struct rank0 *z, struct job *j, struct port *port,
                     const struct weights *weights)
{
    struct why why = { 0 };
    z->job = j;
    z->loop = j->loop;
    z->port = port;
    z->weights = *weights;
    z->state = JOB_STARTING;
    z->workers = mem_array((size_t)j->size, sizeof *z->workers);
    for (int i = 1; i < j->size; i++) {
        z->workers[i].alive = true;
        z->workers[i].spare = job_is_spare(j, i);
        z->workers[i].role = job_role_of(j, i);
    }
    requests_open(z);
    open_sched(z);
    struct port_sink sink = { .ctx = z, .message = on_message, .ended = on_ended };
    port_serve(port, &sink);
    if (index_share(z, &why)) rank0_over(z, CODE_FAILED, "%s", why.text);
    if (links_open(z, &why)) rank0_over(z, CODE_FAILED, "%s", why.text);
    open_signals(z);
    alarm(0);
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
}

static uint64_t sleep_ns(struct rank0 *z, uint64_t now_ns)
{
    uint64_t until = z->tick_ns + TICK_NS;
    uint64_t wake = sched_wake_ns(z->sched);
    if (wake < until) until = wake;
    if (z->draining && z->drain_end_ns < until) until = z->drain_end_ns;
    if (log_due_ns() < until) until = log_due_ns();
    uint64_t nap = port_nap_ns(z->port, now_ns);
    uint64_t rest = until > now_ns && z->event_count == 0 ? until - now_ns : 0;
    return nap < rest ? nap : rest;
}

static void turn(struct rank0 *z)
{
    loop_wait(z->loop, sleep_ns(z, clock_now_ns()));
    port_poll(z->port);
    uint64_t now = clock_now_ns();
    if (now - z->tick_ns >= TICK_NS) {
        z->tick_ns = now;
        tick(z, now);
    }
    act_step(z);
    if (now - z->state_ns >= LINK_STATE_MS * NS_PER_MS) {
        z->state_ns = now;
        if (links_connected(z)) links_state(z);
    }
    links_turn(z);
    lines_write(z);
    drain_check(z, now);
    if (now >= log_due_ns()) log_flush();
}

_Noreturn void rank0_run(struct job *j, struct port *port, const struct weights *weights)
{
    struct rank0 *z = mem_alloc(sizeof *z);
    open_all(z, j, port, weights);
    log_gather(true);
    while (!z->over) turn(z);
    log_gather(false);
    leave(z);
}
