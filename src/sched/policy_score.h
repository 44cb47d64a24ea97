/* sched/policy_score.h - how good a worker is for a request; private to policy.c. */
#ifndef RANKSERVE_SCHED_POLICY_SCORE_H
#define RANKSERVE_SCHED_POLICY_SCORE_H

#include "sched/books.h"

enum part { PART_PREFILL, PART_DECODE, PART_WHOLE };

struct choice {
    const struct request *r;
    enum part part;
    int32_t prefill;                  /* PART_DECODE: who computes the prompt */
    uint64_t now_ns;
    uint64_t lot;
    uint32_t turn;
    uint32_t count;
    uint32_t waiting_least, waiting_most;     /* requests, over the candidates */
    uint32_t blocks;                  /* of the prompt that could be cached */
    bool sticky;                      /* llm-d-affinity: only those with 0.80 of it count       */
    double least;                     /* the best score so far; a worse one need not be exact   */
    struct cost_weights weights;
    uint16_t ranks[WORKER_COUNT_MAX]; /* candidates, ascending                  */
};

/* Fills what scores compare with, from ranks and count. */
void score_prepare(struct sched *s, struct choice *c);

/* Lower is better. */
typedef double policy_score(const struct sched *s, const struct choice *c, uint32_t rank);
policy_score score_cost_prefill, score_cost_decode, score_cached, score_work, score_seqs;
policy_score score_first, score_step, score_turn, score_any;
policy_score score_weighted, score_affinity, score_active;

#endif
