/* engine/pace.h - how long a step takes, learned from the steps before; what still fits a target.
 *
 *   ns = fixed + a decode_seqs + b decode_context + c prefill_tokens + d prefill_context
 *
 * The five costs come from an extended Kalman filter (R. E. Kalman, "A new approach to linear
 * filtering and prediction problems", 1960) over the logarithms of costs and of measured steps: the
 * machine's noise is relative, and a cost is never negative, so a longer chunk never looks cheaper.
 * Each cost starts as a guess of equal doubt, the first step sets the scale, and costs may drift.
 * Noise makes steps longer, never shorter.  So a step far longer than predicted (the machine was
 * taken away) counts as one three deviations off; one far shorter makes all costs doubted anew.
 * Owner: the engine; no clock, heap or thread in here.
 */
#ifndef RANKSERVE_ENGINE_PACE_H
#define RANKSERVE_ENGINE_PACE_H

#include <stdbool.h>
#include <stdint.h>

enum { PACE_COSTS = 5 };

struct pace_load {                    /* of one step */
    uint32_t decode_seqs, prefill_tokens;
    double decode_context;            /* sum of their positions                              */
    double prefill_context;           /* sum of the tokens' positions                        */
};

struct pace {
    double scale_ns;                  /* 0: nothing learned                                  */
    double cost[PACE_COSTS];          /* of the scaled guesses: 1 is as guessed              */
    double doubt[PACE_COSTS][PACE_COSTS]; /* covariance of the costs' logarithms             */
    uint64_t decode_steps, prefill_steps; /* learned from: with decodes, with prompts        */
};

void pace_open(struct pace *p);
/* A step with this load took `ns`. */
void pace_learn(struct pace *p, const struct pace_load *load, double ns);
/* 0 before anything was learned. */
double pace_predict_ns(const struct pace *p, const struct pace_load *load);

/* What one unit of feature `i` costs, in the order of the formula above; 0 as above. */
double pace_cost_ns(const struct pace *p, int i);

void pace_add_decode(struct pace_load *load, uint32_t position);
void pace_add_prefill(struct pace_load *load, uint32_t first, uint32_t count);
/* The longest chunk from position `first`, at most `most` tokens, with which a step that holds
 * `load` already is predicted to end within target_ns.  All before anything was learned. */
uint32_t pace_fit(const struct pace *p, const struct pace_load *load, uint32_t first,
                  uint32_t most, double target_ns);

#endif
