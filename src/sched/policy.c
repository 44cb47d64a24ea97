/* sched/policy.c - which workers get the request: the table of policies, and how one is applied.
 *
 *  1. A worker that cannot take it now (not alive, no sequence or block left in its books, drained
 *     to change its role) never wins.  Another one that holds nothing can always take what fits it.
 *  2. One token of output needs no decode rank: it is run where prompts are computed.
 *  3. Among those that can, the lowest score wins; scores are policy_score.c and cost.c.
 *  4. A worker of role BOTH takes the whole request when its score is no worse than the best
 *     prefill worker's.  POLICY_COST considers other workers that hold a beginning of the prompt
 *     like that too: a short suffix is computed where the rest is cached; with measured rates it
 *     considers all workers.
 *     While nobody has role PREFILL, or nobody DECODE, the others are of role BOTH.
 *  5. Equal scores: more free blocks wins, so that load spreads before it must; then the lower
 *     rank, which only makes replays repeat.  llm-d's policies draw lots, as llm-d does.
 */
#include <math.h>
#include <string.h>

#include "common/splitmix.h"
#include "sched/books.h"
#include "sched/policy_score.h"

static const struct policy_row {
    const char *name;
    policy_score *prefill, *decode;
    bool lots, compares;              /* ties are drawn, not filled's; scores need score_prepare */
} table[POLICY_COUNT] = {
    [POLICY_COST] = { "cost", score_cost_prefill, score_cost_decode, false, false },
    [POLICY_CACHE_AWARE] = { "cache-aware", score_cached, score_cached, false, false },
    [POLICY_LOAD_BASED] = { "load-based", score_work, score_seqs, false, false },
    [POLICY_LATENCY_OPTIMIZED] = { "latency-optimized", score_first, score_step, false, false },
    [POLICY_ROUND_ROBIN] = { "round-robin", score_turn, score_turn, false, false },
    [POLICY_RANDOM] = { "random", score_any, score_any, true, false },
    [POLICY_LLM_D_WEIGHTED] = { "llm-d-weighted", score_weighted, score_weighted, true, true },
    [POLICY_LLM_D_AFFINITY] = { "llm-d-affinity", score_affinity, score_active, true, true },
};

bool sched_policy_find(const char *name, enum sched_policy *out)
{
    for (int i = 0; i < POLICY_COUNT; i++) {
        if (strcmp(name, table[i].name) != 0) continue;
        *out = (enum sched_policy)i;
        return true;
    }
    return false;
}

const char *sched_policy_name(enum sched_policy policy)
{
    return table[policy].name;
}

static const struct policy_row *row(const struct sched *s, enum part part)
{
    uint32_t p = s->config.policy;
    if (part == PART_DECODE && s->config.decode_policy) p = s->config.decode_policy - 1;
    CHECK(p < POLICY_COUNT);
    return &table[p];
}

void policy_roles(struct sched *s)
{
    s->no_prefill = s->no_decode = true;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (w->alive && w->role == ROLE_PREFILL) s->no_prefill = false;
        if (w->alive && w->role == ROLE_DECODE) s->no_decode = false;
    }
}

static enum role role_now(const struct sched *s, const struct worker *w)
{
    bool alone = w->role == ROLE_PREFILL ? s->no_decode : s->no_prefill;
    return alone ? ROLE_BOTH : w->role;
}

static bool does(const struct sched *s, const struct worker *w, enum part part)
{
    if (!w->alive || w->becomes) return false;
    enum role role = role_now(s, w);
    if (part == PART_PREFILL) return role == ROLE_PREFILL;
    if (part == PART_DECODE) return role == ROLE_DECODE;
    return role == ROLE_BOTH;
}

bool policy_can_ever_take(const struct sched *s, const struct worker *w, const struct request *r)
{
    (void)s;
    return w->alive && r->prompt_tokens < w->tokens_max && r->blocks_least <= w->blocks;
}

bool policy_anybody_ever(const struct sched *s, const struct request *r)
{
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++)
        if (policy_can_ever_take(s, &s->workers[rank], r)) return true;
    return false;
}

bool policy_can_take(const struct sched *s, const struct worker *w, const struct request *r)
{
    if (!policy_can_ever_take(s, w, r) || w->becomes) return false;
    if (w->seqs_charged == 0) return true;
    return w->seqs_charged < w->seqs
        && w->blocks_charged + r->blocks_soon <= w->blocks
        && (w->refused_blocks == 0 || r->blocks_soon < w->refused_blocks);
}

static uint32_t blocks_free(const struct worker *w)
{
    return w->blocks_charged < w->blocks ? w->blocks - w->blocks_charged : 0;
}

/* The best of c->ranks, and its score.  Among equals the one that was given least to fill: so that
 * all caches are used, and what is pushed out is what was left alone for longest. */
