/* cuda/sample.c - logits to tokens.
 *
 * Greedy rows that nothing changes (no bias, no penalty, no report) need only the best id, which
 * the GPU has found.  All others come to the host, where model/sampler.c draws: its sums are in F64
 * and in one order, so that a token drawn here is the token a CPU rank would draw.
 */
#include <string.h>

#include "cuda/cuda.h"

static bool only_best(const struct sample_job *j)
{
    const struct sampling *p = j->params;
    if (j->score_only || (p->flags & SAMPLING_LOGPROBS)) return false;
    bool early = j->history_count - j->prompt_count < p->min_tokens && p->stop_id_count > 0;
    bool penalty = (p->repetition_penalty != 1 && p->repetition_penalty > 0) ||
                   p->frequency_penalty != 0 || p->presence_penalty != 0;
    return !(p->temperature >= 1e-5f) && p->bias_count == 0 && !early && !penalty;
}

static void draw(struct cuda *u, struct sample_job *j, const float *logits)
{
    if (j->score_only) {
        sampler_score(u->sampler, logits, j->score_id, j->position, j->score_top_count, &j->record,
                      j->top);
        return;
    }
    struct sample_input in = { .logits = logits, .params = j->params, .bias = j->bias,
                               .history = j->history, .prompt_count = j->prompt_count,
                               .history_count = j->history_count };
    sampler_draw(u->sampler, &in, &j->record, j->top);
}

/* Jobs of rows first .. first+rows-1, whose logits are on the device. */
static void run_group(struct cuda *u, struct sample_job *jobs, uint32_t count, uint32_t first,
                      uint32_t rows)
{
    uint64_t stride = (uint32_t)u->head.w.out;
    bool fetched = false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t row = jobs[i].logit - first;
        if (row >= rows || only_best(&jobs[i])) continue;
        if (!fetched)
            MUST(u, cudaMemcpyAsync(u->logits_host, u->logits, rows * stride * sizeof(float),
                                    cudaMemcpyDeviceToHost, u->compute));
        fetched = true;
    }
    if (fetched) MUST(u, cudaStreamSynchronize(u->compute));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t row = jobs[i].logit - first;
        if (row >= rows) continue;
        if (only_best(&jobs[i]))
            jobs[i].record = (struct token_record){ .position = jobs[i].history_count,
                                                    .id = u->best_host[row] };
        else
            draw(u, &jobs[i], u->logits_host + row * stride);
    }
}

enum err cuda_sample(void *self, struct sample_job *jobs, uint32_t count)
{
    struct cuda *u = self;
    MUST(u, cudaSetDevice(u->device));
    for (uint32_t i = 0; i < count; i++) CHECK(jobs[i].logit < u->final_count);
    for (uint32_t first = 0; first < u->final_count; first += u->logit_rows_max) {
        uint32_t rows = u->final_count - first;
        if (rows > u->logit_rows_max) rows = u->logit_rows_max;
        if (u->logits_first != first) {
            head_run(u, first, rows);
            MUST(u, cudaStreamSynchronize(u->compute));
        }
        run_group(u, jobs, count, first, rows);
    }
    return OK;
}
