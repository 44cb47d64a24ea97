/* common/sampling.h - what a request asks of the sampler: plain data, as it crosses both wires.
 *
 * Made by the gateway from JSON (ranges already checked there), carried unchanged to the rank that
 * samples.  model/sampler.c gives it its meaning.  Fixed layout, little-endian, no pointers.
 */
#ifndef RANKSERVE_COMMON_SAMPLING_H
#define RANKSERVE_COMMON_SAMPLING_H

#include <stdint.h>

#include "common/limits.h"

enum sampling_flag {
    SAMPLING_IGNORE_EOS = 1,          /* stop_ids[0 .. eos_id_count) do not end the sequence */
    SAMPLING_LOGPROBS = 2,            /* report each token's log-probability and top_count   */
    SAMPLING_PROMPT_LOGPROBS = 4,     /* the same for the prompt; bypasses cache reads       */
};

struct sampling {
    uint64_t seed;
    float temperature;                /* 0: greedy                                   */
    float top_p;                      /* (0, 1]; 1: off                              */
    float min_p;                      /* [0, 1]; 0: off                              */
    float repetition_penalty;         /* > 0; 1: off; over prompt and output         */
    float presence_penalty;           /* [-2, 2]; over output                        */
    float frequency_penalty;          /* [-2, 2]; over output                        */
    int32_t top_k;                    /* <= 0: off                                   */
    uint32_t max_tokens;              /* new tokens at most; >= 1                    */
    uint32_t min_tokens;              /* no stop id before this many new tokens      */
    uint16_t flags;                   /* enum sampling_flag                          */
    uint16_t top_count;               /* alternatives per token,  <= TOP_LOGPROBS_MAX */
    uint16_t prompt_top_count;        /* alternatives per prompt position            */
    uint16_t eos_id_count;            /* the first of stop_ids: the model's own      */
    uint16_t stop_id_count;           /* <= STOP_IDS_MAX                             */
    uint16_t bias_count;              /* struct logit_bias entries that follow on the wire */
    int32_t stop_ids[STOP_IDS_MAX];
};
_Static_assert(sizeof(struct sampling) == 88, "wire layout is fixed");

struct logit_bias {
    int32_t id;
    float bias;                       /* [-100, 100], added to the logit */
};

/* Why a sequence ended. */
enum finish {
    FINISH_NONE = 0,
    FINISH_STOP,                      /* a stop id; stop strings are the gateway's   */
    FINISH_LENGTH,                    /* max_tokens, or the context is full          */
    FINISH_ABORT,                     /* cancelled                                   */
    FINISH_ERROR,                     /* a worker was lost, or refused               */
    FINISH_COUNT
};

/* One token as reported: followed on the wire by top_count struct top_logprob. */
struct token_record {
    uint32_t position;                /* in the sequence; prompt starts at 0         */
    int32_t id;
    float logprob;                    /* of `id`, before temperature and penalties   */
    uint32_t rank;                    /* of `id` among all tokens, from 1; 0: not asked */
    uint16_t top_count;
    uint16_t finish;                  /* enum finish; FINISH_NONE while it goes on   */
};
_Static_assert(sizeof(struct token_record) == 20, "wire layout is fixed");

struct top_logprob {
    int32_t id;
    float logprob;
};

#endif
