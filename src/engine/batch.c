/* engine/batch.c - what the next step computes: admission, preemption, decodes, prefill chunks.
 *
 * Decodes come first, then prefill in order of priority and arrival; without chunked prefill the
 * other way round, since a whole prompt may need the whole budget.  A waiting sequence that does
 * not fit blocks those behind it: nobody starves.  Runs only while no step is running.
 *
 * Always true: the oldest running sequence of the best priority makes progress in every step, so
 * preemption cannot go in circles for ever.
 */
#include <string.h>

#include "engine/state.h"

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
    if (s->mode == SEQ_PREFILL) b->prefill = true;
    jobs_add(b, part, in);
    CHECK(b->step.logit_count <= e->config.max_num_seqs);
}

static void preempt(struct engine *e, struct seq *s)
{
    seq_release(e, s);
    s->target = s->id_count;
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

/* Tokens of s that this step takes; 0: none, and nobody behind it goes first. */
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

static void add_prefills(struct engine *e)
{
    struct seq *running = e->lists[SEQ_RUNNING].head;
    bool blocked = false;
    while (seat_free(e)) {
        while (running && (running->in_step || running->computed >= running->target))
            running = running->next;
        struct seq *waiting = blocked ? NULL : e->lists[SEQ_WAITING].head;
        struct seq *s = running;
        if (waiting && (!running || seq_before(waiting, running))) {
            if (e->lists[SEQ_RUNNING].count >= e->config.max_num_seqs || !admit(e, waiting)) {
                blocked = true;
                continue;
            }
            s = waiting;
        }
        if (!s) return;
        uint32_t count = chunk_size(e, s);
        if (!count) return;
        part_add(e, s, count);
    }
}

bool batch_compose(struct engine *e)
{
    struct engine_step *b = &e->step;
    b->step.token_count = b->step.seq_count = b->step.logit_count = 0;
    b->prefill = false;
    if (e->config.enable_chunked_prefill) {
        add_decodes(e);
        add_prefills(e);
    } else {
        add_prefills(e);
        add_decodes(e);
    }
    return b->step.seq_count > 0;
}
