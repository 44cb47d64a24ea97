/* ctl/bench_run.c - the loop: sends what is due, at most so many at once; see bench.h.
 *
 * Closed loop: `max_concurrency` clients, each asks again when answered.  Open loop: requests are
 * due at drawn times.  With long prompts the clients are streams that go on until the last long
 * prompt has its first token:
 *
 *   FILL --all streams have a token--> BEFORE --time--> DURING --long ones answered--> TAIL --> end
 *
 * A gap between two tokens belongs to DURING when any part of it lies there; TAIL waits for the
 * gaps that were open when DURING ended.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "ctl/bench.h"
#include "ctl/ctl.h"
#include "ctl/endpoint.h"
#include "ctl/http_load.h"

enum { BEFORE_SECONDS_MIN = 4, TAIL_SECONDS_MAX = 30, WAIT_MS_MAX = 500 };
enum phase { PLAIN, FILL, BEFORE, DURING, TAIL, OVER };

struct client {
    struct run *run;
    struct stream stream;
    char *body;                       /* NULL: idle */
    uint32_t index;
};

struct run {
    const struct bench_options *o;
    const struct work *work;
    struct bench_result *result;
    struct http_load *load;
    struct client *clients;
    uint32_t client_count, running;
    uint32_t long_running;            /* of those running */
    uint32_t first_index, started, total;
    uint64_t arrivals;                /* of common/splitmix.h */
    uint64_t begin_ns, last_end_ns;
    double due_s;                     /* of the next request, after begin */
    enum phase phase;
    uint64_t phase_ns, during_ns, over_ns;   /* this phase's start, DURING's start and end */
    uint32_t long_sent, long_answered;
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

void bench_count_error(struct bench_result *r, const char *kind, const char *detail)
{
    uint32_t i = 0;
    while (i < r->error_kinds && strcmp(r->errors[i].text, kind) != 0) i++;
    if (i == r->error_kinds) {
        if (i >= BENCH_ERROR_KINDS_MAX - 1) {
            i = BENCH_ERROR_KINDS_MAX - 1;
            kind = "other";
        }
        r->error_kinds = i + 1;
        snprintf(r->errors[i].text, sizeof r->errors[i].text, "%s", kind);
    }
    r->errors[i].count++;
    if (!*r->first_error) {
        snprintf(r->first_error, sizeof r->first_error, "%s%s%.500s", kind, *detail ? ": " : "",
                 detail);
        for (char *c = r->first_error; *c; c++) {
            if ((unsigned char)*c < ' ') *c = ' ';
        }
    }
}

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return ((double)to_ns - (double)from_ns) / (double)NS_PER_MS;
}

static bool is_long(const struct client *c)
{
    return c->index & WORK_LONG;
}

static void on_gap(void *context, uint64_t from_ns, uint64_t to_ns)
{
    struct client *c = context;
    struct run *u = c->run;
    double ms = ms_between(from_ns, to_ns);
    if (u->phase == PLAIN) {
        samples_add(&u->result->itl, ms);
    } else if (!is_long(c)) {
        if (u->phase == BEFORE && from_ns >= u->phase_ns) samples_add(&u->result->itl_before, ms);
        else if (u->phase == DURING) samples_add(&u->result->itl_during, ms);
        else if (u->phase == TAIL && from_ns < u->over_ns) samples_add(&u->result->itl_during, ms);
    }
}

static bool on_data(void *context, const char *data, size_t bytes)
{
    struct client *c = context;
    uint32_t before = c->stream.chunks;
    bool ok = stream_take(&c->stream, data, bytes, clock_now_ns());
    if (is_long(c) && !before && c->stream.chunks) c->run->long_answered++;
    return ok;
}

static void record(struct run *u, const struct client *c, uint64_t now)
{
    struct bench_result *r = u->result;
    struct bench_times t = stream_times(&c->stream, now);
    r->completed++;
    if (is_long(c)) {
        samples_add(&r->long_ttft, t.ttft);
        samples_add(&r->long_e2el, t.e2el);
        return;
    }
    samples_add(&r->ttft, t.ttft);
    samples_add(&r->e2el, t.e2el);
    if (stream_tokens(&c->stream) > 1) samples_add(&r->tpot, t.tpot);
    r->good += slo_met(&u->o->slo, &t);
}

