/* sched/policy.c - which workers get the request?
 *
 *  1. A worker that cannot take it now (not alive, no sequence or block left in its books) never
 *     wins.  A worker that holds nothing can always take what fits it at all.
 *  2. One token of output needs no decode rank: it is run where prompts are computed.
 *  3. The prefill worker with the least prompt tokens ahead wins: they are what a first token waits
 *     for.  The decode worker with the fewest sequences wins: they are what a token waits for.
 *  4. A worker of role BOTH takes the whole request when its prompt would start no later than on
 *     the best pair.
 *  5. Otherwise more free blocks wins, so that load spreads before it must; then the lower rank.
 *     The last rule only makes replays repeat.
 *
 * round-robin and random replace rule 3 by the next, or any, worker that can take it.
 */
#include <string.h>

#include "sched/books.h"

static const char *const names[POLICY_COUNT] = {
    [POLICY_COST] = "cost",
    [POLICY_LOAD_BASED] = "load-based",
    [POLICY_ROUND_ROBIN] = "round-robin",
    [POLICY_RANDOM] = "random",
};

bool sched_policy_find(const char *name, enum sched_policy *out)
{
    for (int i = 0; i < POLICY_COUNT; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum sched_policy)i;
        return true;
    }
    return false;
}

enum part { PART_PREFILL, PART_DECODE, PART_WHOLE };

static bool does(const struct worker *w, enum part part)
{
    if (!w->alive) return false;
    if (part == PART_PREFILL) return w->role == ROLE_PREFILL;
    if (part == PART_DECODE) return w->role == ROLE_DECODE;
    return w->role == ROLE_BOTH;
}

static bool can_take(const struct sched *s, const struct worker *w, const struct request *r)
{
    uint32_t growth = r->max_tokens < 64 ? r->max_tokens : 64;
    if (r->prompt_tokens >= w->tokens_max) return false;
    if (request_blocks(s, r->prompt_tokens + 1) > w->blocks) return false;
    if (w->seqs_charged == 0) return true;
    return w->seqs_charged < w->seqs
        && w->blocks_charged + request_blocks(s, r->prompt_tokens + growth) <= w->blocks;
}

static uint64_t load_of(const struct worker *w, enum part part)
{
    if (part == PART_DECODE) return w->seqs_charged;
    return w->prompt_tokens_charged;
}

/* < 0 when a is better, as for qsort. */
static int compare(const struct worker *a, const struct worker *b, enum part part)
{
    uint64_t load_a = load_of(a, part), load_b = load_of(b, part);
    if (load_a != load_b) return load_a < load_b ? -1 : 1;                          /* 3 */
    if (a->seqs_charged != b->seqs_charged) return a->seqs_charged < b->seqs_charged ? -1 : 1;
    uint32_t free_a = a->blocks - (a->blocks_charged < a->blocks ? a->blocks_charged : a->blocks);
    uint32_t free_b = b->blocks - (b->blocks_charged < b->blocks ? b->blocks_charged : b->blocks);
    if (free_a != free_b) return free_a > free_b ? -1 : 1;                          /* 5 */
    return a < b ? -1 : 1;
}

static uint64_t random_next(struct sched *s)
{
    s->random_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t x = s->random_state;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static int32_t best_of(struct sched *s, const struct request *r, enum part part)
{
    int32_t found[WORKER_COUNT_MAX];
    uint32_t count = 0;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (does(w, part) && can_take(s, w, r)) found[count++] = (int32_t)rank;
    }
    if (count == 0) return NO_WORKER;
    if (s->config.policy == POLICY_ROUND_ROBIN) return found[s->turn++ % count];
    if (s->config.policy == POLICY_RANDOM) return found[random_next(s) % count];
    int32_t best = found[0];
    for (uint32_t i = 1; i < count; i++)
        if (compare(&s->workers[found[i]], &s->workers[best], part) < 0) best = found[i];
    return best;
}

bool policy_place(struct sched *s, const struct request *r, int32_t *prefill, int32_t *decode)
{
    int32_t p = best_of(s, r, PART_PREFILL);
    int32_t d = r->max_tokens == 1 ? p : best_of(s, r, PART_DECODE);                /* 2 */
    int32_t whole = best_of(s, r, PART_WHOLE);
    bool pair = p != NO_WORKER && d != NO_WORKER;
    if (whole != NO_WORKER
        && (!pair || s->workers[whole].prompt_tokens_charged
                         <= s->workers[p].prompt_tokens_charged)) {                 /* 4 */
        p = d = whole;
        pair = true;
    }
    *prefill = p;
    *decode = d;
    return pair;
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
