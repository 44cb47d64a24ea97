/* engine/batch.c - what the next step computes: admission, preemption, decodes, prefill chunks.
 *
 * Decodes come first, then prefill in order of priority and arrival; without chunked prefill the
 * other way round, since a whole prompt may need the whole budget.  Beside decodes a chunk ends
 * where the step's time would pass its target; some tokens are taken in any case, but for one step
 * in some, which shows what the decodes take.  A step in which a prompt ends, so that somebody
 * waits for its token, is not made longer by a part of another prompt, only by whole ones.  A
 * waiting sequence that does not fit blocks those behind it: nobody starves.  Runs only while no
 * step is running.
 *
 * Always true: the oldest running sequence of the best priority makes progress in every step, so
 * preemption cannot go in circles for ever.
 */
#include <math.h>
#include <string.h>

#include "engine/state.h"

/* A step may take so many times what its decodes alone would take (docs/DECISIONS.md). */
#define DECODE_STRETCH 2.0
/* A prompt that needs less than this in all may take so much of a step: one short wait for those
 * who decode, instead of the same time in many pieces. */
#define SHORT_PROMPT_NS 2e8
#define BURST_NS 5e7
/* So may what was generated elsewhere, or before, and is computed again for less than this: those
 * who decode have a token in every step meanwhile, its own client has none. */
#define AGAIN_NS 1e9
/* When so many times as many wait for a first token as decode, each prompt may take BURST_NS: few
 * decodes' time is little, and half of the machine would go to steps of few rows. */
enum { CROWD = 2 };
/* A prompt advances by so many tokens in any case, unless another one does. */
enum { PREFILL_LEAST = 4 };
/* Of so many steps with decodes one is without prompts: beside equal decodes and equal chunks for
 * seconds, nothing else tells what the decodes take of the time. */
enum { PROBE_STEPS = 16 };

static uint32_t left_to_compute(const struct seq *s)
{
    return s->id_count - s->computed;
}

static bool seat_free(const struct engine *e)
{
    return e->step.step.seq_count < e->config.max_num_seqs &&
           e->step.step.token_count < e->config.max_num_batched_tokens;
}

static bool row_scored(const struct seq *s, uint32_t row_position)
{
    return row_position + 1 >= s->score_next && row_position + 1 < s->prompt_count;
}

static struct sample_job *job_add(struct engine_step *b, struct step_part *part, uint32_t row)
{
    uint32_t i = b->step.logit_count++;
    b->logit_rows[i] = row;
    part->job_count++;
    b->jobs[i] = (struct sample_job){ .logit = i };
    return &b->jobs[i];
}

static void jobs_add(struct engine_step *b, struct step_part *part, const struct step_seq *in)
{
    const struct seq *s = part->seq;
    for (uint32_t p = in->first; seq_scores(s) && p < in->first + in->count; p++) {
        if (!row_scored(s, p)) continue;
        struct sample_job *job = job_add(b, part, in->row + p - in->first);
        job->score_only = true;
        job->score_id = s->ids[p + 1];
        job->position = p + 1;
        job->score_top_count = s->params.prompt_top_count;
        job->params = &s->params;
    }
    if (in->first + in->count < s->id_count) return;
    struct sample_job *job = job_add(b, part, in->row + in->count - 1);
    job->position = s->id_count;
    job->params = &s->params;
    job->bias = s->bias;
    job->history = s->ids;
    job->prompt_count = s->prompt_count;
    job->history_count = s->id_count;
}

static void part_add(struct engine *e, struct seq *s, uint32_t count)
{
    struct engine_step *b = &e->step;
    bool decodes = left_to_compute(s) == 1;
    CHECK(s->computed + count <= s->block_count * e->shape.block_tokens);
    struct step_seq *in = &b->seqs[b->step.seq_count];
    *in = (struct step_seq){
        .first = s->computed,
        .count = count,
        .row = b->step.token_count,
        .blocks = s->blocks,
    };
    memcpy(b->ids + in->row, s->ids + in->first, count * sizeof *b->ids);
    struct step_part *part = &b->parts[b->step.seq_count];
    *part = (struct step_part){ .seq = s, .job_first = b->step.logit_count };
    b->step.seq_count++;
    b->step.token_count += count;
    s->in_step = true;
    s->step_count = count;
    if (decodes) pace_add_decode(&b->load, in->first);
    else pace_add_prefill(&b->load, in->first, count);
    if (!decodes && s->computed + count == s->id_count) b->ends_prompt = true;
    if (s->mode == SEQ_PREFILL) b->prefill = true;
    jobs_add(b, part, in);
    CHECK(b->step.logit_count <= e->config.max_num_seqs);
}

static void preempt(struct engine *e, struct seq *s)
{
    seq_release(e, s);
    s->target = s->id_count;
    s->again = true;
    seq_move(e, s, SEQ_WAITING);
    e->stats.preemptions++;
}

