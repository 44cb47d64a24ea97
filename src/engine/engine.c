/* engine/engine.c - opening, adding, dropping, polling; see engine.h. */
#include "engine/engine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "engine/state.h"

static enum err config_check(const struct engine_config *c, struct why *why)
{
    if (c->max_model_len < 2 || c->max_model_len > SEQ_TOKENS_MAX)
        return why_set(why, ERR_LIMIT, "max-model-len is %" PRIu32 ", must be 2 to %d",
                       c->max_model_len, SEQ_TOKENS_MAX);
    if (c->max_num_seqs < 1 || c->max_num_seqs > STEP_SEQS_MAX)
        return why_set(why, ERR_LIMIT, "max-num-seqs is %" PRIu32 ", must be 1 to %d",
                       c->max_num_seqs, STEP_SEQS_MAX);
    if (c->max_num_batched_tokens < c->max_num_seqs ||
        c->max_num_batched_tokens > STEP_TOKENS_MAX)
        return why_set(why, ERR_LIMIT,
                       "max-num-batched-tokens is %" PRIu32 ", must be max-num-seqs (%" PRIu32
                       ") to %d", c->max_num_batched_tokens, c->max_num_seqs, STEP_TOKENS_MAX);
    if (!c->enable_chunked_prefill && c->max_num_batched_tokens < c->max_model_len)
        return why_set(why, ERR_LIMIT,
                       "max-num-batched-tokens is %" PRIu32 ", less than max-model-len %" PRIu32
                       ": without chunked prefill no such prompt could be computed",
                       c->max_num_batched_tokens, c->max_model_len);
    return OK;
}

static enum err shape_check(const struct engine *e, struct why *why)
{
    const struct kv_shape *s = &e->shape;
    uint32_t need = (e->config.max_model_len + s->block_tokens - 1) / s->block_tokens;
    if (s->block_count >= need) return OK;
    uint64_t bytes = (uint64_t)need * s->block_tokens * s->layers * s->token_bytes;
    return why_set(why, ERR_LIMIT,
                   "the KV cache holds %" PRIu64 " tokens, fewer than max-model-len %" PRIu32
                   ": kv-cache-memory-bytes must be at least %" PRIu64,
                   (uint64_t)s->block_count * s->block_tokens, e->config.max_model_len, bytes);
}

static enum err backend_open(struct engine *e, struct why *why)
{
    struct backend_config *b = &e->config.backend;
    b->step_tokens_max = e->config.max_num_batched_tokens;
    b->step_seqs_max = e->config.max_num_seqs;
    b->seq_tokens_max = e->config.max_model_len;
    enum err err = e->config.table->open(&e->backend, b, &e->shape, why);
    if (err) return err;
    CHECK(e->shape.block_tokens >= 1 && e->shape.block_tokens <= KV_BLOCK_TOKENS_MAX);
    CHECK(e->shape.block_count <= KV_BLOCK_COUNT_MAX && e->shape.token_bytes <= UINT32_MAX);
    err = shape_check(e, why);
    if (err) e->config.table->close(e->backend);
    return err;
}

static void arrays_open(struct engine *e)
{
    struct engine_step *b = &e->step;
    uint32_t tokens = e->config.max_num_batched_tokens, seqs = e->config.max_num_seqs;
    b->ids = mem_array(tokens, sizeof *b->ids);
    b->seqs = mem_array(seqs, sizeof *b->seqs);
    b->parts = mem_array(seqs, sizeof *b->parts);
    b->logit_rows = mem_array(seqs, sizeof *b->logit_rows);
    b->jobs = mem_array(seqs, sizeof *b->jobs);
    struct kv_pool_sink sink = {
        .ctx = e->sink.ctx, .stored = e->sink.stored, .dropped = e->sink.dropped,
    };
    e->prefix_blocks_max = UINT32_MAX;
    e->pool = kv_pool_open(e->shape.block_count, e->shape.block_tokens, &sink);
}

static void memory_close(struct engine *e)
{
    kv_pool_close(e->pool);
    free(e->step.ids);
    free(e->step.seqs);
    free(e->step.parts);
    free(e->step.logit_rows);
    free(e->step.jobs);
    free(e);
}

enum err engine_open(struct engine **out, const struct engine_config *c,
                     const struct engine_sink *sink, struct why *why)
{
    enum err err = config_check(c, why);
    if (err) return err;
    struct engine *e = mem_alloc(sizeof *e);
    e->config = *c;
    e->low_priority = c->backend.low_priority;
    e->sink = *sink;
    pace_open(&e->pace);
    err = backend_open(e, why);
    if (err) {
        free(e);
        return err;
    }
    const struct model *m = c->backend.model;
    e->vocab = m ? m->h.vocab : (uint32_t)INT32_MAX;
    e->scope = (struct kv_scope){
        .model_digest = m ? m->digest : (struct hash128){ 0 },
        .kv_type = c->backend.kv_type,
        .block_tokens = e->shape.block_tokens,
    };
    arrays_open(e);
    err = compute_open(e, why);
    if (err) {
        e->config.table->close(e->backend);
        memory_close(e);
        return err;
    }
    *out = e;
    return OK;
}

void engine_close(struct engine *e)
{
    if (!e) return;
    compute_close(e);
    for (uint32_t i = 0; e->step_running && i < e->step.step.seq_count; i++) {
        struct seq *s = e->step.parts[i].seq;
        if (s->dropped) seq_free(e, s);
    }
    for (int state = 0; state < SEQ_STATE_COUNT; state++)
        while (e->lists[state].head) seq_free(e, e->lists[state].head);
    struct kv_pool_counts c = kv_pool_counts(e->pool);
    CHECK(c.held == 0 && e->seq_count == 0);
    e->config.table->close(e->backend);
    memory_close(e);
}

