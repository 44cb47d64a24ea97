/* engine/cpu/head.c - logits of the rows that the last step kept, a bounded number at a time, and
 * the sampler over them.
 *
 * The head's input is in 16 bits where its weights are quants: the rounding of this one input to 8
 * would be a fifth of all the 8-bit path's error.
 */
#include <stdlib.h>

#include "common/mem.h"
#include "engine/cpu/cpu.h"

enum { HEAD_PANELS = 8 };

struct head_call {
    struct cpu *u;
    uint32_t first, rows;              /* of u->final */
    struct sample_job *jobs;
    uint32_t *job;                     /* indices of the jobs of these rows */
    uint32_t job_count;
};

static void head_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    const struct head_call *c = ctx;
    struct cpu *u = c->u;
    const struct matrix *m = &u->layout->head;
    uint32_t panel = item * HEAD_PANELS, panels = matrix_panels(m) - panel;
    if (panels > HEAD_PANELS) panels = HEAD_PANELS;
    float *out = u->logits + (uint64_t)panel * PANEL;
    u->k->gemm(m, &u->head_in, 0, c->rows, panel, panels, out, u->logit_stride, false);
}

static void job_item(void *ctx, uint32_t item, uint32_t worker)
{
    const struct head_call *c = ctx;
    struct cpu *u = c->u;
    struct sample_job *j = &c->jobs[c->job[item]];
    const float *logits = u->logits + (uint64_t)(j->logit - c->first) * u->logit_stride;
    if (j->score_only) {
        sampler_score(u->samplers[worker], logits, j->score_id, j->position, j->score_top_count,
                      &j->record, j->top);
        return;
    }
    struct sample_input in = { .logits = logits, .params = j->params, .bias = j->bias,
                               .history = j->history, .prompt_count = j->prompt_count,
                               .history_count = j->history_count };
    sampler_draw(u->samplers[worker], &in, &j->record, j->top);
}

static void run_group(struct head_call *c)
{
    struct cpu *u = c->u;
    uint32_t dim = u->model->h.dim;
    acts_store(u, u->final + (uint64_t)c->first * dim, dim, c->rows, dim, &u->head_in, 0, 0);
    uint32_t panels = matrix_panels(&u->layout->head);
    pool_run(u->pool, head_item, c, (panels + HEAD_PANELS - 1) / HEAD_PANELS);
    pool_run(u->pool, job_item, c, c->job_count);
}

enum err cpu_sample(void *self, struct sample_job *jobs, uint32_t count)
{
    struct cpu *u = self;
    for (uint32_t i = 0; i < count; i++) CHECK(jobs[i].logit < u->final_count);
    uint32_t *job = mem_array(count, sizeof *job);
    for (uint32_t first = 0; first < u->final_count; first += u->logit_rows_max) {
        uint32_t rows = u->final_count - first;
        if (rows > u->logit_rows_max) rows = u->logit_rows_max;
        struct head_call c = { .u = u, .first = first, .rows = rows, .jobs = jobs, .job = job };
        for (uint32_t i = 0; i < count; i++) {
            if (jobs[i].logit - first < rows) job[c.job_count++] = i;
        }
        if (c.job_count) run_group(&c);
    }
    free(job);
    return OK;
}
