/* model/sampler.h - from logits to a token: a pure function of (logits, parameters, history, seed,
 * position).
 *
 * The random number for a position is Philox4x32-10 (Salmon et al., 2011) with key = seed and
 * counter = position, so a request continued on another rank, or recomputed after a crash,
 * continues with the same token.  Nothing here calls a libm function whose result could differ by
 * machine before the token is chosen.
 *
 * Order of operations, as vLLM's: log-probabilities to report are taken from the raw logits; then
 * logit_bias; min_tokens (all stop ids to -inf); repetition, frequency, presence penalties; greedy
 * when temperature is below 1e-5; temperature; min_p; top_k; top_p over what is left; draw.
 * Ties go to the lower id.  A NaN counts as -inf; when every logit is -inf the token is 0.
 * Not here: stop strings and text (gateway).
 */
#ifndef RANKSERVE_MODEL_SAMPLER_H
#define RANKSERVE_MODEL_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/sampling.h"

/* Scratch of one sampling thread; V = vocab. */
struct sampler;
struct sampler *sampler_open(uint32_t vocab);
void sampler_close(struct sampler *s);

struct sample_input {
    const float *logits;              /* (V), not changed                                    */
    const struct sampling *params;
    const struct logit_bias *bias;    /* params->bias_count of them                          */
    const int32_t *history;           /* prompt then output, as fed so far                   */
    uint32_t prompt_count;            /* the first of history are the prompt                 */
    uint32_t history_count;           /* the new token's position is history_count           */
};

/* The token for position history_count.  With SAMPLING_LOGPROBS, `top` has room for
 * params->top_count entries (at most TOP_LOGPROBS_MAX are used), filled in descending order,
 * record->top_count of them; without it logprob, rank and top_count are 0.  Log-probabilities are
 * never below -9999, as in vLLM's JSON.  record->finish is left FINISH_NONE.
 * Ids of bias and history outside the vocabulary are passed over. */
void sampler_draw(struct sampler *s, const struct sample_input *in, struct token_record *record,
                  struct top_logprob *top);

/* Log-probability, rank and alternatives of a token that is already known (prompt_logprobs): `top`
 * has room for top_count.  `id` is within the vocabulary. */
void sampler_score(struct sampler *s, const float *logits, int32_t id, uint32_t position,
                   uint16_t top_count, struct token_record *record, struct top_logprob *top);

/* Philox4x32-10: one block of four words. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