/* Something may be startable now.  While a step runs its end will ring anyway. */
static void work_arrived(struct engine *e)
{
    if (!e->step_running) e->work = true;
}

enum err engine_add(struct engine *e, const struct seq_spec *spec, uint32_t *held_out)
{
    struct seq *s;
    enum err err = seq_new(e, spec, &s);
    if (err) return err;
    compute_touch_stop(e);
    if (spec->mode != SEQ_IMPORT) {
        if (held_out) *held_out = 0;
        work_arrived(e);
        return OK;
    }
    if (!seq_reserve(e, s, s->fill_count + 1)) {
        seq_free(e, s);
        return ERR_FULL;
    }
    s->cached = s->computed;
    s->counted = true;
    for (uint32_t i = 0; i < e->shape.layers; i++) s->arrived[i] = s->computed;
    if (held_out) *held_out = s->cached;
    return OK;
}

bool engine_drop(struct engine *e, struct req_id req)
{
    struct seq *s = seq_find(e, req);
    if (!s) return false;
    seq_forget(e, s);
    if (s->in_step) return true;      /* the collect frees it */
    seq_free(e, s);
    work_arrived(e);
    return true;
}

int engine_event_fd(const struct engine *e)
{
    return e->event_fd;
}

bool engine_has_work(const struct engine *e)
{
    return e->work;
}

static void report_kv(struct engine *e)
{
    if (e->step_running && e->step.prefill) {
        uint32_t layers = atomic_load_explicit(&e->layers_done, memory_order_acquire);
        if (layers != e->layers_seen) e->kv_advanced = true;
        e->layers_seen = layers;
    }
    if (!e->kv_advanced) return;
    e->kv_advanced = false;
    if (e->sink.kv_progress) e->sink.kv_progress(e->sink.ctx);
}

static void collect(struct engine *e)
{
    e->step_running = false;
    batch_collect(e);
}

bool engine_poll(struct engine *e)
{
    event_take(e);
    e->work = false;
    if (e->step_running && atomic_load(&e->step_finished)) collect(e);
    if (!e->step_running && e->low_priority != e->config.backend.low_priority) compute_renew(e);
    if (!e->step_running && batch_compose(e) && compute_start(e)) {
        collect(e);
        /* The next waits until the caller has seen this one's messages. */
        if (e->lists[SEQ_RUNNING].count + e->lists[SEQ_WAITING].count) e->work = true;
    }
    report_kv(e);
    if (e->seq_count == 0) compute_touch(e);
    return e->step_running;
}

static uint32_t tokens_waiting(const struct engine *e)
{
    uint64_t sum = 0;
    for (const struct seq *s = e->lists[SEQ_WAITING].head; s; s = s->next) sum += s->id_count;
    for (const struct seq *s = e->lists[SEQ_RUNNING].head; s; s = s->next)
        if (s->computed < s->target) sum += s->target - s->computed;
    return sum < UINT32_MAX ? (uint32_t)sum : UINT32_MAX;
}

void engine_stats(const struct engine *e, struct engine_stats *out)
{
    struct kv_pool_counts c = kv_pool_counts(e->pool);
    *out = e->stats;
    out->blocks_total = c.total;
    out->blocks_free = c.free;
    out->blocks_held = c.held;
    out->blocks_cached = c.cached;
    out->seqs_waiting = e->lists[SEQ_WAITING].count;
    out->seqs_running = e->lists[SEQ_RUNNING].count;
    out->seqs_holding = e->lists[SEQ_HOLDING].count;
    out->seqs_loading = e->lists[SEQ_LOADING].count;
    out->tokens_waiting = tokens_waiting(e);
    out->step_started_ns = e->step_running ? e->step.started_ns : 0;
}

const struct kv_shape *engine_kv_shape(const struct engine *e)
{
    return &e->shape;
}

void engine_costs(const struct engine *e, struct engine_costs *out)
{
    double *const each[PACE_COSTS] = { &out->step_ns, &out->decode_seq_ns,
                                       &out->decode_position_ns, &out->prefill_token_ns,
                                       &out->prefill_position_ns };
    for (int i = 0; i < PACE_COSTS; i++) *each[i] = pace_cost_ns(&e->pace, i);
    out->decode_steps = e->pace.decode_steps;
    out->prefill_steps = e->pace.prefill_steps;
}

void engine_low_priority(struct engine *e, int low_priority)
{
    e->low_priority = low_priority;
}

void engine_keys(const struct engine *e, void *ctx,
                 void (*call)(void *ctx, struct hash128 key, struct hash128 parent))
{
    kv_pool_each(e->pool, ctx, call);
}

void engine_cache_limit(struct engine *e, const struct engine_cache_limits *limits)
{
    uint32_t total = kv_pool_counts(e->pool).total;
    struct kv_pool_limits pool = { .ttl_ns = limits->ttl_ns, .cached_max = limits->entries_max };
    if (limits->memory_threshold < 1) pool.used_max = (uint32_t)(limits->memory_threshold * total);
    /* At a threshold of less than a block next to nothing stays; for the pool 0 is no limit. */
    if (limits->memory_threshold < 1 && pool.used_max == 0) pool.used_max = 1;
    e->prefix_blocks_max = limits->prefix_tokens_max
                         ? limits->prefix_tokens_max / e->shape.block_tokens : UINT32_MAX;
    engine_cache_tick(e);
    kv_pool_limit(e->pool, &pool);
}

void engine_cache_tick(struct engine *e)
{
    kv_pool_tick(e->pool, clock_now_ns());
}

void engine_cache_clear(struct engine *e)
{
    kv_pool_clear(e->pool);
}
