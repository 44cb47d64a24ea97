/* gateway/metrics.c - see metrics.h.  Names: DESIGN's llm_d_* and vLLM's aliases. */
#include "gateway/metrics.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

enum { BUCKETS_MAX = 20, RECENT = 1024, RECENT_S = 60, STATUS_MAX = 600 };

struct histogram {
    uint64_t count, bucket[BUCKETS_MAX];
    double sum;
};

static const double seconds_bounds[] = { 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
                                         10, 30, 60, 120, 300, 600 };
static const double token_bounds[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                       0.2, 0.3, 0.5, 1, 2.5, 5 };
static const double count_bounds[] = { 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000,
                                       10000, 20000, 50000, 100000 };
enum { SECONDS_BOUNDS = sizeof seconds_bounds / sizeof *seconds_bounds,
       TOKEN_BOUNDS = sizeof token_bounds / sizeof *token_bounds,
       COUNT_BOUNDS = sizeof count_bounds / sizeof *count_bounds };
_Static_assert((int)SECONDS_BOUNDS <= (int)BUCKETS_MAX && (int)COUNT_BOUNDS <= (int)BUCKETS_MAX,
               "buckets fit");

struct metrics {
    uint64_t requests[STATUS_MAX][FINISH_COUNT];
    uint64_t choices[FINISH_COUNT];
    uint64_t prompt_tokens, cached_tokens, output_tokens;
    struct histogram duration, first_token, next_token, prompt_size, output_size;
    struct { float seconds; uint64_t at_ns; } recent[RECENT];
    uint64_t recent_count;
    struct link_state state;          /* the last one; all zero while there is no link */
    uint64_t state_ns;
    double tokens_per_second, busy;   /* over the last second or so of states */
};

static const char *const finish_names[FINISH_COUNT] = { "none", "stop", "length", "abort",
                                                        "error" };

struct metrics *metrics_open(void)
{
    return mem_alloc(sizeof(struct metrics));
}

void metrics_close(struct metrics *m)
{
    free(m);
}

static void observe(struct histogram *h, const double *bounds, int count, double value)
{
    h->count++;
    h->sum += value;
    for (int i = 0; i < count; i++) {
        if (value > bounds[i]) continue;
        h->bucket[i]++;
        return;
    }
}

void metrics_request(struct metrics *m, int status, enum finish finish, double seconds)
{
    if (status < 0 || status >= STATUS_MAX) status = 0;
    m->requests[status][finish]++;
    if (finish != FINISH_NONE) observe(&m->duration, seconds_bounds, SECONDS_BOUNDS, seconds);
}

void metrics_choice(struct metrics *m, enum finish finish, uint32_t prompt, uint32_t cached,
                    uint32_t output)
{
    m->choices[finish]++;
    m->prompt_tokens += prompt;
    m->cached_tokens += cached;
    m->output_tokens += output;
    observe(&m->prompt_size, count_bounds, COUNT_BOUNDS, prompt);
    observe(&m->output_size, count_bounds, COUNT_BOUNDS, output);
}

void metrics_first_token(struct metrics *m, double seconds)
{
    observe(&m->first_token, seconds_bounds, SECONDS_BOUNDS, seconds);
}

void metrics_next_token(struct metrics *m, double seconds, uint64_t now_ns)
{
    observe(&m->next_token, token_bounds, TOKEN_BOUNDS, seconds);
    m->recent[m->recent_count % RECENT].seconds = (float)seconds;
    m->recent[m->recent_count++ % RECENT].at_ns = now_ns;
}

void metrics_state(struct metrics *m, const struct link_state *s, uint64_t now_ns)
{
    double gone = (double)(now_ns - m->state_ns) / NS_PER_S;
    bool restarted = s->uptime_ns < m->state.uptime_ns || s->output_tokens < m->state.output_tokens;
    if (m->state_ns && !restarted && gone < 0.2) {
        uint64_t keep_output = m->state.output_tokens, keep_step = m->state.step_ns_sum;
        uint64_t keep_uptime = m->state.uptime_ns;
        m->state = *s;                /* a change of state between two ticks: no new rates */
        m->state.output_tokens = keep_output;
        m->state.step_ns_sum = keep_step;
        m->state.uptime_ns = keep_uptime;
        return;
    }
    if (m->state_ns && !restarted) {
        double workers = s->workers_alive ? s->workers_alive : 1;
        m->tokens_per_second = (double)(s->output_tokens - m->state.output_tokens) / gone;
        m->busy = (double)(s->step_ns_sum - m->state.step_ns_sum) / NS_PER_S / gone / workers;
        if (m->busy < 0 || s->step_ns_sum < m->state.step_ns_sum) m->busy = 0;
        if (m->busy > 1) m->busy = 1;
    }
    m->state = *s;
    m->state_ns = now_ns;
}

