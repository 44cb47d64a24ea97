/* sched/cost.c - what serving a request on a worker costs, in nanoseconds.
 *
 *   prefill on w:  T * (wait(w) + passed(w)) + L * prompt(w) + harm(w)
 *   prompt(w):     min((1 + COST_OTHERS) * recompute, pull + (1 + COST_OTHERS) * the rest)
 *   decode on d:   max(0, transfer - what hides behind the prefill) + harm(d) + missed tpot
 *
 * wait(w) is the work in hand and the planned work whose turn is earlier; passed(w) is what those
 * whose turn is later lose.  A recompute costs twice: this request waits for it, and it takes from
 * everybody time that a cached prefix would have left (COST_OTHERS, docs/SCHEDULING.md).  A pull
 * fetches the prefix from the worker that holds most of it; only this request waits for that.  A
 * second copy of what another worker holds pushes something else out of a cache (COST_COPY).
 *
 * What goes on after a loss is a decode that stands still: its waiting counts as the harm that a
 * prompt does to decodes, so a decode worker computes it when prompts are in its way.
 *
 * harm(w) is what those who generate on w lose; on a decode worker, while there are workers for
 * prompts, what a prompt takes beyond the time of a step counts twice more: what is short goes
 * there, and what would wait long elsewhere.
 *
 * Workers that compute on the same cores get a share of them each.  Where one would begin to
 * compute, to the wait comes what others do meanwhile, and what they lose (cost_beside_ns); one
 * that is busy has its share already, but long prompts shall not slow decodes in two places at
 * once.  A prompt harms those who generate there wherever it is computed; so a short rest goes to
 * the decode worker that holds the beginning, whose engine mixes it best and which then has nothing
 * to fetch.
 *
 * T and L are the weights of the CachePolicy, 1 when they are equal; T grows with the virtual queue
 * of late first tokens, so that harm counts less while targets are missed.
 */
#include "sched/books.h"

/* Until measured: a small CPU.  Only their ratio matters then. */
const struct sched_rates cost_rates_guess = {
    .prefill_token_ns = 2e6, .step_ns = 2e7, .step_seq_ns = 1e6, .kv_token_bytes = 1e4,
};

enum {
    HARM_TOKENS = 200,                /* that those decoding still have to come, about */
    WALK_MAX = 64,                    /* planned requests looked at for a wait         */
};
#define PREFILL_HARM 0.02             /* of a prompt's time, for each sequence it delays */
#define DECODE_HARM 2.0               /* of what a prompt takes longer than a decode step     */
#define DEBT_TO_WEIGHT 0.5            /* a second of late first tokens adds this to T   */
#define SHORT_NS 2e8                  /* a prompt that an engine mixes into steps of decodes */
#define LONG_NS 1e9                   /* one that those who decode beside it feel               */
#define HANDING_NS 2e6                /* to give a prompt's KV to a decode worker, beside that  */
#define NO_ROOM_NS 2e9                /* to wait for a worker that lacks all blocks     */
#define PULL_FIXED_NS 2e6             /* to ask for blocks and get the first one        */
enum { PULL_BLOCKS_MIN = 4 };

/* What it costs everybody: a fetch keeps only its own request waiting. */
static double prompt_ns(const struct prompt_cost *c)
{
    return c->fetch_ns + (1 + COST_OTHERS) * c->compute_ns + c->copy_ns;
}

uint32_t cost_cached_tokens(const struct sched *s, const struct request *r, uint32_t rank)
{
    uint64_t tokens = (uint64_t)s->held[rank] * s->config.block_tokens;
    return tokens < r->prompt_tokens ? (uint32_t)tokens : r->prompt_tokens - 1;
}

static double compute_ns(const struct sched_rates *k, double prompt, double cached)
{
    double left = prompt - cached;
    return left * (k->prefill_token_ns
                   + k->prefill_context_ns * (cached + left / 2) * (1 / 1024.));
}

