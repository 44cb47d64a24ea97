/* engine/collect.c - takes over a finished step: KV that is now complete, tokens, scores, endings.
 *
 * The sink may call engine_add and engine_drop from inside; so a sequence is marked in_step until
 * its part is done, and is looked at again after each call.
 */
#include <string.h>

#include "engine/state.h"

/* Scores in bounded batches; false when the owner dropped the sequence meanwhile. */
static bool report_scores(struct engine *e, struct seq *s, const struct sample_job *jobs,
                          uint32_t count)
{
    for (uint32_t at = 0; at < count && !s->dropped;) {
        uint32_t n = 0, tops = 0;
        for (; n < SCORES_AT_ONCE && at < count; n++, at++) {
            const struct token_record *r = &jobs[at].record;
            CHECK(r->top_count <= TOP_LOGPROBS_MAX);
            e->scores[n] = *r;
            memcpy(e->score_tops + tops, jobs[at].top, r->top_count * sizeof *e->score_tops);
            tops += r->top_count;
        }
        s->score_next = e->scores[n - 1].position + 1;
        if (e->sink.scores) e->sink.scores(e->sink.ctx, s->req, e->scores, n, e->score_tops);
    }
    return !s->dropped;
}

static enum finish finish_of(const struct seq *s, int32_t id)
{
    const struct sampling *p = &s->params;
    uint32_t made = s->id_count - s->prompt_count;
    uint32_t first = p->flags & SAMPLING_IGNORE_EOS ? p->eos_id_count : 0;
    for (uint32_t i = first; made > p->min_tokens && i < p->stop_id_count; i++)
        if (p->stop_ids[i] == id) return FINISH_STOP;
    return s->id_count >= s->limit ? FINISH_LENGTH : FINISH_NONE;
}

/* The record goes out last: what it says, that the sequence is gone, is true by then. */
static void report_token(struct engine *e, struct seq *s, const struct token_record *record,
                         const struct top_logprob *top)
{
    struct req_id req = s->req;
    uint32_t cached = s->cached;
    if (s->mode == SEQ_PREFILL)
        seq_move(e, s, SEQ_HOLDING);
    else if (record->finish != FINISH_NONE)
        seq_free(e, s);
    e->sink.token(e->sink.ctx, req, record, top, cached);
}

static void collect_error(struct engine *e, struct seq *s)
{
    struct token_record record = {
        .position = s->id_count, .id = -1, .finish = FINISH_ERROR,
    };
    report_token(e, s, &record, NULL);
}

static void collect_token(struct engine *e, struct seq *s, struct sample_job *job)
{
    struct token_record *r = &job->record;
    CHECK(r->id >= 0 && (uint32_t)r->id < e->vocab && r->top_count <= TOP_LOGPROBS_MAX);
    CHECK(s->id_count < s->limit);
    r->position = s->id_count;
    s->ids[s->id_count++] = r->id;
    r->finish = (uint16_t)finish_of(s, r->id);
    e->stats.output_tokens++;
    report_token(e, s, r, job->top);
}

static void collect_part(struct engine *e, struct step_part *part)
{
    struct seq *s = part->seq;
    struct sample_job *jobs = e->step.jobs + part->job_first;
    if (!s->dropped && e->step.err == OK) {
        s->computed += s->step_count;
        seq_store(e, s);
        bool draws = s->computed == s->id_count;
        uint32_t scores = part->job_count - draws;
        if (scores) report_scores(e, s, jobs, scores);
        if (draws && !s->dropped) {
            s->in_step = false;
            collect_token(e, s, jobs + scores);
            return;
        }
    }
    s->in_step = false;
    if (s->dropped)
        seq_free(e, s);
    else if (e->step.err != OK)
        collect_error(e, s);
}

void batch_collect(struct engine *e)
{
    struct engine_step *b = &e->step;
    e->stats.steps++;
    e->stats.step_ns_sum += b->ended_ns - b->started_ns;
    if (b->err == OK) pace_learn(&e->pace, &b->load, (double)(b->ended_ns - b->started_ns));
    for (uint32_t i = 0; i < b->step.seq_count; i++) collect_part(e, &b->parts[i]);
    if (b->prefill) e->kv_advanced = true;
    struct kv_pool_counts c = kv_pool_counts(e->pool);
    CHECK(c.free + c.held + c.cached == c.total);
}
