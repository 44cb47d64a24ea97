/* sched/policy_score.c - the scores of policy.c's table.  llm-d's as its router computes them:
 *
 *   llm-d-weighted   3 matched/total + 2 (max - waiting)/(max - min) + 2 (1 - KV use); the last two
 *                    as old as its metrics are (config.metrics_ns)
 *   llm-d-affinity   keep those with matched/total >= 0.80, unless the least loaded of them would
 *                    answer 18 s later than the others; then the least in-flight uncached tokens,
 *                    this request's included.  For decode: the fewest requests in flight.
 */
#include "sched/policy_score.h"

#define STICKY 0.80
#define STICKY_PENALTY_NS 18e9

double score_cost_prefill(const struct sched *s, const struct choice *c, uint32_t rank)
{
    return cost_of_prefill(s, c->r, rank, c->now_ns, &c->weights, c->least);
}

double score_cost_decode(const struct sched *s, const struct choice *c, uint32_t rank)
{
    return cost_of_decode(s, c->r, (uint32_t)c->prefill, rank);
}

double score_work(const struct sched *s, const struct choice *c, uint32_t rank)
{
    (void)c;
    const struct worker *w = &s->workers[rank];
    return (double)w->prompt_tokens_charged + w->seqs_charged / 1e4;
}

double score_seqs(const struct sched *s, const struct choice *c, uint32_t rank)
{
    (void)c;
    return s->workers[rank].seqs_charged;
}

double score_cached(const struct sched *s, const struct choice *c, uint32_t rank)
{
    double load = c->part == PART_DECODE ? score_seqs(s, c, rank) : score_work(s, c, rank);
    return load / (load + 1) - s->held[rank];
}

double score_first(const struct sched *s, const struct choice *c, uint32_t rank)
{
    return cost_busy_ns(&s->workers[rank], c->now_ns) + cost_prefill_ns(s, c->r, rank);
}

double score_step(const struct sched *s, const struct choice *c, uint32_t rank)
{
    (void)c;
    const struct worker *w = &s->workers[rank];
    return w->rates.step_ns + w->rates.step_seq_ns * w->seqs_charged;
}

double score_turn(const struct sched *s, const struct choice *c, uint32_t rank)
{
    uint32_t count = s->config.rank_count;
    return (rank + count - c->turn % count) % count;
}

double score_any(const struct sched *s, const struct choice *c, uint32_t rank)
{
    (void)s;
    return rank == c->ranks[c->lot % c->count] ? 0 : 1;
}

/* -- llm-d ------------------------------------------------------------------------------------ */

static double matched(const struct sched *s, const struct choice *c, uint32_t rank)
{
    return c->blocks ? (double)s->held[rank] / c->blocks : 0;
}

static uint32_t waiting(const struct worker *w)
{
    return w->prompts_charged > 0 ? w->prompts_charged - 1 : 0; /* the first one is running */
}

static void scrape(struct sched *s, uint64_t now_ns)
{
    if (s->config.metrics_ns && s->seen_ns && now_ns < s->seen_ns + s->config.metrics_ns) return;
    s->seen_ns = now_ns;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        struct worker *w = &s->workers[rank];
        if (!w->alive) continue;
        w->seen_waiting = waiting(w);
        w->seen_use = (double)w->blocks_charged / w->blocks;
    }
}

double score_weighted(const struct sched *s, const struct choice *c, uint32_t rank)
{
    const struct worker *w = &s->workers[rank];
    double spread = c->waiting_most - c->waiting_least;
    double queue = spread > 0 ? (c->waiting_most - w->seen_waiting) / spread : 1;
    double use = w->seen_use < 1 ? w->seen_use : 1;
    return -(3 * matched(s, c, rank) + 2 * queue + 2 * (1 - use));
}

static double in_flight_ns(const struct sched *s, uint32_t rank)
{
    const struct worker *w = &s->workers[rank];
    return (double)w->prompt_tokens_charged * w->rates.prefill_token_ns;
}

double score_affinity(const struct sched *s, const struct choice *c, uint32_t rank)
{
    if (c->sticky && matched(s, c, rank) < STICKY) return 1e18;
    return (double)s->workers[rank].prompt_tokens_charged + c->r->prompt_tokens
         - cost_cached_tokens(s, c->r, rank);
}

double score_active(const struct sched *s, const struct choice *c, uint32_t rank)
{
    return score_seqs(s, c, rank);
}

void score_prepare(struct sched *s, struct choice *c)
{
    scrape(s, c->now_ns);
    double sticky = 1e18, others = 1e18;
    c->blocks = (c->r->prompt_tokens - 1) / s->config.block_tokens;
    c->waiting_least = UINT32_MAX;
    c->waiting_most = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t rank = c->ranks[i], q = s->workers[rank].seen_waiting;
        if (q < c->waiting_least) c->waiting_least = q;
        if (q > c->waiting_most) c->waiting_most = q;
        double *least = matched(s, c, rank) >= STICKY ? &sticky : &others;
        double ns = in_flight_ns(s, rank);
        if (ns < *least) *least = ns;
    }
    c->sticky = sticky < 1e18 && sticky - others <= STICKY_PENALTY_NS;
}