static inline struct prompt_cost of_prompt(const struct sched *s, const struct request *r,
                                           uint32_t rank)
{
    const struct sched_rates *k = &s->workers[rank].rates;
    uint32_t cached = cost_cached_tokens(s, r, rank);
    double copy_ns = 0;
    if (s->held_most > s->held[rank])
        copy_ns = COST_COPY * k->prefill_token_ns * s->config.block_tokens
                * (s->held_most - s->held[rank]);
    struct prompt_cost own = { compute_ns(k, r->prompt_tokens, cached), .copy_ns = copy_ns };
    if (!s->config.pull || s->config.policy != POLICY_COST || s->held_by == 0) return own;
    if (s->held_most < s->held[rank] + PULL_BLOCKS_MIN || k->link_bytes_s <= 0) return own;
    uint32_t theirs = s->held_most * s->config.block_tokens;
    if (theirs >= r->prompt_tokens) theirs = r->prompt_tokens - 1;
    struct prompt_cost pull = {
        .compute_ns = compute_ns(k, r->prompt_tokens, theirs),
        .fetch_ns = PULL_FIXED_NS + (theirs - cached) * k->kv_token_bytes / k->link_bytes_s * 1e9,
        .pull_tokens = theirs, .copy_ns = copy_ns,
    };
    return prompt_ns(&pull) < prompt_ns(&own) ? pull : own;
}

struct prompt_cost cost_of_prompt(const struct sched *s, const struct request *r, uint32_t rank)
{
    return of_prompt(s, r, rank);
}

double cost_prefill_ns(const struct sched *s, const struct request *r, uint32_t rank)
{
    return cost_of_prompt(s, r, rank).compute_ns;
}

double cost_busy_ns(const struct worker *w, uint64_t now_ns)
{
    return w->busy_until_ns > now_ns ? (double)(w->busy_until_ns - now_ns) : 0;
}

double cost_of_waiting(const struct request *r)
{
    return goes_on(r) ? 1 + DECODE_HARM : 1;
}

double cost_wait_ns(const struct sched *s, const struct request *r, uint32_t rank, double own_ns,
                    uint64_t now_ns)
{
    const struct worker *w = &s->workers[rank];
    double wait = cost_busy_ns(w, now_ns), waiting = cost_of_waiting(r), behind = 0;
    if (w->plan_count == 0) return waiting * wait;
    if (w->plan_count > WALK_MAX) {   /* as if all there were of its priority, and new */
        if (goes_on(r)) return waiting * wait + w->plan_count * own_ns;
        return wait + (double)w->plan_ns;
    }
    for (uint16_t slot = w->plan_head; slot != NO_SLOT; slot = s->requests[slot].plan_next) {
        const struct request *other = &s->requests[slot];
        if (other == r) continue;
        bool before = other->priority != r->priority ? other->priority < r->priority
                                                     : other->plan_key <= plan_key_of(r, own_ns);
        if (before) wait += (double)other->work_ns;
        else behind += cost_of_waiting(other);
    }
    return waiting * wait + behind * own_ns;
}

static double room_ns(const struct request *r, const struct worker *w)
{
    uint32_t need = w->blocks_charged + w->plan_blocks + r->blocks_least;
    double lack = need > w->blocks ? (double)(need - w->blocks) / w->blocks : 0;
    if (w->seqs_charged + w->plan_count >= w->seqs) lack += 1;
    return lack * NO_ROOM_NS;
}

static double weight(double mine, double other)
{
    return mine + other > 0 ? 2 * mine / (mine + other) : 1;
}

struct cost_weights cost_weights(const struct sched *s)
{
    const struct sched_config *c = &s->config;
    double hurry = 1 + DEBT_TO_WEIGHT * s->ttft_debt_s;
    return (struct cost_weights){
        .wait = hurry * weight(c->latency_weight, c->cache_locality_weight),
        .own = hurry * weight(c->cache_locality_weight, c->latency_weight),
    };
}

