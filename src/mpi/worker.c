/* mpi/worker.c - the control thread of a rank that computes; see worker.h. */
#include "mpi/worker.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"

/* A rung bell may be lost to a bug of the library: look by ourselves now and then. */
#define LOOK_BUSY_NS (50 * NS_PER_MS)
#define LOOK_IDLE_NS (1000 * NS_PER_MS)
#define TYPICAL_CONTEXT 512.0         /* of a sequence that is generating, for rank 0 */
#define STEP_AT_ONCE_NS (NS_PER_MS / 4)   /* the control thread is away for so long without harm */
enum { PREFILL_NICE = 1 };            /* docs/DECISIONS.md */

static void say_rates(const struct worker *w, struct msg_rates *out)
{
    struct engine_costs c;
    engine_costs(w->engine, &c);
    *out = (struct msg_rates){
        .prefill_token_ns = c.prefill_token_ns, .prefill_context_ns = c.prefill_position_ns * 1024,
        .step_ns = c.step_ns,
        .step_seq_ns = c.decode_seq_ns + c.decode_position_ns * TYPICAL_CONTEXT,
        .prefill_steps = c.prefill_steps, .decode_steps = c.decode_steps,
    };
}

static void send_stats(struct worker *w)
{
    struct engine_stats e;
    engine_cache_tick(w->engine);
    engine_stats(w->engine, &e);
    uint64_t now = clock_now_ns();
    struct msg_stats m = {
        .ping_ns = w->ping_ns,
        .step_age_ns = e.step_started_ns ? now - e.step_started_ns : 0,
        .blocks_total = e.blocks_total, .blocks_free = e.blocks_free,
        .blocks_held = e.blocks_held, .blocks_cached = e.blocks_cached,
        .seqs_waiting = e.seqs_waiting, .seqs_running = e.seqs_running,
        .seqs_holding = e.seqs_holding, .seqs_loading = e.seqs_loading,
        .tokens_waiting = e.tokens_waiting, .role = (uint32_t)w->job->role,
        .steps = e.steps, .preemptions = e.preemptions, .step_ns_sum = e.step_ns_sum,
        .prompt_tokens = e.prompt_tokens, .prompt_tokens_cached = e.prompt_tokens_cached,
        .output_tokens = e.output_tokens, .kv_bytes_sent = w->kv_sent,
        .kv_bytes_lanes = w->kv_lanes,
        .kv_bytes_received = w->kv_received, .stale_refused = w->stale,
        .wakeups = w->loop->wakeups,
    };
    worker_blocks_flush(w);           /* rank 0 compares at every STATS */
    blocks_out_say(&w->blocks, &m);
    say_rates(w, &m.rates);
    m.link_bytes_s = w->link.bytes_s;
    m.link_peer = w->link.measured;
    w->link.bytes_s = 0;
    port_send_copy(w->port, 0, &m, MSG_STATS, sizeof m);
}

static void on_ping(struct worker *w, const struct msg_ping *m)
{
    w->ping_ns = m->sent_ns;
    send_stats(w);
}

static void on_exit_message(struct worker *w, const struct msg_exit *m)
{
    w->leaving = true;
    w->exit_code = m->code;
}

static void keep_to(struct worker *w, const struct cache_policy *p)
{
    engine_cache_limit(w->engine, &(struct engine_cache_limits){
        .ttl_ns = p->ttl_ms * NS_PER_MS, .entries_max = p->entries_max,
        .prefix_tokens_max = p->prefix_tokens_max, .memory_threshold = p->memory_threshold });
}

/* The cache stays as it is, and so does the engine, which does both. */
static void on_role(struct worker *w, const struct msg_role *m)
{
    if (w->job->role != (enum role)m->role)
        log_info("role from=%s to=%s", role_name(w->job->role), role_name((enum role)m->role));
    w->job->role = (enum role)m->role;
    engine_low_priority(w->engine, m->modest ? PREFILL_NICE : 0);
}