/* The youngest of the lowest priority, not before `s` and not in the step.  PREFILL sequences stay:
 * their blocks are being read. */
static struct seq *victim_for(struct engine *e, const struct seq *s)
{
    struct seq *v = e->lists[SEQ_RUNNING].tail;
    while (v != s && (v->mode == SEQ_PREFILL || v->in_step)) v = v->prev;
    return v == s ? NULL : v;
}

/* The block that the next token of a decoding sequence goes to. */
static bool grow(struct engine *e, struct seq *s)
{
    if (s->computed < s->block_count * e->shape.block_tokens) return true;
    uint32_t block;
    while ((block = kv_pool_take(e->pool)) == KV_BLOCK_NONE) {
        struct seq *victim = victim_for(e, s);
        if (!victim) return false;
        preempt(e, victim);
    }
    s->blocks[s->block_count++] = block;
    return true;
}

static void add_decodes(struct engine *e)
{
    for (struct seq *s = e->lists[SEQ_RUNNING].head, *next; s && seat_free(e); s = next) {
        next = s->next;
        if (s->in_step || left_to_compute(s) > 1) continue;
        if (e->step.step.logit_count == e->config.max_num_seqs) return;
        bool grown = grow(e, s);
        next = s->next;               /* those behind may have been preempted */
        if (grown)
            part_add(e, s, 1);
        else
            preempt(e, s);
    }
}

/* When a step must end that has tokens of `s`, of which `cached` need no computing. */
static double target_for(const struct engine *e, const struct seq *s, uint32_t cached)
{
    struct pace_load whole = { 0 };
    pace_add_prefill(&whole, cached, s->id_count - cached);
    double most_ns = s->id_count > s->prompt_count ? AGAIN_NS : SHORT_PROMPT_NS;
    bool is_short = pace_predict_ns(&e->pace, &whole) <= most_ns;
    return is_short ? e->step.short_target_ns : e->step.target_ns;
}

static double target_of(const struct engine *e, const struct seq *s)
{
    return target_for(e, s, s->again ? 0 : s->cached);
}

/* Prompt tokens may still be added to a step that must end then. */
static bool time_left(const struct engine *e, double target_ns)
{
    const struct pace_load *l = &e->step.load;
    return l->prefill_tokens == 0 || pace_predict_ns(&e->pace, l) < target_ns;
}

/* Of `left` tokens of s, those that end in time, but some if nobody else's prompt advances, and all
 * if nobody else is in the step. */
static uint32_t count_in_time(const struct engine *e, const struct seq *s, uint32_t left)
{
    const struct engine_step *b = &e->step;
    if (b->step.seq_count == 0) return left;
    uint32_t fits = pace_fit(&e->pace, &b->load, s->computed, left, target_of(e, s));
    uint32_t least = b->load.prefill_tokens ? 0 : left < PREFILL_LEAST ? left : PREFILL_LEAST;
    return fits > least ? fits : least;
}

/* Tokens of s that this step takes; 0: none. */
static uint32_t chunk_size(const struct engine *e, const struct seq *s)
{
    const struct engine_config *c = &e->config;
    uint32_t left = left_to_compute(s);
    uint32_t budget = c->max_num_batched_tokens - e->step.step.token_count;
    uint32_t rows = c->max_num_seqs - e->step.step.logit_count;
    if (!c->enable_chunked_prefill && left > budget) return 0;
    if (c->enable_chunked_prefill && c->long_prefill_token_threshold &&
        left > c->long_prefill_token_threshold)
        left = c->long_prefill_token_threshold;
    if (left > budget) left = budget;
    left = count_in_time(e, s, left);
    /* Prompt scores need a row of logits per position: a chunk ends where the rows do, also
     * without chunked prefill, since that memory is bounded. */
    uint32_t count = 0;
    for (; count < left; count++) {
        uint32_t p = s->computed + count;
        if (!row_scored(s, p) && p + 1 < s->id_count) continue;
        if (rows == 0) break;
        rows--;
    }
    return count;
}

static bool admit(struct engine *e, struct seq *s)
{
    if (!seq_reserve(e, s, s->id_count)) return false;
    seq_move(e, s, SEQ_RUNNING);
    if (s->counted) return true;
    s->counted = true;
    s->cached = s->computed;
    e->stats.prompt_tokens += s->id_count;
    e->stats.prompt_tokens_cached += s->cached;
    if (s->mode == SEQ_PREFILL && s->cached) e->kv_advanced = true;
    return true;
}

/* Blocks that were computed for others since it was admitted. */
static void catch_up(struct engine *e, struct seq *s)
{
    uint32_t found = seq_adopt(e, s);
    if (!found || s->again) return;
    s->cached += found;
    e->stats.prompt_tokens_cached += found;
    if (s->mode == SEQ_PREFILL) e->kv_advanced = true;
}