static void on_done(void *context, const char *error, const char *detail)
{
    struct client *c = context;
    struct run *u = c->run;
    struct stream *s = &c->stream;
    uint64_t now = clock_now_ns();
    stream_end(s);
    if (*s->error) error = s->error;
    else if (!error && !s->done) error = "stream ended early";
    else if (!error && !stream_tokens(s)) error = "no tokens";
    if (is_long(c) && !s->chunks) u->long_answered++;
    u->result->input_tokens += s->prompt_tokens;
    u->result->output_tokens += stream_tokens(s);
    if (error) {
        u->result->failed++;
        bench_count_error(u->result, error, detail);
    } else {
        record(u, c, now);
    }
    free(c->body);
    c->body = NULL;
    u->running--;
    u->long_running -= is_long(c);
    u->last_end_ns = now;
}

static void send_request(struct run *u, uint32_t index)
{
    struct client *c = u->clients;
    while (c->body) c++;
    c->index = index;
    c->body = work_body(u->work, index);
    stream_start(&c->stream, clock_now_ns());
    http_load_post(u->load, u->o->chat ? "/v1/chat/completions" : "/v1/completions", c->body, c);
    u->result->sent++;
    u->long_running += is_long(c);
    if (++u->running > u->result->running_max) u->result->running_max = u->running;
}

static double seconds_since(uint64_t begin_ns)
{
    return (double)(clock_now_ns() - begin_ns) / (double)NS_PER_S;
}

/* Sends what is due; milliseconds until the next is. */
static int send_due(struct run *u, double rate)
{
    while (u->started < u->total && u->running - u->long_running < u->o->max_concurrency) {
        double late = seconds_since(u->begin_ns) - u->due_s;
        if (rate > 0 && late < 0) return late < -0.5 ? WAIT_MS_MAX : (int)(-late * 1000) + 1;
        send_request(u, u->first_index + u->started++);
        if (rate > 0) {
            if (late * 1000 > u->result->late_max_ms) u->result->late_max_ms = late * 1000;
            u->due_s += draw_interval(&u->arrivals, rate, u->o->burstiness);
        }
    }
    return WAIT_MS_MAX;
}

static bool time_is_up(const struct run *u)
{
    return interrupted || seconds_since(u->begin_ns) >= u->o->duration_s;
}

/* `total` requests, the plain way. */
static void run_plain(struct run *u, uint32_t first_index, uint32_t total, double rate)
{
    u->first_index = first_index;
    u->total = total;
    u->started = 0;
    u->due_s = 0;
    u->begin_ns = u->last_end_ns = clock_now_ns();
    while ((u->started < total || u->running) && !time_is_up(u)) {
        int wait = send_due(u, rate);
        double left = u->o->duration_s - seconds_since(u->begin_ns);
        if (left * 1000 < wait) wait = left < 0 ? 0 : (int)(left * 1000) + 1;
        http_load_poll(u->load, wait);
    }
}

static void enter(struct run *u, enum phase phase)
{
    u->phase = phase;
    u->phase_ns = clock_now_ns();
    if (phase == DURING) u->during_ns = u->phase_ns;
    if (phase == TAIL) u->over_ns = u->phase_ns;
}

/* Every running stream has a token newer than `since_ns`. */
static bool all_streams_passed(const struct run *u, uint64_t since_ns)
{
    uint32_t passed = 0;
    for (uint32_t i = 0; i < u->client_count; i++) {
        const struct client *c = &u->clients[i];
        if (!c->body || is_long(c)) continue;
        if (!c->stream.chunks || c->stream.last_ns < since_ns) return false;
        passed++;
    }
    return passed > 0;
}