/* False: no message of this type with this content comes from there. */
static bool dispatch_zero(struct worker *w, const void *data, size_t bytes)
{
    const struct msg_seq *seq = msg_as_seq(data, bytes);
    const struct msg_req *req = msg_as_req(data, bytes);
    const struct msg_rank *rank = msg_as_rank(data, bytes);
    const struct msg_ping *ping = msg_as_ping(data, bytes);
    const struct msg_exit *leave = msg_as_exit(data, bytes);
    const struct msg_policy *policy = msg_as_policy(data, bytes);
    const struct msg_role *role = msg_as_role(data, bytes);
    switch (msg_type_of(data, bytes)) {
    case MSG_RUN: return seq && (worker_on_run(w, seq), true);
    case MSG_EXPECT: return seq && (worker_on_expect(w, seq), true);
    case MSG_PREFILL: return seq && (worker_on_prefill(w, seq), true);
    case MSG_CANCEL: return req && (worker_on_cancel(w, req->req), true);
    case MSG_LOST:
        return rank && rank->rank > 0 && rank->rank < w->job->size &&
               rank->rank != w->job->rank && (worker_on_lost(w, rank->rank), true);
    case MSG_PING: return ping && (on_ping(w, ping), true);
    case MSG_SNAPSHOT:
        return msg_as_snapshot(data, bytes) && (worker_on_snapshot(w), true);
    case MSG_POLICY: return policy && (keep_to(w, &policy->policy), true);
    case MSG_ROLE: return role && (on_role(w, role), true);
    case MSG_EXIT: return leave && (on_exit_message(w, leave), true);
    default: return false;
    }
}

static void on_kv(void *ctx, int from, const struct msg_kv *m, const void *payload)
{
    if (m->lane) ways_announced(ctx, from, m);
    else worker_on_kv(ctx, from, m, payload);
}

static bool dispatch_peer(struct worker *w, int from, const void *data, size_t bytes)
{
    const struct msg_ready *ready = msg_as_ready(data, bytes);
    const struct msg_kv *kv = msg_as_kv(data, bytes);
    const struct msg_kvend *end = msg_as_kvend(data, bytes);
    const struct msg_pull *pull = msg_as_pull(data, bytes);
    const struct msg_lane *lane = msg_as_lane(data, bytes);
    switch (msg_type_of(data, bytes)) {
    case MSG_READY: return ready && (worker_on_ready(w, from, ready), true);
    case MSG_KV:
        return kv && (on_kv(w, from, kv, kv + 1), true);
    case MSG_LANE: return lane && (worker_on_lane(w, from, lane), true);
    case MSG_PULL: return pull && (worker_on_pull(w, from, pull), true);
    case MSG_KVEND:
        return end && (ways_hold_end(w, from, end) || (worker_on_kvend(w, from, end), true));
    default: return false;
    }
}

static void on_message(void *ctx, int from, const void *data, size_t bytes)
{
    struct worker *w = ctx;
    bool known = from == 0 ? dispatch_zero(w, data, bytes) : dispatch_peer(w, from, data, bytes);
    if (known) return;
    w->stale++;
    log_warn("refused message from=%d type=%s bytes=%zu", from,
             msg_type_name(msg_type_of(data, bytes)), bytes);
}

static void on_ended(void *ctx, int rank)
{
    (void)ctx;
    if (rank != 0) return; /* rank 0 decides who is dead */
    log_warn("rank 0 is gone: leaving");
    job_leave_alone(1);
}

static void on_engine(struct watch *watch, uint32_t events)
{
    (void)watch, (void)events; /* the loop polls the engine after every wait */
}

static void nothing(void *ctx)
{
    (void)ctx;
}

/* -- start ------------------------------------------------------------------------------------ */

static enum kv_type kv_type_named(const char *name)
{
    if (strcmp(name, "f32") == 0 || strcmp(name, "float32") == 0) return KV_F32;
    if (strcmp(name, "int8") == 0) return KV_INT8;
    if (strncmp(name, "fp8", 3) == 0) return KV_FP8;
    return KV_F16;
}

/* 0: what the GPU has left. */
static uint64_t kv_bytes(const struct config *c)
{
    if (c->kv_cache_memory_bytes || strcmp(c->backend, "cuda") == 0)
        return c->kv_cache_memory_bytes;
    return KV_BYTES_DEFAULT;
}