/* Its next block is being computed in this step, for a sequence with the same text. */
static bool shares_with_step(struct engine *e, struct seq *s)
{
    uint32_t size = e->shape.block_tokens, block = s->computed / size;
    if (!e->config.enable_prefix_caching || s->store_ended || seq_scores(s)) return false;
    if (s->computed % size || s->computed + size >= s->id_count) return false;
    for (uint32_t i = 0; i < e->step.step.seq_count; i++) {
        struct seq *t = e->step.parts[i].seq;
        bool covers = t->computed <= s->computed && !t->store_ended &&
                      s->computed + size <= t->computed + t->step_count;
        if (covers && seq_same_block(e, s, t, block)) return true;
    }
    return false;
}

static bool passed_over(const struct engine *e, const struct seq *s)
{
    return s->passed_over == e->stats.steps + 1;
}

/* Somebody's first token would wait for `count` of the `left` tokens, and nobody's come of them. */
static bool only_delays(const struct engine *e, uint32_t left, uint32_t count)
{
    return e->step.ends_prompt && count < left;
}

/* There is a seat, and it would be computed in this step if it got its blocks. */
static bool may_enter(struct engine *e, struct seq *s)
{
    const struct engine_step *b = &e->step;
    if (e->lists[SEQ_RUNNING].count >= e->config.max_num_seqs) return false;
    if (b->load.prefill_tokens == 0) return true;
    uint32_t cached = seq_cached(e, s), left = s->id_count - cached;
    double target = target_for(e, s, cached);
    return time_left(e, target) &&
           !only_delays(e, left, pace_fit(&e->pace, &b->load, cached, left, target));
}

static void add_prefills(struct engine *e)
{
    struct seq *running = e->lists[SEQ_RUNNING].head;
    bool blocked = false;
    while (seat_free(e) && time_left(e, e->step.short_target_ns)) {
        while (running && (running->in_step || running->computed >= running->target ||
                           passed_over(e, running)))
            running = running->next;
        struct seq *waiting = blocked ? NULL : e->lists[SEQ_WAITING].head;
        struct seq *s = running;
        if (waiting && (!running || seq_before(waiting, running))) {
            if (!may_enter(e, waiting) || !admit(e, waiting)) {
                blocked = true;
                continue;
            }
            s = waiting;
        }
        if (!s) return;
        catch_up(e, s);
        uint32_t count = shares_with_step(e, s) ? 0 : chunk_size(e, s);
        if (only_delays(e, left_to_compute(s), count)) count = 0;
        if (count) part_add(e, s, count);
        else if (!e->config.enable_chunked_prefill) return;      /* nobody behind it goes first */
        else s->passed_over = e->stats.steps + 1;
    }
}

static bool is_crowd(const struct engine *e)
{
    uint32_t here = e->lists[SEQ_WAITING].count + e->lists[SEQ_RUNNING].count;
    return here > (CROWD + 1) * e->step.load.decode_seqs;
}

/* Called when the step has its decodes and nothing else.  Without any it is as long as its first
 * prompt wants; others join while it is short, so that each has its first token soon. */
static void set_targets(struct engine *e)
{
    struct engine_step *b = &e->step;
    if (e->pace.scale_ns == 0) return;
    if (b->load.decode_seqs == 0) {
        b->target_ns = b->short_target_ns = BURST_NS;
        return;
    }
    double given = (double)e->config.step_time_target_ns;
    double decodes = pace_predict_ns(&e->pace, &b->load), burst = decodes + BURST_NS;
    b->target_ns = given > 0 ? given : DECODE_STRETCH * decodes;
    b->short_target_ns = given > 0 || burst < b->target_ns ? b->target_ns : burst;
    if (is_crowd(e)) b->target_ns = b->short_target_ns;
}

/* True for the step that shows what the decodes take alone. */
static bool probes(struct engine *e)
{
    if (e->step.load.decode_seqs == 0 || ++e->mixed_steps < PROBE_STEPS) return false;
    e->mixed_steps = 0;
    return true;
}

bool batch_compose(struct engine *e)
{
    struct engine_step *b = &e->step;
    b->step.token_count = b->step.seq_count = b->step.logit_count = 0;
    b->prefill = b->ends_prompt = false;
    b->load = (struct pace_load){ 0 };
    b->target_ns = b->short_target_ns = INFINITY;
    if (e->config.enable_chunked_prefill) {
        add_decodes(e);
        set_targets(e);
        if (!probes(e)) add_prefills(e);
    } else {
        add_prefills(e);
        add_decodes(e);
    }
    if (b->load.prefill_tokens == 0) e->mixed_steps = 0;
    return b->step.seq_count > 0;
}
