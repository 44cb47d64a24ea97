/* model/sampler.h - from logits to a token: a pure function of (logits, parameters, history, seed,
 * position).
 *
 * The random number for a position is Philox4x32-10 (Salmon et al., 2011) with key = seed and counter
 * = position, so a request continued on another rank, or recomputed after a crash, continues with
 * the same token.  Order of operations, as vLLM's: log-probabilities to report are taken from the raw
 * logits; then logit_bias; min_tokens (stop ids to -inf); repetition, frequency, presence penalties;
 * greedy when temperature is 0; temperature; top_k; top_p; min_p; draw.  Ties go to the lower id.
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

/* The token for position history_count.  `top` has room for params->top_count entries, filled in
 * descending order when SAMPLING_LOGPROBS is set.  record->finish is left FINISH_NONE. */
void sampler_draw(struct sampler *s, const struct sample_input *in, struct token_record *record,
                  struct top_logprob *top);

/* Log-probability, rank and alternatives of a token that is already known (prompt_logprobs): `top`
 * has room for top_count. */
void sampler_score(struct sampler *s, const float *logits, int32_t id, uint32_t position,
                   uint16_t top_count, struct token_record *record, struct top_logprob *top);

/* Philox4x32-10: one block of four words. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