/* The model's context, or what one sequence can have of the pool. */
static uint32_t model_len(const struct config *c, const struct hparams *h, enum kv_type type)
{
    if (c->max_model_len) return (uint32_t)c->max_model_len;
    uint64_t token = kv_token_bytes(h, type) * h->layers;
    uint64_t fits = kv_bytes(c) / (token * c->block_size) * c->block_size;
    uint64_t len = h->context < SEQ_TOKENS_MAX ? h->context : SEQ_TOKENS_MAX;
    if (kv_bytes(c) == 0) fits = len;
    if (fits == 0) fits = c->block_size;   /* the backend says what it would take */
    return (uint32_t)(fits < len ? fits : len);
}

static bool shares_host_with_decode(const struct job *j)
{
    for (int i = 1; i < j->size; i++)
        if (j->host_of[i] == j->host_of[j->rank] && job_role_of(j, i) != ROLE_PREFILL) return true;
    return false;
}

static enum err lanes_of(const struct worker *w, int *out, struct why *why)
{
    const struct config *c = &w->job->config;
    bool must = strcmp(c->kv_connector, "nccl") == 0;
    *out = LANES_NONE;
    if (must && !w->weights.table->lanes)
        return why_set(why, ERR_UNSUPPORTED, "kv-connector nccl: backend %s has no GPU",
                       w->weights.table->name);
    if (w->job->size > 2 && strcmp(c->kv_connector, "mpi") != 0)
        *out = must ? LANES_MUST : LANES_IF_THERE;
    return OK;
}

/* For msg_up. */
static uint32_t shared_cores(const struct job *j, uint64_t threads)
{
    cpu_set_t mine;
    uint64_t ranks = 0;
    if (strcmp(j->config.backend, "cpu") != 0) return 0;
    if (sched_getaffinity(0, sizeof mine, &mine) != 0) return 0;
    for (int i = 1; i < j->size; i++) ranks += j->host_of[i] == j->host_of[j->rank];
    if (ranks * threads <= (uint64_t)CPU_COUNT(&mine)) return 0;
    return (uint32_t)hash_sip128((struct hash_secret){ 0 }, &mine, sizeof mine).lo | 1;
}

/* What was asked for, or the cores that Slurm, mpirun or taskset left us. */
static uint32_t threads_of(const struct config *c)
{
    cpu_set_t mine;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (sched_getaffinity(0, sizeof mine, &mine) == 0) cores = CPU_COUNT(&mine);
    if (c->threads) return (uint32_t)c->threads;
    return cores < 1 ? 1 : cores < THREAD_COUNT_MAX ? (uint32_t)cores : THREAD_COUNT_MAX;
}

static enum err open_engine(struct worker *w, struct why *why)
{
    const struct config *c = &w->job->config;
    int lanes;
    enum err err = lanes_of(w, &lanes, why);
    if (err) return err;
    const struct hparams *h = &w->weights.model->h;
    enum kv_type type = kv_type_named(c->kv_cache_dtype);
    uint32_t length = model_len(c, h, type);
    bool modest = w->job->role == ROLE_PREFILL && shares_host_with_decode(w->job);
    struct engine_config e = {
        .backend = {
            .model = w->weights.model, .packed = w->weights.packed, .isa = w->weights.isa,
            .threads = threads_of(c),
            .float_activations = strcmp(c->activations, "float") == 0, .kv_type = type,
            .block_tokens = (uint32_t)c->block_size, .kv_bytes = kv_bytes(c),
            .step_tokens_max = (uint32_t)c->max_num_batched_tokens,
            .step_seqs_max = (uint32_t)c->max_num_seqs, .seq_tokens_max = length,
            .low_priority = modest ? PREFILL_NICE : 0,
            .gpu_memory_utilization = (float)c->gpu_memory_utilization,
            .device = job_device(w->job), .lanes = lanes,
            .cublas = strcmp(c->linear_backend, "cublas") == 0,
        },
        .table = w->weights.table, .kv_secret = w->job->kv_secret, .max_model_len = length,
        .max_num_seqs = (uint32_t)c->max_num_seqs,
        .max_num_batched_tokens = (uint32_t)c->max_num_batched_tokens,
        .long_prefill_token_threshold = (uint32_t)c->long_prefill_token_threshold,
        .step_time_target_ns = c->step_time_target_ms * NS_PER_MS, .at_once_ns = STEP_AT_ONCE_NS,
        .enable_chunked_prefill = c->enable_chunked_prefill,
        .enable_prefix_caching = c->enable_prefix_caching,
    };
    struct engine_sink sink = { .ctx = w, .token = worker_token, .scores = worker_scores,
                                .kv_progress = nothing, .stored = worker_stored,
                                .dropped = worker_dropped };
    blocks_out_open(&w->blocks);
    err = engine_open(&w->engine, &e, &sink, why);
    if (err) return err;
    ways_open(w);
    struct cache_policy policy;
    cache_policy_of(c, &policy);
    keep_to(w, &policy);
    const struct kv_shape *shape = engine_kv_shape(w->engine);
    struct msg_up up = {
        .blocks_total = shape->block_count, .block_tokens = shape->block_tokens,
        .max_num_seqs = e.max_num_seqs, .max_model_len = length,
        .kv_token_bytes = shape->token_bytes * shape->layers,
        .model_digest = w->weights.model->digest, .kv_type = type,
        .lanes_version = ways_version(w),
        .cores = shared_cores(w->job, e.backend.threads),
        .pid = (int32_t)getpid(),
    };
    port_send_copy(w->port, 0, &up, MSG_UP, sizeof up);
    return OK;
}

