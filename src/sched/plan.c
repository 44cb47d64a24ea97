/* sched/plan.c - requests wait on rank 0, planned on a worker, until that worker needs them.
 *
 * A request is planned the moment it arrives: its work counts for every later decision.  It is
 * handed out only when its worker would otherwise run dry, so that until then shorter or more
 * urgent ones can pass it, it can be cancelled for nothing, and it can move to a worker that came
 * free earlier than thought (steal).
 *
 * The turn: by priority; then what was placed before and goes on after a loss, streams before
 * those that had no token yet, the shortest first; then by user (fair.c), then by arrival + AGING
 * times the time its prompt takes; with a target of its own, by when it must begin to meet it.
 * Short prompts pass long ones, and nobody is passed by what arrived AGING times its own length
 * later.
 *
 * What has waited for KEEP_NS, and now for nothing but room to decode in, would be passed by all
 * that need less of it: from then on a decode worker's room is kept for it, one request at a time.
 */
#include "sched/books.h"

#define AHEAD_NS UINT64_C(30000000)   /* a worker has at least this much work in hand          */
#define STEAL_GAIN_NS 5e6             /* less is not worth a move */
#define STEAL_EVERY_NS UINT64_C(20000000)
#define KEEP_NS UINT64_C(5000000000)
#define BEHIND (UINT64_C(1) << 61)    /* keys of one class of turns: below this               */
enum { AGING = 6, STEAL_LOOK = 8, STEAL_MAX = 4 };

uint64_t plan_key_of(const struct request *r, double own_ns)
{
    uint64_t own = (uint64_t)own_ns;
    if (turn_class(r) < TURN_NEW) return turn_class(r) * BEHIND + (own < BEHIND ? own : BEHIND - 1);
    if (r->ttft_ns) return TURN_NEW * BEHIND + (r->due_ns > own ? r->due_ns - own : 0);
    return TURN_NEW * BEHIND + r->arrived_ns + AGING * own;
}

static bool goes_before(const struct request *a, const struct request *b)
{
    if (a->priority != b->priority) return a->priority < b->priority;
    if (a->plan_key != b->plan_key) return a->plan_key < b->plan_key;
    return a->order < b->order;
}

static void mark(struct sched *s, int32_t rank)
{
    uint64_t bit = UINT64_C(1) << (rank % 64), *word = &s->planned[rank / 64];
    *word = s->workers[rank].plan_head != NO_SLOT ? *word | bit : *word & ~bit;
}

void plan_add(struct sched *s, struct request *r, int32_t rank)
{
    struct worker *w = &s->workers[rank];
    CHECK(r->plan == NO_WORKER && w->alive);
    double own_ns = cost_prefill_ns(s, r, (uint32_t)rank);
    r->plan = rank;
    r->work_ns = (uint64_t)own_ns;
    r->plan_key = plan_key_of(r, own_ns);
    uint16_t before = NO_SLOT, at = w->plan_head;
    while (at != NO_SLOT && !goes_before(r, &s->requests[at])) {
        before = at;
        at = s->requests[at].plan_next;
    }
    r->plan_previous = before;
    r->plan_next = at;
    if (before == NO_SLOT) w->plan_head = r->id.slot;
    else s->requests[before].plan_next = r->id.slot;
    if (at != NO_SLOT) s->requests[at].plan_previous = r->id.slot;
    w->plan_count++;
    w->plan_ns += r->work_ns;
    w->plan_blocks += r->blocks_soon;
    s->plan_count++;
    mark(s, rank);
}

void plan_remove(struct sched *s, struct request *r)
{
    if (r->plan == NO_WORKER) return;
    struct worker *w = &s->workers[r->plan];
    CHECK(w->plan_count > 0 && w->plan_ns >= r->work_ns);
    if (r->plan_previous == NO_SLOT) w->plan_head = r->plan_next;
    else s->requests[r->plan_previous].plan_next = r->plan_next;
    if (r->plan_next != NO_SLOT) s->requests[r->plan_next].plan_previous = r->plan_previous;
    w->plan_count--;
    w->plan_ns -= r->work_ns;
    w->plan_blocks -= r->blocks_soon;
    s->plan_count--;
    mark(s, r->plan);
    r->plan = NO_WORKER;
    if (s->kept_slot == r->id.slot) s->kept_rank = 0;
}

void plan_all_away(struct sched *s, int32_t rank)
{
    struct worker *w = &s->workers[rank];
    while (w->plan_head != NO_SLOT) plan_remove(s, &s->requests[w->plan_head]);
}

/* Mostly the last: new ones are queued there, behind all that are planned. */
static uint16_t first_unplanned(const struct sched *s)
{
    uint32_t left = s->queue_count - s->plan_count;
    uint16_t first = NO_SLOT;
    for (uint16_t slot = s->queue_tail; left > 0; slot = s->requests[slot].previous) {
        if (s->requests[slot].plan != NO_WORKER) continue;
        first = slot;
        left--;
    }
    return first;
}

void plan_waiting(struct sched *s, uint64_t now_ns)
{
    for (uint16_t slot = first_unplanned(s); slot != NO_SLOT; slot = s->requests[slot].next) {
        struct request *r = &s->requests[slot];
        if (r->plan != NO_WORKER || r->not_before_ns > now_ns) continue;
        policy_match(s, r);
        int32_t rank = policy_plan(s, r, now_ns);
        if (rank != NO_WORKER) plan_add(s, r, rank);
    }
}

static bool needs_work(const struct worker *w, uint64_t now_ns)
{
    return w->alive && w->busy_until_ns <= now_ns + AHEAD_NS;
}

