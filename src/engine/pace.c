/* engine/pace.c - the filter behind pace.h. */
#include "engine/pace.h"

#include <math.h>
#include <string.h>

/* Of a small CPU; only their ratios matter, and those only until a few steps were seen. */
static const double guess_ns[PACE_COSTS] = { 4e6, 4e5, 8e5 / 1024, 4e5, 2e5 / 1024 };

#define NOISE 0.01                    /* variance of log(a step's time), load apart          */
#define DRIFT 2e-5                    /* variance that log(a cost) gains from step to step   */
#define DOUBT 1.0                     /* of a guess                                          */
#define OUTLIER 3.0                   /* deviations                                          */

static void features(const struct pace_load *l, double out[PACE_COSTS])
{
    const double raw[PACE_COSTS] = { 1, l->decode_seqs, l->decode_context, l->prefill_tokens,
                                     l->prefill_context };
    for (int i = 0; i < PACE_COSTS; i++) out[i] = raw[i] * guess_ns[i];
}

static double dot(const double a[PACE_COSTS], const double b[PACE_COSTS])
{
    double sum = 0;
    for (int i = 0; i < PACE_COSTS; i++) sum += a[i] * b[i];
    return sum;
}

static void doubt_all(struct pace *p)
{
    memset(p->doubt, 0, sizeof p->doubt);
    for (int i = 0; i < PACE_COSTS; i++) p->doubt[i][i] = DOUBT;
}

void pace_open(struct pace *p)
{
    *p = (struct pace){ 0 };
    for (int i = 0; i < PACE_COSTS; i++) p->cost[i] = 1;
    doubt_all(p);
}

/* Costs drift, but none is ever doubted more than the guess was. */
static void drift(struct pace *p)
{
    double shrink[PACE_COSTS];
    for (int i = 0; i < PACE_COSTS; i++) {
        p->doubt[i][i] += DRIFT;
        shrink[i] = p->doubt[i][i] > DOUBT ? sqrt(DOUBT / p->doubt[i][i]) : 1;
    }
    for (int i = 0; i < PACE_COSTS; i++)
        for (int k = 0; k < PACE_COSTS; k++) p->doubt[i][k] *= shrink[i] * shrink[k];
}

/* In `gain` what a step says about each cost, before it is divided by the variance returned. */
static double weigh(const struct pace *p, const double share[PACE_COSTS], double gain[PACE_COSTS])
{
    for (int i = 0; i < PACE_COSTS; i++) gain[i] = dot(p->doubt[i], share);
    return dot(gain, share) + NOISE;
}

/* One step of the extended filter: d log(ns) / d log(cost) is the cost's share of the step.  The
 * first step sets the scale and proves nothing: it met cold memory.  The machine makes steps
 * longer, never shorter: after one much too short all that was learned is doubted. */
void pace_learn(struct pace *p, const struct pace_load *load, double ns)
{
    double share[PACE_COSTS], gain[PACE_COSTS];
    if (!(ns > 0)) return;
    p->decode_steps += load->decode_seqs > 0;
    p->prefill_steps += load->prefill_tokens > 0;
    features(load, share);
    if (p->scale_ns == 0) {
        p->scale_ns = ns / dot(p->cost, share);
        return;
    }
    double predicted = p->scale_ns * dot(p->cost, share);
    for (int i = 0; i < PACE_COSTS; i++) share[i] *= p->scale_ns * p->cost[i] / predicted;
    drift(p);
    double off = log(ns / predicted), variance = weigh(p, share, gain);
    if (off < -OUTLIER * sqrt(variance)) {
        doubt_all(p);
        variance = weigh(p, share, gain);
    }
    double most = OUTLIER * sqrt(variance);
    if (fabs(off) > most) off = copysign(most, off);
    for (int i = 0; i < PACE_COSTS; i++) {
        p->cost[i] *= exp(gain[i] / variance * off);
        for (int k = 0; k < PACE_COSTS; k++) p->doubt[i][k] -= gain[i] * gain[k] / variance;
    }
}

double pace_predict_ns(const struct pace *p, const struct pace_load *load)
{
    double x[PACE_COSTS];
    features(load, x);
    return p->scale_ns * dot(p->cost, x);
}

double pace_cost_ns(const struct pace *p, int i)
{
    return p->scale_ns * p->cost[i] * guess_ns[i];
}

void pace_add_decode(struct pace_load *load, uint32_t position)
{
    load->decode_seqs++;
    load->decode_context += position;
}

void pace_add_prefill(struct pace_load *load, uint32_t first, uint32_t count)
{
    load->prefill_tokens += count;
    load->prefill_context += (double)count * first + (double)count * count / 2;
}

static bool fits(const struct pace *p, struct pace_load load, uint32_t first, uint32_t count,
                 double target_ns)
{
    pace_add_prefill(&load, first, count);
    return pace_predict_ns(p, &load) <= target_ns;
}

uint32_t pace_fit(const struct pace *p, const struct pace_load *load, uint32_t first,
                  uint32_t most, double target_ns)
{
    uint32_t least = 0;
    while (least < most) {
        uint32_t middle = most - (most - least) / 2;
        if (fits(p, *load, first, middle, target_ns)) least = middle;
        else most = middle - 1;
    }
    return least;
}