/* -- the loop --------------------------------------------------------------------------------- */

static void wait_for_work(struct worker *w, bool busy)
{
    uint64_t now = clock_now_ns(), nap = port_nap_ns(w->port, now), wake = pulls_wake_ns(w);
    uint64_t look = busy || w->pushes || w->exports ? LOOK_BUSY_NS : LOOK_IDLE_NS;
    if (wake <= now) return;
    if (engine_has_work(w->engine)) look = 0;
    if (wake - now < look) look = wake - now;
    loop_wait(w->loop, nap < look ? nap : look);
}

_Noreturn static void leave(struct worker *w)
{
    uint64_t end = clock_now_ns() + NS_PER_S;
    while (!port_sent_all(w->port) && clock_now_ns() < end) {
        loop_wait(w->loop, NS_PER_MS);
        port_poll(w->port);
    }
    if (w->rank_lost || w->exit_code != 0) job_leave_alone(w->exit_code);
    engine_close(w->engine);
    job_leave_together(0);
}

/* Rank 0 hears why, ends the job, and we go with it. */
_Noreturn static void leave_failed(struct worker *w, const struct why *why)
{
    struct msg_fatal m = { 0 };
    memcpy(m.text, why->text, sizeof m.text - 1);
    port_send_copy(w->port, 0, &m, MSG_FATAL, sizeof m);
    for (uint64_t end = clock_now_ns() + 5 * NS_PER_S; clock_now_ns() < end && !w->leaving;) {
        loop_wait(w->loop, 10 * NS_PER_MS);
        port_poll(w->port);
    }
    job_leave_alone(1);
}

_Noreturn void worker_run(struct job *j, struct port *port, const struct weights *weights)
{
    struct worker *w = mem_alloc(sizeof *w);
    struct why why = { 0 };
    w->job = j;
    w->loop = j->loop;
    w->port = port;
    w->weights = *weights;
    w->seqs = mem_array(REQ_COUNT_MAX, sizeof *w->seqs);
    struct port_sink sink = { .ctx = w, .message = on_message, .kv = on_kv,
                              .ended = on_ended };
    port_serve(port, &sink);
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0); /* naps of 30 us, here and there, shall not take 80 */
    if (open_engine(w, &why)) leave_failed(w, &why);
    alarm(0);
    w->engine_watch = (struct watch){ .fd = engine_event_fd(w->engine), .call = on_engine,
                                      .ctx = w };
    loop_add(w->loop, &w->engine_watch, EPOLLIN);
    log_info("up role=%s blocks=%u threads=%u isa=%s",
             job_is_spare(j, j->rank) ? "spare" : role_name(j->role),
             engine_kv_shape(w->engine)->block_count, threads_of(&j->config),
             isa_name(w->weights.isa));
    bool busy = false;
    while (!w->leaving) {
        wait_for_work(w, busy);
        port_poll(w->port);
        busy = engine_poll(w->engine);
        worker_flush(w);              /* a first token does not wait for KV that is copied */
        ways_turn(w);
        push_all(w);
        pulls_turn(w, clock_now_ns());
        exports_turn(w);
        worker_flush(w);
        worker_blocks_flush(w);
    }
    leave(w);
}