/* The first rank above `rank` where something is planned; 0: none. */
static uint32_t next_planned(const struct sched *s, uint32_t rank)
{
    uint32_t words = sizeof s->planned / sizeof s->planned[0], i = (rank + 1) / 64;
    if (i >= words) return 0;
    uint64_t left = s->planned[i] & (~UINT64_C(0) << ((rank + 1) % 64));
    while (left == 0 && ++i < words) left = s->planned[i];
    return left ? i * 64 + (uint32_t)__builtin_ctzll(left) : 0;
}

/* -- moves: an idle worker takes what it would serve earlier --------------------------------- */

/* The worker with the most work ahead, something of it planned here. */
static uint32_t most_loaded(const struct sched *s)
{
    uint32_t from = 0;
    uint64_t most = 0;
    for (uint32_t rank = 0; (rank = next_planned(s, rank)) != 0;) {
        const struct worker *w = &s->workers[rank];
        uint64_t ends = w->busy_until_ns + w->plan_ns;
        if (ends <= most) continue;
        most = ends;
        from = rank;
    }
    return from;
}

/* The idle worker that would gain most from computing r, which waits `ahead` ns where it is. */
static uint32_t best_thief(struct sched *s, struct request *r, double ahead, uint64_t now_ns,
                           double *best_gain)
{
    uint32_t best = 0;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (w->plan_head != NO_SLOT || !needs_work(w, now_ns)) continue;
        if (plan_kept_from(s, r, rank) || !policy_can_take(s, w, r)) continue;
        double own = cost_prefill_ns(s, r, rank), more = own - (double)r->work_ns;
        double gain = cost_of_waiting(r) * ahead - (1 + COST_OTHERS) * more
                    - cost_harm_ns(s, r, rank, own) - cost_beside_ns(s, rank, own, now_ns);
        if (gain <= *best_gain) continue;
        *best_gain = gain;
        best = rank;
    }
    return best;
}

/* One move, the best among the first few requests of the most loaded worker. */
static bool move_one(struct sched *s, uint64_t now_ns)
{
    uint32_t from = most_loaded(s), to = 0;
    if (from == 0) return false;
    const struct worker *w = &s->workers[from];
    struct request *best = NULL;
    double best_gain = STEAL_GAIN_NS, ahead = 0;
    if (w->busy_until_ns > now_ns) ahead = (double)(w->busy_until_ns - now_ns);
    uint16_t slot = w->plan_head;
    for (int i = 0; slot != NO_SLOT && i < STEAL_LOOK; i++, slot = s->requests[slot].plan_next) {
        struct request *r = &s->requests[slot];
        policy_match(s, r);
        uint32_t thief = best_thief(s, r, ahead, now_ns, &best_gain);
        if (thief) {
            best = r;
            to = thief;
        }
        ahead += (double)r->work_ns;
    }
    if (!best) return false;
    policy_match(s, best);
    plan_remove(s, best);
    plan_add(s, best, (int32_t)to);
    return true;
}

static void rebalance(struct sched *s, uint64_t now_ns)
{
    if (s->plan_count == 0 || now_ns < s->steal_ns) return;
    for (int i = 0; i < STEAL_MAX; i++)
        if (!move_one(s, now_ns)) break;
    s->steal_ns = now_ns + STEAL_EVERY_NS;
}

/* -- handing out ------------------------------------------------------------------------------ */

bool plan_kept_from(const struct sched *s, const struct request *r, uint32_t rank)
{
    const struct request *other = &s->requests[s->kept_slot];
    return s->kept_rank == rank && other != r && r->priority >= other->priority;
}

static void keep_room(struct sched *s, const struct request *r, uint64_t now_ns)
{
    if (s->kept_rank || now_ns < r->arrived_ns + KEEP_NS) return;
    s->kept_rank = policy_emptiest(s, r);
    s->kept_slot = r->id.slot;
}

/* Whose turn it is on a worker where something is planned: who has room kept is not passed. */
static struct request *turn_of(struct sched *s, uint32_t rank)
{
    struct request *r = fair_planned(s, &s->workers[rank]), *kept = &s->requests[s->kept_slot];
    bool here = s->kept_rank && kept->plan == (int32_t)rank;
    return here && kept->priority <= r->priority ? kept : r;
}

static struct request *due_of(struct sched *s, uint32_t rank, uint64_t now_ns, int32_t *decode)
{
    const struct worker *w = &s->workers[rank];
    if (!needs_work(w, now_ns)) return NULL;
    struct request *r = turn_of(s, rank);
    if (plan_kept_from(s, r, rank) || !policy_can_take(s, w, r)) return NULL;
    policy_match(s, r);
    *decode = policy_partner(s, r, (int32_t)rank, now_ns);
    if (*decode != NO_WORKER) return r;
    keep_room(s, r, now_ns);
    return NULL;
}

struct request *plan_due(struct sched *s, uint64_t now_ns, int32_t *prefill, int32_t *decode)
{
    rebalance(s, now_ns);
    for (uint32_t rank = 0; (rank = next_planned(s, rank)) != 0;) {
        struct request *r = due_of(s, rank, now_ns, decode);
        if (!r) continue;
        *prefill = (int32_t)rank;
        return r;
    }
    return NULL;
}

uint64_t plan_wake_ns(const struct sched *s)
{
    uint64_t wake = UINT64_MAX;
    for (uint32_t rank = 0; (rank = next_planned(s, rank)) != 0;) {
        const struct worker *w = &s->workers[rank];
        /* One that is due but lacks room waits for something to happen, not for time. */
        if (needs_work(w, s->now_ns)) continue;
        if (w->busy_until_ns - AHEAD_NS < wake) wake = w->busy_until_ns - AHEAD_NS;
    }
    return wake;
}