static int32_t best_of(struct sched *s, struct choice *c, double *score_out)
{
    const struct policy_row *p = row(s, c->part);
    policy_score *score = c->part == PART_DECODE ? p->decode : p->prefill;
    if (c->count == 0) return NO_WORKER;
    c->lot = splitmix_next(&s->random_state);
    if (score == score_turn) c->turn = s->turn++;
    if (p->compares) score_prepare(s, c);
    c->weights = cost_weights(s);
    c->least = INFINITY;
    uint32_t best = 0, ties = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t rank = c->ranks[i];
        double x = score(s, c, rank);
        if (x > c->least) continue;
        if (best && x == c->least) {
            ties++;
            bool takes = p->lots ? (c->lot >> (ties % 32)) % (ties + 1) == 0
                                 : s->workers[rank].filled < s->workers[best].filled;
            if (!takes) continue;
        } else {
            ties = 0;
        }
        best = rank;
        c->least = x;
    }
    *score_out = c->least;
    return (int32_t)best;
}

/* A decode worker that could compute the rest of a prompt itself. */
static bool holds_beginning(const struct sched *s, const struct worker *w, uint32_t rank)
{
    return s->config.policy == POLICY_COST && w->alive && s->held[rank] > 0;
}

/* A decode worker that takes its KV slowly keeps prefill's blocks: at most this part of them. */
enum { HANDING_PART = 4 };

static bool takes_in_time(const struct sched *s, const struct worker *d, int32_t prefill)
{
    return d->handing_blocks <= s->workers[prefill].blocks / HANDING_PART;
}

static int32_t best_now(struct sched *s, const struct request *r, enum part part, int32_t prefill,
                        uint64_t now_ns, double *score)
{
    struct choice c = { .r = r, .part = part, .now_ns = now_ns, .prefill = prefill };
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (part == PART_DECODE && !takes_in_time(s, w, prefill)) continue;
        if (part == PART_DECODE && plan_kept_from(s, r, rank)) continue;
        bool may = does(s, w, part) || (part == PART_WHOLE && holds_beginning(s, w, rank));
        if (may && policy_can_take(s, w, r)) c.ranks[c.count++] = (uint16_t)rank;
    }
    return best_of(s, &c, score);
}

void policy_match(struct sched *s, const struct request *r)
{
    if (s->matched == r) return;
    s->matched = r;
    uint32_t most = r->key_count, cacheable = (r->prompt_tokens - 1) / s->config.block_tokens;
    if (most > cacheable) most = cacheable;
    if (s->config.index && most > 0) {
        s->stats.lookups++;
        s->held_most = kv_index_match(s->config.index, r->keys, most, s->held);
    } else {
        s->held_most = 0;
        memset(s->held, 0, s->config.rank_count * sizeof s->held[0]);
    }
    s->held_by = 0;
    if (s->held_most == 0) return;
    for (uint32_t rank = 1; rank < s->config.rank_count && s->held_by == 0; rank++)
        if (s->held[rank] == s->held_most && s->workers[rank].alive) s->held_by = (int32_t)rank;
}

bool policy_place(struct sched *s, const struct request *r, uint64_t now_ns, int32_t *prefill,
                  int32_t *decode)
{
    double pair_score = 0, whole_score = 0, decode_score;
    int32_t p = best_now(s, r, PART_PREFILL, NO_WORKER, now_ns, &pair_score);
    int32_t d = p;
    if (p != NO_WORKER && r->max_tokens > 1)                                        /* 2 */
        d = best_now(s, r, PART_DECODE, p, now_ns, &decode_score);
    int32_t whole = best_now(s, r, PART_WHOLE, NO_WORKER, now_ns, &whole_score);
    bool pair = p != NO_WORKER && d != NO_WORKER;
    if (whole != NO_WORKER && (!pair || whole_score <= pair_score)) {               /* 4 */
        p = d = whole;
        pair = true;
    }
    *prefill = p;
    *decode = d;
    return pair;
}

/* -- for sched/plan.c ------------------------------------------------------------------------- */

bool policy_can_plan(const struct sched *s, const struct request *r, uint32_t rank)
{
    return !s->workers[rank].becomes && policy_can_ever_take(s, &s->workers[rank], r);
}

int32_t policy_plan(struct sched *s, const struct request *r, uint64_t now_ns)
{
    struct choice c = { .r = r, .part = PART_WHOLE, .now_ns = now_ns, .prefill = NO_WORKER };
    double score;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++)
        if (policy_can_plan(s, r, rank)) c.ranks[c.count++] = (uint16_t)rank;
    return best_of(s, &c, &score);
}

int32_t policy_partner(struct sched *s, const struct request *r, int32_t prefill, uint64_t now_ns)
{
    double score;
    if (role_now(s, &s->workers[prefill]) != ROLE_PREFILL || r->max_tokens == 1) return prefill;
    return best_now(s, r, PART_DECODE, prefill, now_ns, &score);
}

uint32_t policy_emptiest(const struct sched *s, const struct request *r)
{
    uint32_t best = 0;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (!does(s, w, PART_DECODE) || !policy_can_ever_take(s, w, r)) continue;
        if (!best || blocks_free(w) > blocks_free(&s->workers[best])) best = rank;
    }
    return best;
}

bool policy_fits(const struct sched *s, uint32_t prompt_tokens)
{
    bool any_alive = false;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (!w->alive) continue;
        any_alive = true;
        if (prompt_tokens < w->tokens_max && request_blocks(s, prompt_tokens + 1) <= w->blocks)
            return true;
    }
    return !any_alive;
}