void metrics_link_lost(struct metrics *m)
{
    m->state = (struct link_state){ 0 };
    m->state_ns = 0;
    m->tokens_per_second = m->busy = 0;
}

static int float_order(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* The 95th percentile of the gaps between tokens of the last minute; 0 when there were none. */
static double recent_p95(const struct metrics *m, uint64_t now_ns)
{
    float values[RECENT];
    size_t count = 0, have = m->recent_count < RECENT ? m->recent_count : RECENT;
    for (size_t i = 0; i < have; i++) {
        if (now_ns - m->recent[i].at_ns > RECENT_S * NS_PER_S) continue;
        values[count++] = m->recent[i].seconds;
    }
    if (!count) return 0;
    qsort(values, count, sizeof *values, float_order);
    return (double)values[(count - 1) * 95 / 100];
}

/* -- text ------------------------------------------------------------------------------------- */

struct writer {
    struct buf *out;
    char label[300];                  /* model_name="..." */
};

static void head(struct writer *w, const char *name, const char *type, const char *help)
{
    buf_print(w->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(struct writer *w, const char *name, const char *help, double value)
{
    head(w, name, "gauge", help);
    buf_print(w->out, "%s{%s} %.9g\n", name, w->label, value);
}

static void counter(struct writer *w, const char *name, const char *help, uint64_t value)
{
    head(w, name, "counter", help);
    buf_print(w->out, "%s{%s} %llu\n", name, w->label, (unsigned long long)value);
}

static void histogram(struct writer *w, const char *name, const char *help,
                      const struct histogram *h, const double *bounds, int count)
{
    head(w, name, "histogram", help);
    unsigned long long total = 0;
    for (int i = 0; i < count; i++) {
        total += h->bucket[i];
        buf_print(w->out, "%s_bucket{%s,le=\"%.9g\"} %llu\n", name, w->label, bounds[i], total);
    }
    buf_print(w->out, "%s_bucket{%s,le=\"+Inf\"} %llu\n%s_sum{%s} %.9g\n%s_count{%s} %llu\n", name,
              w->label, (unsigned long long)h->count, name, w->label, h->sum, name, w->label,
              (unsigned long long)h->count);
}

static void label_set(struct writer *w, const char *model)
{
    struct buf b = { .limit = sizeof w->label - 2 };
    buf_text(&b, "model_name=\"");
    for (const char *c = model; *c && !b.overflowed; c++) {
        if (*c == '\n') buf_text(&b, "\\n");
        else if (*c == '"' || *c == '\\') buf_print(&b, "\\%c", *c);
        else buf_char(&b, *c);
    }
    memcpy(w->label, b.data, b.size);
    w->label[b.size] = '"';
    w->label[b.size + 1] = '\0';
    buf_release(&b);
}

static void write_requests(const struct metrics *m, struct writer *w)
{
    head(w, "llm_d_requests_total", "counter", "Requests for generation answered.");
    for (int status = 0; status < STATUS_MAX; status++) {
        for (int f = 0; f < FINISH_COUNT; f++) {
            unsigned long long n = m->requests[status][f];
            bool always = status == 200 && f == FINISH_STOP; /* a series from the start */
            if (!n && !always) continue;
            buf_print(w->out, "llm_d_requests_total{%s,status=\"%d\",finish_reason=\"%s\"} %llu\n",
                      w->label, status, finish_names[f], n);
        }
    }
    head(w, "vllm:request_success_total", "counter", "Sequences that ended, by reason.");
    for (int f = FINISH_STOP; f < FINISH_COUNT; f++) {
        buf_print(w->out, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", w->label,
                  finish_names[f], (unsigned long long)m->choices[f]);
    }
}

static double ratio(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void write_index(const struct link_state *s, struct writer *w)
{
    gauge(w, "llm_d_index_blocks", "KV blocks that the job's index can find.",
          (double)s->index_blocks);
    gauge(w, "llm_d_index_bytes", "Memory of the index.", (double)s->index_bytes);
    counter(w, "llm_d_index_mismatches_total", "Times that the index and a worker disagreed.",
            s->index_mismatches);
    counter(w, "llm_d_index_checks_total", "Comparisons of the index with a worker's own keys.",
            s->index_checks);
    counter(w, "llm_d_index_lookups_total", "Prompts looked for in the index.", s->index_lookups);
}

/* Roles change while a job runs. */
static void write_roles(const struct link_state *s, struct writer *w)
{
    const struct { const char *role; uint32_t count; } rows[] = {
        { "prefill", s->workers_prefill }, { "decode", s->workers_decode },
        { "both", s->workers_both }, { "spare", s->workers_spare },
    };
    head(w, "llm_d_workers", "gauge", "Workers that answer, by the role they have now.");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        buf_print(w->out, "llm_d_workers{%s,role=\"%s\"} %u\n", w->label, rows[i].role,
                  rows[i].count);
    counter(w, "llm_d_role_switches_total", "Workers that went from one role to the other.",
            s->role_switches);
}

static void write_llm_d(const struct metrics *m, struct writer *w, uint64_t now_ns)
{
    const struct link_state *s = &m->state;
    histogram(w, "llm_d_request_duration_seconds", "From the request to its last token.",
              &m->duration, seconds_bounds, SECONDS_BOUNDS);
    gauge(w, "llm_d_tokens_per_second", "Tokens generated by the job per second, now.",
          m->tokens_per_second);
    gauge(w, "llm_d_gpu_utilization", "Share of time that workers spend in steps.", m->busy);
    gauge(w, "llm_d_cache_hit_ratio", "Prompt tokens found in the KV cache, of all of the job.",
          ratio(s->prompt_tokens_cached, s->prompt_tokens));
    gauge(w, "llm_d_cache_memory_usage", "Bytes of KV blocks in use or cached.",
          (double)s->kv_bytes_used);
    gauge(w, "llm_d_prefix_reuse_ratio",
          "Prompt tokens reused, of all that some worker had cached when they were asked for.",
          ratio(s->reuse_captured, s->reuse_possible));
    write_index(s, w);
    counter(w, "llm_d_scheduler_decisions_total", "Placements decided by rank 0.", s->decisions);
    gauge(w, "llm_d_prefill_queue_depth", "Requests placed and waiting for prefill.",
          s->prefill_queue_depth);
    gauge(w, "llm_d_decode_active_sequences", "Sequences that are generating.", s->decode_active);
    gauge(w, "llm_d_queue_depth", "Requests waiting for a place.", s->requests_waiting);
    gauge(w, "llm_d_token_latency_p95", "95th percentile of seconds between tokens, last minute.",
          recent_p95(m, now_ns));
    gauge(w, "llm_d_workers_alive", "Workers that answer.", s->workers_alive);
    write_roles(s, w);
    counter(w, "llm_d_workers_lost_total", "Workers declared dead.", s->workers_lost);
    counter(w, "llm_d_requests_replaced_total", "Requests placed again after a loss.",
            s->requests_replaced);
    counter(w, "llm_d_requests_no_room_total", "Placements refused by a worker without room.",
            s->requests_no_room);
    counter(w, "llm_d_kv_bytes_sent_total", "KV bytes pushed from prefill to decode.",
            s->kv_bytes_sent);
    counter(w, "rankserve_kv_nccl_bytes_sent_total", "Of these: from GPU to GPU by NCCL.",
            s->kv_bytes_lanes);
    counter(w, "llm_d_stale_refused_total", "Messages refused because they came too late.",
            s->stale_refused);
    counter(w, "rankserve_wakeups_total", "Times that a rank's control thread woke.", s->wakeups);
}

/* The block books over all workers, without a model label: total = free + held + cached. */
static void write_blocks(const struct metrics *m, struct writer *w)
{
    const struct link_state *s = &m->state;
    head(w, "rankserve_kv_blocks", "gauge", "KV blocks of all workers by state.");
    buf_print(w->out,
              "rankserve_kv_blocks{state=\"total\"} %u\nrankserve_kv_blocks{state=\"free\"} %u\n"
              "rankserve_kv_blocks{state=\"held\"} %u\nrankserve_kv_blocks{state=\"cached\"} %u\n",
              s->blocks_total, s->blocks_free, s->blocks_held, s->blocks_cached);
}

static void write_vllm(const struct metrics *m, struct writer *w)
{
    const struct link_state *s = &m->state;
    gauge(w, "vllm:num_requests_running", "Requests being computed.", s->requests_running);
    gauge(w, "vllm:num_requests_waiting", "Requests waiting.", s->requests_waiting);
    gauge(w, "vllm:kv_cache_usage_perc", "Share of KV blocks held by running requests.",
          ratio(s->blocks_held, s->blocks_total));
    counter(w, "vllm:num_preemptions_total", "Sequences preempted.", s->preemptions);
    counter(w, "vllm:prompt_tokens_total", "Prompt tokens of this gateway's requests.",
            m->prompt_tokens);
    counter(w, "vllm:prompt_tokens_cached_total", "Of these, from the KV cache.", m->cached_tokens);
    counter(w, "vllm:generation_tokens_total", "Tokens generated for this gateway's requests.",
            m->output_tokens);
    counter(w, "vllm:prefix_cache_queries_total", "Prompt tokens looked up.", s->prompt_tokens);
    counter(w, "vllm:prefix_cache_hits_total", "Prompt tokens found.", s->prompt_tokens_cached);
    histogram(w, "vllm:time_to_first_token_seconds", "From the request to its first token.",
              &m->first_token, seconds_bounds, SECONDS_BOUNDS);
    histogram(w, "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.",
              &m->next_token, token_bounds, TOKEN_BOUNDS);
    histogram(w, "vllm:e2e_request_latency_seconds", "From the request to its last token.",
              &m->duration, seconds_bounds, SECONDS_BOUNDS);
    histogram(w, "vllm:request_prompt_tokens", "Prompt tokens a sequence.", &m->prompt_size,
              count_bounds, COUNT_BOUNDS);
    histogram(w, "vllm:request_generation_tokens", "Tokens generated a sequence.",
              &m->output_size, count_bounds, COUNT_BOUNDS);
}

void metrics_write(const struct metrics *m, const char *model, uint64_t now_ns, struct buf *out)
{
    struct writer w = { .out = out };
    label_set(&w, model);
    write_requests(m, &w);
    write_llm_d(m, &w, now_ns);
    write_blocks(m, &w);
    write_vllm(m, &w);
}

void metrics_write_store(const struct prefix_store_stats *s, const char *model, struct buf *out)
{
    struct writer w = { .out = out };
    label_set(&w, model);
    counter(&w, "llm_d_prefix_store_found_tokens_total",
            "Prompt tokens whose text the gateway had tokenized before.", s->found);
    counter(&w, "llm_d_prefix_store_made_tokens_total",
            "Prompt tokens tokenized, of text long enough to be kept.", s->made);
    gauge(&w, "llm_d_prefix_store_bytes", "Memory of tokenized text.", (double)s->bytes);
}

void metrics_write_view(const struct metrics *m, const struct shared_view_stats *s,
                        const char *model, struct buf *out)
{
    struct writer w = { .out = out };
    label_set(&w, model);
    gauge(&w, "llm_d_redis_jobs_connected", "Jobs that are connected to Redis.",
          (double)m->state.redis_connected);
    counter(&w, "llm_d_redis_announced_total", "Keys of KV blocks that Redis took from jobs.",
            m->state.redis_announced);
    counter(&w, "llm_d_redis_dropped_total", "Keys that jobs could not tell Redis.",
            m->state.redis_dropped);
    counter(&w, "llm_d_redis_job_errors_total", "Failures of Redis that jobs saw.",
            m->state.redis_errors);
    if (!s) return;
    gauge(&w, "llm_d_redis_connected", "Whether this gateway is connected to Redis.", s->connected);
    counter(&w, "llm_d_redis_looks_total", "Prompts that Redis was asked about.", s->looks);
    counter(&w, "llm_d_redis_looks_found_total", "Of these, those that a job holds a part of.",
            s->found);
    counter(&w, "llm_d_redis_looks_skipped_total", "Prompts that were placed without Redis.",
            s->skipped);
    head(&w, "llm_d_redis_errors_total", "counter", "Failures of Redis that this gateway saw.");
    for (int i = 0; i < VIEW_ERROR_COUNT; i++) {
        buf_print(out, "llm_d_redis_errors_total{%s,kind=\"%s\"} %llu\n", w.label,
                  view_error_name((enum view_error)i), (unsigned long long)s->errors[i]);
    }
}