double cost_beside_ns(const struct sched *s, uint32_t rank, double own_ns, uint64_t now_ns)
{
    double mine = cost_busy_ns(&s->workers[rank], now_ns) + own_ns, work = 0, prompts = 0;
    if (own_ns <= LONG_NS && s->workers[rank].seqs_charged > 0) return 0;
    for (uint32_t i = s->cores_next[rank]; i != rank; i = s->cores_next[i]) {
        const struct worker *w = &s->workers[i];
        if (!w->alive) continue;
        work += cost_busy_ns(w, now_ns) + (double)w->plan_ns;
        prompts += w->prompts_charged + w->plan_count;
    }
    return (work < mine ? work : mine) + prompts * own_ns;
}

/* A decode worker that holds the most of a prompt, on cores where others compute prompts. */
static bool is_home(const struct sched *s, const struct request *r, uint32_t rank)
{
    uint32_t cached = cost_cached_tokens(s, r, rank);
    if (cached < r->prompt_tokens - cached || s->held[rank] < s->held_most) return false;
    for (uint32_t i = s->cores_next[rank]; i != rank; i = s->cores_next[i])
        if (s->workers[i].alive && s->workers[i].role == ROLE_PREFILL) return true;
    return false;
}

double cost_harm_ns(const struct sched *s, const struct request *r, uint32_t rank, double own_ns)
{
    const struct worker *w = &s->workers[rank];
    if (w->role == ROLE_PREFILL) return 0;
    if (w->role == ROLE_DECODE && own_ns <= SHORT_NS && is_home(s, r, rank)) return -HANDING_NS;
    double decoding = w->seqs_charged - w->prompts_charged, apart = 0;
    if (w->role == ROLE_DECODE && !s->no_prefill && own_ns > w->rates.step_ns)
        apart = own_ns - w->rates.step_ns;
    return own_ns * PREFILL_HARM * decoding + apart * DECODE_HARM;
}

double cost_of_prefill(const struct sched *s, const struct request *r, uint32_t rank,
                       uint64_t now_ns, const struct cost_weights *weights, double enough)
{
    const struct worker *w = &s->workers[rank];
    struct prompt_cost own = of_prompt(s, r, rank);
    double fixed = weights->own * prompt_ns(&own) + cost_harm_ns(s, r, rank, own.compute_ns);
    double waiting = cost_of_waiting(r);
    double least = fixed + weights->wait * waiting * cost_busy_ns(w, now_ns);
    if (least > enough) return least;
    double wait = cost_wait_ns(s, r, rank, own.compute_ns, now_ns)
                + cost_beside_ns(s, rank, own.compute_ns, now_ns);
    return fixed + weights->wait * (wait + room_ns(r, w));
}

double cost_of_decode(const struct sched *s, const struct request *r, uint32_t prefill,
                      uint32_t rank)
{
    const struct worker *d = &s->workers[rank];
    const struct sched_rates *k = &d->rates;
    double transfer = 0;
    if (k->link_bytes_s > 0) {
        double bytes = (r->prompt_tokens - cost_cached_tokens(s, r, rank)) * k->kv_token_bytes;
        transfer = bytes / k->link_bytes_s * 1e9 - cost_prefill_ns(s, r, prefill);
    }
    double use = (double)d->blocks_charged / d->blocks;
    double harm = k->step_seq_ns * d->seqs_charged * HARM_TOKENS * (1 + use);
    double step = k->step_ns + k->step_seq_ns * (d->seqs_charged + 1);
    double late = r->tpot_ns && step > (double)r->tpot_ns ? step - (double)r->tpot_ns : 0;
    return (transfer > 0 ? transfer : 0) + harm + late * HARM_TOKENS;
}

/* First tokens that come late lengthen the virtual queue, those in time shorten it.  It weighs on
 * everybody's placement, so late is what the service's target calls so: a client's own target is a
 * wish for its own request, and neither 1 ms nor an hour shall move others. */
void cost_learn(struct sched *s, const struct request *r, uint64_t now_ns)
{
    double late_s = ((double)now_ns - (double)(r->arrived_ns + ttft_target_ns(s))) / 1e9;
    s->ttft_debt_s += 0.1 * late_s;
    if (s->ttft_debt_s < 0) s->ttft_debt_s = 0;
    if (s->ttft_debt_s > 10) s->ttft_debt_s = 10;
}