static void next_phase(struct run *u)
{
    const struct bench_options *o = u->o;
    double in_phase = seconds_since(u->phase_ns);
    double before = o->long_prompts * o->long_interval_s;
    if (before < BEFORE_SECONDS_MIN) before = BEFORE_SECONDS_MIN;
    switch (u->phase) {
    case FILL:
        if (u->running == o->max_concurrency && all_streams_passed(u, 0)) enter(u, BEFORE);
        break;
    case BEFORE:
        if (in_phase >= before) enter(u, DURING);
        break;
    case DURING:
        if (u->long_sent == o->long_prompts && u->long_answered == u->long_sent) enter(u, TAIL);
        break;
    case TAIL:
        if (all_streams_passed(u, u->over_ns) || in_phase >= TAIL_SECONDS_MAX) enter(u, OVER);
        break;
    default:
        break;
    }
}

/* Clients ask again at once while the run goes on; long prompts come at their own times. */
static void run_interference(struct run *u)
{
    const struct bench_options *o = u->o;
    u->begin_ns = u->last_end_ns = clock_now_ns();
    u->total = BENCH_PROMPTS_MAX;
    u->started = 0;
    enter(u, FILL);
    while (u->phase != OVER && !time_is_up(u)) {
        if (u->result->failed) break;             /* streams that fail at once would spin */
        if (u->phase != TAIL) send_due(u, 0);
        if (u->phase == DURING && u->long_sent < o->long_prompts &&
            seconds_since(u->during_ns) >= u->long_sent * o->long_interval_s) {
            send_request(u, WORK_LONG + u->long_sent++);
        }
        http_load_poll(u->load, 20);
        next_phase(u);
    }
    u->last_end_ns = clock_now_ns();
}

/* What was still running: its tokens count, its times do not. */
static void cut(struct run *u)
{
    for (uint32_t i = 0; i < u->client_count; i++) {
        struct client *c = &u->clients[i];
        if (c->body) {
            u->result->cut++;
            u->result->output_tokens += c->stream.chunks;
            if (is_long(c) && c->stream.chunks) {
                samples_add(&u->result->long_ttft, stream_times(&c->stream, 0).ttft);
            }
            u->last_end_ns = clock_now_ns();
        }
        free(c->body);
        c->body = NULL;
    }
    u->running = 0;
}

static void warm_up(struct run *u, const struct bench_options *o)
{
    if (!o->warmup) return;
    run_plain(u, WORK_WARMUP, o->warmup, 0);
    struct bench_result *r = u->result;
    if (!r->completed && r->failed) {
        die("bench: every warm-up request failed: %s", r->first_error);
    }
    if (u->running && !interrupted) die("bench: the warm-up did not end in %.0f s", o->duration_s);
    bench_result_release(r);
}

void bench_run(const struct endpoint *at, const struct work *work, struct bench_result *result)
{
    const struct bench_options *o = work->o;
    struct run u = { .o = o, .work = work, .result = result,
                     .client_count = o->max_concurrency + o->long_prompts,
                     .arrivals = o->seed ^ UINT64_C(0xa11e5) };
    struct http_load_config c = { .base = at->url, .uds = at->uds, .api_key = at->api_key,
                                  .posts_max = u.client_count, .data = on_data, .done = on_done };
    signal(SIGINT, on_interrupt);
    u.load = http_load_open(&c);
    u.clients = mem_array(u.client_count, sizeof *u.clients);
    for (uint32_t i = 0; i < u.client_count; i++) {
        u.clients[i].run = &u;
        u.clients[i].stream.gap = on_gap;
        u.clients[i].stream.context = &u.clients[i];
    }
    warm_up(&u, o);
    if (o->long_prompts) run_interference(&u);
    else run_plain(&u, 0, o->num_prompts, o->request_rate);
    http_load_close(u.load);
    cut(&u);
    result->duration_s = (double)(u.last_end_ns - u.begin_ns) / (double)NS_PER_S;
    result->interrupted = interrupted;
    for (uint32_t i = 0; i < u.client_count; i++) buf_release(&u.clients[i].stream.line);
    free(u.clients);
}

void bench_result_release(struct bench_result *r)
{
    struct samples *all[] = { &r->ttft, &r->tpot, &r->itl, &r->e2el, &r->itl_before,
                              &r->itl_during, &r->long_ttft, &r->long_e2el };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) samples_release(all[i]);
    *r = (struct bench_result){ 0 };
}
